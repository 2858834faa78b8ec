/*
 * database.c
 *	  What happens to the databases that our workers are in: commands that
 *	  need them gone, and commands that the workers must hear of.
 *
 * DROP DATABASE and its like fail while anybody else is connected, and a
 * worker of ours would never leave by itself.  So before such a command the
 * session marks the database as blocked, which keeps workers from starting,
 * ends those that run and waits until they are gone.  The mark goes with the
 * transaction; then the launcher looks again.
 *
 * What the extension's own coming and going means for its workers is told at
 * commit, from an object-access hook: it sees every way to drop an extension.
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "database.h"
#include "execute.h"
#include "lane.h"
#include "notify.h"
#include "shmem.h"

#define EXTENSION_NAME "orchestrator"

/* How long a command waits for our workers to leave, and how it looks. */
#define STOP_TIMEOUT_MS	   4000
#define STOP_NAP_MS		   10
#define STOP_NAPS_A_SIGNAL 10

/*
 * What a command means for us.
 */
typedef struct Command
{
	Oid blocks;		/* database that our workers must leave first */
	bool look;		/* databases change: the launcher looks */
	bool prepared;	/* ends a prepared transaction */
	bool listens;	/* LISTEN channel */
	bool unlistens; /* UNLISTEN channel; NULL: all */
	const char *channel;
} Command;

static ProcessUtility_hook_type previous_utility_hook = NULL;
static object_access_hook_type previous_access_hook = NULL;

/* Told at commit, forgotten at rollback. */
static bool announced = false; /* the extension came, went or changed here */
static bool look_pending = false;

/* The subtransaction since which this session blocks databases. */
static SubTransactionId blocking = InvalidSubTransactionId;

static void process_utility(PlannedStmt *pstmt, const char *queryString,
							bool readOnlyTree, ProcessUtilityContext context,
							ParamListInfo params, QueryEnvironment *queryEnv,
							DestReceiver *dest, QueryCompletion *qc);
static void examine_command(Node *statement, bool in_block, Command *command);
static void examine_create(CreatedbStmt *statement, bool in_block,
						   Command *command);
static void examine_alter(AlterDatabaseStmt *statement, bool in_block,
						  Command *command);
static Oid find_database(const char *name, bool as_template);
static void block_database(Oid dboid);
static void unblock_databases(bool look);
static void stop_workers(Oid dboid);
static bool is_executor_starting(Oid dboid);
static bool is_our_worker(PGPROC *proc, pid_t pid);
static void end_prepared(void);
static void see_object(ObjectAccessType access, Oid classId, Oid objectId,
					   int subId, void *arg);
static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
							   SubTransactionId parentSubid, void *arg);

PG_FUNCTION_INFO_V1(orchestrator_announce);

void
orch_database_install(void)
{
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	previous_access_hook = object_access_hook;
	object_access_hook = see_object;
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest,
				QueryCompletion *qc)
{
	bool top = context == PROCESS_UTILITY_TOPLEVEL;
	Command command = {0};

	if (!RecoveryInProgress())
		examine_command(pstmt->utilityStmt, IsInTransactionBlock(top),
						&command);
	if (OidIsValid(command.blocks))
		block_database(command.blocks);
	if (command.look)
		look_pending = true;

	if (previous_utility_hook)
		previous_utility_hook(pstmt, queryString, readOnlyTree, context,
							  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	if (command.prepared)
		end_prepared();
	if (command.listens)
		orch_notify_listen(command.channel);
	if (command.unlistens)
		orch_notify_unlisten(command.channel);
}

/*
 * Commands that the standard code will refuse in a transaction block are left
 * to it.
 */
static void
examine_command(Node *statement, bool in_block, Command *command)
{
	switch (nodeTag(statement))
	{
		case T_CreatedbStmt:
			examine_create((CreatedbStmt *) statement, in_block, command);
			break;
		case T_AlterDatabaseStmt:
			examine_alter((AlterDatabaseStmt *) statement, in_block, command);
			break;
		case T_DropdbStmt:
			command->look = true;
			if (!in_block)
				command->blocks =
					find_database(((DropdbStmt *) statement)->dbname, false);
			break;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType != OBJECT_DATABASE)
				break;
			command->look = true;
			command->blocks =
				find_database(((RenameStmt *) statement)->subname, false);
			break;
		case T_TransactionStmt:
			command->prepared = ((TransactionStmt *) statement)->kind ==
									TRANS_STMT_COMMIT_PREPARED ||
								((TransactionStmt *) statement)->kind ==
									TRANS_STMT_ROLLBACK_PREPARED;
			break;
		case T_ConstraintsSetStmt:
			orch_execute_note_constraints();
			break;
		case T_ListenStmt:
			command->listens = true;
			command->channel = ((ListenStmt *) statement)->conditionname;
			break;
		case T_UnlistenStmt:
			command->unlistens = true;
			command->channel = ((UnlistenStmt *) statement)->conditionname;
			break;
		case T_DiscardStmt:
			command->unlistens =
				((DiscardStmt *) statement)->target == DISCARD_ALL;
			break;
		default:
			break;
	}
}

