/*
 * shmem.h
 *	  Shared memory: databases, executors, owners and lanes, events, waiters.
 *
 * Everything here can be rebuilt from the tables: after a restart the memory
 * is zeroed and the supervisors look at what they find.
 *
 * Locks, outermost first: shared->lock (LWLock: who exists), permit_lock
 * (LWLock: what is taken of limits), a lane's, an executor's or a ring's
 * spinlock (what it does now); turn_lock (LWLock) alone.  Nothing is allocated,
 * logged or waited for under a spinlock.
 */
#ifndef ORCHESTRATOR_SHMEM_H
#define ORCHESTRATOR_SHMEM_H

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"
#include "storage/spin.h"

#include "adapt.h"

#define ORCH_MAX_DATABASES 64
#define ORCH_MAX_OWNERS	   1024
#define ORCH_MAX_LANES	   4096
#define ORCH_MAX_CLAIM	   200
#define ORCH_RING_SIZE	   2048 /* events a database may be behind */
#define ORCH_MAX_LISTENERS 256
#define ORCH_MAX_GUILTY	   256
#define ORCH_MAX_TUNED	   256 /* adaptive queues at work */

#define ORCH_MARK_LOWEST PG_INT64_MIN

/* A set-associative table, so that no entry is ever moved. */
#define ORCH_PERMIT_SETS 4096
#define ORCH_PERMIT_WAYS 16
#define ORCH_MAX_HELD	 256 /* permits of one batch */

/* The period of a rate is cut into so many pieces, and one that is under way. */
#define ORCH_RATE_PIECES 32

/* What a supervisor is asked to look at; bits of OrchDatabase.wake. */
#define ORCH_WAKE_WORK	  0x01	/* an owner has work and no idle executor */
#define ORCH_WAKE_DUE	  0x02	/* next_due was lowered */
#define ORCH_WAKE_EVENTS  0x04	/* the ring has events */
#define ORCH_WAKE_EXIT	  0x08	/* an executor left or died */
#define ORCH_WAKE_CATALOG 0x10	/* extension made, dropped or updated */
#define ORCH_WAKE_LOOK	  0x20	/* look at all lanes again */
#define ORCH_WAKE_PERMITS 0x40	/* next_permit was lowered */
#define ORCH_WAKE_TUNE	  0x80	/* an adaptive queue is at work */
#define ORCH_WAKE_STATS	  0x100 /* statistics began to count a minute */
#define ORCH_WAKE_COURIER 0x200 /* calls wait, and no courier runs */

typedef struct OrchEvent
{
	int64 task;
	int64 root;
	int64 parent;	 /* 0: none */
	double progress; /* 0..1; negative: not told */
	int32 attempt;
	uint8 event;	/* OrchEventKind */
	uint8 state;	/* OrchState */
	bool to_all;	/* progress that listeners to everything hear */
	bool is_length; /* progress is how many characters there are to read */
} OrchEvent;

/*
 * One database that has, or may have, the extension.
 */
typedef struct OrchDatabase
{
	Oid dboid;			  /* InvalidOid: free */
	pid_t supervisor_pid; /* 0: none runs */
	int supervisor_procno;
	bool wanted;			   /* a supervisor should run */
	bool absent;			   /* the last one found no extension */
	pid_t blocked_by;		   /* backend that drops, renames or copies it */
	bool terminated;		   /* the last one was told to leave */
	int failures;			   /* starts in a row that ended in an error */
	TimestampTz retry_at;	   /* not started again before */
	pg_atomic_uint32 wake;	   /* ORCH_WAKE_* */
	pg_atomic_uint64 next_due; /* TimestampTz; PG_INT64_MAX: nothing due */
	pg_atomic_uint64 next_permit; /* likewise: when a rate goes on */
	bool limits_changed;		  /* at next_permit, wake all that sleep */
	bool permits_retaken;		  /* of leases of the time before a restart */
	bool rates_known; /* starts of the time before a restart were counted */
	bool ran_before;  /* and there may be some: it had tasks then */
	pg_atomic_uint64
		next_alert; /* likewise: look whether queues are too deep */
	pg_atomic_uint64 retention_at; /* likewise: when retention looks again */
	bool retention_done;		   /* its worker came to its end */
	uint32 retention_busy;		   /* how often in a row it met a lock */

	pid_t courier_pid; /* 0: none runs */
	int courier_procno;
	TimestampTz courier_since;			  /* it is idle, or busy */
	pg_atomic_uint32 courier_told;		  /* there may be calls to make */
	pg_atomic_uint32 courier_interrupted; /* a running task was stopped */
	pg_atomic_uint32 courier_calls;		  /* under way */

	pg_atomic_uint32
		listeners; /* sessions that LISTEN to any of our channels */

	/* events not yet notified */
	slock_t ring_mutex;
	uint32 ring_head; /* next to write */
	uint32 ring_tail; /* next to read */
	bool ring_lost;	  /* overflowed: listeners get a resync */
	OrchEvent ring[ORCH_RING_SIZE];
} OrchDatabase;

