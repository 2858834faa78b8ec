/*
 * remote_lane.h
 *	  Where a remote worker may have work: lanes, each the tasks of one owner
 *	  in one queue.
 */
#ifndef ORCHESTRATOR_REMOTE_LANE_H
#define ORCHESTRATOR_REMOTE_LANE_H

#include "utils/array.h"

typedef struct OrchRemoteLane
{
	int32 queue;
	int32 owner;
	double turn; /* the lowest looks first */
} OrchRemoteLane;

/*
 * Queues by the names that a role knows them by, each once: all that it can
 * enqueue into may be named.  Raises undefined_object for an unknown one, and
 * invalid_parameter_value when none is named.
 */
extern int32 *orch_remote_queues(Oid caller, ArrayType *names, int *n);

/*
 * Lanes of these queues in which tasks for remote workers are ready that a role
 * may claim: its own, or everybody's where a queue is its own or was shared
 * with it for that.  In the order in which it is to look: at random, by the
 * weights of the queues, so that none starves.  Paused queues have none.
 */
extern OrchRemoteLane *orch_remote_lanes(Oid caller, const int32 *queues,
										 int nqueues, int *n);

#endif
