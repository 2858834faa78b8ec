/*
 * control.c
 *	  Steering tasks: cancel, pause, resume, retry, purge; signal, approve,
 *	  reject.
 */
#include "postgres_fe.h"

#include <limits.h>

#include "cli.h"

#define MOST_VALUES 10

/* What a verb does to one task or to many. */
typedef struct Verb
{
	const char *name;	/* of the command, and of the function for one */
	const char *many;	/* the function for many */
	const char *done;	/* what the tasks are then */
	const char *states; /* it can act on; those of a call with none */
	const char *which;	/* of the rows in these states, for the count */
	const char *option; /* of its own, besides the filters; or NULL */
	const char *type;	/* of that; NULL: a switch */
} Verb;

static CliExit run_verb(CliCall *call);
static CliExit run_tell(CliCall *call);
static int count_filters(const CliCall *call);
static bool steer_one(const CliCall *call, const Verb *verb, const char *task,
					  PQExpBuffer json);
static CliExit steer_each(const CliCall *call, const Verb *verb);
static CliExit steer_many(const CliCall *call, const Verb *verb);
static long long call_many(const CliCall *call, const Verb *verb);
static long long count_tasks(const CliCall *call, const Verb *verb);
static int append_own(PQExpBuffer sql, const CliCall *call, const Verb *verb,
					  const char **values, int nvalues);

/* Steps are retried with their run; what was undone is not. */
static const Verb verbs[] = {
	{"cancel", "cancel_many", "cancelled",
	 "{scheduled,pending,running,waiting,paused}", "t.live", "reason", "text"},
	{"pause", "pause_many", "paused", "{scheduled,pending,running,waiting}",
	 "t.live", "force", NULL},
	{"resume", "resume_many", "resumed", "{paused}", "t.live", NULL, NULL},
	{"retry", "retry_many", "retried", "{failed}",
	 "NOT t.live AND t.step IS NULL AND t.compensation IS NULL", "attempts",
	 "int4"},
	{"purge", "purge", "deleted", "{completed,failed,cancelled,skipped}",
	 "NOT t.live AND t.parent_id IS NULL"
	 " AND NOT EXISTS (SELECT FROM orchestrator.task l WHERE l.live AND l.root_id = t.id)",
	 "owner", "text"},
};

#define FILTERS                                                               \
	{"definition", 'D', "NAME", "all of this definition"},                    \
		{"queue", 'q', "QUEUE", "all in this queue"},                         \
		{"state", 's', "STATE", "all in this state; may be given again"},     \
		{"older-than", 0, "INTERVAL",                                         \
		 "all that are older, as in \"2 days\""},                             \
		{"limit", 'n', "N", "of these, at most so many, the oldest first"},   \
		{"all", 'a', NULL, "all, without any other filter"},                  \
	{                                                                         \
		"dry-run", 0, NULL, "only say how many they are"                      \
	}

static const CliOption cancel_options[] = {
	FILTERS,
	{"reason", 'r', "TEXT", "kept with the task"},
	{NULL},
};

static const CliOption pause_options[] = {
	FILTERS,
	{"force", 'f', NULL, "stop an attempt that runs; it does not count"},
	{NULL},
};

static const CliOption resume_options[] = {FILTERS, {NULL}};

static const CliOption retry_options[] = {
	FILTERS,
	{"attempts", 0, "N", "as many more (1)"},
	{NULL},
};

static const CliOption purge_options[] = {
	FILTERS,
	{"owner", 'o', "ROLE", "all of this role"},
	{NULL},
};

static const CliOption payload_options[] = {
	{"payload", 0, "JSON",
	 "what goes with it: JSON, @FILE, or - for standard input"},
	{NULL},
};

static const CliOption reason_options[] = {
	{"reason", 'r', "TEXT", "what its error says"},
	{NULL},
};

#define MANY_HELP                                                             \
	"Tasks are named one by one, or by filters; filters ask first, unless --yes is given."

const CliCommand cmd_cancel = {"cancel",	   "[TASK]...", "Cancel tasks",
							   MANY_HELP,	   0,			-1,
							   cancel_options, run_verb};

const CliCommand cmd_pause = {
	"pause",	   "[TASK]...", "Hold tasks until resume", MANY_HELP, 0, -1,
	pause_options, run_verb};

const CliCommand cmd_resume = {
	"resume", "[TASK]...", "Let paused tasks go on", MANY_HELP,
	0,		  -1,		   resume_options,			 run_verb};

const CliCommand cmd_retry = {
	"retry",
	"[TASK]...",
	"Run failed or cancelled tasks again",
	MANY_HELP
	"\nBy filters, failed ones; cancelled ones with --state cancelled.",
	0,
	-1,
	retry_options,
	run_verb};

const CliCommand cmd_purge = {
	"purge",
	NULL,
	"Delete finished tasks, with their steps and traces",
	"It takes filters, and asks first, unless --yes is given. --older-than counts\nfrom the end of a task.",
	0,
	0,
	purge_options,
	run_verb};

