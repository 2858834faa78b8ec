/*
 * duty.c
 *	  What the supervisor and the courier do in transactions of their own.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "duty.h"

/* Paths of a workflow, or over answers, may take for ever: that is an error.
 * What a task needs of us may take at most twice as long (_give_up). */
#define WATCHDOG_MS 5000

static TimeoutId watchdog;
static MemoryContext between_duties = NULL;

static void handle_watchdog(void);

void
orch_duty_install(MemoryContext between)
{
	watchdog = RegisterTimeout(USER_TIMEOUT, handle_watchdog);
	between_duties = between;
}

static void
handle_watchdog(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
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
		disable_timeout(watchdog, false);
		QueryCancelPending = false;
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
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
