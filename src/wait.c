/*
 * wait.c
 *	  Sleeping until a task is final: wait() and await().
 *
 * A waiter registers in shared memory, then looks; whoever settles commits,
 * then looks for waiters.  So one of the two always sees the other, and
 * nobody polls.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "compat.h"
#include "event.h"
#include "guc.h"
#include "heap.h"
#include "identity.h"
#include "progress.h"
#include "shmem.h"

/*
 * COMMIT PREPARED of a cancel, and promotion of a standby, wake nobody.
 */
#define LOOK_ANYWAY_MS (60 * 1000)

typedef struct Wait
{
	int64 task;
	TimestampTz until;	  /* PG_INT64_MAX: for ever */
	bool seen;			  /* exists and may be seen by the caller */
	MemoryContext result; /* where the result is made */
	MemoryContext look;	  /* reset after each look */
} Wait;

static bool registered = false;

PG_FUNCTION_INFO_V1(orchestrator_wait);
PG_FUNCTION_INFO_V1(orchestrator_await);

static void check_arguments(FunctionCallInfo fcinfo, const char *name);
static void begin_wait(FunctionCallInfo fcinfo, Wait *wait);
static void register_waiter(int64 task);
static void deregister_waiter(void);
static void exit_waiter(int code, Datum arg);
static bool look_at_task(Wait *wait, TupleDesc tupdesc, Datum *result);
static OrchState shown_state(int64 task, OrchState state);
static Datum form_result(const OrchTaskView *view, TupleDesc tupdesc);
static bool sleep_until_told(TimestampTz until);
static Datum await_result(Wait *wait, Oid type);

/*
 * wait(task, timeout) -> task_result: the state at the end, or at the
 * time-out.
 */
Datum
orchestrator_wait(PG_FUNCTION_ARGS)
{
	Wait wait;
	TupleDesc tupdesc;
	Datum result = (Datum) 0;

	check_arguments(fcinfo, "wait");
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type of wait");
	tupdesc = BlessTupleDesc(tupdesc);

	begin_wait(fcinfo, &wait);
	PG_TRY();
	{
		register_waiter(wait.task);
		while (!look_at_task(&wait, tupdesc, &result))
			if (!sleep_until_told(wait.until))
				wait.until = 0;
	}
	PG_FINALLY();
	{
		deregister_waiter();
	}
	PG_END_TRY();

	MemoryContextDelete(wait.look);
	PG_RETURN_DATUM(result);
}

/*
 * CALL await(task, timeout, result): the same, and neither a snapshot nor a
 * transaction of the caller stays open while it sleeps.
 */
Datum
orchestrator_await(PG_FUNCTION_ARGS)
{
	Wait wait;
	TupleDesc tupdesc;
	Datum values[1];
	bool nulls[1] = {false};

	check_arguments(fcinfo, "await");
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("await() cannot run inside a transaction block"),
				 errdetail("It commits before it sleeps."),
				 errhint("CALL it outside of a transaction, or use "
						 "orchestrator.wait().")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts != 1)
		elog(ERROR, "unexpected result type of await");
	tupdesc = BlessTupleDesc(tupdesc);

	begin_wait(fcinfo, &wait);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		register_waiter(wait.task);
		values[0] = await_result(&wait, TupleDescAttr(tupdesc, 0)->atttypid);
	}
	PG_FINALLY();
	{
		deregister_waiter();
	}
	PG_END_TRY();
	SPI_finish();

	MemoryContextDelete(wait.look);
	PG_RETURN_DATUM(
		HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*
 * Each look has its own transaction.  The first commit is the caller's: a
 * procedure may await what it has just enqueued.
 */
static Datum
await_result(Wait *wait, Oid type)
{
	Datum result;
	bool done;

	SPI_commit();
	for (;;)
	{
		TupleDesc tupdesc;

		PushActiveSnapshot(GetTransactionSnapshot());
		tupdesc = lookup_rowtype_tupdesc(type, -1);
		done = look_at_task(wait, tupdesc, &result);
		ReleaseTupleDesc(tupdesc);
		PopActiveSnapshot();
		if (done)
			return result;

		SPI_commit();
		Assert(!TransactionIdIsValid(MyProc->xmin));
		if (!sleep_until_told(wait->until))
			wait->until = 0;
	}
}

static void
check_arguments(FunctionCallInfo fcinfo, const char *name)
{
	if (!orch_preloaded)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() needs the library to be preloaded", name),
				 errhint("Add orchestrator to shared_preload_libraries and "
						 "restart the server.")));
	if (orch_in_step())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() cannot be called inside a step", name),
				 errdetail("The step would hold its executor while it "
						   "waits."),
				 errhint("Let a later step need that task (needs), or CALL "
						 "orchestrator.wait_signal() in a procedure.")));
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("task must not be null")));
}

/*
 * The result is made in the caller's memory context, which for a procedure
 * survives its commits.
 */
