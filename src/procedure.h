/*
 * procedure.h
 *	  Durable procedures: what they remember, and how they wait.
 */
#ifndef ORCHESTRATOR_PROCEDURE_H
#define ORCHESTRATOR_PROCEDURE_H

#include "claim.h"

/* A run of a procedure begins. */
extern void orch_procedure_begin(void);

/*
 * What the procedure that just ended with query_canceled waits for, allocated
 * in this context; NULL: it was not suspended.
 */
extern const OrchSuspension *orch_procedure_suspension(MemoryContext context);

#endif
