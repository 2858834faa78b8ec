/*
 * permit.c
 *	  Permits: how many steps run at once, and how many start within a period.
 *
 * The table is set-associative: the number of a limit tells its set, and in it
 * an entry is found by looking at all.  One without anybody in it and without
 * a start in its period is as good as none, and makes room for others.
 *
 * A period is cut into pieces, and starts are counted by the piece.  A start
 * counts until the piece it fell into and a whole period are over, so that no
 * window as long as the period, wherever it begins, holds more than the limit.
 * Time is the monotonic clock's: no jump of the other one opens a window twice.
 *
 * Who is refused sets `waiting` and puts its lane to sleep under the same
 * lock under which permits are given back: no wake-up is lost.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "lane.h"
#include "permit.h"

/* Which permits this process holds, by index. */
static bool mine[ORCH_PERMIT_SETS * ORCH_PERMIT_WAYS];

/* Where limits were found lately; what it says is checked. */
#define FOUND_LATELY 1024
static int found_lately[FOUND_LATELY];

/* Looks at the lock before sleeping for it. */
#define LOCK_TRIES 100

static void lock_table(void);
static OrchPermit *find_permit(Oid dboid, int64 id, bool create, int64 now);
static bool is_worthless(const OrchPermit *permit, int64 now);
static void make_permit(int index, Oid dboid, int64 id);
static OrchPermit *search_set(Oid dboid, int64 id, bool create, int64 now);
static bool has_room(OrchPermit *permit, const OrchLimit *limit, int64 now);
static int64 width_of(int64 period);
static void advance(OrchPermit *permit, int64 period, int64 now);
static void recall_starts(OrchPermit *permit, const OrchLimit *limit,
						  int64 now);
static int64 next_room(OrchPermit *permit, int32 wanted);
static void count_start(OrchPermit *permit, OrchLimit *limit);
static void uncount_start(OrchPermit *permit, const OrchLimit *limit);
static int64 refuse(OrchPermit *permit, int lane, const OrchLimit *limit,
					int64 now);
static OrchPermit *find_limit(const OrchLimit *limit, int64 now);
static int find_room(OrchPermit **permits, const OrchLimit *limits, int n,
					 int64 now);
static void enter(OrchExecutor *executor, OrchPermit **permits,
				  OrchLimit *limits, int n);
static TimestampTz as_timestamp(int64 at);
static OrchDatabase *my_database(void);

int64
orch_permit_id(OrchLimitKind kind, int64 number, const void *name, Size length)
{
	uint64 seed = ((uint64) number << 2) | (uint64) kind;
	uint64 id = hash_bytes_extended(name, (int) length, seed);

	id ^= hash_bytes_extended((unsigned char *) &seed, sizeof(seed), length);
	id &= PG_INT64_MAX; /* others stand for lanes (ORCH_REMOTE_LANE) */
	return id == 0 ? 1 : (int64) id;
}

/*
 * It is held for a fraction of a microsecond: who would sleep for it loses more
 * than who looks again.
 */
static void
lock_table(void)
{
	for (int i = 0; i < LOCK_TRIES; i++)
	{
		if (LWLockConditionalAcquire(orch_shared->permit_lock, LW_EXCLUSIVE))
			return;
		SPIN_DELAY();
	}
	LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
}

/*
 * The entry of a limit.  NULL: there is none, and with create no room for one.
 * Caller holds permit_lock exclusively.
 */
static OrchPermit *
find_permit(Oid dboid, int64 id, bool create, int64 now)
{
	int *lately = &found_lately[(uint64) id % FOUND_LATELY];
	OrchPermit *permit = &orch_shared->permits[*lately];

	if (orch_shared->permit_ids[*lately] == id && permit->dboid == dboid)
		return permit;
	permit = search_set(dboid, id, create, now);
	if (permit != NULL)
		*lately = permit - orch_shared->permits;
	return permit;
}

