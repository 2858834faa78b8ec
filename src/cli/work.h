/*
 * work.h
 *	  The tasks that a worker has claimed, and what it has to tell of them.
 */
#ifndef ORCHESTRATOR_WORK_H
#define ORCHESTRATOR_WORK_H

#include "link.h"
#include "program.h"

typedef enum JobState
{
	JOB_READY, /* for a place to run in */
	JOB_RUNNING,
	JOB_ENDED /* to be reported */
} JobState;

typedef enum JobReport
{
	REPORT_COMPLETE,
	REPORT_FAIL,
	REPORT_RELEASE
} JobReport;

/* What stood in one line of a program. */
typedef struct JobLine
{
	char *level;
	char *message;
} JobLine;

typedef struct Job
{
	struct Job *next;
	JobState state;
	char *task;
	char *token;
	char *definition;
	char *handler;
	char *input;
	char *variables; /* for the environment: NAME=value, each ends with \0 */
	int nvariables;
	double claimed_at;
	double began_at;
	double ended_at;
	double timeout_at;	/* of the attempt */
	double deadline_at; /* of the task */

	/* heartbeats */
	double beat_every;
	double beat_at;

	/* the program */
	Program *program;
	struct Runner *preparing; /* whose environment it makes */
	bool unwanted; /* cancelled or lost: nothing is to be reported */
	bool stopping; /* was told to end */

	/* what came of it */
	JobReport report;
	char *output; /* JSON, or NULL */
	char *error;  /* JSON */
	bool retryable;
	bool alone;		/* a report, with others or with more, was refused */
	bool in_flight; /* in the statement under way */
	bool sent;		/* once, and the answer was lost */

	/* what it says */
	JobLine *lines;
	int nlines;
	int lines_kept; /* in all */
	int lines_dropped;
	PQExpBufferData tail; /* the last of its standard error */
	bool progressed;
	double fraction; /* NAN: not said */
	char *message;
	char *stage;
	double progress_at; /* not before */
} Job;

typedef struct Worker
{
	const char *name;
	const char *queues;		 /* array */
	const char *definitions; /* array, or NULL */
	const char *lease;		 /* interval, or NULL */
	double most_beat;		 /* seconds between heartbeats */
	double grace;			 /* between TERM and KILL */
	bool verbose;
	Job *jobs;
	int njobs;
	double now;
	/* of the server */
	size_t most_output;
	/* seconds from one end of a program to the next, about */
	double pace;
} Worker;

extern Worker worker;

extern Job *job_new(void);
extern void job_free(Job *job);
/* It is not ours to do any more: end its program, report nothing. */
extern void job_unwanted(Job *job, const char *state);
/* It failed: what is to be reported. */
extern void job_fail(Job *job, bool retryable, const char *sqlstate,
					 const char *detail, const char *format, ...)
	pg_attribute_printf(5, 6);
/* A line about a task: event is "completed", "failed", ... */
extern void job_say(const Job *job, const char *event, const char *message);

/* ---------------------------------------------------------------- report.c */

/* Send what is to be told next, if there is something. */
extern bool report_next(Link *link);
/* When there will be, at the latest. */
extern double report_due(void);
/* It is about to be freed. */
extern void report_forget(Job *job);
/* The error of a result is one that may pass. */
extern bool report_may_pass(const PGresult *result);

/* ----------------------------------------------------------------- said.c */

/* A line of a program of this job. */
extern void line_take(void *job, ProgramStream stream, const char *line,
					  size_t length);
/* A line for the trace of its task. */
extern void line_keep(Job *job, const char *level, const char *message);
/* One that says how many there was no room for, if so. */
extern void line_tell_dropped(Job *job);

/* ---------------------------------------------------------------- runner.c */

#define RUNNER_VARIABLES 2

/* How programs of a definition are run. */
typedef struct Runner
{
	const char *folder;
	const char *program;
	/* what it needs, or NULL: where that is, made of what by which script */
	char *environment;
	const char *dependencies;
	const char *script;
	char *variables[RUNNER_VARIABLES]; /* NAME=value, or NULL */
} Runner;

typedef enum RunnerState
{
	RUNNER_READY,
	RUNNER_MISSING, /* locked for us: make it, then call runner_prepared() */
	RUNNER_BUSY,	/* somebody makes it */
	RUNNER_FAILED
} RunnerState;

/* Folders, or NULL for the usual ones. */
extern void runner_init(const char *folder, const char *cache_folder);
/* NULL, with the reason, which is kept until the next call. */
extern Runner *runner_find(const char *name, const char **reason);
/* The definitions that have a folder, as an array; NULL: there are none. */
extern char *runner_names(void);
/* Whether what it needs is there. */
extern RunnerState runner_prepare(Runner *runner, const char **reason);
/* It was made, or that failed. */
extern void runner_prepared(Runner *runner);
/*
 * Of a program, or of what makes its environment; variables of its task are
 * NAME=value, each ends with \0.
 */
extern char **runner_environment(const Runner *runner, bool preparing,
								 const char *variables, int nvariables);

#endif
