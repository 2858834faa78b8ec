/*
 * stats.c
 *	  How many tasks, how long they waited and ran.
 *
 * A cell counts one minute of a queue or a definition for one owner, so that
 * whoever reads sees the load of the owners it may see and of no others.
 * Times go to sketches: bucket i counts those up to GAMMA^i microseconds, so
 * that a percentile is right within 5 % up to 33 hours; longer times count as
 * that.
 *
 * What a transaction has to count waits in its memory as samples, with their
 * subtransaction.  At commit they are added up in cells of our own first, and
 * each of these to its shared one at once: a batch of 200 tasks takes the
 * lock of a cell once.
 *
 * A cell is written by the transaction whose id stands in it.  Whoever reads
 * takes it from memory while its snapshot does not see that transaction, and
 * from the table afterwards: no minute is seen twice or not at all.  It stays
 * for the rate of the last minutes.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "fair.h"
#include "guc.h"
#include "shmem.h"
#include "sketch.h"
#include "stats.h"

#define BLOCK_NAME "orchestrator statistics"
#define MAX_CELLS  2048
#define CHAINS	   1024

/* A cell that was written stays so many minutes more; one that was not, of a
 * database that was dropped, is in the way no longer than this. */
#define KEPT_MINUTES 5
#define LOST_MINUTES 60

/* Cells of our own, in which the samples of a transaction are added up. */
#define LOCAL_CELLS 16

#define MINUTE (60 * USECS_PER_SEC)

/* A rate is of no shorter time. */
#define SHORTEST_SPAN INT64CONST(1000)

typedef enum CellKind
{
	CELL_QUEUE,
	CELL_DEFINITION
} CellKind;

/* No padding: it is hashed as a whole. */
typedef struct CellKey
{
	Oid dboid;
	Oid live; /* task_live: an extension made again is another one */
	int32 owner;
	int32 kind; /* CellKind */
	int32 id;
	int32 minute; /* since 2000 */
} CellKey;

typedef struct Counts
{
	int64 attempts;
	TimestampTz first; /* start of the first attempt; unless there is none */
	TimestampTz last;  /* end of the last one */
	int64 counts[ORCH_COUNTS];
	uint32 wait[ORCH_SKETCH_BUCKETS];
	uint32 run[ORCH_SKETCH_BUCKETS];
} Counts;

typedef enum CellState
{
	CELL_FREE,	 /* next: OPEN */
	CELL_OPEN,	 /* counts; next: SEALED */
	CELL_SEALED, /* the transaction writes it; next: SAVED, OPEN */
	CELL_SAVED	 /* written; next: FREE */
} CellState;

typedef struct Cell
{
	CellKey key;
	CellState state;
	TransactionId writer; /* of SEALED and SAVED */
	int next;			  /* in its chain; -1: last */
	slock_t mutex;		  /* guards counts */
	Counts counts;
} Cell;

/*
 * States, chains and keys change under lock held exclusively; whoever adds to
 * a cell holds it shared.
 */
typedef struct Cells
{
	LWLock *lock;
	pg_atomic_uint64 lost; /* samples for which there was no cell */
	int chains[CHAINS];	   /* first cell; -1: none */
	Cell cells[MAX_CELLS];
} Cells;

/* What a transaction has to count. */
typedef struct Sample
{
	int32 owner;
	int32 queue; /* 0: none */
	int32 definition;
	int16 count; /* OrchCount; -1: none */
	bool attempt;
	bool is_run; /* run counts for its definition */
	uint8 wait;
	uint8 run;
	TimestampTz started; /* of an attempt */
	TimestampTz finished;
	int32 n;
	int32 level; /* of the subtransaction it belongs to */
} Sample;

typedef struct LocalCell
{
	CellKey key;
	bool used;
	Counts counts;
} LocalCell;

/* In the order of OrchCount. */
static const char *const count_names[] = {"completed", "failed", "cancelled",
										  "retried", "expired"};

StaticAssertDecl(lengthof(count_names) == ORCH_COUNTS,
				 "count_names must match OrchCount");
