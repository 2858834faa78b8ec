/*
 * executor.c
 *	  Executors: processes that claim and run the tasks of one role in one
 *	  database.
 *
 * The session is the role's own, from its start to its end, so that nothing a
 * step does can reach more than the role may (DESIGN, promise 5).  What the
 * engine does in it goes around the role's rights in two places only: direct
 * access to the leaves (heap.c) and internal functions called as the owner of
 * the extension (catalog.c).
 *
 * Two commits: claim, commit; then groups of steps, each group settled in the
 * transaction of its effects.  Fast lane: claim, steps and settle in one.
 * A transaction that fails as a whole is run again step by step, so that only
 * the guilty is charged.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

#include "claim.h"
#include "compat.h"
#include "depth.h"
#include "event.h"
#include "execute.h"
#include "executor.h"
#include "guc.h"
#include "lane.h"
#include "limit.h"
#include "note.h"
#include "settle.h"
#include "tune.h"
#include "workflow.h"

/* While a batch runs: does a step take so long that the others should go? */
#define WATCH_MS 51 /* later than the supervisor's LONG_STEP */

/* When a row was locked by somebody else, look again after this, and twice
 * as long each time it still is. */
#define RECHECK_MS	   100
#define MAX_RECHECK_MS 1000

/* Tries of a step whose settle met a deadlock or a serialization failure. */
#define SETTLE_TRIES 3

/*
 * Bytes a batch keeps between transactions, so that its memory is not given
 * back to the kernel and faulted in again, page by page, by the next one:
 * what a full batch of small tasks takes.
 */
#define BATCH_MEMORY (1024 * 1024)

static OrchExecutor *me = NULL;
static OrchBatch *batch = NULL;
static int solo_left = 0; /* tasks to run one by one */
static int64 tasks_done = 0;
static int64 occupied_since = 0; /* by the steps to be settled next */
static int recheck = 0; /* wait before looking at locked rows again; 0: none */
static bool role_changed = false;
static TimeoutId watch_timer;

/* Tasks of the batch that share a transaction. */
typedef struct StepGroup
{
	int n;
	int numbers[ORCH_MAX_BATCH];
} StepGroup;

typedef enum GroupResult
{
	GROUP_DONE,
	GROUP_STALE, /* one was not ours any more; nothing happened */
	GROUP_ERROR	 /* the transaction failed; nothing happened */
} GroupResult;

static void reload(void);
static void start_executor(void);
static void handle_quit(SIGNAL_ARGS);
static void handle_watch(void);
static void leave_slot(int code, Datum arg);
static void discover_lanes(void);
static void discover_parked(OrchLeaf *live, const OrchOwner *owner);
static bool run_next(void);
static void run_batch(int lane);
static void note_role_change(Datum arg, int cacheid, uint32 hashvalue);
static bool is_same_extension(void);
static bool may_run(void);
static int claim(int lane);
static void run_fast(void);
static void run_claimed(void);
static bool may_start(int number);
static void hand_back(int first);
static void give_back(int number);
static void run_each(const StepGroup *group);
static void run_alone_task(int number);
static GroupResult try_group(StepGroup *group, int first, int end,
							 ErrorData **error);
static int run_steps(StepGroup *group, int first, int end);
static bool run_chain(StepGroup *group, int number, TimestampTz began);
static void run_calls(void);
static void run_call(int first, int end);
static void forget_limits(const StepGroup *group);
static bool lost_some(const StepGroup *group);
static int call_tasks(StepGroup *group, int first, int end);
static bool start_called(OrchLeaf *live, int number);
static bool group_is_full(const OrchTask *last, TimestampTz began);
static void note_left_behind(int lane, int n);
static void begin_transaction(void);
static void commit_transaction(bool durable);
static void finish_group(const StepGroup *group);
static void charge(int number, ErrorData *error);
static void announce(const OrchTask *task, OrchEventKind kind, OrchState state,
					 int32 attempt);
static void end_batch(void);
static bool wait_for_work(void);
static bool should_leave(void);
static void set_state(OrchExecutorState state);

