/*
 * clock.c
 *	  The clock of a machine that was started a moment ago, for a server in
 *	  tests: preloaded into it.
 *
 * STARTED in the environment is when, in seconds of the real clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	static __typeof__(&clock_gettime) real = NULL;
	const char *started = getenv("STARTED");
	int result;
	long long since;

	if (real == NULL)
		real = (__typeof__(real)) dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (clock != CLOCK_MONOTONIC || started == NULL)
		return result;
	since = now->tv_sec * 1000000000ll + now->tv_nsec -
			(long long) (atof(started) * 1e9);
	now->tv_sec = since / 1000000000;
	now->tv_nsec = since % 1000000000;
	return result;
}
