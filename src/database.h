/*
 * database.h
 *	  What happens to the databases that our workers are in: commands that
 *	  need them gone, and commands that the workers must hear of.
 */
#ifndef ORCHESTRATOR_DATABASE_H
#define ORCHESTRATOR_DATABASE_H

/* Install the hooks.  Called once, by _PG_init, while preloading. */
extern void orch_database_install(void);

/*
 * How many workers of ours, other than this process, are in a database; with
 * terminate, ask each of them to leave.
 */
extern int orch_database_workers(Oid dboid, bool terminate);

#endif
