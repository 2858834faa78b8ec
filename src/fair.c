/*
 * fair.c
 *	  The place of a task in its queue: by time and priority, or by turns of
 *	  the tenants in a queue that has some.
 *
 * Start-time fair queueing (Goyal, Vin and Cheng, 1996) in the sort key, so
 * that claims and their index know nothing of tenants.  A queue with tenants
 * has a clock of turns instead of time, one for each owner: the largest turn
 * that was claimed.  A task's turn is where its tenant's last one ended, or
 * just after the clock if that has passed it, and ends a quantum divided by
 * the tenant's weight later.  So a hundred thousand tasks of one tenant stand
 * far apart, and the only one of another comes in next.  Priority is taken
 * off the turn as elsewhere off the time: a tenant has one row of turns for
 * each.
 *
 * A new tenant begins a little after the clock, not at it: who keeps inventing
 * tenants moves the clock, and nobody waits for ever.
 *
 * All of it is in shared memory and gives way: entries that are not used for
 * long to others, and a restart forgets it.  The clock is then read from the
 * first task that waits, the tenants' ends from the last ones (_read_turns).  A
 * tenant that was forgotten begins at the clock again, before what it has
 * waiting.  Transactions that roll back leave gaps.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "fair.h"
#include "guc.h"
#include "shmem.h"

/* How far a task moves the turn of a tenant of weight 1. */
#define QUANTUM INT64CONST(100000)

/* A tenant that was idle begins so much after the clock, and a little more,
 * which differs: equal keys would stop the mark of the claims (lane.c). */
#define LEAD		   (QUANTUM / 16)
#define DIFFERENT_LEAD 4096

/* Inputs of runs within inputs of steps, at most. */
#define MAX_LEVELS 4

/* Whose turns a task takes. */
typedef struct Turns
{
	OrchTurnKey clock;
	OrchTurnKey tenant;
	int64 length; /* of one */
} Turns;

static const OrchQueue *fair_queue(int32 queue);
static bool find_turns(int32 owner, int32 queue, Datum input, int32 priority,
					   Turns *turns);
static bool give_turn(int32 owner, int32 queue, Datum input, int32 priority,
					  int64 *key);
static int64 take_turn(const Turns *turns);
static bool has_clock(const OrchTurnKey *clock);
static void read_clock(const OrchTurnKey *clock);
static void start_clock(const OrchTurnKey *clock, int64 turn);
static OrchTurn *find_turn(const OrchTurnKey *key, bool create);
static OrchTurnKey make_key(int32 owner, int32 queue);
static OrchTurnKey tenant_key(const OrchTurnKey *clock, int32 priority,
							  uint64 tenant);
static uint64 find_tenant(const OrchQueue *queue, Datum input, double *weight);
static Jsonb *first_match(const OrchQueue *queue, Datum input);
static double weight_of(const OrchQueue *queue, Jsonb *tenant);

PG_FUNCTION_INFO_V1(orchestrator_sort_key);
PG_FUNCTION_INFO_V1(orchestrator_ready_key);
PG_FUNCTION_INFO_V1(orchestrator_return_turn);
PG_FUNCTION_INFO_V1(orchestrator_claimed);
PG_FUNCTION_INFO_V1(orchestrator_read_turn);
PG_FUNCTION_INFO_V1(orchestrator_forget_turns);
PG_FUNCTION_INFO_V1(orchestrator_start_turns);

int64
orch_sort_key(TimestampTz at, int32 priority)
{
	return at - priority * ((int64) orch_priority_step * USECS_PER_SEC);
}

TimestampTz
orch_sort_time(int64 sort_key, int32 priority)
{
	return sort_key + priority * ((int64) orch_priority_step * USECS_PER_SEC);
}

int64
orch_fair_turn(int64 sort_key, int32 priority)
{
	return sort_key + priority * ((int64) orch_priority_step * USECS_PER_SEC);
}

int64
orch_fair_key(int32 owner, int32 queue, Datum input, TimestampTz at,
			  int32 priority)
{
	int64 key = orch_sort_key(at, priority);

	(void) give_turn(owner, queue, input, priority, &key);
	return key;
}

