/*
 * connection.c
 *	  The connection to the database, and statements with parameters.
 *
 * Nothing here blocks but in term_poll(), so that Ctrl-C is seen at once: a
 * statement under way is cancelled and the program ends.
 */
#include "postgres_fe.h"

#include <poll.h>

#include "cli.h"

/* Between two tries to connect again, in seconds. */
#define FIRST_PAUSE	  0.25
#define LONGEST_PAUSE 8

static PGconn *connection = NULL;
static char *password = NULL;

static PGconn *start_connection(void);
static void finish_connection(PGconn *conn);
static PGconn *connect_once(char **reason);
static void ask_password(const PGconn *conn);
static PGresult *receive(PGconn *conn);
static void cancel(PGconn *conn);
static void swallow_notice(void *arg, const PGresult *notice);

/*
 * As psql: a name with "=", or that begins a URI, is a connection string.
 */
static PGconn *
start_connection(void)
{
	const char *keywords[] = {"host",
							  "port",
							  "user",
							  "password",
							  "dbname",
							  "fallback_application_name",
							  "client_encoding",
							  NULL};
	const char *values[] = {cli_settings.host,
							cli_settings.port,
							cli_settings.user,
							password,
							cli_settings.dbname,
							cli_program,
							"UTF8",
							NULL};

	return PQconnectStartParams(keywords, values, 1);
}

static void
finish_connection(PGconn *conn)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;
	struct pollfd ready;

	while (PQstatus(conn) != CONNECTION_BAD && status != PGRES_POLLING_OK &&
		   status != PGRES_POLLING_FAILED)
	{
		ready.fd = PQsocket(conn);
		ready.events = status == PGRES_POLLING_READING ? POLLIN : POLLOUT;
		if (term_poll(&ready, 1, -1) < 0)
		{
			if (term_interrupted())
				cli_exit(CLI_INTERRUPTED);
			continue;
		}
		status = PQconnectPoll(conn);
	}
}

static void
ask_password(const PGconn *conn)
{
	PQExpBufferData question;

	initPQExpBuffer(&question);
	appendPQExpBufferStr(&question, "Password");
	if (conn && PQuser(conn))
	{
		appendPQExpBufferStr(&question, " for user ");
		text_append(&question, PQuser(conn));
	}
	appendPQExpBufferStr(&question, ": ");
	password = term_ask(question.data, false);
	termPQExpBuffer(&question);
	if (term_interrupted())
		cli_exit(CLI_INTERRUPTED);
}

/*
 * One attempt, with a password asked for if that is what is missing.
 */
static PGconn *
connect_once(char **reason)
{
	PGconn *conn;
	bool asked = password != NULL;

	if (cli_settings.password > 0 && !asked)
	{
		ask_password(NULL);
		asked = true;
	}
	for (;;)
	{
		conn = start_connection();
		if (conn == NULL)
			cli_fail(CLI_FAILED, "out of memory");
		finish_connection(conn);
		if (PQstatus(conn) == CONNECTION_OK)
		{
			PQsetNoticeReceiver(conn, swallow_notice, NULL);
			return conn;
		}
		if (!PQconnectionNeedsPassword(conn) || cli_settings.password < 0 ||
			asked)
			break;
		ask_password(conn);
		asked = true;
		PQfinish(conn);
		if (password == NULL)
		{
			*reason = pg_strdup(
				"a password is needed, and there is no terminal to ask for it");
			return NULL;
		}
	}
	*reason = pg_strdup(PQerrorMessage(conn));
	PQfinish(conn);
	return NULL;
}

/*
 * Warnings of the server are for people, others are not told.
 */