StaticAssertDecl(sizeof(CellKey) == 24, "CellKey must have no padding");

static Cells *cells = NULL;
static LocalCell *local = NULL;

/* Of the transaction under way, in TopTransactionContext. */
static Sample *samples = NULL;
static Oid samples_live = InvalidOid; /* task_live */
static int nsamples = 0;
static int samples_room = 0;

static void start_block(void *memory, LWLock *lock, bool anew);
static Sample *add_sample(void);
static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);
static void deliver(void);
static void add_up(const Sample *sample, CellKind kind, int32 id,
				   int32 minute);
static Counts *local_counts(const CellKey *key);
static void flush(LocalCell *from);
static void add_span(Counts *counts, TimestampTz first, TimestampTz last);
static void add_counts(Counts *to, const Counts *from);
static Cell *find_cell(const CellKey *key, int *chain);
static Cell *make_cell(const CellKey *key, int chain);
static Cell *free_cell(void);
static void drop_cell(Cell *cell);
static void resolve(Cell *cell);
static bool is_due(const Cell *cell, bool everything);
static bool is_in_table(const Cell *cell, Snapshot snapshot);
static int32 minute_of(TimestampTz at);
static bool is_crowded(void);
static int collect(Cell *copies, bool save, bool everything);
static void put_cell(ReturnSetInfo *rsinfo, const Cell *cell);
static int compare_owners(const void *left, const void *right);
static OrchCount parse_count(const char *name);

PG_FUNCTION_INFO_V1(orchestrator_count);
PG_FUNCTION_INFO_V1(orchestrator_count_attempt);
PG_FUNCTION_INFO_V1(orchestrator_live_stats);
PG_FUNCTION_INFO_V1(orchestrator_seal_stats);

void
orch_stats_install(void)
{
	orch_shmem_add_block(BLOCK_NAME, sizeof(Cells), start_block);
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}

static void
start_block(void *memory, LWLock *lock, bool anew)
{
	cells = memory;
	if (!anew)
		return;
	cells->lock = lock;
	pg_atomic_init_u64(&cells->lost, 0);
	for (int i = 0; i < CHAINS; i++)
		cells->chains[i] = -1;
	for (int i = 0; i < MAX_CELLS; i++)
		SpinLockInit(&cells->cells[i].mutex);
}

static int32
minute_of(TimestampTz at)
{
	return (int32) (at / MINUTE - (at % MINUTE < 0));
}

/*
 * The wait of an attempt began when its row became ready: at what its sort key
 * says, where that can be a time (in a queue whose tenants take turns it is
 * none, and the setting behind it may have been another).
 */
void
orch_stats_attempt(const OrchRow *row, TimestampTz started,
				   TimestampTz finished, bool completed)
{
	TimestampTz ready;
	Sample *sample;

	if (cells == NULL || !orch_statistics)
		return;
	ready = DatumGetTimestampTz(row->values[ORCH_TASK_CREATED_AT]);
	if (!row->nulls[ORCH_TASK_RUN_AT])
		ready = Max(ready, DatumGetTimestampTz(row->values[ORCH_TASK_RUN_AT]));
	if (!row->nulls[ORCH_TASK_SORT_KEY])
	{
		TimestampTz keyed =
			orch_sort_time(ORCH_INT64(row, ORCH_TASK_SORT_KEY),
						   ORCH_INT32(row, ORCH_TASK_PRIORITY));

		if (keyed <= started)
			ready = Max(ready, keyed);
	}
	sample = add_sample();
	sample->owner = ORCH_INT32(row, ORCH_TASK_OWNER);
	sample->queue = ORCH_INT32(row, ORCH_TASK_QUEUE);
	sample->definition = ORCH_INT32(row, ORCH_TASK_DEFINITION);
	sample->count = completed ? ORCH_COUNT_COMPLETED : -1;
	sample->attempt = true;
	sample->is_run = true;
	sample->wait = orch_sketch_bucket(started - ready);
	sample->run = orch_sketch_bucket(finished - started);
	sample->started = started;
	sample->finished = finished;
}

