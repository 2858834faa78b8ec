/*
 * event.h
 *	  What a transaction tells others when it commits: ready rows, due times,
 *	  lifecycle events, interrupts, invalidations of the launcher's view.
 *
 * Calls collect in the memory of the session; one transaction callback
 * delivers them after commit and forgets them at rollback (also of a
 * subtransaction).  Without preload, lifecycle events are notified in the
 * transaction itself and the rest has nobody to tell.
 */
#ifndef ORCHESTRATOR_EVENT_H
#define ORCHESTRATOR_EVENT_H

#include "datatype/timestamp.h"

struct OrchEvent;

/* In the order of event_names in event.c. */
typedef enum OrchEventKind
{
	ORCH_EVENT_CREATED,
	ORCH_EVENT_STARTED,
	ORCH_EVENT_PROGRESS,
	ORCH_EVENT_COMPLETED,
	ORCH_EVENT_FAILED,
	ORCH_EVENT_RETRYING,
	ORCH_EVENT_CANCELLED,
	ORCH_EVENT_PAUSED,
	ORCH_EVENT_RESUMED,
	ORCH_EVENT_SKIPPED,
	ORCH_EVENT_RESYNC
} OrchEventKind;

/* In the order of the enum orchestrator.task_state. */
typedef enum OrchState
{
	ORCH_STATE_SCHEDULED,
	ORCH_STATE_PENDING,
	ORCH_STATE_RUNNING,
	ORCH_STATE_WAITING,
	ORCH_STATE_PAUSED,
	ORCH_STATE_COMPLETED,
	ORCH_STATE_FAILED,
	ORCH_STATE_CANCELLED,
	ORCH_STATE_SKIPPED
} OrchState;

#define ORCH_STATES 9

extern bool orch_state_is_final(OrchState state);
extern const char *orch_state_name(OrchState state);
extern const char *orch_event_name(OrchEventKind kind);

/* Call once, from _PG_init. */
extern void orch_event_install(void);

/* A row of (owner, queue) became pending with this sort key. */
extern void orch_event_ready(int32 owner, Oid roleoid, int32 queue,
							 int64 sort_key);

/* A pending row was parked on a limit, or is for remote workers or the
 * courier. */
extern void orch_event_parked(int32 owner, int64 limit, int64 sort_key);

/* A row waits for this time. */
extern void orch_event_due(TimestampTz at);

/*
 * A transition.  progress is negative when not told; notify: whether LISTEN
 * clients hear of it (waiters of a final state always do).
 */
extern void orch_event_transition(int64 task, int64 root, int64 parent,
								  OrchEventKind kind, OrchState state,
								  double progress, int32 attempt, bool notify);

/* Stop the executor that runs this attempt. */
extern void orch_event_interrupt(int64 task, int32 epoch);

/*
 * Push one event into the ring of this database now (executors after their
 * commit, progress); NULL: some were lost.  Does nothing when nobody listens
 * or without preload.
 */
extern void orch_event_push(const struct OrchEvent *event);

/* Whether any session of this database listens to one of our channels. */
extern bool orch_event_heard(void);

/*
 * Wake the sessions that wait for a task.  Cheap when nobody waits.
 */
extern void orch_event_wake_waiters(int64 task);

/* Write the payload of an event as JSON. */
extern char *orch_event_payload(const struct OrchEvent *event);

#endif
