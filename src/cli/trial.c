/*
 * trial.c
 *	  tasks test: run one task here, and leave nothing of it.
 *
 * What the database does is done in a transaction that is rolled back, with
 * the files as they are: they need not be uploaded.  A program is run as work
 * runs it, without a server.
 */
#include "postgres_fe.h"

#include <math.h>
#include <sys/wait.h>

#include "tasks.h"
#include "work.h"

/* Bytes that a server takes which was not told otherwise. */
#define USUAL_OUTPUT (1024 * 1024)

/* A program that is tried. */
typedef struct Trial
{
	const TaskFile *task;
	const char *input;
	double grace; /* between TERM and KILL */
	bool late;	  /* its time-out passed */
} Trial;

static CliExit run_test(CliCall *call);
static CliExit test_in_database(TaskFile *const *tasks, int count,
								const char *input);
static char *run_in_database(const TaskFile *task, const char *input);
static void check_input(const char *input);
static CliExit test_program(Trial *trial);
static CliExit judge(const Trial *trial, const Program *program, double began);

static const CliOption test_options[] = {
	TASKS_FOLDER_OPTION,
	{"input", 'i', "JSON", "its input: JSON, @FILE, or - ({})"},
	{"cache", 0, "FOLDER",
	 "where environments of programs are made (~/.cache/orchestrator)"},
	PROGRAM_GRACE_OPTION,
	{NULL},
};

const CliCommand cmd_tasks_test = {
	"test",
	"NAME",
	"Run a task once and leave nothing of it",
	"A function or command runs in a transaction that is rolled back, with the script and\n"
	"the definition as they are in the files; of a workflow the graph is shown. A program\n"
	"runs as work runs it; what it does outside of the database stays done.",
	1,
	1,
	test_options,
	run_test};

static CliExit
run_test(CliCall *call)
{
	Problems problems = {0};
	char *input = opt_json(call, opt_value(call, "input"));
	Trial trial = {.grace = opt_seconds(call, "grace", PROGRAM_GRACE)};
	int count;
	TaskFile **tasks = tasks_read(call, &count, &problems);
	const TaskFile *task;

	if (problems.count > 0)
		tasks_fail(&problems);
	if (input == NULL)
		input = pg_strdup("{}");
	task = tasks[count - 1];
	if (strcmp(task->kind, "remote") != 0)
		return test_in_database(tasks, count, input);
	if (task->program == NULL)
		cli_fail(CLI_FAILED, "\"%s\" has no program here", task->name);
	check_input(input);
	runner_init(tasks_folder(call), opt_value(call, "cache"));
	trial.task = task;
	trial.input = input;
	return test_program(&trial);
}

/*
 * What it said; then what came of it.
 */
static void
say_line(const char *kind, const char *text)
{
	PQExpBufferData line;

	initPQExpBuffer(&line);
	appendPQExpBuffer(&line, "%s: ", kind);
	text_append(&line, text);
	appendPQExpBufferChar(&line, '\n');
	fputs(line.data, stderr);
	termPQExpBuffer(&line);
}

static void
say_output(const char *output, double took)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	if (cli_settings.json)
		appendPQExpBufferStr(&text, "{\"output\": ");
	text_append_json(&text, output);
	if (cli_settings.json)
		appendPQExpBuffer(&text, ", \"took\": %.3f}", took);
	else
	{
		appendPQExpBufferStr(&text, "\ntook ");
		text_append_duration(&text, took);
	}
	appendPQExpBufferChar(&text, '\n');
	out_print(&text);
	termPQExpBuffer(&text);
}

/* ------------------------------------------------------------ the database */

