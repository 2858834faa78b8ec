/*
 * shmem.c
 *	  Shared memory: its size, its start, and the small calls everybody needs.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "shmem.h"

#define TRANCHE_NAME "orchestrator"

OrchShared *orch_shared = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void (*when_started)(void) = NULL;

static volatile sig_atomic_t terminated = false; /* by SIGTERM */

#define MAX_BLOCKS 5

static struct
{
	const char *name;
	Size size;
	OrchBlockStart start;
} blocks[MAX_BLOCKS];
static int nblocks = 0;

static void request_memory(void);
static void start_memory(void);
static void start_block(int number);
static void initialize_memory(void);
static Size executors_size(void);
static void lower_time(Oid dboid, Size field, TimestampTz at, uint32 why);

void
orch_shmem_install(void (*started)(void))
{
	when_started = started;
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_memory;
}

void
orch_shmem_add_block(const char *name, Size size, OrchBlockStart start)
{
	Assert(nblocks < MAX_BLOCKS);
	blocks[nblocks].name = name;
	blocks[nblocks].size = size;
	blocks[nblocks++].start = start;
}

static Size
executors_size(void)
{
	return add_size(offsetof(OrchShared, executors),
					mul_size(orch_max_executors, sizeof(OrchExecutor)));
}

static void
request_memory(void)
{
	if (previous_request_hook)
		previous_request_hook();

	RequestAddinShmemSpace(
		add_size(executors_size(), mul_size(MaxBackends, sizeof(OrchWaiter))));
	RequestNamedLWLockTranche(TRANCHE_NAME, 3);
	for (int i = 0; i < nblocks; i++)
	{
		RequestAddinShmemSpace(blocks[i].size);
		RequestNamedLWLockTranche(blocks[i].name, 1);
	}
}

/*
 * Runs in the postmaster at start and after every crash.
 */
static void
start_memory(void)
{
	bool found;
	OrchWaiter *waiters;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	orch_shared = ShmemInitStruct("orchestrator", executors_size(), &found);
	waiters =
		ShmemInitStruct("orchestrator waiters",
						mul_size(MaxBackends, sizeof(OrchWaiter)), &found);
	if (!found)
	{
		memset(orch_shared, 0, executors_size());
		memset(waiters, 0, mul_size(MaxBackends, sizeof(OrchWaiter)));
		orch_shared->waiters = waiters;
		initialize_memory();
		when_started();
	}
	for (int i = 0; i < nblocks; i++)
		start_block(i);
	LWLockRelease(AddinShmemInitLock);
}

static void
start_block(int number)
{
	bool found;
	void *memory =
		ShmemInitStruct(blocks[number].name, blocks[number].size, &found);

	if (!found)
		memset(memory, 0, blocks[number].size);
	blocks[number].start(
		memory, &GetNamedLWLockTranche(blocks[number].name)->lock, !found);
}

static void
initialize_memory(void)
{
	orch_shared->lock = &GetNamedLWLockTranche(TRANCHE_NAME)[0].lock;
	orch_shared->permit_lock = &GetNamedLWLockTranche(TRANCHE_NAME)[1].lock;
	orch_shared->turn_lock = &GetNamedLWLockTranche(TRANCHE_NAME)[2].lock;
	orch_shared->launcher_procno = -1;
	orch_shared->heir = ORCH_HEIR_NONE;
	orch_shared->started_at = orch_monotonic();
	orch_shared->nexecutors = orch_max_executors;
	orch_shared->nwaiters = MaxBackends;
	pg_atomic_init_u32(&orch_shared->starved, 0);
	pg_atomic_init_u32(&orch_shared->nowners, 0);
	pg_atomic_init_u32(&orch_shared->nlanes, 0);

	for (int i = 0; i < ORCH_WAIT_BUCKETS; i++)
		pg_atomic_init_u32(&orch_shared->wait_buckets[i], 0);
	for (int i = 0; i < orch_shared->nwaiters; i++)
	{
		pg_atomic_init_u64(&orch_shared->waiters[i].task, 0);
		pg_atomic_init_u32(&orch_shared->waiters[i].done, 0);
	}
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];

		database->supervisor_procno = -1;
		database->courier_procno = -1;
		pg_atomic_init_u32(&database->courier_told, 0);
		pg_atomic_init_u32(&database->courier_interrupted, 0);
		pg_atomic_init_u32(&database->courier_calls, 0);
		pg_atomic_init_u32(&database->wake, 0);
		pg_atomic_init_u64(&database->next_due, PG_INT64_MAX);
		pg_atomic_init_u64(&database->next_permit, PG_INT64_MAX);
		pg_atomic_init_u64(&database->next_alert, PG_INT64_MAX);
		pg_atomic_init_u64(&database->retention_at, PG_INT64_MAX);
		pg_atomic_init_u32(&database->listeners, 0);
		SpinLockInit(&database->ring_mutex);
	}
	for (int i = 0; i < ORCH_MAX_LANES; i++)
		SpinLockInit(&orch_shared->lanes[i].mutex);
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		executor->procno = -1;
		executor->lane = -1;
		executor->progress = -1;
		SpinLockInit(&executor->mutex);
		pg_atomic_init_u32(&executor->nclaims, 0);
		for (int j = 0; j < ORCH_MAX_CLAIM; j++)
			pg_atomic_init_u32(&executor->claims[j].state, ORCH_CLAIM_FREE);
	}
}