void
orchestrator_executor_main(Datum main_arg)
{
	start_executor();

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		reload();
		if (should_leave() || (!run_next() && !wait_for_work()))
			break;
	}
	proc_exit(0);
}

/*
 * Between two batches, also when there is always a next one.
 */
static void
reload(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

static void
start_executor(void)
{
	OrchExecutorArgs args;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	me = &orch_shared->executors[args.slot];
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, orch_shmem_terminate);
	pqsignal(SIGINT, SIG_IGN); /* until there is a step to cancel */
	pqsignal(SIGQUIT, handle_quit);

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (me->state != ORCH_EXECUTOR_STARTING ||
		me->generation != args.generation || me->pid != 0)
	{
		LWLockRelease(orch_shared->lock);
		proc_exit(0); /* given up by the supervisor meanwhile */
	}
	me->pid = MyProcPid;
	me->procno = orch_my_procno();
	orch_note_enter(args.slot);
	LWLockRelease(orch_shared->lock);
	before_shmem_exit(leave_slot, (Datum) 0);

	BackgroundWorkerUnblockSignals();
	orch_shmem_connect(args.dboid, args.roleoid);
	orch_execute_install();
	pqsignal(SIGINT, StatementCancelHandler);
	CacheRegisterSyscacheCallback(AUTHOID, note_role_change, (Datum) 0);
	CacheRegisterSyscacheCallback(DATABASEOID, note_role_change, (Datum) 0);
	watch_timer = RegisterTimeout(USER_TIMEOUT, handle_watch);
	batch = MemoryContextAllocZero(TopMemoryContext, sizeof(OrchBatch));
	batch->context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator batch", BATCH_MEMORY,
		ALLOCSET_DEFAULT_INITSIZE, ALLOCSET_DEFAULT_MAXSIZE);
	discover_lanes();
	set_state(ORCH_EXECUTOR_BUSY);
}

/*
 * Another process died and the server restarts: whatever we run is not why.
 */
static void
handle_quit(SIGNAL_ARGS)
{
	orch_note_innocent(me - orch_shared->executors);
	SignalHandlerForCrashExit(postgres_signal_arg);
}

/*
 * A step runs long.  In the fast lane the batch is rolled back for the sake of
 * the tasks behind it; otherwise the supervisor takes those back.
 */
static void
handle_watch(void)
{
	if (me->fast)
	{
		me->yield_task = -1;
		InterruptPending = true;
		QueryCancelPending = true;
		SetLatch(MyLatch);
	}
	else
		orch_shmem_signal_supervisor(me->dboid, ORCH_WAKE_WORK);
}

/*
 * At exit, after the transaction was aborted.  Claims and the step under way
 * stay in the slot for the supervisor to hand back; a proper exit is not
 * evidence against the step.
 */
static void
leave_slot(int code, Datum arg)
{
	orch_note_innocent(me - orch_shared->executors);
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	me->failed_start =
		!orch_shmem_terminated() && (me->state == ORCH_EXECUTOR_STARTING ||
									 (code != 0 && tasks_done == 0));
	me->state = ORCH_EXECUTOR_DEAD;
	me->since = GetCurrentTimestamp();
	me->lane = -1;
	LWLockRelease(orch_shared->lock);

	/* a claim under way was undone: no mark may stay above its rows */
	if (code != 0)
		orch_lane_reset(me->dboid, true);
	orch_shmem_wake_supervisor(me->dboid, ORCH_WAKE_EXIT);
}

static void
set_state(OrchExecutorState state)
{
	SpinLockAcquire(&me->mutex);
	me->state = state;
	me->since = GetCurrentTimestamp();
	SpinLockRelease(&me->mutex);
}

/*
 * Make a lane of each queue in which our role has ready tasks, unless another
 * executor did: what became ready since has made its own.
 */
