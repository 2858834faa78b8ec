/*
 * option.c
 *	  The options of the program and of its commands, and the help that is
 *	  made of them.
 */
#include "postgres_fe.h"

#include <errno.h>
#include <limits.h>
#include <math.h>

#include "cli.h"
#include "getopt_long.h"

/* Beyond any letter. */
#define FIRST_LONG 256

#define MOST_OPTIONS 64

typedef struct CliValue
{
	const char *name;
	const char *value; /* NULL: the option takes none */
} CliValue;

/* In front of any command or behind it. */
static const CliOption global_options[] = {
	{"host", 'h', "HOST", "server, or folder of its socket"},
	{"port", 'p', "PORT", "port of the server"},
	{"username", 'U', "ROLE", "role to connect as"},
	{"dbname", 'd', "DATABASE", "database, or a connection string"},
	{"no-password", 'w', NULL, "never ask for a password"},
	{"password", 'W', NULL, "ask for a password first"},
	{"json", 'j', NULL, "write JSON"},
	{"color", 0, "WHEN", "auto, always or never"},
	{"yes", 'y', NULL, "do not ask before doing something to many"},
	{"help", '?', NULL, "show this help"},
	{"version", 'V', NULL, "show the version"},
	{NULL},
};

static bool take_global(const CliOption *option, const char *value);
static const CliOption *find_option(const CliOption *const *sets, int code);
static void build_options(const CliOption *const *sets, char *letters,
						  struct option *longs);
static int next_option(const CliOption *const *sets, int argc, char **argv,
					   bool stop, const CliOption **option);
static void add_value(CliCall *call, const char *name, const char *value);
static _Noreturn void refuse_option(const char *path, int code, int argc,
									char **argv);
static void say_try(const char *path);
static void help_options(PQExpBuffer to, const char *title,
						 const CliOption *options);
static char *read_all(FILE *file);

static bool
take_global(const CliOption *option, const char *value)
{
	const CliOption *end = global_options + lengthof(global_options);

	if (option < global_options || option >= end)
		return false;
	switch (option->letter)
	{
		case 'h':
			cli_settings.host = value;
			break;
		case 'p':
			cli_settings.port = value;
			break;
		case 'U':
			cli_settings.user = value;
			break;
		case 'd':
			cli_settings.dbname = value;
			break;
		case 'w':
			cli_settings.password = -1;
			break;
		case 'W':
			cli_settings.password = 1;
			break;
		case 'j':
			cli_settings.json = true;
			break;
		case 'y':
			cli_settings.yes = true;
			break;
		case 'V':
			printf("%s %s\n", cli_program, ORCHESTRATOR_VERSION);
			cli_exit(CLI_OK);
		case '?':
			return false;
		default:
			cli_settings.color = value;
			if (strcmp(value, "auto") != 0 && strcmp(value, "always") != 0 &&
				strcmp(value, "never") != 0)
			{
				out_error("--color takes auto, always or never, not \"%s\"",
						  value);
				cli_exit(CLI_USAGE);
			}
	}
	return true;
}

/*
 * Options of all sets as getopt_long() wants them: the value of one is its
 * letter, or FIRST_LONG and its number.
 */
static void
build_options(const CliOption *const *sets, char *letters,
			  struct option *longs)
{
	int count = 0;

	*letters++ = ':';
	for (; *sets != NULL; sets++)
		for (const CliOption *option = *sets; option->name != NULL; option++)
		{
			Assert(count < MOST_OPTIONS - 1);
			longs[count].name = option->name;
			longs[count].has_arg =
				option->argument ? required_argument : no_argument;
			longs[count].flag = NULL;
			longs[count].val = FIRST_LONG + count;
			count++;
			if (option->letter == 0 || option->letter == '?')
				continue;
			*letters++ = option->letter;
			if (option->argument)
				*letters++ = ':';
		}
	*letters = '\0';
	memset(&longs[count], 0, sizeof(longs[count]));
}

static const CliOption *
find_option(const CliOption *const *sets, int code)
{
	int count = FIRST_LONG;

	for (; *sets != NULL; sets++)
		for (const CliOption *option = *sets; option->name != NULL; option++)
			if (option->letter == code || count++ == code)
				return option;
	return NULL;
}

/*
 * As getopt_long(): -1 at the end, '?' and ':' for what is wrong.
 */
