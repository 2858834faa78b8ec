/*
 * request.c
 *	  What a running step asks of its run: add_steps(), set_context(),
 *	  checkpoint().
 *
 * They take effect when the step completes, in the transaction of its settle
 * (orchestrator._settle_completed), which locks the run only then.  Until then
 * they are kept here, each with its nesting level: one that was made in a
 * subtransaction that is rolled back, or in a procedure's transaction, is
 * forgotten with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "guc.h"
#include "json.h"
#include "progress.h"
#include "request.h"

/* Of names of checkpoints, steps and signals, as of everything else. */
#define MAX_NAME_LENGTH 200

typedef struct Request
{
	Jsonb *value;
	int level; /* of its transaction; 0: committed by a procedure */
} Request;

static MemoryContext request_context = NULL;
static Request *requests = NULL; /* levels never fall */
static int nrequests = 0;
static int room = 0;
static Size total_size = 0;
static const char *closed_by = NULL;

PG_FUNCTION_INFO_V1(orchestrator_add_steps);
PG_FUNCTION_INFO_V1(orchestrator_set_context);
PG_FUNCTION_INFO_V1(orchestrator_checkpoint);

static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);
static void forget_level(int level);
static void require_step(const char *verb, const char *hint);
static void require_argument(FunctionCallInfo fcinfo, int n, const char *name);
static void keep(JsonbParseState **state);
static Datum steps_to_jsonb(ArrayType *array);
static void check_steps(Datum steps);
static char *delay_text(const Interval *delay);

void
orch_request_install(void)
{
	request_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator requests", ALLOCSET_SMALL_SIZES);
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

void
orch_request_begin(void)
{
	closed_by = NULL;
	if (nrequests == 0 && room == 0)
		return;
	MemoryContextReset(request_context);
	requests = NULL;
	nrequests = room = 0;
	total_size = 0;
}

Datum
orch_request_take(void)
{
	JsonbParseState *state = NULL;
	Datum all;

	if (nrequests == 0)
		return (Datum) 0;
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < nrequests; i++)
		orch_json_element(&state, requests[i].value);
	all = JsonbPGetDatum(
		JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL)));
	orch_request_begin();
	return all;
}

const char *
orch_request_close(const char *caller)
{
	const char *before = closed_by;

	closed_by = caller;
	return before;
}

/*
 * Of a step in a batch's transaction nothing is left here when that ends; a
 * procedure ends transactions of its own.
 */
static void
end_transaction(XactEvent what, void *arg)
{
	if (what == XACT_EVENT_ABORT)
		forget_level(1);
	else if (what == XACT_EVENT_COMMIT)
	{
		for (int i = 0; i < nrequests; i++)
			requests[i].level = 0;
	}
}

static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();

	if (what == SUBXACT_EVENT_ABORT_SUB)
		forget_level(level);
	else if (what == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nrequests - 1; i >= 0 && requests[i].level >= level; i--)
			requests[i].level = level - 1;
	}
}

static void
forget_level(int level)
{
	while (nrequests > 0 && requests[nrequests - 1].level >= level)
		total_size -= VARSIZE(requests[--nrequests].value);
}

/*
 * add_steps(steps, delay): siblings-to-be of the step under way.  They are
 * checked at once, so that the step hears of a mistake while it runs.
 */
Datum
orchestrator_add_steps(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;
	Datum steps;

	require_step("add_steps", "To add steps to a task from outside, pass it: "
							  "orchestrator.add_steps(task, steps).");
	require_argument(fcinfo, 0, "steps");
	steps = steps_to_jsonb(PG_GETARG_ARRAYTYPE_P(0));
	check_steps(steps);

	orch_json_begin(&state);
	orch_json_text(&state, "verb", "add_steps");
	orch_json_value(&state, "steps", steps);
	if (!PG_ARGISNULL(1))
		orch_json_text(&state, "delay", delay_text(PG_GETARG_INTERVAL_P(1)));
	keep(&state);
	PG_RETURN_VOID();
}

/*
 * set_context(value): the run's own state.
 */
Datum
orchestrator_set_context(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;

	require_step("set_context", "To set the context of a task from outside, "
								"pass it: orchestrator.set_context(task, "
								"value).");
	require_argument(fcinfo, 0, "value");
	orch_json_begin(&state);
	orch_json_text(&state, "verb", "set_context");
	orch_json_value(&state, "value", PG_GETARG_DATUM(0));
	keep(&state);
	PG_RETURN_VOID();
}

