/*
 * watch.c
 *	  Following tasks: watch.
 *
 * Events of LISTEN say what happens to tasks; drawn is what they say, at a
 * bounded rate.  They carry numbers only, so names and messages, the steps of
 * a run and what is new are asked of the database: of what is shown, and not
 * more often than REFRESH, however many events there are.  When nothing
 * happens, nothing is asked, but for one thing that no event tells: the place
 * of a task that waits in its queue.
 */
#include "postgres_fe.h"

#include <math.h>
#include <poll.h>

#include "watch.h"

/* Seconds. */
#define FRAME		 0.1 /* between two drawings, or two looks at the events */
#define LINE_PAUSE	 0.2 /* the same of lines */
#define REFRESH		 1.0 /* between two questions about what was known before */
#define NEWS		 0.25 /* and about what is new */
#define PLACES		 2.0  /* between two about places in queues */
#define TICK		 1.0  /* times pass */
#define LINGER		 3.0  /* what ended is still shown, of all tasks */
#define LONGEST_LOSS 300

/* Of all tasks. */
#define MOST_KNOWN	  5000
#define MOST_CREATED  1000
#define MOST_CHANNELS 40

#define CHANNEL "orchestrator"

static CliExit run_watch(CliCall *call);
static void set_named(const long long *ids, int count);
static bool loop(void);
static bool sync_all(void);
static bool listen_to_named(void);
static void forget(WatchTask *task);
static void take_notifications(void);
static void take_event(const WatchEvent *event);
static WatchTask *take_new(const WatchEvent *event);
static void tell_up(const WatchTask *task);
static void tell_map(WatchTask *map);
static void take_line(const WatchEvent *event);
static void collect(WatchTask *task, bool force, bool steps);
static bool is_asked(const WatchTask *task, bool force);
static bool refresh(bool force);
static bool lacks_channel(void);
static bool change_channels(void);
static bool has_channel(long long root);
static bool say_listen(const char *verb, long long root);
static double draw(double now);
static double ask(double now);
static double show(double now);
static double print(double now);
static double forget_ended(double now);
static void look_at_shown(WatchTask *task, bool *runs, bool *waits);
static bool all_ended(void);
static void sleep_until(double wake);
static void come_back(void);
static void say_lost(const char *reason, double pause);
static CliExit outcome(void);

static bool all;	   /* not only the named ones */
static bool lines;	   /* instead of bars */
static bool gone;	   /* the connection */
static bool unsynced;  /* everything is to be asked */
static bool synced;	   /* it was once */
static bool dirty;	   /* something is to be drawn */
static bool has_news;  /* something is to be asked soon, */
static bool has_stale; /* or later */
static char *note;	   /* below the bars */

/* Of term_now(). */
static double until; /* --timeout; 0: none */
static double refreshed_at;
static double drawn_at;
static double placed_at;
static double printed_at;
static double read_at; /* not before, to take many events at once */

/* Those to be asked. */
static WatchTask **asked = NULL;
static int nasked;
static int asked_room;

/* Roots whose channels we listen to. */
static long long channels[MOST_CHANNELS];
static int nchannels = 0;

static const CliOption watch_options[] = {
	{"timeout", 't', "SECONDS", "follow them no longer than that"},
	{NULL},
};

const CliCommand cmd_watch = {
	"watch",
	"[TASK]...",
	"Follow tasks with progress bars until they end",
	"Without a task, all that are live, and those to come, until Ctrl-C. On a pipe, and\n"
	"with --json, one line for each event. The exit code is 0 if all completed, 4 if one\n"
	"did not, 8 if the time-out passed first.",
	0,
	-1,
	watch_options,
	run_watch};

static CliExit
run_watch(CliCall *call)
{
	double timeout = opt_seconds(call, "timeout", 0);
	long long *ids = pg_malloc0((call->narguments + 1) * sizeof(long long));

	for (int i = 0; i < call->narguments; i++)
		ids[i] = opt_task(call, call->arguments[i]);
	return watch_tasks(ids, call->narguments, timeout);
}

CliExit
watch_tasks(const long long *ids, int count, double timeout)
{
	all = count == 0;
	lines = cli_settings.json || !term_is_terminal();
	until = timeout > 0 ? term_now() + timeout : 0;
	set_named(ids, count);
	db_connection();
	unsynced = true;
	if (!loop())
	{
		if (!lines)
			term_keep();
		return CLI_TIMED_OUT;
	}
	return outcome();
}

static void
set_named(const long long *ids, int count)
{
	for (int i = 0; i < count; i++)
	{
		WatchTask *task = watch_find(ids[i]);

		if (task == NULL)
			task = watch_add(NULL, ids[i]);
		task->named = true;
	}
}

/*
 * Until all have ended; false: the time-out passed first.
 */