static void
show_notice(void *arg, const PGresult *notice)
{
	const char *severity =
		PQresultErrorField(notice, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *message = PQresultErrorField(notice, PG_DIAG_MESSAGE_PRIMARY);

	say_line(severity ? severity : "NOTICE", message ? message : "");
}

void
tasks_show_notices(void)
{
	PQsetNoticeReceiver(db_connection(), show_notice, NULL);
}

static CliExit
test_in_database(TaskFile *const *tasks, int count, const char *input)
{
	const TaskFile *task = tasks[count - 1];
	double began;
	char *output;
	char *limit;

	PQclear(
		db_query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", 0, NULL));
	for (int i = 0; i < count; i++)
		tasks_install(tasks[i]);
	if (task->timeout > 0)
	{
		limit = psprintf("SET LOCAL statement_timeout = %.0f",
						 ceil(task->timeout * 1000));
		PQclear(db_query(limit, 0, NULL));
		free(limit);
	}
	tasks_show_notices();
	began = term_now();
	output = run_in_database(task, input);
	say_output(output, term_now() - began);
	PQclear(db_query("ROLLBACK", 0, NULL));
	out_say("rolled back");
	free(output);
	return CLI_OK;
}

/*
 * The rows of a result as an array, with numbers and JSON as they are.
 */
static char *
rows_as_json(const PGresult *result)
{
	static const Oid plain[] = {16, 20, 21, 23, 114, 700, 701, 1700, 3802};
	PQExpBufferData text;

	initPQExpBuffer(&text);
	appendPQExpBufferChar(&text, '[');
	for (int row = 0; row < PQntuples(result); row++)
	{
		appendPQExpBufferStr(&text, row > 0 ? ",\n {" : "{");
		for (int column = 0; column < PQnfields(result); column++)
		{
			const char *value = db_text(result, row, column);
			bool raw = value == NULL;

			for (int i = 0; i < lengthof(plain) && !raw; i++)
				raw = PQftype(result, column) == plain[i];
			appendPQExpBufferStr(&text, column > 0 ? ", " : "");
			text_append_quoted(&text, PQfname(result, column));
			appendPQExpBufferStr(&text, ": ");
			if (value && PQftype(result, column) == plain[0])
				appendPQExpBufferStr(&text,
									 value[0] == 't' ? "true" : "false");
			else if (raw)
				appendPQExpBufferStr(&text, value ? value : "null");
			else
				text_append_quoted(&text, value);
		}
		appendPQExpBufferChar(&text, '}');
	}
	appendPQExpBufferChar(&text, ']');
	return text.data;
}

/*
 * The name of a function without its arguments, as it is defined.
 */
static char *
function_of(const TaskFile *task)
{
	PGresult *result = db_query(
		"SELECT pg_catalog.regexp_replace(d.handler, '\\(jsonb(\\[\\])?\\)$', '') FROM orchestrator.definition_status d"
		" WHERE d.is_current AND d.owner = current_user AND d.definition = $1",
		1, (const char *const *) &task->name);
	char *name = pg_strdup(PQgetvalue(result, 0, 0));

	PQclear(result);
	return name;
}

/*
 * Run it as an executor would; returns its output.
 */
static char *
run_in_database(const TaskFile *task, const char *input)
{
	const char *handler = doc_text(task->document, "handler");
	const char *values[] = {input};
	PGresult *result;
	char *literal;
	char *sql;
	char *output;

	if (strcmp(task->kind, "workflow") == 0)
	{
		values[0] = task->name;
		result = db_query(
			cli_settings.json
				? "SELECT pg_catalog.to_json(orchestrator.definition_graph($1))"
				: "SELECT orchestrator.definition_graph($1)",
			1, values);
	}
	else if (strcmp(task->kind, "sql") == 0)
	{
		sql = psprintf("PREPARE orchestrator_test (pg_catalog.jsonb) AS %s",
					   handler);
		PQclear(db_query(sql, 0, NULL));
		free(sql);
		literal = PQescapeLiteral(db_connection(), input, strlen(input));
		if (literal == NULL)
			cli_fail(CLI_FAILED, "the input is not UTF-8");
		sql = psprintf("EXECUTE orchestrator_test (%s)", literal);
		PQfreemem(literal);
		result = db_query(sql, 0, NULL);
		free(sql);
		output = rows_as_json(result);
		PQclear(result);
		return output;
	}
	else if (strcmp(task->kind, "utility") == 0)
		result = db_query(handler, 0, NULL);
	else
	{
		sql =
			psprintf("%s %s(%s)",
					 strcmp(task->kind, "procedure") == 0 ? "CALL" : "SELECT",
					 function_of(task),
					 doc_member(task->document, "batch_size")
						 ? "ARRAY[$1]::pg_catalog.jsonb[]"
						 : "$1::pg_catalog.jsonb");
		result = db_query(sql, 1, values);
		free(sql);
	}
	output = pg_strdup(PQntuples(result) > 0 && PQnfields(result) > 0 &&
							   PQgetvalue(result, 0, 0)[0] != '\0'
						   ? PQgetvalue(result, 0, 0)
						   : "null");
	PQclear(result);
	return output;
}

/* -------------------------------------------------------------- a program */

static void
show_line(void *owner, ProgramStream stream, const char *line, size_t length)
{
	char *text = pnstrdup(line, length);

	say_line(stream == PROGRAM_REPORTS ? "report" : "stderr", text);
	free(text);
}

/*
 * Serve it until it has ended; after its time-out, or Ctrl-C, it gets TERM,
 * and KILL if it stays.
 */
static void
await_end(Trial *trial, Program *program, double timeout)
{
	struct pollfd descriptors[PROGRAM_PIPES];
	double until = timeout > 0 ? term_now() + timeout : INFINITY;
	bool ending = false;
	double due;
	int count;

	while (program_ended() == NULL)
	{
		count = program_descriptors(program, descriptors);
		due = Min(until, program_due(program));
		term_poll(descriptors, count,
				  isinf(due) ? -1 : Max(due - term_now(), 0));
		program_serve(program, descriptors, count);
		if (program_enforce(program, term_now()))
			say_line("grace", "it is killed");
		if (ending || (!term_interrupted() && term_now() < until))
			continue;
		trial->late = !term_interrupted();
		if (trial->late)
			say_line("timeout", "it gets TERM");
		program_end(program, trial->grace);
		ending = true;
		until = INFINITY;
	}
}

static Program *
run_program(Trial *trial, const Runner *runner, bool preparing)
{
	const char *input = preparing ? "" : trial->input;
	char *prepare[] = {"/bin/sh",
					   "-c",
					   (char *) runner->script,
					   "orchestrator",
					   runner->environment,
					   (char *) runner->dependencies,
					   NULL};
	char *plain[] = {(char *) runner->program, NULL};
	ProgramStart start = {.arguments = preparing ? prepare : plain,
						  .folder = runner->folder,
						  .input = input,
						  .input_length = strlen(input),
						  .most_output = TASKFILE_SCRIPT,
						  .line = show_line};
	ProgramError why;
	char *variables =
		psprintf("ORCHESTRATOR_ATTEMPT=1%cORCHESTRATOR_DEFINITION=%s", '\0',
				 trial->task->name);
	char **environment = runner_environment(runner, preparing, variables, 2);
	Program *program;

	start.environment = environment;
	program = program_start(&start, &why);
	if (program == NULL)
		cli_fail(CLI_FAILED, "could not run %s: %s", start.arguments[0],
				 why.reason);
	await_end(trial, program, preparing ? 0 : trial->task->timeout);
	free(environment);
	free(variables);
	return program;
}

/*
 * Of a function the server does it.
 */
static void
check_input(const char *input)
{
	char *error;
	int line;
	DocNode *document = doc_parse(input, strlen(input), &error, &line);

	if (document == NULL)
		cli_fail(CLI_FAILED, "the input is no JSON, line %d: %s", line, error);
	doc_free(document);
}

static CliExit
test_program(Trial *trial)
{
	const char *reason = NULL;
	Runner *runner;
	RunnerState state;
	Program *program;
	CliExit code;
	double began;

	term_watch_children();
	program_init(1);
	runner = runner_find(trial->task->name, &reason);
	if (runner == NULL)
		cli_fail(CLI_FAILED, "%s", reason);
	state = runner_prepare(runner, &reason);
	if (state == RUNNER_MISSING)
	{
		program_free(run_program(trial, runner, true));
		runner_prepared(runner);
		state = runner_prepare(runner, &reason);
	}
	if (state != RUNNER_READY)
		cli_fail(CLI_FAILED, "the environment %s is not there%s%s",
				 runner->environment, reason ? ": " : "",
				 reason ? reason : "");
	began = term_now();
	program = run_program(trial, runner, false);
	code = judge(trial, program, began);
	program_free(program);
	return code;
}

/*
 * As work does: code 0 and JSON, or nothing, are fine.
 */
static CliExit
judge(const Trial *trial, const Program *program, double began)
{
	const char *name = trial->task->name;
	int status = program_status(program);
	const PQExpBufferData *output = program_output(program);
	DocNode *document = NULL;
	char *error;
	int line;

	if (term_interrupted())
		return CLI_INTERRUPTED;
	if (trial->late)
		out_error("%s took longer than its time-out", name);
	else if (output == NULL)
		out_error("%s wrote too much", name);
	else if (WIFSIGNALED(status))
		out_error("%s was ended by signal %d", name, WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		out_error("%s failed with exit code %d", name, WEXITSTATUS(status));
	else if (strspn(output->data, " \t\r\n") == output->len)
	{
		say_output("null", term_now() - began);
		return CLI_OK;
	}
	else
	{
		document = doc_parse(output->data, output->len, &error, &line);
		if (document == NULL)
			out_error("the output of %s is no JSON, line %d: %s", name, line,
					  error);
		else
			say_output(output->data, term_now() - began);
		if (document && output->len > USUAL_OUTPUT)
			out_warn(
				"the output has %zu bytes: work takes %d, unless orchestrator.max_input_size was raised",
				output->len, USUAL_OUTPUT);
	}
	doc_free(document);
	return document ? CLI_OK : CLI_FAILED;
}
