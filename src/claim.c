/*
 * claim.c
 *	  Taking ready tasks: the second station of the flow.
 *
 * Two ways, decided by the first ready row.  A definition whose steps were
 * measured to be short goes the fast lane: the row is deleted here, in the
 * transaction that runs the step and writes the finished row, and a roll-back
 * brings it back by itself.  Any other row is updated to running, which the
 * caller commits before anything runs.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "claim.h"
#include "compat.h"
#include "gather.h"
#include "guc.h"
#include "lane.h"
#include "plan.h"

/* Claims of a definition that was never measured. */
#define FIRST_CLAIM 8

/* A claim should hold no more than this much work, in microseconds. */
#define CLAIM_WORTH INT64CONST(100000)

/* Tasks before, among which the copy of a definition is looked for. */
#define DEFINITIONS_KEPT 16

/* Locked rows after which a claim looks no further. */
#define MAX_SKIPPED 1000

/* Mean run time of a definition's steps, as this executor saw it. */
typedef struct Measure
{
	int32 definition;
	int32 samples;
	double mean; /* microseconds */
	bool writes; /* a step of it had a transaction id */
} Measure;

static HTAB *measures = NULL;

static Measure *find_measure(int32 definition);
static bool is_full(const OrchBatch *batch, const OrchDefinition *definition,
					bool fast, int steps, int64 worth);
static bool is_undo(const OrchRow *row);
static int steps_of(const OrchRow *row, bool fast);
static int64 expected(const OrchDefinition *definition);
static bool take(OrchLeaf *live, OrchBatch *batch, OrchTask *task,
				 OrchRow *row, ItemPointer tid);
static void scan_lane(OrchExecutor *executor, OrchLeaf *live, int32 queue,
					  OrchBatch *batch);
static bool is_followed(OrchLeaf *live, const OrchRow *row);
static void mark_running(OrchRow *row);
static bool queue_is_paused(int lane, int32 queue);

int
orch_claim_batch(OrchExecutor *executor, int lane, OrchBatch *batch)
{
	OrchLeaf *live;
	int32 queue;

	batch->lane = lane;
	batch->from = PG_INT64_MAX;
	batch->fast = false;
	batch->left_behind = batch->call = false;
	batch->last_definition = NULL;
	batch->executor = executor;
	batch->nclaimed = batch->ntasks = 0;
	if (!orch_lane_begin(executor, lane, &queue, &batch->from))
		return 0;
	live = orch_heap_open_live();
	if (queue_is_paused(lane, queue))
		orch_lane_end(executor, ORCH_MARK_LOWEST, false);
	else
		scan_lane(executor, live, queue, batch);
	orch_heap_close(live);
	batch->nclaimed = batch->ntasks;
	return batch->ntasks;
}

static bool
queue_is_paused(int lane, int32 queue)
{
	if (!orch_catalog_queue_paused(queue))
		return false;
	orch_lane_set_paused(lane, true);
	if (orch_catalog_queue_paused(queue))
		return true;
	orch_lane_set_paused(lane, false);
	return false;
}

/*
 * Walk the ready rows from the mark and take what can be had.  Rows that are
 * locked by others are left behind, and the mark with them.
 */
