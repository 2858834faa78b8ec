/*
 * document.h
 *	  JSON of a file, as a tree that knows the line of each value.
 */
#ifndef ORCHESTRATOR_DOCUMENT_H
#define ORCHESTRATOR_DOCUMENT_H

#include "pqexpbuffer.h"

typedef enum DocKind
{
	DOC_NULL,
	DOC_BOOLEAN,
	DOC_NUMBER,
	DOC_STRING,
	DOC_ARRAY,
	DOC_OBJECT
} DocKind;

typedef struct DocNode
{
	DocKind kind;
	int line;
	char *key;	/* of a member of an object */
	int place;	/* among its siblings, from 0 */
	char *text; /* of a string what it says, of numbers and booleans as is */
	int count;	/* of children */
	struct DocNode *parent;
	struct DocNode *first; /* child */
	struct DocNode *last;
	struct DocNode *next; /* sibling */
} DocNode;

/* How deep arrays and objects may stand in each other. */
#define DOC_DEPTH 64

/*
 * Parse text.  NULL if it is no JSON in UTF-8, is nested too deeply or has a
 * key twice in an object; then error (to be freed) and line say what and
 * where.
 */
extern DocNode *doc_parse(const char *text, size_t length, char **error,
						  int *line);
/* The line of the first byte that is no UTF-8, or is 0; 0: it is fine. */
extern int doc_bad_line(const char *text, size_t length);
extern void doc_free(DocNode *node);
/* A member of an object; NULL if there is none, or it is null. */
extern const DocNode *doc_member(const DocNode *object, const char *key);
/* What a member that is a string says, or NULL. */
extern const char *doc_text(const DocNode *object, const char *key);
/* Where it stands, as in steps[2].needs; nothing for the whole. */
extern void doc_append_path(PQExpBuffer to, const DocNode *node);

#endif
