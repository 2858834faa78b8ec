/*
 * lane.c
 *	  Where the ready rows of an owner's queue begin, and who is woken for
 *	  them.
 *
 * A held snapshot keeps the dead index entries of every row that was claimed
 * meanwhile, and a claim that starts at the first entry walks over all of
 * them.  So each lane has a mark: no pending row that a new snapshot sees has
 * a smaller sort key.  Three rules keep that true.
 *
 *	- Whoever commits a row that is ready lowers the mark after the row became
 *	  visible, and lowers `lane_low` of every claim under way in the lane.
 *	- A claim reads the mark before it takes its snapshot, and at its end
 *	  raises the mark to the first row it may have left behind (the next after
 *	  its last, or one that somebody else had locked), but not above its
 *	  lane_low.
 *	- A claim that is rolled back lowers the mark to where it began.
 *
 * What these do not see is found by looking at a lane from its beginning
 * again: when a prepared transaction ended (database.c), when an executor was
 * ended in the middle of a claim, and when a lane has been quiet for a minute
 * (supervisor.c).  Not while it is busy: the dead entries of a day's work under
 * a held snapshot are many millions.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "lane.h"

static int find_owner(Oid dboid, int32 owner);
static int *lanes_of(int owner_index, int32 queue);
static int find_lane(int owner_index, int32 queue, int64 limit);
static int make_owner(Oid dboid, int32 owner);
static bool owner_is_idle(int index);
static bool sleeps(int lane);
static void forget_owner(int index);
static void forget_lanes(int lane);
static int make_lane(int owner_index, int32 queue, int64 limit);
static bool evict_lane(int lane);
static bool lower(int lane, int64 sort_key, bool ready);
static void lower_claims(int lane, int64 sort_key);
static int64 by_weight(const OrchLane *lane, int64 cost);
static bool wake_executor(int owner_index);
static int add_known(OrchKnown *known, int n, int lane);

/*
 * Caller holds shared->lock.
 */
static int
find_owner(Oid dboid, int32 owner)
{
	int n = pg_atomic_read_u32(&orch_shared->nowners);

	for (int i = 0; i < n; i++)
	{
		if (orch_shared->owners[i].owner == owner &&
			orch_shared->owners[i].dboid == dboid)
			return i;
	}
	return -1;
}

/*
 * Where the list of an owner's lanes begins: parked rows have one of their own.
 */
static int *
lanes_of(int owner_index, int32 queue)
{
	OrchOwner *owner = &orch_shared->owners[owner_index];

	return queue == ORCH_PARKED ? &owner->first_parked : &owner->first_lane;
}

/*
 * Caller holds shared->lock.
 */
static int
find_lane(int owner_index, int32 queue, int64 limit)
{
	int lane = *lanes_of(owner_index, queue);

	while (lane >= 0 && (orch_shared->lanes[lane].queue != queue ||
						 orch_shared->lanes[lane].limit != limit))
		lane = orch_shared->lanes[lane].next;
	return lane;
}

int
orch_lane_owner(Oid dboid, int32 owner, Oid roleoid)
{
	int index;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	index = find_owner(dboid, owner);
	LWLockRelease(orch_shared->lock);
	if (index < 0)
	{
		LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
		index = find_owner(dboid, owner);
		if (index < 0)
			index = make_owner(dboid, owner);
		LWLockRelease(orch_shared->lock);
	}
	if (index >= 0 && OidIsValid(roleoid))
		orch_shared->owners[index].roleoid = roleoid;
	return index;
}

/*
 * Caller holds shared->lock exclusively.  When all entries are in use, one
 * without work makes room: all it knows can be found again.
 */
static int
make_owner(Oid dboid, int32 owner)
{
	OrchOwner *entry;
	int index = -1;

	for (int i = 0; index < 0 && i < ORCH_MAX_OWNERS; i++)
	{
		if (!OidIsValid(orch_shared->owners[i].dboid))
			index = i;
	}
	for (int i = 0; index < 0 && i < ORCH_MAX_OWNERS; i++)
	{
		if (owner_is_idle(i))
		{
			forget_owner(i);
			index = i;
		}
	}
	if (index < 0)
		return -1;

	entry = &orch_shared->owners[index];
	memset(entry, 0, sizeof(OrchOwner));
	entry->owner = owner;
	entry->first_lane = entry->first_parked = -1;
	entry->dboid = dboid;
	if (index >= (int) pg_atomic_read_u32(&orch_shared->nowners))
		pg_atomic_write_u32(&orch_shared->nowners, index + 1);
	return index;
}

