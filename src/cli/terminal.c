/*
 * terminal.c
 *	  The terminal: its size and colours, drawing in place, keys, questions,
 *	  and signals.
 *
 * A signal writes a byte into a pipe that term_poll() looks at, so that none
 * is missed between a look and a sleep.  Whatever was changed of the terminal
 * is put back by term_restore(), at every exit and while the process is
 * stopped.
 */
#include "postgres_fe.h"

#include <fcntl.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

#define HIDE_CURSOR	 "\033[?25l"
#define SHOW_CURSOR	 "\033[?25h"
#define OPEN_SCREEN	 "\033[?1049h" HIDE_CURSOR "\033[H\033[2J"
#define CLOSE_SCREEN "\033[?1049l" SHOW_CURSOR

static volatile sig_atomic_t interrupts = 0;
static bool interrupts_counted = false;
static int signal_pipe[2] = {-1, -1};

static bool is_terminal = false;
static bool is_utf8 = false;

/* What has to be put back. */
static volatile sig_atomic_t cursor_hidden = 0;
static volatile sig_atomic_t screen_open = 0;
static volatile sig_atomic_t keys_raw = 0;
static struct termios keys_before;
static struct termios keys_during;

/* What stands on the terminal. */
static int lines_drawn = 0;
static char *drawn = NULL;

static void catch_interrupt(int number);
static void catch_child(int number);
static void catch_quit(int number);
static void catch_stop(int number);
static void catch_resize(int number);
static void install(int number, void (*handler)(int));
static void open_missing(void);
static bool is_colored(void);
static void wake(void);
static void emit(const char *sequence);
static void forget_drawn(void);
static char *read_answer(int terminal);

static void
wake(void)
{
	int save_errno = errno;

	if (write(signal_pipe[1], "", 1) < 0)
	{
		/* full: it is awake */
	}
	errno = save_errno;
}

/*
 * The second time does not wait for anybody; the third, where they count.
 */
static void
catch_interrupt(int number)
{
	if (interrupts >= (interrupts_counted ? 2 : 1))
	{
		term_restore();
		_exit(CLI_INTERRUPTED);
	}
	interrupts = interrupts + 1;
	wake();
}

static void
catch_child(int number)
{
	wake();
}

static void
catch_quit(int number)
{
	term_restore();
	signal(number, SIG_DFL);
	raise(number);
}

/*
 * Ctrl-Z: give the terminal back while stopped.
 */
static void
catch_stop(int number)
{
	bool screen = screen_open;
	bool cursor = cursor_hidden;
	bool keys = keys_raw;

	term_restore();
	raise(SIGSTOP);
	if (keys)
	{
		tcsetattr(STDIN_FILENO, TCSADRAIN, &keys_during);
		keys_raw = 1;
	}
	if (screen)
		emit(OPEN_SCREEN);
	else if (cursor)
		emit(HIDE_CURSOR);
	screen_open = screen;
	cursor_hidden = cursor;
	catch_resize(number);
}

static void
catch_resize(int number)
{
	lines_drawn = screen_open ? 0 : -1;
	wake();
}

static void
install(int number, void (*handler)(int))
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_handler = handler;
	sigemptyset(&action.sa_mask);
	sigaction(number, &action, NULL);
}

/*
 * Descriptors 0 to 2 that were closed, lest something else becomes them; so
 * that reading and writing still fails.
 */
static void
open_missing(void)
{
	for (int i = 0; i <= STDERR_FILENO; i++)
		if (fcntl(i, F_GETFD) < 0 &&
			open("/dev/null", i == STDIN_FILENO ? O_WRONLY : O_RDONLY) != i)
			_exit(CLI_FAILED);
}