static void
scan_lane(OrchExecutor *executor, OrchLeaf *live, int32 queue,
		  OrchBatch *batch)
{
	OrchReadyScan *scan =
		orch_heap_ready_begin(live, executor->owner, queue, batch->from);
	TimestampTz now = orch_clock();
	int64 upto = batch->from;
	int64 left_behind = PG_INT64_MAX;
	int64 worth = 0;
	int steps = 0;
	int skipped = 0;
	bool more = false;
	OrchGather gather;
	OrchRow row;
	ItemPointerData tid;

	orch_gather_begin(&gather, executor, now);
	while (orch_heap_ready_next(scan, &row, &tid))
	{
		OrchTask *task = &batch->tasks[batch->ntasks];
		int64 sort_key = ORCH_INT64(&row, ORCH_TASK_SORT_KEY);
		const OrchDefinition *definition = orch_claim_definition(
			batch, ORCH_INT32(&row, ORCH_TASK_DEFINITION));
		bool fast =
			orch_claim_is_fast(definition) && !batch->solo && !is_undo(&row);
		OrchGatherVerdict verdict;
		int chain;

		if (!row.nulls[ORCH_TASK_EXPIRE_AT] &&
			DatumGetTimestampTz(row.values[ORCH_TASK_EXPIRE_AT]) <= now)
			continue; /* the supervisor fails it */
		if (definition != NULL && definition->kind > ORCH_KIND_UTILITY)
			continue; /* nothing to run */
		verdict = orch_gather_judge(&gather, scan, definition, &row, fast,
									batch->ntasks);
		if (verdict == ORCH_GATHER_LEAVE)
			continue;
		if (verdict == ORCH_GATHER_HELD)
		{
			left_behind = Min(left_behind, sort_key);
			skipped++;
			continue;
		}
		batch->call = gather.definition != 0;
		chain = steps_of(&row, fast);
		more = verdict == ORCH_GATHER_STOP ||
			   (!batch->call && is_full(batch, definition, fast, steps + chain,
										worth + expected(definition) * chain));
		if (more || skipped >= MAX_SKIPPED)
			break;
		batch->fast = executor->fast = fast;
		task->definition = definition;
		if (!take(live, batch, task, &row, &tid))
		{
			left_behind = Min(left_behind, sort_key);
			skipped++;
			continue;
		}
		steps += chain;
		worth += expected(definition) * chain;
		executor->claims[batch->ntasks].task =
			ORCH_INT64(&task->row, ORCH_TASK_ID);
		executor->claims[batch->ntasks].epoch =
			ORCH_INT32(&task->row, ORCH_TASK_EPOCH);
		pg_write_barrier();

		/*
		 * In the fast lane the row is deleted already: nobody may take the
		 * claim back.  Otherwise it can be once the claim is committed.
		 */
		pg_atomic_write_u32(&executor->claims[batch->ntasks].state,
							fast ? ORCH_CLAIM_STARTED : ORCH_CLAIM_HELD);
		batch->ntasks++;
		pg_write_barrier();
		pg_atomic_write_u32(&executor->nclaims, batch->ntasks);
		upto = sort_key;
	}
	orch_heap_ready_end(scan);
	batch->left_behind = left_behind != PG_INT64_MAX;
	more |= orch_gather_end(&gather, executor->dboid, executor->lane);
	orch_lane_end(executor, Min(upto, Min(left_behind, gather.mark)), more);
}

/*
 * Whether a batch that holds something should leave the next row to others.
 */
static bool
is_full(const OrchBatch *batch, const OrchDefinition *definition, bool fast,
		int steps, int64 worth)
{
	if (batch->ntasks == 0)
		return false;
	if (batch->ntasks >= orch_batch_size || fast != batch->fast)
		return true;
	if (fast && steps > ORCH_WRITTEN_STEPS &&
		find_measure(definition->id)->writes)
		return true;
	return worth > (fast ? orch_batch_time * INT64CONST(1000) : CLAIM_WORTH);
}

/*
 * The undo of a step, which is settled under the lock of a run that is final:
 * its row must not be locked before.
 */
static bool
is_undo(const OrchRow *row)
{
	return !row->nulls[ORCH_TASK_STEP] && ORCH_INT32(row, ORCH_TASK_STEP) < 0;
}

/*
 * How many steps a claimed row may well be, when its run goes straight on.
 */
static int
steps_of(const OrchRow *row, bool fast)
{
	if (!fast || row->nulls[ORCH_TASK_PLAN] || row->nulls[ORCH_TASK_STEP] ||
		!row->nulls[ORCH_TASK_ITEM])
		return 1;
	return orch_plan_chain(ORCH_INT32(row, ORCH_TASK_PLAN),
						   ORCH_INT32(row, ORCH_TASK_STEP),
						   ORCH_WRITTEN_STEPS);
}

/*
 * Take one row: false when somebody else has it.
 */
static bool
take(OrchLeaf *live, OrchBatch *batch, OrchTask *task, OrchRow *row,
	 ItemPointer tid)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	bool taken;

	orch_row_copy(&task->row, row);
	mark_running(&task->row);
	task->tid = *tid;
	task->outcome = ORCH_OUTCOME_NONE;
	task->has_output = false;
	task->has_resources = false;
	task->successor = 0;
	task->may_go_on = batch->fast && is_followed(live, row);
	task->notices = NIL;
	if (batch->fast)
		taken = orch_heap_delete(live, &task->tid, false);
	else
		taken = orch_heap_update(live, &task->tid, &task->row, false);
	if (!taken)
	{
		for (int i = ORCH_TASK_NAME; i < ORCH_TASK_COLUMNS; i++)
		{
			if (!task->row.nulls[i])
				pfree(DatumGetPointer(task->row.values[i]));
		}
	}
	MemoryContextSwitchTo(old);
	return taken;
}

/*
 * Whether a row is a step of a run whose steps were all made in the order of
 * its plan (workflow.h).
 */
static bool
is_followed(OrchLeaf *live, const OrchRow *row)
{
	return !row->nulls[ORCH_TASK_PLAN] && row->nulls[ORCH_TASK_ITEM] &&
		   !row->nulls[ORCH_TASK_ROOT_ID] &&
		   ORCH_INT64(row, ORCH_TASK_ROOT_ID) ==
			   ORCH_INT64(row, ORCH_TASK_PARENT_ID) &&
		   orch_heap_epoch(live, ORCH_INT64(row, ORCH_TASK_ROOT_ID)) <= 0;
}