static void
discover_lanes(void)
{
	OrchOwner *owner = &orch_shared->owners[me->owner_index];
	OrchLeaf *live;
	int32 queue = 0;

	begin_transaction();
	if (orch_catalog(true) == NULL)
		proc_exit(0);
	me->live = orch_catalog(false)->task_live;
	orch_heap_check_columns();
	live = orch_heap_open_live();
	while (!owner->discovered &&
		   (queue = orch_heap_next_queue(live, me->owner, queue,
										 PG_INT32_MAX)) != 0)
		(void) orch_lane_find(me->owner_index, queue, 0);
	discover_parked(live, owner);
	owner->discovered = true;
	orch_heap_close(live);
	commit_transaction(false);
}

static void
discover_parked(OrchLeaf *live, const OrchOwner *owner)
{
	int64 limit = 0;

	while (!owner->discovered &&
		   (limit = orch_heap_next_parked(live, me->owner, limit)) != 0)
		(void) orch_lane_find(me->owner_index, ORCH_PARKED, limit);
}

/*
 * Work in the lane whose turn it is.  False: no lane has work.
 */
static bool
run_next(void)
{
	int lane = orch_lane_choose(me->owner_index);
	int64 charged;
	instr_time began;
	instr_time took;

	if (lane < 0)
		return false;
	charged = orch_lane_charge(lane);
	INSTR_TIME_SET_CURRENT(began);
	run_batch(lane);
	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, began);
	orch_lane_correct(lane, charged, (int64) INSTR_TIME_GET_MICROSEC(took));
	return true;
}

/*
 * Claim from a lane and run what was claimed.
 */
static void
run_batch(int lane)
{
	MemoryContextReset(batch->context);
	batch->solo = solo_left > 0;
	occupied_since = orch_monotonic();
	if (claim(lane) > 0)
	{
		if (!batch->call && (batch->fast || batch->nclaimed > 1))
			enable_timeout_every(
				watch_timer,
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WATCH_MS),
				WATCH_MS);
		if (batch->fast)
			run_fast();
		else if (batch->call)
			run_calls();
		else
			run_claimed();
		disable_timeout(watch_timer, false);
	}
	end_batch();
}

static void
note_role_change(Datum arg, int cacheid, uint32 hashvalue)
{
	role_changed = true;
}

/*
 * An extension that was dropped and made again gives its owners' numbers, on
 * which our role hangs, to others.
 */
static bool
is_same_extension(void)
{
	const OrchCatalog *catalog = orch_catalog(true);

	if (catalog != NULL && catalog->task_live == me->live)
		return true;
	me->leave = true;
	return false;
}

/*
 * Our role, or its right to be here, may have changed since we connected.  If
 * it may run nothing any more we leave, and the supervisor fails its tasks.
 */
static bool
may_run(void)
{
	Oid roleoid;

	role_changed = false;
	if (orch_catalog_cannot_run(me->owner, &roleoid) == NULL)
		return true;
	me->leave = true;
	return false;
}

/*
 * Claim from a lane.  In the fast lane the transaction stays open; otherwise
 * it is committed before anything runs, asynchronously: a claim that is lost
 * is only a task not claimed, and the note file knows what was running.
 */
static int
claim(int lane)
{
	int n;

	begin_transaction();
	if (!is_same_extension() || (role_changed && !may_run()))
	{
		commit_transaction(false);
		return 0;
	}
	PG_TRY();
	{
		n = orch_claim_batch(me, lane, batch);
	}
	PG_CATCH();
	{
		orch_lane_abort(me, lane, batch->from);
		PG_RE_THROW();
	}
	PG_END_TRY();
	note_left_behind(lane, n);
	orch_depth_starting(me->owner, orch_shared->lanes[lane].queue);
	if (n == 0 || !batch->fast)
	{
		commit_transaction(false);
		orch_depth_started(n);
		orch_claim_committed(me, n);
	}
	if (n > 0 && orch_shared->lanes[lane].ready)
		orch_lane_call(me->owner_index);
	return n;
}

/*
 * Rows that somebody else has locked are looked at again, unless a later claim
 * in their lane found them.
 */
static void
note_left_behind(int lane, int n)
{
	static int where = -1;

	if (batch->left_behind)
	{
		recheck = n > 0 || recheck == 0 ? RECHECK_MS
										: Min(recheck * 2, MAX_RECHECK_MS);
		where = lane;
	}
	else if (lane == where)
		recheck = 0;
}

