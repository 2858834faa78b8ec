/*
 * adapt.c
 *	  The rule by which the limit of an adaptive queue is changed.
 *
 * Hill climbing on throughput, as the thread pool of .NET does (Hellerstein,
 * Morrison, Eilebrecht: Optimizing Concurrency Levels in the .NET ThreadPool,
 * 2008), begun by doubling as TCP is (slow start, RFC 5681), with a
 * multiplicative decrease when something fails (Chiu and Jain, 1989; the factor
 * is CUBIC's, RFC 9438).  Rules that compare latency with its minimum (TCP
 * Vegas, the gradient of Netflix's concurrency-limits) were not taken: they
 * need to know how much latency is too much, and a step that slows down a
 * little with each other is held far below its best throughput.
 *
 * By Little's law the throughput of a limit that is used up is the limit
 * divided by the mean time that a step occupies its executor: claim, run,
 * commit.  That is less noisy than counting steps in a second, and a group of
 * steps that began before the limit was changed is left out.
 *
 *	- Hold: measure the base.  When its mean is known well enough, and the
 *	  pause is over, probe: up and down in turns, by a tenth, at least one;
 *	  by more after probes that were kept.
 *	- Probe: measure the other limit, then compare.  Below the knee a slot
 *	  more brings as much as a slot does on average: all of its share.  Above
 *	  it brings less, or harm.  A probe up is kept when it brought at least
 *	  GAIN_UP of that share, one down when it lost at most LOSS_DOWN of it, and
 *	  the next goes on from there at once.  Else the limit goes back; the next
 *	  probe is a smaller one or, when it was the smallest, the other way after
 *	  a pause, which doubles up to MAX_HOLD: a queue that found its place is at
 *	  it nearly all the time.
 *	- A throughput that changes by a quarter while holding ends the pause.
 *	- Steps that fail shrink the limit; it comes back, but not to where they
 *	  failed before CEILING_TIME is over.  What the database is short of
 *	  (locks, connections, a standby that keeps up) shrinks it, too, when it
 *	  was so in two looks in a row.
 *	- When nobody waits nothing is learnt, and nothing is changed.
 *
 * "Known well enough": the standard error of the mean is a third of the
 * difference that a slot's share would make, or the comparison is clear by two
 * standard errors, or MAX_WINDOW has passed; never before every slot has run
 * two steps.  So a queue whose steps take a minute needs minutes for each
 * decision.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "adapt.h"
#include "guc.h"

/* A probe changes the limit by one in so many, at least by one; so many times
 * as much for each two that were kept before it, at most by a half. */
#define PROBE_SHARE 10

/* Parts of a slot's share of throughput (above). */
#define GAIN_DOUBLING 0.5
#define GAIN_UP		  0.3
#define LOSS_DOWN	  0.2

/* What is left of the limit when something fails. */
#define SHRINK 0.7

/* Failed steps below which there is nothing to see. */
#define MIN_FAILED 2

#define MIN_WINDOW	 (1 * INT64CONST(1000000))
#define MAX_WINDOW	 (8 * INT64CONST(1000000))
#define MIN_HOLD	 (2 * INT64CONST(1000000))
#define MAX_HOLD	 (16 * INT64CONST(1000000))
#define CEILING_TIME (30 * INT64CONST(1000000))

/* Steps of every slot in a window. */
#define STEPS_PER_SLOT 2

/* Standard errors: of the difference that a slot's share would make, and that
 * make a comparison clear. */
#define ENOUGH (1.0 / 3)
#define CLEAR  2

/* Looks are told by their second; one may come a little early. */
#define EARLY INT64CONST(50000)

/* A window that holds on forgets so much at each look. */
#define KEEP 0.9

/* A change of throughput that ends a pause. */
#define DRIFT 0.25

static void clear_window(OrchAdapt *adapt, int64 now);
static void merge(OrchAdaptSample *window, const OrchAdaptSample *sample,
				  double keep);
static double relative_error(const OrchAdaptSample *sample);
static char *change(OrchAdapt *adapt, int32 limit, int64 now, char *reason);
static char *keep_bounds(OrchAdapt *adapt, const OrchAdaptLook *look);
static char *shrink(OrchAdapt *adapt, const OrchAdaptLook *look, bool failed,
					char *reason);
static char *look_at_failures(OrchAdapt *adapt, const OrchAdaptLook *look);
static char *look_at_pressure(OrchAdapt *adapt, const OrchAdaptLook *look);
static int32 step_of(const OrchAdapt *adapt);
static bool is_full(const OrchAdapt *adapt, int64 now);
static double wanted(const OrchAdapt *adapt);
static bool is_clear(const OrchAdapt *adapt);
static char *hold(OrchAdapt *adapt, const OrchAdaptLook *look);
static int32 probe_limit(const OrchAdapt *adapt, const OrchAdaptLook *look);
static void turn_back(OrchAdapt *adapt);
static char *probe(OrchAdapt *adapt, const OrchAdaptLook *look,
				   const char *because);
