/*
 * doctor.c
 *	  doctor: what keeps tasks from running, and what to do about it.
 *
 * Each check is a statement that returns what it finds: level, finding,
 * advice.  What a role may not look at is said, and is no finding; that the
 * library and the extension do not fit the server says itself.
 */
#include "postgres_fe.h"

#include "cli.h"

typedef struct Check
{
	const char *name;
	const char *sql;
	bool last; /* nothing more can be asked when it finds something */
} Check;

static CliExit run_doctor(CliCall *call);
static bool run_check(const Check *check, PQExpBuffer json);
static void tell(const char *check, const char *level, const char *finding,
				 const char *advice, PQExpBuffer json);
static void append_json(PQExpBuffer to, const char *check, const char *level,
						const char *finding, const char *advice);

/*
 * The library defines its settings when it is loaded, so this must be asked
 * before anything that loads it into the session.
 */
static const Check checks[] = {
	{"library",
	 "SELECT 'problem', 'the library is not preloaded: no step runs in this server',"
	 " 'Add orchestrator to shared_preload_libraries and restart the server; remote workers do without.'"
	 " WHERE pg_catalog.current_setting('orchestrator.max_executors', true) IS NULL"},
	{"extension",
	 "SELECT 'problem', 'the extension is not in database ' || pg_catalog.current_database(), 'Run CREATE EXTENSION orchestrator in it.'"
	 " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'orchestrator')",
	 true},
	{"versions",
	 "SELECT 'warning', pg_catalog.format('the extension is version %s, this program %s', e.extversion, '" ORCHESTRATOR_VERSION
	 "'), 'Install the same version of both.' FROM pg_catalog.pg_extension e"
	 " WHERE e.extname = 'orchestrator' AND e.extversion <> '" ORCHESTRATOR_VERSION
	 "'"
	 " UNION ALL SELECT 'warning', pg_catalog.format('version %s is installed, the database has %s', a.default_version, a.installed_version),"
	 " 'Run ALTER EXTENSION orchestrator UPDATE.' FROM pg_catalog.pg_available_extensions a"
	 " WHERE a.name = 'orchestrator' AND a.default_version <> a.installed_version"},
	{"privileges",
	 "SELECT 'problem', pg_catalog.format('role \"%s\" has no rights to the extension', current_user),"
	 " pg_catalog.format('Let an administrator run SELECT orchestrator.grant_usage(%L).', current_user)"
	 " WHERE NOT pg_catalog.has_schema_privilege('orchestrator', 'USAGE')",
	 true},
	{"release", "SELECT WHERE orchestrator._visible_owners() IS NULL", true},
	{"role",
	 "SELECT 'warning', pg_catalog.format('role \"%s\" may not log in, so its tasks do not run', r.rolname),"
	 " pg_catalog.format('ALTER ROLE %I LOGIN, or enqueue as another role.', r.rolname)"
	 " FROM pg_catalog.pg_roles r WHERE r.rolname = current_user AND NOT r.rolcanlogin"
	 " AND pg_catalog.current_setting('server_version_num')::int < 170000"},
	{"enabled",
	 "SELECT 'problem', 'tasks do not run: orchestrator.enabled is off', 'Set it to on and reload the server.'"
	 " WHERE pg_catalog.current_setting('orchestrator.enabled', true) = 'off'"
	 " UNION ALL SELECT 'warning', 'the server is a standby: tasks run on the primary', 'Connect to the primary.'"
	 " WHERE pg_catalog.pg_is_in_recovery()"},
	{"workers",
	 "SELECT 'problem', 'no supervisor is at work in this database',"
	 " 'Look into the log of the server; raise max_worker_processes if it says that there is no room.'"
	 " WHERE pg_catalog.current_setting('orchestrator.enabled', true) = 'on' AND NOT pg_catalog.pg_is_in_recovery()"
	 " AND pg_catalog.current_setting('orchestrator.max_executors', true) IS NOT NULL"
	 " AND NOT EXISTS (SELECT FROM orchestrator.worker_status w WHERE w.kind = 'supervisor')"
	 " UNION ALL SELECT 'warning', pg_catalog.format('max_worker_processes is %s: launcher, supervisor, retention and %s executors want %s', s.have, s.executors, s.executors + 3),"
	 " pg_catalog.format('Set max_worker_processes to %s or more and restart the server; parallel queries want some, too.', s.executors + 3 + 4)"
	 " FROM (SELECT pg_catalog.current_setting('max_worker_processes')::int AS have, pg_catalog.current_setting('orchestrator.max_executors', true)::int AS executors) s"
	 " WHERE s.have < s.executors + 3"},
	{"copy",
	 "SELECT 'problem', 'this database is a copy: its tasks do not run', 'If they are to run here, let an administrator run SELECT orchestrator.activate().'"
	 " WHERE EXISTS (SELECT FROM orchestrator.queue) AND NOT orchestrator._may_fire()"},
	{"due",
	 "SELECT 'problem', pg_catalog.format('tasks of queue \"%s\" have been due since %s and were not started', q.queue, q.next_run_at::timestamptz(0)),"
	 " 'The supervisor does not come to it: look into the log of the server, and for long locks on orchestrator.task_live.'"
	 " FROM orchestrator.queue_status q WHERE q.next_run_at < pg_catalog.now() - interval '1 minute' AND NOT q.paused"},
	{"queues",
	 "SELECT 'warning', pg_catalog.format('queue \"%s\" is paused with %s tasks in it', q.queue, q.pending),"
	 " pg_catalog.format('SELECT orchestrator.resume_queue(%L) lets them go on.', q.queue)"
	 " FROM orchestrator.queue_status q WHERE q.paused AND q.pending > 0"
	 " UNION ALL SELECT 'warning', pg_catalog.format('%s tasks of queue \"%s\" wait for a limit of their definition or key, the oldest for %s', q.parked, q.queue, pg_catalog.date_trunc('second', q.oldest_age)),"
	 " 'See orchestrator definitions: raise max_running or rate_limit if they are to go faster.'"
	 " FROM orchestrator.queue_status q WHERE q.parked > 0 AND NOT q.paused AND q.oldest_age > interval '1 minute'"
	 " UNION ALL SELECT 'warning', pg_catalog.format('a task of queue \"%s\" has been ready for %s', q.queue, pg_catalog.date_trunc('second', q.oldest_age)),"
	 " CASE WHEN q.running = 0 THEN 'None of the queue runs: is an executor, or a remote worker, there for it? See orchestrator workers.'"
	 " ELSE 'It is slow for what it gets: see orchestrator top, and the limits of the queue.' END"
	 " FROM orchestrator.queue_status q WHERE q.oldest_age > interval '10 minutes' AND NOT q.paused"},
	{"alerts",
	 "SELECT 'warning', pg_catalog.format('queue \"%s\" is past its %s limit', a.queue, a.kind), 'See orchestrator.alert_status.'"
	 " FROM orchestrator.alert_status a WHERE a.cleared_at IS NULL"},
	{"leases",
	 "SELECT 'problem', pg_catalog.format('task %s was claimed by remote worker \"%s\", its lease ended at %s and it was not taken back', l.task_id, l.worker, l.ends_at::timestamptz(0)),"
	 " 'The supervisor takes it back, or, without preload, the next claim: let a worker claim.'"
	 " FROM orchestrator.lease l WHERE l.ends_at < pg_catalog.now() - interval '1 minute' ORDER BY l.ends_at LIMIT 10"},
	{"schedules",
	 "SELECT 'problem', pg_catalog.format('schedule \"%s\": %s', s.schedule, s.problem),"
	 " CASE WHEN s.error IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_cron')"
	 " THEN 'pg_cron is not in this database: install it, or have it call orchestrator.tick() each minute from where it is.'"
	 " ELSE 'See orchestrator schedules, and cron.job_run_details.' END"
	 " FROM orchestrator.schedule_status s WHERE s.state = 'failing'"},
	{"retention",
	 "SELECT 'warning', pg_catalog.format('finished tasks %s to %s are half detached', r.from_id, r.to_id),"
	 " 'A transaction that is older keeps them: see pg_stat_activity by xact_start, and pg_prepared_xacts.'"
	 " FROM orchestrator.retention_status r WHERE r.state = 'detaching'"},
	{"listeners",
	 "SELECT 'warning', pg_catalog.format('session %s of role \"%s\" listens and does not read', a.pid, a.usename),"
	 " pg_catalog.format('Let it read, or run SELECT pg_terminate_backend(%s): meanwhile VACUUM frees nothing newer.', a.pid)"
	 " FROM pg_catalog.pg_stat_activity a WHERE a.datname = pg_catalog.current_database() AND a.state = 'idle' AND a.wait_event = 'ClientWrite'"
	 " UNION ALL SELECT 'warning', pg_catalog.format('the queue of NOTIFY is %s %% full: events are held back', pg_catalog.round(pg_catalog.pg_notification_queue_usage() * 100)),"
	 " 'A session that executed LISTEN does not read, or keeps a transaction open.' WHERE pg_catalog.pg_notification_queue_usage() > 0.25"},
};

