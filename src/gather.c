/*
 * gather.c
 *	  Which ready tasks make one call of a handler that takes many
 *	  (batch_size), and which wait a little for more (batch_wait).
 *
 * A claim that meets tasks which have not waited for batch_wait only counts
 * them.  When they are enough it scans again and takes them; when they are
 * not, it leaves them and notes in the lane when the first will have waited
 * long enough.  The supervisor sleeps until then and has an executor look.
 * That time is measured by a clock that nobody sets.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "utils/timestamp.h"

#include "gather.h"
#include "guc.h"
#include "lane.h"

/* Rows of others that a call goes past at most. */
#define MAX_PASSED 1000

/* How long calls are of one task each after one ended with its process. */
#define CAUTION (60 * USECS_PER_SEC)

/* Tasks of a definition that wait for more of it. */
typedef struct Waiting
{
	int32 definition;
	int count;
} Waiting;

static OrchGatherVerdict judge_for_call(OrchGather *gather,
										const OrchDefinition *definition,
										const OrchRow *row, bool fast,
										int ntasks);
static bool count_waiting(OrchGather *gather, const OrchDefinition *definition,
						  const OrchRow *row, int64 left);
static bool is_called(const OrchGather *gather,
					  const OrchDefinition *definition, bool fast);
static void leave(OrchGather *gather, const OrchRow *row);
static int size_of(const OrchGather *gather, const OrchDefinition *definition);
static Waiting *find_waiting(OrchGather *gather, int32 definition);
static int64 steady_clock(void);
static void note_look(Oid dboid, int lane, int64 at);

void
orch_gather_begin(OrchGather *gather, OrchExecutor *executor, TimestampTz now)
{
	memset(gather, 0, sizeof(OrchGather));
	gather->mark = PG_INT64_MAX;
	gather->look_in = -1;
	gather->now = now;
	gather->alone =
		orch_shared->straight_on_from > GetCurrentTimestamp() ||
		orch_shared->owners[executor->owner_index].alone_until > now;
}

OrchGatherVerdict
orch_gather_judge(OrchGather *gather, OrchReadyScan *scan,
				  const OrchDefinition *definition, const OrchRow *row,
				  bool fast, int ntasks)
{
	int64 left;

	/* somebody else has all of the call's tasks so far: there is none */
	if (ntasks == 0 && !gather->again && !is_called(gather, definition, fast))
		gather->definition = 0;
	if (gather->definition != 0)
		return judge_for_call(gather, definition, row, fast, ntasks);
	if (!ORCH_TAKES_MANY(definition))
		return ORCH_GATHER_TAKE;
	left = orch_gather_time_left(definition, row, gather->now);
	if (left > 0)
	{
		if (orch_heap_ready_held(scan))
			return ORCH_GATHER_HELD;
		if (!count_waiting(gather, definition, row, left))
			return ORCH_GATHER_LEAVE;
	}
	if (ntasks > 0)
		return ORCH_GATHER_STOP;

	gather->definition = definition->id;
	gather->size = size_of(gather, definition);
	gather->fast = fast;
	gather->again = find_waiting(gather, definition->id) != NULL;
	if (!gather->again)
		return ORCH_GATHER_TAKE;
	gather->mark = PG_INT64_MAX;
	gather->look_in = -1;
	orch_heap_ready_again(scan);
	return ORCH_GATHER_LEAVE;
}

static OrchGatherVerdict
judge_for_call(OrchGather *gather, const OrchDefinition *definition,
			   const OrchRow *row, bool fast, int ntasks)
{
	if (ntasks >= gather->size)
		return ORCH_GATHER_STOP;
	if (is_called(gather, definition, fast))
		return ORCH_GATHER_TAKE;
	leave(gather, row);
	return ++gather->passed > MAX_PASSED ? ORCH_GATHER_STOP
										 : ORCH_GATHER_LEAVE;
}

static bool
is_called(const OrchGather *gather, const OrchDefinition *definition,
		  bool fast)
{
	return definition != NULL && definition->id == gather->definition &&
		   fast == gather->fast;
}

/*
 * Whether those that wait are enough for a call with this one.
 */
