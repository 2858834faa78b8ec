/*
 * names.c
 *	  A name server for one program, in tests: preloaded into it.
 *
 * Names are looked up in a file, NAMES, of lines "name address ...", at every
 * look-up anew.  An address of 203.0.113.0/24, which is nobody's, is this
 * machine for as long as the program does not see it: .1 is 127.0.0.1, and
 * nobody listens at the others.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define NOBODYS 0xcb007100u

typedef int (*Lookup)(const char *, const char *, const struct addrinfo *,
					  struct addrinfo **);
typedef int (*Connect)(int, const struct sockaddr *, socklen_t);
typedef int (*Peer)(int, struct sockaddr *, socklen_t *);

static char is_nobodys[65536]; /* sockets */

/* What stands behind a name in the file. */
static int
find(const char *name, char *line, size_t size)
{
	FILE *file = fopen(NAMES, "r");
	size_t length = name == NULL ? 0 : strlen(name);
	int found = 0;

	while (file != NULL && !found && fgets(line, size, file) != NULL)
		found = length > 0 && strncmp(line, name, length) == 0 &&
				line[length] == ' ';
	if (file != NULL)
		fclose(file);
	return found;
}

int
getaddrinfo(const char *name, const char *service,
			const struct addrinfo *hints, struct addrinfo **result)
{
	Lookup real = (Lookup) dlsym(RTLD_NEXT, "getaddrinfo");
	struct addrinfo **end = result;
	char line[1000];
	char *state;
	int error = EAI_NONAME;

	if (!find(name, line, sizeof(line)))
		return real(name, service, hints, result);
	strtok_r(line, " \n", &state);
	for (char *address; (address = strtok_r(NULL, " \n", &state)) != NULL;)
	{
		error = real(address, service, hints, end);
		if (error != 0)
			return error;
		while (*end != NULL)
			end = &(*end)->ai_next;
	}
	return error;
}

int
connect(int fd, const struct sockaddr *address, socklen_t size)
{
	Connect real = (Connect) dlsym(RTLD_NEXT, "connect");
	struct sockaddr_in here = *(const struct sockaddr_in *) address;

	is_nobodys[fd] = 0;
	if (here.sin_family != AF_INET ||
		(ntohl(here.sin_addr.s_addr) & 0xffffff00u) != NOBODYS)
		return real(fd, address, size);
	if (ntohl(here.sin_addr.s_addr) != NOBODYS + 1)
	{
		errno = ECONNREFUSED;
		return -1;
	}
	is_nobodys[fd] = 1;
	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return real(fd, (struct sockaddr *) &here, sizeof(here));
}

int
getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
	Peer real = (Peer) dlsym(RTLD_NEXT, "getpeername");
	int error = real(fd, address, size);

	if (error == 0 && is_nobodys[fd])
		((struct sockaddr_in *) address)->sin_addr.s_addr = htonl(NOBODYS + 1);
	return error;
}
