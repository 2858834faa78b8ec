/*
 * orchestrator.c
 *	  The door: what the server calls when it loads the library.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "catalog.h"
#include "database.h"
#include "depth.h"
#include "endpoint.h"
#include "event.h"
#include "guc.h"
#include "launcher.h"
#include "note.h"
#include "position.h"
#include "remote.h"
#include "retention.h"
#include "shmem.h"
#include "stats.h"
#include "stream.h"
#include "waiter.h"

#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(.name = "orchestrator", .version = ORCHESTRATOR_VERSION);
#else
PG_MODULE_MAGIC;
#endif

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	orch_guc_define();
	orch_endpoint_install();
	orch_catalog_install();
	orch_event_install();
	orch_retention_install();
	orch_remote_install();

	if (!process_shared_preload_libraries_in_progress)
		return;
	orch_preloaded = true;
	orch_shmem_install(orch_note_load);
	orch_depth_install();
	orch_stats_install();
	orch_position_install();
	orch_waiter_install();
	orch_stream_install();
	orch_database_install();
	orch_launcher_register();
}
