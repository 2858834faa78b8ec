/*
 * courier.c
 *	  The courier: a process that carries the outside calls of a database.
 *
 * It claims calls of all roles, commits, hands them to its child program
 * (child.c) and settles what comes back, a batch to a transaction.  Nothing of
 * a task runs here, so it may be the superuser of the cluster.  While calls are
 * under way it has no transaction, no snapshot and no lock, and sleeps until
 * its latch is set or the child says something.
 *
 * Claims and settles are flushed as the server's other commits are: a call that
 * was made is never one of an attempt that was not counted.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "call.h"
#include "carry.h"
#include "catalog.h"
#include "child.h"
#include "collect.h"
#include "compat.h"
#include "courier.h"
#include "guc.h"
#include "heap.h"
#include "parcel.h"
#include "permit.h"
#include "stream.h"
#include "tune.h"

/* Settled in one transaction. */
#define BATCH 500

/* Claimed in one: the first are on their way while the next are claimed. */
#define CLAIM 256

/* Calls wait, but limits or locks keep them. */
#define HELD_UP_PAUSE (50 * INT64CONST(1000))

/* What was to be settled is locked by somebody. */
#define LOCKED_PAUSE (100 * INT64CONST(1000))

/* Longest sleep before calls that wait for others are looked at again. */
#define LONGEST_WAIT_MS 60000

/* After an error of our own, or when the child does not start. */
#define ERROR_PAUSE USECS_PER_SEC

/* Paths over answers may take for ever: that is an error. */
#define WATCHDOG_MS 5000

typedef struct Call
{
	uint64 number; /* hash key */
	int64 task;
	int32 epoch;
	OrchParcel *parcel; /* NULL: it goes alone */
	int npermits;
	int64 permits[ORCH_MAX_LIMITS];
	OrchTunedCall tuned;
	OrchDelta *parts;	 /* of its answer; NULL: it comes in one */
	int stream;			 /* -1: nobody can read along */
	const char *outcome; /* NULL: it is under way */
	Datum result;
	struct Call *next_ended;
} Call;

typedef void (*Duty)(void);

/* Of the supervisor: the courier that it started. */
static BackgroundWorkerHandle *handle = NULL;
static bool recover_asked = false;
static TimestampTz manage_at = DT_NOEND;

/* Of the courier. */
static OrchDatabase *database = NULL;
static OrchChild child = {.socket = -1};
static HTAB *calls = NULL;
static Call *ended = NULL; /* to be settled, the oldest last */
static int nended = 0;
static uint64 last_number = 0;
static Oid live = InvalidOid;
static MemoryContext turn_context = NULL;
static MemoryContext result_context = NULL;
static TimeoutId watchdog;
static TimestampTz claim_at = 0;   /* look again then; 0: when told */
static TimestampTz not_before = 0; /* claim nothing until then */
static Size unsent = 0;			   /* before a claim */
static TimestampTz settle_at = 0;  /* likewise */
static TimestampTz idle_since = 0;
static bool look = true; /* for calls to claim */
static bool one_by_one = false;
static Call **batch = NULL;
static int nbatch = 0;
static int64 *locked = NULL; /* of the batch */
static int nlocked = 0;
static bool goes_idle = false;
static SPIPlanPtr claim_plan = NULL;
static SPIPlanPtr lane_plan = NULL;
static SPIPlanPtr lanes_plan = NULL;
static int32 only_queue = 0; /* where all calls wait; 0: not known */
static int32 only_owner = 0;
static int room = 0;
static int nclaimed = 0;
static uint64 first_claimed = 0;
static bool calls_wait = false;

static bool start_courier(void);
static void recover_calls(void);
static void start_session(Oid dboid);
static void leave(int code, Datum arg);
static void check_extension(void);
static void handle_watchdog(void);
static bool perform(Duty duty);
static void turn(void);
static int under_way(void);
static void see_to_child(void);
static void lose_child(const char *why);
static void end_call(Call *call, const char *outcome, Datum result);
static void add_ended(Call *call, Call **place);
static void read_answers(void);
static void read_frames(void);
static void read_part(FrameReader *frame);
static void read_done(FrameReader *frame);
static void read_parcel(OrchParcel *parcel, FrameReader *frame);
static void drop_lost(void);
static void find_lost(void);
static void cancel(uint64 number);
static void forget(Call *call);
static void stop_reading(Call *call);
static void claim_calls(void);
static bool begin_claim(int leaving);
static void undo_claim(void);
static void fail_stuck(void);
static bool end_claim(void);
static void forget_lane(void);
static void claim(void);
static void execute(SPIPlanPtr *plan, const char *query, int n, Datum *values);
static void find_only_lane(void);
static void ask_whether_calls_wait(void);
static void take_row(HeapTuple row, TupleDesc desc);
static void put_in_parcel(Call *call, const OrchCallSpec *spec, int32 number);
static void write_parcels(void);
static void refuse(Call *call, Datum refusal);
static void open_stream(Call *call, const OrchCallSpec *spec);
static void tune(Call *call, int32 queue);
static void read_spec(OrchCallSpec *spec, HeapTuple row, TupleDesc desc);
static void settle_calls(void);
static void settle_and_claim(void);
static void settle_batch(void);
static void settle(void);
static int complete_plain(Call **plain, int n, Call **rest, int nrest);
static void settle_rest(Call **rest, int n);
static void finish_batch(void);
static void learn(const Call *call);
static void report(void);
static void sleep_until_needed(void);

