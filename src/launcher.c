/*
 * launcher.c
 *	  The launcher: one per server; keeps a supervisor in every database that
 *	  has the extension.
 *
 * Which databases have it can only be seen from inside, so a supervisor is
 * started in each: it takes its slot in shared memory when it finds the
 * extension, or marks the database as absent and leaves.  Until then it is a
 * probe, and few probes run at a time.
 *
 * Each turn compares what should run with what does, for all databases; no
 * step relies on having heard of the one before.  The launcher sleeps until
 * somebody sets its latch: the postmaster when a supervisor started or ended,
 * a session that needs one, a command that changed the databases.
 */
#include "postgres.h"

#include <signal.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "database.h"
#include "lane.h"
#include "launcher.h"
#include "pool.h"
#include "shmem.h"
#include "tune.h"

#define MAX_PROBES	   2
#define PROBE_INTERVAL (50 * INT64CONST(1000))
#define PROBE_LIMIT	   (5 * USECS_PER_SEC) /* then it is stuck, not probing */
#define RETRY_INTERVAL USECS_PER_SEC
#define HEALTHY_AFTER  (60 * USECS_PER_SEC)
#define MAX_DELAY	   (60 * USECS_PER_SEC)
#define START_LIMIT	   (10 * USECS_PER_SEC) /* of an executor */

typedef enum Standing
{
	STANDING_UNKNOWN, /* not looked up since the slot was made */
	STANDING_OPEN,	  /* may have a supervisor */
	STANDING_CLOSED,  /* a template, or takes no connections */
	STANDING_DROPPED
} Standing;

/*
 * What the launcher alone knows of the database in the slot of this number.
 */
typedef struct Watch
{
	Standing standing;
	NameData name;
	BackgroundWorkerHandle *handle; /* of the supervisor, if we started it */
	pid_t pid;						/* 0: not known to run */
	TimestampTz started;
} Watch;

typedef struct Listed
{
	Oid dboid;
	NameData name;
	bool open;
} Listed;

static Watch watches[ORCH_MAX_DATABASES];
static List *absent = NIL; /* OIDs of databases without the extension */
static MemoryContext turn_context;
static TimestampTz turn_at;	  /* this turn's time */
static TimestampTz next_turn; /* the latest that the next may come */
static bool look_again = false;
static bool starved = false; /* the server has no worker slot for us */
static bool full = false;	 /* ORCH_MAX_DATABASES are in use */

static void start_launcher(void);
static void withdraw(int code, Datum arg);
static void obey_signals(void);
static bool look_is_due(void);
static void look_at_databases(void);
static List *list_databases(void);
static void update_standing(Watch *watch, Oid dboid, List *listed);
static bool add_database(const Listed *entry);
static void warn_of_full(void);
static void reap_supervisors(void);
static void check_blocker(OrchDatabase *database);
static void check_supervisor(OrchDatabase *database, Watch *watch);
static void end_supervisor(OrchDatabase *database, Watch *watch);
static void free_database(OrchDatabase *database, Watch *watch);
static bool release_executors(Oid dboid);
static void dismiss_supervisors(void);
static void start_supervisors(void);
static int count_probes(void);
static bool should_start(OrchDatabase *database, const Watch *watch);
static bool start_supervisor(OrchDatabase *database, Watch *watch);
static void warn_of_starvation(const char *name);
static void wake_at(TimestampTz at);
static void wait_for_news(void);

void
orch_launcher_register(void)
{
	BackgroundWorker worker = {0};

	if (IsBinaryUpgrade)
		return;
	orch_shmem_describe_worker(&worker, "launcher");
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "orchestrator launcher");
	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}

void
orchestrator_launcher_main(Datum main_arg)
{
	start_launcher();

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		obey_signals();

		MemoryContextReset(turn_context);
		turn_at = GetCurrentTimestamp();
		next_turn = DT_NOEND;

		if (look_is_due())
			look_at_databases();
		reap_supervisors();
		dismiss_supervisors();
		start_supervisors();

		if (!look_is_due())
			wait_for_news();
	}
}

/*
 * A cancel means nothing here.  SIGTERM ends the loop at its next turn.
 */
static void
start_launcher(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, SIG_IGN);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	turn_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator launcher", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(turn_context);

	before_shmem_exit(withdraw, (Datum) 0);
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	orch_shared->launcher_pid = MyProcPid;
	orch_shared->launcher_procno = orch_my_procno();
	orch_shared->launcher_look = true;
	LWLockRelease(orch_shared->lock);
}

