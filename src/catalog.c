/*
 * catalog.c
 *	  Where the extension's objects are, acting as its owner, and what a
 *	  session remembers of roles, definitions and queues.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "compat.h"
#include "guc.h"

#define EXTENSION_NAME	  "orchestrator"
#define MAX_FUNCTION_ARGS 9
#define NODE_SHIFT		  42

/*
 * The oldest release of the SQL objects that this library still serves; the
 * newest is its own.  Patches of a release, the third number of a version,
 * change nothing that one side needs of the other.
 */
#define OLDEST_SERVED "0.1"

/* Names and argument types of the internal functions, by OrchFunction. */
static const struct
{
	const char *name;
	int nargs;
	Oid args[MAX_FUNCTION_ARGS];
} functions[ORCH_FN_COUNT] = {
	{"_resolve_definition", 2, {OIDOID, TEXTOID}},
	{"_resolve_queue", 2, {OIDOID, TEXTOID}},
	{"_run_definition", 4, {OIDOID, TEXTOID, INT4OID, INTERVALOID}},
	{"_take_key", 5, {INT4OID, INT4OID, TEXTOID, INTERVALOID, INT8OID}},
	{"_take_keys",
	 5,
	 {INT4OID, INT4OID, TEXTARRAYOID, INTERVALOID, INT8ARRAYOID}},
	{"_make_partitions", 1, {INT8OID}},
	{"_settle_completed",
	 6,
	 {INT8OID, INT4OID, JSONBOID, TIMESTAMPTZOID, JSONBOID, JSONBOID}},
	{"_settle_failed",
	 6,
	 {INT8OID, INT4OID, TEXTOID, JSONBOID, TIMESTAMPTZOID, JSONBOID}},
	{"_recover", 3, {INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID}},
	{"_recover_all", 2, {INT8ARRAYOID, INT8ARRAYOID}},
	{"_charge", 2, {INT8OID, INT4OID}},
	{"_promote_due", 1, {INT4OID}},
	{"_expire", 1, {INT4OID}},
	{"_next_due", 0, {0}},
	{"_may_fire", 0, {0}},
	{"_fail_unrunnable", 2, {INT4OID, TEXTOID}},
	{"_note",
	 7,
	 {INT8OID, INT4OID, INT4OID, INT4OID, TIMESTAMPTZOID, TEXTOID, JSONBOID}},
	{"_visible_owners_of", 1, {OIDOID}},
	{"_check_steps", 3, {OIDOID, INT8OID, JSONBOID}},
	{"_recall", 3, {INT8OID, INT4OID, TEXTOID}},
	{"_remember", 4, {INT8OID, INT4OID, TEXTOID, JSONBOID}},
	{"_take_signal", 2, {INT8OID, TEXTOID}},
	{"_suspend",
	 7,
	 {INT8OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID,
	  TIMESTAMPTZOID}},
	{"_advance", 3, {INT8OID, INT4ARRAYOID, INT4OID}},
	{"_start_steps", 1, {INT8OID}},
	{"_retake_permits", 0, {0}},
	{"_restore_rates", 1, {TIMESTAMPTZOID}},
	{"_read_turns", 2, {INT4OID, INT4OID}},
	{"_save_stats", 1, {BOOLOID}},
	{"_lock_limits", 2, {INT4OID, INT4OID}},
	{"_debounce",
	 9,
	 {INT4OID, INT4OID, TEXTOID, TIMESTAMPTZOID, INTERVALOID, BOOLOID,
	  JSONBOID, INT8OID, INT4OID}},
	{"_throttle", 5, {INT4OID, INT4OID, TEXTOID, INTERVALOID, INT8OID}},
	{"_check_alerts", 0, {0}},
	{"_retention_commands", 0, {0}},
	{"_retention_due", 0, {0}},
	{"_retention_next", 0, {0}},
	{"_glance", 1, {INT8OID}},
	{"_judge", 1, {INT8OID}},
	{"_rewrite", 1, {INT8OID}},
	{"_expired_ranges", 0, {0}},
	{"_archive", 1, {INT8OID}},
	{"_forget_range", 2, {INT8OID, INT8OID}},
	{"_forget_keys", 0, {0}},
	{"_close_expired", 1, {INT8OID}},
	{"_drop_expired", 1, {INT8OID}},
	{"_load", 0, {0}},
	{"_decide", 5, {INT4OID, INT4OID, INT4OID, TEXTOID, JSONBOID}},
	{"_member_owners", 1, {OIDOID}},
	{"_claims_all", 2, {OIDOID, INT4OID}},
	{"_has_work", 2, {OIDOID, INT4ARRAYOID}},
	{"_calls_wait", 0, {0}},
	{"_recover_calls", 0, {0}},
	{"_lost_calls", 2, {INT8ARRAYOID, INT4ARRAYOID}},
	{"_fail_stuck_call", 1, {INT8OID}},
	{"_settle_calls",
	 4,
	 {INT8ARRAYOID, INT4ARRAYOID, TEXTARRAYOID, JSONBARRAYOID}},
	{"_complete_calls", 3, {INT8ARRAYOID, INT4ARRAYOID, JSONBARRAYOID}},
	{"_share_answer", 4, {TEXTOID, JSONBOID, INT4ARRAYOID, INT4ARRAYOID}},
};

/* A name as a role knows it; a role that was renamed is another owner. */
typedef struct NameKey
{
	Oid roleoid;
	NameData role;
	char name[204];
} NameKey;

typedef struct PlanEntry
{
	NameKey key;
	OrchPlan plan;
} PlanEntry;

typedef struct QueueEntry
{
	NameKey key;
	int32 queue;
} QueueEntry;

typedef struct MembersEntry
{
	Oid role; /* hash key */
	int n;
	int32 *owners;
} MembersEntry;

typedef struct ClaimsKey
{
	Oid role;
	int32 queue;
} ClaimsKey;

typedef struct ClaimsEntry
{
	ClaimsKey key;
	bool all;
} ClaimsEntry;

