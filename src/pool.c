/*
 * pool.c
 *	  The executors of a database: starting them where work waits, making room
 *	  for roles that have none.
 *
 * Slots of executors and of background workers are few and shared by all
 * databases.  An owner with work and no executor comes before one that wants
 * another; when no slot is free, an executor that idles longest leaves, or
 * one of an owner that has several, or the one that is in its slot longest.
 * What it leaves is promised: else whoever has most work, and is told first
 * that it left, would have it again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "executor.h"
#include "guc.h"
#include "pool.h"

/* Try again after a worker could not be registered. */
#define STARVED_PAUSE USECS_PER_SEC

/* A promise is kept for this long after it was asked for the last time. */
#define PROMISE_LIMIT (3 * STARVED_PAUSE)

/* A busy executor is not asked to leave before. */
#define TENURE USECS_PER_SEC

/* Longest pause after executors of an owner could not start. */
#define MAX_PAUSE (60 * USECS_PER_SEC)

/* An executor that never reported is given up after this. */
#define START_LIMIT (10 * USECS_PER_SEC)

static TimestampTz retry_at = DT_NOEND;
static BackgroundWorkerHandle **handles = NULL;

static void try_again_at(TimestampTz at);
static void reap_failed_starts(void);
static void count_executors(int owner, int *total, int *idle);
static void serve_owner(int owner);
static bool is_promised_to_others(int heir);
static void lack_worker(int owner, int total);
static void release_slot(OrchExecutor *executor);
static void fail_tasks(OrchOwner *owner, const char *reason);
static OrchExecutor *reserve_slot(int owner);
static bool start_executor(OrchExecutor *executor);
static int count_present(void);
static bool is_present(const OrchExecutor *executor);
static OrchExecutor *choose_leaver(TimestampTz now);
static int rank_leaver(const OrchExecutor *executor, TimestampTz now);
static void warn_starved(void);
static void delay_owner(OrchOwner *owner);

void
orch_pool_manage(bool may_fire)
{
	int n = pg_atomic_read_u32(&orch_shared->nowners);
	TimestampTz now = GetCurrentTimestamp();

	retry_at = DT_NOEND;
	if (handles == NULL)
		handles = MemoryContextAllocZero(
			TopMemoryContext, orch_shared->nexecutors * sizeof(*handles));
	reap_failed_starts();
	if (!orch_enabled || !may_fire)
		return;
	if (orch_shared->breaker_until > now)
	{
		try_again_at(orch_shared->breaker_until);
		return;
	}
	for (int i = 0; i < n; i++)
	{
		OrchOwner *owner = &orch_shared->owners[i];

		if (owner->dboid != MyDatabaseId || !owner->ready)
			continue;
		if (owner->retry_at > now)
			try_again_at(owner->retry_at);
		else
			serve_owner(i);
	}
}

TimestampTz
orch_pool_retry_at(void)
{
	return retry_at;
}

static void
try_again_at(TimestampTz at)
{
	retry_at = Min(retry_at, at);
}

/*
 * A worker that was registered but ended before it reported, because the
 * server could not fork or the library is gone.
 */
static void
reap_failed_starts(void)
{
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		pid_t pid;

		if (executor->dboid != MyDatabaseId ||
			executor->state != ORCH_EXECUTOR_STARTING)
			continue;
		if (handles[i] != NULL
				? orch_shmem_worker_status(handles[i], executor->since,
										   &pid) != BGWH_STOPPED
				: GetCurrentTimestamp() - executor->since < START_LIMIT)
		{
			try_again_at(GetCurrentTimestamp() + ORCH_START_PAUSE);
			continue;
		}
		executor->failed_start = true;
		orch_pool_free(executor);
	}
}

static void
delay_owner(OrchOwner *owner)
{
	TimestampTz pause = USECS_PER_SEC << Min(owner->failures, 6);

	owner->failures++;
	owner->retry_at = GetCurrentTimestamp() + Min(pause, MAX_PAUSE);
	try_again_at(owner->retry_at);
}

void
orch_pool_free(OrchExecutor *executor)
{
	OrchOwner *owner = &orch_shared->owners[executor->owner_index];
	bool starved;

	if (owner->dboid == executor->dboid && owner->owner == executor->owner)
	{
		/* it may have left, told to, while there was work for it */
		owner->asked = owner->ready;
		if (executor->failed_start)
			delay_owner(owner);
		else
			owner->failures = 0;
	}
	orch_permit_release(executor, 0);
	release_slot(executor);

	/* another database may wait for the slot */
	starved = pg_atomic_exchange_u32(&orch_shared->starved, 0) != 0;
	for (int i = 0; starved && i < ORCH_MAX_DATABASES; i++)
	{
		if (OidIsValid(orch_shared->databases[i].dboid))
			orch_shmem_signal_supervisor(orch_shared->databases[i].dboid,
										 ORCH_WAKE_WORK);
	}
}