static void
withdraw(int code, Datum arg)
{
	/* An error may have come while we held the very lock. */
	LWLockReleaseAll();
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	orch_shared->launcher_pid = 0;
	orch_shared->launcher_procno = -1;
	LWLockRelease(orch_shared->lock);
}

/*
 * The postmaster restarts us only after an exit code other than 0; when it
 * shuts down itself it does not.
 */
static void
obey_signals(void)
{
	if (ShutdownRequestPending)
		proc_exit(1);
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * A session makes a slot without asking whether its database may have workers.
 */
static bool
look_is_due(void)
{
	bool due = look_again || orch_shared->launcher_look;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < ORCH_MAX_DATABASES && !due; i++)
	{
		due = OidIsValid(orch_shared->databases[i].dboid) &&
			  orch_shared->databases[i].wanted &&
			  watches[i].standing == STANDING_UNKNOWN;
	}
	LWLockRelease(orch_shared->lock);
	return due;
}

/*
 * Compare pg_database with the slots: each database that may have workers
 * gets one, unless it is known to lack the extension.
 */
static void
look_at_databases(void)
{
	List *listed;
	ListCell *cell;
	List *remembered = NIL;
	bool fits = true;

	/* Before looking: what is asked for from now on needs another look. */
	look_again = false;
	orch_shared->launcher_look = false;
	pg_memory_barrier();
	listed = list_databases();

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		if (OidIsValid(orch_shared->databases[i].dboid))
			update_standing(&watches[i], orch_shared->databases[i].dboid,
							listed);
	}
	foreach(cell, listed)
		fits = add_database(lfirst(cell)) && fits;
	LWLockRelease(orch_shared->lock);

	/* Forget the databases that are no more. */
	foreach(cell, listed)
	{
		Listed *entry = lfirst(cell);

		if (list_member_oid(absent, entry->dboid))
			remembered = lappend_oid(remembered, entry->dboid);
	}
	list_free(absent);
	MemoryContextSwitchTo(TopMemoryContext);
	absent = list_copy(remembered);
	MemoryContextSwitchTo(turn_context);

	if (!fits && !full)
		warn_of_full();
	full = !fits;
}

static List *
list_databases(void)
{
	List *listed = NIL;
	Relation relation;
	TableScanDesc scan;
	HeapTuple tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Listed *entry = MemoryContextAlloc(turn_context, sizeof(Listed));

		entry->dboid = form->oid;
		entry->name = form->datname;
		entry->open = form->datallowconn && !form->datistemplate &&
					  form->datconnlimit != DATCONNLIMIT_INVALID_DB;
		MemoryContextSwitchTo(turn_context);
		listed = lappend(listed, entry);
		MemoryContextSwitchTo(CurTransactionContext);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn_context);
	pgstat_report_stat(true);
	return listed;
}

static void
update_standing(Watch *watch, Oid dboid, List *listed)
{
	ListCell *cell;

	watch->standing = STANDING_DROPPED;
	foreach(cell, listed)
	{
		Listed *entry = lfirst(cell);

		if (entry->dboid != dboid)
			continue;
		watch->standing = entry->open ? STANDING_OPEN : STANDING_CLOSED;
		watch->name = entry->name;
	}
}

/*
 * False: there is no slot left.  Caller holds the lock exclusively.
 */
static bool
add_database(const Listed *entry)
{
	OrchDatabase *database;
	Watch *watch;

	if (!entry->open || list_member_oid(absent, entry->dboid))
		return true;
	database = orch_shmem_database(entry->dboid, true);
	if (database == NULL)
		return false;

	database->wanted = true;
	watch = &watches[database - orch_shared->databases];
	watch->standing = STANDING_OPEN;
	watch->name = entry->name;
	return true;
}

/*
 * Slots that are held by probes will be free again.
 */
static void
warn_of_full(void)
{
	int supervised = 0;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		if (orch_shared->databases[i].supervisor_pid != 0)
			supervised++;
	}
	LWLockRelease(orch_shared->lock);

	if (supervised == ORCH_MAX_DATABASES)
		ereport(
			WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg(
				 "orchestrator does not serve all databases of this server"),
			 errdetail("At most %d databases can have the extension.",
					   ORCH_MAX_DATABASES)));
}

/*
 * Learn which supervisors ended, and free the slots that nobody needs.
 */