typedef struct LeafEntry
{
	int64 range;
	Oid leaf;
} LeafEntry;

static OrchCatalog catalog;
static bool catalog_valid = false;
static uint64 catalog_changes = 0; /* heard of, of what it holds */
static bool definitions_valid = true;
static bool leaves_valid = true;
static uint64 generation = 0;

/* Memory of the caches; reset as a whole. */
static MemoryContext function_context = NULL;
static MemoryContext definition_context = NULL;
static FmgrInfo *function_info[ORCH_FN_COUNT];
static HTAB *plans = NULL;
static HTAB *definitions = NULL;
static HTAB *queues = NULL;
static HTAB *members = NULL;
static HTAB *claims = NULL;
static HTAB *queue_infos = NULL;
static HTAB *queue_depths = NULL;
static HTAB *quotas = NULL;
static HTAB *leaves = NULL;

static void invalidate(Datum arg, Oid relid);
static void invalidate_roles(Datum arg, int cache, uint32 hash);
static bool load_catalog(int elevel);
static bool is_served(const char *version, int elevel);
static int release_of(const char *version);
static void report_misfit(int elevel, const char *version, const char *hint);
static void load_states(void);
static void forget_definitions(void);
static HTAB *make_cache(const char *name, Size keysize, Size entrysize,
						int flags, MemoryContext context);
static Oid find_function(Oid schema, const char *name, int nargs,
						 const Oid *args);
static FmgrInfo *lookup_twin(FunctionCallInfo fcinfo);
static Datum call_twin(FunctionCallInfo fcinfo);
static bool is_attached(Oid relid);
static void read_plan(HeapTupleHeader row, OrchPlan *plan);
static HeapTuple fetch_row(const char *table, const char *index,
						   AttrNumber column, int32 id, TupleDesc *desc);
static void fill_definition(OrchDefinition *definition, HeapTuple row,
							TupleDesc desc);
static void fill_limits(OrchDefinition *definition, HeapTuple row,
						TupleDesc desc);
static void fill_limit(OrchLimit *limit, OrchLimitKind kind, HeapTuple row,
					   TupleDesc desc, const char *max_running,
					   const char *rate_limit, const char *rate_period);
static int32 column_int(HeapTuple row, TupleDesc desc, const char *column);
static HeapTuple fetch_current(int32 owner, const char *name);
static void fill_queue(OrchQueue *queue, HeapTuple row, TupleDesc desc);
static void fill_adaptive(OrchQueue *queue, HeapTuple row, TupleDesc desc);
static int32 fetch_last_running(int32 queue);

PG_FUNCTION_INFO_V1(orchestrator_as_owner);
PG_FUNCTION_INFO_V1(orchestrator_as_owner_loosely);
PG_FUNCTION_INFO_V1(orchestrator_has_partitions);
PG_FUNCTION_INFO_V1(orchestrator_invalidate);
PG_FUNCTION_INFO_V1(orchestrator_next_id);
PG_FUNCTION_INFO_V1(orchestrator_visible_owners);

void
orch_catalog_install(void)
{
	CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, invalidate_roles, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, invalidate_roles, (Datum) 0);
}

static void
invalidate(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relid == catalog.task_live)
	{
		catalog_valid = false;
		catalog_changes++;
	}
	if (!OidIsValid(relid) || relid == catalog.definition)
		definitions_valid = false;
	if (!OidIsValid(relid) || relid == catalog.task_finished)
		leaves_valid = false;
}

/*
 * What a name means to a role depends on what it is a member of.
 */
static void
invalidate_roles(Datum arg, int cache, uint32 hash)
{
	definitions_valid = false;
}

const OrchCatalog *
orch_catalog(bool missing_ok)
{
	if (!catalog_valid && !load_catalog(missing_ok ? LOG : ERROR))
	{
		if (missing_ok)
			return NULL;
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg(
				 "extension \"orchestrator\" is not installed in this database"),
			 errhint("Run CREATE EXTENSION orchestrator.")));
	}
	return &catalog;
}

/*
 * Resolve the OIDs anew.  When we hear of a change while we look, or cannot look
 * to the end, the next caller repeats.  False: there is no extension, or none
 * for us, which is reported.
 */
static bool
load_catalog(int elevel)
{
	Oid schema = get_namespace_oid(EXTENSION_NAME, true);
	char *version = orch_catalog_extension(&(Oid){InvalidOid}, NULL);
	uint64 changes = catalog_changes;
	Oid live;

	if (!OidIsValid(schema) || version == NULL)
		return false;
	live = get_relname_relid("task_live", schema);
	if (!OidIsValid(live) || !is_served(version, elevel))
		return false;

	/* what depends on the old OIDs */
	if (live != catalog.task_live)
	{
		definitions_valid = false;
		leaves_valid = false;
		memset(function_info, 0, sizeof(function_info));
	}

	catalog.schema = schema;
	catalog.task_live = live;
	catalog.task_finished = get_relname_relid("task_finished", schema);
	catalog.definition = get_relname_relid("definition", schema);
	catalog.task_id_seq = get_relname_relid("task_id_seq", schema);
	catalog.live_id = get_relname_relid("task_live_id", schema);
	catalog.live_ready = get_relname_relid("task_live_ready", schema);
	catalog.live_parked = get_relname_relid("task_live_parked", schema);
	catalog.live_due = get_relname_relid("task_live_due", schema);
	catalog.live_later = get_relname_relid("task_live_later", schema);
	catalog.live_running = get_relname_relid("task_live_running", schema);
	catalog.live_expire = get_relname_relid("task_live_expire", schema);
	catalog.live_parent = get_relname_relid("task_live_parent", schema);
	catalog.lease = get_relname_relid("lease", schema);
	catalog.lease_id = get_relname_relid("lease_pkey", schema);
	load_states();
	catalog_valid = changes == catalog_changes;
	return true;
}

