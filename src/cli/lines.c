/*
 * lines.c
 *	  watch without bars: a line for each event, as text or as JSON.
 *
 * Events carry numbers only.  They wait here until the names of their tasks
 * were asked, of many at once.
 */
#include "postgres_fe.h"

#include <time.h>

#include "watch.h"

/* Beyond it they are lost, and that is told. */
#define MOST_EVENTS 10000

typedef struct Waiting
{
	WatchEvent event;
	double at; /* Unix seconds */
} Waiting;

static Waiting *waiting = NULL;
static int nwaiting = 0;
static int room = 0;

static double unix_now(void);
static void append_text_line(PQExpBuffer to, const WatchEvent *event,
							 const WatchTask *task, double at);
static void append_json_line(PQExpBuffer to, const WatchEvent *event,
							 const WatchTask *task, double at);
static void append_string(PQExpBuffer to, const char *name, const char *value);
static void append_event(PQExpBuffer to, const WatchEvent *event,
						 const WatchTask *task, double at);

static double
unix_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * False: there are too many, and this one is lost.
 */
bool
watch_line_push(const WatchEvent *event)
{
	if (nwaiting == MOST_EVENTS)
		return false;
	if (nwaiting == room)
	{
		room = Max(room * 2, 64);
		waiting = pg_realloc(waiting, room * sizeof(Waiting));
	}
	waiting[nwaiting].event = *event;
	waiting[nwaiting].at = unix_now();
	nwaiting++;
	return true;
}

int
watch_line_count(void)
{
	return nwaiting;
}

/*
 * Print what waits, of the tasks that could be seen; forget those that ended.
 */
void
watch_line_flush(void)
{
	PQExpBufferData text;
	WatchTask *task;

	initPQExpBuffer(&text);
	for (int i = 0; i < nwaiting; i++)
	{
		task = watch_find(waiting[i].event.task);
		if (task && !task->foreign)
			append_event(&text, &waiting[i].event, task, waiting[i].at);
	}
	for (int i = 0; i < nwaiting; i++)
	{
		task = watch_find(waiting[i].event.task);
		if (task && !task->named && watch_is_final(task))
			watch_remove(task);
	}
	nwaiting = 0;
	out_print(&text);
	termPQExpBuffer(&text);
}

/*
 * How a task stands now: at the beginning, and after events were lost.
 */
void
watch_line_now(const WatchTask *task)
{
	PQExpBufferData text;
	WatchEvent event = {.task = task->id,
						.root = task->root,
						.event = "state",
						.state = task->state,
						.progress = task->progress,
						.attempt = task->attempt};

	initPQExpBuffer(&text);
	append_event(&text, &event, task, unix_now());
	out_print(&text);
	termPQExpBuffer(&text);
}

/*
 * Of the connection: no task's.
 */
void
watch_line_say(const char *event, const char *message)
{
	PQExpBufferData text;

	if (!cli_settings.json)
	{
		out_warn("%s", message);
		return;
	}
	initPQExpBuffer(&text);
	appendPQExpBuffer(&text, "{\"event\": \"%s\"", event);
	append_string(&text, "message", message);
	appendPQExpBufferStr(&text, "}\n");
	out_print(&text);
	termPQExpBuffer(&text);
}

static void
append_event(PQExpBuffer to, const WatchEvent *event, const WatchTask *task,
			 double at)
{
	if (cli_settings.json)
		append_json_line(to, event, task, at);
	else
		append_text_line(to, event, task, at);
}

static void
append_text_line(PQExpBuffer to, const WatchEvent *event,
				 const WatchTask *task, double at)
{
	bool state = strcmp(event->event, "state") == 0;

	text_append_time(to, at);
	appendPQExpBuffer(to, "  %lld  ", event->task);
	if (task->root != task->id && task->up && task->up->name)
	{
		text_append(to, task->up->name);
		appendPQExpBufferStr(to, " / ");
	}
	text_append(to, task->name ? task->name : "");
	appendPQExpBuffer(to, "  %s", state ? event->state : event->event);
	if (event->progress >= 0 && strcmp(event->state, "running") == 0)
		appendPQExpBuffer(to, " %.0f %%", event->progress * 100);
	if (event->attempt > 1)
		appendPQExpBuffer(to, "  attempt %d of %d", event->attempt,
						  task->max_attempts);
	if (task->message && strcmp(event->event, "created") != 0)
	{
		appendPQExpBufferStr(to, "  ");
		text_append(to, task->message);
	}
	appendPQExpBufferChar(to, '\n');
}

static void
append_string(PQExpBuffer to, const char *name, const char *value)
{
	appendPQExpBuffer(to, ", \"%s\": ", name);
	out_append_string(to, value);
}

static void
append_json_line(PQExpBuffer to, const WatchEvent *event,
				 const WatchTask *task, double at)
{
	time_t whole = (time_t) at;
	struct tm there = *gmtime(&whole);
	char when[32];

	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &there);
	appendPQExpBuffer(
		to, "{\"at\": \"%s.%03dZ\", \"task\": %lld, \"root\": %lld", when,
		(int) ((at - whole) * 1000), event->task, event->root);
	append_string(to, "name", task->name);
	append_string(to, "event", event->event);
	append_string(to, "state", event->state);
	if (event->progress >= 0)
		appendPQExpBuffer(to, ", \"progress\": %.4g", event->progress);
	appendPQExpBuffer(to, ", \"attempt\": %d", event->attempt);
	append_string(to, "message", task->message);
	appendPQExpBufferStr(to, "}\n");
}
