/*
 * handler.c
 *	  What a definition's handler is: functions by OID, commands by plan.
 *
 * A definition stores the text of a signature and the name of the function's
 * owner, since OIDs change with dump, restore and pg_upgrade.  The OID found
 * is kept until the catalogs of functions or schemas change.  The right to
 * execute is asked at every call, because fmgr asks nothing.
 *
 * PL and C functions are called by OID.  A function of LANGUAGE sql would be
 * parsed again in every subtransaction (PostgreSQL 15's fmgr_sql), so it goes
 * through a kept plan, as commands do, where its name says which is meant.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "guc.h"
#include "handler.h"

/* What stands behind the name in a signature. */
#define ONE_INPUT	"(jsonb)"
#define MANY_INPUTS "(jsonb[])"

/* In the place of a constraint's name: what was given cannot be kept. */
#define FINAL_MARK "orchestrator.max_input_size"

typedef struct Handler
{
	int32 definition; /* hash key */
	bool valid;
	Oid function;
	bool returns_void;
	bool by_plan;
	FmgrInfo info;
	SPIPlanPtr plan;
} Handler;

static HTAB *handlers = NULL;
static MemoryContext handler_context = NULL;
static bool catalogs_changed = false;

static void note_change(Datum arg, int cacheid, uint32 hashvalue);
static Handler *find_handler(const OrchTask *task);
static void forget_handlers(void);
static void resolve_function(Handler *handler, const OrchTask *task);
static List *function_name(const OrchTask *task);
static bool is_meant_by_name(const OrchTask *task, Oid function);
static void check_function(const OrchTask *task, Oid function, char prokind);
static Oid value_type(const OrchTask *task);
static bool call_handler(const OrchTask *task, Datum input, Datum *output,
						 uint64 *rows);
static bool call_function(Handler *handler, Datum input, Datum *output);
static bool call_plan(Handler *handler, const OrchTask *task, Datum input,
					  Datum *output, uint64 *rows);
static bool run_command(const OrchTask *task, SPIPlanPtr plan, Datum input,
						Datum *output, uint64 *rows);
static Datum command_output(int result, MemoryContext context);
static Datum rows_to_jsonb(MemoryContext context);
static void mark_final(void *arg);
static SPIPlanPtr keep_plan(const char *command, Oid argument);
static char *command_text(const OrchTask *task);
static void check_executable(const OrchTask *task, Oid function);
static void check_utility(Node *command);
static void run_in_portal(const char *command, ParamListInfo params);

