/*
 * identity.c
 *	  Whether this database is the one that its tasks are to run in, or a
 *	  restored or cloned one.
 *
 * The first call that writes notes down the server and database
 * (orchestrator.database_identity); in a copy they are others until
 * activate().
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "identity.h"

typedef enum Identity
{
	IDENTITY_NONE, /* nothing was ever enqueued here */
	IDENTITY_OURS,
	IDENTITY_FOREIGN
} Identity;

static Identity read_identity(void);

PG_FUNCTION_INFO_V1(orchestrator_may_fire);
PG_FUNCTION_INFO_V1(orchestrator_warn_of_copy);

/*
 * One of another server or database makes it a copy, also beside ours: it was
 * restored into a database that had been used.
 */
static Identity
read_identity(void)
{
	Relation rel = table_open(
		get_relname_relid("database_identity", orch_catalog(false)->schema),
		AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan =
		systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple row;
	Identity identity = IDENTITY_NONE;

	while (identity != IDENTITY_FOREIGN &&
		   HeapTupleIsValid(row = systable_getnext(scan)))
	{
		bool isnull;
		int64 server = DatumGetInt64(
			heap_getattr(row, 1, RelationGetDescr(rel), &isnull));
		Oid database = DatumGetObjectId(
			heap_getattr(row, 2, RelationGetDescr(rel), &isnull));

		identity =
			server == (int64) GetSystemIdentifier() && database == MyDatabaseId
				? IDENTITY_OURS
				: IDENTITY_FOREIGN;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return identity;
}

/*
 * orchestrator._may_fire(): not in a copy, nor before anything was enqueued.
 */
Datum
orchestrator_may_fire(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(read_identity() == IDENTITY_OURS);
}

void
orch_identity_warn(void)
{
	static bool known = false;
	Identity identity;

	if (known)
		return;
	identity = read_identity();
	if (identity == IDENTITY_FOREIGN)
		ereport(
			WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("tasks do not run in database \"%s\": it is a copy",
					get_database_name(MyDatabaseId)),
			 errhint(
				 "An administrator lets them with orchestrator.activate().")));
	known = identity != IDENTITY_NONE;
}

/*
 * orchestrator._warn_of_copy(): for what enqueues in SQL.
 */
Datum
orchestrator_warn_of_copy(PG_FUNCTION_ARGS)
{
	orch_identity_warn();
	PG_RETURN_VOID();
}
