/*
 * read.c
 *	  Reading the answer of a model while it comes.
 */
#include "postgres_fe.h"

#include <poll.h>

#include "cli.h"

/* Looked at again, also where no event tells of it. */
#define LOOK_AGAIN 1.0

static CliExit run_read(CliCall *call);
static void listen_to(const char *task);
static bool look(const char *task, PQExpBuffer attempt, PQExpBuffer length,
				 bool *completed);
static void show(const PGresult *result);
static void wait_for_more(void);

const CliCommand cmd_read = {
	"read",
	"TASK",
	"Read the answer of a model while it comes",
	"Prints its text as far as it has come, and what follows; a retry begins it anew.\n"
	"With --json, one line for each piece. The exit code is 0 if the task completed, 4 if\n"
	"it ended otherwise.",
	1,
	1,
	NULL,
	run_read};

static CliExit
run_read(CliCall *call)
{
	char *task = psprintf("%lld", opt_task(call, call->arguments[0]));
	PQExpBufferData attempt;
	PQExpBufferData length;
	bool completed = false;

	initPQExpBuffer(&attempt);
	initPQExpBuffer(&length);
	appendPQExpBufferStr(&length, "0");
	listen_to(task);
	while (!look(task, &attempt, &length, &completed))
		wait_for_more();
	if (!cli_settings.json && strcmp(length.data, "0") != 0)
		printf("\n");
	return completed ? CLI_OK : CLI_NOT_COMPLETED;
}

/*
 * To the events of the task at the top.
 */
static void
listen_to(const char *task)
{
	const char *values[] = {task};
	PGresult *result = db_query(
		"SELECT coalesce(t.root_id, t.id) FROM orchestrator.task t WHERE t.id = $1::pg_catalog.int8",
		1, values);
	char *listen;

	if (PQntuples(result) == 0)
		cli_fail(CLI_FAILED, "there is no task %s", task);
	listen = psprintf("LISTEN orchestrator_task_%s", PQgetvalue(result, 0, 0));
	PQclear(result);
	PQclear(db_query(listen, 0, NULL));
	free(listen);
}

/*
 * Print what is new.  True: it was all; the stream may be ahead of the snapshot
 * that shows the task.
 */
static bool
look(const char *task, PQExpBuffer attempt, PQExpBuffer length,
	 bool *completed)
{
	const char *values[] = {task, length->data,
							attempt->len > 0 ? attempt->data : NULL};
	PGresult *result = db_query(
		"SELECT s.attempt, s.length, s.text,"
		" s.done AND t.state IN ('completed', 'failed', 'cancelled', 'skipped'), t.state = 'completed'"
		" FROM orchestrator.llm_stream($1::pg_catalog.int8, $2::pg_catalog.int8, $3::pg_catalog.int4) s"
		" LEFT JOIN orchestrator.task t ON t.id = $1::pg_catalog.int8",
		3, values);
	bool done;

	if (PQntuples(result) == 0)
		cli_fail(CLI_FAILED, "there is no task %s any more", task);
	show(result);
	done = db_true(result, 0, 3);
	*completed = db_true(result, 0, 4);
	printfPQExpBuffer(attempt, "%s", PQgetvalue(result, 0, 0));
	printfPQExpBuffer(length, "%s", PQgetvalue(result, 0, 1));
	PQclear(result);
	return done;
}

/*
 * Text of another attempt than that which was shown begins a line.
 */
static void
show(const PGresult *result)
{
	static int shown = 0;
	int attempt = atoi(PQgetvalue(result, 0, 0));
	PQExpBufferData text;

	if (PQgetlength(result, 0, 2) == 0)
		return;
	initPQExpBuffer(&text);
	if (cli_settings.json)
	{
		appendPQExpBuffer(
			&text, "{\"attempt\": %d, \"length\": %s, \"text\": ", attempt,
			PQgetvalue(result, 0, 1));
		out_append_string(&text, PQgetvalue(result, 0, 2));
		appendPQExpBufferStr(&text, "}\n");
	}
	else
	{
		if (shown != 0 && shown != attempt)
		{
			printf("\n");
			fflush(stdout);
			out_warn("it begins anew");
		}
		text_append_lines(&text, PQgetvalue(result, 0, 2));
	}
	shown = attempt;
	out_print(&text);
	termPQExpBuffer(&text);
}

static void
wait_for_more(void)
{
	PGconn *connection = db_connection();
	struct pollfd ready = {.fd = PQsocket(connection), .events = POLLIN};
	PGnotify *notification;

	(void) term_poll(&ready, 1, LOOK_AGAIN);
	if (term_interrupted())
		cli_exit(CLI_INTERRUPTED);
	(void) PQconsumeInput(connection);
	while ((notification = PQnotifies(connection)) != NULL)
		PQfreemem(notification);
}