static bool
loop(void)
{
	for (;;)
	{
		double now;
		double wake;

		if (gone)
			come_back();
		if (unsynced)
			gone = !sync_all();
		if (!gone)
			take_notifications();
		if (gone || unsynced)
			continue;
		if (term_interrupted())
		{
			if (!lines)
				term_keep();
			cli_exit(CLI_INTERRUPTED);
		}
		now = term_now();
		wake = lines ? print(now) : draw(now);
		if (gone)
			continue;
		if (!all && watch_line_count() == 0 && all_ended())
		{
			/* Events are what anybody can notify: the rows decide. */
			gone = !refresh(true);
			if (!gone && all_ended())
				return true;
		}
		if (until > 0 && now >= until)
			return false;
		sleep_until(until > 0 ? Min(wake, until) : wake);
	}
}

/*
 * Listen, then ask: nothing falls between the two.  False: the connection is
 * gone.
 */
static bool
sync_all(void)
{
	bool done;

	if (lines && synced)
		watch_line_say("resync",
					   "events were lost: this is how the tasks stand now");
	forget(watch_first());
	nchannels = 0;
	if (all)
		done = watch_command("UNLISTEN *") &&
			   watch_command("LISTEN " CHANNEL) && watch_ask_all();
	else
		done = listen_to_named() && refresh(true);
	if (!done)
		return false;
	for (WatchTask *task = watch_first(); lines && task; task = task->next)
		watch_line_now(task);
	unsynced = false;
	synced = dirty = has_news = has_stale = true;
	return true;
}

/*
 * What was not named is found again.
 */
static void
forget(WatchTask *task)
{
	WatchTask *next;

	for (; task; task = next)
	{
		next = task->next;
		task->stale = task->steps_stale = true;
		if (!task->named && (all || lines))
			watch_remove(task);
		else
			forget(task->first);
	}
}

static bool
listen_to_named(void)
{
	if (!refresh(true))
		return false;
	for (WatchTask *task = watch_first(); task; task = task->next)
	{
		if (!task->known)
			cli_fail(CLI_FAILED, "task %lld does not exist", task->id);
		if (!say_listen("LISTEN", task->root))
			return false;
	}
	return true;
}

static bool
say_listen(const char *verb, long long root)
{
	char *sql = psprintf("%s " CHANNEL "_task_%lld", verb, root);
	bool done = watch_command(sql);

	free(sql);
	return done;
}

/*
 * Also those that came with the answer to a question.
 */
static void
take_notifications(void)
{
	PGconn *conn = db_connection();
	PGnotify *notification;
	WatchEvent event;

	while ((notification = PQnotifies(conn)) != NULL)
	{
		if (!watch_parse(notification->extra, &event))
			event.event = NULL;
		PQfreemem(notification);
		if (event.event == NULL)
			continue;
		if (event.task == 0)
			unsynced = true;
		else if (lines)
			take_line(&event);
		else
			take_event(&event);
	}
}

static void
take_event(const WatchEvent *event)
{
	WatchTask *task = watch_find(event->task);
	bool is_item;

	if (task == NULL)
		task = take_new(event);
	if (task == NULL)
		return;
	watch_set_state(task, event->state);
	if (event->progress >= 0)
		task->progress = event->progress;
	if (event->attempt > 0)
		task->attempt = event->attempt;
	task->stale = true;
	dirty = has_stale = true;
	if (strcmp(event->event, "progress") == 0)
		return;

	tell_up(task);
	if (task->kind == WATCH_RUN && watch_is_final(task))
		task->steps_stale = has_news = true;
	is_item = task->up && task->up->kind == WATCH_MAP;
	if (watch_is_final(task) && !task->named &&
		(is_item || task->foreign || (all && !task->known)))
		watch_remove(task);
}

/*
 * One that is not known: NULL, if it is to stay so.
 */
static WatchTask *
take_new(const WatchEvent *event)
{
	WatchTask *up = event->parent != 0 ? watch_find(event->parent) : NULL;
	WatchTask *root = watch_find(event->root);
	bool created = strcmp(event->event, "created") == 0;
	bool runs = strcmp(event->state, "running") == 0;

	if (up && up->kind == WATCH_MAP)
	{
		tell_map(up);
		if (runs && watch_count() < MOST_KNOWN)
			return watch_add(up, event->task);
	}
	else if (up)
		up->stale = up->steps_stale = has_news = true;
	else if (root)
		root->stale = has_stale = true;
	else if (all && event->parent == 0 && (runs || created) &&
			 watch_count() < (created ? MOST_CREATED : MOST_KNOWN))
	{
		has_news = true;
		return watch_add(NULL, event->task);
	}
	return NULL;
}

/*
 * What a change of it means for those above.
 */