static bool problems = false;
static bool warnings = false;

const CliCommand cmd_doctor = {
	"doctor",
	NULL,
	"Look for what keeps tasks from running, and say what to do",
	"The exit code is 0 if nothing was found, 7 if there is something to look at, 6 if\n"
	"tasks do not run as they should. It sees what the role may see.",
	0,
	0,
	NULL,
	run_doctor};

static CliExit
run_doctor(CliCall *call)
{
	PQExpBufferData json;

	initPQExpBuffer(&json);
	appendPQExpBufferChar(&json, '[');
	for (int i = 0; i < lengthof(checks); i++)
		if (run_check(&checks[i], &json) && checks[i].last)
			break;
	appendPQExpBufferStr(&json, "\n]\n");
	if (cli_settings.json)
		out_print(&json);
	termPQExpBuffer(&json);
	return problems ? CLI_PROBLEMS : warnings ? CLI_WARNINGS : CLI_OK;
}

/*
 * True: it has found something.
 */
static bool
run_check(const Check *check, PQExpBuffer json)
{
	PGresult *result = db_try(check->sql, 0, NULL);
	bool found = false;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

		if (sqlstate != NULL && strcmp(sqlstate, "55000") == 0)
		{
			found = problems = true;
			tell(check->name, "problem",
				 PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY),
				 PQresultErrorField(result, PG_DIAG_MESSAGE_HINT), json);
		}
		else if (sqlstate != NULL && strcmp(sqlstate, "42501") == 0)
			tell(check->name, "unknown", "the role may not look at it", NULL,
				 json);
		else
		{
			out_result_error(result);
			cli_exit(db_lost() ? CLI_NO_CONNECTION : CLI_FAILED);
		}
	}
	else if (PQntuples(result) == 0)
		tell(check->name, "ok", NULL, NULL, json);
	for (int row = 0; row < PQntuples(result); row++)
	{
		const char *level = PQgetvalue(result, row, 0);

		found = true;
		if (strcmp(level, "problem") == 0)
			problems = true;
		else
			warnings = true;
		tell(check->name, level, PQgetvalue(result, row, 1),
			 PQgetvalue(result, row, 2), json);
	}
	PQclear(result);
	return found;
}