/*
 * A role's work in one database.
 */
typedef struct OrchOwner
{
	Oid dboid;	 /* InvalidOid: free */
	int32 owner; /* orchestrator.owner.id */
	Oid roleoid;
	int first_lane;	  /* -1: none */
	int first_parked; /* likewise, of parked rows */
	bool ready;		  /* may have pending tasks */
	bool discovered;  /* every queue with ready tasks has a lane */
	bool asked;		  /* the supervisor knows that more executors would help */
	int64 share;	  /* of the lane that was chosen last */
	int failures;	  /* executors in a row that could not start */
	TimestampTz retry_at;
	TimestampTz alone_until; /* calls for many tasks are of one each before */
} OrchOwner;

/* In the place of a queue: rows that were parked. */
#define ORCH_PARKED (-1)

/*
 * In the place of the limit that a row is parked on: it is for remote workers,
 * or for the courier, and stands in their lane of its queue.  No executor sees
 * it.
 */
#define ORCH_COURIER_BASE		 (1 << 30)
#define ORCH_REMOTE_LANE(queue)	 (-(int64) (queue))
#define ORCH_COURIER_LANE(queue) (-(int64) (queue) -ORCH_COURIER_BASE)
#define ORCH_IS_REMOTE(limit)	 ((limit) < 0 && !ORCH_IS_COURIER(limit))
#define ORCH_IS_COURIER(limit)	 ((limit) < -ORCH_COURIER_BASE)

/*
 * One queue of one owner, or what was parked on one limit: where its ready rows begin.  No pending row that a
 * new snapshot sees has a smaller sort key than mark (lane.c).
 */
typedef struct OrchLane
{
	int32 queue;	  /* 0: free; ORCH_PARKED: of limit */
	int64 limit;	  /* of parked rows: what they wait for (permit.h) */
	int64 blocked_on; /* sleeps until this limit has room; 0: does not */
	int owner;		  /* index into owners */
	int next;		  /* next lane of the same owner; -1: last */
	slock_t mutex;
	int64 mark;
	bool ready;		 /* may have pending tasks */
	bool paused;	 /* its queue is; nobody is called for new rows */
	int32 weight;	 /* of its queue; 0: not known yet */
	int64 share;	 /* work done in it, by weight (orch_lane_choose) */
	int64 cost;		 /* microseconds that the last batch took */
	uint32 activity; /* rises whenever rows become ready */
	int64 look_at;	 /* when a row has waited long enough for others
					  * (gather.c); 0: none waits */
} OrchLane;

/*
 * Turns of the tenants of a queue, and the clock of those turns (fair.c).
 */
typedef struct OrchTurnKey
{
	Oid dboid; /* InvalidOid: free */
	Oid live;  /* task_live: not those of an extension that was dropped */
	int32 owner;
	int32 queue;
	int32 priority;
	int32 is_clock; /* of its queue: no priority, no tenant */
	uint64 tenant;	/* a hash */
} OrchTurnKey;