/*
 * checkpoint(name, context): a point that restore() goes back to.
 */
Datum
orchestrator_checkpoint(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;
	char *name;

	require_step("checkpoint", "To make a checkpoint of a task from outside, "
							   "pass it: orchestrator.checkpoint(task, "
							   "name).");
	require_argument(fcinfo, 0, "name");
	name = orch_request_name(fcinfo, 0, "checkpoint");
	orch_json_begin(&state);
	orch_json_text(&state, "verb", "checkpoint");
	orch_json_text(&state, "name", name);
	if (!PG_ARGISNULL(1))
		orch_json_value(&state, "context", PG_GETARG_DATUM(1));
	keep(&state);
	PG_RETURN_VOID();
}

static void
require_step(const char *verb, const char *hint)
{
	if (!orch_in_step())
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("%s() can be called only inside a step", verb),
						errhint("%s", hint)));
	if (orch_step->ncalled > 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s() cannot be called by a handler that takes many tasks",
					verb),
			 errdetail("One call is for tasks of several runs."),
			 errhint("define() the task without batch_size.")));
	if (closed_by != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() cannot be called inside %s()", verb, closed_by),
				 errdetail("What it asks for takes effect when the procedure "
						   "ends, perhaps in a later run that does not repeat "
						   "this statement."),
				 errhint("Call %s() in the procedure itself.", verb)));
}

char *
orch_request_name(FunctionCallInfo fcinfo, int n, const char *what)
{
	char *name;

	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the name of a %s must not be null", what)));
	name = text_to_cstring(PG_GETARG_TEXT_PP(n));
	if (*name == '\0' || pg_mbstrlen(name) > MAX_NAME_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the name of a %s must have 1 to %d characters",
							   what, MAX_NAME_LENGTH)));
	return name;
}

static void
require_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be null", name)));
}

/*
 * End the object and keep it to the end of the attempt.
 */
static void
keep(JsonbParseState **state)
{
	Jsonb *value = DatumGetJsonbP(orch_json_end(state));
	Size limit = (Size) orch_max_input_size * 1024;
	MemoryContext old;

	if (total_size + VARSIZE(value) > limit)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("what the step asks of its run is larger than %zu bytes",
					limit),
			 errhint("Store large values in a table and keep their key, or "
					 "raise orchestrator.max_input_size.")));

	old = MemoryContextSwitchTo(request_context);
	if (nrequests == room)
	{
		int more = Max(room * 2, 8);

		requests = requests == NULL
					   ? palloc(more * sizeof(Request))
					   : repalloc(requests, more * sizeof(Request));
		room = more;
	}
	requests[nrequests].value = DatumGetJsonbPCopy(JsonbPGetDatum(value));
	requests[nrequests].level = GetCurrentTransactionNestLevel();
	nrequests++;
	total_size += VARSIZE(value);
	MemoryContextSwitchTo(old);
}

static Datum
steps_to_jsonb(ArrayType *array)
{
	JsonbParseState *state = NULL;
	Datum *elements;
	bool *nulls;
	int n;

	/* step_spec is a domain over jsonb */
	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_INT,
					  &elements, &nulls, &n);
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
							errmsg("step %d must not be null", i + 1)));
		orch_json_element(&state, DatumGetJsonbP(elements[i]));
	}
	return JsonbPGetDatum(
		JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL)));
}

static void
check_steps(Datum steps)
{
	NullableDatum args[3] = {
		{ObjectIdGetDatum(GetSessionUserId()), false},
		{Int64GetDatum(orch_step->id), false},
		{steps, false},
	};
	bool isnull;

	PushActiveSnapshot(GetTransactionSnapshot());
	orch_catalog_call(ORCH_FN_CHECK_STEPS, 3, args, &isnull);
	PopActiveSnapshot();
}

/*
 * In the style that is read the same whatever intervalstyle is then.
 */
static char *
delay_text(const Interval *delay)
{
	double span = orch_span(delay);
	struct pg_itm parts;
	char text[MAXDATELEN + 1];

	if (span < 0 || span > ORCH_LONGEST_SPAN)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("delay must be between 0 and 100 years")));
	interval2itm(*delay, &parts);
	EncodeInterval(&parts, INTSTYLE_ISO_8601, text);
	return pstrdup(text);
}