static void
mark_running(OrchRow *row)
{
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_RUNNING]));
	orch_row_set(row, ORCH_TASK_ATTEMPT,
				 Int32GetDatum(ORCH_INT32(row, ORCH_TASK_ATTEMPT) + 1));
	orch_row_set(row, ORCH_TASK_EPOCH,
				 Int32GetDatum(ORCH_INT32(row, ORCH_TASK_EPOCH) + 1));
	orch_row_set(row, ORCH_TASK_STARTED_AT, TimestampTzGetDatum(orch_clock()));
	orch_row_set(row, ORCH_TASK_WORKER, Int32GetDatum(MyProcPid));
}

bool
orch_claim_start(OrchExecutor *executor, int number)
{
	uint32 state = ORCH_CLAIM_WAITING;

	if (pg_atomic_compare_exchange_u32(&executor->claims[number].state, &state,
									   ORCH_CLAIM_STARTED))
		return true;
	return state == ORCH_CLAIM_STARTED;
}

void
orch_claim_committed(OrchExecutor *executor, int n)
{
	for (int i = 0; i < n; i++)
		pg_atomic_write_u32(&executor->claims[i].state, ORCH_CLAIM_WAITING);
}

void
orch_claim_free(OrchExecutor *executor, int number)
{
	pg_atomic_write_u32(&executor->claims[number].state, ORCH_CLAIM_FREE);
}

/*
 * The session's memory of a definition may be dropped while a step runs: a
 * batch keeps its own copy, one for those that take turns.
 */
const OrchDefinition *
orch_claim_definition(OrchBatch *batch, int32 id)
{
	const OrchDefinition *known;
	OrchDefinition *copy;
	MemoryContext old;

	if (batch->last_definition != NULL && batch->last_definition->id == id)
		return batch->last_definition;
	for (int i = batch->ntasks - 1;
		 i >= Max(batch->ntasks - DEFINITIONS_KEPT, 0); i--)
	{
		if (batch->tasks[i].definition != NULL &&
			batch->tasks[i].definition->id == id)
			return batch->tasks[i].definition;
	}
	known = orch_catalog_definition(id);
	if (known == NULL)
		return NULL;
	old = MemoryContextSwitchTo(batch->context);
	copy = palloc(sizeof(OrchDefinition));
	*copy = *known;
	copy->name = pstrdup(known->name);
	if (known->handler != NULL)
		copy->handler = pstrdup(known->handler);
	if (known->handler_owner != NULL)
		copy->handler_owner = pstrdup(known->handler_owner);
	MemoryContextSwitchTo(old);
	return batch->last_definition = copy;
}

static Measure *
find_measure(int32 definition)
{
	Measure *measure;
	bool found;

	if (measures == NULL)
	{
		HASHCTL control = {.keysize = sizeof(int32),
						   .entrysize = sizeof(Measure),
						   .hcxt = TopMemoryContext};

		measures = hash_create("orchestrator measures", 64, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	measure = hash_search(measures, &definition, HASH_ENTER, &found);
	if (!found)
	{
		measure->samples = 0;
		measure->mean = 0;
		measure->writes = false;
	}
	return measure;
}

/*
 * A mean that forgets: each new step weighs an eighth, as in TCP's estimate of
 * the round trip (RFC 6298), and a slow one at once sends its definition out
 * of the fast lane until it is short again.
 */
void
orch_claim_measured(int32 definition, int64 duration, bool wrote)
{
	Measure *measure = find_measure(definition);

	if (measure->samples == 0)
		measure->mean = (double) duration;
	else
		measure->mean += ((double) duration - measure->mean) / 8;
	if (measure->samples < INT_MAX)
		measure->samples++;
	measure->writes |= wrote;
}

bool
orch_claim_is_fast(const OrchDefinition *definition)
{
	Measure *measure;

	if (!orch_fast_lane || definition == NULL ||
		definition->kind > ORCH_KIND_SQL)
		return false;
	measure = find_measure(definition->id);
	return measure->samples > 0 &&
		   measure->mean < orch_fast_lane_limit * 1000.0;
}

bool
orch_claim_is_slow(const OrchTask *task)
{
	Measure *measure;

	if (task->definition == NULL)
		return false;
	measure = find_measure(task->definition->id);
	return measure->samples == 0 || measure->mean > orch_batch_time * 1000.0;
}

/*
 * Run time to expect of a step, in microseconds.
 */
static int64
expected(const OrchDefinition *definition)
{
	Measure *measure;

	if (definition == NULL || definition->kind > ORCH_KIND_SQL)
		return CLAIM_WORTH;
	measure = find_measure(definition->id);
	if (measure->samples == 0)
		return CLAIM_WORTH / FIRST_CLAIM;
	return (int64) measure->mean;
}
