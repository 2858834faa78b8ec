/*
 * heap.c
 *	  Direct access to the leaves of orchestrator.task: the hot path.
 *
 * Two tuples of the same id never live at once: the settle deletes the live
 * row in the transaction that writes the finished one.  An update or delete
 * never waits and never follows a chain of versions: whatever is not TM_Ok is
 * "skip" to a claim and "go the SQL way" to a settle.
 *
 * The indexes of task_live are known by name, so that only the ones whose
 * predicate holds are opened and written.  Any other index (a DBA's own) is
 * maintained the general way.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "compat.h"
#include "heap.h"

#define MAX_LEAF_INDEXES 32

/* Rows inserted in one go.  A row's slot and its formed tuple take about 1 kB,
 * which the transaction's memory would fault in again at every commit. */
#define ROWS_AT_ONCE 64

/* When an index has an entry for a row. */
typedef enum IndexRule
{
	RULE_ALWAYS,
	RULE_PENDING,
	RULE_PARKED,
	RULE_SCHEDULED,
	RULE_LATER,
	RULE_RUNNING,
	RULE_EXPIRES,
	RULE_HAS_PARENT,
	RULE_GENERAL /* ask its predicate */
} IndexRule;

typedef struct LeafIndex
{
	Oid oid;
	IndexRule rule;
	Relation rel;	 /* NULL until needed */
	IndexInfo *info; /* of RULE_GENERAL, and a stand-in for others */
	ExprState *predicate;
} LeafIndex;

struct OrchLeaf
{
	Relation rel;
	bool live;
	int nindexes;
	LeafIndex indexes[MAX_LEAF_INDEXES];
	TupleTableSlot *slot;
	EState *estate; /* made for RULE_GENERAL only */
	MemoryContext context;
	BlockNumber nblocks; /* or less than there are now; 0: not asked */

	/* of orch_heap_lock; NULL until needed */
	Relation id_index;
	IndexScanDesc id_scan;
	TupleTableSlot *id_slot;
};

struct OrchReadyScan
{
	OrchLeaf *live;
	Relation index;
	IndexScanDesc scan;
	Snapshot snapshot;
	TupleTableSlot *slot;
};

static const char *const column_names[ORCH_TASK_COLUMNS] = {
	"id",		 "sort_key",   "created_at",   "started_at",   "finished_at",
	"run_at",	 "expire_at",  "deadline",	   "parent_id",	   "root_id",
	"state",	 "held_state", "owner",		   "definition",   "queue",
	"priority",	 "attempt",	   "max_attempts", "epoch",		   "worker",
	"live",		 "plan",	   "step",		   "item",		   "iteration",
	"remaining", "held_by",	   "parked_on",	   "changed_at",   "name",
	"key",		 "command",	   "traceparent",  "input",		   "output",
	"error",	 "metadata",   "resources",	   "compensation", "callbacks"};

static OrchLeaf *open_leaf(Oid relid, bool live);
static void require_columns(TupleDesc desc);
static void report_misfit(void);
static IndexRule rule_of(Oid index, bool live);
static bool index_applies(LeafIndex *index, const OrchRow *row);
static bool waits_later(const OrchRow *row);
static bool was_changed_by_us(TupleTableSlot *slot);
static void open_index(OrchLeaf *leaf, LeafIndex *index);
static void prepare_index(OrchLeaf *leaf, LeafIndex *index);
static void insert_indexes(OrchLeaf *leaf, const OrchRow *row, ItemPointer tid,
						   bool is_update);
static void insert_general(OrchLeaf *leaf, LeafIndex *index,
						   const OrchRow *row, ItemPointer tid);
static OrchReadyScan *begin_scan(OrchLeaf *live, Oid index, ScanKeyData *keys,
								 int32 owner, int64 from);
static Datum first_row(OrchLeaf *live, Oid indexid, ScanKey keys, int nkeys,
					   OrchColumn column);
static int32 first_waiting_owner(OrchLeaf *live, Relation index, int32 after,
								 TupleTableSlot *slot);
static int64 count_entries(OrchLeaf *live, Relation index, int32 owner,
						   int32 queue, int64 limit, TimestampTz *oldest,
						   TupleTableSlot *slot);
static TimestampTz ready_since(TupleTableSlot *slot);
static void insert_some(OrchLeaf *leaf, OrchRow *const *rows,
						TupleTableSlot **slots, int n, MemoryContext formed);
static void store_row(TupleTableSlot *slot, const OrchRow *row);
static void read_slot(TupleTableSlot *slot, OrchRow *row, ItemPointer tid);
static bool find_live(OrchLeaf *live, int64 id, Snapshot snapshot);
static bool read_leaf(Oid relid, Oid index, int64 task, OrchTaskView *view);
static Oid unique_index_on_id(Oid relid);

