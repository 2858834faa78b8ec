/*
 * position.c
 *	  How many ready tasks stand before one, and when its turn may come.
 *
 * To count the rows before the last of a million takes a tenth of a second and
 * more.  So the rows of a lane (one queue of one owner) are counted once in a
 * while, and what is kept is a ladder: the sort key of every step-th row, the
 * step being such that there are between 1024 and 2048 of them.  The rows
 * between two keys are then the rungs between them times the step, and a scan
 * of less than a step at either end.
 *
 * A ladder knows nothing of rows that became ready below its end since it was
 * made (of higher priority), or that left it elsewhere than at its front
 * (cancelled ones).  It is made again when it is older than a second, or than
 * twenty times what it took, which keeps all askers together below 5 % of one
 * processor.  Rows that were added at the end are counted when somebody asks
 * for one of them.
 *
 * Up to NEAR rows are counted as they are.  A snapshot is taken for each scan;
 * rows that a claim has locked but not committed stand as they did.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"
#include "heap.h"
#include "lane.h"
#include "position.h"
#include "shmem.h"
#include "stats.h"

#define BLOCK_NAME	"orchestrator positions"
#define LADDERS		32 /* lanes that are asked for at the same time */
#define OWN_LADDERS 4  /* the same, of a session without shared memory */
#define RUNGS		2048

/* So many rows are counted one by one. */
#define NEAR 1000

/* How long a ladder is good, at least, and by what it took to make. */
#define FRESH		  USECS_PER_SEC
#define FRESH_BY_COST 20

/* What a session remembers of the lanes it asked for last, and how long. */
#define ASKED	  16
#define ASKED_FOR USECS_PER_SEC

/* The ready rows of an owner in a queue; those that no executor runs: in the
 * lane, with a number less than 0, in which they are parked. */
typedef struct Lane
{
	int32 owner;
	int32 queue;
} Lane;

typedef struct Ladder
{
	Oid dboid; /* InvalidOid: free */
	Lane lane;
	TimestampTz made_at;
	TimestampTz used_at;
	int64 cost; /* microseconds */
	int64 total;
	int64 last_key; /* of the last row */
	int64 step;
	int nrungs;
	int64 rungs[RUNGS]; /* rung i: sort key of row i * step, from 0 */
} Ladder;

typedef struct Ladders
{
	LWLock *lock; /* NULL: a session's own */
	int n;
	Ladder ladders[FLEXIBLE_ARRAY_MEMBER];
} Ladders;

/* What a view asks for row by row. */
typedef struct Asked
{
	Oid userid;
	Lane lane;
	TimestampTz at; /* 0: unused */
	bool seen;
	bool paused;
	double rate;
	int64 front; /* sort key of the first ready row */
} Asked;

static Ladders *ladders = NULL;
static Ladder work; /* where one is made */

static void start_block(void *memory, LWLock *lock, bool anew);
static Size ladders_size(int n);
static void need_ladders(void);
static void lock_ladders(LWLockMode mode);
static void unlock_ladders(void);
static Ladder *find_ladder(const Lane *lane);
static bool is_fresh(const Ladder *ladder);
static bool fetch_ladder(const Lane *lane);
static void make_ladder(const Lane *lane, int64 from);
static void extend_ladder(int64 from);
static void publish_ladder(void);
static void get_ladder(const Lane *lane, int64 key, int64 from);
static double rows_below(const Ladder *ladder, int64 key);
static int rungs_below(const Ladder *ladder, int64 key);
static int64 count_rows(const Lane *lane, int64 from, int64 key, int64 id,
						int64 limit);
static int64 first_key(const Lane *lane, int64 from);
static int64 exact_position(const Lane *lane, int64 key, int64 id);
static OrchReadyScan *begin_scan(OrchLeaf *live, const Lane *lane, int64 from);
static int32 queue_of(int32 lane);
static Asked *ask(int32 owner, int32 queue);
static int64 jobs_ahead(Asked *asked, int64 key);
static TimestampTz estimated_start(double rate, int64 ahead);

PG_FUNCTION_INFO_V1(orchestrator_queue_position);
PG_FUNCTION_INFO_V1(orchestrator_jobs_ahead);
PG_FUNCTION_INFO_V1(orchestrator_estimated_start);

void
orch_position_install(void)
{
	orch_shmem_add_block(BLOCK_NAME, ladders_size(LADDERS), start_block);
}

