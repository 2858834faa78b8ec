/*
 * courier.c
 *	  The courier: a process that carries the outside calls of a database.
 *
 * It claims calls of all roles, commits, hands them to its child program
 * (child.c) and settles what comes back, a batch to a transaction.  Nothing of
 * a task runs here, so it may be the superuser of the cluster.  While calls are
 * under way it has no transaction, no snapshot and no lock, and sleeps until
 * its latch is set or the child says something.
 *
 * Claims and settles are flushed as the server's other commits are: a call that
 * was made is never one of an attempt that was not counted.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "compat.h"
#include "courier.h"
#include "deliver.h"
#include "dispatch.h"
#include "duty.h"
#include "guc.h"
#include "transit.h"

/* What was to be recovered is locked by somebody. */
#define LOCKED_PAUSE (100 * INT64CONST(1000))

/* Of the supervisor: the courier that it started, and that which it saw last,
 * which a supervisor before it may have started. */
static BackgroundWorkerHandle *handle = NULL;
static pid_t seen_pid = -1; /* 0: none; -1: it has not looked */
static bool recover_asked = false;
static TimestampTz manage_at = DT_NOEND;

/* Of the courier. */
static TimestampTz idle_since = 0;
static bool goes_idle = false;

static void recover_calls(void);
static void start_session(Oid dboid);
static void leave(int code, Datum arg);
static void turn(void);
static void report(void);
static void sleep_until_needed(void);

PG_FUNCTION_INFO_V1(orchestrator_courier_pid);

/* -------------------------------------------------------- the supervisor */

TimestampTz
orch_courier_at(void)
{
	return manage_at;
}

/*
 * Errors are the caller's.
 */
bool
orch_courier_manage(OrchDatabase *of, bool may_fire)
{
	TimestampTz now = GetCurrentTimestamp();
	pid_t pid;

	if (now >= manage_at)
		manage_at = DT_NOEND;
	if (handle != NULL && GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED)
	{
		pfree(handle);
		handle = NULL;
		recover_asked = true;
	}
	if (of->courier_pid != seen_pid)
	{
		recover_asked = recover_asked || seen_pid != 0;
		seen_pid = of->courier_pid;
	}
	if (recover_asked)
		recover_calls();
	if (!may_fire || !orch_enabled || handle != NULL || of->courier_pid != 0 ||
		manage_at != DT_NOEND || pg_atomic_read_u32(&of->courier_told) == 0)
		return true;
	handle = orch_shmem_start_worker("courier");
	if (handle != NULL)
		return true;
	manage_at = now + ORCH_COURIER_PAUSE;
	return false;
}

/*
 * Rows that somebody has locked are looked at a little later.
 */
static void
recover_calls(void)
{
	int32 recovered;

	/* should it fail */
	manage_at = GetCurrentTimestamp() + ORCH_COURIER_PAUSE;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	recovered =
		DatumGetInt32(orch_catalog_call(ORCH_FN_RECOVER_CALLS, 0, NULL, NULL));
	PopActiveSnapshot();
	CommitTransactionCommand();
	recover_asked = recovered < 0;
	manage_at =
		recover_asked ? GetCurrentTimestamp() + LOCKED_PAUSE : DT_NOEND;
}

void
orch_courier_dismiss(OrchDatabase *of)
{
	if (of->courier_pid != 0)
		(void) kill(of->courier_pid, SIGTERM);
}

/*
 * _courier_pid()
 */
Datum
orchestrator_courier_pid(PG_FUNCTION_ARGS)
{
	OrchDatabase *of;
	pid_t pid = 0;

	if (!orch_preloaded)
		PG_RETURN_NULL();
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	of = orch_shmem_database(MyDatabaseId, false);
	if (of != NULL)
		pid = of->courier_pid;
	LWLockRelease(orch_shared->lock);
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* ------------------------------------------------------------ the process */

void
orchestrator_courier_main(Datum main_arg)
{
	start_session(DatumGetObjectId(main_arg));
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			orch_transit.look = true;
		}
		turn();
		MemoryContextReset(orch_transit.turn_context);
		report();
		if (!orch_enabled && hash_get_num_entries(orch_transit.calls) == 0)
			proc_exit(0);
		goes_idle = idle_since != 0 && orch_dispatch_at() == 0 &&
					GetCurrentTimestamp() - idle_since >=
						orch_courier_idle_timeout * USECS_PER_SEC;
		if (goes_idle)
			proc_exit(0);
		sleep_until_needed();
	}
}

