/*
 * enqueue.c
 *	  Enqueueing: enqueue, run; and waiting for what was enqueued.
 */
#include "postgres_fe.h"

#include "cli.h"

#define MOST_VALUES 24

/* Without a connection for so long, in seconds, waiting ends. */
#define LONGEST_LOSS 300

/* An argument of the SQL function that an option gives. */
typedef struct Argument
{
	const char *option;
	const char *name;
	const char *type;
} Argument;

static CliExit run_enqueue(CliCall *call);
static CliExit run_run(CliCall *call);
static char *enqueue(const CliCall *call, const char *function,
					 const char *first);
static void append_argument(PQExpBuffer sql, const CliCall *call,
							const Argument *argument, const char **values,
							int *nvalues);
static CliExit follow(const CliCall *call, const char *task);
static void say_lost(const char *reason, double pause);
static CliExit show_result(const char *task);
static void append_result(PQExpBuffer to, const PGresult *result);

/* Of both functions; an option that was not given is left out of the call. */
static const Argument arguments[] = {
	{"input", "input", "jsonb"},
	{"name", "name", "text"},
	{"priority", "priority", "int4"},
	{"run-at", "run_at", "timestamptz"},
	{"delay", "delay", "interval"},
	{"key", "key", "text"},
	{"key-window", "key_window", "interval"},
	{"queue", "queue", "text"},
	{"metadata", "metadata", "jsonb"},
	{"deadline", "deadline", "timestamptz"},
	{"traceparent", "traceparent", "text"},
	{"debounce", "debounce", "interval"},
	{"debounce-max", "debounce_max", "interval"},
	{"debounce-merge", "debounce_merge", "bool"},
	{"throttle", "throttle", "interval"},
	{"kind", "kind", "text"},
	{"max-attempts", "max_attempts", "int4"},
	{"attempt-timeout", "timeout", "interval"},
};

#define COMMON_OPTIONS                                                        \
	{"input", 'i', "JSON",                                                    \
	 "its input: JSON, @FILE, or - for standard input"},                      \
		{"name", 'n', "NAME", "a name for this task"},                        \
		{"priority", 'P', "N", "higher goes first"},                          \
		{"queue", 'q', "QUEUE", "in this queue"},                             \
		{"delay", 0, "INTERVAL", "not before it has passed"},                 \
		{"run-at", 0, "TIME", "not before this time"},                        \
		{"key", 'k', "KEY",                                                   \
		 "only once: a key that is taken gives the task that took it"},       \
		{"key-window", 0, "INTERVAL", "the key is free again after it"},      \
		{"metadata", 0, "JSON", "kept with the task"},                        \
		{"deadline", 0, "TIME", "failed, if it is not finished then"},        \
	{                                                                         \
		"traceparent", 0, "TEXT", "of the W3C trace that it belongs to"       \
	}

#define FOLLOW_OPTIONS                                                        \
	{"wait", 0, NULL, "wait for its end and print its output"},               \
		{"watch", 0, NULL, "follow it as watch does"},                        \
	{                                                                         \
		"timeout", 't', "SECONDS", "follow it no longer than that"            \
	}

static const CliOption enqueue_options[] = {
	COMMON_OPTIONS,
	{"debounce", 0, "INTERVAL",
	 "one task for all calls with this key that follow so closely"},
	{"debounce-max", 0, "INTERVAL", "but not put off for longer than that"},
	{"debounce-merge", 0, NULL, "their inputs are merged"},
	{"throttle", 0, "INTERVAL",
	 "one task with this key within each such time"},
	FOLLOW_OPTIONS,
	{NULL},
};

static const CliOption run_options[] = {
	COMMON_OPTIONS,
	{"kind", 0, "KIND", "sql, or utility for commands like VACUUM"},
	{"max-attempts", 0, "N", "as many attempts (1)"},
	{"attempt-timeout", 0, "INTERVAL", "an attempt is stopped after it"},
	FOLLOW_OPTIONS,
	{NULL},
};

const CliCommand cmd_enqueue = {
	"enqueue",
	"DEFINITION",
	"Enqueue a task, and follow it",
	"Prints the number of the task; with --wait its output. The exit code is 0 if it\n"
	"completed, 4 if it ended otherwise, 8 if the time-out passed first.",
	1,
	1,
	enqueue_options,
	run_enqueue};

const CliCommand cmd_run = {
	"run",
	"SQL",
	"Run a command once in the background",
	"SQL may be @FILE, or - for standard input. For the rest it is as enqueue.",
	1,
	1,
	run_options,
	run_run};

static CliExit
run_enqueue(CliCall *call)
{
	return follow(call, enqueue(call, "enqueue", call->arguments[0]));
}

static CliExit
run_run(CliCall *call)
{
	return follow(call,
				  enqueue(call, "run", opt_json(call, call->arguments[0])));
}

static void
append_argument(PQExpBuffer sql, const CliCall *call, const Argument *argument,
				const char **values, int *nvalues)
{
	const char *value = opt_value(call, argument->option);

	if (!opt_given(call, argument->option))
		return;
	if (value == NULL)
		value = "true";
	else if (strcmp(argument->type, "jsonb") == 0)
		value = opt_json(call, value);
	Assert(*nvalues < MOST_VALUES);
	values[(*nvalues)++] = value;
	appendPQExpBuffer(sql, ", %s => $%d::pg_catalog.%s", argument->name,
					  *nvalues, argument->type);
}

