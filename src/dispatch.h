/*
 * dispatch.h
 *	  Claims of calls for the courier, which go to its child program when they
 *	  are committed.
 */
#ifndef ORCHESTRATOR_DISPATCH_H
#define ORCHESTRATOR_DISPATCH_H

#include "datatype/timestamp.h"

/* Claim what there is, and there is room for; and when to look again even if
 * nobody says so (0: never). */
extern void orch_dispatch(void);
extern TimestampTz orch_dispatch_at(void);

/* The last claim took long, so the next may. */
extern bool orch_dispatch_is_late(void);

/*
 * A claim in a transaction of somebody else: begin it (false: there is to be
 * none), perform its duty, and then end or undo it.  The end is false if there
 * is no more to claim.
 */
extern bool orch_dispatch_begin(void);
extern void orch_dispatch_claim(void);
extern bool orch_dispatch_end(void);
extern void orch_dispatch_undo(void);

#endif
