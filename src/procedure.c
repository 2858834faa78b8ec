/*
 * procedure.c
 *	  Durable procedures: step_once(), sleep_until(), wait_signal().
 *
 * PL/pgSQL cannot be suspended.  A procedure that has to wait commits what it
 * did, leaves a note here and unwinds with query_canceled, which WHEN OTHERS
 * does not catch; the executor (execute.c) sees the note and settles the task
 * as suspended (orchestrator._suspend).  When it may go on the procedure is
 * called again from its beginning, and finds what it remembered in
 * orchestrator.step_memo.
 *
 * Two runs of one procedure at the same time (an executor that lost its task
 * and has not noticed) cannot both remember a name: it is unique, and the
 * effect is committed with it or not at all.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "handler.h"
#include "procedure.h"
#include "progress.h"
#include "request.h"
#include "shmem.h"

/* How often this run waited for a signal. */
typedef struct SignalCount
{
	char *name;
	int n;
} SignalCount;

static MemoryContext procedure_context = NULL;
static List *signal_counts = NIL; /* SignalCount * */
static OrchSuspension suspension;
static bool suspended = false;

PG_FUNCTION_INFO_V1(orchestrator_step_once);
PG_FUNCTION_INFO_V1(orchestrator_sleep_until);
PG_FUNCTION_INFO_V1(orchestrator_wait_signal);

static void require_procedure(const char *caller);
static void require_nonatomic(FunctionCallInfo fcinfo, const char *caller);
static Datum run_once(const char *command, NullableDatum input, bool *isnull);
static Datum rows_to_jsonb(bool *isnull);
static Datum row_to_jsonb(HeapTuple row, TupleDesc desc);
static Datum single_value(Datum object, TupleDesc desc);
static bool recall(const char *name, NullableDatum *result);
static void remember(const char *name, NullableDatum result);
static bool take_signal(const char *name, NullableDatum *payload);
static NullableDatum call_as_owner(OrchFunction function, int nargs,
								   const NullableDatum *args);
static TimestampTz remembered_time(const char *name, TimestampTz at);
static int count_signal(const char *name);
static _Noreturn void suspend(const OrchSuspension *why);
static void commit(void);

void
orch_procedure_begin(void)
{
	if (procedure_context == NULL)
		procedure_context = AllocSetContextCreate(
			TopMemoryContext, "orchestrator procedure", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(procedure_context);
	signal_counts = NIL;
	suspended = false;
}

const OrchSuspension *
orch_procedure_suspension(MemoryContext context)
{
	MemoryContext old;
	OrchSuspension *copy;

	if (!suspended)
		return NULL;
	suspended = false;
	old = MemoryContextSwitchTo(context);
	copy = palloc(sizeof(OrchSuspension));
	*copy = suspension;
	if (copy->signal != NULL)
	{
		copy->signal = pstrdup(suspension.signal);
		copy->memo = pstrdup(suspension.memo);
	}
	MemoryContextSwitchTo(old);
	return copy;
}

/*
 * step_once(name, sql, input) -> jsonb: run a statement, unless its result is
 * remembered.
 */
Datum
orchestrator_step_once(PG_FUNCTION_ARGS)
{
	char *name;
	NullableDatum result;

	require_procedure("step_once");
	name = orch_request_name(fcinfo, 0, "step");
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("sql must not be null")));
	if (strcmp(name, "waiting") == 0 || strncmp(name, "signal:", 7) == 0 ||
		strncmp(name, "sleep:", 6) == 0 || strncmp(name, "timeout:", 8) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("step name \"%s\" is reserved", name),
				 errhint("\"waiting\" and what begins with \"signal:\", "
						 "\"sleep:\" or \"timeout:\" is remembered by the "
						 "waits of a procedure.")));

	if (!recall(name, &result))
	{
		char *command = text_to_cstring(PG_GETARG_TEXT_PP(1));
		const char *before = orch_request_close("step_once");

		PG_TRY();
		{
			result.value = run_once(command, fcinfo->args[2], &result.isnull);
		}
		PG_FINALLY();
		{
			(void) orch_request_close(before);
		}
		PG_END_TRY();
		remember(name, result);
	}
	if (result.isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result.value);
}

/*
 * CALL sleep_until(at, name): go on when the time has come.
 */
Datum
orchestrator_sleep_until(PG_FUNCTION_ARGS)
{
	OrchSuspension why = {.timeout_at = PG_INT64_MAX};

	require_procedure("sleep_until");
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("at must not be null")));
	why.until = PG_GETARG_TIMESTAMPTZ(0);
	if (TIMESTAMP_NOT_FINITE(why.until))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("at must be finite")));
	require_nonatomic(fcinfo, "sleep_until");
	if (!PG_ARGISNULL(1))
		why.until = remembered_time(
			psprintf("sleep:%s", orch_request_name(fcinfo, 1, "sleep")),
			why.until);
	if (why.until > orch_clock())
		suspend(&why);
	PG_RETURN_NULL();
}

