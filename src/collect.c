/*
 * collect.c
 *	  Which ready calls go out together in one request, a parcel (batch_size),
 *	  and which wait a little for more (batch_wait).
 *
 * Rows that wait are kept as they were read, so that a claim that finds enough
 * of them need not look for them again.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "collect.h"
#include "endpoint.h"
#include "gather.h"
#include "guc.h"

/*
 * Bytes of inputs in one parcel.  Services take so many tokens in a request
 * (OpenAI 300,000), and a token has at least one byte.
 */
#define MOST_BYTES (256 * 1024)

/* Tasks whose calls go in smaller parcels: forgotten when they are too many. */
#define MOST_CAPS 10000

typedef struct Cap
{
	int64 task; /* hash key */
	int most;
} Cap;

static HTAB *caps = NULL;

static int size_of(const OrchDefinition *definition, int64 task);
static bool is_cut_short(const OrchCollect *collect,
						 const OrchDefinition *definition, const OrchRow *row);
static Size bytes_of(const OrchRow *row);
static int64 time_left(const OrchCollect *collect,
					   const OrchDefinition *definition, const OrchRow *row);
static bool fits(const OrchLoading *loading, int size, Size bytes);
static OrchLoading *find_loading(OrchCollect *collect, int32 definition);
static Cap *find_cap(int64 task);

void
orch_collect_begin(OrchCollect *collect, TimestampTz now)
{
	collect->context = CurrentMemoryContext;
	collect->now = now;
	collect->loadings = NIL;
}

OrchCollectVerdict
orch_collect_judge(OrchCollect *collect, const OrchDefinition *definition,
				   const OrchRow *row, OrchLoading **loading)
{
	int size;
	Size bytes;

	if (!ORCH_TAKES_MANY(definition))
		return ORCH_COLLECT_ALONE;
	size = size_of(definition, ORCH_INT64(row, ORCH_TASK_ID));
	if (size == 1 || is_cut_short(collect, definition, row))
		return ORCH_COLLECT_ALONE;
	*loading = find_loading(collect, definition->id);
	bytes = bytes_of(row);
	if ((*loading)->n > 0 && fits(*loading, size, bytes))
		return ORCH_COLLECT_RIDE;
	(*loading)->n = 0; /* the next one, then */
	if (time_left(collect, definition, row) > 0 &&
		list_length((*loading)->kept) + 1 < size &&
		(*loading)->kept_bytes + bytes <= MOST_BYTES)
		return ORCH_COLLECT_WAIT;
	return ORCH_COLLECT_OPEN;
}

static int
size_of(const OrchDefinition *definition, int64 task)
{
	int size = Min(definition->batch_size, orch_batch_size);
	const Cap *cap = find_cap(task);

	return cap == NULL ? size : Min(size, cap->most);
}

/*
 * A deadline that would end the call before its time would end those of others
 * with it.
 */
static bool
is_cut_short(const OrchCollect *collect, const OrchDefinition *definition,
			 const OrchRow *row)
{
	const OrchEndpoint *endpoint;
	int64 timeout = definition->timeout;

	if (row->nulls[ORCH_TASK_DEADLINE])
		return false;
	endpoint = orch_endpoint(definition->endpoint);
	if (endpoint != NULL)
		timeout =
			timeout > 0 ? Min(timeout, endpoint->timeout) : endpoint->timeout;
	return DatumGetTimestampTz(row->values[ORCH_TASK_DEADLINE]) <
		   TimestampTzPlusMilliseconds(collect->now, timeout);
}

static Size
bytes_of(const OrchRow *row)
{
	return row->nulls[ORCH_TASK_INPUT]
			   ? 0
			   : toast_raw_datum_size(row->values[ORCH_TASK_INPUT]);
}

/*
 * What was in a parcel already goes on at once.
 */
static int64
time_left(const OrchCollect *collect, const OrchDefinition *definition,
		  const OrchRow *row)
{
	return find_cap(ORCH_INT64(row, ORCH_TASK_ID)) != NULL
			   ? 0
			   : orch_gather_time_left(definition, row, collect->now);
}

