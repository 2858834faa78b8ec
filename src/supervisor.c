/*
 * supervisor.c
 *	  The supervisor: one per database that has the extension.
 *
 * Starts executors and the courier where work waits, hands back what dead ones held, moves
 * due tasks, notifies listeners, makes partitions ahead.  It runs as the
 * superuser of the cluster and therefore no user code, ever: only direct
 * access (heap.c) and the extension's internal functions.
 *
 * It sleeps until somebody sets its latch or something is due.  A database in
 * which nothing happens sees no SQL from it.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/twophase.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "compat.h"
#include "courier.h"
#include "duty.h"
#include "event.h"
#include "gather.h"
#include "guc.h"
#include "heap.h"
#include "identity.h"
#include "lane.h"
#include "notify.h"
#include "pool.h"
#include "retention.h"
#include "shmem.h"
#include "stats.h"
#include "supervisor.h"
#include "tune.h"

/* A step that runs longer lets the tasks claimed behind it go. */
#define LONG_STEP (50 * INT64CONST(1000))

/* All lanes are looked at from their beginning again this long after work. */
#define LOOK_INTERVAL (60 * USECS_PER_SEC)

/* Wait for due rows that somebody has locked. */
#define DUE_PAUSE (100 * INT64CONST(1000))

/* Rows moved by one statement. */
#define DUE_ROWS 1000

/* Partitions are made when the newest id is within this many of the next. */
#define IDS_AHEAD INT64CONST(500000)

/* The second look at what a committed command did to the extension. */
#define CATALOG_PAUSE (100 * INT64CONST(1000))

/* Between two looks at adaptive queues at work. */
#define TUNE_INTERVAL USECS_PER_SEC

/* Wait after an error of our own. */
#define ERROR_PAUSE USECS_PER_SEC

/* Before what could not be handed back is tried again; twice as long each time. */
#define RECOVER_PAUSE	  (100 * INT64CONST(1000))
#define MAX_RECOVER_PAUSE (5 * USECS_PER_SEC)

static OrchDatabase *database = NULL;
static MemoryContext turn_context = NULL;
static TimestampTz next_look = DT_NOEND;
static TimestampTz next_partitions = 0;
static TimestampTz next_progress = DT_NOEND;
static TimestampTz next_stats = DT_NOEND;
static TimestampTz next_tune = 0; /* what the one before us looked at */
static TimestampTz retry_at = DT_NOEND;
static TimestampTz alerts_at = 0; /* not looked at before */
static int64 look_in = -1;		  /* ms until tasks have waited for others */
static bool may_fire = false;
static bool recovered = false; /* what died before us was handed back */
static TimestampTz recover_at = 0;
static int64 recover_pause = 0;
static bool catalog_again = false;
static bool locked =
	false; /* somebody kept rows that were to be handed back */

typedef struct Running
{
	int64 task;
	int32 epoch;
} Running;

static Oid live_now = InvalidOid; /* task_live */

static void start_supervisor(Oid dboid);
static void leave_slot(int code, Datum arg);
static void check_extension(void);
static bool perform(OrchDuty duty);
static void recover(void);
static void recover_all(void);
static void look_whether_to_fire(void);
static void restore_rates(void);
static void charge_guilty(void);
static void find_work(void);
static void look_at_owner(OrchLeaf *live, int32 owner);
static bool has_ready(OrchLeaf *live, const OrchKnown *lane);
static void look_for_parked(OrchLeaf *live);
static void look_again(void);
static void stop_strays(void);
static void turn(uint32 wake);
static void recover_rest(TimestampTz now);
static void put_recovery_off(void);
static void recover_dead(void);
static bool recover_executor(OrchExecutor *executor);
static bool server_is_stopping(void);
static void take_back_waiting(void);
static void take_back_from(OrchExecutor *executor);
static int collect_waiting(OrchExecutor *executor, Datum *tasks,
						   Datum *epochs);
static bool hand_back(Datum *tasks, Datum *epochs, int n, int64 charged);
static void move_due(void);
static void check_alerts(void);
static int64 newest_id(void);
static void make_partitions(void);
static void see_to_statistics(uint32 wake, TimestampTz now);
static void save_statistics(void);
static void save_at_exit(int code, Datum arg);
static void manage_pool(void);
static void wake_sleepers(void);
static void tune_queues(bool all);
static void tell_listeners(bool woken);
static void dismiss_executors(void);
static void sleep_until_needed(void);

