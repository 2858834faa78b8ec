/*
 * delta.c
 *	  A model's answer that comes in parts.
 *
 * OpenAI and Anthropic send events (text/event-stream, as the HTML standard has
 * it), Ollama a line of JSON for each part.  What is sent is from anybody: it
 * is bounded, and what cannot be read makes the answer fail, not us.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "delta.h"

/* An event is so much larger than what it says. */
#define EVENT_FRAME (64 * 1024)

/* Tool calls of one answer. */
#define MOST_CALLS 1000

#define MESSAGE_SIZE 1000

/* A tool that the model asks for. */
typedef struct Called
{
	int32 place;
	char *id; /* NULL: it has none */
	char *name;
	StringInfoData arguments;
} Called;

struct OrchDelta
{
	MemoryContext context;
	MemoryContext scratch; /* reset after each event */
	OrchProvider provider;
	Size most;
	Size kept;
	bool begun;
	bool ended;			  /* it says that nothing follows */
	bool cut_off;		  /* nothing does: the last event may not be whole */
	OrchDeltaError error; /* message NULL: none */

	/* bytes that are not an event yet */
	StringInfoData line;
	StringInfoData data; /* of the event */
	bool has_data;
	bool after_cr;

	/* what it says so far */
	StringInfoData text;
	Size told; /* of text */
	StringInfoData refusal;
	List *calls;
	char *model;
	char *reason;
	char *usage; /* JSON, as do the two below; NULL: not told */
	char *tokens_in;
	char *tokens_out;
};

typedef JsonbContainer *Json;

static void fail(OrchDelta *delta, const char *sqlstate, bool retry,
				 const char *format, ...) pg_attribute_printf(4, 5);
static void take_line(OrchDelta *delta);
static void take_field(OrchDelta *delta);
static void take_event(OrchDelta *delta, StringInfo event);
static void read_event(OrchDelta *delta, StringInfo event);
static void keep(OrchDelta *delta, StringInfo to, Json from, const char *key);
static void keep_string(OrchDelta *delta, char **to, Json from,
						const char *key);
static void keep_json(OrchDelta *delta, char **to, Json from, const char *key);
static bool read_error(OrchDelta *delta, Json event);
static void read_openai(OrchDelta *delta, Json event);
static void read_openai_call(OrchDelta *delta, Json call, int place);
static void read_anthropic(OrchDelta *delta, Json event);
static void read_anthropic_usage(OrchDelta *delta, Json from);
static void read_ollama(OrchDelta *delta, Json event);
static Called *find_call(OrchDelta *delta, int32 place);
static void put_string(StringInfo to, const char *text);
static void put_member(StringInfo to, const char *key, const char *text);
static void put_tokens(StringInfo to, const char *key, const char *tokens);
static void put_calls(const OrchDelta *delta, StringInfo to);
static void put_openai(const OrchDelta *delta, StringInfo to);
static void put_anthropic(const OrchDelta *delta, StringInfo to);
static void put_ollama(const OrchDelta *delta, StringInfo to);

/* ---------------------------------------------------------------- an answer */