/*
 * Begin the session of a process of ours: as the role itself (InvalidOid: the
 * superuser of the cluster), whatever the settings of role, database and
 * server say of roles and transactions.  A step may set them for itself.
 */
void
orch_shmem_connect(Oid dboid, Oid roleoid)
{
	BackgroundWorkerInitializeConnectionByOid(dboid, roleoid, 0);
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off", PGC_USERSET,
					PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_deferrable", "off", PGC_USERSET,
					PGC_S_OVERRIDE);
}

OrchDatabase *
orch_shmem_database(Oid dboid, bool create)
{
	OrchDatabase *unused = NULL;

	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];

		if (database->dboid == dboid)
			return database;
		if (!OidIsValid(database->dboid) && unused == NULL)
			unused = database;
	}
	if (!create || unused == NULL)
		return NULL;

	Assert(LWLockHeldByMeInMode(orch_shared->lock, LW_EXCLUSIVE));
	unused->supervisor_pid = 0;
	unused->supervisor_procno = -1;
	unused->wanted = false;
	unused->absent = false;
	unused->blocked_by = 0;
	unused->terminated = false;
	unused->failures = 0;
	unused->retry_at = 0;
	pg_atomic_write_u32(&unused->wake, 0);
	pg_atomic_write_u64(&unused->next_due, PG_INT64_MAX);
	pg_atomic_write_u64(&unused->next_permit, PG_INT64_MAX);
	unused->limits_changed = false;
	unused->permits_retaken = false;
	unused->rates_known = unused->ran_before = false;
	pg_atomic_write_u64(&unused->next_alert, PG_INT64_MAX);
	pg_atomic_write_u64(&unused->retention_at, PG_INT64_MAX);
	unused->retention_busy = 0;
	unused->courier_pid = 0;
	unused->courier_procno = -1;
	pg_atomic_write_u32(&unused->courier_told, 0);
	unused->ring_head = unused->ring_tail = 0;
	unused->ring_lost = false;
	unused->dboid = dboid;
	return unused;
}

void
orch_shmem_describe_worker(BackgroundWorker *worker, const char *kind)
{
	snprintf(worker->bgw_type, sizeof(worker->bgw_type), "orchestrator %s",
			 kind);
	snprintf(worker->bgw_library_name, sizeof(worker->bgw_library_name),
			 "orchestrator");
	snprintf(worker->bgw_function_name, sizeof(worker->bgw_function_name),
			 "orchestrator_%s_main", kind);
	worker->bgw_flags =
		BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
}

BackgroundWorkerHandle *
orch_shmem_start_worker(const char *kind)
{
	BackgroundWorker worker = {0};
	BackgroundWorkerHandle *handle;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	orch_shmem_describe_worker(&worker, kind);
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "orchestrator %s",
			 kind);
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		handle = NULL;
	MemoryContextSwitchTo(old);
	return handle;
}

BgwHandleStatus
orch_shmem_worker_status(BackgroundWorkerHandle *handle,
						 TimestampTz registered, pid_t *pid)
{
	BgwHandleStatus status = GetBackgroundWorkerPid(handle, pid);

	if (status == BGWH_NOT_YET_STARTED &&
		GetCurrentTimestamp() - registered >= ORCH_START_PAUSE)
		SendPostmasterSignal(PMSIGNAL_BACKGROUND_WORKER_CHANGE);
	return status;
}

/*
 * The SIGTERM handler of workers.  Who was told to leave did not fail, and may
 * be started again at once.
 */
