/*
 * child.h
 *	  The courier's child program, which makes the calls: a process of its own,
 *	  so that what happens to it does not happen to the server.
 */
#ifndef ORCHESTRATOR_CHILD_H
#define ORCHESTRATOR_CHILD_H

#include "datatype/timestamp.h"

#include "frame.h"

typedef struct OrchChild
{
	pid_t pid;	/* 0: none runs */
	int socket; /* -1: likewise */
	bool ready; /* it has said that it is */
	TimestampTz started_at;
	TimestampTz heard_at;
	FrameBuffer out;
	FrameBuffer in;
} OrchChild;

/* Whether the program is installed. */
extern bool orch_child_installed(void);

/* Start it.  False: that did not work, and the log says why. */
extern bool orch_child_start(OrchChild *child);

/* End it at once, whatever it does. */
extern void orch_child_stop(OrchChild *child);

/* Send and receive, without waiting.  False: it is gone. */
extern bool orch_child_exchange(OrchChild *child);

#endif
