/*
 * progress.c
 *	  The step that runs in this session, and what it tells of itself.
 *
 * A step's transaction is not committed while it runs, so what it reports
 * goes through the executor's slot in shared memory: views read it there, the
 * supervisor notifies it (notify.c).
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "event.h"
#include "guc.h"
#include "notify.h"
#include "progress.h"
#include "shmem.h"

/* Columns of orchestrator_slots, in the order of its declaration. */
typedef enum SlotColumn
{
	SLOT_PID,
	SLOT_KIND,
	SLOT_ROLE,
	SLOT_TASK_ID,
	SLOT_EPOCH,
	SLOT_ATTEMPT,
	SLOT_STATE,
	SLOT_SINCE,
	SLOT_STARTED_AT,
	SLOT_PROGRESS,
	SLOT_MESSAGE,
	SLOT_STAGE,
	SLOT_CLAIMED,
	SLOT_DATABASE,
	SLOT_ITEM,
	SLOT_COLUMNS
} SlotColumn;

/* Columns of current_task(). */
#define TASK_COLUMNS 8

/*
 * A slot as it was at one moment.
 */
typedef struct SlotCopy
{
	OrchExecutorState state;
	Oid roleoid;
	int32 owner;
	pid_t pid;
	TimestampTz since;
	int64 task;
	int32 epoch;
	int32 attempt;
	TimestampTz step_started;
	double progress;
	char message[ORCH_MESSAGE_SIZE];
	char stage[ORCH_STAGE_SIZE];
	int claimed;
	int ncalled; /* tasks of a call; 0: task runs alone, or none does */
	struct
	{
		int64 task;
		int32 epoch;
		int32 attempt;
	} called[ORCH_MAX_CLAIM];
} SlotCopy;

/* The same of the courier. */
typedef struct CourierCopy
{
	pid_t pid; /* 0: none runs */
	TimestampTz since;
	int calls;
} CourierCopy;

/* In the order of OrchExecutorState; a free slot is not shown. */
static const char *const state_names[] = {"free", "starting", "idle", "busy",
										  "dead"};

StaticAssertDecl(lengthof(state_names) == ORCH_EXECUTOR_DEAD + 1,
				 "state_names must match OrchExecutorState");

const OrchStep *orch_step = NULL;
volatile TimestampTz orch_last_report = 0;
static OrchExecutor *step_slot = NULL;

PG_FUNCTION_INFO_V1(orchestrator_current_task);
PG_FUNCTION_INFO_V1(orchestrator_current_batch);
PG_FUNCTION_INFO_V1(orchestrator_progress);
PG_FUNCTION_INFO_V1(orchestrator_slots);

static int clip_text(const text *from, char *to, int size);
static void tell_progress(void);
static void push_called(const OrchStep *step);
static void fill_task(const OrchStep *step, Datum *values, bool *nulls);
static void copy_courier(OrchDatabase *database, CourierCopy *copy);
static void copy_slot(OrchExecutor *executor, SlotCopy *copy);
static void copy_called(OrchExecutor *executor, SlotCopy *copy, int first,
						int n);
static int count_claims(OrchExecutor *executor);
static bool may_see_slot(const SlotCopy *copy);
static void put_process(ReturnSetInfo *rsinfo, const char *kind, pid_t pid,
						Oid database);
static void put_courier(ReturnSetInfo *rsinfo, const CourierCopy *copy);
static void put_slots(ReturnSetInfo *rsinfo, const SlotCopy *copy);
static void put_slot(ReturnSetInfo *rsinfo, const SlotCopy *copy, int item);

void
orch_progress_enter(OrchExecutor *slot, const OrchStep *step, int first_called,
					int ncalled)
{
	TimestampTz now = orch_clock();

	SpinLockAcquire(&slot->mutex);
	slot->task = step->id;
	slot->root = step->root != 0 ? step->root : step->id;
	slot->parent = step->parent;
	slot->epoch = step->epoch;
	slot->attempt = step->attempt;
	slot->notify = step->notify;
	slot->notify_all = step->notify_all;
	slot->progress_new = false;
	slot->step_started = now;
	slot->progress = -1;
	slot->message[0] = '\0';
	slot->stage[0] = '\0';
	slot->first_called = first_called;
	slot->ncalled = ncalled;
	SpinLockRelease(&slot->mutex);

	step_slot = slot;
	orch_step = step;
}

void
orch_progress_leave(void)
{
	if (step_slot != NULL)
	{
		SpinLockAcquire(&step_slot->mutex);
		step_slot->task = 0;
		step_slot->ncalled = 0;
		step_slot->progress_new = false;
		SpinLockRelease(&step_slot->mutex);
	}
	step_slot = NULL;
	orch_step = NULL;
}

