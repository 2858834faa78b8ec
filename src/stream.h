/*
 * stream.h
 *	  The text of answers that are under way, for who reads along.
 *
 * It is in shared memory for as long as its call is under way, and then in the
 * output of its step.  The memory is bounded: of what does not fit, and all
 * that follows it, nothing is seen until then.
 */
#ifndef ORCHESTRATOR_STREAM_H
#define ORCHESTRATOR_STREAM_H

#include "datatype/timestamp.h"

/* An attempt whose answer is read along. */
typedef struct OrchStreamOf
{
	int64 task;
	int64 root;
	int64 parent; /* 0: none */
	int32 owner;
	int32 attempt;
	bool notify;	 /* listeners to its root are told that there is more */
	bool notify_all; /* and listeners to everything */
} OrchStreamOf;

/* Ask for the memory.  Called once, by _PG_init, while preloading. */
extern void orch_stream_install(void);

/*
 * The courier's: begin one, in its own database; -1: there is no place for it.
 * Add text to it, whole characters.  End it, after its step was settled.
 */
extern int orch_stream_open(const OrchStreamOf *of);
extern void orch_stream_append(int stream, const char *text, Size size);
extern void orch_stream_close(int stream);

/* Whose task has one; false: it has none. */
extern bool orch_stream_owner(int64 task, int32 *owner);

/* What there is behind so many characters. */
typedef struct OrchStreamText
{
	int32 attempt;
	int64 length; /* characters of all there is */
	char *text;	  /* in the current memory context */
	Size size;
} OrchStreamText;

/*
 * Read one.  If attempt is another than that which is under way (0: it is not
 * known), from the beginning.  False: there is none any more.
 */
extern bool orch_stream_read(int64 task, int32 attempt, int64 after,
							 OrchStreamText *text);

/*
 * Put into the ring of events which have grown, each once in
 * ORCH_STREAM_INTERVAL_MS.  True: call again after that.
 */
#define ORCH_STREAM_INTERVAL_MS 200
extern bool orch_stream_tell(void);

#endif
