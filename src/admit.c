/*
 * admit.c
 *	  Whether tasks from outside may still be enqueued: max_depth of their
 *	  queue, max_queued of their role.
 *
 * What counts is what waits: rows that are pending or scheduled, or were when
 * they were paused, whoever made them.  The counters in shared memory (depth.c) say at once that there is
 * room.  When they do not, the rows are counted, as far as the limit, by
 * indexes that hold nothing else, and also those of transactions under way;
 * only then is a task refused.
 *
 * Without preload there are no counters: whoever enqueues where there is a
 * limit locks the row of the queue (or of its owner) until it commits, and
 * counts.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "admit.h"
#include "catalog.h"
#include "compat.h"
#include "depth.h"
#include "guc.h"
#include "heap.h"
#include "shmem.h"

#define ERRCODE_QUEUE_FULL MAKE_SQLSTATE('O', 'R', '0', '0', '8')
#define ERRCODE_QUOTA	   MAKE_SQLSTATE('O', 'R', '0', '0', '9')

#define DEFAULT_WAIT_MS	 5000
#define DEFAULT_DEFER_MS 60000

/* While it waits for room: look at the counter, and count. */
#define LOOK_MS	 10
#define COUNT_US (100 * INT64CONST(1000))

/* Counts to make while others come and go. */
#define COUNTS 3

/* A limit that tasks are held against. */
typedef struct Ceiling
{
	int32 owner; /* one of the two is 0 */
	int32 queue;
	int32 max;
	OrchDepth *depth; /* NULL: no shared memory, its row is locked */
} Ceiling;

static void admit_role(int32 owner, int64 n, int32 max);
static bool fits(const Ceiling *limit, int64 n);
static bool count(const Ceiling *limit, bool *quiet, int64 *found);
static bool wait_for_room(const Ceiling *limit, int64 n, int64 wait_ms);
static void lock_row(const Ceiling *limit);
static void refuse(const OrchQueueDepth *queue, int64 n);

PG_FUNCTION_INFO_V1(orchestrator_admit);
PG_FUNCTION_INFO_V1(orchestrator_admitted);
PG_FUNCTION_INFO_V1(orchestrator_backlog);

TimestampTz
orch_admit(int32 owner, int32 queue, int64 n)
{
	const OrchQuota *quota = orch_catalog_quota(owner);
	OrchQueueDepth known;
	Ceiling limit = {.queue = queue};
	int64 wait_ms;
	bool deferred;

	if (quota->max_queued > 0)
		admit_role(owner, n, quota->max_queued);
	if (!orch_catalog_queue_depth(queue)->alerts &&
		orch_catalog_queue_depth(queue)->max_depth == 0)
		return 0;
	known = *orch_catalog_queue_depth(queue);
	limit.max = known.max_depth;
	limit.depth = orch_depth_find(0, queue, true);
	wait_ms = known.full_wait;
	if (limit.depth != NULL)
		orch_depth_watch(limit.depth, known.alerts);
	if (known.max_depth == 0)
	{
		if (limit.depth != NULL)
			(void) orch_depth_reserve(limit.depth, n, 0);
		return 0;
	}

	if (known.on_full == ORCH_FULL_DEFER)
	{
		/* a count that is a little old does for that */
		deferred = limit.depth != NULL &&
						   orch_depth_counted_lately(limit.depth, COUNT_US)
					   ? !orch_depth_reserve(limit.depth, n, limit.max)
					   : !fits(&limit, n);
		if (!deferred)
			return 0;
		if (limit.depth != NULL)
			(void) orch_depth_reserve(limit.depth, n, 0);
		return TimestampTzPlusMilliseconds(
			orch_clock(), wait_ms > 0 ? wait_ms : DEFAULT_DEFER_MS);
	}
	if (fits(&limit, n) ||
		(known.on_full == ORCH_FULL_WAIT &&
		 wait_for_room(&limit, n, wait_ms > 0 ? wait_ms : DEFAULT_WAIT_MS)))
		return 0;
	refuse(&known, n);
	pg_unreachable();
}

void
orch_admitted(bool keep)
{
	if (orch_preloaded)
		orch_depth_written(keep);
}

static void
admit_role(int32 owner, int64 n, int32 max)
{
	Ceiling limit = {
		.owner = owner, .max = max, .depth = orch_depth_find(owner, 0, true)};

	if (fits(&limit, n))
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_QUOTA),
		 errmsg("role \"%s\" may not have so many tasks waiting",
				orch_catalog_owner_name(owner)),
		 errdetail("Its max_queued is %d, and " INT64_FORMAT
				   " more do not fit.",
				   max, n),
		 errhint(
			 "Try again when some were started, or have an administrator raise max_queued with orchestrator.set_quota().")));
}

