/*
 * clock.c
 *	  Other clocks for a server in tests: preloaded into it.
 *
 * STARTED in the environment is when its machine was started, in seconds of the
 * real clock that CLOCK_MONOTONIC is; AHEAD is how many seconds the clock of the
 * wall shows too many.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long
ahead(void)
{
	const char *seconds = getenv("AHEAD");

	return seconds == NULL ? 0 : atol(seconds);
}

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
	if (clock == CLOCK_REALTIME)
		now->tv_sec += ahead();
	if (clock != CLOCK_MONOTONIC || started == NULL)
		return result;
	since = now->tv_sec * 1000000000ll + now->tv_nsec -
			(long long) (atof(started) * 1e9);
	now->tv_sec = since / 1000000000;
	now->tv_nsec = since % 1000000000;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (now != NULL)
		*now = precise.tv_sec;
	return precise.tv_sec;
}