char *
orch_catalog_extension(Oid *extension, Snapshot snapshot)
{
	Relation relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	char *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum(EXTENSION_NAME));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, snapshot,
							  1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum value = heap_getattr(tuple, Anum_pg_extension_extversion,
								   RelationGetDescr(relation), &isnull);

		*extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

static bool
is_served(const char *version, int elevel)
{
	int release = release_of(version);

	if (release > release_of(ORCHESTRATOR_VERSION))
		report_misfit(
			elevel, version,
			"Restart the server, so that it loads the library of that version.");
	else if (release < release_of(OLDEST_SERVED))
		report_misfit(elevel, version,
					  "Run ALTER EXTENSION orchestrator UPDATE.");
	else
		return true;
	return false;
}

/*
 * A number to compare, of what stands before the patch level.
 */
static int
release_of(const char *version)
{
	int major = 0;
	int minor = 0;

	(void) sscanf(version, "%d.%d", &major, &minor);
	return major * 1000 + minor;
}

static void
report_misfit(int elevel, const char *version, const char *hint)
{
	ereport(elevel,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the library of orchestrator %s does not serve version "
					"%s of the extension in database \"%s\"",
					ORCHESTRATOR_VERSION, version,
					get_database_name(MyDatabaseId)),
			 errhint("%s", hint)));
}

void
orch_catalog_meet(const char *version)
{
	Oid schema = get_namespace_oid(EXTENSION_NAME, true);
	Oid live = OidIsValid(schema) ? get_relname_relid("task_live", schema)
								  : InvalidOid;

	if (release_of(version) > release_of(ORCHESTRATOR_VERSION))
		(void) is_served(version, ERROR);
	if (OidIsValid(live))
		CacheInvalidateRelcacheByRelid(live);
}

static void
load_states(void)
{
	HeapTuple class;

	catalog.state_type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
										 CStringGetDatum("task_state"),
										 ObjectIdGetDatum(catalog.schema));
	for (int i = 0; i < ORCH_STATES; i++)
	{
		HeapTuple label = SearchSysCache2(ENUMTYPOIDNAME,
										  ObjectIdGetDatum(catalog.state_type),
										  CStringGetDatum(orch_state_name(i)));

		if (!HeapTupleIsValid(label))
			elog(ERROR, "state \"%s\" is missing", orch_state_name(i));
		catalog.states[i] = ((Form_pg_enum) GETSTRUCT(label))->oid;
		ReleaseSysCache(label);
	}

	class = SearchSysCache1(RELOID, ObjectIdGetDatum(catalog.task_live));
	if (!HeapTupleIsValid(class))
		elog(ERROR, "cache lookup failed for relation %u", catalog.task_live);
	catalog.owner = ((Form_pg_class) GETSTRUCT(class))->relowner;
	ReleaseSysCache(class);
}

OrchState
orch_catalog_state(Oid label)
{
	for (int i = 0; i < ORCH_STATES; i++)
	{
		if (catalog.states[i] == label)
			return (OrchState) i;
	}
	elog(ERROR, "unknown state %u", label);
}

void
orch_catalog_begin_owner(OrchIdentity *saved)
{
	Oid owner = orch_catalog(false)->owner;

	GetUserIdAndSecContext(&saved->userid, &saved->context);
	SetUserIdAndSecContext(owner,
						   saved->context | SECURITY_LOCAL_USERID_CHANGE);
}

void
orch_catalog_end_owner(const OrchIdentity *saved)
{
	SetUserIdAndSecContext(saved->userid, saved->context);
}

void
orch_catalog_require_flush(void)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF && !IsInParallelMode())
		set_config_option("synchronous_commit", "local", PGC_USERSET,
						  PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

void
orch_catalog_require_writes(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
}

static Oid
find_function(Oid schema, const char *name, int nargs, const Oid *args)
{
	oidvector *vector = buildoidvector(args, nargs);
	Oid function = GetSysCacheOid3(
		PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
		PointerGetDatum(vector), ObjectIdGetDatum(schema));

	pfree(vector);
	if (!OidIsValid(function))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("function orchestrator.%s is missing", name),
						errhint("Run ALTER EXTENSION orchestrator UPDATE.")));
	return function;
}

Datum
orch_catalog_call(OrchFunction function, int nargs, const NullableDatum *args,
				  bool *isnull)
{
	LOCAL_FCINFO(fcinfo, MAX_FUNCTION_ARGS);
	OrchIdentity saved;
	Datum result;

	Assert(nargs == functions[function].nargs);
	orch_catalog_begin_owner(&saved);
	if (function_info[function] == NULL)
	{
		Oid oid = find_function(catalog.schema, functions[function].name,
								nargs, functions[function].args);
		FmgrInfo *info;

		if (function_context == NULL)
			function_context = AllocSetContextCreate(TopMemoryContext,
													 "orchestrator functions",
													 ALLOCSET_SMALL_SIZES);
		info = MemoryContextAllocZero(function_context, sizeof(FmgrInfo));
		fmgr_info_cxt(oid, info, function_context);
		function_info[function] = info;
	}

	InitFunctionCallInfoData(*fcinfo, function_info[function], nargs,
							 InvalidOid, NULL, NULL);
	for (int i = 0; i < nargs; i++)
		fcinfo->args[i] = args[i];
	result = FunctionCallInvoke(fcinfo);
	orch_catalog_end_owner(&saved);

	if (isnull != NULL)
		*isnull = fcinfo->isnull;
	else if (fcinfo->isnull)
		elog(ERROR, "function orchestrator.%s returned null",
			 functions[function].name);
	return result;
}

/*
 * orchestrator.<name>(...) -> orchestrator._<name>(caller oid, ...)
 *
 * Every public function that changes state: runs its internal twin as the
 * owner of the extension and tells it the role that called.
 */
Datum
orchestrator_as_owner(PG_FUNCTION_ARGS)
{
	orch_catalog_require_flush();
	return call_twin(fcinfo);
}

/*
 * The same for calls of which a crash may take the last ones back: a claim that
 * is lost is only a task that waits again, and the report on it is refused.
 * The commit is as the session has it.
 */
