/*
 * compat.h
 *	  Differences between the majors of PostgreSQL: the only file that tests
 *	  PG_VERSION_NUM.
 *
 * Wrappers carry the newest meaning; each says which release changed it.
 */
#ifndef ORCHESTRATOR_COMPAT_H
#define ORCHESTRATOR_COMPAT_H

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "orchestrator supports PostgreSQL 15 to 18"
#endif

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/regproc.h"
#include "utils/wait_event.h"
/* 16 tells which indexes need an entry; 15 only whether any does. */
static inline TM_Result
orch_table_tuple_update(Relation rel, ItemPointer tid, TupleTableSlot *slot,
						CommandId cid, bool wait, bool *indexes)
{
	TM_FailureData failure;
	LockTupleMode mode;
	TM_Result result;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update;
#else
	bool update;
#endif

	result =
		table_tuple_update(rel, tid, slot, cid, InvalidSnapshot,
						   InvalidSnapshot, wait, &failure, &mode, &update);
#if PG_VERSION_NUM >= 160000
	*indexes = update != TU_None;
#else
	*indexes = update;
#endif
	return result;
}

/* 18 takes the instrumentation of the scan. */
static inline IndexScanDesc
orch_index_beginscan(Relation heap, Relation index, Snapshot snapshot,
					 int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(heap, index, snapshot, nkeys, 0);
#endif
}

/* 16 replaced pg_proc_aclcheck and its like by one function. */
static inline AclResult
orch_function_aclcheck(Oid function, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE);
#else
	return pg_proc_aclcheck(function, role, ACL_EXECUTE);
#endif
}

/* 17 numbers processes by GetNumberFromPGProc. */
static inline int
orch_my_procno(void)
{
#if PG_VERSION_NUM >= 170000
	return GetNumberFromPGProc(MyProc);
#else
	return MyProc->pgprocno;
#endif
}

/* What our processes sleep for, in the order of orch_wait_event's names. */
typedef enum OrchWaitEvent
{
	ORCH_WAIT_LAUNCHER,
	ORCH_WAIT_SUPERVISOR,
	ORCH_WAIT_EXECUTOR,
	ORCH_WAIT_TASK,
	ORCH_WAIT_YIELD,
	ORCH_WAIT_WORK,
	ORCH_WAIT_COURIER,
	ORCH_WAIT_RETENTION
} OrchWaitEvent;

#define ORCH_WAIT_EVENTS (ORCH_WAIT_RETENTION + 1)

/* 17 lets extensions name their wait events. */
static inline uint32
orch_wait_event(OrchWaitEvent which)
{
#if PG_VERSION_NUM >= 170000
	static const char *const names[ORCH_WAIT_EVENTS] = {
		"OrchestratorLauncherMain", "OrchestratorSupervisorMain",
		"OrchestratorExecutorMain", "OrchestratorTask",
		"OrchestratorYield",		"OrchestratorWork",
		"OrchestratorCourierMain",	"OrchestratorRetention"};
	static uint32 events[ORCH_WAIT_EVENTS];

	if (events[which] == 0)
		events[which] = WaitEventExtensionNew(names[which]);
	return events[which];
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* 15 renamed pg_analyze_and_rewrite; the name holds since.  Parameters are
 * jsonb, at most one. */
static inline List *
orch_analyze_and_rewrite(RawStmt *statement, const char *command, int nparams)
{
	Oid type = JSONBOID;

	return pg_analyze_and_rewrite_fixedparams(statement, command, &type,
											  nparams, NULL);
}

/* 18 dropped the argument run_once. */
static inline void
orch_portal_run(Portal portal, DestReceiver *receiver)
{
#if PG_VERSION_NUM >= 180000
	(void) PortalRun(portal, FETCH_ALL, true, receiver, receiver, NULL);
#else
	(void) PortalRun(portal, FETCH_ALL, true, true, receiver, receiver, NULL);
#endif
}

/* 16 takes a context for soft errors. */
static inline List *
orch_qualified_name(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(name, NULL);
#else
	return stringToQualifiedNameList(name);
#endif
}

static inline bool
orch_may_connect(Oid database, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(DatabaseRelationId, database, role, ACL_CONNECT) ==
		   ACLCHECK_OK;
#else
	return pg_database_aclcheck(database, role, ACL_CONNECT) == ACLCHECK_OK;
#endif
}

#endif
