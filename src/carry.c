/*
 * carry.c
 *	  Claims and completions of calls, for the courier.
 *
 * What is plain is done here, row by row and without the executor, as lease.c
 * does it for remote workers; a call has no lease, but the courier's process
 * id.  The rest is SQL (sql/59_courier.sql), whose functions call these first.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "carry.h"
#include "catalog.h"
#include "collect.h"
#include "event.h"
#include "fair.h"
#include "remote.h"
#include "settle.h"

/* Rows that limits or others keep from a claim, until it gives up. */
#define MAX_PASSED 1000

/* So long (microseconds) the courier looks at rows of a lane, whose paths may be
 * slow; and one of them may take no longer than that. */
#define LONGEST_LOOK (1000 * INT64CONST(1000))
#define LONGEST_ROW	 (3000 * INT64CONST(1000))

/*
 * Where the claims of the lane that was claimed from last go on: what comes
 * before is dead.  The courier forgets it when it is told that a call is ready,
 * for that one may stand before.
 */
static struct
{
	int32 owner;
	int32 queue;
	int64 from;
} mark = {.from = PG_INT64_MIN};

/* Of the claims since orch_carry_begin(). */
static int64 wait_left = -1;
static bool held_up = false;
static int64 looks_since = -1; /* orch_monotonic() */
static int64 looks_at = 0;	   /* the task of a row; 0: none */
static int64 row_since = 0;

/* Columns of _claim_call_rows(). */
enum
{
	CLAIMED_TASK_ID,
	CLAIMED_EPOCH,
	CLAIMED_DEFINITION,
	CLAIMED_INPUT,
	CLAIMED_DEADLINE,
	CLAIMED_TRACEPARENT,
	CLAIMED_ITERATION,
	CLAIMED_PERMITS,
	CLAIMED_PARCEL,
	CLAIMED_COLUMNS
};

typedef struct Claim
{
	Datum worker;
	int wanted;
	OrchLeaf *live;
	OrchReadyScan *rows;
	ReturnSetInfo *result;
	TimestampTz now;
	OrchLimitMemo memo;
	OrchCollect collect;
	int64 turn;
	int taken;
	int passed;
} Claim;

PG_FUNCTION_INFO_V1(orchestrator_claim_call_rows);
PG_FUNCTION_INFO_V1(orchestrator_complete_calls);

static bool goes_on(const Claim *claim);
static void note_what_is_left(const Claim *claim);
static bool claim_row(Claim *claim, OrchRow *row, ItemPointer tid);
static bool claim_kept(Claim *claim, OrchLoading *loading);
static bool take(Claim *claim, OrchRow *row, ItemPointer tid, bool mine,
				 OrchLoading *loading, int size);
static void move_mark(const Claim *claim, const OrchRow *row);
static void give_out(Claim *claim, const OrchRow *row, const int64 *permits,
					 int npermits, int32 parcel);
static OrchTask *complete(OrchLeaf *live, int64 id, int32 epoch,
						  TimestampTz now);
static bool is_plain(const OrchRow *row, int32 epoch,
					 const OrchDefinition *definition);

void
orch_carry_forget(void)
{
	mark.from = PG_INT64_MIN;
}

void
orch_carry_begin(void)
{
	wait_left = -1;
	held_up = false;
	looks_since = 0;
	looks_at = 0;
}

int64
orch_carry_left(void)
{
	return held_up ? -1 : wait_left;
}

int64
orch_carry_stuck(void)
{
	return looks_at != 0 && orch_monotonic() - row_since > LONGEST_ROW
			   ? looks_at
			   : 0;
}

/*
 * _claim_call_rows(worker, queue, owner, max_rows): the oldest ready calls of
 * one lane that nobody has locked and that limits have room for; and those that
 * fill a parcel.
 */
Datum
orchestrator_claim_call_rows(PG_FUNCTION_ARGS)
{
	Claim claim = {.turn = PG_INT64_MIN};
	int32 queue = PG_GETARG_INT32(1);
	int32 owner = PG_GETARG_INT32(2);
	const OrchQueue *known;
	MemoryContext row_context;
	OrchRow row;
	ItemPointerData tid;

	InitMaterializedSRF(fcinfo, 0);
	claim.result = (ReturnSetInfo *) fcinfo->resultinfo;
	claim.worker = PG_GETARG_DATUM(0);
	claim.wanted = PG_GETARG_INT32(3);
	claim.now = orch_clock();
	claim.live = orch_heap_open_live();
	row_context = AllocSetContextCreate(
		CurrentMemoryContext, "orchestrator calls", ALLOCSET_DEFAULT_SIZES);
	if (mark.owner != owner || mark.queue != queue)
		orch_carry_forget();
	mark.owner = owner;
	mark.queue = queue;
	if (looks_since >= 0)
		looks_since = orch_monotonic();
	claim.rows = orch_heap_parked_begin(claim.live, owner,
										ORCH_COURIER_LANE(queue), mark.from);
	orch_collect_begin(&claim.collect, claim.now);
	while (goes_on(&claim) && orch_heap_ready_next(claim.rows, &row, &tid))
	{
		MemoryContext old = MemoryContextSwitchTo(row_context);
		bool more = claim_row(&claim, &row, &tid);

		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
		if (!more)
			break;
	}
	looks_at = 0;
	orch_heap_ready_end(claim.rows);
	note_what_is_left(&claim);
	known = orch_catalog_queue_info(queue);
	if (claim.taken > 0 && known != NULL && known->tenant != (Datum) 0)
		orch_fair_claimed(owner, queue, claim.turn);
	orch_heap_close(claim.live);
	MemoryContextDelete(row_context);
	CommandCounterIncrement();
	return (Datum) 0;
}

