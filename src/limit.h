/*
 * limit.h
 *	  Which limits concern a row, and taking what they ask for.
 */
#ifndef ORCHESTRATOR_LIMIT_H
#define ORCHESTRATOR_LIMIT_H

#include "catalog.h"
#include "heap.h"
#include "permit.h"

/* Those of the row before: the next is often of the same kind.  All zero at
 * first. */
typedef struct OrchLimitMemo
{
	int32 queue;
	int32 definition;
	int32 plan;
	int n;
	OrchLimit limits[ORCH_MAX_LIMITS];
} OrchLimitMemo;

/*
 * The limits that a ready row is under: its role's, its queue's, its
 * definition's, its workflow's, its key's.  Returns how many; limits has room for
 * ORCH_MAX_LIMITS.  Undoing is under none.
 */
extern int orch_limit_gather(const OrchRow *row,
							 const OrchDefinition *definition,
							 OrchLimitMemo *memo, OrchLimit *limits);

/*
 * A step is about to start: false when its starts within the period are used
 * up by now.
 */
extern bool orch_limit_start(OrchLimit *limits, int n);

/* Whether an executor may go straight on from a step to one of this definition:
 * nothing is to be counted that was not when the first was claimed. */
extern bool orch_limit_may_go_on(const OrchRow *row,
								 const OrchDefinition *definition);

#endif
