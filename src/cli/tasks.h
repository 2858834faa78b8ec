/*
 * tasks.h
 *	  What the commands of "tasks" have in common.
 */
#ifndef ORCHESTRATOR_TASKS_H
#define ORCHESTRATOR_TASKS_H

#include "cli.h"
#include "taskfile.h"

/* clang-format off */
#define TASKS_FOLDER_OPTION {"tasks", 0, "DIR", "folder of tasks (tasks)"}
/* clang-format on */

/* The folder of --tasks. */
extern const char *tasks_folder(const CliCall *call);
/*
 * Those that are named as arguments, or all; with those that they use, which
 * come first.  The checksum of one that has others as steps is made of theirs,
 * too.
 */
extern TaskFile **tasks_read(const CliCall *call, int *count,
							 Problems *problems);
/* Tell what is wrong, and exit. */
extern _Noreturn void tasks_fail(const Problems *problems);
/* From now on tell what scripts and functions say with RAISE. */
extern void tasks_show_notices(void);
/* Run the script of a task and define it; returns its version. */
extern int tasks_install(const TaskFile *task);

extern const CliCommand cmd_tasks_list, cmd_tasks_upload,
	cmd_tasks_purge;					/* upload.c */
extern const CliCommand cmd_tasks_test; /* trial.c */

#endif
