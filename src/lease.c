/*
 * lease.c
 *	  Claims and reports of remote workers, many at a time.
 *
 * What is plain is done here, row by row and without the executor: a ready
 * task whose limits have room is claimed, and one that nothing hangs on is
 * completed.  The rest is SQL (sql/58_remote.sql), whose functions call these
 * first.  Triggers do not fire here: the row of a lease is deleted with the
 * task's.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "event.h"
#include "fair.h"
#include "remote.h"
#include "remote_lane.h"
#include "settle.h"

/* Columns of orchestrator.lease, in the order of sql/20_tables.sql. */
enum
{
	LEASE_TASK_ID,
	LEASE_EPOCH,
	LEASE_SECRET,
	LEASE_WORKER,
	LEASE_CLAIMED_BY,
	LEASE_OWNER,
	LEASE_QUEUE,
	LEASE_STARTED_AT,
	LEASE_HEARTBEAT_AT,
	LEASE_LENGTH,
	LEASE_ENDS_AT,
	LEASE_LOOK_AT,
	LEASE_ALERTED,
	LEASE_PROGRESS,
	LEASE_MESSAGE,
	LEASE_STAGE,
	LEASE_PERMITS,
	LEASE_REQUESTS,
	LEASE_COLUMNS
};

/* Columns of orchestrator.claimed_task, in the order of sql/10_types.sql. */
enum
{
	CLAIMED_TASK_ID,
	CLAIMED_TOKEN,
	CLAIMED_DEFINITION,
	CLAIMED_HANDLER,
	CLAIMED_INPUT,
	CLAIMED_ATTEMPT,
	CLAIMED_MAX_ATTEMPTS,
	CLAIMED_IDEMPOTENCY_KEY,
	CLAIMED_QUEUE,
	CLAIMED_OWNER,
	CLAIMED_NAME,
	CLAIMED_PARENT_ID,
	CLAIMED_ROOT_ID,
	CLAIMED_KEY,
	CLAIMED_METADATA,
	CLAIMED_DEADLINE,
	CLAIMED_TIMEOUT_AT,
	CLAIMED_LEASE_UNTIL,
	CLAIMED_TRACEPARENT,
	CLAIMED_COLUMNS
};

#define SECRET_SIZE	   16
#define TOKEN_SIZE	   64
#define LEASES_AT_ONCE 64

/* Of a definition that gives no response timeout, in microseconds. */
#define DEFAULT_LEASE (60 * USECS_PER_SEC)

/* Rows that limits or others keep from a claim, until it gives up. */
#define MAX_PASSED 1000

/* What a claim needs of a definition, in the claim's memory. */
typedef struct Known
{
	int32 id;
	Datum name;
	Datum handler;
	int64 timeout; /* microseconds; 0: none */
	int64 response_timeout;
	bool alerts;
	bool notify;
} Known;

typedef struct Claim
{
	int32 claimer;
	Datum worker;
	const Interval *length; /* NULL: the definition's */
	ArrayType *definitions; /* NULL: all */

	/* of the lane */
	int32 owner;
	int32 queue;
	Datum queue_name;
	Datum owner_name;
	OrchLeaf *live;
	OrchReadyScan *rows;
	ReturnSetInfo *result;
	TimestampTz now;
	TimestampTz look_at; /* the first of its leases to be looked at */
	OrchLimitMemo memo;
	int64 turn;
	int taken;
	int passed;
	List *known; /* Known * */
	MemoryContext context;
	MemoryContext row_context; /* reset for each row */

	Relation rel; /* of leases, and those that are to be written */
	CatalogIndexState indexes;
	int nslots;
	int nleases;
	TupleTableSlot *slots[LEASES_AT_ONCE];
	char secrets[LEASES_AT_ONCE][SECRET_SIZE];
} Claim;

