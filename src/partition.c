/*
 * partition.c
 *	  Partitions of finished tasks as files: counting them, and giving back
 *	  their blocks, a piece at a time.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/storage.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "heap.h"
#include "partition.h"

/* Blocks of a sample. */
#define SAMPLE 100

/* Blocks that are given back at once: each time, all of shared_buffers is
 * searched for them. */
#define PIECE Max(512, NBuffers / 256)

/* What is counted. */
typedef struct Count
{
	Relation rel;
	Snapshot snapshot;
	TupleTableSlot *slot;
	BufferAccessStrategy ring; /* pushes nothing out of shared_buffers */
	HTAB *groups;
	OrchGroup *group; /* of the row before */
} Count;

static void begin_count(Count *count, HTAB *groups, Oid relid);
static void end_count(Count *count);
static void count_block(Count *count, BlockNumber block);
static void count_row(Count *count);
static OrchGroup *find_group(Count *count);
static bool shrink(Relation rel);

HTAB *
orch_partition_groups(void)
{
	HASHCTL control = {.keysize = sizeof(OrchGroupKey),
					   .entrysize = sizeof(OrchGroup),
					   .hcxt = CurrentMemoryContext};

	return hash_create("orchestrator finished rows", 64, &control,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Without the executor: a million rows in a tenth of a second or two.
 */
bool
orch_partition_count(HTAB *groups, Oid relid, BlockNumber from, BlockNumber n)
{
	BlockNumber blocks;
	BlockNumber to;
	Count count;

	begin_count(&count, groups, relid);
	blocks = RelationGetNumberOfBlocks(count.rel);
	to = n < blocks - Min(from, blocks) ? from + n : blocks;
	for (BlockNumber block = from; block < to; block++)
		count_block(&count, block);
	end_count(&count);
	return to < blocks;
}

void
orch_partition_sample(HTAB *groups, Oid relid)
{
	BlockNumber blocks;
	BlockNumber step;
	Count count;

	begin_count(&count, groups, relid);
	blocks = RelationGetNumberOfBlocks(count.rel);
	step = Max(blocks / SAMPLE, 1);
	for (BlockNumber block = 0; block < blocks; block += step)
		count_block(&count, block);
	end_count(&count);
}

static void
begin_count(Count *count, HTAB *groups, Oid relid)
{
	count->rel = table_open(relid, AccessShareLock);
	count->snapshot = GetActiveSnapshot();
	count->slot = MakeSingleTupleTableSlot(RelationGetDescr(count->rel),
										   &TTSOpsHeapTuple);
	count->ring = GetAccessStrategy(BAS_BULKREAD);
	count->groups = groups;
	count->group = NULL;
}

static void
end_count(Count *count)
{
	FreeAccessStrategy(count->ring);
	ExecDropSingleTupleTableSlot(count->slot);
	table_close(count->rel, NoLock);
}

static void
count_block(Count *count, BlockNumber block)
{
	Buffer buffer = ReadBufferExtended(count->rel, MAIN_FORKNUM, block,
									   RBM_NORMAL, count->ring);
	HeapTupleData tuple = {.t_tableOid = RelationGetRelid(count->rel)};
	Page page = BufferGetPage(buffer);
	bool all_visible;

	CHECK_FOR_INTERRUPTS();
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	all_visible =
		PageIsAllVisible(page) && !count->snapshot->takenDuringRecovery;
	for (OffsetNumber i = FirstOffsetNumber; i <= PageGetMaxOffsetNumber(page);
		 i++)
	{
		ItemId item = PageGetItemId(page, i);

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		ItemPointerSet(&tuple.t_self, block, i);
		if (!all_visible &&
			!HeapTupleSatisfiesVisibility(&tuple, count->snapshot, buffer))
			continue;
		ExecStoreHeapTuple(&tuple, count->slot, false);
		count_row(count);
	}
	ExecClearTuple(count->slot);
	UnlockReleaseBuffer(buffer);
}

/*
 * Whether a column is null is told by the bitmap alone.
 */
static void
count_row(Count *count)
{
	TupleTableSlot *slot = count->slot;
	OrchGroup *group;
	TimestampTz at;

	slot_getsomeattrs(slot, ORCH_TASK_QUEUE + 1);
	group = count->group = find_group(count);
	at = DatumGetTimestampTz(
		slot->tts_values[slot->tts_isnull[ORCH_TASK_FINISHED_AT]
							 ? ORCH_TASK_CREATED_AT
							 : ORCH_TASK_FINISHED_AT]);
	group->rows++;
	group->newest = Max(group->newest, at);
	if (!slot->tts_isnull[ORCH_TASK_ROOT_ID])
	{
		int64 root = DatumGetInt64(slot->tts_values[ORCH_TASK_ROOT_ID]);

		group->least_root = Min(group->least_root, root);
		group->last_root = Max(group->last_root, root);
	}
}

/*
 * Rows of a group come together.
 */
static OrchGroup *
find_group(Count *count)
{
	TupleTableSlot *slot = count->slot;
	HeapTuple tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
	OrchGroup *group;
	OrchGroupKey key;
	bool found;

	memset(&key, 0, sizeof(key));
	key.queue = DatumGetInt32(slot->tts_values[ORCH_TASK_QUEUE]);
	key.state = DatumGetObjectId(slot->tts_values[ORCH_TASK_STATE]);
	key.in_tree = !slot->tts_isnull[ORCH_TASK_ROOT_ID] ||
				  !heap_attisnull(tuple, ORCH_TASK_REMAINING + 1,
								  slot->tts_tupleDescriptor);
	if (count->group != NULL &&
		memcmp(&key, &count->group->key, sizeof(key)) == 0)
		return count->group;
	group = hash_search(count->groups, &key, HASH_ENTER, &found);
	if (!found)
	{
		group->rows = 0;
		group->newest = DT_NOBEGIN;
		group->least_root = PG_INT64_MAX;
		group->last_root = 0;
	}
	return group;
}

bool
orch_partition_shrink(Oid relid)
{
	Relation rel = table_open(relid, AccessExclusiveLock);
	Oid toast = rel->rd_rel->reltoastrelid;
	bool more = shrink(rel);

	table_close(rel, NoLock);
	if (more || !OidIsValid(toast))
		return more;
	rel = table_open(toast, AccessExclusiveLock);
	more = shrink(rel);
	table_close(rel, NoLock);
	return more;
}

static bool
shrink(Relation rel)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);

	if (blocks > 0)
		RelationTruncate(rel, blocks - Min(blocks, PIECE));
	return blocks > 0;
}
