/*
 * program.c
 *	  A program that the worker runs for a task.
 *
 * It leads a process group of its own, which is signalled as a whole.  Where
 * the groups are is written into memory that a process of ours shares, the
 * keeper: it waits for the worker to die, of whatever, and then kills what is
 * left of them.  Only what leaves its group (setsid) outlives its task.
 *
 * A program is through when its first process ends, whoever else holds its
 * pipes then.
 */
#include "postgres_fe.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "cli.h"
#include "program.h"

/* Without copying page tables: the child does nothing but what is below. */
#ifdef __linux__
#define start_process vfork
#else
#define start_process fork
#endif

#define PIECE 65536

/* A longer line comes in parts. */
#define LONGEST_LINE 4000

/* What may stand in a pipe when the program that wrote it has ended. */
#define MOST_LEFT (1024 * 1024)

/* Descriptors of ours besides pipes. */
#define OTHER_FDS 64

/* Descriptors of a program besides the three that all have. */
#define REPORTS_FD 3

/* Shared with the keeper. */
typedef struct Place
{
	volatile pid_t group; /* 0: free */
	volatile int error;	  /* why it could not be run */
} Place;

struct Program
{
	Place *place;
	pid_t pid;
	void *owner;
	void (*line)(void *owner, ProgramStream stream, const char *line,
				 size_t length);
	int input_fd; /* -1: closed, as the others */
	int output_fd;
	int line_fds[2]; /* by ProgramStream */
	const char *input;
	size_t input_left;
	size_t most_output;
	bool too_much;
	double kill_at; /* INFINITY: never */
	PQExpBufferData output;
	PQExpBufferData lines[2]; /* what has no end yet */
	int status;
};

/* The ends of its pipes that the program gets, by their number there. */
typedef int ChildEnds[REPORTS_FD + 1];

static Place *places = NULL;
static Program **programs; /* by place */
static int nplaces;

static void raise_limit(rlim_t needed);
static void start_keeper(void);
static _Noreturn void keep(int worker);
static Place *find_place(void);
static bool open_pipes(Program *program, ChildEnds ends);
static bool open_pipe(int *mine, int *its, bool write);
static _Noreturn void run_child(const ProgramStart *start, Place *place,
								const ChildEnds ends, const sigset_t *mask);
static void close_fd(int *fd);
static void write_input(Program *program);
static bool read_output(Program *program);
static bool read_lines(Program *program, ProgramStream stream);
static void take_lines(Program *program, ProgramStream stream,
					   const char *bytes, size_t length);
static void read_rest(Program *program);
static void signal_group(const Program *program, int number);

void
program_init(int most)
{
	int fd;

	/* those of programs must not fall on the places of what they get */
	do
	{
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= REPORTS_FD);
	if (fd >= 0)
		close(fd);
	/* nor may programs get what was open before us */
	for (int i = REPORTS_FD; i < 1024; i++)
		fcntl(i, F_SETFD, FD_CLOEXEC);
	/* of a program that closes its input */
	signal(SIGPIPE, SIG_IGN);
	raise_limit(most * PROGRAM_PIPES + OTHER_FDS);

	nplaces = most;
	programs = pg_malloc0(most * sizeof(Program *));
	places = mmap(NULL, most * sizeof(Place), PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (places == MAP_FAILED)
		cli_fail(CLI_FAILED, "could not share memory: %s", strerror(errno));
	start_keeper();
}

/*
 * Of open descriptors: tasks are not to fail for want of them.
 */
static void
raise_limit(rlim_t needed)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed)
		return;
	limit.rlim_cur = needed;
	if (needed > limit.rlim_max || setrlimit(RLIMIT_NOFILE, &limit) != 0)
		cli_fail(
			CLI_FAILED,
			"so many programs at once may need %lu open files, and %lu are allowed: say a smaller --concurrency, or raise the limit (ulimit -Hn)",
			(unsigned long) needed, (unsigned long) limit.rlim_max);
}

static void
start_keeper(void)
{
	int ends[2];
	pid_t pid;

	if (pipe(ends) != 0)
		cli_fail(CLI_FAILED, "could not make a pipe: %s", strerror(errno));
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		cli_fail(CLI_FAILED, "could not start a process: %s", strerror(errno));
	if (pid == 0)
	{
		close(ends[1]);
		keep(ends[0]);
	}
	close(ends[0]);
	/* stays open until the worker is gone */
	fcntl(ends[1], F_SETFD, FD_CLOEXEC);
}

/*
 * The keeper: sleeps until nobody can write to the pipe any more.
 */
static void
keep(int worker)
{
	static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
	int nowhere = open("/dev/null", O_RDWR);
	char byte;
	ssize_t count;

	setsid();
	for (int i = 0; i < lengthof(ignored); i++)
		signal(ignored[i], SIG_IGN);
	for (int i = 0; i <= STDERR_FILENO; i++)
		dup2(nowhere, i);
	do
	{
		count = read(worker, &byte, 1);
	} while (count > 0 || (count < 0 && errno == EINTR));
	for (int i = 0; i < nplaces; i++)
		if (places[i].group > 0)
			kill(-places[i].group, SIGKILL);
	_exit(0);
}