static char *judge(OrchAdapt *adapt, const OrchAdaptLook *look);
static char *leave_slack(OrchAdapt *adapt, const OrchAdaptLook *look);
static void give_up(OrchAdapt *adapt, int64 now);

PG_FUNCTION_INFO_V1(orchestrator_adapt);

int32
orch_adapt_start(int32 min_running, int32 max_running)
{
	return Max(min_running, (int32) ceil(sqrt(max_running)));
}

void
orch_adapt_begin(OrchAdapt *adapt, int32 limit, bool fresh, int64 now)
{
	memset(adapt, 0, sizeof(OrchAdapt));
	adapt->limit = adapt->base = limit;
	adapt->phase = ORCH_ADAPT_HOLD;
	adapt->direction = 1;
	adapt->doubling = fresh;
	adapt->since = now;
}

void
orch_adapt_add(OrchAdaptSample *sample, double steps, double failed,
			   double timed_out, double busy)
{
	sample->steps += steps;
	sample->failed += failed;
	sample->timed_out += timed_out;
	sample->busy += busy;
	sample->busy_squared += busy * busy;
	sample->busy_steps += busy * steps;
	sample->steps_squared += steps * steps;
}

static void
merge(OrchAdaptSample *window, const OrchAdaptSample *sample, double keep)
{
	window->steps = window->steps * keep + sample->steps;
	window->failed = window->failed * keep + sample->failed;
	window->timed_out = window->timed_out * keep + sample->timed_out;
	window->busy = window->busy * keep + sample->busy;
	window->busy_squared = window->busy_squared * keep + sample->busy_squared;
	window->busy_steps = window->busy_steps * keep + sample->busy_steps;
	window->steps_squared =
		window->steps_squared * keep + sample->steps_squared;
}

static void
clear_window(OrchAdapt *adapt, int64 now)
{
	memset(&adapt->window, 0, sizeof(OrchAdaptSample));
	adapt->since = now;
}

double
orch_adapt_rate(const OrchAdaptSample *sample, int32 limit)
{
	if (sample->busy <= 0)
		return 0;
	return limit * (sample->steps - sample->failed - sample->timed_out) /
		   sample->busy;
}

/*
 * Standard error of busy / steps, in parts of it: that of a ratio of sums over
 * groups.
 */
static double
relative_error(const OrchAdaptSample *sample)
{
	double mean;
	double residue;

	if (sample->steps <= 0 || sample->busy <= 0)
		return 1;
	mean = sample->busy / sample->steps;
	residue = sample->busy_squared - 2 * mean * sample->busy_steps +
			  mean * mean * sample->steps_squared;
	return sqrt(Max(residue, 0)) / sample->busy;
}

static char *
change(OrchAdapt *adapt, int32 limit, int64 now, char *reason)
{
	adapt->measured = adapt->window;
	adapt->limit = limit;
	clear_window(adapt, now);
	return reason;
}

char *
orch_adapt_decide(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	char *reason = keep_bounds(adapt, look);
	bool wait = look->now < adapt->hold_until || !look->waiting;

	if (reason != NULL)
		return reason;
	merge(&adapt->window, look->sample,
		  wait && adapt->phase == ORCH_ADAPT_HOLD && is_full(adapt, look->now)
			  ? KEEP
			  : 1);
	reason = look_at_failures(adapt, look);
	if (reason == NULL)
		reason = look_at_pressure(adapt, look);
	if (reason != NULL || look->pressure != NULL)
		return reason;
	if (!look->waiting || adapt->slack)
		return leave_slack(adapt, look);
	if (!is_full(adapt, look->now))
		return NULL;
	return adapt->phase == ORCH_ADAPT_PROBE ? judge(adapt, look)
											: hold(adapt, look);
}

/*
 * The queue was defined anew.
 */
static char *
keep_bounds(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	int32 limit = Max(Min(adapt->limit, look->max_running), look->min_running);

	adapt->base = Max(Min(adapt->base, look->max_running), look->min_running);
	if (limit == adapt->limit)
		return NULL;
	adapt->base = limit;
	adapt->rate = 0;
	adapt->phase = ORCH_ADAPT_HOLD;
	return change(adapt, limit, look->now,
				  limit == look->max_running
					  ? psprintf("max_running is %d", limit)
					  : psprintf("min_running is %d", limit));
}

/*
 * Where steps failed it is not to be again soon; where the database was short
 * of something, not to where that began.  Far below it comes back by doubling.
 */
