/*
 * launcher.h
 *	  The launcher: one per server; keeps a supervisor in every database that
 *	  has the extension.
 */
#ifndef ORCHESTRATOR_LAUNCHER_H
#define ORCHESTRATOR_LAUNCHER_H

/* Register it.  Called once, by _PG_init, while preloading. */
extern void orch_launcher_register(void);

extern PGDLLEXPORT void orchestrator_launcher_main(Datum main_arg);

#endif
