/*
 * event.c
 *	  What a transaction tells others when it commits.
 *
 * Between the change of a row and everybody who waits for it: executors,
 * supervisors, sessions in wait(), listeners.  Ready rows and due times are
 * hints, so those of a rolled back subtransaction are delivered all the same;
 * transitions and interrupts carry their nesting level and are forgotten.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/async.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "depth.h"
#include "event.h"
#include "guc.h"
#include "lane.h"
#include "shmem.h"
#include "waiter.h"

/* A yield that takes longer than this is a bug or a step that cannot stop. */
#define YIELD_TIMEOUT_MS   10000
#define YIELD_LONGEST_POLL 20

/* Transitions beyond this would not fit into the ring in any case. */
#define MAX_TRANSITIONS ORCH_RING_SIZE

/* After a change of limits. */
#define LIMITS_PAUSE (50 * INT64CONST(1000))

typedef struct PendingReady
{
	int32 owner;
	int32 queue; /* or ORCH_PARKED, with ... */
	int64 limit; /* ... what it was parked on */
	Oid roleoid;
	int64 sort_key;
} PendingReady;

typedef struct PendingTransition
{
	OrchEvent event;
	int level; /* of the subtransaction it belongs to */
	bool notify;
} PendingTransition;

typedef struct PendingInterrupt
{
	int64 task;
	int32 epoch;
	int level;
} PendingInterrupt;

/*
 * What the transaction under way has to tell.  The arrays are in
 * TopTransactionContext.
 */
typedef struct Pending
{
	bool any;

	PendingReady *ready; /* sorted by owner, queue */
	int nready;
	int ready_room;
	int ready_last; /* where the last one was found */

	TimestampTz due; /* PG_INT64_MAX: none */
	bool limits_changed;

	PendingTransition *transitions; /* levels never fall */
	int ntransitions;
	int transitions_room;
	bool overflow; /* there were more: wake all, resync */

	PendingInterrupt *interrupts; /* levels never fall */
	int ninterrupts;
	int interrupts_room;
} Pending;

typedef enum Holder
{
	HOLDER_NONE,
	HOLDER_SELF,
	HOLDER_OTHER
} Holder;

/* In the order of OrchEventKind. */
static const char *const event_names[] = {
	"created",	 "started", "progress", "completed", "failed", "retrying",
	"cancelled", "paused",	"resumed",	"skipped",	 "resync",
};

/* In the order of OrchState. */
static const char *const state_names[] = {
	"scheduled", "pending", "running",	 "waiting", "paused",
	"completed", "failed",	"cancelled", "skipped",
};

StaticAssertDecl(lengthof(event_names) == ORCH_EVENT_RESYNC + 1,
				 "event_names must match OrchEventKind");
StaticAssertDecl(lengthof(state_names) == ORCH_STATES,
				 "state_names must match OrchState");

static Pending pending = {.due = PG_INT64_MAX};

PG_FUNCTION_INFO_V1(orchestrator_ready);
PG_FUNCTION_INFO_V1(orchestrator_limits_changed);
PG_FUNCTION_INFO_V1(orchestrator_due);
PG_FUNCTION_INFO_V1(orchestrator_emit);
PG_FUNCTION_INFO_V1(orchestrator_interrupt);
PG_FUNCTION_INFO_V1(orchestrator_yield);
PG_FUNCTION_INFO_V1(orchestrator_yield_own);
PG_FUNCTION_INFO_V1(orchestrator_now);
PG_FUNCTION_INFO_V1(orchestrator_preloaded);