PG_FUNCTION_INFO_V1(orchestrator_held);

void
orchestrator_supervisor_main(Datum main_arg)
{
	start_supervisor(DatumGetObjectId(main_arg));
	recover();
	perform(find_work);

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			if (may_fire)
				perform(orch_retention_find);
		}
		turn(pg_atomic_exchange_u32(&database->wake, 0));
		MemoryContextReset(turn_context);
		sleep_until_needed();
	}
}

static void
start_supervisor(Oid dboid)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, orch_shmem_terminate);
	BackgroundWorkerUnblockSignals();
	orch_shmem_connect(dboid, InvalidOid);

	/* short statements, whose costs say nothing (chapter 40) */
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_OVERRIDE);

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(dboid, false);
	LWLockRelease(orch_shared->lock);
	if (database == NULL)
		proc_exit(0);
	check_extension();

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (database->supervisor_pid != 0 && database->supervisor_pid != MyProcPid)
	{
		LWLockRelease(orch_shared->lock);
		proc_exit(0); /* there is one already */
	}
	database->supervisor_pid = MyProcPid;
	database->supervisor_procno = orch_my_procno();
	LWLockRelease(orch_shared->lock);
	before_shmem_exit(leave_slot, (Datum) 0);
	before_shmem_exit(save_at_exit, (Datum) 0);
	orch_shmem_wake_launcher(false);

	turn_context =
		AllocSetContextCreate(TopMemoryContext, "orchestrator supervisor turn",
							  ALLOCSET_DEFAULT_SIZES);
	orch_duty_install(turn_context);
	pg_atomic_write_u64(&database->next_alert, 0);
	pg_atomic_fetch_or_u32(&database->wake,
						   ORCH_WAKE_EVENTS | ORCH_WAKE_EXIT | ORCH_WAKE_DUE |
							   ORCH_WAKE_WORK | ORCH_WAKE_STATS);
}

static void
leave_slot(int code, Datum arg)
{
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (database->supervisor_pid == MyProcPid)
	{
		database->terminated = orch_shmem_terminated();
		database->supervisor_pid = 0;
		database->supervisor_procno = -1;
	}
	LWLockRelease(orch_shared->lock);
	orch_shmem_wake_launcher(false);
}

/*
 * Leave when the extension is not, or no longer, in this database.
 */
static void
check_extension(void)
{
	bool present;
	Oid live;

	StartTransactionCommand();
	present = OidIsValid(get_extension_oid("orchestrator", true)) &&
			  orch_catalog(true) != NULL;
	live = present ? orch_catalog(true)->task_live : InvalidOid;
	if (live != live_now && OidIsValid(live_now))
	{
		orch_tune_forget(MyDatabaseId);
		orch_courier_dismiss(database);
	}
	live_now = live;
	CommitTransactionCommand();
	if (present)
		return;

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (database->dboid != MyDatabaseId)
	{
		/* the slot was given to another database meanwhile */
		LWLockRelease(orch_shared->lock);
		proc_exit(0);
	}
	database->absent = true;
	database->wanted = false;
	orch_lane_forget(database->dboid);
	orch_tune_forget(database->dboid);
	LWLockRelease(orch_shared->lock);
	dismiss_executors();
	proc_exit(0);
}

/*
 * One that fails is tried again a little later.
 */
static bool
perform(OrchDuty duty)
{
	bool done;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "orchestrator supervisor");
	done = orch_duty_perform(duty);
	pgstat_report_activity(STATE_IDLE, NULL);
	if (!done)
		retry_at = GetCurrentTimestamp() + ERROR_PAUSE;
	return done;
}

/*
 * What was handed back in a transaction that failed was not.
 */
static void
recover(void)
{
	if (!recovered && !perform(recover_all))
		recovered = false;
	if (may_fire && !database->rates_known)
		perform(restore_rates);
}

/*
 * At start: what was running in a server that is gone, or was left by
 * executors that died while no supervisor looked.
 */
