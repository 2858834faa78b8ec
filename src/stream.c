/*
 * stream.c
 *	  The text of answers that are under way, for who reads along.
 *
 * A stream is a chain of pieces out of one pool, which is what
 * orchestrator.stream_memory says.  Its lock is held for a copy at most; only
 * the courier of its database changes a stream.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "event.h"
#include "guc.h"
#include "shmem.h"
#include "stream.h"

#define BLOCK_NAME "orchestrator streams"
#define MOST	   1024 /* streams */

/* One stream may have so much of the pool. */
#define SHARE 8

#define PIECE_SIZE 2048
#define PIECE_TEXT (PIECE_SIZE - 3 * sizeof(int32))

typedef struct Piece
{
	int32 next; /* -1: the last */
	int32 size;
	int32 length; /* characters */
	char text[PIECE_TEXT];
} Piece;

typedef struct Stream
{
	Oid dboid; /* InvalidOid: free */
	OrchStreamOf of;
	int32 first; /* piece; -1: none */
	int32 last;
	int32 npieces;
	bool full;	/* something did not fit */
	bool grown; /* not told yet */
	int64 length;
	Size size;
	TimestampTz told_at;
} Stream;

typedef struct Streams
{
	int32 nused; /* high-water mark */
	int32 npieces;
	int32 free; /* first free piece; -1: none */
	Stream streams[MOST];
	Piece pieces[FLEXIBLE_ARRAY_MEMBER];
} Streams;

static Streams *shared = NULL;
static LWLock *streams_lock = NULL;

static int pool_pieces(void);
static void start_block(void *memory, LWLock *lock, bool anew);
static Piece *grow(Stream *stream);
static void copy_in(Stream *stream, const char *text, Size size);
static void wake_teller(bool begins);
static Stream *find(int64 task);
static void copy_out(const Stream *stream, int64 after, OrchStreamText *text);
static bool take_news(Stream *stream, TimestampTz now, OrchEvent *event);

static int
pool_pieces(void)
{
	return orch_stream_memory / (PIECE_SIZE / 1024);
}

void
orch_stream_install(void)
{
	orch_shmem_add_block(BLOCK_NAME,
						 add_size(offsetof(Streams, pieces),
								  mul_size(pool_pieces(), sizeof(Piece))),
						 start_block);
}

static void
start_block(void *memory, LWLock *lock, bool anew)
{
	shared = memory;
	streams_lock = lock;
	if (!anew)
		return;
	shared->npieces = pool_pieces();
	for (int i = 0; i < shared->npieces; i++)
		shared->pieces[i].next = i + 1 < shared->npieces ? i + 1 : -1;
}

/* ------------------------------------------------------------ the courier */

int
orch_stream_open(const OrchStreamOf *of)
{
	int number = 0;

	LWLockAcquire(streams_lock, LW_EXCLUSIVE);
	while (number < MOST && OidIsValid(shared->streams[number].dboid))
		number++;
	if (number < MOST)
	{
		Stream *stream = &shared->streams[number];

		memset(stream, 0, sizeof(*stream));
		stream->dboid = MyDatabaseId;
		stream->of = *of;
		stream->first = stream->last = -1;
		shared->nused = Max(shared->nused, number + 1);
	}
	LWLockRelease(streams_lock);
	return number < MOST ? number : -1;
}

void
orch_stream_append(int number, const char *text, Size size)
{
	Stream *stream = &shared->streams[number];
	int64 before;
	bool grew;

	LWLockAcquire(streams_lock, LW_EXCLUSIVE);
	before = stream->length;
	copy_in(stream, text, size);
	grew = stream->length > before;
	stream->grown = stream->grown || grew;
	LWLockRelease(streams_lock);
	if (grew && stream->of.notify && orch_event_heard())
		wake_teller(before == 0);
}

/*
 * Whole characters, so that a piece can be read by itself.
 */
static void
copy_in(Stream *stream, const char *text, Size size)
{
	while (size > 0 && !stream->full)
	{
		Piece *piece = stream->last < 0 ? NULL : &shared->pieces[stream->last];
		int fits = piece == NULL
					   ? 0
					   : pg_mbcliplen(text, size, PIECE_TEXT - piece->size);
		int length;

		if (fits == 0)
		{
			stream->full = grow(stream) == NULL;
			continue;
		}
		memcpy(piece->text + piece->size, text, fits);
		length = pg_mbstrlen_with_len(text, fits);
		piece->size += fits;
		piece->length += length;
		stream->length += length;
		stream->size += fits;
		text += fits;
		size -= fits;
	}
}

/*
 * NULL: there is nothing left, or it has its share.
 */
