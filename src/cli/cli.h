/*
 * cli.h
 *	  What the files of the command-line client have in common.
 *
 * To add a command, write a file with a CliCommand, declare it at the end
 * here and name it in the table of main.c.  Its options, its help and its
 * completion come from the CliCommand.
 *
 * Whatever comes from the database goes to the terminal through text_*() or
 * out_*(), which let no control character pass.
 */
#ifndef ORCHESTRATOR_CLI_H
#define ORCHESTRATOR_CLI_H

#include <stdarg.h>

#include "libpq-fe.h"
#include "pqexpbuffer.h"

/* What the program exits with; also in the man page and the README. */
typedef enum CliExit
{
	CLI_OK = 0,
	CLI_FAILED = 1,		   /* refused by the server, or could not be done */
	CLI_USAGE = 2,		   /* wrong options or arguments */
	CLI_NO_CONNECTION = 3, /* could not connect, or not again */
	CLI_NOT_COMPLETED = 4, /* a task it followed ended otherwise */
	CLI_NOT_CONFIRMED = 5, /* the answer was no, or there was nobody to ask */
	CLI_PROBLEMS = 6,	   /* doctor: tasks do not run as they should */
	CLI_WARNINGS = 7,	   /* doctor: something to look at */
	CLI_TIMED_OUT = 8,	   /* --timeout passed */
	CLI_INTERRUPTED = 130  /* Ctrl-C */
} CliExit;

/* ---------------------------------------------------------------- option.c */

typedef struct CliOption
{
	const char *name;	  /* --name; NULL ends an array of them */
	char letter;		  /* -l, or 0 */
	const char *argument; /* what stands for its value; NULL: it has none */
	const char *help;
} CliOption;

typedef struct CliCall CliCall;

typedef struct CliCommand
{
	const char *name;
	const char *arguments;	  /* as in "TASK...", or NULL */
	const char *summary;	  /* one line */
	const char *help;		  /* more, or NULL */
	int least;				  /* arguments, */
	int most;				  /* -1: any number */
	const CliOption *options; /* besides those of every command, or NULL */
	CliExit (*run)(CliCall *call);
	/* instead of run: it has commands of its own; NULL ends them */
	const struct CliCommand *const *commands;
} CliCommand;

/* What was typed. */
struct CliCall
{
	const CliCommand *command;
	const char *path; /* "list", or "tasks list" */
	char **arguments;
	int narguments;
	struct CliValue *values; /* of its options, in the order typed */
	int nvalues;
};

/* What options of every command said. */
typedef struct CliSettings
{
	const char *host;
	const char *port;
	const char *user;
	const char *dbname;
	int password; /* -1: never ask, 1: ask first, 0: ask when told to */
	bool json;
	bool yes;
	const char *color; /* auto, always or never */
} CliSettings;

extern CliSettings cli_settings;
extern const char *cli_program;

extern void opt_globals(int *argc, char ***argv);
/* Before all options are read: an error is told as JSON if that is asked for. */
extern void opt_look_for_json(int argc, char **argv);
extern void opt_parse(CliCall *call, int argc, char **argv);
extern void opt_help(const CliCommand *command, const char *path);
extern void opt_words(const CliCommand *command);
extern bool opt_given(const CliCall *call, const char *name);
/* The last value given to an option, or NULL. */
extern const char *opt_value(const CliCall *call, const char *name);
/* All of them as the text of an SQL array, or NULL. */
extern char *opt_array(const CliCall *call, const char *name);
/* A number from least to most; otherwise, if the option is not there. */
extern long opt_number(const CliCall *call, const char *name, long least,
					   long most, long otherwise);
extern double opt_seconds(const CliCall *call, const char *name,
						  double otherwise);
/* Checks that it is the id of a task. */
extern long long opt_task(const CliCall *call, const char *argument);
/* JSON: as it is, from the file of @file, from standard input for "-". */
extern char *opt_json(const CliCall *call, const char *value);
extern _Noreturn void opt_usage(const CliCall *call, const char *format, ...)
	pg_attribute_printf(2, 3);

/* ------------------------------------------------------------------ text.c */

/* As vprintf, into memory of its own; with the va_list of a caller. */
extern char *text_format(const char *format, va_list args)
	pg_attribute_printf(1, 0);
