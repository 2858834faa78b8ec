/*
 * endpoint.c
 *	  Endpoints: servers of the foreign data wrapper orchestrator_http.
 *
 * Who may make them decides what is called from here: nothing of a task says
 * where to.  The URL of an endpoint is written in one form only, so that its
 * host is what every parser takes for it.  Options that reach beyond the
 * network (secrets, files) or into it (private addresses) are a superuser's.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "endpoint.h"
#include "guc.h"
#include "url.h"

#define WRAPPER "orchestrator_http"

#define DEFAULT_TIMEOUT			60000
#define DEFAULT_CONNECT_TIMEOUT 5000
#define DEFAULT_RESPONSE		(1024 * 1024)
#define LONGEST_TIMEOUT			(INT64CONST(3600) * 1000)
#define LONGEST_SECRET_NAME		64

typedef void (*Setter)(OrchEndpoint *endpoint, const char *name,
					   const char *value);

static HTAB *endpoints = NULL;
static MemoryContext endpoint_context = NULL;
static bool endpoints_valid = false;

static void forget(Datum arg, int cacheid, uint32 hashvalue);
static void start_cache(void);
static void read_endpoint(OrchEndpoint *endpoint);
static void apply(OrchEndpoint *endpoint, const char *name, const char *value);
static void complete(OrchEndpoint *endpoint);
static void check_webhook(const OrchEndpoint *endpoint);
static void refuse(const char *name, const char *value, const char *hint);
static void set_url(OrchEndpoint *endpoint, const char *name,
					const char *value);
static void set_provider(OrchEndpoint *endpoint, const char *name,
						 const char *value);
static void set_secret(OrchEndpoint *endpoint, const char *name,
					   const char *value);
static void set_secret_header(OrchEndpoint *endpoint, const char *name,
							  const char *value);
static void set_ca_file(OrchEndpoint *endpoint, const char *name,
						const char *value);
static void set_flag(OrchEndpoint *endpoint, const char *name,
					 const char *value);
static void set_count(OrchEndpoint *endpoint, const char *name,
					  const char *value);
static void set_span(OrchEndpoint *endpoint, const char *name,
					 const char *value);
static void set_response(OrchEndpoint *endpoint, const char *name,
						 const char *value);

/* Options, in the order of their names. */
static const struct
{
	const char *name;
	Setter set;
	bool is_superusers;
} options[] = {
	{"allow_private", set_flag, true},
	{"ca_file", set_ca_file, true},
	{"compressed", set_flag, false},
	{"connect_timeout", set_span, false},
	{"max_in_flight", set_count, false},
	{"max_response_size", set_response, false},
	{"provider", set_provider, false},
	{"rate_limit", set_count, false},
	{"rate_period", set_span, false},
	{"secret", set_secret, true},
	{"secret_header", set_secret_header, false},
	{"timeout", set_span, false},
	{"url", set_url, false},
};

static const char *const providers[] = {"http",	  "openai", "anthropic",
										"ollama", "mcp",	"webhook"};

PG_FUNCTION_INFO_V1(orchestrator_endpoint_validator);

/* ----------------------------------------------------------- the cache */

void
orch_endpoint_install(void)
{
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, forget, (Datum) 0);
}

static void
forget(Datum arg, int cacheid, uint32 hashvalue)
{
	endpoints_valid = false;
}

static void
start_cache(void)
{
	HASHCTL control = {.keysize = NAMEDATALEN,
					   .entrysize = sizeof(OrchEndpoint)};

	if (endpoints_valid)
		return;
	if (endpoint_context == NULL)
		endpoint_context =
			AllocSetContextCreate(CacheMemoryContext, "orchestrator endpoints",
								  ALLOCSET_SMALL_SIZES);
	MemoryContextReset(endpoint_context);
	control.hcxt = endpoint_context;
	endpoints = hash_create("orchestrator endpoints", 16, &control,
							HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	endpoints_valid = true;
}

const OrchEndpoint *
orch_endpoint(const char *name)
{
	OrchEndpoint *entry;
	OrchEndpoint endpoint = {.valid = false};
	MemoryContext old;

	if (strlen(name) >= NAMEDATALEN)
		return NULL;
	start_cache();
	entry = hash_search(endpoints, name, HASH_FIND, NULL);
	if (entry == NULL)
	{
		strlcpy(endpoint.name, name, NAMEDATALEN);
		old = MemoryContextSwitchTo(endpoint_context);
		read_endpoint(&endpoint);
		MemoryContextSwitchTo(old);
		entry = hash_search(endpoints, name, HASH_ENTER, NULL);
		*entry = endpoint;
	}
	return entry->valid ? entry : NULL;
}

static void
read_endpoint(OrchEndpoint *endpoint)
{
	Oid oid = get_foreign_server_oid(endpoint->name, true);
	ForeignServer *server;
	ListCell *cell;

	if (!OidIsValid(oid))
		return;
	server = GetForeignServer(oid);
	if (strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, WRAPPER) != 0)
		return;
	endpoint->server = oid;
	foreach(cell, server->options)
	{
		DefElem *option = lfirst_node(DefElem, cell);

		apply(endpoint, option->defname, defGetString(option));
	}
	complete(endpoint);
	endpoint->valid = true;
}

