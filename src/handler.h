/*
 * handler.h
 *	  What a definition's handler is: functions by OID, commands by plan.
 */
#ifndef ORCHESTRATOR_HANDLER_H
#define ORCHESTRATOR_HANDLER_H

#include "claim.h"

/* Call once, by the executor. */
extern void orch_handler_install(void);

/*
 * Call the handler of a function or sql task with its input; the result is
 * allocated in the current memory context.  False: it returned nothing.
 * rows is what a command processed, or 0.  Raises what the step raises, and
 * insufficient_privilege when the current role may not execute it.
 */
extern bool orch_handler_call(const OrchTask *task, Datum *output,
							  uint64 *rows);

/*
 * Likewise a handler that takes many, with the inputs of n tasks of its
 * definition; outputs is an array of jsonb.
 */
extern bool orch_handler_call_many(OrchTask *const *tasks, int n,
								   Datum *outputs, uint64 *rows);

/*
 * What a step gives that cannot be kept: it is larger than it may be, or, made
 * of its rows, nothing that jsonb takes.  Both raise; is_final() knows the
 * error, which fails the task for good.
 */
extern void orch_handler_check_size(Datum value, const char *what);
extern Datum orch_handler_to_jsonb(char *rows);
extern bool orch_handler_is_final(const ErrorData *error);

/* CALL a procedure with its input, in a non-atomic context. */
extern void orch_handler_call_procedure(const OrchTask *task);

/* Run a utility command at the top level. */
extern void orch_handler_run_utility(const OrchTask *task);

/*
 * Run one command at top level, as a client would: one that has transactions
 * of its own.  Must be called in a transaction, in a memory context that
 * outlives it.
 */
extern void orch_handler_run_command(const char *command);

#endif
