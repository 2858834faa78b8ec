/*
 * url.c
 *	  URLs of endpoints, and lists of where calls may go.
 */
#include "postgres.h"

#include "utils/varlena.h"

#include "url.h"

static const char *host_end(const char *host);
static const char *port_end(const char *at);
static bool is_entry(const char *entry);
static bool matches(const char *entry, const char *text);

bool
orch_url_parse(const char *text, OrchUrl *url)
{
	url->host = strncmp(text, "https://", 8) == 0  ? text + 8
				: strncmp(text, "http://", 7) == 0 ? text + 7
												   : NULL;
	url->host_end = url->host == NULL ? NULL : host_end(url->host);
	url->port_end = url->host_end == NULL ? NULL : port_end(url->host_end);
	return url->port_end != NULL && orch_url_is_path(url->port_end);
}

/*
 * The end of a host: a name, or an address of IPv6 in brackets.
 */
static const char *
host_end(const char *host)
{
	bool bracket = *host == '[';
	Size size = bracket
					? 1 + strspn(host + 1, "0123456789abcdef:.")
					: strspn(host, "abcdefghijklmnopqrstuvwxyz0123456789-._");

	if (bracket && host[size] != ']')
		return NULL;
	size += bracket ? 1 : 0;
	return size == 0 || size > 255 || host[0] == '-' || host[0] == '.'
			   ? NULL
			   : host + size;
}

static const char *
port_end(const char *at)
{
	Size size;

	if (*at != ':')
		return at;
	size = strspn(at + 1, "0123456789");
	if (size == 0 || size > 5 || atoi(at + 1) > 65535 || atoi(at + 1) == 0)
		return NULL;
	return at + 1 + size;
}

/*
 * Steps up in it, also written with %, would lead out of the endpoint's path.
 */
bool
orch_url_is_path(const char *path)
{
	if (*path != '\0' && *path != '/')
		return false;
	for (const char *at = path; *at != '\0'; at++)
	{
		const char *next = at + 1;

		if (*at == '%' && !(isxdigit((unsigned char) at[1]) &&
							isxdigit((unsigned char) at[2])))
			return false;
		if (*at == '/' &&
			(*next == '.' || pg_strncasecmp(next, "%2e", 3) == 0))
			return false;
		if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789-._~/!$&'()*+,;=:@%",
				   *at) == NULL)
			return false;
	}
	return true;
}

bool
orch_url_is_list(const char *list)
{
	List *entries;
	ListCell *cell;

	if (!SplitGUCList(pstrdup(list), ',', &entries))
		return false;
	foreach(cell, entries)
	{
		if (!is_entry(lfirst(cell)))
			return false;
	}
	return true;
}

static bool
is_entry(const char *entry)
{
	const char *host = strstr(entry, "://");
	OrchUrl url;
	char *plain;

	if (host == NULL)
		return false;
	host += 3;
	if (strncmp(host, "*.", 2) != 0)
		return orch_url_parse(entry, &url) && *url.port_end == '\0';
	plain = psprintf("%.*s%s", (int) (host - entry), entry, host + 2);
	return orch_url_parse(plain, &url) && *url.port_end == '\0';
}

bool
orch_url_allowed(const char *list, const char *url)
{
	List *entries;
	ListCell *cell;

	if (list == NULL || list[0] == '\0')
		return true;
	if (!SplitGUCList(pstrdup(list), ',', &entries))
		return false;
	foreach(cell, entries)
	{
		if (matches(lfirst(cell), url))
			return true;
	}
	return false;
}

static bool
matches(const char *entry, const char *text)
{
	Size scheme = strstr(entry, "://") - entry + 3;
	Size rest = strlen(entry + scheme);
	OrchUrl url;
	Size size;

	if (!orch_url_parse(text, &url) || strncmp(entry, text, scheme) != 0)
		return false;
	entry += scheme;
	size = url.port_end - url.host;
	if (strncmp(entry, "*.", 2) != 0)
		return size == rest && strncmp(url.host, entry, rest) == 0;
	return size >= rest &&
		   strncmp(url.port_end - (rest - 1), entry + 1, rest - 1) == 0;
}
