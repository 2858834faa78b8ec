/*
 * depth.c
 *	  How many tasks wait, in shared memory: of a queue, of a role.
 *
 * Every place that is lowered was raised before, so what could make a counter
 * too low is a count of the rows that comes in between: it may or may not
 * have seen the row.  A count therefore moves the generation on at its
 * beginning and its end, and whoever lowers a counter does so only when its
 * generation is still that of before: else the place is left, and found by
 * the next count.
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "depth.h"
#include "guc.h"
#include "shmem.h"

#define BLOCK_NAME "orchestrator depth"
#define MAX_DEPTHS 4096

/* Reservations to look through for one to join: of a role and a queue or two.
 */
#define LOOK_BACK 4

/* A count of more rows is good for a while. */
#define LONG_COUNT 10000

/* Alerts are looked at this long after something happened, at most. */
#define ALERT_DELAY USECS_PER_SEC

struct OrchDepth
{
	/* who: never changes */
	Oid dboid;
	int32 owner;
	int32 queue;

	bool alerts; /* the supervisor wants to know */

	slock_t mutex;	   /* guards all that follows */
	bool counted;	   /* waiting is to be trusted */
	int64 waiting;	   /* never fewer than there are */
	int64 arrived;	   /* all that were ever added */
	int64 coming;	   /* of waiting: rows not written yet */
	uint32 generation; /* of what waiting is based on */
	TimestampTz counted_at;
	int64 count_took; /* microseconds; 0: not long */
};

typedef struct Depths
{
	LWLock *lock;		/* who exists */
	pg_atomic_uint32 n; /* entries in use, never fewer again */
	OrchDepth depths[MAX_DEPTHS];
} Depths;

/* Places that a transaction holds. */
typedef struct Reservation
{
	OrchDepth *depth;
	int64 n;
	int64 coming; /* of these, rows not written yet */
	int level;	  /* of the subtransaction; never falls */
	uint32 generation;
} Reservation;

typedef struct Key
{
	Oid dboid;
	int32 owner;
	int32 queue;
} Key;

typedef struct KeyEntry
{
	Key key;
	OrchDepth *depth; /* NULL: none of the first `known` */
	uint32 known;
} KeyEntry;

/* What orch_depth_starting() found: of the queue and of its owner. */
typedef struct Start
{
	OrchDepth *depth;
	uint32 generation;
} Start;

static Depths *depths = NULL;
static HTAB *keys = NULL;
static Start starts[2];

/* In TopTransactionContext. */
static Reservation *reservations = NULL;
static int nreservations = 0;
static int room = 0;
static int first_coming = INT_MAX; /* of those with rows not written yet */

static void start_block(void *memory, LWLock *lock, bool anew);
static void install_callbacks(void);
static OrchDepth *look_for(const Key *key, uint32 from, uint32 n);
static OrchDepth *make_depth(const Key *key);
static void make_room(void);
static void keep_places(OrchDepth *depth, int64 n, int64 coming,
						uint32 generation);
static void lower(OrchDepth *depth, int64 n, uint32 generation);
static void end_coming(Reservation *reservation);
static void touch(const OrchDepth *depth);
static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);

PG_FUNCTION_INFO_V1(orchestrator_waits);
PG_FUNCTION_INFO_V1(orchestrator_alert_soon);

void
orch_depth_install(void)
{
	orch_shmem_add_block(BLOCK_NAME, sizeof(Depths), start_block);
}

static void
start_block(void *memory, LWLock *lock, bool anew)
{
	depths = memory;
	if (!anew)
		return;
	depths->lock = lock;
	pg_atomic_init_u32(&depths->n, 0);
	for (int i = 0; i < MAX_DEPTHS; i++)
		SpinLockInit(&depths->depths[i].mutex);
}

static void
install_callbacks(void)
{
	static bool installed = false;

	if (installed)
		return;
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
	installed = true;
}

/*
 * Entries are never given up, so that a pointer to one stays good; a session
 * remembers which it looked for, and how far.
 */
OrchDepth *
orch_depth_find(int32 owner, int32 queue, bool create)
{
	Key key = {MyDatabaseId, owner, queue};
	uint32 n;
	KeyEntry *entry;
	bool found;

	if (!orch_preloaded)
		return NULL;
	n = pg_atomic_read_u32(&depths->n);
	if (n == 0 && !create)
		return NULL;
	pg_read_barrier();
	if (keys == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Key),
						   .entrysize = sizeof(KeyEntry),
						   .hcxt = TopMemoryContext};

		keys = hash_create("orchestrator depths", 64, &control,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(keys, &key, HASH_ENTER, &found);
	if (!found)
	{
		entry->depth = NULL;
		entry->known = 0;
	}
	if (entry->depth == NULL)
	{
		entry->depth = look_for(&key, entry->known, n);
		entry->known = n;
	}
	if (entry->depth == NULL && create)
		entry->depth = make_depth(&key);
	return entry->depth;
}

