/*
 * draw.c
 *	  The bars of watch: a line for each task and step, as many as there is
 *	  room for, and what is left out in a sentence.
 */
#include "postgres_fe.h"

#include "watch.h"

#define INDENT 2

#define LEAST_NAME	10
#define MOST_NAME	32
#define STATE_WIDTH 9
#define LEAST_BAR	6
#define MOST_BAR	24

#define PERCENT_WIDTH 6
#define LEAST_REST	  3

/* Below this no time left is told: it would jump. */
#define LEAST_PART 0.02
#define LEAST_TIME 1.0

/* In the order in which they get a line when there are too many. */
typedef enum Interest
{
	INTEREST_RUNNING, /* or failed */
	INTEREST_LIVE,
	INTEREST_FINAL,
	INTERESTS
} Interest;

typedef struct Layout
{
	int width;
	int id;	  /* columns of each part */
	int name; /* with its indent */
	int state;
	int bar; /* 0: none */
	bool percent;
	int rest;
	int lines[INTERESTS];
	int room[INTERESTS];
	int states[WATCH_STATES];
} Layout;

static bool is_hidden(const WatchTask *task);
static Interest interest_of(const WatchTask *task);
static void measure(Layout *layout, const WatchTask *task, int depth);
static void share_room(Layout *layout, int room);
static int append_tasks(PQExpBuffer to, Layout *layout, WatchTask *task,
						int depth, double now);
static void append_line(PQExpBuffer to, const Layout *layout,
						const WatchTask *task, int depth, double now);
static void append_summary(PQExpBuffer to, const Layout *layout, int hidden);
static void append_note(PQExpBuffer to, int width, const char *text);
static void append_part(PQExpBuffer to, const char *format, ...)
	pg_attribute_printf(2, 3);
static void append_rest(PQExpBuffer to, const WatchTask *task, double now);
static void append_time(PQExpBuffer to, const WatchTask *task, double now);

static Interest
interest_of(const WatchTask *task)
{
	if (watch_is(task, "running") || watch_is(task, "failed"))
		return INTEREST_RUNNING;
	return watch_is_final(task) ? INTEREST_FINAL : INTEREST_LIVE;
}

/*
 * Not ours, or not known yet to be.
 */
static bool
is_hidden(const WatchTask *task)
{
	return task->foreign || task->state == NULL ||
		   (task->up == NULL && !task->known);
}

/*
 * How many lines there would be of which interest, and how wide their parts.
 */
static void
measure(Layout *layout, const WatchTask *task, int depth)
{
	char id[24];

	for (; task; task = task->next)
	{
		if (is_hidden(task))
			continue;
		layout->lines[interest_of(task)]++;
		layout->states[watch_state_index(task->state)]++;
		if (task->id > 0)
			layout->id =
				Max(layout->id, snprintf(id, sizeof(id), "%lld", task->id));
		if (task->name && layout->name < MOST_NAME)
			layout->name =
				Max(layout->name, depth * INDENT + text_width(task->name));
		measure(layout, task->first, depth + 1);
	}
}

static void
share_room(Layout *layout, int room)
{
	for (int i = 0; i < INTERESTS; i++)
	{
		layout->room[i] = Min(layout->lines[i], Max(room, 0));
		room -= layout->room[i];
	}
	layout->id = Min(layout->id, layout->width / 3);
	layout->name = Max(Min(layout->name, MOST_NAME), LEAST_NAME);
	layout->name = Min(layout->name, layout->width / 3);
	room = layout->width - layout->id - layout->name - 3;
	layout->state = Max(Min(room, STATE_WIDTH), 0);
	room -= layout->state;
	layout->percent = room >= PERCENT_WIDTH;
	layout->bar = Min(layout->width / 4, MOST_BAR);
	if (room < PERCENT_WIDTH + 1 + layout->bar || layout->bar < LEAST_BAR)
		layout->bar = 0;
	layout->rest = room - (layout->percent ? PERCENT_WIDTH : 0) -
				   (layout->bar > 0 ? layout->bar + 1 : 0) - 2;
}

/*
 * Returns how many found no room.
 */
static int
append_tasks(PQExpBuffer to, Layout *layout, WatchTask *task, int depth,
			 double now)
{
	int hidden = 0;

	for (; task; task = task->next)
	{
		if (is_hidden(task))
			continue;
		task->shown = layout->room[interest_of(task)] > 0;
		if (task->shown)
		{
			layout->room[interest_of(task)]--;
			append_line(to, layout, task, depth, now);
		}
		else
			hidden++;
		hidden += append_tasks(to, layout, task->first, depth + 1, now);
	}
	return hidden;
}