void
orch_row_set(OrchRow *row, OrchColumn column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

void
orch_row_set_null(OrchRow *row, OrchColumn column)
{
	row->values[column] = (Datum) 0;
	row->nulls[column] = true;
}

void
orch_row_announce(const OrchRow *row, OrchEventKind kind, OrchState state,
				  double progress, bool notify)
{
	int64 id = ORCH_INT64(row, ORCH_TASK_ID);

	orch_event_transition(
		id,
		row->nulls[ORCH_TASK_ROOT_ID] ? id
									  : ORCH_INT64(row, ORCH_TASK_ROOT_ID),
		row->nulls[ORCH_TASK_PARENT_ID] ? 0
										: ORCH_INT64(row, ORCH_TASK_PARENT_ID),
		kind, state, progress, ORCH_INT32(row, ORCH_TASK_ATTEMPT), notify);
}

void
orch_row_deform(HeapTupleHeader header, OrchRow *row)
{
	TupleDesc desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
											HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header),
						   .t_data = header};
	Datum *values = palloc(desc->natts * sizeof(Datum));
	bool *nulls = palloc(desc->natts * sizeof(bool));

	require_columns(desc);
	heap_deform_tuple(&tuple, desc, values, nulls);
	memcpy(row->values, values, sizeof(row->values));
	memcpy(row->nulls, nulls, sizeof(row->nulls));
	pfree(values);
	pfree(nulls);
	ReleaseTupleDesc(desc);
}

void
orch_row_copy(OrchRow *to, const OrchRow *from)
{
	*to = *from;
	for (int i = ORCH_TASK_NAME; i < ORCH_TASK_COLUMNS; i++)
	{
		if (!to->nulls[i])
			to->values[i] = datumCopy(from->values[i], false, -1);
	}
}

void
orch_heap_check_columns(void)
{
	Relation rel = table_open(orch_catalog(false)->task_live, AccessShareLock);
	TupleDesc desc = RelationGetDescr(rel);

	require_columns(desc);
	for (int i = 0; i < ORCH_TASK_COLUMNS; i++)
	{
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname),
				   column_names[i]) != 0)
			report_misfit();
	}
	table_close(rel, AccessShareLock);
}

/*
 * Those that somebody added have no values here; dropped, they are null.
 */
static void
require_columns(TupleDesc desc)
{
	if (desc->natts < ORCH_TASK_COLUMNS)
		report_misfit();
	for (int i = ORCH_TASK_COLUMNS; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			report_misfit();
	}
}

static void
report_misfit(void)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("table orchestrator.task does not fit the loaded library"),
		 errhint(
			 "Run ALTER EXTENSION orchestrator UPDATE, or restart the server to load the matching library. Columns that were added must be dropped.")));
}

OrchLeaf *
orch_heap_open_live(void)
{
	return open_leaf(orch_catalog(false)->task_live, true);
}

OrchLeaf *
orch_heap_open_finished(int64 id)
{
	for (;;)
	{
		Oid relid = orch_catalog_finished(id);

		/* it may have been detached before we had the lock */
		LockRelationOid(relid, RowExclusiveLock);
		if (orch_catalog_finished(id) == relid)
			return open_leaf(relid, false);
		UnlockRelationOid(relid, RowExclusiveLock);
	}
}

static OrchLeaf *
open_leaf(Oid relid, bool live)
{
	OrchLeaf *leaf = palloc0(sizeof(OrchLeaf));
	List *list;
	ListCell *cell;

	leaf->rel = table_open(relid, RowExclusiveLock);
	require_columns(RelationGetDescr(leaf->rel));
	leaf->live = live;
	leaf->context = CurrentMemoryContext;
	leaf->slot =
		MakeSingleTupleTableSlot(RelationGetDescr(leaf->rel), &TTSOpsVirtual);
	list = RelationGetIndexList(leaf->rel);
	if (list_length(list) > MAX_LEAF_INDEXES)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("table \"%s\" has too many indexes",
							   RelationGetRelationName(leaf->rel))));
	foreach(cell, list)
	{
		LeafIndex *index = &leaf->indexes[leaf->nindexes++];

		index->oid = lfirst_oid(cell);
		index->rule = rule_of(index->oid, live);
	}
	list_free(list);
	return leaf;
}

static IndexRule
rule_of(Oid index, bool live)
{
	const OrchCatalog *known = orch_catalog(false);

	if (!live)
		return RULE_GENERAL;
	if (index == known->live_id)
		return RULE_ALWAYS;
	if (index == known->live_ready)
		return RULE_PENDING;
	if (index == known->live_parked)
		return RULE_PARKED;
	if (index == known->live_due)
		return RULE_SCHEDULED;
	if (index == known->live_later)
		return RULE_LATER;
	if (index == known->live_running)
		return RULE_RUNNING;
	if (index == known->live_expire)
		return RULE_EXPIRES;
	if (index == known->live_parent)
		return RULE_HAS_PARENT;
	return RULE_GENERAL;
}