static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/* whatever the role's defaults are */
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Durable means at least flushed here, whatever the role's setting is.
 */
static void
commit_transaction(bool durable)
{
	int saved = synchronous_commit;

	/* a cancel that comes late must not cut short a wait for the standby */
	QueryCancelPending = false;
	if (!durable)
		synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
	else if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		synchronous_commit = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
	PG_TRY();
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_FINALLY();
	{
		synchronous_commit = saved;
	}
	PG_END_TRY();
	orch_execute_hold_cancel();
	pgstat_report_stat(false);
}

/*
 * One transaction for all.  When it fails, the rows are back as if nothing
 * had been: they are claimed again the other way and run one by one.
 */
static void
run_fast(void)
{
	StepGroup group;
	ErrorData *error;

	if (try_group(&group, 0, batch->nclaimed, &error) == GROUP_DONE)
		return;
	orch_lane_abort(me, batch->lane, batch->from);
	solo_left = batch->nclaimed;
}

static void
run_claimed(void)
{
	int next = 0;

	while (next < batch->nclaimed && !batch->held_up)
	{
		StepGroup group;
		ErrorData *error;

		CHECK_FOR_INTERRUPTS();
		if (orch_execute_is_alone(&batch->tasks[next]))
		{
			if (may_start(next))
				run_alone_task(next++);
			continue;
		}
		if (try_group(&group, next, batch->nclaimed, &error) != GROUP_DONE)
			run_each(&group);
		if (group.n > 0)
			next = group.numbers[group.n - 1] + 1;
		else if (!batch->held_up)
			next = batch->nclaimed;
	}
	if (batch->held_up)
		hand_back(next);
}

/*
 * Whether a limit still has a start for a claimed task; else the batch ends.
 */
static bool
may_start(int number)
{
	OrchTask *task = &batch->tasks[number];

	if (task->nlimits > 0 && !orch_limit_start(task->limits, task->nlimits))
		batch->held_up = true;
	return !batch->held_up;
}

/*
 * Claimed tasks from a number on that are not to start now are pending again.
 * The supervisor makes the same swap (take_back_waiting): one of us does it.
 */
static void
hand_back(int first)
{
	Datum tasks[ORCH_MAX_CLAIM];
	Datum epochs[ORCH_MAX_CLAIM];
	NullableDatum args[3] = {0};
	int n = 0;

	for (int i = first; i < batch->nclaimed; i++)
	{
		uint32 state = ORCH_CLAIM_WAITING;

		if (!pg_atomic_compare_exchange_u32(&me->claims[i].state, &state,
											ORCH_CLAIM_TAKEN))
			continue;
		tasks[n] = Int64GetDatum(me->claims[i].task);
		epochs[n++] = Int32GetDatum(me->claims[i].epoch);
		orch_permit_return(batch->tasks[i].limits, batch->tasks[i].nlimits);
	}
	begin_transaction();
	args[0].value =
		PointerGetDatum(construct_array(tasks, n, INT8OID, 8, true, 'd'));
	args[1].value =
		PointerGetDatum(construct_array(epochs, n, INT4OID, 4, true, 'i'));
	args[2].value = PointerGetDatum(construct_empty_array(INT8OID));
	if (DatumGetInt32(orch_catalog_call(ORCH_FN_RECOVER, 3, args, NULL)) < 0)
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
						errmsg("claimed tasks are locked by others")));
	commit_transaction(true);
}

/*
 * The same in the fast lane, where the row left with this transaction.
 */
static void
give_back(int number)
{
	OrchTask *task = &batch->tasks[number];

	orch_permit_return(task->limits, task->nlimits);
	orch_settle_give_back(batch, number);
}

/*
 * A group failed as a whole: each by itself, to find the guilty.
 */
