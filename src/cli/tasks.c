/*
 * tasks.c
 *	  Definitions as files: reading those of a command; tasks check, new,
 *	  schema.
 */
#include "postgres_fe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tasks.h"

static CliExit run_check(CliCall *call);
static CliExit run_new(CliCall *call);
static CliExit run_schema(CliCall *call);
static void append_checked(PQExpBuffer to, TaskFile **tasks, int count);

static const CliOption folder_options[] = {
	TASKS_FOLDER_OPTION,
	{NULL},
};

static const CliOption new_options[] = {
	TASKS_FOLDER_OPTION,
	{"schema", 's', "SCHEMA", "where the function of kind sql is (public)"},
	{"kind", 'k', "KIND", "sql (the default), python, shell or workflow"},
	{NULL},
};

static const CliCommand cmd_check = {
	"check",
	"[NAME]...",
	"Validate the files of tasks, without a server",
	"Says what is wrong with file, line and key.  Exits with 1 if anything is.",
	0,
	-1,
	folder_options,
	run_check};

static const CliCommand cmd_new = {
	"new",		 "NAME", "Make the files of a task, to begin with", NULL, 1, 1,
	new_options, run_new};

static const CliCommand cmd_schema = {
	"schema", NULL,		 "Write the schema of task.json, as JSON Schema",
	NULL,	  0,		 0,
	NULL,	  run_schema};

static const CliCommand *const commands[] = {
	&cmd_tasks_list, &cmd_tasks_upload, &cmd_tasks_purge, &cmd_tasks_test,
	&cmd_check,		 &cmd_new,			&cmd_schema,	  NULL,
};

const CliCommand cmd_tasks = {
	.name = "tasks",
	.summary = "Keep definitions as files",
	.help =
		"A task is a folder with the file task.json, and beside it NAME.sql or an executable\n"
		"NAME.* (run by work).",
	.commands = commands,
};

const char *
tasks_folder(const CliCall *call)
{
	const char *folder = opt_value(call, "tasks");

	return folder ? folder : TASKFILE_FOLDER;
}

/* ------------------------------------------------------------------ reading */

/* Tasks in the order in which they can be made. */
typedef struct Reading
{
	const char *folder;
	Problems *problems;
	struct
	{
		char *name;
		bool done;		/* false: what it uses is being read */
		TaskFile *task; /* NULL: it is wrong */
	} * known;
	int nknown;
	TaskFile **tasks;
	int ntasks;
} Reading;

static TaskFile *read_one(Reading *reading, const char *name);
static void read_used(Reading *reading, TaskFile *task);

static int
find_known(const Reading *reading, const char *name)
{
	for (int i = 0; i < reading->nknown; i++)
		if (strcmp(reading->known[i].name, name) == 0)
			return i;
	return -1;
}

/*
 * A task that another one has as a step.
 */
static void
read_step(Reading *reading, TaskFile *task, const DocNode *name)
{
	TaskFile *used;
	int known;

	if (name == NULL || !taskfile_exists(reading->folder, name->text))
		return;
	known = find_known(reading, name->text);
	if (known >= 0 && !reading->known[known].done)
	{
		problem_add(reading->problems, task->path, 0, name,
					"\"%s\" and it use each other", name->text);
		return;
	}
	used = read_one(reading, name->text);
	if (used)
		taskfile_add_checksum(task, used->checksum);
}

/*
 * Read what a task uses.  Callbacks may go round in a circle.
 */
static void
read_used(Reading *reading, TaskFile *task)
{
	static const char *const callbacks[] = {"success_callback",
											"failure_callback"};
	const DocNode *steps = doc_member(task->document, "steps");

	for (const DocNode *step = steps ? steps->first : NULL; step;
		 step = step->next)
	{
		read_step(reading, task, doc_member(step, "definition"));
		read_step(reading, task, doc_member(step, "undo"));
	}
	for (int i = 0; i < lengthof(callbacks); i++)
	{
		const char *name = doc_text(task->document, callbacks[i]);

		if (name && taskfile_exists(reading->folder, name))
			read_one(reading, name);
	}
}

