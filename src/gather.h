/*
 * gather.h
 *	  Which ready tasks make one call of a handler that takes many
 *	  (batch_size), and which wait a little for more (batch_wait).
 *
 * A claim either takes tasks of any definitions that take one input each, or
 * makes one call: tasks of one definition, at most its batch_size.  It goes
 * past rows of others, and past those that wait, which keep the lane's mark.
 */
#ifndef ORCHESTRATOR_GATHER_H
#define ORCHESTRATOR_GATHER_H

#include "catalog.h"
#include "heap.h"
#include "shmem.h"

/* What a claim has seen so far; set up by orch_gather_begin. */
typedef struct OrchGather
{
	int32 definition; /* whose call this claim makes; 0: of nobody (yet) */
	int size;		  /* tasks of the call at most */
	bool fast;		  /* they go the fast lane */
	bool again;		  /* the scan was begun anew for it */
	bool alone;		  /* one after a crash: calls are of one task each */
	int passed;		  /* rows of others that the call went past */
	int64 mark;		  /* least key of a row that was left */
	int64 look_in;	  /* milliseconds until one that waits has waited long
					   * enough; -1: none waits */
	List *waiting;	  /* how many of each definition do */
	TimestampTz now;
} OrchGather;

typedef enum OrchGatherVerdict
{
	ORCH_GATHER_TAKE,
	ORCH_GATHER_LEAVE, /* not this row, go on behind it */
	ORCH_GATHER_HELD,  /* somebody else has it */
	ORCH_GATHER_STOP   /* enough: the next claim may want this row */
} OrchGatherVerdict;

extern void orch_gather_begin(OrchGather *gather, OrchExecutor *executor,
							  TimestampTz now);

/*
 * What a claim that holds ntasks tasks does with the next ready row.  Cheap
 * when its definition (NULL: gone) takes one input and no call is made.  The
 * scan may begin anew.
 */
extern OrchGatherVerdict orch_gather_judge(OrchGather *gather,
										   OrchReadyScan *scan,
										   const OrchDefinition *definition,
										   const OrchRow *row, bool fast,
										   int ntasks);

/* Milliseconds for which a row is still to wait for more; 0: it waited long
 * enough. */
extern int64 orch_gather_time_left(const OrchDefinition *definition,
								   const OrchRow *row, TimestampTz now);

/*
 * The scan of a lane is over: rows that wait are looked at again in time.
 * True: the call went past rows that somebody should look at now.
 */
extern bool orch_gather_end(const OrchGather *gather, Oid dboid, int lane);

/*
 * A call ended with its process, and nobody knows which of its tasks is why:
 * those of this owner run one by one for a while.
 */
extern void orch_gather_caution(int owner_index);

/*
 * Have somebody look at the lanes of a database in which rows waited long
 * enough.  Returns the milliseconds until the next have; -1: none wait.
 */
extern int64 orch_gather_look(Oid dboid);

#endif
