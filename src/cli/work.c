/*
 * work.c
 *	  work: a remote worker that runs the programs of tasks.
 *
 * One loop waits for everything: programs (program.c), the connection over
 * which it claims and reports (report.c), and one that sleeps in await_work()
 * until there is something to claim.  Neither waits for the other, so that
 * programs go on while the server is away, and heartbeats while they run.
 *
 * All times are of this machine's monotonic clock, counted from what the
 * server says is left: what the clock of the wall shows does not matter.
 */
#include "postgres_fe.h"

#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"
#include "work.h"

/* A program says so that another attempt is of no use (EX_DATAERR). */
#define EXIT_FOR_GOOD 65

/* What claim() gives at most. */
#define MOST_CLAIMED 1000

/* Tasks claimed ahead of a free place: those that start within this time. */
#define AHEAD_SECONDS 0.1
#define MOST_AHEAD	  250
/* They go back if they did not. */
#define READY_SECONDS 1.0

/* Whether somebody has made the environment that a task waits for. */
#define LOOK_AGAIN 0.2

/* What a program needs is made for others, too, when its task was too late. */
#define PREPARE_SECONDS 600

#define AWAIT_SECONDS	   30
#define ANSWER_SECONDS	   60
#define CLAIM_AGAIN		   5.0
#define LEAST_FOREIGN	   0.05
#define MOST_FOREIGN	   2.0
#define UNREPORTED_SECONDS 30

Worker worker;

static Link reports = {"connection"};
static Link sleeper = {"connection that waits"};

static const char *given_definitions;
static int concurrency;
static bool until_empty;

static bool may_claim = true; /* there may be something */
static bool claimed_once = false;
static int asked;
static double claim_at = 0;	   /* not before */
static double await_at = 0;	   /* nor this */
static double foreign_pause;   /* nothing that is ready is for us */
static double start_pause = 0; /* programs cannot be started; 0: they can */
static bool found_nothing = false;
static double look_again_at = INFINITY;
static int stops_seen = 0;
static double stop_began;
static double last_end = 0;

static CliExit run_work(CliCall *call);
static void read_options(const CliCall *call);
static void ask_server(void);
static bool through(void);
static void obey_interrupts(void);
static void stop_programs(void);
static void release(Job *job);
static void release_ready(void);
static void enforce_times(void);
static void collect_programs(void);
static void program_through(Job *job, const Program *program);
static bool check_output(Job *job, const Program *program);
static void end_job(Job *job, JobReport report);
static void start_ready(void);
static void start_job(Job *job);
static void start_program(Job *job, Runner *runner, char *const *arguments);
static void give_back(const char *program, const char *reason);
static void prepared(Job *job, int status);
static int count_jobs(JobState state);
static int wanted(void);
static void claim(void);
static void claim_came(const PGresult *result);
static void take_job(const PGresult *result, int row);
static void take_variables(Job *job, const PGresult *result, int row);
static void await(void);
static void await_came(const PGresult *result);
static double next_due(void);
static void wait_for_anything(void);
static void serve_programs(const struct pollfd *descriptors);

static const CliOption work_options[] = {
	{"queue", 'q', "QUEUE", "claim from this queue; may be given again"},
	{"tasks", 't', "FOLDER", "where the programs are (tasks)"},
	{"definition", 'D', "NAME",
	 "claim tasks of this definition only, not of all in the folder; may be given again"},
	{"concurrency", 'c', "N", "programs at once (1)"},
	{"name", 'n', "NAME", "of the worker (host:pid)"},
	{"lease", 0, "SECONDS",
	 "how long a claim lasts without a heartbeat (as defined, or 60)"},
	{"heartbeat", 0, "SECONDS",
	 "at most so long between heartbeats (5, or a third of the lease)"},
	PROGRAM_GRACE_OPTION,
	{"cache", 0, "FOLDER",
	 "where environments of programs are made (~/.cache/orchestrator)"},
	{"until-empty", 0, NULL, "leave when there is nothing to claim"},
	{"verbose", 'v', NULL, "say what each task does"},
	{NULL},
};