static OrchPermit *
search_set(Oid dboid, int64 id, bool create, int64 now)
{
	int first = (int) ((uint64) id % ORCH_PERMIT_SETS) * ORCH_PERMIT_WAYS;
	const int64 *ids = orch_shared->permit_ids;
	int unused = -1;

	for (int i = first; i < first + ORCH_PERMIT_WAYS; i++)
	{
		if (ids[i] == id && orch_shared->permits[i].dboid == dboid)
			return &orch_shared->permits[i];
		if (ids[i] == 0)
			unused = i;
	}
	for (int i = first; create && unused < 0 && i < first + ORCH_PERMIT_WAYS;
		 i++)
	{
		if (is_worthless(&orch_shared->permits[i], now))
			unused = i;
	}
	if (!create || unused < 0)
		return NULL;
	make_permit(unused, dboid, id);
	return &orch_shared->permits[unused];
}

static bool
is_worthless(const OrchPermit *permit, int64 now)
{
	return permit->running == 0 && !permit->waiting && permit->adaptive == 0 &&
		   (permit->width == 0 ||
			now / permit->width - permit->piece > ORCH_RATE_PIECES);
}

static void
make_permit(int index, Oid dboid, int64 id)
{
	OrchPermit *permit = &orch_shared->permits[index];

	/* the pieces are set with the width (advance) */
	memset(permit, 0, offsetof(OrchPermit, pieces));
	permit->dboid = dboid;
	permit->owner = -1; /* not known before it is taken */
	orch_shared->permit_ids[index] = id;
}

static int64
width_of(int64 period)
{
	return Max(period / ORCH_RATE_PIECES, 1);
}

/*
 * Where a piece is counted.  The clock begins with the machine: the number of a
 * piece before that is negative.
 */
static uint32 *
piece_of(OrchPermit *permit, int64 number)
{
	const int n = lengthof(permit->pieces);

	return &permit->pieces[(number % n + n) % n];
}

/*
 * Let the pieces that are over go.  A period that was changed keeps its starts
 * in the newest piece, which is as strict as can be.
 */
static void
advance(OrchPermit *permit, int64 period, int64 now)
{
	int64 width = width_of(period);
	int64 piece;

	if (permit->width == width && now < permit->piece_end)
		return;
	piece = now / width;
	permit->piece_end = (piece + 1) * width;
	if (permit->width != width)
	{
		uint32 started = permit->started;

		memset(permit->pieces, 0, sizeof(permit->pieces));
		permit->width = width;
		permit->piece = piece;
		*piece_of(permit, piece) = started;
		return;
	}
	if (piece - permit->piece >= lengthof(permit->pieces))
	{
		memset(permit->pieces, 0, sizeof(permit->pieces));
		permit->started = 0;
		permit->piece = piece;
	}
	while (permit->piece < piece)
	{
		uint32 *oldest = piece_of(permit, ++permit->piece);

		permit->started -= *oldest;
		*oldest = 0;
	}
}

static bool
has_room(OrchPermit *permit, const OrchLimit *limit, int64 now)
{
	int max = limit->max_running;

	if (max > 0 && limit->adaptive > 0)
	{
		if (permit->adaptive == 0)
			permit->adaptive = limit->adaptive;
		max = Min(max, permit->adaptive);
	}
	if (max > 0 && permit->running >= max &&
		!mine[permit - orch_shared->permits])
		return false;
	if (limit->rate_limit == 0)
		return true;
	if (!my_database()->rates_known)
		return false;
	if (permit->width == 0)
		recall_starts(permit, limit, now);
	advance(permit, limit->rate_period, now);
	return permit->started < (uint32) limit->rate_limit;
}

/*
 * A rate that is met for the first time: what was started before a restart of
 * the server counts, too.  Of queues and definitions the supervisor has read
 * it (until it has, no rate has room); a key's period begins full, since only
 * its tasks' inputs could tell.
 */
static void
recall_starts(OrchPermit *permit, const OrchLimit *limit, int64 now)
{
	int64 ago = now - orch_shared->started_at;

	if (limit->kind == ORCH_LIMIT_KEY && ago < limit->rate_period &&
		my_database()->ran_before)
	{
		advance(permit, limit->rate_period, orch_shared->started_at);
		*piece_of(permit, permit->piece) = permit->started =
			(uint32) limit->rate_limit;
	}
}

/*
 * The slot of our database, which has one as long as an executor is there.
 */
static OrchDatabase *
my_database(void)
{
	static OrchDatabase *mine = NULL;

	if (mine == NULL || mine->dboid != MyDatabaseId)
		mine = orch_shmem_database(MyDatabaseId, false);
	return mine;
}

/*
 * When so many starts will have left the period: the time at which a start is
 * possible again.
 */
