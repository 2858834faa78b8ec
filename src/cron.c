/*
 * cron.c
 *	  Cron lines: what they mean, and when they come due in a time zone.
 *
 * Apart from the end, nothing here knows of schedules or reads a clock but to
 * give schedule_times() a place to begin.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "cron.h"
#include "shmem.h"

#define MAX_LINE_SIZE	 200
#define MAX_TIMES		 100000
#define SECONDS_PER_DAY	 INT64CONST(86400)
#define SECONDS_PER_HOUR INT64CONST(3600)

/* 29 February may be eight years away. */
#define HORIZON (9 * 366 * SECONDS_PER_DAY)

/* 1 January 1900: no line was written before. */
#define EARLIEST (-INT64CONST(36525) * USECS_PER_DAY)

/* How far a zone's clocks are put back at most, with room to spare. */
#define LONGEST_FOLD (25 * SECONDS_PER_HOUR)

typedef enum FieldKind
{
	FIELD_MINUTE,
	FIELD_HOUR,
	FIELD_DAY,
	FIELD_MONTH,
	FIELD_WEEKDAY,
	FIELDS
} FieldKind;

static const char *const month_names[] = {"jan", "feb", "mar", "apr",
										  "may", "jun", "jul", "aug",
										  "sep", "oct", "nov", "dec"};
static const char *const day_names[] = {"sun", "mon", "tue", "wed",
										"thu", "fri", "sat"};

/* What a field is called, its range, and names from the lowest on. */
static const struct
{
	const char *name;
	int low;
	int high;
	const char *const *names;
	int nnames;
} fields[FIELDS] = {{"minute", 0, 59, NULL, 0},
					{"hour", 0, 23, NULL, 0},
					{"day of month", 1, 31, NULL, 0},
					{"month", 1, 12, month_names, lengthof(month_names)},
					{"day of week", 0, 7, day_names, lengthof(day_names)}};

static const struct
{
	const char *name;
	const char *line;
} shorthands[] = {
	{"@hourly", "0 * * * *"},	{"@daily", "0 0 * * *"},
	{"@midnight", "0 0 * * *"}, {"@weekly", "0 0 * * 0"},
	{"@monthly", "0 0 1 * *"},	{"@yearly", "0 0 1 1 *"},
	{"@annually", "0 0 1 1 *"},
};

/* A walk over the slots of a line. */
typedef struct SlotWalk
{
	OrchCron cron;
	pg_tz *zone;
	TimestampTz last;  /* the next one is after this ... */
	TimestampTz until; /* ... and not after this */
	int64 left;		   /* most that are still wanted */
} SlotWalk;

static const char *expand_shorthand(const char *line);
static uint64 parse_field(const char *line, FieldKind kind, char *text);
static uint64 parse_item(const char *line, FieldKind kind, char *item);
static int parse_value(const char *line, FieldKind kind, const char *text,
					   const char *item);
static int parse_number(const char *text);
static bool matches_day(const OrchCron *cron, int julian, int day);
static bool next_time(const OrchCron *cron, int from, int *second);
static bool next_local(const OrchCron *cron, pg_time_t from, pg_time_t until,
					   pg_time_t *local);
static bool is_repeated(pg_tz *zone, pg_time_t at, pg_time_t local);
static bool first_in_segment(const OrchCron *cron, pg_tz *zone, pg_time_t from,
							 pg_time_t until, long offset, pg_time_t *slot);
static bool next_slot(const OrchCron *cron, pg_tz *zone, pg_time_t after,
					  pg_time_t *slot);
static pg_time_t whole_seconds(TimestampTz at);
static void begin_walk(SlotWalk *walk, text *line, text *zone,
					   TimestampTz after, TimestampTz until, int64 most);
static bool walk_on(SlotWalk *walk, TimestampTz *slot);
static Datum return_slots(FunctionCallInfo fcinfo);

PG_FUNCTION_INFO_V1(orchestrator_schedule_times);
PG_FUNCTION_INFO_V1(orchestrator_cron_check);
PG_FUNCTION_INFO_V1(orchestrator_cron_slots);
PG_FUNCTION_INFO_V1(orchestrator_cron_last);
PG_FUNCTION_INFO_V1(orchestrator_cron_count);
PG_FUNCTION_INFO_V1(orchestrator_cron_database);

