/*
 * upload.c
 *	  Definitions as files and in the database: tasks list, upload, purge.
 *
 * What is local goes to the server as one JSON document, and the server
 * compares it with what the role has: a definition that came from a file has
 * the checksum of its files in metadata.files.  The checksum of a workflow is
 * made of those of the tasks it uses, too: a workflow keeps the versions of
 * its steps, so it must be uploaded again when one of them changed.
 */
#include "postgres_fe.h"

#include "mb/pg_wchar.h"
#include "tasks.h"

static CliExit run_list(CliCall *call);
static CliExit run_upload(CliCall *call);
static CliExit run_purge(CliCall *call);
static void begin(void);
static void list_local(TaskFile **tasks, int count, bool verbose);
static char *local_json(TaskFile *const *tasks, int count);

#define NO_TASKS "no tasks"

/* Those of the role itself, but for what is hidden. */
#define MINE                                                                  \
	"(SELECT d.* FROM orchestrator.definition_status d WHERE d.is_current AND d.owner = current_user AND d.definition NOT LIKE 'orchestrator.%')"

#define LOCAL                                                                 \
	"pg_catalog.jsonb_to_recordset($1::pg_catalog.jsonb) AS l(task text, kind text, local_checksum text, description text, number int)"

/* A file and a definition side by side, whichever there is. */
#define BOTH                                                                                                     \
	"(SELECT coalesce(l.task, d.definition) AS task, coalesce(l.kind, d.kind) AS kind,"                          \
	" CASE WHEN d.definition IS NULL THEN 'local only'"                                                          \
	" WHEN l.task IS NULL THEN CASE WHEN d.metadata ? 'files' THEN 'orphaned' ELSE 'not from files' END"         \
	" WHEN d.metadata #>> '{files,checksum}' = l.local_checksum THEN 'same' ELSE 'changed' END AS state,"        \
	" d.version, d.created_at AS uploaded_at, d.pending + d.scheduled + d.running + d.waiting + d.held AS live," \
	" l.local_checksum, d.metadata #>> '{files,checksum}' AS remote_checksum,"                                   \
	" coalesce(l.description, d.description) AS description, l.number"                                           \
	" FROM " LOCAL " FULL JOIN " MINE " d ON d.definition = l.task) v"

/* -------------------------------------------------------------------- list */

static const OutColumn list_columns[] = {
	{"TASK", OUT_TEXT, "v.task"},
	{"KIND", OUT_TEXT, "v.kind"},
	{"STATE", OUT_TEXT, "v.state"},
	{"VERSION", OUT_NUMBER, "v.version"},
	{"UPLOADED", OUT_TIME, "extract(epoch FROM v.uploaded_at)"},
	{"LIVE", OUT_NUMBER, "nullif(v.live, 0)"},
	{"DESCRIPTION", OUT_TEXT, "v.description"},
	{"LOCAL CHECKSUM", OUT_TEXT, "v.local_checksum"},
	{"REMOTE CHECKSUM", OUT_TEXT, "v.remote_checksum"},
};

/* The last of them are for --verbose. */
#define VERBOSE_COLUMNS 2

/* Those that files have; the last one is for --verbose. */
static const OutColumn local_columns[] = {
	{"TASK", OUT_TEXT},
	{"KIND", OUT_TEXT},
	{"DESCRIPTION", OUT_TEXT},
	{"LOCAL CHECKSUM", OUT_TEXT},
};

static const OutColumn sync_columns[] = {
	{"", OUT_TEXT, "v.what"},
	{"TASKS", OUT_NUMBER, "v.count"},
	{"", OUT_TEXT, "pg_catalog.array_to_string(v.tasks, ', ')"},
};

static const OutView sync_view = {
	"(SELECT w.what, pg_catalog.count(v.task) AS count, coalesce(pg_catalog.array_agg(v.task ORDER BY v.task) FILTER (WHERE v.task IS NOT NULL), '{}') AS tasks"
	" FROM (VALUES (1, 'local', '{local only,same,changed}'), (2, 'remote', '{same,changed,orphaned,not from files}'), (3, 'common', '{same,changed}'),"
	" (4, 'changed, to be uploaded', '{changed}'), (5, 'local only, to be uploaded', '{local only}'), (6, 'orphaned', '{orphaned}'),"
	" (7, 'not from files', '{\"not from files\"}')) w(n, what, states)"
	" LEFT JOIN " BOTH " ON v.state = ANY (w.states::pg_catalog.text[])"
	" GROUP BY w.n, w.what ORDER BY w.n) v",
	NULL, sync_columns, lengthof(sync_columns), NULL};

