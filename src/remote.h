/*
 * remote.h
 *	  What remote workers need of the library: sleeping until there may be
 *	  work, and permits for the tasks that they have claimed.
 */
#ifndef ORCHESTRATOR_REMOTE_H
#define ORCHESTRATOR_REMOTE_H

#include "utils/array.h"

#include "limit.h"

/* What a row asks of the limits of its endpoint. */
typedef enum OrchFare
{
	ORCH_FARE_FULL,
	ORCH_FARE_RIDES /* nothing: it goes in a request that another row opened */
} OrchFare;

/* Call once, from _PG_init. */
extern void orch_remote_install(void);

/*
 * Take permits of the limits of a row that is to be claimed; their numbers go
 * to ids, which has room for ORCH_MAX_LIMITS, and n.  They are given back if
 * the transaction is rolled back.  Returns NULL, or the limit that refused.
 */
extern const OrchLimit *orch_remote_take(const OrchRow *row,
										 OrchLimitMemo *memo, OrchFare fare,
										 int64 *ids, int *n);

/* How many rows permits were taken for; give back those of the rows after so
 * many: they were somebody else's. */
extern int orch_remote_taken(void);
extern void orch_remote_untake(int taken);

/* Give back permits by their numbers when this transaction commits. */
extern void orch_remote_give_back(ArrayType *ids);

#endif
