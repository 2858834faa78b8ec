/*
 * depth.h
 *	  How many tasks wait, in shared memory: of a queue, of a role.
 *
 * A counter may only err on the high side: it is raised before a row is
 * written and lowered after the commit that started the task, or after the
 * roll-back.  Whoever finds it too high counts the rows (admit.c).  What is
 * not told here (a cancel, say) is found then.
 */
#ifndef ORCHESTRATOR_DEPTH_H
#define ORCHESTRATOR_DEPTH_H

#include "datatype/timestamp.h"

/* The counter of a queue (owner 0) or of an owner (queue 0). */
typedef struct OrchDepth OrchDepth;

/* A count of rows under way. */
typedef struct OrchDepthCount
{
	int64 arrived;
	int64 coming;
	uint32 generation;
	TimestampTz began;
} OrchDepthCount;

/* Call once, from _PG_init, while preloading. */
extern void orch_depth_install(void);

/* A counter of this database; NULL: there is none, or no room for it. */
extern OrchDepth *orch_depth_find(int32 owner, int32 queue, bool create);

/* Whether the supervisor looks at the queue when something changes. */
extern void orch_depth_watch(OrchDepth *depth, bool alerts);

/*
 * Take n places, at most up to max (0: whatever there is) for this
 * transaction.  False: there may be fewer, or nobody counted yet.
 */
extern bool orch_depth_reserve(OrchDepth *depth, int64 n, int64 max);

/* The places this transaction holds. */
extern int64 orch_depth_held(const OrchDepth *depth);

/*
 * The rows that places were reserved for since the last call are written, or
 * (keep is false) others that were added (orch_depth_add) in their stead.
 */
extern void orch_depth_written(bool keep);

/*
 * Rows began to wait that nobody may refuse: retries, steps.  Cheap when no
 * queue and no role is limited.
 */
extern void orch_depth_add(int32 owner, int32 queue, int64 n);

/* Rows that wait go to another place in an index, or to another index: a count
 * may miss them. */
extern void orch_depth_moved(int32 owner, int32 queue, int64 n);

/*
 * An executor is about to commit claims of tasks of a lane, and did: so many
 * were started.
 */
extern void orch_depth_starting(int32 owner, int32 queue);
extern void orch_depth_started(int64 n);

/*
 * Count: begin; look for rows, also of transactions under way; end with what
 * was found.  all is false when the look ended early.  Returns whether
 * nothing happened meanwhile that makes the result too high.
 */
extern void orch_depth_count_begin(OrchDepth *depth, OrchDepthCount *count);
extern bool orch_depth_count_end(OrchDepth *depth, const OrchDepthCount *count,
								 int64 found, bool all);

/*
 * Whether rows were counted so lately, for the time that took, that it is not
 * worth another count; within: microseconds one serves in any case.
 */
extern bool orch_depth_counted_lately(OrchDepth *depth, int64 within);

#endif
