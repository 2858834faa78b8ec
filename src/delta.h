/*
 * delta.h
 *	  A model's answer that comes in parts.
 *
 * Parts are bytes, cut anywhere.  They are put together to the answer that the
 * provider would have given in one piece, so that what reads answers need not
 * know how they came.
 */
#ifndef ORCHESTRATOR_DELTA_H
#define ORCHESTRATOR_DELTA_H

#include "endpoint.h"

typedef struct OrchDelta OrchDelta;

/*
 * Begin an answer; most: bytes that are kept of it.  All is in a memory context
 * of its own, below the one given.  NULL: the provider has no such form.
 */
extern OrchDelta *orch_delta_begin(MemoryContext context,
								   OrchProvider provider, Size most);
extern void orch_delta_free(OrchDelta *delta);

/*
 * The next part, in a transaction.  False: the answer is of no use, and
 * nothing that follows changes that.
 */
extern bool orch_delta_add(OrchDelta *delta, const char *data, Size size);

/* Whether a part has come. */
extern bool orch_delta_begun(const OrchDelta *delta);

/* No part follows, in a transaction: whether the answer is all there. */
extern bool orch_delta_finish(OrchDelta *delta);

/* The text that has come since the last call; stays until the next part. */
extern const char *orch_delta_text(OrchDelta *delta, Size *size);

/* Why it is of no use; NULL: it is not. */
typedef struct OrchDeltaError
{
	const char *sqlstate;
	const char *message;
	bool retry;
} OrchDeltaError;

extern const OrchDeltaError *orch_delta_error(const OrchDelta *delta);

/* The answer as jsonb, in the current memory context. */
extern Datum orch_delta_answer(const OrchDelta *delta);

#endif
