/*
 * duty.h
 *	  What the supervisor and the courier do in transactions of their own.
 *
 * An error in one is logged, and ends neither of them.
 */
#ifndef ORCHESTRATOR_DUTY_H
#define ORCHESTRATOR_DUTY_H

typedef void (*OrchDuty)(void);

/* At the beginning of the process; with the context that is current between
 * duties. */
extern void orch_duty_install(MemoryContext between);

/* False: it failed, and nothing happened. */
extern bool orch_duty_perform(OrchDuty duty);

/* Calls of one role are made from here on: their paths, from _begin_paths() to
 * _end_paths(), may take so long together (_paths_are_late). */
extern void orch_duty_begin_paths(void);

#endif