OrchDelta *
orch_delta_begin(MemoryContext context, OrchProvider provider, Size most)
{
	MemoryContext mine;
	MemoryContext old;
	OrchDelta *delta;

	if (provider != ORCH_PROVIDER_OPENAI &&
		provider != ORCH_PROVIDER_ANTHROPIC &&
		provider != ORCH_PROVIDER_OLLAMA)
		return NULL;
	mine = AllocSetContextCreate(context, "orchestrator answer",
								 ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(mine);
	delta = palloc0(sizeof(OrchDelta));
	delta->context = mine;
	delta->scratch = AllocSetContextCreate(mine, "orchestrator answer event",
										   ALLOCSET_SMALL_SIZES);
	delta->provider = provider;
	delta->most = most;
	initStringInfo(&delta->line);
	initStringInfo(&delta->data);
	initStringInfo(&delta->text);
	initStringInfo(&delta->refusal);
	MemoryContextSwitchTo(old);
	return delta;
}

void
orch_delta_free(OrchDelta *delta)
{
	MemoryContextDelete(delta->context);
}

bool
orch_delta_begun(const OrchDelta *delta)
{
	return delta->begun;
}

/*
 * Some servers say nothing behind the reason why they stopped, or leave out the
 * line ends behind their last event.
 */
bool
orch_delta_finish(OrchDelta *delta)
{
	delta->cut_off = true;
	if (delta->error.message == NULL && !delta->ended && delta->line.len > 0)
		take_line(delta);
	if (delta->error.message == NULL && !delta->ended)
		take_line(delta);
	return delta->error.message == NULL &&
		   (delta->ended || delta->reason != NULL);
}

const OrchDeltaError *
orch_delta_error(const OrchDelta *delta)
{
	return delta->error.message == NULL ? NULL : &delta->error;
}

const char *
orch_delta_text(OrchDelta *delta, Size *size)
{
	const char *text = delta->text.data + delta->told;

	*size = delta->text.len - delta->told;
	delta->told = delta->text.len;
	return text;
}

/*
 * The first reason stands.
 */
static void
fail(OrchDelta *delta, const char *sqlstate, bool retry, const char *format,
	 ...)
{
	char message[MESSAGE_SIZE];
	va_list arguments;

	va_start(arguments, format);
	(void) vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	if (delta->error.message != NULL)
		return;
	/* it may have been cut within a character */
	message[pg_mbcliplen(message, strlen(message), MESSAGE_SIZE - 8)] = '\0';
	delta->error.sqlstate = sqlstate;
	delta->error.retry = retry;
	delta->error.message = MemoryContextStrdup(delta->context, message);
}

/* ------------------------------------------------------------ lines, events */

/*
 * Lines end with CR, LF or both.
 */
bool
orch_delta_add(OrchDelta *delta, const char *data, Size size)
{
	const char *end = data + size;

	delta->begun = true;
	while (data < end && delta->error.message == NULL && !delta->ended)
	{
		const char *stop = data;

		if (delta->after_cr && *data == '\n')
			stop = ++data;
		delta->after_cr = false;
		while (stop < end && *stop != '\n' && *stop != '\r')
			stop++;
		if (delta->line.len + delta->data.len + (stop - data) >
			delta->most + EVENT_FRAME)
		{
			fail(delta, "OR013", false, "the answer is too large");
			break;
		}
		appendBinaryStringInfo(&delta->line, data, stop - data);
		if (stop < end)
		{
			delta->after_cr = *stop++ == '\r';
			take_line(delta);
		}
		data = stop;
	}
	return delta->error.message == NULL;
}

static void
take_line(OrchDelta *delta)
{
	static const char mark[] = "\xef\xbb\xbf";
	StringInfo line = &delta->line;

	if (line->len >= 3 && memcmp(line->data, mark, 3) == 0)
	{
		memmove(line->data, line->data + 3, line->len - 2);
		line->len -= 3;
	}
	if (delta->provider == ORCH_PROVIDER_OLLAMA)
	{
		if (line->len > 0)
			take_event(delta, line);
	}
	else if (line->len > 0)
		take_field(delta);
	else if (delta->has_data)
	{
		take_event(delta, &delta->data);
		delta->has_data = false;
		resetStringInfo(&delta->data);
	}
	resetStringInfo(line);
}

/*
 * Of an event only its data matters: it says itself what it is.
 */
static void
take_field(OrchDelta *delta)
{
	const char *value = delta->line.data + strlen("data:");

	if (strncmp(delta->line.data, "data:", strlen("data:")) != 0)
		return;
	if (*value == ' ')
		value++;
	if (delta->has_data)
		appendStringInfoChar(&delta->data, '\n');
	appendBinaryStringInfo(&delta->data, value,
						   delta->line.data + delta->line.len - value);
	delta->has_data = true;
}

/*
 * Reading it takes nothing that an error would leave behind, so no
 * subtransaction is needed.
 */
static void
take_event(OrchDelta *delta, StringInfo event)
{
	MemoryContext old = MemoryContextSwitchTo(delta->scratch);

	PG_TRY();
	{
		read_event(delta, event);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(delta->scratch);
		error = CopyErrorData();
		FlushErrorState();
		if (!delta->cut_off)
			fail(delta, "OR013", false,
				 "the answer has a part that is not the JSON it should be: %s",
				 error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextReset(delta->scratch);
	if (delta->kept > delta->most)
		fail(delta, "OR013", false, "the answer is too large");
}

static void
read_event(OrchDelta *delta, StringInfo event)
{
	char *text;
	Jsonb *json;

	if (delta->provider == ORCH_PROVIDER_OPENAI && event->len == 6 &&
		memcmp(event->data, "[DONE]", 6) == 0)
	{
		delta->ended = true;
		return;
	}
	text = pg_any_to_server(event->data, event->len, PG_UTF8);
	json =
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	if (!JB_ROOT_IS_OBJECT(json) || read_error(delta, &json->root))
		return;
	switch (delta->provider)
	{
		case ORCH_PROVIDER_OPENAI:
			read_openai(delta, &json->root);
			break;
		case ORCH_PROVIDER_ANTHROPIC:
			read_anthropic(delta, &json->root);
			break;
		default:
			read_ollama(delta, &json->root);
	}
}

/* ---------------------------------------------------------------- reading */

static bool
find(Json in, const char *key, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(in, key, strlen(key), value) != NULL &&
		   value->type != jbvNull;
}

/* NULL: there is none. */
static Json
member(Json in, const char *key, uint32 kind)
{
	JsonbValue value;

	return find(in, key, &value) && value.type == jbvBinary &&
				   (value.val.binary.data->header & kind) != 0
			   ? value.val.binary.data
			   : NULL;
}

static Json
object(Json in, const char *key)
{
	return member(in, key, JB_FOBJECT);
}

static Json
array(Json in, const char *key)
{
	return member(in, key, JB_FARRAY);
}

/* NULL: it is no object. */
static Json
element(Json of, int place)
{
	JsonbValue *value = getIthJsonbValueFromContainer(of, place);

	return value != NULL && value->type == jbvBinary &&
				   JsonContainerIsObject(value->val.binary.data)
			   ? value->val.binary.data
			   : NULL;
}

static char *
string(Json in, const char *key)
{
	JsonbValue value;

	return find(in, key, &value) && value.type == jbvString
			   ? pnstrdup(value.val.string.val, value.val.string.len)
			   : NULL;
}

static int32
number(Json in, const char *key, int32 otherwise)
{
	JsonbValue value;

	return find(in, key, &value) && value.type == jbvNumeric
			   ? DatumGetInt32(DirectFunctionCall1(
					 numeric_int4, NumericGetDatum(value.val.numeric)))
			   : otherwise;
}

/* A value as JSON; NULL: there is none. */
static char *
json(Json in, const char *key)
{
	JsonbValue value;
	Jsonb *jsonb;

	if (!find(in, key, &value))
		return NULL;
	jsonb = JsonbValueToJsonb(&value);
	return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
}

/* Add to a text. */
static void
keep(OrchDelta *delta, StringInfo to, Json from, const char *key)
{
	char *text = string(from, key);

	if (text == NULL)
		return;
	delta->kept += strlen(text);
	appendStringInfoString(to, text);
}

/* The last one stands. */
static void
keep_string(OrchDelta *delta, char **to, Json from, const char *key)
{
	char *text = string(from, key);

	if (text == NULL || text[0] == '\0')
		return;
	if (*to == NULL)
		delta->kept += strlen(text);
	else
		pfree(*to);
	*to = MemoryContextStrdup(delta->context, text);
}

static void
keep_json(OrchDelta *delta, char **to, Json from, const char *key)
{
	char *text = json(from, key);

	if (text == NULL)
		return;
	if (*to != NULL)
		pfree(*to);
	*to = MemoryContextStrdup(delta->context, text);
}

/*
 * What the server says went wrong meanwhile: most of that may go well at
 * another time.
 */
static bool
read_error(OrchDelta *delta, Json event)
{
	Json error = object(event, "error");
	char *message =
		error != NULL ? string(error, "message") : string(event, "error");
	char *type = error != NULL ? string(error, "type") : NULL;

	if (error == NULL && message == NULL)
		return false;
	if (message == NULL)
		message = json(event, "error");
	fail(delta, "OR012",
		 type == NULL || strcmp(type, "invalid_request_error") != 0,
		 "the server ended its answer with an error: %s", message);
	return true;
}

/*
 * {"choices": [{"index": 0, "delta": {...}, "finish_reason": ...}], "usage": ...}
 */
static void
read_openai(OrchDelta *delta, Json event)
{
	Json choices = array(event, "choices");
	Json choice = choices == NULL ? NULL : element(choices, 0);
	Json part = choice == NULL ? NULL : object(choice, "delta");
	Json calls = part == NULL ? NULL : array(part, "tool_calls");

	keep_string(delta, &delta->model, event, "model");
	if (object(event, "usage") != NULL)
		keep_json(delta, &delta->usage, event, "usage");
	if (choice == NULL || number(choice, "index", 0) != 0)
		return;
	keep_string(delta, &delta->reason, choice, "finish_reason");
	if (part == NULL)
		return;
	keep(delta, &delta->text, part, "content");
	keep(delta, &delta->refusal, part, "refusal");
	for (int i = 0; calls != NULL && i < JsonContainerSize(calls); i++)
	{
		Json call = element(calls, i);

		if (call != NULL)
			read_openai_call(delta, call, i);
	}
}

static void
read_openai_call(OrchDelta *delta, Json part, int place)
{
	Called *call = find_call(delta, number(part, "index", place));
	Json function = object(part, "function");

	if (call == NULL)
		return;
	keep_string(delta, &call->id, part, "id");
	if (function == NULL)
		return;
	keep_string(delta, &call->name, function, "name");
	keep(delta, &call->arguments, function, "arguments");
}

/*
 * Blocks of text, and of tool calls whose arguments come as pieces of JSON.
 */
static void
read_anthropic(OrchDelta *delta, Json event)
{
	const char *type = string(event, "type");
	Json message = object(event, "message");
	Json block = object(event, "content_block");
	Json part = object(event, "delta");
	int32 index = number(event, "index", 0);
	Called *call = NULL;

	if (type == NULL)
		return;
	if (strcmp(type, "message_start") == 0 && message != NULL)
	{
		keep_string(delta, &delta->model, message, "model");
		read_anthropic_usage(delta, message);
	}
	else if (strcmp(type, "content_block_start") == 0 && block != NULL)
	{
		const char *kind = string(block, "type");

		if (kind != NULL && strcmp(kind, "tool_use") == 0)
			call = find_call(delta, index);
		else if (kind != NULL && strcmp(kind, "text") == 0)
			keep(delta, &delta->text, block, "text");
		if (call == NULL)
			return;
		keep_string(delta, &call->id, block, "id");
		keep_string(delta, &call->name, block, "name");
	}
	else if (strcmp(type, "content_block_delta") == 0 && part != NULL)
	{
		keep(delta, &delta->text, part, "text");
		call = string(part, "partial_json") == NULL ? NULL
													: find_call(delta, index);
		if (call != NULL)
			keep(delta, &call->arguments, part, "partial_json");
	}
	else if (strcmp(type, "message_delta") == 0)
	{
		if (part != NULL)
			keep_string(delta, &delta->reason, part, "stop_reason");
		read_anthropic_usage(delta, event);
	}
	else if (strcmp(type, "message_stop") == 0)
		delta->ended = true;
}

/*
 * The last numbers are the sums.
 */
static void
read_anthropic_usage(OrchDelta *delta, Json from)
{
	Json usage = object(from, "usage");

	if (usage == NULL)
		return;
	keep_json(delta, &delta->tokens_in, usage, "input_tokens");
	keep_json(delta, &delta->tokens_out, usage, "output_tokens");
}

/*
 * The last part says how much there was; tool calls come whole.
 */
static void
read_ollama(OrchDelta *delta, Json event)
{
	Json message = object(event, "message");
	Json calls = message == NULL ? NULL : array(message, "tool_calls");
	JsonbValue done;

	keep_string(delta, &delta->model, event, "model");
	if (message != NULL)
		keep(delta, &delta->text, message, "content");
	for (int i = 0; calls != NULL && i < JsonContainerSize(calls); i++)
	{
		Json call = element(calls, i);
		Json function = call == NULL ? NULL : object(call, "function");
		Called *called = function == NULL
							 ? NULL
							 : find_call(delta, list_length(delta->calls));
		char *arguments = called == NULL ? NULL : json(function, "arguments");

		if (called == NULL)
			continue;
		keep_string(delta, &called->id, call, "id");
		keep_string(delta, &called->name, function, "name");
		if (arguments == NULL)
			continue;
		delta->kept += strlen(arguments);
		appendStringInfoString(&called->arguments, arguments);
	}
	if (!find(event, "done", &done) || done.type != jbvBool ||
		!done.val.boolean)
		return;
	keep_string(delta, &delta->reason, event, "done_reason");
	keep_json(delta, &delta->tokens_in, event, "prompt_eval_count");
	keep_json(delta, &delta->tokens_out, event, "eval_count");
	delta->ended = true;
}

/*
 * The call of a number, which may be new.  NULL: there are too many.
 */
static Called *
find_call(OrchDelta *delta, int32 place)
{
	ListCell *cell;
	MemoryContext old;
	Called *call;

	foreach(cell, delta->calls)
	{
		call = lfirst(cell);
		if (call->place == place)
			return call;
	}
	if (list_length(delta->calls) == MOST_CALLS)
	{
		fail(delta, "OR013", false, "the answer has too many tool calls");
		return NULL;
	}
	old = MemoryContextSwitchTo(delta->context);
	call = palloc0(sizeof(Called));
	call->place = place;
	initStringInfo(&call->arguments);
	delta->calls = lappend(delta->calls, call);
	MemoryContextSwitchTo(old);
	return call;
}

/* ----------------------------------------------------------- put together */

Datum
orch_delta_answer(const OrchDelta *delta)
{
	StringInfoData answer;
	Datum result;

	initStringInfo(&answer);
	appendStringInfoString(&answer, "{\"model\": ");
	put_string(&answer, delta->model);
	switch (delta->provider)
	{
		case ORCH_PROVIDER_OPENAI:
			put_openai(delta, &answer);
			break;
		case ORCH_PROVIDER_ANTHROPIC:
			put_anthropic(delta, &answer);
			break;
		default:
			put_ollama(delta, &answer);
	}
	appendStringInfoChar(&answer, '}');
	result = DirectFunctionCall1(jsonb_in, CStringGetDatum(answer.data));
	pfree(answer.data);
	return result;
}

/* NULL: null. */
static void
put_string(StringInfo to, const char *text)
{
	if (text == NULL)
		appendStringInfoString(to, "null");
	else
		escape_json(to, text);
}

static void
put_member(StringInfo to, const char *key, const char *text)
{
	appendStringInfo(to, ", \"%s\": ", key);
	put_string(to, text);
}

/* NULL: 0. */
static void
put_tokens(StringInfo to, const char *key, const char *tokens)
{
	appendStringInfo(to, "\"%s\": %s", key, tokens == NULL ? "0" : tokens);
}

/*
 * In the form that OpenAI and Ollama share; arguments may be text or JSON.
 */
static void
put_calls(const OrchDelta *delta, StringInfo to)
{
	ListCell *cell;
	const char *between = "";

	if (delta->calls == NIL)
		return;
	appendStringInfoString(to, ", \"tool_calls\": [");
	foreach(cell, delta->calls)
	{
		const Called *call = lfirst(cell);

		appendStringInfo(to, "%s{\"id\": ", between);
		put_string(to, call->id);
		appendStringInfoString(to, ", \"function\": {\"name\": ");
		put_string(to, call->name);
		put_member(to, "arguments", call->arguments.data);
		appendStringInfoString(to, "}}");
		between = ", ";
	}
	appendStringInfoChar(to, ']');
}

static void
put_openai(const OrchDelta *delta, StringInfo to)
{
	bool silent = delta->text.len == 0 &&
				  (delta->calls != NIL || delta->refusal.len > 0);

	appendStringInfoString(to, ", \"choices\": [{\"message\": {\"content\": ");
	put_string(to, silent ? NULL : delta->text.data);
	if (delta->refusal.len > 0)
		put_member(to, "refusal", delta->refusal.data);
	put_calls(delta, to);
	appendStringInfoChar(to, '}');
	put_member(to, "finish_reason", delta->reason);
	appendStringInfo(to, "}], \"usage\": %s",
					 delta->usage == NULL ? "{}" : delta->usage);
}

static void
put_anthropic(const OrchDelta *delta, StringInfo to)
{
	ListCell *cell;
	const char *between = "";

	appendStringInfoString(to, ", \"content\": [");
	if (delta->text.len > 0)
	{
		appendStringInfoString(to, "{\"type\": \"text\"");
		put_member(to, "text", delta->text.data);
		appendStringInfoChar(to, '}');
		between = ", ";
	}
	foreach(cell, delta->calls)
	{
		const Called *call = lfirst(cell);

		appendStringInfo(to, "%s{\"type\": \"tool_use\"", between);
		put_member(to, "id", call->id);
		put_member(to, "name", call->name);
		put_member(to, "input", call->arguments.data);
		appendStringInfoChar(to, '}');
		between = ", ";
	}
	appendStringInfoChar(to, ']');
	put_member(to, "stop_reason", delta->reason);
	appendStringInfoString(to, ", \"usage\": {");
	put_tokens(to, "input_tokens", delta->tokens_in);
	appendStringInfoString(to, ", ");
	put_tokens(to, "output_tokens", delta->tokens_out);
	appendStringInfoChar(to, '}');
}

static void
put_ollama(const OrchDelta *delta, StringInfo to)
{
	appendStringInfoString(to, ", \"message\": {\"content\": ");
	put_string(to, delta->text.data);
	put_calls(delta, to);
	appendStringInfoChar(to, '}');
	put_member(to, "done_reason", delta->reason);
	appendStringInfoString(to, ", ");
	put_tokens(to, "prompt_eval_count", delta->tokens_in);
	appendStringInfoString(to, ", ");
	put_tokens(to, "eval_count", delta->tokens_out);
}
