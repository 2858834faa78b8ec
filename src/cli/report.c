/*
 * report.c
 *	  What a worker tells the server of its tasks, one statement at a time:
 *	  heartbeats first, as they keep the claims; then lines for the trace, what
 *	  came of programs, and how far others are.
 *
 * A report stays with its task until the server has answered.  When the answer
 * is lost with the connection it is sent again: the token of a claim that was
 * settled, or ended, changes nothing (OR010, or state "lost").
 */
#include "postgres_fe.h"

#include <math.h>

#include "cli.h"
#include "work.h"

/* A statement that is not answered by then has no server. */
#define ANSWER_SECONDS 60

/* Tasks and bytes of one statement. */
#define MOST_TASKS 500
#define MOST_BYTES (8 * 1024 * 1024)

/* Many that end in a short time are reported together. */
#define HOLD_SECONDS 0.02
#define HOLD_TASKS	 64

/* No more often than so for one task. */
#define PROGRESS_SECONDS 0.25

/* After an error that may pass. */
#define PAUSE_SECONDS 1.0

#define STALE "OR010"

static const char beat_sql[] =
	"SELECT h.state FROM orchestrator.heartbeat_many($1::pg_catalog.int8[], $2::pg_catalog.text[]) h";
static const char complete_sql[] =
	"SELECT c.state FROM orchestrator.complete_many($1::pg_catalog.int8[], $2::pg_catalog.text[], $3::pg_catalog.jsonb[]) c";
static const char fail_sql[] =
	"SELECT orchestrator.fail($1, $2, $3::pg_catalog.jsonb, $4::pg_catalog.bool)";
static const char release_sql[] = "SELECT orchestrator.release($1, $2)";
static const char log_sql[] =
	"SELECT orchestrator.log($1, $2, u.level, u.message)"
	" FROM ROWS FROM (pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[])) u(level, message)";
/* in the order of their ids, as heartbeat_many() does */
static const char progress_sql[] =
	"SELECT orchestrator.heartbeat(u.task, u.token, NULL, u.fraction, u.message, u.stage) FROM (SELECT * FROM"
	" ROWS FROM (pg_catalog.unnest($1::pg_catalog.int8[]), pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.float8[]),"
	" pg_catalog.unnest($4::pg_catalog.text[]), pg_catalog.unnest($5::pg_catalog.text[]))"
	" WITH ORDINALITY u(task, token, fraction, message, stage, place) ORDER BY u.task OFFSET 0) u ORDER BY u.place";

/* Tasks of the statement under way; NULL: gone since. */
static Job *sent[MOST_TASKS];
static int nsent = 0;
static int nlines_sent;
static double pause_until = 0;

/* Columns of arrays that are parameters. */
typedef struct Columns
{
	const char *values[5][MOST_TASKS];
} Columns;

static Columns columns;

static void put_in(Job *job);
static void take_out(void);
static void send_columns(Link *link, const char *sql, int ncolumns,
						 LinkDone done);
static bool send_beats(Link *link);
static bool send_lines(Link *link);
static bool send_completed(Link *link);
static bool send_failed(Link *link);
static bool send_progress(Link *link);
static bool holds_back(void);
static bool is_complete(const Job *job);
static void states_came(const PGresult *result, bool beat);
static void beats_came(const PGresult *result);
static void progress_came(const PGresult *result);
static void lines_came(const PGresult *result);
static void completed_came(const PGresult *result);
static void failed_came(const PGresult *result);
static void settled(Job *job, const char *state);
static void refused(Job *job, const PGresult *result);
static const char *error_text(const PGresult *result);
static bool is_stale(const PGresult *result);
static bool is_rows(const PGresult *result);
static void forget_lines(Job *job, int count);

static void
put_in(Job *job)
{
	job->in_flight = true;
	sent[nsent++] = job;
}

static void
take_out(void)
{
	for (int i = 0; i < nsent; i++)
		if (sent[i])
			sent[i]->in_flight = false;
	nsent = 0;
}

void
report_forget(Job *job)
{
	for (int i = 0; job->in_flight && i < nsent; i++)
		if (sent[i] == job)
			sent[i] = NULL;
}

static void
send_columns(Link *link, const char *sql, int ncolumns, LinkDone done)
{
	char *values[lengthof(columns.values)];

	for (int i = 0; i < ncolumns; i++)
		values[i] = db_array(columns.values[i], nsent);
	link_send(link, sql, ncolumns, (const char *const *) values,
			  ANSWER_SECONDS, done);
	for (int i = 0; i < ncolumns; i++)
		free(values[i]);
}

bool
report_next(Link *link)
{
	if (worker.now < pause_until)
		return false;
	return send_beats(link) || send_lines(link) || send_completed(link) ||
		   send_failed(link) || send_progress(link);
}

double
report_due(void)
{
	double due = INFINITY;

	for (const Job *job = worker.jobs; job; job = job->next)
	{
		if (job->unwanted)
			continue;
		due = Min(due, job->beat_at);
		if (job->nlines > 0 || (job->state == JOB_ENDED && !is_complete(job)))
			due = 0;
		else if (job->state == JOB_ENDED)
			due = Min(due, holds_back() ? job->ended_at + HOLD_SECONDS : 0);
		else if (job->progressed)
			due = Min(due, job->progress_at);
	}
	return Max(due, pause_until);
}

