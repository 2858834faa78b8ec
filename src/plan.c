/*
 * plan.c
 *	  Plans of workflows, and the rows of their steps.
 *
 * Definitions never change, only their names come to mean others, so a plan
 * is wrong only when the extension was made again.  It is dropped with the
 * other things a session remembers all the same, but not before the end of
 * the transaction, since callers hold several while user code runs.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "depth.h"
#include "fair.h"
#include "guc.h"
#include "plan.h"
#include "shmem.h"

#define ROWS_AT_ONCE	1000
#define COLUMNS_OF_STEP (sizeof(OrchStepPlan) / sizeof(int32))

static HTAB *workflows = NULL;
static uint64 generation = 0;

static void forget_workflows(void);
static void load(OrchWorkflow *workflow);
static AttrNumber column(TupleDesc desc, const char *name);
static void read_steps(OrchWorkflow *workflow, Datum plan);
static void read_names(OrchWorkflow *workflow, Datum names);
static void fill_row(OrchRow *row, const OrchWorkflow *workflow, int32 step,
					 const OrchRow *like, Datum input);
static void push_key(JsonbParseState **state, char *key, int length);
static void push_value(JsonbParseState **state, Datum value);

PG_FUNCTION_INFO_V1(orchestrator_insert_items);

const OrchWorkflow *
orch_plan(int32 definition)
{
	OrchWorkflow *workflow;
	bool found;

	forget_workflows();
	workflow = hash_search(workflows, &definition, HASH_ENTER, &found);
	if (found && !workflow->stale)
		return workflow->nsteps > 0 ? workflow : NULL;
	if (!found)
		workflow->context = NULL;
	load(workflow);
	return workflow->nsteps > 0 ? workflow : NULL;
}

static void
forget_workflows(void)
{
	HASH_SEQ_STATUS scan;
	OrchWorkflow *workflow;

	if (workflows == NULL)
	{
		HASHCTL control = {.keysize = sizeof(int32),
						   .entrysize = sizeof(OrchWorkflow),
						   .hcxt = TopMemoryContext};

		workflows = hash_create("orchestrator workflows", 64, &control,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (generation == orch_catalog_generation())
		return;
	generation = orch_catalog_generation();
	hash_seq_init(&scan, workflows);
	while ((workflow = hash_seq_search(&scan)) != NULL)
		workflow->stale = true;
}

/*
 * A definition without a plan is remembered as one without steps.
 */
static void
load(OrchWorkflow *workflow)
{
	MemoryContext old = workflow->context;
	int32 id = workflow->definition;
	TupleDesc desc;
	HeapTuple row;
	bool isnull;
	Datum plan = (Datum) 0;

	/* callers may still look at what was there */
	if (old != NULL)
		MemoryContextSetParent(old, TopTransactionContext);
	memset(workflow, 0, sizeof(*workflow));
	workflow->definition = id;
	workflow->stale = true;

	row = orch_catalog_fetch_definition(id, &desc);
	isnull = row == NULL;
	if (!isnull)
		plan = heap_getattr(row, column(desc, "plan"), desc, &isnull);
	if (isnull)
	{
		workflow->stale = false;
		return;
	}
	workflow->context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator workflow", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(workflow->context);
	read_steps(workflow, plan);
	read_names(workflow,
			   heap_getattr(row, column(desc, "step_names"), desc, &isnull));
	MemoryContextSwitchTo(old);
	workflow->stale = false;
}

static AttrNumber
column(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return i + 1;
	}
	elog(ERROR, "column \"%s\" is missing", name);
}

static void
read_steps(OrchWorkflow *workflow, Datum plan)
{
	ArrayType *array = DatumGetArrayTypePCopy(plan);

	if (ARR_NDIM(array) != 2 || ARR_DIMS(array)[1] != COLUMNS_OF_STEP ||
		ARR_HASNULL(array) || ARR_ELEMTYPE(array) != INT4OID)
		elog(ERROR, "plan of definition %d is not one", workflow->definition);
	workflow->nsteps = ARR_DIMS(array)[0];
	workflow->steps = (const OrchStepPlan *) ARR_DATA_PTR(array);
	workflow->starts_simple = true;
	for (int i = 0; i < workflow->nsteps; i++)
	{
		int32 flags = workflow->steps[i].flags;

		if (flags & ORCH_STEP_SINK)
			workflow->nsinks++;
		if ((flags & ORCH_STEP_STARTS) && !(flags & ORCH_STEP_SIMPLE))
			workflow->starts_simple = false;
	}
}

static void
read_names(OrchWorkflow *workflow, Datum names)
{
	ArrayType *array = DatumGetArrayTypePCopy(names);
	Datum *elements;
	int n;

	deconstruct_array(array, TEXTOID, -1, false, 'i', &elements, NULL, &n);
	if (n != workflow->nsteps)
		elog(ERROR, "plan of definition %d does not fit its names",
			 workflow->definition);
	workflow->names = elements;
}

