/*
 * limit.c
 *	  Which limits concern a row, and taking what they ask for.
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "endpoint.h"
#include "guc.h"
#include "limit.h"

static bool is_undo(const OrchRow *row);
static int add_limit(OrchLimit *limits, int n, const OrchLimit *limit);
static int add_quota(OrchLimit *limits, int n, int32 owner);
static int add_endpoint(OrchLimit *limits, int n, const char *name);
static const OrchDefinition *workflow_of(const OrchRow *row);
static bool is_known(const OrchLimitMemo *memo, const OrchRow *row);
static void learn(OrchLimitMemo *memo, const OrchRow *row,
				  const OrchDefinition *definition);
static int add_key(OrchLimit *limits, int n, const OrchRow *row,
				   const OrchDefinition *definition);
static OrchLimitKind kind_of(const char *kind);
static int64 microseconds(const Interval *span);
static bool is_visible(int32 owner, List **seen);

PG_FUNCTION_INFO_V1(orchestrator_restore_rate);
PG_FUNCTION_INFO_V1(orchestrator_permits);
PG_FUNCTION_INFO_V1(orchestrator_limit_id);

static bool
is_undo(const OrchRow *row)
{
	return !row->nulls[ORCH_TASK_STEP] && ORCH_INT32(row, ORCH_TASK_STEP) < 0;
}

static int
add_limit(OrchLimit *limits, int n, const OrchLimit *limit)
{
	if (!ORCH_IS_LIMITED(limit))
		return n;
	limits[n] = *limit;
	return n + 1;
}

/*
 * What an administrator allows a role (set_quota).
 */
static int
add_quota(OrchLimit *limits, int n, int32 owner)
{
	OrchLimit limit = {.kind = ORCH_LIMIT_ROLE, .owner = owner};

	limit.max_running = orch_catalog_quota(owner)->max_running;
	if (limit.max_running > 0)
		limit.id = orch_permit_id(ORCH_LIMIT_ROLE, owner, "", 0);
	return add_limit(limits, n, &limit);
}

static int
add_endpoint(OrchLimit *limits, int n, const char *name)
{
	const OrchEndpoint *endpoint = orch_endpoint(name);

	return endpoint == NULL ? n : add_limit(limits, n, &endpoint->limit);
}

static const OrchDefinition *
workflow_of(const OrchRow *row)
{
	return row->nulls[ORCH_TASK_PLAN]
			   ? NULL
			   : orch_catalog_definition(ORCH_INT32(row, ORCH_TASK_PLAN));
}

int
orch_limit_gather(const OrchRow *row, const OrchDefinition *definition,
				  OrchLimitMemo *memo, OrchLimit *limits)
{
	int n;

	if (is_undo(row))
		return 0;
	if (!is_known(memo, row))
		learn(memo, row, definition);
	n = memo->n;
	memcpy(limits, memo->limits, n * sizeof(OrchLimit));
	return definition == NULL || definition->key == NULL
			   ? n
			   : add_key(limits, n, row, definition);
}

static bool
is_known(const OrchLimitMemo *memo, const OrchRow *row)
{
	return memo->queue == ORCH_INT32(row, ORCH_TASK_QUEUE) &&
		   memo->definition == ORCH_INT32(row, ORCH_TASK_DEFINITION) &&
		   memo->plan == (row->nulls[ORCH_TASK_PLAN]
							  ? 0
							  : ORCH_INT32(row, ORCH_TASK_PLAN));
}

/*
 * All but the key's, which each row has of its own.  Those of the role and the
 * queue come first: where they refuse, the lane sleeps and nothing is parked.
 */
static void
learn(OrchLimitMemo *memo, const OrchRow *row,
	  const OrchDefinition *definition)
{
	const OrchDefinition *workflow;
	const OrchQueue *queue;

	memo->queue = ORCH_INT32(row, ORCH_TASK_QUEUE);
	memo->definition = ORCH_INT32(row, ORCH_TASK_DEFINITION);
	memo->plan =
		row->nulls[ORCH_TASK_PLAN] ? 0 : ORCH_INT32(row, ORCH_TASK_PLAN);
	memo->n = add_quota(memo->limits, 0, ORCH_INT32(row, ORCH_TASK_OWNER));
	queue = orch_catalog_queue_info(memo->queue);
	if (queue != NULL)
		memo->n = add_limit(memo->limits, memo->n, &queue->limit);
	workflow = workflow_of(row);
	if (workflow != NULL)
		memo->n = add_limit(memo->limits, memo->n, &workflow->limit);
	if (definition != NULL)
		memo->n = add_limit(memo->limits, memo->n, &definition->limit);
	if (definition != NULL && definition->endpoint != NULL)
		memo->n = add_endpoint(memo->limits, memo->n, definition->endpoint);
}

