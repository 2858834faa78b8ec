/*
 * courier.h
 *	  The courier: a process that carries the outside calls of a database.
 */
#ifndef ORCHESTRATOR_COURIER_H
#define ORCHESTRATOR_COURIER_H

#include "shmem.h"

/*
 * The supervisor's part.  manage: starts the courier when calls wait, and
 * hands back what one that is gone was making; false: the server has no worker
 * for it.  at: when to call that again
 * even if nobody asks; DT_NOEND: never.  dismiss: the extension is not there
 * any more, or another one is.
 */
extern bool orch_courier_manage(OrchDatabase *database, bool may_fire);
extern TimestampTz orch_courier_at(void);
extern void orch_courier_dismiss(OrchDatabase *database);

/* The process. */
extern PGDLLEXPORT void orchestrator_courier_main(Datum main_arg);

#endif