static void
recover_all(void)
{
	NullableDatum args[2];
	Datum guilty[ORCH_MAX_GUILTY];
	int n = 0;

	look_whether_to_fire();
	if (!may_fire)
		return;
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < orch_shared->nguilty; i++)
	{
		if (orch_shared->guilty[i].dboid == MyDatabaseId)
			guilty[n++] = Int64GetDatum(orch_shared->guilty[i].task);
	}
	LWLockRelease(orch_shared->lock);

	args[0].value =
		PointerGetDatum(construct_array(guilty, n, INT8OID, 8, true, 'd'));
	args[0].isnull = false;
	args[1].value = (Datum) 0;
	args[1].isnull = true; /* orchestrator_held() */
	recovered = DatumGetInt32(orch_catalog_call(ORCH_FN_RECOVER_ALL, 2, args,
												NULL)) >= 0;
	charge_guilty();
}

/*
 * Tasks of a copy do not run: who looks into the log learns why.
 */
static void
look_whether_to_fire(void)
{
	may_fire =
		DatumGetBool(orch_catalog_call(ORCH_FN_MAY_FIRE, 0, NULL, NULL));
	if (!may_fire)
		orch_identity_warn();
}

/*
 * What was started before the server was, as far as a rate still counts it.
 * That may be much, and without it no rate has room: no watchdog ends it.  What
 * an attempt that failed has counted is counted anew; the permits of leases
 * were taken.
 */
static void
restore_rates(void)
{
	int64 ago = orch_monotonic() - orch_shared->started_at;
	NullableDatum started = {TimestampTzGetDatum(orch_clock() - ago), false};

	if (!database->permits_retaken)
		orch_catalog_call(ORCH_FN_RETAKE_PERMITS, 0, NULL, NULL);
	database->permits_retaken = true;
	orch_permit_forget_starts(MyDatabaseId);
	HOLD_CANCEL_INTERRUPTS();
	database->ran_before = DatumGetBool(
		orch_catalog_call(ORCH_FN_RESTORE_RATES, 1, &started, NULL));
	RESUME_CANCEL_INTERRUPTS();
	database->rates_known = true;
}

/*
 * A claim that was lost in the crash, or made in the fast lane, left no trace
 * in the table: the note file is the evidence of the attempt.
 */
static void
charge_guilty(void)
{
	for (int i = 0; i < orch_shared->nguilty; i++)
	{
		OrchGuilty *guilty = &orch_shared->guilty[i];
		NullableDatum args[2] = {{Int64GetDatum(guilty->task), false},
								 {Int32GetDatum(guilty->attempt), false}};

		if (guilty->dboid != MyDatabaseId || guilty->task == 0)
			continue;
		if (!DatumGetBool(orch_catalog_call(ORCH_FN_CHARGE, 2, args, NULL)))
			recovered = false;
	}
}

/*
 * What some slot holds, also a dead one: recover_dead() sees to that.
 */
Datum
orchestrator_held(PG_FUNCTION_ARGS)
{
	Datum *tasks;
	int n = 0;

	if (!orch_preloaded)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(INT8OID));
	tasks = palloc(orch_shared->nexecutors * ORCH_MAX_CLAIM * sizeof(Datum));
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		int nclaims = pg_atomic_read_u32(&executor->nclaims);

		if (executor->dboid != MyDatabaseId)
			continue;
		for (int j = 0; j < nclaims; j++)
		{
			uint32 state = pg_atomic_read_u32(&executor->claims[j].state);

			if (state != ORCH_CLAIM_FREE && state != ORCH_CLAIM_TAKEN)
				tasks[n++] = Int64GetDatum(executor->claims[j].task);
		}
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(tasks, n, INT8OID, 8, true, 'd'));
}

/*
 * Lanes that may have work: those that are known from their marks on, for what
 * is before is dead and may be much; and what is between them in the index.
 */
static void
look_at_owner(OrchLeaf *live, int32 owner)
{
	int index = orch_lane_owner(MyDatabaseId, owner, InvalidOid);
	OrchKnown *known;
	int nknown;
	int32 queue = 0;

	if (index < 0)
		return;
	known = orch_lane_known(index, &nknown);
	for (int i = 0; i <= nknown; i++)
	{
		int32 before = i < nknown ? known[i].queue : PG_INT32_MAX;

		if (i < nknown && (known[i].ready || has_ready(live, &known[i])))
			orch_lane_look(index, known[i].queue, known[i].limit);
		if (before == ORCH_PARKED)
			continue;
		while ((queue = orch_heap_next_queue(live, owner, queue, before)) != 0)
			orch_lane_look(index, queue, 0);
		queue = before;
	}
	pfree(known);
}

