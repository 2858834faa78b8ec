/*
 * endpoint.h
 *	  Endpoints: servers of the foreign data wrapper orchestrator_http, which
 *	  say what outside calls may be made to, and how.
 */
#ifndef ORCHESTRATOR_ENDPOINT_H
#define ORCHESTRATOR_ENDPOINT_H

#include "permit.h"

typedef enum OrchProvider
{
	ORCH_PROVIDER_HTTP,
	ORCH_PROVIDER_OPENAI,
	ORCH_PROVIDER_ANTHROPIC,
	ORCH_PROVIDER_OLLAMA,
	ORCH_PROVIDER_MCP,
	ORCH_PROVIDER_WEBHOOK /* its secret signs, and is not sent */
} OrchProvider;

typedef struct OrchEndpoint
{
	char name[NAMEDATALEN]; /* hash key */
	bool valid;
	Oid server;
	OrchProvider provider;
	char *url;	  /* without a / at its end */
	char *host;	  /* in it */
	char *secret; /* its name; NULL: none */
	char *secret_header;
	char *secret_prefix; /* what stands before it there */
	char *ca_file;		 /* NULL: the system's */
	bool allow_private;
	bool compressed;
	int64 timeout; /* milliseconds */
	int64 connect_timeout;
	int64 max_response; /* bytes */
	OrchLimit limit;	/* max_in_flight and the rate */
} OrchEndpoint;

/* Most bytes of an answer, whatever an endpoint says. */
#define ORCH_LARGEST_RESPONSE (16 * 1024 * 1024)

/* Call once, from _PG_init. */
extern void orch_endpoint_install(void);

/*
 * An endpoint by its name; NULL when there is none.  In a transaction; what is
 * returned stays until the next call.
 */
extern const OrchEndpoint *orch_endpoint(const char *name);

/* Whether orchestrator.http_allow lets it be called. */
extern bool orch_endpoint_allowed(const OrchEndpoint *endpoint);

#endif