void
orch_heap_close(OrchLeaf *leaf)
{
	for (int i = 0; i < leaf->nindexes; i++)
	{
		if (leaf->indexes[i].rel != NULL)
			index_close(leaf->indexes[i].rel, NoLock);
	}
	if (leaf->estate != NULL)
		FreeExecutorState(leaf->estate);
	if (leaf->id_scan != NULL)
	{
		index_endscan(leaf->id_scan);
		index_close(leaf->id_index, NoLock);
		ExecDropSingleTupleTableSlot(leaf->id_slot);
	}
	ExecDropSingleTupleTableSlot(leaf->slot);
	table_close(leaf->rel, NoLock);
	pfree(leaf);
}

static bool
index_applies(LeafIndex *index, const OrchRow *row)
{
	Oid state = DatumGetObjectId(row->values[ORCH_TASK_STATE]);
	const Oid *states = orch_catalog(false)->states;

	switch (index->rule)
	{
		case RULE_ALWAYS:
		case RULE_GENERAL:
			return true;
		case RULE_PENDING:
			return state == states[ORCH_STATE_PENDING] &&
				   row->nulls[ORCH_TASK_PARKED_ON];
		case RULE_PARKED:
			return state == states[ORCH_STATE_PENDING] &&
				   !row->nulls[ORCH_TASK_PARKED_ON];
		case RULE_SCHEDULED:
			return state == states[ORCH_STATE_SCHEDULED];
		case RULE_LATER:
			return waits_later(row);
		case RULE_RUNNING:
			return state == states[ORCH_STATE_RUNNING];
		case RULE_EXPIRES:
			return !row->nulls[ORCH_TASK_EXPIRE_AT];
		case RULE_HAS_PARENT:
			return !row->nulls[ORCH_TASK_PARENT_ID];
	}
	return true;
}

/*
 * Whether a row waits but is not ready: scheduled, parked, or held before it
 * was started.
 */
static bool
waits_later(const OrchRow *row)
{
	const Oid *states = orch_catalog(false)->states;
	Oid state = DatumGetObjectId(row->values[ORCH_TASK_STATE]);
	Oid held = row->nulls[ORCH_TASK_HELD_STATE]
				   ? InvalidOid
				   : DatumGetObjectId(row->values[ORCH_TASK_HELD_STATE]);

	if (state == states[ORCH_STATE_PENDING])
		return !row->nulls[ORCH_TASK_PARKED_ON];
	return state == states[ORCH_STATE_SCHEDULED] ||
		   (state == states[ORCH_STATE_PAUSED] &&
			(held == states[ORCH_STATE_PENDING] ||
			 held == states[ORCH_STATE_SCHEDULED]));
}

static void
open_index(OrchLeaf *leaf, LeafIndex *index)
{
	MemoryContext old = MemoryContextSwitchTo(leaf->context);

	prepare_index(leaf, index);
	MemoryContextSwitchTo(old);
}

static void
prepare_index(OrchLeaf *leaf, LeafIndex *index)
{
	index->rel = index_open(index->oid, RowExclusiveLock);

	/* a finished leaf's index on id alone needs no executor either */
	if (!leaf->live && index->rel->rd_index->indisunique &&
		index->rel->rd_index->indnatts == 1 &&
		index->rel->rd_index->indkey.values[0] == ORCH_TASK_ID + 1)
		index->rule = RULE_ALWAYS;

	if (index->rule != RULE_GENERAL)
	{
		index->info = makeNode(IndexInfo);
		index->info->ii_NumIndexAttrs = index->rel->rd_index->indnatts;
		return;
	}
	index->info = BuildIndexInfo(index->rel);
	if (leaf->estate == NULL)
		leaf->estate = CreateExecutorState();
	if (index->info->ii_Predicate != NIL)
		index->predicate =
			ExecPrepareQual(index->info->ii_Predicate, leaf->estate);
}

/*
 * Entries of one row in every index that has one for it.  An update keeps the
 * id, so its uniqueness was checked when the row was inserted.
 */