static bool
has_ready(OrchLeaf *live, const OrchKnown *lane)
{
	OrchReadyScan *scan = lane->queue == ORCH_PARKED
							  ? orch_heap_parked_begin(live, lane->owner,
													   lane->limit, lane->mark)
							  : orch_heap_ready_begin(live, lane->owner,
													  lane->queue, lane->mark);
	OrchRow row;
	ItemPointerData tid;
	bool found = orch_heap_ready_next(scan, &row, &tid);

	orch_heap_ready_end(scan);
	return found;
}

/*
 * Parked rows of owners and limits that have no lane, after a restart.
 */
static void
look_for_parked(OrchLeaf *live)
{
	int32 owner = 0;

	while ((owner = orch_heap_next_parked_owner(live, owner)) != 0)
	{
		int index = orch_lane_owner(MyDatabaseId, owner, InvalidOid);
		int64 limit = 0;

		while (index >= 0 &&
			   (limit = orch_heap_next_parked(live, owner, limit)) != 0)
			orch_lane_look(index, ORCH_PARKED, limit);
	}
}

/*
 * Which owners have ready tasks, and when the next one is due.
 */
static void
find_work(void)
{
	OrchLeaf *live;
	OrchKnown *known;
	int nknown;
	int32 owner = 0;
	bool isnull;
	Datum due;

	look_whether_to_fire();
	live = orch_heap_open_live();
	known = orch_lane_known_owners(MyDatabaseId, &nknown);
	for (int i = 0; i <= nknown; i++)
	{
		int32 before = i < nknown ? known[i].owner : PG_INT32_MAX;

		while ((owner = orch_heap_next_owner(live, owner, before)) != 0)
			look_at_owner(live, owner);
		if (i < nknown)
			look_at_owner(live, owner = before);
	}
	pfree(known);
	look_for_parked(live);
	orch_heap_close(live);

	due = orch_catalog_call(ORCH_FN_NEXT_DUE, 0, NULL, &isnull);
	if (!isnull)
		orch_shmem_lower_due(MyDatabaseId, DatumGetTimestampTz(due));

	if (may_fire)
		orch_retention_find();
	if (DatumGetBool(orch_catalog_call(ORCH_FN_CALLS_WAIT, 0, NULL, NULL)))
		orch_shmem_wake_courier(MyDatabaseId);

	/* the evidence is used up only when all of it was */
	for (int i = 0; recovered && i < orch_shared->nguilty; i++)
	{
		if (orch_shared->guilty[i].dboid == MyDatabaseId)
			orch_shared->guilty[i].dboid = InvalidOid;
	}
}

/*
 * Look at everything from its beginning again: what no mark knew of.
 */
static void
look_again(void)
{
	static uint32 seen[ORCH_MAX_LANES];

	if (orch_lane_reset_quiet(MyDatabaseId, seen))
		next_look = Min(next_look, orch_clock() + LOOK_INTERVAL);
	find_work();
	stop_strays();
}

/*
 * Steps of tasks that are theirs no longer: whoever cancelled them with PREPARE
 * TRANSACTION could tell nobody.  First what runs, then the rows: outside of
 * the fast lane a claim is committed before its step begins.
 */
static void
stop_strays(void)
{
	Running *running = palloc(orch_shared->nexecutors * sizeof(Running));
	OrchLeaf *live;
	int n = 0;

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->dboid != MyDatabaseId ||
			executor->state != ORCH_EXECUTOR_BUSY)
			continue;
		SpinLockAcquire(&executor->mutex);
		running[n].task = executor->fast ? 0 : executor->task;
		running[n].epoch = executor->epoch;
		SpinLockRelease(&executor->mutex);
		n += running[n].task != 0;
	}
	if (n == 0)
		return;
	PushActiveSnapshot(GetLatestSnapshot());
	live = orch_heap_open_live();
	for (int i = 0; i < n; i++)
	{
		if (orch_heap_epoch(live, running[i].task) != running[i].epoch)
			orch_event_interrupt(running[i].task, running[i].epoch);
	}
	orch_heap_close(live);
	PopActiveSnapshot();
}

/*
 * One look at everything that there may be to do.
 */
