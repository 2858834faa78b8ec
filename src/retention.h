/*
 * retention.h
 *	  Dropping finished tasks that are old enough, by whole partitions.
 *
 * The supervisor knows when there may be something to do and starts a worker
 * then, which does it, says when to look again, and leaves.
 */
#ifndef ORCHESTRATOR_RETENTION_H
#define ORCHESTRATOR_RETENTION_H

#include "shmem.h"

/* Call once, from _PG_init. */
extern void orch_retention_install(void);

/*
 * The supervisor's part.  find: a duty, asks the tables when to look next,
 * also after a change of settings.  manage: starts the worker when it is
 * time; false: the server has none for it.  at: when to call that again even if nobody asks; DT_NOEND: never.
 */
extern void orch_retention_find(void);
extern bool orch_retention_manage(OrchDatabase *database, bool may_fire);
extern TimestampTz orch_retention_at(OrchDatabase *database, bool may_fire);

/* The worker. */
extern PGDLLEXPORT void orchestrator_retention_main(Datum main_arg);

#endif