/* -------------------------------------------------------------- heartbeats */

/*
 * When one is due, of all.
 */
static bool
send_beats(Link *link)
{
	bool due = false;

	for (const Job *job = worker.jobs; job && !due; job = job->next)
		due = !job->unwanted && worker.now >= job->beat_at;
	if (!due)
		return false;
	for (Job *job = worker.jobs; job && nsent < MOST_TASKS; job = job->next)
	{
		/* those that have just had one leave room for others */
		if (job->unwanted || worker.now < job->beat_at - 0.9 * job->beat_every)
			continue;
		columns.values[0][nsent] = job->task;
		columns.values[1][nsent] = job->token;
		put_in(job);
	}
	send_columns(link, beat_sql, 2, beats_came);
	return true;
}

static void
states_came(const PGresult *result, bool beat)
{
	for (int i = 0; i < nsent; i++)
	{
		Job *job = sent[i];

		if (job == NULL || job->unwanted)
			continue;
		if (!is_rows(result))
		{
			job->progressed |= !beat;
			job->beat_at = Min(job->beat_at, worker.now + PAUSE_SECONDS);
		}
		else if (strcmp(PQgetvalue(result, i, 0), "running") == 0)
		{
			job->beat_at = worker.now + job->beat_every;
			/* the server has something to say then */
			if (job->timeout_at > worker.now)
				job->beat_at = Min(job->beat_at, job->timeout_at + 0.05);
			if (job->deadline_at > worker.now)
				job->beat_at = Min(job->beat_at, job->deadline_at + 0.05);
		}
		/* what has ended gets its answer when it is reported */
		else if (job->state != JOB_ENDED)
			job_unwanted(job, PQgetvalue(result, i, 0));
		else
			job->beat_at = INFINITY;
	}
	if (result && !is_rows(result))
	{
		out_warn("heartbeat: %s", error_text(result));
		pause_until = worker.now + PAUSE_SECONDS;
	}
	take_out();
}

static void
beats_came(const PGresult *result)
{
	states_came(result, true);
}

/* ---------------------------------------------------------------- progress */

static bool
send_progress(Link *link)
{
	char numbers[MOST_TASKS][32];

	for (Job *job = worker.jobs; job && nsent < MOST_TASKS; job = job->next)
	{
		if (!job->progressed || job->unwanted || job->state == JOB_ENDED ||
			worker.now < job->progress_at)
			continue;
		columns.values[0][nsent] = job->task;
		columns.values[1][nsent] = job->token;
		columns.values[2][nsent] = NULL;
		if (!isnan(job->fraction))
		{
			snprintf(numbers[nsent], sizeof(numbers[nsent]), "%.6f",
					 job->fraction);
			columns.values[2][nsent] = numbers[nsent];
		}
		columns.values[3][nsent] = job->message;
		columns.values[4][nsent] = job->stage;
		put_in(job);
		job->progressed = false;
		job->progress_at = worker.now + PROGRESS_SECONDS;
	}
	if (nsent == 0)
		return false;
	send_columns(link, progress_sql, 5, progress_came);
	return true;
}

static void
progress_came(const PGresult *result)
{
	states_came(result, false);
}

/* ------------------------------------------------------------------- lines */

/*
 * Those of one task: a claim that does not stand refuses them all.
 */
static bool
send_lines(Link *link)
{
	Job *job = worker.jobs;
	const char *values[4];
	const char **texts;

	while (job && (job->nlines == 0 || job->unwanted))
		job = job->next;
	if (job == NULL)
		return false;
	put_in(job);
	nlines_sent = job->nlines;
	texts = pg_malloc(nlines_sent * sizeof(char *));
	values[0] = job->task;
	values[1] = job->token;
	for (int i = 0; i < nlines_sent; i++)
		texts[i] = job->lines[i].level;
	values[2] = db_array(texts, nlines_sent);
	for (int i = 0; i < nlines_sent; i++)
		texts[i] = job->lines[i].message;
	values[3] = db_array(texts, nlines_sent);
	link_send(link, log_sql, 4, values, ANSWER_SECONDS, lines_came);
	free(texts);
	free((char *) values[2]);
	free((char *) values[3]);
	return true;
}

static void
lines_came(const PGresult *result)
{
	Job *job = sent[0];

	take_out();
	if (job == NULL)
		return;
	if (is_rows(result))
		forget_lines(job, nlines_sent);
	else if (result == NULL || report_may_pass(result))
		pause_until = worker.now + (result ? PAUSE_SECONDS : 0);
	else
	{
		/* the report itself, or a heartbeat, says what has become of it */
		if (!is_stale(result))
			job_say(job, "log", error_text(result));
		forget_lines(job, job->nlines);
	}
}

static void
forget_lines(Job *job, int count)
{
	for (int i = 0; i < count; i++)
	{
		free(job->lines[i].level);
		free(job->lines[i].message);
	}
	job->nlines -= count;
	memmove(job->lines, job->lines + count, job->nlines * sizeof(JobLine));
}