static void
insert_indexes(OrchLeaf *leaf, const OrchRow *row, ItemPointer tid,
			   bool is_update)
{
	ItemPointerData place = *tid; /* of a slot that insert_general() clears */

	for (int i = 0; i < leaf->nindexes; i++)
	{
		LeafIndex *index = &leaf->indexes[i];
		Datum values[INDEX_MAX_KEYS];
		bool nulls[INDEX_MAX_KEYS];
		Form_pg_index form;

		if (!index_applies(index, row))
			continue;
		if (index->rel == NULL)
			open_index(leaf, index);
		if (index->rule == RULE_GENERAL)
		{
			insert_general(leaf, index, row, &place);
			continue;
		}
		form = index->rel->rd_index;
		for (int j = 0; j < form->indnatts; j++)
		{
			values[j] = row->values[form->indkey.values[j] - 1];
			nulls[j] = row->nulls[form->indkey.values[j] - 1];
		}
		index_insert(index->rel, values, nulls, &place, leaf->rel,
					 form->indisunique && !is_update ? UNIQUE_CHECK_YES
													 : UNIQUE_CHECK_NO,
					 false, index->info);
	}
}

static void
insert_general(OrchLeaf *leaf, LeafIndex *index, const OrchRow *row,
			   ItemPointer tid)
{
	ExprContext *context = GetPerTupleExprContext(leaf->estate);
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];

	store_row(leaf->slot, row);
	context->ecxt_scantuple = leaf->slot;
	if (index->info->ii_ReadyForInserts && ExecQual(index->predicate, context))
	{
		FormIndexDatum(index->info, leaf->slot, leaf->estate, values, nulls);
		index_insert(index->rel, values, nulls, tid, leaf->rel,
					 index->rel->rd_index->indisunique ? UNIQUE_CHECK_YES
													   : UNIQUE_CHECK_NO,
					 false, index->info);
	}
	ResetPerTupleExprContext(leaf->estate);
}

static void
store_row(TupleTableSlot *slot, const OrchRow *row)
{
	ExecClearTuple(slot);
	memcpy(slot->tts_values, row->values, sizeof(row->values));
	memcpy(slot->tts_isnull, row->nulls, sizeof(row->nulls));
	memset(slot->tts_isnull + ORCH_TASK_COLUMNS, true,
		   slot->tts_tupleDescriptor->natts - ORCH_TASK_COLUMNS);
	ExecStoreVirtualTuple(slot);
}

/*
 * What the constraints of the table would say.
 */
static void
assert_row(const OrchLeaf *leaf, const OrchRow *row)
{
	Assert(leaf->live == DatumGetBool(row->values[ORCH_TASK_LIVE]));
	Assert(!row->nulls[ORCH_TASK_ID] && !row->nulls[ORCH_TASK_CREATED_AT]);
	Assert(!row->nulls[ORCH_TASK_STATE] && !row->nulls[ORCH_TASK_OWNER]);
	Assert(!row->nulls[ORCH_TASK_INPUT] && !row->nulls[ORCH_TASK_EPOCH]);
	Assert(!row->nulls[ORCH_TASK_QUEUE] && !row->nulls[ORCH_TASK_DEFINITION]);
	(void) leaf;
	(void) row;
}

void
orch_heap_insert(OrchLeaf *leaf, const OrchRow *row)
{
	assert_row(leaf, row);
	store_row(leaf->slot, row);
	table_tuple_insert(leaf->rel, leaf->slot, GetCurrentCommandId(true), 0,
					   NULL);
	insert_indexes(leaf, row, &leaf->slot->tts_tid, false);
}

void
orch_heap_insert_many(OrchLeaf *leaf, OrchRow *const *rows, int n)
{
	TupleTableSlot *slots[ROWS_AT_ONCE];
	int nslots = Min(n, ROWS_AT_ONCE);
	MemoryContext formed =
		AllocSetContextCreate(CurrentMemoryContext, "orchestrator rows", 0,
							  ROWS_AT_ONCE * 1024, ROWS_AT_ONCE * 1024);

	for (int i = 0; i < nslots; i++)
		slots[i] = MakeSingleTupleTableSlot(RelationGetDescr(leaf->rel),
											&TTSOpsVirtual);
	for (int i = 0; i < n; i += nslots)
	{
		insert_some(leaf, rows + i, slots, Min(n - i, nslots), formed);
		MemoryContextReset(formed);
	}
	MemoryContextDelete(formed);
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
}

static void
insert_some(OrchLeaf *leaf, OrchRow *const *rows, TupleTableSlot **slots,
			int n, MemoryContext formed)
{
	MemoryContext old;

	for (int i = 0; i < n; i++)
	{
		assert_row(leaf, rows[i]);
		store_row(slots[i], rows[i]);
	}
	old = MemoryContextSwitchTo(formed);
	table_multi_insert(leaf->rel, slots, n, GetCurrentCommandId(true), 0,
					   NULL);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < n; i++)
		insert_indexes(leaf, rows[i], &slots[i]->tts_tid, false);
}

