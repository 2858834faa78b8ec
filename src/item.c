/*
 * item.c
 *	  What a handler that takes many inputs says of one of them.
 *
 * An element of its result is the output of an item, or an object whose only
 * key is "orchestrator.error".
 */
#include "postgres.h"

#include <ctype.h>

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "item.h"
#include "json.h"

#define ERROR_KEY "orchestrator.error"

#define DEFAULT_SQLSTATE "P0001" /* raise_exception */

PG_FUNCTION_INFO_V1(orchestrator_item_error);

static bool is_sqlstate(const char *text);
static const char *text_of(Jsonb *object, const char *key);

/*
 * item_error(message, sqlstate, retry)
 */
Datum
orchestrator_item_error(PG_FUNCTION_ARGS)
{
	JsonbParseState *state;
	char *code = PG_ARGISNULL(1) ? DEFAULT_SQLSTATE
								 : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char *message =
		PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum error;

	if (!is_sqlstate(code))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not the SQLSTATE of an error", code),
				 errhint("Say five digits or capital letters, like 23505.")));
	orch_json_begin(&state);
	orch_json_text(&state, "sqlstate", code);
	orch_json_text(&state, "message", message);
	if (!PG_ARGISNULL(2) && !PG_GETARG_BOOL(2))
		orch_json_no_retry(&state);
	error = orch_json_end(&state);
	orch_json_begin(&state);
	orch_json_value(&state, ERROR_KEY, error);
	PG_RETURN_DATUM(orch_json_end(&state));
}

static bool
is_sqlstate(const char *text)
{
	if (strlen(text) != 5 || strncmp(text, "00", 2) == 0)
		return false;
	for (const char *c = text; *c != '\0'; c++)
	{
		if (!isdigit((unsigned char) *c) && (*c < 'A' || *c > 'Z'))
			return false;
	}
	return true;
}

/*
 * One that was made by hand may say less than item_error() does.
 */
bool
orch_item_error(Jsonb *element, Datum *error)
{
	JsonbParseState *state;
	JsonbValue buffer;
	JsonbValue *value;
	Jsonb *given;
	const char *code;
	const char *message;
	const char *retry;

	if (!JB_ROOT_IS_OBJECT(element) || JB_ROOT_COUNT(element) != 1)
		return false;
	value = getKeyJsonValueFromContainer(&element->root, ERROR_KEY,
										 strlen(ERROR_KEY), &buffer);
	if (value == NULL)
		return false;
	given = JsonbValueToJsonb(value);
	code = text_of(given, "sqlstate");
	message = text_of(given, "message");
	retry = text_of(given, "retry");
	orch_json_begin(&state);
	orch_json_text(&state, "sqlstate",
				   code != NULL && is_sqlstate(code) ? code
													 : DEFAULT_SQLSTATE);
	orch_json_text(&state, "message",
				   message != NULL ? message : "the handler refused the item");
	if (retry != NULL && strcmp(retry, "false") == 0)
		orch_json_no_retry(&state);
	*error = orch_json_end(&state);
	return true;
}

/*
 * The text, or true or false, at a key of an object; NULL: it has none.
 */
static const char *
text_of(Jsonb *object, const char *key)
{
	JsonbValue buffer;
	JsonbValue *value;

	if (!JB_ROOT_IS_OBJECT(object))
		return NULL;
	value =
		getKeyJsonValueFromContainer(&object->root, key, strlen(key), &buffer);
	if (value == NULL)
		return NULL;
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value->type == jbvBool)
		return value->val.boolean ? "true" : "false";
	return NULL;
}
