/*
 * workflow.c
 *	  Steps of workflows on the hot path: going straight on to a successor,
 *	  and telling a run what became of its steps.
 *
 * Plain is: a step that completed in a run that waits for nothing else, with
 * at most one dependant, which needs only it.  The rest is SQL's, in the same
 * transaction: orchestrator._advance(parent, steps, n).
 *
 * A step that was gone on to has no row before it is settled, so it cannot be
 * charged for a crash.  After one, nobody goes straight on for a while
 * (orch_shared->straight_on_from): the step that did it gets a row of its own
 * and is found out.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/datum.h"

#include "event.h"
#include "guc.h"
#include "limit.h"
#include "stats.h"
#include "workflow.h"

/* How long, and how often, a root is tried for in the fast lane. */
#define LOCK_TRIES 5000
#define LOCK_NAP   200 /* microseconds */

struct OrchRun
{
	int64 root;
	int64 parent;
	bool locked;  /* the root is live */
	bool settled; /* nothing is left to SQL */
	ItemPointerData tid;
	OrchRow row; /* of the root, where locked */
	const OrchWorkflow *workflow;
	int ntasks;
	OrchTask **tasks;
};

struct OrchRuns
{
	int n;
	OrchRun *runs; /* by root and parent */
	OrchTask **tasks;
};

static bool may_go_on(const OrchBatch *batch, const OrchTask *task);
static bool same_place(const OrchStepPlan *one, const OrchStepPlan *other);
static bool is_judged(const OrchRow *row);
static bool is_large(Datum input, const OrchTask *before);
static void become_running(OrchTask *task);
static int compare_tasks(const void *left, const void *right);
static bool same_run(const OrchTask *one, const OrchTask *other);
static OrchRuns *sort_tasks(OrchBatch *batch, const int *numbers, int n);
static bool went_on(const OrchRun *run);
static bool lock_root(OrchBatch *batch, OrchLeaf *live, OrchRun *run);
static bool is_plain(OrchRun *run);
static bool step_is_plain(const OrchRun *run, const OrchTask *task);
static const OrchTask *find_sink(const OrchRun *run);
static void start_successors(OrchLeaf *live, const OrchRun *run);
static void end_run(OrchLeaf *live, OrchRun *run, const OrchTask *sink);
static TimestampTz earliest_start(const OrchRun *run);

int
orch_workflow_go_on(OrchBatch *batch, int number)
{
	OrchTask *before = &batch->tasks[number];
	OrchTask *task = &batch->tasks[batch->ntasks];
	const OrchWorkflow *workflow;
	const OrchStepPlan *plan;
	const OrchStepPlan *next;
	MemoryContext old;
	Datum input;

	if (!may_go_on(batch, before))
		return 0;
	workflow = orch_plan(ORCH_INT32(&before->row, ORCH_TASK_PLAN));
	plan = workflow == NULL
			   ? NULL
			   : orch_plan_step(workflow,
								ORCH_INT32(&before->row, ORCH_TASK_STEP));
	if (plan == NULL || plan->successor <= 0 ||
		!(plan->flags & ORCH_STEP_SIMPLE) || (plan->flags & ORCH_STEP_BY_SQL))
		return 0;
	next = orch_plan_step(workflow, plan->successor);
	task->definition = orch_claim_definition(batch, next->definition);
	if (!same_place(plan, next) || !orch_claim_is_fast(task->definition) ||
		!orch_limit_may_go_on(&before->row, task->definition) ||
		ORCH_TAKES_MANY(task->definition) ||
		!orch_plan_run_input(before->row.values[ORCH_TASK_INPUT], &input) ||
		is_large(input, before))
		return 0;

	old = MemoryContextSwitchTo(batch->context);
	input = orch_plan_input(
		input, &workflow->names[ORCH_INT32(&before->row, ORCH_TASK_STEP) - 1],
		before->output, before->has_output);
	orch_plan_next_row(&task->row, workflow, plan->successor, &before->row,
					   input);
	orch_row_set(&task->row, ORCH_TASK_NAME,
				 datumCopy(task->row.values[ORCH_TASK_NAME], false, -1));
	become_running(task);
	task->tuned = before->tuned;
	MemoryContextSwitchTo(old);
	return before->successor = batch->ntasks++;
}

