/*
 * piece.c
 *	  Texts in pieces, for summaries of them (sql/61_context.sql).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

static const char *find_end(const char *at, const char *end, int size);

PG_FUNCTION_INFO_V1(orchestrator_pieces);

/*
 * _pieces(text, size): in pieces of at most so many characters, cut where a
 * line or a word ends if one does in the last fifth.
 */
Datum
orchestrator_pieces(PG_FUNCTION_ARGS)
{
	text *whole = PG_GETARG_TEXT_PP(0);
	const char *at = VARDATA_ANY(whole);
	const char *end = at + VARSIZE_ANY_EXHDR(whole);
	int size = Max(PG_GETARG_INT32(1), 1);
	ArrayBuildState *pieces =
		initArrayResult(TEXTOID, CurrentMemoryContext, false);

	do
	{
		const char *next = find_end(at, end, size);

		CHECK_FOR_INTERRUPTS();
		(void) accumArrayResult(
			pieces, PointerGetDatum(cstring_to_text_with_len(at, next - at)),
			false, TEXTOID, CurrentMemoryContext);
		at = next;
	} while (at < end);
	PG_RETURN_DATUM(makeArrayResult(pieces, CurrentMemoryContext));
}

/*
 * Of the piece that begins there.
 */
static const char *
find_end(const char *at, const char *end, int size)
{
	const char *line = NULL;
	const char *word = NULL;

	for (int n = 0; n < size && at < end; n++)
	{
		char character = *at;

		at += pg_mblen(at);
		if (n < size - size / 5)
			continue;
		if (character == '\n')
			line = at;
		else if (character == ' ')
			word = at;
	}
	if (at >= end)
		return end;
	return line != NULL ? line : word != NULL ? word : at;
}