/*
 * Many of a kind come one after another (cancel_many): one sample for all.
 */
void
orch_stats_count(int32 owner, int32 queue, int32 definition, OrchCount what,
				 int64 took)
{
	Sample *last;

	if (cells == NULL || !orch_statistics)
		return;
	last = nsamples > 0 ? &samples[nsamples - 1] : NULL;
	if (last != NULL && took < 0 && !last->attempt && !last->is_run &&
		last->owner == owner && last->queue == queue &&
		last->definition == definition && last->count == (int16) what &&
		last->level == GetCurrentTransactionNestLevel())
	{
		last->n++;
		return;
	}
	last = add_sample();
	last->owner = owner;
	last->queue = queue;
	last->definition = definition;
	last->count = what;
	last->attempt = false;
	last->is_run = took >= 0;
	last->wait = 0;
	last->run = took >= 0 ? orch_sketch_bucket(took) : 0;
}

/*
 * All that may fail is done here: after the commit nothing is allocated.
 */
static Sample *
add_sample(void)
{
	Sample *sample;

	if (local == NULL)
		local = MemoryContextAllocZero(TopMemoryContext,
									   LOCAL_CELLS * sizeof(LocalCell));
	if (samples == NULL)
	{
		samples =
			MemoryContextAlloc(TopTransactionContext, 16 * sizeof(Sample));
		samples_room = 16;
		samples_live = orch_catalog(false)->task_live;
	}
	else if (nsamples >= samples_room)
	{
		samples =
			repalloc_huge(samples, (Size) samples_room * 2 * sizeof(Sample));
		samples_room *= 2;
	}
	sample = &samples[nsamples++];
	sample->n = 1;
	sample->level = GetCurrentTransactionNestLevel();
	return sample;
}

/*
 * What a prepared transaction had to count is not counted: COMMIT PREPARED
 * runs in a session that knows nothing of it.
 */
static void
end_transaction(XactEvent what, void *arg)
{
	if (samples == NULL)
		return;
	switch (what)
	{
		case XACT_EVENT_COMMIT:
			deliver();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}

	/* the array goes with TopTransactionContext */
	samples = NULL;
	nsamples = samples_room = 0;
}

static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();

	if (what == SUBXACT_EVENT_ABORT_SUB)
	{
		while (nsamples > 0 && samples[nsamples - 1].level >= level)
			nsamples--;
	}
	else if (what == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = nsamples - 1; i >= 0 && samples[i].level >= level; i--)
			samples[i].level = level - 1;
	}
}

static void
deliver(void)
{
	int32 minute = minute_of(orch_clock());

	for (int i = 0; i < nsamples; i++)
	{
		const Sample *sample = &samples[i];

		if (sample->queue != 0)
			add_up(sample, CELL_QUEUE, sample->queue, minute);
		add_up(sample, CELL_DEFINITION, sample->definition, minute);
	}
	for (int i = 0; i < LOCAL_CELLS; i++)
	{
		if (local[i].used)
			flush(&local[i]);
	}
}

static void
add_up(const Sample *sample, CellKind kind, int32 id, int32 minute)
{
	CellKey key = {MyDatabaseId, samples_live, sample->owner,
				   kind,		 id,		   minute};
	Counts *counts = local_counts(&key);

	if (sample->count >= 0)
		counts->counts[sample->count] += sample->n;
	if (sample->attempt)
	{
		add_span(counts, sample->started, sample->finished);
		counts->attempts++;
		counts->wait[sample->wait]++;
		counts->run[sample->run]++;
	}
	else if (sample->is_run && kind == CELL_DEFINITION)
		counts->run[sample->run]++;
}

/*
 * Our own cell of a key.  When all are in use, one makes room.
 */
