/*
 * retention.c
 *	  Dropping finished tasks that are old enough, by whole partitions.
 *
 * What is due and what becomes of it is SQL (chapter 68).  Here is the worker
 * that carries it out, a step to a transaction: DETACH ... CONCURRENTLY wants
 * to be a command of its own, and nobody is to wait for the whole.  It runs as
 * the superuser of the cluster and therefore no user code.
 *
 * There is no hurry, and others want the processor, the disk and the flushes
 * of WAL: rows are counted, and files given back to the file system, in small
 * steps with rests in between.
 *
 * No lock is waited for longer than LOCK_TIMEOUT, and the end of other
 * transactions not longer than DETACH_TIMEOUT; what was refused is tried again
 * by another worker, at first after a second, then less often.  Whatever
 * ends a worker between two steps, the next one finds in the catalog what is
 * left to do.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_rusage.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"
#include "handler.h"
#include "partition.h"
#include "retention.h"

#define LOCK_TIMEOUT "50ms"

/* While a partition is detached: nobody who reads or writes tasks wants a lock
 * that is held or asked for meanwhile, and it has to wait for the end of each
 * transaction that is under way, of which there may always be some. */
#define DETACH_TIMEOUT "2s"

/* After a lock was refused: doubled each time, up to a minute. */
#define BUSY_PAUSE	   USECS_PER_SEC
#define BUSY_PAUSE_MAX (60 * USECS_PER_SEC)

/* After an error, or the death of a worker. */
#define ERROR_PAUSE (60 * USECS_PER_SEC)

/* A rest is so many times as long as the step before it.  Ranges that are due
 * together share it, so that they do not take for ever. */
#define REST_TIMES		 24
#define LEAST_REST_TIMES 4

/* No longer than this without a look whether somebody waits for us. */
#define NAP_MS 50

/* Blocks whose rows are counted in a millisecond or two. */
#define BLOCKS_AT_ONCE 256

/* Rows that are copied at once. */
#define COPY_ROWS 1000

/* How a step ended. */
typedef enum Outcome
{
	STEP_DONE,
	STEP_BUSY, /* somebody holds a lock */
	STEP_FAILED
} Outcome;

/* The two partitions of a range, locked beyond transactions while judged. */
typedef struct Locked
{
	LockRelId ids[2];
	int n;
} Locked;

typedef void (*Step)(void);

/* Of the supervisor: the worker that it started. */
static BackgroundWorkerHandle *handle = NULL;

/* Of any session: woken at commit. */
static bool wake_pending = false;

/* Of the worker: what its steps work on, for they take no argument. */
static MemoryContext step_context = NULL;
static Locked locked;
static int64 range;
static int64 from_id;
static BlockNumber from_block;
static char *command;
static char *verdict;
static bool more;
static int64 *ranges;
static int nranges;
static char **commands;
static int ncommands;
static TimestampTz next_look;

/* Of the worker: the rows of the range that is locked. */
static MemoryContext count_context = NULL;
static HTAB *counted = NULL;

/* Of the worker: microseconds. */
static int64 rest_times = REST_TIMES;
static int64 step_time;
static int64 work_time = 0;
static PGRUsage usage;

static void end_transaction(XactEvent event, void *arg);
static void look_at(Oid dboid, TimestampTz at);
static void start_session(Oid dboid);
static Outcome keep_house(void);
static Outcome finish_commands(void);
static Outcome judge_ranges(void);
static Outcome judge_range(void);
static Outcome carry_out(void);
static Outcome leave_ranges(void);
static Outcome leave_range(void);
static Outcome perform(Step step);
static Outcome work_through(Step step);
static Outcome run_command(void);
static void begin_step(const char *activity);
static void end_step(void);
static Outcome judge_failure(void);
static void rest(void);
static void unlock_range(void);
static bool lock_partition(const char *kind);
static void read_ranges(OrchFunction function);

PG_FUNCTION_INFO_V1(orchestrator_wake_retention);
PG_FUNCTION_INFO_V1(orchestrator_copy_frozen);
PG_FUNCTION_INFO_V1(orchestrator_count_rows);
PG_FUNCTION_INFO_V1(orchestrator_goes_along);