OrchReadyScan *
orch_heap_ready_begin(OrchLeaf *live, int32 owner, int32 queue, int64 from)
{
	ScanKeyData keys[3];

	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(queue));
	return begin_scan(live, orch_catalog(false)->live_ready, keys, owner,
					  from);
}

OrchReadyScan *
orch_heap_parked_begin(OrchLeaf *live, int32 owner, int64 parked_on,
					   int64 from)
{
	ScanKeyData keys[3];

	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(parked_on));
	return begin_scan(live, orch_catalog(false)->live_parked, keys, owner,
					  from);
}

/*
 * By an index on the owner, what is in the second key, and the sort key.
 */
static OrchReadyScan *
begin_scan(OrchLeaf *live, Oid index, ScanKeyData *keys, int32 owner,
		   int64 from)
{
	OrchReadyScan *scan = palloc(sizeof(OrchReadyScan));

	scan->live = live;
	scan->index = index_open(index, AccessShareLock);
	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->slot = table_slot_create(live->rel, NULL);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(owner));
	ScanKeyInit(&keys[2], 3, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(from));
	scan->scan =
		orch_index_beginscan(live->rel, scan->index, scan->snapshot, 3);
	index_rescan(scan->scan, keys, 3, NULL, 0);
	return scan;
}

bool
orch_heap_ready_next(OrchReadyScan *scan, OrchRow *row, ItemPointer tid)
{
	CHECK_FOR_INTERRUPTS();
	if (!index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		return false;
	read_slot(scan->slot, row, tid);
	return true;
}

bool
orch_heap_ready_key(OrchReadyScan *scan, int64 *sort_key, int64 *id)
{
	bool isnull;

	CHECK_FOR_INTERRUPTS();
	if (!index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		return false;
	*id = DatumGetInt64(slot_getattr(scan->slot, ORCH_TASK_ID + 1, &isnull));
	*sort_key = DatumGetInt64(
		slot_getattr(scan->slot, ORCH_TASK_SORT_KEY + 1, &isnull));
	return true;
}

void
orch_heap_ready_end(OrchReadyScan *scan)
{
	index_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	UnregisterSnapshot(scan->snapshot);
	index_close(scan->index, AccessShareLock);
	pfree(scan);
}

void
orch_heap_ready_again(OrchReadyScan *scan)
{
	index_rescan(scan->scan, NULL, scan->scan->numberOfKeys, NULL, 0);
}

/*
 * An update that waits for nobody takes our own lock for somebody else's.
 */
bool
orch_heap_ready_mine(OrchReadyScan *scan)
{
	HeapTupleHeader header =
		ExecFetchSlotHeapTuple(scan->slot, false, NULL)->t_data;
	TransactionId xmax = HeapTupleHeaderGetRawXmax(header);
	MultiXactMember *members;
	bool mine = true;
	int n;

	if ((header->t_infomask & HEAP_XMAX_INVALID) ||
		!HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask))
		return false;
	if (!(header->t_infomask & HEAP_XMAX_IS_MULTI))
		return TransactionIdIsCurrentTransactionId(xmax);
	n = GetMultiXactIdMembers(xmax, &members, false, true);
	for (int i = 0; i < n && mine; i++)
		mine = TransactionIdIsCurrentTransactionId(members[i].xid) ||
			   !TransactionIdIsInProgress(members[i].xid);
	return mine;
}

bool
orch_heap_ready_held(OrchReadyScan *scan)
{
	HeapTupleHeader header =
		ExecFetchSlotHeapTuple(scan->slot, false, NULL)->t_data;
	TransactionId xmax = HeapTupleHeaderGetRawXmax(header);
	bool locked_only = HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask);

	if (header->t_infomask & HEAP_XMAX_INVALID)
		return false;
	if (header->t_infomask & HEAP_XMAX_IS_MULTI)
	{
		if (MultiXactIdIsRunning(xmax, locked_only))
			return true;
		xmax =
			locked_only ? InvalidTransactionId : HeapTupleGetUpdateXid(header);
	}
	else if (TransactionIdIsInProgress(xmax))
		return true;

	/* a lock ends with its transaction, a new version stays */
	return !locked_only && TransactionIdDidCommit(xmax);
}

int32
orch_heap_next_queue(OrchLeaf *live, int32 owner, int32 after, int32 before)
{
	ScanKeyData keys[3];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(owner));
	ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(after));
	ScanKeyInit(&keys[2], 2, BTLessStrategyNumber, F_INT4LT,
				Int32GetDatum(before));
	return DatumGetInt32(first_row(live, orch_catalog(false)->live_ready, keys,
								   3, ORCH_TASK_QUEUE));
}

int64
orch_heap_next_parked(OrchLeaf *live, int32 owner, int64 after)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(owner));
	ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	return DatumGetInt64(first_row(live, orch_catalog(false)->live_parked,
								   keys, 2, ORCH_TASK_PARKED_ON));
}