static void
start_session(Oid dboid)
{
	OrchDatabase *database;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	orch_shmem_connect(dboid, InvalidOid);
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	orch_transit_install();

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(dboid, false);
	if (database == NULL || database->courier_pid != 0)
	{
		LWLockRelease(orch_shared->lock);
		proc_exit(0); /* there is one already */
	}
	database->courier_pid = MyProcPid;
	database->courier_procno = orch_my_procno();
	database->courier_since = GetCurrentTimestamp();
	LWLockRelease(orch_shared->lock);
	orch_transit.database = database;
	before_shmem_exit(leave, (Datum) 0);
	idle_since = GetCurrentTimestamp();
	if (!orch_duty_perform(orch_transit_check_extension))
		proc_exit(0);
}

/*
 * What was under way is the supervisor's business, which is told by our end.
 */
static void
leave(int code, Datum arg)
{
	OrchDatabase *database = orch_transit.database;

	orch_transit_leave();
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database->courier_pid = 0;
	database->courier_procno = -1;
	pg_atomic_write_u32(&database->courier_calls, 0);
	if (!goes_idle)
		pg_atomic_write_u32(&database->courier_told, 1);
	LWLockRelease(orch_shared->lock);
	orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_COURIER);
}

/*
 * What there is to do: first what came back, since that makes room.
 */
static void
turn(void)
{
	OrchDatabase *database = orch_transit.database;

	orch_transit_see_to_child();
	if (pg_atomic_exchange_u32(&database->courier_interrupted, 0) != 0)
		orch_transit_drop_lost();
	orch_deliver();
	orch_dispatch();
	if (orch_transit.child.pid != 0 &&
		!frame_send(&orch_transit.child.out, orch_transit.child.socket))
		orch_transit_lose_child("ended");
}

/* ------------------------------------------------------------------ sleep */

/*
 * For worker_status and pg_stat_activity, where it changed.
 */
static void
report(void)
{
	OrchDatabase *database = orch_transit.database;
	uint32 n = hash_get_num_entries(orch_transit.calls);
	uint32 before = pg_atomic_exchange_u32(&database->courier_calls, n);
	char activity[64];

	if ((n == 0) != (before == 0) || idle_since == 0 || n > 0)
		idle_since = n > 0 ? 0 : GetCurrentTimestamp();
	if ((n == 0) != (before == 0))
		database->courier_since = GetCurrentTimestamp();
	if (n == before)
		return;
	snprintf(activity, sizeof(activity), "%u outside calls under way", n);
	pgstat_report_activity(n > 0 ? STATE_RUNNING : STATE_IDLE, activity);
}

static void
sleep_until_needed(void)
{
	TimestampTz until = PG_INT64_MAX;
	int events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	long timeout;

	if (orch_dispatch_at() != 0)
		until = Min(until, orch_dispatch_at());
	if (orch_transit.look && orch_transit.not_before > GetCurrentTimestamp())
		until = Min(until, orch_transit.not_before);
	if (orch_transit.nended > 0)
		until = Min(until, orch_deliver_at());
	if (orch_transit_under_way() > 0)
		until = Min(until, orch_transit.child.heard_at +
							   orch_courier_hang_timeout * USECS_PER_SEC);
	if (idle_since != 0)
		until =
			Min(until, idle_since + orch_courier_idle_timeout * USECS_PER_SEC);
	if (orch_transit.child.pid != 0)
		events |= WL_SOCKET_READABLE;
	if (orch_transit.child.pid != 0 && frame_pending(&orch_transit.child.out))
		events |= WL_SOCKET_WRITEABLE;
	timeout =
		until == PG_INT64_MAX
			? 60000
			: Max(0, Min((until - GetCurrentTimestamp() + 999) / 1000, 60000));
	(void) WaitLatchOrSocket(MyLatch, events,
							 orch_transit.child.pid != 0
								 ? orch_transit.child.socket
								 : PGINVALID_SOCKET,
							 timeout, orch_wait_event(ORCH_WAIT_COURIER));
	ResetLatch(MyLatch);
}