/* ------------------------------------------------------- any session */

void
orch_retention_install(void)
{
	RegisterXactCallback(end_transaction, NULL);
}

/*
 * orchestrator._wake_retention()
 */
Datum
orchestrator_wake_retention(PG_FUNCTION_ARGS)
{
	wake_pending = true;
	PG_RETURN_VOID();
}

static void
end_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_pending && orch_preloaded)
		look_at(MyDatabaseId, orch_clock());
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		wake_pending = false;
}

static void
look_at(Oid dboid, TimestampTz at)
{
	OrchDatabase *database;
	bool lowered = false;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(dboid, false);
	if (database != NULL)
	{
		uint64 known = pg_atomic_read_u64(&database->retention_at);

		while (at < (TimestampTz) known && !lowered)
			lowered = pg_atomic_compare_exchange_u64(&database->retention_at,
													 &known, (uint64) at);
	}
	LWLockRelease(orch_shared->lock);

	/* a supervisor that starts looks by itself */
	if (lowered)
		orch_shmem_wake_supervisor(dboid, ORCH_WAKE_DUE);
}

/* ------------------------------------------------------ the supervisor */

void
orch_retention_find(void)
{
	bool isnull;
	Datum next = orch_catalog_call(ORCH_FN_RETENTION_NEXT, 0, NULL, &isnull);

	if (!isnull)
		look_at(MyDatabaseId, DatumGetTimestampTz(next));
}

TimestampTz
orch_retention_at(OrchDatabase *database, bool may_fire)
{
	pid_t pid;

	/* while it works, its end wakes us */
	if (!may_fire || !orch_enabled ||
		(handle != NULL &&
		 GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED))
		return DT_NOEND;
	return (TimestampTz) pg_atomic_read_u64(&database->retention_at);
}

bool
orch_retention_manage(OrchDatabase *database, bool may_fire)
{
	TimestampTz now = orch_clock();
	pid_t pid;

	if (handle != NULL)
	{
		if (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
			return true;
		pfree(handle);
		handle = NULL;
		if (!database->retention_done)
			look_at(MyDatabaseId, now + ERROR_PAUSE);
	}
	if (now < orch_retention_at(database, may_fire))
		return true;
	database->retention_done = false;
	pg_atomic_write_u64(&database->retention_at, PG_INT64_MAX);
	handle = orch_shmem_start_worker("retention");
	if (handle != NULL)
		return true;
	look_at(MyDatabaseId, now + USECS_PER_SEC);
	return false;
}

/* ---------------------------------------------------------- the worker */

void
orchestrator_retention_main(Datum main_arg)
{
	Oid dboid = DatumGetObjectId(main_arg);
	OrchDatabase *database;
	Outcome outcome;
	TimestampTz now;

	start_session(dboid);
	outcome = keep_house();
	now = orch_clock();

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(dboid, false);
	if (database != NULL)
	{
		database->retention_busy =
			outcome == STEP_BUSY ? Min(database->retention_busy + 1, 7) : 0;
		if (outcome == STEP_BUSY)
			next_look = now + Min(BUSY_PAUSE << (database->retention_busy - 1),
								  BUSY_PAUSE_MAX);
		else if (outcome == STEP_FAILED)
			next_look = now + ERROR_PAUSE;
		database->retention_done = true;
	}
	LWLockRelease(orch_shared->lock);
	look_at(dboid, Max(next_look, now + BUSY_PAUSE));
	proc_exit(0);
}

static void
start_session(Oid dboid)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	orch_shmem_connect(dboid, InvalidOid);
	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("max_parallel_workers_per_gather", "0", PGC_SUSET,
					PGC_S_OVERRIDE);
	/* a step that a crash undoes is done again */
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	step_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator retention", ALLOCSET_DEFAULT_SIZES);
	count_context =
		AllocSetContextCreate(TopMemoryContext, "orchestrator finished rows",
							  ALLOCSET_DEFAULT_SIZES);
	pg_rusage_init(&usage);
	next_look = DT_NOEND;
}