static Counts *
local_counts(const CellKey *key)
{
	static int last[2]; /* where the last one of each kind was found */
	LocalCell *cell = &local[last[key->kind]];
	int at = -1;

	if (cell->used && memcmp(&cell->key, key, sizeof(CellKey)) == 0)
		return &cell->counts;
	for (int i = 0; i < LOCAL_CELLS; i++)
	{
		if (!local[i].used)
			at = at < 0 ? i : at;
		else if (memcmp(&local[i].key, key, sizeof(CellKey)) == 0)
		{
			last[key->kind] = i;
			return &local[i].counts;
		}
	}
	if (at < 0)
	{
		at = (last[key->kind] + 1) % LOCAL_CELLS;
		flush(&local[at]);
	}
	local[at].key = *key;
	local[at].used = true;
	last[key->kind] = at;
	return &local[at].counts;
}

/*
 * Add one of our cells to its shared one, and empty it.
 */
static void
flush(LocalCell *from)
{
	bool made = false;
	int chain;
	Cell *cell;

	LWLockAcquire(cells->lock, LW_SHARED);
	cell = find_cell(&from->key, &chain);
	if (cell == NULL)
	{
		LWLockRelease(cells->lock);
		LWLockAcquire(cells->lock, LW_EXCLUSIVE);
		cell = find_cell(&from->key, &chain);
		if (cell == NULL)
		{
			cell = make_cell(&from->key, chain);
			made = true;
		}
	}
	if (cell != NULL)
	{
		SpinLockAcquire(&cell->mutex);
		add_counts(&cell->counts, &from->counts);
		SpinLockRelease(&cell->mutex);
	}
	else
		pg_atomic_fetch_add_u64(&cells->lost, 1);
	LWLockRelease(cells->lock);

	memset(&from->counts, 0, sizeof(Counts));
	from->used = false;
	if (made)
		orch_shmem_signal_supervisor(MyDatabaseId, ORCH_WAKE_STATS);
}

/*
 * Before the attempts are added.
 */
static void
add_span(Counts *counts, TimestampTz first, TimestampTz last)
{
	if (counts->attempts == 0 || first < counts->first)
		counts->first = first;
	if (counts->attempts == 0 || last > counts->last)
		counts->last = last;
}

static void
add_counts(Counts *to, const Counts *from)
{
	if (from->attempts > 0)
		add_span(to, from->first, from->last);
	to->attempts += from->attempts;
	for (int i = 0; i < ORCH_COUNTS; i++)
		to->counts[i] += from->counts[i];
	for (int i = 0; i < ORCH_SKETCH_BUCKETS; i++)
	{
		to->wait[i] += from->wait[i];
		to->run[i] += from->run[i];
	}
}

/*
 * The open cell of a key; NULL: there is none.  Caller holds the lock.
 */
static Cell *
find_cell(const CellKey *key, int *chain)
{
	*chain = hash_bytes((const unsigned char *) key, sizeof(CellKey)) % CHAINS;
	for (int i = cells->chains[*chain]; i >= 0; i = cells->cells[i].next)
	{
		Cell *cell = &cells->cells[i];

		if (cell->state == CELL_OPEN &&
			memcmp(&cell->key, key, sizeof(CellKey)) == 0)
			return cell;
	}
	return NULL;
}

/*
 * Caller holds the lock exclusively.  NULL: all are in use, and none of them
 * was written.
 */
static Cell *
make_cell(const CellKey *key, int chain)
{
	Cell *cell = free_cell();

	if (cell == NULL)
		return NULL;
	memset(&cell->counts, 0, sizeof(Counts));
	cell->key = *key;
	cell->state = CELL_OPEN;
	cell->writer = InvalidTransactionId;
	cell->next = cells->chains[chain];
	cells->chains[chain] = cell - cells->cells;
	return cell;
}

/*
 * A cell that is free, or the oldest of those that are not needed any more.
 */
static Cell *
free_cell(void)
{
	static int hand = 0;
	int32 lost = minute_of(orch_clock()) - LOST_MINUTES;
	Cell *oldest = NULL;

	for (int i = 0; i < MAX_CELLS; i++)
	{
		Cell *cell = &cells->cells[hand = (hand + 1) % MAX_CELLS];

		if (cell->state == CELL_FREE)
			return cell;
		if ((cell->state == CELL_SAVED || cell->key.minute < lost) &&
			(oldest == NULL || cell->key.minute < oldest->key.minute))
			oldest = cell;
	}
	if (oldest != NULL)
		drop_cell(oldest);
	return oldest;
}

