/*
 * notify.c
 *	  Events to LISTEN clients: who listens, and telling them.
 *
 * The last station: executors and sessions fill the ring after their commits
 * (event.c), the supervisor empties it here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "event.h"
#include "guc.h"
#include "notify.h"
#include "shmem.h"
#include "stream.h"

#define CHANNEL		   "orchestrator"
#define CHANNEL_PREFIX "orchestrator_task_"

/* Events to a transaction, and to a turn of the ring's spinlock. */
#define DRAIN_MOST	500
#define DRAIN_CHUNK 50

/* From here on NOTIFY would soon fail for everybody in the server. */
#define QUEUE_FULL 0.5

/*
 * A channel of ours that this session listens to.
 */
typedef struct Channel
{
	int64 root;	  /* 0: channel orchestrator */
	bool named;	  /* has an entry in orch_shared->listeners */
	bool dropped; /* UNLISTEN, not committed yet */
} Channel;

/*
 * Who listens in this database.
 */
typedef struct Audience
{
	bool everything; /* more than we can name */
	bool lifecycle;	 /* somebody listens to channel orchestrator */
	int nroots;
	int64 roots[ORCH_MAX_LISTENERS];
} Audience;

static Channel *channels = NULL;
static int nchannels = 0;
static int channels_room = 0;
static bool any_dropped = false;

static bool parse_channel(const char *name, int64 *root);
static Channel *find_channel(int64 root);
static void install_callbacks(void);
static bool record_channel(Channel *channel);
static void release_channels(bool all);
static void remove_listener(int64 root);
static void check_listeners_full(void);
static void end_transaction(XactEvent what, void *arg);
static void end_subtransaction(SubXactEvent what, SubTransactionId mine,
							   SubTransactionId parent, void *arg);
static void keep_dropped(void);
static void exit_session(int code, Datum arg);
static OrchDatabase *find_database(void);
static int take_events(OrchDatabase *database, OrchEvent *events, bool *lost);
static void find_audience(Audience *audience);
static bool hears_root(const Audience *audience, int64 root);
static bool tell_events(const OrchEvent *events, int count, bool lost);
static bool queue_has_room(void);
static bool notify_events(const OrchEvent *events, int count, bool lost);
static void notify_event(const Audience *audience, const OrchEvent *event);
static void notify_resync(const Audience *audience);
static void notify_root(int64 root, const char *payload);
static bool take_progress(OrchExecutor *executor, OrchEvent *event);

/*
 * Only spellings that events are sent to: no sign, no leading zero.
 */
static bool
parse_channel(const char *name, int64 *root)
{
	const char *digits = name + strlen(CHANNEL_PREFIX);
	char *end;

	*root = 0;
	if (strcmp(name, CHANNEL) == 0)
		return true;
	if (strncmp(name, CHANNEL_PREFIX, strlen(CHANNEL_PREFIX)) != 0 ||
		digits[0] < '1' || digits[0] > '9')
		return false;

	errno = 0;
	*root = strtoll(digits, &end, 10);
	return errno == 0 && *end == '\0';
}

static Channel *
find_channel(int64 root)
{
	for (int i = 0; i < nchannels; i++)
		if (channels[i].root == root)
			return &channels[i];
	return NULL;
}

/*
 * Counted from the command on, not from its commit: a LISTEN that is rolled
 * back stays counted until the session ends, which costs a little; one that
 * is counted late would miss events.
 */
void
orch_notify_listen(const char *channel)
{
	Channel *known;
	int64 root;

	if (!orch_preloaded || !parse_channel(channel, &root))
		return;

	known = find_channel(root);
	if (known != NULL)
	{
		known->dropped = false;
		return;
	}

	/* Whatever may fail comes before the change of shared memory. */
	install_callbacks();
	if (channels == NULL)
	{
		channels = MemoryContextAlloc(TopMemoryContext, 4 * sizeof(Channel));
		channels_room = 4;
	}
	else if (nchannels == channels_room)
	{
		channels = repalloc(channels, channels_room * 2 * sizeof(Channel));
		channels_room *= 2;
	}
	channels[nchannels].root = root;
	channels[nchannels].dropped = false;
	if (record_channel(&channels[nchannels]))
		nchannels++;
}

/*
 * Takes effect at commit: before, the session still listens, and a roll-back
 * leaves it so.
 */
void
orch_notify_unlisten(const char *channel)
{
	int64 root = 0;

	if (nchannels == 0 || (channel && !parse_channel(channel, &root)))
		return;

	for (int i = 0; i < nchannels; i++)
		if (channel == NULL || channels[i].root == root)
		{
			channels[i].dropped = true;
			any_dropped = true;
		}
}

static void
install_callbacks(void)
{
	static bool installed = false;

	if (installed)
		return;
	before_shmem_exit(exit_session, (Datum) 0);
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
	installed = true;
}

/*
 * Count a channel of this session.  False: so many databases are in use that
 * ours has no ring, and there is nothing to hear.
 */
