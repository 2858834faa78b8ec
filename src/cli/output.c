/*
 * output.c
 *	  What the program says: tables, JSON, sentences, errors, questions.
 */
#include "postgres_fe.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "cli.h"

/* No column of a table is cut to less, or grows beyond where there is room. */
#define LEAST_WIDTH	 12
#define GAP			 2
#define MOST_COLUMNS 32

static int measure(const PGresult *result, const OutColumn *columns,
				   int ncolumns, int *widths);
static int fit(const OutColumn *columns, int ncolumns, int *widths, int width);
static void append_row(PQExpBuffer to, const PGresult *result, int row,
					   const OutColumn *columns, int ncolumns,
					   const int *widths);
static void append_cell(PQExpBuffer to, const char *text,
						const OutColumn *column, int width, bool last);
static void end_line(PQExpBuffer to);
static bool is_right(OutKind kind);
static void append_error(PQExpBuffer to, const char *message,
						 const char *sqlstate, const char *detail,
						 const char *hint);
static void append_member(PQExpBuffer to, const char *name, const char *value);
static void flush_output(void);
static const char *hint_of(const char *sqlstate);

/* of errno: the first that standard output had */
static int output_error = 0;

static bool
is_right(OutKind kind)
{
	return kind == OUT_NUMBER || kind == OUT_PERCENT || kind == OUT_SECONDS;
}

void
out_append_value(PQExpBuffer to, const char *value, OutKind kind)
{
	switch (kind)
	{
		case OUT_PERCENT:
			appendPQExpBuffer(to, "%.0f %%", strtod(value, NULL) * 100);
			break;
		case OUT_SECONDS:
			text_append_duration(to, strtod(value, NULL));
			break;
		case OUT_TIME:
			text_append_time(to, strtod(value, NULL));
			break;
		default:
			appendPQExpBufferStr(to, value);
	}
}

/*
 * How wide the columns want to be; returns how wide the table is then.
 */
static int
measure(const PGresult *result, const OutColumn *columns, int ncolumns,
		int *widths)
{
	PQExpBufferData cell;
	int total = 0;

	initPQExpBuffer(&cell);
	for (int i = 0; i < ncolumns; i++)
	{
		widths[i] = text_width(columns[i].title);
		for (int row = 0; row < PQntuples(result); row++)
		{
			resetPQExpBuffer(&cell);
			if (!PQgetisnull(result, row, i))
				out_append_value(&cell, PQgetvalue(result, row, i),
								 columns[i].kind);
			widths[i] = Max(widths[i], text_width(cell.data));
		}
		total += widths[i] + (i > 0 ? GAP : 0);
	}
	termPQExpBuffer(&cell);
	return total;
}

/*
 * Take from the widest texts what is too much, then whole columns from the
 * right; returns how many are left.
 */
static int
fit(const OutColumn *columns, int ncolumns, int *widths, int width)
{
	int total = 0;

	for (int i = 0; i < ncolumns; i++)
		total += widths[i] + (i > 0 ? GAP : 0);
	while (total > width && ncolumns > 1)
	{
		int widest = -1;

		for (int i = 0; i < ncolumns; i++)
			if (columns[i].kind == OUT_TEXT && widths[i] > LEAST_WIDTH &&
				(widest < 0 || widths[i] > widths[widest]))
				widest = i;
		if (widest >= 0)
		{
			widths[widest]--;
			total--;
		}
		else
		{
			ncolumns--;
			total -= widths[ncolumns] + GAP;
		}
	}
	return ncolumns;
}

static void
append_cell(PQExpBuffer to, const char *text, const OutColumn *column,
			int width, bool last)
{
	bool right = is_right(column->kind);

	if (last && !right)
		width = Min(width, text_width(text));
	text_append_fit(to, text, width, right);
}

static void
append_row(PQExpBuffer to, const PGresult *result, int row,
		   const OutColumn *columns, int ncolumns, const int *widths)
{
	PQExpBufferData cell;

	initPQExpBuffer(&cell);
	for (int i = 0; i < ncolumns; i++)
	{
		TermColor color = TERM_PLAIN;

		if (i > 0)
			appendPQExpBuffer(to, "%*s", GAP, "");
		resetPQExpBuffer(&cell);
		if (!PQgetisnull(result, row, i))
			out_append_value(&cell, PQgetvalue(result, row, i),
							 columns[i].kind);
		if (columns[i].kind == OUT_STATE)
			color = term_state_color(cell.data);
		if (color != TERM_PLAIN)
			term_color(to, color);
		append_cell(to, cell.data, &columns[i], widths[i], i == ncolumns - 1);
		if (color != TERM_PLAIN)
			term_plain(to);
	}
	end_line(to);
	termPQExpBuffer(&cell);
}