/* Reports that tasks are completed. */
typedef struct Reports
{
	OrchLeaf *live;
	Relation rel; /* of leases */
	Relation index;
	IndexScanDesc scan; /* of one lease by the id of its task */
	TupleTableSlot *slot;
	int32 *owners; /* who reports */
	int nowners;
	TimestampTz now;
	const OrchDefinition *definition; /* of the last one; a copy */
	OrchTask **done;
	int ndone;
} Reports;

/* One of them, and where it stood. */
typedef struct Report
{
	int64 task;
	int place;
} Report;

PG_FUNCTION_INFO_V1(orchestrator_claim_rows);
PG_FUNCTION_INFO_V1(orchestrator_claim_work);
PG_FUNCTION_INFO_V1(orchestrator_complete_plain);

static Relation open_leases(void);
static void begin_claim(Claim *claim, FunctionCallInfo fcinfo, int first);
static int claim_lane(Claim *claim, int32 queue, int32 owner, int wanted);
static void begin_lane(Claim *claim, int32 queue, int32 owner);
static void end_lane(Claim *claim);
static bool claim_row(Claim *claim, OrchRow *row, ItemPointer tid);
static bool is_wanted(const Claim *claim, int32 definition);
static const Known *know(Claim *claim, int32 definition);
static Datum make_text(const char *string);
static void add_lease(Claim *claim, const OrchRow *row, const Known *known,
					  const int64 *permits, int npermits,
					  TimestampTz *ends_at);
static void set_times(Claim *claim, const OrchRow *row, const Known *known,
					  Datum *values);
static const char *next_secret(Claim *claim);
static Datum make_key(const OrchRow *row);
static void write_leases(Claim *claim);
static void give_out(Claim *claim, const OrchRow *row, const Known *known,
					 const char *secret, TimestampTz ends_at);
static void write_token(char *token, int32 epoch, const char *secret);
static void begin_reports(Reports *reports, ArrayType *owners);
static void end_reports(Reports *reports);
static int compare_reports(const void *left, const void *right);
static bool complete(Reports *reports, int64 task, text *token);
static const OrchDefinition *keep_definition(Reports *reports, int32 id);
static bool find_lease(Reports *reports, int64 task);
static bool is_good(const Reports *reports, text *token);
static bool is_plain(const Reports *reports, const OrchRow *row);
static void delete_lease(Reports *reports, int64 task);

static Relation
open_leases(void)
{
	Relation rel = table_open(orch_catalog(false)->lease, RowExclusiveLock);

	if (RelationGetNumberOfAttributes(rel) != LEASE_COLUMNS)
		elog(ERROR, "a lease has %d columns, not %d", LEASE_COLUMNS,
			 RelationGetNumberOfAttributes(rel));
	return rel;
}

/*
 * _claim_work(caller, claimer, queues, max_tasks, worker, lease, definitions):
 * ready tasks of these queues that the caller may claim.  First each lane its
 * share; then, who has more.
 */
Datum
orchestrator_claim_work(PG_FUNCTION_ARGS)
{
	Claim *claim = palloc0(sizeof(Claim));
	ArrayType *queues = PG_GETARG_ARRAYTYPE_P(2);
	int left = PG_GETARG_INT32(3);
	OrchRemoteLane *lanes;
	int n;

	begin_claim(claim, fcinfo, 4);
	claim->claimer = PG_GETARG_INT32(1);
	lanes = orch_remote_lanes(
		PG_GETARG_OID(0), (const int32 *) ARR_DATA_PTR(queues),
		ArrayGetNItems(ARR_NDIM(queues), ARR_DIMS(queues)), &n);
	for (int i = 0; i < n && left > 0; i++)
		left -= claim_lane(claim, lanes[i].queue, lanes[i].owner,
						   Max(left / (n - i), 1));
	if (left == PG_GETARG_INT32(3))
		PG_RETURN_NULL();
	for (int i = 0; i < n && left > 0; i++)
		left -= claim_lane(claim, lanes[i].queue, lanes[i].owner, left);
	PG_RETURN_NULL();
}

/*
 * _claim_rows(claimer, queue, owner, max_rows, worker, lease, definitions):
 * the same of one lane.
 */
