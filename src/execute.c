/*
 * execute.c
 *	  Running one step: the third station of the flow.
 *
 * The only place where user code runs and where its errors are caught.  A
 * step runs in a subtransaction, under its time limit, in a settings level of
 * its own, and with query cancel enabled; the engine around it holds cancels
 * off, so that one that comes late never hits the settle.
 */
#include "postgres.h"

#include <sys/resource.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/instrument.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/pgstat_internal.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "execute.h"
#include "guc.h"
#include "handler.h"
#include "item.h"
#include "json.h"
#include "note.h"
#include "notice.h"
#include "procedure.h"
#include "progress.h"
#include "request.h"

/* A step that caught the cancel of its time limit is cancelled again. */
#define TIMEOUT_AGAIN_MS 1000

/* OR004, listed in sql/25_internal.sql. */
#define ORCH_ERRCODE_TIMEOUT MAKE_SQLSTATE('O', 'R', '0', '0', '4')

/* Why a step was interrupted. */
typedef enum Interruption
{
	INTERRUPTED_BY_USER, /* pg_cancel_backend: the step failed */
	INTERRUPTED_BY_TIMEOUT,
	INTERRUPTED_BY_CANCEL, /* the task is not ours any more */
	INTERRUPTED_BY_YIELD,  /* fast lane: somebody wants a row */
	INTERRUPTED_BY_MISTAKE /* meant for a step that is over */
} Interruption;

/* One call of a handler: of a step or, where it takes many, of several. */
typedef struct Call
{
	OrchExecutor *executor;
	MemoryContext context; /* of what is kept */
	OrchTask **tasks;
	OrchStep *steps;
	int n;
	int first_called; /* their claims, of several */
	int ncalled;
	OrchCallEnd end;
} Call;

/* What was used when the step began, if that is asked for. */
typedef struct Usage
{
	bool asked;
	struct rusage cpu;
	BufferUsage buffers;
	WalUsage wal;
} Usage;

static TimeoutId step_timer;
static TimeoutId silence_timer;
static volatile sig_atomic_t step_timed_out = false;
static volatile sig_atomic_t step_was_silent = false;
static int64 step_limit;   /* of the step under way, in milliseconds */
static int64 step_silence; /* that it may keep, likewise; 0: for ever */
static bool step_alerts;   /* silence is only told ... */
static volatile sig_atomic_t silence_alerted = false; /* ... and was seen */
static MemoryContext step_context = NULL;
static bool constraints_set = false;
static Usage usage;

static void handle_step_timeout(void);
static void handle_silence(void);
static void cancel_step(void);
static void run_call(Call *call);
static void enter_call(Call *call);
static void fill_step(OrchStep *step, OrchTask *task);
static void leave_call(Call *call, bool wrote);
static void begin_user_code(const Call *call);
static void end_user_code(void);
static int64 time_limit(const Call *call);
static int64 sooner(int64 limit, int64 other);
static bool attempt_call(Call *call, bool *wrote);
static void call_handler(Call *call);
static void take_outputs(Call *call, ArrayType *outputs);
static void keep_output(Call *call, OrchTask *task, Datum output);
static void fail_item(Call *call, OrchTask *task, Datum error);
static bool judge_error(Call *call, ErrorData *error);
static void blame(Call *call, const char *reason, const ErrorData *error,
				  OrchCallEnd end);
static Interruption judge_interruption(Call *call);
static bool mark_gone(Call *call, int64 id, int32 epoch);
static void clean_after_step(void);
static void take_requests(OrchTask *task, MemoryContext context);
static void measure_begin(void);
static int64 rows_changed(void);
static void measure_end(Call *call, int64 rows);
static bool is_suspended(OrchTask *task, const ErrorData *error,
						 MemoryContext context);
static void run_alone(OrchTask *task);
static void clean_after_alone(void);

void
orch_execute_install(void)
{
	step_timer = RegisterTimeout(USER_TIMEOUT, handle_step_timeout);
	silence_timer = RegisterTimeout(USER_TIMEOUT, handle_silence);
	step_context = AllocSetContextCreate(TopMemoryContext, "orchestrator step",
										 ALLOCSET_DEFAULT_SIZES);
	orch_notice_install();
	orch_handler_install();
	orch_request_install();
	orch_execute_hold_cancel();
}

static void
handle_step_timeout(void)
{
	step_timed_out = true;
	cancel_step();
}

