/*
 * link.c
 *	  A connection that never keeps its owner waiting.
 *
 * It is lost when the server says so, when the socket does, and when an answer
 * does not come in time: a network that went away says nothing.  Then it is
 * opened again, after a pause that grows.
 */
#include "postgres_fe.h"

#include <math.h>

#include "cli.h"
#include "link.h"

#define CONNECT_SECONDS 15

#define LEAST_PAUSE 0.1
#define MOST_PAUSE	5.0

static void begin(Link *link);
static void connected(Link *link);
static void fall(Link *link, const char *reason);
static void go_on_connecting(Link *link);
static void go_on_receiving(Link *link);

double
link_pause(double *pause)
{
	*pause = *pause == 0 ? LEAST_PAUSE : Min(*pause * 2, MOST_PAUSE);
	return *pause * (0.5 + random() % 1000 / 1000.0);
}

void
link_open(Link *link, PGconn *conn)
{
	link->pause = 0;
	link->at = 0;
	link->state = LINK_DOWN;
	link->conn = conn;
	if (conn)
		connected(link);
	else
		begin(link);
}

static void
begin(Link *link)
{
	link->conn = db_start();
	link->polling = PGRES_POLLING_WRITING;
	link->state = LINK_CONNECTING;
	link->at = term_now() + CONNECT_SECONDS;
	if (PQstatus(link->conn) == CONNECTION_BAD)
		fall(link, PQerrorMessage(link->conn));
}

static void
connected(Link *link)
{
	PQsetnonblocking(link->conn, 1);
	link->state = LINK_IDLE;
	link->at = INFINITY;
	link->pause = 0;
	if (link->lost)
		out_warn("%s: connected again", link->name);
	link->lost = false;
}

static void
fall(Link *link, const char *reason)
{
	LinkDone done = link->state == LINK_BUSY ? link->done : NULL;

	if (reason[0] == '\0')
		reason = "the connection to the server was lost";
	if (!link->lost)
		out_warn("%s: %.*s", link->name, (int) strcspn(reason, "\n"), reason);
	link->lost = true;
	PQclear(link->last);
	link->last = NULL;
	PQfinish(link->conn);
	link->conn = NULL;
	link->state = LINK_DOWN;
	link->at = term_now() + link_pause(&link->pause);
	if (done)
		done(NULL);
}

void
link_send(Link *link, const char *sql, int nvalues, const char *const *values,
		  double seconds, LinkDone done)
{
	Assert(link->state == LINK_IDLE);
	link->state = LINK_BUSY;
	link->done = done;
	link->at = term_now() + seconds;
	if (!PQsendQueryParams(link->conn, sql, nvalues, NULL, values, NULL, NULL,
						   0) ||
		PQflush(link->conn) < 0)
		fall(link, PQerrorMessage(link->conn));
}

bool
link_descriptor(const Link *link, struct pollfd *descriptor)
{
	if (link->state == LINK_DOWN)
		return false;
	descriptor->fd = PQsocket(link->conn);
	if (link->state == LINK_CONNECTING)
		descriptor->events =
			link->polling == PGRES_POLLING_READING ? POLLIN : POLLOUT;
	else
		descriptor->events = POLLIN | (PQflush(link->conn) == 1 ? POLLOUT : 0);
	return true;
}

double
link_due(const Link *link)
{
	return link->at;
}

static void
go_on_connecting(Link *link)
{
	link->polling = PQconnectPoll(link->conn);
	if (link->polling == PGRES_POLLING_OK)
		connected(link);
	else if (link->polling == PGRES_POLLING_FAILED)
		fall(link, PQerrorMessage(link->conn));
}

static void
go_on_receiving(Link *link)
{
	PGresult *next;
	PGresult *result;

	if (!PQconsumeInput(link->conn))
	{
		fall(link, PQerrorMessage(link->conn));
		return;
	}
	while (link->state == LINK_BUSY && !PQisBusy(link->conn))
	{
		next = PQgetResult(link->conn);
		if (next)
		{
			PQclear(link->last);
			link->last = next;
			continue;
		}
		if (PQstatus(link->conn) == CONNECTION_BAD || link->last == NULL)
		{
			fall(link, link->last ? PQresultErrorMessage(link->last) : "");
			return;
		}
		result = link->last;
		link->last = NULL;
		link->state = LINK_IDLE;
		link->at = INFINITY;
		link->done(result);
		PQclear(result);
		return;
	}
	if (PQstatus(link->conn) == CONNECTION_BAD)
		fall(link, PQerrorMessage(link->conn));
}

void
link_serve(Link *link, bool ready)
{
	bool late = term_now() >= link->at;

	if (link->state == LINK_DOWN)
	{
		if (late)
			begin(link);
	}
	else if (ready && link->state == LINK_CONNECTING)
		go_on_connecting(link);
	else if (ready)
		go_on_receiving(link);
	else if (late)
		fall(link, "the server does not answer");
}

void
link_close(Link *link)
{
	PGcancel *request = NULL;
	char error[256];

	if (link->state == LINK_BUSY)
		request = PQgetCancel(link->conn);
	if (request)
	{
		PQcancel(request, error, sizeof(error));
		PQfreeCancel(request);
	}
	PQclear(link->last);
	link->last = NULL;
	PQfinish(link->conn);
	link->conn = NULL;
	link->state = LINK_DOWN;
	link->at = INFINITY;
}