static TaskFile *
read_one(Reading *reading, const char *name)
{
	int known = find_known(reading, name);
	TaskFile *task;

	if (known >= 0)
		return reading->known[known].task;
	known = reading->nknown++;
	reading->known =
		pg_realloc(reading->known, reading->nknown * sizeof(*reading->known));
	task = taskfile_read(reading->folder, name, reading->problems);
	reading->known[known].name = pg_strdup(name);
	reading->known[known].task = task;
	reading->known[known].done = false;
	if (task)
	{
		read_used(reading, task);
		reading->tasks = pg_realloc(reading->tasks, (reading->ntasks + 1) *
														sizeof(TaskFile *));
		reading->tasks[reading->ntasks++] = task;
	}
	reading->known[known].done = true;
	return task;
}

TaskFile **
tasks_read(const CliCall *call, int *count, Problems *problems)
{
	Reading reading = {tasks_folder(call), problems};
	char **names = call->arguments;
	int nnames = call->narguments;

	if (nnames == 0)
		names = taskfile_names(reading.folder, &nnames, problems);
	for (int i = 0; i < nnames; i++)
		read_one(&reading, names[i]);
	*count = reading.ntasks;
	return reading.tasks;
}

void
tasks_fail(const Problems *problems)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	problem_append(&text, problems);
	fflush(stdout);
	fputs(text.data, stderr);
	termPQExpBuffer(&text);
	cli_exit(CLI_FAILED);
}

/* ------------------------------------------------------------------- check */

static CliExit
run_check(CliCall *call)
{
	Problems problems = {0};
	int count;
	TaskFile **tasks = tasks_read(call, &count, &problems);
	PQExpBufferData text;

	if (problems.count > 0)
		tasks_fail(&problems);
	initPQExpBuffer(&text);
	append_checked(&text, tasks, count);
	out_print(&text);
	termPQExpBuffer(&text);
	return CLI_OK;
}

static void
append_checked(PQExpBuffer to, TaskFile **tasks, int count)
{
	if (cli_settings.json)
		appendPQExpBufferChar(to, '[');
	for (int i = 0; i < count; i++)
		if (cli_settings.json)
			appendPQExpBuffer(
				to,
				"%s{\"task\": \"%s\", \"kind\": \"%s\", \"checksum\": \"%s\"}",
				i > 0 ? ",\n " : "", tasks[i]->name, tasks[i]->kind,
				tasks[i]->checksum);
		else
			appendPQExpBuffer(to, "%s: %s, fine\n", tasks[i]->name,
							  tasks[i]->kind);
	if (cli_settings.json)
		appendPQExpBufferStr(to, "]\n");
	else if (count == 0)
		appendPQExpBufferStr(to, "no tasks\n");
}

static CliExit
run_schema(CliCall *call)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	schema_append(&text);
	out_print(&text);
	termPQExpBuffer(&text);
	return CLI_OK;
}

/* --------------------------------------------------------------------- new */

/* What the files are to begin with; %s is the name. */
static const struct
{
	const char *kind;
	const char *document;
	const char *ending; /* of the file beside it, or NULL */
	const char *contents;
} templates[] = {
	{"sql",
	 "{\n"
	 "  \"description\": \"What it does\",\n"
	 "  \"handler\": \"%s\",\n"
	 "  \"max_attempts\": 3,\n"
	 "  \"timeout\": \"1 min\"\n"
	 "}\n",
	 ".sql",
	 "CREATE OR REPLACE FUNCTION %s(input jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$\n"
	 "BEGIN\n"
	 "  RETURN jsonb_build_object('received', input);\n"
	 "END $$;\n"},
	{"python",
	 "{\n"
	 "  \"description\": \"What it does\",\n"
	 "  \"program\": \"%s.py\",\n"
	 "  \"max_attempts\": 3,\n"
	 "  \"timeout\": \"1 min\"\n"
	 "}\n",
	 ".py",
	 "#!/usr/bin/env python3\n"
	 "import json\n"
	 "import sys\n"
	 "\n"
	 "task = json.load(sys.stdin)\n"
	 "print('what standard error says goes to the trace', file=sys.stderr)\n"
	 "json.dump({'received': task}, sys.stdout)\n"},
	{"shell",
	 "{\n"
	 "  \"description\": \"What it does\",\n"
	 "  \"program\": \"%s.sh\",\n"
	 "  \"max_attempts\": 3,\n"
	 "  \"timeout\": \"1 min\"\n"
	 "}\n",
	 ".sh",
	 "#!/bin/sh\n"
	 "set -eu\n"
	 "input=$(cat)\n"
	 "echo 'what standard error says goes to the trace' >&2\n"
	 "printf '{\"received\": %%s}\\n' \"$input\"\n"},
	{"workflow",
	 "{\n"
	 "  \"description\": \"What it does\",\n"
	 "  \"steps\": [\n"
	 "    {\"name\": \"first\", \"kind\": \"sql\", \"handler\": \"SELECT 1 AS one\"},\n"
	 "    {\"name\": \"second\", \"needs\": [\"first\"], \"kind\": \"sql\", \"handler\": \"SELECT $1 -> 'first' AS first\"}\n"
	 "  ]\n"
	 "}\n",
	 NULL, NULL},
};