static void
apply(OrchEndpoint *endpoint, const char *name, const char *value)
{
	for (int i = 0; i < lengthof(options); i++)
	{
		if (strcmp(options[i].name, name) == 0)
			options[i].set(endpoint, name, value);
	}
}

/*
 * What is not said, and what goes with something else.
 */
static void
complete(OrchEndpoint *endpoint)
{
	OrchLimit *limit = &endpoint->limit;
	bool anthropic = endpoint->provider == ORCH_PROVIDER_ANTHROPIC;

	if (endpoint->url == NULL)
		ereport(ERROR, (errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
						errmsg("an endpoint needs the option \"url\""),
						errhint("Say OPTIONS (url 'https://...').")));
	if ((limit->rate_limit > 0) != (limit->rate_period > 0))
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("rate_limit and rate_period belong together")));
	if (endpoint->secret != NULL && !endpoint->allow_private &&
		strncmp(endpoint->url, "http:", 5) == 0)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("a secret is not sent over http"),
						errhint("Use https; in a network of your own, say "
								"allow_private 'on'.")));
	if (endpoint->provider == ORCH_PROVIDER_WEBHOOK)
		check_webhook(endpoint);
	else if (endpoint->secret_header == NULL)
	{
		endpoint->secret_header = anthropic ? "x-api-key" : "Authorization";
		endpoint->secret_prefix = anthropic ? "" : "Bearer ";
	}
	if (endpoint->timeout == 0)
		endpoint->timeout = DEFAULT_TIMEOUT;
	if (endpoint->connect_timeout == 0)
		endpoint->connect_timeout = DEFAULT_CONNECT_TIMEOUT;
	if (endpoint->max_response == 0)
		endpoint->max_response = DEFAULT_RESPONSE;
	limit->kind = ORCH_LIMIT_ENDPOINT;
	limit->id = orch_permit_id(ORCH_LIMIT_ENDPOINT, 0, endpoint->name,
							   strlen(endpoint->name));
}

static void
check_webhook(const OrchEndpoint *endpoint)
{
	if (endpoint->secret == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("an endpoint of provider webhook needs the option "
						"\"secret\""),
				 errhint("Webhooks are signed with it.")));
	if (endpoint->secret_header != NULL)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("secret_header with provider webhook"),
						errhint("Its secret signs, and is not sent.")));
}

/* ------------------------------------------------------- the validator */

/*
 * _endpoint_validator(options, catalog)
 */
Datum
orchestrator_endpoint_validator(PG_FUNCTION_ARGS)
{
	List *given = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid catalog = PG_GETARG_OID(1);
	OrchEndpoint endpoint = {.valid = false};
	ListCell *cell;

	if (catalog != ForeignServerRelationId && given != NIL)
		ereport(
			ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("only a server of %s has options", WRAPPER),
			 errhint("Secrets are files in orchestrator.secrets_directory, "
					 "named by an option of the server.")));
	if (catalog != ForeignServerRelationId)
		PG_RETURN_VOID();
	foreach(cell, given)
	{
		DefElem *option = lfirst_node(DefElem, cell);
		int i = 0;

		while (i < lengthof(options) &&
			   strcmp(options[i].name, option->defname) != 0)
			i++;
		if (i == lengthof(options))
			ereport(
				ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("invalid option \"%s\"", option->defname),
				 errhint(
					 "Valid options are allow_private, ca_file, compressed, "
					 "connect_timeout, max_in_flight, max_response_size, "
					 "provider, rate_limit, rate_period, secret, "
					 "secret_header, timeout and url.")));
		if (options[i].is_superusers && !superuser())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("only a superuser may set the option \"%s\" of an "
							"endpoint",
							option->defname)));
		options[i].set(&endpoint, option->defname, defGetString(option));
	}
	complete(&endpoint);
	PG_RETURN_VOID();
}