static void
examine_create(CreatedbStmt *statement, bool in_block, Command *command)
{
	const char *name = "template1";
	ListCell *cell;

	command->look = true;
	if (in_block)
		return;
	foreach(cell, statement->options)
	{
		DefElem *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			name = defGetString(option);
	}
	command->blocks = find_database(name, true);
}

/*
 * Whether it takes connections, or is a template, is the launcher's business;
 * only a new tablespace needs the database empty.
 */
static void
examine_alter(AlterDatabaseStmt *statement, bool in_block, Command *command)
{
	ListCell *cell;

	command->look = true;
	if (in_block)
		return;
	foreach(cell, statement->options)
	{
		DefElem *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "tablespace") == 0)
			command->blocks = find_database(statement->dbname, false);
	}
}

/*
 * The database whose workers must leave for a command of this role, or
 * InvalidOid: there is none, or the standard code will refuse.  Only
 * copying can be done to the session's own database.
 */
static Oid
find_database(const char *name, bool as_template)
{
	Oid dboid = get_database_oid(name, true);
	HeapTuple tuple;
	Form_pg_database form;
	bool allowed;

	if (!OidIsValid(dboid) || (dboid == MyDatabaseId && !as_template))
		return InvalidOid;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;

	form = (Form_pg_database) GETSTRUCT(tuple);
	allowed = has_privs_of_role(GetUserId(), form->datdba) ||
			  (as_template && form->datistemplate);
	ReleaseSysCache(tuple);
	return allowed ? dboid : InvalidOid;
}

/*
 * Keep our workers out of a database until the end of the transaction.
 */
static void
block_database(Oid dboid)
{
	OrchDatabase *database;

	if (blocking == InvalidSubTransactionId)
		blocking = GetCurrentSubTransactionId();

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(dboid, true);
	if (database != NULL)
		database->blocked_by = MyProcPid;
	LWLockRelease(orch_shared->lock);

	/* It knows of supervisors that have not started yet. */
	orch_shmem_wake_launcher(false);
	stop_workers(dboid);
}

/*
 * With look, no supervisor starts before the launcher has seen what became of
 * the databases.
 */
static void
unblock_databases(bool look)
{
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	if (look)
		orch_shared->launcher_look = true;
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
	{
		OrchDatabase *database = &orch_shared->databases[i];

		if (database->blocked_by != MyProcPid)
			continue;
		database->blocked_by = 0;
		/* That its supervisor ended was no failure. */
		database->failures = 0;
		database->retry_at = 0;
	}
	LWLockRelease(orch_shared->lock);
	blocking = InvalidSubTransactionId;
	orch_shmem_wake_launcher(false);
}

/*
 * When they do not leave in time the command is tried all the same: its own
 * error names what is in the way.
 */