PG_FUNCTION_INFO_V1(orchestrator_courier_pid);

/* -------------------------------------------------------- the supervisor */

TimestampTz
orch_courier_at(void)
{
	return manage_at;
}

/*
 * Errors are the caller's.
 */
void
orch_courier_manage(OrchDatabase *of, bool may_fire)
{
	TimestampTz now = GetCurrentTimestamp();
	pid_t pid;

	if (now >= manage_at)
		manage_at = DT_NOEND;
	if (handle != NULL)
	{
		if (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
			return;
		pfree(handle);
		handle = NULL;
		recover_asked = true;
	}
	if (recover_asked)
	{
		recover_asked = false;
		recover_calls();
	}
	if (!may_fire || !orch_enabled || of->courier_pid != 0 ||
		manage_at != DT_NOEND || pg_atomic_read_u32(&of->courier_told) == 0)
		return;
	if (!start_courier())
		manage_at = now + ERROR_PAUSE;
}

static bool
start_courier(void)
{
	BackgroundWorker worker = {0};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool started;

	orch_shmem_describe_worker(&worker, "courier");
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "orchestrator courier");
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	started = RegisterDynamicBackgroundWorker(&worker, &handle);
	if (!started)
		handle = NULL;
	MemoryContextSwitchTo(old);
	return started;
}

/*
 * Rows that somebody has locked are looked at a little later.
 */
static void
recover_calls(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (DatumGetInt32(
			orch_catalog_call(ORCH_FN_RECOVER_CALLS, 0, NULL, NULL)) < 0)
	{
		recover_asked = true;
		manage_at = GetCurrentTimestamp() + LOCKED_PAUSE;
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
}

void
orch_courier_dismiss(OrchDatabase *of)
{
	if (of->courier_pid != 0)
		(void) kill(of->courier_pid, SIGTERM);
}

/*
 * _courier_pid()
 */
Datum
orchestrator_courier_pid(PG_FUNCTION_ARGS)
{
	OrchDatabase *of;
	pid_t pid = 0;

	if (!orch_preloaded)
		PG_RETURN_NULL();
	LWLockAcquire(orch_shared->lock, LW_SHARED);
	of = orch_shmem_database(MyDatabaseId, false);
	if (of != NULL)
		pid = of->courier_pid;
	LWLockRelease(orch_shared->lock);
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* ------------------------------------------------------------ the process */

void
orchestrator_courier_main(Datum main_arg)
{
	start_session(DatumGetObjectId(main_arg));
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			look = true;
		}
		turn();
		MemoryContextReset(turn_context);
		report();
		if (!orch_enabled && hash_get_num_entries(calls) == 0)
			proc_exit(0);
		goes_idle = idle_since != 0 && claim_at == 0 &&
					GetCurrentTimestamp() - idle_since >=
						orch_courier_idle_timeout * USECS_PER_SEC;
		if (goes_idle)
			proc_exit(0);
		sleep_until_needed();
	}
}

static void
start_session(Oid dboid)
{
	HASHCTL control = {.keysize = sizeof(uint64), .entrysize = sizeof(Call)};

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	watchdog = RegisterTimeout(USER_TIMEOUT, handle_watchdog);
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	turn_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator courier turn", ALLOCSET_DEFAULT_SIZES);
	result_context =
		AllocSetContextCreate(TopMemoryContext, "orchestrator courier results",
							  ALLOCSET_DEFAULT_SIZES);
	control.hcxt = TopMemoryContext;
	calls = hash_create("orchestrator calls", 256, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	batch = MemoryContextAlloc(TopMemoryContext, BATCH * sizeof(Call *));

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(dboid, false);
	if (database == NULL || database->courier_pid != 0)
	{
		LWLockRelease(orch_shared->lock);
		proc_exit(0); /* there is one already */
	}
	database->courier_pid = MyProcPid;
	database->courier_procno = orch_my_procno();
	database->courier_since = GetCurrentTimestamp();
	LWLockRelease(orch_shared->lock);
	before_shmem_exit(leave, (Datum) 0);
	idle_since = GetCurrentTimestamp();
	if (!perform(check_extension))
		proc_exit(0);
}

/*
 * What was under way is the supervisor's business, which is told by our end.
 */
static void
leave(int code, Datum arg)
{
	HASH_SEQ_STATUS scan;
	Call *call;

	orch_child_stop(&child);
	hash_seq_init(&scan, calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		orch_permit_give_back(call->permits, call->npermits);
		stop_reading(call);
	}
	orch_parcel_lose();
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database->courier_pid = 0;
	database->courier_procno = -1;
	pg_atomic_write_u32(&database->courier_calls, 0);
	if (!goes_idle)
		pg_atomic_write_u32(&database->courier_told, 1);
	LWLockRelease(orch_shared->lock);
	orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_COURIER);
}