bool
orch_in_step(void)
{
	return orch_step != NULL;
}

/*
 * current_task(): null outside of a step, so that a handler can be called by
 * hand, and in one for many: see current_batch().
 */
Datum
orchestrator_current_task(PG_FUNCTION_ARGS)
{
	const OrchStep *step = orch_step;
	TupleDesc tupdesc;
	Datum values[TASK_COLUMNS];
	bool nulls[TASK_COLUMNS];

	if (step == NULL || step->ncalled > 0)
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts != lengthof(values))
		elog(ERROR, "unexpected result type of current_task");
	fill_task(step, values, nulls);
	tupdesc = BlessTupleDesc(tupdesc);
	PG_RETURN_DATUM(
		HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/*
 * current_batch(): no rows outside of a call for many.
 */
Datum
orchestrator_current_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int n = orch_step == NULL ? 0 : orch_step->ncalled;

	InitMaterializedSRF(fcinfo, 0);
	if (rsinfo->setDesc->natts != TASK_COLUMNS + 1)
		elog(ERROR, "unexpected result type of current_batch");
	for (int i = 0; i < n; i++)
	{
		Datum values[TASK_COLUMNS + 1];
		bool nulls[TASK_COLUMNS + 1];

		values[0] = Int32GetDatum(i + 1);
		nulls[0] = false;
		fill_task(&orch_step[i], &values[1], &nulls[1]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/*
 * The columns of current_task().
 */
static void
fill_task(const OrchStep *step, Datum *values, bool *nulls)
{
	memset(values, 0, TASK_COLUMNS * sizeof(Datum));
	memset(nulls, false, TASK_COLUMNS * sizeof(bool));
	values[0] = Int64GetDatum(step->id);
	values[1] = Int64GetDatum(step->parent);
	nulls[1] = step->parent == 0;
	nulls[2] = step->definition == NULL;
	if (!nulls[2])
		values[2] = CStringGetTextDatum(step->definition);
	values[3] = Int32GetDatum(step->attempt);
	values[4] = Int32GetDatum(step->max_attempts);
	nulls[5] = step->key == NULL;
	if (!nulls[5])
		values[5] = CStringGetTextDatum(step->key);
	values[6] = step->metadata;
	nulls[6] = step->metadata == (Datum) 0;
	values[7] = TimestampTzGetDatum(step->deadline);
	nulls[7] = step->deadline == 0;
}

/*
 * progress(fraction, message, stage): what is null stays as it was.
 */
Datum
orchestrator_progress(PG_FUNCTION_ARGS)
{
	char message[ORCH_MESSAGE_SIZE];
	char stage[ORCH_STAGE_SIZE];
	int message_size = 0;
	int stage_size = 0;
	double fraction = PG_ARGISNULL(0) ? -1 : PG_GETARG_FLOAT8(0);

	if (orch_step == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("progress() can be called only inside a step"),
				 errhint("To test a handler by hand, check that "
						 "orchestrator.current_task() is not null first.")));
	if (!PG_ARGISNULL(0) && (isnan(fraction) || fraction < 0 || fraction > 1))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("progress must be between 0 and 1, not %g",
							   fraction)));

	if (!PG_ARGISNULL(1))
		message_size =
			clip_text(PG_GETARG_TEXT_PP(1), message, sizeof(message));
	if (!PG_ARGISNULL(2))
		stage_size = clip_text(PG_GETARG_TEXT_PP(2), stage, sizeof(stage));

	SpinLockAcquire(&step_slot->mutex);
	if (fraction >= 0)
		step_slot->progress = fraction;
	memcpy(step_slot->message, message, message_size);
	memcpy(step_slot->stage, stage, stage_size);
	step_slot->progress_new = true;
	SpinLockRelease(&step_slot->mutex);

	orch_last_report = GetCurrentTimestamp();
	if (orch_step->notify && orch_event_heard())
		tell_progress();
	PG_RETURN_VOID();
}

/*
 * Copy what fits, whole characters only; returns the size with its end.
 */
static int
clip_text(const text *from, char *to, int size)
{
	const char *data = VARDATA_ANY(from);
	int length = pg_mbcliplen(data, VARSIZE_ANY_EXHDR(from), size - 1);

	memcpy(to, data, length);
	to[length] = '\0';
	return length + 1;
}

/*
 * The supervisor goes on looking by itself for as long as it finds news, so
 * what is reported in between is not lost.
 */
static void
tell_progress(void)
{
	static TimestampTz woken_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(woken_at, now, ORCH_PROGRESS_INTERVAL_MS))
		return;
	woken_at = now;
	for (int i = 1; i < orch_step->ncalled; i++)
		push_called(&orch_step[i]);
	orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_EVENTS);
}

