/*
 * enqueue.c
 *	  enqueue(), enqueue_many() and run(): a task in the caller's transaction.
 *
 * First station of the flow.  Who calls is who the task runs as.  The row is
 * written directly to the live leaf; what it needs to know of the definition
 * is remembered by the session (catalog.c), so that a plain call costs the
 * insert and little else.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "admit.h"
#include "catalog.h"
#include "compat.h"
#include "event.h"
#include "fair.h"
#include "guc.h"
#include "heap.h"
#include "identity.h"
#include "plan.h"
#include "shmem.h"

#define BULK_PRIORITY		   (-10)
#define MAX_PRIORITY		   1000000
#define MAX_NAME_LENGTH		   200
#define MAX_TRACEPARENT_LENGTH 200
#define ROWS_AT_ONCE		   1000

/* The options shared by all three, as they came. */
typedef struct Options
{
	NullableDatum name;
	NullableDatum priority;
	NullableDatum run_at;
	NullableDatum delay;
	NullableDatum key; /* text, or text[] of enqueue_many */
	NullableDatum key_window;
	NullableDatum queue;
	NullableDatum metadata;
	NullableDatum deadline;
	NullableDatum traceparent;
} Options;

/* Those of enqueue() alone: of tasks with a key that come often. */
typedef struct Spacing
{
	NullableDatum debounce;
	NullableDatum debounce_max;
	NullableDatum debounce_merge;
	NullableDatum throttle;
} Spacing;

/* Number of the first option among the arguments; all three are alike. */
#define FIRST_OPTION  2
#define FIRST_SPACING 12

static void read_options(FunctionCallInfo fcinfo, Options *options,
						 const char *key);
static void set_input(FunctionCallInfo fcinfo, OrchRow *row);
static void check_caller(const char *function);
static void check_size(Datum value, const char *what);
static void check_length(NullableDatum value, int limit, const char *what);
static void prepare_row(OrchRow *row, OrchPlan *plan, const Options *options,
						int priority_bias);
static int64 lane_of(const OrchPlan *plan);
static TimestampTz ready_time(const Options *options, TimestampTz now);
static void set_expiry(OrchRow *row, const OrchPlan *plan,
					   const Options *options, TimestampTz now,
					   TimestampTz ready_at);
static int64 take_key(const OrchPlan *plan, const Options *options, int64 id);
static void read_spacing(FunctionCallInfo fcinfo, Options *options,
						 Spacing *spacing);
static int64 hold_key(const OrchRow *row, const OrchPlan *plan,
					  const Options *options, const Spacing *spacing,
					  int64 id);
static int64 throttle(const OrchPlan *plan, const Options *options,
					  const Spacing *spacing, int64 id);
static int64 debounce(const OrchRow *row, const OrchPlan *plan,
					  const Options *options, const Spacing *spacing,
					  int64 id);
static int64 insert_task(OrchLeaf *live, OrchRow *row, const OrchPlan *plan,
						 const Options *options, const Spacing *spacing);
static void defer(OrchRow *row, const OrchPlan *plan, const Options *options,
				  TimestampTz until);
static bool waits(const OrchRow *row);
static void announce(const OrchRow *row, const OrchPlan *plan);
static void announce_created(const OrchRow *row, const OrchPlan *plan);
static void start_runs(OrchLeaf *live, OrchRow *const *runs, int n);
static void insert_first_steps(OrchLeaf *live, const OrchWorkflow *workflow,
							   OrchRow *const *runs, int n);
static void start_by_sql(OrchRow *const *runs, int n);
static Datum text_argument(FunctionCallInfo fcinfo, int number,
						   const char *what);
static void admit_many(OrchRow *model, const OrchPlan *plan,
					   const Options *options, const Datum *ids,
					   const Datum *holders, int n);
static ArrayType *take_keys(const OrchPlan *plan, const Options *options,
							Datum *ids, int n);
static void insert_tasks(OrchLeaf *live, OrchRow *model, const OrchPlan *plan,
						 Datum *inputs, bool *nulls, Datum *ids,
						 ArrayType *keys, Datum *holders, int n);