Datum
orchestrator_claim_rows(PG_FUNCTION_ARGS)
{
	Claim *claim = palloc0(sizeof(Claim));

	begin_claim(claim, fcinfo, 4);
	claim->claimer = PG_GETARG_INT32(0);
	claim_lane(claim, PG_GETARG_INT32(1), PG_GETARG_INT32(2),
			   PG_GETARG_INT32(3));
	PG_RETURN_NULL();
}

/*
 * The worker, the lease and the definitions are arguments from first on.
 */
static void
begin_claim(Claim *claim, FunctionCallInfo fcinfo, int first)
{
	orch_catalog_require_writes("claim");
	InitMaterializedSRF(fcinfo, 0);
	claim->result = (ReturnSetInfo *) fcinfo->resultinfo;
	if (claim->result->setDesc->natts != CLAIMED_COLUMNS)
		elog(ERROR, "a claimed task has %d columns, not %d", CLAIMED_COLUMNS,
			 claim->result->setDesc->natts);
	claim->worker = PG_GETARG_DATUM(first);
	claim->length =
		PG_ARGISNULL(first + 1) ? NULL : PG_GETARG_INTERVAL_P(first + 1);
	claim->definitions =
		PG_ARGISNULL(first + 2) ? NULL : PG_GETARG_ARRAYTYPE_P(first + 2);
	claim->context = CurrentMemoryContext;
}

/*
 * The oldest ready tasks of one lane that nobody has locked and that limits
 * have room for, each with its lease.  Returns how many.
 */
static int
claim_lane(Claim *claim, int32 queue, int32 owner, int wanted)
{
	OrchRow row;
	ItemPointerData tid;

	begin_lane(claim, queue, owner);
	claim->rows = orch_heap_parked_begin(claim->live, owner, -(int64) queue,
										 PG_INT64_MIN);
	while (claim->taken < wanted && claim->passed < MAX_PASSED &&
		   orch_heap_ready_next(claim->rows, &row, &tid))
	{
		MemoryContext old = MemoryContextSwitchTo(claim->row_context);
		bool more = claim_row(claim, &row, &tid);

		MemoryContextSwitchTo(old);
		MemoryContextReset(claim->row_context);
		if (!more)
			break;
	}
	orch_heap_ready_end(claim->rows);
	end_lane(claim);
	return claim->taken;
}

static void
begin_lane(Claim *claim, int32 queue, int32 owner)
{
	claim->queue = queue;
	claim->owner = owner;
	claim->queue_name = make_text(orch_catalog_queue_depth(queue)->name);
	claim->owner_name = make_text(orch_catalog_owner_name(owner));
	claim->row_context = AllocSetContextCreate(
		CurrentMemoryContext, "orchestrator claim", ALLOCSET_DEFAULT_SIZES);
	claim->now = orch_clock();
	claim->look_at = DT_NOEND;
	claim->turn = PG_INT64_MIN;
	claim->taken = claim->passed = 0;
	memset(&claim->memo, 0, sizeof(claim->memo));
	claim->live = orch_heap_open_live();
	claim->rel = open_leases();
	claim->indexes = CatalogOpenIndexes(claim->rel);
}

static void
end_lane(Claim *claim)
{
	const OrchQueue *queue = orch_catalog_queue_info(claim->queue);

	write_leases(claim);
	if (claim->taken > 0)
		orch_event_due(claim->look_at);
	if (claim->taken > 0 && queue != NULL && queue->tenant != (Datum) 0)
		orch_fair_claimed(claim->owner, claim->queue, claim->turn);
	for (int i = 0; i < claim->nslots; i++)
		ExecDropSingleTupleTableSlot(claim->slots[i]);
	claim->nslots = 0;
	CatalogCloseIndexes(claim->indexes);
	table_close(claim->rel, NoLock);
	orch_heap_close(claim->live);
	MemoryContextDelete(claim->row_context);
	CommandCounterIncrement();
}

