/*
 * document.c
 *	  JSON of a file, as a tree that knows the line of each value.
 *
 * The parser of libpgcommon is not used: its interface differs between
 * releases of PostgreSQL, it has no bound of depth in a client, and it tells
 * the line of a value only by a detour.
 *
 * The text is checked to be UTF-8 first.  It ends with a byte 0, which no
 * JSON has, so that looking at the next byte is always allowed.
 */
#include "postgres_fe.h"

#include "cli.h"
#include "document.h"
#include "mb/pg_wchar.h"

typedef struct Parser
{
	const char *at;
	int line;
	int depth;
	char *error;
} Parser;

static bool fail(Parser *parser, const char *format, ...)
	pg_attribute_printf(2, 3);
static void skip_space(Parser *parser);
static bool expect(Parser *parser, char wanted, const char *where);
static DocNode *add_node(Parser *parser, DocNode *parent, char *key);
static bool parse_value(Parser *parser, DocNode *node);
static bool parse_children(Parser *parser, DocNode *node, char end);
static bool parse_string(Parser *parser, char **text);
static bool parse_escape(Parser *parser, PQExpBuffer to);
static bool parse_hex(Parser *parser, pg_wchar *code);
static bool parse_number(Parser *parser, DocNode *node);
static bool parse_word(Parser *parser, DocNode *node);
static bool check_keys(Parser *parser, const DocNode *object);

static bool
fail(Parser *parser, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	parser->error = text_format(format, args);
	va_end(args);
	return false;
}

static void
skip_space(Parser *parser)
{
	for (; *parser->at == ' ' || *parser->at == '\t' || *parser->at == '\n' ||
		   *parser->at == '\r';
		 parser->at++)
		if (*parser->at == '\n')
			parser->line++;
}

static bool
expect(Parser *parser, char wanted, const char *where)
{
	skip_space(parser);
	if (*parser->at != wanted)
		return fail(parser, "expected \"%c\" %s", wanted, where);
	parser->at++;
	return true;
}

static DocNode *
add_node(Parser *parser, DocNode *parent, char *key)
{
	DocNode *node = pg_malloc0(sizeof(DocNode));

	node->line = parser->line;
	node->key = key;
	node->parent = parent;
	if (parent == NULL)
		return node;
	node->place = parent->count++;
	if (parent->last)
		parent->last->next = node;
	else
		parent->first = node;
	parent->last = node;
	return node;
}

static bool
parse_value(Parser *parser, DocNode *node)
{
	skip_space(parser);
	node->line = parser->line;
	switch (*parser->at)
	{
		case '{':
			node->kind = DOC_OBJECT;
			return parse_children(parser, node, '}') &&
				   check_keys(parser, node);
		case '[':
			node->kind = DOC_ARRAY;
			return parse_children(parser, node, ']');
		case '"':
			node->kind = DOC_STRING;
			return parse_string(parser, &node->text);
		case '-':
		case '0' ... '9':
			return parse_number(parser, node);
		default:
			return parse_word(parser, node);
	}
}

/*
 * What is between the braces or brackets.
 */
static bool
parse_children(Parser *parser, DocNode *node, char end)
{
	char *key;

	if (++parser->depth > DOC_DEPTH)
		return fail(parser, "nested more than %d levels deep", DOC_DEPTH);
	parser->at++;
	skip_space(parser);
	while (*parser->at != end)
	{
		key = NULL;
		if (node->count > 0 && !expect(parser, ',', "or the end"))
			return false;
		skip_space(parser);
		if (node->kind == DOC_OBJECT)
		{
			if (*parser->at != '"')
				return fail(parser, "expected a key in double quotes");
			if (!parse_string(parser, &key))
				return false;
			if (!expect(parser, ':', "after a key"))
			{
				free(key);
				return false;
			}
		}
		if (!parse_value(parser, add_node(parser, node, key)))
			return false;
		skip_space(parser);
	}
	parser->at++;
	parser->depth--;
	return true;
}

static bool
parse_string(Parser *parser, char **text)
{
	PQExpBufferData value;
	const char *from = ++parser->at;

	initPQExpBuffer(&value);
	for (;; from = parser->at)
	{
		while ((unsigned char) *parser->at >= 0x20 && *parser->at != '"' &&
			   *parser->at != '\\')
			parser->at++;
		appendBinaryPQExpBuffer(&value, from, parser->at - from);
		if (*parser->at != '\\')
			break;
		if (!parse_escape(parser, &value))
		{
			termPQExpBuffer(&value);
			return false;
		}
	}
	if (*parser->at != '"')
	{
		termPQExpBuffer(&value);
		return fail(parser, "a string is not ended on its line, or has a "
							"control character");
	}
	parser->at++;
	*text = value.data;
	return true;
}

static bool
parse_escape(Parser *parser, PQExpBuffer to)
{
	static const char letters[] = "\"\\/bfnrt";
	static const char meaning[] = "\"\\/\b\f\n\r\t";
	const char *letter;
	pg_wchar code;
	pg_wchar low;
	unsigned char bytes[4];

	parser->at++;
	letter = *parser->at == '\0' ? NULL : strchr(letters, *parser->at);
	if (letter)
	{
		appendPQExpBufferChar(to, meaning[letter - letters]);
		parser->at++;
		return true;
	}
	if (!parse_hex(parser, &code))
		return false;
	if (is_utf16_surrogate_first(code))
	{
		if (*parser->at++ != '\\' || !parse_hex(parser, &low) ||
			!is_utf16_surrogate_second(low))
			return fail(parser, "half of a pair of \\u escapes is missing");
		code = surrogate_pair_to_codepoint(code, low);
	}
	if (code == 0 || is_utf16_surrogate_second(code))
		return fail(parser, "\\u%04x is no character", code);
	unicode_to_utf8(code, bytes);
	appendBinaryPQExpBuffer(to, (char *) bytes,
							code < 0x80		 ? 1
							: code < 0x800	 ? 2
							: code < 0x10000 ? 3
											 : 4);
	return true;
}