typedef struct OrchTurn
{
	OrchTurnKey key;
	int64 turn;	  /* of a clock, what was claimed; else the tenant's next */
	uint64 used;  /* turns_taken when it was used last */
	uint32 given; /* of a clock: turns that were taken */
} OrchTurn;

#define ORCH_MAX_CLOCKS 1024
#define ORCH_MAX_TURNS	16384
#define ORCH_TURN_WAYS	8 /* entries among which a key has its place */

typedef enum OrchClaimState
{
	ORCH_CLAIM_FREE,	/* given back or settled */
	ORCH_CLAIM_HELD,	/* claim not committed; next: WAITING */
	ORCH_CLAIM_WAITING, /* claimed, not started; next: STARTED, TAKEN */
	ORCH_CLAIM_STARTED, /* its step runs or ran; next: FREE */
	ORCH_CLAIM_TAKEN	/* taken back by the supervisor; next: FREE */
} OrchClaimState;

typedef struct OrchClaim
{
	int64 task;
	int32 epoch;
	int32 attempt;			/* of a call's task */
	pg_atomic_uint32 state; /* OrchClaimState; compare-and-swap */
} OrchClaim;

/*
 * What is taken of one limit (permit.c).  Times are of the monotonic clock.
 */
typedef struct OrchPermit
{
	Oid dboid;
	int32 owner;	  /* whose it is; 0: everybody's */
	int running;	  /* executors that hold it */
	int adaptive;	  /* at most so many, as adapted; 0: as configured */
	bool waiting;	  /* somebody was refused */
	bool scarce;	  /* somebody was, for want of a permit, since a look */
	int64 wait_until; /* ... until then; 0: until a release */
	int64 width;	  /* of a piece, in microseconds; 0: no rate */
	int64 piece;	  /* number of the newest */
	int64 piece_end;  /* when it is over */
	uint32 started;	  /* sum of pieces */
	uint32 pieces[ORCH_RATE_PIECES + 1]; /* by number */
} OrchPermit;

/*
 * An adaptive queue at work (tune.c); under permit_lock.
 */
typedef struct OrchTuned
{
	Oid dboid; /* InvalidOid: free */
	int32 queue;
	int64 limit;			/* its number (permit.h) */
	bool asked;				/* the supervisor looks at it each second */
	int64 changed_at;		/* steps begun before are not measured */
	int64 reported_at;		/* last */
	OrchAdaptSample sample; /* since the last look */
	OrchAdapt adapt;		/* the supervisor's */
} OrchTuned;

typedef enum OrchExecutorState
{
	ORCH_EXECUTOR_FREE,		/* slot unused; next: STARTING */
	ORCH_EXECUTOR_STARTING, /* registered; next: IDLE, FREE */
	ORCH_EXECUTOR_IDLE,		/* sleeps; next: BUSY, DEAD */
	ORCH_EXECUTOR_BUSY,		/* claims or runs; next: IDLE, DEAD */
	ORCH_EXECUTOR_DEAD		/* gone, claims to hand back; next: FREE */
} OrchExecutorState;

#define ORCH_MESSAGE_SIZE 256
#define ORCH_STAGE_SIZE	  64