static char *
shrink(OrchAdapt *adapt, const OrchAdaptLook *look, bool failed, char *reason)
{
	int32 limit = Max((int32) (adapt->limit * SHRINK), look->min_running);

	if (failed || look->now >= adapt->ceiling_until)
	{
		adapt->ceiling = adapt->limit;
		adapt->ceiling_until = look->now + CEILING_TIME;
	}
	adapt->phase = ORCH_ADAPT_HOLD;
	adapt->direction = 1;
	adapt->streak = 0;
	adapt->hold = 0;
	adapt->hold_until = look->now;
	adapt->rate = 0;
	adapt->base = limit;
	adapt->doubling = limit <= adapt->ceiling / 2;
	if (limit == adapt->limit)
	{
		clear_window(adapt, look->now);
		return NULL;
	}
	return change(adapt, limit, look->now, reason);
}

static char *
look_at_failures(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	const OrchAdaptSample *window = &adapt->window;
	double failed = window->failed + window->timed_out;

	if (failed < MIN_FAILED ||
		failed * 100 < window->steps * orch_adaptive_failures)
		return NULL;
	return shrink(adapt, look, true,
				  psprintf("%.0f of %.0f steps failed, %.0f of them timed out",
						   failed, window->steps, window->timed_out));
}

static char *
look_at_pressure(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	bool again = adapt->pressed;

	adapt->pressed = look->pressure != NULL;
	if (!again || look->pressure == NULL)
		return NULL;
	adapt->pressed = false;
	return shrink(adapt, look, false, pstrdup(look->pressure));
}

/*
 * Nobody waits, or did not a look ago: fewer than the limit run.  A probe tells
 * nothing, then.
 */
static char *
leave_slack(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	if (look->waiting)
		clear_window(adapt, look->now);
	else
		adapt->since = look->now;
	adapt->slack = !look->waiting;
	if (adapt->phase == ORCH_ADAPT_HOLD)
		return NULL;
	give_up(adapt, look->now);
	return change(
		adapt, adapt->base, look->now,
		psprintf("nobody waits at %d: back to %d", adapt->limit, adapt->base));
}

/*
 * A probe was the smallest and brought nothing: the other way, a while later.
 */
static void
give_up(OrchAdapt *adapt, int64 now)
{
	adapt->phase = ORCH_ADAPT_HOLD;
	turn_back(adapt);
	adapt->hold = Min(Max(adapt->hold * 2, MIN_HOLD), MAX_HOLD);
	adapt->hold_until = now + adapt->hold;
}

/*
 * By how much a probe differs from the base.
 */
static int32
step_of(const OrchAdapt *adapt)
{
	int32 least = Max(adapt->base / PROBE_SHARE, 1);

	if (adapt->doubling)
		return adapt->base;
	return Max(least, Min(least * (1 + adapt->streak / 2), adapt->base / 2));
}

/*
 * Whether the window tells enough.
 */
static bool
is_full(const OrchAdapt *adapt, int64 now)
{
	const OrchAdaptSample *window = &adapt->window;
	int64 age = now - adapt->since;

	if (adapt->slack)
		return window->steps > STEPS_PER_SLOT;
	return age >= MIN_WINDOW - EARLY &&
		   window->steps >= STEPS_PER_SLOT * adapt->limit &&
		   (age >= MAX_WINDOW ||
			relative_error(window) <=
				(double) step_of(adapt) / adapt->base * ENOUGH ||
			is_clear(adapt));
}

/*
 * The throughput that a probe must have for the limit to stay there.
 */
static double
wanted(const OrchAdapt *adapt)
{
	double share = (double) (adapt->limit - adapt->base) / adapt->base;
	double part = share < 0			? LOSS_DOWN
				  : adapt->doubling ? GAIN_DOUBLING
									: GAIN_UP;

	return adapt->rate * (1 + part * share);
}

/*
 * Whether a probe that goes on would not change its outcome.
 */
static bool
is_clear(const OrchAdapt *adapt)
{
	double rate = orch_adapt_rate(&adapt->window, adapt->limit);
	double error = relative_error(&adapt->window);

	return adapt->phase == ORCH_ADAPT_PROBE &&
		   fabs(rate - wanted(adapt)) >
			   CLEAR * rate *
				   sqrt(error * error + adapt->error * adapt->error);
}

static char *
hold(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	double rate = orch_adapt_rate(&adapt->window, adapt->limit);

	if (look->now < adapt->hold_until)
	{
		/* measure anew: what was before is part of this window */
		if (fabs(rate - adapt->rate) > DRIFT * adapt->rate)
		{
			adapt->hold = 0;
			adapt->hold_until = look->now;
			clear_window(adapt, look->now);
		}
		return NULL;
	}
	adapt->rate = rate;
	adapt->error = relative_error(&adapt->window);
	return probe(adapt, look,
				 psprintf("%d do %.1f steps/s", adapt->base, rate * 1e6));
}