const CliCommand cmd_work = {
	"work",
	NULL,
	"Run the programs of tasks: a remote worker",
	"It claims tasks of kind remote and runs FOLDER/NAME/NAME.* for each, where NAME is\n"
	"the handler of the definition: input as JSON on standard input, output as JSON on\n"
	"standard output, progress and lines for the trace on descriptor 3 or standard error.\n"
	"Exit code 0 completes the task, 65 fails it for good, any other is retried as\n"
	"defined. TERM lets programs end and claims no more, a second TERM ends them.",
	0,
	0,
	work_options,
	run_work};

static CliExit
run_work(CliCall *call)
{
	read_options(call);
	term_watch_children();
	program_init(concurrency);
	ask_server();
	term_count_interrupts();
	link_open(&reports, db_take());
	link_open(&sleeper, NULL);
	worker.pace = 1;
	while (!through())
	{
		worker.now = term_now();
		collect_programs();
		enforce_times();
		start_ready();
		if (reports.state == LINK_IDLE && !report_next(&reports))
			claim();
		if (sleeper.state == LINK_IDLE)
			await();
		wait_for_anything();
		obey_interrupts();
	}
	link_close(&sleeper);
	link_close(&reports);
	for (const Job *job = worker.jobs; job; job = job->next)
		job_say(job, "unreported", "its lease will end");
	return worker.jobs ? CLI_NO_CONNECTION : CLI_OK;
}

static void
read_options(const CliCall *call)
{
	char host[256] = "";
	double lease = opt_seconds(call, "lease", 0);

	worker.queues = opt_array(call, "queue");
	if (worker.queues == NULL)
		opt_usage(call, "--queue is missing");
	worker.name = opt_value(call, "name");
	if (worker.name == NULL)
	{
		gethostname(host, sizeof(host) - 1);
		worker.name = psprintf("%s:%d", host, (int) getpid());
	}
	if (lease > 0)
		worker.lease = psprintf("%.3f s", lease);
	concurrency = (int) opt_number(call, "concurrency", 1, MOST_CLAIMED, 1);
	worker.most_beat = opt_seconds(call, "heartbeat", 5);
	worker.grace = opt_seconds(call, "grace", PROGRAM_GRACE);
	worker.verbose = opt_given(call, "verbose");
	until_empty = opt_given(call, "until-empty");
	given_definitions = opt_array(call, "definition");
	runner_init(opt_value(call, "tasks"), opt_value(call, "cache"));
}

static void
ask_server(void)
{
	PGresult *result = db_query(
		"SELECT pg_catalog.pg_size_bytes(coalesce(pg_catalog.current_setting('orchestrator.max_input_size', true), '1MB'))",
		0, NULL);

	worker.most_output = (size_t) db_number(result, 0, 0, 0);
	PQclear(result);
}

/* -------------------------------------------------------------------- jobs */

Job *
job_new(void)
{
	Job *job = pg_malloc0(sizeof(Job));
	Job **end = &worker.jobs;

	while (*end)
		end = &(*end)->next;
	*end = job;
	worker.njobs++;
	job->fraction = NAN;
	initPQExpBuffer(&job->tail);
	return job;
}

void
job_free(Job *job)
{
	Job **place = &worker.jobs;

	report_forget(job);
	while (*place != job)
		place = &(*place)->next;
	*place = job->next;
	worker.njobs--;
	for (int i = 0; i < job->nlines; i++)
	{
		free(job->lines[i].level);
		free(job->lines[i].message);
	}
	free(job->lines);
	free(job->task);
	free(job->token);
	free(job->definition);
	free(job->handler);
	free(job->input);
	free(job->variables);
	free(job->output);
	free(job->error);
	free(job->message);
	free(job->stage);
	termPQExpBuffer(&job->tail);
	free(job);
}

