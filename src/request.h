/*
 * request.h
 *	  What a running step asks of its run: more steps, context, checkpoints.
 */
#ifndef ORCHESTRATOR_REQUEST_H
#define ORCHESTRATOR_REQUEST_H

#include "fmgr.h"

/* Register the callbacks.  Called once, by the executor. */
extern void orch_request_install(void);

/* An attempt begins: forget what others asked for. */
extern void orch_request_begin(void);

/*
 * What the attempt asked for, as a jsonb array of {"verb": ..., arguments} in
 * the current memory context; 0: nothing.  Forgets it.
 */
extern Datum orch_request_take(void);

/*
 * While closed, requests are refused with the caller's name: what is
 * remembered and not repeated must not ask.  Returns what it was before.
 */
extern const char *orch_request_close(const char *caller);

/* The argument that names a checkpoint, step or signal; raises if it cannot. */
extern char *orch_request_name(FunctionCallInfo fcinfo, int n,
							   const char *what);

#endif