static void
find_next(void)
{
	bool isnull;
	Datum next = orch_catalog_call(ORCH_FN_RETENTION_NEXT, 0, NULL, &isnull);

	next_look = isnull ? DT_NOEND : DatumGetTimestampTz(next);
}

static void
forget_keys(void)
{
	more = DatumGetInt32(
			   orch_catalog_call(ORCH_FN_FORGET_KEYS, 0, NULL, NULL)) > 0;
}

/*
 * First what was begun, then what is due.  What is locked is left; an error
 * ends it all.
 */
static Outcome
keep_house(void)
{
	Outcome worst = finish_commands();

	if (worst != STEP_FAILED)
		worst = Max(worst, leave_ranges());
	/* no other partition can be detached before those are */
	if (worst == STEP_DONE)
		worst = judge_ranges();
	if (worst != STEP_FAILED && work_through(forget_keys) == STEP_FAILED)
		return STEP_FAILED;
	if (worst == STEP_DONE)
		worst = perform(find_next);
	return worst;
}

static void
read_commands(void)
{
	ArrayType *array = DatumGetArrayTypeP(
		orch_catalog_call(ORCH_FN_RETENTION_COMMANDS, 0, NULL, NULL));
	MemoryContext old;
	Datum *values;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL,
					  &ncommands);
	old = MemoryContextSwitchTo(TopMemoryContext);
	commands = palloc(Max(ncommands, 1) * sizeof(char *));
	for (int i = 0; i < ncommands; i++)
		commands[i] = TextDatumGetCString(values[i]);
	MemoryContextSwitchTo(old);
}

/*
 * What a worker before us, or the judge, has begun to detach.
 */
static Outcome
finish_commands(void)
{
	Outcome worst = perform(read_commands);

	for (int i = 0; worst == STEP_DONE && i < ncommands; i++)
	{
		command = commands[i];
		worst = run_command();
	}
	return worst;
}

static void
read_ranges(OrchFunction function)
{
	ArrayType *array =
		DatumGetArrayTypeP(orch_catalog_call(function, 0, NULL, NULL));

	nranges = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	ranges =
		MemoryContextAlloc(TopMemoryContext, Max(nranges, 1) * sizeof(int64));
	memcpy(ranges, ARR_DATA_PTR(array), nranges * sizeof(int64));
}

static void
read_due(void)
{
	read_ranges(ORCH_FN_RETENTION_DUE);
}

static void
read_expired(void)
{
	read_ranges(ORCH_FN_EXPIRED_RANGES);
}

static void
glance(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	more = DatumGetBool(orch_catalog_call(ORCH_FN_GLANCE, 1, &arg, NULL));
}

/*
 * Leave of the ranges that may be due those that a glance shows not to be.
 */
static Outcome
glance_at_ranges(void)
{
	Outcome worst = perform(read_due);
	int n = 0;

	for (int i = 0; worst != STEP_FAILED && i < nranges; i++)
	{
		range = ranges[i];
		more = false;
		worst = Max(worst, perform(glance));
		if (more)
			ranges[n++] = range;
	}
	nranges = n;
	return worst;
}

/*
 * Each is gone before the next is judged: a partition that is half detached
 * keeps others from being.
 */
static Outcome
judge_ranges(void)
{
	Outcome worst = glance_at_ranges();
	int64 *due = ranges;
	int n = nranges;

	rest_times = Max(REST_TIMES / Max(n, 1), LEAST_REST_TIMES);
	for (int i = 0; worst != STEP_FAILED && i < n; i++)
	{
		Outcome outcome;

		range = due[i];
		verdict = "keep";
		outcome = judge_range();
		unlock_range();
		worst = Max(worst, outcome);
		if (strcmp(verdict, "keep") == 0)
			continue;
		if (outcome == STEP_DONE)
			outcome = finish_commands();
		if (outcome == STEP_DONE)
			outcome = perform(read_expired);
		if (outcome == STEP_DONE)
			outcome = leave_range();
		worst = Max(worst, outcome);
		if (outcome != STEP_DONE)
			break;
	}
	return worst;
}