/* Append text with its control characters escaped. */
extern void text_append(PQExpBuffer to, const char *text);
/* The same with line ends left as they are. */
extern void text_append_lines(PQExpBuffer to, const char *text);
/* Columns that text_append() of it takes. */
extern int text_width(const char *text);
/* Exactly that many columns: cut with an ellipsis, or padded. */
extern void text_append_fit(PQExpBuffer to, const char *text, int width,
							bool right);
/* JSON for a terminal: what could steer one becomes \u.... */
extern void text_append_json(PQExpBuffer to, const char *json);
/*
 * Bytes of any kind as UTF-8 without a byte 0: what is neither becomes \x...
 */
extern void text_append_bytes(PQExpBuffer to, const char *bytes,
							  size_t length);
extern bool text_is_utf8(const char *bytes, size_t length);
/* A string of JSON, with its quotes. */
extern void text_append_quoted(PQExpBuffer to, const char *text);
/* "850 ms", "12.3 s", "4 min 10 s", "3 h 2 min", "5 d 1 h". */
extern void text_append_duration(PQExpBuffer to, double seconds);
/* Unix seconds as local time, with the day unless it is today. */
extern void text_append_time(PQExpBuffer to, double at);
/* A bar of that many columns, from 0 to 1. */
extern void text_append_bar(PQExpBuffer to, double part, int width);

/* -------------------------------------------------------------- terminal.c */

typedef enum TermColor
{
	TERM_PLAIN,
	TERM_BOLD,
	TERM_DIM,
	TERM_RED,
	TERM_GREEN,
	TERM_YELLOW,
	TERM_BLUE,
	TERM_MAGENTA,
	TERM_CYAN
} TermColor;

extern void term_init(void);
extern bool term_is_terminal(void); /* standard output */
extern bool term_utf8(void);
extern int term_width(void); /* columns; INT_MAX if it is no terminal */
extern int term_height(void);
/* Ctrl-C was typed (or TERM or HUP came). */
extern bool term_interrupted(void);
/*
 * How often.  From the first call on, not the second one but the third one
 * ends the program by itself.
 */
extern int term_count_interrupts(void);
/* From now on term_poll() returns when a child has ended. */
extern void term_watch_children(void);
/*
 * Wait until one of the descriptors can be read or written, as poll().  -1:
 * a signal came; seconds < 0: for ever.
 */
struct pollfd;
extern int term_poll(struct pollfd *descriptors, int count, double seconds);
extern TermColor term_state_color(const char *state);
/* Escape sequences of a colour, if there are to be any. */
extern void term_color(PQExpBuffer to, TermColor color);
extern void term_plain(PQExpBuffer to);
/* Take the place of the lines drawn before: each ends with a line end. */
extern void term_draw(const char *lines);
/* Leave what is drawn where it is; what comes next stands below. */
extern void term_keep(void);
/* A screen of its own, and keys without Enter; until term_restore(). */
extern void term_open_screen(void);
/* A key typed since, or 0. */
extern int term_key(void);
extern void term_restore(void);
/* Ask on the terminal of the process; NULL: there is none, or Ctrl-C. */
extern char *term_ask(const char *question, bool echo);
extern double term_now(void); /* seconds, of a clock that never jumps */

/* ------------------------------------------------------------ connection.c */

/* The connection, opened at the first call; exits when there is none. */
extern PGconn *db_connection(void);
/* Open it again, or try to: NULL, with the reason. */
extern PGconn *db_reconnect(const char **reason);
/* One more connection with the same parameters; NULL if it fails. */
extern PGconn *db_open(void);
/* The connection; the next call of db_connection() opens another. */
extern PGconn *db_take(void);
/* One more begun only: PQconnectPoll() goes on. */
extern PGconn *db_start(void);
extern void db_close(void);
/*
 * Connect again until it succeeds, at longer and longer intervals; before
 * each try, say is told what was wrong and how long it waits.  False: Ctrl-C,
 * or it was in vain until then (of term_now()).
 */
typedef void (*DbSay)(const char *reason, double pause);
extern bool db_come_back(double until, DbSay say);
/*
 * Run one statement with parameters (text; NULL is null).  db_query() reports
 * an error and exits; db_try() leaves the status to the caller.  Ctrl-C
 * cancels the statement and exits.
 */
