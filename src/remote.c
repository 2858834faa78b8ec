/*
 * remote.c
 *	  What remote workers need of the library: sleeping until there may be
 *	  work, and permits for the tasks that they have claimed.
 *
 * Their claims and reports are SQL (sql/58_remote.sql).  A task that was
 * claimed has a row in orchestrator.lease, which names the limits that it
 * holds permits of: they are taken here in the transaction of the claim, given
 * back if that is rolled back, and given back by the commit that ends the
 * lease.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"
#include "heap.h"
#include "limit.h"
#include "permit.h"
#include "progress.h"
#include "remote.h"
#include "remote_lane.h"
#include "waiter.h"

#define SECRET_SIZE 16

/* What wakes nobody: COMMIT PREPARED, and promotion of a standby. */
#define LOOK_ANYWAY_MS (60 * 1000)

/* Nobody would wake us: not preloaded, or all places taken. */
#define POLL_MS 200

/* There is work, but a limit holds it up. */
#define LIMITED_MS 50

/* What _has_work() says. */
typedef enum Work
{
	WORK_NONE,
	WORK_READY,
	WORK_HELD_UP
} Work;

/* Why a session in await_work() goes on. */
typedef enum Wake
{
	WAKE_TOLD,	   /* of a task that became ready, or of room under a limit */
	WAKE_LOOK,	   /* it is time to look again */
	WAKE_TIMED_OUT /* its time is over */
} Wake;

/* Permits that this transaction took, or is to give back at its commit. */
typedef struct Held
{
	int level; /* of the subtransaction */
	bool taken;
	int n;
	OrchLimit limits[ORCH_MAX_LIMITS]; /* of taken ones */
	int64 ids[ORCH_MAX_LIMITS];
} Held;

static Held *held = NULL; /* in TopTransactionContext; levels never fall */
static int nheld = 0;
static int held_room = 0;

PG_FUNCTION_INFO_V1(orchestrator_await_work);
PG_FUNCTION_INFO_V1(orchestrator_has_permits);
PG_FUNCTION_INFO_V1(orchestrator_give_back_permits);
PG_FUNCTION_INFO_V1(orchestrator_take_permits_again);
PG_FUNCTION_INFO_V1(orchestrator_secret);

static bool await_work(const NullableDatum *queues, TimestampTz until);
static int32 *find_queues(const NullableDatum *queues, int *n);
static Work look(const int32 *queues, int n);
static Wake sleep_until_told(TimestampTz until, bool registered, Work seen);
static void make_room(void);
static void append(const Held *entry);
static int leave_endpoint(OrchLimit *limits, int n);
static const OrchLimit *take(const OrchRow *row, OrchLimitMemo *memo,
							 OrchFare fare, Held *entry);
static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);
static void undo(const Held *entry);
static int64 *read_ids(ArrayType *array, int *n);

