/*
 * task.c
 *	  Looking at tasks: list, show, trace, graph.
 */
#include "postgres_fe.h"

#include <limits.h>

#include "cli.h"

#define LIST_LIMIT 50

static CliExit run_list(CliCall *call);
static CliExit run_show(CliCall *call);
static CliExit run_trace(CliCall *call);
static CliExit run_graph(CliCall *call);
static void show_json(const char *task);
static void show_text(const char *task);
static void append_field(PQExpBuffer to, const PGresult *result, int column,
						 OutKind kind);
static void append_document(PQExpBuffer to, const char *title,
							const char *value);

static const OutColumn list_columns[] = {
	{"TASK", OUT_NUMBER, "v.task_id"},
	{"NAME", OUT_TEXT, "coalesce(v.name, v.definition)"},
	{"STATE", OUT_STATE, "v.state"},
	{"DONE", OUT_PERCENT, "v.progress"},
	{"TOOK", OUT_SECONDS, "extract(epoch FROM v.duration)"},
	{"ATTEMPT", OUT_TEXT,
	 "CASE WHEN v.attempt > 0 THEN v.attempt || ' of ' || v.max_attempts END"},
	{"CREATED", OUT_TIME, "extract(epoch FROM v.created_at)"},
	{"MESSAGE", OUT_TEXT, "coalesce(v.error ->> 'message', v.message)"},
	{"QUEUE", OUT_TEXT, "v.queue"},
	{"OWNER", OUT_TEXT, "v.owner"},
};

/*
 * What is live and what is finished stand apart, so a list of live tasks need
 * not look at the others.  A task that runs in the fast lane, or whose steps
 * run, is shown as running whatever its row says.
 */
static const OutView list_view = {
	"orchestrator.task t JOIN LATERAL (SELECT s.* FROM orchestrator.task_status s WHERE s.task_id = t.id) v ON true"
	" WHERE ($1::orchestrator.task_state[] IS NULL OR v.state = ANY ($1))"
	" AND ($2::pg_catalog.text IS NULL OR v.definition = $2) AND ($3::pg_catalog.text IS NULL OR v.queue = $3)"
	" AND ($4::pg_catalog.text IS NULL OR v.owner = $4)"
	" AND ($5::pg_catalog.text IS NULL OR t.created_at >= pg_catalog.now() - $5::pg_catalog.interval)"
	" AND ($6::pg_catalog.int8 IS NULL OR t.parent_id = $6)"
	" AND (t.parent_id IS NULL OR $7::pg_catalog.bool OR $6::pg_catalog.int8 IS NOT NULL)"
	" AND ($1 IS NULL OR t.live = NOT ($1 && '{completed,failed,cancelled,skipped}')"
	" OR ($1 && '{completed,failed,cancelled,skipped}') AND ($1 && '{scheduled,pending,running,waiting,paused}'))"
	" ORDER BY t.id DESC LIMIT $8::pg_catalog.int8",
	NULL, list_columns, lengthof(list_columns), "no tasks"};

static const CliOption list_options[] = {
	{"state", 's', "STATE",
	 "scheduled, pending, running, waiting, paused, completed, failed, cancelled or skipped; may be given again"},
	{"definition", 'D', "NAME", "of this definition"},
	{"queue", 'q', "QUEUE", "in this queue"},
	{"owner", 'o', "ROLE", "of this role"},
	{"since", 0, "INTERVAL", "created within it, as in \"2 hours\""},
	{"parent", 0, "TASK", "steps of this run, or items of this batch"},
	{"steps", 0, NULL, "steps of runs as well"},
	{"limit", 'n', "N", "at most so many, the newest first (50)"},
	{NULL},
};

const CliCommand cmd_list = {
	"list",		  NULL,	   "List tasks, the newest first", NULL, 0, 0,
	list_options, run_list};

const CliCommand cmd_show = {
	"show", "TASK",	 "Show all about a task, with its steps", NULL, 1, 1,
	NULL,	run_show};

static const OutColumn trace_columns[] = {
	{"AT", OUT_TEXT, "pg_catalog.to_char(v.at, 'YYYY-MM-DD HH24:MI:SS.MS')"},
	{"TASK", OUT_NUMBER, "v.task_id"},
	{"EVENT", OUT_STATE, "v.event"},
	{"ATTEMPT", OUT_NUMBER, "v.attempt"},
	{"DETAIL", OUT_TEXT, "v.detail"},
};

static const OutView trace_view = {
	"orchestrator.trace v WHERE v.task_id = $1::pg_catalog.int8"
	" OR $2::pg_catalog.bool AND v.task_id IN (SELECT t.id FROM orchestrator.task t WHERE t.root_id = $1::pg_catalog.int8 OR t.parent_id = $1::pg_catalog.int8)"
	" ORDER BY v.at, v.task_id",
	NULL, trace_columns, lengthof(trace_columns),
	"nothing is known of this task"};

static const CliOption trace_options[] = {
	{"steps", 's', NULL, "what happened to its steps as well"},
	{NULL},
};