PG_FUNCTION_INFO_V1(orchestrator_enqueue);
PG_FUNCTION_INFO_V1(orchestrator_enqueue_many);
PG_FUNCTION_INFO_V1(orchestrator_run);

/*
 * enqueue(definition, input, name, priority, run_at, delay, key, key_window,
 *		   queue, metadata, deadline, traceparent) -> id
 */
Datum
orchestrator_enqueue(PG_FUNCTION_ARGS)
{
	char *definition =
		TextDatumGetCString(text_argument(fcinfo, 0, "definition"));
	Options options;
	Spacing spacing;
	OrchRow row;
	OrchPlan plan;
	OrchLeaf *live;
	int64 id;

	check_caller("enqueue");
	read_options(fcinfo, &options, "key");
	read_spacing(fcinfo, &options, &spacing);
	live = orch_heap_open_live();
	plan = *orch_catalog_plan(definition);
	prepare_row(&row, &plan, &options, 0);
	set_input(fcinfo, &row);
	id = insert_task(live, &row, &plan, &options, &spacing);
	orch_heap_close(live);
	PG_RETURN_INT64(id);
}

/*
 * run(sql, input, name, priority, run_at, delay, key, key_window, queue,
 *	   metadata, deadline, traceparent, kind, max_attempts, timeout) -> id
 */
Datum
orchestrator_run(PG_FUNCTION_ARGS)
{
	Datum command = text_argument(fcinfo, 0, "sql");
	Datum kind = text_argument(fcinfo, 12, "kind");
	Options options;
	OrchRow row;
	OrchPlan plan;
	OrchLeaf *live;
	int64 id;

	check_caller("run");
	check_size(command, "command");
	if (strspn(TextDatumGetCString(command), " \t\r\n;") ==
		strlen(TextDatumGetCString(command)))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("sql must be a command")));
	read_options(fcinfo, &options, "key");
	live = orch_heap_open_live();
	orch_catalog_run_plan(kind, fcinfo->args[13], fcinfo->args[14], &plan);
	prepare_row(&row, &plan, &options, 0);
	orch_row_set(&row, ORCH_TASK_COMMAND, command);
	set_input(fcinfo, &row);
	id = insert_task(live, &row, &plan, &options, NULL);
	orch_heap_close(live);
	PG_RETURN_INT64(id);
}

/*
 * enqueue_many(definition, inputs jsonb[], name, priority, run_at, delay,
 *				keys text[], key_window, queue, metadata, deadline,
 *				traceparent) -> ids, in the order of the inputs
 */
Datum
orchestrator_enqueue_many(PG_FUNCTION_ARGS)
{
	char *definition =
		TextDatumGetCString(text_argument(fcinfo, 0, "definition"));
	Options options;
	OrchRow model;
	OrchPlan plan;
	OrchLeaf *live;
	Datum *inputs;
	Datum *ids;
	Datum *holders = NULL;
	bool *nulls;
	int n;
	ArrayType *keys = NULL;

	check_caller("enqueue_many");
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("inputs must not be null")));
	read_options(fcinfo, &options, "keys");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false, 'i',
					  &inputs, &nulls, &n);
	live = orch_heap_open_live();
	plan = *orch_catalog_plan(definition);
	prepare_row(&model, &plan, &options, BULK_PRIORITY);
	if (n == 0)
	{
		orch_heap_close(live);
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(INT8OID));
	}
	ids = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			check_size(inputs[i], "input");
		ids[i] = Int64GetDatum(orch_catalog_next_id());
	}
	if (!options.key.isnull)
	{
		keys = DatumGetArrayTypeP(options.key.value);
		deconstruct_array(take_keys(&plan, &options, ids, n), INT8OID, 8, true,
						  'd', &holders, NULL, &n);
	}
	admit_many(&model, &plan, &options, ids, holders, n);
	insert_tasks(live, &model, &plan, inputs, nulls, ids, keys, holders, n);
	orch_admitted(waits(&model));
	announce(&model, &plan);
	orch_heap_close(live);
	PG_RETURN_ARRAYTYPE_P(
		construct_array(holders ? holders : ids, n, INT8OID, 8, true, 'd'));
}