/*
 * False: go no further.
 */
static bool
claim_row(Claim *claim, OrchRow *row, ItemPointer tid)
{
	const Known *known;
	const OrchLimit *refused;
	int64 permits[ORCH_MAX_LIMITS];
	int npermits;
	int held = orch_remote_taken();
	TimestampTz ends_at;

	if (!row->nulls[ORCH_TASK_EXPIRE_AT] &&
		DatumGetTimestampTz(row->values[ORCH_TASK_EXPIRE_AT]) <= claim->now)
		return true; /* the supervisor fails it */
	if (!is_wanted(claim, ORCH_INT32(row, ORCH_TASK_DEFINITION)))
		return true;
	known = know(claim, ORCH_INT32(row, ORCH_TASK_DEFINITION));
	if (known == NULL)
		return true;
	refused = orch_remote_take(row, &claim->memo, ORCH_FARE_FULL, permits,
							   &npermits);
	if (refused != NULL)
	{
		claim->passed++;
		return refused->kind != ORCH_LIMIT_QUEUE &&
			   refused->kind != ORCH_LIMIT_ROLE;
	}
	orch_claim_mark_running(row, claim->now);
	orch_row_set_null(row, ORCH_TASK_WORKER);
	if (!orch_heap_update(claim->live, tid, row,
						  orch_heap_ready_mine(claim->rows)))
	{
		claim->passed++;
		orch_remote_untake(held);
		return true;
	}
	claim->taken++;
	claim->turn =
		Max(claim->turn, orch_fair_turn(ORCH_INT64(row, ORCH_TASK_SORT_KEY),
										ORCH_INT32(row, ORCH_TASK_PRIORITY)));
	add_lease(claim, row, known, permits, npermits, &ends_at);
	give_out(claim, row, known, claim->secrets[claim->nleases - 1], ends_at);
	orch_row_announce(row, ORCH_EVENT_STARTED, ORCH_STATE_RUNNING, -1,
					  known->notify);
	return true;
}

static bool
is_wanted(const Claim *claim, int32 definition)
{
	const int32 *ids;

	if (claim->definitions == NULL)
		return true;
	ids = (const int32 *) ARR_DATA_PTR(claim->definitions);
	for (int i = 0; i < ArrayGetNItems(ARR_NDIM(claim->definitions),
									   ARR_DIMS(claim->definitions));
		 i++)
	{
		if (ids[i] == definition)
			return true;
	}
	return false;
}

static const Known *
know(Claim *claim, int32 definition)
{
	const OrchDefinition *found;
	Known *known;
	ListCell *cell;
	MemoryContext old;

	foreach(cell, claim->known)
	{
		known = lfirst(cell);
		if (known->id == definition)
			return known;
	}
	found = orch_catalog_definition(definition);
	if (found == NULL)
		return NULL;
	old = MemoryContextSwitchTo(claim->context);
	known = palloc0(sizeof(Known));
	known->id = definition;
	known->name = make_text(found->name);
	known->handler =
		found->handler == NULL ? known->name : make_text(found->handler);
	known->timeout = found->timeout * 1000;
	known->response_timeout = found->response_timeout * 1000;
	known->alerts = found->timeout_alerts;
	known->notify = found->notify;
	claim->known = lappend(claim->known, known);
	MemoryContextSwitchTo(old);
	return known;
}

static Datum
make_text(const char *string)
{
	return CStringGetTextDatum(string);
}