static bool
fits(const OrchLoading *loading, int size, Size bytes)
{
	return loading->n < Min(loading->size, size) &&
		   loading->bytes + bytes <= MOST_BYTES;
}

void
orch_collect_keep(OrchCollect *collect, OrchLoading *loading,
				  const OrchDefinition *definition, const OrchRow *row,
				  ItemPointer tid, bool mine)
{
	MemoryContext old = MemoryContextSwitchTo(collect->context);
	OrchKept *kept = palloc(sizeof(OrchKept));

	orch_row_copy(&kept->row, row);
	kept->tid = *tid;
	kept->mine = mine;
	kept->size = size_of(definition, ORCH_INT64(row, ORCH_TASK_ID));
	kept->bytes = bytes_of(row);
	kept->left = time_left(collect, definition, row);
	loading->kept = lappend(loading->kept, kept);
	loading->kept_bytes += kept->bytes;
	MemoryContextSwitchTo(old);
}

OrchKept *
orch_collect_next(OrchLoading *loading)
{
	OrchKept *kept = loading->kept == NIL ? NULL : linitial(loading->kept);

	if (kept == NULL ||
		(loading->n > 0 && !fits(loading, kept->size, kept->bytes)))
		return NULL;
	loading->kept = list_delete_first(loading->kept);
	loading->kept_bytes -= kept->bytes;
	return kept;
}

void
orch_collect_put(OrchLoading *loading, const OrchRow *row, int size)
{
	static int32 last_number = 0;
	int64 task = ORCH_INT64(row, ORCH_TASK_ID);

	if (loading->n == 0)
	{
		last_number = last_number % PG_INT32_MAX + 1;
		loading->number = last_number;
		loading->size = size;
		loading->bytes = 0;
	}
	loading->n++;
	loading->size = Min(loading->size, size);
	loading->bytes += bytes_of(row);
	if (caps != NULL)
		(void) hash_search(caps, &task, HASH_REMOVE, NULL);
}

bool
orch_collect_has_room(const OrchCollect *collect)
{
	ListCell *cell;

	foreach(cell, collect->loadings)
	{
		const OrchLoading *loading = lfirst(cell);

		if (loading->n > 0 && fits(loading, loading->size, 0))
			return true;
	}
	return false;
}

int
orch_collect_kept(const OrchCollect *collect, int64 *left)
{
	ListCell *cell;
	int n = 0;

	*left = -1;
	foreach(cell, collect->loadings)
	{
		const OrchLoading *loading = lfirst(cell);
		ListCell *inner;

		foreach(inner, loading->kept)
		{
			const OrchKept *kept = lfirst(inner);

			if (n++ == 0 || kept->left < *left)
				*left = kept->left;
		}
	}
	return n;
}

static OrchLoading *
find_loading(OrchCollect *collect, int32 definition)
{
	MemoryContext old;
	ListCell *cell;
	OrchLoading *loading;

	foreach(cell, collect->loadings)
	{
		loading = lfirst(cell);
		if (loading->definition == definition)
			return loading;
	}
	old = MemoryContextSwitchTo(collect->context);
	loading = palloc0(sizeof(OrchLoading));
	loading->definition = definition;
	collect->loadings = lappend(collect->loadings, loading);
	MemoryContextSwitchTo(old);
	return loading;
}

/* ------------------------------------------------------ smaller parcels */

static Cap *
find_cap(int64 task)
{
	return caps == NULL ? NULL : hash_search(caps, &task, HASH_FIND, NULL);
}

void
orch_collect_cap(int64 task, int most)
{
	HASHCTL control = {.keysize = sizeof(int64), .entrysize = sizeof(Cap)};
	Cap *cap;

	if (caps != NULL && hash_get_num_entries(caps) >= MOST_CAPS)
	{
		hash_destroy(caps);
		caps = NULL;
	}
	control.hcxt = TopMemoryContext;
	if (caps == NULL)
		caps = hash_create("orchestrator parcels", 256, &control,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cap = hash_search(caps, &task, HASH_ENTER, NULL);
	cap->most = most;
}