static void
reap_supervisors(void)
{
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];

		if (!OidIsValid(database->dboid))
			continue;
		check_blocker(database);
		check_supervisor(database, &watches[i]);
		free_database(database, &watches[i]);
	}
	LWLockRelease(orch_shared->lock);
}

/*
 * Its session removes the mark itself; this is for the one that could not.
 */
static void
check_blocker(OrchDatabase *database)
{
	if (database->blocked_by == 0)
		return;
	if (BackendPidGetProc(database->blocked_by) == NULL)
		database->blocked_by = 0;
	else
		wake_at(turn_at + RETRY_INTERVAL);
}

/*
 * A supervisor that an earlier launcher started is known by its slot alone.
 */
static void
check_supervisor(OrchDatabase *database, Watch *watch)
{
	pid_t pid = database->supervisor_pid;

	if (watch->handle != NULL)
	{
		BgwHandleStatus status;

		status = orch_shmem_worker_status(watch->handle, watch->started, &pid);
		if (status == BGWH_STARTED)
			watch->pid = pid;
		else if (status == BGWH_NOT_YET_STARTED)
			wake_at(turn_at + ORCH_START_PAUSE);
		if (status != BGWH_STOPPED)
			return;
		pid = watch->pid;
		pfree(watch->handle);
		watch->handle = NULL;
		watch->pid = 0;
	}
	else if (pid == 0 || BackendPidGetProc(pid) != NULL)
		return;

	/* It may have left because it found another one there. */
	if (database->supervisor_pid != 0 && database->supervisor_pid != pid)
		return;
	database->supervisor_pid = 0;
	database->supervisor_procno = -1;
	end_supervisor(database, watch);
}

/*
 * When it may start again.  One that failed soon is started at once the first
 * time, then later and later; one that was told to leave, at once.
 */
static void
end_supervisor(OrchDatabase *database, Watch *watch)
{
	bool terminated = database->terminated;
	TimestampTz delay;

	database->terminated = false;
	if (database->absent)
	{
		MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);

		absent = list_append_unique_oid(absent, database->dboid);
		MemoryContextSwitchTo(context);
		/* Unless the extension was made just after it had looked. */
		if (pg_atomic_read_u32(&database->wake) & ORCH_WAKE_CATALOG)
		{
			database->wanted = true;
			database->absent = false;
		}
		return;
	}
	if (database->blocked_by != 0 || watch->standing != STANDING_OPEN)
		return;

	database->retry_at = 0;
	if (terminated || turn_at - watch->started >= HEALTHY_AFTER)
		database->failures = 0;
	else if (++database->failures > 1)
	{
		delay = USECS_PER_SEC << Min(database->failures - 2, 6);
		database->retry_at = turn_at + Min(delay, MAX_DELAY);
	}
}

/*
 * Give a slot back when its database was dropped or has no extension, and
 * nobody of ours is there.  Caller holds the lock exclusively.
 */
static void
free_database(OrchDatabase *database, Watch *watch)
{
	bool dropped = watch->standing == STANDING_DROPPED;

	if (watch->standing == STANDING_UNKNOWN ||
		(database->wanted && !database->absent && !dropped))
		return;
	if (watch->handle != NULL || database->supervisor_pid != 0 ||
		database->blocked_by != 0)
		return;
	if (pg_atomic_read_u32(&database->listeners) > 0 && !dropped)
		return;
	if (!release_executors(database->dboid))
	{
		wake_at(turn_at + RETRY_INTERVAL);
		return;
	}

	orch_lane_forget(database->dboid);
	orch_tune_forget(database->dboid);
	pg_atomic_write_u32(&database->listeners, 0);
	database->dboid = InvalidOid;
	memset(watch, 0, sizeof(Watch));
	if (full)
		look_again = true;
}

/*
 * Executors outlive their supervisor, which gives back what they held.  Here
 * nobody will start it again.  False: some are still there.
 */
static bool
release_executors(Oid dboid)
{
	bool released = true;

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		TimestampTz age = turn_at - executor->since;

		if (executor->state == ORCH_EXECUTOR_FREE || executor->dboid != dboid)
			continue;
		if (executor->pid != 0 && BackendPidGetProc(executor->pid) != NULL)
		{
			(void) kill(executor->pid, SIGTERM);
			released = false;
		}
		else if (executor->state == ORCH_EXECUTOR_STARTING && age >= 0 &&
				 age < START_LIMIT)
			released = false;
		else
		{
			pg_atomic_write_u32(&executor->nclaims, 0);
			executor->dboid = InvalidOid;
			executor->pid = 0;
			executor->procno = -1;
			executor->state = ORCH_EXECUTOR_FREE;
		}
	}
	return released;
}