static void
add_lease(Claim *claim, const OrchRow *row, const Known *known,
		  const int64 *permits, int npermits, TimestampTz *ends_at)
{
	Datum values[LEASE_COLUMNS] = {0};
	bool nulls[LEASE_COLUMNS] = {0};
	Datum numbers[ORCH_MAX_LIMITS];
	bytea *secret = palloc(VARHDRSZ + SECRET_SIZE);
	MemoryContext old;

	if (claim->nleases == LEASES_AT_ONCE)
		write_leases(claim);
	SET_VARSIZE(secret, VARHDRSZ + SECRET_SIZE);
	memcpy(VARDATA(secret), next_secret(claim), SECRET_SIZE);
	for (int i = 0; i < npermits; i++)
		numbers[i] = Int64GetDatum(permits[i]);
	values[LEASE_TASK_ID] = row->values[ORCH_TASK_ID];
	values[LEASE_EPOCH] = row->values[ORCH_TASK_EPOCH];
	values[LEASE_SECRET] = PointerGetDatum(secret);
	values[LEASE_WORKER] = claim->worker;
	values[LEASE_CLAIMED_BY] = Int32GetDatum(claim->claimer);
	values[LEASE_OWNER] = row->values[ORCH_TASK_OWNER];
	values[LEASE_QUEUE] = row->values[ORCH_TASK_QUEUE];
	set_times(claim, row, known, values);
	values[LEASE_ALERTED] = BoolGetDatum(false);
	values[LEASE_PERMITS] = PointerGetDatum(
		construct_array(numbers, npermits, INT8OID, 8, true, TYPALIGN_DOUBLE));
	nulls[LEASE_PROGRESS] = nulls[LEASE_MESSAGE] = nulls[LEASE_STAGE] =
		nulls[LEASE_REQUESTS] = true;
	*ends_at = DatumGetTimestampTz(values[LEASE_ENDS_AT]);
	claim->look_at =
		Min(claim->look_at, DatumGetTimestampTz(values[LEASE_LOOK_AT]));

	old = MemoryContextSwitchTo(claim->context);
	if (claim->nleases == claim->nslots)
		claim->slots[claim->nslots++] = MakeSingleTupleTableSlot(
			RelationGetDescr(claim->rel), &TTSOpsHeapTuple);
	ExecStoreHeapTuple(
		heap_form_tuple(RelationGetDescr(claim->rel), values, nulls),
		claim->slots[claim->nleases++], true);
	MemoryContextSwitchTo(old);
}

/*
 * As _lease_times() does for a heartbeat.
 */
static void
set_times(Claim *claim, const OrchRow *row, const Known *known, Datum *values)
{
	Interval *length = palloc0(sizeof(Interval));
	TimestampTz ends_at;
	TimestampTz timeout_at = DT_NOEND;

	if (claim->length != NULL)
		*length = *claim->length;
	else
		length->time = known->response_timeout > 0 ? known->response_timeout
												   : DEFAULT_LEASE;
	ends_at = DatumGetTimestampTz(DirectFunctionCall2(
		timestamptz_pl_interval, TimestampTzGetDatum(claim->now),
		IntervalPGetDatum(length)));
	if (!row->nulls[ORCH_TASK_DEADLINE])
		ends_at =
			Min(ends_at, DatumGetTimestampTz(row->values[ORCH_TASK_DEADLINE]));
	if (known->timeout > 0)
		timeout_at = claim->now + known->timeout;
	if (known->response_timeout > 0)
		timeout_at = Min(timeout_at, claim->now + known->response_timeout);
	if (!known->alerts)
		ends_at = Min(ends_at, timeout_at);
	values[LEASE_STARTED_AT] = values[LEASE_HEARTBEAT_AT] =
		TimestampTzGetDatum(claim->now);
	values[LEASE_LENGTH] = IntervalPGetDatum(length);
	values[LEASE_ENDS_AT] = TimestampTzGetDatum(ends_at);
	values[LEASE_LOOK_AT] = TimestampTzGetDatum(Min(ends_at, timeout_at));
}

/*
 * Made for all that are written at once.
 */
static const char *
next_secret(Claim *claim)
{
	if (claim->nleases == 0 &&
		!pg_strong_random(claim->secrets, sizeof(claim->secrets)))
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("could not make random bits")));
	return claim->secrets[claim->nleases];
}

