/*
 * dispatch.c
 *	  Claims of calls for the courier, which go to its child program when they
 *	  are committed.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "carry.h"
#include "catalog.h"
#include "dispatch.h"
#include "duty.h"
#include "guc.h"
#include "heap.h"
#include "permit.h"
#include "place.h"
#include "stream.h"
#include "transit.h"

/* Claimed in one: the first are on their way while the next are claimed. */
#define CLAIM 256

/* Calls wait, but limits or locks keep them. */
#define HELD_UP_PAUSE (50 * INT64CONST(1000))

/* A role of which one lane took so long (microseconds) waits for the others. */
#define LATE (1000 * INT64CONST(1000))

/* Longest sleep before calls that wait for others are looked at again. */
#define LONGEST_WAIT_MS 60000

/* Columns of _claim_call_lane(). */
enum
{
	CALL_TASK = 1,
	CALL_EPOCH,
	CALL_ENDPOINT,
	CALL_REQUEST,
	CALL_REFUSAL,
	CALL_TIMEOUT,
	CALL_SILENCE,
	CALL_KEY,
	CALL_TRACEPARENT,
	CALL_PERMITS,
	CALL_PARCEL
};

/* A lane in which calls wait. */
typedef struct CallLane
{
	int32 queue;
	OrchHolder *holder;
	int share; /* places that are taken for it */
} CallLane;

static uint64 last_number = 0;
static TimestampTz claim_at = 0; /* look again then; 0: when told */
static CallLane *lanes = NULL;
static int nlanes = 0; /* 0: it is not known where calls wait */
static int lanes_room = 0;
static SPIPlanPtr claim_plan = NULL;
static SPIPlanPtr lanes_plan = NULL;

/* Of the present claim. */
static Size unsent = 0; /* before it */
static int room = 0;
static int nclaimed = 0;
static uint64 first_claimed = 0;
static bool lane_ended = false; /* one had fewer than its share */
static bool is_late = false;	/* one took too long */

static void hear(void);
static void undo_call(OrchCall *call);
static void fail_stuck(void);
static void forget_lanes(void);
static bool anyone_may_claim(void);
static void look_for_lanes(void);
static void find_lanes(void);
static void execute(SPIPlanPtr *plan, const char *query, int n, Datum *values);
static void share_out(int n);
static bool claim_shares(void);
static int claim_lane(CallLane *lane);
static void leave_for_later(const OrchHolder *holder);
static void give_back_share(CallLane *lane);
static void take_row(HeapTuple row, TupleDesc desc, const CallLane *lane);
static void put_in_parcel(OrchCall *call, const OrchCallSpec *spec,
						  int32 number);
static void write_parcels(void);
static void refuse(OrchCall *call, Datum refusal);
static void tune(OrchCall *call, int32 queue);
static void open_stream(OrchCall *call, const OrchCallSpec *spec);
static void read_spec(OrchCallSpec *spec, HeapTuple row, TupleDesc desc);

TimestampTz
orch_dispatch_at(void)
{
	return claim_at;
}

bool
orch_dispatch_is_late(void)
{
	return is_late;
}

void
orch_dispatch(void)
{
	hear();
	while (orch_transit.look && orch_dispatch_begin())
	{
		if (!orch_duty_perform(orch_dispatch_claim))
			orch_dispatch_undo();
		else if (!orch_dispatch_end())
			break;
	}
}

/*
 * Of calls that may wait where none did.
 */
static void
hear(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (pg_atomic_exchange_u32(&orch_transit.database->courier_told, 0) != 0)
	{
		orch_transit.look = true;
		forget_lanes();
	}
	if (claim_at != 0 &&
		(now >= claim_at ||
		 claim_at > TimestampTzPlusMilliseconds(now, LONGEST_WAIT_MS)))
	{
		claim_at = 0;
		orch_transit.look = true;
		forget_lanes();
	}
}

/*
 * Whether to claim.
 */
bool
orch_dispatch_begin(void)
{
	TimestampTz now = GetCurrentTimestamp();

	hear();
	room = Min(orch_place_free(), CLAIM);
	if (room <= 0 || (nlanes > 0 && !anyone_may_claim()) || !orch_enabled ||
		now < orch_transit.not_before)
		return false; /* look again when there is */
	if (orch_transit.child.pid == 0 && orch_child_installed() &&
		!orch_child_start(&orch_transit.child))
	{
		orch_transit.not_before = now + ORCH_COURIER_PAUSE;
		return false;
	}
	if (orch_transit_under_way() == 0)
		orch_transit.child.heard_at = now;
	orch_transit.look = false;
	claim_at = 0;
	nclaimed = 0;
	lane_ended = false;
	is_late = false;
	first_claimed = last_number + 1;
	unsent = orch_transit.child.out.size - orch_transit.child.out.start;
	orch_carry_begin();
	return true;
}