static Size
ladders_size(int n)
{
	return offsetof(Ladders, ladders) + n * sizeof(Ladder);
}

static void
start_block(void *memory, LWLock *lock, bool anew)
{
	ladders = memory;
	if (!anew)
		return;
	ladders->lock = lock;
	ladders->n = LADDERS;
}

/*
 * Without preload a session has ladders of its own.
 */
static void
need_ladders(void)
{
	if (ladders != NULL)
		return;
	ladders =
		MemoryContextAllocZero(TopMemoryContext, ladders_size(OWN_LADDERS));
	ladders->n = OWN_LADDERS;
}

static void
lock_ladders(LWLockMode mode)
{
	need_ladders();
	if (ladders->lock != NULL)
		LWLockAcquire(ladders->lock, mode);
}

static void
unlock_ladders(void)
{
	if (ladders->lock != NULL)
		LWLockRelease(ladders->lock);
}

/*
 * Caller holds the lock.
 */
static Ladder *
find_ladder(const Lane *lane)
{
	for (int i = 0; i < ladders->n; i++)
	{
		Ladder *ladder = &ladders->ladders[i];

		if (ladder->dboid == MyDatabaseId &&
			ladder->lane.owner == lane->owner &&
			ladder->lane.queue == lane->queue)
			return ladder;
	}
	return NULL;
}

static bool
is_fresh(const Ladder *ladder)
{
	int64 age = GetCurrentTimestamp() - ladder->made_at;

	return age >= 0 && age < Max(FRESH, FRESH_BY_COST * ladder->cost);
}

/*
 * Copy a lane's ladder to work; false: there is none that is good.
 */
static bool
fetch_ladder(const Lane *lane)
{
	Ladder *ladder;
	bool found = false;

	lock_ladders(LW_SHARED);
	ladder = find_ladder(lane);
	if (ladder != NULL && is_fresh(ladder))
	{
		ladder->used_at = GetCurrentTimestamp(); /* a hint: any one will do */
		memcpy(&work, ladder,
			   offsetof(Ladder, rungs) + ladder->nrungs * sizeof(int64));
		found = true;
	}
	unlock_ladders();
	return found;
}

/*
 * Count the rows of a lane.
 */
static void
make_ladder(const Lane *lane, int64 from)
{
	TimestampTz began = GetCurrentTimestamp();

	work.dboid = MyDatabaseId;
	work.lane = *lane;
	work.total = 0;
	work.nrungs = 0;
	work.step = 1;
	work.last_key = from;
	extend_ladder(from);
	work.made_at = work.used_at = GetCurrentTimestamp();
	work.cost = Max(work.made_at - began, 0);
	publish_ladder();
}

/*
 * Add the rows from a key on.  When there is no room for a rung, every other
 * one goes.
 */
static void
extend_ladder(int64 from)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchReadyScan *scan = begin_scan(live, &work.lane, from);
	int64 key;
	int64 id;

	while (orch_heap_ready_key(scan, &key, &id))
	{
		if (work.total % work.step == 0)
		{
			if (work.nrungs == RUNGS)
			{
				for (int i = 0; i < RUNGS / 2; i++)
					work.rungs[i] = work.rungs[2 * i];
				work.nrungs = RUNGS / 2;
				work.step *= 2;
			}
			if (work.total % work.step == 0)
				work.rungs[work.nrungs++] = key;
		}
		work.total++;
		work.last_key = key;
	}
	orch_heap_ready_end(scan);
	orch_heap_close(live);
}

/*
 * In the place of the lane's last one, or of the one that was not asked for
 * for the longest time.
 */
static void
publish_ladder(void)
{
	Ladder *ladder;

	lock_ladders(LW_EXCLUSIVE);
	ladder = find_ladder(&work.lane);
	for (int i = 0; ladder == NULL && i < ladders->n; i++)
	{
		if (!OidIsValid(ladders->ladders[i].dboid))
			ladder = &ladders->ladders[i];
	}
	if (ladder == NULL)
	{
		ladder = &ladders->ladders[0];
		for (int i = 1; i < ladders->n; i++)
		{
			if (ladders->ladders[i].used_at < ladder->used_at)
				ladder = &ladders->ladders[i];
		}
	}
	memcpy(ladder, &work,
		   offsetof(Ladder, rungs) + work.nrungs * sizeof(int64));
	unlock_ladders();
}

/*
 * A good ladder that reaches up to a key, in work.
 */