static void *make_room(void *array, int used, int *room, Size size);
static int compare_ready(const PendingReady *one, const PendingReady *other);
static int find_ready(const PendingReady *wanted, bool *found);
static void add_ready(const PendingReady *ready);
static void insert_ready(int at, const PendingReady *entry);
static void notify_now(const OrchEvent *event);
static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);
static void drop_level(int level);
static void raise_level(int level);
static void forget_all(void);
static void deliver_all(void);
static void tell_limits_changed(void);
static void deliver_transitions(void);
static void deliver_interrupts(void);
static bool interrupt_wanted(int64 task, int32 epoch);
static bool find_called(OrchExecutor *executor, int64 *task, int32 *epoch);
static bool is_called(OrchExecutor *executor, int number);
static bool runs(OrchExecutor *executor, int64 task);
static void interrupt_executor(OrchExecutor *executor);
static OrchDatabase *find_database(void);
static void wake_all_waiters(void);
static void ring_was_empty(bool empty);
static OrchEventKind parse_event(const char *name);
static OrchState parse_state(Datum label);
static bool holds_claim(OrchExecutor *executor, int64 task);
static Holder ask_holder(int64 task, bool ask);
static void own_task(int64 task);

bool
orch_state_is_final(OrchState state)
{
	return state >= ORCH_STATE_COMPLETED;
}

const char *
orch_state_name(OrchState state)
{
	Assert((int) state < ORCH_STATES);
	return state_names[state];
}

const char *
orch_event_name(OrchEventKind kind)
{
	Assert((int) kind < (int) lengthof(event_names));
	return event_names[kind];
}

