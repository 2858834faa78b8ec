/*
 * remote_lane.c
 *	  Where a remote worker may have work: lanes, each the tasks of one owner
 *	  in one queue.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "catalog.h"
#include "heap.h"
#include "remote_lane.h"

/* The lanes that are found, and where they are looked for. */
typedef struct Search
{
	OrchLeaf *live;
	const int32 *queues;
	bool *open;		 /* the tasks of everybody may be claimed there */
	double *weights; /* 0: it is paused, or gone */
	int nqueues;
	int32 *mine; /* owners that the role is */
	int nmine;
	OrchRemoteLane *lanes;
	int n;
	int room;
} Search;

PG_FUNCTION_INFO_V1(orchestrator_remote_queues);
PG_FUNCTION_INFO_V1(orchestrator_remote_lanes);

static bool is_among(int32 id, const int32 *ids, int n);
static void begin_search(Search *search, Oid caller);
static void search_owner(Search *search, int32 owner);
static void add_lane(Search *search, int i, int32 owner);
static bool is_ready(OrchLeaf *live, int32 owner, int32 queue);
static int compare_turns(const void *left, const void *right);

int32 *
orch_remote_queues(Oid caller, ArrayType *names, int *n)
{
	Datum *elements = NULL;
	bool *nulls = NULL;
	int nnames = 0;
	int32 *queues;

	if (names != NULL)
		deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &elements,
						  &nulls, &nnames);
	if (nnames == 0 || array_contains_nulls(names))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("queues must name at least one queue")));
	queues = palloc(nnames * sizeof(int32));
	*n = 0;
	for (int i = 0; i < nnames; i++)
	{
		int32 queue =
			orch_catalog_queue_of(caller, TextDatumGetCString(elements[i]));

		if (!is_among(queue, queues, *n))
			queues[(*n)++] = queue;
	}
	return queues;
}

static bool
is_among(int32 id, const int32 *ids, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (ids[i] == id)
			return true;
	}
	return false;
}

/*
 * orchestrator._remote_queues(caller, queues) -> int[]
 */
Datum
orchestrator_remote_queues(PG_FUNCTION_ARGS)
{
	int n;
	int32 *queues = orch_remote_queues(
		PG_GETARG_OID(0), PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1),
		&n);
	Datum *elements = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(queues[i]);
	PG_RETURN_ARRAYTYPE_P(
		construct_array(elements, n, INT4OID, 4, true, TYPALIGN_INT));
}

OrchRemoteLane *
orch_remote_lanes(Oid caller, const int32 *queues, int nqueues, int *n)
{
	Search search = {.queues = queues, .nqueues = nqueues};
	bool open = false;

	begin_search(&search, caller);
	for (int i = 0; i < nqueues; i++)
		open |= search.open[i];
	if (open)
	{
		int32 owner = 0;

		while ((owner = orch_heap_next_waiting_owner(search.live, owner)) != 0)
		{
			CHECK_FOR_INTERRUPTS();
			search_owner(&search, owner);
		}
	}
	else
	{
		for (int i = 0; i < search.nmine; i++)
			search_owner(&search, search.mine[i]);
	}
	orch_heap_close(search.live);
	qsort(search.lanes, search.n, sizeof(OrchRemoteLane), compare_turns);
	*n = search.n;
	return search.lanes;
}

static void
begin_search(Search *search, Oid caller)
{
	int n = Max(search->nqueues, 1);

	search->open = palloc(n * sizeof(bool));
	search->weights = palloc(n * sizeof(double));
	search->room = n;
	search->lanes = palloc(n * sizeof(OrchRemoteLane));
	search->mine = orch_catalog_members(caller, &search->nmine);
	for (int i = 0; i < search->nqueues; i++)
	{
		int32 queue = search->queues[i];
		bool paused = orch_catalog_queue_paused(queue);
		const OrchQueue *known = orch_catalog_queue_info(queue);

		search->weights[i] = known == NULL || paused ? 0 : known->weight;
		search->open[i] = orch_catalog_claims_all(caller, queue);
	}
	search->live = orch_heap_open_live();
}

static void
search_owner(Search *search, int32 owner)
{
	bool is_mine = is_among(owner, search->mine, search->nmine);

	for (int i = 0; i < search->nqueues; i++)
	{
		if (search->weights[i] > 0 && (search->open[i] || is_mine) &&
			is_ready(search->live, owner, search->queues[i]))
			add_lane(search, i, owner);
	}
}

static bool
is_ready(OrchLeaf *live, int32 owner, int32 queue)
{
	OrchReadyScan *scan =
		orch_heap_parked_begin(live, owner, -(int64) queue, PG_INT64_MIN);
	int64 sort_key;
	int64 id;
	bool found = orch_heap_ready_key(scan, &sort_key, &id);

	orch_heap_ready_end(scan);
	return found;
}

/*
 * The least of exponential variates with these rates is each with a probability
 * in proportion to its rate.
 */
static void
add_lane(Search *search, int i, int32 owner)
{
	OrchRemoteLane *lane;

	if (search->n == search->room)
	{
		search->room *= 2;
		search->lanes =
			repalloc(search->lanes, search->room * sizeof(OrchRemoteLane));
	}
	lane = &search->lanes[search->n++];
	lane->queue = search->queues[i];
	lane->owner = owner;
	lane->turn =
		-log(1 - pg_prng_double(&pg_global_prng_state)) / search->weights[i];
}

static int
compare_turns(const void *left, const void *right)
{
	double one = ((const OrchRemoteLane *) left)->turn;
	double other = ((const OrchRemoteLane *) right)->turn;

	return one < other ? -1 : one > other;
}

/*
 * orchestrator._remote_lanes(caller, queues) -> setof (queue, owner)
 */
Datum
orchestrator_remote_lanes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ArrayType *queues = PG_GETARG_ARRAYTYPE_P(1);
	OrchRemoteLane *lanes;
	int n;

	InitMaterializedSRF(fcinfo, 0);
	lanes = orch_remote_lanes(
		PG_GETARG_OID(0), (const int32 *) ARR_DATA_PTR(queues),
		ArrayGetNItems(ARR_NDIM(queues), ARR_DIMS(queues)), &n);
	for (int i = 0; i < n; i++)
	{
		Datum values[2] = {Int32GetDatum(lanes[i].queue),
						   Int32GetDatum(lanes[i].owner)};
		bool nulls[2] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	PG_RETURN_NULL();
}
