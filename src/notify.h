/*
 * notify.h
 *	  Events to LISTEN clients: who listens, and telling them.
 *
 * Knowing who listens keeps a system that nobody watches free of NOTIFY,
 * which takes a lock of the whole server at commit.
 */
#ifndef ORCHESTRATOR_NOTIFY_H
#define ORCHESTRATOR_NOTIFY_H

/* Least time between two calls of orch_notify_progress. */
#define ORCH_PROGRESS_INTERVAL_MS 200

/*
 * This session executed LISTEN, or UNLISTEN (NULL: of everything, also by
 * DISCARD ALL).  Call it after the command, in its transaction; channels that
 * are not ours are ignored.
 */
extern void orch_notify_listen(const char *channel);
extern void orch_notify_unlisten(const char *channel);

/*
 * Take events out of the ring of this database and notify them, in a
 * transaction of its own.  Called by the supervisor at its start and at
 * ORCH_WAKE_EVENTS, outside of a transaction, until it returns 0.  Errors
 * are logged, and make listeners get a resync.
 */
extern int orch_notify_drain(void);

/*
 * Put what running steps reported since the last call into the ring, and which
 * streams have grown.  True:
 * call again in ORCH_PROGRESS_INTERVAL_MS.  False: nothing was reported; the
 * next report wakes the supervisor by ORCH_WAKE_EVENTS, unless its executor
 * did within that interval.
 */
extern bool orch_notify_progress(void);

#endif