/*
 * Caller holds the lock exclusively.
 */
static void
drop_cell(Cell *cell)
{
	int index = cell - cells->cells;
	int *link = &cells->chains[hash_bytes((const unsigned char *) &cell->key,
										  sizeof(CellKey)) %
							   CHAINS];

	while (*link != index)
		link = &cells->cells[*link].next;
	*link = cell->next;
	cell->state = CELL_FREE;
}

/*
 * What became of the transaction that was to write a cell.  Caller holds the
 * lock exclusively.
 */
static void
resolve(Cell *cell)
{
	if (cell->state != CELL_SEALED || TransactionIdIsInProgress(cell->writer))
		return;
	if (TransactionIdDidCommit(cell->writer))
		cell->state = CELL_SAVED;
	else
	{
		cell->state = CELL_OPEN;
		cell->writer = InvalidTransactionId;
	}
}

/*
 * Whether so many cells wait to be written that the minute under way should
 * be, too.  Caller holds the lock.
 */
static bool
is_crowded(void)
{
	int waiting = 0;

	for (int i = 0; i < MAX_CELLS; i++)
		waiting += cells->cells[i].state == CELL_OPEN;
	return waiting > MAX_CELLS / 4 * 3;
}

/*
 * Whether a cell is to be written: its minute is over, or was never (the clock
 * was put back).
 */
static bool
is_due(const Cell *cell, bool everything)
{
	return cell->state == CELL_OPEN && cell->key.dboid == MyDatabaseId &&
		   (everything || cell->key.minute != minute_of(orch_clock()));
}

TimestampTz
orch_stats_due(void)
{
	int32 now = minute_of(orch_clock());
	int64 least = PG_INT64_MAX;
	bool crowded;

	if (cells == NULL)
		return DT_NOEND;
	LWLockAcquire(cells->lock, LW_SHARED);
	crowded = is_crowded();
	for (int i = 0; i < MAX_CELLS; i++)
	{
		const Cell *cell = &cells->cells[i];

		if (cell->state == CELL_FREE || cell->key.dboid != MyDatabaseId)
			continue;
		if (cell->state == CELL_SAVED)
			least = Min(least, cell->key.minute + 1 + KEPT_MINUTES);
		else if (cell->state == CELL_SEALED)
			least = Min(least, now + 1);
		else
			least = Min(least, crowded ? now : Min(cell->key.minute, now) + 1);
	}
	LWLockRelease(cells->lock);
	return least == PG_INT64_MAX ? DT_NOEND : least * MINUTE;
}

bool
orch_stats_prepare_save(Oid live, bool everything)
{
	int32 now = minute_of(orch_clock());
	uint64 lost;
	bool due = false;

	if (cells == NULL)
		return false;
	LWLockAcquire(cells->lock, LW_EXCLUSIVE);
	everything |= is_crowded();
	for (int i = 0; i < MAX_CELLS; i++)
	{
		Cell *cell = &cells->cells[i];

		if (cell->state == CELL_FREE || cell->key.dboid != MyDatabaseId)
			continue;
		resolve(cell);
		if (cell->key.live != live ||
			(cell->state == CELL_SAVED &&
			 (cell->key.minute + KEPT_MINUTES < now ||
			  cell->key.minute > now)))
			drop_cell(cell);
		else
			due |= is_due(cell, everything);
	}
	LWLockRelease(cells->lock);
	lost = pg_atomic_exchange_u64(&cells->lost, 0);
	if (lost > 0)
		ereport(
			LOG,
			(errmsg(
				 "statistics of orchestrator were not counted " UINT64_FORMAT
				 " times",
				 lost),
			 errdetail("Too many queues and definitions of too many roles "
					   "were in use in the same minutes.")));
	return due;
}