/*
 * Whether nothing is to be done for an owner and nobody works for it.
 */
static bool
owner_is_idle(int index)
{
	if (orch_shared->owners[index].ready ||
		sleeps(orch_shared->owners[index].first_lane) ||
		sleeps(orch_shared->owners[index].first_parked))
		return false;
	for (int lane = orch_shared->owners[index].first_lane; lane >= 0;
		 lane = orch_shared->lanes[lane].next)
	{
		if (orch_shared->lanes[lane].look_at != 0)
			return false;
	}
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		if (orch_shared->executors[i].state != ORCH_EXECUTOR_FREE &&
			orch_shared->executors[i].owner_index == index)
			return false;
	}
	return true;
}

/*
 * Whether a lane, or one behind it, sleeps for a limit.
 */
static bool
sleeps(int lane)
{
	while (lane >= 0 && orch_shared->lanes[lane].blocked_on == 0)
		lane = orch_shared->lanes[lane].next;
	return lane >= 0;
}

/*
 * Free an owner and its lanes.  Caller holds shared->lock exclusively.
 */
static void
forget_owner(int index)
{
	forget_lanes(orch_shared->owners[index].first_lane);
	forget_lanes(orch_shared->owners[index].first_parked);
	orch_shared->owners[index].dboid = InvalidOid;
}

static void
forget_lanes(int lane)
{
	while (lane >= 0)
	{
		int next = orch_shared->lanes[lane].next;

		SpinLockAcquire(&orch_shared->lanes[lane].mutex);
		orch_shared->lanes[lane].queue = 0;
		orch_shared->lanes[lane].ready = false;
		orch_shared->lanes[lane].blocked_on = 0;
		orch_shared->lanes[lane].look_at = 0;
		SpinLockRelease(&orch_shared->lanes[lane].mutex);
		lane = next;
	}
}

int
orch_lane_find(int owner_index, int32 queue, int64 limit)
{
	int lane;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	lane = find_lane(owner_index, queue, limit);
	LWLockRelease(orch_shared->lock);
	if (lane >= 0)
		return lane;

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	lane = find_lane(owner_index, queue, limit);
	if (lane < 0)
		lane = make_lane(owner_index, queue, limit);
	LWLockRelease(orch_shared->lock);
	return lane;
}

/*
 * Caller holds shared->lock exclusively.
 */
static int
make_lane(int owner_index, int32 queue, int64 limit)
{
	int *first = lanes_of(owner_index, queue);
	int lane = -1;
	OrchLane *entry;

	for (int i = 0; lane < 0 && i < ORCH_MAX_LANES; i++)
	{
		if (orch_shared->lanes[i].queue == 0)
			lane = i;
	}
	for (int i = 0; lane < 0 && i < ORCH_MAX_LANES; i++)
	{
		if (evict_lane(i))
			lane = i;
	}
	if (lane < 0)
		return -1;

	entry = &orch_shared->lanes[lane];
	SpinLockAcquire(&entry->mutex);
	entry->owner = owner_index;
	entry->mark = ORCH_MARK_LOWEST;
	entry->ready = true;
	entry->paused = false;
	entry->blocked_on = 0;
	entry->look_at = 0;
	entry->weight = 0;
	entry->share = 0;
	entry->cost = 0;
	entry->next = *first;
	entry->limit = limit;
	entry->queue = queue;
	SpinLockRelease(&entry->mutex);
	*first = lane;
	if (lane >= (int) pg_atomic_read_u32(&orch_shared->nlanes))
		pg_atomic_write_u32(&orch_shared->nlanes, lane + 1);
	return lane;
}

/*
 * Take a lane from its owner when nothing is to be done in it: its mark is
 * all that is lost.  Caller holds shared->lock exclusively.
 */
static bool
evict_lane(int lane)
{
	OrchLane *entry = &orch_shared->lanes[lane];
	int *link = lanes_of(entry->owner, entry->queue);
	bool busy;

	SpinLockAcquire(&entry->mutex);
	busy = entry->ready || entry->blocked_on != 0 || entry->look_at != 0;
	for (int i = 0; i < orch_shared->nexecutors; i++)
		busy |= orch_shared->executors[i].lane == lane;
	if (!busy)
		entry->queue = 0;
	SpinLockRelease(&entry->mutex);
	if (busy)
		return false;
	while (*link != lane)
		link = &orch_shared->lanes[*link].next;
	*link = entry->next;
	return true;
}

