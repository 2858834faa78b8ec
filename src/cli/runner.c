/*
 * runner.c
 *	  How the program of a definition is run: where it is, and the environment
 *	  with what it needs, which is made once.
 *
 * Environments stand in a folder of their own, each under the checksum of what
 * it was made from.  One that is complete has a file "ready"; whoever makes it
 * holds the lock beside it, which goes with the process.
 */
#include "postgres_fe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "taskfile.h"
#include "work.h"

/* Of requirements.txt, package.json and its lock. */
#define MOST_BYTES (4 * 1024 * 1024)

#define READY_FILE "ready"

/* Folders of tasks are looked for again: what is in them may have come late. */
#define NAMES_SECONDS 2.0

extern char **environ;

/* $1: the environment, $2: the file; in the folder of the task. */
static const char python_script[] =
	"set -e; exec >&2; rm -rf \"$1\"; python3 -m venv \"$1\"\n"
	"\"$1/bin/python\" -m pip install --quiet --disable-pip-version-check --no-input -r \"$2\"\n"
	": >\"$1/" READY_FILE "\"";
static const char node_script[] =
	"set -e; exec >&2; rm -rf \"$1\"; cp -R . \"$1\"; cp \"$2\" \"$1/package.json\"; cd \"$1\"; rm -rf node_modules\n"
	"npm install --omit=dev --no-audit --no-fund --loglevel=error\n"
	": >\"$1/" READY_FILE "\"";

/* What a runner was read from, to see whether that has changed. */
typedef struct Stamp
{
	struct timespec folder;
	struct timespec document;
	struct timespec dependencies;
} Stamp;

typedef struct Known
{
	Runner runner; /* first */
	struct Known *next;
	char *name;
	TaskFile *task;
	Stamp stamp;
	int lock;	/* held while its environment is made; else -1 */
	bool ready; /* that is there */
} Known;

static const char *root;
static char *cache;
static Known *all_known = NULL;

static char *default_cache(void);
static Known *find_known(const char *name);
static bool read_task(Known *known, const char **reason);
static void look_at_files(const Known *known, Stamp *stamp);
static struct timespec changed_at(const char *path);
static void set_environment(Known *known);
static char *make_checksum(const TaskFile *task);
static bool is_python(const TaskFile *task);
static bool is_made(const Known *known);
static bool is_ours(const char *variable, const Runner *runner,
					bool preparing);

void
runner_init(const char *folder, const char *cache_folder)
{
	struct stat about;
	char here[MAXPGPATH];

	root = folder ? folder : TASKFILE_FOLDER;
	errno = ENOTDIR;
	if (stat(root, &about) != 0 || !S_ISDIR(about.st_mode))
		cli_fail(CLI_FAILED, "could not open folder \"%s\": %s", root,
				 strerror(errno));
	cache = cache_folder ? pg_strdup(cache_folder) : default_cache();
	/* what makes environments runs elsewhere */
	if (cache[0] != '/' && getcwd(here, sizeof(here)))
		cache = psprintf("%s/%s", here, cache);
}

static char *
default_cache(void)
{
	const char *base = getenv("XDG_CACHE_HOME");

	if (base && base[0] == '/')
		return psprintf("%s/orchestrator", base);
	base = getenv("HOME");
	return psprintf("%s/.cache/orchestrator", base ? base : "/tmp");
}

/*
 * Names that have a folder; NULL as long as there is none.
 */
char *
runner_names(void)
{
	static struct timespec seen;
	static double looked_at;
	static char *names = NULL;
	struct timespec now = changed_at(root);
	const char **found = NULL;
	int count = 0;
	DIR *dir;
	struct dirent *entry;

	if (names && memcmp(&now, &seen, sizeof(seen)) == 0 &&
		term_now() < looked_at + NAMES_SECONDS)
		return names;
	seen = now;
	looked_at = term_now();
	free(names);
	names = NULL;
	dir = opendir(root);
	while (dir && (entry = readdir(dir)) != NULL)
	{
		if (!taskfile_good_name(entry->d_name) ||
			!taskfile_exists(root, entry->d_name))
			continue;
		found = pg_realloc(found, (count + 1) * sizeof(char *));
		found[count++] = pg_strdup(entry->d_name);
	}
	if (dir)
		closedir(dir);
	if (count > 0)
		names = db_array(found, count);
	for (int i = 0; i < count; i++)
		free((char *) found[i]);
	free(found);
	return names;
}