static int
count_jobs(JobState state)
{
	int count = 0;

	for (const Job *job = worker.jobs; job; job = job->next)
		count += job->state == state;
	return count;
}

void
job_say(const Job *job, const char *event, const char *message)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	if (cli_settings.json)
	{
		appendPQExpBuffer(&text,
						  "{\"task_id\": %s, \"definition\": ", job->task);
		out_append_string(&text, job->definition);
		appendPQExpBufferStr(&text, ", \"event\": ");
		out_append_string(&text, event);
		if (message)
		{
			appendPQExpBufferStr(&text, ", \"message\": ");
			out_append_string(&text, message);
		}
		appendPQExpBufferChar(&text, '}');
	}
	else
	{
		appendPQExpBuffer(&text, "task %s ", job->task);
		text_append(&text, job->definition);
		appendPQExpBuffer(&text, ": %s", event);
		if (message)
		{
			appendPQExpBufferStr(&text, ": ");
			text_append(&text, message);
		}
	}
	appendPQExpBufferChar(&text, '\n');
	out_print(&text);
	termPQExpBuffer(&text);
}

void
job_unwanted(Job *job, const char *state)
{
	bool cancelled = strcmp(state, "cancel") == 0;

	if (job->unwanted)
		return;
	job->unwanted = true;
	job_say(job, cancelled ? "cancelled" : "lost",
			cancelled ? NULL
					  : "it is no longer claimed; its program is ended");
	if (job->program == NULL)
		end_job(job, REPORT_RELEASE);
	else if (job->preparing)
		program_kill_at(job->program, worker.now + PREPARE_SECONDS);
	else if (!job->stopping)
		program_end(job->program, worker.grace);
}

void
job_fail(Job *job, bool retryable, const char *sqlstate, const char *detail,
		 const char *format, ...)
{
	PQExpBufferData error;
	va_list args;
	char *message;

	va_start(args, format);
	message = text_format(format, args);
	va_end(args);
	initPQExpBuffer(&error);
	appendPQExpBufferStr(&error, "{\"message\": ");
	text_append_quoted(&error, message);
	if (sqlstate)
	{
		appendPQExpBufferStr(&error, ", \"sqlstate\": ");
		text_append_quoted(&error, sqlstate);
	}
	if (detail)
	{
		appendPQExpBufferStr(&error, ", \"detail\": ");
		text_append_quoted(&error, detail);
	}
	appendPQExpBufferChar(&error, '}');
	free(job->error);
	job->error = error.data;
	job->retryable = retryable;
	job_say(job, "failed", message);
	free(message);
	end_job(job, REPORT_FAIL);
}

/*
 * What nobody wants to know is not reported.
 */
static void
end_job(Job *job, JobReport report)
{
	job->state = JOB_ENDED;
	job->report = report;
	job->ended_at = worker.now;
	line_tell_dropped(job);
	if (job->unwanted)
		job_free(job);
}

static void
release(Job *job)
{
	if (worker.verbose)
		job_say(job, "released", NULL);
	end_job(job, REPORT_RELEASE);
}

static void
release_ready(void)
{
	Job *next;

	for (Job *job = worker.jobs; job; job = next)
	{
		next = job->next;
		if (job->state == JOB_READY)
			release(job);
	}
}

/* ---------------------------------------------------------------- programs */

static void
start_ready(void)
{
	int running = count_jobs(JOB_RUNNING);
	Job *next;

	look_again_at = INFINITY;
	for (Job *job = worker.jobs; job && running < concurrency; job = next)
	{
		next = job->next;
		if (job->state != JOB_READY)
			continue;
		start_job(job);
		running += job->state == JOB_RUNNING;
	}
}

