/*
 * catalog.h
 *	  Where the extension's objects are, acting as its owner, and what a
 *	  session remembers of roles, definitions and queues.
 *
 * Everything remembered is dropped by relation cache invalidations: those of
 * task_live and task_finished by themselves, those of definitions, queues,
 * owners and grants because the SQL functions that change them invalidate the
 * relation "definition" (orchestrator._invalidate), and when a role changes.
 */
#ifndef ORCHESTRATOR_CATALOG_H
#define ORCHESTRATOR_CATALOG_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "event.h"
#include "json.h"
#include "permit.h"

/* OIDs of the extension's objects in this database. */
typedef struct OrchCatalog
{
	Oid schema;
	Oid owner; /* role that owns the extension's tables */
	Oid task_live;
	Oid task_finished;
	Oid definition;
	Oid task_id_seq;
	Oid live_id; /* indexes of task_live */
	Oid live_ready;
	Oid live_parked;
	Oid live_due;
	Oid live_later;
	Oid live_running;
	Oid live_expire;
	Oid live_parent;
	Oid lease;
	Oid lease_id; /* its index on task_id */
	Oid state_type;
	Oid states[ORCH_STATES]; /* labels of task_state */
} OrchCatalog;

/* Internal SQL functions that C calls, in the order of catalog.c's table. */
typedef enum OrchFunction
{
	ORCH_FN_RESOLVE_DEFINITION,
	ORCH_FN_RESOLVE_QUEUE,
	ORCH_FN_RUN_DEFINITION,
	ORCH_FN_TAKE_KEY,
	ORCH_FN_TAKE_KEYS,
	ORCH_FN_MAKE_PARTITIONS,
	ORCH_FN_SETTLE_COMPLETED,
	ORCH_FN_SETTLE_FAILED,
	ORCH_FN_RECOVER,
	ORCH_FN_RECOVER_ALL,
	ORCH_FN_CHARGE,
	ORCH_FN_PROMOTE_DUE,
	ORCH_FN_EXPIRE,
	ORCH_FN_NEXT_DUE,
	ORCH_FN_MAY_FIRE,
	ORCH_FN_FAIL_UNRUNNABLE,
	ORCH_FN_NOTE,
	ORCH_FN_VISIBLE_OWNERS_OF,
	ORCH_FN_CHECK_STEPS,
	ORCH_FN_RECALL,
	ORCH_FN_REMEMBER,
	ORCH_FN_TAKE_SIGNAL,
	ORCH_FN_SUSPEND,
	ORCH_FN_ADVANCE,
	ORCH_FN_START_STEPS,
	ORCH_FN_RETAKE_PERMITS,
	ORCH_FN_RESTORE_RATES,
	ORCH_FN_READ_TURNS,
	ORCH_FN_SAVE_STATS,
	ORCH_FN_LOCK_LIMITS,
	ORCH_FN_DEBOUNCE,
	ORCH_FN_THROTTLE,
	ORCH_FN_CHECK_ALERTS,
	ORCH_FN_RETENTION_COMMANDS,
	ORCH_FN_RETENTION_DUE,
	ORCH_FN_RETENTION_NEXT,
	ORCH_FN_GLANCE,
	ORCH_FN_JUDGE,
	ORCH_FN_REWRITE,
	ORCH_FN_EXPIRED_RANGES,
	ORCH_FN_ARCHIVE,
	ORCH_FN_FORGET_RANGE,
	ORCH_FN_FORGET_KEYS,
	ORCH_FN_CLOSE_EXPIRED,
	ORCH_FN_DROP_EXPIRED,
	ORCH_FN_LOAD,
	ORCH_FN_DECIDE,
	ORCH_FN_MEMBER_OWNERS,
	ORCH_FN_CLAIMS_ALL,
	ORCH_FN_HAS_WORK,
	ORCH_FN_CALLS_WAIT,
	ORCH_FN_RECOVER_CALLS,
	ORCH_FN_LOST_CALLS,
	ORCH_FN_FAIL_STUCK_CALL,
	ORCH_FN_SETTLE_CALLS,
	ORCH_FN_COMPLETE_CALLS,
	ORCH_FN_SHARE_ANSWER,
	ORCH_FN_COUNT
} OrchFunction;