static void
check_extension(void)
{
	const OrchCatalog *catalog =
		OidIsValid(get_extension_oid("orchestrator", true))
			? orch_catalog(true)
			: NULL;

	if (catalog == NULL || (OidIsValid(live) && catalog->task_live != live))
		proc_exit(0); /* it was dropped, and maybe made again */
	live = catalog->task_live;
}

static void
handle_watchdog(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * Do something in a transaction of its own.  False: it failed, and nothing
 * happened.
 */
static bool
perform(Duty duty)
{
	volatile bool done = true;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	PG_TRY();
	{
		enable_timeout_every(
			watchdog,
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WATCHDOG_MS),
			WATCHDOG_MS);
		duty();
		disable_timeout(watchdog, false);
		QueryCancelPending = false;
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		disable_timeout(watchdog, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(turn_context);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn_context);
	pgstat_report_stat(false);
	return done;
}

/*
 * What there is to do: first what came back, since that makes room.
 */
static void
turn(void)
{
	see_to_child();
	if (pg_atomic_exchange_u32(&database->courier_interrupted, 0) != 0)
		drop_lost();
	settle_calls();
	claim_calls();
	if (child.pid != 0 && !frame_send(&child.out, child.socket))
		lose_child("ended");
}

static int
under_way(void)
{
	return hash_get_num_entries(calls) - nended;
}

/* -------------------------------------------------------------- the child */

static void
see_to_child(void)
{
	if (child.pid == 0)
		return;
	if (!orch_child_exchange(&child))
		lose_child("ended");
	else
	{
		read_answers();
		if (child.pid != 0 && under_way() > 0 &&
			GetCurrentTimestamp() - child.heard_at >
				orch_courier_hang_timeout * USECS_PER_SEC)
			lose_child("hung");
	}
}

/*
 * It is gone, or is sent away: the calls that it had have spent an attempt.
 */
static void
lose_child(const char *why)
{
	HASH_SEQ_STATUS scan;
	Call *call;
	bool idle = under_way() == 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!idle || !child.ready)
		ereport(LOG, (errmsg("the program that makes outside calls %s, %d "
							 "calls were under way",
							 why, under_way())));
	if (!child.ready || now - child.started_at < ERROR_PAUSE)
		not_before = now + ERROR_PAUSE; /* it may do so again */
	if (child.pid != 0)
		read_answers(); /* what it had said before */
	orch_child_stop(&child);
	orch_parcel_lose();
	hash_seq_init(&scan, calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		if (call->outcome != NULL)
			continue;
		end_call(call, "lost",
				 DirectFunctionCall1(
					 jsonb_in,
					 CStringGetDatum(
						 "{\"sqlstate\": \"OR003\", \"message\": \"the "
						 "program that makes outside calls ended while this "
						 "one was under way\"}")));
	}
}

static void
end_call(Call *call, const char *outcome, Datum result)
{
	MemoryContext old = MemoryContextSwitchTo(result_context);

	call->outcome = outcome;
	call->result = datumCopy(result, false, -1);
	MemoryContextSwitchTo(old);
	add_ended(call, &ended);
}

static void
add_ended(Call *call, Call **place)
{
	call->next_ended = *place;
	*place = call;
	nended++;
}

static void
read_answers(void)
{
	if (child.in.start < child.in.size && !perform(read_frames))
		child.in.failed = true;
	if (child.in.failed)
		lose_child("did not keep to the protocol");
}

/*
 * Each answer is read for itself (call.c), so an error here is a frame that
 * cannot be.
 */
static void
read_frames(void)
{
	FrameType type;
	FrameReader frame;

	while (frame_next(&child.in, &type, &frame))
	{
		if (type == FRAME_HELLO)
			child.ready = frame_read_u32(&frame) == FRAME_VERSION;
		else if (type == FRAME_PART)
			read_part(&frame);
		else if (type == FRAME_DONE)
			read_done(&frame);
	}
}

/*
 * Parts that are of no use end the call.
 */
