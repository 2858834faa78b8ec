/*
 * notice.c
 *	  Notices that a step raises, kept for its trace.
 *
 * A background worker has no client, so a message reaches emit_log_hook only
 * when it would be logged.  While a step runs and asks for it, messages down
 * to INFO are let through; those that the log did not ask for end here.
 */
#include "postgres.h"

#include "utils/elog.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "json.h"
#include "notice.h"
#include "shmem.h"

static emit_log_hook_type previous_hook = NULL;
static MemoryContext notice_context = NULL;
static List *collected = NIL;
static bool collecting = false;
static int log_level; /* what the log asks for */

static void collect(ErrorData *error);
static void keep(const ErrorData *error);

void
orch_notice_install(void)
{
	notice_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator notices", ALLOCSET_SMALL_SIZES);
	previous_hook = emit_log_hook;
	emit_log_hook = collect;
}

void
orch_notice_begin(void)
{
	if (!orch_trace_notices)
		return;
	collecting = true;
	log_level = log_min_messages;

	/* a log that asks for LOG asks for none of these */
	log_min_messages = log_level == LOG ? INFO : Min(log_level, INFO);
}

void
orch_notice_end(void)
{
	if (!collecting)
		return;
	collecting = false;
	log_min_messages = log_level;
}

static void
collect(ErrorData *error)
{
	if (previous_hook)
		previous_hook(error);
	if (!collecting || error->elevel < INFO || error->elevel > WARNING)
		return;
	if (list_length(collected) < ORCH_MAX_NOTICES)
		keep(error);
	if (error->elevel < log_level || log_level == LOG)
		error->output_to_server = false;
}

static void
keep(const ErrorData *error)
{
	MemoryContext old = MemoryContextSwitchTo(notice_context);
	OrchNotice *notice = palloc(sizeof(OrchNotice));
	JsonbParseState *state;

	notice->at = orch_clock();
	orch_json_begin(&state);
	orch_json_text(&state, "level",
				   error->elevel == WARNING	 ? "WARNING"
				   : error->elevel == NOTICE ? "NOTICE"
											 : "INFO");
	orch_json_text(&state, "sqlstate", unpack_sql_state(error->sqlerrcode));
	orch_json_text(&state, "message", error->message);
	orch_json_text(&state, "detail", error->detail);
	orch_json_text(&state, "hint", error->hint);
	notice->detail = orch_json_end(&state);
	collected = lappend(collected, notice);
	MemoryContextSwitchTo(old);
}

List *
orch_notice_take(void)
{
	List *taken = NIL;
	ListCell *cell;

	if (collected == NIL)
		return NIL;
	foreach(cell, collected)
	{
		OrchNotice *notice = lfirst(cell);
		OrchNotice *copy = palloc(sizeof(OrchNotice));

		copy->at = notice->at;
		copy->detail = PointerGetDatum(PG_DETOAST_DATUM_COPY(notice->detail));
		taken = lappend(taken, copy);
	}
	collected = NIL;
	MemoryContextReset(notice_context);
	return taken;
}
