/*
 * text.c
 *	  Text on its way to a terminal or a file: width, cutting, escaping.
 *
 * Everything here is UTF-8.  Nothing that comes from the database may steer
 * the terminal: control characters, those that turn the direction of text,
 * and bytes that are no UTF-8 are written as escapes.
 */
#include "postgres_fe.h"

#include <math.h>
#include <time.h>

#include "cli.h"

/* What becomes of one character. */
typedef struct Glyph
{
	int bytes;		 /* it takes in the text */
	int width;		 /* columns */
	char escape[12]; /* empty: as it is */
} Glyph;

static int utf8_encoding(void);
static int decode(const unsigned char *at, unsigned int *code);
static int decode_within(const unsigned char *at, const unsigned char *end,
						 unsigned int *code);
static bool is_hidden(unsigned int code);
static void look_at(const char *at, bool lines, Glyph *glyph);
static void append_glyph(PQExpBuffer to, const char *at, const Glyph *glyph);
static void append_escaped(PQExpBuffer to, const char *text, bool lines);
static const char *ellipsis(void);

static int
utf8_encoding(void)
{
	static int encoding = -1;

	if (encoding < 0)
		encoding = pg_char_to_encoding("UTF8");
	return encoding;
}

/*
 * The character at a place and its length in bytes; 0: no UTF-8.
 */
static int
decode(const unsigned char *at, unsigned int *code)
{
	static const unsigned int least[] = {0, 0, 0x80, 0x800, 0x10000};
	int length;

	if (at[0] < 0x80)
	{
		*code = at[0];
		return 1;
	}
	length = at[0] >= 0xF8	 ? 0
			 : at[0] >= 0xF0 ? 4
			 : at[0] >= 0xE0 ? 3
			 : at[0] >= 0xC0 ? 2
							 : 0;
	if (length == 0)
		return 0;
	*code = at[0] & (0x7F >> length);
	for (int i = 1; i < length; i++)
	{
		if ((at[i] & 0xC0) != 0x80)
			return 0;
		*code = *code << 6 | (at[i] & 0x3F);
	}
	if (*code < least[length] || *code > 0x10FFFF ||
		(*code >= 0xD800 && *code <= 0xDFFF))
		return 0;
	return length;
}

/*
 * The same of text that no byte 0 ends.
 */
static int
decode_within(const unsigned char *at, const unsigned char *end,
			  unsigned int *code)
{
	unsigned char last[5] = "";

	if (end - at >= 4)
		return decode(at, code);
	memcpy(last, at, end - at);
	return decode(last, code);
}

/*
 * Characters that do something instead of being something.
 */
static bool
is_hidden(unsigned int code)
{
	return code < 0x20 || (code >= 0x7F && code <= 0x9F) || code == 0x61C ||
		   code == 0x200E || code == 0x200F ||
		   (code >= 0x2028 && code <= 0x202E) ||
		   (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF ||
		   (code >= 0xE0000 && code <= 0xE007F);
}

static void
look_at(const char *at, bool lines, Glyph *glyph)
{
	const unsigned char *byte = (const unsigned char *) at;
	unsigned int code = 0;

	glyph->escape[0] = '\0';
	glyph->bytes = decode(byte, &code);
	if (glyph->bytes == 0)
	{
		glyph->bytes = 1;
		snprintf(glyph->escape, sizeof(glyph->escape), "\\x%02x", byte[0]);
	}
	else if (code == '\n' && lines)
	{
		glyph->width = 0;
		return;
	}
	else if (code == '\n' || code == '\t' || code == '\r')
		snprintf(glyph->escape, sizeof(glyph->escape), "\\%c",
				 code == '\n'	? 'n'
				 : code == '\t' ? 't'
								: 'r');
	else if (is_hidden(code))
		snprintf(glyph->escape, sizeof(glyph->escape),
				 code < 0x80 ? "\\x%02x" : "\\u%04x", code);
	else if (code >= 0x80 && !term_utf8())
		snprintf(glyph->escape, sizeof(glyph->escape), "\\u%04x", code);

	if (glyph->escape[0] != '\0')
		glyph->width = (int) strlen(glyph->escape);
	else
		glyph->width = code < 0x80 ? 1 : Max(PQdsplen(at, utf8_encoding()), 0);
}

static void
append_glyph(PQExpBuffer to, const char *at, const Glyph *glyph)
{
	if (glyph->escape[0] != '\0')
		appendPQExpBufferStr(to, glyph->escape);
	else
		appendBinaryPQExpBuffer(to, at, glyph->bytes);
}

static void
append_escaped(PQExpBuffer to, const char *text, bool lines)
{
	Glyph glyph;

	for (; *text != '\0'; text += glyph.bytes)
	{
		look_at(text, lines, &glyph);
		append_glyph(to, text, &glyph);
	}
}

char *
text_format(const char *format, va_list args)
{
	va_list again;
	int length;
	char *text;

	va_copy(again, args);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length < 0)
		return pg_strdup(format);
	text = pg_malloc(length + 1);
	vsnprintf(text, length + 1, format, args);
	return text;
}

void
text_append(PQExpBuffer to, const char *text)
{
	append_escaped(to, text, false);
}

void
text_append_lines(PQExpBuffer to, const char *text)
{
	append_escaped(to, text, true);
}