static Known *
find_known(const char *name)
{
	Known *known = all_known;

	while (known && strcmp(known->name, name) != 0)
		known = known->next;
	if (known)
		return known;
	known = pg_malloc0(sizeof(Known));
	known->name = pg_strdup(name);
	known->lock = -1;
	known->next = all_known;
	all_known = known;
	return known;
}

Runner *
runner_find(const char *name, const char **reason)
{
	static char *text = NULL;
	Known *known;
	Stamp now;

	free(text);
	text = NULL;
	if (!taskfile_good_name(name) || !taskfile_exists(root, name))
	{
		*reason = text = psprintf("there is no task \"%s\" in %s", name, root);
		return NULL;
	}
	known = find_known(name);
	if (known->task)
	{
		look_at_files(known, &now);
		/* while its environment is made it stays what it was */
		if (known->lock >= 0 || memcmp(&now, &known->stamp, sizeof(now)) == 0)
			return &known->runner;
	}
	return read_task(known, reason) ? &known->runner : NULL;
}

static bool
read_task(Known *known, const char **reason)
{
	static PQExpBufferData text;
	Problems problems = {NULL, 0};

	if (known->task)
		taskfile_free(known->task);
	known->task = taskfile_read(root, known->name, &problems);
	if (known->task && known->task->program == NULL)
		problem_add(&problems, known->task->path, 0, NULL,
					"there is no program: an executable %s or %s.*",
					known->name, known->name);
	if (problems.count == 0)
	{
		known->runner.folder = known->task->folder;
		known->runner.program = known->task->program;
		set_environment(known);
		look_at_files(known, &known->stamp);
		return true;
	}
	if (text.data == NULL)
		initPQExpBuffer(&text);
	resetPQExpBuffer(&text);
	for (int i = 0; i < problems.count; i++)
	{
		appendPQExpBufferStr(&text, i > 0 ? "\n" : "");
		problem_append_text(&text, &problems.items[i]);
	}
	*reason = text.data;
	problem_free(&problems);
	if (known->task)
		taskfile_free(known->task);
	known->task = NULL;
	return false;
}

static void
look_at_files(const Known *known, Stamp *stamp)
{
	char *document = psprintf("%s/task.json", known->task->folder);

	memset(stamp, 0, sizeof(*stamp));
	stamp->folder = changed_at(known->task->folder);
	stamp->document = changed_at(document);
	if (known->task->dependencies)
		stamp->dependencies = changed_at(known->task->dependencies);
	free(document);
}

static struct timespec
changed_at(const char *path)
{
	struct stat about;
	struct timespec never = {0, 0};

	if (stat(path, &about) != 0)
		return never;
#ifdef __APPLE__
	return about.st_mtimespec;
#else
	return about.st_mtim;
#endif
}

/* ------------------------------------------------------------ environments */

static bool
is_python(const TaskFile *task)
{
	const char *ending = strrchr(task->dependencies, '.');

	return ending && strcmp(ending, ".txt") == 0;
}

/*
 * Where it is, and what programs have to be told to find what is there.
 */
static void
set_environment(Known *known)
{
	Runner *runner = &known->runner;
	const char *path = getenv("PATH");
	char *checksum;

	for (int i = 0; i < RUNNER_VARIABLES; i++)
	{
		free(runner->variables[i]);
		runner->variables[i] = NULL;
	}
	free(runner->environment);
	runner->environment = NULL;
	known->ready = true;
	if (known->task->dependencies == NULL)
		return;
	checksum = make_checksum(known->task);
	runner->environment =
		psprintf("%s/%s-%.16s", cache, known->name, checksum);
	free(checksum);
	path = path ? path : "/usr/bin:/bin";
	if (is_python(known->task))
	{
		runner->script = python_script;
		runner->variables[0] =
			psprintf("PATH=%s/bin:%s", runner->environment, path);
		runner->variables[1] = psprintf("VIRTUAL_ENV=%s", runner->environment);
	}
	else
	{
		runner->script = node_script;
		runner->variables[0] = psprintf("PATH=%s/node_modules/.bin:%s",
										runner->environment, path);
		runner->variables[1] =
			psprintf("NODE_PATH=%s/node_modules", runner->environment);
	}
	runner->dependencies = known->task->dependencies;
	known->ready = is_made(known);
}