static void
swallow_notice(void *arg, const PGresult *notice)
{
	const char *severity =
		PQresultErrorField(notice, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *hint = PQresultErrorField(notice, PG_DIAG_MESSAGE_HINT);

	if (severity && strcmp(severity, "WARNING") == 0)
		out_warn("%s%s%s%s",
				 PQresultErrorField(notice, PG_DIAG_MESSAGE_PRIMARY),
				 hint ? " (" : "", hint ? hint : "", hint ? ")" : "");
}

PGconn *
db_connection(void)
{
	char *reason;

	if (connection == NULL)
	{
		connection = connect_once(&reason);
		if (connection == NULL)
			cli_fail(CLI_NO_CONNECTION, "%s", reason);
	}
	return connection;
}

PGconn *
db_reconnect(const char **reason)
{
	static char *last = NULL;

	db_close();
	free(last);
	last = NULL;
	connection = connect_once(&last);
	*reason = last;
	return connection;
}

bool
db_come_back(double until, DbSay say)
{
	const char *reason = "the connection to the server was lost";
	double pause = FIRST_PAUSE;

	for (;;)
	{
		double wake = term_now() + pause;

		if (wake > until)
			return false;
		say(reason, pause);
		while (term_now() < wake)
		{
			term_poll(NULL, 0, wake - term_now());
			if (term_interrupted())
				return false;
		}
		if (db_reconnect(&reason))
			return true;
		pause = Min(pause * 2, LONGEST_PAUSE);
	}
}

PGconn *
db_take(void)
{
	PGconn *taken = db_connection();

	connection = NULL;
	return taken;
}

PGconn *
db_start(void)
{
	PGconn *conn = start_connection();

	if (conn == NULL)
		cli_fail(CLI_FAILED, "out of memory");
	PQsetNoticeReceiver(conn, swallow_notice, NULL);
	return conn;
}

PGconn *
db_open(void)
{
	char *reason;

	return connect_once(&reason);
}

void
db_close(void)
{
	PQfinish(connection);
	connection = NULL;
}

static void
cancel(PGconn *conn)
{
	PGcancel *request = PQgetCancel(conn);
	char error[256];

	if (request)
	{
		PQcancel(request, error, sizeof(error));
		PQfreeCancel(request);
	}
}

/*
 * The last result of a statement that was sent.
 */
static PGresult *
receive(PGconn *conn)
{
	PGresult *result = NULL;
	PGresult *next;
	struct pollfd ready = {.fd = PQsocket(conn), .events = POLLIN};

	for (;;)
	{
		while (!PQisBusy(conn))
		{
			next = PQgetResult(conn);
			if (next == NULL)
				return result;
			PQclear(result);
			result = next;
		}
		if (term_poll(&ready, 1, -1) < 0)
		{
			if (term_interrupted())
			{
				cancel(conn);
				cli_exit(CLI_INTERRUPTED);
			}
			continue;
		}
		if (!PQconsumeInput(conn))
		{
			PQclear(result);
			return PQmakeEmptyPGresult(conn, PGRES_FATAL_ERROR);
		}
	}
}

PGresult *
db_try(const char *sql, int nvalues, const char *const *values)
{
	PGconn *conn = db_connection();
	PGresult *result = NULL;

	if (PQsendQueryParams(conn, sql, nvalues, NULL, values, NULL, NULL, 0))
		result = receive(conn);
	if (result == NULL)
		result = PQmakeEmptyPGresult(conn, PGRES_FATAL_ERROR);
	return result;
}

PGresult *
db_query(const char *sql, int nvalues, const char *const *values)
{
	PGresult *result = db_try(sql, nvalues, values);

	if (PQresultStatus(result) != PGRES_TUPLES_OK &&
		PQresultStatus(result) != PGRES_COMMAND_OK)
	{
		out_result_error(result);
		cli_exit(db_lost() ? CLI_NO_CONNECTION : CLI_FAILED);
	}
	return result;
}

bool
db_lost(void)
{
	return connection == NULL || PQstatus(connection) == CONNECTION_BAD;
}

char *
db_array(const char *const *values, int count)
{
	PQExpBufferData array;

	initPQExpBuffer(&array);
	appendPQExpBufferChar(&array, '{');
	for (int i = 0; i < count; i++)
	{
		if (i > 0)
			appendPQExpBufferChar(&array, ',');
		if (values[i] == NULL)
		{
			appendPQExpBufferStr(&array, "NULL");
			continue;
		}
		appendPQExpBufferChar(&array, '"');
		for (const char *at = values[i]; *at != '\0'; at++)
		{
			if (*at == '"' || *at == '\\')
				appendPQExpBufferChar(&array, '\\');
			appendPQExpBufferChar(&array, *at);
		}
		appendPQExpBufferChar(&array, '"');
	}
	appendPQExpBufferChar(&array, '}');
	return array.data;
}

bool
db_true(const PGresult *result, int row, int column)
{
	return strcmp(PQgetvalue(result, row, column), "t") == 0;
}

double
db_number(const PGresult *result, int row, int column, double otherwise)
{
	if (PQgetisnull(result, row, column))
		return otherwise;
	return strtod(PQgetvalue(result, row, column), NULL);
}

const char *
db_text(const PGresult *result, int row, int column)
{
	if (PQgetisnull(result, row, column))
		return NULL;
	return PQgetvalue(result, row, column);
}
