/*
 * watch.h
 *	  What watch knows of the tasks it follows.
 */
#ifndef ORCHESTRATOR_CLI_WATCH_H
#define ORCHESTRATOR_CLI_WATCH_H

#include "cli.h"

#define WATCH_STATES 9

typedef enum WatchKind
{
	WATCH_TASK,
	WATCH_RUN, /* its steps are known, also those that have not begun */
	WATCH_MAP  /* of its items those that run; likewise of a batch */
} WatchKind;

typedef struct WatchTask WatchTask;

struct WatchTask
{
	long long id; /* 0: a step that has no row yet */
	long long root;
	int number; /* of a step of a run, from 1 */
	WatchKind kind;
	WatchTask *up; /* the run it is a step of; NULL: at the top */
	WatchTask *first;
	WatchTask *last;
	WatchTask *next;
	WatchTask *before;
	const char *state; /* of watch_states; NULL: not known */
	char *name;
	char *message; /* or its error */
	char *wait_for;
	double progress; /* of itself */
	double weight;
	int attempt;
	int max_attempts;
	long long items_done;
	long long items_total;
	double started;	  /* of term_now(); 0: not known */
	double ended;	  /* likewise; when it was seen to be final */
	double took;	  /* once it is final */
	double due;		  /* of term_now(): when it may start; 0: not known */
	long long ahead;  /* in its queue; -1: not known */
	bool named;		  /* watch ends with it */
	bool foreign;	  /* not ours to see */
	bool shown;		  /* stands on the terminal */
	bool stale;		  /* something is to be asked of it, when it is shown */
	bool known;		  /* it was asked once */
	bool steps_stale; /* likewise its steps or items */
};

/* What one event says. */
typedef struct WatchEvent
{
	long long task;
	long long root;
	long long parent;  /* 0: none */
	const char *event; /* of watch_events */
	const char *state;
	double progress; /* -1: not told */
	int attempt;
} WatchEvent;

/* model.c */
extern WatchTask *watch_first(void); /* of the top; go on by next */
extern int watch_count(void);		 /* of all tasks */
extern WatchTask *watch_find(long long id);
extern WatchTask *watch_add(WatchTask *up, long long id);
extern WatchTask *watch_step(WatchTask *run, int number);
extern void watch_set_id(WatchTask *task, long long id);
extern void watch_remove(WatchTask *task);
extern void watch_set_text(char **text, const char *value);
extern void watch_set_state(WatchTask *task, const char *state);
extern const char *const watch_states[];
extern int watch_state_index(const char *state);
/* Its name in watch_states; NULL: it is none. */
extern const char *watch_state_name(const char *name, size_t length);
extern bool watch_is_final(const WatchTask *task);
extern bool watch_is(const WatchTask *task, const char *state);
extern double watch_progress(const WatchTask *task);
/* False: the payload is none of the engine's. */
extern bool watch_parse(const char *payload, WatchEvent *event);

/* ask.c: false when the connection is gone */
extern bool watch_command(const char *sql);
extern bool watch_ask_all(void);
extern bool watch_ask_tasks(WatchTask *const *tasks, int ntasks);
extern bool watch_ask_steps(WatchTask *const *runs, int nruns);
extern bool watch_ask_items(WatchTask *const *maps, int nmaps);

/* draw.c */
extern void watch_draw(double now, const char *note);

/* lines.c */
extern bool watch_line_push(const WatchEvent *event);
extern int watch_line_count(void);
extern void watch_line_flush(void);
extern void watch_line_now(const WatchTask *task);
extern void watch_line_say(const char *event, const char *message);

#endif
