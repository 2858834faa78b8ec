/*
 * call.h
 *	  An outside call: what is sent for a task, and what its answer means.
 */
#ifndef ORCHESTRATOR_CALL_H
#define ORCHESTRATOR_CALL_H

#include "utils/jsonb.h"

#include "delta.h"
#include "endpoint.h"
#include "frame.h"

/* What _claim_call_lane() says of a call. */
typedef struct OrchCallSpec
{
	uint64 number; /* of the courier's */
	int ncalls;	   /* that it is made for; 0: one */
	const OrchEndpoint *endpoint;
	Jsonb *request;
	int64 timeout; /* milliseconds; 0: the endpoint's */
	int64 silence; /* likewise; 0: any */
	const char *key;
	const char *traceparent; /* NULL: none */
} OrchCallSpec;

/*
 * Write the frame of a call.  Returns NULL, or why it cannot be made: an error
 * as _settle_calls() takes it; then no frame is written.
 */
extern Datum orch_call_write(FrameBuffer *out, const OrchCallSpec *spec);

/* An error that is final. */
extern Datum orch_call_refusal(const char *sqlstate, const char *message,
							   const char *hint);

/* Whether a request asks for an answer in parts, and who reads along may see
 * them. */
extern bool orch_call_streams(Jsonb *request, bool *shown);

/*
 * Read what FRAME_DONE says behind the number of a call that was made for so
 * many, and of whose answer parts may have come before (NULL: none can).
 * Returns the outcome, as _settle_calls() takes it, and the result or error.
 * too_many: made for fewer, some of them may succeed.
 */
extern const char *orch_call_read(FrameReader *frame, int ncalls,
								  OrchDelta *parts, Datum *result,
								  bool *too_many);

/* The error of an answer whose parts are of no use. */
extern Datum orch_call_useless(const OrchDelta *parts);

#endif
