/*
 * parcel.h
 *	  Parcels: requests that are made for many calls, and what comes back for
 *	  each.
 *
 * Which calls go in one is decided when they are claimed (collect.h).  A call
 * that is forgotten leaves its parcel, which goes on for the others.
 */
#ifndef ORCHESTRATOR_PARCEL_H
#define ORCHESTRATOR_PARCEL_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "call.h"

/* One call in it. */
typedef struct OrchParcelItem
{
	uint64 call; /* 0: it has left */
	int64 task;
	int32 texts; /* that it sends */
	int32 size;	 /* of them */
	Jsonb *request;
} OrchParcelItem;

typedef struct OrchParcel
{
	uint64 number; /* hash key, and that of its frame */
	MemoryContext context;
	OrchParcelItem *items;
	int n;
	int room;
	int left;		   /* items that have not left */
	bool written;	   /* or it cannot be */
	bool over;		   /* nothing of it is under way */
	OrchCallSpec spec; /* of the first call, until it is written */
	char endpoint[NAMEDATALEN];
	const char *provider;
	StringInfoData permits; /* of calls that left while it was under way */
} OrchParcel;

/* What became of one call. */
typedef struct OrchParcelResult
{
	const char *outcome;
	Datum result;
} OrchParcelResult;

/*
 * The parcel with the number that a claim gave it, made if there is none; and
 * that with the number of a frame, or NULL.
 */
extern OrchParcel *orch_parcel(int32 number);
extern OrchParcel *orch_parcel_find(uint64 number);

/* Add a call.  What the spec points to must stay until the parcel is written. */
extern void orch_parcel_add(OrchParcel *parcel, const OrchCallSpec *spec,
							int64 task);

/* The first that has not been written, or NULL. */
extern OrchParcel *orch_parcel_unwritten(void);

/*
 * Write its frame, all but the input being as the first call says it.  One call
 * alone goes as if there were no parcel.  Returns NULL, or why it cannot be
 * made, as orch_call_write() does.
 */
extern Datum orch_parcel_write(OrchParcel *parcel, FrameBuffer *out);

/*
 * Read its FRAME_DONE: what became of each call, in the current memory context.
 * Outcome "released": they are to be made again, in smaller parcels.
 */
extern OrchParcelResult *orch_parcel_read(OrchParcel *parcel,
										  FrameReader *frame);

/* A call leaves it, and its permits stay until the parcel is over.  True: it
 * was the last. */
extern bool orch_parcel_leave(OrchParcel *parcel, uint64 call);
extern void orch_parcel_keep_permits(OrchParcel *parcel, const int64 *permits,
									 int n);
extern void orch_parcel_free(OrchParcel *parcel);

/* All that are under way are over: the permits that they keep go back. */
extern void orch_parcel_lose(void);

#endif