/*
 * End what must not run.  In a blocked database the blocking session ends
 * what has started; what has not only we can stop.
 */
static void
dismiss_supervisors(void)
{
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];
		Watch *watch = &watches[i];
		bool closed = watch->standing == STANDING_CLOSED;

		if (!closed && database->blocked_by == 0)
			continue;
		if (watch->handle != NULL)
			TerminateBackgroundWorker(watch->handle);
		if (closed && orch_database_workers(database->dboid, true) > 0)
			wake_at(turn_at + RETRY_INTERVAL);
	}
}

static void
start_supervisors(void)
{
	int probes = count_probes();
	bool held = false;

	for (int i = 0; i < ORCH_MAX_DATABASES && !held; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];
		Watch *watch = &watches[i];

		if (!should_start(database, watch))
			continue;
		held = probes++ >= MAX_PROBES;
		if (held)
			wake_at(turn_at + PROBE_INTERVAL);
		else if (!start_supervisor(database, watch))
		{
			held = true;
			warn_of_starvation(NameStr(watch->name));
			orch_pool_make_room(ORCH_HEIR_OTHER);
			wake_at(turn_at + RETRY_INTERVAL);
		}
	}
	if (starved && !held)
	{
		starved = false;
		orch_pool_thank(ORCH_HEIR_OTHER);
		ereport(LOG,
				(errmsg("all orchestrator supervisors can be started again")));
	}
}

static int
count_probes(void)
{
	int probes = 0;

	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		if (watches[i].handle != NULL &&
			orch_shared->databases[i].supervisor_pid == 0 &&
			turn_at - watches[i].started < PROBE_LIMIT)
			probes++;
	}
	return probes;
}

static bool
should_start(OrchDatabase *database, const Watch *watch)
{
	bool missing;
	TimestampTz retry_at;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	missing = OidIsValid(database->dboid) && database->wanted &&
			  !database->absent && database->blocked_by == 0 &&
			  database->supervisor_pid == 0 && watch->handle == NULL &&
			  watch->standing == STANDING_OPEN && !orch_shared->launcher_look;
	retry_at = database->retry_at;
	LWLockRelease(orch_shared->lock);

	if (!missing)
		return false;
	/* Later than we ever delay: the clock was set back. */
	if (retry_at <= turn_at || retry_at > turn_at + MAX_DELAY)
		return true;
	wake_at(retry_at);
	return false;
}

/*
 * False: the server has no slot for another worker.
 */
static bool
start_supervisor(OrchDatabase *database, Watch *watch)
{
	BackgroundWorker worker = {0};
	MemoryContext context;
	bool registered;

	orch_shmem_describe_worker(&worker, "supervisor");
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "orchestrator supervisor %s", NameStr(watch->name));
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(database->dboid);
	worker.bgw_notify_pid = MyProcPid;

	/* It sees what was committed before: later news end_supervisor() sees. */
	absent = list_delete_oid(absent, database->dboid);
	pg_atomic_fetch_and_u32(&database->wake, ~ORCH_WAKE_CATALOG);

	context = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &watch->handle);
	MemoryContextSwitchTo(context);
	watch->started = turn_at;
	watch->pid = 0;
	wake_at(turn_at + ORCH_START_PAUSE);
	return registered;
}

/*
 * Once, and again only after every supervisor could be started.
 */
static void
warn_of_starvation(const char *name)
{
	if (starved)
		return;
	starved = true;
	ereport(
		WARNING,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg(
			 "could not start the orchestrator supervisor of database \"%s\"",
			 name),
		 errdetail(
			 "The server has no free slot for a background worker; this is tried again every second."),
		 errhint("You may need to increase max_worker_processes.")));
}

static void
wake_at(TimestampTz at)
{
	next_turn = Min(next_turn, at);
}

static void
wait_for_news(void)
{
	int events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long timeout = -1;

	if (next_turn != DT_NOEND)
	{
		events |= WL_TIMEOUT;
		timeout =
			TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_turn);
	}
	(void) WaitLatch(MyLatch, events, timeout,
					 orch_wait_event(ORCH_WAIT_LAUNCHER));
	ResetLatch(MyLatch);
}