/*
 * Ticks while a step runs that must report now and then (response_timeout).
 */
static void
handle_silence(void)
{
	if (GetCurrentTimestamp() - orch_last_report < step_silence * 1000)
		return;
	if (step_alerts)
	{
		silence_alerted = true;
		return;
	}
	step_was_silent = true;
	cancel_step();
}

static void
cancel_step(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

void
orch_execute_hold_cancel(void)
{
	QueryCancelHoldoffCount = 1;
}

bool
orch_execute_is_alone(const OrchTask *task)
{
	return task->definition != NULL && task->definition->kind > ORCH_KIND_SQL;
}

void
orch_execute_step(OrchExecutor *executor, OrchTask *task,
				  MemoryContext context)
{
	OrchStep step;
	Call call = {.executor = executor,
				 .context = context,
				 .tasks = &task,
				 .steps = &step,
				 .n = 1};

	run_call(&call);
}

OrchCallEnd
orch_execute_call(OrchBatch *batch, const int *numbers, int n)
{
	Call call = {.executor = batch->executor,
				 .context = batch->context,
				 .n = n,
				 .first_called = numbers[0],
				 .ncalled = n > 1 ? numbers[n - 1] - numbers[0] + 1 : 0};

	call.tasks = MemoryContextAlloc(step_context, n * sizeof(OrchTask *));
	call.steps = MemoryContextAlloc(step_context, n * sizeof(OrchStep));
	for (int i = 0; i < n; i++)
	{
		call.tasks[i] = &batch->tasks[numbers[i]];
		batch->executor->claims[numbers[i]].attempt =
			ORCH_INT32(&call.tasks[i]->row, ORCH_TASK_ATTEMPT);
	}
	run_call(&call);
	return call.end;
}

static void
run_call(Call *call)
{
	bool wrote = false;

	enter_call(call);
	while (!attempt_call(call, &wrote))
		CHECK_FOR_INTERRUPTS();
	leave_call(call, wrote);
}

/*
 * Show what runs, everywhere it is looked for, and leave the note that
 * survives us.  It names nobody where several run, of which one may be why we
 * did not: calls are of one task each after that (gather.c).
 */
static void
enter_call(Call *call)
{
	const OrchStep *step = call->steps;
	char activity[256]; /* a name has 200 bytes at most */

	for (int i = 0; i < call->n; i++)
		fill_step(&call->steps[i], call->tasks[i]);
	if (ORCH_TAKES_MANY(call->tasks[0]->definition))
		call->steps[0].ncalled = call->n;
	orch_last_report = GetCurrentTimestamp();

	if (call->n == 1)
		snprintf(activity, sizeof(activity), "task " INT64_FORMAT " %s",
				 step->id, step->definition);
	else
		snprintf(activity, sizeof(activity),
				 "task " INT64_FORMAT " and %d more %s", step->id, call->n - 1,
				 step->definition);
	pgstat_report_activity(STATE_RUNNING, activity);
	for (int i = 0; i < call->n; i++)
	{
		OrchTask *task = call->tasks[i];

		task->started_at = i == 0 ? orch_clock() : call->tasks[0]->started_at;
		task->requests = (Datum) 0;
		task->suspension = NULL;
	}
	orch_progress_enter(call->executor, step, call->first_called,
						call->ncalled);
	orch_note_begin(call->executor - orch_shared->executors, MyDatabaseId,
					call->n == 1 ? step->id : 0, step->epoch, step->attempt);
}

static void
fill_step(OrchStep *step, OrchTask *task)
{
	const OrchRow *row = &task->row;

	step->id = ORCH_INT64(row, ORCH_TASK_ID);
	step->parent = row->nulls[ORCH_TASK_PARENT_ID]
					   ? 0
					   : ORCH_INT64(row, ORCH_TASK_PARENT_ID);
	step->root =
		row->nulls[ORCH_TASK_ROOT_ID] ? 0 : ORCH_INT64(row, ORCH_TASK_ROOT_ID);
	step->definition = task->definition ? task->definition->name : "?";
	step->key = row->nulls[ORCH_TASK_KEY]
					? NULL
					: TextDatumGetCString(row->values[ORCH_TASK_KEY]);
	step->metadata = row->values[ORCH_TASK_METADATA];
	step->deadline = DatumGetTimestampTz(row->values[ORCH_TASK_DEADLINE]);
	step->attempt = ORCH_INT32(row, ORCH_TASK_ATTEMPT);
	step->max_attempts = ORCH_INT32(row, ORCH_TASK_MAX_ATTEMPTS);
	step->epoch = ORCH_INT32(row, ORCH_TASK_EPOCH);
	step->notify = task->definition == NULL || task->definition->notify;
	step->notify_all =
		task->definition != NULL && task->definition->notify_all;
	step->procedure = task->definition != NULL &&
					  task->definition->kind == ORCH_KIND_PROCEDURE;
	step->ncalled = 0;
}

/*
 * What a call said stands with the first of its tasks.
 */
static void
leave_call(Call *call, bool wrote)
{
	OrchTask *first = call->tasks[0];

	orch_note_end(call->executor - orch_shared->executors);
	orch_progress_leave();
	first->finished_at = orch_clock();
	first->notices = orch_notice_take();
	first->was_silent = silence_alerted;
	for (int i = 1; i < call->n; i++)
	{
		call->tasks[i]->finished_at = first->finished_at;
		call->tasks[i]->notices = NIL;
		call->tasks[i]->was_silent = silence_alerted;
	}
	if (first->definition != NULL)
		orch_claim_measured(first->definition->id,
							first->finished_at - first->started_at, wrote);
	MemoryContextReset(step_context);
}

/*
 * Milliseconds that the step may take; 0: no limit.  The first of its
 * definition's timeout, its deadline and the role's statement_timeout, which
 * does nothing by itself inside of a background worker.
 */
static int64
time_limit(const Call *call)
{
	int64 limit = StatementTimeout;
	const OrchDefinition *definition = call->tasks[0]->definition;

	if (definition != NULL && !definition->timeout_alerts)
		limit = sooner(limit, definition->timeout);
	for (int i = 0; i < call->n; i++)
	{
		const OrchRow *row = &call->tasks[i]->row;
		TimestampTz deadline;

		if (row->nulls[ORCH_TASK_DEADLINE])
			continue;
		deadline = DatumGetTimestampTz(row->values[ORCH_TASK_DEADLINE]);
		limit = sooner(limit, Max((deadline - orch_clock()) / 1000, 1));
	}
	return Min(limit, INT_MAX);
}

/*
 * The lesser of two limits; 0: none.
 */
static int64
sooner(int64 limit, int64 other)
{
	if (limit == 0 || other == 0)
		return Max(limit, other);
	return Min(limit, other);
}

static void
begin_user_code(const Call *call)
{
	const OrchDefinition *definition = call->tasks[0]->definition;
	TimestampTz now = GetCurrentTimestamp();

	step_limit = time_limit(call);
	step_silence = definition == NULL ? 0 : definition->response_timeout;
	step_alerts = definition != NULL && definition->timeout_alerts;
	step_timed_out = step_was_silent = silence_alerted = false;
	QueryCancelPending = false;
	QueryCancelHoldoffCount = 0;
	/* that the engine waited for a lock is not why a step is cancelled */
	(void) get_timeout_indicator(LOCK_TIMEOUT, true);
	orch_notice_begin();
	if (step_limit > 0)
		enable_timeout_every(step_timer,
							 TimestampTzPlusMilliseconds(now, step_limit),
							 TIMEOUT_AGAIN_MS);
	if (step_silence > 0)
		enable_timeout_every(silence_timer,
							 TimestampTzPlusMilliseconds(now, step_silence),
							 Max(step_silence / 4, 10));
}

static void
end_user_code(void)
{
	orch_execute_hold_cancel();
	orch_notice_end();
	if (step_limit > 0)
		disable_timeout(step_timer, false);
	if (step_silence > 0)
		disable_timeout(silence_timer, false);
}

/*
 * One try of a step.  False: it was interrupted by mistake, run it again.
 */
static bool
attempt_call(Call *call, bool *wrote)
{
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext old = CurrentMemoryContext;
	volatile bool settled = true;
	volatile bool written = false;

	constraints_set = false;
	orch_request_begin();
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(step_context);
	PG_TRY();
	{
		int level = NewGUCNestLevel();

		begin_user_code(call);
		call_handler(call);

		/*
		 * The commit of the step's own transaction, as far as user code is
		 * concerned: what it deferred runs here, under its time limit and
		 * its note, and its error or crash is its own.
		 */
		AfterTriggerFireDeferred();
		CHECK_FOR_INTERRUPTS();
		end_user_code();
		clean_after_step();
		AtEOXact_GUC(false, level);
		written = TransactionIdIsValid(GetCurrentTransactionIdIfAny());
		take_requests(call->tasks[0], call->context);
		call->end = ORCH_CALL_DONE;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		end_user_code();
		MemoryContextSwitchTo(step_context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		clean_after_step();
		settled = judge_error(call, error);
	}
	PG_END_TRY();

	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	*wrote = written;
	return settled;
}

/*
 * Sets the outcome of each task to what it is unless something fails later.
 */
static void
call_handler(Call *call)
{
	bool many = ORCH_TAKES_MANY(call->tasks[0]->definition);
	bool has_output;
	Datum output;
	uint64 rows;

	for (int i = 0; i < call->n; i++)
	{
		call->tasks[i]->outcome = ORCH_OUTCOME_COMPLETED;
		call->tasks[i]->has_output = false;
	}
	measure_begin();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (many)
		has_output =
			orch_handler_call_many(call->tasks, call->n, &output, &rows);
	else
		has_output = orch_handler_call(call->tasks[0], &output, &rows);
	PopActiveSnapshot();
	if (many && has_output)
		take_outputs(call, DatumGetArrayTypeP(output));
	else if (has_output)
		keep_output(call, call->tasks[0], output);
	if (usage.asked)
		measure_end(call,
					call->tasks[0]->definition->kind == ORCH_KIND_FUNCTION
						? rows_changed()
						: (int64) rows);
}

/*
 * One element for each task, in their order: its output, or its error.
 */
static void
take_outputs(Call *call, ArrayType *outputs)
{
	Datum *elements;
	bool *nulls;
	int n;

	deconstruct_array(outputs, JSONBOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	if (n != call->n || ARR_NDIM(outputs) > 1)
		ereport(
			ERROR,
			(errcode(ERRCODE_CARDINALITY_VIOLATION),
			 errmsg("handler %s returned %d results for %d tasks",
					call->tasks[0]->definition->handler, n, call->n),
			 errhint(
				 "Return an array of one dimension with an element for each input, in their order; null is an output, too.")));
	for (int i = 0; i < n; i++)
	{
		Datum error;

		if (nulls[i])
			continue;
		if (orch_item_error(DatumGetJsonbP(elements[i]), &error))
			fail_item(call, call->tasks[i], error);
		else
			keep_output(call, call->tasks[i], elements[i]);
	}
}

static void
keep_output(Call *call, OrchTask *task, Datum output)
{
	MemoryContext old;

	orch_handler_check_size(output, "output");
	old = MemoryContextSwitchTo(call->context);
	task->output = PointerGetDatum(PG_DETOAST_DATUM_COPY(output));
	task->has_output = true;
	MemoryContextSwitchTo(old);
}

static void
fail_item(Call *call, OrchTask *task, Datum error)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);

	task->error = datumCopy(error, false, -1);
	task->outcome = ORCH_OUTCOME_FAILED;
	task->reason = "error";
	MemoryContextSwitchTo(old);
}

static void
take_requests(OrchTask *task, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	task->requests = orch_request_take();
	MemoryContextSwitchTo(old);
}

/*
 * What a step must not leave to the next one of the same transaction.  The
 * role's settings are undone by the settings level.
 */
static void
clean_after_step(void)
{
	DropAllPreparedStatements();
	PortalHashTableDeleteAll();
	ResetSequenceCaches();
	LockReleaseSession(USER_LOCKMETHOD);
}

void
orch_execute_note_constraints(void)
{
	constraints_set = true;
}

bool
orch_execute_set_constraints(void)
{
	return constraints_set;
}

bool
orch_execute_left_objects(void)
{
	/* of this transaction or, between two, of the last */
	return (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0;
}

void
orch_execute_clean_session(void)
{
	if (!orch_execute_left_objects())
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	ResetTempTableNamespace();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * False: the step was interrupted by mistake.
 */
static bool
judge_error(Call *call, ErrorData *error)
{
	Interruption interruption = INTERRUPTED_BY_USER;

	for (int i = 0; i < call->n; i++)
		call->tasks[i]->outcome = ORCH_OUTCOME_NONE;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		interruption = judge_interruption(call);
	switch (interruption)
	{
		case INTERRUPTED_BY_MISTAKE:
			return false;
		case INTERRUPTED_BY_CANCEL:
			call->end = call->n == 1 ? ORCH_CALL_DONE : ORCH_CALL_CANCELLED;
			return true;
		case INTERRUPTED_BY_YIELD:
			call->end = ORCH_CALL_YIELDED;
			return true;
		case INTERRUPTED_BY_TIMEOUT:
			error->sqlerrcode = ORCH_ERRCODE_TIMEOUT;
			error->message =
				step_was_silent ? psprintf("step reported nothing for %lld ms",
										   (long long) step_silence)
								: psprintf("step ran longer than %lld ms",
										   (long long) step_limit);
			blame(call, "timeout", error, ORCH_CALL_TIMED_OUT);
			return true;
		case INTERRUPTED_BY_USER:
			blame(call, "error", error, ORCH_CALL_FAILED);
			return true;
	}
	return true;
}

/*
 * A task that was alone is guilty; which of several is will be found out.
 */
static void
blame(Call *call, const char *reason, const ErrorData *error, OrchCallEnd end)
{
	call->end = call->n == 1 ? ORCH_CALL_DONE : end;
	if (call->n > 1)
		return;
	orch_execute_fail(call->tasks[0], reason, error, call->context);
	measure_end(call, -1);
}

static Interruption
judge_interruption(Call *call)
{
	OrchExecutor *executor = call->executor;
	int64 interrupt_task;
	int32 interrupt_epoch;
	int64 yield_task;
	TimestampTz signaled_at;

	SpinLockAcquire(&executor->mutex);
	interrupt_task = executor->interrupt_task;
	interrupt_epoch = executor->interrupt_epoch;
	yield_task = executor->fast ? executor->yield_task : 0;
	signaled_at = executor->signaled_at;
	executor->interrupt_task = 0;
	SpinLockRelease(&executor->mutex);

	if (interrupt_task != 0 &&
		mark_gone(call, interrupt_task, interrupt_epoch))
		return INTERRUPTED_BY_CANCEL;
	if (yield_task != 0)
		return INTERRUPTED_BY_YIELD;
	if (step_timed_out || step_was_silent)
		return INTERRUPTED_BY_TIMEOUT;

	/* a signal of ours that comes late was for the step before */
	if (interrupt_task != 0 ||
		GetCurrentTimestamp() - signaled_at < USECS_PER_SEC)
		return INTERRUPTED_BY_MISTAKE;
	return INTERRUPTED_BY_USER;
}

/*
 * False: the call is not for that task.
 */
static bool
mark_gone(Call *call, int64 id, int32 epoch)
{
	for (int i = 0; i < call->n; i++)
	{
		OrchTask *task = call->tasks[i];

		if (ORCH_INT64(&task->row, ORCH_TASK_ID) != id ||
			ORCH_INT32(&task->row, ORCH_TASK_EPOCH) != epoch)
			continue;
		task->outcome = ORCH_OUTCOME_GONE;
		return true;
	}
	return false;
}

void
orch_execute_fail(OrchTask *task, const char *reason, const ErrorData *error,
				  MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	JsonbParseState *state = NULL;

	orch_json_begin(&state);
	orch_json_text(&state, "sqlstate", unpack_sql_state(error->sqlerrcode));
	orch_json_text(&state, "message", error->message);
	orch_json_text(&state, "detail", error->detail);
	orch_json_text(&state, "hint", error->hint);
	orch_json_text(&state, "context", error->context);
	if (orch_handler_is_final(error))
		orch_json_no_retry(&state);
	task->error = orch_json_end(&state);
	task->outcome = ORCH_OUTCOME_FAILED;
	task->reason = reason;
	MemoryContextSwitchTo(old);
}

static void
measure_begin(void)
{
	usage.asked = orch_track_resources;
	if (!usage.asked)
		return;
	getrusage(RUSAGE_SELF, &usage.cpu);
	usage.buffers = pgBufferUsage;
	usage.wal = pgWalUsage;
}

/*
 * Rows of tables that the step inserted, updated and deleted: it has a
 * subtransaction of its own.
 */
static int64
rows_changed(void)
{
	PgStat_SubXactStatus *mine =
		pgstat_get_xact_stack_level(GetCurrentTransactionNestLevel());
	int64 rows = 0;

	for (PgStat_TableXactStatus *table = mine->first; table != NULL;
		 table = table->next)
		rows += table->tuples_inserted + table->tuples_updated +
				table->tuples_deleted;
	return rows;
}

static double
seconds(struct timeval from, struct timeval to)
{
	return (to.tv_sec - from.tv_sec) + (to.tv_usec - from.tv_usec) / 1e6;
}

/*
 * Each task of a call gets what all of them used, and how many they were.
 * Fewer rows than none: nobody counted them.
 */
static void
measure_end(Call *call, int64 rows)
{
	MemoryContext old;
	JsonbParseState *state = NULL;
	struct rusage now;
	Datum resources;

	if (!usage.asked)
		return;
	usage.asked = false;
	old = MemoryContextSwitchTo(call->context);
	getrusage(RUSAGE_SELF, &now);
	orch_json_begin(&state);
	if (rows >= 0)
		orch_json_number(&state, "rows", rows);
	orch_json_number(&state, "buffers_hit",
					 pgBufferUsage.shared_blks_hit -
						 usage.buffers.shared_blks_hit);
	orch_json_number(&state, "buffers_read",
					 pgBufferUsage.shared_blks_read -
						 usage.buffers.shared_blks_read);
	orch_json_number(&state, "buffers_dirtied",
					 pgBufferUsage.shared_blks_dirtied -
						 usage.buffers.shared_blks_dirtied);
	orch_json_number(&state, "wal_bytes",
					 pgWalUsage.wal_bytes - usage.wal.wal_bytes);
	orch_json_number(&state, "cpu_time",
					 seconds(usage.cpu.ru_utime, now.ru_utime) +
						 seconds(usage.cpu.ru_stime, now.ru_stime));
	if (ORCH_TAKES_MANY(call->tasks[0]->definition))
		orch_json_number(&state, "batch", call->n);
	resources = orch_json_end(&state);
	for (int i = 0; i < call->n; i++)
	{
		call->tasks[i]->resources = resources;
		call->tasks[i]->has_resources = true;
	}
	MemoryContextSwitchTo(old);
}

/*
 * An error here, unlike in a step of a batch, has to abort the transaction
 * that the command itself may have begun.
 */
void
orch_execute_alone(OrchExecutor *executor, OrchTask *task,
				   MemoryContext context)
{
	OrchStep step;
	Call call = {.executor = executor,
				 .context = context,
				 .tasks = &task,
				 .steps = &step,
				 .n = 1};

	enter_call(&call);
	measure_begin();
	orch_request_begin();
	orch_procedure_begin();
	PG_TRY();
	{
		begin_user_code(&call);
		run_alone(task);
		end_user_code();
		take_requests(task, context);
		task->outcome = ORCH_OUTCOME_COMPLETED;
	}
	PG_CATCH();
	{
		ErrorData *error;

		end_user_code();
		MemoryContextSwitchTo(step_context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		PortalErrorCleanup();

		/* part of it may have been committed: an attempt is spent */
		MemoryContextSwitchTo(step_context);
		if (is_suspended(task, error, context))
			task->outcome = ORCH_OUTCOME_SUSPENDED;
		else if (!judge_error(&call, error))
			orch_execute_fail(task, "error", error, context);
	}
	PG_END_TRY();
	clean_after_alone();
	MemoryContextSwitchTo(context);
	measure_end(&call, -1);
	leave_call(&call, true);
}

/*
 * Whether the procedure ended because it waits: the error is its own.  A
 * cancel or time limit that came earlier was raised instead of it.
 */
static bool
is_suspended(OrchTask *task, const ErrorData *error, MemoryContext context)
{
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		task->suspension = orch_procedure_suspension(context);
	return task->suspension != NULL;
}

static void
run_alone(OrchTask *task)
{
	StartTransactionCommand();
	MemoryContextSwitchTo(step_context);
	if (task->definition->kind == ORCH_KIND_UTILITY)
		orch_handler_run_utility(task);
	else
		orch_handler_call_procedure(task);
	CommitTransactionCommand();
}

/*
 * What it committed before it ended or failed is the session's own: settings,
 * role, cursors.  As DISCARD ALL does.
 */
static void
clean_after_alone(void)
{
	StartTransactionCommand();
	clean_after_step();
	SetPGVariable("session_authorization", NIL, false);
	ResetAllOptions();
	PushActiveSnapshot(GetTransactionSnapshot());
	ResetTempTableNamespace();
	PopActiveSnapshot();
	CommitTransactionCommand();
}
