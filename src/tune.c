/*
 * tune.c
 *	  Adaptive queues: what executors measure of their steps, and the courier of
 *	  its calls, and the looks of the supervisor that change their limits by it.
 *
 * They add up; the supervisor of the database looks each second at the
 * queues in which steps ended or somebody waits, and at none when there are
 * none.  A change is a row in orchestrator.queue_decision first and takes effect
 * when that is committed: after a restart a queue goes on from the last one.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "guc.h"
#include "json.h"
#include "permit.h"
#include "tune.h"

/* An entry in which nothing was measured for so long may be used for another
 * queue, which loses the place in the rule but not the limit. */
#define IDLE_ENTRY (60 * INT64CONST(1000000))

/* What the database is short of, or not. */
typedef struct Load
{
	int64 lag;		  /* bytes that the last standby is behind */
	int32 lock_waits; /* sessions of this database that wait for a lock ... */
	int32 active;	  /* ... of so many that are active */
	int32 free;		  /* connections */
} Load;

/* A queue at which the supervisor looks. */
typedef struct Subject
{
	int index; /* into orch_shared->tuned */
	int32 queue;
	int64 limit;
	int32 adapted; /* limit in force, as the permit knows it */
	bool waiting;
	bool changed;
	bool gone; /* adaptive no more */
	OrchAdaptSample sample;
	OrchAdapt adapt;
} Subject;

static Subject subjects[ORCH_MAX_TUNED];
static int nsubjects = 0;
static bool resumed = false; /* this supervisor has made a look */

static bool report_run(const OrchBatch *batch, const int *numbers, int n,
					   double busy, int64 since);
static bool add_steps(OrchTuned *entry, const OrchAdaptSample *sample,
					  int64 since, int64 now);
static OrchTuned *find_entry(int32 queue, int64 limit, int64 now);
static void collect(int index, bool all);
static void look_at(Subject *subject, const Load *load);
static void read_load(Load *load);
static char *pressure_of(const Load *load);
static void write_decision(const Subject *subject, int32 before,
						   const char *reason, const Load *load);
static Datum describe(const OrchAdapt *adapt, int32 limit, const Load *load);

void
orch_tune_report(const OrchBatch *batch, const int *numbers, int n,
				 int64 *occupied_since)
{
	int64 now = orch_monotonic();
	int64 since = *occupied_since;
	bool wake = false;
	bool tuned = false;

	*occupied_since = now;
	for (int i = 0; i < n; i++)
		tuned |= batch->tasks[numbers[i]].tuned != 0;
	if (!tuned)
		return;
	LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
	for (int first = 0, next; first < n; first = next)
	{
		int64 limit = batch->tasks[numbers[first]].tuned;

		for (next = first + 1; next < n; next++)
		{
			if (batch->tasks[numbers[next]].tuned != limit)
				break;
		}
		if (limit != 0)
			wake |=
				report_run(batch, &numbers[first], next - first,
						   (double) (now - since) * (next - first) / n, since);
	}
	LWLockRelease(orch_shared->permit_lock);
	if (wake)
		orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_TUNE);
}

/*
 * Steps of one queue.  What became of none of them is no measure.  Returns
 * whether the supervisor is to be told.  Caller holds permit_lock.
 */
static bool
report_run(const OrchBatch *batch, const int *numbers, int n, double busy,
		   int64 since)
{
	const OrchTask *first = &batch->tasks[numbers[0]];
	int64 now = orch_monotonic();
	OrchTuned *entry = find_entry(ORCH_INT32(&first->row, ORCH_TASK_QUEUE),
								  first->tuned, now);
	OrchAdaptSample sample = {.busy = busy};

	if (entry == NULL)
		return false;
	for (int i = 0; i < n; i++)
	{
		const OrchTask *task = &batch->tasks[numbers[i]];

		if (task->outcome == ORCH_OUTCOME_NONE ||
			task->outcome == ORCH_OUTCOME_GONE)
			continue;
		sample.steps++;
		if (task->outcome != ORCH_OUTCOME_FAILED)
			continue;
		if (strcmp(task->reason, "timeout") == 0)
			sample.timed_out++;
		else
			sample.failed++;
	}
	return add_steps(entry, &sample, since, now);
}

/*
 * Those that began before the limit was changed do not count.  Returns whether
 * the supervisor is to be told.
 */
