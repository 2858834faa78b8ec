/*
 * pool.c
 *	  The executors of a database: starting them where work waits, making room
 *	  for roles that have none.
 *
 * Slots of executors and of background workers are few and shared by all
 * databases.  An owner with work and no executor comes before one that wants
 * another; when no slot is free, an executor that idles longest leaves, or
 * one of an owner that has several, or the one that is in its slot longest.
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

/* Longest pause after executors of an owner could not start. */
#define MAX_PAUSE (60 * USECS_PER_SEC)

/* An executor that never reported is given up after this. */
#define START_LIMIT (10 * USECS_PER_SEC)

static TimestampTz retry_at = DT_NOEND;
static BackgroundWorkerHandle **handles = NULL;

static void try_again_at(TimestampTz at);
static void reap_failed_starts(void);
static void count_executors(int owner, int *total, int *idle);
static bool serve_owner(int owner, bool may_fire);
static void fail_tasks(OrchOwner *owner, const char *reason);
static OrchExecutor *reserve_slot(int owner);
static bool start_executor(OrchExecutor *executor);
static void make_room(void);
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
		else if (!serve_owner(i, may_fire))
			break;
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
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	executor->dboid = InvalidOid;
	executor->task = 0;
	executor->ncalled = 0;
	executor->fast = false;
	executor->pid = 0;
	executor->procno = -1;
	executor->state = ORCH_EXECUTOR_FREE;
	starved = pg_atomic_exchange_u32(&orch_shared->starved, 0) != 0;
	LWLockRelease(orch_shared->lock);

	/* another database may wait for the slot */
	for (int i = 0; starved && i < ORCH_MAX_DATABASES; i++)
	{
		if (OidIsValid(orch_shared->databases[i].dboid))
			orch_shmem_signal_supervisor(orch_shared->databases[i].dboid,
										 ORCH_WAKE_WORK);
	}
}

static void
count_executors(int owner, int *total, int *idle)
{
	*total = *idle = 0;
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state == ORCH_EXECUTOR_FREE ||
			executor->state == ORCH_EXECUTOR_DEAD ||
			executor->dboid != MyDatabaseId || executor->owner_index != owner)
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
 * See to an owner with work: wake its idle executors or start one.  False: no
 * worker can be registered now.
 */
static bool
serve_owner(int index, bool may_fire)
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
		return true;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	reason = orch_catalog_cannot_run(owner->owner, &roleoid);
	if (reason != NULL)
		fail_tasks(owner, reason);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (reason != NULL)
		return true;

	owner->roleoid = roleoid;
	executor = reserve_slot(index);
	if (executor == NULL)
	{
		if (total == 0)
			make_room();
		return true;
	}
	owner->asked = false;
	if (start_executor(executor))
		return true;
	executor->failed_start = false;
	orch_pool_free(executor);
	warn_starved();
	return false;
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
	for (int i = 0; i < orch_shared->nexecutors && free_slot == NULL; i++)
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
		free_slot->since = GetCurrentTimestamp();
		free_slot->leave = false;
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

/*
 * Ask one executor to leave its slot to somebody who has none.
 */
static void
make_room(void)
{
	OrchExecutor *chosen = NULL;
	int chosen_rank = 0;

	pg_atomic_write_u32(&orch_shared->starved, 1);
	try_again_at(GetCurrentTimestamp() + STARVED_PAUSE);
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];
		int rank = executor->state == ORCH_EXECUTOR_IDLE   ? 2
				   : executor->state == ORCH_EXECUTOR_BUSY ? 1
														   : 0;

		/* one that was asked already is about to make room */
		if (executor->leave && executor->state != ORCH_EXECUTOR_FREE)
		{
			chosen = NULL;
			break;
		}
		if (rank > chosen_rank || (rank == chosen_rank && rank > 0 &&
								   executor->since < chosen->since))
		{
			chosen = executor;
			chosen_rank = rank;
		}
	}
	if (chosen != NULL)
	{
		chosen->leave = true;
		orch_shmem_set_latch(chosen->procno);
	}
	LWLockRelease(orch_shared->lock);
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

	pg_atomic_write_u32(&orch_shared->starved, 1);
	try_again_at(now + STARVED_PAUSE);
	if (now - warned_at > 60 * USECS_PER_SEC)
		ereport(
			WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("out of background worker slots, tasks wait"),
			 errhint(
				 "Raise max_worker_processes, or lower orchestrator.max_executors.")));
	warned_at = now;
}