static bool
count_waiting(OrchGather *gather, const OrchDefinition *definition,
			  const OrchRow *row, int64 left)
{
	Waiting *waiting = find_waiting(gather, definition->id);

	if (waiting == NULL)
	{
		waiting = palloc0(sizeof(Waiting));
		waiting->definition = definition->id;
		gather->waiting = lappend(gather->waiting, waiting);
	}
	leave(gather, row);
	if (gather->look_in < 0 || left < gather->look_in)
		gather->look_in = left;
	return ++waiting->count >= size_of(gather, definition);
}

static void
leave(OrchGather *gather, const OrchRow *row)
{
	gather->mark = Min(gather->mark, ORCH_INT64(row, ORCH_TASK_SORT_KEY));
}

static int
size_of(const OrchGather *gather, const OrchDefinition *definition)
{
	return gather->alone ? 1 : Min(definition->batch_size, orch_batch_size);
}

/*
 * 0 as well if the clock was set back.  The row began to wait when it was made
 * or, if it was put off or is retried, when that time came.
 */
int64
orch_gather_time_left(const OrchDefinition *definition, const OrchRow *row,
					  TimestampTz now)
{
	TimestampTz since = DatumGetTimestampTz(row->values[ORCH_TASK_CREATED_AT]);
	int64 left;

	if (definition->batch_wait == 0)
		return 0;
	if (!row->nulls[ORCH_TASK_RUN_AT])
		since = Max(since, DatumGetTimestampTz(row->values[ORCH_TASK_RUN_AT]));
	left = definition->batch_wait - (now - since) / 1000;
	return since > now ? 0 : Max(left, 0);
}

static Waiting *
find_waiting(OrchGather *gather, int32 definition)
{
	ListCell *cell;

	foreach(cell, gather->waiting)
	{
		Waiting *waiting = lfirst(cell);

		if (waiting->definition == definition)
			return waiting;
	}
	return NULL;
}

bool
orch_gather_end(const OrchGather *gather, Oid dboid, int lane)
{
	if (gather->look_in >= 0)
		note_look(dboid, lane, steady_clock() + gather->look_in + 1);
	return gather->passed > 0;
}

void
orch_gather_caution(int owner_index)
{
	orch_shared->owners[owner_index].alone_until = orch_clock() + CAUTION;
}

/*
 * Milliseconds since some time before the server started; not 0.
 */
static int64
steady_clock(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now) + 1;
}

/*
 * Nothing but the supervisor's look takes it back: one too many is harmless.
 */
static void
note_look(Oid dboid, int lane, int64 at)
{
	OrchLane *entry = &orch_shared->lanes[lane];
	bool sooner;

	SpinLockAcquire(&entry->mutex);
	sooner = entry->look_at == 0 || at < entry->look_at;
	if (sooner)
		entry->look_at = at;
	SpinLockRelease(&entry->mutex);

	/* it reads the lanes before each sleep */
	if (sooner)
		orch_shmem_signal_supervisor(dboid, 0);
}

int64
orch_gather_look(Oid dboid)
{
	int64 now = steady_clock();
	bool due_owners[ORCH_MAX_OWNERS] = {false};
	int64 next = -1;
	int n;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	n = pg_atomic_read_u32(&orch_shared->nlanes);
	for (int i = 0; i < n; i++)
	{
		OrchLane *lane = &orch_shared->lanes[i];
		bool due;

		if (lane->look_at == 0 || lane->queue == 0 ||
			orch_shared->owners[lane->owner].dboid != dboid)
			continue;
		SpinLockAcquire(&lane->mutex);
		due = lane->look_at != 0 && lane->look_at <= now;
		if (due)
		{
			lane->look_at = 0;
			lane->ready = true;
		}
		else if (lane->look_at != 0 &&
				 (next < 0 || lane->look_at - now < next))
			next = lane->look_at - now;
		SpinLockRelease(&lane->mutex);
		if (due)
			due_owners[lane->owner] = true;
	}
	LWLockRelease(orch_shared->lock);
	for (int i = 0; i < ORCH_MAX_OWNERS; i++)
	{
		if (!due_owners[i])
			continue;
		orch_shared->owners[i].ready = true;
		orch_lane_call(i);
	}
	return next;
}