static int64
next_room(OrchPermit *permit, int32 wanted)
{
	int64 piece = permit->piece - ORCH_RATE_PIECES;
	int64 left = wanted;

	for (; piece < permit->piece; piece++)
	{
		left -= *piece_of(permit, piece);
		if (left <= 0)
			break;
	}
	return (piece + ORCH_RATE_PIECES + 1) * permit->width;
}

static void
count_start(OrchPermit *permit, OrchLimit *limit)
{
	limit->piece = permit->piece;
	limit->piece_end = permit->piece_end;
	(*piece_of(permit, permit->piece))++;
	permit->started++;
}

/*
 * Take back a start, if its piece still counts.
 */
static void
uncount_start(OrchPermit *permit, const OrchLimit *limit)
{
	uint32 *starts = piece_of(permit, limit->piece);

	if (permit->piece - limit->piece >= lengthof(permit->pieces) ||
		limit->piece > permit->piece || *starts == 0)
		return;
	(*starts)--;
	permit->started--;
}

/*
 * A row cannot be had.  When all that its lane holds is under the same limit,
 * the lane sleeps; else the row is parked, and a lane of parked rows asks.
 * Returns when a start is possible again; 0: when a permit is given back.
 */
static int64
refuse(OrchPermit *permit, int lane, const OrchLimit *limit, int64 now)
{
	if (!orch_lane_block(lane, limit->id,
						 limit->kind == ORCH_LIMIT_QUEUE ||
							 limit->kind == ORCH_LIMIT_ROLE))
		return 0;
	permit->waiting = true;
	permit->wait_until = 0;
	if (limit->rate_limit > 0 && permit->started >= (uint32) limit->rate_limit)
		permit->wait_until =
			Max(next_room(permit,
						  (int32) (permit->started - limit->rate_limit + 1)),
				now + 1000);
	else
		permit->scarce = true;
	return permit->wait_until;
}

const OrchLimit *
orch_permit_take(OrchExecutor *executor, int lane, OrchLimit *limits, int n)
{
	OrchPermit *permits[ORCH_MAX_LIMITS] = {0};
	int64 now = orch_monotonic();
	int64 wait_until = 0;
	int nfound;

	lock_table();
	nfound = find_room(permits, limits, n, now);
	if (nfound == n)
		enter(executor, permits, limits, n);
	else if (permits[nfound] != NULL)
		wait_until = refuse(permits[nfound], lane, &limits[nfound], now);
	for (int i = 0; i < nfound; i++)
		permits[i]->running--; /* of find_room() */
	LWLockRelease(orch_shared->permit_lock);
	if (wait_until > 0)
		orch_shmem_lower_permit(MyDatabaseId, as_timestamp(wait_until));
	return nfound == n ? NULL : &limits[nfound];
}

/*
 * Keys are many: they would push what is asked for each time out of what was
 * found lately.
 */
static OrchPermit *
find_limit(const OrchLimit *limit, int64 now)
{
	return limit->kind == ORCH_LIMIT_KEY
			   ? search_set(MyDatabaseId, limit->id, true, now)
			   : find_permit(MyDatabaseId, limit->id, true, now);
}

/*
 * How many of the limits, from the first on, have room.  Their permits are
 * entered once, so that a new one does not make room for the next.
 */
static int
find_room(OrchPermit **permits, const OrchLimit *limits, int n, int64 now)
{
	int i;

	for (i = 0; i < n; i++)
	{
		permits[i] = find_limit(&limits[i], now);
		if (permits[i] == NULL || !has_room(permits[i], &limits[i], now))
			break;
		permits[i]->owner = limits[i].owner;
		permits[i]->running++;
	}
	return i;
}

static void
enter(OrchExecutor *executor, OrchPermit **permits, OrchLimit *limits, int n)
{
	for (int i = 0; i < n; i++)
	{
		int index = permits[i] - orch_shared->permits;

		if (limits[i].max_running > 0 && !mine[index])
		{
			mine[index] = true;
			executor->permits[executor->npermits++] = index;
			permits[i]->running++;
		}
		if (limits[i].rate_limit > 0)
			count_start(permits[i], &limits[i]);
	}
}

