/*
 * place.c
 *	  Places of requests under way: who has them, and who may have more.
 *
 * A role may have all of orchestrator.courier_max_in_flight while nobody else
 * has any.  A few more are kept for roles that have few, so that requests of
 * others which hang do not keep a role from making its first: of what is left
 * of these nobody takes more than a quarter.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "guc.h"
#include "place.h"

static OrchHolder *holders = NULL;
static int ntaken = 0; /* but for those that are leaving */

static int kept(void);

OrchHolder *
orch_place_holder(int32 owner)
{
	OrchHolder *holder = holders;

	while (holder != NULL && holder->owner != owner)
		holder = holder->next;
	if (holder != NULL)
		return holder;
	holder = MemoryContextAllocZero(TopMemoryContext, sizeof(OrchHolder));
	holder->owner = owner;
	holder->next = holders;
	return holders = holder;
}

void
orch_place_take(OrchHolder *holder)
{
	holder->places++;
	ntaken++;
}

void
orch_place_give_back(OrchHolder *holder)
{
	holder->places--;
	ntaken--;
}

void
orch_place_leave(OrchHolder *holder)
{
	holder->leaving++;
	ntaken--;
}

void
orch_place_stay(void)
{
	for (OrchHolder *holder = holders; holder != NULL; holder = holder->next)
	{
		ntaken += holder->leaving;
		holder->leaving = 0;
	}
}

int
orch_place_count(const OrchHolder *holder)
{
	return holder->places - holder->leaving;
}

/*
 * Places that are kept for roles that have few.
 */
static int
kept(void)
{
	return (orch_courier_max_in_flight + 7) / 8;
}

int
orch_place_free(void)
{
	return orch_courier_max_in_flight + kept() - ntaken;
}

bool
orch_place_may_take(const OrchHolder *holder)
{
	int left = orch_place_free();

	return left > kept() || orch_place_count(holder) < (left + 3) / 4;
}