static int
next_option(const CliOption *const *sets, int argc, char **argv, bool stop,
			const CliOption **option)
{
	char letters[MOST_OPTIONS * 2 + 3] = "+";
	struct option longs[MOST_OPTIONS];
	int code;

	build_options(sets, letters + (stop ? 1 : 0), longs);
	opterr = 0;
	code = getopt_long(argc, argv, letters, longs, NULL);
	*option = NULL;
	if (code == '?' && optopt == '?' && strcmp(argv[optind - 1], "-?") == 0)
		code = optopt;
	else if (code == '?' || code == ':' || code == -1)
		return code;
	*option = find_option(sets, code);
	return 0;
}

void
opt_look_for_json(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--json") == 0 || strcmp(argv[i], "-j") == 0)
			cli_settings.json = true;
}

/*
 * What getopt_long() did not take.
 */
static void
refuse_option(const char *path, int code, int argc, char **argv)
{
	char letter[] = {'-', (char) optopt, '\0'};
	bool is_letter = optopt != 0 && optopt < FIRST_LONG;
	const char *name = is_letter ? letter : argv[optind - 1];

	opt_look_for_json(argc, argv);
	if (path[0] != '\0')
		name = psprintf("%s: option %s", path, name);
	else
		name = psprintf("option %s", name);
	if (code == ':')
		out_error("%s needs a value", name);
	else if (optopt >= FIRST_LONG)
		out_error("%s takes no value", name);
	else
		out_error("%s is unknown", name);
	say_try(path);
	cli_exit(CLI_USAGE);
}

static void
say_try(const char *path)
{
	if (cli_settings.json)
		return;
	fprintf(stderr, "Try \"%s %s%s--help\".\n", cli_program, path,
			path[0] == '\0' ? "" : " ");
}

/*
 * What stands before the command.  argc and argv become the rest.
 */
void
opt_globals(int *argc, char ***argv)
{
	const CliOption *const sets[] = {global_options, NULL};
	const CliOption *option;
	int code;

	while ((code = next_option(sets, *argc, *argv, true, &option)) != -1)
	{
		if (option == NULL)
			refuse_option("", code, *argc, *argv);
		if (option->letter == '?')
			break;
		take_global(option, optarg);
	}
	*argv += optind - (code == -1 ? 0 : 1);
	*argc -= optind - (code == -1 ? 0 : 1);
}

static void
add_value(CliCall *call, const char *name, const char *value)
{
	call->values =
		pg_realloc(call->values, (call->nvalues + 1) * sizeof(CliValue));
	call->values[call->nvalues].name = name;
	call->values[call->nvalues].value = value;
	call->nvalues++;
}

/*
 * argv[0] is the command.
 */
void
opt_parse(CliCall *call, int argc, char **argv)
{
	static const CliOption none[] = {{NULL}};
	const CliCommand *command = call->command;
	const CliOption *const sets[] = {
		command->options ? command->options : none, global_options, NULL};
	const CliOption *option;
	int code;

	optind = 0;
	while ((code = next_option(sets, argc, argv, false, &option)) != -1)
	{
		if (option == NULL)
			refuse_option(call->path, code, argc, argv);
		if (option->letter == '?')
		{
			opt_help(command, call->path);
			cli_exit(CLI_OK);
		}
		if (!take_global(option, optarg))
			add_value(call, option->name, optarg);
	}
	call->arguments = argv + optind;
	call->narguments = argc - optind;
	if (call->narguments < command->least)
		opt_usage(call, "%s is missing", command->arguments);
	if (command->most >= 0 && call->narguments > command->most)
		opt_usage(call, "too many arguments: \"%s\"",
				  call->arguments[command->most]);
}

void
opt_usage(const CliCall *call, const char *format, ...)
{
	char *text;
	va_list args;

	va_start(args, format);
	text = text_format(format, args);
	va_end(args);
	out_error("%s: %s", call->path, text);
	say_try(call->path);
	cli_exit(CLI_USAGE);
}

static void
help_options(PQExpBuffer to, const char *title, const CliOption *options)
{
	char left[64];

	if (options == NULL)
		return;
	appendPQExpBuffer(to, "\n%s:\n", title);
	for (; options->name != NULL; options++)
	{
		snprintf(left, sizeof(left), "%s%s", options->name,
				 options->argument ? "=" : "");
		if (options->argument)
			strlcat(left, options->argument, sizeof(left));
		if (options->letter)
			appendPQExpBuffer(to, "  -%c, --%-24s %s\n", options->letter, left,
							  options->help);
		else
			appendPQExpBuffer(to, "      --%-24s %s\n", left, options->help);
	}
}