/* ---------------------------------------------------------------- reading */

/* Refuse a line: what is wrong with it, and what would be right. */
#define refuse_line(line, hint, ...)                                          \
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),                 \
					errmsg("invalid cron line \"%s\": %s", line,              \
						   psprintf(__VA_ARGS__)),                            \
					errhint("%s", hint)))

#define FORM_HINT                                                             \
	"Write minute, hour, day of month, month and day of week, as in \"30 2 * * mon-fri\", or @daily."

void
orch_cron_parse(const char *line, OrchCron *cron)
{
	char *texts[FIELDS] = {NULL};
	char *copy;
	int n = 0;

	if (strlen(line) > MAX_LINE_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cron line is longer than %d bytes", MAX_LINE_SIZE)));
	copy = pstrdup(expand_shorthand(line));
	for (char *text = strtok(copy, " \t\r\n"); text != NULL;
		 text = strtok(NULL, " \t\r\n"))
	{
		if (n < FIELDS)
			texts[n] = text;
		n++;
	}
	if (n != FIELDS)
		refuse_line(line,
					n == FIELDS + 1 ? "There is no field for seconds or years."
									: FORM_HINT,
					"it has %d fields, not %d", n, FIELDS);

	cron->any_hour = texts[FIELD_HOUR][0] == '*';
	cron->any_day = texts[FIELD_DAY][0] == '*';
	cron->any_weekday = texts[FIELD_WEEKDAY][0] == '*';
	cron->minutes = parse_field(line, FIELD_MINUTE, texts[FIELD_MINUTE]);
	cron->hours = (uint32) parse_field(line, FIELD_HOUR, texts[FIELD_HOUR]);
	cron->days = (uint32) parse_field(line, FIELD_DAY, texts[FIELD_DAY]);
	cron->months = (uint16) parse_field(line, FIELD_MONTH, texts[FIELD_MONTH]);
	cron->weekdays =
		(uint8) parse_field(line, FIELD_WEEKDAY, texts[FIELD_WEEKDAY]);
	pfree(copy);
}

/*
 * The line that a word like @daily stands for; any other is its own.
 */
static const char *
expand_shorthand(const char *line)
{
	char word[16];
	int length;

	line += strspn(line, " \t\r\n");
	if (*line != '@')
		return line;
	length = strcspn(line, " \t\r\n");
	if (line[length + strspn(line + length, " \t\r\n")] == '\0')
	{
		strlcpy(word, line, Min(length + 1, (int) sizeof(word)));
		for (size_t i = 0; i < lengthof(shorthands); i++)
		{
			if (pg_strcasecmp(word, shorthands[i].name) == 0)
				return shorthands[i].line;
		}
	}
	refuse_line(
		line,
		"Words are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually.",
		"unknown word");
	return NULL;
}

/*
 * The bits of a field: those of all items of its list.
 */
static uint64
parse_field(const char *line, FieldKind kind, char *text)
{
	uint64 bits = 0;
	char *item = text;

	for (;;)
	{
		char *comma = strchr(item, ',');

		if (comma != NULL)
			*comma = '\0';
		bits |= parse_item(line, kind, item);
		if (comma == NULL)
			break;
		item = comma + 1;
	}
	if (kind == FIELD_WEEKDAY && (bits & (1 << 7)) != 0)
		bits = (bits | 1) & ~((uint64) 1 << 7);
	return bits;
}

/*
 * One of *, n, a-b, each with or without /step; n/step goes on to the end.
 */
static uint64
parse_item(const char *line, FieldKind kind, char *item)
{
	char *whole = pstrdup(item);
	char *slash = strchr(item, '/');
	char *dash;
	int low = fields[kind].low;
	int high = kind == FIELD_WEEKDAY ? 6 : fields[kind].high;
	int step = 1;
	uint64 bits = 0;

	if (slash != NULL)
	{
		*slash = '\0';
		step = parse_number(slash + 1);
		if (step < 1)
			refuse_line(
				line,
				"A step is a positive number after a slash, as in \"*/15\".",
				"\"%s\" has no valid step in field %s", whole,
				fields[kind].name);
	}
	if (strcmp(item, "*") != 0)
	{
		dash = strchr(item, '-');
		if (dash != NULL)
			*dash = '\0';
		low = parse_value(line, kind, item, whole);
		if (dash != NULL)
			high = parse_value(line, kind, dash + 1, whole);
		else if (slash == NULL)
			high = low;
		/* up to Sunday, at the end of the week */
		if (kind == FIELD_WEEKDAY && dash != NULL && high == 0)
			high = low == 0 ? 0 : 7;
		if (low > high)
			refuse_line(
				line,
				"Write a range from low to high; split one that passes the end in two, as in \"22-23,0-5\".",
				"range \"%s\" of field %s is empty", whole, fields[kind].name);
	}
	for (int value = low; value <= high; value += step)
		bits |= (uint64) 1 << value;
	pfree(whole);
	return bits;
}

static int
parse_value(const char *line, FieldKind kind, const char *text,
			const char *item)
{
	int value = parse_number(text);

	for (int i = 0; value < 0 && i < fields[kind].nnames; i++)
	{
		if (pg_strcasecmp(text, fields[kind].names[i]) == 0)
			return fields[kind].low + i;
	}
	if (value < fields[kind].low || value > fields[kind].high)
		refuse_line(
			line,
			psprintf("Values of this field are %d to %d%s.", fields[kind].low,
					 fields[kind].high,
					 kind == FIELD_MONTH
						 ? ", or jan to dec"
						 : (kind == FIELD_WEEKDAY ? ", or sun to sat" : "")),
			"\"%s\" is no valid %s", item, fields[kind].name);
	return value;
}

/*
 * A number of one to three digits, or -1.
 */
static int
parse_number(const char *text)
{
	size_t length = strlen(text);

	if (length < 1 || length > 3 || strspn(text, "0123456789") != length)
		return -1;
	return atoi(text);
}

pg_tz *
orch_cron_zone(const char *name)
{
	pg_tz *zone = strlen(name) <= TZ_STRLEN_MAX ? pg_tzset(name) : NULL;

	if (zone == NULL || !pg_tz_acceptable(zone))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time zone \"%s\" not recognized", name),
				 errhint("The view pg_timezone_names lists the names.")));
	return zone;
}