static void
tell_up(const WatchTask *task)
{
	for (WatchTask *up = task->up; up; up = up->up)
	{
		if (up->kind == WATCH_MAP)
			tell_map(up);
		else if (watch_is(up, "waiting") || watch_is(up, "pending"))
			up->stale = true;
	}
}

/*
 * How many of its items are done is asked of the step, or of the batch.
 */
static void
tell_map(WatchTask *map)
{
	map->stale = true;
	if (map->up)
		map->up->steps_stale = true;
	dirty = has_stale = true;
}

static void
take_line(const WatchEvent *event)
{
	WatchTask *task = watch_find(event->task);
	WatchTask *up = event->parent != 0 ? watch_find(event->parent) : NULL;
	WatchTask *root = watch_find(event->root);

	if (task == NULL)
	{
		if (!all && !(root && root->named) && up == NULL)
			return;
		task = watch_add(root, event->task);
	}
	watch_set_state(task, event->state);
	task->stale = true;
	if (!watch_line_push(event))
		unsynced = true;
}

static bool
is_asked(const WatchTask *task, bool force)
{
	if (task->id == 0 || task->foreign)
		return false;
	if (force && (task->named || !watch_is_final(task)))
		return true;
	if (lines)
		return task->stale || !task->known;
	return (task->stale || !task->known) && (task->shown || task->up == NULL);
}

/*
 * Tasks to be asked, or those whose steps or items are.
 */
static void
collect(WatchTask *task, bool force, bool steps)
{
	for (; task; task = task->next)
	{
		if (!steps ? is_asked(task, force)
				   : task->id != 0 && task->steps_stale && task->known &&
						 task->kind != WATCH_TASK)
		{
			asked[nasked++] = task;
			if (steps)
				task->steps_stale = false;
			else
				task->stale = false;
		}
		collect(task->first, force, steps);
	}
}

/*
 * Ask what is to be asked.  False: the connection is gone.
 */
static bool
refresh(bool force)
{
	bool done;
	int nruns = 0;

	has_news = has_stale = false;
	for (int steps = 0; steps < 2; steps++)
	{
		if (asked_room < watch_count())
		{
			asked_room = watch_count() * 2;
			asked = pg_realloc(asked, asked_room * sizeof(WatchTask *));
		}
		nasked = 0;
		if (steps == 0 || !lines)
			collect(watch_first(), force, steps == 1);
		if (steps == 0)
		{
			done = watch_ask_tasks(asked, nasked);
			for (int i = 0; done && all && i < nasked; i++)
				asked[i]->foreign = !asked[i]->known;
			if (!done)
				return false;
		}
	}
	/* runs first, then maps */
	for (int i = 0; i < nasked; i++)
		if (asked[i]->kind == WATCH_RUN)
		{
			WatchTask *run = asked[i];

			asked[i] = asked[nruns];
			asked[nruns++] = run;
		}
	refreshed_at = term_now();
	return (nruns == 0 || watch_ask_steps(asked, nruns)) &&
		   (nasked == nruns ||
			watch_ask_items(asked + nruns, nasked - nruns)) &&
		   (!all || lines || change_channels());
}

static bool
has_channel(long long root)
{
	for (int i = 0; i < nchannels; i++)
		if (channels[i] == root)
			return true;
	return false;
}

/*
 * Of all tasks, progress is heard of those that are shown.
 */
static bool
lacks_channel(void)
{
	for (WatchTask *task = watch_first(); task; task = task->next)
		if (task->shown && !watch_is_final(task) && !has_channel(task->root))
			return nchannels < MOST_CHANNELS;
	return false;
}

static bool
change_channels(void)
{
	for (int i = nchannels - 1; i >= 0; i--)
	{
		WatchTask *task = watch_find(channels[i]);

		if (task && task->shown && !watch_is_final(task))
			continue;
		if (!say_listen("UNLISTEN", channels[i]))
			return false;
		channels[i] = channels[--nchannels];
	}
	for (WatchTask *task = watch_first(); task; task = task->next)
	{
		if (nchannels == MOST_CHANNELS)
			break;
		if (!task->shown || watch_is_final(task) || has_channel(task->root))
			continue;
		if (!say_listen("LISTEN", task->root))
			return false;
		channels[nchannels++] = task->root;
		task->stale = has_stale = true;
	}
	return true;
}

static double
draw(double now)
{
	double asks = ask(now);
	double shows = gone ? now : show(now);

	return Min(asks, shows);
}

/*
 * Ask what is due; returns when to come again.
 */
