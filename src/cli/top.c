/*
 * top.c
 *	  top: a live screen of throughput, queues, workers, what is slow and
 *	  what fails.
 *
 * One statement for each part, every few seconds: numbers of a whole database
 * come from views, not from events.
 */
#include "postgres_fe.h"

#include <limits.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

#define LONGEST_LOSS 300

static CliExit run_top(CliCall *call);
static void live(double pause);
static bool ask_parts(void);
static void draw(const char *note);
static void append_part(PQExpBuffer to, int part, int *room);
static void append_header(PQExpBuffer to, const char *note);
static void append_json(PQExpBuffer to);
static bool take_keys(double *pause);
static void sleep_until(double seconds);
static void say_lost(const char *reason, double pause);

static const OutColumn total_columns[] = {
	{"DONE/S", OUT_NUMBER, "pg_catalog.round(v.completed::numeric, 1)"},
	{"FAILED/S", OUT_NUMBER, "pg_catalog.round(v.failed::numeric, 1)"},
	{"RETRIED/S", OUT_NUMBER, "pg_catalog.round(v.retried::numeric, 1)"},
	{"RUNNING", OUT_NUMBER, "v.running"},
	{"PENDING", OUT_NUMBER, "v.pending"},
	{"SCHEDULED", OUT_NUMBER, "v.scheduled"},
	{"WAITING", OUT_NUMBER, "v.waiting"},
	{"PAUSED", OUT_NUMBER, "v.paused"},
};

static const OutColumn queue_columns[] = {
	{"QUEUE", OUT_TEXT, "v.queue"},
	{"", OUT_STATE, "CASE WHEN v.paused THEN 'paused' END"},
	{"PENDING", OUT_NUMBER, "v.pending"},
	{"RUNNING", OUT_NUMBER, "v.running"},
	{"LIMIT", OUT_NUMBER, "v.effective_max_running"},
	{"RATE", OUT_NUMBER, "v.rate_limit || ' / ' || v.rate_period"},
	{"OLDEST", OUT_SECONDS, "extract(epoch FROM v.oldest_age)"},
	{"DONE/S", OUT_NUMBER, "pg_catalog.round(v.throughput::numeric, 1)"},
	{"WAITED", OUT_SECONDS, "extract(epoch FROM v.wait_p95)"},
	{"TOOK", OUT_SECONDS, "extract(epoch FROM v.run_p95)"},
};

static const OutColumn worker_columns[] = {
	{"WORKER", OUT_TEXT, "coalesce(v.worker, v.pid::text)"},
	{"KIND", OUT_TEXT, "v.kind"},
	{"ROLE", OUT_TEXT, "v.role"},
	{"STATE", OUT_STATE, "v.state"},
	{"FOR", OUT_SECONDS,
	 "extract(epoch FROM pg_catalog.clock_timestamp() - v.since)"},
	{"TASK", OUT_NUMBER, "v.task_id"},
	{"NAME", OUT_TEXT, "v.name"},
	{"DONE", OUT_PERCENT,
	 "CASE WHEN v.task_id IS NOT NULL THEN v.progress END"},
	{"MESSAGE", OUT_TEXT, "v.message"},
};

static const OutColumn definition_columns[] = {
	{"DEFINITION", OUT_TEXT, "v.definition"},
	{"DONE", OUT_NUMBER, "v.completed"},
	{"FAILED", OUT_NUMBER, "v.failed"},
	{"RETRIED", OUT_NUMBER, "v.retried"},
	{"FAIL", OUT_PERCENT, "v.failure_rate"},
	{"P50", OUT_SECONDS, "extract(epoch FROM v.run_p50)"},
	{"P95", OUT_SECONDS, "extract(epoch FROM v.run_p95)"},
	{"P99", OUT_SECONDS, "extract(epoch FROM v.run_p99)"},
};

/* The minute under way and the one before it. */
#define RECENT                                                                \
	"x.period = 'minute' AND x.at >= pg_catalog.date_trunc('minute', pg_catalog.clock_timestamp()) - interval '1 minute'"

