/*
 * adapt.h
 *	  The rule by which the limit of an adaptive queue is changed.
 *
 * It knows numbers only, and no processes: who measures and who is woken is in
 * tune.c.
 */
#ifndef ORCHESTRATOR_ADAPT_H
#define ORCHESTRATOR_ADAPT_H

/*
 * Steps that ended, measured in groups: the steps that an executor settled in
 * one transaction, and the time that it was occupied by them.  The sums of
 * squares tell how far the mean can be trusted.
 */
typedef struct OrchAdaptSample
{
	double steps;
	double failed;	  /* of these, with an error */
	double timed_out; /* of these, at their time limit */
	double busy;	  /* microseconds of executors */
	double busy_squared;
	double busy_steps;
	double steps_squared;
} OrchAdaptSample;

typedef enum OrchAdaptPhase
{
	ORCH_ADAPT_HOLD, /* at base, which is measured; next: PROBE */
	ORCH_ADAPT_PROBE /* at another limit, to compare; next: HOLD */
} OrchAdaptPhase;

/* What is remembered of a queue.  Times are of the monotonic clock. */
typedef struct OrchAdapt
{
	int32 limit;  /* in force; 0: not begun */
	int32 base;	  /* known to be good */
	double rate;  /* of the base, steps per microsecond; 0: not measured */
	double error; /* of that, relative */
	OrchAdaptPhase phase;
	int32 direction;	 /* of the probe, or of the next: 1 or -1 */
	bool doubling;		 /* slow start: probes are twice the base */
	int32 streak;		 /* probes this way that were kept in a row */
	bool slack;			 /* nobody waited: what is measured says nothing */
	bool pressed;		 /* the database was short of something a look ago */
	int64 since;		 /* when the window began */
	int64 hold;			 /* pause between two probes */
	int64 hold_until;	 /* no probe before */
	int32 ceiling;		 /* it was too much at this limit ... */
	int64 ceiling_until; /* ... which is not tried again before */
	OrchAdaptSample window;
	OrchAdaptSample measured; /* what the last change was decided on */
} OrchAdapt;

/* What the rule is told at a look. */
typedef struct OrchAdaptLook
{
	int64 now;
	int32 min_running;
	int32 max_running;
	bool waiting;				   /* somebody was refused because of it */
	const char *pressure;		   /* what the database is short of; NULL */
	const OrchAdaptSample *sample; /* of steps begun since the last change */
} OrchAdaptLook;

/* The limit that a queue starts with. */
extern int32 orch_adapt_start(int32 min_running, int32 max_running);

/* Begin at a limit; fresh: nothing is known of it. */
extern void orch_adapt_begin(OrchAdapt *adapt, int32 limit, bool fresh,
							 int64 now);

/* Add a group of steps that ended. */
extern void orch_adapt_add(OrchAdaptSample *sample, double steps,
						   double failed, double timed_out, double busy);

/* Steps per microsecond that did not fail, at a limit that was used up. */
extern double orch_adapt_rate(const OrchAdaptSample *sample, int32 limit);

/*
 * Decide about the limit.  Returns why it was changed, in the current memory
 * context; NULL: it was not.
 */
extern char *orch_adapt_decide(OrchAdapt *adapt, const OrchAdaptLook *look);

#endif