/*
 * The limit of the next probe; the base itself when there is none that way.
 */
static int32
probe_limit(const OrchAdapt *adapt, const OrchAdaptLook *look)
{
	int32 top = look->max_running;

	if (adapt->direction < 0)
		return Max(adapt->base - step_of(adapt), look->min_running);
	if (look->now < adapt->ceiling_until)
		top = Min(top, adapt->ceiling - 1);
	return Max(Min(adapt->base + step_of(adapt), top), adapt->base);
}

/*
 * The next probe is the other way.
 */
static void
turn_back(OrchAdapt *adapt)
{
	adapt->doubling = false;
	adapt->streak = 0;
	adapt->direction = -adapt->direction;
}

/*
 * Try another limit than the base; the other way when there is none this way.
 */
static char *
probe(OrchAdapt *adapt, const OrchAdaptLook *look, const char *because)
{
	int32 limit = probe_limit(adapt, look);

	if (limit == adapt->base)
	{
		turn_back(adapt);
		limit = probe_limit(adapt, look);
	}
	if (limit == adapt->base)
		return NULL;
	adapt->phase = ORCH_ADAPT_PROBE;
	return change(adapt, limit, look->now,
				  psprintf("%s: trying %d", because, limit));
}

/*
 * A probe is over: stay, and go on, or go back.
 */
static char *
judge(OrchAdapt *adapt, const OrchAdaptLook *look)
{
	double rate = orch_adapt_rate(&adapt->window, adapt->limit);
	char *because = psprintf("%d do %.1f steps/s, %d did %.1f", adapt->limit,
							 rate * 1e6, adapt->base, adapt->rate * 1e6);

	adapt->phase = ORCH_ADAPT_HOLD;
	if (rate >= wanted(adapt))
	{
		adapt->base = adapt->limit;
		adapt->rate = rate;
		adapt->error = relative_error(&adapt->window);
		adapt->streak++;
		adapt->hold = 0;
		return probe(adapt, look, because);
	}
	if (adapt->doubling || adapt->streak >= 2)
	{
		adapt->doubling = false;
		adapt->streak = 0;
	}
	else
		give_up(adapt, look->now);
	return change(adapt, adapt->base, look->now,
				  psprintf("%s: back to %d", because, adapt->base));
}

/*
 * _adapt(): one look of the rule, for tests that simulate what is measured.
 * The state comes back as it went in, but for what the look changed; null: a
 * queue that begins.
 */
Datum
orchestrator_adapt(PG_FUNCTION_ARGS)
{
	OrchAdapt adapt;
	OrchAdaptSample sample = {0};
	double steps = PG_GETARG_FLOAT8(4);
	double busy = PG_GETARG_FLOAT8(7) * 1e6;
	double spread = PG_GETARG_FLOAT8(8);
	OrchAdaptLook look = {
		.now = (int64) (PG_GETARG_FLOAT8(3) * 1e6),
		.min_running = PG_GETARG_INT32(1),
		.max_running = PG_GETARG_INT32(2),
		.waiting = PG_GETARG_BOOL(9),
		.pressure =
			PG_ARGISNULL(10) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(10)),
		.sample = &sample,
	};
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false, false, false};
	bytea *state = PG_ARGISNULL(0) ? NULL : PG_GETARG_BYTEA_PP(0);
	char *reason;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type of _adapt");
	if (state == NULL)
		orch_adapt_begin(&adapt,
						 orch_adapt_start(look.min_running, look.max_running),
						 true, look.now);
	else if (VARSIZE_ANY_EXHDR(state) != sizeof(adapt))
		elog(ERROR, "unexpected size of a state of _adapt");
	else
		memcpy(&adapt, VARDATA_ANY(state), sizeof(adapt));
	sample.steps = sample.steps_squared = steps;
	sample.failed = PG_GETARG_FLOAT8(5);
	sample.timed_out = PG_GETARG_FLOAT8(6);
	sample.busy = sample.busy_steps = busy;
	sample.busy_squared =
		steps > 0 ? busy * busy / steps * (1 + spread * spread) : 0;
	reason = orch_adapt_decide(&adapt, &look);

	state = palloc(VARHDRSZ + sizeof(adapt));
	SET_VARSIZE(state, VARHDRSZ + sizeof(adapt));
	memcpy(VARDATA(state), &adapt, sizeof(adapt));
	values[0] = PointerGetDatum(state);
	values[1] = Int32GetDatum(adapt.limit);
	nulls[2] = reason == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(reason);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
