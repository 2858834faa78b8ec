/*
 * spawn.c
 *	  spawn N AT_ONCE PROGRAM: start a program so often, with a pipe for its
 *	  input and its output, and wait for it; prints programs a second.  What
 *	  the worker is compared with.
 */
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 256

extern char **environ;

typedef struct Child
{
	pid_t pid;
	int output;
} Child;

static void
start(Child *child, char *program)
{
	char *arguments[] = {program, NULL};
	posix_spawn_file_actions_t actions;
	int in[2];
	int out[2];

	if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
		exit(1);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in[0], 0);
	posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	if (posix_spawn(&child->pid, program, &actions, NULL, arguments,
					environ) != 0)
		exit(1);
	posix_spawn_file_actions_destroy(&actions);
	close(in[0]);
	close(out[1]);
	if (write(in[1], "{}", 2) != 2)
		exit(1);
	close(in[1]);
	child->output = out[0];
}

int
main(int argc, char **argv)
{
	int n = argc == 4 ? atoi(argv[1]) : 0;
	int at_once = argc == 4 ? atoi(argv[2]) : 0;
	struct pollfd ready[MOST];
	Child children[MOST];
	struct timespec began;
	struct timespec end;
	int started = 0;
	int ended = 0;
	char bytes[4096];

	if (n < 1 || at_once < 1 || at_once > MOST)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &began);
	for (int i = 0; i < at_once; i++, started++)
		start(&children[i], argv[3]);
	while (ended < n)
	{
		for (int i = 0; i < at_once; i++)
		{
			ready[i].fd = children[i].output;
			ready[i].events = POLLIN;
		}
		poll(ready, at_once, -1);
		for (int i = 0; i < at_once; i++)
		{
			if (ready[i].fd < 0 || ready[i].revents == 0 ||
				read(children[i].output, bytes, sizeof(bytes)) > 0)
				continue;
			close(children[i].output);
			children[i].output = -1;
			waitpid(children[i].pid, NULL, 0);
			ended++;
			if (started < n)
			{
				start(&children[i], argv[3]);
				started++;
			}
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.1f\n", n / (end.tv_sec - began.tv_sec +
						  (end.tv_nsec - began.tv_nsec) / 1e9));
	return 0;
}