static Datum
text_argument(FunctionCallInfo fcinfo, int number, const char *what)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be null", what)));
	return PG_GETARG_DATUM(number);
}

static void
read_options(FunctionCallInfo fcinfo, Options *options, const char *key)
{
	memcpy(options, &fcinfo->args[FIRST_OPTION], sizeof(Options));
	check_length(options->name, MAX_NAME_LENGTH, "name");
	check_length(options->traceparent, MAX_TRACEPARENT_LENGTH, "traceparent");
	if (!options->metadata.isnull)
		check_size(options->metadata.value, "metadata");
	if (options->key.isnull && !options->key_window.isnull)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("key_window needs a key"),
			 errhint(
				 "It is how long the key is held: give %s, or leave it out.",
				 key)));
}

/*
 * Of one task; without it the row has an empty object.
 */
static void
set_input(FunctionCallInfo fcinfo, OrchRow *row)
{
	if (PG_ARGISNULL(1))
		return;
	check_size(PG_GETARG_DATUM(1), "input");
	orch_row_set(row, ORCH_TASK_INPUT, PG_GETARG_DATUM(1));
}

/*
 * What must hold in this session before anything is written.
 */
static void
check_caller(const char *function)
{
	orch_catalog_require_writes(function);
	if (!orch_superuser_tasks && superuser())
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("tasks of superusers are not allowed in this server"),
			 errhint(
				 "Enqueue as an ordinary role, or set orchestrator.superuser_tasks = on.")));
	orch_catalog_require_flush();
	orch_identity_warn();
}

static void
check_size(Datum value, const char *what)
{
	Size limit = (Size) orch_max_input_size * 1024;

	if (toast_raw_datum_size(value) > limit)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("%s of %zu bytes is larger than %zu bytes", what,
					toast_raw_datum_size(value), limit),
			 errhint(
				 "Store large data in a table and pass its key, or raise orchestrator.max_input_size.")));
}

static void
check_length(NullableDatum value, int limit, const char *what)
{
	if (!value.isnull && toast_raw_datum_size(value.value) > limit + VARHDRSZ)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("%s is longer than %d bytes", what, limit)));
}

static void
set_option(OrchRow *row, OrchColumn column, NullableDatum value)
{
	row->values[column] = value.value;
	row->nulls[column] = value.isnull;
}

/*
 * Everything of the row but its id and key; its queue may have been named.
 */
