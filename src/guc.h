/*
 * guc.h
 *	  Settings of orchestrator (orchestrator.*).
 */
#ifndef ORCHESTRATOR_GUC_H
#define ORCHESTRATOR_GUC_H

extern int orch_adaptive_failures;
extern int orch_adaptive_free_connections;
extern int orch_adaptive_lock_waits;
extern int orch_adaptive_replication_lag;
extern int orch_batch_size;
extern int orch_batch_time;
extern int orch_courier_hang_timeout;
extern int orch_courier_idle_timeout;
extern int orch_courier_max_in_flight;
extern int orch_courier_memory;
extern int orch_executor_idle_timeout;
extern int orch_executor_max_tasks;
extern int orch_executors_per_role;
extern int orch_fast_lane_limit;
extern int orch_max_executors;
extern int orch_max_input_size;
extern int orch_node_id;
extern int orch_priority_step;
extern int orch_retention;
extern int orch_retention_failed;
extern int orch_stream_memory;
extern int orch_test_clock_offset;
extern char *orch_http_allow;
extern char *orch_secrets_directory;
extern bool orch_enabled;
extern bool orch_fast_lane;
extern bool orch_statistics;
extern bool orch_superuser_tasks;
extern bool orch_trace_notices;
extern bool orch_track_resources;

/*
 * Whether the library was loaded by shared_preload_libraries: shared memory
 * and workers exist only then.
 */
extern bool orch_preloaded;

/* Define the settings.  Called once, by _PG_init. */
extern void orch_guc_define(void);

#endif