/*
 * Caller holds the lane's mutex.
 */
static void
lower_claims(int lane, int64 sort_key)
{
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->lane == lane && sort_key < executor->lane_low)
			executor->lane_low = sort_key;
	}
}

/*
 * Lower the mark of a lane.  ready: there is work, unless its queue is known
 * to be paused.  Returns whether somebody should be called for it.
 */
static bool
lower(int lane, int64 sort_key, bool ready)
{
	OrchLane *entry = &orch_shared->lanes[lane];

	SpinLockAcquire(&entry->mutex);
	if (sort_key < entry->mark)
		entry->mark = sort_key;
	lower_claims(lane, sort_key);
	entry->activity++;
	ready = ready && !entry->paused;
	entry->ready |= ready;
	SpinLockRelease(&entry->mutex);
	if (ready)
		orch_shared->owners[entry->owner].ready = true;
	return ready;
}

void
orch_lane_ready(Oid dboid, int32 owner, Oid roleoid, int32 queue, int64 limit,
				int64 sort_key)
{
	int index = orch_lane_owner(dboid, owner, roleoid);
	int lane = index >= 0 ? orch_lane_find(index, queue, limit) : -1;

	if (index < 0)
	{
		orch_shmem_wake_supervisor(dboid, ORCH_WAKE_LOOK);
		return;
	}
	if (lane < 0)
		orch_shared->owners[index].ready = true;
	else
	{
		/* only SQL makes rows ready in the name of nobody: resume_queue() */
		if (!OidIsValid(roleoid))
			orch_lane_set_paused(lane, false);
		if (!lower(lane, sort_key, true))
			return;
	}
	orch_lane_call(index);
}

void
orch_lane_set_paused(int lane, bool paused)
{
	SpinLockAcquire(&orch_shared->lanes[lane].mutex);
	orch_shared->lanes[lane].paused = paused;
	SpinLockRelease(&orch_shared->lanes[lane].mutex);
}

void
orch_lane_reset(Oid dboid, bool ready)
{
	int n;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	n = pg_atomic_read_u32(&orch_shared->nlanes);
	for (int i = 0; i < n; i++)
	{
		if (orch_shared->lanes[i].queue != 0 &&
			orch_shared->owners[orch_shared->lanes[i].owner].dboid == dboid)
			(void) lower(i, ORCH_MARK_LOWEST, ready);
	}
	LWLockRelease(orch_shared->lock);
}

bool
orch_lane_reset_quiet(Oid dboid, uint32 *seen)
{
	bool active = false;
	int n;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	n = pg_atomic_read_u32(&orch_shared->nlanes);
	for (int i = 0; i < n; i++)
	{
		OrchLane *lane = &orch_shared->lanes[i];

		if (lane->queue == 0 ||
			orch_shared->owners[lane->owner].dboid != dboid)
			continue;
		SpinLockAcquire(&lane->mutex);
		if (lane->activity == seen[i])
		{
			lane->mark = ORCH_MARK_LOWEST;
			lower_claims(i, ORCH_MARK_LOWEST);
		}
		else
			active = true;
		seen[i] = lane->activity;
		SpinLockRelease(&lane->mutex);
	}
	LWLockRelease(orch_shared->lock);
	return active;
}

void
orch_lane_recheck(int owner_index)
{
	const OrchOwner *owner = &orch_shared->owners[owner_index];

	for (int i = owner->first_lane; i >= 0; i = orch_shared->lanes[i].next)
		orch_shared->lanes[i].ready = true;
	for (int i = owner->first_parked; i >= 0; i = orch_shared->lanes[i].next)
		orch_shared->lanes[i].ready |= orch_shared->lanes[i].blocked_on == 0;
}

void
orch_lane_look(int owner_index, int32 queue, int64 limit)
{
	int lane = orch_lane_find(owner_index, queue, limit);

	if (lane >= 0)
		orch_shared->lanes[lane].ready = true;
	orch_shared->owners[owner_index].ready = true;
}

bool
orch_lane_block(int lane, int64 limit, bool everybody)
{
	OrchLane *entry = &orch_shared->lanes[lane];
	bool blocked;

	SpinLockAcquire(&entry->mutex);
	blocked = entry->queue == ORCH_PARKED ? entry->limit == limit : everybody;
	if (blocked)
		entry->blocked_on = limit;
	SpinLockRelease(&entry->mutex);
	return blocked;
}