static Piece *
grow(Stream *stream)
{
	int32 number = shared->free;
	Piece *piece;

	if (number < 0 || stream->npieces >= Max(shared->npieces / SHARE, 1))
		return NULL;
	piece = &shared->pieces[number];
	shared->free = piece->next;
	piece->next = -1;
	piece->size = piece->length = 0;
	if (stream->last < 0)
		stream->first = number;
	else
		shared->pieces[stream->last].next = number;
	stream->last = number;
	stream->npieces++;
	return piece;
}

/*
 * The supervisor goes on looking by itself for as long as some grow.
 */
static void
wake_teller(bool begins)
{
	static TimestampTz woken_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!begins &&
		!TimestampDifferenceExceeds(woken_at, now, ORCH_STREAM_INTERVAL_MS))
		return;
	woken_at = now;
	orch_shmem_wake_supervisor(MyDatabaseId, ORCH_WAKE_EVENTS);
}

void
orch_stream_close(int number)
{
	Stream *stream = &shared->streams[number];

	LWLockAcquire(streams_lock, LW_EXCLUSIVE);
	if (stream->last >= 0)
	{
		shared->pieces[stream->last].next = shared->free;
		shared->free = stream->first;
	}
	stream->dboid = InvalidOid;
	while (shared->nused > 0 &&
		   !OidIsValid(shared->streams[shared->nused - 1].dboid))
		shared->nused--;
	LWLockRelease(streams_lock);
}

/* -------------------------------------------------------------- who reads */

static Stream *
find(int64 task)
{
	for (int i = 0; i < shared->nused; i++)
	{
		Stream *stream = &shared->streams[i];

		if (stream->of.task == task && stream->dboid == MyDatabaseId)
			return stream;
	}
	return NULL;
}

bool
orch_stream_owner(int64 task, int32 *owner)
{
	const Stream *stream;

	if (shared == NULL)
		return false;
	LWLockAcquire(streams_lock, LW_SHARED);
	stream = find(task);
	if (stream != NULL)
		*owner = stream->of.owner;
	LWLockRelease(streams_lock);
	return stream != NULL;
}

bool
orch_stream_read(int64 task, int32 attempt, int64 after, OrchStreamText *text)
{
	const Stream *stream;

	LWLockAcquire(streams_lock, LW_SHARED);
	stream = find(task);
	if (stream != NULL)
	{
		text->attempt = stream->of.attempt;
		text->length = stream->length;
		if (attempt != 0 && attempt != stream->of.attempt)
			after = 0;
		copy_out(stream, after, text);
	}
	LWLockRelease(streams_lock);
	return stream != NULL;
}

static void
copy_out(const Stream *stream, int64 after, OrchStreamText *text)
{
	int32 number = stream->first;
	Size left = stream->size;

	/* pieces that were read already */
	while (number >= 0 && after >= shared->pieces[number].length)
	{
		after -= shared->pieces[number].length;
		left -= shared->pieces[number].size;
		number = shared->pieces[number].next;
	}
	text->text = palloc(left + 1);
	text->size = 0;
	for (; number >= 0; number = shared->pieces[number].next)
	{
		const Piece *piece = &shared->pieces[number];
		int skipped = after == 0 ? 0
								 : pg_mbcharcliplen(piece->text, piece->size,
													(int) after);

		memcpy(text->text + text->size, piece->text + skipped,
			   piece->size - skipped);
		text->size += piece->size - skipped;
		after = 0;
	}
}

/* ------------------------------------------------------------ who listens */

/*
 * One by one: nobody is waked, and no other lock taken, under ours.
 */
bool
orch_stream_tell(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool any = false;

	for (int i = 0; i < shared->nused; i++)
	{
		Stream *stream = &shared->streams[i];
		OrchEvent event = {0};
		bool news;

		if (stream->dboid != MyDatabaseId || !stream->grown)
			continue;
		LWLockAcquire(streams_lock, LW_EXCLUSIVE);
		news = take_news(stream, now, &event);
		LWLockRelease(streams_lock);
		if (news)
			orch_event_push(&event);
		any = true;
	}
	return any;
}

/*
 * Whose it is was read without a lock, so it is looked at again.
 */
static bool
take_news(Stream *stream, TimestampTz now, OrchEvent *event)
{
	if (stream->dboid != MyDatabaseId || !stream->grown ||
		!TimestampDifferenceExceeds(stream->told_at, now,
									ORCH_STREAM_INTERVAL_MS))
		return false;
	stream->grown = false;
	if (!stream->of.notify)
		return false;
	stream->told_at = now;
	event->task = stream->of.task;
	event->root = stream->of.root;
	event->parent = stream->of.parent;
	event->progress = (double) stream->length;
	event->is_length = true;
	event->attempt = stream->of.attempt;
	event->event = ORCH_EVENT_PROGRESS;
	event->state = ORCH_STATE_RUNNING;
	event->to_all = stream->of.notify_all;
	return true;
}