typedef struct OrchExecutor
{
	/* who: changed under shared->lock held exclusively */
	OrchExecutorState state; /* IDLE <-> BUSY by its owner, under mutex */
	Oid dboid;
	Oid roleoid;
	int32 owner;
	int owner_index; /* into owners */
	pid_t pid;
	int procno;
	TimestampTz since;		 /* of state */
	TimestampTz came;		 /* when it got the slot */
	Oid live;				 /* task_live, when it came */
	bool leave;				 /* asked to go when its batch is done */
	TimestampTz leave_since; /* asked to make room; 0: for another reason */
	bool failed_start;		 /* ended before it did anything */
	uint32 generation;		 /* rises with every use of the slot */

	slock_t mutex; /* guards all that follows but claims */

	/* the claim under way (lane.c) */
	int lane;		/* index; -1: none */
	int64 lane_low; /* least key that became ready since it began */

	/* the step under way */
	int64 task; /* 0: none */
	int64 root;
	int64 parent;
	int32 epoch;
	int32 attempt;
	bool notify;	   /* progress is told to listeners of the root */
	bool notify_all;   /* and to those of everything */
	bool progress_new; /* not told yet */
	TimestampTz step_started;
	double progress; /* negative: not told */
	char message[ORCH_MESSAGE_SIZE];
	char stage[ORCH_STAGE_SIZE];

	/* the claims that one call is for, where it is for several: task is the
	 * first, and those that are STARTED run */
	int first_called;
	int ncalled; /* 0: task runs alone */

	/* asked of it */
	int64 interrupt_task;  /* stop this step ... */
	int32 interrupt_epoch; /* ... if it still has this epoch */
	int64 yield_task;	   /* fast lane: roll back, somebody wants the row */

	TimestampTz signaled_at; /* when either was asked last */

	/* permits that it holds, by index; under permit_lock */
	int npermits;
	int permits[ORCH_MAX_HELD];

	/* what it holds; a batch in the fast lane is not claimed in the table */
	bool fast;
	pg_atomic_uint32 nclaims;
	OrchClaim claims[ORCH_MAX_CLAIM];
} OrchExecutor;

/*
 * One session in wait(), by its process number.
 */
typedef struct OrchWaiter
{
	Oid dboid;
	pg_atomic_uint64 task; /* 0: not waiting */
	pg_atomic_uint32 done; /* the task reached a final state */
} OrchWaiter;

#define ORCH_WAIT_BUCKETS 1024

/* A session that listens to one of our channels. */
typedef struct OrchListener
{
	int procno;
	Oid dboid;	/* InvalidOid: free */
	int64 root; /* 0: channel orchestrator */
} OrchListener;

/* A step whose process died by a signal and took the server down. */
typedef struct OrchGuilty
{
	Oid dboid; /* InvalidOid: used up */
	int64 task;
	int32 epoch;
	int32 attempt;
} OrchGuilty;

#define ORCH_HEIR_NONE	(-1)
#define ORCH_HEIR_OTHER (-2) /* a process of ours that is no executor */

typedef struct OrchShared
{
	LWLock *lock; /* who exists */
	pid_t launcher_pid;
	int launcher_procno;
	bool launcher_look;		  /* look at pg_database again */
	pg_atomic_uint32 starved; /* a worker could not be registered */
	int heir; /* whom the next free slot is for: index into owners, or ... */
	TimestampTz heir_since;	   /* under lock, as heir */
	TimestampTz breaker_until; /* no executors before: crashes came too fast */
	TimestampTz straight_on_from; /* no step is gone straight on to before: one
								   * may have crashed the server (workflow.c) */
	int nexecutors;				  /* slots */

	int nguilty;
	OrchGuilty guilty[ORCH_MAX_GUILTY];

	OrchDatabase databases[ORCH_MAX_DATABASES];
	OrchOwner owners[ORCH_MAX_OWNERS];
	OrchLane lanes[ORCH_MAX_LANES];
	pg_atomic_uint32 nowners; /* high-water marks of the arrays */
	pg_atomic_uint32 nlanes;

	int64 started_at; /* monotonic */
	LWLock *permit_lock;
	int64
		permit_ids[ORCH_PERMIT_SETS * ORCH_PERMIT_WAYS]; /* 0: free; apart, to
															* be searched fast */
	OrchPermit permits[ORCH_PERMIT_SETS * ORCH_PERMIT_WAYS];
	OrchTuned tuned[ORCH_MAX_TUNED];

	OrchListener listeners[ORCH_MAX_LISTENERS];
	bool listeners_full; /* more listen than we can name */

	pg_atomic_uint32 wait_buckets[ORCH_WAIT_BUCKETS]; /* waiters by hash */
	int nwaiters;									  /* size of waiters */
	OrchWaiter *waiters;

	LWLock *turn_lock; /* guards what follows; taken alone */
	uint64 turns_taken;
	OrchTurn clocks[ORCH_MAX_CLOCKS];
	OrchTurn turns[ORCH_MAX_TURNS];

	OrchExecutor executors[FLEXIBLE_ARRAY_MEMBER];
} OrchShared;