int64
orch_lane_blocked_on(int lane, Oid dboid)
{
	const OrchLane *entry = &orch_shared->lanes[lane];

	return entry->queue != 0 &&
				   orch_shared->owners[entry->owner].dboid == dboid
			   ? entry->blocked_on
			   : 0;
}

int
orch_lane_unblock(Oid dboid, int64 limit)
{
	int n = pg_atomic_read_u32(&orch_shared->nlanes);
	int woken = 0;

	for (int i = 0; i < n; i++)
	{
		OrchLane *lane = &orch_shared->lanes[i];
		OrchOwner *owner = &orch_shared->owners[lane->owner];

		if (lane->blocked_on != limit || lane->queue == 0 ||
			owner->dboid != dboid)
			continue;
		SpinLockAcquire(&lane->mutex);
		if (lane->blocked_on == limit)
		{
			lane->blocked_on = 0;
			lane->ready = true;
			woken++;
		}
		SpinLockRelease(&lane->mutex);
		owner->ready = true;
	}
	return woken;
}

void
orch_lane_call_ready(Oid dboid)
{
	int n = pg_atomic_read_u32(&orch_shared->nowners);

	for (int i = 0; i < n; i++)
	{
		if (orch_shared->owners[i].dboid == dboid &&
			orch_shared->owners[i].ready)
			orch_lane_call(i);
	}
}

static int
compare_known(const void *left, const void *right)
{
	const OrchKnown *one = left;
	const OrchKnown *other = right;

	if (one->owner != other->owner)
		return one->owner < other->owner ? -1 : 1;
	if (one->queue != other->queue)
		return one->queue < other->queue ? -1 : 1;
	return one->limit < other->limit ? -1 : one->limit > other->limit;
}

OrchKnown *
orch_lane_known_owners(Oid dboid, int *n)
{
	OrchKnown *known = palloc(ORCH_MAX_OWNERS * sizeof(OrchKnown));

	*n = 0;
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < ORCH_MAX_OWNERS; i++)
	{
		const OrchOwner *owner = &orch_shared->owners[i];

		if (owner->dboid == dboid &&
			(owner->first_lane >= 0 || owner->first_parked >= 0))
			known[(*n)++] = (OrchKnown){.owner = owner->owner};
	}
	LWLockRelease(orch_shared->lock);
	qsort(known, *n, sizeof(OrchKnown), compare_known);
	return known;
}

OrchKnown *
orch_lane_known(int owner_index, int *n)
{
	const OrchOwner *owner = &orch_shared->owners[owner_index];
	OrchKnown *known = palloc(ORCH_MAX_LANES * sizeof(OrchKnown));

	*n = 0;
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	*n = add_known(known, 0, owner->first_lane);
	*n = add_known(known, *n, owner->first_parked);
	LWLockRelease(orch_shared->lock);
	qsort(known, *n, sizeof(OrchKnown), compare_known);
	return known;
}

static int
add_known(OrchKnown *known, int n, int lane)
{
	for (; lane >= 0; lane = orch_shared->lanes[lane].next)
	{
		OrchLane *entry = &orch_shared->lanes[lane];

		SpinLockAcquire(&entry->mutex);
		known[n++] =
			(OrchKnown){.owner = orch_shared->owners[entry->owner].owner,
						.queue = entry->queue,
						.limit = entry->limit,
						.mark = entry->mark,
						.ready = entry->ready};
		SpinLockRelease(&entry->mutex);
	}
	return n;
}

int64
orch_lane_mark(Oid dboid, int32 owner, int32 queue)
{
	int64 mark = ORCH_MARK_LOWEST;
	int index;
	int lane;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	index = find_owner(dboid, owner);
	lane = index >= 0 ? find_lane(index, queue, 0) : -1;
	if (lane >= 0)
	{
		SpinLockAcquire(&orch_shared->lanes[lane].mutex);
		mark = orch_shared->lanes[lane].mark;
		SpinLockRelease(&orch_shared->lanes[lane].mutex);
	}
	LWLockRelease(orch_shared->lock);
	return mark;
}

void
orch_lane_forget(Oid dboid)
{
	Assert(LWLockHeldByMeInMode(orch_shared->lock, LW_EXCLUSIVE));
	for (int i = 0; i < ORCH_MAX_OWNERS; i++)
	{
		if (orch_shared->owners[i].dboid == dboid)
			forget_owner(i);
	}
}

