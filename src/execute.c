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
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "execute.h"
#include "guc.h"
#include "handler.h"
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

/* What was used when the step began. */
typedef struct Usage
{
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
static MemoryContext step_context = NULL;
static bool constraints_set = false;

static void handle_step_timeout(void);
static void handle_silence(void);
static void cancel_step(void);
static void enter_step(OrchExecutor *executor, OrchTask *task, OrchStep *step);
static void leave_step(OrchExecutor *executor, OrchTask *task, bool wrote);
static void begin_user_code(const OrchTask *task);
static void end_user_code(void);
static int64 time_limit(const OrchTask *task);
static bool attempt_step(OrchExecutor *executor, OrchTask *task,
						 MemoryContext context, bool *wrote);
static void call_handler(OrchTask *task, MemoryContext context);
static bool judge_error(OrchExecutor *executor, OrchTask *task,
						ErrorData *error, MemoryContext context);
static Interruption judge_interruption(OrchExecutor *executor,
									   const OrchTask *task);
static void clean_after_step(void);
static void take_requests(OrchTask *task, MemoryContext context);
static void check_output(Datum output);
static void measure_begin(Usage *usage);
static void measure_end(const Usage *usage, OrchTask *task, uint64 rows,
						MemoryContext context);
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
	bool wrote = false;

	enter_step(executor, task, &step);
	while (!attempt_step(executor, task, context, &wrote))
		CHECK_FOR_INTERRUPTS();
	leave_step(executor, task, wrote);
}

/*
 * Show what runs, everywhere it is looked for, and leave the note that
 * survives us.
 */
static void
enter_step(OrchExecutor *executor, OrchTask *task, OrchStep *step)
{
	const OrchRow *row = &task->row;
	char activity[128];

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
	orch_last_report = GetCurrentTimestamp();

	snprintf(activity, sizeof(activity), "task " INT64_FORMAT " %s", step->id,
			 step->definition);
	pgstat_report_activity(STATE_RUNNING, activity);
	task->started_at = orch_clock();
	task->requests = (Datum) 0;
	task->suspension = NULL;
	orch_progress_enter(executor, step);
	orch_note_begin(executor - orch_shared->executors, MyDatabaseId, step->id,
					step->epoch, step->attempt);
}

static void
leave_step(OrchExecutor *executor, OrchTask *task, bool wrote)
{
	orch_note_end(executor - orch_shared->executors);
	orch_progress_leave();
	task->finished_at = orch_clock();
	task->notices = orch_notice_take();
	if (task->definition != NULL)
		orch_claim_measured(task->definition->id,
							task->finished_at - task->started_at, wrote);
	MemoryContextReset(step_context);
}

/*
 * Milliseconds that the step may take; 0: no limit.  The first of its
 * definition's timeout, its deadline and the role's statement_timeout, which
 * does nothing by itself inside of a background worker.
 */
static int64
time_limit(const OrchTask *task)
{
	int64 limit = StatementTimeout;
	const OrchDefinition *definition = task->definition;

	if (definition != NULL && definition->timeout > 0 &&
		!definition->timeout_alerts &&
		(limit == 0 || definition->timeout < limit))
		limit = definition->timeout;
	if (!task->row.nulls[ORCH_TASK_DEADLINE])
	{
		TimestampTz deadline =
			DatumGetTimestampTz(task->row.values[ORCH_TASK_DEADLINE]);
		int64 left = Max((deadline - orch_clock()) / 1000, 1);

		if (limit == 0 || left < limit)
			limit = left;
	}
	return Min(limit, INT_MAX);
}

static void
begin_user_code(const OrchTask *task)
{
	const OrchDefinition *definition = task->definition;
	TimestampTz now = GetCurrentTimestamp();

	step_limit = time_limit(task);
	step_silence = definition == NULL || definition->timeout_alerts
					   ? 0
					   : definition->response_timeout;
	step_timed_out = step_was_silent = false;
	QueryCancelPending = false;
	QueryCancelHoldoffCount = 0;
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
attempt_step(OrchExecutor *executor, OrchTask *task, MemoryContext context,
			 bool *wrote)
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

		begin_user_code(task);
		call_handler(task, context);

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
		take_requests(task, context);
		task->outcome = ORCH_OUTCOME_COMPLETED;
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
		settled = judge_error(executor, task, error, context);
	}
	PG_END_TRY();

	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	*wrote = written;
	return settled;
}