/*
 * Only in the fast lane, where whoever wants the run cancelled or paused asks
 * for the row the chain began with.  A step in its first epoch was never
 * reset, and neither were those behind it.
 */
static bool
may_go_on(const OrchBatch *batch, const OrchTask *task)
{
	const OrchRow *row = &task->row;

	return batch->fast && !batch->solo && batch->ntasks < ORCH_MAX_BATCH &&
		   task->may_go_on && orch_workflow_is_plain(task) &&
		   !row->nulls[ORCH_TASK_STEP] && row->nulls[ORCH_TASK_ITERATION] &&
		   ORCH_INT32(row, ORCH_TASK_ATTEMPT) == 1 &&
		   ORCH_INT32(row, ORCH_TASK_EPOCH) == 1 &&
		   orch_shared->straight_on_from <= task->finished_at;
}

/*
 * Whether a step has the queue and priority of the one before, so that it
 * could have been claimed with it.
 */
static bool
same_place(const OrchStepPlan *one, const OrchStepPlan *other)
{
	return one->queue == other->queue && one->priority == other->priority;
}

/*
 * Whether the document of the step that follows may be larger than an input
 * may be, which SQL tells exactly.
 */
static bool
is_large(Datum input, const OrchTask *before)
{
	Size size = toast_raw_datum_size(input);

	if (before->has_output)
		size += toast_raw_datum_size(before->output);
	return size > (Size) orch_max_input_size * 1024 / 2;
}

/*
 * As a claim would have left it.
 */
static void
become_running(OrchTask *task)
{
	OrchRow *row = &task->row;

	orch_row_set(row, ORCH_TASK_ID, Int64GetDatum(orch_catalog_next_id()));
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_RUNNING]));
	orch_row_set(row, ORCH_TASK_ATTEMPT, Int32GetDatum(1));
	orch_row_set(row, ORCH_TASK_EPOCH, Int32GetDatum(1));
	orch_row_set(row, ORCH_TASK_STARTED_AT, row->values[ORCH_TASK_CREATED_AT]);
	orch_row_set(row, ORCH_TASK_WORKER, Int32GetDatum(MyProcPid));
	task->may_go_on = true;
	task->outcome = ORCH_OUTCOME_NONE;
	task->has_output = false;
	task->has_resources = false;
	task->successor = 0;
	task->nlimits = 0;
	task->notices = NIL;
}

/*
 * By root, parent, and place in the batch.
 */
static int
compare_tasks(const void *left, const void *right)
{
	const OrchTask *one = *(OrchTask *const *) left;
	const OrchTask *other = *(OrchTask *const *) right;
	int64 roots = ORCH_INT64(&one->row, ORCH_TASK_ROOT_ID) -
				  ORCH_INT64(&other->row, ORCH_TASK_ROOT_ID);
	int64 parents = ORCH_INT64(&one->row, ORCH_TASK_PARENT_ID) -
					ORCH_INT64(&other->row, ORCH_TASK_PARENT_ID);

	if (roots != 0)
		return roots < 0 ? -1 : 1;
	if (parents != 0)
		return parents < 0 ? -1 : 1;
	return one < other ? -1 : one > other;
}

static bool
same_run(const OrchTask *one, const OrchTask *other)
{
	return ORCH_INT64(&one->row, ORCH_TASK_ROOT_ID) ==
			   ORCH_INT64(&other->row, ORCH_TASK_ROOT_ID) &&
		   ORCH_INT64(&one->row, ORCH_TASK_PARENT_ID) ==
			   ORCH_INT64(&other->row, ORCH_TASK_PARENT_ID);
}

OrchRuns *
orch_workflow_lock(OrchBatch *batch, OrchLeaf *live, const int *numbers, int n)
{
	OrchRuns *runs = sort_tasks(batch, numbers, n);

	for (int i = 0; i < runs->n; i++)
	{
		OrchRun *run = &runs->runs[i];

		if (i > 0 && run[-1].root == run->root)
		{
			run->locked = run[-1].locked;
			run->tid = run[-1].tid;
			run->row = run[-1].row;
		}
		else if (!lock_root(batch, live, run))
			return NULL;
		if (run->locked && went_on(run) &&
			ORCH_INT32(&run->row, ORCH_TASK_EPOCH) != 0)
			return NULL;
	}
	return runs;
}

/*
 * Whether a step was gone on to: it may be there already, if the run was taken
 * out of its order meanwhile.
 */
