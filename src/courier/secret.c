/*
 * secret.c
 *	  Secrets: files that only the server's own user can read.
 */
#define _GNU_SOURCE
#include "carrier.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Shorter ones could not be blotted out of an answer. */
#define LEAST_SIZE 8

static const char *read_file(int fd, bool lines, char *secret);
static const char *judge(const char *secret, size_t size, bool lines);

char *
secret_read(const char *path, bool lines, char *message)
{
	const char *name = strrchr(path, '/');
	char *secret = calloc(1, SECRET_SIZE + 1);
	const char *why = "there is no memory for it";
	int fd;

	name = name == NULL ? path : name + 1;
	if (secret != NULL)
	{
		/* a link could lead elsewhere, and a pipe would never end */
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		why = fd < 0 ? "its file cannot be opened"
					 : read_file(fd, lines, secret);
		if (fd >= 0)
			close(fd);
	}
	if (why == NULL)
		return secret;
	secret_free(secret);
	snprintf(message, MESSAGE_SIZE, "secret \"%s\" cannot be used: %s", name,
			 why);
	return NULL;
}

static const char *
read_file(int fd, bool lines, char *secret)
{
	struct stat stat;
	ssize_t size;

	if (fstat(fd, &stat) != 0 || !S_ISREG(stat.st_mode))
		return "it is not a file";
	if (stat.st_uid != geteuid() || (stat.st_mode & 077) != 0)
		return "its file must belong to the server's user, with mode 0600";
	if (stat.st_size > SECRET_SIZE)
		return "it is too long";
	size = read(fd, secret, SECRET_SIZE);
	if (size < 0)
		return "its file cannot be read";
	while (size > 0 && (secret[size - 1] == '\n' || secret[size - 1] == '\r'))
		secret[--size] = '\0';
	return judge(secret, size, lines);
}

static const char *
judge(const char *secret, size_t size, bool lines)
{
	if (size < LEAST_SIZE)
		return "it has less than 8 characters";
	for (size_t i = 0; i < size; i++)
	{
		if ((secret[i] < ' ' || secret[i] > '~') &&
			!(lines && secret[i] == '\n'))
			return "it has characters that no header can have";
	}
	return NULL;
}

void
secret_free(char *secret)
{
	if (secret == NULL)
		return;
	explicit_bzero(secret, SECRET_SIZE + 1);
	free(secret);
}

void
secret_blot(const char *secret, char *data, size_t size)
{
	size_t length = secret == NULL ? 0 : strlen(secret);
	char *at = data;
	char *end = data + size;

	while (length > 0 && at != NULL && at < end)
	{
		at = memmem(at, end - at, secret, length);
		if (at != NULL)
			at = memset(at, '*', length);
	}
}

size_t
secret_begins(const char *secret, const char *data, size_t size)
{
	size_t most;

	if (secret == NULL)
		return 0;
	most = strlen(secret) - 1;
	if (most > size)
		most = size;
	while (most > 0 && memcmp(data + size - most, secret, most) != 0)
		most--;
	return most;
}