/*
 * What enqueue needs of a definition, as the current role sees it.
 */
typedef struct OrchPlan
{
	int32 definition;
	int32 owner; /* of the tasks: the current role's */
	int32 queue;
	int32 priority;
	int32 max_attempts;
	bool notify;
	bool is_remote;	   /* its tasks are for remote workers */
	bool is_call;	   /* its tasks are calls, for the courier */
	bool is_workflow;  /* its tasks are runs ... */
	int64 run_timeout; /* ... that may take so many milliseconds; 0: any */
	bool has_queue_timeout;
	Interval queue_timeout;
} OrchPlan;

typedef enum OrchKind
{
	ORCH_KIND_FUNCTION,
	ORCH_KIND_SQL,
	ORCH_KIND_PROCEDURE,
	ORCH_KIND_UTILITY,

	/* never claimed by an executor: their tasks wait for others */
	ORCH_KIND_WORKFLOW,
	ORCH_KIND_MAP,
	ORCH_KIND_BATCH,
	ORCH_KIND_WAIT,

	ORCH_KIND_REMOTE, /* claimed by remote workers only */

	/* outside calls, claimed by the courier only */
	ORCH_KIND_HTTP,
	ORCH_KIND_LLM,
	ORCH_KIND_EMBEDDING,
	ORCH_KIND_TOOL,
	ORCH_KIND_WEBHOOK,
	ORCH_KIND_SUMMARIZE
} OrchKind;

/* What an executor needs of a definition. */
typedef struct OrchDefinition
{
	int32 id; /* hash key */
	OrchKind kind;
	char *name;
	char *handler; /* NULL: the task brings its command */
	char *handler_owner;
	int64 timeout;			/* milliseconds; 0: none */
	int64 response_timeout; /* likewise */
	bool timeout_alerts;	/* timeout_policy = alert: told, not stopped */
	bool notify;
	bool notify_all;	/* of progress, too */
	bool has_callbacks; /* its tasks' ends start others */
	int32 batch_size;	/* its handler takes so many inputs; 0: one */
	int64 batch_wait;	/* milliseconds that a task waits for others */
	char *endpoint;		/* of a call; NULL: it is none */
	bool expects;		/* its answer must be as expected */
	bool valid;

	/* of the current version, whichever this is */
	OrchLimit limit;
	OrchLimit key_limit; /* its id is that of the definition */
	char *key_path;		 /* to what key_limit is counted by; NULL: none */
	OrchPath *key;		 /* compiled, in the copy of a batch only */
} OrchDefinition;

/* Whether one call of its handler may be for many tasks. */
#define ORCH_TAKES_MANY(definition)                                           \
	((definition) != NULL && (definition)->batch_size > 0)

/* What enqueueing and claiming need of a queue. */
typedef struct OrchQueue
{
	int32 id; /* hash key */
	bool valid;
	bool paused;
	int32 weight;
	OrchLimit limit;
	int32 min_running;	  /* of an adaptive one */
	int32 last_running;	  /* likewise: the last decision; 0: none yet */
	Datum tenant;		  /* jsonpath; 0: its tenants do not take turns */
	Datum tenant_weights; /* jsonb; 0: none */
	Datum no_variables;	  /* for the path: an empty object */
} OrchQueue;

/* Call once, from _PG_init. */
extern void orch_catalog_install(void);

/*
 * The extension's objects.  Raises undefined_object when the extension is not
 * in this database, object_not_in_prerequisite_state when it is of a version
 * that this library does not serve; with missing_ok, returns NULL, and the
 * latter is logged.  Must be called in a transaction.
 */
extern const OrchCatalog *orch_catalog(bool missing_ok);

/* The version of the extension as a snapshot (NULL: of the catalogs) sees it,
 * and its OID; NULL when it is not there. */
extern char *orch_catalog_extension(Oid *extension, Snapshot snapshot);

/*
 * The extension became of this version in this transaction.  Raises when it
 * needs a newer library; else all sessions look at it anew at commit.
 */
extern void orch_catalog_meet(const char *version);

/* The state that an enum value of task_state stands for, and back. */
extern OrchState orch_catalog_state(Oid label);

