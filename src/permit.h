/*
 * permit.h
 *	  Permits: how many steps run at once, and how many start within a period,
 *	  for a queue, a definition, a key or a role.
 *
 * An executor holds one permit of each limit that concerns its batch, for the
 * steps of a batch run one after another: at most max_running executors run
 * steps of one limit at any moment.  A start is counted for each step.  Both
 * are taken before a row is claimed, all that a row needs or none.
 *
 * Who is refused leaves a mark on the permit, and its lane sleeps until a
 * permit is given back or the period goes on: nobody polls.
 */
#ifndef ORCHESTRATOR_PERMIT_H
#define ORCHESTRATOR_PERMIT_H

#include "shmem.h"

typedef enum OrchLimitKind
{
	ORCH_LIMIT_QUEUE,
	ORCH_LIMIT_DEFINITION,
	ORCH_LIMIT_KEY,
	ORCH_LIMIT_ROLE,
	ORCH_LIMIT_ENDPOINT
} OrchLimitKind;

typedef struct OrchLimit
{
	int64 id; /* orch_permit_id() */
	OrchLimitKind kind;
	int32 owner;	   /* of the queue, definition or role */
	int32 max_running; /* 0: any */
	int32 adaptive;	   /* of an adaptive queue: where it starts; 0: is none */
	int32 rate_limit;  /* starts within rate_period; 0: any */
	int64 rate_period; /* microseconds */
	int64 piece;	   /* of the period, in which its start was counted ... */
	int64 piece_end;   /* ... and when that is over */
} OrchLimit;

/* Limits of one row: its queue's, its definition's, its workflow's, the key's,
 * its role's and its endpoint's. */
#define ORCH_MAX_LIMITS 6

/* Whether there is anything to hold or to count. */
#define ORCH_IS_LIMITED(limit)                                                \
	((limit)->max_running > 0 || (limit)->rate_limit > 0)

/*
 * The number of a limit: of a queue by its id, of a definition by the id of
 * its owner and its name, of a key by its definition's number and its value,
 * of an endpoint by its name.
 * Always positive.
 */
extern int64 orch_permit_id(OrchLimitKind kind, int64 number, const void *name,
							Size length);

/*
 * Take what a row needs, for the batch that an executor gathers in a lane.
 * Returns NULL, or the first limit that refused: then nothing was taken, and
 * the lane sleeps if all of it is under that limit.
 */
extern const OrchLimit *orch_permit_take(OrchExecutor *executor, int lane,
										 OrchLimit *limits, int n);

/* Whether this executor holds permits of all of these limits already. */
extern bool orch_permit_is_held(const OrchLimit *limits, int n);

/*
 * A step starts now that was counted when it was claimed: count it at its time.
 * False: the period has passed since, and there is no start left in this one.
 */
extern bool orch_permit_start(OrchLimit *limits, int n);

/* A row that was counted is given back and not started. */
extern void orch_permit_return(const OrchLimit *limits, int n);

/* The batch of an executor is over: give back all that it holds; or all but
 * the first few, when a row that it took permits for was somebody else's. */
extern void orch_permit_release(OrchExecutor *executor, int keep);

/*
 * Take what a row needs that a remote worker claims: a permit of each limit
 * with max_running, for this row alone, and a start of each with a rate.
 * Returns NULL, or the first limit that refused: then nothing was taken.
 */
extern const OrchLimit *orch_permit_take_remote(OrchLimit *limits, int n);

/* Give back permits of limits by their numbers; and, after a restart, take
 * those of the leases that go on, whatever the limits say. */
extern void orch_permit_give_back(const int64 *ids, int n);
extern void orch_permit_take_again(const int64 *ids, int n);

/*
 * Wake the lanes of a database whose period goes on; all: every lane that
 * sleeps, since limits were changed.  Returns when to look again.
 */
extern TimestampTz orch_permit_wake(Oid dboid, bool all);

/*
 * No step of any limit was started: before they are restored.
 */
extern void orch_permit_forget_starts(Oid dboid);

/*
 * After a restart: n steps of a limit were started some microseconds ago.
 */
extern void orch_permit_restore(const OrchLimit *limit, int64 ago, int32 n);

/* What is taken of a limit; owner -1: of nobody that is known. */
typedef struct OrchPermitUse
{
	int64 id;
	int32 owner;
	int32 running;
	int32 started; /* within the period */
	bool waiting;
	int32 adaptive;
} OrchPermitUse;

/* Read an entry of the table, 0 to ORCH_MAX_PERMITS - 1.  False: it is not in
 * use in this database. */
#define ORCH_MAX_PERMITS (ORCH_PERMIT_SETS * ORCH_PERMIT_WAYS)
extern bool orch_permit_read(int number, OrchPermitUse *use);

/*
 * The limit that an adaptive queue has now (0: nothing of it runs), and
 * whether somebody was refused for it since the last call, or sleeps.  Caller
 * holds permit_lock exclusively.
 */
extern int32 orch_permit_adapted(Oid dboid, int64 id, bool *scarce);

/* Change it, and wake who may now; 0: the queue is adaptive no more. */
extern void orch_permit_adapt(Oid dboid, int64 id, int32 limit);

#endif