/*
 * Append a name as SQL reads it, with its quotes escaped in JSON if asked to.
 */
static void
append_identifier(PQExpBuffer to, const char *name, const char *quote)
{
	bool plain =
		!isdigit((unsigned char) name[0]) &&
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name);

	appendPQExpBuffer(to, "%s%s%s", plain ? "" : quote, name,
					  plain ? "" : quote);
}

/*
 * What stands for %s: the name, or of a function its name with its schema.
 */
static char *
template_name(const CliCall *call, bool function, const char *quote)
{
	const char *schema = opt_value(call, "schema");
	PQExpBufferData name;

	if (!function)
		return pg_strdup(call->arguments[0]);
	initPQExpBuffer(&name);
	append_identifier(&name, schema ? schema : "public", quote);
	appendPQExpBufferChar(&name, '.');
	append_identifier(&name, call->arguments[0], quote);
	return name.data;
}

/*
 * A file that was not there before; written tells it.
 */
static void
write_file(PQExpBuffer written, const char *path, int mode, const char *format,
		   const char *name)
{
	char *text = psprintf(format, name);
	size_t length = strlen(text);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);

	if (fd < 0 || write(fd, text, length) != (ssize_t) length ||
		close(fd) != 0)
		cli_fail(CLI_FAILED, "could not write \"%s\": %s", path,
				 strerror(errno));
	free(text);
	if (cli_settings.json)
	{
		appendPQExpBufferStr(written, written->len > 0 ? ", " : "[");
		out_append_string(written, path);
		return;
	}
	text_append(written, path);
	appendPQExpBufferChar(written, '\n');
}

static int
find_template(const CliCall *call)
{
	const char *kind = opt_value(call, "kind");

	for (int i = 0; i < lengthof(templates); i++)
		if (strcmp(templates[i].kind, kind ? kind : "sql") == 0)
			return i;
	opt_usage(call, "--kind is sql, python, shell or workflow, not \"%s\"",
			  kind);
}

static CliExit
run_new(CliCall *call)
{
	const char *folder = tasks_folder(call);
	const char *name = call->arguments[0];
	const char *schema = opt_value(call, "schema");
	int template = find_template(call);
	PQExpBufferData written;
	bool script;
	char *path;
	char *file;

	if (!taskfile_good_name(name) || (schema && !taskfile_good_name(schema)))
		opt_usage(call, "\"%s\" cannot be the name of a task in a file",
				  taskfile_good_name(name) ? schema : name);
	path = psprintf("%s/%s", folder, name);
	if (mkdir(folder, 0777) != 0 && errno != EEXIST)
		cli_fail(CLI_FAILED, "could not make the folder \"%s\": %s", folder,
				 strerror(errno));
	if (mkdir(path, 0777) != 0)
		cli_fail(CLI_FAILED, "could not make the folder \"%s\": %s", path,
				 strerror(errno));
	script = templates[template].ending &&
			 strcmp(templates[template].ending, ".sql") == 0;
	initPQExpBuffer(&written);
	file = psprintf("%s/task.json", path);
	write_file(&written, file, 0666, templates[template].document,
			   template_name(call, script, "\\\""));
	free(file);
	if (templates[template].ending)
	{
		file = psprintf("%s/%s%s", path, name, templates[template].ending);
		write_file(&written, file, script ? 0666 : 0777,
				   templates[template].contents,
				   template_name(call, script, "\""));
		free(file);
	}
	if (cli_settings.json)
		appendPQExpBufferStr(&written, "]\n");
	out_print(&written);
	termPQExpBuffer(&written);
	free(path);
	return CLI_OK;
}