static void
run_each(const StepGroup *group)
{
	forget_limits(group);
	for (int i = 0; i < group->n; i++)
	{
		int number = group->numbers[i];
		OrchTask *task = &batch->tasks[number];
		StepGroup single;
		ErrorData *error = NULL;
		GroupResult result = GROUP_ERROR;

		for (int try = 0; try < SETTLE_TRIES && result == GROUP_ERROR; try++)
		{
			if (task->outcome == ORCH_OUTCOME_GONE)
				break;
			task->outcome = ORCH_OUTCOME_NONE;
			result = try_group(&single, number, number + 1, &error);
			if (result == GROUP_ERROR &&
				error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED &&
				error->sqlerrcode != ERRCODE_T_R_SERIALIZATION_FAILURE)
				break;
		}
		if (result == GROUP_ERROR && task->outcome != ORCH_OUTCOME_GONE)
			charge(number, error);
		orch_claim_free(me, number);
	}
}

/*
 * Run tasks first..end-1, or as many of them as fit, in one transaction and
 * settle them.  In the fast lane the transaction of the claim is open.
 */
static GroupResult
try_group(StepGroup *group, int first, int end, ErrorData **error)
{
	volatile GroupResult result = GROUP_DONE;

	group->n = 0;
	batch->ntasks = batch->nclaimed;
	PG_TRY();
	{
		int next;

		if (!batch->fast)
			begin_transaction();
		next = is_same_extension() ? run_steps(group, first, end) : -1;
		if (next < 0 || !is_same_extension())
			result = GROUP_STALE;
		for (; result == GROUP_DONE && batch->fast && next < end; next++)
			give_back(next);
		if (result == GROUP_DONE &&
			!orch_settle_tasks(batch, group->numbers, group->n))
			result = GROUP_STALE;
		if (result == GROUP_DONE)
		{
			commit_transaction(true);
			finish_group(group);
		}
		else
			AbortCurrentTransaction();
	}
	PG_CATCH();
	{
		orch_execute_hold_cancel();
		MemoryContextSwitchTo(batch->context);
		*error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		result = GROUP_ERROR;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch->context);
	orch_execute_clean_session();
	return result;
}

/*
 * Returns the number of the first task not run; -1: somebody wants a row of a
 * batch in the fast lane, which must be rolled back.
 */
static int
run_steps(StepGroup *group, int first, int end)
{
	TimestampTz began = orch_clock();

	if (batch->call)
		return call_tasks(group, first, end);
	for (int i = first; i < end; i++)
	{
		OrchTask *task = &batch->tasks[i];

		if (batch->fast && me->yield_task != 0)
			return -1;
		if (orch_execute_is_alone(task) && i > first)
			return i;

		/* what is done before a step that may take long is committed first */
		if (!batch->fast && group->n > 0 && orch_claim_is_slow(task))
			return i;
		if (!may_start(i))
			return i;
		if (!orch_claim_start(me, i))
		{
			/* its row left with this transaction: never commit that */
			if (batch->fast)
				return -1;
			task->outcome = ORCH_OUTCOME_GONE;
			continue;
		}
		if (!run_chain(group, i, began))
			return -1;
		if (group_is_full(&batch->tasks[group->numbers[group->n - 1]], began))
			return i + 1;
	}
	return end;
}

/*
 * Run a task and, straight on, the steps of its run that follow.  False:
 * somebody wants a row of the batch.
 */
static bool
run_chain(StepGroup *group, int number, TimestampTz began)
{
	do
	{
		OrchTask *task = &batch->tasks[number];

		if (number >= batch->nclaimed)
			announce(task, ORCH_EVENT_CREATED, ORCH_STATE_PENDING, 0);
		announce(task, ORCH_EVENT_STARTED, ORCH_STATE_RUNNING,
				 ORCH_INT32(&task->row, ORCH_TASK_ATTEMPT));
		group->numbers[group->n++] = number;
		orch_execute_step(me, task, batch->context);
		if (task->outcome == ORCH_OUTCOME_NONE ||
			(batch->fast && me->yield_task != 0))
			return false;
		number = group_is_full(task, began)
					 ? 0
					 : orch_workflow_go_on(batch, number);
	} while (number != 0);
	return true;
}

