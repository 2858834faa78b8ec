/*
 * settle.c
 *	  Writing what became of steps: the fourth station of the flow.
 *
 * A plain success is written here: the live row is deleted by the place the
 * claim left it at (in the fast lane it is gone already) and the finished
 * rows go to their partition together.  Whatever is not that (a failure, a
 * row that moved) goes the SQL way, orchestrator._settle_failed and
 * _settle_completed, in the same transaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "event.h"
#include "json.h"
#include "notice.h"
#include "settle.h"

#define IDS_PER_PARTITION INT64CONST(1000000)

static void write_notes(const OrchTask *task);
static void write_note(const OrchTask *task, TimestampTz at, const char *event,
					   Datum detail);
static bool settle_completed(OrchLeaf *live, OrchBatch *batch, OrchTask *task,
							 OrchRow **rows, int *nrows);
static bool settle_completed_by_sql(OrchTask *task);
static bool settle_failed(OrchLeaf *live, OrchBatch *batch, OrchTask *task);
static void make_finished(OrchTask *task);
static void write_finished(OrchRow **rows, int nrows);

bool
orch_settle_tasks(OrchBatch *batch, const int *numbers, int n)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchRow **rows = palloc(Max(n, 1) * sizeof(OrchRow *));
	int nrows = 0;
	bool ours = true;

	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < n; i++)
	{
		OrchTask *task = &batch->tasks[numbers[i]];

		CHECK_FOR_INTERRUPTS();
		write_notes(task);
		if (task->outcome == ORCH_OUTCOME_COMPLETED)
			ours &= settle_completed(live, batch, task, rows, &nrows);
		else if (task->outcome == ORCH_OUTCOME_FAILED)
			ours &= settle_failed(live, batch, task);
	}
	if (ours)
		write_finished(rows, nrows);
	PopActiveSnapshot();
	orch_heap_close(live);
	pfree(rows);
	return ours;
}

/*
 * What the step said, and that it took longer than its definition would have
 * it where that is only told (timeout_policy alert).
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
	if (definition != NULL && definition->timeout_alerts &&
		definition->timeout > 0 &&
		(task->finished_at - task->started_at) / 1000 >= definition->timeout)
	{
		JsonbParseState *state;

		orch_json_begin(&state);
		orch_json_number(&state, "timeout_ms", (double) definition->timeout);
		orch_json_number(&state, "duration_ms",
						 (task->finished_at - task->started_at) / 1000.0);
		write_note(task, task->finished_at, "timeout", orch_json_end(&state));
	}
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

static bool
settle_completed(OrchLeaf *live, OrchBatch *batch, OrchTask *task,
				 OrchRow **rows, int *nrows)
{
	if (!batch->fast &&
		!(orch_heap_is_running(live, &task->tid,
							   ORCH_INT64(&task->row, ORCH_TASK_ID),
							   ORCH_INT32(&task->row, ORCH_TASK_EPOCH)) &&
		  orch_heap_delete(live, &task->tid)))
		return settle_completed_by_sql(task);

	make_finished(task);
	rows[(*nrows)++] = &task->row;
	return true;
}

/*
 * The row is not where the claim left it: paused, changed, or taken away.
 */
static bool
settle_completed_by_sql(OrchTask *task)
{
	NullableDatum args[5] = {
		{task->row.values[ORCH_TASK_ID], false},
		{task->row.values[ORCH_TASK_EPOCH], false},
		{task->output, !task->has_output},
		{TimestampTzGetDatum(task->started_at), false},
		{task->resources, !task->has_resources},
	};
	bool isnull;
	Datum settled =
		orch_catalog_call(ORCH_FN_SETTLE_COMPLETED, 5, args, &isnull);

	if (!isnull && DatumGetBool(settled))
		return true;
	task->outcome = ORCH_OUTCOME_GONE;
	return false;
}

/*
 * In the fast lane the row has left the leaf: it comes back as the running
 * row that a claim of the other kind would have left, for SQL to judge.
 */
static bool
settle_failed(OrchLeaf *live, OrchBatch *batch, OrchTask *task)
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

	if (batch->fast)
	{
		orch_heap_insert(live, &task->row);
		CommandCounterIncrement();
	}
	(void) orch_catalog_call(ORCH_FN_SETTLE_FAILED, 6, args, &stale);
	if (stale)
		task->outcome = ORCH_OUTCOME_GONE;

	/* a failed step left no effects: the transaction may go on without it */
	return true;
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

	/* the claim raised the mark above it */
	orch_event_ready(ORCH_INT32(row, ORCH_TASK_OWNER), InvalidOid,
					 ORCH_INT32(row, ORCH_TASK_QUEUE),
					 ORCH_INT64(row, ORCH_TASK_SORT_KEY));
	orch_heap_close(live);
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

/*
 * Rows of one partition after another; ids of a batch are nearly in order.
 */
static void
write_finished(OrchRow **rows, int nrows)
{
	int first = 0;

	while (first < nrows)
	{
		int64 range =
			ORCH_INT64(rows[first], ORCH_TASK_ID) / IDS_PER_PARTITION;
		int next = first + 1;
		OrchLeaf *leaf;

		while (next < nrows &&
			   ORCH_INT64(rows[next], ORCH_TASK_ID) / IDS_PER_PARTITION ==
				   range)
			next++;
		leaf = orch_heap_open_finished(ORCH_INT64(rows[first], ORCH_TASK_ID));
		orch_heap_insert_many(leaf, &rows[first], next - first);
		orch_heap_close(leaf);
		first = next;
	}
}

void
orch_settle_announce(const OrchBatch *batch, const int *numbers, int n)
{
	bool heard = orch_event_heard();

	for (int i = 0; i < n; i++)
	{
		const OrchTask *task = &batch->tasks[numbers[i]];
		int64 id = ORCH_INT64(&task->row, ORCH_TASK_ID);

		if (task->outcome != ORCH_OUTCOME_COMPLETED)
			continue;
		orch_event_wake_waiters(id);
		if (heard && (task->definition == NULL || task->definition->notify))
		{
			OrchEvent event = {
				.task = id,
				.root = task->row.nulls[ORCH_TASK_ROOT_ID]
							? id
							: ORCH_INT64(&task->row, ORCH_TASK_ROOT_ID),
				.parent = task->row.nulls[ORCH_TASK_PARENT_ID]
							  ? 0
							  : ORCH_INT64(&task->row, ORCH_TASK_PARENT_ID),
				.progress = 1,
				.attempt = ORCH_INT32(&task->row, ORCH_TASK_ATTEMPT),
				.event = ORCH_EVENT_COMPLETED,
				.state = ORCH_STATE_COMPLETED,
			};

			orch_event_push(&event);
		}
	}
}
