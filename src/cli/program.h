/*
 * program.h
 *	  A program that the worker runs for a task: its start, its pipes, its end.
 */
#ifndef ORCHESTRATOR_PROGRAM_H
#define ORCHESTRATOR_PROGRAM_H

#include <poll.h>

#include "pqexpbuffer.h"

/* Pipes that one program may have open. */
#define PROGRAM_PIPES 4

/* From TERM to KILL, unless --grace says otherwise. */
#define PROGRAM_GRACE 10
/* clang-format off */
#define PROGRAM_GRACE_OPTION {"grace", 0, "SECONDS", "from TERM to KILL of a program (" CppAsString2(PROGRAM_GRACE) ")"}
/* clang-format on */

typedef enum ProgramStream
{
	PROGRAM_ERRORS, /* standard error */
	PROGRAM_REPORTS /* descriptor 3 */
} ProgramStream;

typedef struct ProgramStart
{
	char *const *arguments; /* the first is the path; NULL ends them */
	char *const *environment;
	const char *folder; /* to run in */
	const char *input;	/* stays until the program is freed */
	size_t input_length;
	size_t most_output; /* bytes; more and it is killed */
	/* is told each line, without its end */
	void (*line)(void *owner, ProgramStream stream, const char *line,
				 size_t length);
	void *owner;
} ProgramStart;

/* Why it could not be run. */
typedef struct ProgramError
{
	const char *reason;
	bool lacking; /* a process, memory or files: nothing of it was looked at */
} ProgramError;

typedef struct Program Program;

/* Room for so many at once; before anything else is opened. */
extern void program_init(int most);
/* NULL, with the reason, if it cannot be run. */
extern Program *program_start(const ProgramStart *start, ProgramError *why);
/* What to poll for; returns how many. */
extern int program_descriptors(const Program *program,
							   struct pollfd *descriptors);
/* Read and write what those say. */
extern void program_serve(Program *program, const struct pollfd *descriptors,
						  int count);
/*
 * TERM to it and all that it started, as far as they stayed in its group; to
 * those that are left after so many seconds, KILL.
 */
extern void program_end(Program *program, double grace);
/* KILL at this time (of term_now()), if it has not ended by then. */
extern void program_kill_at(Program *program, double at);
/* When that is; INFINITY: never. */
extern double program_due(const Program *program);
/* Do it, if it is time; whether it was. */
extern bool program_enforce(Program *program, double now);
/*
 * One that has ended, with everything it wrote, or NULL.  Those of its group
 * that it left behind are killed.
 */
extern Program *program_ended(void);
extern void *program_owner(const Program *program);
/* As of waitpid(). */
extern int program_status(const Program *program);
/* What it wrote; NULL if that was too much. */
extern const PQExpBufferData *program_output(const Program *program);
extern void program_free(Program *program);

#endif