/*
 * Without the blanks of empty cells.
 */
static void
end_line(PQExpBuffer to)
{
	while (to->len > 0 && to->data[to->len - 1] == ' ')
		to->data[--to->len] = '\0';
	appendPQExpBufferChar(to, '\n');
}

void
out_append_table(PQExpBuffer to, const PGresult *result,
				 const OutColumn *columns, int ncolumns, int width)
{
	int widths[MOST_COLUMNS];

	Assert(ncolumns <= MOST_COLUMNS);
	if (measure(result, columns, ncolumns, widths) > width)
		ncolumns = fit(columns, ncolumns, widths, width);

	term_color(to, TERM_BOLD);
	for (int i = 0; i < ncolumns; i++)
	{
		if (i > 0)
			appendPQExpBuffer(to, "%*s", GAP, "");
		append_cell(to, columns[i].title, &columns[i], widths[i],
					i == ncolumns - 1);
	}
	term_plain(to);
	end_line(to);
	for (int row = 0; row < PQntuples(result); row++)
		append_row(to, result, row, columns, ncolumns, widths);
}

void
out_append_array(PQExpBuffer to, const PGresult *result)
{
	appendPQExpBufferChar(to, '[');
	for (int row = 0; row < PQntuples(result); row++)
	{
		appendPQExpBufferStr(to, row == 0 ? "\n" : ",\n");
		text_append_json(to, PQgetvalue(result, row, 0));
	}
	appendPQExpBufferStr(to, PQntuples(result) > 0 ? "\n]" : "]");
}

char *
out_view_sql(const OutView *view, bool json)
{
	PQExpBufferData sql;

	initPQExpBuffer(&sql);
	appendPQExpBufferStr(&sql, "SELECT ");
	if (json)
		appendPQExpBuffer(&sql, "pg_catalog.row_to_json(%s)",
						  view->row ? view->row : "v");
	for (int i = 0; !json && i < view->ncolumns; i++)
		appendPQExpBuffer(&sql, "%s%s", i > 0 ? ", " : "",
						  view->columns[i].expression);
	appendPQExpBuffer(&sql, " FROM %s", view->from);
	return sql.data;
}

int
out_view(const OutView *view, int nvalues, const char *const *values)
{
	PQExpBufferData text;
	PGresult *result;
	int count;
	char *sql = out_view_sql(view, cli_settings.json);

	result = db_query(sql, nvalues, values);
	initPQExpBuffer(&text);
	if (cli_settings.json)
	{
		out_append_array(&text, result);
		appendPQExpBufferChar(&text, '\n');
	}
	else if (PQntuples(result) == 0)
		out_say("%s", view->empty);
	else
		out_append_table(&text, result, view->columns, view->ncolumns,
						 term_width());
	out_print(&text);
	count = PQntuples(result);
	termPQExpBuffer(&text);
	PQclear(result);
	free(sql);
	return count;
}

void
out_print(PQExpBuffer text)
{
	if (PQExpBufferBroken(text))
		cli_fail(CLI_FAILED, "out of memory");
	errno = 0;
	fwrite(text->data, 1, text->len, stdout);
	flush_output();
}

/*
 * What went wrong is told at the end.
 */
static void
flush_output(void)
{
	if ((fflush(stdout) != 0 || ferror(stdout)) && output_error == 0)
		output_error = errno ? errno : EIO;
}

void
out_say(const char *format, ...)
{
	PQExpBufferData safe;
	va_list args;
	char *text;

	if (cli_settings.json)
		return;
	va_start(args, format);
	text = text_format(format, args);
	va_end(args);
	initPQExpBuffer(&safe);
	text_append(&safe, text);
	puts(safe.data);
	termPQExpBuffer(&safe);
	free(text);
}

void
out_warn(const char *format, ...)
{
	PQExpBufferData safe;
	va_list args;
	char *text;

	va_start(args, format);
	text = text_format(format, args);
	va_end(args);
	initPQExpBuffer(&safe);
	if (cli_settings.json)
	{
		appendPQExpBufferStr(&safe, "{\"warning\": {\"message\": ");
		out_append_string(&safe, text);
		appendPQExpBufferStr(&safe, "}}");
	}
	else
	{
		appendPQExpBuffer(&safe, "%s: ", cli_program);
		text_append(&safe, text);
	}
	fflush(stdout);
	fprintf(stderr, "%s\n", safe.data);
	termPQExpBuffer(&safe);
	free(text);
}

static void
append_member(PQExpBuffer to, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendPQExpBuffer(
		to, "%s\"%s\": ", to->data[to->len - 1] == '{' ? "" : ", ", name);
	out_append_string(to, value);
}

