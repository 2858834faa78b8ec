/*
 * cron.h
 *	  Cron lines: what they mean, and when they come due in a time zone.
 *
 * A line has five fields (minute, hour, day of month, month, day of week) or
 * is one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly and
 * @annually.  A field is a list of "*", n, a-b, and any of them with "/step";
 * months and days of the week also go by the first three letters of their
 * English names, and 7 is Sunday.  When neither day field begins with "*", a
 * day that fits either of them will do.
 *
 * A slot is an instant at which a line comes due; the instant is all that
 * tells it from others.  Where the clocks of the zone change:
 *
 *	 - A line whose hours begin with "*" follows real time: it comes due
 *	   whenever the local clock shows one of its times, also the second time.
 *	 - A line with fixed hours comes due once for each of its local times: at
 *	   the first of two, and at the moment of the change when there is none
 *	   (once, however many of its times the change leaves out).
 */
#ifndef ORCHESTRATOR_CRON_H
#define ORCHESTRATOR_CRON_H

#include "datatype/timestamp.h"
#include "pgtime.h"

typedef struct OrchCron
{
	uint64 minutes; /* bit n: minute n, and so on */
	uint32 hours;
	uint32 days;
	uint16 months;
	uint8 weekdays;	  /* bit 0: Sunday */
	bool any_hour;	  /* the field begins with "*" */
	bool any_day;	  /* likewise */
	bool any_weekday; /* likewise */
} OrchCron;

/* Read a line.  Raises invalid_parameter_value and says which field is wrong. */
extern void orch_cron_parse(const char *line, OrchCron *cron);

/* The zone of a name; raises invalid_parameter_value when there is none. */
extern pg_tz *orch_cron_zone(const char *name);

/* The first slot after an instant; false when there is none in nine years. */
extern bool orch_cron_next(const OrchCron *cron, pg_tz *zone,
						   TimestampTz after, TimestampTz *slot);

#endif