static void
prepare_row(OrchRow *row, OrchPlan *plan, const Options *options,
			int priority_bias)
{
	static Datum empty_object = (Datum) 0;
	const Oid *states = orch_catalog(false)->states;
	TimestampTz now = orch_clock();
	TimestampTz ready_at = ready_time(options, now);
	int priority = plan->priority + priority_bias;

	if (empty_object == (Datum) 0)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		empty_object = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
		MemoryContextSwitchTo(old);
	}
	if (!options->queue.isnull)
		plan->queue =
			orch_catalog_queue(TextDatumGetCString(options->queue.value));
	if (!options->priority.isnull)
	{
		priority = DatumGetInt32(options->priority.value);
		if (priority < -MAX_PRIORITY || priority > MAX_PRIORITY)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("priority must be between %d and %d",
								   -MAX_PRIORITY, MAX_PRIORITY)));
	}

	memset(row->nulls, true, sizeof(row->nulls));
	orch_row_set(row, ORCH_TASK_CREATED_AT, TimestampTzGetDatum(now));
	if (ready_at > now)
	{
		orch_row_set(row, ORCH_TASK_RUN_AT, TimestampTzGetDatum(ready_at));
		orch_row_set(row, ORCH_TASK_STATE,
					 ObjectIdGetDatum(states[ORCH_STATE_SCHEDULED]));
	}
	else if (plan->is_workflow)
		orch_row_set(row, ORCH_TASK_STATE,
					 ObjectIdGetDatum(states[ORCH_STATE_WAITING]));
	else
	{
		orch_row_set(row, ORCH_TASK_SORT_KEY,
					 Int64GetDatum(orch_sort_key(now, priority)));
		orch_row_set(row, ORCH_TASK_STATE,
					 ObjectIdGetDatum(states[ORCH_STATE_PENDING]));
	}
	if (plan->is_workflow)
		orch_row_set(row, ORCH_TASK_REMAINING,
					 Int32GetDatum(orch_plan(plan->definition)->nsteps));
	set_expiry(row, plan, options, now, ready_at);
	orch_row_set(row, ORCH_TASK_OWNER, Int32GetDatum(plan->owner));
	orch_row_set(row, ORCH_TASK_DEFINITION, Int32GetDatum(plan->definition));
	orch_row_set(row, ORCH_TASK_QUEUE, Int32GetDatum(plan->queue));
	if (lane_of(plan) != 0)
		orch_row_set(row, ORCH_TASK_PARKED_ON, Int64GetDatum(lane_of(plan)));
	orch_row_set(row, ORCH_TASK_PRIORITY, Int32GetDatum(priority));
	orch_row_set(row, ORCH_TASK_ATTEMPT, Int32GetDatum(0));
	orch_row_set(row, ORCH_TASK_MAX_ATTEMPTS,
				 Int32GetDatum(plan->max_attempts));
	orch_row_set(row, ORCH_TASK_EPOCH, Int32GetDatum(0));
	orch_row_set(row, ORCH_TASK_LIVE, BoolGetDatum(true));
	orch_row_set(row, ORCH_TASK_INPUT, empty_object);
	set_option(row, ORCH_TASK_NAME, options->name);
	set_option(row, ORCH_TASK_METADATA, options->metadata);
	set_option(row, ORCH_TASK_TRACEPARENT, options->traceparent);
}

/*
 * Where tasks wait that no executor runs; 0: executors do.
 */
static int64
lane_of(const OrchPlan *plan)
{
	return plan->is_remote ? ORCH_REMOTE_LANE(plan->queue)
		   : plan->is_call ? ORCH_COURIER_LANE(plan->queue)
						   : 0;
}

static TimestampTz
ready_time(const Options *options, TimestampTz now)
{
	TimestampTz at = now;

	if (!options->run_at.isnull && !options->delay.isnull)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("run_at and delay cannot both be given")));
	if (!options->run_at.isnull)
		at = DatumGetTimestampTz(options->run_at.value);
	if (!options->delay.isnull)
		at = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													 TimestampTzGetDatum(now),
													 options->delay.value));
	if (TIMESTAMP_NOT_FINITE(at))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("run_at must be finite")));
	return at;
}

static void
set_expiry(OrchRow *row, const OrchPlan *plan, const Options *options,
		   TimestampTz now, TimestampTz ready_at)
{
	TimestampTz expire_at = DT_NOEND;

	if (plan->has_queue_timeout && !plan->is_workflow)
		expire_at = DatumGetTimestampTz(DirectFunctionCall2(
			timestamptz_pl_interval, TimestampTzGetDatum(Max(now, ready_at)),
			IntervalPGetDatum(&plan->queue_timeout)));
	if (plan->run_timeout > 0)
		expire_at =
			TimestampTzPlusMilliseconds(Max(now, ready_at), plan->run_timeout);
	if (!options->deadline.isnull)
	{
		TimestampTz deadline = DatumGetTimestampTz(options->deadline.value);

		if (deadline <= now)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deadline is in the past"),
				 errhint("Give a deadline after the present time, or none.")));
		set_option(row, ORCH_TASK_DEADLINE, options->deadline);
		expire_at = Min(expire_at, deadline);
	}
	if (!TIMESTAMP_NOT_FINITE(expire_at))
		orch_row_set(row, ORCH_TASK_EXPIRE_AT, TimestampTzGetDatum(expire_at));
}

/*
 * The id that holds the key: ours, or the task that took it before.
 */