void
orch_handler_install(void)
{
	HASHCTL control = {.keysize = sizeof(int32), .entrysize = sizeof(Handler)};

	handler_context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator handlers", ALLOCSET_DEFAULT_SIZES);
	control.hcxt = TopMemoryContext;
	handlers = hash_create("orchestrator handlers", 64, &control,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterSyscacheCallback(PROCOID, note_change, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, note_change, (Datum) 0);
}

static void
note_change(Datum arg, int cacheid, uint32 hashvalue)
{
	catalogs_changed = true;
}

static void
forget_handlers(void)
{
	HASH_SEQ_STATUS scan;
	Handler *handler;

	hash_seq_init(&scan, handlers);
	while ((handler = hash_seq_search(&scan)) != NULL)
	{
		if (handler->plan != NULL)
			SPI_freeplan(handler->plan);
		hash_search(handlers, &handler->definition, HASH_REMOVE, NULL);
	}
	MemoryContextReset(handler_context);
	catalogs_changed = false;
}

static Handler *
find_handler(const OrchTask *task)
{
	Handler *handler;
	bool found;

	if (catalogs_changed)
		forget_handlers();
	handler = hash_search(handlers, &task->definition->id, HASH_ENTER, &found);
	if (!found)
	{
		handler->valid = false;
		handler->plan = NULL;
	}
	if (!handler->valid)
	{
		if (task->definition->kind == ORCH_KIND_FUNCTION)
			resolve_function(handler, task);
		else
			handler->by_plan = true;
		handler->valid = true;
	}
	return handler;
}

/*
 * The type of a handler's argument and result.
 */
static Oid
value_type(const OrchTask *task)
{
	return ORCH_TAKES_MANY(task->definition) ? JSONBARRAYOID : JSONBOID;
}

/*
 * schema.name of the stored signature schema.name(jsonb).
 */
static List *
function_name(const OrchTask *task)
{
	char *signature = pstrdup(task->definition->handler);
	const char *suffix =
		ORCH_TAKES_MANY(task->definition) ? MANY_INPUTS : ONE_INPUT;
	size_t length = strlen(signature);

	if (length > strlen(suffix) &&
		strcmp(signature + length - strlen(suffix), suffix) == 0)
		signature[length - strlen(suffix)] = '\0';
	return orch_qualified_name(signature);
}

/*
 * Whether a call by name, as in a plan, finds this function: not where another
 * of the name has defaults for what it takes besides, nor a VARIADIC one.
 */
static bool
is_meant_by_name(const OrchTask *task, Oid function)
{
	Oid argument = value_type(task);
	Oid found;
	Oid result;
	Oid variadic;
	Oid *arguments;
	bool is_set;
	int nvariadic;

	return func_get_detail(function_name(task), NIL, NIL, 1, &argument, true,
						   true, false, &found, &result, &is_set, &nvariadic,
						   &variadic, &arguments, NULL) == FUNCDETAIL_NORMAL &&
		   found == function;
}

static void
check_function(const OrchTask *task, Oid function, char prokind)
{
	HeapTuple tuple;
	Form_pg_proc proc;
	char *owner;

	if (!OidIsValid(function))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("handler %s of definition \"%s\" does not exist",
					task->definition->handler, task->definition->name),
			 errhint(
				 "Create the function again, or define() the task anew.")));
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	owner = GetUserNameFromId(proc->proowner, true);
	if (task->definition->handler_owner != NULL &&
		(owner == NULL || strcmp(owner, task->definition->handler_owner) != 0))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg(
				 "handler %s belongs to role \"%s\", not to \"%s\" as when it was defined",
				 task->definition->handler, owner ? owner : "?",
				 task->definition->handler_owner),
			 errhint("define() the task anew if that is intended.")));
	if (proc->prokind != prokind || proc->proretset)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("handler %s is not a plain %s", task->definition->handler,
					prokind == PROKIND_PROCEDURE ? "procedure" : "function")));
	ReleaseSysCache(tuple);
}

static void
check_executable(const OrchTask *task, Oid function)
{
	if (orch_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for handler %s",
							   task->definition->handler),
						errhint("GRANT EXECUTE ON ROUTINE %s TO %s.",
								task->definition->handler,
								quote_identifier(
									GetUserNameFromId(GetUserId(), false)))));
}

static void
resolve_function(Handler *handler, const OrchTask *task)
{
	Oid argument = value_type(task);
	Oid function = LookupFuncName(function_name(task), 1, &argument, true);
	HeapTuple tuple;
	Form_pg_proc proc;

	check_function(task, function, PROKIND_FUNCTION);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	handler->function = function;
	handler->returns_void = proc->prorettype == VOIDOID;
	handler->by_plan =
		proc->prolang == SQLlanguageId && is_meant_by_name(task, function);
	if (proc->prorettype != argument && proc->prorettype != VOIDOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("handler %s must return %s or void",
						task->definition->handler, format_type_be(argument))));
	ReleaseSysCache(tuple);
	if (!handler->by_plan)
		fmgr_info_cxt(function, &handler->info, handler_context);
}

bool
orch_handler_call(const OrchTask *task, Datum *output, uint64 *rows)
{
	return call_handler(task, task->row.values[ORCH_TASK_INPUT], output, rows);
}

bool
orch_handler_call_many(OrchTask *const *tasks, int n, Datum *outputs,
					   uint64 *rows)
{
	Datum *inputs = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		inputs[i] = tasks[i]->row.values[ORCH_TASK_INPUT];
	return call_handler(tasks[0],
						PointerGetDatum(construct_array(
							inputs, n, JSONBOID, -1, false, TYPALIGN_INT)),
						outputs, rows);
}

static bool
call_handler(const OrchTask *task, Datum input, Datum *output, uint64 *rows)
{
	Handler *handler;

	*rows = 0;
	if (task->definition == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("the definition of this task does not exist any more")));
	if (!task->row.nulls[ORCH_TASK_COMMAND])
		return run_command(task, NULL, input, output, rows);

	handler = find_handler(task);
	if (task->definition->kind == ORCH_KIND_FUNCTION)
		check_executable(task, handler->function);
	if (handler->by_plan)
		return call_plan(handler, task, input, output, rows);
	return call_function(handler, input, output);
}

