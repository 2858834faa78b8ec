/*
 * note.h
 *	  The note file: which step each executor runs, told to whoever starts the
 *	  server after a crash.
 *
 * A file in the data directory, mapped by every process.  It outlives them
 * all; only a crash of the machine loses it, and then the step is innocent:
 * the file names the boot it belongs to.
 */
#ifndef ORCHESTRATOR_NOTE_H
#define ORCHESTRATOR_NOTE_H

/*
 * Map the file, move what it says into orch_shared->guilty and clear it.
 * Runs in the postmaster, holding AddinShmemInitLock; children inherit the
 * mapping.  Also keeps the times of crashes for the breaker and sets
 * orch_shared->breaker_until (RULES F03).  Never raises: without a file, a
 * warning is logged and evidence is not kept.
 */
extern void orch_note_load(void);

/* An executor takes this slot. */
extern void orch_note_enter(int slot);

/* The step that executor slot `slot` is about to start, and its end. */
extern void orch_note_begin(int slot, Oid dboid, int64 task, int32 epoch,
							int32 attempt);
extern void orch_note_end(int slot);

/*
 * The process of this slot ends, but its step is not why: from the SIGQUIT
 * handler and from an orderly exit.  Safe in a signal handler.
 */
extern void orch_note_innocent(int slot);

#endif