static void
call_handler(OrchTask *task, MemoryContext context)
{
	Datum output;
	uint64 rows;
	Usage usage;
	bool measured = orch_track_resources;

	if (measured)
		measure_begin(&usage);
	PushActiveSnapshot(GetTransactionSnapshot());
	task->has_output = orch_handler_call(task, &output, &rows);
	PopActiveSnapshot();
	if (task->has_output)
	{
		MemoryContext old;

		check_output(output);
		old = MemoryContextSwitchTo(context);
		task->output = PointerGetDatum(PG_DETOAST_DATUM_COPY(output));
		MemoryContextSwitchTo(old);
	}
	if (measured)
		measure_end(&usage, task, rows, context);
}

static void
take_requests(OrchTask *task, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	task->requests = orch_request_take();
	MemoryContextSwitchTo(old);
}

static void
check_output(Datum output)
{
	Size limit = (Size) orch_max_input_size * 1024;

	if (VARSIZE_ANY(DatumGetPointer(output)) > limit)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("output of %zu bytes is larger than %zu bytes",
					(Size) VARSIZE_ANY(DatumGetPointer(output)), limit),
			 errhint(
				 "Store large results in a table and return their key, or raise orchestrator.max_input_size.")));
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
judge_error(OrchExecutor *executor, OrchTask *task, ErrorData *error,
			MemoryContext context)
{
	Interruption interruption = INTERRUPTED_BY_USER;

	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		interruption = judge_interruption(executor, task);
	switch (interruption)
	{
		case INTERRUPTED_BY_MISTAKE:
			return false;
		case INTERRUPTED_BY_CANCEL:
			task->outcome = ORCH_OUTCOME_GONE;
			return true;
		case INTERRUPTED_BY_YIELD:
			task->outcome = ORCH_OUTCOME_NONE;
			return true;
		case INTERRUPTED_BY_TIMEOUT:
			error->sqlerrcode = ORCH_ERRCODE_TIMEOUT;
			error->message =
				step_was_silent ? psprintf("step reported nothing for %lld ms",
										   (long long) step_silence)
								: psprintf("step ran longer than %lld ms",
										   (long long) step_limit);
			orch_execute_fail(task, "timeout", error, context);
			return true;
		case INTERRUPTED_BY_USER:
			orch_execute_fail(task, "error", error, context);
			return true;
	}
	return true;
}

static Interruption
judge_interruption(OrchExecutor *executor, const OrchTask *task)
{
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

	if (interrupt_task == ORCH_INT64(&task->row, ORCH_TASK_ID) &&
		interrupt_epoch == ORCH_INT32(&task->row, ORCH_TASK_EPOCH))
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
	task->error = orch_json_end(&state);
	task->outcome = ORCH_OUTCOME_FAILED;
	task->reason = reason;
	MemoryContextSwitchTo(old);
}

static void
measure_begin(Usage *usage)
{
	getrusage(RUSAGE_SELF, &usage->cpu);
	usage->buffers = pgBufferUsage;
	usage->wal = pgWalUsage;
}

static double
seconds(struct timeval from, struct timeval to)
{
	return (to.tv_sec - from.tv_sec) + (to.tv_usec - from.tv_usec) / 1e6;
}

static void
measure_end(const Usage *usage, OrchTask *task, uint64 rows,
			MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	JsonbParseState *state = NULL;
	struct rusage now;

	getrusage(RUSAGE_SELF, &now);
	orch_json_begin(&state);
	orch_json_number(&state, "rows", rows);
	orch_json_number(&state, "buffers_hit",
					 pgBufferUsage.shared_blks_hit -
						 usage->buffers.shared_blks_hit);
	orch_json_number(&state, "buffers_read",
					 pgBufferUsage.shared_blks_read -
						 usage->buffers.shared_blks_read);
	orch_json_number(&state, "buffers_dirtied",
					 pgBufferUsage.shared_blks_dirtied -
						 usage->buffers.shared_blks_dirtied);
	orch_json_number(&state, "wal_bytes",
					 pgWalUsage.wal_bytes - usage->wal.wal_bytes);
	orch_json_number(&state, "cpu_time",
					 seconds(usage->cpu.ru_utime, now.ru_utime) +
						 seconds(usage->cpu.ru_stime, now.ru_stime));
	task->resources = orch_json_end(&state);
	task->has_resources = true;
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
	Usage usage;

	enter_step(executor, task, &step);
	measure_begin(&usage);
	orch_request_begin();
	orch_procedure_begin();
	PG_TRY();
	{
		begin_user_code(task);
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
		else if (!judge_error(executor, task, error, context))
			orch_execute_fail(task, "error", error, context);
	}
	PG_END_TRY();
	clean_after_alone();
	MemoryContextSwitchTo(context);
	if (orch_track_resources)
		measure_end(&usage, task, 0, context);
	leave_step(executor, task, true);
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
