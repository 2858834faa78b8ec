/*
 * fair.h
 *	  The place of a task in its queue: by time and priority, or by turns of
 *	  the tenants in a queue that has some.
 */
#ifndef ORCHESTRATOR_FAIR_H
#define ORCHESTRATOR_FAIR_H

#include "datatype/timestamp.h"

#include "heap.h"

/* By time and priority. */
extern int64 orch_sort_key(TimestampTz at, int32 priority);

/* And back: when a task with that place became ready. */
extern TimestampTz orch_sort_time(int64 sort_key, int32 priority);

/*
 * The same in a queue, where it is the tenants' turn that counts; the input
 * says whose the task is.  Takes the place: each call gives the next one.  An
 * active snapshot must be set.
 */
extern int64 orch_fair_key(int32 owner, int32 queue, Datum input,
						   TimestampTz at, int32 priority);

/*
 * Give a new row that is ready its place: one by time, that it has, is moved
 * back so far.
 */
extern void orch_fair_place(OrchRow *row, int place);

/* Tasks up to this turn were claimed; the turn is that of a sort key and its
 * priority. */
extern int64 orch_fair_turn(int64 sort_key, int32 priority);
extern void orch_fair_claimed(int32 owner, int32 queue, int64 turn);

#endif