static bool
record_channel(Channel *channel)
{
	OrchDatabase *database;

	channel->named = false;
	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(MyDatabaseId, true);
	for (int i = 0; database && i < ORCH_MAX_LISTENERS; i++)
	{
		OrchListener *listener = &orch_shared->listeners[i];

		if (OidIsValid(listener->dboid))
			continue;
		listener->procno = orch_my_procno();
		listener->root = channel->root;
		listener->dboid = MyDatabaseId;
		channel->named = true;
		break;
	}
	if (database != NULL)
	{
		pg_atomic_fetch_add_u32(&database->listeners, 1);
		if (!channel->named)
			orch_shared->listeners_full = true;
	}
	LWLockRelease(orch_shared->lock);
	return database != NULL;
}

/*
 * Forget this session's dropped channels, or all of them.  Runs after commit
 * and at exit: does not fail.
 */
static void
release_channels(bool all)
{
	OrchDatabase *database;
	int kept = 0;

	LWLockAcquire(orch_shared->lock, LW_EXCLUSIVE);
	database = orch_shmem_database(MyDatabaseId, false);
	for (int i = 0; i < nchannels; i++)
	{
		if (!all && !channels[i].dropped)
		{
			channels[kept++] = channels[i];
			continue;
		}
		if (channels[i].named)
			remove_listener(channels[i].root);
		if (database && pg_atomic_read_u32(&database->listeners) > 0)
			pg_atomic_fetch_sub_u32(&database->listeners, 1);
	}
	if (orch_shared->listeners_full)
		check_listeners_full();
	LWLockRelease(orch_shared->lock);
	nchannels = kept;
	any_dropped = false;
}

static void
remove_listener(int64 root)
{
	for (int i = 0; i < ORCH_MAX_LISTENERS; i++)
	{
		OrchListener *listener = &orch_shared->listeners[i];

		if (listener->dboid == MyDatabaseId &&
			listener->procno == orch_my_procno() && listener->root == root)
		{
			listener->dboid = InvalidOid;
			return;
		}
	}
}

/*
 * Every channel that is counted has a name again: be exact again.
 */
static void
check_listeners_full(void)
{
	uint32 named = 0;
	uint32 counted = 0;

	for (int i = 0; i < ORCH_MAX_LISTENERS; i++)
		if (OidIsValid(orch_shared->listeners[i].dboid))
			named++;
	for (int i = 0; i < ORCH_MAX_DATABASES; i++)
		if (OidIsValid(orch_shared->databases[i].dboid))
			counted +=
				pg_atomic_read_u32(&orch_shared->databases[i].listeners);
	if (counted <= named)
		orch_shared->listeners_full = false;
}

static void
end_transaction(XactEvent what, void *arg)
{
	if (!any_dropped)
		return;
	if (what == XACT_EVENT_COMMIT)
		release_channels(false);
	else if (what == XACT_EVENT_ABORT)
		keep_dropped();
}

/*
 * Which of several subtransactions said UNLISTEN is not kept: staying
 * counted is harmless.
 */
static void
end_subtransaction(SubXactEvent what, SubTransactionId mine,
				   SubTransactionId parent, void *arg)
{
	if (any_dropped && what == SUBXACT_EVENT_ABORT_SUB)
		keep_dropped();
}

static void
keep_dropped(void)
{
	for (int i = 0; i < nchannels; i++)
		channels[i].dropped = false;
	any_dropped = false;
}

static void
exit_session(int code, Datum arg)
{
	if (nchannels > 0)
		release_channels(true);
}

static OrchDatabase *
find_database(void)
{
	OrchDatabase *database;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	database = orch_shmem_database(MyDatabaseId, false);
	LWLockRelease(orch_shared->lock);
	return database;
}

int
orch_notify_drain(void)
{
	OrchDatabase *database = find_database();
	OrchEvent *events;
	bool lost;
	int count;

	/* A glance without the lock: who adds to an empty ring wakes us. */
	if (database == NULL ||
		(database->ring_head == database->ring_tail && !database->ring_lost))
		return 0;

	events = palloc(DRAIN_MOST * sizeof(OrchEvent));
	count = take_events(database, events, &lost);
	if (!tell_events(events, count, lost))
	{
		/* The next event to come takes a resync with it. */
		SpinLockAcquire(&database->ring_mutex);
		database->ring_lost = true;
		SpinLockRelease(&database->ring_mutex);
	}
	pfree(events);
	return count;
}

static int
take_events(OrchDatabase *database, OrchEvent *events, bool *lost)
{
	int count = 0;
	bool more = true;

	*lost = false;
	while (more && count < DRAIN_MOST)
	{
		SpinLockAcquire(&database->ring_mutex);
		for (int i = 0; i < DRAIN_CHUNK && count < DRAIN_MOST; i++)
		{
			if (database->ring_head == database->ring_tail)
				break;
			events[count++] =
				database->ring[database->ring_tail++ % ORCH_RING_SIZE];
		}
		more = database->ring_head != database->ring_tail;
		*lost = *lost || database->ring_lost;
		database->ring_lost = false;
		SpinLockRelease(&database->ring_mutex);
	}
	return count;
}

