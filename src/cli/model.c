/*
 * model.c
 *	  The tasks that watch follows, as a tree and by their ids; and what
 *	  events say of them.
 */
#include "postgres_fe.h"

#include "watch.h"

#define FIRST_BUCKETS 1024 /* a power of 2 */

const char *const watch_states[] = {"scheduled", "pending",	  "running",
									"waiting",	 "paused",	  "completed",
									"failed",	 "cancelled", "skipped"};

#define FIRST_FINAL 5

static const char *const events[] = {"created",	 "started", "progress",
									 "retrying", "resumed", "resync"};

static WatchTask *first_top = NULL;
static WatchTask *last_top = NULL;
static int count = 0;

/* By id, with free places where there is NULL. */
static WatchTask **buckets = NULL;
static int nbuckets = 0;
static int nhashed = 0;

static int place_of(long long id);
static void hash_in(WatchTask *task);
static void hash_out(const WatchTask *task);
static void grow(void);
static const char *same_name(const char *const *names, int nnames,
							 const char *name, size_t length);
static const char *find_member(const char *payload, const char *name);
static bool read_number(const char *payload, const char *name,
						long long *number);
static const char *read_name(const char *payload, const char *name);

WatchTask *
watch_first(void)
{
	return first_top;
}

int
watch_count(void)
{
	return count;
}

/*
 * Where an id is, or would be.
 */
static int
place_of(long long id)
{
	uint64 hash = (uint64) id * UINT64CONST(0x9E3779B97F4A7C15);
	int place = (int) (hash >> 32) & (nbuckets - 1);

	while (buckets[place] != NULL && buckets[place]->id != id)
		place = (place + 1) & (nbuckets - 1);
	return place;
}

static void
grow(void)
{
	WatchTask **before = buckets;
	int nbefore = nbuckets;

	nbuckets = nbuckets == 0 ? FIRST_BUCKETS : nbuckets * 2;
	buckets = pg_malloc0(nbuckets * sizeof(WatchTask *));
	for (int i = 0; i < nbefore; i++)
		if (before[i] != NULL)
			buckets[place_of(before[i]->id)] = before[i];
	free(before);
}

static void
hash_in(WatchTask *task)
{
	if ((nhashed + 1) * 2 > nbuckets)
		grow();
	buckets[place_of(task->id)] = task;
	nhashed++;
}

/*
 * Those behind it move up, so that none is cut off.
 */
static void
hash_out(const WatchTask *task)
{
	int place = place_of(task->id);
	WatchTask *moved;

	Assert(buckets[place] == task);
	buckets[place] = NULL;
	nhashed--;
	for (;;)
	{
		place = (place + 1) & (nbuckets - 1);
		moved = buckets[place];
		if (moved == NULL)
			return;
		buckets[place] = NULL;
		buckets[place_of(moved->id)] = moved;
	}
}

WatchTask *
watch_find(long long id)
{
	return nbuckets == 0 ? NULL : buckets[place_of(id)];
}

/*
 * With an id of 0, for a step that has no row yet.
 */
WatchTask *
watch_add(WatchTask *up, long long id)
{
	WatchTask *task = pg_malloc0(sizeof(WatchTask));
	WatchTask **first = up ? &up->first : &first_top;
	WatchTask **last = up ? &up->last : &last_top;

	task->up = up;
	task->id = id;
	task->root = up ? up->root : id;
	task->weight = 1;
	task->ahead = -1;
	task->before = *last;
	if (*last != NULL)
		(*last)->next = task;
	else
		*first = task;
	*last = task;
	count++;
	if (id != 0)
		hash_in(task);
	return task;
}

WatchTask *
watch_step(WatchTask *run, int number)
{
	WatchTask *step = run->first;

	/* They come in the order of their numbers. */
	if (run->last && run->last->number < number)
		step = NULL;
	while (step && step->number != number)
		step = step->next;
	if (step == NULL)
	{
		step = watch_add(run, 0);
		step->number = number;
	}
	return step;
}

/*
 * A step that begins anew may have another row, or none again.
 */
void
watch_set_id(WatchTask *task, long long id)
{
	if (task->id == id || (id != 0 && watch_find(id) != NULL))
		return;
	if (task->id != 0)
		hash_out(task);
	task->id = id;
	if (id != 0)
		hash_in(task);
}

