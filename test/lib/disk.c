/*
 * disk.c
 *	  A disk that is full, or stands still, for a server in tests: preloaded into
 *	  it.
 *
 * In the folder CONTROL the file "full" holds a pattern of the paths of files
 * that do not grow, and "still" one of those that are not read, for as long as
 * it is there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

/* Whether a file of the control folder is there and is about the file of fd. */
static int
is_meant(const char *file, int fd)
{
	char pattern[1024] = "";
	char path[1024] = "";
	char link[64];
	int control = open(file, O_RDONLY);

	if (control < 0)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (read(control, pattern, sizeof(pattern) - 1) < 0 ||
		readlink(link, path, sizeof(path) - 1) < 0)
		path[0] = '\0';
	close(control);
	return fnmatch(pattern, path, 0) == 0;
}

/* Whether the disk has no room for what is written; at -1: where the file is. */
static int
is_full(int fd, off_t at, size_t size)
{
	int saved = errno;
	struct stat status;
	int full;

	if (at < 0)
		at = lseek(fd, 0, SEEK_CUR);
	full = at >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
		   at + (off_t) size > status.st_size &&
		   is_meant(CONTROL "/full", fd);
	errno = full ? ENOSPC : saved;
	return full;
}

static void
stand_still(int fd)
{
	int saved = errno;

	while (is_meant(CONTROL "/still", fd))
		usleep(1000);
	errno = saved;
}

static size_t
total(const struct iovec *parts, int n)
{
	size_t size = 0;

	for (int i = 0; i < n; i++)
		size += parts[i].iov_len;
	return size;
}

ssize_t
write(int fd, const void *data, size_t size)
{
	return is_full(fd, -1, size) ? -1 : REAL(write)(fd, data, size);
}

ssize_t
pwrite(int fd, const void *data, size_t size, off_t at)
{
	return is_full(fd, at, size) ? -1 : REAL(pwrite)(fd, data, size, at);
}

ssize_t
pwritev(int fd, const struct iovec *parts, int n, off_t at)
{
	return is_full(fd, at, total(parts, n)) ? -1
											: REAL(pwritev)(fd, parts, n, at);
}

int
posix_fallocate(int fd, off_t at, off_t size)
{
	return is_full(fd, at, size) ? ENOSPC
								 : REAL(posix_fallocate)(fd, at, size);
}

ssize_t
pread(int fd, void *data, size_t size, off_t at)
{
	stand_still(fd);
	return REAL(pread)(fd, data, size, at);
}

ssize_t
preadv(int fd, const struct iovec *parts, int n, off_t at)
{
	stand_still(fd);
	return REAL(preadv)(fd, parts, n, at);
}

/* The same, by their other names. */
#define TWIN(name) __typeof__(name) name##64 __attribute__((alias(#name)))

TWIN(pwrite);
TWIN(pwritev);
TWIN(posix_fallocate);
TWIN(pread);
TWIN(preadv);
