/*
 * json.c
 *	  Building the small jsonb objects of the engine: errors, resources,
 *	  details of traces.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"

#include "json.h"

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

Datum
orch_json_end(JsonbParseState **state)
{
	JsonbValue *object = pushJsonbValue(state, WJB_END_OBJECT, NULL);

	return JsonbPGetDatum(JsonbValueToJsonb(object));
}