/*
 * Returns the id of the task.
 */
static char *
enqueue(const CliCall *call, const char *function, const char *first)
{
	const char *values[MOST_VALUES] = {first};
	PQExpBufferData sql;
	PGresult *result;
	int nvalues = 1;
	char *task;

	if (opt_given(call, "wait") && opt_given(call, "watch"))
		opt_usage(call, "either --wait or --watch");
	if (opt_given(call, "timeout") && !opt_given(call, "wait") &&
		!opt_given(call, "watch"))
		opt_usage(call, "--timeout goes with --wait or --watch");
	opt_seconds(call, "timeout", 0);
	initPQExpBuffer(&sql);
	appendPQExpBuffer(&sql, "SELECT orchestrator.%s($1", function);
	for (int i = 0; i < lengthof(arguments); i++)
		append_argument(&sql, call, &arguments[i], values, &nvalues);
	appendPQExpBufferChar(&sql, ')');
	result = db_query(sql.data, nvalues, values);
	task = pg_strdup(PQgetvalue(result, 0, 0));
	PQclear(result);
	termPQExpBuffer(&sql);
	return task;
}

/*
 * Wait for the end of a task, if asked to; through a lost connection, too.
 */
static CliExit
follow(const CliCall *call, const char *task)
{
	double timeout = opt_seconds(call, "timeout", -1);
	double until = term_now() + timeout;
	char left[32];
	const char *values[] = {task, timeout > 0 ? left : NULL};
	PGresult *result;

	if (opt_given(call, "watch"))
	{
		long long id = strtoll(task, NULL, 10);

		return watch_tasks(&id, 1, Max(timeout, 0));
	}
	if (!opt_given(call, "wait"))
	{
		printf(cli_settings.json ? "{\"task\": %s}\n" : "%s\n", task);
		return CLI_OK;
	}
	for (;;)
	{
		snprintf(left, sizeof(left), "%.3f", Max(until - term_now(), 0));
		result = db_try(
			"CALL orchestrator.await($1::pg_catalog.int8, pg_catalog.make_interval(secs => $2::pg_catalog.float8), NULL)",
			lengthof(values), values);
		if (PQresultStatus(result) == PGRES_TUPLES_OK)
			break;
		if (!db_lost())
		{
			out_result_error(result);
			cli_exit(CLI_FAILED);
		}
		PQclear(result);
		if (db_come_back(timeout > 0 ? until : term_now() + LONGEST_LOSS,
						 say_lost))
			continue;
		if (term_interrupted())
			cli_exit(CLI_INTERRUPTED);
		cli_exit(timeout > 0 ? CLI_TIMED_OUT : CLI_NO_CONNECTION);
	}
	PQclear(result);
	return show_result(task);
}

static void
say_lost(const char *reason, double pause)
{
	out_warn("%s; trying again in %.3g s", reason, pause);
}

static CliExit
show_result(const char *task)
{
	PQExpBufferData text;
	PGresult *result = db_query(
		"SELECT v.state, v.finished_at IS NOT NULL, v.error ->> 'message',"
		" pg_catalog.jsonb_pretty(v.output), v.task_id, v.output, v.error"
		" FROM orchestrator.task_status v WHERE v.task_id = $1::pg_catalog.int8",
		1, &task);
	CliExit code;

	if (PQntuples(result) == 0)
		cli_fail(CLI_FAILED, "task %s is gone: it was finished and deleted",
				 task);
	code = !db_true(result, 0, 1) ? CLI_TIMED_OUT
		   : strcmp(PQgetvalue(result, 0, 0), "completed") == 0
			   ? CLI_OK
			   : CLI_NOT_COMPLETED;
	initPQExpBuffer(&text);
	if (cli_settings.json)
		append_result(&text, result);
	else if (code == CLI_OK && !PQgetisnull(result, 0, 3))
	{
		text_append_lines(&text, PQgetvalue(result, 0, 3));
		appendPQExpBufferChar(&text, '\n');
	}
	out_print(&text);
	if (code != CLI_OK && !cli_settings.json)
		out_error("task %s %s %s%s%s", task,
				  code == CLI_TIMED_OUT ? "is still" : "ended as",
				  PQgetvalue(result, 0, 0),
				  PQgetisnull(result, 0, 2) ? "" : ": ",
				  PQgetvalue(result, 0, 2));
	termPQExpBuffer(&text);
	PQclear(result);
	return code;
}

static void
append_result(PQExpBuffer to, const PGresult *result)
{
	appendPQExpBuffer(to, "{\"task\": %s, \"state\": \"%s\", \"output\": ",
					  PQgetvalue(result, 0, 4), PQgetvalue(result, 0, 0));
	text_append_json(to, PQgetisnull(result, 0, 5) ? "null"
												   : PQgetvalue(result, 0, 5));
	appendPQExpBufferStr(to, ", \"error\": ");
	text_append_json(to, PQgetisnull(result, 0, 6) ? "null"
												   : PQgetvalue(result, 0, 6));
	appendPQExpBufferStr(to, "}\n");
}