void
text_append_bytes(PQExpBuffer to, const char *bytes, size_t length)
{
	const unsigned char *end = (const unsigned char *) bytes + length;
	unsigned int code = 0;

	for (const unsigned char *at = (const unsigned char *) bytes; at < end;)
	{
		int taken = decode_within(at, end, &code);

		if (taken == 0 || code == 0)
			appendPQExpBuffer(to, "\\x%02x", *at);
		else
			appendBinaryPQExpBuffer(to, (const char *) at, taken);
		at += Max(taken, 1);
	}
}

bool
text_is_utf8(const char *bytes, size_t length)
{
	const unsigned char *at = (const unsigned char *) bytes;
	const unsigned char *end = at + length;
	unsigned int code;
	int taken;

	for (; at < end; at += taken)
	{
		taken = decode_within(at, end, &code);
		if (taken == 0)
			return false;
	}
	return true;
}

int
text_width(const char *text)
{
	Glyph glyph;
	int width = 0;

	for (; *text != '\0'; text += glyph.bytes)
	{
		look_at(text, false, &glyph);
		width += glyph.width;
	}
	return width;
}

static const char *
ellipsis(void)
{
	return term_utf8() ? "…" : "~";
}

void
text_append_fit(PQExpBuffer to, const char *text, int width, bool right)
{
	Glyph glyph;
	int full;
	int used = 0;

	if (width <= 0)
		return;
	full = text_width(text);
	for (int i = full; right && i < width; i++)
		appendPQExpBufferChar(to, ' ');

	for (; *text != '\0'; text += glyph.bytes)
	{
		look_at(text, false, &glyph);
		if (used + glyph.width > (full > width ? width - 1 : width))
			break;
		append_glyph(to, text, &glyph);
		used += glyph.width;
	}
	if (full > width)
	{
		appendPQExpBufferStr(to, ellipsis());
		used++;
	}
	for (; !right && used < width; used++)
		appendPQExpBufferChar(to, ' ');
	/* A wide character that was cut leaves a column. */
	for (; right && full > width && used < width; used++)
		appendPQExpBufferChar(to, ' ');
}

void
text_append_json(PQExpBuffer to, const char *json)
{
	unsigned int code = 0;
	int length;

	for (const unsigned char *at = (const unsigned char *) json; *at != '\0';
		 at += length)
	{
		length = decode(at, &code);
		if (length == 0)
		{
			length = 1;
			appendPQExpBufferStr(to, "\\ufffd");
		}
		else if (code != '\n' && is_hidden(code))
		{
			if (code > 0xFFFF)
				appendPQExpBuffer(to, "\\u%04x\\u%04x", 0xD7C0 + (code >> 10),
								  0xDC00 + (code & 0x3FF));
			else
				appendPQExpBuffer(to, "\\u%04x", code);
		}
		else
			appendBinaryPQExpBuffer(to, (const char *) at, length);
	}
}

void
text_append_quoted(PQExpBuffer to, const char *text)
{
	char one[2] = "";

	appendPQExpBufferChar(to, '"');
	for (; *text != '\0'; text++)
	{
		if (*text == '"' || *text == '\\')
			appendPQExpBuffer(to, "\\%c", *text);
		else if ((unsigned char) *text < 0x20)
			appendPQExpBuffer(to, "\\u%04x", (unsigned char) *text);
		else
		{
			one[0] = *text;
			appendPQExpBufferStr(to, one);
		}
	}
	appendPQExpBufferChar(to, '"');
}

void
text_append_duration(PQExpBuffer to, double seconds)
{
	long whole = (long) rint(seconds);

	if (seconds < 0)
	{
		appendPQExpBufferChar(to, '-');
		text_append_duration(to, -seconds);
	}
	else if (seconds < 0.0095)
		appendPQExpBuffer(to, "%.1f ms", seconds * 1000);
	else if (seconds < 0.9995)
		appendPQExpBuffer(to, "%.0f ms", seconds * 1000);
	else if (seconds < 59.95)
		appendPQExpBuffer(to, "%.1f s", seconds);
	else if (whole < 3600)
		appendPQExpBuffer(to, "%ld min %ld s", whole / 60, whole % 60);
	else if (whole < 86400)
		appendPQExpBuffer(to, "%ld h %ld min", whole / 3600, whole / 60 % 60);
	else
		appendPQExpBuffer(to, "%ld d %ld h", whole / 86400, whole / 3600 % 24);
}

void
text_append_time(PQExpBuffer to, double at)
{
	time_t when = (time_t) floor(at);
	time_t now = time(NULL);
	struct tm there = *localtime(&when);
	struct tm here = *localtime(&now);
	char buffer[40];

	if (there.tm_year == here.tm_year && there.tm_yday == here.tm_yday)
		strftime(buffer, sizeof(buffer), "%H:%M:%S", &there);
	else
		strftime(buffer, sizeof(buffer), "%Y-%m-%d %H:%M:%S", &there);
	appendPQExpBufferStr(to, buffer);
}

/*
 * With eighths of a block where the terminal has them.
 */
void
text_append_bar(PQExpBuffer to, double part, int width)
{
	static const char *const blocks[] = {"░", "▏", "▎", "▍", "▌",
										 "▋", "▊", "▉", "█"};
	int eighths = (int) floor(Min(Max(part, 0), 1) * width * 8);

	for (int i = 0; i < width; i++)
	{
		int here = Min(Max(eighths - i * 8, 0), 8);

		if (term_utf8())
			appendPQExpBufferStr(to, blocks[here]);
		else
			appendPQExpBufferChar(to, here >= 4 ? '#' : '.');
	}
}
