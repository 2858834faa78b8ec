/*
 * admit.h
 *	  Whether tasks from outside may still be enqueued: max_depth of their
 *	  queue, max_queued of their role.
 */
#ifndef ORCHESTRATOR_ADMIT_H
#define ORCHESTRATOR_ADMIT_H

#include "datatype/timestamp.h"

/*
 * Take places for n tasks, all or none, before their rows are written.
 * Raises when they do not fit, at once or (queue with on_full wait) after a
 * while.  Returns the time they are to be deferred to (on_full defer); 0: to
 * none.  A queue and a role without limits cost two look-ups in the session's
 * memory.
 */
extern TimestampTz orch_admit(int32 owner, int32 queue, int64 n);

/* The rows are written; keep as in orch_depth_written(). */
extern void orch_admitted(bool keep);

#endif