void
orch_fair_place(OrchRow *row, int place)
{
	int64 key = ORCH_INT64(row, ORCH_TASK_SORT_KEY) + place;

	(void) give_turn(ORCH_INT32(row, ORCH_TASK_OWNER),
					 ORCH_INT32(row, ORCH_TASK_QUEUE),
					 row->values[ORCH_TASK_INPUT],
					 ORCH_INT32(row, ORCH_TASK_PRIORITY), &key);
	orch_row_set(row, ORCH_TASK_SORT_KEY, Int64GetDatum(key));
}

/*
 * A queue whose tenants take turns; NULL: it is not one.  Without shared memory
 * none is.  Stays until the catalog is asked something else.
 */
static const OrchQueue *
fair_queue(int32 queue)
{
	const OrchQueue *info =
		orch_preloaded ? orch_catalog_queue_info(queue) : NULL;

	return info != NULL && info->tenant != (Datum) 0 ? info : NULL;
}

/*
 * False: its queue has no tenants.
 */
static bool
find_turns(int32 owner, int32 queue, Datum input, int32 priority, Turns *turns)
{
	const OrchQueue *info = fair_queue(queue);
	uint64 tenant;
	double weight;

	if (info == NULL)
		return false;
	tenant = find_tenant(info, input, &weight);
	turns->clock = make_key(owner, queue);
	turns->tenant = tenant_key(&turns->clock, priority, tenant);
	turns->length = (int64) (QUANTUM / weight);
	return true;
}

/*
 * The place of a task by its tenant's turn.  False: it has none.
 */
static bool
give_turn(int32 owner, int32 queue, Datum input, int32 priority, int64 *key)
{
	Turns turns;

	if (!find_turns(owner, queue, input, priority, &turns))
		return false;
	if (!has_clock(&turns.clock))
		read_clock(&turns.clock);
	*key = orch_sort_key(take_turn(&turns), priority);
	return true;
}

/*
 * The next turn of a tenant, which is its own from now on.
 */
static int64
take_turn(const Turns *turns)
{
	OrchTurn *now;
	OrchTurn *last;
	int64 turn;

	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	now = find_turn(&turns->clock, true);
	last = find_turn(&turns->tenant, true);
	turn = now->turn + LEAD + now->given++ % DIFFERENT_LEAD;
	turn = Max(turn, last->turn);
	last->turn = turn + turns->length;
	LWLockRelease(orch_shared->turn_lock);
	return turn;
}

static bool
has_clock(const OrchTurnKey *clock)
{
	bool found;

	LWLockAcquire(orch_shared->turn_lock, LW_SHARED);
	found = find_turn(clock, false) != NULL;
	LWLockRelease(orch_shared->turn_lock);
	return found;
}

/*
 * The first use since the server started, or since long ago.  Others may do
 * the same meanwhile, and come to the same result.
 */
static void
read_clock(const OrchTurnKey *clock)
{
	NullableDatum args[2] = {{Int32GetDatum(clock->owner), false},
							 {Int32GetDatum(clock->queue), false}};
	bool isnull;
	Datum first = orch_catalog_call(ORCH_FN_READ_TURNS, 2, args, &isnull);

	/* the first of those that wait is not claimed yet: who is new comes in
	 * before it */
	start_clock(clock, isnull ? orch_clock()
							  : DatumGetInt64(first) - LEAD - DIFFERENT_LEAD);
}

static void
start_clock(const OrchTurnKey *clock, int64 turn)
{
	OrchTurn *now;

	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	now = find_turn(clock, true);
	if (now->turn == PG_INT64_MIN)
		now->turn = turn;
	LWLockRelease(orch_shared->turn_lock);
}

/*
 * A queue without a clock is not given one: who enqueues next would miss the
 * turns that its tenants had.
 */
void
orch_fair_claimed(int32 owner, int32 queue, int64 turn)
{
	OrchTurnKey clock = make_key(owner, queue);
	OrchTurn *now;

	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	now = find_turn(&clock, false);
	if (now != NULL && turn > now->turn)
		now->turn = turn;
	LWLockRelease(orch_shared->turn_lock);
}

/*
 * The key of a queue's clock.
 */
static OrchTurnKey
make_key(int32 owner, int32 queue)
{
	OrchTurnKey key = {.dboid = MyDatabaseId,
					   .live = orch_catalog(false)->task_live,
					   .owner = owner,
					   .queue = queue,
					   .is_clock = 1};

	return key;
}