static int64
take_key(const OrchPlan *plan, const Options *options, int64 id)
{
	NullableDatum args[5];

	args[0].value = Int32GetDatum(plan->owner);
	args[0].isnull = false;
	args[1].value = Int32GetDatum(plan->queue);
	args[1].isnull = false;
	args[2] = options->key;
	args[3] = options->key_window;
	args[4].value = Int64GetDatum(id);
	args[4].isnull = false;
	return DatumGetInt64(orch_catalog_call(ORCH_FN_TAKE_KEY, 5, args, NULL));
}

static ArrayType *
take_keys(const OrchPlan *plan, const Options *options, Datum *ids, int n)
{
	NullableDatum args[5];
	ArrayType *keys = DatumGetArrayTypeP(options->key.value);

	if (ARR_NDIM(keys) != 1 || ARR_DIMS(keys)[0] != n)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("keys must have as many elements as inputs")));
	args[0].value = Int32GetDatum(plan->owner);
	args[0].isnull = false;
	args[1].value = Int32GetDatum(plan->queue);
	args[1].isnull = false;
	args[2] = options->key;
	args[3] = options->key_window;
	args[4].value =
		PointerGetDatum(construct_array(ids, n, INT8OID, 8, true, 'd'));
	args[4].isnull = false;
	return DatumGetArrayTypeP(
		orch_catalog_call(ORCH_FN_TAKE_KEYS, 5, args, NULL));
}

/*
 * What goes with a key only.  A debounced task is one that is delayed.
 */
static void
read_spacing(FunctionCallInfo fcinfo, Options *options, Spacing *spacing)
{
	memcpy(spacing, &fcinfo->args[FIRST_SPACING], sizeof(Spacing));
	if (spacing->debounce.isnull && spacing->throttle.isnull)
	{
		if (!spacing->debounce_max.isnull)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("debounce_max needs debounce")));
		return;
	}
	if (options->key.isnull)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("debounce and throttle need a key"),
						errhint("The key says which calls belong together.")));
	if (!options->key_window.isnull ||
		(!spacing->debounce.isnull && !spacing->throttle.isnull))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(
				 "only one of key_window, debounce and throttle can be given")));
	if (spacing->debounce.isnull)
		return;
	if (!options->run_at.isnull || !options->delay.isnull)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("debounce cannot be given with run_at or delay")));
	options->delay = spacing->debounce;
}

/*
 * The id that holds the key: ours, or the task that stands for this call.
 */
static int64
hold_key(const OrchRow *row, const OrchPlan *plan, const Options *options,
		 const Spacing *spacing, int64 id)
{
	if (spacing != NULL && !spacing->debounce.isnull)
		return debounce(row, plan, options, spacing, id);
	if (spacing != NULL && !spacing->throttle.isnull)
		return throttle(plan, options, spacing, id);
	return take_key(plan, options, id);
}

/*
 * The place of the key's slot, or who has it.
 */
static int64
throttle(const OrchPlan *plan, const Options *options, const Spacing *spacing,
		 int64 id)
{
	NullableDatum args[5] = {
		{Int32GetDatum(plan->owner), false},
		{Int32GetDatum(plan->queue), false},
		options->key,
		spacing->throttle,
		{Int64GetDatum(id), false},
	};

	return DatumGetInt64(orch_catalog_call(ORCH_FN_THROTTLE, 5, args, NULL));
}

static int64
debounce(const OrchRow *row, const OrchPlan *plan, const Options *options,
		 const Spacing *spacing, int64 id)
{
	NullableDatum args[9] = {
		{Int32GetDatum(plan->owner), false},
		{Int32GetDatum(plan->queue), false},
		options->key,
		{row->values[ORCH_TASK_RUN_AT], row->nulls[ORCH_TASK_RUN_AT]},
		spacing->debounce_max,
		spacing->debounce_merge,
		{row->values[ORCH_TASK_INPUT], false},
		{Int64GetDatum(id), false},
		{Int32GetDatum(plan->definition), false},
	};

	return DatumGetInt64(orch_catalog_call(ORCH_FN_DEBOUNCE, 9, args, NULL));
}