void
orch_event_install(void)
{
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

/*
 * Room for one more element in an array of the transaction.  Leaves the
 * array as it was when memory is out.
 */
static void *
make_room(void *array, int used, int *room, Size size)
{
	if (used < *room)
		return array;

	if (array == NULL)
	{
		array = MemoryContextAlloc(TopTransactionContext, 8 * size);
		*room = 8;
	}
	else
	{
		array = repalloc_huge(array, (Size) *room * 2 * size);
		*room *= 2;
	}
	return array;
}

/*
 * One entry per (owner, queue) and transaction, however many rows it makes
 * ready: a hundred thousand enqueues cost one wake.
 */
void
orch_event_ready(int32 owner, Oid roleoid, int32 queue, int64 sort_key)
{
	PendingReady ready = {.owner = owner,
						  .queue = queue,
						  .roleoid = roleoid,
						  .sort_key = sort_key};

	add_ready(&ready);
}

void
orch_event_parked(int32 owner, int64 limit, int64 sort_key)
{
	PendingReady parked = {.owner = owner,
						   .queue = ORCH_PARKED,
						   .limit = limit,
						   .sort_key = sort_key};

	add_ready(&parked);
}

static void
add_ready(const PendingReady *ready)
{
	PendingReady *entry;
	bool found;
	int at;

	if (!orch_preloaded)
		return;

	at = find_ready(ready, &found);
	if (!found)
		insert_ready(at, ready);
	entry = &pending.ready[at];
	entry->sort_key = Min(entry->sort_key, ready->sort_key);
	if (!OidIsValid(entry->roleoid))
		entry->roleoid = ready->roleoid;
	pending.ready_last = at;
}

static int
compare_ready(const PendingReady *one, const PendingReady *other)
{
	if (one->owner != other->owner)
		return one->owner < other->owner ? -1 : 1;
	if (one->queue != other->queue)
		return one->queue < other->queue ? -1 : 1;
	return one->limit < other->limit ? -1 : one->limit > other->limit;
}

/*
 * Where the entry of a lane stands, or is to stand.
 */
static int
find_ready(const PendingReady *wanted, bool *found)
{
	int low = 0;
	int high = pending.nready;

	*found = true;
	if (pending.nready > 0 &&
		compare_ready(&pending.ready[pending.ready_last], wanted) == 0)
		return pending.ready_last;

	while (low < high)
	{
		int middle = low + (high - low) / 2;
		int order = compare_ready(&pending.ready[middle], wanted);

		if (order == 0)
			return middle;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	*found = false;
	return low;
}

static void
insert_ready(int at, const PendingReady *entry)
{
	pending.ready = make_room(pending.ready, pending.nready,
							  &pending.ready_room, sizeof(PendingReady));
	memmove(&pending.ready[at + 1], &pending.ready[at],
			(pending.nready - at) * sizeof(PendingReady));
	pending.ready[at] = *entry;
	pending.nready++;
	pending.any = true;
}

void
orch_event_due(TimestampTz at)
{
	if (!orch_preloaded || at >= pending.due)
		return;
	pending.due = at;
	pending.any = true;
}

void
orch_event_transition(int64 task, int64 root, int64 parent, OrchEventKind kind,
					  OrchState state, double progress, int32 attempt,
					  bool notify)
{
	OrchEvent event = {.task = task,
					   .root = root,
					   .parent = parent,
					   .progress = progress,
					   .attempt = attempt,
					   .event = kind,
					   .state = state};
	PendingTransition *entry;

	if (!orch_preloaded)
	{
		if (notify)
			notify_now(&event);
		return;
	}

	/*
	 * A waiter may register until we commit, so a final state is always kept;
	 * whoever begins to listen now hears of the next transaction.
	 */
	notify = notify && orch_event_heard();
	if (!notify && !orch_state_is_final(state))
		return;

	pending.any = true;
	if (pending.ntransitions >= MAX_TRANSITIONS)
	{
		pending.overflow = true;
		return;
	}
	pending.transitions =
		make_room(pending.transitions, pending.ntransitions,
				  &pending.transitions_room, sizeof(PendingTransition));
	entry = &pending.transitions[pending.ntransitions++];
	entry->event = event;
	entry->level = GetCurrentTransactionNestLevel();
	entry->notify = notify;
}

/*
 * Without preload nobody can notify for us after commit, and nobody knows
 * who listens.
 */
static void
notify_now(const OrchEvent *event)
{
	char *payload = orch_event_payload(event);
	char channel[NAMEDATALEN];

	if (event->event != ORCH_EVENT_PROGRESS)
		Async_Notify("orchestrator", payload);
	snprintf(channel, sizeof(channel), "orchestrator_task_%lld",
			 (long long) event->root);
	Async_Notify(channel, payload);
	pfree(payload);
}

void
orch_event_interrupt(int64 task, int32 epoch)
{
	PendingInterrupt *entry;

	if (!orch_preloaded)
		return;

	pending.interrupts =
		make_room(pending.interrupts, pending.ninterrupts,
				  &pending.interrupts_room, sizeof(PendingInterrupt));
	entry = &pending.interrupts[pending.ninterrupts++];
	entry->task = task;
	entry->epoch = epoch;
	entry->level = GetCurrentTransactionNestLevel();
	pending.any = true;
}

/*
 * After commit nothing may fail: everything below delivers without
 * allocating.
 */
static void
end_transaction(XactEvent what, void *arg)
{
	if (!pending.any)
		return;

	switch (what)
	{
		case XACT_EVENT_COMMIT:
			deliver_all();
			forget_all();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			/* COMMIT PREPARED makes the supervisor look (database.c). */
			forget_all();
			break;
		default:
			break;
	}
}

static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	if (!pending.any)
		return;

	if (what == SUBXACT_EVENT_ABORT_SUB)
		drop_level(GetCurrentTransactionNestLevel());
	else if (what == SUBXACT_EVENT_COMMIT_SUB)
		raise_level(GetCurrentTransactionNestLevel());
}

/*
 * Entries of the innermost subtransaction stand at the end of the arrays, so
 * both walks touch no others.
 */
static void
drop_level(int level)
{
	while (pending.ntransitions > 0 &&
		   pending.transitions[pending.ntransitions - 1].level >= level)
		pending.ntransitions--;
	while (pending.ninterrupts > 0 &&
		   pending.interrupts[pending.ninterrupts - 1].level >= level)
		pending.ninterrupts--;
}

static void
raise_level(int level)
{
	for (int i = pending.ntransitions - 1;
		 i >= 0 && pending.transitions[i].level >= level; i--)
		pending.transitions[i].level = level - 1;
	for (int i = pending.ninterrupts - 1;
		 i >= 0 && pending.interrupts[i].level >= level; i--)
		pending.interrupts[i].level = level - 1;
}

/*
 * The arrays themselves go with TopTransactionContext.
 */
static void
forget_all(void)
{
	memset(&pending, 0, sizeof(pending));
	pending.due = PG_INT64_MAX;
}

static void
deliver_all(void)
{
	/* first, so that a task is told to be created before it is started */
	if (pending.ntransitions > 0 || pending.overflow)
		deliver_transitions();
	for (int i = 0; i < pending.nready; i++)
	{
		PendingReady *entry = &pending.ready[i];

		if (ORCH_IS_COURIER(entry->limit))
			orch_shmem_wake_courier(MyDatabaseId);
		else if (ORCH_IS_REMOTE(entry->limit))
			orch_waiter_wake(MyDatabaseId, (int32) -entry->limit);
		else
			orch_lane_ready(MyDatabaseId, entry->owner, entry->roleoid,
							entry->queue, entry->limit, entry->sort_key);
	}
	if (pending.limits_changed)
		tell_limits_changed();
	if (pending.due < PG_INT64_MAX)
		orch_shmem_lower_due(MyDatabaseId, pending.due);
	if (pending.ninterrupts > 0)
		deliver_interrupts();
}

/*
 * A little later, when the invalidations that we send after this were taken
 * in: who is woken now would go by the limit it remembers.
 */
static void
tell_limits_changed(void)
{
	OrchDatabase *database;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(MyDatabaseId, false);
	if (database != NULL)
		database->limits_changed = true;
	LWLockRelease(orch_shared->lock);
	orch_shmem_lower_permit(MyDatabaseId, orch_clock() + LIMITS_PAUSE);
}

static void
deliver_transitions(void)
{
	if (pending.overflow)
	{
		wake_all_waiters();
		orch_event_push(NULL);
		return;
	}

	for (int i = 0; i < pending.ntransitions; i++)
	{
		PendingTransition *entry = &pending.transitions[i];

		if (orch_state_is_final(entry->event.state))
			orch_event_wake_waiters(entry->event.task);
		if (entry->notify)
			orch_event_push(&entry->event);
	}
}

/*
 * Executors are few and interrupts may be many (cancel_many), hence this
 * order of the loops.  The lock keeps the slots' processes from leaving.
 */
static void
deliver_interrupts(void)
{
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state == ORCH_EXECUTOR_BUSY &&
			executor->dboid == MyDatabaseId)
			interrupt_executor(executor);
	}
	LWLockRelease(orch_shared->lock);
	orch_shmem_interrupt_courier(MyDatabaseId);
}