int32
orch_heap_next_parked_owner(OrchLeaf *live, int32 after)
{
	int32 owner = after;

	do
		owner = orch_heap_next_waiting_owner(live, owner);
	while (owner != 0 && orch_heap_next_parked(live, owner, 0) == 0);
	return owner;
}

int32
orch_heap_next_waiting_owner(OrchLeaf *live, int32 after)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(after));
	return DatumGetInt32(first_row(live, orch_catalog(false)->live_parked,
								   &key, 1, ORCH_TASK_OWNER));
}

int32
orch_heap_next_owner(OrchLeaf *live, int32 after, int32 before)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(after));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_INT4LT,
				Int32GetDatum(before));
	return DatumGetInt32(first_row(live, orch_catalog(false)->live_ready, keys,
								   2, ORCH_TASK_OWNER));
}

/*
 * A column of the first row that fits the keys of an index; 0: there is none.
 */
static Datum
first_row(OrchLeaf *live, Oid indexid, ScanKey keys, int nkeys,
		  OrchColumn column)
{
	Relation index = index_open(indexid, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(live->rel, NULL);
	IndexScanDesc scan =
		orch_index_beginscan(live->rel, index, snapshot, nkeys);
	Datum value = (Datum) 0;

	index_rescan(scan, keys, nkeys, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool isnull;

		value = slot_getattr(slot, column + 1, &isnull);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	return value;
}

/*
 * Scheduled, parked and held rows first, then the ready ones: a row that
 * becomes ready meanwhile is seen in one of them.
 */
int64
orch_heap_count_waiting(OrchLeaf *live, int32 owner, int32 queue, int64 limit,
						TimestampTz *oldest)
{
	const Oid indexes[] = {orch_catalog(false)->live_later,
						   orch_catalog(false)->live_ready};
	TupleTableSlot *slot = table_slot_create(live->rel, NULL);
	int64 n = 0;

	if (oldest != NULL)
		*oldest = DT_NOEND;
	for (int i = 0; i < lengthof(indexes); i++)
	{
		Relation index = index_open(indexes[i], AccessShareLock);
		int32 next = owner != 0 ? owner : PG_INT32_MIN;

		while (n < limit &&
			   (owner != 0 ||
				(next = first_waiting_owner(live, index, next, slot)) != 0))
		{
			n += count_entries(live, index, next, queue, limit - n, oldest,
							   slot);
			if (owner != 0)
				break;
		}
		index_close(index, AccessShareLock);
	}
	ExecDropSingleTupleTableSlot(slot);
	return n;
}

static int32
first_waiting_owner(OrchLeaf *live, Relation index, int32 after,
					TupleTableSlot *slot)
{
	SnapshotData dirty;
	ScanKeyData key;
	IndexScanDesc scan;
	int32 owner = 0;
	bool isnull;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_INT4GT,
				Int32GetDatum(after));
	scan = orch_index_beginscan(live->rel, index, &dirty, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
		owner =
			DatumGetInt32(slot_getattr(slot, ORCH_TASK_OWNER + 1, &isnull));
	index_endscan(scan);
	return owner;
}

static int64
count_entries(OrchLeaf *live, Relation index, int32 owner, int32 queue,
			  int64 limit, TimestampTz *oldest, TupleTableSlot *slot)
{
	SnapshotData dirty;
	ScanKeyData keys[2];
	int nkeys = queue != 0 ? 2 : 1;
	IndexScanDesc scan;
	int64 n = 0;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(owner));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(queue));
	scan = orch_index_beginscan(live->rel, index, &dirty, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	while (n < limit && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		n++;
		if (oldest != NULL)
			*oldest = Min(*oldest, ready_since(slot));
	}
	index_endscan(scan);
	return n;
}

/*
 * From when on a row was ready; DT_NOEND: it is not.
 */
static TimestampTz
ready_since(TupleTableSlot *slot)
{
	bool isnull;
	Datum value = slot_getattr(slot, ORCH_TASK_STATE + 1, &isnull);

	if (DatumGetObjectId(value) !=
		orch_catalog(false)->states[ORCH_STATE_PENDING])
		return DT_NOEND;
	value = slot_getattr(slot, ORCH_TASK_RUN_AT + 1, &isnull);
	if (isnull)
		value = slot_getattr(slot, ORCH_TASK_CREATED_AT + 1, &isnull);
	return DatumGetTimestampTz(value);
}

bool
orch_heap_update(OrchLeaf *live, ItemPointer tid, const OrchRow *row,
				 bool locked)
{
	TM_Result result;
	bool indexes;

	assert_row(live, row);
	store_row(live->slot, row);
	result =
		orch_table_tuple_update(live->rel, tid, live->slot,
								GetCurrentCommandId(true), locked, &indexes);
	if (result != TM_Ok)
		return false;
	*tid = live->slot->tts_tid;
	if (indexes)
		insert_indexes(live, row, tid, true);
	return true;
}

bool
orch_heap_delete(OrchLeaf *live, ItemPointer tid, bool locked)
{
	TM_FailureData failure;

	return table_tuple_delete(live->rel, tid, GetCurrentCommandId(true),
							  GetActiveSnapshot(), InvalidSnapshot, locked,
							  &failure, false) == TM_Ok;
}

/*
 * Look a live row up by its id, into the leaf's slot.
 */
static bool
find_live(OrchLeaf *live, int64 id, Snapshot snapshot)
{
	ScanKeyData key;

	if (live->id_scan == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(live->context);

		live->id_index =
			index_open(orch_catalog(false)->live_id, AccessShareLock);
		live->id_slot = table_slot_create(live->rel, NULL);
		live->id_scan =
			orch_index_beginscan(live->rel, live->id_index, snapshot, 1);
		MemoryContextSwitchTo(old);
	}
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	live->id_scan->xs_snapshot = snapshot;
	index_rescan(live->id_scan, &key, 1, NULL, 0);
	return index_getnext_slot(live->id_scan, ForwardScanDirection,
							  live->id_slot);
}

/*
 * What the slot points to stays where it is.
 */
static void
read_slot(TupleTableSlot *slot, OrchRow *row, ItemPointer tid)
{
	slot_getallattrs(slot);
	memcpy(row->values, slot->tts_values, sizeof(row->values));
	memcpy(row->nulls, slot->tts_isnull, sizeof(row->nulls));
	*tid = slot->tts_tid;
}

OrchLock
orch_heap_lock(OrchLeaf *live, int64 id, bool wait, OrchRow *row,
			   ItemPointer tid)
{
	for (;;)
	{
		Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
		TM_Result result = TM_Ok;
		TM_FailureData failure;
		bool found = find_live(live, id, snapshot);

		if (found)
			result = table_tuple_lock(
				live->rel, &live->id_slot->tts_tid, snapshot, live->id_slot,
				GetCurrentCommandId(false), LockTupleNoKeyExclusive,
				wait ? LockWaitBlock : LockWaitSkip,
				TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
		UnregisterSnapshot(snapshot);
		if (!found)
			return ORCH_LOCK_GONE;
		if (result == TM_WouldBlock)
			return ORCH_LOCK_BUSY;
		if (result == TM_Ok)
		{
			read_slot(live->id_slot, row, tid);
			return ORCH_LOCK_OK;
		}
		if (result != TM_Deleted && result != TM_Updated)
			elog(ERROR, "task " INT64_FORMAT " cannot be locked: %d", id,
				 (int) result);

		/* it left, and may be back as another row: look again */
		CHECK_FOR_INTERRUPTS();
	}
}

bool
orch_heap_find(OrchLeaf *live, int64 id, OrchRow *row, ItemPointer tid)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool found = find_live(live, id, snapshot);

	UnregisterSnapshot(snapshot);
	if (found)
		read_slot(live->id_slot, row, tid);
	return found;
}

int32
orch_heap_epoch(OrchLeaf *live, int64 id)
{
	bool isnull;

	if (!find_live(live, id, GetActiveSnapshot()))
		return -1;
	return DatumGetInt32(
		slot_getattr(live->id_slot, ORCH_TASK_EPOCH + 1, &isnull));
}

bool
orch_heap_place(int64 task, OrchPlace *place)
{
	OrchLeaf *live = orch_heap_open_live();
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool found = find_live(live, task, snapshot);

	if (found)
	{
		const TupleTableSlot *slot = live->id_slot;

		slot_getallattrs(live->id_slot);
		place->state = orch_catalog_state(
			DatumGetObjectId(slot->tts_values[ORCH_TASK_STATE]));
		place->owner = DatumGetInt32(slot->tts_values[ORCH_TASK_OWNER]);
		place->queue = DatumGetInt32(slot->tts_values[ORCH_TASK_QUEUE]);
		place->parked_on =
			slot->tts_isnull[ORCH_TASK_PARKED_ON]
				? 0
				: DatumGetInt64(slot->tts_values[ORCH_TASK_PARKED_ON]);
		place->sort_key =
			slot->tts_isnull[ORCH_TASK_SORT_KEY]
				? 0
				: DatumGetInt64(slot->tts_values[ORCH_TASK_SORT_KEY]);
	}
	orch_heap_close(live);
	UnregisterSnapshot(snapshot);
	return found;
}

bool
orch_heap_is_running(OrchLeaf *live, ItemPointer tid, int64 id, int32 epoch)
{
	TupleTableSlot *slot;
	bool isnull;
	bool same = false;

	/* since the claim the table may have been rewritten, and be shorter */
	if (live->nblocks == 0)
		live->nblocks = RelationGetNumberOfBlocks(live->rel);
	if (ItemPointerGetBlockNumber(tid) >= live->nblocks)
		return false;
	slot = table_slot_create(live->rel, NULL);
	if (table_tuple_fetch_row_version(live->rel, tid, SnapshotAny, slot))
		same = DatumGetInt64(slot_getattr(slot, ORCH_TASK_ID + 1, &isnull)) ==
				   id &&
			   DatumGetInt32(slot_getattr(slot, ORCH_TASK_EPOCH + 1,
										  &isnull)) == epoch &&
			   DatumGetObjectId(
				   slot_getattr(slot, ORCH_TASK_STATE + 1, &isnull)) ==
				   orch_catalog(false)->states[ORCH_STATE_RUNNING] &&
			   !was_changed_by_us(slot);
	ExecDropSingleTupleTableSlot(slot);
	return same;
}

/*
 * By pause() in a step of this transaction, say: there is a newer version.
 */
static bool
was_changed_by_us(TupleTableSlot *slot)
{
	HeapTupleHeader row = ExecFetchSlotHeapTuple(slot, false, NULL)->t_data;

	return (row->t_infomask & HEAP_XMAX_INVALID) == 0 &&
		   !HEAP_XMAX_IS_LOCKED_ONLY(row->t_infomask) &&
		   TransactionIdIsCurrentTransactionId(
			   HeapTupleHeaderGetUpdateXid(row));
}

/*
 * InvalidOid: the table is gone.  Else its lock is kept.
 */
static Oid
unique_index_on_id(Oid relid)
{
	Relation rel = try_table_open(relid, AccessShareLock);
	List *list;
	ListCell *cell;
	Oid found = InvalidOid;

	if (rel == NULL)
		return InvalidOid; /* dropped by retention */
	list = RelationGetIndexList(rel);
	foreach(cell, list)
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisunique && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == ORCH_TASK_ID + 1)
			found = lfirst_oid(cell);
		index_close(index, AccessShareLock);
	}
	table_close(rel, NoLock);
	return found;
}

