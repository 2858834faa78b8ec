/*
 * remote.h
 *	  What remote workers need of the library: sleeping until there may be
 *	  work, and permits for the tasks that they have claimed.
 */
#ifndef ORCHESTRATOR_REMOTE_H
#define ORCHESTRATOR_REMOTE_H

/* Call once, from _PG_init. */
extern void orch_remote_install(void);

#endif