/* ---------------------------------------------------------------- slots */

/*
 * Whether a day fits, whose month does.
 */
static bool
matches_day(const OrchCron *cron, int julian, int day)
{
	bool by_date = (cron->days & ((uint32) 1 << day)) != 0;
	bool by_weekday = (cron->weekdays & (1 << j2day(julian))) != 0;

	if (cron->any_day || cron->any_weekday)
		return by_date && by_weekday;
	return by_date || by_weekday;
}

/*
 * The first time of day, in seconds, from a given one on.
 */
static bool
next_time(const OrchCron *cron, int from, int *second)
{
	int start = (from + 59) / 60;

	for (int hour = start / 60; hour < 24; hour++)
	{
		if ((cron->hours & ((uint32) 1 << hour)) == 0)
			continue;
		for (int minute = hour == start / 60 ? start % 60 : 0; minute < 60;
			 minute++)
		{
			if ((cron->minutes & ((uint64) 1 << minute)) != 0)
			{
				*second = (hour * 60 + minute) * 60;
				return true;
			}
		}
	}
	return false;
}

/*
 * The first time of a line in [from, until), on a local clock that never
 * changes.  Times are seconds since 1970 on that clock.
 */
static bool
next_local(const OrchCron *cron, pg_time_t from, pg_time_t until,
		   pg_time_t *local)
{
	pg_time_t date = from / SECONDS_PER_DAY - (from % SECONDS_PER_DAY < 0);

	while (date * SECONDS_PER_DAY < until)
	{
		int julian = (int) date + UNIX_EPOCH_JDATE;
		int year;
		int month;
		int day;
		int second;

		j2date(julian, &year, &month, &day);
		if ((cron->months & (1 << month)) == 0)
		{
			/* to the first of the next month */
			date += date2j(month == 12 ? year + 1 : year,
						   month == 12 ? 1 : month + 1, 1) -
					julian;
			continue;
		}
		if (matches_day(cron, julian, day) &&
			next_time(cron, (int) Max(from - date * SECONDS_PER_DAY, 0),
					  &second))
		{
			*local = date * SECONDS_PER_DAY + second;
			return *local < until;
		}
		date++;
	}
	return false;
}