static double
ask(double now)
{
	double at = HUGE_VAL;
	bool runs = false;
	bool waits = false;

	look_at_shown(watch_first(), &runs, &waits);
	if (has_news)
		at = refreshed_at + NEWS;
	else if (has_stale)
		at = refreshed_at + REFRESH;
	if (waits)
		at = Min(at, placed_at + PLACES);
	if (at > now)
		return at;
	if (waits && placed_at + PLACES <= now)
	{
		placed_at = now;
		for (WatchTask *task = watch_first(); task; task = task->next)
			task->stale = task->stale || (task->shown && task->ahead >= 0);
	}
	gone = !refresh(false);
	dirty = true;
	return now;
}

/*
 * Whether, of what is shown, something runs, so that its time passes, or
 * waits in a queue; what is shown and stale is to be asked.
 */
static void
look_at_shown(WatchTask *task, bool *runs, bool *waits)
{
	for (; task; task = task->next)
	{
		if (task->shown && !watch_is_final(task))
		{
			has_stale = has_stale || task->stale;
			*runs = *runs || task->started > 0 || task->due > 0;
			*waits = *waits || (task->ahead >= 0 && task->up == NULL);
		}
		look_at_shown(task->first, runs, waits);
	}
}

/*
 * Draw what is due; returns when to come again.
 */
static double
show(double now)
{
	bool runs = false;
	bool waits = false;

	double at = all ? forget_ended(now) : HUGE_VAL;

	look_at_shown(watch_first(), &runs, &waits);
	if (runs)
		at = Min(at, drawn_at + TICK);
	if (!dirty && now < at)
		return at;
	if (now < drawn_at + FRAME)
		return drawn_at + FRAME;
	watch_draw(now, note);
	has_news = has_news || (all && lacks_channel());
	drawn_at = now;
	dirty = false;
	return now + TICK;
}

/*
 * Returns when the next one is to go.
 */
static double
forget_ended(double now)
{
	double at = HUGE_VAL;
	WatchTask *next;

	for (WatchTask *task = watch_first(); task; task = next)
	{
		next = task->next;
		if (!watch_is_final(task))
			continue;
		if (now < task->ended + LINGER)
		{
			at = Min(at, task->ended + LINGER);
			continue;
		}
		watch_remove(task);
		dirty = true;
	}
	return at;
}

/*
 * Print the events that wait; returns when to come again.
 */
static double
print(double now)
{
	if (watch_line_count() == 0)
		return HUGE_VAL;
	if (now < printed_at + LINE_PAUSE)
		return printed_at + LINE_PAUSE;
	gone = !refresh(false);
	if (!gone)
		watch_line_flush();
	printed_at = now;
	return now + LINE_PAUSE;
}

static bool
all_ended(void)
{
	for (WatchTask *task = watch_first(); task; task = task->next)
		if (task->named && !watch_is_final(task))
			return false;
	return true;
}

/*
 * Or until an event comes; one that follows soon waits until then, so that
 * many are one awakening.
 */
static void
sleep_until(double wake)
{
	struct pollfd ready = {.fd = PQsocket(db_connection()), .events = POLLIN};
	double now = term_now();
	bool hears = now >= read_at;
	int found;

	if (!hears)
		wake = Min(wake, read_at);
	found = term_poll(&ready, hears ? 1 : 0,
					  isinf(wake) ? -1 : Max(wake - now, 0));
	if (found < 0)
		dirty = true; /* another size, perhaps */
	if (found <= 0 || !hears)
		return;
	gone = !PQconsumeInput(db_connection());
	read_at = term_now() + FRAME;
}

static void
come_back(void)
{
	db_close();
	if (!db_come_back(until > 0 ? until : term_now() + LONGEST_LOSS, say_lost))
	{
		if (!lines)
			term_keep();
		if (term_interrupted())
			cli_exit(CLI_INTERRUPTED);
		cli_fail(until > 0 ? CLI_TIMED_OUT : CLI_NO_CONNECTION,
				 "the connection was lost, and could not be made again");
	}
	free(note);
	note = NULL;
	gone = false;
	unsynced = true;
}

static void
say_lost(const char *reason, double pause)
{
	char *text = psprintf("trying again in %.3g s: %s", pause, reason);

	for (char *at = text; *at != '\0'; at++)
		if (*at == '\n')
			*at = ' ';
	if (lines)
		watch_line_say("lost", text);
	else
		watch_draw(term_now(), text);
	free(note);
	note = text;
}

static CliExit
outcome(void)
{
	CliExit code = CLI_OK;

	if (!lines)
	{
		watch_draw(term_now(), NULL);
		term_keep();
	}
	for (WatchTask *task = watch_first(); task; task = task->next)
	{
		if (!task->named || watch_is(task, "completed"))
			continue;
		code = CLI_NOT_COMPLETED;
		if (!cli_settings.json)
			out_error("task %lld ended as %s%s%s", task->id, task->state,
					  task->message ? ": " : "",
					  task->message ? task->message : "");
	}
	return code;
}
