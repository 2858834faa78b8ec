/*
 * carry.h
 *	  Claims and completions of calls, for the courier.
 */
#ifndef ORCHESTRATOR_CARRY_H
#define ORCHESTRATOR_CARRY_H

/* Claim from the beginning of a lane again: a call became ready, or a claim
 * was rolled back. */
extern void orch_carry_forget(void);

#endif