static Place *
find_place(void)
{
	for (int i = 0; i < nplaces; i++)
		if (programs[i] == NULL)
			return &places[i];
	return NULL;
}

static void
close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/*
 * Only our end does not block.
 */
static bool
open_pipe(int *mine, int *its, bool write)
{
	int ends[2];

#ifdef __linux__
	if (pipe2(ends, O_CLOEXEC) != 0)
		return false;
#else
	if (pipe(ends) != 0)
		return false;
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	fcntl(ends[1], F_SETFD, FD_CLOEXEC);
#endif
	*mine = ends[write ? 1 : 0];
	*its = ends[write ? 0 : 1];
	fcntl(*mine, F_SETFL, O_NONBLOCK);
	return true;
}

static bool
open_pipes(Program *program, ChildEnds ends)
{
	return open_pipe(&program->input_fd, &ends[STDIN_FILENO], true) &&
		   open_pipe(&program->output_fd, &ends[STDOUT_FILENO], false) &&
		   open_pipe(&program->line_fds[PROGRAM_ERRORS], &ends[STDERR_FILENO],
					 false) &&
		   open_pipe(&program->line_fds[PROGRAM_REPORTS], &ends[REPORTS_FD],
					 false);
}

/*
 * In the child, which may share our memory: it writes to its place only.
 */
static void
run_child(const ProgramStart *start, Place *place, const ChildEnds ends,
		  const sigset_t *mask)
{
	static const int defaults[] = {SIGINT,	SIGTERM, SIGHUP,  SIGCHLD,
								   SIGPIPE, SIGTSTP, SIGWINCH};

	setpgid(0, 0);
	place->group = getpid();
#ifdef __linux__
	/* should the keeper be killed as well */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
	for (int i = 0; i < lengthof(defaults); i++)
		signal(defaults[i], SIG_DFL);
	sigprocmask(SIG_SETMASK, mask, NULL);
	for (int i = 0; i <= REPORTS_FD; i++)
		if (dup2(ends[i], i) < 0)
			goto failed;
	if (chdir(start->folder) != 0)
		goto failed;
	execve(start->arguments[0], start->arguments, start->environment);
failed:
	place->error = errno;
	_exit(127);
}

Program *
program_start(const ProgramStart *start, ProgramError *why)
{
	Program *program = pg_malloc0(sizeof(Program));
	ChildEnds ends = {-1, -1, -1, -1};
	sigset_t all;
	sigset_t before;
	int error;

	program->place = find_place();
	Assert(program->place != NULL);
	program->owner = start->owner;
	program->line = start->line;
	program->input = start->input;
	program->input_left = start->input_length;
	program->most_output = start->most_output;
	program->kill_at = INFINITY;
	program->input_fd = program->output_fd = -1;
	program->line_fds[0] = program->line_fds[1] = -1;
	initPQExpBuffer(&program->output);
	initPQExpBuffer(&program->lines[0]);
	initPQExpBuffer(&program->lines[1]);

	program->place->error = 0;
	if (open_pipes(program, ends))
	{
		/* what handlers of ours do is nothing for the child */
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, &before);
		program->pid = start_process();
		if (program->pid == 0)
			run_child(start, program->place, ends, &before);
		error = errno;
		sigprocmask(SIG_SETMASK, &before, NULL);
		errno = error;
	}
	else
		program->pid = -1;
	error = errno;
	for (int i = 0; i <= REPORTS_FD; i++)
		close_fd(&ends[i]);
	if (program->pid > 0 && program->place->error == 0)
	{
		programs[program->place - places] = program;
		write_input(program);
		return program;
	}
	why->lacking = program->pid < 0;
	if (program->pid > 0)
	{
		error = program->place->error;
		waitpid(program->pid, NULL, 0);
	}
	program->place->group = 0;
	program_free(program);
	why->reason = strerror(error);
	return NULL;
}

int
program_descriptors(const Program *program, struct pollfd *descriptors)
{
	int fds[PROGRAM_PIPES] = {program->input_fd, program->output_fd,
							  program->line_fds[0], program->line_fds[1]};
	int count = 0;

	for (int i = 0; i < PROGRAM_PIPES; i++)
		if (fds[i] >= 0)
		{
			descriptors[count].fd = fds[i];
			descriptors[count++].events = i == 0 ? POLLOUT : POLLIN;
		}
	return count;
}