/*
 * Nothing was claimed: what was written for it is not sent.
 */
void
orch_dispatch_undo(void)
{
	forget_lanes();
	orch_transit.child.out.size = orch_transit.child.out.start + unsent;
	while (orch_transit.ended != NULL &&
		   orch_transit.ended->number >= first_claimed)
	{
		pfree(DatumGetPointer(orch_transit.ended->result));
		orch_transit.ended = orch_transit.ended->next_ended;
		orch_transit.nended--;
	}
	while (last_number >= first_claimed)
	{
		OrchCall *call =
			hash_search(orch_transit.calls, &last_number, HASH_FIND, NULL);

		if (call != NULL)
			undo_call(call);
		hash_search(orch_transit.calls, &last_number, HASH_REMOVE, NULL);
		last_number--;
	}
	orch_transit.look = true;
	orch_transit.not_before = GetCurrentTimestamp() + ORCH_COURIER_PAUSE;
	if (orch_carry_stuck() != 0)
		(void) orch_duty_perform(fail_stuck);
}

static void
undo_call(OrchCall *call)
{
	OrchParcel *parcel = call->parcel;

	if (parcel == NULL || orch_parcel_leave(parcel, call->number))
	{
		orch_place_give_back(call->holder);
		if (parcel != NULL)
			orch_parcel_free(parcel);
	}
	orch_transit_stop_reading(call);
}

/*
 * A duty.
 */
static void
fail_stuck(void)
{
	NullableDatum args[1] = {{Int64GetDatum(orch_carry_stuck()), false}};

	(void) orch_catalog_call(ORCH_FN_FAIL_STUCK_CALL, 1, args, NULL);
}

/*
 * False: there is no more to claim.
 */
bool
orch_dispatch_end(void)
{
	int64 left = orch_carry_left();

	orch_transit.claimed = last_number;
	if (orch_transit.child.pid != 0 &&
		!frame_send(&orch_transit.child.out, orch_transit.child.socket))
	{
		orch_transit_lose_child("ended");
		return false;
	}
	if (lane_ended || is_late)
		forget_lanes(); /* what is left there is held up */
	if (is_late)
	{
		claim_at = GetCurrentTimestamp(); /* when we have seen to others */
		return false;
	}
	if (nclaimed >= room || nlanes > 0)
	{
		orch_transit.look = true;
		return true;
	}
	if (left >= 0)
		claim_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   Min(left, LONGEST_WAIT_MS));
	else if (lane_ended && orch_duty_perform(look_for_lanes) &&
			 anyone_may_claim())
		claim_at = GetCurrentTimestamp() + HELD_UP_PAUSE;
	return false;
}

static void
forget_lanes(void)
{
	for (int i = 0; i < nlanes; i++)
		give_back_share(&lanes[i]);
	nlanes = 0;
	orch_carry_forget();
}

/*
 * Of the roles whose calls wait, whether one may have another place.
 */
static bool
anyone_may_claim(void)
{
	for (int i = 0; i < nlanes; i++)
	{
		if (orch_place_may_take(lanes[i].holder))
			return true;
	}
	return false;
}

/*
 * A duty.
 */
void
orch_dispatch_claim(void)
{
	OrchIdentity saved;

	orch_transit_check_extension();
	orch_catalog_begin_owner(&saved);
	SPI_connect();
	if (nlanes == 0)
		find_lanes();
	do
		share_out(room - nclaimed);
	while (claim_shares());
	write_parcels();
	SPI_finish();
	orch_catalog_end_owner(&saved);
}

/*
 * Likewise.
 */
static void
look_for_lanes(void)
{
	OrchIdentity saved;

	orch_catalog_begin_owner(&saved);
	SPI_connect();
	find_lanes();
	SPI_finish();
	orch_catalog_end_owner(&saved);
}

/*
 * They stay known while none of them ends, and nobody tells us of others.
 */
static void
find_lanes(void)
{
	bool isnull;

	execute(&lanes_plan, "SELECT l.* FROM orchestrator._call_lanes() l", 0,
			NULL);
	if (SPI_processed > lanes_room)
	{
		Size size = SPI_processed * sizeof(CallLane);

		lanes = lanes == NULL ? MemoryContextAlloc(TopMemoryContext, size)
							  : repalloc(lanes, size);
		lanes_room = SPI_processed;
	}
	for (int i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		lanes[i].queue = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		lanes[i].holder = orch_place_holder(
			DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull)));
		lanes[i].share = 0;
	}
	nlanes = SPI_processed;
}