/*
 * Lock a partition of the range until unlock_range(): readers go on, but
 * nobody changes its rows between our judgement and what we do about it.
 */
static bool
lock_partition(const char *kind)
{
	char name[NAMEDATALEN];
	Relation rel;
	Oid relid;

	snprintf(name, sizeof(name), "%s_" INT64_FORMAT, kind, range);
	relid = get_relname_relid(name, orch_catalog(false)->schema);
	rel = OidIsValid(relid) ? try_table_open(relid, ExclusiveLock) : NULL;
	if (rel == NULL)
		return false;
	locked.ids[locked.n] = rel->rd_lockInfo.lockRelId;
	LockRelationIdForSession(&locked.ids[locked.n], ExclusiveLock);
	locked.n++;
	table_close(rel, NoLock);
	return true;
}

static void
lock_range(void)
{
	more = lock_partition("task_finished");
	(void) lock_partition("trace_log");
}

static void
unlock_range(void)
{
	while (locked.n > 0)
		UnlockRelationIdForSession(&locked.ids[--locked.n], ExclusiveLock);
	MemoryContextReset(count_context);
	counted = NULL;
}

static bool
somebody_waits(void)
{
	LOCKTAG tag;

	for (int i = 0; i < locked.n; i++)
	{
		SET_LOCKTAG_RELATION(tag, locked.ids[i].dbId, locked.ids[i].relId);
		if (LockHasWaiters(&tag, ExclusiveLock, false))
			return true;
	}
	return false;
}

static void
count_blocks(void)
{
	more = orch_partition_count(counted, locked.ids[0].relId, from_block,
								BLOCKS_AT_ONCE);
	from_block += BLOCKS_AT_ONCE;
}

/*
 * Some blocks to a transaction: no snapshot is held for long.
 */
static Outcome
count_range(void)
{
	MemoryContextSwitchTo(count_context);
	counted = orch_partition_groups();
	MemoryContextSwitchTo(TopMemoryContext);
	from_block = 0;
	return work_through(count_blocks);
}

static void
judge(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	verdict = MemoryContextStrdup(
		TopMemoryContext,
		TextDatumGetCString(orch_catalog_call(ORCH_FN_JUDGE, 1, &arg, NULL)));
}

static void
rewrite(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	(void) orch_catalog_call(ORCH_FN_REWRITE, 1, &arg, &(bool){false});
}

/*
 * Before anything is copied: whoever holds a lock on a parent for long, such
 * as an open report, would have us do it for nothing.
 */
static void
probe_parents(void)
{
	Oid parents[2] = {
		orch_catalog(false)->task_finished,
		get_relname_relid("trace_log", orch_catalog(false)->schema)};

	more = true;
	for (int i = 0; i < lengthof(parents) && more; i++)
		more = ConditionalLockRelationOid(parents[i], AccessExclusiveLock);
}

static Outcome
rewrite_range(void)
{
	Outcome outcome = perform(probe_parents);

	if (outcome == STEP_DONE && !more)
		return STEP_BUSY;
	return outcome == STEP_DONE ? perform(rewrite) : outcome;
}

static Outcome
judge_range(void)
{
	Outcome outcome = perform(lock_range);

	if (outcome != STEP_DONE || !more)
		return outcome;
	outcome = count_range();
	if (outcome == STEP_DONE)
		outcome = perform(judge);
	return outcome == STEP_DONE ? carry_out() : outcome;
}

static Outcome
carry_out(void)
{
	if (strcmp(verdict, "rewrite") == 0)
		return rewrite_range();
	if (strcmp(verdict, "drop") != 0)
		return STEP_DONE;
	command =
		psprintf("ALTER TABLE orchestrator.task_finished DETACH PARTITION "
				 "orchestrator.task_finished_" INT64_FORMAT " CONCURRENTLY",
				 range);
	return run_command();
}

static Outcome
leave_ranges(void)
{
	Outcome worst = perform(read_expired);

	for (int i = 0; worst != STEP_FAILED && i < nranges; i++)
	{
		Outcome outcome;

		range = ranges[i];
		outcome = leave_range();
		worst = Max(worst, outcome);
	}
	return worst;
}