static void
start_job(Job *job)
{
	const char *reason = NULL;
	Runner *runner = runner_find(job->handler, &reason);
	char *const script[] = {"/bin/sh",
							"-c",
							runner ? (char *) runner->script : NULL,
							"orchestrator",
							runner ? runner->environment : NULL,
							runner ? (char *) runner->dependencies : NULL,
							NULL};
	char *const program[] = {runner ? (char *) runner->program : NULL, NULL};

	if (runner == NULL)
	{
		job_fail(job, true, NULL, NULL, "%s", reason);
		return;
	}
	switch (runner_prepare(runner, &reason))
	{
		case RUNNER_READY:
			start_program(job, runner, program);
			break;
		case RUNNER_MISSING:
			job->preparing = runner;
			start_program(job, runner, script);
			if (job->program == NULL)
				runner_prepared(runner);
			break;
		case RUNNER_BUSY:
			/* not until it is too late */
			if (worker.now >= (job->claimed_at + job->timeout_at) / 2)
				release(job);
			look_again_at = worker.now + LOOK_AGAIN;
			break;
		case RUNNER_FAILED:
			job_fail(job, true, NULL, NULL,
					 "could not make the environment %s: %s",
					 runner->environment, reason);
	}
}

static void
start_program(Job *job, Runner *runner, char *const *arguments)
{
	ProgramError why;
	char **environment = runner_environment(runner, job->preparing != NULL,
											job->variables, job->nvariables);
	ProgramStart start = {.arguments = arguments,
						  .environment = environment,
						  .folder = runner->folder,
						  .input = job->input,
						  .input_length = strlen(job->input),
						  .most_output = worker.most_output,
						  .line = line_take,
						  .owner = job};

	job->program = program_start(&start, &why);
	free(environment);
	if (job->program)
	{
		job->state = JOB_RUNNING;
		if (start_pause > 0)
			out_warn("programs can be run again");
		start_pause = 0;
	}
	else if (why.lacking)
		give_back(arguments[0], why.reason);
	else
		job_fail(
			job, true, NULL,
			"Is it executable, and is the interpreter that its first line names there?",
			"could not run %s: %s", arguments[0], why.reason);
	if (job->program && worker.verbose)
		job_say(job, job->preparing ? "preparing" : "started", NULL);
}

/*
 * No task is to blame: all that have not begun go back, where others may do
 * better, and it is a while until the next claim.
 */
static void
give_back(const char *program, const char *reason)
{
	if (start_pause == 0)
		out_warn("could not run %s: %s; tasks are given back until it can",
				 program, reason);
	claim_at = worker.now + link_pause(&start_pause);
	release_ready();
}

static void
collect_programs(void)
{
	Program *program;

	while ((program = program_ended()) != NULL)
	{
		Job *job = program_owner(program);

		worker.pace =
			0.95 * worker.pace + 0.05 * Min(worker.now - last_end, 1);
		last_end = worker.now;
		job->program = NULL;
		if (job->preparing)
			prepared(job, program_status(program));
		else
			program_through(job, program);
		program_free(program);
	}
}

/*
 * What its program needs is there now, or cannot be made.
 */
static void
prepared(Job *job, int status)
{
	runner_prepared(job->preparing);
	job->preparing = NULL;
	if (job->unwanted || job->stopping)
		end_job(job, REPORT_RELEASE);
	else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
	{
		job->state = JOB_READY;
		job->claimed_at = worker.now;
		resetPQExpBuffer(&job->tail);
	}
	else
		job_fail(job, true, NULL, job->tail.data,
				 "what the program needs could not be installed");
}