static OrchDepth *
look_for(const Key *key, uint32 from, uint32 n)
{
	for (uint32 i = from; i < n; i++)
	{
		OrchDepth *depth = &depths->depths[i];

		if (depth->dboid == key->dboid && depth->owner == key->owner &&
			depth->queue == key->queue)
			return depth;
	}
	return NULL;
}

static OrchDepth *
make_depth(const Key *key)
{
	OrchDepth *depth;
	uint32 n;

	LWLockAcquire(depths->lock, LW_EXCLUSIVE);
	n = pg_atomic_read_u32(&depths->n);
	depth = look_for(key, 0, n);
	if (depth == NULL && n < MAX_DEPTHS)
	{
		depth = &depths->depths[n];
		depth->dboid = key->dboid;
		depth->owner = key->owner;
		depth->queue = key->queue;
		pg_write_barrier();
		pg_atomic_write_u32(&depths->n, n + 1);
	}
	LWLockRelease(depths->lock);
	return depth;
}

void
orch_depth_watch(OrchDepth *depth, bool alerts)
{
	depth->alerts = alerts;
}

bool
orch_depth_reserve(OrchDepth *depth, int64 n, int64 max)
{
	uint32 generation;
	bool fits;

	make_room(); /* what may fail, before */
	SpinLockAcquire(&depth->mutex);
	fits = max == 0 || (depth->counted && depth->waiting + n <= max);
	if (fits)
	{
		depth->waiting += n;
		depth->arrived += n;
		depth->coming += n;
	}
	generation = depth->generation;
	SpinLockRelease(&depth->mutex);
	if (fits)
		keep_places(depth, n, n, generation);
	return fits;
}

/*
 * Room to remember one more reservation.
 */
static void
make_room(void)
{
	install_callbacks();
	if (nreservations < room)
		return;
	if (reservations == NULL)
	{
		reservations =
			MemoryContextAlloc(TopTransactionContext, 8 * sizeof(Reservation));
		room = 8;
		return;
	}
	reservations =
		repalloc_huge(reservations, (Size) room * 2 * sizeof(Reservation));
	room *= 2;
}

/*
 * Remember places; a thousand calls in a row need as much memory as one.
 */
static void
keep_places(OrchDepth *depth, int64 n, int64 coming, uint32 generation)
{
	int level = GetCurrentTransactionNestLevel();
	Reservation *reservation = NULL;

	for (int i = nreservations - 1; i >= 0 && i >= nreservations - LOOK_BACK;
		 i--)
	{
		if (reservations[i].depth == depth && reservations[i].level == level &&
			reservations[i].generation == generation)
			reservation = &reservations[i];
	}
	if (reservation == NULL)
	{
		reservation = &reservations[nreservations++];
		memset(reservation, 0, sizeof(Reservation));
		reservation->depth = depth;
		reservation->level = level;
		reservation->generation = generation;
	}
	reservation->n += n;
	reservation->coming += coming;
	if (coming > 0)
		first_coming = Min(first_coming, (int) (reservation - reservations));
}

int64
orch_depth_held(const OrchDepth *depth)
{
	int64 held = 0;

	for (int i = 0; i < nreservations; i++)
	{
		if (reservations[i].depth == depth)
			held += reservations[i].n;
	}
	return held;
}

void
orch_depth_written(bool keep)
{
	for (int i = first_coming; i < nreservations; i++)
	{
		int64 n = reservations[i].coming;

		end_coming(&reservations[i]);
		if (keep || n == 0)
			continue;
		lower(reservations[i].depth, n, reservations[i].generation);
		reservations[i].n -= n;
	}
	first_coming = INT_MAX;
}

static void
end_coming(Reservation *reservation)
{
	if (reservation->coming == 0)
		return;
	SpinLockAcquire(&reservation->depth->mutex);
	reservation->depth->coming -= reservation->coming;
	SpinLockRelease(&reservation->depth->mutex);
	reservation->coming = 0;
}

static void
lower(OrchDepth *depth, int64 n, uint32 generation)
{
	SpinLockAcquire(&depth->mutex);
	if (depth->generation == generation)
		depth->waiting = Max(depth->waiting - n, 0);
	SpinLockRelease(&depth->mutex);
}

static void
add(OrchDepth *depth, int64 n)
{
	uint32 generation;

	if (depth == NULL)
		return;
	make_room();
	SpinLockAcquire(&depth->mutex);
	depth->waiting += n;
	depth->arrived += n;
	generation = depth->generation;
	SpinLockRelease(&depth->mutex);
	keep_places(depth, n, 0, generation);
}

void
orch_depth_add(int32 owner, int32 queue, int64 n)
{
	if (!orch_preloaded || pg_atomic_read_u32(&depths->n) == 0)
		return;
	add(orch_depth_find(owner, 0, false), n);
	add(orch_depth_find(0, queue, false), n);
}