static bool
call_function(Handler *handler, Datum input, Datum *output)
{
	LOCAL_FCINFO(fcinfo, 1);
	Datum result;

	InitFunctionCallInfoData(*fcinfo, &handler->info, 1, InvalidOid, NULL,
							 NULL);
	fcinfo->args[0].value = input;
	fcinfo->args[0].isnull = false;
	result = FunctionCallInvoke(fcinfo);

	/* a void function may return a zero that is not marked null */
	if (fcinfo->isnull || handler->returns_void)
		return false;
	*output = PointerGetDatum(PG_DETOAST_DATUM(result));
	return true;
}

static char *
command_text(const OrchTask *task)
{
	if (!task->row.nulls[ORCH_TASK_COMMAND])
		return TextDatumGetCString(task->row.values[ORCH_TASK_COMMAND]);
	return pstrdup(task->definition->handler);
}

static SPIPlanPtr
keep_plan(const char *command, Oid argument)
{
	SPIPlanPtr plan = SPI_prepare(command, 1, &argument);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	return plan;
}

static bool
call_plan(Handler *handler, const OrchTask *task, Datum input, Datum *output,
		  uint64 *rows)
{
	if (handler->plan == NULL)
	{
		SPI_connect();
		if (task->definition->kind == ORCH_KIND_FUNCTION)
			handler->plan = keep_plan(
				psprintf("SELECT %s($1)",
						 NameListToQuotedString(function_name(task))),
				value_type(task));
		else
			handler->plan = keep_plan(task->definition->handler, JSONBOID);
		SPI_finish();
	}
	return run_command(task, handler->plan, input, output, rows);
}

/*
 * Run a command with $1 = input: a kept plan, or the task's own text.  A
 * function's plan gives its value, a command's rows become an array.
 */
static bool
run_command(const OrchTask *task, SPIPlanPtr plan, Datum input, Datum *output,
			uint64 *rows)
{
	MemoryContext context = CurrentMemoryContext;
	Oid type = JSONBOID;
	bool is_function = task->definition->kind == ORCH_KIND_FUNCTION;
	bool has_output = true;
	int result;

	SPI_connect();
	if (plan != NULL)
		result = SPI_execute_plan(plan, &input, NULL, false, 0);
	else
		result = SPI_execute_with_args(command_text(task), 1, &type, &input,
									   NULL, false, 0);
	if (result < 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("this command cannot run as a step: %s",
					SPI_result_code_string(result)),
			 errhint(
				 "Transaction commands need kind procedure, VACUUM and the like kind utility.")));
	*rows = SPI_processed;
	if (is_function)
	{
		bool isnull = true;
		Datum value = (Datum) 0;

		if (SPI_processed == 1 &&
			SPI_gettypeid(SPI_tuptable->tupdesc, 1) == value_type(task))
			value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								  1, &isnull);
		has_output = !isnull;
		if (has_output)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			*output = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
			MemoryContextSwitchTo(old);
		}
	}
	else
		*output = command_output(result, context);
	SPI_finish();
	return has_output;
}

static Datum
command_output(int result, MemoryContext context)
{
	MemoryContext old;
	Datum output;

	if (SPI_tuptable != NULL)
		return rows_to_jsonb(context);
	old = MemoryContextSwitchTo(context);
	output = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(psprintf("{\"rows\": " UINT64_FORMAT "}",
										   SPI_processed)));
	MemoryContextSwitchTo(old);
	(void) result;
	return output;
}

static Datum
rows_to_jsonb(MemoryContext context)
{
	TupleDesc desc = BlessTupleDesc(SPI_tuptable->tupdesc);
	StringInfoData buffer;
	MemoryContext old;
	Datum output;

	initStringInfo(&buffer);
	appendStringInfoChar(&buffer, '[');
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Datum row = heap_copy_tuple_as_datum(SPI_tuptable->vals[i], desc);

		if (i > 0)
			appendStringInfoChar(&buffer, ',');
		row = DirectFunctionCall1(row_to_json, row);
		appendStringInfoString(&buffer, TextDatumGetCString(row));
		CHECK_FOR_INTERRUPTS();
	}
	appendStringInfoChar(&buffer, ']');
	old = MemoryContextSwitchTo(context);
	output = orch_handler_to_jsonb(buffer.data);
	MemoryContextSwitchTo(old);
	return output;
}

