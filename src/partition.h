/*
 * partition.h
 *	  Partitions of finished tasks as files: counting them, and giving back
 *	  their blocks, a piece at a time.
 */
#ifndef ORCHESTRATOR_PARTITION_H
#define ORCHESTRATOR_PARTITION_H

#include "storage/block.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

/*
 * How finished tasks stand: by queue, state, and whether they are of a tree of
 * tasks.
 */
typedef struct OrchGroupKey
{
	int32 queue;
	Oid state;
	bool in_tree;
} OrchGroupKey;

typedef struct OrchGroup
{
	OrchGroupKey key;
	int64 rows;
	TimestampTz newest; /* finished */
	int64 least_root;	/* PG_INT64_MAX: none has one */
	int64 last_root;	/* 0 likewise */
} OrchGroup;

/* No groups, in the current memory context. */
extern HTAB *orch_partition_groups(void);

/*
 * Add what the active snapshot sees in n blocks of a partition, from one on.
 * Returns whether blocks follow.
 */
extern bool orch_partition_count(HTAB *groups, Oid relid, BlockNumber from,
								 BlockNumber n);

/* The same for few blocks, which lie evenly apart: a sample. */
extern void orch_partition_sample(HTAB *groups, Oid relid);

/*
 * Give back some blocks at the end of a table that nobody is to read again, and
 * when it has none, of what it stored out of line.  Its indexes are gone.
 * Returns whether there may be more.  Whatever ends it, the rest can be given
 * back later: each piece is logged as the truncation by a vacuum is.
 */
extern bool orch_partition_shrink(Oid relid);

#endif