void
orch_remote_install(void)
{
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

/*
 * CALL await_work(queues, timeout, ready): neither a snapshot nor a
 * transaction of the caller stays open while it sleeps.
 */
Datum
orchestrator_await_work(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	TimestampTz until =
		PG_ARGISNULL(1)
			? PG_INT64_MAX
			: orch_add_timeout(GetCurrentTimestamp(), PG_GETARG_INTERVAL_P(1));
	Datum values[1];
	bool nulls[1] = {false};

	if (orch_in_step())
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("await_work() cannot be called inside a step"),
			 errdetail("The step would hold its executor while it waits.")));
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("await_work() cannot run inside a transaction block"),
				 errdetail("It commits before it sleeps."),
				 errhint("CALL it outside of a transaction.")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts != 1)
		elog(ERROR, "unexpected result type of await_work");
	tupdesc = BlessTupleDesc(tupdesc);

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		values[0] = BoolGetDatum(await_work(&fcinfo->args[0], until));
	}
	PG_FINALLY();
	{
		orch_waiter_deregister();
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_DATUM(
		HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*
 * Each look has its own transaction.
 */
static bool
await_work(const NullableDatum *queues, TimestampTz until)
{
	int n;
	int32 *ids;
	bool registered;

	PushActiveSnapshot(GetTransactionSnapshot());
	ids = find_queues(queues, &n);
	PopActiveSnapshot();
	registered = orch_waiter_register(ids, n);
	for (;;)
	{
		Work seen;

		PushActiveSnapshot(GetTransactionSnapshot());
		seen = look(ids, n);
		PopActiveSnapshot();
		SPI_commit();
		Assert(!TransactionIdIsValid(MyProc->xmin));
		if (seen == WORK_READY)
			return true;
		switch (sleep_until_told(until, registered, seen))
		{
			case WAKE_TIMED_OUT:
				return false;
			case WAKE_TOLD:
				/* the claim to come is as good a look */
				if (seen == WORK_NONE)
					return true;
				break;
			case WAKE_LOOK:
				break;
		}
	}
}

/*
 * In memory that stays over the commits.
 */
static int32 *
find_queues(const NullableDatum *queues, int *n)
{
	int32 *found = orch_remote_queues(
		GetUserId(), queues->isnull ? NULL : DatumGetArrayTypeP(queues->value),
		n);
	int32 *ids = MemoryContextAlloc(PortalContext, *n * sizeof(int32));

	memcpy(ids, found, *n * sizeof(int32));
	return ids;
}

static Work
look(const int32 *queues, int n)
{
	Datum *elements = palloc(Max(n, 1) * sizeof(Datum));
	NullableDatum args[2] = {{ObjectIdGetDatum(GetUserId()), false}};

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(queues[i]);
	args[1].value = PointerGetDatum(
		construct_array(elements, n, INT4OID, 4, true, TYPALIGN_INT));
	args[1].isnull = false;

	/* being told from here on is about something newer than what we see */
	(void) orch_waiter_told();
	return (Work) DatumGetInt32(
		orch_catalog_call(ORCH_FN_HAS_WORK, 2, args, NULL));
}

static Wake
sleep_until_told(TimestampTz until, bool registered, Work seen)
{
	int pause = seen == WORK_HELD_UP ? LIMITED_MS
				: registered		 ? LOOK_ANYWAY_MS
									 : POLL_MS;
	TimestampTz look_at =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause);

	while (!orch_waiter_told())
	{
		long delay = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													 Min(until, look_at));

		if (delay <= 0)
			return GetCurrentTimestamp() < until ? WAKE_LOOK : WAKE_TIMED_OUT;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 delay, orch_wait_event(ORCH_WAIT_WORK));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return WAKE_TOLD;
}

/*
 * Memory for one more, before anything is taken: then nothing can fail.
 */
static void
make_room(void)
{
	if (nheld < held_room)
		return;
	if (held == NULL)
		held = MemoryContextAlloc(TopTransactionContext, 8 * sizeof(Held));
	else
		held = repalloc(held, held_room * 2 * sizeof(Held));
	held_room = Max(held_room * 2, 8);
}

static void
append(const Held *entry)
{
	held[nheld] = *entry;
	held[nheld++].level = GetCurrentTransactionNestLevel();
}

static int
leave_endpoint(OrchLimit *limits, int n)
{
	int left = 0;

	for (int i = 0; i < n; i++)
	{
		if (limits[i].kind != ORCH_LIMIT_ENDPOINT)
			limits[left++] = limits[i];
	}
	return left;
}

/*
 * Take what a row needs.  Returns NULL, or the limit that refuses it.
 */
static const OrchLimit *
take(const OrchRow *row, OrchLimitMemo *memo, OrchFare fare, Held *entry)
{
	const OrchDefinition *known =
		orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));
	const OrchLimit *refused;
	OrchDefinition definition;

	if (known != NULL)
	{
		/* what the catalog remembers may be dropped meanwhile */
		definition = *known;
		if (known->key_path != NULL)
			definition.key =
				orch_json_path(known->key_path, CurrentMemoryContext);
		known = &definition;
	}
	entry->taken = true;
	entry->n = orch_limit_gather(row, known, memo, entry->limits);
	if (fare == ORCH_FARE_RIDES)
		entry->n = leave_endpoint(entry->limits, entry->n);
	if (entry->n == 0)
		return NULL;
	refused = orch_permit_take_remote(entry->limits, entry->n);
	for (int i = 0; i < entry->n; i++)
		entry->ids[i] =
			entry->limits[i].max_running > 0 ? entry->limits[i].id : 0;
	return refused;
}

