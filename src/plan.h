/*
 * plan.h
 *	  Plans of workflows, and the rows of their steps.
 *
 * A plan is what definition.plan says of each step of a workflow: read once a
 * session, forgotten when definitions change.  SQL judges whatever a plan
 * does not call simple.
 */
#ifndef ORCHESTRATOR_PLAN_H
#define ORCHESTRATOR_PLAN_H

#include "heap.h"

/* Flags of a step; others are SQL's own. */
#define ORCH_STEP_STARTS 1 /* needs nothing */
#define ORCH_STEP_SINK	 2 /* nobody needs it */
#define ORCH_STEP_SIMPLE 4 /* its row may be made here */
#define ORCH_STEP_BY_SQL 8 /* SQL judges its completion */

/* The priority of a step that has its run's. */
#define ORCH_PRIORITY_OF_RUN PG_INT32_MIN

/* An element of definition.plan, in its order. */
typedef struct OrchStepPlan
{
	int32 definition; /* 0: none, a wait */
	int32 queue;	  /* 0: the run's */
	int32 priority;
	int32 max_attempts;
	int32 successor; /* the only dependant, a simple step that needs only
					  * this one; 0: nobody needs it; -1: anything else */
	int32 flags;
} OrchStepPlan;

typedef struct OrchWorkflow
{
	int32 definition; /* hash key */
	bool stale;
	bool starts_simple; /* the rows of all its first steps may be made here */
	int nsteps;
	int nsinks;
	const OrchStepPlan *steps; /* step 1 is steps[0] */
	const Datum *names;		   /* text, likewise */
	MemoryContext context;
} OrchWorkflow;

/*
 * The plan of a workflow; NULL when the definition has none.  It stays until
 * the end of the transaction, whatever is forgotten meanwhile.
 */
extern const OrchWorkflow *orch_plan(int32 definition);

/* A step by its number; NULL when the plan does not have it. */
extern const OrchStepPlan *orch_plan_step(const OrchWorkflow *workflow,
										  int32 step);

/* How many steps, at most limit, follow one another from this one on. */
extern int orch_plan_chain(int32 definition, int32 step, int limit);

/* The place in its queue of a task that becomes ready at that time. */
extern int64 orch_sort_key(TimestampTz at, int32 priority);

/* And back: when a task with that place became ready. */
extern TimestampTz orch_sort_time(int64 sort_key, int32 priority);

/*
 * The row, pending and without an id, of a simple step of a run; and the one
 * of a step that follows another with the same queue and priority.
 */
extern void orch_plan_row(OrchRow *row, const OrchWorkflow *workflow,
						  int32 step, const OrchRow *run, Datum input);
extern void orch_plan_next_row(OrchRow *row, const OrchWorkflow *workflow,
							   int32 step, const OrchRow *before, Datum input);

/*
 * The input of a step: {"input": input, "steps": {name: output}}; without a
 * name, of a first step.  No output: null.
 */
extern Datum orch_plan_input(Datum input, const Datum *name, Datum output,
							 bool has_output);

/* The value of "input" in such a document; false: it has none. */
extern bool orch_plan_run_input(Datum document, Datum *input);

/* Insert rows of steps, and tell of them at commit. */
extern void orch_plan_insert(OrchLeaf *live, OrchRow *const *rows, int n);

#endif