static void
archive(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	more = DatumGetBool(orch_catalog_call(ORCH_FN_ARCHIVE, 1, &arg, NULL));
}

static void
forget(void)
{
	NullableDatum args[2] = {{Int64GetDatum(range), false},
							 {Int64GetDatum(from_id), false}};
	bool isnull;
	Datum next = orch_catalog_call(ORCH_FN_FORGET_RANGE, 2, args, &isnull);

	more = !isnull;
	from_id = DatumGetInt64(next);
}

static void
close_expired(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	(void) orch_catalog_call(ORCH_FN_CLOSE_EXPIRED, 1, &arg, &(bool){false});
}

static void
shrink(void)
{
	static const char *const kinds[] = {"trace_log", "task_finished"};

	more = false;
	for (int i = 0; i < lengthof(kinds) && !more; i++)
	{
		Oid relid = get_relname_relid(
			psprintf("expired_%s_" INT64_FORMAT, kinds[i], range),
			orch_catalog(false)->schema);

		more = OidIsValid(relid) && orch_partition_shrink(relid);
	}
}

static void
drop(void)
{
	NullableDatum arg = {Int64GetDatum(range), false};

	(void) orch_catalog_call(ORCH_FN_DROP_EXPIRED, 1, &arg, &(bool){false});
}

static void
report_drop(void)
{
	ereport(
		LOG,
		(errmsg(
			"finished tasks from id %lld on were dropped; the worker has worked for %lld ms; %s",
			(long long) range * 1000000, (long long) work_time / 1000,
			pg_rusage_show(&usage))));
}

/*
 * What was set aside goes when it is archived; the files little by little, for
 * a file system that gives back much at once holds up everybody's flush of WAL.
 */
static Outcome
leave_range(void)
{
	Outcome outcome = perform(archive);

	if (outcome != STEP_DONE || !more)
		return outcome;
	from_id = range * INT64CONST(1000000);
	outcome = work_through(forget);
	if (outcome == STEP_DONE)
		outcome = perform(close_expired);
	if (outcome == STEP_DONE)
		outcome = work_through(shrink);
	if (outcome == STEP_DONE)
		outcome = perform(drop);
	if (outcome == STEP_DONE)
		report_drop();
	return outcome;
}

/*
 * A step in a transaction of its own.
 */
static Outcome
perform(Step step)
{
	volatile Outcome outcome = STEP_DONE;

	begin_step("orchestrator retention");
	PushActiveSnapshot(GetTransactionSnapshot());
	PG_TRY();
	{
		if (orch_catalog(true) == NULL)
			outcome = STEP_FAILED; /* the extension was dropped */
		else
			step();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		outcome = judge_failure();
	}
	PG_END_TRY();
	end_step();
	return outcome;
}

/*
 * A step after the other until there is no more to do.
 */
static Outcome
work_through(Step step)
{
	Outcome outcome = perform(step);

	while (outcome == STEP_DONE && more)
	{
		rest();
		outcome = perform(step);
	}
	return outcome;
}

/*
 * A command that has transactions of its own.
 */
