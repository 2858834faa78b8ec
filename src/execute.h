/*
 * execute.h
 *	  Running one step: the third station of the flow.
 */
#ifndef ORCHESTRATOR_EXECUTE_H
#define ORCHESTRATOR_EXECUTE_H

#include "claim.h"
#include "utils/elog.h"

/* Register the timers and callbacks.  Called once, by the executor. */
extern void orch_execute_install(void);

/*
 * Run a function or command step inside the current transaction, in a
 * subtransaction of its own, and note its outcome in the task.  Errors of the
 * step end here.
 */
extern void orch_execute_step(OrchExecutor *executor, OrchTask *task,
							  MemoryContext context);

/*
 * The same for tasks of one definition whose handler takes many, in one call
 * and one subtransaction.  DONE: each has its outcome; a single task's failure
 * is one.  Else none has, but for a GONE one.  Their claims are STARTED.
 */
extern OrchCallEnd orch_execute_call(OrchBatch *batch, const int *numbers,
									 int n);

/*
 * Run a procedure or utility step, which begins and ends transactions of its
 * own.  Called outside of a transaction, and returns there.
 */
extern void orch_execute_alone(OrchExecutor *executor, OrchTask *task,
							   MemoryContext context);

/* Whether a step of this task runs outside of the batch's transaction. */
extern bool orch_execute_is_alone(const OrchTask *task);

/* Note an error as the outcome of a task. */
extern void orch_execute_fail(OrchTask *task, const char *reason,
							  const ErrorData *error, MemoryContext context);

/*
 * Put away what steps left in the session: temporary tables, prepared
 * statements, cursors, session locks.  Called between transactions.
 */
extern void orch_execute_clean_session(void);

/* Whether steps left a temporary table: the transaction should end now. */
extern bool orch_execute_left_objects(void);

/*
 * Cancel requests wait while the engine works and are honoured while a step
 * runs.
 */
extern void orch_execute_hold_cancel(void);

/*
 * SET CONSTRAINTS lasts to the end of the transaction, across steps: told by
 * the utility hook, asked by the executor, which then commits.
 */
extern void orch_execute_note_constraints(void);
extern bool orch_execute_set_constraints(void);

#endif