static void
release_slot(OrchExecutor *executor)
{
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	executor->dboid = InvalidOid;
	executor->task = 0;
	executor->ncalled = 0;
	executor->fast = false;
	executor->pid = 0;
	executor->procno = -1;
	executor->state = ORCH_EXECUTOR_FREE;
	LWLockRelease(orch_shared->lock);
}

static void
count_executors(int owner, int *total, int *idle)
{
	*total = *idle = 0;
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (!is_present(executor) || executor->dboid != MyDatabaseId ||
			executor->owner_index != owner)
			continue;
		(*total)++;
		if (executor->state == ORCH_EXECUTOR_IDLE)
		{
			(*idle)++;
			orch_shmem_set_latch(executor->procno);
		}
	}
}

/*
 * See to an owner with work: wake its idle executors or start one.
 */
static void
serve_owner(int index)
{
	OrchOwner *owner = &orch_shared->owners[index];
	OrchExecutor *executor;
	const char *reason;
	Oid roleoid = InvalidOid;
	int total;
	int idle;

	count_executors(index, &total, &idle);
	if (idle > 0)
		owner->asked = false;
	if (idle > 0 || total >= orch_executors_per_role ||
		(total > 0 && !owner->asked))
		return;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	reason = orch_catalog_cannot_run(owner->owner, &roleoid);
	if (reason != NULL)
		fail_tasks(owner, reason);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (reason != NULL)
		return;

	owner->roleoid = roleoid;
	executor = reserve_slot(index);
	if (executor == NULL)
	{
		lack_worker(index, total);
		return;
	}
	owner->asked = false;
	if (start_executor(executor))
	{
		orch_pool_thank(index);
		return;
	}
	release_slot(executor);
	warn_starved();
	lack_worker(index, total);
}

/*
 * Who has an executor already can do without another: those of others that
 * idle are to be warm when they are needed.
 */
static void
lack_worker(int owner, int total)
{
	try_again_at(GetCurrentTimestamp() + STARVED_PAUSE);
	if (total == 0)
		orch_pool_make_room(owner);
}

/*
 * Its tasks can never run as they are: they fail with the reason, and nobody
 * else waits for them.
 */
static void
fail_tasks(OrchOwner *owner, const char *reason)
{
	NullableDatum args[2];

	args[0].value = Int32GetDatum(owner->owner);
	args[0].isnull = false;
	args[1].value = CStringGetTextDatum(reason);
	args[1].isnull = false;
	owner->ready = false;
	orch_catalog_call(ORCH_FN_FAIL_UNRUNNABLE, 2, args, NULL);
}

static OrchExecutor *
reserve_slot(int owner)
{
	OrchExecutor *free_slot = NULL;

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < orch_shared->nexecutors && free_slot == NULL &&
					!is_promised_to_others(owner);
		 i++)
	{
		if (orch_shared->executors[i].state == ORCH_EXECUTOR_FREE)
			free_slot = &orch_shared->executors[i];
	}
	if (free_slot != NULL)
	{
		free_slot->generation++;
		free_slot->dboid = MyDatabaseId;
		free_slot->roleoid = orch_shared->owners[owner].roleoid;
		free_slot->owner = orch_shared->owners[owner].owner;
		free_slot->owner_index = owner;
		free_slot->pid = 0;
		free_slot->procno = -1;
		free_slot->since = free_slot->came = GetCurrentTimestamp();
		free_slot->leave = false;
		free_slot->leave_since = 0;
		free_slot->failed_start = false;
		free_slot->live = InvalidOid;
		free_slot->lane = -1;
		free_slot->task = 0;
		free_slot->ncalled = 0;
		free_slot->interrupt_task = 0;
		free_slot->yield_task = 0;
		free_slot->fast = false;
		pg_atomic_write_u32(&free_slot->nclaims, 0);
		free_slot->state = ORCH_EXECUTOR_STARTING;
	}
	LWLockRelease(orch_shared->lock);
	return free_slot;
}

