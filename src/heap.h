/*
 * heap.h
 *	  Direct access to the leaves of orchestrator.task: the hot path.
 *
 * The only file that reads and writes tasks without the executor (lease.c does
 * so with leases).  It bypasses row-level security, triggers, constraints and
 * partition bounds: callers have checked what these would, and the asserts here
 * say what that is.
 */
#ifndef ORCHESTRATOR_HEAP_H
#define ORCHESTRATOR_HEAP_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"

#include "event.h"

/* Columns of orchestrator.task, in the order of sql/20_tables.sql. */
typedef enum OrchColumn
{
	ORCH_TASK_ID,
	ORCH_TASK_SORT_KEY,
	ORCH_TASK_CREATED_AT,
	ORCH_TASK_STARTED_AT,
	ORCH_TASK_FINISHED_AT,
	ORCH_TASK_RUN_AT,
	ORCH_TASK_EXPIRE_AT,
	ORCH_TASK_DEADLINE,
	ORCH_TASK_PARENT_ID,
	ORCH_TASK_ROOT_ID,
	ORCH_TASK_STATE,
	ORCH_TASK_HELD_STATE,
	ORCH_TASK_OWNER,
	ORCH_TASK_DEFINITION,
	ORCH_TASK_QUEUE,
	ORCH_TASK_PRIORITY,
	ORCH_TASK_ATTEMPT,
	ORCH_TASK_MAX_ATTEMPTS,
	ORCH_TASK_EPOCH,
	ORCH_TASK_WORKER,
	ORCH_TASK_LIVE,
	ORCH_TASK_PLAN,
	ORCH_TASK_STEP,
	ORCH_TASK_ITEM,
	ORCH_TASK_ITERATION,
	ORCH_TASK_REMAINING,
	ORCH_TASK_HELD_BY,
	ORCH_TASK_PARKED_ON,
	ORCH_TASK_CHANGED_AT,
	ORCH_TASK_NAME,
	ORCH_TASK_KEY,
	ORCH_TASK_COMMAND,
	ORCH_TASK_TRACEPARENT,
	ORCH_TASK_INPUT,
	ORCH_TASK_OUTPUT,
	ORCH_TASK_ERROR,
	ORCH_TASK_METADATA,
	ORCH_TASK_RESOURCES,
	ORCH_TASK_COMPENSATION,
	ORCH_TASK_CALLBACKS,
	ORCH_TASK_COLUMNS
} OrchColumn;

/* One row of task. */
typedef struct OrchRow
{
	Datum values[ORCH_TASK_COLUMNS];
	bool nulls[ORCH_TASK_COLUMNS];
} OrchRow;

#define ORCH_INT32(row, column) DatumGetInt32((row)->values[column])
#define ORCH_INT64(row, column) DatumGetInt64((row)->values[column])

extern void orch_row_set(OrchRow *row, OrchColumn column, Datum value);
extern void orch_row_set_null(OrchRow *row, OrchColumn column);

/* Tell of a transition of the task (orch_event_transition). */
extern void orch_row_announce(const OrchRow *row, OrchEventKind kind,
							  OrchState state, double progress, bool notify);

/* A leaf of task, open for writing. */
typedef struct OrchLeaf OrchLeaf;

/* Open task_live, or the partition of finished rows that holds an id. */
extern OrchLeaf *orch_heap_open_live(void);
extern OrchLeaf *orch_heap_open_finished(int64 id);

/* Close; the lock is kept until the end of the transaction. */
extern void orch_heap_close(OrchLeaf *leaf);

/* Raise unless the columns of task are the ones this file knows. */
extern void orch_heap_check_columns(void);

/* Insert one row; its index entries too. */
extern void orch_heap_insert(OrchLeaf *leaf, const OrchRow *row);

/* Insert many rows at once. */
extern void orch_heap_insert_many(OrchLeaf *leaf, OrchRow *const *rows, int n);

/*
 * The ready rows of (owner, queue) with a sort key of at least `from`, in
 * order, as a new snapshot sees them.
 */
typedef struct OrchReadyScan OrchReadyScan;
extern OrchReadyScan *orch_heap_ready_begin(OrchLeaf *live, int32 owner,
											int32 queue, int64 from);

/* The same of those that were parked on a limit (permit.h). */
extern OrchReadyScan *orch_heap_parked_begin(OrchLeaf *live, int32 owner,
											 int64 parked_on, int64 from);

/* The next ready row, or false.  The row points into the scan's memory until
 * the next call; tid is where it is. */
extern bool orch_heap_ready_next(OrchReadyScan *scan, OrchRow *row,
								 ItemPointer tid);