const CliCommand cmd_signal = {
	"signal",
	"TASK NAME",
	"Send a signal to a task, for the step that waits for it",
	NULL,
	2,
	2,
	payload_options,
	run_tell};

const CliCommand cmd_approve = {"approve",
								"TASK STEP",
								"Approve a waiting step of a run",
								NULL,
								2,
								2,
								payload_options,
								run_tell};

const CliCommand cmd_reject = {
	"reject",		"TASK STEP", "Reject a waiting step of a run", NULL, 2, 2,
	reason_options, run_tell};

static CliExit
run_verb(CliCall *call)
{
	const Verb *verb = verbs;
	int filters = count_filters(call);

	while (strcmp(verb->name, call->command->name) != 0)
		verb++;
	opt_number(call, "limit", 1, INT_MAX, 0);
	opt_number(call, "attempts", 1, 10000, 1);
	if (call->narguments > 0)
	{
		if (filters > 0 || opt_given(call, "all") || opt_given(call, "limit"))
			opt_usage(call, "either tasks or filters");
		if (opt_given(call, "dry-run"))
			opt_usage(call, "--dry-run goes with filters");
		for (int i = 0; i < call->narguments; i++)
			opt_task(call, call->arguments[i]);
		return steer_each(call, verb);
	}
	if (filters == 0 && !opt_given(call, "all"))
		opt_usage(call, "%s filters are missing; --all takes all",
				  call->command->most != 0 ? "tasks or" : "the");
	if (filters > 0 && opt_given(call, "all"))
		opt_usage(call, "either filters or --all");
	return steer_many(call, verb);
}

static int
count_filters(const CliCall *call)
{
	static const char *const filters[] = {"definition", "queue", "state",
										  "older-than", "owner"};
	int count = 0;

	for (int i = 0; i < lengthof(filters); i++)
		count += opt_given(call, filters[i]);
	return count;
}

/*
 * The option that only this verb has, as one more argument.
 */
static int
append_own(PQExpBuffer sql, const CliCall *call, const Verb *verb,
		   const char **values, int nvalues)
{
	if (verb->option == NULL || !opt_given(call, verb->option))
		return nvalues;
	values[nvalues++] = verb->type ? opt_value(call, verb->option) : "true";
	appendPQExpBuffer(sql, ", %s => $%d::pg_catalog.%s", verb->option, nvalues,
					  verb->type ? verb->type : "bool");
	return nvalues;
}

/*
 * False: refused, which has been said.
 */
static bool
steer_one(const CliCall *call, const Verb *verb, const char *task,
		  PQExpBuffer json)
{
	const char *values[MOST_VALUES] = {task};
	PQExpBufferData sql;
	PGresult *result;
	bool done;
	int count;

	initPQExpBuffer(&sql);
	appendPQExpBuffer(&sql, "SELECT orchestrator.%s($1::pg_catalog.int8",
					  verb->name);
	count = append_own(&sql, call, verb, values, 1);
	appendPQExpBufferChar(&sql, ')');
	result = db_try(sql.data, count, values);
	done = PQresultStatus(result) == PGRES_TUPLES_OK;
	if (!done)
	{
		out_result_error(result);
		if (db_lost())
			cli_exit(CLI_NO_CONNECTION);
	}
	else if (cli_settings.json)
		appendPQExpBuffer(json, "%s\n{\"task\": %s, \"state\": \"%s\"}",
						  json->len > 1 ? "," : "", task,
						  PQgetvalue(result, 0, 0));
	else
		out_say("task %s: %s", task, PQgetvalue(result, 0, 0));
	PQclear(result);
	termPQExpBuffer(&sql);
	return done;
}

/*
 * Each by itself: one that is refused does not keep the others.
 */
static CliExit
steer_each(const CliCall *call, const Verb *verb)
{
	PQExpBufferData json;
	CliExit code = CLI_OK;

	initPQExpBuffer(&json);
	appendPQExpBufferChar(&json, '[');
	for (int i = 0; i < call->narguments; i++)
		if (!steer_one(call, verb, call->arguments[i], &json))
			code = CLI_FAILED;
	appendPQExpBufferStr(&json, json.len > 1 ? "\n]\n" : "]\n");
	if (cli_settings.json)
		out_print(&json);
	termPQExpBuffer(&json);
	return code;
}

/*
 * How many the filters match now, of those that the role may change.
 */