static bool
add_steps(OrchTuned *entry, const OrchAdaptSample *sample, int64 since,
		  int64 now)
{
	entry->reported_at = now;
	if (sample->steps == 0 || since < entry->changed_at)
		return false;
	orch_adapt_add(&entry->sample, sample->steps, sample->failed,
				   sample->timed_out, sample->busy);
	if (entry->asked)
		return false;
	entry->asked = true;
	return true;
}

void
orch_tune_report_call(const OrchTunedCall *call, bool failed, bool timed_out)
{
	int64 now = orch_monotonic();
	OrchAdaptSample sample = {.steps = 1,
							  .failed = failed && !timed_out,
							  .timed_out = timed_out,
							  .busy = now - call->since};
	OrchTuned *entry;
	bool wake;

	if (call->limit == 0)
		return;
	LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
	entry = find_entry(call->queue, call->limit, now);
	wake = entry != NULL && add_steps(entry, &sample, call->since, now);
	LWLockRelease(orch_shared->permit_lock);
	if (wake)
		orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_TUNE);
}

/*
 * The entry of a queue, made if missing; NULL: no room.  Caller holds
 * permit_lock.
 */
static OrchTuned *
find_entry(int32 queue, int64 limit, int64 now)
{
	static int lately = 0;
	OrchTuned *entry = &orch_shared->tuned[lately];
	OrchTuned *unused = NULL;

	if (entry->limit == limit && entry->dboid == MyDatabaseId)
		return entry;
	for (int i = 0; i < ORCH_MAX_TUNED; i++)
	{
		entry = &orch_shared->tuned[i];
		if (entry->dboid == MyDatabaseId && entry->limit == limit)
		{
			lately = i;
			return entry;
		}
		if (unused == NULL && (!OidIsValid(entry->dboid) ||
							   now - entry->reported_at > IDLE_ENTRY))
			unused = entry;
	}
	if (unused == NULL)
		return NULL;
	lately = unused - orch_shared->tuned;
	memset(unused, 0, sizeof(OrchTuned));
	unused->dboid = MyDatabaseId;
	unused->queue = queue;
	unused->limit = limit;
	unused->reported_at = now;
	return unused;
}

bool
orch_tune_collect(bool all)
{
	nsubjects = 0;
	LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ORCH_MAX_TUNED; i++)
	{
		if (orch_shared->tuned[i].dboid == MyDatabaseId)
			collect(i, all);
	}
	LWLockRelease(orch_shared->permit_lock);
	return nsubjects > 0;
}

static void
collect(int index, bool all)
{
	OrchTuned *entry = &orch_shared->tuned[index];
	Subject *subject = &subjects[nsubjects];

	memset(subject, 0, sizeof(Subject));
	subject->index = index;
	subject->queue = entry->queue;
	subject->limit = entry->limit;
	subject->adapted =
		orch_permit_adapted(MyDatabaseId, entry->limit, &subject->waiting);
	subject->sample = entry->sample;
	subject->adapt = entry->adapt;
	memset(&entry->sample, 0, sizeof(OrchAdaptSample));
	entry->asked = subject->sample.steps > 0 || subject->waiting;
	if (entry->asked || all)
		nsubjects++;
}

void
orch_tune_decide(void)
{
	Load load;

	read_load(&load);
	for (int i = 0; i < nsubjects; i++)
		look_at(&subjects[i], &load);
}

static void
look_at(Subject *subject, const Load *load)
{
	const OrchQueue *queue = orch_catalog_queue_info(subject->queue);
	OrchAdaptLook look = {.now = orch_monotonic(),
						  .min_running = queue->min_running,
						  .max_running = queue->limit.max_running,
						  .waiting = subject->waiting,
						  .pressure = pressure_of(load),
						  .sample = &subject->sample};
	int32 before = subject->adapt.limit;
	char *reason;

	subject->gone = queue->limit.adaptive == 0;
	if (subject->gone)
		return;
	if (before == 0)
	{
		int32 start =
			subject->adapted > 0 ? subject->adapted : queue->limit.adaptive;

		orch_adapt_begin(&subject->adapt, start, queue->last_running == 0,
						 look.now);
		subject->changed = true;
		if (queue->last_running == 0)
			write_decision(subject, 0, "start", load);
		return;
	}
	if (!resumed && before != queue->limit.adaptive)
	{
		/* the one before us ended between its commit and orch_tune_apply() */
		orch_adapt_begin(&subject->adapt, queue->limit.adaptive, false,
						 look.now);
		subject->changed = true;
		return;
	}
	reason = orch_adapt_decide(&subject->adapt, &look);
	subject->changed = reason != NULL;
	if (subject->changed)
		write_decision(subject, before, reason, load);
}