/*
 * One call for all; what a limit has no start left for is pending again.
 */
static void
run_calls(void)
{
	run_call(0, batch->nclaimed);
	if (batch->held_up)
		hand_back(0);
}

/*
 * Tasks whose handler takes many, in one call.  When it fails, both halves are
 * called, down to the guilty; when it took too long, each task by itself.
 * When a task turns out to be nobody's any more, the others are called again.
 */
static void
run_call(int first, int end)
{
	StepGroup group;
	ErrorData *error;
	GroupResult result;
	int middle;

	do
	{
		CHECK_FOR_INTERRUPTS();
		result = try_group(&group, first, end, &error);
	} while (result == GROUP_STALE && lost_some(&group));
	if (result == GROUP_DONE)
		return;
	forget_limits(&group);
	if (group.n < 2 || batch->call_end == ORCH_CALL_TIMED_OUT)
	{
		run_each(&group);
		return;
	}
	middle = group.numbers[group.n / 2];
	run_call(first, middle);
	run_call(middle, end);
}

/*
 * Their starts were counted: they are not when they are called again.
 */
static void
forget_limits(const StepGroup *group)
{
	for (int i = 0; i < group->n; i++)
		batch->tasks[group->numbers[i]].nlimits = 0;
}

static bool
lost_some(const StepGroup *group)
{
	for (int i = 0; i < group->n; i++)
	{
		if (batch->tasks[group->numbers[i]].outcome == ORCH_OUTCOME_GONE)
			return true;
	}
	return false;
}

/*
 * As run_steps, for a call.  -1 also when it failed as a whole: then nothing
 * of it may be committed.
 */
static int
call_tasks(StepGroup *group, int first, int end)
{
	OrchLeaf *live = orch_heap_open_live();

	batch->call_end = ORCH_CALL_DONE;
	for (int i = first; i < end; i++)
	{
		OrchTask *task = &batch->tasks[i];

		if (task->outcome == ORCH_OUTCOME_GONE)
			continue;
		if (!may_start(i))
		{
			end = i;
			break;
		}
		if (!start_called(live, i))
		{
			/* its row left with this transaction: never commit that */
			if (batch->fast)
				return -1;
			task->outcome = ORCH_OUTCOME_GONE;
			continue;
		}
		announce(task, ORCH_EVENT_STARTED, ORCH_STATE_RUNNING,
				 ORCH_INT32(&task->row, ORCH_TASK_ATTEMPT));
		group->numbers[group->n++] = i;
	}
	orch_heap_close(live);
	if (group->n > 0)
		batch->call_end = orch_execute_call(batch, group->numbers, group->n);
	if (batch->call_end != ORCH_CALL_DONE ||
		(batch->fast && me->yield_task != 0))
		return -1;
	return end;
}

/*
 * False: the task was taken back, or cancelled since it was claimed.
 */
static bool
start_called(OrchLeaf *live, int number)
{
	const OrchRow *row = &batch->tasks[number].row;

	if (!orch_claim_start(me, number))
		return false;
	if (batch->fast || orch_heap_epoch(live, ORCH_INT64(row, ORCH_TASK_ID)) ==
						   ORCH_INT32(row, ORCH_TASK_EPOCH))
		return true;
	orch_claim_free(me, number);
	return false;
}

/*
 * In the fast lane two more steps as long as the last must fit in before the
 * watch has the batch rolled back.
 */
static bool
group_is_full(const OrchTask *last, TimestampTz began)
{
	int64 limit = orch_batch_time * INT64CONST(1000);
	TimestampTz end = last->finished_at;

	if (batch->fast)
	{
		limit = Min(limit * 5, (WATCH_MS - 1) * INT64CONST(1000));
		end += 2 * (last->finished_at - last->started_at);
	}
	return batch->solo || end - began > limit ||
		   MyProc->subxidStatus.count >= ORCH_WRITTEN_STEPS ||
		   orch_execute_left_objects() || orch_execute_set_constraints();
}