/*
 * Act as the owner of the extension from begin to end: for the engine's own
 * code and functions only, never with user code on the stack.  An error in
 * between restores the identity when the (sub)transaction aborts.
 */
typedef struct OrchIdentity
{
	Oid userid;
	int context;
} OrchIdentity;

extern void orch_catalog_begin_owner(OrchIdentity *saved);
extern void orch_catalog_end_owner(const OrchIdentity *saved);

/*
 * The commit of this transaction, once acknowledged, must not be lost, whatever
 * the role's settings say.
 */
extern void orch_catalog_require_flush(void);

/*
 * Refuse what writes without a plan where the server would refuse the plan: in
 * a transaction that may only read, on a standby, in a parallel worker.
 */
extern void orch_catalog_require_writes(const char *function);

/*
 * Call an internal SQL function as the owner.  An active snapshot must be
 * set.  isnull may be NULL when the function never returns null.
 */
extern Datum orch_catalog_call(OrchFunction function, int nargs,
							   const NullableDatum *args, bool *isnull);

/* As in SQL (_ensure_partition). */
#define ORCH_IDS_PER_PARTITION INT64CONST(1000000)

/*
 * The partition that holds the finished rows of an id's range; made when
 * missing.  Retention may detach it at any moment: ask again when it is
 * locked.
 */
extern Oid orch_catalog_finished(int64 id);

/* Whether the current user may see what belongs to this owner. */
extern bool orch_catalog_may_see(int32 owner);

/* How the current user enqueues this definition; raises when it may not. */
extern const OrchPlan *orch_catalog_plan(const char *definition);

/* How the current user runs a one-off command of this kind. */
extern void orch_catalog_run_plan(Datum kind, NullableDatum max_attempts,
								  NullableDatum timeout, OrchPlan *plan);

/* A queue by the name the current user, or another role, knows it by; raises. */
extern int32 orch_catalog_queue(const char *queue);
extern int32 orch_catalog_queue_of(Oid role, const char *queue);

/* Owners that a role is, itself or through membership; in the caller's memory. */
extern int32 *orch_catalog_members(Oid role, int *n);

/* Whether a role, as a remote worker, may claim everybody's tasks in a queue. */
extern bool orch_catalog_claims_all(Oid role, int32 queue);

/* A definition by id, for executors; NULL when it is gone. */
extern const OrchDefinition *orch_catalog_definition(int32 id);

/*
 * The row of a definition, copied; NULL when it is gone.  The generation
 * rises whenever what is remembered of definitions is dropped.
 */
extern HeapTuple orch_catalog_fetch_definition(int32 id, TupleDesc *desc);
extern uint64 orch_catalog_generation(void);

typedef enum OrchOnFull
{
	ORCH_FULL_REJECT,
	ORCH_FULL_WAIT,
	ORCH_FULL_DEFER
} OrchOnFull;

/* How deep a queue may be. */
typedef struct OrchQueueDepth
{
	int32 queue;	 /* hash key */
	int32 max_depth; /* 0: any */
	OrchOnFull on_full;
	int64 full_wait; /* milliseconds; 0: the default */
	bool alerts;	 /* alert_depth or alert_age */
	char name[804];	 /* 200 characters */
} OrchQueueDepth;

extern const OrchQueueDepth *orch_catalog_queue_depth(int32 queue);

/* What set_quota() allows a role, or everybody; 0: any number. */
typedef struct OrchQuota
{
	int32 owner; /* hash key */
	int32 max_queued;
	int32 max_running;
	int32 max_schedules;
} OrchQuota;

extern const OrchQuota *orch_catalog_quota(int32 owner);

/* The name of the role that an owner is, or was. */
extern char *orch_catalog_owner_name(int32 owner);

/* The next id of a task. */
extern int64 orch_catalog_next_id(void);

/* A queue by id; NULL when it is gone. */
extern const OrchQueue *orch_catalog_queue_info(int32 id);

/* Whether a queue is paused (executors). */
extern bool orch_catalog_queue_paused(int32 queue);

/*
 * Why the tasks of an owner cannot run: its role is gone, renamed, or may not
 * log in or connect.  NULL: they can; roleoid is set.
 */
extern const char *orch_catalog_cannot_run(int32 owner, Oid *roleoid);

#endif