static void
program_through(Job *job, const Program *program)
{
	int status = program_status(program);
	const char *said = job->tail.len > 0 ? job->tail.data : NULL;
	char detail[64];

	snprintf(detail, sizeof(detail), "exit code %d", WEXITSTATUS(status));
	if (job->unwanted)
		end_job(job, REPORT_RELEASE);
	else if (program_output(program) == NULL)
		job_fail(job, false, "54000", NULL,
				 "the program wrote more than %zu bytes; it was killed",
				 worker.most_output);
	else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
	{
		if (check_output(job, program))
			end_job(job, REPORT_COMPLETE);
	}
	else if (job->stopping)
		release(job);
	else if (WIFEXITED(status))
		job_fail(job, WEXITSTATUS(status) != EXIT_FOR_GOOD, NULL,
				 said ? detail : NULL, "%s", said ? said : detail);
	else
		job_fail(job, true, NULL, said,
				 "the program was ended by signal %d (%s)", WTERMSIG(status),
				 strsignal(WTERMSIG(status)));
}

/*
 * What the server would not even understand; JSON it reads itself.
 */
static bool
check_output(Job *job, const Program *program)
{
	const PQExpBufferData *output = program_output(program);

	if (PQExpBufferBroken(output))
		job_fail(job, true, "53200", NULL, "out of memory");
	else if (memchr(output->data, '\0', output->len))
		job_fail(job, false, "22P05", NULL,
				 "the output of the program has a byte 0");
	else if (!text_is_utf8(output->data, output->len))
		job_fail(job, false, "22021", NULL,
				 "the output of the program is not UTF-8");
	else
	{
		if (strspn(output->data, " \t\r\n") < output->len)
			job->output = pg_strdup(output->data);
		return true;
	}
	return false;
}

/*
 * Programs that do not go, and tasks that wait for a place for too long.
 */
static void
enforce_times(void)
{
	bool full = count_jobs(JOB_RUNNING) >= concurrency;
	Job *next;

	for (Job *job = worker.jobs; job; job = next)
	{
		next = job->next;
		if (job->program)
			program_enforce(job->program, worker.now);
		if (job->state == JOB_READY && full &&
			worker.now >= job->claimed_at + READY_SECONDS)
			release(job);
	}
}

/* ---------------------------------------------------------------- stopping */

static void
obey_interrupts(void)
{
	int stops = term_count_interrupts();

	if (stops == stops_seen)
		return;
	stops_seen = stops;
	stop_began = worker.now;
	release_ready();
	for (Job *job = worker.jobs; job; job = job->next)
		if (job->unwanted && job->preparing)
			program_end(job->program, worker.grace);
	if (stops > 1)
		stop_programs();
	else
		out_warn("stopping: %d programs may end", count_jobs(JOB_RUNNING));
}

static void
stop_programs(void)
{
	out_warn("stopping: %d programs are ended", count_jobs(JOB_RUNNING));
	for (Job *job = worker.jobs; job; job = job->next)
	{
		if (job->program == NULL || job->unwanted)
			continue;
		job->stopping = true;
		program_end(job->program, worker.grace);
	}
}

/*
 * Told to stop, or nothing left, and all is reported; or it cannot be.
 */
static bool
through(void)
{
	bool away = reports.state == LINK_DOWN || reports.state == LINK_CONNECTING;

	if (stops_seen == 0 && !(until_empty && found_nothing))
		return false;
	if (worker.jobs == NULL)
		return stops_seen == 0 || asked == 0;
	return away && stops_seen > 0 && count_jobs(JOB_ENDED) == worker.njobs &&
		   worker.now >= stop_began + (stops_seen > 1 ? worker.grace
													  : UNREPORTED_SECONDS);
}

/* ---------------------------------------------------------------- claiming */

static int
wanted(void)
{
	int have = count_jobs(JOB_READY) + count_jobs(JOB_RUNNING);
	int ahead = (int) Min(AHEAD_SECONDS / worker.pace, MOST_AHEAD);

	if (have > concurrency + ahead / 2 || have >= concurrency + ahead)
		return 0;
	return Min(concurrency + ahead - have, MOST_CLAIMED);
}

