/*
 * progress.h
 *	  The step that runs in this session, and what it tells of itself.
 */
#ifndef ORCHESTRATOR_PROGRESS_H
#define ORCHESTRATOR_PROGRESS_H

#include "datatype/timestamp.h"

#include "shmem.h"

typedef struct OrchStep
{
	int64 id;
	int64 parent; /* 0: none */
	int64 root;	  /* 0: the task itself */
	const char *definition;
	const char *key;	  /* NULL: none */
	Datum metadata;		  /* jsonb; 0: none */
	TimestampTz deadline; /* 0: none */
	int attempt;
	int max_attempts;
	int epoch;
	bool notify;	 /* listeners to its root hear of its progress */
	bool notify_all; /* and listeners to everything */
	bool procedure;	 /* of kind procedure */
	int ncalled;	 /* the first of so many, one after another, that one call
					  * of a handler for many is for; 0: a step by itself */
} OrchStep;

/* When the step under way began or last reported. */
extern volatile TimestampTz orch_last_report;

/* The step under way, or the first of the call's; NULL: none. */
extern const OrchStep *orch_step;

/*
 * A step begins and ends: sets orch_step and shows it in the executor's
 * slot.  The step must live until the end.  On the hot path, and never
 * raises.  Of a call for several tasks, theirs are the ncalled claims from
 * first_called on.
 */
extern void orch_progress_enter(OrchExecutor *slot, const OrchStep *step,
								int first_called, int ncalled);
extern void orch_progress_leave(void);

/* Whether the caller runs inside a step of the engine. */
extern bool orch_in_step(void);

#endif