/*
 * Of the folder as well: what is named there may be relative to it.
 */
static char *
make_checksum(const TaskFile *task)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	char *lock = psprintf("%s/package-lock.json", task->folder);
	const char *files[] = {task->dependencies, lock};
	uint8 bytes[PG_SHA256_DIGEST_LENGTH];
	PQExpBufferData text;
	bool good;

	good = hash && pg_cryptohash_init(hash) >= 0 &&
		   pg_cryptohash_update(hash, (const uint8 *) task->folder,
								strlen(task->folder)) >= 0;
	for (int i = 0; i < lengthof(files) && good; i++)
	{
		size_t length;
		char *contents = taskfile_contents(files[i], MOST_BYTES, &length);

		if (contents)
			good = pg_cryptohash_update(hash, (const uint8 *) contents,
										length) >= 0;
		free(contents);
	}
	if (!good || pg_cryptohash_final(hash, bytes, sizeof(bytes)) < 0)
		cli_fail(CLI_FAILED, "there is no SHA-256");
	pg_cryptohash_free(hash);
	free(lock);
	initPQExpBuffer(&text);
	for (int i = 0; i < sizeof(bytes); i++)
		appendPQExpBuffer(&text, "%02x", bytes[i]);
	return text.data;
}

static bool
is_made(const Known *known)
{
	char *file = psprintf("%s/" READY_FILE, known->runner.environment);
	bool made = access(file, F_OK) == 0;

	free(file);
	return made;
}

RunnerState
runner_prepare(Runner *runner, const char **reason)
{
	Known *known = (Known *) runner;
	char *folder;
	char *path;

	if (known->ready)
		return RUNNER_READY;
	if (known->lock >= 0)
		return RUNNER_BUSY;
	folder = pg_strdup(cache);
	path = psprintf("%s.lock", runner->environment);
	if (pg_mkdir_p(folder, S_IRWXU) == 0)
		known->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	free(folder);
	free(path);
	if (known->lock < 0)
	{
		*reason = strerror(errno);
		return RUNNER_FAILED;
	}
	if (flock(known->lock, LOCK_EX | LOCK_NB) != 0)
	{
		runner_prepared(runner);
		return RUNNER_BUSY;
	}
	if (!is_made(known))
		return RUNNER_MISSING;
	runner_prepared(runner);
	return RUNNER_READY;
}

void
runner_prepared(Runner *runner)
{
	Known *known = (Known *) runner;

	close(known->lock);
	known->lock = -1;
	known->ready = is_made(known);
}

/*
 * Ours without what another worker may have put there, of the task, and of
 * what its program needs.
 */
char **
runner_environment(const Runner *runner, bool preparing, const char *variables,
				   int nvariables)
{
	char **all;
	int count = 0;
	int n = 0;

	while (environ[count])
		count++;
	all = pg_malloc((count + nvariables + RUNNER_VARIABLES + 1) *
					sizeof(char *));
	for (int i = 0; i < RUNNER_VARIABLES && !preparing; i++)
		if (runner->variables[i])
			all[n++] = runner->variables[i];
	for (int i = 0; i < nvariables; i++)
	{
		all[n++] = (char *) variables;
		variables += strlen(variables) + 1;
	}
	for (int i = 0; i < count; i++)
		if (!is_ours(environ[i], runner, preparing))
			all[n++] = environ[i];
	all[n] = NULL;
	return all;
}

static bool
is_ours(const char *variable, const Runner *runner, bool preparing)
{
	if (strncmp(variable, "ORCHESTRATOR_", 13) == 0)
		return true;
	for (int i = 0; i < RUNNER_VARIABLES && !preparing; i++)
	{
		const char *own = runner->variables[i];

		if (own && strncmp(own, variable, strchr(own, '=') + 1 - own) == 0)
			return true;
	}
	return false;
}