static void
turn(uint32 wake)
{
	TimestampTz now = orch_clock();

	if (retry_at <= now)
	{
		retry_at = DT_NOEND;
		if (catalog_again)
			wake |= ORCH_WAKE_CATALOG;
		wake |= ORCH_WAKE_LOOK | ORCH_WAKE_EXIT | ORCH_WAKE_DUE;
	}
	if (wake & ORCH_WAKE_CATALOG)
	{
		/* we were woken before the invalidations were sent: look twice */
		check_extension();
		dismiss_executors();
		wake |= ORCH_WAKE_LOOK;
		retry_at = Min(retry_at, now + CATALOG_PAUSE);
		catalog_again = !catalog_again;
	}
	if (may_fire && !(recovered && database->rates_known))
		recover_rest(now);
	if (wake & ORCH_WAKE_EXIT)
		recover_dead();
	take_back_waiting();
	if (now >= (TimestampTz) pg_atomic_read_u64(&database->next_due))
		perform(move_due);
	if (may_fire &&
		now >= Max(alerts_at,
				   (TimestampTz) pg_atomic_read_u64(&database->next_alert)) &&
		!perform(check_alerts))
		orch_shmem_lower_alert(MyDatabaseId, now + ERROR_PAUSE);
	if ((wake & ORCH_WAKE_LOOK) || now >= next_look)
	{
		next_look = max_prepared_xacts > 0 ? now + LOOK_INTERVAL : DT_NOEND;
		perform(look_again);
	}
	else if (wake != 0 && next_look == DT_NOEND)
		next_look = now + LOOK_INTERVAL;
	if (wake != 0 && may_fire && now >= next_partitions)
	{
		next_partitions = now + USECS_PER_SEC;
		perform(make_partitions);
	}
	see_to_statistics(wake, now);
	if (!may_fire && (wake & ORCH_WAKE_WORK))
		perform(find_work);
	if (now >= (TimestampTz) pg_atomic_read_u64(&database->next_permit))
		wake_sleepers();
	if (wake & ORCH_WAKE_TUNE)
		next_tune = Min(next_tune, now + TUNE_INTERVAL);
	if (now >= next_tune)
		tune_queues(next_tune == 0);
	manage_pool();
	if (!orch_retention_manage(database, may_fire))
		orch_pool_lack_other();

	/* after it, which would wake all executors for what one takes at once */
	look_in = orch_gather_look(MyDatabaseId);
	if (wake & ORCH_WAKE_EVENTS || now >= next_progress)
		tell_listeners(wake & ORCH_WAKE_EVENTS);
}

/*
 * It has transactions of its own; an error in one must not end us.
 */
static void
manage_pool(void)
{
	PG_TRY();
	{
		orch_pool_manage(may_fire);
		if (!orch_courier_manage(database, may_fire))
			orch_pool_lack_other();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(turn_context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		retry_at = GetCurrentTimestamp() + ERROR_PAUSE;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn_context);
}

/*
 * Lanes that slept until a rate has room again, or until now, when limits were
 * changed.
 */
static void
wake_sleepers(void)
{
	bool all = database->limits_changed;

	database->limits_changed = false;
	pg_atomic_write_u64(&database->next_permit, PG_INT64_MAX);
	orch_shmem_lower_permit(MyDatabaseId, orch_permit_wake(MyDatabaseId, all));
	if (all)
		tune_queues(true);
}

/*
 * A look at the adaptive queues that are at work; at all of them when queues
 * were defined.
 */
static void
tune_queues(bool all)
{
	next_tune = DT_NOEND;
	if (!orch_tune_collect(all))
		return;
	next_tune = orch_clock() + TUNE_INTERVAL;
	if (perform(orch_tune_decide))
		orch_tune_apply();
}

/*
 * An executor wakes us once in an interval: the step it did that for may have
 * ended before we look, and another report.  So there is a second look.
 */
static void
tell_listeners(bool woken)
{
	bool again = orch_notify_progress() || (woken && orch_event_heard());

	next_progress =
		again ? orch_clock() + ORCH_PROGRESS_INTERVAL_MS * INT64CONST(1000)
			  : DT_NOEND;
	while (orch_notify_drain() > 0)
		CHECK_FOR_INTERRUPTS();
}

/*
 * What was not handed back when we began, or was taken from an executor since;
 * and starts that could not be read.  The look that follows (retry_at) finds
 * who was refused meanwhile.
 */
static void
recover_rest(TimestampTz now)
{
	if (now < recover_at && recover_at <= now + MAX_RECOVER_PAUSE)
	{
		retry_at = Min(retry_at, recover_at);
		return;
	}
	recover();
	if (!recovered || !database->rates_known)
		put_recovery_off();
}

/*
 * Some rows are locked by a session, or there is no room on disk: that may last.
 */
static void
put_recovery_off(void)
{
	recover_pause =
		Max(RECOVER_PAUSE, Min(2 * recover_pause, MAX_RECOVER_PAUSE));
	recover_at = orch_clock() + recover_pause;
	retry_at = Min(retry_at, recover_at);
}

/*
 * Executors that are gone: hand back what they held and free their slots.
 */
static void
recover_dead(void)
{
	bool done = recovered;

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state == ORCH_EXECUTOR_DEAD &&
			executor->dboid == MyDatabaseId && !recover_executor(executor))
			done = false;
	}
	if (done && database->rates_known)
		recover_pause = 0;
	else if (!done && recovered)
		put_recovery_off();
}

