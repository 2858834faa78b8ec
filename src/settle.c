/*
 * settle.c
 *	  Writing what became of steps: the fourth station of the flow.
 *
 * A plain success is written here: the live row is deleted by the place the
 * claim left it at (in the fast lane it is gone already) and the finished
 * rows go to their partition together.  Whatever is not that (a failure, a
 * row that moved) goes the SQL way, orchestrator._settle_failed and
 * _settle_completed, in the same transaction.  What it means to the run whose
 * step it was is in workflow.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "depth.h"
#include "event.h"
#include "json.h"
#include "notice.h"
#include "settle.h"
#include "stats.h"
#include "workflow.h"

static void write_notes(const OrchTask *task);
static void write_note(const OrchTask *task, TimestampTz at, const char *event,
					   Datum detail);
static void write_alert(const OrchTask *task, const char *limit,
						int64 milliseconds);
static void settle_plain(OrchLeaf *live, OrchBatch *batch, OrchRuns *runs,
						 const int *numbers, int n);
static void finish(OrchTask *task);
static bool is_left_to_sql(const OrchTask *task);
static bool settle_by_sql(OrchLeaf *live, OrchBatch *batch, const int *numbers,
						  int n);
static bool remove_row(OrchLeaf *live, OrchTask *task);
static bool settle_completed(OrchTask *task);
static void settle_failed(OrchTask *task);
static void settle_suspended(OrchTask *task);
static void count_attempt(const OrchTask *task, bool completed);
static void announce_completed(const OrchTask *task);
static void make_finished(OrchTask *task);
static void write_finished(OrchRow **rows, int nrows);
static int compare_rows(const void *left, const void *right);

bool
orch_settle_tasks(OrchBatch *batch, const int *numbers, int n)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchRuns *runs;
	bool ours = false;

	PushActiveSnapshot(GetTransactionSnapshot());
	runs = orch_workflow_lock(batch, live, numbers, n);
	if (runs != NULL)
	{
		settle_plain(live, batch, runs, numbers, n);
		ours = settle_by_sql(live, batch, numbers, n);
		if (ours)
			orch_workflow_settle_by_sql(runs);
	}
	PopActiveSnapshot();
	orch_heap_close(live);
	return ours;
}

/*
 * First, so that SQL finds the rows of all that completed.
 */
static void
settle_plain(OrchLeaf *live, OrchBatch *batch, OrchRuns *runs,
			 const int *numbers, int n)
{
	OrchRow **rows =
		palloc((n + orch_workflow_count(runs)) * sizeof(OrchRow *));
	int nrows = 0;

	for (int i = 0; i < n; i++)
	{
		OrchTask *task = &batch->tasks[numbers[i]];

		CHECK_FOR_INTERRUPTS();
		write_notes(task);
		task->settled = orch_workflow_is_plain(task) &&
						orch_workflow_is_live(task) &&
						(batch->fast || remove_row(live, task));
		if (!task->settled)
			continue;
		finish(task);
		rows[nrows++] = &task->row;
	}
	orch_workflow_settle(live, runs, rows, &nrows);
	write_finished(rows, nrows);
	pfree(rows);
}

static void
finish(OrchTask *task)
{
	count_attempt(task, true);
	make_finished(task);
	announce_completed(task);
}

void
orch_settle_completed(OrchTask *const *tasks, int n)
{
	OrchRow **rows = palloc(n * sizeof(OrchRow *));

	for (int i = 0; i < n; i++)
	{
		finish(tasks[i]);
		rows[i] = &tasks[i]->row;
	}
	write_finished(rows, n);
	pfree(rows);
}

static bool
is_left_to_sql(const OrchTask *task)
{
	return !task->settled && (task->outcome == ORCH_OUTCOME_COMPLETED ||
							  task->outcome == ORCH_OUTCOME_FAILED);
}

static bool
settle_by_sql(OrchLeaf *live, OrchBatch *batch, const int *numbers, int n)
{
	bool ours = true;

	/* in the fast lane there is no row: make the running one that a claim of
	 * the other kind would have left, for SQL to judge; all of them first, for
	 * what becomes of one may depend on the others */
	for (int i = 0; batch->fast && i < n; i++)
	{
		OrchTask *task = &batch->tasks[numbers[i]];

		if (is_left_to_sql(task))
			orch_heap_insert(live, &task->row);
	}
	CommandCounterIncrement();
	for (int i = 0; i < n; i++)
	{
		OrchTask *task = &batch->tasks[numbers[i]];

		if (task->outcome == ORCH_OUTCOME_SUSPENDED)
			settle_suspended(task);
		if (!is_left_to_sql(task))
			continue;
		if (task->outcome == ORCH_OUTCOME_COMPLETED)
			ours &= settle_completed(task);
		else
			settle_failed(task);
		if (task->outcome != ORCH_OUTCOME_GONE)
			count_attempt(task, false); /* SQL counts the task */
	}
	return ours;
}

