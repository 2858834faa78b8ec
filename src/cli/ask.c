/*
 * ask.c
 *	  What watch asks the database: of tasks by their ids, of the steps of
 *	  runs, of items that run.  Events tell the rest.
 */
#include "postgres_fe.h"

#include "watch.h"

/* Of one statement. */
#define MOST_ASKED 1000

/* In the order of DETAILS. */
enum
{
	D_ID,
	D_PARENT,
	D_ROOT,
	D_NAME,
	D_STATE,
	D_PROGRESS,
	D_MESSAGE,
	D_ATTEMPT,
	D_MAX_ATTEMPTS,
	D_AHEAD,
	D_DUE,
	D_TOOK,
	D_KIND,
	D_TOTAL,
	D_DONE
};

#define DETAILS                                                                                                                           \
	"SELECT t.id, t.parent_id, coalesce(t.root_id, t.id),"                                                                                \
	" coalesce(v.name, CASE WHEN v.definition LIKE 'orchestrator.run.%' THEN pg_catalog.left(t.command, 100) ELSE v.definition END),"     \
	" v.state, v.progress, coalesce(v.error ->> 'message', nullif(pg_catalog.concat_ws(': ', v.stage, v.message), '')),"                  \
	" v.attempt, v.max_attempts, v.jobs_ahead,"                                                                                           \
	" extract(epoch FROM coalesce(v.estimated_start, CASE WHEN v.state = 'scheduled' THEN v.run_at END) - pg_catalog.clock_timestamp())," \
	" extract(epoch FROM v.duration),"                                                                                                    \
	" CASE WHEN t.remaining IS NULL THEN 0 WHEN d.kind IN ('map', 'batch') THEN 2 ELSE 1 END, b.total, b.done"                            \
	" FROM orchestrator.task t"                                                                                                           \
	" JOIN LATERAL (SELECT s.* FROM orchestrator.task_status s WHERE s.task_id = t.id) v ON true"                                         \
	" LEFT JOIN orchestrator.definition d ON d.id = t.definition"                                                                         \
	" LEFT JOIN LATERAL (SELECT x.total, x.completed + x.failed + x.cancelled AS done"                                                    \
	" FROM orchestrator.batch_status x WHERE x.batch_id = t.id) b ON d.kind = 'batch' WHERE "

#define OF_IDS "t.id = ANY ($1::pg_catalog.int8[])"

#define OF_ITEMS                                                                  \
	"t.parent_id = ANY ($1::pg_catalog.int8[]) AND t.live AND t.id > t.parent_id" \
	" AND v.state = 'running' LIMIT 1000"

/* Those that run first; a backlog may be long. */
#define OF_ALL                                                                                    \
	"t.id = ANY (ARRAY(SELECT x.id FROM orchestrator.task x WHERE x.live AND x.parent_id IS NULL" \
	" ORDER BY x.state IN ('running', 'waiting') DESC, x.id LIMIT 1000)) ORDER BY t.id"

/* In the order of STEPS. */
enum
{
	S_RUN,
	S_NUMBER,
	S_ID,
	S_NAME,
	S_STATE,
	S_PROGRESS,
	S_MESSAGE,
	S_ATTEMPT,
	S_MAX_ATTEMPTS,
	S_WEIGHT,
	S_DONE,
	S_TOTAL,
	S_TOOK,
	S_DUE,
	S_WAIT_FOR,
	S_KIND
};

#define STEPS                                                                                            \
	"SELECT v.run_id, v.number, v.task_id, v.step, v.state, v.progress,"                                 \
	" coalesce(v.error ->> 'message', nullif(pg_catalog.concat_ws(': ', v.stage, v.message), '')),"      \
	" v.attempt, v.max_attempts, v.weight, v.items_done, v.items_total, extract(epoch FROM v.duration)," \
	" extract(epoch FROM v.wakes_at - pg_catalog.clock_timestamp()), v.wait_for, v.kind"                 \
	" FROM orchestrator.step_status v WHERE v.run_id = ANY ($1::pg_catalog.int8[]) ORDER BY v.run_id, v.number"

static PGresult *ask(const char *sql, int nvalues, const char *const *values);
static void take_times(WatchTask *task, const PGresult *result, int row,
					   int took, int due);
static void take_details(WatchTask *task, const PGresult *result, int row);
static char *array_of(WatchTask *const *tasks, int ntasks);
static bool ask_details(const char *where, const char *ids);
static void take_step(const PGresult *result, int row);
static long long number_of(const PGresult *result, int row, int column);

/*
 * NULL: the connection is gone.
 */
static PGresult *
ask(const char *sql, int nvalues, const char *const *values)
{
	PGresult *result = db_try(sql, nvalues, values);

	if (PQresultStatus(result) == PGRES_TUPLES_OK ||
		PQresultStatus(result) == PGRES_COMMAND_OK)
		return result;
	if (!db_lost())
	{
		term_restore();
		out_result_error(result);
		cli_exit(CLI_FAILED);
	}
	PQclear(result);
	return NULL;
}

bool
watch_command(const char *sql)
{
	PGresult *result = ask(sql, 0, NULL);

	PQclear(result);
	return result != NULL;
}

static long long
number_of(const PGresult *result, int row, int column)
{
	return strtoll(PQgetvalue(result, row, column), NULL, 10);
}

