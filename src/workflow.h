/*
 * workflow.h
 *	  Steps of workflows on the hot path: going straight on to a successor,
 *	  and telling a run what became of its steps.
 *
 * Order of locks: the rows of roots in the order of their ids, then others.
 * In the fast lane an executor holds rows of steps before it comes to their
 * roots, so it does not wait for these but tries, and rolls back when it is
 * asked for a row of its own.
 *
 * The hot way counts on rows of steps being made by their predecessors alone.
 * Whatever makes, resets or skips steps of a run out of that order (skip_step,
 * add_steps, rerun_from, restore, retry) must raise the epoch of the run's
 * root, which is 0 until then and sends the run the SQL way from then on.
 */
#ifndef ORCHESTRATOR_WORKFLOW_H
#define ORCHESTRATOR_WORKFLOW_H

#include "claim.h"
#include "plan.h"

/* The steps of one run, or of one row above them, in a group. */
typedef struct OrchRun OrchRun;
typedef struct OrchRuns OrchRuns;

/*
 * A step of the fast lane was completed: make its successor the next task of
 * the batch and return its number; 0 when there is none that can be run at
 * once.
 */
extern int orch_workflow_go_on(OrchBatch *batch, int number);

/*
 * Lock the roots of the tasks with the given numbers, and sort these by their
 * runs: sets task->run.  NULL: a root could not be had, and the group must be
 * rolled back.
 */
extern OrchRuns *orch_workflow_lock(OrchBatch *batch, OrchLeaf *live,
									const int *numbers, int n);

/*
 * Whether a step was completed and nothing but its run hangs on it: no
 * callbacks, no steps of its own, and it is not the undo of another.
 */
extern bool orch_workflow_is_plain(const OrchTask *task);

/* Whether the run of a task, if it has one, is live. */
extern bool orch_workflow_is_live(const OrchTask *task);

/* Most rows that orch_workflow_settle adds. */
extern int orch_workflow_count(const OrchRuns *runs);

/*
 * After the tasks that can be were settled: do what their runs need, where
 * that is plain, and add the rows of runs that ended to finished rows.
 */
extern void orch_workflow_settle(OrchLeaf *live, OrchRuns *runs,
								 OrchRow **finished, int *nfinished);

/* The others, by orchestrator._advance, after all tasks were settled. */
extern void orch_workflow_settle_by_sql(OrchRuns *runs);

#endif