static void
get_ladder(const Lane *lane, int64 key, int64 from)
{
	if (!fetch_ladder(lane))
		make_ladder(lane, from);
	else if (key > work.last_key)
	{
		extend_ladder(work.last_key + 1);

		/* up to the end: the next key above it is new again */
		work.last_key = Max(work.last_key, key);
		publish_ladder();
	}
}

/*
 * How many rungs have a smaller key.
 */
static int
rungs_below(const Ladder *ladder, int64 key)
{
	int low = 0;
	int high = ladder->nrungs;

	while (low < high)
	{
		int middle = low + (high - low) / 2;

		if (ladder->rungs[middle] < key)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * About how many rows had a smaller key: between two rungs, in proportion.
 */
static double
rows_below(const Ladder *ladder, int64 key)
{
	int rung = rungs_below(ladder, key);
	double low;
	double high;
	double rows;

	if (rung == 0)
		return 0;
	if (ladder->step == 1)
		return rung;
	low = ladder->rungs[rung - 1];
	high = rung < ladder->nrungs ? ladder->rungs[rung] : ladder->last_key;
	rows = rung < ladder->nrungs
			   ? ladder->step
			   : ladder->total - (rung - 1) * ladder->step - 1;
	if (high > low)
		rows *= Min((key - low) / (high - low), 1);
	return (rung - 1) * (double) ladder->step + rows;
}

/*
 * Count the ready rows from a key on that stand before another; at most so
 * many: -1 when there are more.
 */
static int64
count_rows(const Lane *lane, int64 from, int64 key, int64 id, int64 limit)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchReadyScan *scan = begin_scan(live, lane, from);
	int64 n = 0;
	int64 row_key;
	int64 row_id;

	while (n <= limit && orch_heap_ready_key(scan, &row_key, &row_id) &&
		   (row_key < key || (row_key == key && row_id < id)))
		n++;
	orch_heap_ready_end(scan);
	orch_heap_close(live);
	return n <= limit ? n : -1;
}

/*
 * The key of the first ready row; the largest when there is none.
 */
static int64
first_key(const Lane *lane, int64 from)
{
	OrchLeaf *live = orch_heap_open_live();
	OrchReadyScan *scan = begin_scan(live, lane, from);
	int64 key = PG_INT64_MAX;
	int64 id;

	(void) orch_heap_ready_key(scan, &key, &id);
	orch_heap_ready_end(scan);
	orch_heap_close(live);
	return key;
}

static OrchReadyScan *
begin_scan(OrchLeaf *live, const Lane *lane, int64 from)
{
	return lane->queue > 0
			   ? orch_heap_ready_begin(live, lane->owner, lane->queue, from)
			   : orch_heap_parked_begin(live, lane->owner, lane->queue, from);
}

static int64
lane_mark(const Lane *lane)
{
	return orch_preloaded && lane->queue > 0
			   ? orch_lane_mark(MyDatabaseId, lane->owner, lane->queue)
			   : ORCH_MARK_LOWEST;
}

/*
 * Rungs from the first one that still stands to the last one before the row,
 * and the rows at both ends, one by one.
 */
static int64
exact_position(const Lane *lane, int64 key, int64 id)
{
	int64 from = lane_mark(lane);
	int64 front = first_key(lane, from);
	bool known = fetch_ladder(lane);
	int64 n;
	int first;
	int last;

	if (!known || rows_below(&work, key) - rows_below(&work, front) <= NEAR)
	{
		n = count_rows(lane, from, key, id, NEAR);
		if (n >= 0)
			return n;
	}
	get_ladder(lane, key, from);
	first = rungs_below(&work, front);
	last = rungs_below(&work, key) - 1;
	if (last <= first)
		return count_rows(lane, from, key, id, PG_INT64_MAX - 1);
	n = (last - first) * work.step;
	return n +
		   count_rows(lane, from, work.rungs[first], PG_INT64_MIN,
					  PG_INT64_MAX - 1) +
		   count_rows(lane, work.rungs[last], key, id, PG_INT64_MAX - 1);
}

static TimestampTz
estimated_start(double rate, int64 ahead)
{
	double seconds = ahead / rate;

	/* beyond all calendars is never */
	return seconds < 1e9 ? orch_clock() + (int64) (seconds * USECS_PER_SEC)
						 : DT_NOEND;
}

/*
 * queue_position(task): how many ready tasks of its owner stand before it in
 * its queue, and when it starts if they go on as in the last minutes; nulls
 * when it is not ready, waits for a limit, or its queue is paused (then only
 * the latter).
 */
Datum
orchestrator_queue_position(PG_FUNCTION_ARGS)
{
	int64 task = PG_GETARG_INT64(0);
	Datum values[2] = {0};
	bool nulls[2] = {true, true};
	OrchPlace place;
	OrchTaskView view;
	TupleDesc tupdesc;
	bool live = orch_heap_place(task, &place);

	if (!(live || orch_heap_read_result(task, &view)) ||
		!orch_catalog_may_see(live ? place.owner : view.owner))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("task %lld does not exist", (long long) task)));
	if (live && place.state == ORCH_STATE_PENDING && place.parked_on <= 0)
	{
		Lane lane = {place.owner, place.parked_on < 0 ? (int32) place.parked_on
													  : place.queue};
		int64 ahead = exact_position(&lane, place.sort_key, task);
		double rate = orch_stats_rate(place.owner, place.queue);

		values[0] = Int64GetDatum(ahead);
		nulls[0] = false;
		nulls[1] = rate <= 0 || orch_catalog_queue_paused(place.queue);
		if (!nulls[1])
			values[1] = TimestampTzGetDatum(estimated_start(rate, ahead));
	}
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "queue_position must return a row");
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}