static void
take_times(WatchTask *task, const PGresult *result, int row, int took, int due)
{
	double now = term_now();
	double passed = db_number(result, row, took, 0);

	task->due = PQgetisnull(result, row, due)
					? 0
					: now + db_number(result, row, due, 0);
	if (watch_is_final(task))
		task->took = passed;
	else if (watch_is(task, "running"))
		task->started = now - passed;
}

static void
take_details(WatchTask *task, const PGresult *result, int row)
{
	WatchKind kind = (WatchKind) number_of(result, row, D_KIND);
	const char *state = PQgetvalue(result, row, D_STATE);

	watch_set_text(&task->name, db_text(result, row, D_NAME));
	watch_set_text(&task->message, db_text(result, row, D_MESSAGE));
	watch_set_state(task, watch_state_name(state, strlen(state)));
	take_times(task, result, row, D_TOOK, D_DUE);
	task->root = number_of(result, row, D_ROOT);
	task->progress = db_number(result, row, D_PROGRESS, 0);
	task->attempt = (int) number_of(result, row, D_ATTEMPT);
	task->max_attempts = (int) number_of(result, row, D_MAX_ATTEMPTS);
	task->ahead = (long long) db_number(result, row, D_AHEAD, -1);
	if (!PQgetisnull(result, row, D_TOTAL))
	{
		task->items_total = number_of(result, row, D_TOTAL);
		task->items_done = number_of(result, row, D_DONE);
	}
	if (task->kind != kind && task->number == 0)
	{
		task->kind = kind;
		task->steps_stale = true;
	}
	task->known = true;
}

/*
 * Rows of tasks that are not known yet are new: at the top, or items.
 */
static bool
ask_details(const char *where, const char *ids)
{
	char *sql = psprintf("%s%s", DETAILS, where);
	PGresult *result = ask(sql, ids ? 1 : 0, &ids);

	free(sql);
	if (result == NULL)
		return false;
	for (int row = 0; row < PQntuples(result); row++)
	{
		WatchTask *task = watch_find(number_of(result, row, D_ID));
		WatchTask *up = NULL;

		if (task == NULL && !PQgetisnull(result, row, D_PARENT))
			up = watch_find(number_of(result, row, D_PARENT));
		if (task == NULL)
			task = watch_add(up, number_of(result, row, D_ID));
		take_details(task, result, row);
	}
	PQclear(result);
	return true;
}

static char *
array_of(WatchTask *const *tasks, int ntasks)
{
	PQExpBufferData array;

	initPQExpBuffer(&array);
	for (int i = 0; i < ntasks; i++)
		appendPQExpBuffer(&array, "%s%lld", i == 0 ? "{" : ",", tasks[i]->id);
	appendPQExpBufferChar(&array, '}');
	return array.data;
}

bool
watch_ask_all(void)
{
	return ask_details(OF_ALL, NULL);
}

bool
watch_ask_tasks(WatchTask *const *tasks, int ntasks)
{
	bool done = true;

	for (int i = 0; done && i < ntasks; i += MOST_ASKED)
	{
		char *ids = array_of(tasks + i, Min(ntasks - i, MOST_ASKED));

		done = ask_details(OF_IDS, ids);
		free(ids);
	}
	return done;
}

bool
watch_ask_items(WatchTask *const *maps, int nmaps)
{
	char *ids = array_of(maps, nmaps);
	bool done = ask_details(OF_ITEMS, ids);

	free(ids);
	return done;
}

static void
take_step(const PGresult *result, int row)
{
	WatchTask *run = watch_find(number_of(result, row, S_RUN));
	const char *state = PQgetvalue(result, row, S_STATE);
	const char *kind = db_text(result, row, S_KIND);
	WatchTask *step;

	if (run == NULL)
		return;
	step = watch_step(run, (int) number_of(result, row, S_NUMBER));
	if (step->id == 0 && !PQgetisnull(result, row, S_ID))
		step->steps_stale = true;
	watch_set_id(step, number_of(result, row, S_ID));
	step->kind = kind && strcmp(kind, "workflow") == 0 ? WATCH_RUN
				 : kind && strcmp(kind, "map") == 0	   ? WATCH_MAP
													   : WATCH_TASK;
	watch_set_text(&step->name, db_text(result, row, S_NAME));
	watch_set_text(&step->message, db_text(result, row, S_MESSAGE));
	watch_set_text(&step->wait_for, db_text(result, row, S_WAIT_FOR));
	watch_set_state(step, watch_state_name(state, strlen(state)));
	take_times(step, result, row, S_TOOK, S_DUE);
	step->progress = db_number(result, row, S_PROGRESS, 0);
	step->weight = db_number(result, row, S_WEIGHT, 1);
	step->attempt = (int) number_of(result, row, S_ATTEMPT);
	step->max_attempts = (int) number_of(result, row, S_MAX_ATTEMPTS);
	step->items_done = number_of(result, row, S_DONE);
	step->items_total = number_of(result, row, S_TOTAL);
	step->known = true;
}

bool
watch_ask_steps(WatchTask *const *runs, int nruns)
{
	char *ids = array_of(runs, nruns);
	const char *values[] = {ids};
	PGresult *result = ask(STEPS, 1, values);

	free(ids);
	if (result == NULL)
		return false;
	for (int row = 0; row < PQntuples(result); row++)
		take_step(result, row);
	PQclear(result);
	return true;
}
