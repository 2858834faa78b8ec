/*
 * main.c
 *	  orchestrator-courier: one thread, one loop over the courier's socket and
 *	  those of libcurl.
 */
#define _GNU_SOURCE
#include "carrier.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* The courier's socket. */
#define COURIER STDIN_FILENO

/* Seen to at once: then what ended is told, while the rest goes on. */
#define EVENTS 64
#define FRAMES 32

static FrameBuffer received;
static FrameBuffer answers;
static int epoll = -1;
static bool watches_room = false;
static bool more_frames = false;

static bool is_socket(int fd);
static bool prepare(void);
static bool watch_courier(bool for_room);
static bool read_frames(void);
static bool turn(void);
static bool tell(void);

int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int
main(void)
{
	if (!is_socket(COURIER))
	{
		fprintf(stderr,
				"orchestrator-courier makes the outside calls of the "
				"PostgreSQL extension orchestrator, which starts it\n");
		return 2;
	}
	if (!prepare())
		return 1;
	frame_begin(&answers, FRAME_HELLO);
	frame_u32(&answers, FRAME_VERSION);
	frame_end(&answers);
	while (tell() && turn())
		continue;
	return 0;
}

static bool
is_socket(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

/*
 * No memory of ours, which may hold a secret, is written to a core file or
 * read by a debugger.  Threads look up names, and are to take little.
 */
static bool
prepare(void)
{
	struct rlimit files;

	(void) prctl(PR_SET_DUMPABLE, 0);
	(void) mallopt(M_ARENA_MAX, 2);
	(void) signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		(void) setrlimit(RLIMIT_NOFILE, &files);
	}
	epoll = epoll_create1(EPOLL_CLOEXEC);
	return chdir("/") == 0 && epoll >= 0 && watch_courier(false) &&
		   transfer_install(epoll, &answers);
}

static bool
watch_courier(bool for_room)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = COURIER};
	static bool added = false;
	int operation = added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (added && watches_room == for_room)
		return true;
	if (for_room)
		event.events |= EPOLLOUT;
	watches_room = for_room;
	added = true;
	return epoll_ctl(epoll, operation, COURIER, &event) == 0;
}

/*
 * Tell what ended, and that we are alive.  False: the courier is gone.
 */
static bool
tell(void)
{
	static int64_t beaten = 0;
	int64_t now = now_ms();

	if (transfer_count() > 0 && now - beaten >= FRAME_BEAT_MS)
	{
		frame_begin(&answers, FRAME_BEAT);
		frame_end(&answers);
		beaten = now;
	}
	return frame_send(&answers, COURIER) &&
		   watch_courier(frame_pending(&answers));
}

/*
 * Wait for anything, and see to it.
 */
static bool
turn(void)
{
	struct epoll_event events[EVENTS];
	int due = transfer_due();
	int n;

	if (transfer_count() > 0 && (due < 0 || due > FRAME_BEAT_MS))
		due = FRAME_BEAT_MS;
	if (more_frames)
		due = 0;
	n = epoll_wait(epoll, events, EVENTS, due);
	if (n < 0 && errno != EINTR)
		return false;
	for (int i = 0; i < n; i++)
	{
		if (events[i].data.fd != COURIER)
			transfer_ready(events[i].data.fd, events[i].events);
		else if (!frame_receive(&received, COURIER))
			return false;
		else
			more_frames = true;
	}
	if (more_frames && !read_frames())
		return false;
	transfer_go_on();
	return true;
}

/*
 * What is to be done.  False: that cannot be read.
 */
static bool
read_frames(void)
{
	FrameType type;
	FrameReader frame;

	more_frames = false;
	for (int i = 0; i < FRAMES; i++)
	{
		if (!frame_next(&received, &type, &frame))
			return !received.failed;
		if (type == FRAME_CALL)
			transfer_begin(&frame);
		else if (type == FRAME_CANCEL)
			transfer_cancel(frame_read_u64(&frame));
		if (frame.bad)
			return false;
	}
	more_frames = true;
	return true;
}