extern void orch_heap_ready_end(OrchReadyScan *scan);

/* The same, of a row that is only counted: where it stands. */
extern bool orch_heap_ready_key(OrchReadyScan *scan, int64 *sort_key,
								int64 *id);

/*
 * How many rows of an owner (0: all) and a queue (0: all) wait (pending,
 * scheduled, or paused when they were that), also those of transactions under
 * way, up to a limit; oldest,
 * unless NULL: the time from which the oldest of the pending ones is ready,
 * DT_NOEND: there are none.
 */
extern int64 orch_heap_count_waiting(OrchLeaf *live, int32 owner, int32 queue,
									 int64 limit, TimestampTz *oldest);
/* From its beginning again. */
extern void orch_heap_ready_again(OrchReadyScan *scan);

/* Whether nobody but this transaction has the row just read locked. */
extern bool orch_heap_ready_mine(OrchReadyScan *scan);

/* Whether another transaction has the row just read, or had it since. */
extern bool orch_heap_ready_held(OrchReadyScan *scan);

/*
 * The first queue between two (not included) in which an owner has ready
 * rows, or 0: steps from queue to queue through the index.
 */
extern int32 orch_heap_next_queue(OrchLeaf *live, int32 owner, int32 after,
								  int32 before);

/* The next limit after one (0: from the first on) on which rows of an owner are
 * parked, or 0. */
extern int64 orch_heap_next_parked(OrchLeaf *live, int32 owner, int64 after);

/* The first owner after one that has rows parked on limits, or 0; and that has
 * any that no executor looks for: those of remote workers and calls, too. */
extern int32 orch_heap_next_parked_owner(OrchLeaf *live, int32 after);
extern int32 orch_heap_next_waiting_owner(OrchLeaf *live, int32 after);

/* The first owner between two (not included) that has ready rows, or 0. */
extern int32 orch_heap_next_owner(OrchLeaf *live, int32 after, int32 before);

/*
 * Replace the row at tid, or return false when it is locked, changed or gone:
 * SKIP LOCKED in one step.  On success tid is where the new version is.
 * locked: the caller holds the row's lock (orch_heap_lock).
 */
extern bool orch_heap_update(OrchLeaf *live, ItemPointer tid,
							 const OrchRow *row, bool locked);

/* Delete the row at tid, or return false likewise. */
extern bool orch_heap_delete(OrchLeaf *live, ItemPointer tid, bool locked);

/*
 * Lock the live row of a task against changes by others, in its newest
 * version, and read it: row points into the leaf's memory until the next
 * call.  wait: else whoever holds it makes this BUSY at once.
 */
typedef enum OrchLock
{
	ORCH_LOCK_OK,
	ORCH_LOCK_BUSY,
	ORCH_LOCK_GONE
} OrchLock;

extern OrchLock orch_heap_lock(OrchLeaf *live, int64 id, bool wait,
							   OrchRow *row, ItemPointer tid);

/* The same without a lock, as a new snapshot sees it; false: it is not live. */
extern bool orch_heap_find(OrchLeaf *live, int64 id, OrchRow *row,
						   ItemPointer tid);

/* The epoch of a live task as this transaction sees it; -1: it does not. */
extern int32 orch_heap_epoch(OrchLeaf *live, int64 id);

/*
 * Whether the row at tid still is this running task in this epoch.
 */
extern bool orch_heap_is_running(OrchLeaf *live, ItemPointer tid, int64 id,
								 int32 epoch);

/* Where a live task stands, as a new snapshot sees it; false: it is not live. */
typedef struct OrchPlace
{
	OrchState state;
	int32 owner;
	int32 queue;
	int64 parked_on; /* 0: not parked */
	int64 sort_key;	 /* of a pending one */
} OrchPlace;

extern bool orch_heap_place(int64 task, OrchPlace *place);

/* What wait() looks at. */
typedef struct OrchTaskView
{
	OrchState state;
	int32 owner;
	int32 attempt;
	bool own_uncommitted; /* written by this very transaction */
	bool has_steps;
	bool has_output;
	bool has_error;
	Datum output;
	Datum error;
} OrchTaskView;

/*
 * The task as a new snapshot sees it, output and error copied to the current
 * memory context; false when there is none.
 */
extern bool orch_heap_read_result(int64 task, OrchTaskView *view);

/* The values of a row that SQL passes: a value of type orchestrator.task. */
extern void orch_row_deform(HeapTupleHeader header, OrchRow *row);

/* Copy the values of a row into the current memory context. */
extern void orch_row_copy(OrchRow *to, const OrchRow *from);

#endif
