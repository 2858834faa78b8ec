/*
 * transit.c
 *	  The calls that the courier has: those that its child program makes, and
 *	  those that came back and are to be settled.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "storage/ipc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "collect.h"
#include "duty.h"
#include "guc.h"
#include "permit.h"
#include "stream.h"
#include "transit.h"

OrchTransit orch_transit = {.child = {.socket = -1}, .look = true};

static Oid live = InvalidOid;
static MemoryContext result_context = NULL;

static void read_answers(void);
static void read_frames(void);
static void read_part(FrameReader *frame);
static void read_done(FrameReader *frame);
static void read_parcel(OrchParcel *parcel, FrameReader *frame);
static void find_lost(void);
static void cancel(uint64 number);

void
orch_transit_install(void)
{
	HASHCTL control = {.keysize = sizeof(uint64),
					   .entrysize = sizeof(OrchCall)};

	orch_transit.turn_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator courier turn", ALLOCSET_DEFAULT_SIZES);
	orch_duty_install(orch_transit.turn_context);
	result_context =
		AllocSetContextCreate(TopMemoryContext, "orchestrator courier results",
							  ALLOCSET_DEFAULT_SIZES);
	control.hcxt = TopMemoryContext;
	orch_transit.calls = hash_create("orchestrator calls", 256, &control,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

void
orch_transit_leave(void)
{
	HASH_SEQ_STATUS scan;
	OrchCall *call;

	orch_child_stop(&orch_transit.child);
	hash_seq_init(&scan, orch_transit.calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		/* those of a claim that is not committed go back with it */
		if (call->number <= orch_transit.claimed)
			orch_permit_give_back(call->permits, call->npermits);
		orch_transit_stop_reading(call);
	}
	orch_parcel_lose();
}

void
orch_transit_check_extension(void)
{
	const OrchCatalog *catalog =
		OidIsValid(get_extension_oid("orchestrator", true))
			? orch_catalog(true)
			: NULL;

	if (catalog == NULL || (OidIsValid(live) && catalog->task_live != live))
		proc_exit(0); /* it was dropped, and maybe made again */
	live = catalog->task_live;
}

int
orch_transit_under_way(void)
{
	return hash_get_num_entries(orch_transit.calls) - orch_transit.nended;
}

/* -------------------------------------------------------------- the child */

void
orch_transit_see_to_child(void)
{
	if (orch_transit.child.pid == 0)
		return;
	if (!orch_child_exchange(&orch_transit.child))
		orch_transit_lose_child("ended");
	else
	{
		read_answers();
		if (orch_transit.child.pid != 0 && orch_transit_under_way() > 0 &&
			GetCurrentTimestamp() - orch_transit.child.heard_at >
				orch_courier_hang_timeout * USECS_PER_SEC)
			orch_transit_lose_child("hung");
	}
}

/*
 * It is gone, or is sent away: the calls that it had have spent an attempt.
 */
void
orch_transit_lose_child(const char *why)
{
	HASH_SEQ_STATUS scan;
	OrchCall *call;
	bool idle = orch_transit_under_way() == 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!idle || !orch_transit.child.ready)
		ereport(LOG, (errmsg("the program that makes outside calls %s, %d "
							 "calls were under way",
							 why, orch_transit_under_way())));
	if (!orch_transit.child.ready ||
		now - orch_transit.child.started_at < ORCH_COURIER_PAUSE)
		orch_transit.not_before =
			now + ORCH_COURIER_PAUSE; /* it may do so again */
	if (orch_transit.child.pid != 0)
		read_answers(); /* what it had said before */
	orch_child_stop(&orch_transit.child);
	orch_parcel_lose();
	hash_seq_init(&scan, orch_transit.calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		if (call->outcome != NULL)
			continue;
		orch_transit_end_call(
			call, "lost",
			DirectFunctionCall1(
				jsonb_in,
				CStringGetDatum(
					"{\"sqlstate\": \"OR003\", \"message\": \"the "
					"program that makes outside calls ended while this "
					"one was under way\"}")));
	}
}

void
orch_transit_end_call(OrchCall *call, const char *outcome, Datum result)
{
	MemoryContext old = MemoryContextSwitchTo(result_context);

	call->outcome = outcome;
	call->result = datumCopy(result, false, -1);
	MemoryContextSwitchTo(old);
	orch_transit_add_ended(call, &orch_transit.ended);
}

void
orch_transit_add_ended(OrchCall *call, OrchCall **place)
{
	call->next_ended = *place;
	*place = call;
	orch_transit.nended++;
}

static void
read_answers(void)
{
	if (orch_transit.child.in.start < orch_transit.child.in.size &&
		!orch_duty_perform(read_frames))
		orch_transit.child.in.failed = true;
	if (orch_transit.child.in.failed)
		orch_transit_lose_child("did not keep to the protocol");
}

/*
 * Each answer is read for itself (call.c), so an error here is a frame that
 * cannot be.
 */
static void
read_frames(void)
{
	FrameType type;
	FrameReader frame;

	while (frame_next(&orch_transit.child.in, &type, &frame))
	{
		if (type == FRAME_HELLO)
			orch_transit.child.ready = frame_read_u32(&frame) == FRAME_VERSION;
		else if (type == FRAME_PART)
			read_part(&frame);
		else if (type == FRAME_DONE)
			read_done(&frame);
	}
}