static OrchTurnKey
tenant_key(const OrchTurnKey *clock, int32 priority, uint64 tenant)
{
	OrchTurnKey key = *clock;

	key.is_clock = 0;
	key.priority = priority;
	key.tenant = tenant;
	return key;
}

/*
 * The entry of a key; with create, one that was used longest ago among those
 * where it may stand makes room.  Caller holds turn_lock, with create
 * exclusively.
 */
static OrchTurn *
find_turn(const OrchTurnKey *key, bool create)
{
	uint32 hash = hash_bytes((const unsigned char *) key, sizeof(*key));
	OrchTurn *set = key->is_clock ? orch_shared->clocks : orch_shared->turns;
	int nsets =
		(key->is_clock ? ORCH_MAX_CLOCKS : ORCH_MAX_TURNS) / ORCH_TURN_WAYS;
	OrchTurn *oldest;

	set += hash % nsets * ORCH_TURN_WAYS;
	oldest = set;
	for (int i = 0; i < ORCH_TURN_WAYS; i++)
	{
		if (memcmp(&set[i].key, key, sizeof(*key)) == 0)
		{
			if (create)
				set[i].used = ++orch_shared->turns_taken;
			return &set[i];
		}
		if (set[i].used < oldest->used)
			oldest = &set[i];
	}
	if (!create)
		return NULL;
	oldest->key = *key;
	oldest->turn = PG_INT64_MIN;
	oldest->given = 0;
	oldest->used = ++orch_shared->turns_taken;
	return oldest;
}

/*
 * Who a task's tenant is, as a number, and its weight.  What has none has one
 * together.
 */