static void
announce(const OrchTask *task, OrchEventKind kind, OrchState state,
		 int32 attempt)
{
	OrchEvent event = {
		.task = ORCH_INT64(&task->row, ORCH_TASK_ID),
		.progress = -1,
		.attempt = attempt,
		.event = kind,
		.state = state,
	};

	if (!orch_event_heard() ||
		(task->definition != NULL && !task->definition->notify))
		return;
	event.root = task->row.nulls[ORCH_TASK_ROOT_ID]
					 ? event.task
					 : ORCH_INT64(&task->row, ORCH_TASK_ROOT_ID);
	event.parent = task->row.nulls[ORCH_TASK_PARENT_ID]
					   ? 0
					   : ORCH_INT64(&task->row, ORCH_TASK_PARENT_ID);
	orch_event_push(&event);
}

/*
 * After the commit.
 */
static void
finish_group(const StepGroup *group)
{
	int claimed = 0;

	for (int i = 0; i < group->n; i++)
	{
		if (group->numbers[i] >= batch->nclaimed)
			continue;
		orch_claim_free(me, group->numbers[i]);
		claimed++;
	}
	if (batch->fast)
		orch_depth_started(claimed);
	orch_tune_report(batch, group->numbers, group->n, &occupied_since);
	tasks_done += group->n;
	if (solo_left > 0)
		solo_left -= group->n;
}

/*
 * A step that succeeded but could not be committed by itself: a deferred
 * constraint, say.  The error is its own.
 */
static void
charge(int number, ErrorData *error)
{
	StepGroup group = {.n = 1, .numbers = {number}};

	orch_execute_fail(&batch->tasks[number], "error", error, batch->context);
	begin_transaction();
	(void) orch_settle_tasks(batch, group.numbers, group.n);
	commit_transaction(true);
	finish_group(&group);
}

/*
 * A procedure or a utility command: effects and settle are two commits, so it
 * runs at least once.
 */
static void
run_alone_task(int number)
{
	StepGroup group = {.n = 1, .numbers = {number}};

	if (!orch_claim_start(me, number))
		return;
	MemoryContextSwitchTo(
		batch->context); /* the claim's commit left us in Top */
	announce(&batch->tasks[number], ORCH_EVENT_STARTED, ORCH_STATE_RUNNING,
			 ORCH_INT32(&batch->tasks[number].row, ORCH_TASK_ATTEMPT));
	orch_execute_alone(me, &batch->tasks[number], batch->context);
	begin_transaction();
	if (is_same_extension())
		(void) orch_settle_tasks(batch, group.numbers, group.n);
	commit_transaction(true);
	finish_group(&group);
	orch_execute_clean_session();
}

static void
end_batch(void)
{
	orch_permit_release(me, 0);
	SpinLockAcquire(&me->mutex);
	me->fast = false;
	me->yield_task = 0;
	me->interrupt_task = 0;
	SpinLockRelease(&me->mutex);
	pg_atomic_write_u32(&me->nclaims, 0);
	QueryCancelPending = false;
}

static bool
should_leave(void)
{
	return me->leave || !orch_enabled || tasks_done >= orch_executor_max_tasks;
}

/*
 * Sleep until there is work.  False: leave.  We say that we are idle before
 * we look a last time, whoever makes a lane ready looks for idle executors
 * after: nobody is missed (lane.c).
 */
static bool
wait_for_work(void)
{
	OrchOwner *owner = &orch_shared->owners[me->owner_index];
	int events;

	if (should_leave())
		return false;
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
	set_state(ORCH_EXECUTOR_IDLE);
	owner->ready = owner->asked = false;
	pg_memory_barrier();
	if (orch_lane_choose(me->owner_index) >= 0)
		owner->ready = true;
	else
	{
		events = WaitLatch(
			MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
			recheck > 0 ? recheck : orch_executor_idle_timeout * 1000L,
			orch_wait_event(ORCH_WAIT_EXECUTOR));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if ((events & WL_TIMEOUT) && recheck == 0)
			return false;
		if (recheck > 0)
			orch_lane_recheck(me->owner_index);
	}
	set_state(ORCH_EXECUTOR_BUSY);
	return true;
}
