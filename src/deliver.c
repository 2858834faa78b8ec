/*
 * deliver.c
 *	  Settles of calls that the courier's child program has made, a batch to a
 *	  transaction.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "deliver.h"
#include "dispatch.h"
#include "duty.h"
#include "place.h"
#include "transit.h"

/* Settled in one transaction. */
#define BATCH 500

/* What was to be settled is locked by somebody. */
#define LOCKED_PAUSE (100 * INT64CONST(1000))

static TimestampTz settle_at = 0; /* not before then */
static bool one_by_one = false;
static OrchCall *batch[BATCH];
static int nbatch = 0;
static int64 *locked = NULL; /* of the batch */
static int nlocked = 0;

static void settle_and_claim(void);
static void settle_batch(void);
static Datum column(OrchCall *const *some, int n, Oid type,
					Datum (*get)(const OrchCall *call));
static Datum task_of(const OrchCall *call);
static Datum epoch_of(const OrchCall *call);
static Datum outcome_of(const OrchCall *call);
static Datum result_of(const OrchCall *call);
static void settle(void);
static int complete_plain(OrchCall **plain, int n, OrchCall **rest, int nrest);
static void settle_rest(OrchCall **rest, int n);
static void finish_batch(void);
static void learn(const OrchCall *call);

TimestampTz
orch_deliver_at(void)
{
	return settle_at;
}

void
orch_deliver(void)
{
	if (orch_transit.nended > 0 && GetCurrentTimestamp() < settle_at)
		return;
	settle_at = 0;
	while (orch_transit.nended > 0 && settle_at == 0)
		settle_batch();
}

/*
 * A duty: in one transaction, so that there is one flush.
 */
static void
settle_and_claim(void)
{
	settle();
	orch_dispatch_claim();
}

/*
 * One that cannot be settled with others is settled by itself, and if it cannot
 * be so either, after all others.
 */
static void
settle_batch(void)
{
	OrchCall **place = &orch_transit.ended;
	bool claims;
	bool done;

	nbatch = 0;
	while (*place != NULL && nbatch < (one_by_one ? 1 : BATCH))
	{
		batch[nbatch++] = *place;
		if ((*place)->parcel == NULL)
			orch_place_leave((*place)->holder);
		*place = (*place)->next_ended;
	}
	orch_transit.nended -= nbatch;
	claims = !one_by_one && orch_transit.child.pid != 0 &&
			 !orch_dispatch_is_late() && orch_dispatch_begin();
	done = orch_duty_perform(claims ? settle_and_claim : settle);
	orch_place_stay();
	if (done)
	{
		one_by_one = one_by_one && orch_transit.nended > 0;
		finish_batch();
		if (claims)
			(void) orch_dispatch_end();
		return;
	}
	if (claims)
		orch_dispatch_undo();
	if (one_by_one)
	{
		settle_at = GetCurrentTimestamp() + ORCH_COURIER_PAUSE;
		place = &orch_transit.ended;
		while (*place != NULL)
			place = &(*place)->next_ended;
	}
	for (int i = nbatch - 1; i >= 0; i--)
		orch_transit_add_ended(batch[i], place);
	one_by_one = true;
}

static Datum
column(OrchCall *const *some, int n, Oid type,
	   Datum (*get)(const OrchCall *call))
{
	Datum *values = palloc(n * sizeof(Datum));
	int16 size;
	bool by_value;
	char align;

	for (int i = 0; i < n; i++)
		values[i] = get(some[i]);
	get_typlenbyvalalign(type, &size, &by_value, &align);
	return PointerGetDatum(
		construct_array(values, n, type, size, by_value, align));
}

static Datum
task_of(const OrchCall *call)
{
	return Int64GetDatum(call->task);
}

static Datum
epoch_of(const OrchCall *call)
{
	return Int32GetDatum(call->epoch);
}

static Datum
outcome_of(const OrchCall *call)
{
	return CStringGetTextDatum(call->outcome);
}

static Datum
result_of(const OrchCall *call)
{
	return call->result;
}

/*
 * A duty: those that are completed and that nothing hangs on; then the others.
 */
static void
settle(void)
{
	OrchCall **plain = palloc(nbatch * sizeof(OrchCall *));
	OrchCall **rest = palloc(nbatch * sizeof(OrchCall *));
	int nplain = 0;
	int nrest = 0;

	for (int i = 0; i < nbatch; i++)
	{
		if (strcmp(batch[i]->outcome, "completed") == 0)
			plain[nplain++] = batch[i];
		else
			rest[nrest++] = batch[i];
	}
	nlocked = 0;
	if (nplain > 0)
		nrest = complete_plain(plain, nplain, rest, nrest);
	if (nrest > 0)
		settle_rest(rest, nrest);
}

/*
 * Adds to the rest what could not be completed so; returns how many it is.
 */
static int
complete_plain(OrchCall **plain, int n, OrchCall **rest, int nrest)
{
	NullableDatum args[3] = {0};
	Datum *done;
	int ndone;
	int next = 0;

	args[0].value = column(plain, n, INT8OID, task_of);
	args[1].value = column(plain, n, INT4OID, epoch_of);
	args[2].value = column(plain, n, JSONBOID, result_of);
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(
						  ORCH_FN_COMPLETE_CALLS, 3, args, NULL)),
					  INT8OID, 8, true, 'd', &done, NULL, &ndone);
	/* in the order in which they were given */
	for (int i = 0; i < n; i++)
	{
		if (next < ndone && DatumGetInt64(done[next]) == plain[i]->task)
			next++;
		else
			rest[nrest++] = plain[i];
	}
	return nrest;
}

static void
settle_rest(OrchCall **rest, int n)
{
	NullableDatum args[4] = {0};
	Datum *tasks;
	MemoryContext old;

	args[0].value = column(rest, n, INT8OID, task_of);
	args[1].value = column(rest, n, INT4OID, epoch_of);
	args[2].value = column(rest, n, TEXTOID, outcome_of);
	args[3].value = column(rest, n, JSONBOID, result_of);
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(
						  ORCH_FN_SETTLE_CALLS, 4, args, NULL)),
					  INT8OID, 8, true, 'd', &tasks, NULL, &nlocked);
	old = MemoryContextSwitchTo(orch_transit.turn_context);
	locked = palloc(nlocked * sizeof(int64));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < nlocked; i++)
		locked[i] = DatumGetInt64(tasks[i]);
}

/*
 * What somebody has locked is settled a little later.
 */
static void
finish_batch(void)
{
	for (int i = 0; i < nbatch; i++)
	{
		OrchCall *call = batch[i];
		bool is_locked = false;

		for (int j = 0; j < nlocked && !is_locked; j++)
			is_locked = locked[j] == call->task;
		if (is_locked)
		{
			orch_transit_add_ended(call, &orch_transit.ended);
			settle_at = GetCurrentTimestamp() + LOCKED_PAUSE;
			continue;
		}
		pfree(DatumGetPointer(call->result));
		learn(call);
		orch_transit_forget(call);
	}
}

/*
 * One that was lost with the child says nothing of its endpoint.
 */
static void
learn(const OrchCall *call)
{
	bool timed_out = strcmp(call->outcome, "timeout") == 0;

	if (strcmp(call->outcome, "lost") != 0)
		orch_tune_report_call(&call->tuned,
							  timed_out || strcmp(call->outcome, "error") == 0,
							  timed_out);
}