extern PGresult *db_query(const char *sql, int nvalues,
						  const char *const *values);
extern PGresult *db_try(const char *sql, int nvalues,
						const char *const *values);
/* Did this fail because the connection is gone? */
extern bool db_lost(void);
/* The text of an SQL array; NULL is null. */
extern char *db_array(const char *const *values, int count);
/* Whether a column of a result is true. */
extern bool db_true(const PGresult *result, int row, int column);
/* A column as a number; otherwise, when it is null. */
extern double db_number(const PGresult *result, int row, int column,
						double otherwise);
/* A column as text, or NULL when it is null. */
extern const char *db_text(const PGresult *result, int row, int column);

/* ---------------------------------------------------------------- output.c */

typedef enum OutKind
{
	OUT_TEXT,
	OUT_NUMBER,
	OUT_STATE,	 /* of a task, coloured */
	OUT_PERCENT, /* of 1 */
	OUT_SECONDS, /* a duration */
	OUT_TIME	 /* Unix seconds */
} OutKind;

typedef struct OutColumn
{
	const char *title;
	OutKind kind;
	const char *expression; /* SQL */
} OutColumn;

/*
 * Rows to be shown as a table or as JSON: from is what follows FROM, with
 * parameters, and v the row that is JSON.
 */
typedef struct OutView
{
	const char *from;
	const char *row; /* what is JSON; NULL: v */
	const OutColumn *columns;
	int ncolumns;
	const char *empty; /* said when there are none */
} OutView;

/* Returns how many rows there were. */
extern int out_view(const OutView *view, int nvalues,
					const char *const *values);
/* A result whose columns are those, as lines. */
extern void out_append_table(PQExpBuffer to, const PGresult *result,
							 const OutColumn *columns, int ncolumns,
							 int width);
/* Its first column as JSON: an array of all rows. */
extern void out_append_array(PQExpBuffer to, const PGresult *result);
/* What view selects, for callers that run it themselves. */
extern char *out_view_sql(const OutView *view, bool json);
/* One value of a kind, as it stands in a table. */
extern void out_append_value(PQExpBuffer to, const char *value, OutKind kind);
/* A string of JSON for a terminal; NULL is null. */
extern void out_append_string(PQExpBuffer to, const char *text);
extern void out_print(PQExpBuffer text);
/* A sentence on standard output; nothing with --json. */
extern void out_say(const char *format, ...) pg_attribute_printf(1, 2);
/* The same on standard error, in any case. */
extern void out_warn(const char *format, ...) pg_attribute_printf(1, 2);
/* An error of ours, or of a result, on standard error. */
extern void out_error(const char *format, ...) pg_attribute_printf(1, 2);
extern void out_result_error(const PGresult *result);
extern _Noreturn void cli_exit(CliExit code);
extern _Noreturn void cli_fail(CliExit code, const char *format, ...)
	pg_attribute_printf(2, 3);
/*
 * Whether to go on: yes with --yes; exits when the answer is no or there is
 * nobody to ask.
 */
extern void cli_confirm(const char *format, ...) pg_attribute_printf(1, 2);

/* ---------------------------------------------------------------- commands */

extern const CliCommand cmd_list, cmd_show, cmd_trace, cmd_graph; /* task.c */
extern const CliCommand cmd_queues, cmd_schedules, cmd_definitions,
	cmd_workers;							  /* views.c */
extern const CliCommand cmd_enqueue, cmd_run; /* enqueue.c */
extern const CliCommand cmd_cancel, cmd_pause, cmd_resume, cmd_retry,
	cmd_purge, cmd_signal, cmd_approve, cmd_reject; /* control.c */
extern const CliCommand cmd_tasks;					/* tasks.c */
extern const CliCommand cmd_read;					/* read.c */
extern const CliCommand cmd_work;					/* work.c */
extern const CliCommand cmd_watch;					/* watch.c */

extern const CliCommand cmd_top, cmd_doctor; /* top.c, doctor.c */

/* Follow tasks until they end; none: all.  A time-out of 0 is none. */
extern CliExit watch_tasks(const long long *ids, int count, double timeout);

#endif