static void
write_leases(Claim *claim)
{
	if (claim->nleases == 0)
		return;
	CatalogTuplesMultiInsertWithInfo(claim->rel, claim->slots, claim->nleases,
									 claim->indexes);
	for (int i = 0; i < claim->nleases; i++)
		ExecClearTuple(claim->slots[i]);
	claim->nleases = 0;
}

static void
write_token(char *token, int32 epoch, const char *secret)
{
	int n = snprintf(token, TOKEN_SIZE, "%d-", epoch);

	n += (int) hex_encode(secret, SECRET_SIZE, token + n);
	token[n] = '\0';
}

/*
 * The row of claim()'s result.
 */
static void
give_out(Claim *claim, const OrchRow *row, const Known *known,
		 const char *secret, TimestampTz ends_at)
{
	static const struct
	{
		int to;
		OrchColumn from;
	} copied[] = {
		{CLAIMED_TASK_ID, ORCH_TASK_ID},
		{CLAIMED_INPUT, ORCH_TASK_INPUT},
		{CLAIMED_ATTEMPT, ORCH_TASK_ATTEMPT},
		{CLAIMED_MAX_ATTEMPTS, ORCH_TASK_MAX_ATTEMPTS},
		{CLAIMED_NAME, ORCH_TASK_NAME},
		{CLAIMED_PARENT_ID, ORCH_TASK_PARENT_ID},
		{CLAIMED_ROOT_ID, ORCH_TASK_ROOT_ID},
		{CLAIMED_KEY, ORCH_TASK_KEY},
		{CLAIMED_METADATA, ORCH_TASK_METADATA},
		{CLAIMED_DEADLINE, ORCH_TASK_DEADLINE},
		{CLAIMED_TRACEPARENT, ORCH_TASK_TRACEPARENT},
	};
	Datum values[CLAIMED_COLUMNS] = {0};
	bool nulls[CLAIMED_COLUMNS] = {0};
	char token[TOKEN_SIZE];

	for (int i = 0; i < lengthof(copied); i++)
	{
		values[copied[i].to] = row->values[copied[i].from];
		nulls[copied[i].to] = row->nulls[copied[i].from];
	}
	write_token(token, ORCH_INT32(row, ORCH_TASK_EPOCH), secret);
	values[CLAIMED_TOKEN] = make_text(token);
	values[CLAIMED_DEFINITION] = known->name;
	values[CLAIMED_HANDLER] = known->handler;
	values[CLAIMED_IDEMPOTENCY_KEY] = make_key(row);
	values[CLAIMED_QUEUE] = claim->queue_name;
	values[CLAIMED_OWNER] = claim->owner_name;
	if (nulls[CLAIMED_ROOT_ID])
		values[CLAIMED_ROOT_ID] = values[CLAIMED_TASK_ID];
	nulls[CLAIMED_ROOT_ID] = false;
	values[CLAIMED_TIMEOUT_AT] =
		TimestampTzGetDatum(claim->now + known->timeout);
	nulls[CLAIMED_TIMEOUT_AT] = known->timeout == 0;
	values[CLAIMED_LEASE_UNTIL] = TimestampTzGetDatum(ends_at);
	tuplestore_putvalues(claim->result->setResult, claim->result->setDesc,
						 values, nulls);
}

/*
 * Each round of a step that repeats has a key of its own.
 */
static Datum
make_key(const OrchRow *row)
{
	StringInfoData key;

	initStringInfo(&key);
	appendStringInfo(&key, INT64_FORMAT "-%u-" INT64_FORMAT,
					 (int64) GetSystemIdentifier(), MyDatabaseId,
					 ORCH_INT64(row, ORCH_TASK_ID));
	if (!row->nulls[ORCH_TASK_ITERATION] &&
		ORCH_INT32(row, ORCH_TASK_ITERATION) > 1)
		appendStringInfo(&key, ".%d", ORCH_INT32(row, ORCH_TASK_ITERATION));
	return make_text(key.data);
}

/*
 * _complete_plain(owners, tasks, tokens, outputs) -> those that are completed:
 * whose tokens are good, and on which nothing hangs.  In the order of their
 * ids, as everybody locks them.
 */
