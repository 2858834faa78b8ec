/*
 * position.h
 *	  How many ready tasks stand before one, and when its turn may come.
 */
#ifndef ORCHESTRATOR_POSITION_H
#define ORCHESTRATOR_POSITION_H

/* Ask for the memory.  Called once, by _PG_init, while preloading. */
extern void orch_position_install(void);

#endif