static void
interrupt_executor(OrchExecutor *executor)
{
	int64 task;
	int32 epoch;
	int64 wanted;
	int32 wanted_epoch;
	int ncalled;
	bool asked = false;

	SpinLockAcquire(&executor->mutex);
	task = wanted = executor->task;
	epoch = wanted_epoch = executor->epoch;
	ncalled = executor->ncalled;
	SpinLockRelease(&executor->mutex);
	if (task == 0 ||
		!(interrupt_wanted(task, epoch) ||
		  (ncalled > 0 && find_called(executor, &wanted, &wanted_epoch))))
		return;

	SpinLockAcquire(&executor->mutex);
	if (executor->task == task && executor->epoch == epoch)
	{
		executor->interrupt_task = wanted;
		executor->signaled_at = GetCurrentTimestamp();
		executor->interrupt_epoch = wanted_epoch;
		asked = true;
	}
	SpinLockRelease(&executor->mutex);

	/* It may go on to its next step before this arrives: it compares. */
	if (asked && executor->pid > 0)
	{
		kill(executor->pid, SIGINT);
		orch_shmem_set_latch(executor->procno);
	}
}

/*
 * A task of the call under way that is to be interrupted: one is enough.
 */
static bool
find_called(OrchExecutor *executor, int64 *task, int32 *epoch)
{
	for (int i = 0; i < ORCH_MAX_CLAIM; i++)
	{
		OrchClaim *claim = &executor->claims[i];

		if (!is_called(executor, i) ||
			!interrupt_wanted(claim->task, claim->epoch))
			continue;
		*task = claim->task;
		*epoch = claim->epoch;
		return true;
	}
	return false;
}

/*
 * Whether a claim is one of those that the call under way is for.
 */
static bool
is_called(OrchExecutor *executor, int number)
{
	return number >= executor->first_called &&
		   number < executor->first_called + executor->ncalled &&
		   pg_atomic_read_u32(&executor->claims[number].state) ==
			   ORCH_CLAIM_STARTED;
}