static long long
count_tasks(const CliCall *call, const Verb *verb)
{
	char *states = opt_array(call, "state");
	const char *values[] = {
		opt_value(call, "definition"),	opt_value(call, "queue"),
		states ? states : verb->states, opt_value(call, "older-than"),
		opt_value(call, "limit"),		opt_value(call, "owner")};
	PQExpBufferData sql;
	PGresult *result;
	long long count;

	initPQExpBuffer(&sql);
	appendPQExpBuffer(
		&sql,
		"SELECT least(pg_catalog.count(*), $5::pg_catalog.int8) FROM orchestrator.task t JOIN orchestrator.owner o ON o.id = t.owner"
		" WHERE t.state = ANY ($3::orchestrator.task_state[]) AND %s"
		" AND ($1::pg_catalog.text IS NULL OR t.definition IN (SELECT d.id FROM orchestrator.definition d WHERE d.name = $1))"
		" AND ($2::pg_catalog.text IS NULL OR t.queue IN (SELECT q.id FROM orchestrator.queue q WHERE q.name = $2))"
		" AND ($4::pg_catalog.text IS NULL OR %s < pg_catalog.now() - $4::pg_catalog.interval)"
		" AND ($6::pg_catalog.text IS NULL OR o.name = $6)"
		" AND (pg_catalog.pg_has_role(o.role, 'USAGE')"
		" OR (SELECT pg_catalog.pg_has_role(e.extowner, 'USAGE') FROM pg_catalog.pg_extension e WHERE e.extname = 'orchestrator')"
		" OR EXISTS (SELECT FROM orchestrator.usage_grant g JOIN orchestrator.owner a ON a.id = g.grantee"
		" WHERE g.level = 'admin' AND pg_catalog.pg_has_role(a.role, 'USAGE')))",
		verb->which,
		call->command->most != 0 ? "t.created_at" : "t.finished_at");
	result = db_query(sql.data, lengthof(values), values);
	count = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
	PQclear(result);
	termPQExpBuffer(&sql);
	free(states);
	return count;
}

/*
 * Where none match, the call tells what is wrong with the filters; it is rolled
 * back, for nobody was asked about those that came since.
 */
static CliExit
steer_many(const CliCall *call, const Verb *verb)
{
	bool dry = opt_given(call, "dry-run");
	long long count = count_tasks(call, verb);

	if (count == 0 && count_filters(call) > 0)
	{
		PQclear(db_query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", 0,
						 NULL));
		call_many(call, verb);
		PQclear(db_query("ROLLBACK", 0, NULL));
	}
	else if (count > 0 && !dry)
	{
		cli_confirm("%lld %s will be %s. Go on?", count,
					count == 1 ? "task" : "tasks", verb->done);
		count = call_many(call, verb);
	}
	if (cli_settings.json)
		printf("{\"%s\": %lld}\n", dry ? "matching" : "count", count);
	else if (dry)
		out_say("%lld %s would be %s", count, count == 1 ? "task" : "tasks",
				verb->done);
	else
		out_say("%lld %s %s", count, count == 1 ? "task" : "tasks",
				verb->done);
	return CLI_OK;
}

static long long
call_many(const CliCall *call, const Verb *verb)
{
	char *states = opt_array(call, "state");
	const char *values[MOST_VALUES] = {opt_value(call, "definition"),
									   opt_value(call, "queue"),
									   states,
									   opt_value(call, "older-than"),
									   opt_value(call, "limit"),
									   opt_given(call, "all") ? "t" : "f"};
	PQExpBufferData sql;
	PGresult *result;
	long long count;
	int nvalues;

	initPQExpBuffer(&sql);
	appendPQExpBuffer(
		&sql,
		"SELECT orchestrator.%s($1, $2, $3::pg_catalog.text[], $4::pg_catalog.interval, $5::pg_catalog.int4, $6::pg_catalog.bool",
		verb->many);
	nvalues = append_own(&sql, call, verb, values, 6);
	appendPQExpBufferChar(&sql, ')');
	result = db_query(sql.data, nvalues, values);
	count = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
	PQclear(result);
	termPQExpBuffer(&sql);
	free(states);
	return count;
}

/*
 * signal, approve, reject: a task, the name of a signal or step, one option.
 */
static CliExit
run_tell(CliCall *call)
{
	const char *verb = call->command->name;
	bool reject = strcmp(verb, "reject") == 0;
	const char *option = reject ? "reason" : "payload";
	bool given = opt_given(call, option);
	const char *done = reject						  ? "rejected"
					   : strcmp(verb, "approve") == 0 ? "approved"
													  : "sent";
	const char *values[3] = {call->arguments[0], call->arguments[1]};
	char *sql;

	opt_task(call, call->arguments[0]);
	values[2] = opt_value(call, option);
	if (!reject)
		values[2] = opt_json(call, values[2]);
	sql = psprintf("SELECT orchestrator.%s($1::pg_catalog.int8, $2%s)", verb,
				   !given	? ""
				   : reject ? ", $3::pg_catalog.text"
							: ", $3::pg_catalog.jsonb");
	PQclear(db_query(sql, given ? 3 : 2, values));
	free(sql);

	if (cli_settings.json)
		printf("{\"task\": %s, \"done\": \"%s\"}\n", values[0], done);
	else
		out_say("task %s: \"%s\" %s", values[0], values[1], done);
	return CLI_OK;
}
