/*
 * supervisor.h
 *	  The supervisor: one per database that has the extension.
 */
#ifndef ORCHESTRATOR_SUPERVISOR_H
#define ORCHESTRATOR_SUPERVISOR_H

extern PGDLLEXPORT void orchestrator_supervisor_main(Datum main_arg);

#endif