static bool
parse_hex(Parser *parser, pg_wchar *code)
{
	char digits[5] = "";

	if (*parser->at != 'u')
		return fail(parser, "a string has an unknown escape");
	parser->at++;
	for (int i = 0; i < 4; i++)
	{
		if (!isxdigit((unsigned char) *parser->at))
			return fail(parser, "\\u takes four hexadecimal digits");
		digits[i] = *parser->at++;
	}
	*code = strtoul(digits, NULL, 16);
	return true;
}

static bool
parse_number(Parser *parser, DocNode *node)
{
	static const char digits[] = "0123456789";
	const char *from = parser->at;
	size_t whole;

	if (*parser->at == '-')
		parser->at++;
	whole = strspn(parser->at, digits);
	if (whole == 0 || (whole > 1 && *parser->at == '0'))
		return fail(parser, "a number begins wrongly");
	parser->at += whole;
	if (*parser->at == '.')
	{
		whole = strspn(++parser->at, digits);
		if (whole == 0)
			return fail(parser, "a number has no digits behind its point");
		parser->at += whole;
	}
	if (*parser->at == 'e' || *parser->at == 'E')
	{
		parser->at++;
		if (*parser->at == '+' || *parser->at == '-')
			parser->at++;
		whole = strspn(parser->at, digits);
		if (whole == 0)
			return fail(parser, "a number has no digits in its exponent");
		parser->at += whole;
	}
	node->kind = DOC_NUMBER;
	node->text = pnstrdup(from, parser->at - from);
	return true;
}

static bool
parse_word(Parser *parser, DocNode *node)
{
	static const char *const words[] = {"true", "false", "null"};
	size_t length = strspn(parser->at, "abcdefghijklmnopqrstuvwxyz");

	for (int i = 0; i < lengthof(words); i++)
		if (strlen(words[i]) == length &&
			strncmp(parser->at, words[i], length) == 0)
		{
			node->kind = i < 2 ? DOC_BOOLEAN : DOC_NULL;
			node->text = pg_strdup(words[i]);
			parser->at += length;
			return true;
		}
	if (*parser->at == '\0')
		return fail(parser, "it ends in the middle");
	return fail(parser, "expected a value: an object, array, string, number, "
						"true, false or null");
}

static int
compare_keys(const void *a, const void *b)
{
	const DocNode *left = *(const DocNode *const *) a;
	const DocNode *right = *(const DocNode *const *) b;
	int order = strcmp(left->key, right->key);

	return order != 0 ? order : left->place - right->place;
}

static bool
check_keys(Parser *parser, const DocNode *object)
{
	const DocNode **sorted;
	const DocNode *twice = NULL;
	int count = 0;

	sorted = pg_malloc((object->count + 1) * sizeof(DocNode *));
	for (const DocNode *each = object->first; each; each = each->next)
		sorted[count++] = each;
	qsort(sorted, count, sizeof(DocNode *), compare_keys);
	for (int i = 1; i < count && !twice; i++)
		if (strcmp(sorted[i - 1]->key, sorted[i]->key) == 0)
			twice = sorted[i];
	free(sorted);
	if (twice == NULL)
		return true;
	parser->line = twice->line;
	return fail(parser, "key \"%s\" is there twice", twice->key);
}

int
doc_bad_line(const char *text, size_t length)
{
	size_t good = pg_encoding_verifymbstr(PG_UTF8, text, (int) length);
	int line = 1;

	if (good == length)
		return 0;
	for (size_t i = 0; i < good; i++)
		if (text[i] == '\n')
			line++;
	return line;
}

DocNode *
doc_parse(const char *text, size_t length, char **error, int *line)
{
	Parser parser = {.at = text, .line = 1};
	DocNode *root;

	*line = doc_bad_line(text, length);
	if (*line > 0)
	{
		*error = pg_strdup("it is not UTF-8");
		return NULL;
	}
	if (strncmp(text, "\xEF\xBB\xBF", 3) == 0)
	{
		*line = 1;
		*error =
			pg_strdup("it begins with a byte order mark: save it without");
		return NULL;
	}
	root = add_node(&parser, NULL, NULL);
	if (parse_value(&parser, root))
	{
		skip_space(&parser);
		if (*parser.at == '\0')
			return root;
		fail(&parser, "there is something behind its end");
	}
	*error = parser.error;
	*line = parser.line;
	doc_free(root);
	return NULL;
}

void
doc_free(DocNode *node)
{
	DocNode *next;

	if (node == NULL)
		return;
	for (DocNode *child = node->first; child; child = next)
	{
		next = child->next;
		doc_free(child);
	}
	free(node->key);
	free(node->text);
	free(node);
}

const DocNode *
doc_member(const DocNode *object, const char *key)
{
	if (object->kind == DOC_OBJECT)
		for (const DocNode *each = object->first; each; each = each->next)
			if (strcmp(each->key, key) == 0)
				return each->kind == DOC_NULL ? NULL : each;
	return NULL;
}

const char *
doc_text(const DocNode *object, const char *key)
{
	const DocNode *member = doc_member(object, key);

	return member && member->kind == DOC_STRING ? member->text : NULL;
}

void
doc_append_path(PQExpBuffer to, const DocNode *node)
{
	if (node->parent == NULL)
		return;
	doc_append_path(to, node->parent);
	if (node->key == NULL)
		appendPQExpBuffer(to, "[%d]", node->place);
	else
		appendPQExpBuffer(to, "%s%s", node->parent->parent ? "." : "",
						  node->key);
}