static void
refuse(const char *name, const char *value, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					errmsg("invalid value for option \"%s\": %s", name, value),
					errhint("%s", hint)));
}

static void
set_url(OrchEndpoint *endpoint, const char *name, const char *value)
{
	OrchUrl url;
	Size size = strlen(value);

	if (size > 2000 || !orch_url_parse(value, &url))
		refuse(name, value,
			   "Write https://host, https://host:port or https://host/path, "
			   "the host in small letters, without a user, ?, # or spaces.");
	while (value[size - 1] == '/')
		size--;
	endpoint->url = pnstrdup(value, size);
	endpoint->host = pnstrdup(url.host, url.host_end - url.host);
}

static void
set_provider(OrchEndpoint *endpoint, const char *name, const char *value)
{
	for (int i = 0; i < lengthof(providers); i++)
	{
		if (strcmp(providers[i], value) == 0)
		{
			endpoint->provider = (OrchProvider) i;
			return;
		}
	}
	refuse(name, value,
		   "Say http, openai, anthropic, ollama, mcp or webhook.");
}

/*
 * The name of a file, of one folder.
 */
static void
set_secret(OrchEndpoint *endpoint, const char *name, const char *value)
{
	Size size = strlen(value);

	if (size == 0 || size > LONGEST_SECRET_NAME || value[0] == '.' ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					  "0123456789-._") != size)
		refuse(name, value,
			   "It is the name of a file in orchestrator.secrets_directory: "
			   "letters, digits, -, . and _.");
	endpoint->secret = pstrdup(value);
}

static void
set_secret_header(OrchEndpoint *endpoint, const char *name, const char *value)
{
	Size size = strlen(value);

	if (size == 0 || size > 100 ||
		strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
					  "0123456789-_") != size)
		refuse(name, value, "It is the name of a header, like X-Api-Key.");
	endpoint->secret_header = pstrdup(value);
	endpoint->secret_prefix =
		pg_strcasecmp(value, "Authorization") == 0 ? "Bearer " : "";
}

static void
set_ca_file(OrchEndpoint *endpoint, const char *name, const char *value)
{
	if (!is_absolute_path(value))
		refuse(name, value, "Write the path of the file from / on.");
	endpoint->ca_file = pstrdup(value);
}

static void
set_flag(OrchEndpoint *endpoint, const char *name, const char *value)
{
	bool on;

	if (!parse_bool(value, &on))
		refuse(name, value, "Say on or off.");
	if (strcmp(name, "compressed") == 0)
		endpoint->compressed = on;
	else
		endpoint->allow_private = on;
}

static void
set_count(OrchEndpoint *endpoint, const char *name, const char *value)
{
	int count;

	if (!parse_int(value, &count, 0, NULL) || count < 1)
		refuse(name, value, "It is a number above 0.");
	if (strcmp(name, "rate_limit") == 0)
		endpoint->limit.rate_limit = count;
	else
		endpoint->limit.max_running = count;
}

static void
set_span(OrchEndpoint *endpoint, const char *name, const char *value)
{
	Interval *interval = DatumGetIntervalP(
		DirectFunctionCall3(interval_in, CStringGetDatum(value),
							ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	double span = orch_span(interval) / 1000;
	bool is_rate = strcmp(name, "rate_period") == 0;

	if (span < 1 ||
		span > (is_rate ? ORCH_LONGEST_SPAN / 1000 : (double) LONGEST_TIMEOUT))
		refuse(name, value,
			   "It is an interval like '30 s', of a millisecond at least and "
			   "for time-outs an hour at most.");
	if (is_rate)
		endpoint->limit.rate_period = (int64) (span * 1000);
	else if (strcmp(name, "timeout") == 0)
		endpoint->timeout = (int64) span;
	else
		endpoint->connect_timeout = (int64) span;
}

static void
set_response(OrchEndpoint *endpoint, const char *name, const char *value)
{
	int size;

	if (!parse_int(value, &size, GUC_UNIT_BYTE, NULL) || size < 1 ||
		size > ORCH_LARGEST_RESPONSE)
		refuse(name, value, "It is a size like '4MB', up to 16MB.");
	endpoint->max_response = size;
}

bool
orch_endpoint_allowed(const OrchEndpoint *endpoint)
{
	return orch_url_allowed(orch_http_allow, endpoint->url);
}