static void
begin_wait(FunctionCallInfo fcinfo, Wait *wait)
{
	wait->task = PG_GETARG_INT64(0);
	wait->until = PG_ARGISNULL(1) ? PG_INT64_MAX
								  : orch_add_timeout(GetCurrentTimestamp(),
													 PG_GETARG_INTERVAL_P(1));
	wait->seen = false;
	wait->result = CurrentMemoryContext;
	wait->look = AllocSetContextCreate(
		CurrentMemoryContext, "orchestrator wait", ALLOCSET_SMALL_SIZES);
}

/*
 * The counter's addition is a full barrier: the look that follows sees every
 * commit whose session did not see us (orch_event_wake_waiters, which counts
 * in the same bucket).
 */
static void
register_waiter(int64 task)
{
	static bool installed = false;
	OrchWaiter *waiter = &orch_shared->waiters[orch_my_procno()];

	if (!installed)
	{
		before_shmem_exit(exit_waiter, (Datum) 0);
		installed = true;
	}
	if (registered)
		elog(ERROR, "this session waits already");

	waiter->dboid = MyDatabaseId;
	pg_atomic_write_u32(&waiter->done, 0);
	pg_write_barrier();
	pg_atomic_write_u64(&waiter->task, (uint64) task);
	pg_atomic_fetch_add_u32(
		&orch_shared->wait_buckets[(uint64) task % ORCH_WAIT_BUCKETS], 1);
	registered = true;
}

static void
deregister_waiter(void)
{
	OrchWaiter *waiter = &orch_shared->waiters[orch_my_procno()];
	uint64 task;

	if (!registered)
		return;
	registered = false;
	task = pg_atomic_exchange_u64(&waiter->task, 0);
	pg_atomic_fetch_sub_u32(
		&orch_shared->wait_buckets[task % ORCH_WAIT_BUCKETS], 1);
}

/*
 * A session that is terminated does not pass PG_FINALLY.
 */
static void
exit_waiter(int code, Datum arg)
{
	deregister_waiter();
}

/*
 * True, with the result, when the task is final or the time is up.
 */
static bool
look_at_task(Wait *wait, TupleDesc tupdesc, Datum *result)
{
	OrchWaiter *waiter = &orch_shared->waiters[orch_my_procno()];
	MemoryContext caller = MemoryContextSwitchTo(wait->look);
	OrchTaskView view;
	bool done;

	/* Being told from here on is about something newer than what we see. */
	pg_atomic_exchange_u32(&waiter->done, 0);

	if (!orch_heap_read_result(wait->task, &view) ||
		!(wait->seen || orch_catalog_may_see(view.owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("task %lld does not exist", (long long) wait->task)));
	wait->seen = true;

	done = orch_state_is_final(view.state);
	if (!done && view.own_uncommitted)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("task %lld was changed by this transaction, which is "
						"not committed",
						(long long) wait->task),
				 errhint("Commit first: until then no worker sees it.")));
	if (!done)
		orch_identity_warn();

	done = done || wait->until <= GetCurrentTimestamp();
	if (done)
	{
		view.state = shown_state(wait->task, view.state);
		MemoryContextSwitchTo(wait->result);
		*result = form_result(&view, tupdesc);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(wait->look);
	return done;
}

/*
 * A run runs as soon as a step of it started, though its row waits for them,
 * and a step in the fast lane though its row is pending; as in the view
 * task_status.
 */
static OrchState
shown_state(int64 task, OrchState state)
{
	Oid types[] = {INT8OID};
	Datum values[] = {Int64GetDatum(task)};
	const char *query;
	bool no_step = true;

	if (state == ORCH_STATE_WAITING)
		query = "SELECT orchestrator._run_started($1)";
	else if (state == ORCH_STATE_PENDING)
		query = "SELECT s.started_at FROM orchestrator._slots() s "
				"WHERE s.task_id OPERATOR(pg_catalog.=) $1";
	else
		return state;

	SPI_connect();
	if (SPI_execute_with_args(query, 1, types, values, NULL, false, 1) !=
		SPI_OK_SELECT)
		elog(ERROR, "could not see whether a step started");
	if (SPI_processed > 0)
		(void) SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
							 &no_step);
	SPI_finish();
	return no_step ? state : ORCH_STATE_RUNNING;
}

static Datum
form_result(const OrchTaskView *view, TupleDesc tupdesc)
{
	Datum values[3];
	bool nulls[3];

	if (tupdesc->natts != lengthof(values))
		elog(ERROR, "unexpected type task_result");

	values[0] = ObjectIdGetDatum(orch_catalog(false)->states[view->state]);
	nulls[0] = false;
	values[1] = view->output;
	nulls[1] = !view->has_output;
	values[2] = view->error;
	nulls[2] = !view->has_error;
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * False: the time is up.  Other latch events do not end the sleep.
 */
static bool
sleep_until_told(TimestampTz until)
{
	OrchWaiter *waiter = &orch_shared->waiters[orch_my_procno()];
	TimestampTz look_at =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_ANYWAY_MS);

	while (pg_atomic_read_u32(&waiter->done) == 0)
	{
		long delay = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													 Min(until, look_at));

		if (delay <= 0)
			return GetCurrentTimestamp() < until;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 delay, orch_wait_event(ORCH_WAIT_TASK));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}