static void
read_part(FrameReader *frame)
{
	uint64 number = frame_read_u64(frame);
	FrameString part = frame_read_string(frame);
	Call *call = hash_search(calls, &number, HASH_FIND, NULL);
	const char *text;
	Size size;

	if (frame->bad)
		elog(ERROR, "a part of an answer ended too early");
	if (call == NULL || call->outcome != NULL || call->parts == NULL)
		return;
	if (orch_delta_add(call->parts, part.data, part.size))
	{
		text = orch_delta_text(call->parts, &size);
		if (call->stream >= 0 && size > 0)
			orch_stream_append(call->stream, text, size);
		return;
	}
	cancel(number);
	end_call(call, "error", orch_call_useless(call->parts));
}

static void
read_done(FrameReader *frame)
{
	uint64 number = frame_read_u64(frame);
	OrchParcel *parcel = orch_parcel_find(number);
	Call *call;
	Datum result;
	const char *outcome;
	bool too_many;

	if (parcel != NULL)
		read_parcel(parcel, frame);
	call = hash_search(calls, &number, HASH_FIND, NULL);
	if (call == NULL || call->outcome != NULL)
		return; /* it was cancelled */
	outcome = orch_call_read(frame, 1, call->parts, &result, &too_many);
	if (frame->bad)
		elog(ERROR, "an answer ended too early");
	end_call(call, outcome, result);
}

/*
 * Likewise, for each call that is in it.
 */
static void
read_parcel(OrchParcel *parcel, FrameReader *frame)
{
	OrchParcelResult *results = orch_parcel_read(parcel, frame);

	if (frame->bad)
		elog(ERROR, "an answer ended too early");
	for (int i = 0; i < parcel->n; i++)
	{
		Call *call =
			hash_search(calls, &parcel->items[i].call, HASH_FIND, NULL);

		if (call == NULL || call->outcome != NULL)
			continue; /* it was cancelled, or this was said before */
		if (strcmp(results[i].outcome, "released") == 0)
			orch_collect_cap(call->task, (parcel->left + 1) / 2);
		end_call(call, results[i].outcome, results[i].result);
	}
}

/* ----------------------------------------------------------- interruption */

/*
 * Tasks that were cancelled, paused or taken over: their transfers end now.
 */
static void
drop_lost(void)
{
	if (hash_get_num_entries(calls) > 0 && !perform(find_lost))
		pg_atomic_write_u32(&database->courier_interrupted, 1);
}

static void
find_lost(void)
{
	int n = hash_get_num_entries(calls);
	Datum *tasks = palloc(n * sizeof(Datum));
	Datum *epochs = palloc(n * sizeof(Datum));
	Datum *lost;
	NullableDatum args[2] = {0};
	HASH_SEQ_STATUS scan;
	Call *call;
	int i = 0;
	int nlost;

	hash_seq_init(&scan, calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		tasks[i] = Int64GetDatum(call->task);
		epochs[i++] = Int32GetDatum(call->epoch);
	}
	args[0].value =
		PointerGetDatum(construct_array(tasks, n, INT8OID, 8, true, 'd'));
	args[1].value =
		PointerGetDatum(construct_array(epochs, n, INT4OID, 4, true, 'i'));
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(ORCH_FN_LOST_CALLS,
														   2, args, NULL)),
					  INT8OID, 8, true, 'd', &lost, NULL, &nlost);
	if (nlost == 0)
		return;
	hash_seq_init(&scan, calls);
	while ((call = hash_seq_search(&scan)) != NULL)
	{
		/* one that has ended is settled, which finds it stale */
		for (i = 0; i < nlost && call->outcome == NULL; i++)
		{
			if (DatumGetInt64(lost[i]) != call->task)
				continue;
			if (call->parcel == NULL || call->parcel->over)
				cancel(call->number);
			forget(call);
			break;
		}
	}
}

static void
cancel(uint64 number)
{
	frame_begin(&child.out, FRAME_CANCEL);
	frame_u64(&child.out, number);
	frame_end(&child.out);
}

/*
 * The request that it opened a parcel with may be under way still.
 */
static void
forget(Call *call)
{
	OrchParcel *parcel = call->parcel;

	if (parcel != NULL && !parcel->over)
		orch_parcel_keep_permits(parcel, call->permits, call->npermits);
	else
		orch_permit_give_back(call->permits, call->npermits);
	if (parcel != NULL && orch_parcel_leave(parcel, call->number))
	{
		if (!parcel->over)
			cancel(parcel->number);
		orch_parcel_free(parcel);
	}
	stop_reading(call);
	hash_search(calls, &call->number, HASH_REMOVE, NULL);
	look = true;
}

static void
stop_reading(Call *call)
{
	if (call->stream >= 0)
		orch_stream_close(call->stream);
	if (call->parts != NULL)
		orch_delta_free(call->parts);
	call->stream = -1;
	call->parts = NULL;
}

/* ------------------------------------------------------------------ claim */