static void
append_line(PQExpBuffer to, const Layout *layout, const WatchTask *task,
			int depth, double now)
{
	PQExpBufferData part;
	int indent = Max(Min(depth * INDENT, layout->name - 2), 0);

	initPQExpBuffer(&part);
	if (task->id > 0)
		appendPQExpBuffer(&part, "%lld", task->id);
	text_append_fit(to, part.data, layout->id, true);
	appendPQExpBuffer(to, " %*s", indent, "");
	text_append_fit(to, task->name ? task->name : "", layout->name - indent,
					false);
	appendPQExpBufferChar(to, ' ');
	term_color(to, term_state_color(task->state));
	text_append_fit(to, task->state, layout->state, false);
	if (layout->bar > 0)
	{
		appendPQExpBufferChar(to, ' ');
		text_append_bar(to, watch_progress(task), layout->bar);
	}
	term_plain(to);
	if (layout->percent)
		appendPQExpBuffer(to, " %3d %%", (int) (watch_progress(task) * 100));

	resetPQExpBuffer(&part);
	append_rest(&part, task, now);
	if (part.len > 0 && layout->rest >= LEAST_REST)
	{
		appendPQExpBufferStr(to, "  ");
		text_append_fit(to, part.data,
						Min(layout->rest, text_width(part.data)), false);
	}
	appendPQExpBufferChar(to, '\n');
	termPQExpBuffer(&part);
}

static void
append_part(PQExpBuffer to, const char *format, ...)
{
	va_list args;
	char *text;

	va_start(args, format);
	text = text_format(format, args);
	va_end(args);
	appendPQExpBuffer(to, "%s%s", to->len > 0 ? ", " : "", text);
	free(text);
}

static void
append_time(PQExpBuffer to, const WatchTask *task, double now)
{
	double part = watch_progress(task);
	double passed = now - task->started;
	PQExpBufferData text;

	initPQExpBuffer(&text);
	if (watch_is_final(task))
	{
		if (task->took > 0)
			text_append_duration(&text, task->took);
	}
	else if (watch_is(task, "running") && task->started > 0)
	{
		if (part >= LEAST_PART && passed >= LEAST_TIME)
		{
			text_append_duration(&text, passed * (1 - part) / part);
			appendPQExpBufferStr(&text, " left");
		}
		else
			text_append_duration(&text, passed);
	}
	else if (task->due > now)
	{
		appendPQExpBufferStr(&text, "in ");
		text_append_duration(&text, task->due - now);
	}
	if (text.len > 0)
		append_part(to, "%s", text.data);
	termPQExpBuffer(&text);
}

/*
 * What stands behind the bar.
 */
static void
append_rest(PQExpBuffer to, const WatchTask *task, double now)
{
	if (task->attempt > 1 ||
		(task->attempt == 1 && watch_is(task, "scheduled")))
		append_part(to, "attempt %d of %d", task->attempt, task->max_attempts);
	if (task->items_total > 0)
		append_part(to, "%lld of %lld items", task->items_done,
					task->items_total);
	if (task->ahead >= 0 && watch_is(task, "pending"))
		append_part(to, "%lld ahead", task->ahead);
	append_time(to, task, now);
	if (task->wait_for && watch_is(task, "waiting"))
		append_part(to, "waits for signal %s", task->wait_for);
	if (task->message)
		append_part(to, "%s", task->message);
}

static void
append_summary(PQExpBuffer to, const Layout *layout, int hidden)
{
	PQExpBufferData text;
	PQExpBufferData counts;

	initPQExpBuffer(&text);
	initPQExpBuffer(&counts);
	for (int i = 0; i < WATCH_STATES; i++)
		if (layout->states[i] > 0)
			append_part(&counts, "%d %s", layout->states[i], watch_states[i]);
	if (hidden > 0)
		appendPQExpBuffer(&text, "%d more; in all ", hidden);
	appendPQExpBufferStr(&text, counts.len > 0 ? counts.data : "no tasks");
	append_note(to, layout->width, text.data);
	termPQExpBuffer(&text);
	termPQExpBuffer(&counts);
}

static void
append_note(PQExpBuffer to, int width, const char *text)
{
	term_color(to, TERM_DIM);
	text_append_fit(to, text, Min(width - 1, text_width(text)), false);
	term_plain(to);
	appendPQExpBufferChar(to, '\n');
}

/*
 * Draw everything, with a last line that says something; NULL: nothing.
 */
void
watch_draw(double now, const char *note)
{
	PQExpBufferData lines;
	Layout layout = {.width = term_width()};
	WatchTask *first = watch_first();
	int hidden;

	measure(&layout, first, 0);
	share_room(&layout, Max(term_height() - 3 - (note ? 1 : 0), 1));
	initPQExpBuffer(&lines);
	hidden = append_tasks(&lines, &layout, first, 0, now);
	if (hidden > 0 || first == NULL || first->next != NULL)
		append_summary(&lines, &layout, hidden);
	if (note)
		append_note(&lines, layout.width, note);
	if (!PQExpBufferBroken(&lines))
		term_draw(lines.data);
	termPQExpBuffer(&lines);
}