static const struct
{
	const char *name; /* in JSON */
	const char *title;
	OutView view;
} parts[] = {
	{"total",
	 NULL,
	 {"(SELECT s.*, t.* FROM"
	  " (SELECT coalesce(pg_catalog.sum(x.completed), 0) / n.seconds AS completed, coalesce(pg_catalog.sum(x.failed), 0) / n.seconds AS failed,"
	  " coalesce(pg_catalog.sum(x.retried), 0) / n.seconds AS retried FROM (SELECT 60 + extract(second FROM pg_catalog.clock_timestamp()) AS seconds) n"
	  " LEFT JOIN orchestrator.queue_stats x ON " RECENT
	  " GROUP BY n.seconds) s,"
	  " (SELECT coalesce(pg_catalog.sum(q.running), 0) AS running, coalesce(pg_catalog.sum(q.pending), 0) AS pending,"
	  " coalesce(pg_catalog.sum(q.scheduled), 0) AS scheduled, coalesce(pg_catalog.sum(q.waiting), 0) AS waiting,"
	  " coalesce(pg_catalog.sum(q.held), 0) AS paused FROM orchestrator.queue_status q) t) v",
	  NULL, total_columns, lengthof(total_columns), NULL}},
	{"queues",
	 "Queues",
	 {"(SELECT q.*, x.throughput, x.wait_p95, x.run_p95 FROM orchestrator.queue_status q LEFT JOIN LATERAL"
	  " (SELECT x.* FROM orchestrator.queue_stats x WHERE x.queue = q.queue AND x.owner IS NOT DISTINCT FROM q.owner AND " RECENT
	  " ORDER BY x.at LIMIT 1) x ON true) v ORDER BY v.pending + v.running DESC, v.queue LIMIT 20",
	  NULL, queue_columns, lengthof(queue_columns), NULL}},
	{"workers",
	 "Workers",
	 {"(SELECT w.*, (SELECT coalesce(t.name, t.definition) FROM orchestrator.task_status t WHERE t.task_id = w.task_id) AS name"
	  " FROM orchestrator.worker_status w) v ORDER BY v.task_id IS NULL, v.kind, v.pid LIMIT 20",
	  NULL, worker_columns, lengthof(worker_columns), NULL}},
	{"slowest",
	 "Slowest, in the last minute or two",
	 {"(SELECT x.* FROM orchestrator.definition_stats x WHERE " RECENT
	  " AND x.completed + x.failed > 0) v ORDER BY v.run_p95 DESC, v.at LIMIT 5",
	  NULL, definition_columns, lengthof(definition_columns), NULL}},
	{"failing",
	 "Failing",
	 {"(SELECT x.* FROM orchestrator.definition_stats x WHERE " RECENT
	  " AND x.failed + x.retried > 0) v ORDER BY v.failed + v.retried DESC, v.at LIMIT 5",
	  NULL, definition_columns, lengthof(definition_columns), NULL}},
};

#define PARTS lengthof(parts)

static PGresult *results[PARTS];
static bool paused = false;
static bool leave = false;

static const CliOption top_options[] = {
	{"once", '1', NULL, "print it once, as it is now"},
	{"delay", 's', "SECONDS", "between two looks (2)"},
	{NULL},
};

const CliCommand cmd_top = {
	"top",
	NULL,
	"Show a live screen: throughput, queues, workers, slowest, failing",
	"Keys: q ends it, p or space holds the screen, + and - change the delay, any other\n"
	"looks at once. On a pipe, and with --json, it prints what it sees once.",
	0,
	0,
	top_options,
	run_top};

static CliExit
run_top(CliCall *call)
{
	double pause = opt_seconds(call, "delay", 2);
	PQExpBufferData text;
	int room = INT_MAX;

	if (!opt_given(call, "once") && !cli_settings.json && term_is_terminal())
	{
		live(pause);
		return term_interrupted() ? CLI_INTERRUPTED : CLI_OK;
	}
	if (!ask_parts())
		cli_fail(CLI_NO_CONNECTION, "the connection to the server was lost");
	initPQExpBuffer(&text);
	if (cli_settings.json)
		append_json(&text);
	else
		for (int i = 0; i < PARTS; i++)
			append_part(&text, i, &room);
	out_print(&text);
	termPQExpBuffer(&text);
	return CLI_OK;
}

/*
 * False: the connection is gone.  What was asked before is kept then.
 */
static bool
ask_parts(void)
{
	for (int i = 0; i < PARTS; i++)
	{
		char *sql = out_view_sql(&parts[i].view, cli_settings.json);
		PGresult *result = db_try(sql, 0, NULL);

		free(sql);
		if (PQresultStatus(result) != PGRES_TUPLES_OK)
		{
			if (db_lost())
			{
				PQclear(result);
				return false;
			}
			term_restore();
			out_result_error(result);
			cli_exit(CLI_FAILED);
		}
		PQclear(results[i]);
		results[i] = result;
	}
	return true;
}