const CliCommand cmd_trace = {
	"trace",	   "TASK",	 "Show what happened to a task", NULL, 1, 1,
	trace_options, run_trace};

static const CliOption graph_options[] = {
	{"format", 'f', "FORMAT", "text, dot or mermaid"},
	{"definition", 'D', NULL, "draw the workflow of this name, not a run"},
	{NULL},
};

const CliCommand cmd_graph = {
	"graph",
	"TASK | --definition NAME",
	"Draw a run with the states of its steps, or a workflow",
	NULL,
	1,
	1,
	graph_options,
	run_graph};

static CliExit
run_list(CliCall *call)
{
	const char *parent = opt_value(call, "parent");
	char limit[24];
	const char *values[] = {opt_array(call, "state"),
							opt_value(call, "definition"),
							opt_value(call, "queue"),
							opt_value(call, "owner"),
							opt_value(call, "since"),
							parent,
							opt_given(call, "steps") ? "t" : "f",
							limit};

	if (parent)
		opt_task(call, parent);
	snprintf(limit, sizeof(limit), "%ld",
			 opt_number(call, "limit", 1, INT_MAX, LIST_LIMIT));
	out_view(&list_view, lengthof(values), values);
	return CLI_OK;
}

/* In the order of show_sql. */
static const OutColumn show_columns[] = {
	{"task", OUT_NUMBER, "v.task_id"},
	{"name", OUT_TEXT, "v.name"},
	{"definition", OUT_TEXT, "v.definition || ', version ' || v.version"},
	{"command", OUT_TEXT, "v.command"},
	{"queue", OUT_TEXT, "v.queue"},
	{"owner", OUT_TEXT, "v.owner"},
	{"run", OUT_NUMBER, "v.parent_id"},
	{"state", OUT_STATE, "v.state"},
	{"progress", OUT_PERCENT, "v.progress"},
	{"message", OUT_TEXT, "v.message"},
	{"stage", OUT_TEXT, "v.stage"},
	{"attempt", OUT_TEXT, "v.attempt || ' of ' || v.max_attempts"},
	{"priority", OUT_NUMBER, "v.priority"},
	{"key", OUT_TEXT, "v.key"},
	{"created", OUT_TIME, "extract(epoch FROM v.created_at)"},
	{"not before", OUT_TIME,
	 "CASE WHEN v.finished_at IS NULL THEN extract(epoch FROM v.run_at) END"},
	{"deadline", OUT_TIME, "extract(epoch FROM v.deadline)"},
	{"started", OUT_TIME, "extract(epoch FROM v.started_at)"},
	{"finished", OUT_TIME, "extract(epoch FROM v.finished_at)"},
	{"took", OUT_SECONDS, "extract(epoch FROM v.duration)"},
	{"ahead of it", OUT_NUMBER, "v.jobs_ahead"},
	{"expected to start", OUT_TIME, "extract(epoch FROM v.estimated_start)"},
	{"worker", OUT_TEXT, "coalesce(v.remote_worker, v.worker_pid::text)"},
	{"lease until", OUT_TIME, "extract(epoch FROM v.lease_until)"},
	{"undone", OUT_TEXT, "nullif(v.compensation, 'none')"},
	{"error", OUT_TEXT, "v.error ->> 'message'"},
	{"sqlstate", OUT_TEXT, "v.error ->> 'sqlstate'"},
	{"detail", OUT_TEXT, "v.error ->> 'detail'"},
	{"hint", OUT_TEXT, "v.error ->> 'hint'"},
	{"", OUT_TEXT, "pg_catalog.jsonb_pretty(v.input)"},
	{"", OUT_TEXT, "pg_catalog.jsonb_pretty(v.output)"},
	{"", OUT_TEXT, "pg_catalog.jsonb_pretty(v.metadata)"},
	{"", OUT_TEXT, "pg_catalog.jsonb_pretty(v.resources)"},
};

/* Behind the fields: in the order of the last columns above. */
static const char *const documents[] = {"input", "output", "metadata",
										"resources"};

#define FIRST_DOCUMENT (lengthof(show_columns) - lengthof(documents))

static const OutView show_view = {
	"orchestrator.task_status v WHERE v.task_id = $1::pg_catalog.int8", NULL,
	show_columns, lengthof(show_columns), NULL};

static const OutColumn step_columns[] = {
	{"STEP", OUT_TEXT, "v.step"},
	{"TASK", OUT_NUMBER, "v.task_id"},
	{"STATE", OUT_STATE, "v.state"},
	{"DONE", OUT_PERCENT, "v.progress"},
	{"ITEMS", OUT_TEXT, "v.items_done || ' of ' || v.items_total"},
	{"ATTEMPT", OUT_NUMBER, "nullif(v.attempt, 0)"},
	{"TOOK", OUT_SECONDS, "extract(epoch FROM v.duration)"},
	{"NEEDS", OUT_TEXT,
	 "nullif(pg_catalog.array_to_string(v.needs, ', '), '')"},
	{"MESSAGE", OUT_TEXT,
	 "coalesce(v.error ->> 'message', v.message, 'waits for signal ' || v.wait_for)"},
};

