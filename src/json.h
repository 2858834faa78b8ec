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
extern void orch_json_no_retry(JsonbParseState **state); /* of an error */
extern Datum orch_json_end(JsonbParseState **state);

/*
 * A path over a document.  One that only goes from member to member is
 * followed by us, several times faster than SQL/JSON would.
 */
typedef struct OrchPath OrchPath;

/* Compile a path that is known to parse; kept in the memory context. */
extern OrchPath *orch_json_path(const char *text, MemoryContext context);

/*
 * What a path finds first, as text in the current memory context: strings
 * without quotes.  NULL: nothing, or a JSON null.  Raises what SQL/JSON does
 * for documents that a strict path does not fit.
 */
extern char *orch_json_find(OrchPath *path, Datum document);

/* Add a value to an array begun with pushJsonbValue(). */
extern void orch_json_element(JsonbParseState **state, Jsonb *value);

#endif