static uint64
find_tenant(const OrchQueue *queue, Datum input, double *weight)
{
	static MemoryContext scratch = NULL;
	MemoryContext old;
	Jsonb *tenant;
	uint64 number = 1;

	if (scratch == NULL)
		scratch = AllocSetContextCreate(
			TopMemoryContext, "orchestrator tenant", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(scratch);
	old = MemoryContextSwitchTo(scratch);
	*weight = 1;
	tenant = first_match(queue, input);
	if (tenant != NULL)
	{
		number = DatumGetUInt64(DirectFunctionCall2(
			jsonb_hash_extended, JsonbPGetDatum(tenant), UInt64GetDatum(0)));
		if (queue->tenant_weights != (Datum) 0)
			*weight = weight_of(queue, tenant);
	}
	MemoryContextSwitchTo(old);
	return number;
}

/*
 * The value of the queue's path in an input; NULL: none.  A step has the input
 * of its run as a member, one of a run in a run that of the outer one in there.
 * The path is a chain of members (_check_queue): neither long to follow nor an
 * error, whoever made the queue.
 */
static Jsonb *
first_match(const OrchQueue *queue, Datum input)
{
	LOCAL_FCINFO(fcinfo, 4);
	Jsonb *document = DatumGetJsonbP(input);

	for (int level = 0; level < MAX_LEVELS; level++)
	{
		JsonbValue buffer;
		JsonbValue *inner = NULL;
		Datum found;

		InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
		fcinfo->args[0] = (NullableDatum){JsonbPGetDatum(document), false};
		fcinfo->args[1] = (NullableDatum){queue->tenant, false};
		fcinfo->args[2] = (NullableDatum){queue->no_variables, false};
		fcinfo->args[3] = (NullableDatum){BoolGetDatum(true), false};
		found = jsonb_path_query_first(fcinfo);
		if (!fcinfo->isnull)
			return DatumGetJsonbP(found);
		if (JB_ROOT_IS_OBJECT(document))
			inner = getKeyJsonValueFromContainer(&document->root, "input", 5,
												 &buffer);
		if (inner == NULL || inner->type != jbvBinary)
			break;
		document = JsonbValueToJsonb(inner);
	}
	return NULL;
}

static double
weight_of(const OrchQueue *queue, Jsonb *tenant)
{
	Jsonb *weights = DatumGetJsonbP(queue->tenant_weights);
	JsonbValue name;
	JsonbValue buffer;
	JsonbValue *weight;

	if (!JB_ROOT_IS_SCALAR(tenant) ||
		!JsonbExtractScalar(&tenant->root, &name))
		return 1;
	if (name.type != jbvString)
	{
		name.val.string.val =
			JsonbToCString(NULL, &tenant->root, VARSIZE(tenant));
		name.val.string.len = strlen(name.val.string.val);
	}
	weight = getKeyJsonValueFromContainer(&weights->root, name.val.string.val,
										  name.val.string.len, &buffer);
	if (weight == NULL || weight->type != jbvNumeric)
		return 1;
	return DatumGetFloat8(DirectFunctionCall1(
		numeric_float8, NumericGetDatum(weight->val.numeric)));
}

/*
 * _sort_key(at, priority): the place by time.
 */
Datum
orchestrator_sort_key(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(
		orch_sort_key(PG_GETARG_TIMESTAMPTZ(0), PG_GETARG_INT32(1)));
}

/*
 * _ready_key(owner, queue, input, at, priority): the place in its queue of a
 * task that becomes ready then.
 */
Datum
orchestrator_ready_key(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(orch_fair_key(PG_GETARG_INT32(0), PG_GETARG_INT32(1),
								  PG_GETARG_DATUM(2), PG_GETARG_TIMESTAMPTZ(3),
								  PG_GETARG_INT32(4)));
}

/*
 * _return_turn(owner, queue, input, priority): a task that waited will not be
 * claimed.  Its tenant's next one comes a turn earlier.
 */
Datum
orchestrator_return_turn(PG_FUNCTION_ARGS)
{
	Turns turns;
	OrchTurn *last;

	if (!find_turns(PG_GETARG_INT32(0), PG_GETARG_INT32(1), PG_GETARG_DATUM(2),
					PG_GETARG_INT32(3), &turns))
		PG_RETURN_VOID();
	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	last = find_turn(&turns.tenant, false);
	if (last != NULL)
		last->turn -= turns.length;
	LWLockRelease(orch_shared->turn_lock);
	PG_RETURN_VOID();
}

/*
 * _claimed(owner, queue, sort_key, priority): a task was claimed by SQL.
 */
Datum
orchestrator_claimed(PG_FUNCTION_ARGS)
{
	if (fair_queue(PG_GETARG_INT32(1)) != NULL)
		orch_fair_claimed(
			PG_GETARG_INT32(0), PG_GETARG_INT32(1),
			orch_fair_turn(PG_GETARG_INT64(2), PG_GETARG_INT32(3)));
	PG_RETURN_VOID();
}

/*
 * _read_turn(owner, queue, input, sort_key, priority): a task that waits has
 * this place, its tenant's next one comes after it.
 */
Datum
orchestrator_read_turn(PG_FUNCTION_ARGS)
{
	int32 priority = PG_GETARG_INT32(4);
	Turns turns;
	OrchTurn *last;
	int64 end;

	if (!find_turns(PG_GETARG_INT32(0), PG_GETARG_INT32(1), PG_GETARG_DATUM(2),
					priority, &turns))
		PG_RETURN_VOID();
	end = orch_fair_turn(PG_GETARG_INT64(3), priority) + turns.length;
	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	last = find_turn(&turns.tenant, true);
	last->turn = Max(last->turn, end);
	LWLockRelease(orch_shared->turn_lock);
	PG_RETURN_VOID();
}

/*
 * _forget_turns(queue): its tenants are others from now on.
 */
Datum
orchestrator_forget_turns(PG_FUNCTION_ARGS)
{
	int32 queue = PG_GETARG_INT32(0);

	if (!orch_preloaded)
		PG_RETURN_VOID();
	LWLockAcquire(orch_shared->turn_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ORCH_MAX_CLOCKS + ORCH_MAX_TURNS; i++)
	{
		OrchTurn *entry = i < ORCH_MAX_CLOCKS
							  ? &orch_shared->clocks[i]
							  : &orch_shared->turns[i - ORCH_MAX_CLOCKS];

		if (entry->key.dboid == MyDatabaseId && entry->key.queue == queue)
			memset(entry, 0, sizeof(*entry));
	}
	LWLockRelease(orch_shared->turn_lock);
	PG_RETURN_VOID();
}

/*
 * _start_turns(owner, queue, at): nothing is to be read of what waits.
 */
Datum
orchestrator_start_turns(PG_FUNCTION_ARGS)
{
	OrchTurnKey clock = make_key(PG_GETARG_INT32(0), PG_GETARG_INT32(1));

	if (orch_preloaded)
		start_clock(&clock, PG_GETARG_TIMESTAMPTZ(2));
	PG_RETURN_VOID();
}