static bool
goes_on(const Claim *claim)
{
	int64 left;

	if (looks_since >= 0 && orch_monotonic() - looks_since > LONGEST_LOOK)
	{
		held_up = true;
		return false;
	}
	return claim->passed + orch_collect_kept(&claim->collect, &left) <
			   MAX_PASSED &&
		   (claim->taken < claim->wanted ||
			orch_collect_has_room(&claim->collect));
}

static void
note_what_is_left(const Claim *claim)
{
	int64 left;

	if (claim->passed > 0)
		held_up = true;
	if (orch_collect_kept(&claim->collect, &left) > 0)
		wait_left = wait_left < 0 ? left : Min(wait_left, left);
}

/*
 * False: go no further.
 */
static bool
claim_row(Claim *claim, OrchRow *row, ItemPointer tid)
{
	const OrchDefinition *definition;
	OrchCollectVerdict verdict;
	OrchLoading *loading = NULL;
	bool mine;

	looks_at = ORCH_INT64(row, ORCH_TASK_ID);
	row_since = orch_monotonic();
	if (!row->nulls[ORCH_TASK_EXPIRE_AT] &&
		DatumGetTimestampTz(row->values[ORCH_TASK_EXPIRE_AT]) <= claim->now)
		return true; /* the supervisor fails it */
	definition =
		orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));
	verdict = orch_collect_judge(&claim->collect, definition, row, &loading);
	if (verdict != ORCH_COLLECT_RIDE && claim->taken >= claim->wanted)
		return false;
	mine = orch_heap_ready_mine(claim->rows);
	if (verdict == ORCH_COLLECT_ALONE)
		return take(claim, row, tid, mine, NULL, 1);
	if (verdict == ORCH_COLLECT_RIDE)
		return take(claim, row, tid, mine, loading, loading->size);
	orch_collect_keep(&claim->collect, loading, definition, row, tid, mine);
	return verdict == ORCH_COLLECT_WAIT || claim_kept(claim, loading);
}

/*
 * Likewise.
 */
static bool
claim_kept(Claim *claim, OrchLoading *loading)
{
	OrchKept *kept;

	while ((kept = orch_collect_next(loading)) != NULL)
	{
		if (!take(claim, &kept->row, &kept->tid, kept->mine, loading,
				  kept->size))
			return false;
	}
	return true;
}

/*
 * Likewise.  Takes a row, for a parcel of at most so many unless it goes alone.
 */
static bool
take(Claim *claim, OrchRow *row, ItemPointer tid, bool mine,
	 OrchLoading *loading, int size)
{
	const OrchDefinition *definition;
	const OrchLimit *refused;
	int64 permits[ORCH_MAX_LIMITS];
	int npermits;
	int held = orch_remote_taken();

	refused = orch_remote_take(
		row, &claim->memo,
		loading != NULL && loading->n > 0 ? ORCH_FARE_RIDES : ORCH_FARE_FULL,
		permits, &npermits);
	if (refused != NULL)
	{
		claim->passed++;
		return refused->kind != ORCH_LIMIT_QUEUE &&
			   refused->kind != ORCH_LIMIT_ROLE;
	}
	orch_claim_mark_running(row, claim->now);
	orch_row_set(row, ORCH_TASK_WORKER, claim->worker);
	if (!orch_heap_update(claim->live, tid, row, mine))
	{
		claim->passed++;
		orch_remote_untake(held);
		return true;
	}
	claim->taken++;
	if (loading != NULL)
		orch_collect_put(loading, row, size);
	move_mark(claim, row);
	claim->turn =
		Max(claim->turn, orch_fair_turn(ORCH_INT64(row, ORCH_TASK_SORT_KEY),
										ORCH_INT32(row, ORCH_TASK_PRIORITY)));
	give_out(claim, row, permits, npermits,
			 loading == NULL ? 0 : loading->number);
	definition =
		orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));
	orch_row_announce(row, ORCH_EVENT_STARTED, ORCH_STATE_RUNNING, -1,
					  definition != NULL && definition->notify);
	return true;
}

/*
 * Unless rows before this one were left.
 */
