/*
 * views.c
 *	  Views as tables: queues, schedules, definitions, workers.
 */
#include "postgres_fe.h"

#include "cli.h"

static CliExit run_queues(CliCall *call);
static CliExit run_schedules(CliCall *call);
static CliExit run_definitions(CliCall *call);
static CliExit run_workers(CliCall *call);

static const OutColumn queue_columns[] = {
	{"QUEUE", OUT_TEXT, "v.queue"},
	{"OWNER", OUT_TEXT, "v.owner"},
	{"", OUT_STATE, "CASE WHEN v.paused THEN 'paused' END"},
	{"PENDING", OUT_NUMBER, "v.pending"},
	{"RUNNING", OUT_NUMBER, "v.running"},
	{"SCHEDULED", OUT_NUMBER, "v.scheduled"},
	{"WAITING", OUT_NUMBER, "v.waiting"},
	{"HELD", OUT_NUMBER, "v.held"},
	{"PARKED", OUT_NUMBER, "v.parked"},
	{"LIMIT", OUT_NUMBER,
	 "CASE WHEN v.effective_max_running < v.max_running THEN v.effective_max_running || ' of ' || v.max_running ELSE v.max_running::text END"},
	{"RATE", OUT_NUMBER, "v.rate_limit || ' / ' || v.rate_period"},
	{"OLDEST", OUT_SECONDS, "extract(epoch FROM v.oldest_age)"},
};

static const OutView queue_view = {
	"orchestrator.queue_status v WHERE $1::pg_catalog.text IS NULL OR v.queue = $1 ORDER BY v.queue, v.owner",
	NULL, queue_columns, lengthof(queue_columns), "no queues"};

const CliCommand cmd_queues = {
	"queues", "[QUEUE]", "Show queues: what waits in them, their limits",
	NULL,	  0,		 1,
	NULL,	  run_queues};

static const OutColumn schedule_columns[] = {
	{"SCHEDULE", OUT_TEXT, "v.schedule"},
	{"OWNER", OUT_TEXT, "v.owner"},
	{"STATE", OUT_STATE, "v.state"},
	{"DEFINITION", OUT_TEXT, "v.definition"},
	{"WHEN", OUT_TEXT, "coalesce(v.cron, v.at::text)"},
	{"ZONE", OUT_TEXT, "v.timezone"},
	{"NEXT", OUT_TIME, "extract(epoch FROM v.next_at)"},
	{"LAST", OUT_TIME, "extract(epoch FROM v.last_at)"},
	{"LAST STATE", OUT_STATE, "v.last_state"},
	{"PROBLEM", OUT_TEXT, "v.problem"},
};

static const OutView schedule_view = {
	"orchestrator.schedule_status v WHERE $1::pg_catalog.text IS NULL OR v.schedule = $1 ORDER BY v.schedule, v.owner",
	NULL, schedule_columns, lengthof(schedule_columns), "no schedules"};

const CliCommand cmd_schedules = {
	"schedules",
	"[SCHEDULE]",
	"Show schedules: when they are due, how they do",
	NULL,
	0,
	1,
	NULL,
	run_schedules};

static const OutColumn definition_columns[] = {
	{"DEFINITION", OUT_TEXT, "v.definition"},
	{"VERSION", OUT_NUMBER, "v.version"},
	{"OWNER", OUT_TEXT, "v.owner"},
	{"KIND", OUT_TEXT, "v.kind"},
	{"QUEUE", OUT_TEXT, "v.queue"},
	{"PENDING", OUT_NUMBER, "v.pending"},
	{"RUNNING", OUT_NUMBER, "v.running"},
	{"WAITING", OUT_NUMBER, "v.waiting"},
	{"LIMIT", OUT_NUMBER, "v.max_running"},
	{"ATTEMPTS", OUT_NUMBER, "v.max_attempts"},
	{"TIMEOUT", OUT_SECONDS, "extract(epoch FROM v.timeout)"},
	{"HANDLER", OUT_TEXT, "coalesce(v.handler, v.description)"},
};

/* Those that begin so are of one-off tasks and steps. */
static const OutView definition_view = {
	"orchestrator.definition_status v"
	" WHERE CASE WHEN $1::pg_catalog.text IS NULL THEN v.definition NOT LIKE 'orchestrator.%' ELSE v.definition = $1 END"
	" AND (v.is_current OR $2::pg_catalog.bool) ORDER BY v.definition, v.owner, v.version",
	NULL, definition_columns, lengthof(definition_columns), "no definitions"};

static const CliOption definition_options[] = {
	{"all-versions", 'a', NULL, "also versions that are no longer current"},
	{NULL},
};

const CliCommand cmd_definitions = {"definitions",
									"[DEFINITION]",
									"Show definitions of tasks and workflows",
									NULL,
									0,
									1,
									definition_options,
									run_definitions};

static const OutColumn worker_columns[] = {
	{"WORKER", OUT_TEXT, "coalesce(v.worker, v.pid::text)"},
	{"KIND", OUT_TEXT, "v.kind"},
	{"ROLE", OUT_TEXT, "v.role"},
	{"STATE", OUT_STATE, "v.state"},
	{"FOR", OUT_SECONDS,
	 "extract(epoch FROM pg_catalog.clock_timestamp() - v.since)"},
	{"TASK", OUT_NUMBER, "v.task_id"},
	{"NAME", OUT_TEXT, "coalesce(t.name, t.definition)"},
	{"DONE", OUT_PERCENT,
	 "CASE WHEN v.task_id IS NOT NULL THEN v.progress END"},
	{"ATTEMPT", OUT_NUMBER, "v.attempt"},
	{"CLAIMED", OUT_NUMBER, "v.claimed"},
	{"MESSAGE", OUT_TEXT, "v.message"},
};

static const OutView worker_view = {
	"orchestrator.worker_status v LEFT JOIN orchestrator.task_status t ON t.task_id = v.task_id ORDER BY v.kind, v.role, v.pid",
	NULL, worker_columns, lengthof(worker_columns),
	"no workers: is the library preloaded? See orchestrator doctor"};

const CliCommand cmd_workers = {
	"workers", NULL,	   "Show worker processes and what they do now",
	NULL,	   0,		   0,
	NULL,	   run_workers};

static CliExit
run_queues(CliCall *call)
{
	const char *values[] = {call->narguments > 0 ? call->arguments[0] : NULL};

	out_view(&queue_view, lengthof(values), values);
	return CLI_OK;
}

static CliExit
run_schedules(CliCall *call)
{
	const char *values[] = {call->narguments > 0 ? call->arguments[0] : NULL};

	out_view(&schedule_view, lengthof(values), values);
	return CLI_OK;
}

static CliExit
run_definitions(CliCall *call)
{
	const char *values[] = {call->narguments > 0 ? call->arguments[0] : NULL,
							opt_given(call, "all-versions") ? "t" : "f"};

	out_view(&definition_view, lengthof(values), values);
	return CLI_OK;
}

static CliExit
run_workers(CliCall *call)
{
	out_view(&worker_view, 0, NULL);
	return CLI_OK;
}