Datum
orchestrator_as_owner_loosely(PG_FUNCTION_ARGS)
{
	return call_twin(fcinfo);
}

static Datum
call_twin(FunctionCallInfo fcinfo)
{
	LOCAL_FCINFO(inner, FUNC_MAX_ARGS);
	FmgrInfo *twin = fcinfo->flinfo->fn_extra;
	OrchIdentity saved;
	Datum result;

	if (twin == NULL)
		twin = fcinfo->flinfo->fn_extra = lookup_twin(fcinfo);
	InitFunctionCallInfoData(*inner, twin, PG_NARGS() + 1, PG_GET_COLLATION(),
							 NULL,
							 twin->fn_retset ? fcinfo->resultinfo : NULL);
	inner->args[0].value = ObjectIdGetDatum(GetUserId());
	inner->args[0].isnull = false;
	for (int i = 0; i < PG_NARGS(); i++)
		inner->args[i + 1] = fcinfo->args[i];

	orch_catalog_begin_owner(&saved);
	result = FunctionCallInvoke(inner);
	orch_catalog_end_owner(&saved);

	fcinfo->isnull = inner->isnull;
	return result;
}

static FmgrInfo *
lookup_twin(FunctionCallInfo fcinfo)
{
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	FmgrInfo *twin = MemoryContextAlloc(context, sizeof(FmgrInfo));
	HeapTuple tuple =
		SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Form_pg_proc proc;
	Oid args[FUNC_MAX_ARGS];
	char *name;
	Oid schema;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u",
			 fcinfo->flinfo->fn_oid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	name = psprintf("_%s", NameStr(proc->proname));
	schema = proc->pronamespace;
	args[0] = OIDOID;
	memcpy(&args[1], proc->proargtypes.values, proc->pronargs * sizeof(Oid));
	fmgr_info_cxt(find_function(schema, name, proc->pronargs + 1, args), twin,
				  context);
	ReleaseSysCache(tuple);
	return twin;
}

/*
 * orchestrator._invalidate(): every session forgets roles, definitions and
 * queues when this transaction commits.
 */
Datum
orchestrator_invalidate(PG_FUNCTION_ARGS)
{
	CacheInvalidateRelcacheByRelid(orch_catalog(false)->definition);
	PG_RETURN_VOID();
}

/*
 * orchestrator._visible_owners() -> int[]: owners whose rows the current user
 * may see; the policies of row-level security ask once per query.
 */
Datum
orchestrator_visible_owners(PG_FUNCTION_ARGS)
{
	NullableDatum arg = {ObjectIdGetDatum(GetUserId()), false};

	orch_catalog(false);
	return orch_catalog_call(ORCH_FN_VISIBLE_OWNERS_OF, 1, &arg, NULL);
}

bool
orch_catalog_may_see(int32 owner)
{
	NullableDatum arg = {ObjectIdGetDatum(GetUserId()), false};
	ArrayType *owners;
	int32 *values;
	int n;

	orch_catalog(false);
	owners = DatumGetArrayTypeP(
		orch_catalog_call(ORCH_FN_VISIBLE_OWNERS_OF, 1, &arg, NULL));
	n = ArrayGetNItems(ARR_NDIM(owners), ARR_DIMS(owners));
	values = (int32 *) ARR_DATA_PTR(owners);
	for (int i = 0; i < n; i++)
	{
		if (values[i] == owner)
			return true;
	}
	return false;
}

static HTAB *
make_cache(const char *name, Size keysize, Size entrysize, int flags,
		   MemoryContext context)
{
	HASHCTL control = {
		.keysize = keysize, .entrysize = entrysize, .hcxt = context};

	return hash_create(name, 64, &control, HASH_ELEM | HASH_CONTEXT | flags);
}

/*
 * Start the caches of definitions and queues over when something changed.
 */