static void
claim_calls(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (pg_atomic_exchange_u32(&database->courier_told, 0) != 0)
	{
		look = true;
		forget_lane();
	}
	if (claim_at != 0 &&
		(now >= claim_at ||
		 claim_at > TimestampTzPlusMilliseconds(now, LONGEST_WAIT_MS)))
	{
		look = true;
		forget_lane();
	}
	while (look && begin_claim(0))
	{
		if (!perform(claim))
			undo_claim();
		else if (!end_claim())
			break;
	}
}

/*
 * Whether to claim, when so many calls are about to be over.
 */
static bool
begin_claim(int leaving)
{
	TimestampTz now = GetCurrentTimestamp();

	room = Min(orch_courier_max_in_flight - (int) hash_get_num_entries(calls) +
				   orch_parcel_riders() + leaving,
			   CLAIM);
	if (room <= 0 || !orch_enabled || now < not_before)
		return false; /* look again when there is */
	if (child.pid == 0 && orch_child_installed() && !orch_child_start(&child))
	{
		not_before = now + ERROR_PAUSE;
		return false;
	}
	if (under_way() == 0)
		child.heard_at = now;
	look = false;
	claim_at = 0;
	nclaimed = 0;
	first_claimed = last_number + 1;
	unsent = child.out.size - child.out.start;
	orch_carry_begin();
	return true;
}

/*
 * Nothing was claimed: what was written for it is not sent.
 */
static void
undo_claim(void)
{
	forget_lane();
	child.out.size = child.out.start + unsent;
	while (ended != NULL && ended->number >= first_claimed)
	{
		pfree(DatumGetPointer(ended->result));
		ended = ended->next_ended;
		nended--;
	}
	while (last_number >= first_claimed)
	{
		Call *call = hash_search(calls, &last_number, HASH_FIND, NULL);

		if (call != NULL && call->parcel != NULL &&
			orch_parcel_leave(call->parcel, call->number))
			orch_parcel_free(call->parcel);
		if (call != NULL)
			stop_reading(call);
		hash_search(calls, &last_number, HASH_REMOVE, NULL);
		last_number--;
	}
	look = true;
	not_before = GetCurrentTimestamp() + ERROR_PAUSE;
	if (orch_carry_stuck() != 0)
		(void) perform(fail_stuck);
}

/*
 * A duty.
 */
static void
fail_stuck(void)
{
	NullableDatum args[1] = {{Int64GetDatum(orch_carry_stuck()), false}};

	(void) orch_catalog_call(ORCH_FN_FAIL_STUCK_CALL, 1, args, NULL);
}

/*
 * False: there is no more to claim.
 */
static bool
end_claim(void)
{
	int64 left = orch_carry_left();

	if (child.pid != 0 && !frame_send(&child.out, child.socket))
	{
		lose_child("ended");
		return false;
	}
	look = look || nclaimed >= room;
	if (nclaimed >= room)
		return true;
	forget_lane();
	calls_wait = false;
	if (left >= 0)
		claim_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   Min(left, LONGEST_WAIT_MS));
	else if (perform(ask_whether_calls_wait) && calls_wait)
		claim_at = GetCurrentTimestamp() + HELD_UP_PAUSE;
	return false;
}

static void
forget_lane(void)
{
	only_queue = 0;
	orch_carry_forget();
}

/*
 * A duty.
 */
static void
claim(void)
{
	Datum values[4] = {Int32GetDatum(MyProcPid), Int32GetDatum(room)};
	OrchIdentity saved;

	check_extension();
	orch_catalog_begin_owner(&saved);
	SPI_connect();
	if (only_queue != 0 && !orch_catalog_queue_paused(only_queue))
	{
		values[1] = Int32GetDatum(only_queue);
		values[2] = Int32GetDatum(only_owner);
		values[3] = Int32GetDatum(room);
		execute(
			&lane_plan,
			"SELECT c.* FROM orchestrator._claim_call_lane($1, $2, $3, $4) c",
			4, values);
	}
	else
		execute(&claim_plan,
				"SELECT c.* FROM orchestrator._claim_calls($1, $2) c", 2,
				values);
	nclaimed = SPI_processed;
	for (int i = 0; i < nclaimed; i++)
		take_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	write_parcels();
	if (nclaimed >= room && only_queue == 0)
		find_only_lane();
	SPI_finish();
	orch_catalog_end_owner(&saved);
}

/*
 * Arguments are integers.
 */