/*
 * The queue of a lane.
 */
static int32
queue_of(int32 lane)
{
	return lane > 0				   ? lane
		   : ORCH_IS_COURIER(lane) ? -lane - ORCH_COURIER_BASE
								   : -lane;
}

/*
 * What a view needs to know of a lane to judge its rows, a second old at most.
 */
static Asked *
ask(int32 owner, int32 queue)
{
	static Asked remembered[ASKED];
	static int next = 0;
	TimestampTz now = GetCurrentTimestamp();
	Lane lane = {owner, queue};
	Asked *asked = NULL;

	for (int i = 0; asked == NULL && i < ASKED; i++)
	{
		if (remembered[i].lane.owner == owner &&
			remembered[i].lane.queue == queue &&
			remembered[i].userid == GetUserId())
			asked = &remembered[i];
	}
	if (asked == NULL)
	{
		asked = &remembered[next = (next + 1) % ASKED];
		asked->at = 0;
	}
	if (asked->at != 0 && now >= asked->at && now - asked->at < ASKED_FOR)
		return asked;

	asked->at = 0; /* until it is complete */
	asked->userid = GetUserId();
	asked->lane = lane;
	asked->seen = orch_catalog_may_see(owner);
	asked->paused = orch_catalog_queue_paused(queue_of(queue));
	asked->rate = orch_stats_rate(owner, queue_of(queue));
	asked->front = first_key(&lane, lane_mark(&lane));
	asked->at = now;
	return asked;
}

/*
 * The same by the ladder alone.
 */
static int64
jobs_ahead(Asked *asked, int64 key)
{
	Ladder *ladder;
	double rows = -1;

	if (key <= asked->front)
		return 0;
	lock_ladders(LW_SHARED);
	ladder = find_ladder(&asked->lane);
	if (ladder != NULL && is_fresh(ladder) && key <= ladder->last_key)
		rows = rows_below(ladder, key) - rows_below(ladder, asked->front);
	unlock_ladders();
	if (rows < 0)
	{
		get_ladder(&asked->lane, key, lane_mark(&asked->lane));
		rows = rows_below(&work, key) - rows_below(&work, asked->front);
	}
	return (int64) Max(rows + 0.5, 0);
}

/*
 * jobs_ahead(owner, queue, sort_key): about how many ready rows stand before
 * that place.
 */
Datum
orchestrator_jobs_ahead(PG_FUNCTION_ARGS)
{
	Asked *asked = ask(PG_GETARG_INT32(0), PG_GETARG_INT32(1));

	if (!asked->seen)
		PG_RETURN_NULL();
	PG_RETURN_INT64(jobs_ahead(asked, PG_GETARG_INT64(2)));
}

/*
 * estimated_start(owner, queue, sort_key): when what is there may start.
 */
Datum
orchestrator_estimated_start(PG_FUNCTION_ARGS)
{
	Asked *asked = ask(PG_GETARG_INT32(0), PG_GETARG_INT32(1));

	if (!asked->seen || asked->paused || asked->rate <= 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(
		estimated_start(asked->rate, jobs_ahead(asked, PG_GETARG_INT64(2))));
}