void
program_serve(Program *program, const struct pollfd *descriptors, int count)
{
	for (int i = 0; i < count; i++)
	{
		if (descriptors[i].revents == 0)
			continue;
		if (descriptors[i].fd == program->input_fd)
			write_input(program);
		else if (descriptors[i].fd == program->output_fd)
			read_output(program);
		else if (descriptors[i].fd == program->line_fds[PROGRAM_ERRORS])
			read_lines(program, PROGRAM_ERRORS);
		else if (descriptors[i].fd == program->line_fds[PROGRAM_REPORTS])
			read_lines(program, PROGRAM_REPORTS);
	}
}

/*
 * A program need not read it.
 */
static void
write_input(Program *program)
{
	ssize_t count = 0;

	if (program->input_left > 0)
		count = write(program->input_fd, program->input, program->input_left);
	if (count > 0)
	{
		program->input += count;
		program->input_left -= count;
	}
	if (program->input_left == 0 ||
		(count < 0 && errno != EAGAIN && errno != EINTR))
		close_fd(&program->input_fd);
}

/*
 * One piece; false: there is none.
 */
static bool
read_output(Program *program)
{
	char piece[PIECE];
	ssize_t count = read(program->output_fd, piece, sizeof(piece));

	if (count == 0)
		close_fd(&program->output_fd);
	if (count <= 0)
		return false;
	if (!program->too_much &&
		program->output.len + count > program->most_output)
	{
		program->too_much = true;
		termPQExpBuffer(&program->output);
		initPQExpBuffer(&program->output);
		signal_group(program, SIGKILL);
	}
	if (!program->too_much)
		appendBinaryPQExpBuffer(&program->output, piece, count);
	return true;
}

static bool
read_lines(Program *program, ProgramStream stream)
{
	char piece[PIECE];
	ssize_t count = read(program->line_fds[stream], piece, sizeof(piece));

	if (count == 0)
		close_fd(&program->line_fds[stream]);
	if (count <= 0)
		return false;
	take_lines(program, stream, piece, count);
	return true;
}

static void
take_lines(Program *program, ProgramStream stream, const char *bytes,
		   size_t length)
{
	PQExpBuffer begun = &program->lines[stream];

	while (length > 0)
	{
		const char *end = memchr(bytes, '\n', length);
		size_t taken = Min(end ? (size_t) (end - bytes) : length,
						   LONGEST_LINE - begun->len);

		appendBinaryPQExpBuffer(begun, bytes, taken);
		bytes += taken;
		length -= taken;
		if (bytes == end)
		{
			bytes++;
			length--;
		}
		else if (begun->len < LONGEST_LINE)
			return;
		program->line(program->owner, stream, begun->data, begun->len);
		resetPQExpBuffer(begun);
	}
}

static void
signal_group(const Program *program, int number)
{
	kill(-program->pid, number);
}

void
program_end(Program *program, double grace)
{
	signal_group(program, SIGTERM);
	program->kill_at = term_now() + grace;
}

void
program_kill_at(Program *program, double at)
{
	program->kill_at = at;
}

double
program_due(const Program *program)
{
	return program->kill_at;
}

bool
program_enforce(Program *program, double now)
{
	if (now < program->kill_at)
		return false;
	signal_group(program, SIGKILL);
	program->kill_at = INFINITY;
	return true;
}

/*
 * As long as the process is not reaped, nobody else has its number.
 */
Program *
program_ended(void)
{
	siginfo_t info;
	Program *program = NULL;

	for (;;)
	{
		info.si_pid = 0;
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
			info.si_pid == 0)
			return NULL;
		for (int i = 0; i < nplaces && program == NULL; i++)
			if (programs[i] && programs[i]->pid == info.si_pid)
				program = programs[i];
		if (program)
			break;
		/* the keeper: nobody needs it as much as it needs us */
		waitpid(info.si_pid, NULL, 0);
	}
	signal_group(program, SIGKILL);
	read_rest(program);
	program->place->group = 0;
	waitpid(program->pid, &program->status, 0);
	programs[program->place - places] = NULL;
	return program;
}

static void
read_rest(Program *program)
{
	for (int i = 0; i < MOST_LEFT / PIECE && program->output_fd >= 0 &&
					read_output(program);
		 i++)
		;
	for (int stream = 0; stream < lengthof(program->lines); stream++)
	{
		for (int i = 0;
			 i < MOST_LEFT / PIECE && program->line_fds[stream] >= 0 &&
			 read_lines(program, stream);
			 i++)
			;
		if (program->lines[stream].len > 0)
			take_lines(program, stream, "\n", 1);
	}
}

void *
program_owner(const Program *program)
{
	return program->owner;
}

int
program_status(const Program *program)
{
	return program->status;
}

const PQExpBufferData *
program_output(const Program *program)
{
	return program->too_much ? NULL : &program->output;
}

void
program_free(Program *program)
{
	close_fd(&program->input_fd);
	close_fd(&program->output_fd);
	for (int i = 0; i < lengthof(program->lines); i++)
	{
		close_fd(&program->line_fds[i]);
		termPQExpBuffer(&program->lines[i]);
	}
	termPQExpBuffer(&program->output);
	free(program);
}