/*
 * CALL wait_signal(name, payload, timeout): go on when the signal was sent, or
 * with null when the time is up.  The n-th wait of a run for a name gets what
 * the n-th wait of the runs before got.
 */
Datum
orchestrator_wait_signal(PG_FUNCTION_ARGS)
{
	OrchSuspension why = {.timeout_at = PG_INT64_MAX};
	NullableDatum payload;
	TupleDesc tupdesc;
	int n;

	require_procedure("wait_signal");
	why.signal = orch_request_name(fcinfo, 0, "signal");
	if (!PG_ARGISNULL(2))
		why.timeout_at =
			orch_add_timeout(orch_clock(), PG_GETARG_INTERVAL_P(2));
	require_nonatomic(fcinfo, "wait_signal");
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts != 1)
		elog(ERROR, "unexpected result type of wait_signal");
	tupdesc = BlessTupleDesc(tupdesc);

	n = count_signal(why.signal);
	why.memo = psprintf("signal:%s:%d", why.signal, n);
	if (!recall(why.memo, &payload))
	{
		if (!take_signal(why.signal, &payload))
		{
			if (!PG_ARGISNULL(2))
				why.timeout_at = remembered_time(
					psprintf("timeout:%s:%d", why.signal, n), why.timeout_at);
			if (why.timeout_at > orch_clock())
				suspend(&why);
		}
		remember(why.memo, payload);

		/* the signal's locks end here, and what was done is not repeated */
		commit();
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(tupdesc, &payload.value, &payload.isnull)));
}

static void
require_procedure(const char *caller)
{
	if (orch_step == NULL || !orch_step->procedure)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() can be called only inside a step of kind "
						"procedure",
						caller),
				 errhint("Write the handler as a procedure and define it with "
						 "kind => 'procedure'.")));
}

/*
 * Also in an exception block: it could not be left with a commit, and could
 * catch what we unwind with.
 */
static void
require_nonatomic(FunctionCallInfo fcinfo, const char *caller)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic || IsSubTransaction())
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
			 errmsg("%s() cannot be called where COMMIT is not possible",
					caller),
			 errdetail("It commits what was done before it waits."),
			 errhint("CALL it from the procedure itself: not from a function, "
					 "not in a block with EXCEPTION, not in a procedure with "
					 "SET or SECURITY DEFINER.")));
}

/*
 * Run a statement with $1 = input.  The result is in the current memory
 * context.
 */
static Datum
run_once(const char *command, NullableDatum input, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	Oid type = JSONBOID;
	char input_null = input.isnull ? 'n' : ' ';
	Datum result = (Datum) 0;
	int code;

	SPI_connect();
	code = SPI_execute_with_args(command, 1, &type, &input.value, &input_null,
								 false, 0);
	if (code < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("step_once() cannot run this command: %s",
						SPI_result_code_string(code)),
				 errhint("Transaction commands belong into the procedure.")));
	*isnull = true;
	if (SPI_tuptable != NULL)
		result = rows_to_jsonb(isnull);
	if (!*isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		result = PointerGetDatum(PG_DETOAST_DATUM_COPY(result));
		MemoryContextSwitchTo(old);
		orch_handler_check_size(result, "result");
	}
	SPI_finish();
	return result;
}

/*
 * No row is null; one row with one column its value; one row an object;
 * several rows an array of objects.
 */
static Datum
rows_to_jsonb(bool *isnull)
{
	TupleDesc desc = BlessTupleDesc(SPI_tuptable->tupdesc);
	StringInfoData buffer;

	*isnull = SPI_processed == 0;
	if (SPI_processed == 0)
		return (Datum) 0;
	if (SPI_processed == 1)
	{
		HeapTuple row = SPI_tuptable->vals[0];

		if (desc->natts != 1)
			return row_to_jsonb(row, desc);
		(void) SPI_getbinval(row, desc, 1, isnull);
		return *isnull ? (Datum) 0
					   : single_value(row_to_jsonb(row, desc), desc);
	}

	initStringInfo(&buffer);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum row = heap_copy_tuple_as_datum(SPI_tuptable->vals[i], desc);

		appendStringInfoChar(&buffer, i == 0 ? '[' : ',');
		row = DirectFunctionCall1(row_to_json, row);
		appendStringInfoString(&buffer, TextDatumGetCString(row));
		CHECK_FOR_INTERRUPTS();
	}
	appendStringInfoChar(&buffer, ']');
	return orch_handler_to_jsonb(buffer.data);
}

static Datum
row_to_jsonb(HeapTuple row, TupleDesc desc)
{
	Datum object =
		DirectFunctionCall1(row_to_json, heap_copy_tuple_as_datum(row, desc));

	return orch_handler_to_jsonb(TextDatumGetCString(object));
}