static Outcome
run_command(void)
{
	volatile Outcome outcome = STEP_DONE;

	begin_step(command);
	SetConfigOption("lock_timeout", DETACH_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	MemoryContextSwitchTo(step_context);
	PG_TRY();
	{
		orch_handler_run_command(command);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		outcome = judge_failure();
	}
	PG_END_TRY();
	SetConfigOption("lock_timeout", LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	end_step();
	return outcome;
}

static void
begin_step(const char *activity)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
end_step(void)
{
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextReset(step_context);
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
	step_time = GetCurrentTimestamp() - GetCurrentStatementStartTimestamp();
	work_time += step_time;
}

/*
 * Leave most of the machine to those who run tasks, but never keep anybody
 * waiting for it.
 */
static void
rest(void)
{
	TimestampTz until = GetCurrentTimestamp() + rest_times * step_time;
	long left;

	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												   until)) > 0 &&
		   !somebody_waits())
	{
		(void) WaitLatch(
			MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
			Min(left, NAP_MS), orch_wait_event(ORCH_WAIT_RETENTION));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * In a PG_CATCH: end the transaction, and say why it failed.
 */
static Outcome
judge_failure(void)
{
	bool busy;

	MemoryContextSwitchTo(step_context);
	busy = geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE;
	if (!busy)
		EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	PortalErrorCleanup();
	locked.n = 0; /* an abort releases those of the session, too */
	return busy ? STEP_BUSY : STEP_FAILED;
}

/* ----------------------------------------------------- internal functions */

/*
 * orchestrator._copy_frozen(query, target): the rows are visible to everybody
 * who will ever see the table, also to snapshots from before.  That is right
 * only for rows that were visible to all before, in a table that this
 * transaction made and nobody else can see yet.
 */
Datum
orchestrator_copy_frozen(PG_FUNCTION_ARGS)
{
	char *query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Relation rel = table_open(PG_GETARG_OID(1), AccessExclusiveLock);
	BulkInsertState state = GetBulkInsertState();
	CommandId cid = GetCurrentCommandId(true);
	TupleTableSlot *slot;
	Portal portal;
	int64 count = 0;

	if (rel->rd_createSubid == InvalidSubTransactionId)
		elog(ERROR, "table \"%s\" was not made by this transaction",
			 RelationGetRelationName(rel));
	SPI_connect();
	slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);
	portal = SPI_cursor_open_with_args(NULL, query, 0, NULL, NULL, NULL, true,
									   CURSOR_OPT_NO_SCROLL);
	do
	{
		SPI_cursor_fetch(portal, true, COPY_ROWS);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			CHECK_FOR_INTERRUPTS();
			ExecForceStoreHeapTuple(SPI_tuptable->vals[i], slot, false);
			table_tuple_insert(rel, slot, cid,
							   TABLE_INSERT_SKIP_FSM | TABLE_INSERT_FROZEN,
							   state);
			ExecClearTuple(slot);
			count++;
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
	ExecDropSingleTupleTableSlot(slot);
	SPI_finish();
	FreeBulkInsertState(state);
	table_close(rel, NoLock);
	PG_RETURN_INT64(count);
}

/*
 * orchestrator._count_rows(partition, sample): the worker has counted those of
 * the partition that it holds a lock on.
 */
Datum
orchestrator_count_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid relid = PG_GETARG_OID(0);
	HTAB *groups = counted;
	HASH_SEQ_STATUS scan;
	OrchGroup *group;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_GETARG_BOOL(1))
	{
		groups = orch_partition_groups();
		orch_partition_sample(groups, relid);
	}
	else if (groups == NULL || relid != locked.ids[0].relId)
	{
		groups = orch_partition_groups();
		(void) orch_partition_count(groups, relid, 0, MaxBlockNumber);
	}
	hash_seq_init(&scan, groups);
	while ((group = hash_seq_search(&scan)) != NULL)
	{
		bool rooted = group->last_root > 0;
		Datum values[] = {Int32GetDatum(group->key.queue),
						  ObjectIdGetDatum(group->key.state),
						  BoolGetDatum(group->key.in_tree),
						  Int64GetDatum(group->rows),
						  TimestampTzGetDatum(group->newest),
						  Int64GetDatum(group->least_root),
						  Int64GetDatum(group->last_root)};
		bool nulls[] = {false, false, false, false, false, !rooted, !rooted};

		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/*
 * orchestrator._goes_along(relation): DROP EXTENSION drops it, too.
 */
Datum
orchestrator_goes_along(PG_FUNCTION_ARGS)
{
	ObjectAddress relation;
	ObjectAddress table;

	ObjectAddressSet(relation, RelationRelationId, PG_GETARG_OID(0));
	ObjectAddressSet(table, RelationRelationId,
					 orch_catalog(false)->task_finished);
	recordDependencyOn(&relation, &table, DEPENDENCY_AUTO);
	PG_RETURN_VOID();
}