void
term_init(void)
{
	const char *kind = getenv("TERM");
	struct sigaction hangup;

	open_missing();
	setlocale(LC_CTYPE, "");
	is_utf8 = pg_strcasecmp(nl_langinfo(CODESET), "UTF-8") == 0;
	is_terminal =
		isatty(STDOUT_FILENO) && kind != NULL && strcmp(kind, "dumb") != 0;
	/* What is not shown on a terminal is a file, and those are UTF-8. */
	if (!isatty(STDOUT_FILENO))
		is_utf8 = true;

	if (pipe(signal_pipe) != 0)
		cli_fail(CLI_FAILED, "could not make a pipe: %s", strerror(errno));
	for (int i = 0; i < 2; i++)
	{
		fcntl(signal_pipe[i], F_SETFL, O_NONBLOCK);
		fcntl(signal_pipe[i], F_SETFD, FD_CLOEXEC);
	}
	install(SIGINT, catch_interrupt);
	install(SIGTERM, catch_interrupt);
	/* unless it is to be ignored (nohup) */
	if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
		install(SIGHUP, catch_interrupt);
	if (is_terminal)
	{
		install(SIGQUIT, catch_quit);
		install(SIGTSTP, catch_stop);
		install(SIGWINCH, catch_resize);
	}
}

bool
term_is_terminal(void)
{
	return is_terminal;
}

bool
term_utf8(void)
{
	return is_utf8;
}

int
term_width(void)
{
	struct winsize size;

	if (!is_terminal)
		return INT_MAX;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
		return 80;
	return size.ws_col;
}

int
term_height(void)
{
	struct winsize size;

	if (!is_terminal)
		return INT_MAX;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0)
		return 24;
	return size.ws_row;
}

bool
term_interrupted(void)
{
	return interrupts != 0;
}

int
term_count_interrupts(void)
{
	interrupts_counted = true;
	return interrupts;
}

void
term_watch_children(void)
{
	install(SIGCHLD, catch_child);
}

int
term_poll(struct pollfd *descriptors, int count, double seconds)
{
	static struct pollfd *all = NULL;
	static int room = 0;
	char bytes[64];
	int ready;

	if (room <= count)
	{
		room = count + 8;
		all = pg_realloc(all, room * sizeof(struct pollfd));
	}
	all[0].fd = signal_pipe[0];
	all[0].events = POLLIN;
	all[0].revents = 0;
	for (int i = 0; i < count; i++)
		all[i + 1] = descriptors[i];

	ready = poll(all, count + 1,
				 seconds < 0 ? -1 : (int) Min(seconds * 1000 + 0.999, 1e9));
	for (int i = 0; i < count; i++)
		descriptors[i].revents = ready > 0 ? all[i + 1].revents : 0;
	if (ready < 0 || (all[0].revents & POLLIN))
	{
		while (read(signal_pipe[0], bytes, sizeof(bytes)) > 0)
			;
		return -1;
	}
	return ready;
}

TermColor
term_state_color(const char *state)
{
	static const struct
	{
		const char *state;
		TermColor color;
	} colors[] = {
		{"running", TERM_BLUE},	 {"completed", TERM_GREEN},
		{"failed", TERM_RED},	 {"cancelled", TERM_MAGENTA},
		{"paused", TERM_YELLOW}, {"waiting", TERM_CYAN},
		{"skipped", TERM_DIM},	 {"scheduled", TERM_DIM},
		{"busy", TERM_BLUE},	 {"dead", TERM_RED},
		{"failing", TERM_RED},
	};

	for (int i = 0; i < lengthof(colors); i++)
		if (strcmp(state, colors[i].state) == 0)
			return colors[i].color;
	return TERM_PLAIN;
}

static bool
is_colored(void)
{
	const char *no_color = getenv("NO_COLOR");

	if (strcmp(cli_settings.color, "auto") != 0)
		return strcmp(cli_settings.color, "always") == 0;
	return is_terminal && (no_color == NULL || no_color[0] == '\0');
}

void
term_color(PQExpBuffer to, TermColor color)
{
	/* In the order of TermColor. */
	static const char *const sequences[] = {"",	  "1",	"2",  "31", "32",
											"33", "34", "35", "36"};

	if (color != TERM_PLAIN && is_colored())
		appendPQExpBuffer(to, "\033[%sm", sequences[color]);
}

void
term_plain(PQExpBuffer to)
{
	if (is_colored())
		appendPQExpBufferStr(to, "\033[0m");
}

/*
 * Also called by signal handlers.
 */
static void
emit(const char *sequence)
{
	if (write(STDOUT_FILENO, sequence, strlen(sequence)) < 0)
	{
		/* nobody there to see it */
	}
}