/*
 * Of each minute the time from its first start to its last end counts, so that
 * a burst is not thought to have taken the whole minute.
 */
double
orch_stats_rate(int32 owner, int32 queue)
{
	int32 now = minute_of(orch_clock());
	Oid live = orch_catalog(false)->task_live;
	int64 attempts = 0;
	int64 span = 0;

	if (cells == NULL)
		return 0;
	LWLockAcquire(cells->lock, LW_SHARED);
	for (int32 minute = now - KEPT_MINUTES; minute <= now; minute++)
	{
		CellKey key = {MyDatabaseId, live, owner, CELL_QUEUE, queue, minute};
		int chain =
			hash_bytes((const unsigned char *) &key, sizeof(key)) % CHAINS;

		for (int i = cells->chains[chain]; i >= 0; i = cells->cells[i].next)
		{
			Cell *cell = &cells->cells[i];

			if (memcmp(&cell->key, &key, sizeof(key)) != 0)
				continue;
			SpinLockAcquire(&cell->mutex);
			attempts += cell->counts.attempts;
			if (cell->counts.attempts > 0)
				span += cell->counts.last - cell->counts.first;
			SpinLockRelease(&cell->mutex);
		}
	}
	LWLockRelease(cells->lock);
	return attempts * 1e6 / Max(span, SHORTEST_SPAN);
}

static OrchCount
parse_count(const char *name)
{
	for (int i = 0; i < ORCH_COUNTS; i++)
	{
		if (strcmp(name, count_names[i]) == 0)
			return (OrchCount) i;
	}
	elog(ERROR, "unknown count \"%s\"", name);
}

/*
 * count(owner, queue, definition, what, took), not strict: what took no time
 * is no run.  Runs, maps and waits stand in no queue.
 */
Datum
orchestrator_count(PG_FUNCTION_ARGS)
{
	const OrchDefinition *definition;
	int32 queue;
	char *name;
	int64 took = -1;

	if (cells == NULL || !orch_statistics)
		PG_RETURN_VOID();
	for (int i = 0; i < 4; i++)
	{
		if (PG_ARGISNULL(i))
			elog(ERROR, "a count needs an owner, a queue, a definition and a "
						"name");
	}
	queue = PG_GETARG_INT32(1);
	definition = orch_catalog_definition(PG_GETARG_INT32(2));
	if (definition != NULL && definition->kind > ORCH_KIND_UTILITY &&
		definition->kind < ORCH_KIND_REMOTE)
		queue = 0;
	if (!PG_ARGISNULL(4))
	{
		const Interval *span = PG_GETARG_INTERVAL_P(4);

		took = Max(0, span->time + span->day * USECS_PER_DAY);
	}
	name = text_to_cstring(PG_GETARG_TEXT_PP(3));
	orch_stats_count(PG_GETARG_INT32(0), queue, PG_GETARG_INT32(2),
					 parse_count(name), took);
	pfree(name);
	PG_RETURN_VOID();
}

/*
 * _count_attempt(task): an attempt of it that a remote worker or the courier
 * made ends now.
 */
Datum
orchestrator_count_attempt(PG_FUNCTION_ARGS)
{
	OrchRow row;

	if (cells == NULL)
		PG_RETURN_VOID();
	orch_row_deform(PG_GETARG_HEAPTUPLEHEADER(0), &row);
	if (!row.nulls[ORCH_TASK_STARTED_AT])
		orch_stats_attempt(
			&row, DatumGetTimestampTz(row.values[ORCH_TASK_STARTED_AT]),
			orch_clock(), false);
	PG_RETURN_VOID();
}

/*
 * Whether a snapshot sees the row of a cell.
 */
static bool
is_in_table(const Cell *cell, Snapshot snapshot)
{
	if (cell->state == CELL_OPEN)
		return false;
	if (TransactionIdIsCurrentTransactionId(cell->writer))
		return true;
	return !XidInMVCCSnapshot(cell->writer, snapshot) &&
		   (cell->state == CELL_SAVED || TransactionIdDidCommit(cell->writer));
}