static const CliOption list_options[] = {
	TASKS_FOLDER_OPTION,
	{"local", 'l', NULL,
	 "only tasks in files, without a server; with --remote: those in both"},
	{"remote", 'r', NULL, "only definitions in the database"},
	{"sync", 's', NULL, "what is to be done, instead of a list"},
	{"verbose", 'v', NULL, "with checksums"},
	{NULL},
};

const CliCommand cmd_tasks_list = {
	"list",
	NULL,
	"Compare files with definitions in the database",
	"STATE is \"local only\", \"same\", \"changed\", \"orphaned\" (its files are gone), or\n"
	"\"not from files\" (made by SQL).\n"
	"With --local alone no server is asked, so that STATE, VERSION, UPLOADED and LIVE are not\n"
	"shown.",
	0,
	0,
	list_options,
	run_list};

static CliExit
run_list(CliCall *call)
{
	Problems problems = {0};
	bool local = opt_given(call, "local");
	bool remote = opt_given(call, "remote");
	bool sync = opt_given(call, "sync");
	bool verbose = opt_given(call, "verbose");
	const char *where =
		local && remote
			? " WHERE v.version IS NOT NULL AND v.number IS NOT NULL"
		: remote ? " WHERE v.version IS NOT NULL"
				 : "";
	OutView view = {NULL, NULL, list_columns,
					lengthof(list_columns) - (verbose ? 0 : VERBOSE_COLUMNS),
					NO_TASKS};
	int count;
	TaskFile **tasks = tasks_read(call, &count, &problems);
	const char *values[1];

	if (problems.count > 0)
		tasks_fail(&problems);
	if (local && !remote && !sync)
	{
		list_local(tasks, count, verbose);
		return CLI_OK;
	}
	values[0] = local_json(tasks, count);
	view.from = psprintf("%s%s ORDER BY v.task", BOTH, where);
	out_view(sync ? &sync_view : &view, 1, values);
	return CLI_OK;
}

/* By name. */
static int
compare_tasks(const void *a, const void *b)
{
	return strcmp((*(TaskFile *const *) a)->name,
				  (*(TaskFile *const *) b)->name);
}

/*
 * What files say of each, as a server would give it.
 */
static PGresult *
local_result(TaskFile *const *tasks, int count)
{
	PGresult *result = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
	PGresAttDesc attributes[lengthof(local_columns)] = {{NULL}};
	bool good = PQsetResultAttrs(result, lengthof(attributes), attributes);

	for (int row = 0; row < count; row++)
	{
		const TaskFile *task = tasks[row];
		const char *values[lengthof(local_columns)] = {
			task->name, task->kind, doc_text(task->document, "description"),
			task->checksum};

		for (int i = 0; i < lengthof(values); i++)
			good = good && PQsetvalue(result, row, i, (char *) values[i],
									  values[i] ? strlen(values[i]) : -1);
	}
	if (!good)
		cli_fail(CLI_FAILED, "out of memory");
	return result;
}

static void
list_local(TaskFile **tasks, int count, bool verbose)
{
	PQExpBufferData text;
	PGresult *result;

	qsort(tasks, count, sizeof(TaskFile *), compare_tasks);
	initPQExpBuffer(&text);
	if (cli_settings.json)
	{
		text_append_json(&text, local_json(tasks, count));
		appendPQExpBufferChar(&text, '\n');
	}
	else if (count == 0)
		out_say(NO_TASKS);
	else
	{
		result = local_result(tasks, count);
		out_append_table(&text, result, local_columns,
						 lengthof(local_columns) - (verbose ? 0 : 1),
						 term_width());
		PQclear(result);
	}
	out_print(&text);
	termPQExpBuffer(&text);
}