static void
forget_definitions(void)
{
	if (definitions_valid && definition_context != NULL)
		return;
	if (definition_context == NULL)
		definition_context =
			AllocSetContextCreate(TopMemoryContext, "orchestrator definitions",
								  ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(definition_context);
	plans = make_cache("orchestrator plans", sizeof(NameKey),
					   sizeof(PlanEntry), HASH_BLOBS, definition_context);
	queues = make_cache("orchestrator queue names", sizeof(NameKey),
						sizeof(QueueEntry), HASH_BLOBS, definition_context);
	members = make_cache("orchestrator members", sizeof(Oid),
						 sizeof(MembersEntry), HASH_BLOBS, definition_context);
	claims = make_cache("orchestrator claims", sizeof(ClaimsKey),
						sizeof(ClaimsEntry), HASH_BLOBS, definition_context);
	definitions =
		make_cache("orchestrator definitions", sizeof(int32),
				   sizeof(OrchDefinition), HASH_BLOBS, definition_context);
	queue_infos =
		make_cache("orchestrator queues", sizeof(int32), sizeof(OrchQueue),
				   HASH_BLOBS, definition_context);
	queue_depths =
		make_cache("orchestrator queue depths", sizeof(int32),
				   sizeof(OrchQueueDepth), HASH_BLOBS, definition_context);
	quotas = make_cache("orchestrator quotas", sizeof(int32),
						sizeof(OrchQuota), HASH_BLOBS, definition_context);
	definitions_valid = true;
	generation++;
}

uint64
orch_catalog_generation(void)
{
	forget_definitions();
	return generation;
}

int64
orch_catalog_next_id(void)
{
	return nextval_internal(orch_catalog(false)->task_id_seq, false) |
		   ((int64) orch_node_id << NODE_SHIFT);
}

Datum
orchestrator_next_id(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(orch_catalog_next_id());
}

static void
read_plan(HeapTupleHeader row, OrchPlan *plan)
{
	bool isnull;
	Datum timeout;

	plan->definition =
		DatumGetInt32(GetAttributeByName(row, "definition_id", &isnull));
	plan->owner = DatumGetInt32(GetAttributeByName(row, "owner_id", &isnull));
	plan->queue = DatumGetInt32(GetAttributeByName(row, "queue", &isnull));
	plan->priority =
		DatumGetInt32(GetAttributeByName(row, "priority", &isnull));
	plan->max_attempts =
		DatumGetInt32(GetAttributeByName(row, "max_attempts", &isnull));
	plan->notify = DatumGetBool(GetAttributeByName(row, "notify", &isnull));
	plan->is_workflow = plan->is_remote = plan->is_call = false;
	plan->run_timeout = 0;
	timeout = GetAttributeByName(row, "queue_timeout", &isnull);
	plan->has_queue_timeout = !isnull;
	if (!isnull)
		plan->queue_timeout = *DatumGetIntervalP(timeout);
}

/*
 * The key of a name for a role.  False: no name is that long.
 */
static bool
fill_key(NameKey *key, Oid roleoid, const char *name)
{
	HeapTuple role;

	memset(key, 0, sizeof(*key));
	key->roleoid = roleoid;
	role = SearchSysCache1(AUTHOID, ObjectIdGetDatum(key->roleoid));
	if (!HeapTupleIsValid(role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", key->roleoid)));
	key->role = ((Form_pg_authid) GETSTRUCT(role))->rolname;
	ReleaseSysCache(role);
	return strlcpy(key->name, name, sizeof(key->name)) < sizeof(key->name);
}

/*
 * Whether an answer of SQL may be remembered: not when something changed since
 * it was asked for, in this generation of the caches, nor when the transaction
 * sees what was true when it began.
 */
static bool
may_remember(uint64 asked_in)
{
	return definitions_valid && generation == asked_in &&
		   !IsolationUsesXactSnapshot();
}

/*
 * Ask SQL what a name stands for to a role.
 */
static Datum
resolve(OrchFunction function, Oid role, const char *name)
{
	NullableDatum args[2];

	args[0].value = ObjectIdGetDatum(role);
	args[0].isnull = false;
	args[1].value = CStringGetTextDatum(name);
	args[1].isnull = false;
	return orch_catalog_call(function, 2, args, NULL);
}

const OrchPlan *
orch_catalog_plan(const char *definition)
{
	static OrchPlan plan;
	const OrchDefinition *known;
	NameKey key;
	PlanEntry *entry = NULL;
	bool fits = fill_key(&key, GetUserId(), definition);
	uint64 asked_in = orch_catalog_generation();

	if (fits)
		entry = hash_search(plans, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return &entry->plan;
	read_plan(DatumGetHeapTupleHeader(resolve(ORCH_FN_RESOLVE_DEFINITION,
											  GetUserId(), definition)),
			  &plan);
	known = orch_catalog_definition(plan.definition);
	plan.is_workflow = known != NULL && known->kind == ORCH_KIND_WORKFLOW;
	plan.is_remote = known != NULL && known->kind == ORCH_KIND_REMOTE;
	plan.is_call = known != NULL && known->kind > ORCH_KIND_REMOTE;
	plan.run_timeout = plan.is_workflow ? known->timeout : 0;

	/* resolving may have invalidated: then the answer serves once */
	if (!may_remember(asked_in) || !fits)
		return &plan;
	entry = hash_search(plans, &key, HASH_ENTER, NULL);
	entry->plan = plan;
	return &entry->plan;
}

void
orch_catalog_run_plan(Datum kind, NullableDatum max_attempts,
					  NullableDatum timeout, OrchPlan *plan)
{
	NullableDatum args[4];

	args[0].value = ObjectIdGetDatum(GetUserId());
	args[0].isnull = false;
	args[1].value = kind;
	args[1].isnull = false;
	args[2] = max_attempts;
	args[3] = timeout;
	read_plan(DatumGetHeapTupleHeader(
				  orch_catalog_call(ORCH_FN_RUN_DEFINITION, 4, args, NULL)),
			  plan);
}

int32
orch_catalog_queue(const char *queue)
{
	return orch_catalog_queue_of(GetUserId(), queue);
}

int32
orch_catalog_queue_of(Oid role, const char *queue)
{
	NameKey key;
	QueueEntry *entry = NULL;
	bool fits = fill_key(&key, role, queue);
	uint64 asked_in = orch_catalog_generation();
	int32 id;

	if (fits)
		entry = hash_search(queues, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->queue;
	id = DatumGetInt32(resolve(ORCH_FN_RESOLVE_QUEUE, role, queue));
	if (may_remember(asked_in) && fits)
	{
		entry = hash_search(queues, &key, HASH_ENTER, NULL);
		entry->queue = id;
	}
	return id;
}

int32 *
orch_catalog_members(Oid role, int *n)
{
	MembersEntry *entry;
	NullableDatum arg = {ObjectIdGetDatum(role), false};
	uint64 asked_in = orch_catalog_generation();
	ArrayType *array;
	int32 *owners;

	entry = hash_search(members, &role, HASH_FIND, NULL);
	if (entry != NULL)
	{
		*n = entry->n;
		owners = palloc(Max(*n, 1) * sizeof(int32));
		memcpy(owners, entry->owners, *n * sizeof(int32));
		return owners;
	}
	array = DatumGetArrayTypeP(
		orch_catalog_call(ORCH_FN_MEMBER_OWNERS, 1, &arg, NULL));
	*n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	owners = palloc(Max(*n, 1) * sizeof(int32));
	memcpy(owners, ARR_DATA_PTR(array), *n * sizeof(int32));
	if (may_remember(asked_in))
	{
		int32 *kept =
			MemoryContextAlloc(definition_context, Max(*n, 1) * sizeof(int32));

		memcpy(kept, owners, *n * sizeof(int32));
		entry = hash_search(members, &role, HASH_ENTER, NULL);
		entry->n = *n;
		entry->owners = kept;
	}
	return owners;
}

bool
orch_catalog_claims_all(Oid role, int32 queue)
{
	ClaimsKey key = {role, queue};
	ClaimsEntry *entry;
	NullableDatum args[2] = {{ObjectIdGetDatum(role), false},
							 {Int32GetDatum(queue), false}};
	uint64 asked_in = orch_catalog_generation();
	bool all;

	entry = hash_search(claims, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->all;
	all = DatumGetBool(orch_catalog_call(ORCH_FN_CLAIMS_ALL, 2, args, NULL));
	if (may_remember(asked_in))
	{
		entry = hash_search(claims, &key, HASH_ENTER, NULL);
		entry->all = all;
	}
	return all;
}

/*
 * Whether a table is a partition, and not about to be detached.
 */
static bool
is_attached(Oid relid)
{
	return OidIsValid(relid) && get_rel_relispartition(relid) &&
		   !PartitionHasPendingDetach(relid);
}

/*
 * orchestrator._has_partitions(id): of finished rows and of the trace.
 */
Datum
orchestrator_has_partitions(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {"task_finished", "trace_log"};
	int64 range = PG_GETARG_INT64(0) / ORCH_IDS_PER_PARTITION;
	Oid schema = orch_catalog(false)->schema;

	for (int i = 0; i < lengthof(kinds); i++)
	{
		char name[NAMEDATALEN];

		snprintf(name, sizeof(name), "%s_" INT64_FORMAT, kinds[i], range);
		if (!is_attached(get_relname_relid(name, schema)))
			PG_RETURN_BOOL(false);
	}
	PG_RETURN_BOOL(true);
}

Oid
orch_catalog_finished(int64 id)
{
	int64 range = id / ORCH_IDS_PER_PARTITION;
	char name[NAMEDATALEN];
	LeafEntry *entry;
	Oid leaf;

	if (leaves == NULL)
		leaves = make_cache("orchestrator leaves", sizeof(int64),
							sizeof(LeafEntry), HASH_BLOBS, TopMemoryContext);
	if (!leaves_valid)
	{
		HASH_SEQ_STATUS scan;

		hash_seq_init(&scan, leaves);
		while ((entry = hash_seq_search(&scan)) != NULL)
			hash_search(leaves, &entry->range, HASH_REMOVE, NULL);
		leaves_valid = true;
	}
	entry = hash_search(leaves, &range, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->leaf;

	snprintf(name, sizeof(name), "task_finished_" INT64_FORMAT, range);
	leaf = get_relname_relid(name, orch_catalog(false)->schema);
	if (!is_attached(leaf))
	{
		NullableDatum arg = {Int64GetDatum(id), false};

		orch_catalog_call(ORCH_FN_MAKE_PARTITIONS, 1, &arg, &(bool){false});
		CommandCounterIncrement();
		leaf = get_relname_relid(name, catalog.schema);
		if (!is_attached(leaf))
			elog(ERROR, "partition \"%s\" was not made", name);

		/* it may yet be rolled back: look again next time */
		return leaf;
	}
	entry = hash_search(leaves, &range, HASH_ENTER, NULL);
	entry->leaf = leaf;
	return leaf;
}

/*
 * One row of an engine's table by its integer key, copied; NULL when there is
 * none.  Reads with a catalog snapshot: the newest committed.
 */
static HeapTuple
fetch_row(const char *table, const char *index, AttrNumber column, int32 id,
		  TupleDesc *desc)
{
	Oid schema = orch_catalog(false)->schema;
	Relation rel =
		table_open(get_relname_relid(table, schema), AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(id));
	scan = systable_beginscan(rel, get_relname_relid(index, schema), true,
							  snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	*desc = CreateTupleDescCopy(RelationGetDescr(rel));
	table_close(rel, AccessShareLock);
	return tuple;
}

HeapTuple
orch_catalog_fetch_definition(int32 id, TupleDesc *desc)
{
	return fetch_row("definition", "definition_pkey", 1, id, desc);
}

const OrchDefinition *
orch_catalog_definition(int32 id)
{
	OrchDefinition *entry;
	OrchDefinition definition = {.id = id};
	TupleDesc desc;
	HeapTuple row;

	forget_definitions();
	entry = hash_search(definitions, &id, HASH_FIND, NULL);
	if (entry == NULL)
	{
		row = orch_catalog_fetch_definition(id, &desc);
		definition.valid = row != NULL;
		if (row != NULL)
		{
			fill_definition(&definition, row, desc);
			heap_freetuple(row);
		}
		entry = hash_search(definitions, &id, HASH_ENTER, NULL);
		*entry = definition;
	}
	return entry->valid ? entry : NULL;
}

static char *
column_text(HeapTuple row, TupleDesc desc, const char *column)
{
	int number = SPI_fnumber(desc, column);
	char *value;

	if (number <= 0)
		elog(ERROR, "column \"%s\" is missing", column);
	value = SPI_getvalue(row, desc, number);
	return value == NULL ? NULL
						 : MemoryContextStrdup(definition_context, value);
}

/*
 * An interval as milliseconds, at least one; 0 when it is null.
 */
static int64
column_milliseconds(HeapTuple row, TupleDesc desc, const char *column)
{
	bool isnull;
	Datum value = heap_getattr(row, SPI_fnumber(desc, column), desc, &isnull);
	Interval *span;

	if (isnull)
		return 0;
	span = DatumGetIntervalP(value);
	return Max(
		(span->time +
		 ((int64) span->month * DAYS_PER_MONTH + span->day) * USECS_PER_DAY) /
			1000,
		1);
}

/*
 * 0 when it is null.
 */
static int32
column_int(HeapTuple row, TupleDesc desc, const char *column)
{
	bool isnull;
	Datum value = heap_getattr(row, SPI_fnumber(desc, column), desc, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

static void
fill_definition(OrchDefinition *definition, HeapTuple row, TupleDesc desc)
{
	static const char *const kinds[] = {
		"function", "sql",		 "procedure", "utility", "workflow",
		"map",		"batch",	 "wait",	  "remote",	 "http",
		"llm",		"embedding", "tool",	  "webhook", "summarize"};
	char *kind = column_text(row, desc, "kind");
	char *policy = column_text(row, desc, "timeout_policy");
	char *notify = column_text(row, desc, "notify");
	char *request = column_text(row, desc, "request");

	definition->kind = ORCH_KIND_FUNCTION;
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kind, kinds[i]) == 0)
			definition->kind = (OrchKind) i;
	}
	definition->name = column_text(row, desc, "name");
	definition->handler = column_text(row, desc, "handler");
	definition->handler_owner = column_text(row, desc, "handler_owner");
	definition->timeout = column_milliseconds(row, desc, "timeout");
	definition->response_timeout =
		column_milliseconds(row, desc, "response_timeout");
	definition->timeout_alerts = strcmp(policy, "alert") == 0;
	definition->notify = strcmp(notify, "off") != 0;
	definition->notify_all = strcmp(notify, "all") == 0;
	definition->has_callbacks =
		column_text(row, desc, "success_callback") != NULL ||
		column_text(row, desc, "failure_callback") != NULL;
	definition->batch_size = column_int(row, desc, "batch_size");
	definition->batch_wait = column_milliseconds(row, desc, "batch_wait");
	definition->endpoint = column_text(row, desc, "endpoint");
	definition->expects =
		definition->kind > ORCH_KIND_HTTP ||
		(request != NULL && strstr(request, "\"expect\": ") != NULL);
	fill_limits(definition, row, desc);
}

const OrchQueue *
orch_catalog_queue_info(int32 id)
{
	OrchQueue *entry;
	OrchQueue queue = {.id = id};
	TupleDesc desc;
	HeapTuple row;

	forget_definitions();
	entry = hash_search(queue_infos, &id, HASH_FIND, NULL);
	if (entry == NULL)
	{
		row = fetch_row("queue", "queue_pkey", 1, id, &desc);
		queue.valid = row != NULL;
		if (row != NULL)
			fill_queue(&queue, row, desc);
		entry = hash_search(queue_infos, &id, HASH_ENTER, NULL);
		*entry = queue;
	}
	return entry->valid ? entry : NULL;
}

static bool
is_paused(HeapTuple row, TupleDesc desc)
{
	bool isnull;

	return DatumGetBool(
		heap_getattr(row, SPI_fnumber(desc, "paused"), desc, &isnull));
}

static void
fill_queue(OrchQueue *queue, HeapTuple row, TupleDesc desc)
{
	char *path = column_text(row, desc, "tenant");
	char *weights = column_text(row, desc, "tenant_weights");
	MemoryContext old = MemoryContextSwitchTo(definition_context);

	queue->weight = column_int(row, desc, "weight");
	queue->paused = is_paused(row, desc);
	fill_limit(&queue->limit, ORCH_LIMIT_QUEUE, row, desc, "max_running",
			   "rate_limit", "rate_period");
	queue->limit.id = orch_permit_id(ORCH_LIMIT_QUEUE, queue->id, "", 0);
	fill_adaptive(queue, row, desc);
	if (path != NULL)
	{
		queue->tenant =
			DirectFunctionCall1(jsonpath_in, CStringGetDatum(path));
		queue->no_variables =
			DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	}
	if (weights != NULL)
		queue->tenant_weights =
			DirectFunctionCall1(jsonb_in, CStringGetDatum(weights));
	MemoryContextSwitchTo(old);
}

/*
 * The limits of a definition are those of its current version: they are about
 * what runs now, not about what a task is.
 */
static void
fill_limits(OrchDefinition *definition, HeapTuple row, TupleDesc desc)
{
	int32 owner = column_int(row, desc, "owner");
	bool isnull;
	HeapTuple current = NULL;

	if (!DatumGetBool(heap_getattr(row, SPI_fnumber(desc, "is_current"), desc,
								   &isnull)) &&
		strncmp(definition->name, "orchestrator.", 13) != 0)
		current = fetch_current(owner, definition->name);
	if (current != NULL)
		row = current;
	fill_limit(&definition->limit, ORCH_LIMIT_DEFINITION, row, desc,
			   "max_running", "rate_limit", "rate_period");
	definition->limit.id =
		orch_permit_id(ORCH_LIMIT_DEFINITION, owner, definition->name,
					   strlen(definition->name));
	fill_limit(&definition->key_limit, ORCH_LIMIT_KEY, row, desc,
			   "key_max_running", "key_rate_limit", "key_rate_period");
	definition->key_limit.id = definition->limit.id;
	definition->key_path = column_text(row, desc, "concurrency_key");
	definition->key = NULL;
	if (current != NULL)
		heap_freetuple(current);
}

static void
fill_limit(OrchLimit *limit, OrchLimitKind kind, HeapTuple row, TupleDesc desc,
		   const char *max_running, const char *rate_limit,
		   const char *rate_period)
{
	memset(limit, 0, sizeof(OrchLimit));
	limit->kind = kind;
	limit->owner = column_int(row, desc, "owner");
	limit->max_running = column_int(row, desc, max_running);
	limit->rate_limit = column_int(row, desc, rate_limit);
	limit->rate_period = column_milliseconds(row, desc, rate_period) * 1000;
}

/*
 * The current version of a definition, copied; NULL: it was withdrawn.
 */
static HeapTuple
fetch_current(int32 owner, const char *name)
{
	Oid schema = orch_catalog(false)->schema;
	Relation rel =
		table_open(orch_catalog(false)->definition, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple row;

	ScanKeyInit(&keys[0], 2, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(owner));
	ScanKeyInit(&keys[1], 3, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	scan = systable_beginscan(rel,
							  get_relname_relid("definition_current", schema),
							  true, snapshot, 2, keys);
	row = systable_getnext(scan);
	if (HeapTupleIsValid(row))
		row = heap_copytuple(row);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return row;
}

/*
 * An adaptive queue starts where it was when the server ended, if it was.
 */
static void
fill_adaptive(OrchQueue *queue, HeapTuple row, TupleDesc desc)
{
	int32 max_running = queue->limit.max_running;
	bool isnull;

	if (max_running == 0 ||
		!DatumGetBool(
			heap_getattr(row, SPI_fnumber(desc, "adaptive"), desc, &isnull)))
		return;
	queue->min_running = Max(column_int(row, desc, "min_running"), 1);
	queue->last_running = fetch_last_running(queue->id);
	if (queue->last_running > 0)
		queue->limit.adaptive =
			Max(Min(queue->last_running, max_running), queue->min_running);
	else
		queue->limit.adaptive =
			orch_adapt_start(queue->min_running, max_running);
}

/*
 * What was last decided of an adaptive queue; 0: nothing.
 */
static int32
fetch_last_running(int32 queue)
{
	Oid schema = orch_catalog(false)->schema;
	Relation rel = table_open(get_relname_relid("queue_decision", schema),
							  AccessShareLock);
	Relation index = index_open(
		get_relname_relid("queue_decision_pkey", schema), AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	int column = get_attnum(RelationGetRelid(rel), "running");
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple row;
	bool isnull;
	int32 running = 0;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(queue));
	scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
	row = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(row))
		running = DatumGetInt32(
			heap_getattr(row, column, RelationGetDescr(rel), &isnull));
	systable_endscan_ordered(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return running;
}

/*
 * That it is paused is not remembered: who resumes a queue wakes us before its
 * invalidations are sent, and we would sleep again on what we remember.
 */
bool
orch_catalog_queue_paused(int32 id)
{
	const OrchQueue *queue = orch_catalog_queue_info(id);
	TupleDesc desc;
	HeapTuple row;
	bool paused;

	if (queue == NULL || !queue->paused)
		return false;
	row = fetch_row("queue", "queue_pkey", 1, id, &desc);
	paused = row != NULL && is_paused(row, desc);
	if (!paused)
		(void) hash_search(queue_infos, &id, HASH_REMOVE, NULL);
	return paused;
}

const OrchQueueDepth *
orch_catalog_queue_depth(int32 queue)
{
	OrchQueueDepth depth;
	OrchQueueDepth *entry;
	TupleDesc desc;
	HeapTuple row;

	forget_definitions();
	entry = hash_search(queue_depths, &queue, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;
	memset(&depth, 0, sizeof(depth));
	depth.queue = queue;
	row = fetch_row("queue", "queue_pkey", 1, queue, &desc);
	if (row != NULL)
	{
		char *on_full = column_text(row, desc, "on_full");

		depth.max_depth = column_int(row, desc, "max_depth");
		depth.on_full = strcmp(on_full, "wait") == 0	? ORCH_FULL_WAIT
						: strcmp(on_full, "defer") == 0 ? ORCH_FULL_DEFER
														: ORCH_FULL_REJECT;
		depth.full_wait = column_milliseconds(row, desc, "full_wait");
		depth.alerts = column_int(row, desc, "alert_depth") > 0 ||
					   column_milliseconds(row, desc, "alert_age") > 0;
		strlcpy(depth.name, column_text(row, desc, "name"),
				sizeof(depth.name));
		heap_freetuple(row);
	}
	entry = hash_search(queue_depths, &queue, HASH_ENTER, NULL);
	*entry = depth;
	return entry;
}

/*
 * A role's own, or everybody's.
 */
const OrchQuota *
orch_catalog_quota(int32 owner)
{
	OrchQuota quota;
	OrchQuota *entry;
	TupleDesc desc;
	HeapTuple row;

	forget_definitions();
	entry = hash_search(quotas, &owner, HASH_FIND, NULL);
	if (entry != NULL)
		return entry;
	memset(&quota, 0, sizeof(quota));
	quota.owner = owner;
	row = fetch_row("role_quota", "role_quota_pkey", 1, owner, &desc);
	if (row == NULL)
		row = fetch_row("role_quota", "role_quota_pkey", 1, 0, &desc);
	if (row != NULL)
	{
		quota.max_queued = column_int(row, desc, "max_queued");
		quota.max_running = column_int(row, desc, "max_running");
		quota.max_schedules = column_int(row, desc, "max_schedules");
		heap_freetuple(row);
	}
	entry = hash_search(quotas, &owner, HASH_ENTER, NULL);
	*entry = quota;
	return entry;
}

char *
orch_catalog_owner_name(int32 owner)
{
	TupleDesc desc;
	HeapTuple row = fetch_row("owner", "owner_pkey", 1, owner, &desc);
	bool isnull;

	if (row == NULL)
		elog(ERROR, "owner %d is missing", owner);
	return NameStr(*DatumGetName(heap_getattr(row, 3, desc, &isnull)));
}

const char *
orch_catalog_cannot_run(int32 owner, Oid *roleoid)
{
	TupleDesc desc;
	HeapTuple row = fetch_row("owner", "owner_pkey", 1, owner, &desc);
	HeapTuple role;
	const char *reason = NULL;
	bool isnull;
	char *name;

	if (row == NULL)
		return "its owner is not known here";
	*roleoid = DatumGetObjectId(heap_getattr(row, 2, desc, &isnull));
	name = NameStr(*DatumGetName(heap_getattr(row, 3, desc, &isnull)));
	role = SearchSysCache1(AUTHOID, ObjectIdGetDatum(*roleoid));
	if (!HeapTupleIsValid(role))
		return "its role was dropped";
	if (strcmp(name, NameStr(((Form_pg_authid) GETSTRUCT(role))->rolname)) !=
		0)
		reason = "its role was renamed or replaced";
	else if (!((Form_pg_authid) GETSTRUCT(role))->rolcanlogin)
		reason = "its role may not log in";
	else if (((Form_pg_authid) GETSTRUCT(role))->rolsuper &&
			 !orch_superuser_tasks)
		reason = "tasks of superusers are not allowed in this server";
	ReleaseSysCache(role);
	if (reason == NULL && !orch_may_connect(MyDatabaseId, *roleoid))
		reason = "its role may not connect to this database";
	return reason;
}
