/*
 * guc.c
 *	  Settings of orchestrator: names, units, bounds, descriptions.
 *
 * In the order of their names.  A setting that sizes shared memory is
 * PGC_POSTMASTER and is defined only while the server preloads the library:
 * defined later, it would be a fatal error.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "guc.h"
#include "url.h"

int orch_adaptive_failures = 10;
int orch_adaptive_free_connections = 5;
int orch_adaptive_lock_waits = 25;
int orch_adaptive_replication_lag = 64;
int orch_batch_size = 200;
int orch_batch_time = 10;
int orch_courier_hang_timeout = 5;
int orch_courier_idle_timeout = 600;
int orch_courier_max_in_flight = 256;
int orch_courier_memory = 1024;
int orch_executor_idle_timeout = 600;
int orch_executor_max_tasks = 1000000;
int orch_executors_per_role = 2;
int orch_fast_lane_limit = 5;
int orch_max_executors = 4;
int orch_max_input_size = 1024;
int orch_node_id = 0;
int orch_priority_step = 60;
int orch_retention = 7 * 24 * 60;
int orch_retention_failed = 30 * 24 * 60;
int orch_stream_memory = 8 * 1024;
int orch_test_clock_offset = 0;
char *orch_http_allow = NULL;
char *orch_secrets_directory = NULL;
bool orch_enabled = true;
bool orch_fast_lane = true;
bool orch_statistics = true;
bool orch_superuser_tasks = true;
bool orch_trace_notices = false;
bool orch_track_resources = false;

bool orch_preloaded = false;

static void define_adaptive_settings(void);
static void define_batch_settings(void);
static void define_courier_settings(void);
static void define_executor_settings(void);
static void define_task_settings(void);
static bool check_http_allow(char **value, void **extra, GucSource source);

void
orch_guc_define(void)
{
	define_adaptive_settings();
	define_batch_settings();
	define_courier_settings();
	define_executor_settings();
	define_task_settings();
	MarkGUCPrefixReserved("orchestrator");
}

/*
 * What shrinks the limit of adaptive queues.
 */