static void
refuse(const OrchQueueDepth *queue, int64 n)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_QUEUE_FULL),
		 errmsg("queue \"%s\" is full", queue->name),
		 errdetail("Its max_depth is %d, and " INT64_FORMAT
				   " more do not fit.",
				   queue->max_depth, n),
		 errhint(
			 "Try again later, or raise max_depth with orchestrator.define_queue().")));
}

/*
 * Take the places, counting if need be.
 */
static bool
fits(const Ceiling *limit, int64 n)
{
	bool quiet = false;
	int64 found;

	if (n > limit->max)
		return false;
	if (limit->depth == NULL)
	{
		lock_row(limit);
		return count(limit, &quiet, &found) && found + n <= limit->max;
	}
	if (orch_depth_reserve(limit->depth, n, limit->max))
		return true;
	if (orch_depth_counted_lately(limit->depth, 0))
		return false;
	for (int i = 0; i < COUNTS && !quiet; i++)
	{
		(void) count(limit, &quiet, &found);
		if (orch_depth_reserve(limit->depth, n, limit->max))
			return true;
	}
	return false;
}

/*
 * Count the rows, as far as the limit.  False: there are more.
 */
static bool
count(const Ceiling *limit, bool *quiet, int64 *found)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchDepthCount begun;

	if (limit->depth != NULL)
		orch_depth_count_begin(limit->depth, &begun);
	*found = orch_heap_count_waiting(live, limit->owner, limit->queue,
									 (int64) limit->max + 1, NULL);
	if (limit->depth != NULL)
		*quiet = orch_depth_count_end(limit->depth, &begun, *found,
									  *found <= limit->max);
	orch_heap_close(live);
	return *found <= limit->max;
}

/*
 * The transaction stays open meanwhile, with its snapshot and its locks: the
 * wait is short.  There is nothing to wait for when the places are our own.
 */
static bool
wait_for_room(const Ceiling *limit, int64 n, int64 wait_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = TimestampTzPlusMilliseconds(now, wait_ms);
	TimestampTz counted = now;

	if (n > limit->max || (limit->depth != NULL &&
						   orch_depth_held(limit->depth) + n > limit->max))
		return false;
	while (now < until)
	{
		long left = TimestampDifferenceMilliseconds(now, until);

		(void) WaitLatch(
			MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
			Max(Min(left, LOOK_MS), 1), orch_wait_event(ORCH_WAIT_TASK));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		now = GetCurrentTimestamp();
		if (limit->depth != NULL &&
			orch_depth_reserve(limit->depth, n, limit->max))
			return true;
		if (now - counted < COUNT_US && now < until)
			continue;
		counted = now;
		if (fits(limit, n))
			return true;
	}
	return false;
}

static void
lock_row(const Ceiling *limit)
{
	NullableDatum args[2] = {{Int32GetDatum(limit->owner), false},
							 {Int32GetDatum(limit->queue), false}};

	orch_catalog_call(ORCH_FN_LOCK_LIMITS, 2, args, &(bool){false});
}

/*
 * _admit(owner, queue, n): for what is enqueued by SQL; null: not deferred.
 */
Datum
orchestrator_admit(PG_FUNCTION_ARGS)
{
	TimestampTz later =
		orch_admit(PG_GETARG_INT32(0), PG_GETARG_INT32(1), PG_GETARG_INT32(2));

	if (later == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(later);
}

Datum
orchestrator_admitted(PG_FUNCTION_ARGS)
{
	orch_admitted(PG_GETARG_BOOL(0));
	PG_RETURN_VOID();
}

/*
 * _backlog(queue, max_rows) -> (depth, oldest): how many wait, as far as
 * max_rows, and since when the oldest of them is ready.  Whoever asks wants to
 * be told of changes.
 */
Datum
orchestrator_backlog(PG_FUNCTION_ARGS)
{
	int32 queue = PG_GETARG_INT32(0);
	OrchDepth *depth = orch_depth_find(0, queue, true);
	OrchLeaf *live = orch_heap_open_live();
	TimestampTz oldest;
	Datum values[2];
	bool nulls[2] = {false, false};
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (depth != NULL)
		orch_depth_watch(depth, true);
	values[0] = Int64GetDatum(
		orch_heap_count_waiting(live, 0, queue, PG_GETARG_INT64(1), &oldest));
	values[1] = TimestampTzGetDatum(oldest);
	nulls[1] = oldest == DT_NOEND;
	orch_heap_close(live);
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