const OrchStepPlan *
orch_plan_step(const OrchWorkflow *workflow, int32 step)
{
	return step >= 1 && step <= workflow->nsteps ? &workflow->steps[step - 1]
												 : NULL;
}

int
orch_plan_chain(int32 definition, int32 step, int limit)
{
	const OrchWorkflow *workflow = orch_plan(definition);
	int length = 1;

	while (workflow != NULL && length < limit)
	{
		const OrchStepPlan *plan = orch_plan_step(workflow, step);

		if (plan == NULL || plan->successor <= 0)
			break;
		step = plan->successor;
		length++;
	}
	return length;
}

void
orch_plan_row(OrchRow *row, const OrchWorkflow *workflow, int32 step,
			  const OrchRow *run, Datum input)
{
	fill_row(row, workflow, step, run, input);
	orch_row_set(row, ORCH_TASK_PARENT_ID, run->values[ORCH_TASK_ID]);
	orch_row_set(row, ORCH_TASK_ROOT_ID,
				 run->nulls[ORCH_TASK_ROOT_ID]
					 ? run->values[ORCH_TASK_ID]
					 : run->values[ORCH_TASK_ROOT_ID]);
}

void
orch_plan_next_row(OrchRow *row, const OrchWorkflow *workflow, int32 step,
				   const OrchRow *before, Datum input)
{
	fill_row(row, workflow, step, before, input);
	orch_row_set(row, ORCH_TASK_PARENT_ID,
				 before->values[ORCH_TASK_PARENT_ID]);
	orch_row_set(row, ORCH_TASK_ROOT_ID, before->values[ORCH_TASK_ROOT_ID]);
}

/*
 * What the step's plan leaves open it has as the row that it is like.
 */
static void
fill_row(OrchRow *row, const OrchWorkflow *workflow, int32 step,
		 const OrchRow *like, Datum input)
{
	const OrchStepPlan *plan = orch_plan_step(workflow, step);
	TimestampTz now = orch_clock();
	int32 priority = plan->priority == ORCH_PRIORITY_OF_RUN
						 ? ORCH_INT32(like, ORCH_TASK_PRIORITY)
						 : plan->priority;

	memset(row->values, 0, sizeof(row->values));
	memset(row->nulls, true, sizeof(row->nulls));
	orch_row_set(row, ORCH_TASK_CREATED_AT, TimestampTzGetDatum(now));
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_PENDING]));
	orch_row_set(row, ORCH_TASK_OWNER, like->values[ORCH_TASK_OWNER]);
	orch_row_set(row, ORCH_TASK_DEFINITION, Int32GetDatum(plan->definition));
	orch_row_set(row, ORCH_TASK_QUEUE,
				 plan->queue == 0 ? like->values[ORCH_TASK_QUEUE]
								  : Int32GetDatum(plan->queue));
	orch_row_set(row, ORCH_TASK_SORT_KEY,
				 Int64GetDatum(orch_fair_key(ORCH_INT32(row, ORCH_TASK_OWNER),
											 ORCH_INT32(row, ORCH_TASK_QUEUE),
											 input, now, priority)));
	orch_row_set(row, ORCH_TASK_PRIORITY, Int32GetDatum(priority));
	orch_row_set(row, ORCH_TASK_ATTEMPT, Int32GetDatum(0));
	orch_row_set(row, ORCH_TASK_MAX_ATTEMPTS,
				 Int32GetDatum(plan->max_attempts));
	orch_row_set(row, ORCH_TASK_EPOCH, Int32GetDatum(0));
	orch_row_set(row, ORCH_TASK_LIVE, BoolGetDatum(true));
	orch_row_set(row, ORCH_TASK_PLAN, Int32GetDatum(workflow->definition));
	orch_row_set(row, ORCH_TASK_STEP, Int32GetDatum(step));
	orch_row_set(row, ORCH_TASK_NAME, workflow->names[step - 1]);
	orch_row_set(row, ORCH_TASK_INPUT, input);
	if (!like->nulls[ORCH_TASK_TRACEPARENT])
		orch_row_set(row, ORCH_TASK_TRACEPARENT,
					 like->values[ORCH_TASK_TRACEPARENT]);
	if (!like->nulls[ORCH_TASK_DEADLINE])
	{
		orch_row_set(row, ORCH_TASK_DEADLINE,
					 like->values[ORCH_TASK_DEADLINE]);
		orch_row_set(row, ORCH_TASK_EXPIRE_AT,
					 like->values[ORCH_TASK_DEADLINE]);
	}
}