static int64
insert_task(OrchLeaf *live, OrchRow *row, const OrchPlan *plan,
			const Options *options, const Spacing *spacing)
{
	int64 id = orch_catalog_next_id();
	TimestampTz until;

	if (!options->key.isnull)
	{
		int64 holder = hold_key(row, plan, options, spacing, id);

		if (holder != id)
			return holder;
		orch_row_set(row, ORCH_TASK_KEY, options->key.value);
	}
	orch_row_set(row, ORCH_TASK_ID, Int64GetDatum(id));
	until = orch_admit(plan->owner, plan->queue, 1);
	if (until != 0 && (spacing == NULL || spacing->debounce.isnull))
		defer(row, plan, options, until);
	if (!row->nulls[ORCH_TASK_SORT_KEY])
		orch_fair_place(row, 0);
	orch_heap_insert(live, row);
	announce(row, plan);
	announce_created(row, plan);
	start_runs(live, &row, 1);
	orch_admitted(waits(row));
	return id;
}

/*
 * Whether a row itself waits: a run does not, its first steps do.
 */
static bool
waits(const OrchRow *row)
{
	return !row->nulls[ORCH_TASK_RUN_AT] || row->nulls[ORCH_TASK_REMAINING];
}

/*
 * The queue is full: the task waits for its turn to be ready.
 */
static void
defer(OrchRow *row, const OrchPlan *plan, const Options *options,
	  TimestampTz until)
{
	TimestampTz now = DatumGetTimestampTz(row->values[ORCH_TASK_CREATED_AT]);

	if (!row->nulls[ORCH_TASK_RUN_AT])
		until = Max(until, DatumGetTimestampTz(row->values[ORCH_TASK_RUN_AT]));
	orch_row_set(row, ORCH_TASK_RUN_AT, TimestampTzGetDatum(until));
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_SCHEDULED]));
	orch_row_set_null(row, ORCH_TASK_SORT_KEY);
	orch_row_set_null(row, ORCH_TASK_EXPIRE_AT);
	set_expiry(row, plan, options, now, until);
}

/*
 * Room for those that do not stand for a task that has their key.
 */
static void
admit_many(OrchRow *model, const OrchPlan *plan, const Options *options,
		   const Datum *ids, const Datum *holders, int n)
{
	int64 own = 0;
	TimestampTz until;

	for (int i = 0; i < n; i++)
	{
		if (holders == NULL || holders[i] == ids[i])
			own++;
	}
	until = own > 0 ? orch_admit(plan->owner, plan->queue, own) : 0;
	if (until != 0)
		defer(model, plan, options, until);
}

/*
 * Rows like the model, one for each input; with keys, only those that hold
 * theirs.  The model is left with the first place of all.
 */
static void
insert_tasks(OrchLeaf *live, OrchRow *model, const OrchPlan *plan,
			 Datum *inputs, bool *nulls, Datum *ids, ArrayType *keys,
			 Datum *holders, int n)
{
	OrchRow **rows = palloc(ROWS_AT_ONCE * sizeof(OrchRow *));
	Datum *key_values = NULL;
	bool *key_nulls = NULL;
	int nkeys;
	int waiting = 0;
	int64 first = PG_INT64_MAX;

	if (keys != NULL)
		deconstruct_array(keys, TEXTOID, -1, false, 'i', &key_values,
						  &key_nulls, &nkeys);
	for (int i = 0; i < ROWS_AT_ONCE && i < n; i++)
		rows[i] = palloc(sizeof(OrchRow));
	for (int i = 0; i < n; i++)
	{
		if (holders == NULL || holders[i] == ids[i])
		{
			OrchRow *row = rows[waiting++];

			*row = *model;
			orch_row_set(row, ORCH_TASK_ID, ids[i]);

			if (!nulls[i])
				orch_row_set(row, ORCH_TASK_INPUT, inputs[i]);

			/* keys of their own let a claim's mark pass through the bulk */
			if (!row->nulls[ORCH_TASK_SORT_KEY])
			{
				orch_fair_place(row, i);
				first = Min(first, ORCH_INT64(row, ORCH_TASK_SORT_KEY));
			}
			if (keys != NULL && !key_nulls[i])
				orch_row_set(row, ORCH_TASK_KEY, key_values[i]);
			announce_created(row, plan);
		}
		if (waiting == ROWS_AT_ONCE || (i == n - 1 && waiting > 0))
		{
			CHECK_FOR_INTERRUPTS();
			orch_heap_insert_many(live, rows, waiting);
			start_runs(live, rows, waiting);
			waiting = 0;
		}
	}
	if (first != PG_INT64_MAX)
		orch_row_set(model, ORCH_TASK_SORT_KEY, Int64GetDatum(first));
}

