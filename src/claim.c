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
#include "depth.h"
#include "event.h"
#include "fair.h"
#include "gather.h"
#include "guc.h"
#include "lane.h"
#include "limit.h"
#include "plan.h"

/* Claims of a definition that was never measured. */
#define FIRST_CLAIM 8

/* A claim should hold no more than this much work, in microseconds. */
#define CLAIM_WORTH INT64CONST(100000)

/* Tasks before, among which the copy of a definition is looked for. */
#define DEFINITIONS_KEPT 16

/* Locked rows after which a claim looks no further. */
#define MAX_SKIPPED 1000

/* Rows that one claim parks: about ten milliseconds' work. */
#define MAX_PARKED 1000

/* A walk over the ready rows of a lane. */
typedef struct LaneScan
{
	OrchExecutor *executor;
	OrchBatch *batch;
	OrchLeaf *live;
	OrchReadyScan *rows;
	OrchGather gather;
	OrchLimitMemo memo;
	int32 queue; /* or ORCH_PARKED, on ... */
	int64 limit;
	TimestampTz now;
	int64 upto;		   /* sort key of the last row that is out of the lane */
	int64 left_behind; /* of the first that is not */
	int64 turn;		   /* the last that was claimed, where tenants have some */
	int64 worth;	   /* microseconds of work that were taken */
	int steps;
	int skipped;
	int parked;
	bool limited; /* the row before was under limits */
	bool more;
} LaneScan;

typedef enum Asked
{
	ASK_GRANTED,
	ASK_SLEEP, /* nothing of this lane can run now */
	ASK_GONE   /* it was parked, or left behind */
} Asked;

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
static bool is_fast(const OrchBatch *batch, const OrchRow *row,
					const OrchDefinition *definition);
static int steps_of(const OrchRow *row, bool fast);
static int64 expected(const OrchDefinition *definition);
static bool take(OrchLeaf *live, OrchBatch *batch, OrchTask *task,
				 OrchRow *row, ItemPointer tid);
static void scan_lane(LaneScan *scan);
static bool visit(LaneScan *scan, OrchRow *row, ItemPointer tid);
static void leave_behind(LaneScan *scan, const OrchRow *row);
static void enter_claim(OrchExecutor *executor, OrchBatch *batch, bool fast);
static bool fits(const OrchBatch *batch, bool fast, const OrchLimit *limits,
				 int n);
static Asked ask(LaneScan *scan, OrchRow *row, ItemPointer tid,
				 OrchLimit *limits, int n);
static bool park(LaneScan *scan, const OrchRow *row, ItemPointer tid,
				 int64 limit);
static void keep_limits(OrchBatch *batch, OrchTask *task,
						const OrchLimit *limits, int n);
static bool is_followed(OrchLeaf *live, const OrchRow *row);
static void learn_queue(int lane, int32 queue, OrchBatch *batch);
static bool queue_is_paused(int lane, int32 queue);

int
orch_claim_batch(OrchExecutor *executor, int lane, OrchBatch *batch)
{
	LaneScan scan = {.executor = executor, .batch = batch};

	batch->lane = lane;
	batch->from = PG_INT64_MAX;
	batch->fast = false;
	batch->left_behind = batch->call = false;
	batch->last_definition = NULL;
	batch->held_up = false;
	batch->fair = false;
	batch->executor = executor;
	batch->nclaimed = batch->ntasks = 0;
	if (!orch_lane_begin(executor, lane, &scan.queue, &scan.limit,
						 &batch->from))
		return 0;
	scan.live = orch_heap_open_live();
	learn_queue(lane, scan.queue, batch);
	if (scan.queue != ORCH_PARKED && queue_is_paused(lane, scan.queue))
		orch_lane_end(executor, ORCH_MARK_LOWEST, false);
	else
		scan_lane(&scan);
	orch_heap_close(scan.live);
	batch->nclaimed = batch->ntasks;
	return batch->ntasks;
}