static bool
interrupt_wanted(int64 task, int32 epoch)
{
	for (int i = 0; i < pending.ninterrupts; i++)
		if (pending.interrupts[i].task == task &&
			pending.interrupts[i].epoch == epoch)
			return true;
	return false;
}

/*
 * The slot of this session's database.  It can be given to another one
 * while the extension is absent here, so what is cached is checked.
 */
static OrchDatabase *
find_database(void)
{
	static OrchDatabase *cached = NULL;

	if (cached == NULL || cached->dboid != MyDatabaseId)
	{
		LWLockAcquire(orch_shared->lock, LW_SHARED);
		cached = orch_shmem_database(MyDatabaseId, false);
		LWLockRelease(orch_shared->lock);
	}
	return cached;
}

bool
orch_event_heard(void)
{
	OrchDatabase *database;

	if (!orch_preloaded)
		return false;
	database = find_database();
	return database != NULL && pg_atomic_read_u32(&database->listeners) > 0;
}

void
orch_event_push(const OrchEvent *event)
{
	OrchDatabase *database;
	bool empty;

	if (!orch_event_heard())
		return;

	database = find_database();
	if (database == NULL)
		return;
	SpinLockAcquire(&database->ring_mutex);
	empty = database->ring_head == database->ring_tail;
	if (event != NULL &&
		database->ring_head - database->ring_tail < ORCH_RING_SIZE)
		database->ring[database->ring_head++ % ORCH_RING_SIZE] = *event;
	else
		database->ring_lost = true;
	SpinLockRelease(&database->ring_mutex);

	ring_was_empty(empty);
}

/*
 * Who finds events before its own knows that the supervisor was woken for
 * them and has not looked yet.
 */
static void
ring_was_empty(bool empty)
{
	if (empty)
		orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_EVENTS);
}

/*
 * The barrier pairs with the one of the waiter, which registers before it
 * looks: either it is seen here or it sees the commit.  wait.c counts in the
 * same bucket.
 */
void
orch_event_wake_waiters(int64 task)
{
	if (!orch_preloaded)
		return;

	pg_memory_barrier();
	if (pg_atomic_read_u32(
			&orch_shared->wait_buckets[(uint64) task % ORCH_WAIT_BUCKETS]) ==
		0)
		return;

	for (int i = 0; i < orch_shared->nwaiters; i++)
	{
		OrchWaiter *waiter = &orch_shared->waiters[i];

		if (pg_atomic_read_u64(&waiter->task) != (uint64) task)
			continue;
		pg_read_barrier();
		if (waiter->dboid != MyDatabaseId)
			continue;
		pg_atomic_write_u32(&waiter->done, 1);
		orch_shmem_set_latch(i);
	}
}

static void
wake_all_waiters(void)
{
	pg_memory_barrier();
	for (int i = 0; i < orch_shared->nwaiters; i++)
	{
		OrchWaiter *waiter = &orch_shared->waiters[i];

		if (pg_atomic_read_u64(&waiter->task) == 0)
			continue;
		pg_read_barrier();
		if (waiter->dboid != MyDatabaseId)
			continue;
		pg_atomic_write_u32(&waiter->done, 1);
		orch_shmem_set_latch(i);
	}
}

/*
 * Ids, states and numbers only: any role may listen.
 */
char *
orch_event_payload(const OrchEvent *event)
{
	char parent[24] = "null";
	char progress[24] = "null";
	char length[40] = "";

	if (event->event == ORCH_EVENT_RESYNC)
		return pstrdup("{\"event\":\"resync\"}");

	if (event->parent != 0)
		snprintf(parent, sizeof(parent), INT64_FORMAT, event->parent);
	if (event->is_length)
		snprintf(length, sizeof(length), ",\"length\":%.0f", event->progress);
	else if (event->progress >= 0)
		snprintf(progress, sizeof(progress), "%.4g", event->progress);
	return psprintf(
		"{\"task\":" INT64_FORMAT ",\"root\":" INT64_FORMAT
		",\"parent\":%s,\"event\":\"%s\",\"state\":\"%s\""
		",\"progress\":%s,\"attempt\":%d%s}",
		event->task, event->root, parent, orch_event_name(event->event),
		orch_state_name(event->state), progress, event->attempt, length);
}