static void
execute(SPIPlanPtr *plan, const char *query, int n, Datum *values)
{
	Oid types[4] = {INT4OID, INT4OID, INT4OID, INT4OID};

	if (*plan == NULL)
	{
		*plan = SPI_prepare(query, n, types);
		SPI_keepplan(*plan);
	}
	if (SPI_execute_plan(*plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not claim calls");
}

/*
 * There are more: if all are in one lane, the next claims need not look for
 * lanes until somebody tells us of others.
 */
static void
find_only_lane(void)
{
	bool isnull;

	execute(&lanes_plan, "SELECT l.* FROM orchestrator._call_lanes() l", 0,
			NULL);
	if (SPI_processed != 1)
		return;
	only_queue = DatumGetInt32(SPI_getbinval(
		SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	only_owner = DatumGetInt32(SPI_getbinval(
		SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
}

/*
 * Likewise.
 */
static void
ask_whether_calls_wait(void)
{
	calls_wait =
		DatumGetBool(orch_catalog_call(ORCH_FN_CALLS_WAIT, 0, NULL, NULL));
}

/* Columns of _claim_calls(). */
enum
{
	CALL_TASK = 1,
	CALL_EPOCH,
	CALL_ENDPOINT,
	CALL_REQUEST,
	CALL_REFUSAL,
	CALL_TIMEOUT,
	CALL_SILENCE,
	CALL_KEY,
	CALL_TRACEPARENT,
	CALL_PERMITS,
	CALL_PARCEL,
	CALL_QUEUE
};

static void
take_row(HeapTuple row, TupleDesc desc)
{
	bool isnull;
	uint64 number = ++last_number;
	Call *call = hash_search(calls, &number, HASH_ENTER, NULL);
	Datum refusal = SPI_getbinval(row, desc, CALL_REFUSAL, &isnull);
	bool refused = !isnull;
	Datum *permits;
	OrchCallSpec spec = {.number = number};
	int32 parcel =
		DatumGetInt32(SPI_getbinval(row, desc, CALL_PARCEL, &isnull));

	call->task = DatumGetInt64(SPI_getbinval(row, desc, CALL_TASK, &isnull));
	call->epoch = DatumGetInt32(SPI_getbinval(row, desc, CALL_EPOCH, &isnull));
	call->outcome = NULL;
	call->parcel = NULL;
	call->tuned.limit = 0;
	call->parts = NULL;
	call->stream = -1;
	deconstruct_array(
		DatumGetArrayTypeP(SPI_getbinval(row, desc, CALL_PERMITS, &isnull)),
		INT8OID, 8, true, 'd', &permits, NULL, &call->npermits);
	for (int i = 0; i < call->npermits; i++)
		call->permits[i] = DatumGetInt64(permits[i]);
	if (!refused && child.pid == 0)
	{
		refusal = orch_call_refusal(
			"OR012", "the program that makes outside calls is not installed",
			"Install libcurl4-openssl-dev and libssl-dev, then build and "
			"install the extension again.");
		refused = true;
	}
	if (!refused)
	{
		read_spec(&spec, row, desc);
		tune(call,
			 DatumGetInt32(SPI_getbinval(row, desc, CALL_QUEUE, &isnull)));
		if (parcel != 0)
		{
			put_in_parcel(call, &spec, parcel);
			return;
		}
		refusal = orch_call_write(&child.out, &spec);
		refused = refusal != (Datum) 0;
	}
	if (refused)
		refuse(call, refusal);
	else
		open_stream(call, &spec);
}

static void
put_in_parcel(Call *call, const OrchCallSpec *spec, int32 number)
{
	call->parcel = orch_parcel(number);
	orch_parcel_add(call->parcel, spec, call->task);
}

static void
write_parcels(void)
{
	OrchParcel *parcel;

	while ((parcel = orch_parcel_unwritten()) != NULL)
	{
		Datum refusal = orch_parcel_write(parcel, &child.out);

		if (refusal == (Datum) 0)
			continue;
		parcel->over = true;
		for (int i = 0; i < parcel->n; i++)
			refuse(hash_search(calls, &parcel->items[i].call, HASH_FIND, NULL),
				   refusal);
	}
}

static void
refuse(Call *call, Datum refusal)
{
	call->tuned.limit = 0; /* nothing was called */
	end_call(call, "error", refusal);
}

/*
 * Its queue learns from it, if that is adaptive.
 */
static void
tune(Call *call, int32 queue)
{
	const OrchQueue *known = orch_catalog_queue_info(queue);

	if (known == NULL || known->limit.adaptive == 0)
		return;
	call->tuned.queue = queue;
	call->tuned.limit = known->limit.id;
	call->tuned.since = orch_monotonic();
}

/*
 * Of a call that asks for its answer in parts.
 */
static void
open_stream(Call *call, const OrchCallSpec *spec)
{
	const OrchEndpoint *endpoint = spec->endpoint;
	const OrchDefinition *definition;
	OrchStreamOf of = {.task = call->task, .root = call->task};
	OrchLeaf *leaf;
	OrchRow row;
	ItemPointerData tid;
	bool shown;

	if (!orch_call_streams(spec->request, &shown))
		return;
	call->parts = orch_delta_begin(TopMemoryContext, endpoint->provider,
								   endpoint->max_response);
	if (call->parts == NULL || !shown)
		return;
	leaf = orch_heap_open_live();
	if (orch_heap_find(leaf, call->task, &row, &tid))
	{
		definition =
			orch_catalog_definition(ORCH_INT32(&row, ORCH_TASK_DEFINITION));
		if (!row.nulls[ORCH_TASK_ROOT_ID])
			of.root = ORCH_INT64(&row, ORCH_TASK_ROOT_ID);
		if (!row.nulls[ORCH_TASK_PARENT_ID])
			of.parent = ORCH_INT64(&row, ORCH_TASK_PARENT_ID);
		of.owner = ORCH_INT32(&row, ORCH_TASK_OWNER);
		of.attempt = ORCH_INT32(&row, ORCH_TASK_ATTEMPT);
		of.notify = definition != NULL && definition->notify;
		of.notify_all = definition != NULL && definition->notify_all;
		call->stream = orch_stream_open(&of);
	}
	orch_heap_close(leaf);
}

static void
read_spec(OrchCallSpec *spec, HeapTuple row, TupleDesc desc)
{
	char *endpoint = SPI_getvalue(row, desc, CALL_ENDPOINT);
	bool isnull;

	spec->endpoint = orch_endpoint(endpoint);
	if (spec->endpoint == NULL)
		elog(ERROR, "endpoint \"%s\" is gone", endpoint);
	spec->request =
		DatumGetJsonbP(SPI_getbinval(row, desc, CALL_REQUEST, &isnull));
	spec->timeout =
		DatumGetInt64(SPI_getbinval(row, desc, CALL_TIMEOUT, &isnull));
	if (!isnull)
		spec->timeout = Max(spec->timeout, 1);
	spec->silence =
		DatumGetInt64(SPI_getbinval(row, desc, CALL_SILENCE, &isnull));
	spec->key = SPI_getvalue(row, desc, CALL_KEY);
	spec->traceparent = SPI_getvalue(row, desc, CALL_TRACEPARENT);
}

/* ----------------------------------------------------------------- settle */

static void
settle_calls(void)
{
	if (nended > 0 && GetCurrentTimestamp() < settle_at)
		return;
	settle_at = 0;
	while (nended > 0 && settle_at == 0)
		settle_batch();
}

/*
 * A duty: in one transaction, so that there is one flush.
 */
static void
settle_and_claim(void)
{
	settle();
	claim();
}

/*
 * One that cannot be settled with others is settled by itself, and if it cannot
 * be so either, after all others.
 */
static void
settle_batch(void)
{
	Call **place = &ended;
	int nalone = 0;
	bool claims;

	nbatch = 0;
	while (*place != NULL && nbatch < (one_by_one ? 1 : BATCH))
	{
		batch[nbatch++] = *place;
		nalone += (*place)->parcel == NULL ? 1 : 0;
		*place = (*place)->next_ended;
	}
	nended -= nbatch;
	claims = !one_by_one && child.pid != 0 && begin_claim(nalone);
	if (perform(claims ? settle_and_claim : settle))
	{
		one_by_one = one_by_one && nended > 0;
		finish_batch();
		if (claims)
			(void) end_claim();
		return;
	}
	if (claims)
		undo_claim();
	if (one_by_one)
	{
		settle_at = GetCurrentTimestamp() + ERROR_PAUSE;
		place = &ended;
		while (*place != NULL)
			place = &(*place)->next_ended;
	}
	for (int i = nbatch - 1; i >= 0; i--)
		add_ended(batch[i], place);
	one_by_one = true;
}

static Datum
column(Call *const *some, int n, Oid type, Datum (*get)(const Call *call))
{
	Datum *values = palloc(n * sizeof(Datum));
	int16 size;
	bool by_value;
	char align;

	for (int i = 0; i < n; i++)
		values[i] = get(some[i]);
	get_typlenbyvalalign(type, &size, &by_value, &align);
	return PointerGetDatum(
		construct_array(values, n, type, size, by_value, align));
}

static Datum
task_of(const Call *call)
{
	return Int64GetDatum(call->task);
}

static Datum
epoch_of(const Call *call)
{
	return Int32GetDatum(call->epoch);
}

static Datum
outcome_of(const Call *call)
{
	return CStringGetTextDatum(call->outcome);
}

static Datum
result_of(const Call *call)
{
	return call->result;
}

/*
 * A duty: those that are completed and that nothing hangs on; then the others.
 */
static void
settle(void)
{
	Call **plain = palloc(nbatch * sizeof(Call *));
	Call **rest = palloc(nbatch * sizeof(Call *));
	int nplain = 0;
	int nrest = 0;

	for (int i = 0; i < nbatch; i++)
	{
		if (strcmp(batch[i]->outcome, "completed") == 0)
			plain[nplain++] = batch[i];
		else
			rest[nrest++] = batch[i];
	}
	nlocked = 0;
	if (nplain > 0)
		nrest = complete_plain(plain, nplain, rest, nrest);
	if (nrest > 0)
		settle_rest(rest, nrest);
}

/*
 * Adds to the rest what could not be completed so; returns how many it is.
 */
static int
complete_plain(Call **plain, int n, Call **rest, int nrest)
{
	NullableDatum args[3] = {0};
	Datum *done;
	int ndone;
	int next = 0;

	args[0].value = column(plain, n, INT8OID, task_of);
	args[1].value = column(plain, n, INT4OID, epoch_of);
	args[2].value = column(plain, n, JSONBOID, result_of);
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(
						  ORCH_FN_COMPLETE_CALLS, 3, args, NULL)),
					  INT8OID, 8, true, 'd', &done, NULL, &ndone);
	/* in the order in which they were given */
	for (int i = 0; i < n; i++)
	{
		if (next < ndone && DatumGetInt64(done[next]) == plain[i]->task)
			next++;
		else
			rest[nrest++] = plain[i];
	}
	return nrest;
}

static void
settle_rest(Call **rest, int n)
{
	NullableDatum args[4] = {0};
	Datum *tasks;
	MemoryContext old;

	args[0].value = column(rest, n, INT8OID, task_of);
	args[1].value = column(rest, n, INT4OID, epoch_of);
	args[2].value = column(rest, n, TEXTOID, outcome_of);
	args[3].value = column(rest, n, JSONBOID, result_of);
	deconstruct_array(DatumGetArrayTypeP(orch_catalog_call(
						  ORCH_FN_SETTLE_CALLS, 4, args, NULL)),
					  INT8OID, 8, true, 'd', &tasks, NULL, &nlocked);
	old = MemoryContextSwitchTo(turn_context);
	locked = palloc(nlocked * sizeof(int64));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < nlocked; i++)
		locked[i] = DatumGetInt64(tasks[i]);
}

/*
 * What somebody has locked is settled a little later.
 */
static void
finish_batch(void)
{
	for (int i = 0; i < nbatch; i++)
	{
		Call *call = batch[i];
		bool is_locked = false;

		for (int j = 0; j < nlocked && !is_locked; j++)
			is_locked = locked[j] == call->task;
		if (is_locked)
		{
			add_ended(call, &ended);
			settle_at = GetCurrentTimestamp() + LOCKED_PAUSE;
			continue;
		}
		pfree(DatumGetPointer(call->result));
		learn(call);
		forget(call);
	}
}

/*
 * One that was lost with the child says nothing of its endpoint.
 */
static void
learn(const Call *call)
{
	bool timed_out = strcmp(call->outcome, "timeout") == 0;

	if (strcmp(call->outcome, "lost") != 0)
		orch_tune_report_call(&call->tuned,
							  timed_out || strcmp(call->outcome, "error") == 0,
							  timed_out);
}

/* ------------------------------------------------------------------ sleep */

/*
 * For worker_status and pg_stat_activity, where it changed.
 */
static void
report(void)
{
	uint32 n = hash_get_num_entries(calls);
	uint32 before = pg_atomic_exchange_u32(&database->courier_calls, n);
	char activity[64];

	if ((n == 0) != (before == 0) || idle_since == 0 || n > 0)
		idle_since = n > 0 ? 0 : GetCurrentTimestamp();
	if ((n == 0) != (before == 0))
		database->courier_since = GetCurrentTimestamp();
	if (n == before)
		return;
	snprintf(activity, sizeof(activity), "%u outside calls under way", n);
	pgstat_report_activity(n > 0 ? STATE_RUNNING : STATE_IDLE, activity);
}

static void
sleep_until_needed(void)
{
	TimestampTz until = PG_INT64_MAX;
	int events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	long timeout;

	if (claim_at != 0)
		until = Min(until, claim_at);
	if (look && not_before > GetCurrentTimestamp())
		until = Min(until, not_before);
	if (nended > 0)
		until = Min(until, settle_at);
	if (under_way() > 0)
		until = Min(until, child.heard_at +
							   orch_courier_hang_timeout * USECS_PER_SEC);
	if (idle_since != 0)
		until =
			Min(until, idle_since + orch_courier_idle_timeout * USECS_PER_SEC);
	if (child.pid != 0)
		events |= WL_SOCKET_READABLE;
	if (child.pid != 0 && frame_pending(&child.out))
		events |= WL_SOCKET_WRITEABLE;
	timeout =
		until == PG_INT64_MAX
			? 60000
			: Max(0, Min((until - GetCurrentTimestamp() + 999) / 1000, 60000));
	(void) WaitLatchOrSocket(MyLatch, events,
							 child.pid != 0 ? child.socket : PGINVALID_SOCKET,
							 timeout, orch_wait_event(ORCH_WAIT_COURIER));
	ResetLatch(MyLatch);
}