static Datum
single_value(Datum object, TupleDesc desc)
{
	const char *column = NameStr(TupleDescAttr(desc, 0)->attname);
	JsonbValue *value = getKeyJsonValueFromContainer(
		&DatumGetJsonbP(object)->root, column, strlen(column), NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(value));
}

/*
 * False: not remembered, and the result is null.  Raises when the task is not
 * ours any more.
 */
static bool
recall(const char *name, NullableDatum *result)
{
	NullableDatum args[3] = {
		{Int64GetDatum(orch_step->id), false},
		{Int32GetDatum(orch_step->epoch), false},
		{CStringGetTextDatum(name), false},
	};
	NullableDatum memo = call_as_owner(ORCH_FN_RECALL, 3, args);
	JsonbValue *value;

	result->value = (Datum) 0;
	result->isnull = true;
	if (memo.isnull)
		return false;
	value = getKeyJsonValueFromContainer(&DatumGetJsonbP(memo.value)->root,
										 "result", strlen("result"), NULL);
	if (value != NULL)
	{
		result->value = JsonbPGetDatum(JsonbValueToJsonb(value));
		result->isnull = false;
	}
	return true;
}

static void
remember(const char *name, NullableDatum result)
{
	NullableDatum args[4] = {
		{Int64GetDatum(orch_step->id), false},
		{Int32GetDatum(orch_step->epoch), false},
		{CStringGetTextDatum(name), false},
		result,
	};

	(void) call_as_owner(ORCH_FN_REMEMBER, 4, args);
}

static bool
take_signal(const char *name, NullableDatum *payload)
{
	NullableDatum args[2] = {
		{Int64GetDatum(orch_step->id), false},
		{CStringGetTextDatum(name), false},
	};

	*payload = call_as_owner(ORCH_FN_TAKE_SIGNAL, 2, args);
	return !payload->isnull;
}

/*
 * A procedure that is CALLed non-atomically may have no snapshot.
 */
static NullableDatum
call_as_owner(OrchFunction function, int nargs, const NullableDatum *args)
{
	NullableDatum result;

	PushActiveSnapshot(GetTransactionSnapshot());
	result.value = orch_catalog_call(function, nargs, args, &result.isnull);
	if (function != ORCH_FN_REMEMBER && !result.isnull)
		result.value = PointerGetDatum(PG_DETOAST_DATUM_COPY(result.value));
	PopActiveSnapshot();
	return result;
}

/*
 * The time that the first run gave.
 */
static TimestampTz
remembered_time(const char *name, TimestampTz at)
{
	NullableDatum memo;
	JsonbValue *value;

	if (!recall(name, &memo))
	{
		char text[MAXDATELEN + 1];

		JsonEncodeDateTime(text, TimestampTzGetDatum(at), TIMESTAMPTZOID,
						   NULL);
		memo.value = DirectFunctionCall1(
			jsonb_in, CStringGetDatum(psprintf("{\"at\": \"%s\"}", text)));
		memo.isnull = false;
		remember(name, memo);
		return at;
	}
	value =
		memo.isnull
			? NULL
			: getKeyJsonValueFromContainer(&DatumGetJsonbP(memo.value)->root,
										   "at", strlen("at"), NULL);
	if (value == NULL || value->type != jbvString)
		elog(ERROR, "unexpected memo \"%s\"", name);
	return DatumGetTimestampTz(
		DirectFunctionCall3(timestamptz_in,
							CStringGetDatum(pnstrdup(value->val.string.val,
													 value->val.string.len)),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static int
count_signal(const char *name)
{
	MemoryContext old;
	SignalCount *count;
	ListCell *cell;

	foreach(cell, signal_counts)
	{
		count = lfirst(cell);
		if (strcmp(count->name, name) == 0)
			return ++count->n;
	}
	old = MemoryContextSwitchTo(procedure_context);
	count = palloc(sizeof(SignalCount));
	count->name = pstrdup(name);
	count->n = 1;
	signal_counts = lappend(signal_counts, count);
	MemoryContextSwitchTo(old);
	return 1;
}

/*
 * Commit, leave the note, unwind.  A cancel or time limit that is under way
 * is raised by the commit: there is no note then.
 */
static void
suspend(const OrchSuspension *why)
{
	MemoryContext old = MemoryContextSwitchTo(procedure_context);

	suspension = *why;
	if (why->signal != NULL)
	{
		suspension.signal = pstrdup(why->signal);
		suspension.memo = pstrdup(why->memo);
	}
	MemoryContextSwitchTo(old);
	commit();
	CHECK_FOR_INTERRUPTS();
	suspended = true;
	ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
					errmsg("the procedure waits and is called again later")));
}

static void
commit(void)
{
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	SPI_commit();
	SPI_finish();
}