bool
orch_lane_begin(OrchExecutor *executor, int lane, int32 *queue, int64 *limit,
				int64 *mark)
{
	OrchLane *entry = &orch_shared->lanes[lane];
	bool ours;

	SpinLockAcquire(&entry->mutex);
	ours = entry->queue != 0 && entry->owner == executor->owner_index;
	if (ours)
	{
		executor->lane = lane;
		executor->lane_low = PG_INT64_MAX;
		entry->ready = false;
		entry->blocked_on = 0;
		*queue = entry->queue;
		*limit = entry->limit;
		*mark = entry->mark;
	}
	SpinLockRelease(&entry->mutex);
	return ours;
}

void
orch_lane_end(OrchExecutor *executor, int64 upto, bool more)
{
	OrchLane *entry = &orch_shared->lanes[executor->lane];

	SpinLockAcquire(&entry->mutex);
	upto = Min(upto, executor->lane_low);
	if (upto > entry->mark)
		entry->mark = upto;
	if (more)
		entry->ready = true;
	executor->lane = -1;
	SpinLockRelease(&entry->mutex);
	if (more)
		orch_shared->owners[entry->owner].ready = true;
}

void
orch_lane_abort(OrchExecutor *executor, int lane, int64 from)
{
	SpinLockAcquire(&orch_shared->lanes[lane].mutex);
	executor->lane = -1;
	SpinLockRelease(&orch_shared->lanes[lane].mutex);
	(void) lower(lane, from, true);
}

/*
 * Start-time fair queueing once more (fair.c), over the lanes of an owner and
 * by the time their batches take.  What a lane could have had while it was
 * empty is not owed to it.
 */
int
orch_lane_choose(int owner_index)
{
	const OrchOwner *owner = &orch_shared->owners[owner_index];
	int chosen = -1;
	int64 least = PG_INT64_MAX;

	/* what was parked is older, and limits hold it back in any case */
	for (int i = owner->first_parked; i >= 0; i = orch_shared->lanes[i].next)
	{
		if (orch_shared->lanes[i].ready &&
			orch_shared->lanes[i].owner == owner_index)
			return i;
	}
	for (int i = owner->first_lane; i >= 0; i = orch_shared->lanes[i].next)
	{
		const OrchLane *lane = &orch_shared->lanes[i];
		int64 share = Max(lane->share, owner->share);

		if (lane->ready && lane->owner == owner_index && share < least)
		{
			least = share;
			chosen = i;
		}
	}
	return chosen;
}

int64
orch_lane_charge(int lane)
{
	OrchLane *entry = &orch_shared->lanes[lane];
	OrchOwner *owner = &orch_shared->owners[entry->owner];
	int64 cost;

	if (entry->queue == ORCH_PARKED)
		return 0;
	SpinLockAcquire(&entry->mutex);
	owner->share = entry->share = Max(entry->share, owner->share);
	cost = entry->cost;
	entry->share += by_weight(entry, cost);
	SpinLockRelease(&entry->mutex);
	return cost;
}

void
orch_lane_correct(int lane, int64 charged, int64 elapsed)
{
	OrchLane *entry = &orch_shared->lanes[lane];

	SpinLockAcquire(&entry->mutex);
	entry->share += by_weight(entry, elapsed - charged);
	entry->cost = elapsed;
	SpinLockRelease(&entry->mutex);
}

/*
 * In a unit that leaves something of a short batch at the largest weight.
 */
static int64
by_weight(const OrchLane *lane, int64 cost)
{
	return cost * 1000 / Max(lane->weight, 1);
}

/*
 * An executor that goes idle says so before it looks at the lanes a last
 * time; we changed the lane before we look at the executors: one of the two
 * sees the other.
 */
static bool
wake_executor(int owner_index)
{
	pg_memory_barrier();
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state == ORCH_EXECUTOR_IDLE &&
			executor->owner_index == owner_index && !executor->leave)
		{
			orch_shmem_set_latch(executor->procno);
			return true;
		}
	}
	return false;
}

void
orch_lane_call(int owner_index)
{
	OrchOwner *owner = &orch_shared->owners[owner_index];

	if (wake_executor(owner_index) || owner->asked)
		return;
	owner->asked = true;
	orch_shmem_wake_supervisor(owner->dboid, ORCH_WAKE_WORK);
}