void
opt_help(const CliCommand *command, const char *path)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	appendPQExpBuffer(&text, "Usage: %s [OPTION]... ", cli_program);
	if (command->commands)
		appendPQExpBuffer(&text, "%s%sCOMMAND [OPTION]... [ARGUMENT]...\n",
						  path, path[0] == '\0' ? "" : " ");
	else
		appendPQExpBuffer(&text, "%s [OPTION]...%s%s\n", path,
						  command->arguments ? " " : "",
						  command->arguments ? command->arguments : "");
	appendPQExpBuffer(&text, "%s.\n", command->summary);
	if (command->help)
		appendPQExpBuffer(&text, "\n%s\n", command->help);
	if (command->commands)
	{
		appendPQExpBufferStr(&text, "\nCommands:\n");
		for (const CliCommand *const *each = command->commands; *each; each++)
			appendPQExpBuffer(&text, "  %-12s %s\n", (*each)->name,
							  (*each)->summary);
	}
	help_options(&text, "Options", command->options);
	help_options(&text, "Options of every command", global_options);
	fputs(text.data, stdout);
	termPQExpBuffer(&text);
}

/*
 * What may stand behind a command, for completion.
 */
void
opt_words(const CliCommand *command)
{
	const CliOption *const sets[] = {command->options, global_options};

	for (const CliCommand *const *each = command->commands; each && *each;
		 each++)
		puts((*each)->name);
	for (int i = 0; i < lengthof(sets); i++)
		for (const CliOption *option = sets[i]; option && option->name;
			 option++)
			printf("--%s%s\n", option->name, option->argument ? "=" : "");
}

bool
opt_given(const CliCall *call, const char *name)
{
	for (int i = 0; i < call->nvalues; i++)
		if (strcmp(call->values[i].name, name) == 0)
			return true;
	return false;
}

const char *
opt_value(const CliCall *call, const char *name)
{
	const char *value = NULL;

	for (int i = 0; i < call->nvalues; i++)
		if (strcmp(call->values[i].name, name) == 0)
			value = call->values[i].value;
	return value;
}

char *
opt_array(const CliCall *call, const char *name)
{
	const char **values = pg_malloc((call->nvalues + 1) * sizeof(char *));
	char *array = NULL;
	int count = 0;

	for (int i = 0; i < call->nvalues; i++)
		if (strcmp(call->values[i].name, name) == 0)
			values[count++] = call->values[i].value;
	if (count > 0)
		array = db_array(values, count);
	free(values);
	return array;
}

long
opt_number(const CliCall *call, const char *name, long least, long most,
		   long otherwise)
{
	const char *value = opt_value(call, name);
	char *end;
	long number;

	if (value == NULL)
		return otherwise;
	errno = 0;
	number = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || number < least ||
		number > most)
		opt_usage(call, "--%s takes a number from %ld to %ld, not \"%s\"",
				  name, least, most, value);
	return number;
}

double
opt_seconds(const CliCall *call, const char *name, double otherwise)
{
	const char *value = opt_value(call, name);
	char *end;
	double seconds;

	if (value == NULL)
		return otherwise;
	seconds = strtod(value, &end);
	if (end == value || *end != '\0' || !isfinite(seconds) || seconds <= 0 ||
		seconds > 1e8)
		opt_usage(call, "--%s takes a number of seconds, not \"%s\"", name,
				  value);
	return seconds;
}

long long
opt_task(const CliCall *call, const char *argument)
{
	char *end;
	long long task;

	errno = 0;
	task = strtoll(argument, &end, 10);
	if (errno != 0 || *end != '\0' || task <= 0 ||
		strspn(argument, "0123456789") != strlen(argument))
		opt_usage(call, "\"%s\" is not the number of a task", argument);
	return task;
}

static char *
read_all(FILE *file)
{
	PQExpBufferData text;
	char piece[8192];
	size_t count;

	initPQExpBuffer(&text);
	while ((count = fread(piece, 1, sizeof(piece), file)) > 0)
		appendBinaryPQExpBuffer(&text, piece, count);
	if (term_interrupted())
		cli_exit(CLI_INTERRUPTED);
	if (ferror(file) || PQExpBufferBroken(&text))
		return NULL;
	if (strlen(text.data) != text.len)
		cli_fail(CLI_FAILED, "the input has a byte 0");
	return text.data;
}

char *
opt_json(const CliCall *call, const char *value)
{
	char *text;
	FILE *file;

	if (value == NULL)
		return NULL;
	if (strcmp(value, "-") == 0)
		text = read_all(stdin);
	else if (value[0] == '@')
	{
		file = fopen(value + 1, "r");
		text = file ? read_all(file) : NULL;
		if (file)
			fclose(file);
	}
	else
		return pg_strdup(value);
	if (text == NULL)
		cli_fail(CLI_FAILED, "could not read \"%s\": %s",
				 value[0] == '@' ? value + 1 : "standard input",
				 strerror(errno));
	return text;
}