void
out_append_string(PQExpBuffer to, const char *text)
{
	PQExpBufferData quoted;

	if (text == NULL)
	{
		appendPQExpBufferStr(to, "null");
		return;
	}
	initPQExpBuffer(&quoted);
	text_append_quoted(&quoted, text);
	text_append_json(to, quoted.data);
	termPQExpBuffer(&quoted);
}

static void
append_error(PQExpBuffer to, const char *message, const char *sqlstate,
			 const char *detail, const char *hint)
{
	if (cli_settings.json)
	{
		appendPQExpBufferStr(to, "{\"error\": {");
		append_member(to, "message", message);
		append_member(to, "sqlstate", sqlstate);
		append_member(to, "detail", detail);
		append_member(to, "hint", hint);
		appendPQExpBufferStr(to, "}}\n");
		return;
	}
	appendPQExpBuffer(to, "%s: ", cli_program);
	text_append_lines(to, message);
	if (detail)
	{
		appendPQExpBufferStr(to, "\nDetail: ");
		text_append_lines(to, detail);
	}
	if (hint)
	{
		appendPQExpBufferStr(to, "\nHint: ");
		text_append_lines(to, hint);
	}
	appendPQExpBufferChar(to, '\n');
}

void
out_error(const char *format, ...)
{
	PQExpBufferData text;
	va_list args;
	char *message;
	size_t length;

	va_start(args, format);
	message = text_format(format, args);
	va_end(args);
	/* libpq ends its messages with a line end */
	length = strlen(message);
	while (length > 0 && message[length - 1] == '\n')
		message[--length] = '\0';
	initPQExpBuffer(&text);
	append_error(&text, message, NULL, NULL, NULL);
	fflush(stdout);
	fputs(text.data, stderr);
	termPQExpBuffer(&text);
	free(message);
}

/*
 * Where the server gives none.
 */
static const char *
hint_of(const char *sqlstate)
{
	/* undefined_table, invalid_schema_name */
	if (strcmp(sqlstate, "42P01") == 0 || strcmp(sqlstate, "3F000") == 0)
		return "Is the extension in this database? CREATE EXTENSION orchestrator; see orchestrator doctor.";
	/* insufficient_privilege */
	if (strcmp(sqlstate, "42501") == 0)
		return "An administrator gives rights with orchestrator.grant_usage(); see orchestrator doctor.";
	return NULL;
}

void
out_result_error(const PGresult *result)
{
	PQExpBufferData text;
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *sqlstate;
	const char *hint;

	if (message == NULL)
	{
		/* not of the server: the connection's own */
		message = PQresultErrorMessage(result);
		out_error("%s", message[0] != '\0'
							? message
							: "the connection to the server was lost");
		return;
	}
	sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	if (hint == NULL && sqlstate)
		hint = hint_of(sqlstate);
	initPQExpBuffer(&text);
	append_error(&text, message, sqlstate,
				 PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL), hint);
	fflush(stdout);
	fputs(text.data, stderr);
	termPQExpBuffer(&text);
}

void
cli_exit(CliExit code)
{
	errno = 0;
	flush_output();
	term_restore();
	if (output_error != 0 && code == CLI_OK)
	{
		code = CLI_FAILED;
		out_error("could not write the output: %s", strerror(output_error));
	}
	db_close();
	exit(code);
}

void
cli_fail(CliExit code, const char *format, ...)
{
	va_list args;
	char *message;

	va_start(args, format);
	message = text_format(format, args);
	va_end(args);
	term_restore();
	out_error("%s", message);
	cli_exit(code);
}

void
cli_confirm(const char *format, ...)
{
	PQExpBufferData question;
	va_list args;
	char *text;
	char *answer;

	if (cli_settings.yes)
		return;
	va_start(args, format);
	text = text_format(format, args);
	va_end(args);
	initPQExpBuffer(&question);
	text_append(&question, text);
	appendPQExpBufferStr(&question, " [y/N] ");

	if (!isatty(STDIN_FILENO))
		cli_fail(CLI_NOT_CONFIRMED,
				 "%s There is no terminal to ask: say --yes.", text);
	answer = term_ask(question.data, true);
	if (term_interrupted())
	{
		fputc('\n', stderr);
		cli_exit(CLI_INTERRUPTED);
	}
	if (answer == NULL ||
		(pg_strcasecmp(answer, "y") != 0 && pg_strcasecmp(answer, "yes") != 0))
		cli_fail(CLI_NOT_CONFIRMED, "nothing was done");
	termPQExpBuffer(&question);
	free(answer);
	free(text);
}