static void
claim(void)
{
	static const char sql[] =
		"SELECT c.task_id, c.token, c.definition, c.handler, c.input,"
		" extract(epoch FROM c.lease_until - v.now), extract(epoch FROM c.timeout_at - v.now), extract(epoch FROM nullif(c.deadline, 'infinity') - v.now),"
		" c.task_id AS \"TASK_ID\", c.definition AS \"DEFINITION\", c.attempt AS \"ATTEMPT\", c.max_attempts AS \"MAX_ATTEMPTS\","
		" c.idempotency_key AS \"IDEMPOTENCY_KEY\", c.queue AS \"QUEUE\", c.owner AS \"OWNER\", c.name AS \"NAME\", c.key AS \"KEY\","
		" c.parent_id AS \"PARENT_ID\", c.root_id AS \"ROOT_ID\", c.deadline AS \"DEADLINE\", c.timeout_at AS \"TIMEOUT_AT\","
		" c.traceparent AS \"TRACEPARENT\", $2 AS \"WORKER\""
		" FROM orchestrator.claim($1::pg_catalog.text[], $2::pg_catalog.text, $3::pg_catalog.int4, $4::pg_catalog.interval, $5::pg_catalog.text[]) c,"
		" pg_catalog.clock_timestamp() v(now)";
	static bool warned = false;
	char number[16];
	const char *values[] = {worker.queues, worker.name, number, worker.lease,
							given_definitions};
	int n = wanted();

	if (until_empty && worker.jobs == NULL)
		may_claim = true;
	if (!may_claim || n == 0 || stops_seen > 0 || worker.now < claim_at)
		return;
	asked = n;
	snprintf(number, sizeof(number), "%d", n);
	if (given_definitions == NULL && (values[4] = runner_names()) == NULL)
	{
		if (!warned)
			out_warn(
				"there are no tasks in the folder yet: nothing is claimed");
		warned = true;
		claim_at = worker.now + CLAIM_AGAIN;
		found_nothing = worker.jobs == NULL;
		asked = 0;
		return;
	}
	link_send(&reports, sql, lengthof(values), values, ANSWER_SECONDS,
			  claim_came);
}

static void
claim_came(const PGresult *result)
{
	int count = result ? PQntuples(result) : 0;
	int before = asked;

	asked = 0;
	if (result == NULL)
		return;
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		out_result_error(result);
		if (!claimed_once && !report_may_pass(result))
			cli_exit(CLI_FAILED);
		claim_at = worker.now + CLAIM_AGAIN;
		return;
	}
	claimed_once = true;
	worker.now = term_now();
	for (int row = 0; row < count; row++)
		take_job(result, row);
	may_claim = count == before;
	found_nothing = count == 0 && worker.jobs == NULL;
	if (count > 0)
		foreign_pause = 0;
	else if (foreign_pause > 0)
		await_at = worker.now + foreign_pause;
	/* told to stop meanwhile */
	if (stops_seen > 0)
		release_ready();
}

static void
take_job(const PGresult *result, int row)
{
	Job *job = job_new();
	double left = db_number(result, row, 5, 60);

	job->task = pg_strdup(PQgetvalue(result, row, 0));
	job->token = pg_strdup(PQgetvalue(result, row, 1));
	job->definition = pg_strdup(PQgetvalue(result, row, 2));
	job->handler = pg_strdup(PQgetvalue(result, row, 3));
	job->input = pg_strdup(
		PQgetisnull(result, row, 4) ? "null" : PQgetvalue(result, row, 4));
	job->claimed_at = worker.now;
	job->beat_every = Max(Min(left / 3, worker.most_beat), 0.05);
	job->beat_at = worker.now + job->beat_every;
	job->timeout_at = worker.now + db_number(result, row, 6, INFINITY);
	job->deadline_at = worker.now + db_number(result, row, 7, INFINITY);
	take_variables(job, result, row);
}

/*
 * Those of its columns that have names in capitals.
 */