const OrchLimit *
orch_remote_take(const OrchRow *row, OrchLimitMemo *memo, OrchFare fare,
				 int64 *ids, int *n)
{
	Held *entry;
	const OrchLimit *refused;

	*n = 0;
	if (!orch_preloaded)
		return NULL;
	make_room();
	entry = &held[nheld];
	refused = take(row, memo, fare, entry);
	if (refused != NULL || entry->n == 0)
		return refused;
	entry->level = GetCurrentTransactionNestLevel();
	nheld++;
	for (int i = 0; i < entry->n; i++)
	{
		if (entry->ids[i] != 0)
			ids[(*n)++] = entry->ids[i];
	}
	return NULL;
}
int
orch_remote_taken(void)
{
	return nheld;
}

void
orch_remote_untake(int taken)
{
	while (nheld > taken)
		undo(&held[--nheld]);
}

/*
 * _has_permits(task): whether it could be claimed now.
 */
Datum
orchestrator_has_permits(PG_FUNCTION_ARGS)
{
	OrchLimitMemo memo = {0};
	OrchRow row;
	Held probe;

	orch_row_deform(PG_GETARG_HEAPTUPLEHEADER(0), &row);
	if (take(&row, &memo, ORCH_FARE_FULL, &probe) != NULL)
		PG_RETURN_BOOL(false);
	undo(&probe);
	PG_RETURN_BOOL(true);
}

void
orch_remote_give_back(ArrayType *array)
{
	Held entry = {.taken = false};
	int64 *ids = read_ids(array, &entry.n);

	if (!orch_preloaded || entry.n == 0)
		return;
	entry.n = Min(entry.n, ORCH_MAX_LIMITS);
	memcpy(entry.ids, ids, entry.n * sizeof(int64));
	make_room();
	append(&entry);
}

/*
 * _give_back_permits(ids): a lease ends when this transaction commits.
 */
Datum
orchestrator_give_back_permits(PG_FUNCTION_ARGS)
{
	orch_remote_give_back(PG_GETARG_ARRAYTYPE_P(0));
	PG_RETURN_VOID();
}

/*
 * _take_permits_again(ids): after a restart, those of a lease that goes on.
 */
Datum
orchestrator_take_permits_again(PG_FUNCTION_ARGS)
{
	int n;
	int64 *ids = read_ids(PG_GETARG_ARRAYTYPE_P(0), &n);

	if (orch_preloaded)
		orch_permit_take_again(ids, n);
	PG_RETURN_VOID();
}

static int64 *
read_ids(ArrayType *array, int *n)
{
	Datum *elements;
	int64 *ids;

	deconstruct_array(array, INT8OID, 8, true, TYPALIGN_DOUBLE, &elements,
					  NULL, n);
	ids = palloc(Max(*n, 1) * sizeof(int64));
	for (int i = 0; i < *n; i++)
		ids[i] = DatumGetInt64(elements[i]);
	return ids;
}

/*
 * Give back the permits; of those that were taken here, the starts as well.
 */
static void
undo(const Held *entry)
{
	int64 ids[ORCH_MAX_LIMITS];
	int n = 0;

	for (int i = 0; i < entry->n; i++)
	{
		if (entry->ids[i] != 0)
			ids[n++] = entry->ids[i];
	}
	if (n > 0)
		orch_permit_give_back(ids, n);
	if (entry->taken)
		orch_permit_return(entry->limits, entry->n);
}

static void
end_transaction(XactEvent what, void *arg)
{
	if (what == XACT_EVENT_PRE_PREPARE && nheld > 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has claimed or "
						"reported a task under limits")));
	if (what != XACT_EVENT_COMMIT && what != XACT_EVENT_ABORT)
		return;
	for (int i = 0; i < nheld; i++)
	{
		if (held[i].taken != (what == XACT_EVENT_ABORT))
			continue;
		undo(&held[i]);
	}
	held = NULL;
	nheld = held_room = 0;
}

static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();

	if (what == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nheld - 1; i >= 0 && held[i].level >= level; i--)
			held[i].level = level - 1;
	}
	if (what != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (nheld > 0 && held[nheld - 1].level >= level)
	{
		if (held[--nheld].taken)
			undo(&held[nheld]);
	}
}

/*
 * _secret(): random bits that nobody can guess, for a token.
 */
Datum
orchestrator_secret(PG_FUNCTION_ARGS)
{
	bytea *secret = palloc(VARHDRSZ + SECRET_SIZE);

	SET_VARSIZE(secret, VARHDRSZ + SECRET_SIZE);
	if (!pg_strong_random(VARDATA(secret), SECRET_SIZE))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("could not make random bits")));
	PG_RETURN_BYTEA_P(secret);
}