/*
 * What files say, for the server or as JSON.
 */
static char *
local_json(TaskFile *const *tasks, int count)
{
	PQExpBufferData text;
	const char *description;

	initPQExpBuffer(&text);
	appendPQExpBufferChar(&text, '[');
	for (int i = 0; i < count; i++)
	{
		description = doc_text(tasks[i]->document, "description");
		appendPQExpBuffer(&text,
						  "%s{\"task\": \"%s\", \"kind\": \"%s\", "
						  "\"local_checksum\": \"%s\", \"number\": %d, "
						  "\"description\": ",
						  i > 0 ? ",\n " : "", tasks[i]->name, tasks[i]->kind,
						  tasks[i]->checksum, i);
		if (description)
			text_append_quoted(&text, description);
		else
			appendPQExpBufferStr(&text, "null");
		appendPQExpBufferChar(&text, '}');
	}
	appendPQExpBufferChar(&text, ']');
	return text.data;
}

/* ------------------------------------------------------------------ upload */

static const CliOption upload_options[] = {
	TASKS_FOLDER_OPTION,
	{"all", 'a', NULL, "all tasks of the folder"},
	{"force", 'f', NULL, "also those that are the same"},
	{"dry-run", 'n', NULL, "do it and undo it: shows what would become of it"},
	{"verbose", 'v', NULL, "with checksums, and with what scripts say"},
	{NULL},
};

const CliCommand cmd_tasks_upload = {
	"upload",
	"NAME...",
	"Install tasks that are new or changed",
	"With what they use, in one transaction: all or none.  A script NAME.sql is run; it can\n"
	"do what the role may, but not end the transaction.",
	0,
	-1,
	upload_options,
	run_upload};

static const OutColumn upload_columns[] = {
	{"TASK", OUT_TEXT, "v.task"},		{"KIND", OUT_TEXT, "v.kind"},
	{"WAS", OUT_TEXT, "v.state"},		{"VERSION", OUT_NUMBER, "v.version"},
	{"BEFORE", OUT_NUMBER, "v.before"}, {"CHECKSUM", OUT_TEXT, "v.checksum"},
};

#define UPLOADED                                                              \
	"pg_catalog.jsonb_to_recordset($1::pg_catalog.jsonb) AS v(task text, kind text, state text, version int, before int, uploaded boolean, checksum text)"

/*
 * One upload, or one purge, of a role at a time: the second sees what the
 * first did.
 */