static bool
went_on(const OrchRun *run)
{
	for (int i = 0; i < run->ntasks; i++)
	{
		if (run->tasks[i]->successor > 0)
			return true;
	}
	return false;
}

static OrchRuns *
sort_tasks(OrchBatch *batch, const int *numbers, int n)
{
	OrchRuns *runs = palloc0(sizeof(OrchRuns));
	int ntasks = 0;
	int nruns = 0;

	runs->tasks = palloc(Max(n, 1) * sizeof(OrchTask *));
	for (int i = 0; i < n; i++)
	{
		OrchTask *task = &batch->tasks[numbers[i]];

		task->run = NULL;
		if (!task->row.nulls[ORCH_TASK_PARENT_ID] &&
			(task->outcome == ORCH_OUTCOME_COMPLETED ||
			 task->outcome == ORCH_OUTCOME_FAILED))
			runs->tasks[ntasks++] = task;
	}
	if (ntasks == 0)
		return runs;
	qsort(runs->tasks, ntasks, sizeof(OrchTask *), compare_tasks);
	for (int i = 0; i < ntasks; i++)
		nruns += i == 0 || !same_run(runs->tasks[i - 1], runs->tasks[i]);
	runs->runs = palloc0(nruns * sizeof(OrchRun));
	for (int i = 0; i < ntasks; i++)
	{
		OrchTask *task = runs->tasks[i];
		OrchRun *run = &runs->runs[Max(runs->n, 1) - 1];

		if (i == 0 || !same_run(runs->tasks[i - 1], task))
		{
			run = &runs->runs[runs->n++];
			run->root = ORCH_INT64(&task->row, ORCH_TASK_ROOT_ID);
			run->parent = ORCH_INT64(&task->row, ORCH_TASK_PARENT_ID);
			run->tasks = &runs->tasks[i];
		}
		run->ntasks++;
		task->run = run;
	}
	return runs;
}

/*
 * False: it cannot be had now.  A root that is gone leaves its steps to SQL,
 * which waits for the lock of the finished one: not in the fast lane, where
 * the rows of the steps are locked already.
 */
static bool
lock_root(OrchBatch *batch, OrchLeaf *live, OrchRun *run)
{
	OrchRow row;
	OrchLock lock;

	for (int try = 0;; try++)
	{
		CHECK_FOR_INTERRUPTS();
		lock = orch_heap_lock(live, run->root, !batch->fast, &row, &run->tid);
		if (lock != ORCH_LOCK_BUSY)
			break;
		if (batch->executor->yield_task != 0 || try >= LOCK_TRIES)
			return false;
		pg_usleep(LOCK_NAP);
	}
	if (lock == ORCH_LOCK_GONE && batch->fast)
		return false;
	run->locked = lock == ORCH_LOCK_OK;
	if (run->locked)
		orch_row_copy(&run->row, &row);
	return true;
}

bool
orch_workflow_is_plain(const OrchTask *task)
{
	const OrchRow *row = &task->row;

	return task->outcome == ORCH_OUTCOME_COMPLETED &&
		   task->requests == (Datum) 0 &&
		   (task->definition == NULL || !task->definition->has_callbacks) &&
		   row->nulls[ORCH_TASK_CALLBACKS] &&
		   row->nulls[ORCH_TASK_REMAINING] &&
		   (row->nulls[ORCH_TASK_STEP] ||
			ORCH_INT32(row, ORCH_TASK_STEP) > 0) &&
		   !is_judged(row);
}

/*
 * Whether SQL may make a step run again that completed (repeat_while): until
 * it has judged that, its dependants must not see it completed.
 */
static bool
is_judged(const OrchRow *row)
{
	const OrchWorkflow *workflow;
	const OrchStepPlan *plan;

	if (row->nulls[ORCH_TASK_STEP] || !row->nulls[ORCH_TASK_ITEM])
		return false;
	if (row->nulls[ORCH_TASK_PLAN])
		return true; /* added to a task */
	workflow = orch_plan(ORCH_INT32(row, ORCH_TASK_PLAN));
	plan = workflow == NULL
			   ? NULL
			   : orch_plan_step(workflow, ORCH_INT32(row, ORCH_TASK_STEP));
	return plan == NULL || (plan->flags & ORCH_STEP_BY_SQL);
}