bool
orch_permit_is_held(const OrchLimit *limits, int n)
{
	for (int i = 0; i < n; i++)
	{
		int index = found_lately[(uint64) limits[i].id % FOUND_LATELY];

		if (limits[i].max_running > 0 &&
			!(mine[index] && orch_shared->permit_ids[index] == limits[i].id))
			return false;
	}
	return true;
}

bool
orch_permit_start(OrchLimit *limits, int n)
{
	OrchPermit *permits[ORCH_MAX_LIMITS];
	int64 now = orch_monotonic();
	bool room = true;

	lock_table();
	for (int i = 0; i < n; i++)
	{
		permits[i] = NULL;
		if (limits[i].rate_limit == 0)
			continue;
		permits[i] = find_permit(MyDatabaseId, limits[i].id, true, now);
		if (permits[i] == NULL)
			continue; /* no room to count: it was allowed when it was claimed */
		advance(permits[i], limits[i].rate_period, now);
		uncount_start(permits[i], &limits[i]);
		room &= permits[i]->started < (uint32) limits[i].rate_limit;
	}
	for (int i = 0; i < n; i++)
	{
		if (permits[i] != NULL && room)
			count_start(permits[i], &limits[i]);
		else
			limits[i].piece = -1; /* counted nowhere */
	}
	LWLockRelease(orch_shared->permit_lock);
	return room;
}

void
orch_permit_return(const OrchLimit *limits, int n)
{
	int64 now = orch_monotonic();

	if (n == 0)
		return;
	lock_table();
	for (int i = 0; i < n; i++)
	{
		OrchPermit *permit =
			limits[i].rate_limit == 0
				? NULL
				: find_permit(MyDatabaseId, limits[i].id, false, now);

		if (permit != NULL)
			uncount_start(permit, &limits[i]);
	}
	LWLockRelease(orch_shared->permit_lock);
}

void
orch_permit_release(OrchExecutor *executor, int keep)
{
	int freed[ORCH_MAX_HELD];
	int nfreed = 0;

	if (executor->npermits <= keep)
		return;
	lock_table();
	while (executor->npermits > keep)
	{
		int index = executor->permits[--executor->npermits];
		OrchPermit *permit = &orch_shared->permits[index];

		mine[index] = false; /* or is not ours: the supervisor's of the dead */
		permit->running--;
		if (!permit->waiting)
			continue;
		permit->waiting = false;
		freed[nfreed++] =
			orch_lane_unblock(permit->dboid, orch_shared->permit_ids[index]);
	}
	LWLockRelease(orch_shared->permit_lock);
	for (int i = 0; i < nfreed; i++)
	{
		if (freed[i] > 0)
			orch_lane_call_ready(executor->dboid);
	}
}

/*
 * Before the supervisor has counted what was held before a restart there is no
 * room.
 */
const OrchLimit *
orch_permit_take_remote(OrchLimit *limits, int n)
{
	OrchPermit *permits[ORCH_MAX_LIMITS] = {0};
	int64 now = orch_monotonic();
	int nfound;

	if (my_database() == NULL || !my_database()->rates_known)
		return limits;
	lock_table();
	nfound = find_room(permits, limits, n, now);
	for (int i = 0; i < nfound; i++)
	{
		/* as found: entered once */
		if (nfound < n || limits[i].max_running == 0)
			permits[i]->running--;
		if (nfound == n && limits[i].rate_limit > 0)
			count_start(permits[i], &limits[i]);
	}
	if (nfound < n && permits[nfound] != NULL)
		permits[nfound]->scarce = true;
	LWLockRelease(orch_shared->permit_lock);
	return nfound == n ? NULL : &limits[nfound];
}

void
orch_permit_give_back(const int64 *ids, int n)
{
	int64 now = orch_monotonic();
	int woken = 0;

	lock_table();
	for (int i = 0; i < n; i++)
	{
		OrchPermit *permit = search_set(MyDatabaseId, ids[i], false, now);

		if (permit == NULL || permit->running == 0)
			continue; /* of before an extension that was dropped */
		permit->running--;
		if (!permit->waiting)
			continue;
		permit->waiting = false;
		woken += orch_lane_unblock(MyDatabaseId, ids[i]);
	}
	LWLockRelease(orch_shared->permit_lock);
	if (woken > 0)
		orch_lane_call_ready(MyDatabaseId);
}