static void
push_key(JsonbParseState **state, char *key, int length)
{
	JsonbValue value;

	value.type = jbvString;
	value.val.string.val = key;
	value.val.string.len = length;
	pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_value(JsonbParseState **state, Datum datum)
{
	Jsonb *document = DatumGetJsonbP(datum);
	JsonbValue value;

	if (!JB_ROOT_IS_SCALAR(document) ||
		!JsonbExtractScalar(&document->root, &value))
	{
		value.type = jbvBinary;
		value.val.binary.data = &document->root;
		value.val.binary.len = VARSIZE(document) - VARHDRSZ;
	}
	pushJsonbValue(state, WJB_VALUE, &value);
}

Datum
orch_plan_input(Datum input, const Datum *name, Datum output, bool has_output)
{
	static MemoryContext scratch = NULL;
	MemoryContext old;
	JsonbParseState *state = NULL;
	JsonbValue null = {.type = jbvNull};
	Datum document;

	if (scratch == NULL)
		scratch = AllocSetContextCreate(TopMemoryContext, "orchestrator input",
										ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(scratch);
	old = MemoryContextSwitchTo(scratch);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_key(&state, "input", 5);
	push_value(&state, input);
	push_key(&state, "steps", 5);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (name != NULL)
	{
		text *key = DatumGetTextPP(*name);

		push_key(&state, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
		if (has_output)
			push_value(&state, output);
		else
			pushJsonbValue(&state, WJB_VALUE, &null);
	}
	pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	document = JsonbPGetDatum(
		JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
	MemoryContextSwitchTo(old);
	return datumCopy(document, false, -1);
}

bool
orch_plan_run_input(Datum document, Datum *input)
{
	Jsonb *object = DatumGetJsonbP(document);
	JsonbValue buffer;
	JsonbValue *value = NULL;

	if (JB_ROOT_IS_OBJECT(object))
		value =
			getKeyJsonValueFromContainer(&object->root, "input", 5, &buffer);
	if (value == NULL)
		return false;
	*input = JsonbPGetDatum(JsonbValueToJsonb(value));
	return true;
}

void
orch_plan_insert(OrchLeaf *live, OrchRow *const *rows, int n)
{
	bool heard = !orch_preloaded || orch_event_heard();

	if (n == 0)
		return;
	orch_heap_insert_many(live, rows, n);
	for (int i = 0; i < n; i++)
	{
		const OrchRow *row = rows[i];
		const OrchDefinition *definition;

		orch_depth_add(ORCH_INT32(row, ORCH_TASK_OWNER),
					   ORCH_INT32(row, ORCH_TASK_QUEUE), 1);
		if (!row->nulls[ORCH_TASK_SORT_KEY] &&
			!row->nulls[ORCH_TASK_PARKED_ON])
			orch_event_parked(ORCH_INT32(row, ORCH_TASK_OWNER),
							  ORCH_INT64(row, ORCH_TASK_PARKED_ON),
							  ORCH_INT64(row, ORCH_TASK_SORT_KEY));
		else if (!row->nulls[ORCH_TASK_SORT_KEY])
			orch_event_ready(ORCH_INT32(row, ORCH_TASK_OWNER), InvalidOid,
							 ORCH_INT32(row, ORCH_TASK_QUEUE),
							 ORCH_INT64(row, ORCH_TASK_SORT_KEY));
		if (!heard)
			continue;
		definition =
			orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));
		orch_event_transition(
			ORCH_INT64(row, ORCH_TASK_ID), ORCH_INT64(row, ORCH_TASK_ROOT_ID),
			ORCH_INT64(row, ORCH_TASK_PARENT_ID), ORCH_EVENT_CREATED,
			orch_catalog_state(DatumGetObjectId(row->values[ORCH_TASK_STATE])),
			-1, 0, definition == NULL || definition->notify);
	}
}

/*
 * _insert_items(model, inputs, first): rows like the model, one for each
 * input, numbered from first.
 */
Datum
orchestrator_insert_items(PG_FUNCTION_ARGS)
{
	int32 first = PG_GETARG_INT32(2);
	OrchRow model;
	OrchRow *rows = palloc(ROWS_AT_ONCE * sizeof(OrchRow));
	OrchRow **pointers = palloc(ROWS_AT_ONCE * sizeof(OrchRow *));
	OrchLeaf *live;
	Datum *inputs;
	int n;
	int nrows = 0;

	orch_row_deform(PG_GETARG_HEAPTUPLEHEADER(0), &model);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false,
					  TYPALIGN_INT, &inputs, NULL, &n);
	live = orch_heap_open_live();
	for (int i = 0; i < n; i++)
	{
		OrchRow *row = pointers[nrows] = &rows[nrows];

		*row = model;
		orch_row_set(row, ORCH_TASK_ID, Int64GetDatum(orch_catalog_next_id()));
		orch_row_set(row, ORCH_TASK_ITEM, Int32GetDatum(first + i));
		orch_row_set(row, ORCH_TASK_INPUT, inputs[i]);

		if (!row->nulls[ORCH_TASK_SORT_KEY])
			orch_fair_place(row, i);
		if (++nrows == ROWS_AT_ONCE || i == n - 1)
		{
			CHECK_FOR_INTERRUPTS();
			orch_plan_insert(live, pointers, nrows);
			nrows = 0;
		}
	}
	orch_heap_close(live);
	PG_RETURN_VOID();
}
