/*
 * child.c
 *	  The courier's child program.
 *
 * It inherits a socket and nothing else: no environment, no open file, no
 * signal that is blocked.  Its memory is bounded, and it does not outlive us.
 */
#include "postgres.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "child.h"
#include "guc.h"

#define PROGRAM "orchestrator-courier"

/* Of a thread that looks up a name. */
#define STACK_SIZE (1024 * 1024)

static const char *program_path(void);
static _Noreturn void run_program(const char *path, int socket, pid_t parent);
static void close_others(void);
static void bound(int what, rlim_t most);

/*
 * Beside the library.
 */
static const char *
program_path(void)
{
	static char path[MAXPGPATH];
	Dl_info library;
	char *slash;

	if (path[0] != '\0')
		return path;
	if (dladdr((void *) orch_child_start, &library) == 0)
		return PROGRAM;
	strlcpy(path, library.dli_fname, sizeof(path));
	slash = strrchr(path, '/');
	strlcpy(slash == NULL ? path : slash + 1, PROGRAM,
			sizeof(path) - (slash == NULL ? 0 : slash + 1 - path));
	return path;
}

bool
orch_child_installed(void)
{
	return access(program_path(), X_OK) == 0;
}

bool
orch_child_start(OrchChild *child)
{
	const char *path = program_path();
	pid_t parent = getpid();
	int sockets[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
	{
		ereport(LOG, (errmsg("could not make a socket for %s: %m", PROGRAM)));
		return false;
	}
	child->pid = fork();
	if (child->pid == 0)
		run_program(path, sockets[1], parent);
	close(sockets[1]);
	if (child->pid < 0)
	{
		ereport(LOG, (errmsg("could not start %s: %m", PROGRAM)));
		close(sockets[0]);
		child->pid = 0;
		return false;
	}
	child->socket = sockets[0];
	child->ready = false;
	child->started_at = child->heard_at = GetCurrentTimestamp();
	return true;
}

/*
 * In the new process: nothing of the server's is to be touched.
 */
static void
run_program(const char *path, int socket, pid_t parent)
{
	char *const arguments[] = {PROGRAM, NULL};
	char *const environment[] = {"LC_ALL=C", NULL};
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
	(void) setpgid(0, 0);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
		_exit(1);
	if (dup2(socket, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
		dup2(null, STDERR_FILENO) < 0)
		_exit(1);
	close_others();
	bound(RLIMIT_AS, (rlim_t) orch_courier_memory * 1024 * 1024);
	bound(RLIMIT_STACK, STACK_SIZE);
	bound(RLIMIT_CORE, 0);
	execve(path, arguments, environment);
	_exit(127);
}

static void
close_others(void)
{
#ifdef SYS_close_range
	if (syscall(SYS_close_range, 3, ~0U, 0) == 0)
		return;
#endif
	for (long fd = sysconf(_SC_OPEN_MAX) - 1; fd > STDERR_FILENO; fd--)
		(void) close((int) fd);
}

static void
bound(int what, rlim_t most)
{
	struct rlimit limit;

	if (getrlimit(what, &limit) != 0)
		_exit(1);
	limit.rlim_cur = Min(limit.rlim_max, most);
	if (setrlimit(what, &limit) != 0)
		_exit(1);
}

void
orch_child_stop(OrchChild *child)
{
	if (child->pid != 0)
	{
		(void) kill(child->pid, SIGKILL);
		while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR)
			continue;
		close(child->socket);
	}
	frame_free(&child->in);
	frame_free(&child->out);
	child->pid = 0;
	child->socket = -1;
	child->ready = false;
}

bool
orch_child_exchange(OrchChild *child)
{
	Size had = child->in.size - child->in.start;
	bool good = frame_send(&child->out, child->socket) &&
				frame_receive(&child->in, child->socket);

	if (child->in.size - child->in.start > had)
		child->heard_at = GetCurrentTimestamp();
	return good;
}