/*
 * The supervisor tells of the first task of a call, by the slot; what all of
 * them report is told of the others here.
 */
static void
push_called(const OrchStep *step)
{
	OrchEvent event = {
		.task = step->id,
		.root = step->root != 0 ? step->root : step->id,
		.parent = step->parent,
		.progress = step_slot->progress,
		.attempt = step->attempt,
		.event = ORCH_EVENT_PROGRESS,
		.state = ORCH_STATE_RUNNING,
		.to_all = step->notify_all,
	};

	orch_event_push(&event);
}

/*
 * slots(): the workers of this database that the caller may see.  Everything
 * is copied first: catalog look-ups must not run under our lock.
 */
Datum
orchestrator_slots(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OrchDatabase *database;
	SlotCopy *copies;
	pid_t launcher;
	pid_t supervisor;
	CourierCopy courier = {0};
	int count = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (!orch_preloaded)
		return (Datum) 0;
	if (rsinfo->setDesc->natts != SLOT_COLUMNS)
		elog(ERROR, "unexpected result type of slots");

	copies = palloc(orch_shared->nexecutors * sizeof(SlotCopy));
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	launcher = orch_shared->launcher_pid;
	database = orch_shmem_database(MyDatabaseId, false);
	supervisor = database ? database->supervisor_pid : 0;
	if (database != NULL)
		copy_courier(database, &courier);
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->state != ORCH_EXECUTOR_FREE &&
			executor->dboid == MyDatabaseId)
			copy_slot(executor, &copies[count++]);
	}
	LWLockRelease(orch_shared->lock);

	if (launcher != 0)
		put_process(rsinfo, "launcher", launcher, InvalidOid);
	if (supervisor != 0)
		put_process(rsinfo, "supervisor", supervisor, MyDatabaseId);
	if (courier.pid != 0)
		put_courier(rsinfo, &courier);
	for (int i = 0; i < count; i++)
		if (may_see_slot(&copies[i]))
			put_slots(rsinfo, &copies[i]);
	return (Datum) 0;
}

static void
copy_courier(OrchDatabase *database, CourierCopy *copy)
{
	copy->pid = database->courier_pid;
	copy->since = database->courier_since;
	copy->calls = pg_atomic_read_u32(&database->courier_calls);
}

static void
copy_slot(OrchExecutor *executor, SlotCopy *copy)
{
	int first;
	int n;

	copy->roleoid = executor->roleoid;
	copy->owner = executor->owner;
	copy->pid = executor->pid;

	SpinLockAcquire(&executor->mutex);
	copy->state = executor->state;
	copy->since = executor->since;
	copy->task = executor->task;
	copy->epoch = executor->epoch;
	copy->attempt = executor->attempt;
	copy->step_started = executor->step_started;
	copy->progress = executor->progress;
	memcpy(copy->message, executor->message, sizeof(copy->message));
	memcpy(copy->stage, executor->stage, sizeof(copy->stage));
	first = executor->first_called;
	n = executor->ncalled;
	SpinLockRelease(&executor->mutex);

	copy_called(executor, copy, first, n);
	copy->claimed = count_claims(executor);
}

/*
 * A task that is not ours any more is still there, but not STARTED.
 */
static void
copy_called(OrchExecutor *executor, SlotCopy *copy, int first, int n)
{
	copy->ncalled = 0;
	for (int i = first; i < first + n && i < ORCH_MAX_CLAIM; i++)
	{
		OrchClaim *claim = &executor->claims[i];

		if (pg_atomic_read_u32(&claim->state) != ORCH_CLAIM_STARTED)
			continue;
		copy->called[copy->ncalled].task = claim->task;
		copy->called[copy->ncalled].epoch = claim->epoch;
		copy->called[copy->ncalled++].attempt = claim->attempt;
	}
}

static int
count_claims(OrchExecutor *executor)
{
	uint32 nclaims =
		Min(pg_atomic_read_u32(&executor->nclaims), (uint32) ORCH_MAX_CLAIM);
	int count = 0;

	for (uint32 i = 0; i < nclaims; i++)
	{
		uint32 state = pg_atomic_read_u32(&executor->claims[i].state);

		if (state == ORCH_CLAIM_WAITING || state == ORCH_CLAIM_STARTED)
			count++;
	}
	return count;
}

/*
 * A role sees its own workers, those of roles it is a member of, and those
 * whose tasks it was granted to see.
 */
static bool
may_see_slot(const SlotCopy *copy)
{
	return superuser() || has_privs_of_role(GetUserId(), copy->roleoid) ||
		   orch_catalog_may_see(copy->owner);
}