/*
 * Arguments are integers.
 */
static void
execute(SPIPlanPtr *plan, const char *query, int n, Datum *values)
{
	Oid types[4] = {INT4OID, INT4OID, INT4OID, INT4OID};

	if (*plan == NULL)
	{
		*plan = SPI_prepare(query, n, types);
		SPI_keepplan(*plan);
	}
	if (SPI_execute_plan(*plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not claim calls");
}

/*
 * Share out so many places: each goes to the role that has the fewest, and of
 * its lanes to the one that got the fewest.
 */
static void
share_out(int n)
{
	while (n-- > 0)
	{
		CallLane *next = NULL;

		for (int i = 0; i < nlanes; i++)
		{
			CallLane *lane = &lanes[i];
			int more = next == NULL ? -1
									: orch_place_count(lane->holder) -
										  orch_place_count(next->holder);

			if (more < 0 || (more == 0 && lane->share < next->share))
				next = lane;
		}
		if (next == NULL || !orch_place_may_take(next->holder))
			return; /* then nobody who has more may */
		orch_place_take(next->holder);
		next->share++;
	}
}

/*
 * True: a lane has ended, so that there may be more for others.
 */
static bool
claim_shares(void)
{
	int left = 0;
	bool ended;

	for (int i = 0; i < nlanes; i++)
	{
		int share = lanes[i].share;

		if (claim_lane(&lanes[i]) >= share)
			lanes[left++] = lanes[i];
	}
	ended = left < nlanes;
	nlanes = left;
	lane_ended = lane_ended || ended;
	return ended && nclaimed < room && !is_late;
}

/*
 * Claim its share.
 */
static int
claim_lane(CallLane *lane)
{
	Datum values[4] = {Int32GetDatum(MyProcPid), Int32GetDatum(lane->queue),
					   Int32GetDatum(lane->holder->owner),
					   Int32GetDatum(lane->share)};
	int64 since = orch_monotonic();
	int n;

	if (lane->share == 0)
		return 0;
	give_back_share(lane);
	if (orch_catalog_queue_paused(lane->queue))
		return 0;
	orch_duty_begin_paths();
	execute(&claim_plan,
			"SELECT c.* FROM orchestrator._claim_call_lane($1, $2, $3, $4) c",
			4, values);
	n = SPI_processed;
	for (int i = 0; i < n; i++)
		take_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, lane);
	nclaimed += n;
	if (orch_monotonic() - since > LATE)
		leave_for_later(lane->holder);
	return n;
}

/*
 * What its other lanes have: each might take as long.
 */
static void
leave_for_later(const OrchHolder *holder)
{
	is_late = true;
	for (int i = 0; i < nlanes; i++)
	{
		if (lanes[i].holder == holder)
			give_back_share(&lanes[i]);
	}
}

static void
give_back_share(CallLane *lane)
{
	while (lane->share > 0)
	{
		orch_place_give_back(lane->holder);
		lane->share--;
	}
}

static void
take_row(HeapTuple row, TupleDesc desc, const CallLane *lane)
{
	bool isnull;
	uint64 number = ++last_number;
	OrchCall *call =
		hash_search(orch_transit.calls, &number, HASH_ENTER, NULL);
	Datum refusal = SPI_getbinval(row, desc, CALL_REFUSAL, &isnull);
	bool refused = !isnull;
	Datum *permits;
	OrchCallSpec spec = {.number = number};
	int32 parcel =
		DatumGetInt32(SPI_getbinval(row, desc, CALL_PARCEL, &isnull));

	call->holder = lane->holder;
	call->parcel = NULL;
	call->parts = NULL;
	call->stream = -1;
	call->outcome = NULL;
	orch_place_take(call->holder);
	call->task = DatumGetInt64(SPI_getbinval(row, desc, CALL_TASK, &isnull));
	call->epoch = DatumGetInt32(SPI_getbinval(row, desc, CALL_EPOCH, &isnull));
	call->tuned.limit = 0;
	deconstruct_array(
		DatumGetArrayTypeP(SPI_getbinval(row, desc, CALL_PERMITS, &isnull)),
		INT8OID, 8, true, 'd', &permits, NULL, &call->npermits);
	for (int i = 0; i < call->npermits; i++)
		call->permits[i] = DatumGetInt64(permits[i]);
	if (!refused && orch_transit.child.pid == 0)
	{
		refusal = orch_call_refusal(
			"OR012", "the program that makes outside calls is not installed",
			"Install libcurl4-openssl-dev and libssl-dev, then build and "
			"install the extension again.");
		refused = true;
	}
	if (!refused)
	{
		read_spec(&spec, row, desc);
		tune(call, lane->queue);
		if (parcel != 0)
		{
			put_in_parcel(call, &spec, parcel);
			return;
		}
		refusal = orch_call_write(&orch_transit.child.out, &spec);
		refused = refusal != (Datum) 0;
	}
	if (refused)
		refuse(call, refusal);
	else
		open_stream(call, &spec);
}

static void
put_in_parcel(OrchCall *call, const OrchCallSpec *spec, int32 number)
{
	call->parcel = orch_parcel(number);
	orch_parcel_add(call->parcel, spec, call->task);
	if (call->parcel->n > 1)
		orch_place_give_back(call->holder); /* it rides */
}

static void
write_parcels(void)
{
	OrchParcel *parcel;

	while ((parcel = orch_parcel_unwritten()) != NULL)
	{
		Datum refusal = orch_parcel_write(parcel, &orch_transit.child.out);

		if (refusal == (Datum) 0)
			continue;
		parcel->over = true;
		for (int i = 0; i < parcel->n; i++)
			refuse(hash_search(orch_transit.calls, &parcel->items[i].call,
							   HASH_FIND, NULL),
				   refusal);
	}
}

static void
refuse(OrchCall *call, Datum refusal)
{
	call->tuned.limit = 0; /* nothing was called */
	orch_transit_end_call(call, "error", refusal);
}

/*
 * Its queue learns from it, if that is adaptive.
 */
static void
tune(OrchCall *call, int32 queue)
{
	const OrchQueue *known = orch_catalog_queue_info(queue);

	if (known == NULL || known->limit.adaptive == 0)
		return;
	call->tuned.queue = queue;
	call->tuned.limit = known->limit.id;
	call->tuned.since = orch_monotonic();
}

/*
 * Of a call that asks for its answer in parts.
 */
static void
open_stream(OrchCall *call, const OrchCallSpec *spec)
{
	const OrchEndpoint *endpoint = spec->endpoint;
	const OrchDefinition *definition;
	OrchStreamOf of = {.task = call->task, .root = call->task};
	OrchLeaf *leaf;
	OrchRow row;
	ItemPointerData tid;
	bool shown;

	if (!orch_call_streams(spec->request, &shown))
		return;
	call->parts = orch_delta_begin(TopMemoryContext, endpoint->provider,
								   endpoint->max_response);
	if (call->parts == NULL || !shown)
		return;
	leaf = orch_heap_open_live();
	if (orch_heap_find(leaf, call->task, &row, &tid))
	{
		definition =
			orch_catalog_definition(ORCH_INT32(&row, ORCH_TASK_DEFINITION));
		if (!row.nulls[ORCH_TASK_ROOT_ID])
			of.root = ORCH_INT64(&row, ORCH_TASK_ROOT_ID);
		if (!row.nulls[ORCH_TASK_PARENT_ID])
			of.parent = ORCH_INT64(&row, ORCH_TASK_PARENT_ID);
		of.owner = ORCH_INT32(&row, ORCH_TASK_OWNER);
		/* as llm_stream() counts them */
		of.attempt = ORCH_INT32(&row, ORCH_TASK_ATTEMPT) +
					 !row.nulls[ORCH_TASK_REMAINING];
		of.notify = definition != NULL && definition->notify;
		of.notify_all = definition != NULL && definition->notify_all;
		call->stream = orch_stream_open(&of);
	}
	orch_heap_close(leaf);
}

static void
read_spec(OrchCallSpec *spec, HeapTuple row, TupleDesc desc)
{
	char *endpoint = SPI_getvalue(row, desc, CALL_ENDPOINT);
	bool isnull;

	spec->endpoint = orch_endpoint(endpoint);
	if (spec->endpoint == NULL)
		elog(ERROR, "endpoint \"%s\" is gone", endpoint);
	spec->request =
		DatumGetJsonbP(SPI_getbinval(row, desc, CALL_REQUEST, &isnull));
	spec->timeout =
		DatumGetInt64(SPI_getbinval(row, desc, CALL_TIMEOUT, &isnull));
	if (!isnull)
		spec->timeout = Max(spec->timeout, 1);
	spec->silence =
		DatumGetInt64(SPI_getbinval(row, desc, CALL_SILENCE, &isnull));
	spec->key = SPI_getvalue(row, desc, CALL_KEY);
	spec->traceparent = SPI_getvalue(row, desc, CALL_TRACEPARENT);
}
