/*
 * taskfile.h
 *	  Definitions as files: a folder with a folder for each task.
 *
 *	  tasks/<name>/task.json		what define() or define_workflow() is told
 *	  tasks/<name>/<name>.sql		run when it is uploaded
 *	  tasks/<name>/<name>[.*]		an executable: of kind remote
 *	  tasks/<name>/requirements.txt	or package.json: what that needs
 */
#ifndef ORCHESTRATOR_TASKFILE_H
#define ORCHESTRATOR_TASKFILE_H

#include "schema.h"

/* Where tasks are unless --tasks says otherwise. */
#define TASKFILE_FOLDER "tasks"

/* Bytes that a script may have. */
#define TASKFILE_SCRIPT (16 * 1024 * 1024)

/* Of the checksum of a task: SHA-256 in hexadecimal digits. */
#define TASKFILE_CHECKSUM 64

typedef struct TaskFile
{
	char *name;	   /* of the definition, and of its folder */
	char *kind;	   /* function, sql, procedure, utility, remote or workflow */
	char *folder;  /* these are resolved: absolute, without links */
	char *program; /* of kind remote, or NULL: others run it */
	char *script;  /* <name>.sql, or NULL */
	char *dependencies; /* requirements.txt or package.json, or NULL */
	double timeout;		/* seconds; 0: none */
	char *text;			/* of task.json */
	DocNode *document;
	char *path; /* of task.json, as messages name it */
	char checksum[TASKFILE_CHECKSUM + 1];
} TaskFile;

/*
 * Whether a name may be that of a folder: letters, digits, "_", "-" and ".",
 * of which the first is a letter or digit.
 */
extern bool taskfile_good_name(const char *name);
/*
 * Read the task of that name in a folder of tasks, wherever the name is from.
 * NULL: there is none, or it is wrong, and problems has more than before.
 */
extern TaskFile *taskfile_read(const char *folder, const char *name,
							   Problems *problems);
/*
 * The names of the tasks there, sorted; none, with a problem, if the folder
 * cannot be read.
 */
extern char **taskfile_names(const char *folder, int *count,
							 Problems *problems);
/* Is there a task of that name (be it right or wrong)? */
extern bool taskfile_exists(const char *folder, const char *name);
/* A whole file of at most that many bytes; NULL, with errno. */
extern char *taskfile_contents(const char *path, size_t most, size_t *length);
/* Make the checksum one of what it is made of and of another one. */
extern void taskfile_add_checksum(TaskFile *task, const char *other);
extern void taskfile_free(TaskFile *task);

#endif