static void
begin(void)
{
	PQclear(
		db_query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", 0, NULL));
	PQclear(db_query(
		"SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('orchestrator tasks'), pg_catalog.hashtext(current_user))",
		0, NULL));
}

static void
end(bool keep)
{
	PQclear(db_query(keep ? "COMMIT" : "ROLLBACK", 0, NULL));
}

/*
 * What of a document the server does not take, or NULL: it begins with the
 * parameter, or with step "a", key "b": and then goes on with the reason.
 */
static const DocNode *
find_place(const DocNode *document, const char **message)
{
	const DocNode *steps = doc_member(document, "steps");
	char name[208];
	char key[64];
	int name_ends = 0;
	int key_ends = 0;

	if (sscanf(*message, "step \"%207[^\"]\"%n, key \"%63[^\"]\": %n", name,
			   &name_ends, key, &key_ends) > 0)
	{
		for (const DocNode *step = steps ? steps->first : NULL; step;
			 step = step->next)
			if (strcmp(doc_text(step, "name"), name) == 0)
			{
				if (key_ends == 0 || !doc_member(step, key))
					return step;
				*message += key_ends;
				return doc_member(step, key);
			}
		return NULL;
	}
	if (sscanf(*message, "%63[a-z_]", key) != 1)
		return NULL;
	if (strcmp(key, "function") == 0 || strcmp(key, "procedure") == 0)
		return doc_member(document, "handler");
	return doc_member(document, key);
}

/*
 * The server refused a file: with its hint, and in a script the line.
 */
static void
refuse(const PGresult *result, const TaskFile *task, const char *script)
{
	Problems problems = {0};
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *file = script ? task->script : task->path;
	const DocNode *place = NULL;
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	const char *query = PQresultErrorField(result, PG_DIAG_INTERNAL_QUERY);
	const char *position =
		PQresultErrorField(result, PG_DIAG_INTERNAL_POSITION);
	int line = 0;
	int left;

	if (message == NULL)
	{
		out_result_error(result);
		cli_exit(CLI_NO_CONNECTION);
	}
	if (script && query && position && strcmp(query, script) == 0)
	{
		line = 1;
		left = atoi(position) - 1;
		for (const char *at = script; left > 0 && *at != '\0';
			 at += PQmblenBounded(at, PG_UTF8), left--)
			if (*at == '\n')
				line++;
	}
	if (!script)
		place = find_place(task->document, &message);
	problem_add(&problems, file, line, place, "%s%s%s%s", message,
				hint ? " (" : "", hint ? hint : "", hint ? ")" : "");
	tasks_fail(&problems);
}

/*
 * Run the script of a task.  PL/pgSQL refuses to begin or end a transaction,
 * and tells where in the text an error is.
 */
static void
run_script(const TaskFile *task)
{
	size_t length;
	char *script = taskfile_contents(task->script, TASKFILE_SCRIPT, &length);
	char *literal;
	char *sql;
	PGresult *result;

	literal = script ? PQescapeLiteral(db_connection(), script, length) : NULL;
	if (literal == NULL)
		cli_fail(CLI_FAILED, "could not read \"%s\"", task->script);
	sql = psprintf("BEGIN EXECUTE %s; END", literal);
	PQfreemem(literal);
	literal = PQescapeLiteral(db_connection(), sql, strlen(sql));
	free(sql);
	sql = psprintf("DO %s", literal);
	PQfreemem(literal);
	result = db_try(sql, 0, NULL);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		refuse(result, task, script);
	PQclear(result);
	free(sql);
	free(script);
	/* what it set is its own */
	PQclear(db_query("RESET SESSION AUTHORIZATION", 0, NULL));
	PQclear(db_query("RESET ROLE", 0, NULL));
	PQclear(db_query("RESET ALL", 0, NULL));
}

/*
 * The call that defines a task; $1 is its document, $2 its name, $3 what
 * comes to its metadata, and of a task without steps $4 its kind.
 */
static char *
define_sql(const TaskFile *task)
{
	static const char *const types[] = {
		[KEY_TEXT] = "text",		 [KEY_INTEGER] = "int4",
		[KEY_NUMBER] = "float8",	 [KEY_BOOLEAN] = "bool",
		[KEY_INTERVAL] = "interval", [KEY_OBJECT] = "jsonb"};
	const char *metadata =
		"coalesce(nullif($1::pg_catalog.jsonb -> 'metadata', 'null'), '{}') || $3::pg_catalog.jsonb";
	PQExpBufferData sql;

	if (strcmp(task->kind, "workflow") == 0)
		return psprintf(
			"SELECT orchestrator.define_workflow($1::pg_catalog.jsonb || pg_catalog.jsonb_build_object('name', $2::pg_catalog.text, 'metadata', %s))",
			metadata);
	initPQExpBuffer(&sql);
	appendPQExpBuffer(
		&sql,
		"SELECT orchestrator.define(name => $2, handler => $1::pg_catalog.jsonb ->> 'handler', kind => $4, metadata => %s",
		metadata);
	for (const SchemaKey *key = schema_keys(); key->name; key++)
	{
		if ((key->parts & (PART_TASK | PART_FILE)) != PART_TASK ||
			!doc_member(task->document, key->name) ||
			strcmp(key->name, "name") == 0 ||
			strcmp(key->name, "handler") == 0 ||
			strcmp(key->name, "kind") == 0 ||
			strcmp(key->name, "metadata") == 0)
			continue;
		if (key->type == KEY_TEXTS)
			appendPQExpBuffer(
				&sql,
				", %s => ARRAY(SELECT pg_catalog.jsonb_array_elements_text($1::pg_catalog.jsonb -> '%s'))",
				key->name, key->name);
		else
			appendPQExpBuffer(
				&sql, ", %s => ($1::pg_catalog.jsonb ->> '%s')::pg_catalog.%s",
				key->name, key->name, types[key->type]);
	}
	appendPQExpBufferChar(&sql, ')');
	return sql.data;
}

int
tasks_install(const TaskFile *task)
{
	bool workflow = strcmp(task->kind, "workflow") == 0;
	char *sql = define_sql(task);
	char *files =
		psprintf("{\"files\": {\"checksum\": \"%s\"}}", task->checksum);
	const char *values[] = {task->text, task->name, files, task->kind};
	PGresult *result;
	int version;

	if (task->script)
		run_script(task);
	result = db_try(sql, lengthof(values) - (workflow ? 1 : 0), values);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		refuse(result, task, NULL);
	version = atoi(PQgetvalue(result, 0, 0));
	PQclear(result);
	free(sql);
	free(files);
	return version;
}

static CliExit
run_upload(CliCall *call)
{
	Problems problems = {0};
	bool all = opt_given(call, "all");
	bool dry = opt_given(call, "dry-run");
	bool verbose = opt_given(call, "verbose");
	OutView view = {UPLOADED, NULL, upload_columns,
					lengthof(upload_columns) - (verbose ? 0 : 1), NO_TASKS};
	TaskFile **tasks;
	int count;
	char *document;
	const char *values[1];
	PGresult *states;
	PQExpBufferData rows;

	if (all == (call->narguments > 0))
		opt_usage(call, "give names of tasks, or --all");
	tasks = tasks_read(call, &count, &problems);
	if (problems.count > 0)
		tasks_fail(&problems);
	document = local_json(tasks, count);
	values[0] = document;
	if (verbose)
		tasks_show_notices();
	begin();
	states = db_query("SELECT v.state, v.version FROM " BOTH
					  " WHERE v.number IS NOT NULL ORDER BY v.number",
					  1, values);
	initPQExpBuffer(&rows);
	for (int i = 0; i < count; i++)
	{
		bool same = strcmp(PQgetvalue(states, i, 0), "same") == 0 &&
					!opt_given(call, "force");
		const char *before = db_text(states, i, 1);

		appendPQExpBuffer(
			&rows,
			"%s{\"task\": \"%s\", \"kind\": \"%s\", \"state\": \"%s\", \"uploaded\": %s, \"checksum\": \"%s\"",
			i > 0 ? ", " : "[", tasks[i]->name, tasks[i]->kind,
			PQgetvalue(states, i, 0), same ? "false" : "true",
			tasks[i]->checksum);
		if (before)
			appendPQExpBuffer(&rows, ", \"before\": %s", before);
		appendPQExpBuffer(&rows, ", \"version\": %d}",
						  same ? atoi(before) : tasks_install(tasks[i]));
	}
	appendPQExpBufferStr(&rows, count > 0 ? "]" : "[]");
	end(!dry);
	values[0] = rows.data;
	out_view(&view, 1, values);
	if (dry)
		out_say("nothing was changed");
	termPQExpBuffer(&rows);
	PQclear(states);
	free(document);
	return CLI_OK;
}

/* ------------------------------------------------------------------- purge */

static const CliOption purge_options[] = {
	TASKS_FOLDER_OPTION,
	{"orphaned", 0, NULL, "those that came from files which are gone"},
	{"force", 'f', NULL, "even if they are used: their tasks are cancelled"},
	{NULL},
};

const CliCommand cmd_tasks_purge = {
	"purge",
	"NAME...",
	"Delete definitions from the database",
	"Refused while a workflow, a list of tools, a schedule, a callback or an unfinished task uses one.\n"
	"Functions stay, and so do versions that are steps of another version of a workflow.",
	0,
	-1,
	purge_options,
	run_purge};

/*
 * What goes, and what uses it that does not go with it.
 */
#define USED                                                                                                                                                                                                        \
	"(SELECT n.name AS task, pg_catalog.min(d.kind) FILTER (WHERE d.is_current) AS kind,"                                                                                                                           \
	" pg_catalog.array_agg(d.version ORDER BY d.version) AS versions,"                                                                                                                                              \
	" pg_catalog.min(CASE WHEN d.kind IN ('function', 'procedure') THEN d.handler END) FILTER (WHERE d.is_current) AS handler,"                                                                                     \
	" ARRAY(SELECT 'workflow ' || w.name FROM orchestrator.definition w WHERE w.kind = 'workflow' AND w.is_current AND NOT (w.owner = o.id AND w.name = ANY ($1))"                                                  \
	" AND EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(w.document -> 'steps') s(value) WHERE n.name IN (s.value ->> 'definition', s.value ->> 'undo') OR s.value #> '{request,tools}' ? n.name) ORDER BY 1)" \
	" || ARRAY(SELECT 'callback of ' || w.name FROM orchestrator.definition w WHERE w.owner = o.id AND w.is_current AND w.name <> ALL ($1)"                                                                         \
	" AND n.name IN (w.success_callback, w.failure_callback) ORDER BY 1)"                                                                                                                                           \
	" || ARRAY(SELECT 'tool of ' || w.name FROM orchestrator.definition w WHERE w.owner = o.id AND w.is_current AND w.name <> ALL ($1)"                                                                             \
	" AND w.request -> 'tools' ? n.name ORDER BY 1)"                                                                                                                                                                \
	" || ARRAY(SELECT 'schedule ' || s.schedule FROM orchestrator.schedule_status s WHERE s.owner = o.name AND s.definition = n.name AND s.state <> 'done' ORDER BY 1)"                                             \
	" || ARRAY(SELECT 'task ' || t.id FROM orchestrator.task t WHERE t.live AND t.definition = ANY (pg_catalog.array_agg(d.id)) ORDER BY t.id LIMIT 10)"                                                            \
	" || CASE WHEN (SELECT pg_catalog.count(*) FROM orchestrator.task t WHERE t.live AND t.definition = ANY (pg_catalog.array_agg(d.id))) > 10 THEN '{\"more tasks\"}'::pg_catalog.text[] ELSE '{}' END AS used_by" \
	" FROM orchestrator.owner o, pg_catalog.unnest($1::pg_catalog.text[]) n(name), orchestrator.definition d"                                                                                                       \
	" WHERE o.name = current_user AND d.owner = o.id AND d.name = n.name GROUP BY o.id, o.name, n.name) v"

static const OutColumn purge_columns[] = {
	{"TASK", OUT_TEXT, "v.task"},
	{"KIND", OUT_TEXT, "v.kind"},
	{"VERSIONS", OUT_TEXT, "pg_catalog.array_to_string(v.versions, ', ')"},
	{"USED BY", OUT_TEXT, "pg_catalog.array_to_string(v.used_by, ', ')"},
	{"STAYS", OUT_TEXT, "v.handler"},
};

static const OutView purge_view = {USED " ORDER BY v.task", NULL,
								   purge_columns, lengthof(purge_columns),
								   NULL};

/*
 * The names of what is to go, as an array; NULL: nothing.
 */
static char *
purge_names(const CliCall *call)
{
	Problems problems = {0};
	CliCall everything = *call;
	int count;
	TaskFile **tasks;
	const char *values[1];
	PGresult *result;
	char *names;

	if (!opt_given(call, "orphaned"))
		return db_array((const char *const *) call->arguments,
						call->narguments);
	everything.narguments = 0;
	tasks = tasks_read(&everything, &count, &problems);
	if (problems.count > 0)
		tasks_fail(&problems);
	values[0] = local_json(tasks, count);
	result = db_query("SELECT pg_catalog.array_agg(v.task) FROM " BOTH
					  " WHERE v.state = 'orphaned'",
					  1, values);
	names =
		PQgetisnull(result, 0, 0) ? NULL : pg_strdup(PQgetvalue(result, 0, 0));
	PQclear(result);
	return names;
}

/*
 * The same as rows, each once, with whether it is there to be enqueued; fails
 * if nothing of one is there.
 */
static PGresult *
find_targets(const char *names)
{
	PGresult *result = db_query(
		"SELECT n, pg_catalog.bool_or(d.is_current) FROM pg_catalog.unnest($1::pg_catalog.text[]) n"
		" LEFT JOIN orchestrator.definition_status d ON d.definition = n AND d.owner = current_user"
		" GROUP BY n ORDER BY n",
		1, &names);

	for (int i = 0; i < PQntuples(result); i++)
		if (PQgetisnull(result, i, 1))
			cli_fail(CLI_FAILED, "you have no definition \"%s\"",
					 PQgetvalue(result, i, 0));
	return result;
}

/*
 * Fails if something uses what is to go.
 */
static void
check_unused(const char *names)
{
	PGresult *result = db_query(
		"SELECT v.task, pg_catalog.array_to_string(v.used_by, ', ') FROM " USED
		" WHERE v.used_by <> '{}' ORDER BY v.task",
		1, &names);
	Problems problems = {0};

	for (int i = 0; i < PQntuples(result); i++)
		problem_add(&problems, PQgetvalue(result, i, 0), 0, NULL,
					"it is used: %s", PQgetvalue(result, i, 1));
	PQclear(result);
	if (problems.count > 0)
	{
		problem_add(&problems, "tasks purge", 0, NULL,
					"nothing was deleted; --force does it all the same");
		tasks_fail(&problems);
	}
}

/*
 * Delete versions; one that is a step of another version goes after that one,
 * or stays.  Returns how many stay.
 */
static int
purge_versions(const char *names, const char *force)
{
	PGresult *versions = db_query(
		"SELECT d.name, d.version FROM orchestrator.definition d JOIN orchestrator.owner o ON o.id = d.owner"
		" WHERE o.name = current_user AND d.name = ANY ($1::pg_catalog.text[]) ORDER BY d.id DESC",
		1, &names);
	int count = PQntuples(versions);
	bool *gone = pg_malloc0((count + 1) * sizeof(bool));
	int left = count;
	int before;

	do
	{
		before = left;
		for (int i = 0; i < count; i++)
		{
			const char *values[] = {PQgetvalue(versions, i, 0),
									PQgetvalue(versions, i, 1), force};
			PGresult *result;

			if (gone[i])
				continue;
			PQclear(db_query("SAVEPOINT version", 0, NULL));
			result = db_try("SELECT orchestrator.purge_definition($1, $2, $3)",
							lengthof(values), values);
			gone[i] = PQresultStatus(result) == PGRES_TUPLES_OK;
			if (gone[i])
				left--;
			else if (db_lost() ||
					 strcmp(PQresultErrorField(result, PG_DIAG_SQLSTATE),
							"2BP01") != 0)
			{
				out_result_error(result);
				cli_exit(CLI_FAILED);
			}
			else
				PQclear(db_query("ROLLBACK TO SAVEPOINT version", 0, NULL));
			PQclear(result);
			PQclear(db_query("RELEASE SAVEPOINT version", 0, NULL));
		}
	} while (left > 0 && left < before);
	free(gone);
	PQclear(versions);
	return left;
}

static CliExit
run_purge(CliCall *call)
{
	const char *force = opt_given(call, "force") ? "t" : "f";
	const char *names;
	PGresult *targets;
	int count;
	int stay;

	if (opt_given(call, "orphaned") == (call->narguments > 0))
		opt_usage(call, "give names of tasks, or --orphaned");
	names = purge_names(call);
	if (names == NULL)
	{
		out_say("nothing is orphaned");
		if (cli_settings.json)
			puts("[]");
		return CLI_OK;
	}
	targets = find_targets(names);
	count = PQntuples(targets);
	if (force[0] == 'f')
		check_unused(names);
	out_view(&purge_view, 1, &names);
	cli_confirm("Delete %s?", count == 1 ? "this" : "these");
	begin();
	for (int i = 0; i < count; i++)
	{
		const char *values[] = {PQgetvalue(targets, i, 0), force};

		if (db_true(targets, i, 1))
			PQclear(db_query("SELECT orchestrator.drop_definition($1, $2)",
							 lengthof(values), values));
	}
	/* nobody can define a workflow with them any more */
	if (force[0] == 'f')
		check_unused(names);
	stay = purge_versions(names, force);
	end(true);
	out_say("deleted %d definition%s", count, count == 1 ? "" : "s");
	if (stay > 0)
		out_say("%d version%s, being %s of another version of a workflow",
				stay, stay == 1 ? " stays" : "s stay",
				stay == 1 ? "a step" : "steps");
	PQclear(targets);
	return CLI_OK;
}