void
orch_shmem_terminate(SIGNAL_ARGS)
{
	terminated = true;
	die(postgres_signal_arg);
}

bool
orch_shmem_terminated(void)
{
	return terminated;
}

void
orch_shmem_set_latch(int procno)
{
	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

void
orch_shmem_wake_supervisor(Oid dboid, uint32 why)
{
	OrchDatabase *database;
	int procno = -1;
	bool launcher = false;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(dboid, false);
	if (database != NULL)
	{
		pg_atomic_fetch_or_u32(&database->wake, why);
		procno = database->supervisor_procno;
	}
	LWLockRelease(orch_shared->lock);

	if (procno < 0)
	{
		LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
		database = orch_shmem_database(dboid, true);
		if (database != NULL && !(database->wanted && !database->absent))
		{
			database->wanted = true;
			database->absent = false;
			launcher = true;
		}
		LWLockRelease(orch_shared->lock);
	}

	if (procno >= 0)
		orch_shmem_set_latch(procno);
	else if (launcher)
		orch_shmem_wake_launcher(false);
}

/*
 * Who leaves looks whether it was told after it cannot be told any more.
 */
void
orch_shmem_wake_courier(Oid dboid)
{
	OrchDatabase *database;
	int procno = -1;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(dboid, false);
	if (database != NULL)
	{
		pg_atomic_write_u32(&database->courier_told, 1);
		procno = database->courier_procno;
	}
	LWLockRelease(orch_shared->lock);
	if (procno >= 0)
		orch_shmem_set_latch(procno);
	else
		orch_shmem_wake_supervisor(dboid, ORCH_WAKE_COURIER);
}

void
orch_shmem_interrupt_courier(Oid dboid)
{
	OrchDatabase *database;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(dboid, false);
	if (database != NULL && database->courier_procno >= 0)
	{
		pg_atomic_write_u32(&database->courier_interrupted, 1);
		orch_shmem_set_latch(database->courier_procno);
	}
	LWLockRelease(orch_shared->lock);
}

void
orch_shmem_signal_supervisor(Oid dboid, uint32 why)
{
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];

		if (database->dboid == dboid)
		{
			pg_atomic_fetch_or_u32(&database->wake, why);
			orch_shmem_set_latch(database->supervisor_procno);
			return;
		}
	}
}

void
orch_shmem_wake_launcher(bool look)
{
	if (look)
		orch_shared->launcher_look = true;
	orch_shmem_set_latch(orch_shared->launcher_procno);
}

void
orch_shmem_lower_due(Oid dboid, TimestampTz at)
{
	lower_time(dboid, offsetof(OrchDatabase, next_due), at, ORCH_WAKE_DUE);
}

void
orch_shmem_lower_permit(Oid dboid, TimestampTz at)
{
	lower_time(dboid, offsetof(OrchDatabase, next_permit), at,
			   ORCH_WAKE_PERMITS);
}

void
orch_shmem_lower_alert(Oid dboid, TimestampTz at)
{
	lower_time(dboid, offsetof(OrchDatabase, next_alert), at, ORCH_WAKE_DUE);
}

/*
 * Lower one of the times at which the supervisor wakes.
 */
static void
lower_time(Oid dboid, Size field, TimestampTz at, uint32 why)
{
	OrchDatabase *database;
	bool lowered = false;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(dboid, false);
	if (database != NULL)
	{
		pg_atomic_uint64 *time =
			(pg_atomic_uint64 *) ((char *) database + field);
		uint64 due = pg_atomic_read_u64(time);

		while (at < (TimestampTz) due)
		{
			lowered = true;
			if (pg_atomic_compare_exchange_u64(time, &due, (uint64) at))
				break;
		}
	}
	LWLockRelease(orch_shared->lock);

	if (lowered || database == NULL)
		orch_shmem_wake_supervisor(dboid, why);
}

TimestampTz
orch_clock(void)
{
	return GetCurrentTimestamp() +
		   (TimestampTz) orch_test_clock_offset * USECS_PER_SEC;
}

double
orch_span(const Interval *interval)
{
	double days = interval->month * (double) DAYS_PER_MONTH + interval->day;

	return days * USECS_PER_DAY + (double) interval->time;
}

TimestampTz
orch_add_timeout(TimestampTz now, const Interval *timeout)
{
	double span = orch_span(timeout);

	if (span < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("timeout must not be negative")));
	return span > ORCH_LONGEST_SPAN ? PG_INT64_MAX : now + (TimestampTz) span;
}

int64
orch_monotonic(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}
