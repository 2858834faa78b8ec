/*
 * url.h
 *	  URLs of endpoints: written in one form only, so that every parser takes
 *	  the same for their host.
 */
#ifndef ORCHESTRATOR_URL_H
#define ORCHESTRATOR_URL_H

typedef struct OrchUrl
{
	const char *host;
	const char *host_end;
	const char *port_end; /* where its path begins */
} OrchUrl;

/* scheme://host[:port][/path], the host in small letters. */
extern bool orch_url_parse(const char *text, OrchUrl *url);

/* Whether a path of an endpoint, or what is put behind it, can be sent. */
extern bool orch_url_is_path(const char *path);

/*
 * A list of scheme://host[:port], where a host may begin with *. for any names
 * before the rest: whether it is one, and whether it has what an URL begins
 * with.  An empty one has everything.
 */
extern bool orch_url_is_list(const char *list);
extern bool orch_url_allowed(const char *list, const char *url);

#endif