static bool
read_leaf(Oid relid, Oid index, int64 task, OrchTaskView *view)
{
	Relation rel = table_open(relid, AccessShareLock);
	Relation irel = index_open(index, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = orch_index_beginscan(rel, irel, snapshot, 1);
	ScanKeyData key;
	bool found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	if (found)
	{
		bool isnull;
		Datum xmin;

		slot_getallattrs(slot);
		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber, &isnull);
		view->own_uncommitted =
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
		view->state = orch_catalog_state(
			DatumGetObjectId(slot->tts_values[ORCH_TASK_STATE]));
		view->owner = DatumGetInt32(slot->tts_values[ORCH_TASK_OWNER]);
		view->attempt = DatumGetInt32(slot->tts_values[ORCH_TASK_ATTEMPT]);
		view->has_steps = !slot->tts_isnull[ORCH_TASK_REMAINING];
		view->has_output = !slot->tts_isnull[ORCH_TASK_OUTPUT];
		view->has_error = !slot->tts_isnull[ORCH_TASK_ERROR];
		if (view->has_output)
			view->output = PointerGetDatum(
				PG_DETOAST_DATUM_COPY(slot->tts_values[ORCH_TASK_OUTPUT]));
		if (view->has_error)
			view->error = PointerGetDatum(
				PG_DETOAST_DATUM_COPY(slot->tts_values[ORCH_TASK_ERROR]));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	index_close(irel, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * A row that moves between our two looks is seen in neither snapshot's leaf
 * when it was live at the first and had left before the second took its
 * snapshot of the finished leaf: that cannot be, since it moved by then.  The
 * other way (retry) can, so the live leaf is asked again.
 */
bool
orch_heap_read_result(int64 task, OrchTaskView *view)
{
	const OrchCatalog *known = orch_catalog(false);
	char name[NAMEDATALEN];
	Oid finished;
	Oid index;

	memset(view, 0, sizeof(*view));
	if (read_leaf(known->task_live, known->live_id, task, view))
		return true;
	snprintf(name, sizeof(name), "task_finished_" INT64_FORMAT,
			 task / ORCH_IDS_PER_PARTITION);
	finished = get_relname_relid(name, known->schema);
	index = OidIsValid(finished) ? unique_index_on_id(finished) : InvalidOid;
	if (OidIsValid(index) && read_leaf(finished, index, task, view))
		return true;
	return read_leaf(known->task_live, known->live_id, task, view);
}
