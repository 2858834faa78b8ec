/*
 * json.h
 *	  Building the small jsonb objects of the engine: errors, resources,
 *	  details of traces.
 */
#ifndef ORCHESTRATOR_JSON_H
#define ORCHESTRATOR_JSON_H

#include "utils/jsonb.h"

/* Bytes kept of a text. */
#define ORCH_JSON_TEXT_SIZE 1024

/* Begin an object; add to it; end it.  All in the current memory context. */
extern void orch_json_begin(JsonbParseState **state);
extern void orch_json_text(JsonbParseState **state, const char *key,
						   const char *text);
extern void orch_json_number(JsonbParseState **state, const char *key,
							 double number);
extern void orch_json_value(JsonbParseState **state, const char *key,
							Datum value);
extern Datum orch_json_end(JsonbParseState **state);

/* Add a value to an array begun with pushJsonbValue(). */
extern void orch_json_element(JsonbParseState **state, Jsonb *value);

#endif
