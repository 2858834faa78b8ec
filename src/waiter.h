/*
 * waiter.h
 *	  Sessions of remote workers that sleep until there may be work.
 */
#ifndef ORCHESTRATOR_WAITER_H
#define ORCHESTRATOR_WAITER_H

/* Ask for the memory.  Called once, by _PG_init, while preloading. */
extern void orch_waiter_install(void);

/*
 * This session waits for tasks of these queues, until it is deregistered or
 * ends.  False: so many wait already that there is no place; look now and then
 * instead.  Register first, then look: a task that the look does not see wakes
 * us.
 */
extern bool orch_waiter_register(const int32 *queues, int n);
extern void orch_waiter_deregister(void);

/* Whether we were told of a task since the last call. */
extern bool orch_waiter_told(void);

/* A task of a queue became ready for remote workers: call after the commit. */
extern void orch_waiter_wake(Oid dboid, int32 queue);

#endif
