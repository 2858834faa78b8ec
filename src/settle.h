/*
 * settle.h
 *	  Writing what became of steps: the fourth station of the flow.
 */
#ifndef ORCHESTRATOR_SETTLE_H
#define ORCHESTRATOR_SETTLE_H

#include "claim.h"

/*
 * Settle the tasks of a batch with the given numbers in the current
 * transaction, the one that holds the effects of their steps.  False: one of
 * them turned out not to be ours any more (it is marked GONE), or somebody
 * wants a row of the batch, so that this transaction must not commit.  In the
 * fast lane, what was not started was given back before.
 */
extern bool orch_settle_tasks(OrchBatch *batch, const int *numbers, int n);

/*
 * Plain successes whose live rows the caller has deleted: count them, tell of
 * them and write their finished rows.
 */
extern void orch_settle_completed(OrchTask *const *tasks, int n);

/* Give back a task of the fast lane that was not started. */
extern void orch_settle_give_back(OrchBatch *batch, int number);

#endif
