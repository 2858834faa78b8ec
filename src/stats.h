/*
 * stats.h
 *	  How many tasks, how long they waited and ran: by minute, in shared
 *	  memory, for each queue and each definition of each owner.
 *
 * Whoever ends an attempt or a task says so in its transaction; what was said
 * is counted when that commits.  The supervisor writes finished minutes to
 * orchestrator.stats; a crash loses those that were not written yet, at most
 * the last one.  Without preload nothing is counted.
 */
#ifndef ORCHESTRATOR_STATS_H
#define ORCHESTRATOR_STATS_H

#include "datatype/timestamp.h"

#include "heap.h"

/* In the order of count_names in stats.c. */
typedef enum OrchCount
{
	ORCH_COUNT_COMPLETED,
	ORCH_COUNT_FAILED,
	ORCH_COUNT_CANCELLED,
	ORCH_COUNT_RETRIED,
	ORCH_COUNT_EXPIRED, /* failed before it was started, also in FAILED */
	ORCH_COUNTS
} OrchCount;

/* Ask for the memory.  Called once, by _PG_init, while preloading. */
extern void orch_stats_install(void);

/*
 * An attempt ended: its row, still with the sort key it was claimed by.
 * completed: and with it the task.
 */
extern void orch_stats_attempt(const OrchRow *row, TimestampTz started,
							   TimestampTz finished, bool completed);

/*
 * A task came to one of these; queue 0: it stood in none.  took: microseconds
 * from the start to the end of a run; negative: it is none.
 */
extern void orch_stats_count(int32 owner, int32 queue, int32 definition,
							 OrchCount what, int64 took);

/*
 * Attempts a second in an owner's queue, while there were any in the last five
 * minutes; 0: not known.
 */
extern double orch_stats_rate(int32 owner, int32 queue);

/* When the supervisor has something to do for the statistics of its database;
 * DT_NOEND: never. */
extern TimestampTz orch_stats_due(void);

/*
 * Free what was written long enough ago, or belonged to another extension than
 * the one with this task_live, and say whether there is something to write:
 * then orchestrator._save_stats() does, in one transaction.
 */
extern bool orch_stats_prepare_save(Oid live, bool everything);

#endif