/*
 * Copy the cells of this database that are not in the table.  save: those that
 * are to be written, which from now on is this transaction's business.
 */
static int
collect(Cell *copies, bool save, bool everything)
{
	TransactionId writer = save ? GetTopTransactionId() : InvalidTransactionId;
	Oid live = orch_catalog(false)->task_live;
	Snapshot snapshot = GetActiveSnapshot();
	int n = 0;

	LWLockAcquire(cells->lock, save ? LW_EXCLUSIVE : LW_SHARED);
	everything |= is_crowded();
	for (int i = 0; i < MAX_CELLS; i++)
	{
		Cell *cell = &cells->cells[i];

		if (cell->state == CELL_FREE || cell->key.dboid != MyDatabaseId ||
			cell->key.live != live ||
			(save ? !is_due(cell, everything) : is_in_table(cell, snapshot)))
			continue;
		if (save)
		{
			cell->state = CELL_SEALED;
			cell->writer = writer;
		}
		SpinLockAcquire(&cell->mutex);
		copies[n++] = *cell;
		SpinLockRelease(&cell->mutex);
	}
	LWLockRelease(cells->lock);
	return n;
}

/*
 * live_stats(): minutes in memory that are not in the table, of owners that
 * the caller may see.  Everything is copied first: catalog look-ups must not
 * run under our lock.
 */
Datum
orchestrator_live_stats(PG_FUNCTION_ARGS)
{
	Cell *copies;
	int32 owner = -1;
	bool seen = false;
	int n;

	InitMaterializedSRF(fcinfo, 0);
	if (cells == NULL)
		return (Datum) 0;
	copies = palloc(MAX_CELLS * sizeof(Cell));
	n = collect(copies, false, true);
	qsort(copies, n, sizeof(Cell), compare_owners);
	for (int i = 0; i < n; i++)
	{
		if (copies[i].key.owner != owner)
			seen = orch_catalog_may_see(owner = copies[i].key.owner);
		if (seen)
			put_cell((ReturnSetInfo *) fcinfo->resultinfo, &copies[i]);
	}
	pfree(copies);
	return (Datum) 0;
}

/*
 * seal_stats(everything): what this transaction is to write.
 */
Datum
orchestrator_seal_stats(PG_FUNCTION_ARGS)
{
	Cell *copies;
	int n;

	InitMaterializedSRF(fcinfo, 0);
	if (cells == NULL)
		return (Datum) 0;
	copies = palloc(MAX_CELLS * sizeof(Cell));
	n = collect(copies, true, PG_GETARG_BOOL(0));
	for (int i = 0; i < n; i++)
		put_cell((ReturnSetInfo *) fcinfo->resultinfo, &copies[i]);
	pfree(copies);
	return (Datum) 0;
}

static int
compare_owners(const void *left, const void *right)
{
	int32 one = ((const Cell *) left)->key.owner;
	int32 other = ((const Cell *) right)->key.owner;

	return one < other ? -1 : one > other;
}

static void
put_cell(ReturnSetInfo *rsinfo, const Cell *cell)
{
	Datum values[5 + ORCH_COUNTS + 2];
	bool nulls[lengthof(values)] = {false};
	int n = 0;

	values[n++] = TimestampTzGetDatum(cell->key.minute * MINUTE);
	values[n++] = CStringGetTextDatum(
		cell->key.kind == CELL_QUEUE ? "queue" : "definition");
	values[n++] = Int32GetDatum(cell->key.id);
	values[n++] = Int32GetDatum(cell->key.owner);
	values[n++] = Int64GetDatum(cell->counts.attempts);
	for (int i = 0; i < ORCH_COUNTS; i++)
		values[n++] = Int64GetDatum(cell->counts.counts[i]);
	values[n++] = PointerGetDatum(orch_sketch_pack(cell->counts.wait));
	values[n++] = PointerGetDatum(orch_sketch_pack(cell->counts.run));
	Assert(n == lengthof(values));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