extern OrchShared *orch_shared;

/*
 * Ask for the memory and set it up.  Called once, by _PG_init, while
 * preloading.  started is called in the postmaster whenever the memory was set
 * up anew, at start and after a crash, before any other process runs.
 */
extern void orch_shmem_install(void (*started)(void));

/*
 * Ask for a block of memory of a module's own, with a lock of its own; both
 * are seen under the name, which must last.  Called by _PG_init, while
 * preloading.  start is called when the block is there, anew where it was just
 * made: it is zeroed then.
 */
typedef void (*OrchBlockStart)(void *memory, LWLock *lock, bool anew);
extern void orch_shmem_add_block(const char *name, Size size,
								 OrchBlockStart start);

/*
 * The slot of a database, or NULL.  Caller holds shared->lock; with create,
 * exclusively: then NULL means that ORCH_MAX_DATABASES are in use.
 */
extern OrchDatabase *orch_shmem_database(Oid dboid, bool create);

/*
 * What all processes of ours have in common: a kind's type is "orchestrator
 * <kind>", and its entry orchestrator_<kind>_main.
 */
extern void orch_shmem_terminate(SIGNAL_ARGS);
extern bool orch_shmem_terminated(void);
extern void orch_shmem_describe_worker(BackgroundWorker *worker,
									   const char *kind);
extern void orch_shmem_connect(Oid dboid, Oid roleoid);

/* Start one of a kind for our database.  NULL: it cannot be now. */
extern BackgroundWorkerHandle *orch_shmem_start_worker(const char *kind);

/*
 * Whether a worker that was registered at a time has started.  To be asked
 * again after ORCH_START_PAUSE while it has not: a postmaster before 16 may
 * sleep for a minute on one that it could not fork, unless it is woken.
 */
#define ORCH_START_PAUSE USECS_PER_SEC
extern BgwHandleStatus orch_shmem_worker_status(BackgroundWorkerHandle *handle,
												TimestampTz registered,
												pid_t *pid);

/* Set the latch of a process; its number may be -1 (none) or outdated. */
extern void orch_shmem_set_latch(int procno);

/* Ask the supervisor of a database to look at something (ORCH_WAKE_*); the
 * launcher is asked to start one when there is none. */
extern void orch_shmem_wake_supervisor(Oid dboid, uint32 why);

/*
 * Tell the courier of a database, or the supervisor, which starts one, that
 * there may be calls to make; that the task of one may have been stopped.
 */
extern void orch_shmem_wake_courier(Oid dboid);
extern void orch_shmem_interrupt_courier(Oid dboid);

/* The same for a signal handler: no lock, and only a supervisor that runs. */
extern void orch_shmem_signal_supervisor(Oid dboid, uint32 why);

/* Wake the launcher; with look, to read pg_database again. */
extern void orch_shmem_wake_launcher(bool look);

/* Tell the supervisor's timer that something is due at the given time. */
extern void orch_shmem_lower_due(Oid dboid, TimestampTz at);

/* The same of the time at which a rate goes on. */
extern void orch_shmem_lower_permit(Oid dboid, TimestampTz at);

/* Tell it to look at the alerts then. */
extern void orch_shmem_lower_alert(Oid dboid, TimestampTz at);

/* Microseconds on a clock that never jumps, the same in all processes. */
extern int64 orch_monotonic(void);

/* The clock of the engine: the server's, plus
 * orchestrator.test_clock_offset. */
extern TimestampTz orch_clock(void);

/* What lasts longer, a century, lasts for ever. */
#define ORCH_LONGEST_SPAN (36525.0 * USECS_PER_DAY)

/* An interval in microseconds; in floating point, since its parts may overflow
 * (an infinite one does). */
extern double orch_span(const Interval *interval);

/* When a time-out is up that begins now; PG_INT64_MAX: never. */
extern TimestampTz orch_add_timeout(TimestampTz now, const Interval *timeout);

#endif