static void
live(double pause)
{
	double asked_at = -pause;

	db_connection();
	term_open_screen();
	while (!leave && !term_interrupted())
	{
		double now = term_now();

		if (!paused && now >= asked_at + pause)
		{
			if (!ask_parts() && !db_come_back(now + LONGEST_LOSS, say_lost))
			{
				if (term_interrupted())
					return;
				cli_fail(
					CLI_NO_CONNECTION,
					"the connection was lost, and could not be made again");
			}
			asked_at = term_now();
		}
		draw(paused ? "held: p goes on" : "q quit, p hold, + - delay");
		sleep_until(paused ? -1 : Max(asked_at + pause - term_now(), 0));
		if (take_keys(&pause))
			asked_at = -pause;
	}
}

/*
 * Or until a key.
 */
static void
sleep_until(double seconds)
{
	struct pollfd ready = {.fd = STDIN_FILENO, .events = POLLIN};

	term_poll(&ready, isatty(STDIN_FILENO) ? 1 : 0, seconds);
	/* nobody types any more */
	if (ready.revents & (POLLHUP | POLLERR | POLLNVAL))
		leave = true;
}

/*
 * True: look at once.
 */
static bool
take_keys(double *pause)
{
	bool look = false;
	int key;

	while ((key = term_key()) != 0)
	{
		switch (key)
		{
			case 'q':
			case 'Q':
				leave = true;
				break;
			case 'p':
			case ' ':
				paused = !paused;
				look = !paused;
				break;
			case '+':
				*pause = Min(*pause * 2, 60);
				break;
			case '-':
				*pause = Max(*pause / 2, 0.25);
				break;
			default:
				look = !paused;
		}
	}
	return look;
}

static void
say_lost(const char *reason, double pause)
{
	char *text = psprintf("trying again in %.3g s: %s", pause, reason);

	draw(text);
	free(text);
}

static void
draw(const char *note)
{
	PQExpBufferData text;
	int room = term_height() - 2;

	initPQExpBuffer(&text);
	append_header(&text, note);
	for (int i = 0; i < PARTS; i++)
		append_part(&text, i, &room);
	if (!PQExpBufferBroken(&text))
		term_draw(text.data);
	termPQExpBuffer(&text);
}

static void
append_header(PQExpBuffer to, const char *note)
{
	PQExpBufferData line;
	char when[16];
	time_t now = time(NULL);

	strftime(when, sizeof(when), "%H:%M:%S", localtime(&now));
	initPQExpBuffer(&line);
	appendPQExpBuffer(&line, "orchestrator %s  %s@%s  %s", when,
					  db_lost() ? "?" : PQuser(db_connection()),
					  db_lost() ? "?" : PQdb(db_connection()), note);
	term_color(to, TERM_DIM);
	text_append_fit(to, line.data,
					Min(term_width() - 1, text_width(line.data)), false);
	term_plain(to);
	appendPQExpBufferChar(to, '\n');
	termPQExpBuffer(&line);
}

/*
 * As many of its rows as there is room for.
 */
static void
append_part(PQExpBuffer to, int part, int *room)
{
	const OutView *view = &parts[part].view;
	PQExpBufferData table;
	int titles = parts[part].title ? 2 : 0;
	const char *end;

	if (results[part] == NULL || PQntuples(results[part]) == 0 ||
		*room < titles + 2)
		return;
	if (parts[part].title)
	{
		appendPQExpBufferChar(to, '\n');
		term_color(to, TERM_CYAN);
		text_append_fit(to, parts[part].title,
						Min(term_width() - 1, text_width(parts[part].title)),
						false);
		term_plain(to);
		appendPQExpBufferChar(to, '\n');
		*room -= titles;
	}
	initPQExpBuffer(&table);
	out_append_table(&table, results[part], view->columns, view->ncolumns,
					 term_width());
	for (const char *line = table.data; *line != '\0' && *room > 0;
		 line = end + 1)
	{
		end = strchr(line, '\n');
		appendBinaryPQExpBuffer(to, line, end - line + 1);
		(*room)--;
	}
	termPQExpBuffer(&table);
}

static void
append_json(PQExpBuffer to)
{
	for (int i = 0; i < PARTS; i++)
	{
		appendPQExpBuffer(to, "%s\"%s\": ", i == 0 ? "{" : ",\n",
						  parts[i].name);
		if (parts[i].title)
			out_append_array(to, results[i]);
		else
			text_append_json(to, PQgetvalue(results[i], 0, 0));
	}
	appendPQExpBufferStr(to, "}\n");
}