void
watch_remove(WatchTask *task)
{
	WatchTask **first = task->up ? &task->up->first : &first_top;
	WatchTask **last = task->up ? &task->up->last : &last_top;

	while (task->first != NULL)
		watch_remove(task->first);
	*(task->before ? &task->before->next : first) = task->next;
	*(task->next ? &task->next->before : last) = task->before;
	if (task->id != 0)
		hash_out(task);
	count--;
	free(task->name);
	free(task->message);
	free(task->wait_for);
	free(task);
}

void
watch_set_text(char **text, const char *value)
{
	if (value && *text && strcmp(*text, value) == 0)
		return;
	free(*text);
	*text = value ? pg_strdup(value) : NULL;
}

static const char *
same_name(const char *const *names, int nnames, const char *name,
		  size_t length)
{
	for (int i = 0; i < nnames; i++)
		if (strncmp(names[i], name, length) == 0 && names[i][length] == '\0')
			return names[i];
	return NULL;
}

const char *
watch_state_name(const char *name, size_t length)
{
	return same_name(watch_states, WATCH_STATES, name, length);
}

int
watch_state_index(const char *state)
{
	int index = 0;

	while (watch_states[index] != state)
		index++;
	return index;
}

bool
watch_is(const WatchTask *task, const char *state)
{
	return task->state && strcmp(task->state, state) == 0;
}

bool
watch_is_final(const WatchTask *task)
{
	return task->state && watch_state_index(task->state) >= FIRST_FINAL;
}

/*
 * With what follows from it.  What is asked later may correct it.
 */
void
watch_set_state(WatchTask *task, const char *state)
{
	bool was_final = watch_is_final(task);

	if (state == NULL || task->state == state)
		return;
	task->state = state;
	if (watch_is(task, "running"))
	{
		task->started = term_now();
		task->due = 0;
		task->ahead = -1;
	}
	else if (watch_is(task, "completed"))
	{
		task->progress = 1;
		watch_set_text(&task->message, NULL);
	}
	if (watch_is_final(task))
	{
		task->ended = term_now();
		if (task->started > 0)
			task->took = task->ended - task->started;
	}
	else if (was_final)
		task->ended = 0;
}

/*
 * Of a run, from its steps, as the server does it: their weighted mean, where
 * those that are final count whole unless the run ended early.
 */
double
watch_progress(const WatchTask *task)
{
	double done = 0;
	double total = 0;

	if (watch_is(task, "completed"))
		return 1;
	if (task->kind != WATCH_RUN || task->first == NULL)
		return task->progress;
	for (const WatchTask *step = task->first; step; step = step->next)
	{
		bool whole = watch_is(step, "completed") || watch_is(step, "skipped");

		total += step->weight;
		if (whole || (watch_is_final(step) && !watch_is_final(task)))
			done += step->weight;
		else
			done += step->weight * watch_progress(step);
	}
	return total > 0 ? done / total : 0;
}

static const char *
find_member(const char *payload, const char *name)
{
	const char *at = strstr(payload, name);

	return at ? at + strlen(name) : NULL;
}

static bool
read_number(const char *payload, const char *name, long long *number)
{
	const char *at = find_member(payload, name);
	char *end;

	if (at == NULL)
		return false;
	*number = strtoll(at, &end, 10);
	return end != at;
}

/*
 * The name of a state, or of an event that is none.
 */
static const char *
read_name(const char *payload, const char *name)
{
	const char *at = find_member(payload, name);
	size_t length = at ? strcspn(at, "\"") : 0;
	const char *found;

	if (length == 0)
		return NULL;
	found = watch_state_name(at, length);
	return found ? found : same_name(events, lengthof(events), at, length);
}

/*
 * Anybody may notify, so nothing is taken as it is.
 */
bool
watch_parse(const char *payload, WatchEvent *event)
{
	long long attempt = 0;
	const char *progress;

	memset(event, 0, sizeof(*event));
	event->event = read_name(payload, "\"event\":\"");
	if (event->event == NULL)
		return false;
	if (strcmp(event->event, "resync") == 0)
		return true;
	event->state = read_name(payload, "\"state\":\"");
	if (event->state == NULL ||
		watch_state_name(event->state, strlen(event->state)) == NULL ||
		!read_number(payload, "\"task\":", &event->task) ||
		!read_number(payload, "\"root\":", &event->root) || event->task <= 0 ||
		event->root <= 0)
		return false;
	read_number(payload, "\"parent\":", &event->parent);
	read_number(payload, "\"attempt\":", &attempt);
	event->attempt = (int) Min(Max(attempt, 0), 100000);
	progress = find_member(payload, "\"progress\":");
	event->progress = progress && *progress != 'n'
						  ? Min(Max(strtod(progress, NULL), 0), 1)
						  : -1;
	return true;
}