bool
orch_workflow_is_live(const OrchTask *task)
{
	return task->run == NULL || task->run->locked;
}

int
orch_workflow_count(const OrchRuns *runs)
{
	return runs->n;
}

void
orch_workflow_settle(OrchLeaf *live, OrchRuns *runs, OrchRow **finished,
					 int *nfinished)
{
	for (int i = 0; i < runs->n; i++)
	{
		OrchRun *run = &runs->runs[i];
		int32 remaining;

		if (!is_plain(run))
			continue;
		remaining = ORCH_INT32(&run->row, ORCH_TASK_REMAINING) - run->ntasks;
		if (remaining == 0)
		{
			const OrchTask *sink = find_sink(run);

			if (sink == NULL)
				continue;
			end_run(live, run, sink);
			finished[(*nfinished)++] = &run->row;
		}
		else
		{
			orch_row_set(&run->row, ORCH_TASK_REMAINING,
						 Int32GetDatum(remaining));
			if (run->row.nulls[ORCH_TASK_STARTED_AT])
				orch_row_set(&run->row, ORCH_TASK_STARTED_AT,
							 TimestampTzGetDatum(earliest_start(run)));
			if (!orch_heap_update(live, &run->tid, &run->row, true))
				elog(ERROR, "task " INT64_FORMAT " changed under its lock",
					 run->root);
			start_successors(live, run);
		}
		run->settled = true;
	}
}

/*
 * Whether nothing about a run and what became of its steps needs judgement.
 */
static bool
is_plain(OrchRun *run)
{
	const OrchRow *row = &run->row;
	const OrchDefinition *definition;

	if (!run->locked || run->parent != run->root ||
		DatumGetObjectId(row->values[ORCH_TASK_STATE]) !=
			orch_catalog(false)->states[ORCH_STATE_WAITING] ||
		!row->nulls[ORCH_TASK_HELD_STATE] ||
		!row->nulls[ORCH_TASK_CALLBACKS] ||
		ORCH_INT32(row, ORCH_TASK_EPOCH) != 0 ||
		row->nulls[ORCH_TASK_REMAINING] ||
		ORCH_INT32(row, ORCH_TASK_REMAINING) < run->ntasks)
		return false;
	run->workflow = orch_plan(ORCH_INT32(row, ORCH_TASK_DEFINITION));
	definition =
		orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_DEFINITION));
	if (run->workflow == NULL || definition == NULL ||
		definition->has_callbacks)
		return false;
	for (int i = 0; i < run->ntasks; i++)
	{
		if (!step_is_plain(run, run->tasks[i]))
			return false;
	}
	return true;
}

static bool
step_is_plain(const OrchRun *run, const OrchTask *task)
{
	const OrchRow *row = &task->row;
	const OrchStepPlan *plan;

	if (!task->settled || row->nulls[ORCH_TASK_PLAN] ||
		row->nulls[ORCH_TASK_STEP] || !row->nulls[ORCH_TASK_ITEM] ||
		!row->nulls[ORCH_TASK_ITERATION] ||
		ORCH_INT32(row, ORCH_TASK_PLAN) != run->workflow->definition)
		return false;
	plan = orch_plan_step(run->workflow, ORCH_INT32(row, ORCH_TASK_STEP));
	return plan != NULL && !(plan->flags & ORCH_STEP_BY_SQL) &&
		   (plan->successor > 0
				? task->successor > 0 ||
					  !is_large(run->row.values[ORCH_TASK_INPUT], task)
				: (plan->flags & ORCH_STEP_SINK) != 0);
}

/*
 * The step whose output is its run's, when there is one such step and it is
 * here.
 */
static const OrchTask *
find_sink(const OrchRun *run)
{
	if (run->workflow->nsinks != 1)
		return NULL;
	for (int i = run->ntasks - 1; i >= 0; i--)
	{
		int32 step = ORCH_INT32(&run->tasks[i]->row, ORCH_TASK_STEP);

		if (orch_plan_step(run->workflow, step)->flags & ORCH_STEP_SINK)
			return run->tasks[i];
	}
	return NULL;
}

static TimestampTz
earliest_start(const OrchRun *run)
{
	TimestampTz earliest = DT_NOEND;

	for (int i = 0; i < run->ntasks; i++)
		earliest = Min(earliest, run->tasks[i]->started_at);
	return earliest;
}

