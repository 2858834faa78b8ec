/*
 * item.h
 *	  What a handler that takes many inputs says of one of them.
 */
#ifndef ORCHESTRATOR_ITEM_H
#define ORCHESTRATOR_ITEM_H

#include "utils/jsonb.h"

/*
 * Whether an element of the result of a call is no output but an error, as
 * item_error() makes it: {"orchestrator.error": {...}}.  Then error is what
 * the task is to have, in the current memory context.
 */
extern bool orch_item_error(Jsonb *element, Datum *error);

#endif