/*
 * Parts that are of no use end the call.
 */
static void
read_part(FrameReader *frame)
{
	uint64 number = frame_read_u64(frame);
	FrameString part = frame_read_string(frame);
	OrchCall *call = hash_search(orch_transit.calls, &number, HASH_FIND, NULL);
	const char *text;
	Size size;

	if (frame->bad)
		elog(ERROR, "a part of an answer ended too early");
	if (call == NULL || call->outcome != NULL || call->parts == NULL)
		return;
	if (orch_delta_add(call->parts, part.data, part.size))
	{
		text = orch_delta_text(call->parts, &size);
		if (call->stream >= 0 && size > 0)
			orch_stream_append(call->stream, text, size);
		return;
	}
	cancel(number);
	orch_transit_end_call(call, "error", orch_call_useless(call->parts));
}

static void
read_done(FrameReader *frame)
{
	uint64 number = frame_read_u64(frame);
	OrchParcel *parcel = orch_parcel_find(number);
	OrchCall *call;
	Datum result;
	const char *outcome;
	bool too_many;

	if (parcel != NULL)
		read_parcel(parcel, frame);
	call = hash_search(orch_transit.calls, &number, HASH_FIND, NULL);
	if (call == NULL || call->outcome != NULL)
		return; /* it was cancelled */
	outcome = orch_call_read(frame, 1, call->parts, &result, &too_many);
	if (frame->bad)
		elog(ERROR, "an answer ended too early");
	orch_transit_end_call(call, outcome, result);
}

/*
 * Likewise, for each call that is in it.
 */
static void
read_parcel(OrchParcel *parcel, FrameReader *frame)
{
	OrchParcelResult *results = orch_parcel_read(parcel, frame);

	if (frame->bad)
		elog(ERROR, "an answer ended too early");
	for (int i = 0; i < parcel->n; i++)
	{
		OrchCall *call = hash_search(orch_transit.calls,
									 &parcel->items[i].call, HASH_FIND, NULL);

		if (call == NULL || call->outcome != NULL)
			continue; /* it was cancelled, or this was said before */
		if (strcmp(results[i].outcome, "released") == 0)
			orch_collect_cap(call->task, (parcel->left + 1) / 2);
		orch_transit_end_call(call, results[i].outcome, results[i].result);
	}
}

/* ----------------------------------------------------------- interruption */

/*
 * Tasks that were cancelled, paused or taken over: their transfers end now.
 */
void
orch_transit_drop_lost(void)
{
	if (hash_get_num_entries(orch_transit.calls) > 0 &&
		!orch_duty_perform(find_lost))
		pg_atomic_write_u32(&orch_transit.database->courier_interrupted, 1);
}

static void
find_lost(void)
{
	int n = hash_get_num_entries(orch_transit.calls);
	Datum *tasks = palloc(n * sizeof(Datum));
	Datum *epochs = palloc(n * sizeof(Datum));
	Datum *lost;
	NullableDatum args[2] = {0};
	HASH_SEQ_STATUS scan;
	OrchCall *call;
	int i = 0;
	int nlost;

	hash_seq_init(&scan, orch_transit.calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		tasks[i] = Int64GetDatum(call->task);
		epochs[i++] = Int32GetDatum(call->epoch);
	}
	args[0].value =
		PointerGetDatum(construct_array(tasks, n, INT8OID, 8, true, 'd'));
	args[1].value =
		PointerGetDatum(construct_array(epochs, n, INT4OID, 4, true, 'i'));
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(ORCH_FN_LOST_CALLS,
														   2, args, NULL)),
					  INT8OID, 8, true, 'd', &lost, NULL, &nlost);
	if (nlost == 0)
		return;
	hash_seq_init(&scan, orch_transit.calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		/* one that has ended is settled, which finds it stale */
		for (i = 0; i < nlost && call->outcome == NULL; i++)
		{
			if (DatumGetInt64(lost[i]) != call->task)
				continue;
			if (call->parcel == NULL || call->parcel->over)
				cancel(call->number);
			orch_transit_forget(call);
			break;
		}
	}
}

static void
cancel(uint64 number)
{
	frame_begin(&orch_transit.child.out, FRAME_CANCEL);
	frame_u64(&orch_transit.child.out, number);
	frame_end(&orch_transit.child.out);
}

/*
 * The request that it opened a parcel with may be under way still.
 */
void
orch_transit_forget(OrchCall *call)
{
	OrchParcel *parcel = call->parcel;

	if (parcel != NULL && !parcel->over)
		orch_parcel_keep_permits(parcel, call->permits, call->npermits);
	else
		orch_permit_give_back(call->permits, call->npermits);
	if (parcel == NULL)
		orch_place_give_back(call->holder);
	else if (orch_parcel_leave(parcel, call->number))
	{
		if (!parcel->over)
			cancel(parcel->number);
		orch_parcel_free(parcel);
		orch_place_give_back(call->holder);
	}
	orch_transit_stop_reading(call);
	hash_search(orch_transit.calls, &call->number, HASH_REMOVE, NULL);
	orch_transit.look = true;
}

void
orch_transit_stop_reading(OrchCall *call)
{
	if (call->stream >= 0)
		orch_stream_close(call->stream);
	if (call->parts != NULL)
		orch_delta_free(call->parts);
	call->stream = -1;
	call->parts = NULL;
}