static void
forget_drawn(void)
{
	lines_drawn = 0;
	free(drawn);
	drawn = NULL;
}

void
term_draw(const char *lines)
{
	PQExpBufferData out;
	const char *end;
	int before = lines_drawn;
	int room = term_height() - (screen_open ? 0 : 1);
	int count = 0;

	if (before > 0 && drawn && strcmp(drawn, lines) == 0)
		return;

	initPQExpBuffer(&out);
	if (!cursor_hidden)
	{
		cursor_hidden = 1;
		appendPQExpBufferStr(&out, HIDE_CURSOR);
	}
	if (screen_open)
		appendPQExpBufferStr(&out, "\033[H");
	else if (before > 0)
		appendPQExpBuffer(&out, "\033[%dA\r", before);

	for (const char *line = lines; *line != '\0' && count < room;
		 line = end + 1)
	{
		end = strchr(line, '\n');
		appendBinaryPQExpBuffer(&out, line, end - line);
		appendPQExpBufferStr(&out, "\033[K");
		count++;
		/* The last line of a screen must not push the first one out. */
		if (!screen_open || count < room)
			appendPQExpBufferChar(&out, '\n');
	}
	appendPQExpBufferStr(&out, "\033[J");
	fwrite(out.data, 1, out.len, stdout);
	fflush(stdout);
	termPQExpBuffer(&out);

	free(drawn);
	drawn = pg_strdup(lines);
	lines_drawn = count;
}

void
term_keep(void)
{
	forget_drawn();
	if (cursor_hidden && !screen_open)
		emit(SHOW_CURSOR);
	cursor_hidden = 0;
}

void
term_open_screen(void)
{
	if (!is_terminal)
		return;
	if (isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &keys_before) == 0)
	{
		keys_during = keys_before;
		keys_during.c_lflag &= ~(ICANON | ECHO);
		keys_during.c_cc[VMIN] = 0;
		keys_during.c_cc[VTIME] = 0;
		tcsetattr(STDIN_FILENO, TCSADRAIN, &keys_during);
		keys_raw = 1;
	}
	fflush(stdout);
	emit(OPEN_SCREEN);
	screen_open = 1;
	cursor_hidden = 1;
	forget_drawn();
}

int
term_key(void)
{
	char key;

	if (keys_raw && read(STDIN_FILENO, &key, 1) == 1)
		return (unsigned char) key;
	return 0;
}

/*
 * Also called by signal handlers.
 */
void
term_restore(void)
{
	if (screen_open)
		emit(CLOSE_SCREEN);
	else if (cursor_hidden)
		emit(SHOW_CURSOR);
	screen_open = 0;
	cursor_hidden = 0;
	if (keys_raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &keys_before);
	keys_raw = 0;
}

/*
 * Not through standard input: that may be the data.
 */
char *
term_ask(const char *question, bool echo)
{
	struct termios before;
	struct termios during;
	char *answer;
	int terminal = open("/dev/tty", O_RDWR | O_NOCTTY);
	bool changed = false;

	if (terminal < 0)
		return NULL;
	if (!echo && tcgetattr(terminal, &before) == 0)
	{
		during = before;
		during.c_lflag &= ~ECHO;
		changed = tcsetattr(terminal, TCSAFLUSH, &during) == 0;
	}
	fflush(stdout);
	if (write(terminal, question, strlen(question)) < 0)
		answer = NULL;
	else
		answer = read_answer(terminal);
	if (changed)
	{
		tcsetattr(terminal, TCSAFLUSH, &before);
		if (write(terminal, "\n", 1) < 0)
			answer = NULL;
	}
	close(terminal);
	return answer;
}

static char *
read_answer(int terminal)
{
	PQExpBufferData answer;
	struct pollfd ready = {.fd = terminal, .events = POLLIN};
	char byte;

	initPQExpBuffer(&answer);
	for (;;)
	{
		if (term_poll(&ready, 1, -1) < 0)
		{
			if (term_interrupted())
				return NULL;
			continue;
		}
		if (read(terminal, &byte, 1) != 1)
			return NULL;
		if (byte == '\n')
			return answer.data;
		appendPQExpBufferChar(&answer, byte);
	}
}

double
term_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}
