/*
 * notice.h
 *	  Notices that a step raises, kept for its trace.
 */
#ifndef ORCHESTRATOR_NOTICE_H
#define ORCHESTRATOR_NOTICE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* One notice or warning, in the memory of the batch. */
typedef struct OrchNotice
{
	TimestampTz at;
	Datum detail; /* jsonb {level, sqlstate, message, ...} */
} OrchNotice;

/* Most notices kept of one step. */
#define ORCH_MAX_NOTICES 100

/* Call once, by the executor. */
extern void orch_notice_install(void);

/* Collect (orchestrator.trace_notices) from begin to end. */
extern void orch_notice_begin(void);
extern void orch_notice_end(void);

/*
 * What was collected since the last call: OrchNotice *, in the current memory
 * context.
 */
extern List *orch_notice_take(void);

#endif