static void
tell(const char *check, const char *level, const char *finding,
	 const char *advice, PQExpBuffer json)
{
	PQExpBufferData text;
	TermColor color = strcmp(level, "problem") == 0	  ? TERM_RED
					  : strcmp(level, "warning") == 0 ? TERM_YELLOW
					  : strcmp(level, "ok") == 0	  ? TERM_GREEN
													  : TERM_DIM;

	if (cli_settings.json)
	{
		append_json(json, check, level, finding, advice);
		return;
	}
	initPQExpBuffer(&text);
	term_color(&text, color);
	appendPQExpBuffer(&text, "%-8s", level);
	term_plain(&text);
	appendPQExpBuffer(&text, " %-10s", check);
	if (finding)
	{
		appendPQExpBufferChar(&text, ' ');
		text_append(&text, finding);
	}
	if (advice)
	{
		appendPQExpBuffer(&text, "\n%20s", "");
		text_append(&text, advice);
	}
	while (text.data[text.len - 1] == ' ')
		text.data[--text.len] = '\0';
	appendPQExpBufferChar(&text, '\n');
	out_print(&text);
	termPQExpBuffer(&text);
}

static void
append_json(PQExpBuffer to, const char *check, const char *level,
			const char *finding, const char *advice)
{
	appendPQExpBuffer(
		to, "%s\n{\"check\": \"%s\", \"level\": \"%s\", \"finding\": ",
		to->len > 1 ? "," : "", check, level);
	out_append_string(to, finding);
	appendPQExpBufferStr(to, ", \"advice\": ");
	out_append_string(to, advice);
	appendPQExpBufferChar(to, '}');
}
