/*
 * tune.h
 *	  Adaptive queues: what executors measure of their steps, and the looks of
 *	  the supervisor that change their limits by it (adapt.h).
 */
#ifndef ORCHESTRATOR_TUNE_H
#define ORCHESTRATOR_TUNE_H

#include "claim.h"

typedef struct OrchTunedCall
{
	int32 queue;
	int64 limit; /* of the queue; 0: it is not adaptive */
	int64 since;
} OrchTunedCall;

/*
 * Steps of a batch were settled: add those of adaptive queues to what is
 * measured.  occupied_since: when the executor began with them; set to now.
 */
extern void orch_tune_report(const OrchBatch *batch, const int *numbers, int n,
							 int64 *occupied_since);

/*
 * The same of one outside call of an adaptive queue, which began at since
 * (orch_monotonic()).
 */
extern void orch_tune_report_call(const OrchTunedCall *call, bool failed,
								  bool timed_out);

/*
 * A look of the supervisor, in three parts.  Collect what was measured, outside
 * of a transaction; false: no adaptive queue is at work, and there is no need
 * to look again before ORCH_WAKE_TUNE.  all: also those that are not, since
 * queues were defined.  Decide, in a transaction.  Apply, when it is committed.
 */
extern bool orch_tune_collect(bool all);
extern void orch_tune_decide(void);
extern void orch_tune_apply(void);

/* The queues of a database are gone; the caller may hold shared->lock. */
extern void orch_tune_forget(Oid dboid);

#endif
