/*
 * call.c
 *	  An outside call: what is sent for a task, and what its answer means.
 *
 * What is sent was made of the task's input: no part of it may lead elsewhere
 * than the endpoint, or begin another header or request.  What comes back is
 * from anybody, and is kept only where it can be: as JSON, or as text.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "call.h"
#include "guc.h"
#include "json.h"
#include "url.h"

#define LONGEST_URL		 8000
#define LARGEST_HEADERS	 (64 * 1024)
#define LARGEST_BODY	 ((Size) 48 * 1024 * 1024) /* of any setting */
#define DETAIL_SIZE		 1000
#define LONGEST_DURATION ((int64) PG_INT32_MAX)

/* A request that is being put together. */
typedef struct Parts
{
	StringInfoData url;
	StringInfoData headers; /* lines, each with a zero at its end */
	int nheaders;
	bool has_type; /* Content-Type among them ... */
	bool is_json;  /* ... and it says JSON */
	char *method;
	char *body; /* NULL: none */
	Size body_size;
	Datum refusal; /* 0: none */
} Parts;

/* What the courier says itself, or libcurl does. */
static const char *const reserved[] = {
	"connection",		 "content-length", "expect", "host",
	"idempotency-key",	 "keep-alive",	   "te",	 "trailer",
	"transfer-encoding", "upgrade",
};

static Datum write_call(FrameBuffer *out, const OrchCallSpec *spec);
static Datum body_refusal(Size size);
static bool find(Jsonb *object, const char *key, JsonbValue *value);
static char *text_of(const JsonbValue *value);
static void refuse(Parts *parts, const char *message, const char *hint);
static void add_path(Parts *parts, Jsonb *request);
static void add_part(Parts *parts, const char *part);
static void add_query(Parts *parts, Jsonb *request);
static void add_parameter(Parts *parts, const char *name,
						  const JsonbValue *value);
static void encode(StringInfo to, const char *text);
static void add_headers(Parts *parts, Jsonb *request,
						const OrchEndpoint *endpoint);
static void add_header(Parts *parts, const char *name, const char *value);
static bool is_reserved(const char *name, const OrchEndpoint *endpoint);
static bool is_json_type(const char *type);
static void add_body(Parts *parts, Jsonb *request);
static void put(FrameBuffer *out, const OrchCallSpec *spec,
				const Parts *parts);
static char *secret_path(const char *secret);
static uint32 milliseconds(int64 value);
static char *copy_string(FrameString string);
static char *copy_message(FrameString string);
static Datum answer_error(const char *sqlstate, const char *message,
						  uint32 status, bool retry, uint32 retry_after,
						  const char *detail);
static bool blames_input(uint32 status);
static Datum no_answer(FrameResult how, bool begun, const char *message,
					   uint32 status, const char **outcome);
static Datum read_answer(FrameReader *frame, int ncalls, uint32 status,
						 FrameString body, const OrchDelta *parts,
						 const char **why);
static void push_headers(JsonbParseState **state, FrameReader *frame,
						 char **type);
static Datum read_body(FrameString body, const char *type, const char **why);
static Datum json_string(char *text);
static char *readable(FrameString body);

/* ------------------------------------------------------------- request */

static bool
find(Jsonb *object, const char *key, JsonbValue *value)
{
	return object != NULL && JB_ROOT_IS_OBJECT(object) &&
		   getKeyJsonValueFromContainer(&object->root, key, strlen(key),
										value) != NULL &&
		   value->type != jbvNull;
}

/*
 * A value as it stands in an URL or a header, in UTF-8.
 */
