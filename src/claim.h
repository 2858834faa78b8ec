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

/* Tasks of a batch with the steps it went straight on to. */
#define ORCH_MAX_BATCH 1000

typedef enum OrchOutcome
{
	ORCH_OUTCOME_NONE, /* not run yet; next: any other */
	ORCH_OUTCOME_COMPLETED,
	ORCH_OUTCOME_FAILED,	/* by an error or its time limit */
	ORCH_OUTCOME_SUSPENDED, /* a procedure waits for a time or a signal */
	ORCH_OUTCOME_GONE		/* no longer ours: cancelled, taken back, stale */
} OrchOutcome;

/* How a call of a handler, for one task or several, ended. */
typedef enum OrchCallEnd
{
	ORCH_CALL_DONE,		 /* each task has its outcome */
	ORCH_CALL_FAILED,	 /* by the fault of one of several */
	ORCH_CALL_TIMED_OUT, /* likewise */
	ORCH_CALL_CANCELLED, /* one of several is GONE */
	ORCH_CALL_YIELDED	 /* fast lane: somebody wants a row */
} OrchCallEnd;

/* What a procedure that was suspended waits for. */
typedef struct OrchSuspension
{
	TimestampTz until;		/* when signal is NULL */
	char *signal;			/* name; NULL: waits for a time */
	char *memo;				/* under which the signal is remembered */
	TimestampTz timeout_at; /* of the signal; PG_INT64_MAX: never */
} OrchSuspension;

/* A claimed task and what became of it. */
typedef struct OrchTask
{
	OrchRow row;		 /* the running version */
	ItemPointerData tid; /* where it is, unless in the fast lane */
	const OrchDefinition *definition; /* copied to the batch; NULL: gone */
	int successor;	/* number in the batch of the step that this one was gone
					* on to; 0: none */
	bool may_go_on; /* its run has a plan that was followed so far */
	bool settled;
	struct OrchRun *run; /* while settled: whose step it is; or NULL */
	OrchOutcome outcome;
	const char *reason; /* of failure: error or timeout */
	bool has_output;
	bool has_resources;
	bool was_silent; /* for its response_timeout, which is only told (alert) */
	Datum output;
	Datum error;
	Datum resources;
	TimestampTz started_at; /* of the step itself */
	TimestampTz finished_at;
	List *notices;	/* OrchNotice *, raised by the step */
	Datum requests; /* jsonb array of what the step asked of its run, or 0 */
	const OrchSuspension *suspension; /* of a suspended procedure */
	int nlimits;
	OrchLimit *limits; /* that were taken for it */
	int64 tuned;	   /* limit of its queue, if that is adaptive; 0: is not */
} OrchTask;

/* What an executor took at once. */
typedef struct OrchBatch
{
	MemoryContext context; /* reset for each batch */
	bool fast;			   /* claimed in the steps' own transaction */
	bool solo;			   /* a batch failed as a whole: one by one, please */
	bool fair;			   /* the tenants of its queue take turns */
	bool left_behind;	   /* the claim met rows locked by others */
	bool held_up;		   /* a limit has no start left for the next */
	bool call;			   /* all are for one call of their handler */
	OrchCallEnd call_end;  /* how the last one ended */
	int lane;
	int64 from; /* mark at the begin of the claim */
	OrchExecutor *executor;
	const OrchDefinition *last_definition; /* copied to the batch, or NULL */
	int nclaimed;
	int ntasks; /* those claimed and, after them, those gone on to */
	OrchTask tasks[ORCH_MAX_BATCH];
} OrchBatch;

/*
 * Take ready tasks of a lane in the current transaction: rows become running,
 * or in the fast lane leave the leaf.  The slot's claims say what was taken.
 * Returns how many; sets batch->fast.  If the transaction aborts, the caller
 * calls orch_lane_abort with batch->lane and batch->from.
 */
extern int orch_claim_batch(OrchExecutor *executor, int lane,
							OrchBatch *batch);

/* A pending row becomes a running one, in its next attempt and epoch. */
extern void orch_claim_mark_running(OrchRow *row, TimestampTz at);

/* The executor is about to start a claimed task; false: it was taken back. */
extern bool orch_claim_start(OrchExecutor *executor, int number);

/* The claim was committed: its tasks may be taken back from now on. */
extern void orch_claim_committed(OrchExecutor *executor, int n);

/* A claimed task was settled or given up. */
extern void orch_claim_free(OrchExecutor *executor, int number);

/* Whether a step is known to take longer than a transaction should, or is not
 * known at all. */
extern bool orch_claim_is_slow(const OrchTask *task);

/* Whether the steps of a definition were measured to be short, and may be run
 * with others in one transaction. */
extern bool orch_claim_is_fast(const OrchDefinition *definition);

/* A definition as the batch keeps it; NULL when it is gone. */
extern const OrchDefinition *orch_claim_definition(OrchBatch *batch, int32 id);

/* How long a step of a definition took, in microseconds, and whether it wrote. */
extern void orch_claim_measured(int32 definition, int64 duration, bool wrote);

#endif