void
orch_depth_moved(int32 owner, int32 queue, int64 n)
{
	OrchDepth *moved[2];

	if (!orch_preloaded || pg_atomic_read_u32(&depths->n) == 0)
		return;
	moved[0] = orch_depth_find(owner, 0, false);
	moved[1] = orch_depth_find(0, queue, false);
	for (int i = 0; i < 2; i++)
	{
		if (moved[i] == NULL)
			continue;
		SpinLockAcquire(&moved[i]->mutex);
		moved[i]->arrived += n;
		SpinLockRelease(&moved[i]->mutex);
	}
}

/*
 * _waits(owner, queue, n): rows are scheduled again that nobody may refuse;
 * those that become ready are told by _ready().
 */
Datum
orchestrator_waits(PG_FUNCTION_ARGS)
{
	orch_depth_add(PG_GETARG_INT32(0), PG_GETARG_INT32(1), PG_GETARG_INT32(2));
	PG_RETURN_VOID();
}

/*
 * _alert_soon(queue): no place is taken, but its counter is touched at commit.
 */
Datum
orchestrator_alert_soon(PG_FUNCTION_ARGS)
{
	OrchDepth *depth = orch_depth_find(0, PG_GETARG_INT32(0), true);

	if (depth == NULL)
		PG_RETURN_VOID();
	orch_depth_watch(depth, true);
	make_room();
	keep_places(depth, 0, 0, 0);
	PG_RETURN_VOID();
}

void
orch_depth_starting(int32 owner, int32 queue)
{
	starts[0].depth = starts[1].depth = NULL;
	if (!orch_preloaded || pg_atomic_read_u32(&depths->n) == 0)
		return;
	starts[0].depth = orch_depth_find(owner, 0, false);
	starts[1].depth = orch_depth_find(0, queue, false);
	for (int i = 0; i < 2; i++)
	{
		OrchDepth *depth = starts[i].depth;

		if (depth == NULL)
			continue;
		SpinLockAcquire(&depth->mutex);
		starts[i].generation = depth->generation;
		SpinLockRelease(&depth->mutex);
	}
}

void
orch_depth_started(int64 n)
{
	for (int i = 0; i < 2; i++)
	{
		if (starts[i].depth == NULL || n == 0)
			continue;
		lower(starts[i].depth, n, starts[i].generation);
		touch(starts[i].depth);
	}
}

void
orch_depth_count_begin(OrchDepth *depth, OrchDepthCount *count)
{
	count->began = GetCurrentTimestamp();
	SpinLockAcquire(&depth->mutex);
	count->generation = ++depth->generation;
	count->arrived = depth->arrived;
	count->coming = depth->coming;
	SpinLockRelease(&depth->mutex);
}

/*
 * A look that ended early says only that there are more: whoever starts one
 * of them must not make room.
 */
bool
orch_depth_count_end(OrchDepth *depth, const OrchDepthCount *count,
					 int64 found, bool all)
{
	TimestampTz now = GetCurrentTimestamp();
	bool quiet;

	SpinLockAcquire(&depth->mutex);
	quiet = depth->generation == count->generation && count->coming == 0 &&
			depth->arrived == count->arrived;
	depth->waiting = found + count->coming + (depth->arrived - count->arrived);
	depth->counted = all;
	depth->generation++;
	depth->counted_at = now;
	depth->count_took = found > LONG_COUNT ? Max(now - count->began, 0) : 0;
	SpinLockRelease(&depth->mutex);
	return quiet;
}

bool
orch_depth_counted_lately(OrchDepth *depth, int64 within)
{
	TimestampTz now = GetCurrentTimestamp();
	bool lately;

	SpinLockAcquire(&depth->mutex);
	within = Max(within, depth->count_took * 4);
	lately = depth->counted_at <= now && now - depth->counted_at < within;
	SpinLockRelease(&depth->mutex);
	return lately;
}

/*
 * Runs after commits: does not fail.
 */
static void
touch(const OrchDepth *depth)
{
	if (depth->alerts)
		orch_shmem_lower_alert(depth->dboid, orch_clock() + ALERT_DELAY);
}

static void
end_transaction(XactEvent what, void *arg)
{
	if (what != XACT_EVENT_COMMIT && what != XACT_EVENT_ABORT &&
		what != XACT_EVENT_PREPARE)
		return;
	for (int i = 0; i < nreservations; i++)
	{
		Reservation *reservation = &reservations[i];

		end_coming(reservation);
		if (what == XACT_EVENT_ABORT)
			lower(reservation->depth, reservation->n, reservation->generation);
		else
			touch(reservation->depth);
	}
	reservations = NULL;
	nreservations = room = 0;
	first_coming = INT_MAX;
}

static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();
	int i = nreservations - 1;

	if (what != SUBXACT_EVENT_ABORT_SUB && what != SUBXACT_EVENT_COMMIT_SUB)
		return;
	for (; i >= 0 && reservations[i].level >= level; i--)
	{
		Reservation *reservation = &reservations[i];

		reservation->level = level - 1;
		if (what == SUBXACT_EVENT_COMMIT_SUB)
			continue;
		end_coming(reservation);
		lower(reservation->depth, reservation->n, reservation->generation);
	}
	if (what == SUBXACT_EVENT_ABORT_SUB)
		nreservations = i + 1;
}