static char *
text_of(const JsonbValue *value)
{
	char *text;

	switch (value->type)
	{
		case jbvString:
			text = pnstrdup(value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			text = DatumGetCString(DirectFunctionCall1(
				numeric_out, NumericGetDatum(value->val.numeric)));
			break;
		case jbvBool:
			text = value->val.boolean ? "true" : "false";
			break;
		default:
		{
			Jsonb *json = JsonbValueToJsonb((JsonbValue *) value);

			text = JsonbToCString(NULL, &json->root, VARSIZE(json));
		}
	}
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/*
 * The first reason stands.
 */
static void
refuse(Parts *parts, const char *message, const char *hint)
{
	if (parts->refusal == 0)
		parts->refusal = orch_call_refusal("22023", message, hint);
}

Datum
orch_call_refusal(const char *sqlstate, const char *message, const char *hint)
{
	JsonbParseState *state;

	orch_json_begin(&state);
	orch_json_text(&state, "sqlstate", sqlstate);
	orch_json_text(&state, "message", message);
	if (hint != NULL)
		orch_json_text(&state, "hint", hint);
	orch_json_no_retry(&state);
	return orch_json_end(&state);
}

/*
 * Whatever is wrong with one request must not keep others from being sent.
 * Writing takes nothing that an error would leave behind but a part of a frame.
 */
Datum
orch_call_write(FrameBuffer *out, const OrchCallSpec *spec)
{
	MemoryContext context = CurrentMemoryContext;
	Size unsent = out->size - out->start;
	volatile Datum refusal = (Datum) 0;

	PG_TRY();
	{
		refusal = write_call(out, spec);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		out->size = out->start + unsent;
		refusal = orch_call_refusal(
			unpack_sql_state(error->sqlerrcode),
			psprintf("its request cannot be sent: %s", error->message),
			error->hint);
	}
	PG_END_TRY();
	return refusal;
}

static Datum
write_call(FrameBuffer *out, const OrchCallSpec *spec)
{
	Parts parts = {0};
	JsonbValue method;

	initStringInfo(&parts.url);
	initStringInfo(&parts.headers);
	appendStringInfoString(&parts.url, spec->endpoint->url);
	add_path(&parts, spec->request);
	add_query(&parts, spec->request);
	add_headers(&parts, spec->request, spec->endpoint);
	add_body(&parts, spec->request);
	parts.method = find(spec->request, "method", &method) ? text_of(&method)
				   : parts.body != NULL					  ? "POST"
														  : "GET";
	add_header(&parts, "Idempotency-Key", spec->key);
	if (spec->traceparent != NULL)
		add_header(&parts, "traceparent", spec->traceparent);
	if (parts.url.len > LONGEST_URL)
		refuse(&parts, "the URL is longer than 8000 bytes", NULL);
	if (parts.headers.len > LARGEST_HEADERS)
		refuse(&parts, "the headers are larger than 64 kB", NULL);
	if (parts.refusal == 0)
		parts.refusal = body_refusal(parts.body_size);
	if (!orch_endpoint_allowed(spec->endpoint))
		parts.refusal = orch_call_refusal(
			"42501",
			psprintf(
				"orchestrator.http_allow does not let endpoint \"%s\" be called",
				spec->endpoint->name),
			"It is a setting of the server.");
	if (parts.refusal == 0)
		put(out, spec, &parts);
	pfree(parts.url.data);
	pfree(parts.headers.data);
	return parts.refusal;
}

/*
 * Templates can make much of a small input.
 */
static Datum
body_refusal(Size size)
{
	Size most = Min((Size) orch_max_input_size * 2 * 1024, LARGEST_BODY);

	if (size <= most)
		return (Datum) 0;
	return orch_call_refusal(
		"54000",
		psprintf("the body of the request is larger than %zu kB", most / 1024),
		"It may be twice as large as orchestrator.max_input_size.");
}

bool
orch_call_streams(Jsonb *request, bool *shown)
{
	JsonbValue value;

	if (!find(request, "stream", &value) || value.type != jbvBool)
		return false;
	*shown = value.val.boolean;
	return true;
}

/*
 * A path as it is to be sent, or its parts, which may be anything.
 */
static void
add_path(Parts *parts, Jsonb *request)
{
	JsonbValue path;
	JsonbValue part;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	if (!find(request, "path", &path))
		return;
	if (path.type != jbvBinary)
	{
		char *text = text_of(&path);

		if (!orch_url_is_path(text))
			refuse(
				parts, "the path of the request cannot be sent",
				"It begins with /, and has no spaces or steps up. Give its parts as an array: they are encoded.");
		appendStringInfoString(&parts->url, text);
		return;
	}
	iterator = JsonbIteratorInit(path.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &part, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			add_part(parts, part.type == jbvNull ? "" : text_of(&part));
	}
}

static void
add_part(Parts *parts, const char *part)
{
	if (part[0] == '\0' || strcmp(part, ".") == 0 || strcmp(part, "..") == 0)
		refuse(parts, "a part of the path of the request is empty, . or ..",
			   NULL);
	appendStringInfoChar(&parts->url, '/');
	encode(&parts->url, part);
}

static void
encode(StringInfo to, const char *text)
{
	for (const unsigned char *at = (const unsigned char *) text; *at != '\0';
		 at++)
	{
		if ((*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') ||
			(*at >= '0' && *at <= '9') || strchr("-._~", *at) != NULL)
			appendStringInfoChar(to, *at);
		else
			appendStringInfo(to, "%%%02X", *at);
	}
}

/*
 * An array gives its parameter once for each value.
 */
static void
add_query(Parts *parts, Jsonb *request)
{
	JsonbValue query;
	JsonbValue item;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	char *name = NULL;

	if (!find(request, "query", &query))
		return;
	if (query.type != jbvBinary ||
		!JsonContainerIsObject(query.val.binary.data))
	{
		refuse(parts, "the query of the request is not an object", NULL);
		return;
	}
	iterator = JsonbIteratorInit(query.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = text_of(&item);
		else if (token == WJB_VALUE && item.type == jbvBinary &&
				 JsonContainerIsArray(item.val.binary.data))
		{
			JsonbIterator *inner = JsonbIteratorInit(item.val.binary.data);
			JsonbValue each;

			while ((token = JsonbIteratorNext(&inner, &each, true)) !=
				   WJB_DONE)
			{
				if (token == WJB_ELEM)
					add_parameter(parts, name, &each);
			}
		}
		else if (token == WJB_VALUE)
			add_parameter(parts, name, &item);
	}
}

static void
add_parameter(Parts *parts, const char *name, const JsonbValue *value)
{
	if (value->type == jbvNull)
		return;
	appendStringInfoChar(&parts->url,
						 strchr(parts->url.data, '?') == NULL ? '?' : '&');
	encode(&parts->url, name);
	appendStringInfoChar(&parts->url, '=');
	encode(&parts->url, text_of(value));
}

static void
add_headers(Parts *parts, Jsonb *request, const OrchEndpoint *endpoint)
{
	JsonbValue headers;
	JsonbValue item;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	char *name = NULL;

	if (!find(request, "headers", &headers))
		return;
	if (headers.type != jbvBinary ||
		!JsonContainerIsObject(headers.val.binary.data))
	{
		refuse(parts, "the headers of the request are not an object", NULL);
		return;
	}
	iterator = JsonbIteratorInit(headers.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &item, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = text_of(&item);
		if (token != WJB_VALUE || item.type == jbvNull)
			continue;
		if (is_reserved(name, endpoint))
			refuse(parts, psprintf("header \"%s\" cannot be set", name),
				   "The courier sends it as the endpoint says.");
		add_header(parts, name, text_of(&item));
	}
}

/*
 * A line end in a value would begin another header.
 */
static void
add_header(Parts *parts, const char *name, const char *value)
{
	Size size = strlen(name);
	bool good =
		size > 0 &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					 "0123456789!#$%&'*+-.^_`|~") == size;

	for (const unsigned char *at = (const unsigned char *) value; *at != '\0';
		 at++)
		good = good && (*at >= ' ' || *at == '\t') && *at != 0x7f;
	if (!good)
	{
		refuse(
			parts, "a header of the request cannot be sent",
			"Its name has letters, digits and -, its value no control characters.");
		return;
	}
	if (pg_strcasecmp(name, "Content-Type") == 0)
	{
		parts->has_type = true;
		parts->is_json = is_json_type(value);
	}
	/* libcurl takes a line without a value for one to be left out */
	appendStringInfo(&parts->headers, value[0] == '\0' ? "%s;" : "%s: %s",
					 name, value);
	appendStringInfoChar(&parts->headers, '\0');
	parts->nheaders++;
}

static bool
is_reserved(const char *name, const OrchEndpoint *endpoint)
{
	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (pg_strcasecmp(name, reserved[i]) == 0)
			return true;
	}
	if (pg_strncasecmp(name, "proxy-", 6) == 0)
		return true;
	if (endpoint->provider == ORCH_PROVIDER_WEBHOOK)
		return pg_strncasecmp(name, "webhook-", 8) == 0;
	return endpoint->secret != NULL &&
		   pg_strcasecmp(name, endpoint->secret_header) == 0;
}

static bool
is_json_type(const char *type)
{
	Size size = strcspn(type, "; ");

	return (size == 16 && pg_strncasecmp(type, "application/json", 16) == 0) ||
		   (size > 5 && pg_strncasecmp(type + size - 5, "+json", 5) == 0);
}

/*
 * JSON, unless it is a string of a type that is not.
 */
static void
add_body(Parts *parts, Jsonb *request)
{
	JsonbValue body;
	char *text;

	if (!find(request, "body", &body))
		return;
	if (body.type == jbvString && parts->has_type && !parts->is_json)
		parts->body = text_of(&body);
	else
	{
		Jsonb *json = JsonbValueToJsonb(&body);

		text = JsonbToCString(NULL, &json->root, VARSIZE(json));
		parts->body = pg_server_to_any(text, strlen(text), PG_UTF8);
	}
	parts->body_size = strlen(parts->body);
	if (!parts->has_type)
		add_header(parts, "Content-Type", "application/json");
}

static void
put(FrameBuffer *out, const OrchCallSpec *spec, const Parts *parts)
{
	const OrchEndpoint *endpoint = spec->endpoint;
	const char *line = parts->headers.data;
	int64 timeout = spec->timeout > 0 ? Min(spec->timeout, endpoint->timeout)
									  : endpoint->timeout;
	bool is_webhook = endpoint->provider == ORCH_PROVIDER_WEBHOOK;
	bool shown;
	bool streams = orch_call_streams(spec->request, &shown);

	frame_begin(out, FRAME_CALL);
	frame_u64(out, spec->number);
	frame_u32(out, (endpoint->allow_private ? FRAME_ALLOW_PRIVATE : 0) |
					   (endpoint->compressed ? FRAME_COMPRESSED : 0) |
					   (parts->body != NULL ? FRAME_HAS_BODY : 0) |
					   (is_webhook ? FRAME_WEBHOOK : 0) |
					   (streams ? FRAME_STREAM : 0));
	frame_u32(out, milliseconds(timeout));
	frame_u32(out, milliseconds(endpoint->connect_timeout));
	frame_u32(out, milliseconds(spec->silence));
	frame_u64(out, Min(endpoint->max_response * Max(spec->ncalls, 1),
					   ORCH_LARGEST_RESPONSE));
	frame_text(out, parts->method);
	frame_text(out, parts->url.data);
	frame_text(out, endpoint->host);
	frame_bytes(out, parts->body, parts->body_size);
	frame_text(out, secret_path(endpoint->secret));
	frame_text(out, endpoint->secret_header);
	frame_text(out, endpoint->secret_prefix);
	frame_text(out, is_webhook ? spec->key : NULL);
	frame_text(out, endpoint->ca_file);
	frame_u32(out, parts->nheaders);
	for (int i = 0; i < parts->nheaders; i++)
	{
		frame_text(out, line);
		line += strlen(line) + 1;
	}
	frame_end(out);
}

/*
 * Without a folder none can be read, which its program says.
 */
static char *
secret_path(const char *secret)
{
	const char *folder = orch_secrets_directory;

	if (secret == NULL)
		return NULL;
	if (folder[0] == '\0')
		return psprintf("/nonexistent/%s", secret);
	return is_absolute_path(folder)
			   ? psprintf("%s/%s", folder, secret)
			   : psprintf("%s/%s/%s", DataDir, folder, secret);
}

static uint32
milliseconds(int64 value)
{
	return (uint32) Min(Max(value, 0), LONGEST_DURATION);
}

/* -------------------------------------------------------------- answer */

static char *
copy_string(FrameString string)
{
	return pnstrdup(string.data, string.size);
}

/*
 * It may quote what a server said of itself, and be cut off within a character.
 */
static char *
copy_message(FrameString string)
{
	char *message = copy_string(string);

	for (char *at = message; *at != '\0'; at++)
	{
		if (*at < ' ' || *at > '~')
			*at = '?';
	}
	return message;
}

const char *
orch_call_read(FrameReader *frame, int ncalls, OrchDelta *parts, Datum *result,
			   bool *too_many)
{
	FrameResult how = (FrameResult) frame_read_u32(frame);
	uint32 status = frame_read_u32(frame);
	uint32 retry_after = frame_read_u32(frame);
	bool begun = parts != NULL && orch_delta_begun(parts);
	const char *outcome = "error";
	const char *why = NULL;
	char *message;
	FrameString body;

	(void) frame_read_u64(frame); /* how long it took */
	message = copy_message(frame_read_string(frame));
	body = frame_read_string(frame);
	*too_many =
		ncalls > 1 && (how == RESULT_TOO_LARGE ||
					   (how == RESULT_ANSWERED && blames_input(status)));
	if (begun && orch_delta_finish(parts))
		how = RESULT_ANSWERED; /* however its transfer ended */
	else if (begun && how == RESULT_ANSWERED)
	{
		how = RESULT_BROKEN;
		message = "it is not complete";
	}
	if (begun && orch_delta_error(parts) != NULL)
		*result = orch_call_useless(parts);
	else if (how != RESULT_ANSWERED)
		*result = no_answer(how, begun, message, status, &outcome);
	else if (status < 200 || status >= 300)
		*result = answer_error(
			"OR012", psprintf("the answer has HTTP status %u", status), status,
			status >= 500 || status == 408 || status == 425 || status == 429,
			retry_after, readable(body));
	else
	{
		*result = read_answer(frame, ncalls, status, body,
							  begun ? parts : NULL, &why);
		if (why == NULL)
			return "completed";
		*result = answer_error("OR013", why, status, false, 0, NULL);
	}
	return outcome;
}

static Datum
no_answer(FrameResult how, bool begun, const char *message, uint32 status,
		  const char **outcome)
{
	switch (how)
	{
		case RESULT_TIMED_OUT:
			*outcome = "timeout";
			return answer_error("OR004",
								psprintf("no answer in time: %s", message), 0,
								true, 0, NULL);
		case RESULT_TOO_LARGE:
			return answer_error("OR013", message, status, false, 0, NULL);
		case RESULT_REFUSED:
		case RESULT_UNTRUSTED:
			return answer_error("OR012",
								psprintf("the call was not made: %s", message),
								0, false, 0, NULL);
		default:
			return answer_error("OR012",
								psprintf(begun
											 ? "the answer ended too early: %s"
											 : "no answer: %s",
										 message),
								0, true, 0, NULL);
	}
}

Datum
orch_call_useless(const OrchDelta *parts)
{
	const OrchDeltaError *error = orch_delta_error(parts);

	return answer_error(error->sqlstate, error->message, 0, error->retry, 0,
						NULL);
}

/*
 * 400 Bad Request, 413 Content Too Large, 422 Unprocessable Content.
 */
static bool
blames_input(uint32 status)
{
	return status == 400 || status == 413 || status == 422;
}

static Datum
answer_error(const char *sqlstate, const char *message, uint32 status,
			 bool retry, uint32 retry_after, const char *detail)
{
	JsonbParseState *state;

	orch_json_begin(&state);
	orch_json_text(&state, "sqlstate", sqlstate);
	orch_json_text(&state, "message", message);
	if (status != 0)
		orch_json_number(&state, "status", status);
	if (retry_after != 0)
		orch_json_number(&state, "retry_after", retry_after);
	if (detail != NULL)
		orch_json_text(&state, "detail", detail);
	if (!retry)
		orch_json_no_retry(&state);
	return orch_json_end(&state);
}

/*
 * {"status": n, "headers": {...}, "body": ...}
 */
static Datum
read_answer(FrameReader *frame, int ncalls, uint32 status, FrameString body,
			const OrchDelta *parts, const char **why)
{
	JsonbParseState *state;
	char *type = NULL;
	Datum value;
	Datum answer;

	orch_json_begin(&state);
	orch_json_number(&state, "status", status);
	push_headers(&state, frame, &type);
	value =
		parts != NULL ? orch_delta_answer(parts) : read_body(body, type, why);
	if (*why != NULL)
		return (Datum) 0;
	orch_json_value(&state, "body", value);
	answer = orch_json_end(&state);
	if (VARSIZE(DatumGetPointer(answer)) >
		(Size) orch_max_input_size * 1024 * ncalls)
		*why = psprintf("the answer is larger than %d kB "
						"(orchestrator.max_input_size)",
						orch_max_input_size);
	return answer;
}

/*
 * Names in small letters; of several of a name the last.  What is not text
 * is left out.
 */
static void
push_headers(JsonbParseState **state, FrameReader *frame, char **type)
{
	uint32 n = frame_read_u32(frame);
	JsonbParseState *headers;

	orch_json_begin(&headers);
	for (uint32 i = 0; i < n && !frame->bad; i++)
	{
		char *name = copy_string(frame_read_string(frame));
		char *value = copy_string(frame_read_string(frame));
		bool plain = true;

		for (char *at = name; *at != '\0'; at++)
		{
			plain = plain && *at > ' ' && *at < 0x7f;
			*at = pg_ascii_tolower(*at);
		}
		for (char *at = value; *at != '\0'; at++)
			plain = plain && !IS_HIGHBIT_SET(*at);
		if (!plain || name[0] == '\0')
			continue;
		orch_json_text(&headers, name, value);
		if (strcmp(name, "content-type") == 0)
			*type = value;
	}
	orch_json_value(state, "headers", orch_json_end(&headers));
}

/*
 * JSON where its type says so, or text.  Reading it takes nothing that an
 * error would leave behind, so no subtransaction is needed.
 */
static Datum
read_body(FrameString body, const char *type, const char **why)
{
	MemoryContext context = CurrentMemoryContext;
	bool json = type != NULL && is_json_type(type);
	volatile Datum value = (Datum) 0;

	if (body.size == 0)
		return DirectFunctionCall1(jsonb_in, CStringGetDatum("null"));
	PG_TRY();
	{
		char *text;

		text = pg_any_to_server(copy_string(body), body.size, PG_UTF8);
		value = json ? DirectFunctionCall1(jsonb_in, CStringGetDatum(text))
					 : json_string(text);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		*why = psprintf(json ? "the answer is not the JSON that it says: %s"
							 : "the answer is not text: %s",
						error->message);
	}
	PG_END_TRY();
	return value;
}

static Datum
json_string(char *text)
{
	JsonbValue value = {.type = jbvString};

	value.val.string.val = text;
	value.val.string.len = strlen(text);
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

/*
 * The beginning of a body, if it is text, to say more of an error.
 */
static char *
readable(FrameString body)
{
	int size = Min(body.size, DETAIL_SIZE);

	if (size == 0 || memchr(body.data, '\0', size) != NULL)
		return NULL;
	size = pg_encoding_mbcliplen(PG_UTF8, body.data, size, DETAIL_SIZE);
	if (!pg_verify_mbstr(PG_UTF8, body.data, size, true) ||
		GetDatabaseEncoding() != PG_UTF8)
		return NULL;
	return pnstrdup(body.data, size);
}
