/*
 * place.h
 *	  Places of requests under way: who has them, and who may have more.
 *
 * Each request that the courier has not settled takes one, of the role whose
 * calls it is made for.
 */
#ifndef ORCHESTRATOR_PLACE_H
#define ORCHESTRATOR_PLACE_H

/* A role that has or had places. */
typedef struct OrchHolder
{
	int32 owner;
	int places;
	int leaving; /* of them */
	struct OrchHolder *next;
} OrchHolder;

/* That of a role, which stays. */
extern OrchHolder *orch_place_holder(int32 owner);

extern void orch_place_take(OrchHolder *holder);
extern void orch_place_give_back(OrchHolder *holder);

/*
 * A place is about to be given back, and is free for who claims until then; and
 * all that were have been, or are not.
 */
extern void orch_place_leave(OrchHolder *holder);
extern void orch_place_stay(void);

/* How many a role has, and whether it may have another. */
extern int orch_place_count(const OrchHolder *holder);
extern bool orch_place_may_take(const OrchHolder *holder);

/* How many are free for anybody. */
extern int orch_place_free(void);

#endif