static void
take_variables(Job *job, const PGresult *result, int row)
{
	PQExpBufferData all;

	initPQExpBuffer(&all);
	for (int i = 0; i < PQnfields(result); i++)
	{
		const char *name = PQfname(result, i);

		if (PQgetisnull(result, row, i) || name[0] < 'A' || name[0] > 'Z')
			continue;
		appendPQExpBuffer(&all, "ORCHESTRATOR_%s=%s", name,
						  PQgetvalue(result, row, i));
		appendBinaryPQExpBuffer(&all, "", 1);
		job->nvariables++;
	}
	job->variables = all.data;
}

static void
await(void)
{
	static const char sql[] =
		"CALL orchestrator.await_work($1::pg_catalog.text[], $2::pg_catalog.interval)";
	char *seconds;
	const char *values[2] = {worker.queues};

	if (may_claim || stops_seen > 0 || until_empty || worker.now < await_at)
		return;
	seconds = psprintf("%d s", AWAIT_SECONDS);
	values[1] = seconds;
	link_send(&sleeper, sql, lengthof(values), values,
			  AWAIT_SECONDS + ANSWER_SECONDS, await_came);
	free(seconds);
}

/*
 * If what is there is not for us, it will still be there: it is looked at less
 * and less often.
 */
static void
await_came(const PGresult *result)
{
	if (result == NULL)
		may_claim = true;
	else if (PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		out_result_error(result);
		await_at = worker.now + CLAIM_AGAIN;
	}
	else if (db_true(result, 0, 0))
	{
		may_claim = true;
		foreign_pause = foreign_pause == 0
							? LEAST_FOREIGN
							: Min(foreign_pause * 2, MOST_FOREIGN);
	}
}

/* ----------------------------------------------------------------- waiting */

static double
next_due(void)
{
	bool full = count_jobs(JOB_RUNNING) >= concurrency;
	double due =
		Min(Min(link_due(&reports), link_due(&sleeper)), look_again_at);

	if (reports.state == LINK_IDLE)
	{
		due = Min(due, report_due());
		if (may_claim && stops_seen == 0 && wanted() > 0)
			due = Min(due, claim_at);
	}
	if (sleeper.state == LINK_IDLE && !may_claim && !until_empty)
		due = Min(due, await_at);
	for (const Job *job = worker.jobs; job; job = job->next)
	{
		if (job->program)
			due = Min(due, program_due(job->program));
		if (job->state == JOB_READY && full)
			due = Min(due, job->claimed_at + READY_SECONDS);
	}
	if (stops_seen > 0)
		due = Min(due, worker.now + 1);
	return due;
}

static void
wait_for_anything(void)
{
	static struct pollfd *all = NULL;
	Link *links[] = {&reports, &sleeper};
	bool polled[lengthof(links)];
	double due = next_due();
	int count = 0;
	int npolled;

	if (all == NULL)
		all = pg_malloc((lengthof(links) + concurrency * PROGRAM_PIPES) *
						sizeof(struct pollfd));
	for (int i = 0; i < lengthof(links); i++)
	{
		polled[i] = link_descriptor(links[i], &all[count]);
		count += polled[i];
	}
	npolled = count;
	for (const Job *job = worker.jobs; job; job = job->next)
		if (job->program)
			count += program_descriptors(job->program, &all[count]);

	term_poll(all, count, isinf(due) ? -1 : Max(due - term_now(), 0));
	worker.now = term_now();
	serve_programs(all + npolled);
	for (int i = 0, at = 0; i < lengthof(links); i++)
	{
		bool ready = polled[i] && all[at].revents != 0;

		at += polled[i];
		link_serve(links[i], ready);
	}
}

/*
 * In the order in which they were asked for their descriptors.
 */
static void
serve_programs(const struct pollfd *descriptors)
{
	struct pollfd mine[PROGRAM_PIPES];
	int count;

	for (const Job *job = worker.jobs; job; job = job->next)
	{
		if (job->program == NULL)
			continue;
		count = program_descriptors(job->program, mine);
		program_serve(job->program, descriptors, count);
		descriptors += count;
	}
}