/*
 * Whether a local time, shown at an instant, was shown before: the clocks were
 * put back in between.
 */
static bool
is_repeated(pg_tz *zone, pg_time_t at, pg_time_t local)
{
	pg_time_t probe = at - LONGEST_FOLD;
	pg_time_t change;
	long before;
	long after;
	int dst;

	while (pg_next_dst_boundary(&probe, &before, &dst, &change, &after, &dst,
								zone) == 1 &&
		   change <= at)
	{
		if (after < before && local < change + before)
			return true;
		probe = change;
	}
	return false;
}

/*
 * The first slot in [from, until), in which the zone has one offset.
 */
static bool
first_in_segment(const OrchCron *cron, pg_tz *zone, pg_time_t from,
				 pg_time_t until, long offset, pg_time_t *slot)
{
	pg_time_t local = from + offset;

	while (next_local(cron, local, until + offset, &local))
	{
		*slot = local - offset;
		if (cron->any_hour || !is_repeated(zone, *slot, local))
			return true;
		local += 60;
	}
	return false;
}

/*
 * The first slot after an instant, in seconds since 1970: segment by segment
 * of constant offset, and at their seams what the clocks left out.
 */
static bool
next_slot(const OrchCron *cron, pg_tz *zone, pg_time_t after, pg_time_t *slot)
{
	pg_time_t probe = after;
	pg_time_t from = after + 1;
	pg_time_t end = after + HORIZON;

	while (from < end)
	{
		pg_time_t change;
		pg_time_t skipped;
		long offset;
		long next_offset;
		int dst;
		int found = pg_next_dst_boundary(&probe, &offset, &dst, &change,
										 &next_offset, &dst, zone);

		CHECK_FOR_INTERRUPTS();
		if (found < 0)
			return false;
		if (found == 0 || change > end)
			return first_in_segment(cron, zone, from, end, offset, slot);
		if (first_in_segment(cron, zone, from, change, offset, slot))
			return true;
		if (!cron->any_hour && next_offset > offset &&
			next_local(cron, change + offset, change + next_offset, &skipped))
		{
			*slot = change;
			return true;
		}
		probe = change;
		from = change;
	}
	return false;
}

/*
 * Seconds since 1970, rounded down.
 */
static pg_time_t
whole_seconds(TimestampTz at)
{
	pg_time_t seconds = timestamptz_to_time_t(at);

	return seconds - (time_t_to_timestamptz(seconds) > at);
}

bool
orch_cron_next(const OrchCron *cron, pg_tz *zone, TimestampTz after,
			   TimestampTz *slot)
{
	pg_time_t seconds;

	if (TIMESTAMP_NOT_FINITE(after) ||
		!next_slot(cron, zone, whole_seconds(after), &seconds))
		return false;
	/* the end of the calendar is at the end of a year */
	if (seconds >= timestamptz_to_time_t(END_TIMESTAMP - 1))
		return false;
	*slot = time_t_to_timestamptz(seconds);
	return true;
}

/* ---------------------------------------------------------------- SQL */

static void
begin_walk(SlotWalk *walk, text *line, text *zone, TimestampTz after,
		   TimestampTz until, int64 most)
{
	orch_cron_parse(text_to_cstring(line), &walk->cron);
	walk->zone = zone == NULL ? session_timezone
							  : orch_cron_zone(text_to_cstring(zone));
	walk->last = after;
	walk->until = until;
	walk->left = most;
}

static bool
walk_on(SlotWalk *walk, TimestampTz *slot)
{
	CHECK_FOR_INTERRUPTS();
	if (walk->left <= 0 ||
		!orch_cron_next(&walk->cron, walk->zone, walk->last, slot) ||
		*slot > walk->until)
		return false;
	walk->last = *slot;
	walk->left--;
	return true;
}

/*
 * The rest of a set-returning function, one slot for each call.
 */
static Datum
return_slots(FunctionCallInfo fcinfo)
{
	FuncCallContext *call = SRF_PERCALL_SETUP();
	TimestampTz slot;

	if (!walk_on(call->user_fctx, &slot))
		SRF_RETURN_DONE(call);
	SRF_RETURN_NEXT(call, TimestampTzGetDatum(slot));
}

/*
 * orchestrator.schedule_times(cron, timezone, from, n) -> setof timestamptz
 */
