/*
 * collect.h
 *	  Which ready calls go out together in one request, a parcel (batch_size),
 *	  and which wait a little for more (batch_wait).
 *
 * A parcel is opened by a call that waited long enough, or by enough that did
 * not; others of its definition ride in it while it has room.
 */
#ifndef ORCHESTRATOR_COLLECT_H
#define ORCHESTRATOR_COLLECT_H

#include "storage/itemptr.h"

#include "catalog.h"
#include "heap.h"

/* A ready row that was kept while others are looked at. */
typedef struct OrchKept
{
	OrchRow row;
	ItemPointerData tid;
	bool mine; /* nobody else has it locked */
	int size;  /* calls in its parcel at most */
	Size bytes;
	int64 left; /* milliseconds for which it is still to wait */
} OrchKept;

/* What a claim collects for one definition: its kept rows, and the parcel that
 * is being loaded. */
typedef struct OrchLoading
{
	int32 definition;
	int32 number; /* of the parcel that is open */
	int n;		  /* calls in it; 0: none is open */
	int size;	  /* at most */
	Size bytes;	  /* of their inputs */
	List *kept;	  /* OrchKept * */
	Size kept_bytes;
} OrchLoading;

/* All that it collects. */
typedef struct OrchCollect
{
	MemoryContext context;
	TimestampTz now;
	List *loadings; /* OrchLoading * */
} OrchCollect;

typedef enum OrchCollectVerdict
{
	ORCH_COLLECT_ALONE, /* its request is for it alone */
	ORCH_COLLECT_RIDE,	/* in the parcel that is open */
	ORCH_COLLECT_WAIT,	/* keep it */
	ORCH_COLLECT_OPEN	/* keep it, and take those that are kept */
} OrchCollectVerdict;

/* Begin, for a claim: all is kept in the current memory context. */
extern void orch_collect_begin(OrchCollect *collect, TimestampTz now);

/*
 * What to do with a ready row; and where it belongs, unless it goes alone.
 */
extern OrchCollectVerdict orch_collect_judge(OrchCollect *collect,
											 const OrchDefinition *definition,
											 const OrchRow *row,
											 OrchLoading **loading);

/* Keep it. */
extern void orch_collect_keep(OrchCollect *collect, OrchLoading *loading,
							  const OrchDefinition *definition,
							  const OrchRow *row, ItemPointer tid, bool mine);

/*
 * The first row that is kept, if the parcel that is open has room for it or
 * none is open; it is kept no more.
 */
extern OrchKept *orch_collect_next(OrchLoading *loading);

/* A row was claimed for the parcel, which is opened with it if none is open. */
extern void orch_collect_put(OrchLoading *loading, const OrchRow *row,
							 int size);

/* Whether a parcel that is open has room. */
extern bool orch_collect_has_room(const OrchCollect *collect);

/* How many rows are kept; and the milliseconds until the first of them has
 * waited long enough. */
extern int orch_collect_kept(const OrchCollect *collect, int64 *left);

/*
 * The call of a task is to be made again in a parcel of at most so many.
 */
extern void orch_collect_cap(int64 task, int most);

#endif