/*
 * What the step said, and that it took longer, or said nothing for longer, than
 * its definition would have it where that is only told (timeout_policy alert).
 */
static void
write_notes(const OrchTask *task)
{
	const OrchDefinition *definition = task->definition;
	ListCell *cell;

	foreach(cell, task->notices)
	{
		const OrchNotice *notice = lfirst(cell);

		write_note(task, notice->at, "notice", notice->detail);
	}
	if (definition == NULL || !definition->timeout_alerts)
		return;
	if (definition->timeout > 0 &&
		(task->finished_at - task->started_at) / 1000 >= definition->timeout)
		write_alert(task, "timeout_ms", definition->timeout);
	if (task->was_silent)
		write_alert(task, "response_timeout_ms", definition->response_timeout);
}

static void
write_alert(const OrchTask *task, const char *limit, int64 milliseconds)
{
	JsonbParseState *state;

	orch_json_begin(&state);
	orch_json_number(&state, limit, (double) milliseconds);
	orch_json_number(&state, "duration_ms",
					 (task->finished_at - task->started_at) / 1000.0);
	write_note(task, task->finished_at, "timeout", orch_json_end(&state));
}

static void
write_note(const OrchTask *task, TimestampTz at, const char *event,
		   Datum detail)
{
	NullableDatum args[7] = {
		{task->row.values[ORCH_TASK_ID], false},
		{task->row.values[ORCH_TASK_OWNER], false},
		{task->row.values[ORCH_TASK_ATTEMPT], false},
		{task->row.values[ORCH_TASK_EPOCH], false},
		{TimestampTzGetDatum(at), false},
		{CStringGetTextDatum(event), false},
		{detail, false},
	};
	bool isnull;

	orch_catalog_call(ORCH_FN_NOTE, 7, args, &isnull);
}

/*
 * Delete the row of a running task.  False: it is not where the claim left it.
 */
static bool
remove_row(OrchLeaf *live, OrchTask *task)
{
	return orch_heap_is_running(live, &task->tid,
								ORCH_INT64(&task->row, ORCH_TASK_ID),
								ORCH_INT32(&task->row, ORCH_TASK_EPOCH)) &&
		   orch_heap_delete(live, &task->tid, false);
}

/*
 * The row is not where the claim left it (paused, changed, or taken away), or
 * its run is not, or the step asked something of its run.
 */
static bool
settle_completed(OrchTask *task)
{
	NullableDatum args[6] = {
		{task->row.values[ORCH_TASK_ID], false},
		{task->row.values[ORCH_TASK_EPOCH], false},
		{task->output, !task->has_output},
		{TimestampTzGetDatum(task->started_at), false},
		{task->resources, !task->has_resources},
		{task->requests, task->requests == (Datum) 0},
	};
	bool isnull;
	Datum settled =
		orch_catalog_call(ORCH_FN_SETTLE_COMPLETED, 6, args, &isnull);

	if (!isnull && DatumGetBool(settled))
		return true;
	task->outcome = ORCH_OUTCOME_GONE;
	return false;
}

/*
 * A failed step left no effects: the transaction may go on without it.
 */
static void
settle_failed(OrchTask *task)
{
	NullableDatum args[6] = {
		{task->row.values[ORCH_TASK_ID], false},
		{task->row.values[ORCH_TASK_EPOCH], false},
		{CStringGetTextDatum(task->reason), false},
		{task->error, false},
		{TimestampTzGetDatum(task->started_at), false},
		{task->resources, !task->has_resources},
	};
	bool stale;

	(void) orch_catalog_call(ORCH_FN_SETTLE_FAILED, 6, args, &stale);
	if (stale)
		task->outcome = ORCH_OUTCOME_GONE;
}

/*
 * A procedure waits: nothing of it is left but what it committed.
 */