static void
stop_workers(Oid dboid)
{
	TimestampTz start = GetCurrentTimestamp();

	for (int naps = 0;; naps++)
	{
		/* In this order: when it is not starting any more, it is there. */
		bool starting = is_executor_starting(dboid);
		bool signal = naps % STOP_NAPS_A_SIGNAL == 0;

		if (orch_database_workers(dboid, signal) == 0 && !starting)
			return;
		if (TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   STOP_TIMEOUT_MS))
			return;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 STOP_NAP_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Whether the supervisor that just left has asked for an executor that is no
 * process yet.  It comes within moments or never.
 */
static bool
is_executor_starting(Oid dboid)
{
	TimestampTz now = GetCurrentTimestamp();
	bool starting = false;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	for (int i = 0; i < orch_shared->nexecutors && !starting; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		starting = executor->state == ORCH_EXECUTOR_STARTING &&
				   executor->dboid == dboid &&
				   now - executor->since < USECS_PER_SEC;
	}
	LWLockRelease(orch_shared->lock);
	return starting;
}

/*
 * They are told by the type of their process, not by our slots: a worker that
 * has not yet entered its slot, or has left it, is in the way like any other.
 * Processes are looked at without a lock: who comes while we look finds the
 * database blocked.
 */
int
orch_database_workers(Oid dboid, bool terminate)
{
	int count = 0;

	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC *proc = GetPGProcByNumber(i);
		pid_t pid = proc->pid;

		if (proc->databaseId != dboid || pid == 0 || pid == MyProcPid ||
			!is_our_worker(proc, pid))
			continue;
		count++;
		if (terminate)
			(void) kill(pid, SIGTERM);
	}
	return count;
}

/*
 * An entry that is unused keeps its pid on some versions.
 */
static bool
is_our_worker(PGPROC *proc, pid_t pid)
{
	const char *type;

	if (BackendPidGetProc(pid) != proc)
		return false;
	type = GetBackgroundWorkerTypeByPid(pid);
	return type != NULL &&
		   strncmp(type, EXTENSION_NAME " ", strlen(EXTENSION_NAME " ")) == 0;
}

/*
 * A prepared transaction ended.  What it did to our tables or to the extension
 * is known to no session, so look at all of it.
 */
static void
end_prepared(void)
{
	OrchDatabase *database;
	bool supervised;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(MyDatabaseId, false);
	supervised = database != NULL && database->supervisor_pid != 0;
	LWLockRelease(orch_shared->lock);

	/* Elsewhere a wake would start a supervisor to find nothing. */
	if (!supervised && !OidIsValid(get_extension_oid(EXTENSION_NAME, true)))
		return;
	orch_lane_reset(MyDatabaseId, true);
	orch_shmem_wake_supervisor(MyDatabaseId,
							   ORCH_WAKE_LOOK | ORCH_WAKE_CATALOG);
}

/*
 * SQL: the extension changed; its workers shall look once this commits.
 */
Datum
orchestrator_announce(PG_FUNCTION_ARGS)
{
	announced = true;
	PG_RETURN_VOID();
}

static void
see_object(ObjectAccessType access, Oid classId, Oid objectId, int subId,
		   void *arg)
{
	char *version;
	Oid ours;

	if (previous_access_hook)
		previous_access_hook(access, classId, objectId, subId, arg);

	if (classId != ExtensionRelationId ||
		(access != OAT_POST_CREATE && access != OAT_POST_ALTER &&
		 access != OAT_DROP))
		return;

	/* the catalogs' snapshot does not see what this very command did */
	version = orch_catalog_extension(&ours, SnapshotSelf);
	if (version == NULL || ours != objectId)
		return;
	announced = true;
	if (access != OAT_DROP)
		orch_catalog_meet(version);
}

/*
 * Of a prepared transaction end_prepared() will tell.
 */
static void
end_transaction(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;

	if (blocking != InvalidSubTransactionId)
		unblock_databases(event == XACT_EVENT_COMMIT);
	if (event == XACT_EVENT_COMMIT && announced)
		orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_CATALOG);
	if (event == XACT_EVENT_COMMIT && look_pending)
		orch_shmem_wake_launcher(true);
	announced = false;
	look_pending = false;
}

/*
 * A command that failed blocks no longer, even if the transaction goes on.
 */
static void
end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
				   SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && blocking == mySubid)
		unblock_databases(false);
}