static void
learn_queue(int lane, int32 queue, OrchBatch *batch)
{
	const OrchQueue *info =
		queue == ORCH_PARKED ? NULL : orch_catalog_queue_info(queue);

	if (info == NULL)
		return;
	orch_shared->lanes[lane].weight = info->weight;
	batch->fair = info->tenant != (Datum) 0;
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
scan_lane(LaneScan *scan)
{
	OrchExecutor *executor = scan->executor;
	OrchBatch *batch = scan->batch;
	OrchRow row;
	ItemPointerData tid;

	scan->rows = scan->queue == ORCH_PARKED
					 ? orch_heap_parked_begin(scan->live, executor->owner,
											  scan->limit, batch->from)
					 : orch_heap_ready_begin(scan->live, executor->owner,
											 scan->queue, batch->from);
	scan->now = orch_clock();
	scan->upto = batch->from;
	scan->left_behind = PG_INT64_MAX;
	scan->turn = PG_INT64_MIN;
	orch_gather_begin(&scan->gather, executor, scan->now);
	while (scan->skipped < MAX_SKIPPED && scan->parked < MAX_PARKED &&
		   orch_heap_ready_next(scan->rows, &row, &tid))
	{
		if (!visit(scan, &row, &tid))
			break;
	}
	orch_heap_ready_end(scan->rows);
	if (batch->fair && batch->ntasks > 0)
		orch_fair_claimed(executor->owner, scan->queue, scan->turn);
	batch->left_behind = scan->left_behind != PG_INT64_MAX;
	scan->more |=
		orch_gather_end(&scan->gather, executor->dboid, executor->lane) ||
		scan->parked >= MAX_PARKED;
	orch_lane_end(executor,
				  Min(scan->upto, Min(scan->left_behind, scan->gather.mark)),
				  scan->more);
}

/*
 * Take a row, park it, or leave it behind.  False: go no further.
 */
static bool
visit(LaneScan *scan, OrchRow *row, ItemPointer tid)
{
	OrchBatch *batch = scan->batch;
	OrchTask *task = &batch->tasks[batch->ntasks];
	const OrchDefinition *definition =
		orch_claim_definition(batch, ORCH_INT32(row, ORCH_TASK_DEFINITION));
	bool fast = is_fast(batch, row, definition);
	int chain;
	OrchLimit limits[ORCH_MAX_LIMITS];
	int nlimits;
	int held = scan->executor->npermits;
	OrchGatherVerdict verdict;

	if (!row->nulls[ORCH_TASK_EXPIRE_AT] &&
		DatumGetTimestampTz(row->values[ORCH_TASK_EXPIRE_AT]) <= scan->now)
		return true; /* the supervisor fails it */
	if (definition != NULL && definition->kind > ORCH_KIND_UTILITY)
		return true; /* nothing to run */
	if (scan->limited && orch_heap_ready_held(scan->rows))
	{
		leave_behind(scan, row);
		return true; /* no need to ask for permits */
	}
	verdict = orch_gather_judge(&scan->gather, scan->rows, definition, row,
								fast, batch->ntasks);
	if (verdict == ORCH_GATHER_HELD)
		leave_behind(scan, row);
	if (verdict == ORCH_GATHER_HELD || verdict == ORCH_GATHER_LEAVE)
		return true;
	batch->call = scan->gather.definition != 0;
	chain = steps_of(row, fast);
	nlimits = orch_limit_gather(row, definition, &scan->memo, limits);
	scan->limited = nlimits > 0;
	scan->more = verdict == ORCH_GATHER_STOP ||
				 (!batch->call &&
				  is_full(batch, definition, fast, scan->steps + chain,
						  scan->worth + expected(definition) * chain)) ||
				 !fits(batch, fast, limits, nlimits);
	if (scan->more)
		return false;
	if (nlimits > 0 || scan->queue == ORCH_PARKED)
	{
		switch (ask(scan, row, tid, limits, nlimits))
		{
			case ASK_GRANTED:
				break;
			case ASK_SLEEP:
				return false;
			case ASK_GONE:
				return true;
		}
	}
	batch->fast = scan->executor->fast = fast;
	task->definition = definition;
	task->nlimits = 0;
	if (!take(scan->live, batch, task, row, tid))
	{
		orch_permit_return(limits, nlimits);
		orch_permit_release(scan->executor, held);
		leave_behind(scan, row);
		return true;
	}
	keep_limits(batch, task, limits, nlimits);
	scan->steps += chain;
	scan->worth += expected(definition) * chain;
	scan->upto = ORCH_INT64(row, ORCH_TASK_SORT_KEY);
	scan->turn =
		Max(scan->turn,
			orch_fair_turn(scan->upto, ORCH_INT32(row, ORCH_TASK_PRIORITY)));
	enter_claim(scan->executor, batch, fast);
	return true;
}

static void
leave_behind(LaneScan *scan, const OrchRow *row)
{
	scan->left_behind =
		Min(scan->left_behind, ORCH_INT64(row, ORCH_TASK_SORT_KEY));
	scan->skipped++;
}

/*
 * The claim of the last task, for everybody to see.
 */
static void
enter_claim(OrchExecutor *executor, OrchBatch *batch, bool fast)
{
	const OrchRow *row = &batch->tasks[batch->ntasks].row;
	OrchClaim *claim = &executor->claims[batch->ntasks];

	claim->task = ORCH_INT64(row, ORCH_TASK_ID);
	claim->epoch = ORCH_INT32(row, ORCH_TASK_EPOCH);
	pg_write_barrier();

	/*
	 * In the fast lane the row is deleted already: nobody may take the claim
	 * back.  Otherwise it can be once the claim is committed.
	 */
	pg_atomic_write_u32(&claim->state,
						fast ? ORCH_CLAIM_STARTED : ORCH_CLAIM_HELD);
	batch->ntasks++;
	pg_write_barrier();
	pg_atomic_write_u32(&executor->nclaims, batch->ntasks);
}

/*
 * Whether the permits of a row fit to those of the batch.  A batch of the slow
 * way must not hold a permit for a task that waits behind a long step: it may
 * be taken back, and whoever gets it needs the permit.  One call of a handler
 * is one step.
 */
static bool
fits(const OrchBatch *batch, bool fast, const OrchLimit *limits, int n)
{
	if (batch->ntasks == 0 || n == 0)
		return true;
	return fast || batch->call ? batch->executor->npermits + n <= ORCH_MAX_HELD
							   : orch_permit_is_held(limits, n);
}

/*
 * Ask for the permits of a row.  What is refused by a limit that not all rows
 * of the lane are under is parked on it, out of the way of the others; what
 * was parked and is held up by something else returns to its queue.
 */
static Asked
ask(LaneScan *scan, OrchRow *row, ItemPointer tid, OrchLimit *limits, int n)
{
	int lane = scan->batch->lane;
	int64 park_on = 0;

	if (scan->queue != ORCH_PARKED ||
		!orch_catalog_queue_paused(ORCH_INT32(row, ORCH_TASK_QUEUE)))
	{
		const OrchLimit *refused =
			orch_permit_take(scan->executor, lane, limits, n);

		if (refused == NULL)
			return ASK_GRANTED;
		if (orch_shared->lanes[lane].blocked_on == refused->id)
			return ASK_SLEEP;
		if (refused->kind == ORCH_LIMIT_DEFINITION ||
			refused->kind == ORCH_LIMIT_KEY)
			park_on = refused->id;
	}
	if ((park_on != 0 || scan->queue == ORCH_PARKED) &&
		park(scan, row, tid, park_on))
		scan->upto = ORCH_INT64(row, ORCH_TASK_SORT_KEY);
	else
		leave_behind(scan, row);
	return ASK_GONE;
}

/*
 * Move a row to those that wait for a limit, or (0) back to its queue.
 */
static bool
park(LaneScan *scan, const OrchRow *row, ItemPointer tid, int64 limit)
{
	OrchRow moved = *row;
	int32 owner = ORCH_INT32(row, ORCH_TASK_OWNER);
	int64 sort_key = ORCH_INT64(row, ORCH_TASK_SORT_KEY);

	if (limit == 0)
		orch_row_set_null(&moved, ORCH_TASK_PARKED_ON);
	else if (limit == scan->limit ||
			 orch_lane_find(scan->executor->owner_index, ORCH_PARKED, limit) <
				 0)
		return false; /* its lane would not be found again */
	else
		orch_row_set(&moved, ORCH_TASK_PARKED_ON, Int64GetDatum(limit));
	if (!orch_heap_update(scan->live, tid, &moved, false))
		return false;
	if (limit == 0)
		orch_event_ready(owner, GetUserId(), ORCH_INT32(row, ORCH_TASK_QUEUE),
						 sort_key);
	else
		orch_event_parked(owner, limit, sort_key);
	orch_depth_moved(owner, ORCH_INT32(row, ORCH_TASK_QUEUE), 1);
	scan->parked++;
	return true;
}

static void
keep_limits(OrchBatch *batch, OrchTask *task, const OrchLimit *limits, int n)
{
	task->tuned = 0;
	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		if (limits[i].adaptive > 0)
			task->tuned = limits[i].id;
	}
	task->nlimits = n;
	task->limits = MemoryContextAlloc(batch->context, n * sizeof(OrchLimit));
	memcpy(task->limits, limits, n * sizeof(OrchLimit));
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

	/* where tenants take turns, what is claimed goes before whoever is next */
	return worth > (fast || batch->fair ? orch_batch_time * INT64CONST(1000)
										: CLAIM_WORTH);
}