static const OutView step_view = {
	"orchestrator.step_status v WHERE v.run_id = $1::pg_catalog.int8 ORDER BY v.number",
	NULL, step_columns, lengthof(step_columns), NULL};

static const OutView show_json_view = {
	"(SELECT t.*, (SELECT pg_catalog.json_agg(s ORDER BY s.number) FROM orchestrator.step_status s WHERE s.run_id = t.task_id) AS steps"
	" FROM orchestrator.task_status t WHERE t.task_id = $1::pg_catalog.int8) v",
	NULL, NULL, 0, NULL};

static CliExit
run_show(CliCall *call)
{
	opt_task(call, call->arguments[0]);
	if (cli_settings.json)
		show_json(call->arguments[0]);
	else
		show_text(call->arguments[0]);
	return CLI_OK;
}

static void
show_json(const char *task)
{
	PQExpBufferData text;
	char *sql = out_view_sql(&show_json_view, true);
	PGresult *result = db_query(sql, 1, &task);

	if (PQntuples(result) == 0)
		cli_fail(CLI_FAILED, "task %s does not exist", task);
	initPQExpBuffer(&text);
	text_append_json(&text, PQgetvalue(result, 0, 0));
	appendPQExpBufferChar(&text, '\n');
	out_print(&text);
	termPQExpBuffer(&text);
	PQclear(result);
	free(sql);
}

static void
append_field(PQExpBuffer to, const PGresult *result, int column, OutKind kind)
{
	PQExpBufferData value;

	if (PQgetisnull(result, 0, column))
		return;
	initPQExpBuffer(&value);
	out_append_value(&value, PQgetvalue(result, 0, column), kind);
	appendPQExpBuffer(to, "%-18s", show_columns[column].title);
	if (kind == OUT_STATE)
		term_color(to, term_state_color(value.data));
	text_append(to, value.data);
	if (kind == OUT_STATE)
		term_plain(to);
	appendPQExpBufferChar(to, '\n');
	termPQExpBuffer(&value);
}

static void
append_document(PQExpBuffer to, const char *title, const char *value)
{
	if (value == NULL || strcmp(value, "null") == 0)
		return;
	term_color(to, TERM_BOLD);
	appendPQExpBuffer(to, "\n%s\n", title);
	term_plain(to);
	text_append_lines(to, value);
	appendPQExpBufferChar(to, '\n');
}

static void
show_text(const char *task)
{
	PQExpBufferData text;
	char *sql = out_view_sql(&show_view, false);
	PGresult *result = db_query(sql, 1, &task);
	PGresult *steps;

	if (PQntuples(result) == 0)
		cli_fail(CLI_FAILED, "task %s does not exist", task);
	free(sql);
	sql = out_view_sql(&step_view, false);
	steps = db_query(sql, 1, &task);

	initPQExpBuffer(&text);
	for (int i = 0; i < FIRST_DOCUMENT; i++)
		append_field(&text, result, i, show_columns[i].kind);
	for (int i = 0; i < lengthof(documents); i++)
		append_document(&text, documents[i],
						db_text(result, 0, FIRST_DOCUMENT + i));
	if (PQntuples(steps) > 0)
	{
		appendPQExpBufferChar(&text, '\n');
		out_append_table(&text, steps, step_columns, lengthof(step_columns),
						 term_width());
	}
	out_print(&text);
	termPQExpBuffer(&text);
	PQclear(result);
	PQclear(steps);
	free(sql);
}

static CliExit
run_trace(CliCall *call)
{
	const char *values[] = {call->arguments[0],
							opt_given(call, "steps") ? "t" : "f"};

	opt_task(call, call->arguments[0]);
	return out_view(&trace_view, lengthof(values), values) > 0 ? CLI_OK
															   : CLI_FAILED;
}

static CliExit
run_graph(CliCall *call)
{
	bool definition = opt_given(call, "definition");
	const char *values[] = {call->arguments[0], opt_value(call, "format")
													? opt_value(call, "format")
													: "text"};
	PQExpBufferData text;
	PGresult *result;

	if (!definition)
		opt_task(call, call->arguments[0]);
	result = db_query(
		definition
			? "SELECT orchestrator.definition_graph($1, $2), pg_catalog.to_json(orchestrator.definition_graph($1, $2))"
			: "SELECT orchestrator.graph($1, $2), pg_catalog.to_json(orchestrator.graph($1, $2))",
		lengthof(values), values);
	initPQExpBuffer(&text);
	if (cli_settings.json)
	{
		appendPQExpBufferStr(&text, "{\"graph\": ");
		text_append_json(&text, PQgetvalue(result, 0, 1));
		appendPQExpBufferStr(&text, "}\n");
	}
	else
	{
		text_append_lines(&text, PQgetvalue(result, 0, 0));
		appendPQExpBufferChar(&text, '\n');
	}
	out_print(&text);
	termPQExpBuffer(&text);
	PQclear(result);
	return CLI_OK;
}
