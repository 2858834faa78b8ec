/*
 * waiter.c
 *	  Sessions of remote workers that sleep until there may be work.
 *
 * A session registers, then looks; whoever makes a task ready commits, then
 * looks who is registered.  So one of the two always sees the other.  All that
 * wait for a queue are woken: which of them gets the task is decided by the
 * locks of their claims.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"

#include "compat.h"
#include "shmem.h"
#include "waiter.h"

#define BLOCK_NAME	"orchestrator work"
#define MAX_WAITERS 1024

/* Who waits for more queues is woken for any. */
#define MAX_QUEUES 16

typedef struct Waiter
{
	pg_atomic_uint32 used;
	pg_atomic_uint32 told;
	Oid dboid;
	int procno;
	int nqueues; /* 0: any */
	int32 queues[MAX_QUEUES];
} Waiter;

typedef struct Waiters
{
	pg_atomic_uint32 n;
	Waiter waiters[MAX_WAITERS];
} Waiters;

static Waiters *shared = NULL;
static Waiter *mine = NULL;

static void start_block(void *memory, LWLock *lock, bool anew);
static Waiter *take_slot(void);
static void exit_waiter(int code, Datum arg);
static bool waits_for(const Waiter *waiter, Oid dboid, int32 queue);

void
orch_waiter_install(void)
{
	orch_shmem_add_block(BLOCK_NAME, sizeof(Waiters), start_block);
}

static void
start_block(void *memory, LWLock *lock, bool anew)
{
	shared = memory;
	if (!anew)
		return;
	pg_atomic_init_u32(&shared->n, 0);
	for (int i = 0; i < MAX_WAITERS; i++)
	{
		pg_atomic_init_u32(&shared->waiters[i].used, 0);
		pg_atomic_init_u32(&shared->waiters[i].told, 0);
	}
}

static Waiter *
take_slot(void)
{
	for (int i = 0; i < MAX_WAITERS; i++)
	{
		uint32 used = 0;

		if (pg_atomic_compare_exchange_u32(&shared->waiters[i].used, &used, 1))
			return &shared->waiters[i];
	}
	return NULL;
}

/*
 * The counter's addition is a full barrier: it stands before the look, as the
 * one in orch_waiter_wake() stands behind the commit.
 */
bool
orch_waiter_register(const int32 *queues, int n)
{
	static bool installed = false;

	if (shared == NULL)
		return false;
	if (!installed)
	{
		before_shmem_exit(exit_waiter, (Datum) 0);
		installed = true;
	}
	if (mine != NULL)
		elog(ERROR, "this session waits for work already");
	mine = take_slot();
	if (mine == NULL)
		return false;
	mine->dboid = MyDatabaseId;
	mine->procno = orch_my_procno();
	mine->nqueues = n <= MAX_QUEUES ? n : 0;
	for (int i = 0; i < mine->nqueues; i++)
		mine->queues[i] = queues[i];
	pg_atomic_write_u32(&mine->told, 0);
	pg_atomic_fetch_add_u32(&shared->n, 1);
	return true;
}

void
orch_waiter_deregister(void)
{
	if (mine == NULL)
		return;
	mine->dboid = InvalidOid;
	pg_atomic_fetch_sub_u32(&shared->n, 1);
	pg_atomic_write_u32(&mine->used, 0);
	mine = NULL;
}

/*
 * A session that is terminated passes no PG_FINALLY.
 */
static void
exit_waiter(int code, Datum arg)
{
	orch_waiter_deregister();
}

bool
orch_waiter_told(void)
{
	return mine != NULL && pg_atomic_exchange_u32(&mine->told, 0) != 0;
}

/*
 * A slot that changes hands meanwhile wakes somebody for nothing, at worst.
 */
void
orch_waiter_wake(Oid dboid, int32 queue)
{
	if (shared == NULL)
		return;
	pg_memory_barrier();
	if (pg_atomic_read_u32(&shared->n) == 0)
		return;
	for (int i = 0; i < MAX_WAITERS; i++)
	{
		Waiter *waiter = &shared->waiters[i];

		if (!waits_for(waiter, dboid, queue))
			continue;
		pg_atomic_write_u32(&waiter->told, 1);
		orch_shmem_set_latch(waiter->procno);
	}
}

static bool
waits_for(const Waiter *waiter, Oid dboid, int32 queue)
{
	if (waiter->dboid != dboid)
		return false;
	for (int i = 0; i < waiter->nqueues; i++)
	{
		if (waiter->queues[i] == queue)
			return true;
	}
	return waiter->nqueues == 0;
}