static void
move_mark(const Claim *claim, const OrchRow *row)
{
	int64 left;

	if (claim->passed == 0 && orch_collect_kept(&claim->collect, &left) == 0)
		mark.from = ORCH_INT64(row, ORCH_TASK_SORT_KEY);
}

static void
give_out(Claim *claim, const OrchRow *row, const int64 *permits, int npermits,
		 int32 parcel)
{
	static const OrchColumn from[] = {
		ORCH_TASK_ID,		ORCH_TASK_EPOCH,	ORCH_TASK_DEFINITION,
		ORCH_TASK_INPUT,	ORCH_TASK_DEADLINE, ORCH_TASK_TRACEPARENT,
		ORCH_TASK_ITERATION};
	Datum values[CLAIMED_COLUMNS] = {0};
	bool nulls[CLAIMED_COLUMNS] = {0};
	Datum numbers[ORCH_MAX_LIMITS];

	for (int i = 0; i < lengthof(from); i++)
	{
		values[i] = row->values[from[i]];
		nulls[i] = row->nulls[from[i]];
	}
	for (int i = 0; i < npermits; i++)
		numbers[i] = Int64GetDatum(permits[i]);
	values[CLAIMED_PERMITS] = PointerGetDatum(
		construct_array(numbers, npermits, INT8OID, 8, true, TYPALIGN_DOUBLE));
	values[CLAIMED_PARCEL] = Int32GetDatum(parcel);
	tuplestore_putvalues(claim->result->setResult, claim->result->setDesc,
						 values, nulls);
}

/*
 * _complete_calls(tasks, epochs, outputs) -> those that are completed: that
 * run, and on which nothing hangs.  Not those that somebody has locked.
 */
Datum
orchestrator_complete_calls(PG_FUNCTION_ARGS)
{
	TimestampTz now = orch_clock();
	OrchLeaf *live = orch_heap_open_live();
	OrchTask **done;
	Datum *tasks;
	Datum *epochs;
	Datum *outputs;
	int n;
	int ndone = 0;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, 8, true,
					  TYPALIGN_DOUBLE, &tasks, NULL, &n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, 4, true, TYPALIGN_INT,
					  &epochs, NULL, &n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), JSONBOID, -1, false,
					  TYPALIGN_INT, &outputs, NULL, &n);
	done = palloc(Max(n, 1) * sizeof(OrchTask *));
	for (int i = 0; i < n; i++)
	{
		OrchTask *task = complete(live, DatumGetInt64(tasks[i]),
								  DatumGetInt32(epochs[i]), now);

		if (task == NULL)
			continue;
		task->has_output = true;
		task->output = outputs[i];
		done[ndone++] = task;
	}
	orch_settle_completed(done, ndone);
	orch_heap_close(live);
	CommandCounterIncrement();
	for (int i = 0; i < ndone; i++)
		tasks[i] = done[i]->row.values[ORCH_TASK_ID];
	PG_RETURN_ARRAYTYPE_P(
		construct_array(tasks, ndone, INT8OID, 8, true, TYPALIGN_DOUBLE));
}

/*
 * NULL: it is left to SQL.
 */
static OrchTask *
complete(OrchLeaf *live, int64 id, int32 epoch, TimestampTz now)
{
	const OrchDefinition *definition;
	OrchRow row;
	ItemPointerData tid;
	OrchTask *task;

	if (!orch_heap_find(live, id, &row, &tid))
		return NULL;
	definition =
		orch_catalog_definition(ORCH_INT32(&row, ORCH_TASK_DEFINITION));
	if (!is_plain(&row, epoch, definition))
		return NULL;
	task = palloc0(sizeof(OrchTask));
	orch_row_copy(&task->row, &row);
	if (!orch_heap_delete(live, &tid, false))
		return NULL;
	orch_row_set_null(&task->row, ORCH_TASK_HELD_STATE);
	orch_row_set_null(&task->row, ORCH_TASK_HELD_BY);
	/* what the catalog remembers may be dropped before it is settled */
	task->definition = memcpy(palloc(sizeof(OrchDefinition)), definition,
							  sizeof(OrchDefinition));
	task->started_at = DatumGetTimestampTz(row.values[ORCH_TASK_STARTED_AT]);
	task->finished_at = now;
	return task;
}

static bool
is_plain(const OrchRow *row, int32 epoch, const OrchDefinition *definition)
{
	return DatumGetObjectId(row->values[ORCH_TASK_STATE]) ==
			   orch_catalog(false)->states[ORCH_STATE_RUNNING] &&
		   ORCH_INT32(row, ORCH_TASK_EPOCH) == epoch &&
		   row->nulls[ORCH_TASK_PARENT_ID] &&
		   row->nulls[ORCH_TASK_REMAINING] &&
		   row->nulls[ORCH_TASK_CALLBACKS] && definition != NULL &&
		   !definition->has_callbacks && !definition->expects;
}
