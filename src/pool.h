/*
 * pool.h
 *	  The executors of a database: starting them where work waits, making room
 *	  for roles that have none.
 */
#ifndef ORCHESTRATOR_POOL_H
#define ORCHESTRATOR_POOL_H

#include "shmem.h"

/*
 * Start executors for owners with ready tasks, wake idle ones.  Called by the
 * supervisor outside of a transaction.  may_fire: this database may run tasks.
 */
extern void orch_pool_manage(bool may_fire);

/* When to call it again even if nobody asks; DT_NOEND: never. */
extern TimestampTz orch_pool_retry_at(void);

/* The slot of a dead executor was recovered: it is free again. */
extern void orch_pool_free(OrchExecutor *executor);

/*
 * There is no worker for an owner (by its index) that has none, or for a
 * process of ours that is no executor (ORCH_HEIR_OTHER): the next one is
 * promised to it, and an executor asked to leave.  To be called once a second
 * until there is, or the promise is void; if it is somebody else's turn, too.
 */
extern void orch_pool_make_room(int heir);
extern void orch_pool_lack_other(void); /* the same, and says so in the log */

/* There is one now. */
extern void orch_pool_thank(int heir);

#endif
