/*
 * duty.c
 *	  What the supervisor and the courier do in transactions of their own.
 */
#include "postgres.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "duty.h"
#include "guc.h"

/* Paths of a workflow, or over answers, may take for ever: that is an error.
 * What a task needs of us may take at most twice as long (_give_up). */
#define WATCHDOG_MS 5000

/* Those for one call may take less time of the processor (microseconds), and so
 * much memory as orchestrator.courier_memory says. */
#define LONGEST_PATHS (1000 * INT64CONST(1000))
#define LOOK_MS		  50

static TimeoutId watchdog;
static TimeoutId path_timer;
static MemoryContext between_duties = NULL;

/* Of the paths for one call. */
static bool follows_paths = false;
static volatile bool may_go_on = false; /* they were not stopped */
static int64 time_before = 0;
static int64 memory_before = 0;

static int64 paths_took = 0; /* since orch_duty_begin_paths() */

PG_FUNCTION_INFO_V1(orchestrator_begin_paths);
PG_FUNCTION_INFO_V1(orchestrator_end_paths);
PG_FUNCTION_INFO_V1(orchestrator_paths_are_late);

static void handle_watchdog(void);
static void handle_paths(void);
static int64 own_time(void);
static int64 own_memory(void);
static void end_paths(void);

void
orch_duty_install(MemoryContext between)
{
	watchdog = RegisterTimeout(USER_TIMEOUT, handle_watchdog);
	path_timer = RegisterTimeout(USER_TIMEOUT, handle_paths);
	between_duties = between;
}

static void
handle_watchdog(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * Likewise a signal handler.
 */
static void
handle_paths(void)
{
	if (!may_go_on || (own_time() - time_before < LONGEST_PATHS &&
					   own_memory() - memory_before <
						   (int64) orch_courier_memory * 1024 * 1024))
		return;
	may_go_on = false;
	handle_watchdog();
}

/*
 * Of the processor that this process has used, in microseconds.
 */
static int64
own_time(void)
{
	struct timespec used = {0};

	(void) clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (int64) used.tv_sec * 1000000 + used.tv_nsec / 1000;
}

/*
 * What this process has for itself, in bytes; 0: the system does not say.
 */
static int64
own_memory(void)
{
	char line[128];
	char *rest = line;
	int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	ssize_t n = file < 0 ? 0 : read(file, line, sizeof(line) - 1);
	int64 resident;

	if (file >= 0)
		(void) close(file);
	line[Max(n, 0)] = '\0';
	(void) strtol(rest, &rest, 10); /* of all that is mapped */
	resident = strtol(rest, &rest, 10);
	return (resident - strtol(rest, &rest, 10)) * getpagesize();
}

void
orch_duty_begin_paths(void)
{
	paths_took = 0;
}

/*
 * _paths_are_late()
 */
Datum
orchestrator_paths_are_late(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(paths_took >= LONGEST_PATHS);
}

/*
 * _begin_paths(): paths for one call are followed from here on.
 */
Datum
orchestrator_begin_paths(PG_FUNCTION_ARGS)
{
	if (between_duties == NULL)
		PG_RETURN_VOID(); /* who asks for it can cancel it */
	memory_before = own_memory();
	time_before = own_time();
	follows_paths = may_go_on = true;
	enable_timeout_every(
		path_timer,
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_MS), LOOK_MS);
	PG_RETURN_VOID();
}

/*
 * _end_paths()
 */
Datum
orchestrator_end_paths(PG_FUNCTION_ARGS)
{
	end_paths();
	PG_RETURN_VOID();
}

static void
end_paths(void)
{
	if (!follows_paths)
		return;
	follows_paths = may_go_on = false;
	disable_timeout(path_timer, false);
	QueryCancelPending = false;
	paths_took += own_time() - time_before;
}

bool
orch_duty_perform(OrchDuty duty)
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
		end_paths();
		disable_timeout(watchdog, false);
		QueryCancelPending = false;
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		end_paths();
		disable_timeout(watchdog, false);
		QueryCancelPending = false;
		MemoryContextSwitchTo(between_duties);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(between_duties);
	pgstat_report_stat(false);
	return done;
}
