/*
 * main.c
 *	  orchestrator, the command-line client: which commands there are.
 */
#include "postgres_fe.h"

#include "cli.h"

const char *cli_program = "orchestrator";
CliSettings cli_settings = {.color = "auto"};

static CliExit run_help(CliCall *call);
static const CliCommand *find_command(const CliCommand *parent,
									  const char *name);
static CliExit run_command(const CliCommand *parent, const char *path,
						   int argc, char **argv);

static const CliOption help_options[] = {
	{"words", 0, NULL, "only the words that may follow, one a line"},
	{NULL},
};

static const CliCommand cmd_help = {
	"help",		  "[COMMAND]...", "Show what a command does", NULL, 0, -1,
	help_options, run_help};

/* In the order of the help. */
static const CliCommand *const commands[] = {
	&cmd_enqueue, &cmd_run,	   &cmd_watch,	 &cmd_list,		 &cmd_show,
	&cmd_trace,	  &cmd_read,   &cmd_graph,	 &cmd_cancel,	 &cmd_pause,
	&cmd_resume,  &cmd_retry,  &cmd_signal,	 &cmd_approve,	 &cmd_reject,
	&cmd_purge,	  &cmd_queues, &cmd_workers, &cmd_schedules, &cmd_definitions,
	&cmd_tasks,	  &cmd_top,	   &cmd_doctor,	 &cmd_work,		 &cmd_help,
	NULL,
};

static const CliCommand program = {
	.summary =
		"Follows and steers the tasks of a database with the extension orchestrator",
	.help =
		"Environment and connection files are those of psql: PGHOST, PGSERVICE, .pgpass, ...\n"
		"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no connection, 4 a task that was\n"
		"followed did not complete, 5 not confirmed, 6 and 7 what doctor found, 8 timeout,\n"
		"130 interrupted.",
	.commands = commands,
};

static const CliCommand *
find_command(const CliCommand *parent, const char *name)
{
	for (const CliCommand *const *each = parent->commands; each && *each;
		 each++)
		if (strcmp((*each)->name, name) == 0)
			return *each;
	return NULL;
}

/*
 * argv[0] is the name of a command of the parent, whose own name is path.
 */
static CliExit
run_command(const CliCommand *parent, const char *path, int argc, char **argv)
{
	CliCall call = {0};
	char *name;

	if (argc == 0 || strcmp(argv[0], "--help") == 0 ||
		strcmp(argv[0], "-?") == 0)
	{
		opt_help(parent, path);
		return argc == 0 ? CLI_USAGE : CLI_OK;
	}
	call.command = find_command(parent, argv[0]);
	if (call.command == NULL)
	{
		opt_look_for_json(argc, argv);
		out_error("there is no command \"%s%s%s\"", path,
				  path[0] == '\0' ? "" : " ", argv[0]);
		return CLI_USAGE;
	}
	name = psprintf("%s%s%s", path, path[0] == '\0' ? "" : " ", argv[0]);
	call.path = name;
	if (call.command->commands)
		return run_command(call.command, name, argc - 1, argv + 1);
	opt_parse(&call, argc, argv);
	return call.command->run(&call);
}

static CliExit
run_help(CliCall *call)
{
	const CliCommand *command = &program;
	PQExpBufferData path;

	initPQExpBuffer(&path);
	for (int i = 0; i < call->narguments; i++)
	{
		command = find_command(command, call->arguments[i]);
		if (command == NULL)
			opt_usage(call, "there is no command \"%s\"", call->arguments[i]);
		appendPQExpBuffer(&path, "%s%s", i > 0 ? " " : "", call->arguments[i]);
	}
	if (opt_given(call, "words"))
		opt_words(command);
	else
		opt_help(command, path.data);
	termPQExpBuffer(&path);
	return CLI_OK;
}

int
main(int argc, char **argv)
{
	term_init();
	opt_globals(&argc, &argv);
	cli_exit(run_command(&program, "", argc, argv));
}
