/*
 * executor.h
 *	  Executors: processes that claim and run the tasks of one role in one
 *	  database.
 */
#ifndef ORCHESTRATOR_EXECUTOR_H
#define ORCHESTRATOR_EXECUTOR_H

#include "postmaster/bgworker.h"

#include "shmem.h"

/* What bgw_extra carries. */
typedef struct OrchExecutorArgs
{
	Oid dboid;
	Oid roleoid;
	int32 owner;
	int slot;
	uint32 generation; /* of the slot: an outdated start gives up */
} OrchExecutorArgs;

extern PGDLLEXPORT void orchestrator_executor_main(Datum main_arg);

#endif