Datum
orchestrator_complete_plain(PG_FUNCTION_ARGS)
{
	Reports reports = {0};
	Datum *tasks;
	Datum *tokens;
	Datum *outputs = NULL;
	bool *null_tasks;
	bool *null_tokens;
	bool *null_outputs;
	int n;
	int noutputs = 0;
	Report *order;

	orch_catalog_require_writes("complete");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT8OID, 8, true,
					  TYPALIGN_DOUBLE, &tasks, &null_tasks, &n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false,
					  TYPALIGN_INT, &tokens, &null_tokens, &n);
	if (!PG_ARGISNULL(3))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), JSONBOID, -1, false,
						  TYPALIGN_INT, &outputs, &null_outputs, &noutputs);
	begin_reports(&reports, PG_GETARG_ARRAYTYPE_P(0));
	reports.done = palloc(Max(n, 1) * sizeof(OrchTask *));
	order = palloc(Max(n, 1) * sizeof(Report));
	for (int i = 0; i < n; i++)
		order[i] = (Report){DatumGetInt64(tasks[i]), i};
	qsort(order, n, sizeof(Report), compare_reports);
	for (int i = 0; i < n; i++)
	{
		int place = order[i].place;
		OrchTask *task;

		CHECK_FOR_INTERRUPTS();
		if (null_tasks[place] || null_tokens[place] ||
			!complete(&reports, order[i].task, DatumGetTextPP(tokens[place])))
			continue;
		task = reports.done[reports.ndone - 1];
		task->has_output = place < noutputs && !null_outputs[place];
		if (task->has_output)
			task->output = outputs[place];
	}
	orch_settle_completed(reports.done, reports.ndone);
	end_reports(&reports);
	for (int i = 0; i < reports.ndone; i++)
		tasks[i] = reports.done[i]->row.values[ORCH_TASK_ID];
	PG_RETURN_ARRAYTYPE_P(construct_array(tasks, reports.ndone, INT8OID, 8,
										  true, TYPALIGN_DOUBLE));
}

static void
begin_reports(Reports *reports, ArrayType *owners)
{
	reports->owners = (int32 *) ARR_DATA_PTR(owners);
	reports->nowners = ArrayGetNItems(ARR_NDIM(owners), ARR_DIMS(owners));
	reports->now = orch_clock();
	reports->live = orch_heap_open_live();
	reports->rel = open_leases();
	reports->index =
		index_open(orch_catalog(false)->lease_id, AccessShareLock);
	reports->slot = table_slot_create(reports->rel, NULL);
	reports->scan = orch_index_beginscan(reports->rel, reports->index,
										 GetActiveSnapshot(), 1);
}

static void
end_reports(Reports *reports)
{
	index_endscan(reports->scan);
	ExecDropSingleTupleTableSlot(reports->slot);
	index_close(reports->index, NoLock);
	table_close(reports->rel, NoLock);
	orch_heap_close(reports->live);
	CommandCounterIncrement();
}

/*
 * Of two reports of one task the first counts.
 */
static int
compare_reports(const void *left, const void *right)
{
	const Report *one = left;
	const Report *other = right;

	if (one->task != other->task)
		return one->task < other->task ? -1 : 1;
	return one->place - other->place;
}

static bool
complete(Reports *reports, int64 id, text *token)
{
	OrchRow row;
	ItemPointerData tid;
	OrchTask *task;

	if (!find_lease(reports, id) || !is_good(reports, token) ||
		!orch_heap_find(reports->live, id, &row, &tid) ||
		!is_plain(reports, &row))
		return false;
	task = palloc0(sizeof(OrchTask));
	orch_row_copy(&task->row, &row);
	if (!orch_heap_delete(reports->live, &tid, false))
		return false;
	delete_lease(reports, id);
	orch_row_set_null(&task->row, ORCH_TASK_HELD_STATE);
	orch_row_set_null(&task->row, ORCH_TASK_HELD_BY);
	task->definition =
		keep_definition(reports, ORCH_INT32(&row, ORCH_TASK_DEFINITION));
	task->started_at = DatumGetTimestampTz(row.values[ORCH_TASK_STARTED_AT]);
	task->finished_at = reports->now;
	reports->done[reports->ndone++] = task;
	return true;
}