/* ----------------------------------------------------------------- results */

static bool
is_complete(const Job *job)
{
	return job->state == JOB_ENDED && job->report == REPORT_COMPLETE;
}

/*
 * Whether more will end before it matters.
 */
static bool
holds_back(void)
{
	double oldest = INFINITY;
	int ended = 0;
	bool more = false;

	for (const Job *job = worker.jobs; job; job = job->next)
	{
		more |= job->state != JOB_ENDED;
		if (!is_complete(job))
			continue;
		ended++;
		oldest = Min(oldest, job->ended_at);
	}
	return more && ended < HOLD_TASKS && worker.pace * 10 < HOLD_SECONDS &&
		   worker.now < oldest + HOLD_SECONDS;
}

static bool
send_completed(Link *link)
{
	size_t bytes = 0;

	if (holds_back())
		return false;
	for (Job *job = worker.jobs; job && nsent < MOST_TASKS; job = job->next)
	{
		if (!is_complete(job) || (job->alone && nsent > 0))
			continue;
		bytes += job->output ? strlen(job->output) : 0;
		if (nsent > 0 && bytes > MOST_BYTES)
			break;
		columns.values[0][nsent] = job->task;
		columns.values[1][nsent] = job->token;
		columns.values[2][nsent] = job->output;
		put_in(job);
		if (job->alone)
			break;
	}
	if (nsent == 0)
		return false;
	send_columns(link, complete_sql, 3, completed_came);
	return true;
}

static void
completed_came(const PGresult *result)
{
	bool rows = is_rows(result);

	if (!rows && result && report_may_pass(result))
		pause_until = worker.now + PAUSE_SECONDS;
	for (int i = 0; i < nsent; i++)
	{
		Job *job = sent[i];

		job->in_flight = false;
		if (rows)
			settled(job, PQgetvalue(result, i, 0));
		else if (result == NULL)
			job->sent = true;
		else if (report_may_pass(result))
			continue;
		else if (nsent == 1)
			refused(job, result);
		else
			job->alone = true; /* one of them is to blame */
	}
	nsent = 0;
}

/*
 * The server takes no such output.
 */
static void
refused(Job *job, const PGresult *result)
{
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);

	job_fail(job, false, PQresultErrorField(result, PG_DIAG_SQLSTATE), detail,
			 "the output of the program was refused: %s",
			 PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY));
}

static bool
send_failed(Link *link)
{
	Job *job = worker.jobs;
	const char *values[4];

	while (job && (job->state != JOB_ENDED || is_complete(job)))
		job = job->next;
	if (job == NULL)
		return false;
	put_in(job);
	values[0] = job->task;
	values[1] = job->token;
	values[2] = job->error;
	values[3] = job->retryable ? "t" : "f";
	if (job->report == REPORT_RELEASE)
		link_send(link, release_sql, 2, values, ANSWER_SECONDS, failed_came);
	else
		link_send(link, fail_sql, 4, values, ANSWER_SECONDS, failed_came);
	return true;
}

static void
failed_came(const PGresult *result)
{
	Job *job = sent[0];

	take_out();
	if (result == NULL)
		job->sent = true;
	else if (is_rows(result))
		settled(job, job->report == REPORT_RELEASE ? "released"
												   : PQgetvalue(result, 0, 0));
	else if (report_may_pass(result))
		pause_until = worker.now + PAUSE_SECONDS;
	else if (!is_stale(result) && job->report == REPORT_FAIL && !job->alone)
	{
		/* text that the database has no characters for, say */
		job->alone = true;
		job_fail(job, job->retryable, NULL, NULL,
				 "the program failed; what it said was refused: %s",
				 error_text(result));
	}
	else
	{
		if (!is_stale(result))
			job_say(job, "error", error_text(result));
		settled(job, "lost");
	}
}

/*
 * The server knows what came of it, or does not want to.
 */
static void
settled(Job *job, const char *state)
{
	if (strcmp(state, "lost") != 0)
	{
		if (worker.verbose)
			job_say(job, state, NULL);
	}
	else if (job->sent)
		job_say(
			job, "lost",
			"the connection was lost with the answer to its report; if that was not taken, what came of it is dropped");
	else if (job->report != REPORT_RELEASE)
		job_say(job, "lost",
				"it is no longer claimed; what came of it is dropped");
	job_free(job);
}

static bool
is_rows(const PGresult *result)
{
	return PQresultStatus(result) == PGRES_TUPLES_OK;
}

static const char *
error_text(const PGresult *result)
{
	const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

	return text ? text : PQresultErrorMessage(result);
}

static bool
is_stale(const PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return sqlstate && strcmp(sqlstate, STALE) == 0;
}

/*
 * Locks, resources, a server that stops or only reads; not what was said.
 */
bool
report_may_pass(const PGresult *result)
{
	static const char *const classes[] = {"08", "25", "40", "53",
										  "55", "57", "58", "XX"};
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (sqlstate == NULL)
		return true;
	for (int i = 0; i < lengthof(classes); i++)
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return true;
	return false;
}