static void
put_process(ReturnSetInfo *rsinfo, const char *kind, pid_t pid, Oid database)
{
	Datum values[SLOT_COLUMNS] = {0};
	bool nulls[SLOT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	values[SLOT_PID] = Int32GetDatum(pid);
	nulls[SLOT_PID] = false;
	values[SLOT_KIND] = CStringGetTextDatum(kind);
	nulls[SLOT_KIND] = false;
	values[SLOT_STATE] = CStringGetTextDatum("running");
	nulls[SLOT_STATE] = false;
	values[SLOT_DATABASE] = ObjectIdGetDatum(database);
	nulls[SLOT_DATABASE] = !OidIsValid(database);
	values[SLOT_ITEM] = Int32GetDatum(0);
	nulls[SLOT_ITEM] = false;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * It carries tasks of many roles: how many, but not which.
 */
static void
put_courier(ReturnSetInfo *rsinfo, const CourierCopy *copy)
{
	Datum values[SLOT_COLUMNS] = {0};
	bool nulls[SLOT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	values[SLOT_PID] = Int32GetDatum(copy->pid);
	values[SLOT_KIND] = CStringGetTextDatum("courier");
	values[SLOT_STATE] =
		CStringGetTextDatum(copy->calls > 0 ? "busy" : "idle");
	values[SLOT_SINCE] = TimestampTzGetDatum(copy->since);
	values[SLOT_CLAIMED] = Int32GetDatum(copy->calls);
	values[SLOT_DATABASE] = ObjectIdGetDatum(MyDatabaseId);
	values[SLOT_ITEM] = Int32GetDatum(0);
	nulls[SLOT_PID] = nulls[SLOT_KIND] = nulls[SLOT_STATE] = false;
	nulls[SLOT_SINCE] = nulls[SLOT_CLAIMED] = nulls[SLOT_ITEM] = false;
	nulls[SLOT_DATABASE] = false;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * A row for each task of a call.
 */
static void
put_slots(ReturnSetInfo *rsinfo, const SlotCopy *copy)
{
	SlotCopy one = *copy;

	if (copy->ncalled == 0)
		put_slot(rsinfo, copy, 0);
	for (int i = 0; i < copy->ncalled; i++)
	{
		one.task = copy->called[i].task;
		one.epoch = copy->called[i].epoch;
		one.attempt = copy->called[i].attempt;
		put_slot(rsinfo, &one, i);
	}
}

static void
put_slot(ReturnSetInfo *rsinfo, const SlotCopy *copy, int item)
{
	bool idle = copy->task == 0;
	Datum values[SLOT_COLUMNS] = {0};
	bool nulls[SLOT_COLUMNS] = {false};

	values[SLOT_PID] = Int32GetDatum(copy->pid);
	nulls[SLOT_PID] = copy->pid == 0;
	values[SLOT_KIND] = CStringGetTextDatum("executor");
	values[SLOT_ROLE] = ObjectIdGetDatum(copy->roleoid);
	values[SLOT_TASK_ID] = Int64GetDatum(copy->task);
	nulls[SLOT_TASK_ID] = idle;
	values[SLOT_EPOCH] = Int32GetDatum(copy->epoch);
	nulls[SLOT_EPOCH] = idle;
	values[SLOT_ATTEMPT] = Int32GetDatum(copy->attempt);
	nulls[SLOT_ATTEMPT] = idle;
	values[SLOT_STATE] = CStringGetTextDatum(state_names[copy->state]);
	values[SLOT_SINCE] = TimestampTzGetDatum(copy->since);
	nulls[SLOT_SINCE] = copy->since == 0;
	values[SLOT_STARTED_AT] = TimestampTzGetDatum(copy->step_started);
	nulls[SLOT_STARTED_AT] = idle;
	values[SLOT_PROGRESS] = Float8GetDatum(copy->progress);
	nulls[SLOT_PROGRESS] = idle || copy->progress < 0;
	nulls[SLOT_MESSAGE] = idle || copy->message[0] == '\0';
	if (!nulls[SLOT_MESSAGE])
		values[SLOT_MESSAGE] = CStringGetTextDatum(copy->message);
	nulls[SLOT_STAGE] = idle || copy->stage[0] == '\0';
	if (!nulls[SLOT_STAGE])
		values[SLOT_STAGE] = CStringGetTextDatum(copy->stage);
	values[SLOT_CLAIMED] = Int32GetDatum(copy->claimed);
	values[SLOT_DATABASE] = ObjectIdGetDatum(MyDatabaseId);
	values[SLOT_ITEM] = Int32GetDatum(item);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
