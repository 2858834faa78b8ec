/*
 * carry.h
 *	  Claims and completions of calls, for the courier.
 */
#ifndef ORCHESTRATOR_CARRY_H
#define ORCHESTRATOR_CARRY_H

/* Claim from the beginning of a lane again: a call became ready, or a claim
 * was rolled back. */
extern void orch_carry_forget(void);

/*
 * What the claims since orch_carry_begin() left is told by orch_carry_left(): the
 * milliseconds until calls that wait for others have waited long enough; -1:
 * there are none, or there is something else that was not claimed.
 */
extern void orch_carry_begin(void);
extern int64 orch_carry_left(void);

/* Of a claim that failed: the task whose path took so long that it did; 0:
 * there is none. */
extern int64 orch_carry_stuck(void);

#endif
