/*
 * limit.c
 *	  Which limits concern a row, and taking what they ask for.
 */
#include "postgres.h"

#include "limit.h"

static bool is_undo(const OrchRow *row);
static int add_limit(OrchLimit *limits, int n, const OrchLimit *limit);
static int add_quota(OrchLimit *limits, int n, int32 owner);
static const OrchDefinition *workflow_of(const OrchRow *row);

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
	OrchLimit limit = {.kind = ORCH_LIMIT_ROLE};

	limit.max_running = orch_catalog_quota(owner)->max_running;
	if (limit.max_running > 0)
		limit.id = orch_permit_id(ORCH_LIMIT_ROLE, owner, "", 0);
	return add_limit(limits, n, &limit);
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
				  OrchLimit *limits)
{
	const OrchDefinition *workflow;
	const OrchQueue *queue;
	int n = 0;

	if (is_undo(row))
		return 0;
	n = add_quota(limits, n, ORCH_INT32(row, ORCH_TASK_OWNER));
	queue = orch_catalog_queue_info(ORCH_INT32(row, ORCH_TASK_QUEUE));
	if (queue != NULL)
		n = add_limit(limits, n, &queue->limit);
	workflow = workflow_of(row);
	if (workflow != NULL)
		n = add_limit(limits, n, &workflow->limit);
	if (definition == NULL)
		return n;
	n = add_limit(limits, n, &definition->limit);
	if (definition->key != NULL)
	{
		char *value =
			orch_json_find(definition->key, row->values[ORCH_TASK_INPUT]);

		if (value == NULL)
			return n; /* it has no key */
		n = add_limit(limits, n, &definition->key_limit);
		limits[n - 1].id = orch_permit_id(
			ORCH_LIMIT_KEY, definition->key_limit.id, value, strlen(value));
		pfree(value);
	}
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