static void
read_load(Load *load)
{
	HeapTupleHeader row = DatumGetHeapTupleHeader(
		orch_catalog_call(ORCH_FN_LOAD, 0, NULL, NULL));
	bool isnull;

	load->lag = DatumGetInt64(GetAttributeByName(row, "lag", &isnull));
	load->lock_waits =
		DatumGetInt32(GetAttributeByName(row, "lock_waits", &isnull));
	load->active = DatumGetInt32(GetAttributeByName(row, "active", &isnull));
	load->free = DatumGetInt32(GetAttributeByName(row, "free", &isnull));
}

/*
 * Why no queue should grow; NULL: they may.  One session that waits for
 * another is everyday's life.
 */
static char *
pressure_of(const Load *load)
{
	if (orch_adaptive_replication_lag > 0 &&
		load->lag > (int64) orch_adaptive_replication_lag * 1024 * 1024)
		return psprintf("a standby is %lld MB behind",
						(long long) (load->lag / (1024 * 1024)));
	if (orch_adaptive_lock_waits > 0 && load->lock_waits > 1 &&
		(int64) load->lock_waits * 100 >=
			(int64) load->active * orch_adaptive_lock_waits)
		return psprintf("%d of %d active sessions wait for a lock",
						load->lock_waits, load->active);
	if (load->free < orch_adaptive_free_connections)
		return psprintf("%d connections are free", load->free);
	return NULL;
}

static void
write_decision(const Subject *subject, int32 before, const char *reason,
			   const Load *load)
{
	NullableDatum args[5] = {
		{Int32GetDatum(subject->queue), false},
		{Int32GetDatum(before), before == 0},
		{Int32GetDatum(subject->adapt.limit), false},
		{CStringGetTextDatum(reason), false},
		{describe(&subject->adapt, before, load), false},
	};
	bool isnull;

	orch_catalog_call(ORCH_FN_DECIDE, 5, args, &isnull);
}

/*
 * What a decision was made on, at the limit that there was.
 */
static Datum
describe(const OrchAdapt *adapt, int32 limit, const Load *load)
{
	const OrchAdaptSample *measured = &adapt->measured;
	JsonbParseState *state = NULL;

	orch_json_begin(&state);
	orch_json_number(&state, "steps", rint(measured->steps));
	orch_json_number(&state, "failed", rint(measured->failed));
	orch_json_number(&state, "timed_out", rint(measured->timed_out));
	if (measured->steps > 0)
	{
		orch_json_number(&state, "latency_ms",
						 measured->busy / measured->steps / 1000);
		orch_json_number(&state, "per_second",
						 orch_adapt_rate(measured, limit) * 1e6);
	}
	orch_json_number(&state, "replication_lag", (double) load->lag);
	orch_json_number(&state, "lock_waits", load->lock_waits);
	orch_json_number(&state, "active", load->active);
	orch_json_number(&state, "free_connections", load->free);
	return orch_json_end(&state);
}

void
orch_tune_apply(void)
{
	resumed = true;
	for (int i = 0; i < nsubjects; i++)
	{
		Subject *subject = &subjects[i];
		OrchTuned *entry = &orch_shared->tuned[subject->index];

		LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
		if (entry->dboid == MyDatabaseId && entry->limit == subject->limit)
		{
			entry->adapt = subject->adapt;
			if (subject->changed)
			{
				memset(&entry->sample, 0, sizeof(OrchAdaptSample));
				entry->changed_at = orch_monotonic();
			}
			if (subject->gone)
				entry->dboid = InvalidOid;
		}
		LWLockRelease(orch_shared->permit_lock);
		if (subject->changed || subject->gone)
			orch_permit_adapt(MyDatabaseId, subject->limit,
							  subject->gone ? 0 : subject->adapt.limit);
	}
}

void
orch_tune_forget(Oid dboid)
{
	LWLockAcquire(orch_shared->permit_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ORCH_MAX_TUNED; i++)
	{
		if (orch_shared->tuned[i].dboid == dboid)
			orch_shared->tuned[i].dboid = InvalidOid;
	}
	for (int i = 0; i < ORCH_PERMIT_SETS * ORCH_PERMIT_WAYS; i++)
	{
		if (orch_shared->permits[i].dboid == dboid)
			orch_shared->permits[i].adaptive = 0;
	}
	LWLockRelease(orch_shared->permit_lock);
}