void
orch_handler_check_size(Datum value, const char *what)
{
	Size size = VARSIZE_ANY(DatumGetPointer(value));
	Size limit = (Size) orch_max_input_size * 1024;

	if (size > limit)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("%s of %zu bytes is larger than %zu bytes", what, size,
					limit),
			 errhint(
				 "Store large results in a table and return their key, or raise orchestrator.max_input_size."),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, FINAL_MARK)));
}

Datum
orch_handler_to_jsonb(char *rows)
{
	ErrorContextCallback mark = {.callback = mark_final,
								 .previous = error_context_stack};
	Datum result;

	error_context_stack = &mark;
	result = DirectFunctionCall1(jsonb_in, CStringGetDatum(rows));
	error_context_stack = mark.previous;
	return result;
}

/*
 * Too large, too deep, a \u0000: not an interrupt, nor want of memory.
 */
static void
mark_final(void *arg)
{
	int category = ERRCODE_TO_CATEGORY(geterrcode());

	if (category == ERRCODE_DATA_EXCEPTION ||
		category == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
		(void) err_generic_string(PG_DIAG_CONSTRAINT_NAME, FINAL_MARK);
	errcontext("rows of the command, as jsonb");
}

bool
orch_handler_is_final(const ErrorData *error)
{
	return error->constraint_name != NULL &&
		   strcmp(error->constraint_name, FINAL_MARK) == 0;
}

void
orch_handler_call_procedure(const OrchTask *task)
{
	List *name = function_name(task);
	ObjectWithArgs *object = makeNode(ObjectWithArgs);
	ParamListInfo params;
	Oid procedure;

	/* LookupFuncName() finds no procedures */
	object->objname = name;
	object->objargs = list_make1(makeTypeNameFromOid(JSONBOID, -1));
	procedure = LookupFuncWithArgs(OBJECT_PROCEDURE, object, true);
	check_function(task, procedure, PROKIND_PROCEDURE);
	check_executable(task, procedure);
	params = makeParamList(1);
	params->params[0].value = task->row.values[ORCH_TASK_INPUT];
	params->params[0].isnull = false;
	params->params[0].pflags = PARAM_FLAG_CONST;
	params->params[0].ptype = JSONBOID;
	run_in_portal(psprintf("CALL %s($1)", NameListToQuotedString(name)),
				  params);
}

/*
 * A command of the task's own, once it was seen to be one that may be run.
 */
void
orch_handler_run_utility(const OrchTask *task)
{
	run_in_portal(command_text(task), NULL);
}

void
orch_handler_run_command(const char *command)
{
	run_in_portal(command, NULL);
}

/*
 * A transaction that a step leaves open would never settle; and without a
 * client, standard input and output are those of the server: its log.
 */
static void
check_utility(Node *command)
{
	if (IsA(command, TransactionStmt) ||
		(IsA(command, CopyStmt) && ((CopyStmt *) command)->filename == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a utility step cannot run %s",
						GetCommandTagName(CreateCommandTag(command))),
				 errhint("Transaction commands belong into a procedure; COPY "
						 "needs a file.")));
}

/*
 * As PostgreSQL's exec_simple_query does for one command, without a client:
 * the only way to run VACUUM, CREATE INDEX CONCURRENTLY or a procedure that
 * commits.  The current memory context must outlive its transactions.
 */
static void
run_in_portal(const char *command, ParamListInfo params)
{
	List *parsed = pg_parse_query(command);
	RawStmt *statement;
	List *queries;
	List *plans;
	Portal portal;

	if (list_length(parsed) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
						errmsg("a utility step must be one command, not %d",
							   list_length(parsed)),
						errhint("Use one task for each command.")));
	statement = linitial_node(RawStmt, parsed);
	check_utility(statement->stmt);
	PushActiveSnapshot(GetTransactionSnapshot());
	queries =
		orch_analyze_and_rewrite(statement, command, params == NULL ? 0 : 1);
	plans = pg_plan_queries(queries, command, CURSOR_OPT_PARALLEL_OK, NULL);
	PopActiveSnapshot();

	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, command, CreateCommandTag(statement->stmt),
					  plans, NULL);
	PortalStart(portal, params, 0, InvalidSnapshot);
	orch_portal_run(portal, None_Receiver);
	PortalDrop(portal, false);
}