/*
 * _ready(owner, queue, sort_key, parked_on), not strict.
 */
Datum
orchestrator_ready(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_VOID(); /* it is not ready yet */
	orch_depth_add(PG_GETARG_INT32(0), PG_GETARG_INT32(1), 1);
	if (!PG_ARGISNULL(3) && PG_GETARG_INT64(3) < 0)
		orch_event_parked(PG_GETARG_INT32(0), PG_GETARG_INT64(3),
						  PG_GETARG_INT64(2));
	else
		orch_event_ready(PG_GETARG_INT32(0), InvalidOid, PG_GETARG_INT32(1),
						 PG_GETARG_INT64(2));
	PG_RETURN_VOID();
}

/*
 * _limits_changed(): what sleeps for a limit is to look at it again.
 */
Datum
orchestrator_limits_changed(PG_FUNCTION_ARGS)
{
	if (orch_preloaded)
		pending.limits_changed = pending.any = true;
	PG_RETURN_VOID();
}

Datum
orchestrator_due(PG_FUNCTION_ARGS)
{
	orch_event_due(PG_GETARG_TIMESTAMPTZ(0));
	PG_RETURN_VOID();
}

/*
 * emit(task, root, parent, event, state, progress, attempt, notify), not
 * strict: a task without a root is its own, the rest may be unknown.
 */
Datum
orchestrator_emit(PG_FUNCTION_ARGS)
{
	int64 task;
	char *name;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(3) || PG_ARGISNULL(4))
		elog(ERROR, "an event needs a task, a name and a state");

	task = PG_GETARG_INT64(0);
	name = text_to_cstring(PG_GETARG_TEXT_PP(3));
	orch_event_transition(task, PG_ARGISNULL(1) ? task : PG_GETARG_INT64(1),
						  PG_ARGISNULL(2) ? 0 : PG_GETARG_INT64(2),
						  parse_event(name), parse_state(PG_GETARG_DATUM(4)),
						  PG_ARGISNULL(5) ? -1 : PG_GETARG_FLOAT8(5),
						  PG_ARGISNULL(6) ? 0 : PG_GETARG_INT32(6),
						  !PG_ARGISNULL(7) && PG_GETARG_BOOL(7));
	pfree(name);
	PG_RETURN_VOID();
}

static OrchEventKind
parse_event(const char *name)
{
	for (int i = 0; i < (int) lengthof(event_names); i++)
		if (strcmp(name, event_names[i]) == 0)
			return (OrchEventKind) i;
	elog(ERROR, "unknown event \"%s\"", name);
}

static OrchState
parse_state(Datum label)
{
	char *name = DatumGetCString(DirectFunctionCall1(enum_out, label));

	for (int i = 0; i < ORCH_STATES; i++)
		if (strcmp(name, state_names[i]) == 0)
		{
			pfree(name);
			return (OrchState) i;
		}
	elog(ERROR, "unknown state \"%s\"", name);
}

Datum
orchestrator_interrupt(PG_FUNCTION_ARGS)
{
	orch_event_interrupt(PG_GETARG_INT64(0), PG_GETARG_INT32(1));
	PG_RETURN_VOID();
}

static void
own_task(int64 task)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_IN_USE),
		 errmsg("a step cannot cancel or pause a task of its own batch"),
		 errdetail("Task %lld runs in this very session.", (long long) task),
		 errhint("End the step with an error, or change the task from "
				 "another session.")));
}

/*
 * Ask the executor that holds a task in its fast lane, where the row is
 * locked until its batch commits, to roll back; return once it did.  True
 * when one held it.
 */