/* The slot that a duty works on; duties take no argument. */
static OrchExecutor *current = NULL;

static void
recover_slot(void)
{
	Datum tasks[ORCH_MAX_CLAIM];
	Datum epochs[ORCH_MAX_CLAIM];
	int nclaims = pg_atomic_read_u32(&current->nclaims);
	int64 charged;
	int n = 0;

	/* its tasks went with the extension; others may have their ids now */
	if (OidIsValid(current->live) &&
		current->live != orch_catalog(false)->task_live)
		return;
	for (int i = 0; i < nclaims && !current->fast; i++)
	{
		uint32 state = pg_atomic_read_u32(&current->claims[i].state);

		/* SQL compares the epoch: one handed back already is skipped */
		if (state == ORCH_CLAIM_FREE)
			continue;
		tasks[n] = Int64GetDatum(current->claims[i].task);
		epochs[n++] = Int32GetDatum(current->claims[i].epoch);
	}
	/* nobody knows which task of a call it was: they are to run one by one */
	charged = current->ncalled > 0 ? 0 : current->task;
	if (current->ncalled > 0)
		orch_gather_caution(current->owner_index);
	if (n > 0 && !hand_back(tasks, epochs, n, charged))
		locked = true;
	if (current->fast && charged != 0)
	{
		NullableDatum args[2] = {{Int64GetDatum(current->task), false},
								 {Int32GetDatum(current->attempt), false}};

		if (!DatumGetBool(orch_catalog_call(ORCH_FN_CHARGE, 2, args, NULL)))
			locked = true;
	}
}

/*
 * The step that was running has spent its attempt: it, or somebody who ended
 * its process, is why it did not finish.  When the server stops nobody is
 * charged, and nothing is done: the next start hands everything back.  False:
 * its slot stays dead until another time.
 */
static bool
recover_executor(OrchExecutor *executor)
{
	if (server_is_stopping())
		return true;
	current = executor;
	locked = false;
	if (!perform(recover_slot) || locked)
		return false;
	if (executor->fast)
		orch_lane_reset(MyDatabaseId, true);
	orch_pool_free(executor);
	return true;
}

/*
 * The postmaster writes its state into its lock file before it signals us.
 */
static bool
server_is_stopping(void)
{
	char line[MAXPGPATH];
	FILE *file = AllocateFile("postmaster.pid", "r");
	bool stopping = false;

	if (file == NULL)
		return true;
	for (int i = 1; fgets(line, sizeof(line), file) != NULL; i++)
	{
		if (i == LOCK_FILE_LINE_PM_STATUS)
			stopping = strncmp(line, PM_STATUS_STOPPING,
							   strlen(PM_STATUS_STOPPING)) == 0;
	}
	FreeFile(file);
	return stopping;
}

/*
 * Give unstarted tasks of an executor whose step runs long to others.  The
 * executor makes the same swap before it starts one: each task goes to one of
 * us.
 */
static void
take_back_waiting(void)
{
	TimestampTz now = orch_clock();

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		bool overdue;

		if (executor->dboid != MyDatabaseId || executor->fast ||
			executor->state != ORCH_EXECUTOR_BUSY)
			continue;
		SpinLockAcquire(&executor->mutex);
		overdue =
			executor->task != 0 && now - executor->step_started >= LONG_STEP;
		SpinLockRelease(&executor->mutex);
		if (overdue)
			take_back_from(executor);
	}
}

