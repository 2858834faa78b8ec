/*
 * json.c
 *	  Building the small jsonb objects of the engine: errors, resources,
 *	  details of traces; and following a path in one.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "json.h"

struct OrchPath
{
	MemoryContext context;
	const char *text;
	Datum path; /* jsonpath; 0: not needed yet */
	Datum variables;
	int nmembers; /* of a plain path */
	char **members;
};

static bool is_plain_path(const char *text, int *n);
static void compile(OrchPath *path);
static Datum find_first(OrchPath *path, Datum document);
static bool follow_members(const OrchPath *path, Jsonb *document,
						   char **found);
static char *document_text(Jsonb *document);
static char *value_text(JsonbValue *value);
static void push_key(JsonbParseState **state, const char *key);
static void push_jsonb(JsonbParseState **state, JsonbIteratorToken place,
					   Jsonb *jsonb);

void
orch_json_begin(JsonbParseState **state)
{
	*state = NULL;
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
}

static void
push_key(JsonbParseState **state, const char *key)
{
	JsonbValue value;

	value.type = jbvString;
	value.val.string.val = pstrdup(key);
	value.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &value);
}

/*
 * A text, cut to ORCH_JSON_TEXT_SIZE; NULL becomes null.
 */
void
orch_json_text(JsonbParseState **state, const char *key, const char *text)
{
	JsonbValue value;

	push_key(state, key);
	value.type = jbvNull;
	if (text != NULL)
	{
		int length = pg_mbcliplen(text, strlen(text), ORCH_JSON_TEXT_SIZE);

		value.type = jbvString;
		value.val.string.len = length;
		value.val.string.val = pnstrdup(text, length);
	}
	pushJsonbValue(state, WJB_VALUE, &value);
}

void
orch_json_number(JsonbParseState **state, const char *key, double number)
{
	JsonbValue value;

	push_key(state, key);
	value.type = jbvNumeric;
	value.val.numeric = DatumGetNumeric(
		DirectFunctionCall1(float8_numeric, Float8GetDatum(number)));
	pushJsonbValue(state, WJB_VALUE, &value);
}

/*
 * A jsonb value as it is.
 */
void
orch_json_value(JsonbParseState **state, const char *key, Datum value)
{
	push_key(state, key);
	push_jsonb(state, WJB_VALUE, DatumGetJsonbP(value));
}

void
orch_json_element(JsonbParseState **state, Jsonb *value)
{
	push_jsonb(state, WJB_ELEM, value);
}

static void
push_jsonb(JsonbParseState **state, JsonbIteratorToken place, Jsonb *jsonb)
{
	JsonbValue value;

	JsonbToJsonbValue(jsonb, &value);
	pushJsonbValue(state, place, &value);
}

/*
 * What orchestrator._end_attempt() looks for.
 */
void
orch_json_no_retry(JsonbParseState **state)
{
	JsonbValue value = {.type = jbvBool};

	value.val.boolean = false;
	push_key(state, "retry");
	pushJsonbValue(state, WJB_VALUE, &value);
}

Datum
orch_json_end(JsonbParseState **state)
{
	JsonbValue *object = pushJsonbValue(state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(object));
}

/*
 * Whether a path is $.name.name; counts the names.
 */
static bool
is_plain_path(const char *text, int *n)
{
	const char *at = text;

	*n = 0;
	if (*at++ != '$')
		return false;
	while (*at == '.')
	{
		Size length = strspn(++at, "abcdefghijklmnopqrstuvwxyz"
								   "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");

		if (length > 0)
			length += strspn(at + length, "0123456789");

		if (length == 0 || at[length] == '(')
			return false;
		at += length;
		(*n)++;
	}
	return *at == '\0' && *n > 0;
}

OrchPath *
orch_json_path(const char *text, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	OrchPath *path = palloc0(sizeof(OrchPath));

	if (is_plain_path(text, &path->nmembers))
	{
		char *copy = pstrdup(text);
		char *rest = NULL;
		int i = 0;

		path->members = palloc(path->nmembers * sizeof(char *));
		for (char *name = strtok_r(copy + 1, ".", &rest); name != NULL;
			 name = strtok_r(NULL, ".", &rest))
			path->members[i++] = name;
	}
	path->context = context;
	path->text = pstrdup(text);
	MemoryContextSwitchTo(old);
	return path;
}

char *
orch_json_find(OrchPath *path, Datum document)
{
	char *text;
	Datum found;

	if (path->nmembers > 0 &&
		follow_members(path, DatumGetJsonbP(document), &text))
		return text;
	found = find_first(path, document);
	return found == (Datum) 0 ? NULL : document_text(DatumGetJsonbP(found));
}

static void
compile(OrchPath *path)
{
	MemoryContext old = MemoryContextSwitchTo(path->context);

	path->path = DirectFunctionCall1(jsonpath_in, CStringGetDatum(path->text));
	path->variables = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	MemoryContextSwitchTo(old);
}

static Datum
find_first(OrchPath *path, Datum document)
{
	LOCAL_FCINFO(fcinfo, 4);
	Datum found;

	if (path->path == (Datum) 0)
		compile(path);
	InitFunctionCallInfoData(*fcinfo, NULL, 4, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = document;
	fcinfo->args[1].value = path->path;
	fcinfo->args[2].value = path->variables;
	fcinfo->args[3].value = BoolGetDatum(true); /* silent */
	for (int i = 0; i < 4; i++)
		fcinfo->args[i].isnull = false;
	found = jsonb_path_query_first(fcinfo);
	return fcinfo->isnull ? (Datum) 0 : found;
}

/*
 * From object to object; false: there is an array on the way, of which a lax
 * path looks at the elements.
 */
static bool
follow_members(const OrchPath *path, Jsonb *document, char **found)
{
	JsonbContainer *container = &document->root;
	JsonbValue value = {.type = jbvNull};

	*found = NULL;
	for (int i = 0; i < path->nmembers; i++)
	{
		if (JsonContainerIsArray(container))
			return JsonContainerIsScalar(container);
		if (getKeyJsonValueFromContainer(container, path->members[i],
										 strlen(path->members[i]),
										 &value) == NULL)
			return true;
		if (i == path->nmembers - 1)
			break;
		if (value.type != jbvBinary)
			return true;
		container = value.val.binary.data;
	}
	*found = value_text(&value);
	return true;
}

static char *
document_text(Jsonb *document)
{
	JsonbValue value;

	if (JB_ROOT_IS_SCALAR(document) &&
		JsonbExtractScalar(&document->root, &value))
		return value_text(&value);
	return JsonbToCString(NULL, &document->root, VARSIZE(document));
}

static char *
value_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return NULL;
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(
				numeric_out, NumericGetDatum(value->val.numeric)));
		default:
			return JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, 64);
	}
}