Datum
orchestrator_schedule_times(PG_FUNCTION_ARGS)
{
	if (SRF_IS_FIRSTCALL())
	{
		FuncCallContext *call = SRF_FIRSTCALL_INIT();
		MemoryContext old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		TimestampTz from =
			PG_ARGISNULL(2) ? orch_clock() : PG_GETARG_TIMESTAMPTZ(2);
		int32 n = PG_ARGISNULL(3) ? 10 : PG_GETARG_INT32(3);
		SlotWalk *walk = palloc(sizeof(SlotWalk));

		if (PG_ARGISNULL(0))
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
							errmsg("cron line must not be null")));
		if (n < 0 || n > MAX_TIMES)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("n must be between 0 and %d", MAX_TIMES)));
		if (TIMESTAMP_NOT_FINITE(from) || from < EARLIEST)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"from\" must be finite, and after 1900")));
		begin_walk(walk, PG_GETARG_TEXT_PP(0),
				   PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1), from,
				   DT_NOEND, n);
		call->user_fctx = walk;
		MemoryContextSwitchTo(old);
	}
	return return_slots(fcinfo);
}

/*
 * orchestrator._cron_check(cron, timezone): raise what is wrong with them.
 */
Datum
orchestrator_cron_check(PG_FUNCTION_ARGS)
{
	SlotWalk walk;
	TimestampTz slot;

	begin_walk(&walk, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1), orch_clock(),
			   DT_NOEND, 1);
	if (!walk_on(&walk, &slot))
		refuse_line(text_to_cstring(PG_GETARG_TEXT_PP(0)),
					"No month that it names has such a day.",
					"it never comes due");
	PG_RETURN_VOID();
}

/*
 * orchestrator._cron_slots(cron, timezone, after, until, most)
 */
Datum
orchestrator_cron_slots(PG_FUNCTION_ARGS)
{
	if (SRF_IS_FIRSTCALL())
	{
		FuncCallContext *call = SRF_FIRSTCALL_INIT();
		MemoryContext old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		SlotWalk *walk = palloc(sizeof(SlotWalk));

		begin_walk(walk, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1),
				   PG_GETARG_TIMESTAMPTZ(2), PG_GETARG_TIMESTAMPTZ(3),
				   PG_GETARG_INT32(4));
		call->user_fctx = walk;
		MemoryContextSwitchTo(old);
	}
	return return_slots(fcinfo);
}

/*
 * orchestrator._cron_last(cron, timezone, after, until): the last slot in
 * between; null when there is none.  Looks back further and further, so that
 * years without a tick cost little.
 */
Datum
orchestrator_cron_last(PG_FUNCTION_ARGS)
{
	TimestampTz after = PG_GETARG_TIMESTAMPTZ(2);
	TimestampTz until = PG_GETARG_TIMESTAMPTZ(3);
	int64 span = 2 * USECS_PER_HOUR;
	TimestampTz slot;
	SlotWalk walk;

	while (after < until)
	{
		bool all = until - after <= span;

		begin_walk(&walk, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1),
				   all ? after : until - span, until, PG_INT64_MAX);
		if (walk_on(&walk, &slot))
		{
			while (walk_on(&walk, &slot))
				;
			PG_RETURN_TIMESTAMPTZ(walk.last);
		}
		if (all)
			break;
		span *= 30;
	}
	PG_RETURN_NULL();
}

/*
 * orchestrator._cron_count(cron, timezone, after, until, most): how many slots
 * are in between.
 */
Datum
orchestrator_cron_count(PG_FUNCTION_ARGS)
{
	TimestampTz slot;
	SlotWalk walk;
	int32 count = 0;

	begin_walk(&walk, PG_GETARG_TEXT_PP(0), PG_GETARG_TEXT_PP(1),
			   PG_GETARG_TIMESTAMPTZ(2), PG_GETARG_TIMESTAMPTZ(3),
			   PG_GETARG_INT32(4));
	while (walk_on(&walk, &slot))
		count++;
	PG_RETURN_INT32(count);
}

/*
 * orchestrator._cron_database(): the database in which pg_cron keeps its jobs;
 * null when the server did not load it.
 */
Datum
orchestrator_cron_database(PG_FUNCTION_ARGS)
{
	const char *name = GetConfigOption("cron.database_name", true, false);

	if (name == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(name));
}
