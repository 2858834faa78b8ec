/*
 * transit.h
 *	  The calls that the courier has: those that its child program makes, and
 *	  those that came back and are to be settled.
 */
#ifndef ORCHESTRATOR_TRANSIT_H
#define ORCHESTRATOR_TRANSIT_H

#include "utils/hsearch.h"

#include "child.h"
#include "parcel.h"
#include "place.h"
#include "shmem.h"
#include "tune.h"

/* After an error of our own, or when the child does not start. */
#define ORCH_COURIER_PAUSE USECS_PER_SEC

typedef struct OrchCall
{
	uint64 number; /* hash key */
	int64 task;
	int32 epoch;
	OrchHolder *holder; /* of its place, or that of its parcel */
	OrchParcel *parcel; /* NULL: it goes alone */
	int npermits;
	int64 permits[ORCH_MAX_LIMITS];
	OrchTunedCall tuned;
	OrchDelta *parts;	 /* of its answer; NULL: it comes in one */
	int stream;			 /* -1: nobody can read along */
	const char *outcome; /* NULL: it is under way */
	Datum result;
	struct OrchCall *next_ended;
} OrchCall;

/* Of the courier, whose process has one. */
typedef struct OrchTransit
{
	OrchDatabase *database;
	OrchChild child;
	HTAB *calls;
	OrchCall *ended; /* to be settled, the oldest last */
	int nended;
	bool look;				/* for calls to claim */
	TimestampTz not_before; /* claim nothing until then */
	uint64 claimed;			/* the last call whose claim is committed */
	MemoryContext turn_context;
} OrchTransit;

extern OrchTransit orch_transit;

/* At the beginning of the process, and its end. */
extern void orch_transit_install(void);
extern void orch_transit_leave(void);

/* A duty: ends the process if the extension is not there any more. */
extern void orch_transit_check_extension(void);

/* Calls that have not come back. */
extern int orch_transit_under_way(void);

/* Send to the child, and read what it says. */
extern void orch_transit_see_to_child(void);

/*
 * It is gone, or is sent away: the calls that it had have spent an attempt.
 */
extern void orch_transit_lose_child(const char *why);

/* Tasks that were cancelled, paused or taken over: their transfers end now. */
extern void orch_transit_drop_lost(void);

/* A call has come back; it is added to those that did, before a place. */
extern void orch_transit_end_call(OrchCall *call, const char *outcome,
								  Datum result);
extern void orch_transit_add_ended(OrchCall *call, OrchCall **place);

/* One that is settled, or not wanted any more; and of one the answer that comes
 * in parts. */
extern void orch_transit_forget(OrchCall *call);
extern void orch_transit_stop_reading(OrchCall *call);

#endif