static void
define_adaptive_settings(void)
{
	DefineCustomIntVariable(
		"orchestrator.adaptive_failures",
		"Percentage of failed steps that shrinks the limit of an adaptive queue.",
		NULL, &orch_adaptive_failures, 10, 1, 100, PGC_SIGHUP, 0, NULL, NULL,
		NULL);
	DefineCustomIntVariable(
		"orchestrator.adaptive_free_connections",
		"Free connections below which the limits of adaptive queues shrink.",
		"0 turns it off.", &orch_adaptive_free_connections, 5, 0, 10000,
		PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.adaptive_lock_waits",
		"Percentage of active sessions of the database that wait for a lock, from which on the limits of adaptive queues shrink.",
		"0 turns it off.", &orch_adaptive_lock_waits, 25, 0, 100, PGC_SIGHUP,
		0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.adaptive_replication_lag",
		"WAL that a connected standby may be behind before the limits of adaptive queues shrink.",
		"0 turns it off.", &orch_adaptive_replication_lag, 64, 0, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
}

/*
 * How much an executor takes at once.
 */
static void
define_batch_settings(void)
{
	DefineCustomIntVariable(
		"orchestrator.batch_size",
		"Most tasks that an executor claims at once.",
		"Fewer are claimed of definitions whose steps take long.",
		&orch_batch_size, 200, 1, 200, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.batch_time",
		"Time after which the steps of a transaction are committed.", NULL,
		&orch_batch_time, 10, 0, 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL,
		NULL);
	DefineCustomBoolVariable(
		"orchestrator.fast_lane",
		"Runs short steps in one transaction with their claim.", NULL,
		&orch_fast_lane, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.fast_lane_limit",
		"Mean run time up to which a definition takes the fast lane.", NULL,
		&orch_fast_lane_limit, 5, 0, 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL,
		NULL);
}

/*
 * Outside calls: how many, and where they may go.
 */
static void
define_courier_settings(void)
{
	DefineCustomIntVariable(
		"orchestrator.courier_hang_timeout",
		"Time after which a program that makes outside calls and says nothing is replaced.",
		NULL, &orch_courier_hang_timeout, 5, 1, 3600, PGC_SIGHUP, GUC_UNIT_S,
		NULL, NULL, NULL);
	DefineCustomIntVariable("orchestrator.courier_idle_timeout",
							"Time after which an idle courier leaves.", NULL,
							&orch_courier_idle_timeout, 600, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.courier_max_in_flight",
		"Most outside calls of a role that are under way at once in a database.",
		"All roles together may have an eighth more.",
		&orch_courier_max_in_flight, 256, 1, 4096, PGC_SIGHUP, 0, NULL, NULL,
		NULL);
	DefineCustomIntVariable(
		"orchestrator.courier_memory",
		"Most memory that the program which makes outside calls may have.",
		"The paths of a call may take as much.", &orch_courier_memory, 1024,
		128, 1024 * 1024, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomStringVariable(
		"orchestrator.http_allow",
		"Where outside calls may go, of what the endpoints say.",
		"A list of scheme://host or scheme://host:port; *. at the beginning of a host stands for any names. Empty: anywhere.",
		&orch_http_allow, "", PGC_SIGHUP, 0, check_http_allow, NULL, NULL);
	DefineCustomStringVariable(
		"orchestrator.secrets_directory",
		"Folder with the secrets that endpoints name.",
		"Files of the server's own user, with mode 0600.",
		&orch_secrets_directory, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL,
		NULL, NULL);
	if (process_shared_preload_libraries_in_progress)
		DefineCustomIntVariable(
			"orchestrator.stream_memory",
			"Shared memory for the text of streamed answers that are under way.",
			"Of what does not fit nothing is seen before its step ends.",
			&orch_stream_memory, 8 * 1024, 64, 1024 * 1024, PGC_POSTMASTER,
			GUC_UNIT_KB, NULL, NULL, NULL);
}

static bool
check_http_allow(char **value, void **extra, GucSource source)
{
	if (orch_url_is_list(*value))
		return true;
	GUC_check_errdetail("It is no list of scheme://host.");
	GUC_check_errhint(
		"Write it like https://api.example.com, https://*.example.org, http://10.0.0.7:8080.");
	return false;
}

/*
 * Workers: whether, how many, how long.
 */
static void
define_executor_settings(void)
{
	DefineCustomBoolVariable(
		"orchestrator.enabled", "Runs tasks in this server.",
		"When off, tasks can be enqueued and wait.", &orch_enabled, true,
		PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("orchestrator.executor_idle_timeout",
							"Time after which an idle executor leaves.", NULL,
							&orch_executor_idle_timeout, 600, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.executor_max_tasks",
		"Tasks after which an executor's session is replaced.", NULL,
		&orch_executor_max_tasks, 1000000, 1, INT_MAX, PGC_SIGHUP, 0, NULL,
		NULL, NULL);
	DefineCustomIntVariable("orchestrator.executors_per_role",
							"Most executors of one role in one database.",
							NULL, &orch_executors_per_role, 2, 1, 64,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	if (process_shared_preload_libraries_in_progress)
	{
		DefineCustomIntVariable(
			"orchestrator.max_executors", "Most executors in the server.",
			"Each takes one of max_worker_processes, as do the launcher and one supervisor for each database.",
			&orch_max_executors, 4, 1, 256, PGC_POSTMASTER, 0, NULL, NULL,
			NULL);
		DefineCustomBoolVariable("orchestrator.superuser_tasks",
								 "Allows tasks that run as a superuser.", NULL,
								 &orch_superuser_tasks, true, PGC_POSTMASTER,
								 0, NULL, NULL, NULL);
	}
}

/*
 * Tasks: bounds, order, what is recorded.
 */
static void
define_task_settings(void)
{
	DefineCustomIntVariable(
		"orchestrator.max_input_size",
		"Largest input of a task, and largest output of a step.", NULL,
		&orch_max_input_size, 1024, 1, 1024 * 1024, PGC_SUSET, GUC_UNIT_KB,
		NULL, NULL, NULL);
	DefineCustomIntVariable("orchestrator.node_id",
							"Number of this server in the ids of its tasks.",
							"Bits 42 to 52 of an id; 0 on a single server.",
							&orch_node_id, 0, 0, 2047, PGC_SIGHUP, 0, NULL,
							NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.priority_step",
		"Waiting time that weighs as much as one step of priority.", NULL,
		&orch_priority_step, 60, 1, 86400, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL,
		NULL);
	DefineCustomBoolVariable(
		"orchestrator.statistics",
		"Counts tasks and their times for queue_stats and definition_stats.",
		NULL, &orch_statistics, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.retention",
		"Time that finished tasks are kept, unless their queue says.",
		"-1 keeps them for ever.", &orch_retention, 7 * 24 * 60, -1, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.retention_failed",
		"Time that failed tasks are kept, unless their queue says.",
		"-1 keeps them for ever.", &orch_retention_failed, 30 * 24 * 60, -1,
		INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"orchestrator.test_clock_offset", "Added to the clock, for tests.",
		NULL, &orch_test_clock_offset, 0, INT_MIN, INT_MAX, PGC_SUSET,
		GUC_UNIT_S | GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	DefineCustomBoolVariable(
		"orchestrator.trace_notices",
		"Writes the notices that a step raises to the trace.", NULL,
		&orch_trace_notices, false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable(
		"orchestrator.track_resources",
		"Measures rows, buffers, WAL and CPU time of each step.", NULL,
		&orch_track_resources, false, PGC_USERSET, 0, NULL, NULL, NULL);
}
