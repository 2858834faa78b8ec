/*
 * follow.c
 *	  Reading the answer of a model while it comes, and after.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "catalog.h"
#include "heap.h"
#include "stream.h"

/* Columns of llm_stream(). */
enum
{
	STREAM_ATTEMPT,
	STREAM_LENGTH,
	STREAM_TEXT,
	STREAM_DONE,
	STREAM_COLUMNS
};

PG_FUNCTION_INFO_V1(orchestrator_llm_stream);

static bool read_ended(int64 task, int32 attempt, int64 after,
					   OrchStreamText *text, bool *done);
static char *output_text(const OrchTaskView *view);

/*
 * llm_stream(task, after, attempt): no row of a task that the caller may not
 * see.  A stream ends after its task was settled: where there is none, the row
 * says all, as a new snapshot sees it.
 */
Datum
orchestrator_llm_stream(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int64 task = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);
	int64 after = PG_ARGISNULL(1) ? 0 : Max(PG_GETARG_INT64(1), 0);
	int32 attempt = PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2);
	OrchStreamText text = {0};
	bool done = false;
	int32 owner;
	Datum values[STREAM_COLUMNS];
	bool nulls[STREAM_COLUMNS] = {false};

	InitMaterializedSRF(fcinfo, 0);
	if (rsinfo->setDesc->natts != STREAM_COLUMNS)
		elog(ERROR, "unexpected result type of llm_stream");
	if (!(orch_stream_owner(task, &owner) && orch_catalog_may_see(owner) &&
		  orch_stream_read(task, attempt, after, &text)) &&
		!read_ended(task, attempt, after, &text, &done))
		return (Datum) 0;
	values[STREAM_ATTEMPT] = Int32GetDatum(text.attempt);
	values[STREAM_LENGTH] = Int64GetDatum(text.length);
	values[STREAM_TEXT] =
		PointerGetDatum(cstring_to_text_with_len(text.text, text.size));
	values[STREAM_DONE] = BoolGetDatum(done);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

static bool
read_ended(int64 task, int32 attempt, int64 after, OrchStreamText *text,
		   bool *done)
{
	OrchTaskView view;
	int size;
	int skipped;

	if (!orch_heap_read_result(task, &view) ||
		!orch_catalog_may_see(view.owner))
		return false;
	*done = orch_state_is_final(view.state);
	/* asked in rounds, its steps: this is not the text that began as its own */
	text->attempt = view.attempt + view.has_steps;
	text->text = *done ? output_text(&view) : "";
	size = strlen(text->text);
	text->length = pg_mbstrlen_with_len(text->text, size);
	if (attempt != 0 && attempt != text->attempt)
		after = 0;
	skipped = after == 0 ? 0
						 : pg_mbcharcliplen(text->text, size,
											(int) Min(after, INT_MAX));
	text->text += skipped;
	text->size = size - skipped;
	return true;
}

/*
 * Its content; of an answer with a schema, as JSON.
 */
static char *
output_text(const OrchTaskView *view)
{
	Jsonb *output = view->has_output ? DatumGetJsonbP(view->output) : NULL;
	JsonbValue content;
	Jsonb *json;

	if (output == NULL || !JB_ROOT_IS_OBJECT(output) ||
		getKeyJsonValueFromContainer(&output->root, "content",
									 strlen("content"), &content) == NULL ||
		content.type == jbvNull)
		return "";
	if (content.type == jbvString)
		return pnstrdup(content.val.string.val, content.val.string.len);
	json = JsonbValueToJsonb(&content);
	return JsonbToCString(NULL, &json->root, VARSIZE(json));
}