/*
 * NOTIFY must not be able to end the supervisor.  False: the events are lost.
 */
static bool
tell_events(const OrchEvent *events, int count, bool lost)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool told = false;

	Assert(!IsTransactionState());
	PG_TRY();
	{
		bool sent;

		StartTransactionCommand();
		sent = notify_events(events, count, lost);
		CommitTransactionCommand();
		told = sent;
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return told;
}

/*
 * In the supervisor's transaction.  False: nothing was sent because NOTIFY's
 * queue is too full.
 */
static bool
notify_events(const OrchEvent *events, int count, bool lost)
{
	Audience *audience = palloc(sizeof(Audience));

	find_audience(audience);
	if (!audience->everything && !audience->lifecycle && audience->nroots == 0)
		return true;
	if (!queue_has_room())
		return false;

	for (int i = 0; i < count; i++)
		notify_event(audience, &events[i]);
	if (lost)
		notify_resync(audience);
	return true;
}

static void
find_audience(Audience *audience)
{
	audience->lifecycle = false;
	audience->nroots = 0;

	LWLockAcquire(orch_shared->lock, LW_SHARED);
	audience->everything = orch_shared->listeners_full;
	for (int i = 0; i < ORCH_MAX_LISTENERS; i++)
	{
		OrchListener *listener = &orch_shared->listeners[i];

		if (listener->dboid != MyDatabaseId)
			continue;
		if (listener->root == 0)
			audience->lifecycle = true;
		else if (!hears_root(audience, listener->root))
			audience->roots[audience->nroots++] = listener->root;
	}
	LWLockRelease(orch_shared->lock);
}

static bool
hears_root(const Audience *audience, int64 root)
{
	for (int i = 0; i < audience->nroots; i++)
		if (audience->roots[i] == root)
			return true;
	return false;
}

/*
 * A listener that does not read fills a queue that all of the server shares,
 * and a full one fails commits.
 */
static bool
queue_has_room(void)
{
	static TimestampTz warned_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	double usage;
	LOCAL_FCINFO(fcinfo, 0);

	InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
	usage = DatumGetFloat8(pg_notification_queue_usage(fcinfo));
	if (usage <= QUEUE_FULL)
		return true;

	if (TimestampDifferenceExceeds(warned_at, now, 60 * 1000))
	{
		warned_at = now;
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("events are not notified: the NOTIFY queue is %d %% "
						"full",
						(int) (usage * 100)),
				 errhint("Some session that executed LISTEN does not read, or "
						 "keeps a transaction open.")));
	}
	return false;
}

static void
notify_event(const Audience *audience, const OrchEvent *event)
{
	bool lifecycle = (event->event != ORCH_EVENT_PROGRESS || event->to_all) &&
					 (audience->lifecycle || audience->everything);
	bool own = audience->everything || hears_root(audience, event->root);
	char *payload;

	if (!lifecycle && !own)
		return;

	payload = orch_event_payload(event);
	if (lifecycle)
		Async_Notify(CHANNEL, payload);
	if (own)
		notify_root(event->root, payload);
	pfree(payload);
}

static void
notify_resync(const Audience *audience)
{
	OrchEvent resync = {.event = ORCH_EVENT_RESYNC, .progress = -1};
	char *payload = orch_event_payload(&resync);

	Async_Notify(CHANNEL, payload);
	for (int i = 0; i < audience->nroots; i++)
		notify_root(audience->roots[i], payload);
	pfree(payload);
}

static void
notify_root(int64 root, const char *payload)
{
	char channel[NAMEDATALEN];

	snprintf(channel, sizeof(channel), CHANNEL_PREFIX INT64_FORMAT, root);
	Async_Notify(channel, payload);
}

bool
orch_notify_progress(void)
{
	OrchEvent event;
	bool any;

	if (!orch_event_heard())
		return false;

	any = orch_stream_tell();
	for (int i = 0; i < orch_shared->nexecutors; i++)
	{
		OrchExecutor *executor = &orch_shared->executors[i];

		if (executor->dboid == MyDatabaseId &&
			executor->state == ORCH_EXECUTOR_BUSY &&
			take_progress(executor, &event))
		{
			orch_event_push(&event);
			any = true;
		}
	}
	return any;
}

/*
 * Whose slot it is was read without a lock, so it is looked at again.
 */
static bool
take_progress(OrchExecutor *executor, OrchEvent *event)
{
	bool news;

	SpinLockAcquire(&executor->mutex);
	news = executor->dboid == MyDatabaseId && executor->task != 0 &&
		   executor->notify && executor->progress_new;
	if (news)
	{
		executor->progress_new = false;
		event->task = executor->task;
		event->root = executor->root;
		event->parent = executor->parent;
		event->progress = executor->progress;
		event->attempt = executor->attempt;
		event->event = ORCH_EVENT_PROGRESS;
		event->to_all = executor->notify_all;
		event->is_length = false;
		event->state = ORCH_STATE_RUNNING;
	}
	SpinLockRelease(&executor->mutex);
	return news;
}