/*
 * Rows of the successors that were not gone on to.
 */
static void
start_successors(OrchLeaf *live, const OrchRun *run)
{
	OrchRow **rows = palloc(run->ntasks * sizeof(OrchRow *));
	int nrows = 0;

	for (int i = 0; i < run->ntasks; i++)
	{
		const OrchTask *task = run->tasks[i];
		int32 step = ORCH_INT32(&task->row, ORCH_TASK_STEP);
		int32 successor = orch_plan_step(run->workflow, step)->successor;

		if (successor <= 0 || task->successor > 0)
			continue;
		rows[nrows] = palloc(sizeof(OrchRow));
		orch_plan_row(rows[nrows], run->workflow, successor, &run->row,
					  orch_plan_input(run->row.values[ORCH_TASK_INPUT],
									  &run->workflow->names[step - 1],
									  task->output, task->has_output));
		orch_row_set(rows[nrows++], ORCH_TASK_ID,
					 Int64GetDatum(orch_catalog_next_id()));
	}
	orch_plan_insert(live, rows, nrows);
}

static void
end_run(OrchLeaf *live, OrchRun *run, const OrchTask *sink)
{
	OrchRow *row = &run->row;
	const OrchDefinition *definition =
		orch_catalog_definition(run->workflow->definition);

	if (!orch_heap_delete(live, &run->tid, true))
		elog(ERROR, "task " INT64_FORMAT " changed under its lock", run->root);
	if (row->nulls[ORCH_TASK_STARTED_AT])
		orch_row_set(row, ORCH_TASK_STARTED_AT,
					 TimestampTzGetDatum(earliest_start(run)));
	orch_row_set(
		row, ORCH_TASK_STATE,
		ObjectIdGetDatum(orch_catalog(false)->states[ORCH_STATE_COMPLETED]));
	orch_row_set(row, ORCH_TASK_LIVE, BoolGetDatum(false));
	orch_row_set(row, ORCH_TASK_FINISHED_AT,
				 TimestampTzGetDatum(orch_clock()));
	orch_row_set(row, ORCH_TASK_REMAINING, Int32GetDatum(0));
	orch_row_set_null(row, ORCH_TASK_EXPIRE_AT);
	orch_row_set_null(row, ORCH_TASK_ERROR);
	if (sink->has_output)
		orch_row_set(row, ORCH_TASK_OUTPUT, sink->output);

	orch_stats_count(ORCH_INT32(row, ORCH_TASK_OWNER), 0,
					 run->workflow->definition, ORCH_COUNT_COMPLETED,
					 ORCH_INT64(row, ORCH_TASK_FINISHED_AT) -
						 ORCH_INT64(row, ORCH_TASK_STARTED_AT));
	orch_event_transition(run->root, run->root, 0, ORCH_EVENT_COMPLETED,
						  ORCH_STATE_COMPLETED, 1, 0,
						  definition == NULL || definition->notify);
}

/*
 * Steps that failed have told their run themselves.
 */
void
orch_workflow_settle_by_sql(OrchRuns *runs)
{
	for (int i = 0; i < runs->n; i++)
	{
		const OrchRun *run = &runs->runs[i];
		Datum *steps;
		int nsteps = 0;
		int n = 0;
		NullableDatum args[3];

		if (run->settled)
			continue;
		steps = palloc(run->ntasks * sizeof(Datum));
		for (int j = 0; j < run->ntasks; j++)
		{
			const OrchTask *task = run->tasks[j];
			Datum step = task->row.values[ORCH_TASK_STEP];

			if (!task->settled)
				continue;
			n++;
			if (task->row.nulls[ORCH_TASK_STEP] ||
				(nsteps > 0 && !task->row.nulls[ORCH_TASK_ITEM] &&
				 steps[nsteps - 1] == step))
				continue;
			steps[nsteps++] = step;
		}
		if (n == 0)
			continue;
		args[0] = (NullableDatum){Int64GetDatum(run->parent), false};
		args[1] = (NullableDatum){
			PointerGetDatum(construct_array(steps, nsteps, INT4OID, 4, true,
											TYPALIGN_INT)),
			false};
		args[2] = (NullableDatum){Int32GetDatum(n), false};
		orch_catalog_call(ORCH_FN_ADVANCE, 3, args, &(bool){false});
		CommandCounterIncrement();
	}
}
