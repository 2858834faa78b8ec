/*
 * lane.h
 *	  Where the ready rows of an owner's queue begin, and who is woken for
 *	  them.
 */
#ifndef ORCHESTRATOR_LANE_H
#define ORCHESTRATOR_LANE_H

#include "shmem.h"

/*
 * A row became visible with this sort key: lower the mark of its lane and of
 * every claim under way in it, and wake an executor of the role or, when none
 * is idle, the supervisor.  Called after commit.  roleoid may be InvalidOid
 * when the caller does not know it (the supervisor will look it up).
 */
extern void orch_lane_ready(Oid dboid, int32 owner, Oid roleoid, int32 queue,
							int64 limit, int64 sort_key);

/*
 * A claim in a lane was refused by a limit.  If it concerns all of the lane's
 * rows (everybody; else when they were parked on it) the lane sleeps until
 * orch_lane_unblock(), and this returns true.  Under permit_lock, both.
 */
extern bool orch_lane_block(int lane, int64 limit, bool everybody);

/* The limit that a lane of a database sleeps for; 0: none. */
extern int64 orch_lane_blocked_on(int lane, Oid dboid);

/* Wake the lanes that sleep for a limit; returns how many. */
extern int orch_lane_unblock(Oid dboid, int64 limit);

/* Call executors of all owners of a database that have work. */
extern void orch_lane_call_ready(Oid dboid);

/*
 * The queue of a lane is paused: who enqueues there wakes nobody.  Set it
 * before the last look at the queue's row, and take it back if that is not
 * paused: whoever resumes the queue takes it back after its commit.
 */
extern void orch_lane_set_paused(int lane, bool paused);

/*
 * Look at all lanes of a database from their beginning again; ready: as if
 * they had work, else when they have.
 */
extern void orch_lane_reset(Oid dboid, bool ready);

/*
 * Look at the lanes of a database from their beginning again in which no row
 * became ready since the last call; seen, by lane, is the caller's memory of
 * that.  True: some lanes were active, call again later.
 */
extern bool orch_lane_reset_quiet(Oid dboid, uint32 *seen);

/* There are ready rows in a queue of an owner: have somebody look.  queue may
 * be ORCH_PARKED, for what is parked on a limit. */
extern void orch_lane_look(int owner_index, int32 queue, int64 limit);

/* What is known of an owner's lane; of an owner alone, queue is 0. */
typedef struct OrchKnown
{
	int32 owner;
	int32 queue;
	int64 limit; /* of parked rows */
	int64 mark;
	bool ready;
} OrchKnown;

/*
 * The owners of a database that have lanes, and the lanes of one, in the order
 * of their numbers; in the current memory context.
 */
extern OrchKnown *orch_lane_known_owners(Oid dboid, int *n);
extern OrchKnown *orch_lane_known(int owner_index, int *n);

/* The mark of an owner's queue; the lowest when it is not known. */
extern int64 orch_lane_mark(Oid dboid, int32 owner, int32 queue);

/* Look at an owner's lanes again, from their marks. */
extern void orch_lane_recheck(int owner_index);

/* Forget a database's owners and lanes. Caller holds shared->lock exclusively. */
extern void orch_lane_forget(Oid dboid);

/* Index of an owner, made if missing; -1: no room. */
extern int orch_lane_owner(Oid dboid, int32 owner, Oid roleoid);

/* Index of the lane of a queue, or of what is parked on a limit; made if
 * missing; -1: no room. */
extern int orch_lane_find(int owner_index, int32 queue, int64 limit);

/*
 * A claim begins in a lane: clear its ready flag and tell its queue and the
 * mark to scan from.  Must come before the claim's snapshot is taken.  False:
 * the lane is no longer the executor's owner's.
 */
extern bool orch_lane_begin(OrchExecutor *executor, int lane, int32 *queue,
							int64 *limit, int64 *mark);

/*
 * The claim's scan is over: raise the mark to `upto` (the first key that may
 * hold a pending row for all this scan saw), unless something became ready
 * below it meanwhile.  more: there is work left, wake another executor.
 */
extern void orch_lane_end(OrchExecutor *executor, int64 upto, bool more);

/* The claim was rolled back: lower the mark to where it began. */
extern void orch_lane_abort(OrchExecutor *executor, int lane, int64 from);

/*
 * The lane that may have work and had the least, by the weight of its queue;
 * -1: none.  charge: count on a batch like its last one, so that others choose
 * by it; correct: it took so long instead.
 */
extern int orch_lane_choose(int owner_index);
extern int64 orch_lane_charge(int lane);
extern void orch_lane_correct(int lane, int64 charged, int64 elapsed);

/*
 * An owner has more work than its awake executors can see to: wake an idle
 * one or, when there is none, ask the supervisor for another, once.
 */
extern void orch_lane_call(int owner_index);

#endif