/*
 * What the catalog remembers may be dropped before the tasks are settled.
 */
static const OrchDefinition *
keep_definition(Reports *reports, int32 id)
{
	const OrchDefinition *known;
	OrchDefinition *copy;

	if (reports->definition != NULL && reports->definition->id == id)
		return reports->definition;
	known = orch_catalog_definition(id);
	if (known == NULL)
		return NULL;
	copy = palloc(sizeof(OrchDefinition));
	*copy = *known;
	return reports->definition = copy;
}

/*
 * As a new snapshot sees it, into the slot.
 */
static bool
find_lease(Reports *reports, int64 task)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	bool found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	reports->scan->xs_snapshot = snapshot;
	index_rescan(reports->scan, &key, 1, NULL, 0);
	found =
		index_getnext_slot(reports->scan, ForwardScanDirection, reports->slot);
	UnregisterSnapshot(snapshot);
	if (found)
		slot_getallattrs(reports->slot);
	return found;
}

/*
 * Whether the token is the lease's, which has not ended, of one who may use it.
 */
static bool
is_good(const Reports *reports, text *token)
{
	const Datum *values = reports->slot->tts_values;
	const bytea *secret = DatumGetByteaPP(values[LEASE_SECRET]);
	char expected[TOKEN_SIZE];

	if (VARSIZE_ANY_EXHDR(secret) != SECRET_SIZE ||
		DatumGetTimestampTz(values[LEASE_ENDS_AT]) <= reports->now)
		return false;
	write_token(expected, DatumGetInt32(values[LEASE_EPOCH]),
				VARDATA_ANY(secret));
	if (VARSIZE_ANY_EXHDR(token) != strlen(expected) ||
		memcmp(VARDATA_ANY(token), expected, strlen(expected)) != 0)
		return false;
	for (int i = 0; i < reports->nowners; i++)
	{
		if (reports->owners[i] == DatumGetInt32(values[LEASE_CLAIMED_BY]))
			return true;
	}
	return false;
}

/*
 * Whether it is the attempt of the lease, and nothing hangs on its end.
 */
static bool
is_plain(const Reports *reports, const OrchRow *row)
{
	const TupleTableSlot *lease = reports->slot;
	const OrchDefinition *definition =
		orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));

	return DatumGetObjectId(row->values[ORCH_TASK_STATE]) ==
			   orch_catalog(false)->states[ORCH_STATE_RUNNING] &&
		   ORCH_INT32(row, ORCH_TASK_EPOCH) ==
			   DatumGetInt32(lease->tts_values[LEASE_EPOCH]) &&
		   lease->tts_isnull[LEASE_REQUESTS] &&
		   row->nulls[ORCH_TASK_PARENT_ID] &&
		   row->nulls[ORCH_TASK_REMAINING] &&
		   row->nulls[ORCH_TASK_CALLBACKS] && definition != NULL &&
		   !definition->has_callbacks;
}

/*
 * Whoever has the task has its lease; but a heartbeat may have come meanwhile.
 */
static void
delete_lease(Reports *reports, int64 task)
{
	TM_FailureData failure;

	while (table_tuple_delete(reports->rel, &reports->slot->tts_tid,
							  GetCurrentCommandId(true), GetActiveSnapshot(),
							  InvalidSnapshot, true, &failure, false) != TM_Ok)
	{
		CHECK_FOR_INTERRUPTS();
		if (!find_lease(reports, task))
			elog(ERROR, "the lease of task " INT64_FORMAT " is gone", task);
	}
	orch_remote_give_back(
		DatumGetArrayTypeP(reports->slot->tts_values[LEASE_PERMITS]));
}
