/*
 * schema.h
 *	  The keys of task.json, and what may stand in them.
 */
#ifndef ORCHESTRATOR_SCHEMA_H
#define ORCHESTRATOR_SCHEMA_H

#include "document.h"

typedef enum KeyType
{
	KEY_TEXT,
	KEY_INTEGER,
	KEY_NUMBER,
	KEY_BOOLEAN,
	KEY_INTERVAL,
	KEY_TEXTS,
	KEY_OBJECT,
	KEY_ANY,
	KEY_STEPS
} KeyType;

/* Where a key may stand. */
typedef enum SchemaPart
{
	PART_TASK = 1,	   /* a definition, as in define() */
	PART_WORKFLOW = 2, /* one with steps, as in define_workflow() */
	PART_STEP = 4,	   /* a step of it, as in step() */
	PART_FILE = 8	   /* beside them: of the folder, not of the definition */
} SchemaPart;

typedef struct SchemaKey
{
	const char *name;
	KeyType type;
	int parts;
	const char *words; /* what a text may be, or NULL */
	double least;	   /* of a number */
	double most;
	const char *help;
} SchemaKey;

/* One thing that is wrong with a file. */
typedef struct Problem
{
	char *file;
	int line;  /* 0: the file as a whole */
	char *key; /* or NULL */
	char *message;
} Problem;

typedef struct Problems
{
	Problem *items;
	int count;
} Problems;

/* One more; node is where, or NULL. */
extern void problem_add(Problems *problems, const char *file, int line,
						const DocNode *node, const char *format, ...)
	pg_attribute_printf(5, 6);
/* One as text: file, line, key and what is wrong. */
extern void problem_append_text(PQExpBuffer to, const Problem *problem);
/* All of them as lines, or with --json one document. */
extern void problem_append(PQExpBuffer to, const Problems *problems);
extern void problem_free(Problems *problems);

/* The keys, in the order of the documentation; a NULL name ends them. */
extern const SchemaKey *schema_keys(void);
/* Check a document, and tell what is wrong with it. */
extern void schema_check(const DocNode *document, const char *file,
						 Problems *problems);
/* The schema itself, as JSON Schema. */
extern void schema_append(PQExpBuffer to);
/* Seconds of an interval as PostgreSQL writes or reads them; -1: is none. */
extern double schema_seconds(const char *interval);

#endif