static bool
start_executor(OrchExecutor *executor)
{
	BackgroundWorker worker = {0};
	OrchExecutorArgs args;
	int slot = executor - orch_shared->executors;

	StaticAssertStmt(sizeof(OrchExecutorArgs) <= BGW_EXTRALEN,
					 "arguments of an executor fit into bgw_extra");
	args.dboid = executor->dboid;
	args.roleoid = executor->roleoid;
	args.owner = executor->owner;
	args.slot = slot;
	args.generation = executor->generation;
	orch_shmem_describe_worker(&worker, "executor");
	memcpy(worker.bgw_extra, &args, sizeof(args));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name),
			 "orchestrator executor %d", slot);
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;

	if (handles[slot] != NULL)
		pfree(handles[slot]);
	handles[slot] = NULL;
	try_again_at(executor->since + ORCH_START_PAUSE);
	MemoryContextSwitchTo(TopMemoryContext);
	return RegisterDynamicBackgroundWorker(&worker, &handles[slot]);
}

void
orch_pool_make_room(int heir)
{
	OrchExecutor *leaver = NULL;
	TimestampTz now = GetCurrentTimestamp();

	pg_atomic_write_u32(&orch_shared->starved, 1);
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (!is_promised_to_others(heir) && (heir >= 0 || count_present() > 1))
	{
		orch_shared->heir = heir;
		orch_shared->heir_since = now;
		leaver = choose_leaver(now);
	}
	if (leaver != NULL)
	{
		leaver->leave = true;
		leaver->leave_since = now;
		orch_shmem_set_latch(leaver->procno);
	}
	LWLockRelease(orch_shared->lock);
}

void
orch_pool_thank(int heir)
{
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (orch_shared->heir == heir)
		orch_shared->heir = ORCH_HEIR_NONE;
	LWLockRelease(orch_shared->lock);
}

/*
 * Whether the next worker is for somebody else, who still wants it.  Caller
 * holds the lock.
 */
static bool
is_promised_to_others(int heir)
{
	int promised = orch_shared->heir;
	TimestampTz age = GetCurrentTimestamp() - orch_shared->heir_since;

	return promised != ORCH_HEIR_NONE && promised != heir && age >= 0 &&
		   age < PROMISE_LIMIT &&
		   (promised < 0 || orch_shared->owners[promised].ready);
}

/*
 * The last executor makes room for another one only: without it no task would
 * run.
 */
static int
count_present(void)
{
	int present = 0;

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		if (is_present(&orch_shared->executors[i]))
			present++;
	}
	return present;
}

static bool
is_present(const OrchExecutor *executor)
{
	return executor->state != ORCH_EXECUTOR_FREE &&
		   executor->state != ORCH_EXECUTOR_DEAD;
}

/*
 * NULL: nobody can be asked, or somebody was a moment ago.  One that takes its
 * time to leave does not keep the next from being asked.
 */
static OrchExecutor *
choose_leaver(TimestampTz now)
{
	OrchExecutor *chosen = NULL;
	int chosen_rank = 0;

	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		int rank = rank_leaver(executor, now);

		if (executor->leave && executor->state != ORCH_EXECUTOR_FREE &&
			now - executor->leave_since < STARVED_PAUSE)
			return NULL;
		if (rank > chosen_rank ||
			(rank == chosen_rank && rank > 0 &&
			 (rank == 3 ? executor->since < chosen->since
						: executor->came < chosen->came)))
		{
			chosen = executor;
			chosen_rank = rank;
		}
	}
	return chosen;
}

/*
 * The higher, the rather: it is idle; its owner has others; it has been here
 * for a while.  0: not this one.
 */
static int
rank_leaver(const OrchExecutor *executor, TimestampTz now)
{
	if (executor->leave)
		return 0;
	if (executor->state == ORCH_EXECUTOR_IDLE)
		return 3;
	if (executor->state != ORCH_EXECUTOR_BUSY || now - executor->came < TENURE)
		return 0;
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *other = &orch_shared->executors[i];

		if (other != executor && is_present(other) && !other->leave &&
			other->dboid == executor->dboid &&
			other->owner_index == executor->owner_index)
			return 2;
	}
	return 1;
}

void
orch_pool_lack_other(void)
{
	warn_starved();
	orch_pool_make_room(ORCH_HEIR_OTHER);
}

/*
 * Say once that tasks wait for a worker slot, and again only after it had
 * recovered.
 */
static void
warn_starved(void)
{
	static TimestampTz warned_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now - warned_at > 60 * USECS_PER_SEC)
		ereport(
			WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("out of background worker slots, tasks wait"),
			 errhint(
				 "Raise max_worker_processes, or lower orchestrator.max_executors.")));
	warned_at = now;
}