Datum
orchestrator_yield(PG_FUNCTION_ARGS)
{
	int64 task = PG_GETARG_INT64(0);
	TimestampTz give_up = 0;
	long delay = 1;
	Holder holder;

	if (!orch_preloaded)
		PG_RETURN_BOOL(false);

	/* Another executor may take it before we lock the row: it is asked too. */
	for (bool first = true;; first = false)
	{
		holder = ask_holder(task, first || delay >= YIELD_LONGEST_POLL);
		if (holder == HOLDER_NONE)
			PG_RETURN_BOOL(!first);
		if (holder == HOLDER_SELF)
			own_task(task);

		if (first)
			give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  YIELD_TIMEOUT_MS);
		else if (GetCurrentTimestamp() >= give_up)
			ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
							errmsg("task %lld is held by an executor that "
								   "does not answer",
								   (long long) task),
							errhint("Try again, or see "
									"orchestrator.worker_status.")));

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 delay, orch_wait_event(ORCH_WAIT_YIELD));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		delay = Min(delay * 2, YIELD_LONGEST_POLL);
	}
}

/*
 * A step looks for a task of its own batch in the fast lane, whose row left with
 * this very transaction: the batch is rolled back, and run again with its rows.
 */
Datum
orchestrator_yield_own(PG_FUNCTION_ARGS)
{
	int64 task = PG_GETARG_INT64(0);

	for (int i = 0; orch_preloaded && i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->pid != MyProcPid ||
			executor->state != ORCH_EXECUTOR_BUSY ||
			!holds_claim(executor, task))
			continue;
		SpinLockAcquire(&executor->mutex);
		executor->yield_task = task;
		SpinLockRelease(&executor->mutex);
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
						errmsg("task %lld runs in the fast lane, and does not "
							   "have to",
							   (long long) task)));
	}
	PG_RETURN_VOID();
}

/*
 * Who holds a task in the fast lane.  With ask, tell it to let go.
 */
static Holder
ask_holder(int64 task, bool ask)
{
	Holder holder = HOLDER_NONE;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < orch_shared->nexecutors && holder == HOLDER_NONE; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state != ORCH_EXECUTOR_BUSY ||
			executor->dboid != MyDatabaseId ||
			!(holds_claim(executor, task) ||
			  (executor->pid == MyProcPid && runs(executor, task))))
			continue;

		/* between steps it is the engine that asks, for its own batch */
		if (executor->pid == MyProcPid && executor->task == 0)
			continue;
		holder = executor->pid == MyProcPid ? HOLDER_SELF : HOLDER_OTHER;
		if (holder == HOLDER_SELF || !ask)
			continue;

		/* its batch may have ended meanwhile */
		SpinLockAcquire(&executor->mutex);
		ask = executor->fast;
		if (ask)
		{
			executor->yield_task = task;
			executor->signaled_at = GetCurrentTimestamp();
		}
		SpinLockRelease(&executor->mutex);
		if (!ask)
			continue;
		kill(executor->pid, SIGINT);
		orch_shmem_set_latch(executor->procno);
	}
	LWLockRelease(orch_shared->lock);
	return holder;
}

/*
 * Whether a task is run by an executor, which is this very process.
 */
static bool
runs(OrchExecutor *executor, int64 task)
{
	if (executor->task == task)
		return true;
	for (int i = 0; executor->ncalled > 0 && i < ORCH_MAX_CLAIM; i++)
	{
		if (is_called(executor, i) && executor->claims[i].task == task)
			return true;
	}
	return false;
}

static bool
holds_claim(OrchExecutor *executor, int64 task)
{
	bool fast;
	uint32 nclaims;

	SpinLockAcquire(&executor->mutex);
	fast = executor->fast;
	SpinLockRelease(&executor->mutex);
	if (!fast)
		return false;

	nclaims = Min(pg_atomic_read_u32(&executor->nclaims), ORCH_MAX_CLAIM);
	pg_read_barrier();
	for (uint32 i = 0; i < nclaims; i++)
	{
		OrchClaim *claim = &executor->claims[i];
		uint32 state = pg_atomic_read_u32(&claim->state);

		if (claim->task == task &&
			(state == ORCH_CLAIM_WAITING || state == ORCH_CLAIM_STARTED))
			return true;
	}
	return false;
}

Datum
orchestrator_now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(orch_clock());
}

Datum
orchestrator_preloaded(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(orch_preloaded);
}
