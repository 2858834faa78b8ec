/*
 * link.h
 *	  A connection that never keeps its owner waiting, and comes back when it
 *	  is lost.
 */
#ifndef ORCHESTRATOR_LINK_H
#define ORCHESTRATOR_LINK_H

#include <poll.h>

#include "libpq-fe.h"

typedef enum LinkState
{
	LINK_DOWN,
	LINK_CONNECTING,
	LINK_IDLE,
	LINK_BUSY /* with a statement */
} LinkState;

/*
 * What came of a statement: result is its last one, or NULL when the
 * connection was lost and nobody knows.
 */
typedef void (*LinkDone)(const PGresult *result);

typedef struct Link
{
	const char *name; /* for messages */
	LinkState state;
	PGconn *conn;
	PostgresPollingStatusType polling;
	double pause;	/* as of link_pause(), between attempts to connect */
	double at;		/* of that, or when this one has taken too long */
	bool lost;		/* it was said */
	PGresult *last; /* of the statement's results so far */
	LinkDone done;
} Link;

/*
 * How long to wait before the next try of what fails, about so many seconds:
 * not all workers at once.  The pause grows with each; 0 begins anew.
 */
extern double link_pause(double *pause);
/* Take a connection that is open, or NULL to open one. */
extern void link_open(Link *link, PGconn *conn);
/* Send a statement over one that is idle; it may take so many seconds. */
extern void link_send(Link *link, const char *sql, int nvalues,
					  const char *const *values, double seconds,
					  LinkDone done);
/* What to poll for; false: nothing. */
extern bool link_descriptor(const Link *link, struct pollfd *descriptor);
/* When it has to be served, whatever comes. */
extern double link_due(const Link *link);
/* Go on, as far as possible without waiting. */
extern void link_serve(Link *link, bool ready);
/* Cancel what the server does for it, and close. */
extern void link_close(Link *link);

#endif