static int
add_key(OrchLimit *limits, int n, const OrchRow *row,
		const OrchDefinition *definition)
{
	char *value =
		orch_json_find(definition->key, row->values[ORCH_TASK_INPUT]);

	if (value == NULL)
		return n; /* it has none */
	n = add_limit(limits, n, &definition->key_limit);
	limits[n - 1].id = orch_permit_id(ORCH_LIMIT_KEY, definition->key_limit.id,
									  value, strlen(value));
	pfree(value);
	return n;
}

bool
orch_limit_start(OrchLimit *limits, int n)
{
	int64 now = orch_monotonic();
	bool moved = false;

	for (int i = 0; i < n; i++)
		moved |= limits[i].rate_limit > 0 && now >= limits[i].piece_end;
	return !moved || orch_permit_start(limits, n);
}

bool
orch_limit_may_go_on(const OrchRow *row, const OrchDefinition *definition)
{
	const OrchDefinition *workflow = workflow_of(row);
	const OrchQueue *queue;

	if (ORCH_IS_LIMITED(&definition->limit) || definition->key != NULL ||
		(workflow != NULL && workflow->limit.rate_limit > 0))
		return false;
	queue = orch_catalog_queue_info(ORCH_INT32(row, ORCH_TASK_QUEUE));
	return queue == NULL || queue->limit.rate_limit == 0;
}

static OrchLimitKind
kind_of(const char *kind)
{
	if (strcmp(kind, "queue") == 0)
		return ORCH_LIMIT_QUEUE;
	return strcmp(kind, "role") == 0 ? ORCH_LIMIT_ROLE : ORCH_LIMIT_DEFINITION;
}

/*
 * _restore_rate(kind, number, name, rate_limit, period, ago, n)
 */
Datum
orchestrator_restore_rate(PG_FUNCTION_ARGS)
{
	char *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	OrchLimit limit = {.rate_limit = PG_GETARG_INT32(3)};

	if (!orch_preloaded)
		PG_RETURN_VOID();
	limit.kind = kind_of(kind);
	limit.id =
		orch_permit_id(limit.kind, PG_GETARG_INT32(1), name, strlen(name));
	limit.rate_period = microseconds(PG_GETARG_INTERVAL_P(4));
	orch_permit_restore(&limit, microseconds(PG_GETARG_INTERVAL_P(5)),
						PG_GETARG_INT32(6));
	PG_RETURN_VOID();
}

/*
 * Whether what belongs to an owner may be shown; asks once for each.
 */
static bool
is_visible(int32 owner, List **seen)
{
	bool visible;

	for (int i = 0; i < 2; i++)
	{
		if (list_member_int(seen[i], owner))
			return i == 1;
	}
	visible = orch_catalog_may_see(owner);
	seen[visible] = lappend_int(seen[visible], owner);
	return visible;
}

/*
 * _permits(): what is taken of the limits of this database that are in use and
 * that belong to whom the caller may see, or to everybody.
 */
Datum
orchestrator_permits(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	List *seen[2]; /* owners that the caller may not, and may see */

	InitMaterializedSRF(fcinfo, 0);
	seen[0] = list_make1_int(-1);
	seen[1] = list_make1_int(0);
	for (int i = 0; orch_preloaded && i < ORCH_MAX_PERMITS; i++)
	{
		OrchPermitUse use;
		Datum values[5];
		bool nulls[5] = {false};

		if (!orch_permit_read(i, &use) || !is_visible(use.owner, seen))
			continue;
		values[0] = Int64GetDatum(use.id);
		values[1] = Int32GetDatum(use.running);
		values[2] = Int32GetDatum(use.started);
		values[3] = BoolGetDatum(use.waiting);
		values[4] = Int32GetDatum(use.adaptive);
		tuplestore_putvalues(result->setResult, result->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

/*
 * _limit_id(kind, number, name)
 */
Datum
orchestrator_limit_id(PG_FUNCTION_ARGS)
{
	char *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(2));

	PG_RETURN_INT64(
		orch_permit_id(kind_of(kind), PG_GETARG_INT32(1), name, strlen(name)));
}

static int64
microseconds(const Interval *span)
{
	return span->time +
		   ((int64) span->month * DAYS_PER_MONTH + span->day) * USECS_PER_DAY;
}