void
orch_permit_take_again(const int64 *ids, int n)
{
	int64 now = orch_monotonic();

	lock_table();
	for (int i = 0; i < n; i++)
	{
		OrchPermit *permit = search_set(MyDatabaseId, ids[i], true, now);

		if (permit != NULL)
			permit->running++;
	}
	LWLockRelease(orch_shared->permit_lock);
}

TimestampTz
orch_permit_wake(Oid dboid, bool all)
{
	int n = pg_atomic_read_u32(&orch_shared->nlanes);
	int64 now = orch_monotonic();
	int64 next = PG_INT64_MAX;
	int woken = 0;

	lock_table();
	for (int i = 0; i < n; i++)
	{
		int64 id = orch_lane_blocked_on(i, dboid);
		OrchPermit *permit =
			id == 0 ? NULL : find_permit(dboid, id, false, now);

		if (permit == NULL || !permit->waiting)
			continue;
		if (all || (permit->wait_until > 0 && permit->wait_until <= now))
		{
			permit->waiting = false;
			permit->wait_until = 0;
			woken += orch_lane_unblock(dboid, id);
		}
		else if (permit->wait_until > 0)
			next = Min(next, permit->wait_until);
	}
	LWLockRelease(orch_shared->permit_lock);
	if (woken > 0)
		orch_lane_call_ready(dboid);
	return next == PG_INT64_MAX ? DT_NOEND : as_timestamp(next);
}

void
orch_permit_forget_starts(Oid dboid)
{
	lock_table();
	for (int i = 0; i < lengthof(orch_shared->permits); i++)
	{
		OrchPermit *permit = &orch_shared->permits[i];

		if (orch_shared->permit_ids[i] != 0 && permit->dboid == dboid)
			permit->width = permit->started = 0;
	}
	LWLockRelease(orch_shared->permit_lock);
}

void
orch_permit_restore(const OrchLimit *limit, int64 ago, int32 n)
{
	int64 now = orch_monotonic();
	OrchPermit *permit;

	lock_table();
	permit = find_permit(MyDatabaseId, limit->id, true, now);
	if (permit != NULL)
	{
		int64 piece;

		advance(permit, limit->rate_period, now);
		piece = (now - Max(ago, 0)) / permit->width;
		if (permit->piece - piece < lengthof(permit->pieces))
		{
			*piece_of(permit, piece) += n;
			permit->started += n;
		}
	}
	LWLockRelease(orch_shared->permit_lock);
}

bool
orch_permit_read(int number, OrchPermitUse *use)
{
	OrchPermit permit;

	if (orch_shared->permits[number].dboid != MyDatabaseId)
		return false;
	LWLockAcquire(orch_shared->permit_lock, LW_SHARED);
	permit = orch_shared->permits[number];
	use->id = orch_shared->permit_ids[number];
	LWLockRelease(orch_shared->permit_lock);
	if (permit.dboid != MyDatabaseId)
		return false;
	if (permit.width > 0)
		advance(&permit, permit.width * ORCH_RATE_PIECES, orch_monotonic());
	use->owner = permit.owner;
	use->running = permit.running;
	use->started = (int32) permit.started;
	use->waiting = permit.waiting;
	use->adaptive = permit.adaptive;
	return true;
}

int32
orch_permit_adapted(Oid dboid, int64 id, bool *scarce)
{
	OrchPermit *permit = find_permit(dboid, id, false, orch_monotonic());

	*scarce = permit != NULL &&
			  (permit->scarce || (permit->waiting && permit->wait_until == 0));
	if (permit == NULL)
		return 0;
	permit->scarce = false;
	return permit->adaptive;
}

void
orch_permit_adapt(Oid dboid, int64 id, int32 limit)
{
	OrchPermit *permit;
	int woken = 0;

	lock_table();
	permit = find_permit(dboid, id, limit > 0, orch_monotonic());
	if (permit != NULL)
	{
		bool grows = limit == 0 || limit > permit->adaptive;

		permit->adaptive = limit;
		if (grows && permit->waiting && permit->wait_until == 0)
		{
			permit->waiting = false;
			woken = orch_lane_unblock(dboid, id);
		}
	}
	LWLockRelease(orch_shared->permit_lock);
	if (woken > 0)
		orch_lane_call_ready(dboid);
}

static TimestampTz
as_timestamp(int64 at)
{
	return orch_clock() + (at - orch_monotonic());
}