static void
hand_back_collected(void)
{
	Datum tasks[ORCH_MAX_CLAIM];
	Datum epochs[ORCH_MAX_CLAIM];
	int n = collect_waiting(current, tasks, epochs);

	if (n > 0 && !hand_back(tasks, epochs, n, 0))
		locked = true;
}

static void
take_back_from(OrchExecutor *executor)
{
	int nclaims = pg_atomic_read_u32(&executor->nclaims);
	bool waiting = false;

	for (int i = 0; i < nclaims && !waiting; i++)
		waiting = pg_atomic_read_u32(&executor->claims[i].state) ==
				  ORCH_CLAIM_WAITING;
	if (!waiting)
		return;
	current = executor;
	locked = false;
	if (!perform(hand_back_collected) || locked)
		recovered = false; /* taken, and not handed back: nobody's */
}

static int
collect_waiting(OrchExecutor *executor, Datum *tasks, Datum *epochs)
{
	int nclaims = pg_atomic_read_u32(&executor->nclaims);
	int n = 0;

	for (int i = 0; i < nclaims; i++)
	{
		OrchClaim *held = &executor->claims[i];
		uint32 state = ORCH_CLAIM_WAITING;

		if (!pg_atomic_compare_exchange_u32(&held->state, &state,
											ORCH_CLAIM_TAKEN))
			continue;
		tasks[n] = Int64GetDatum(held->task);
		epochs[n++] = Int32GetDatum(held->epoch);
	}
	return n;
}

/*
 * Hand back running tasks; the charged one (0: none) has spent its attempt.
 */
static bool
hand_back(Datum *tasks, Datum *epochs, int n, int64 charged)
{
	NullableDatum args[3];
	Datum guilty = Int64GetDatum(charged);

	args[0].value =
		PointerGetDatum(construct_array(tasks, n, INT8OID, 8, true, 'd'));
	args[1].value =
		PointerGetDatum(construct_array(epochs, n, INT4OID, 4, true, 'i'));
	args[2].value = PointerGetDatum(
		construct_array(&guilty, charged != 0, INT8OID, 8, true, 'd'));
	args[0].isnull = args[1].isnull = args[2].isnull = false;
	return DatumGetInt32(orch_catalog_call(ORCH_FN_RECOVER, 3, args, NULL)) >=
		   0;
}

/*
 * Tasks whose time has come, and those whose time has run out.
 */
static void
move_due(void)
{
	NullableDatum rows = {Int32GetDatum(DUE_ROWS), false};
	int moved;
	bool isnull;
	Datum due;

	/* whatever becomes due from here on lowers it again */
	pg_atomic_write_u64(&database->next_due, PG_INT64_MAX);
	moved =
		DatumGetInt32(orch_catalog_call(ORCH_FN_PROMOTE_DUE, 1, &rows, NULL));
	moved =
		Max(moved,
			DatumGetInt32(orch_catalog_call(ORCH_FN_EXPIRE, 1, &rows, NULL)));
	due = orch_catalog_call(ORCH_FN_NEXT_DUE, 0, NULL, &isnull);
	if (!isnull)
	{
		TimestampTz at = DatumGetTimestampTz(due);

		/* what is still due is locked by somebody: look a little later */
		if (moved < DUE_ROWS)
			at = Max(at, orch_clock() + DUE_PAUSE);
		orch_shmem_lower_due(MyDatabaseId, at);
	}
}

/*
 * Queues that became too deep or are so no longer.  Looking takes no more than
 * a twentieth of our time.
 */
static void
check_alerts(void)
{
	TimestampTz began = GetCurrentTimestamp();
	bool isnull;
	Datum next;

	pg_atomic_write_u64(&database->next_alert, PG_INT64_MAX);
	next = orch_catalog_call(ORCH_FN_CHECK_ALERTS, 0, NULL, &isnull);
	alerts_at = orch_clock() + 20 * (GetCurrentTimestamp() - began);
	if (!isnull)
		orch_shmem_lower_alert(MyDatabaseId, DatumGetTimestampTz(next));
}

/*
 * The last number given out by the sequence of ids; 0: none yet.
 */