static void
settle_suspended(OrchTask *task)
{
	const OrchSuspension *suspension = task->suspension;
	bool sleeps = suspension->signal == NULL;
	NullableDatum args[7] = {
		{task->row.values[ORCH_TASK_ID], false},
		{task->row.values[ORCH_TASK_EPOCH], false},
		{TimestampTzGetDatum(task->started_at), false},
		{TimestampTzGetDatum(suspension->until), !sleeps},
		{(Datum) 0, true},
		{(Datum) 0, true},
		{TimestampTzGetDatum(suspension->timeout_at),
		 suspension->timeout_at == PG_INT64_MAX},
	};
	bool stale;

	if (!sleeps)
	{
		args[4].value = CStringGetTextDatum(suspension->signal);
		args[5].value = CStringGetTextDatum(suspension->memo);
		args[4].isnull = args[5].isnull = false;
	}
	(void) orch_catalog_call(ORCH_FN_SUSPEND, 7, args, &stale);
	if (stale)
		task->outcome = ORCH_OUTCOME_GONE;
}

/*
 * A task of the fast lane that was not started: its row comes back as it was,
 * but for its epoch.
 */
void
orch_settle_give_back(OrchBatch *batch, int number)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchRow *row = &batch->tasks[number].row;

	Assert(batch->fast);
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_PENDING]));
	orch_row_set(row, ORCH_TASK_ATTEMPT,
				 Int32GetDatum(ORCH_INT32(row, ORCH_TASK_ATTEMPT) - 1));
	orch_row_set_null(row, ORCH_TASK_WORKER);
	orch_row_set_null(row, ORCH_TASK_STARTED_AT);
	orch_heap_insert(live, row);
	/* a count that read the index before may see neither of the two rows */
	orch_depth_moved(ORCH_INT32(row, ORCH_TASK_OWNER),
					 ORCH_INT32(row, ORCH_TASK_QUEUE), 1);

	/* the claim raised the mark above it */
	orch_event_ready(ORCH_INT32(row, ORCH_TASK_OWNER), InvalidOid,
					 ORCH_INT32(row, ORCH_TASK_QUEUE),
					 ORCH_INT64(row, ORCH_TASK_SORT_KEY));
	orch_heap_close(live);
}

static void
count_attempt(const OrchTask *task, bool completed)
{
	orch_stats_attempt(&task->row, task->started_at, task->finished_at,
					   completed);
}

/*
 * The finished row of a plain success.
 */
static void
make_finished(OrchTask *task)
{
	OrchRow *row = &task->row;

	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_COMPLETED]));
	orch_row_set(row, ORCH_TASK_LIVE, BoolGetDatum(false));
	orch_row_set(row, ORCH_TASK_STARTED_AT,
				 TimestampTzGetDatum(task->started_at));
	orch_row_set(row, ORCH_TASK_FINISHED_AT,
				 TimestampTzGetDatum(task->finished_at));
	orch_row_set_null(row, ORCH_TASK_SORT_KEY);
	orch_row_set_null(row, ORCH_TASK_EXPIRE_AT);
	orch_row_set_null(row, ORCH_TASK_ERROR);
	if (task->has_output)
		orch_row_set(row, ORCH_TASK_OUTPUT, task->output);
	if (task->has_resources)
		orch_row_set(row, ORCH_TASK_RESOURCES, task->resources);
}

static int
compare_rows(const void *left, const void *right)
{
	int64 one = ORCH_INT64(*(OrchRow *const *) left, ORCH_TASK_ID);
	int64 other = ORCH_INT64(*(OrchRow *const *) right, ORCH_TASK_ID);

	return one < other ? -1 : one > other;
}

/*
 * Rows of one partition after another.
 */
static void
write_finished(OrchRow **rows, int nrows)
{
	int first = 0;

	qsort(rows, nrows, sizeof(OrchRow *), compare_rows);
	while (first < nrows)
	{
		int64 range =
			ORCH_INT64(rows[first], ORCH_TASK_ID) / ORCH_IDS_PER_PARTITION;
		int next = first + 1;
		OrchLeaf *leaf;

		while (next < nrows &&
			   ORCH_INT64(rows[next], ORCH_TASK_ID) / ORCH_IDS_PER_PARTITION ==
				   range)
			next++;
		leaf = orch_heap_open_finished(ORCH_INT64(rows[first], ORCH_TASK_ID));
		orch_heap_insert_many(leaf, &rows[first], next - first);
		orch_heap_close(leaf);
		first = next;
	}
}

/*
 * Before its successors are told to be created.
 */
static void
announce_completed(const OrchTask *task)
{
	orch_row_announce(&task->row, ORCH_EVENT_COMPLETED, ORCH_STATE_COMPLETED,
					  1, task->definition == NULL || task->definition->notify);
}
