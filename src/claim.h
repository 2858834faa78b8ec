/*
 * claim.h
 *	  Taking ready tasks: the second station of the flow.
 */
#ifndef ORCHESTRATOR_CLAIM_H
#define ORCHESTRATOR_CLAIM_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "catalog.h"
#include "heap.h"
#include "shmem.h"

/*
 * Steps that wrote, in one transaction: PGPROC keeps 64 subtransactions, and
 * a transaction with more slows every other session's snapshots.
 */
#define ORCH_WRITTEN_STEPS 50

typedef enum OrchOutcome
{
	ORCH_OUTCOME_NONE, /* not run yet; next: any other */
	ORCH_OUTCOME_COMPLETED,
	ORCH_OUTCOME_FAILED, /* by an error or its time limit */
	ORCH_OUTCOME_GONE	 /* no longer ours: cancelled, taken back, stale */
} OrchOutcome;

/* A claimed task and what became of it. */
typedef struct OrchTask
{
	OrchRow row;		 /* the running version */
	ItemPointerData tid; /* where it is, unless in the fast lane */
	const OrchDefinition *definition; /* copied to the batch; NULL: gone */
	OrchOutcome outcome;
	const char *reason; /* of failure: error or timeout */
	bool has_output;
	bool has_resources;
	Datum output;
	Datum error;
	Datum resources;
	TimestampTz started_at; /* of the step itself */
	TimestampTz finished_at;
	List *notices; /* OrchNotice *, raised by the step */
} OrchTask;

/* What an executor took at once. */
typedef struct OrchBatch
{
	MemoryContext context; /* reset for each batch */
	bool fast;			   /* claimed in the steps' own transaction */
	bool solo;			   /* a batch failed as a whole: one by one, please */
	bool left_behind;	   /* the claim met rows locked by others */
	int lane;
	int64 from; /* mark at the begin of the claim */
	int ntasks;
	OrchTask tasks[ORCH_MAX_CLAIM];
} OrchBatch;

/*
 * Take ready tasks of a lane in the current transaction: rows become running,
 * or in the fast lane leave the leaf.  The slot's claims say what was taken.
 * Returns how many; sets batch->fast.  If the transaction aborts, the caller
 * calls orch_lane_abort with batch->lane and batch->from.
 */
extern int orch_claim_batch(OrchExecutor *executor, int lane,
							OrchBatch *batch);

/* The executor is about to start a claimed task; false: it was taken back. */
extern bool orch_claim_start(OrchExecutor *executor, int number);

/* The claim was committed: its tasks may be taken back from now on. */
extern void orch_claim_committed(OrchExecutor *executor, int n);

/* A claimed task was settled or given up. */
extern void orch_claim_free(OrchExecutor *executor, int number);

/* Whether a step is known to take longer than a transaction should, or is not
 * known at all. */
extern bool orch_claim_is_slow(const OrchTask *task);

/* How long a step of a definition took, in microseconds, and whether it wrote. */
extern void orch_claim_measured(int32 definition, int64 duration, bool wrote);

#endif