static int64
newest_id(void)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum last;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(orch_catalog(false)->task_id_seq);
	fcinfo->args[0].isnull = false;
	last = pg_sequence_last_value(fcinfo);
	return fcinfo->isnull ? 0 : DatumGetInt64(last);
}

/*
 * The partition of the newest id, and the next one in time.
 */
static void
make_partitions(void)
{
	int64 last = newest_id();
	int64 node = (int64) orch_node_id << 42;

	set_config_option("lock_timeout", "50ms", PGC_USERSET, PGC_S_SESSION,
					  GUC_ACTION_LOCAL, true, 0, false);
	(void) orch_catalog_finished(node | last);
	(void) orch_catalog_finished(node | (last + IDS_AHEAD));
}

/*
 * Write the minutes that are over, once for each in which anything happened.
 */
static void
see_to_statistics(uint32 wake, TimestampTz now)
{
	static TimestampTz pause_until = 0;

	if (pause_until > now + USECS_PER_SEC)
		pause_until = 0; /* the clock was put back */
	if (wake & ORCH_WAKE_STATS)
		next_stats = Max(Min(next_stats, orch_stats_due()), pause_until);
	if (now < next_stats)
		return;
	if (orch_stats_prepare_save(live_now, false))
		perform(save_statistics);
	pause_until = now + USECS_PER_SEC;
	next_stats = Max(orch_stats_due(), pause_until);
}

/*
 * Unless somebody locks the table: it can be done later, and at the end of the
 * server nobody could interrupt us.
 */
static void
save_statistics(void)
{
	const OrchCatalog *catalog = orch_catalog(true);
	NullableDatum everything = {BoolGetDatum(proc_exit_inprogress), false};
	Oid stats;

	if (catalog == NULL || catalog->task_live != live_now)
		return; /* the extension goes or went */
	stats = get_relname_relid("stats", catalog->schema);
	if (!OidIsValid(stats) ||
		!ConditionalLockRelationOid(stats, RowExclusiveLock))
		return;
	catalog = orch_catalog(true); /* the lock may have brought news */
	if (catalog != NULL && catalog->task_live == live_now)
		orch_catalog_call(ORCH_FN_SAVE_STATS, 1, &everything, NULL);
}

/*
 * When the server stops, the minute under way is written, too.  No standby is
 * waited for: it may be gone, and nobody could interrupt us.
 */
static void
save_at_exit(int code, Datum arg)
{
	if (!server_is_stopping())
		return;
	synchronous_commit = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
	AbortOutOfAnyTransaction();
	if (!orch_stats_prepare_save(live_now, true))
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	save_statistics();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * All executors of this database leave when their batch is done; those of an
 * extension that is gone do not finish it.
 */
static void
dismiss_executors(void)
{
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->dboid == MyDatabaseId &&
			executor->state != ORCH_EXECUTOR_FREE)
		{
			executor->leave = true;
			orch_shmem_set_latch(executor->procno);
			if (OidIsValid(executor->live) && executor->live != live_now &&
				executor->pid != 0)
				kill(executor->pid, SIGTERM);
		}
	}
}

static void
sleep_until_needed(void)
{
	TimestampTz now = orch_clock();
	TimestampTz until = (TimestampTz) pg_atomic_read_u64(&database->next_due);
	long timeout = -1;
	int events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	until =
		Min(until, (TimestampTz) pg_atomic_read_u64(&database->next_permit));
	until = Min(until, Min(next_look, Min(next_progress, retry_at)));
	until = Min(until, next_tune);
	until = Min(until, next_stats);
	if (may_fire)
		until = Min(until, Max(alerts_at, (TimestampTz) pg_atomic_read_u64(
											  &database->next_alert)));
	until = Min(until, orch_pool_retry_at());
	until = Min(until, orch_courier_at());
	until = Min(until, orch_retention_at(database, may_fire));
	if (look_in >= 0)
		until = Min(until, now + look_in * 1000);
	if (until < DT_NOEND)
	{
		timeout = Max(0, Min((until - now + 999) / 1000, 3600 * 1000L));
		events |= WL_TIMEOUT;
	}
	WaitLatch(MyLatch, events, timeout, orch_wait_event(ORCH_WAIT_SUPERVISOR));
	ResetLatch(MyLatch);
}