/*
 * Tell at commit that there is something to claim or to wait for.
 */
static void
announce(const OrchRow *row, const OrchPlan *plan)
{
	if (!row->nulls[ORCH_TASK_RUN_AT])
		orch_event_due(DatumGetTimestampTz(row->values[ORCH_TASK_RUN_AT]));
	else if (lane_of(plan) != 0)
		orch_event_parked(plan->owner, lane_of(plan),
						  ORCH_INT64(row, ORCH_TASK_SORT_KEY));
	else if (!plan->is_workflow)
		orch_event_ready(plan->owner, GetUserId(), plan->queue,
						 ORCH_INT64(row, ORCH_TASK_SORT_KEY));
	if (!row->nulls[ORCH_TASK_EXPIRE_AT])
		orch_event_due(DatumGetTimestampTz(row->values[ORCH_TASK_EXPIRE_AT]));
}

static void
announce_created(const OrchRow *row, const OrchPlan *plan)
{
	int64 id = ORCH_INT64(row, ORCH_TASK_ID);

	OrchState state = !row->nulls[ORCH_TASK_RUN_AT] ? ORCH_STATE_SCHEDULED
					  : plan->is_workflow			? ORCH_STATE_WAITING
													: ORCH_STATE_PENDING;

	orch_event_transition(id, id, 0, ORCH_EVENT_CREATED, state, -1, 0,
						  plan->notify);
}

/*
 * Rows of runs of one workflow were inserted: make the rows of their first
 * steps, unless they wait for their time.
 */
static void
start_runs(OrchLeaf *live, OrchRow *const *runs, int n)
{
	const OrchWorkflow *workflow;

	if (runs[0]->nulls[ORCH_TASK_REMAINING] ||
		!runs[0]->nulls[ORCH_TASK_RUN_AT])
		return;
	workflow = orch_plan(ORCH_INT32(runs[0], ORCH_TASK_DEFINITION));
	if (workflow->starts_simple)
		insert_first_steps(live, workflow, runs, n);
	else
		start_by_sql(runs, n);
}

static void
insert_first_steps(OrchLeaf *live, const OrchWorkflow *workflow,
				   OrchRow *const *runs, int n)
{
	MemoryContext context = AllocSetContextCreate(
		CurrentMemoryContext, "first steps", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OrchRow **rows = palloc(ROWS_AT_ONCE * sizeof(OrchRow *));
	int nrows = 0;

	for (int i = 0; i < n; i++)
	{
		Datum input = orch_plan_input(runs[i]->values[ORCH_TASK_INPUT], NULL,
									  (Datum) 0, false);

		for (int step = 1; step <= workflow->nsteps; step++)
		{
			if (!(workflow->steps[step - 1].flags & ORCH_STEP_STARTS))
				continue;
			if (nrows == ROWS_AT_ONCE)
			{
				orch_plan_insert(live, rows, nrows);
				nrows = 0;
			}
			rows[nrows] = palloc(sizeof(OrchRow));
			orch_plan_row(rows[nrows], workflow, step, runs[i], input);
			orch_row_set(rows[nrows++], ORCH_TASK_ID,
						 Int64GetDatum(orch_catalog_next_id()));
		}
	}
	orch_plan_insert(live, rows, nrows);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
start_by_sql(OrchRow *const *runs, int n)
{
	CommandCounterIncrement();
	for (int i = 0; i < n; i++)
	{
		NullableDatum arg = {runs[i]->values[ORCH_TASK_ID], false};

		orch_catalog_call(ORCH_FN_START_STEPS, 1, &arg, &(bool){false});
	}
}