/*
 * The undo of a step is settled under the lock of a run that is final: its row
 * must not be locked before.
 */
static bool
is_fast(const OrchBatch *batch, const OrchRow *row,
		const OrchDefinition *definition)
{
	return orch_claim_is_fast(definition) && !batch->solo &&
		   (row->nulls[ORCH_TASK_STEP] ||
			ORCH_INT32(row, ORCH_TASK_STEP) >= 0);
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
	orch_claim_mark_running(&task->row, orch_clock());
	orch_row_set(&task->row, ORCH_TASK_WORKER, Int32GetDatum(MyProcPid));
	orch_row_set_null(&task->row, ORCH_TASK_PARKED_ON);
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

void
orch_claim_mark_running(OrchRow *row, TimestampTz at)
{
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_RUNNING]));
	orch_row_set(row, ORCH_TASK_ATTEMPT,
				 Int32GetDatum(ORCH_INT32(row, ORCH_TASK_ATTEMPT) + 1));
	orch_row_set(row, ORCH_TASK_EPOCH,
				 Int32GetDatum(ORCH_INT32(row, ORCH_TASK_EPOCH) + 1));
	orch_row_set(row, ORCH_TASK_STARTED_AT, TimestampTzGetDatum(at));
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
	if (known->key_path != NULL)
		copy->key = orch_json_path(known->key_path, batch->context);
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
