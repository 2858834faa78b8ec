/*
 * taskfile.c
 *	  Definitions as files: reading the folder of a task.
 *
 * Nothing outside of the folder of tasks is read: names have no "/" and do
 * not begin with ".", and what links lead to is resolved and compared with
 * the folder first.  Nothing is opened that is no plain file, so no pipe or
 * device holds us up, and nothing is read beyond its bound.
 */
#include "postgres_fe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "taskfile.h"

#define MEGABYTE	  (1024 * 1024)
#define MOST_DOCUMENT MEGABYTE
#define MOST_BYTES	  (64 * MEGABYTE) /* of all files of a task */
#define MOST_FILES	  1000
#define MOST_DEPTH	  8 /* folders in the folder of a task */
#define MOST_NAME	  100

/* A checksum in the making. */
typedef struct Digest
{
	pg_cryptohash_ctx *hash;
	size_t root; /* length of the name of the folder, with its "/" */
	size_t bytes;
	int files;
	const char *reason; /* it could not be made */
} Digest;

static bool fill(TaskFile *task, Problems *problems);
static bool read_document(TaskFile *task, Problems *problems);
static bool find_files(TaskFile *task, Problems *problems);
static bool find_program(TaskFile *task, Problems *problems);
static char *find_executable(TaskFile *task, Problems *problems);
static char *resolve(const TaskFile *task, const DocNode *key,
					 const char *name, Problems *problems);
static void set_kind(TaskFile *task);
static void check_files(const TaskFile *task, Problems *problems);
static bool make_checksum(TaskFile *task, Problems *problems);
static void digest_folder(Digest *digest, const char *folder, int depth);
static void digest_file(Digest *digest, const char *path);
static pg_cryptohash_ctx *start_hash(void);
static void finish_hash(pg_cryptohash_ctx *hash, TaskFile *task);
static void add_text(pg_cryptohash_ctx *hash, const char *text);
static char **list_folder(const char *folder, int *count);
static void free_names(char **names, int count);

bool
taskfile_good_name(const char *name)
{
	size_t length = strlen(name);

	return length > 0 && length <= MOST_NAME && name[0] != '.' &&
		   name[0] != '-' && name[0] != '_' &&
		   strspn(name, "abcdefghijklmnopqrstuvwxyz"
						"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == length &&
		   strncmp(name, "orchestrator.", 13) != 0;
}

/*
 * Open a plain file for reading: -1, with errno.
 */
static int
open_plain(const char *path)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat about;

	if (fd < 0)
		return -1;
	if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode))
		return fd;
	close(fd);
	errno = EINVAL;
	return -1;
}

char *
taskfile_contents(const char *path, size_t most, size_t *length)
{
	int fd = open_plain(path);
	char *text;
	ssize_t count;

	*length = 0;
	if (fd < 0)
		return NULL;
	text = pg_malloc(most + 1);
	while ((count = read(fd, text + *length, most + 1 - *length)) > 0)
		*length += count;
	close(fd);
	if (count < 0 || *length > most)
	{
		errno = count < 0 ? errno : EFBIG;
		free(text);
		return NULL;
	}
	text[*length] = '\0';
	return pg_realloc(text, *length + 1);
}

static const char *
why(int error)
{
	return error == EINVAL	? "it is not a plain file"
		   : error == EFBIG ? "it is too large"
							: strerror(error);
}

/*
 * A file of a task, resolved; NULL if it is not there or, which is a problem,
 * leads out of its folder.
 */
static char *
resolve(const TaskFile *task, const DocNode *key, const char *name,
		Problems *problems)
{
	char *path = psprintf("%s/%s", task->folder, name);
	char *found = realpath(path, NULL);
	size_t length = strlen(task->folder);
	struct stat about;

	if (found == NULL && (key || lstat(path, &about) == 0))
		problem_add(problems, task->path, 0, key, "%s: %s", name,
					strerror(errno));
	free(path);
	if (found == NULL)
		return NULL;
	if (strncmp(found, task->folder, length) != 0 || found[length] != '/')
		problem_add(problems, task->path, 0, key,
					"%s leads out of the folder of the task", name);
	else if (stat(found, &about) != 0 || !S_ISREG(about.st_mode))
		problem_add(problems, task->path, 0, key, "%s is not a plain file",
					name);
	else
		return found;
	free(found);
	return NULL;
}

static bool
read_document(TaskFile *task, Problems *problems)
{
	char *path = resolve(task, NULL, "task.json", problems);
	char *error;
	size_t length;
	int before = problems->count;
	int line;

	if (path == NULL)
	{
		problem_add(problems, task->path, 0, NULL, "there is no task.json");
		return false;
	}
	task->text = taskfile_contents(path, MOST_DOCUMENT, &length);
	free(path);
	if (task->text == NULL)
	{
		problem_add(problems, task->path, 0, NULL, "%s", why(errno));
		return false;
	}
	task->document = doc_parse(task->text, length, &error, &line);
	if (task->document == NULL)
	{
		problem_add(problems, task->path, line, NULL, "%s", error);
		free(error);
		return false;
	}
	schema_check(task->document, task->path, problems);
	return problems->count == before;
}

/*
 * Executables <name> and <name>.*; there may be one.
 */
static char *
find_executable(TaskFile *task, Problems *problems)
{
	int count;
	char **names = list_folder(task->folder, &count);
	size_t length = strlen(task->name);
	char *found = NULL;
	char *plain = NULL;

	for (int i = 0; i < count; i++)
	{
		const char *ending = names[i] + length;
		char *path;

		if (strncmp(names[i], task->name, length) != 0 ||
			(*ending != '\0' && *ending != '.') ||
			strcmp(ending, ".sql") == 0 || strcmp(ending, ".md") == 0 ||
			strcmp(ending, ".json") == 0)
			continue;
		path = resolve(task, NULL, names[i], problems);
		if (path && access(path, X_OK) == 0 && found)
			problem_add(problems, task->path, 0, NULL,
						"several executables: say which with \"program\"");
		else if (path && access(path, X_OK) == 0)
			found = path;
		else if (path)
			plain = path;
	}
	if (found == NULL && plain)
		problem_add(problems, task->path, 0, NULL,
					"%s is not executable: chmod +x", strrchr(plain, '/') + 1);
	free_names(names, count);
	return found;
}

static bool
find_program(TaskFile *task, Problems *problems)
{
	const DocNode *key = doc_member(task->document, "program");
	const char *kind = doc_text(task->document, "kind");
	int before = problems->count;

	if (key)
		task->program = resolve(task, key, key->text, problems);
	else if (!doc_member(task->document, "steps") &&
			 !doc_member(task->document, "handler") &&
			 (kind == NULL || strcmp(kind, "remote") == 0))
		task->program = find_executable(task, problems);
	if (task->program && key && access(task->program, X_OK) != 0)
		problem_add(problems, task->path, 0, key,
					"%s is not executable: chmod +x", key->text);
	return problems->count == before;
}

static bool
find_files(TaskFile *task, Problems *problems)
{
	static const char *const usual[] = {"requirements.txt", "package.json"};
	const DocNode *key = doc_member(task->document, "dependencies");
	char *script = psprintf("%s.sql", task->name);
	int before = problems->count;

	task->script = resolve(task, NULL, script, problems);
	free(script);
	if (!find_program(task, problems))
		return false;
	if (key)
		task->dependencies = resolve(task, key, key->text, problems);
	for (int i = 0;
		 i < lengthof(usual) && task->program && !task->dependencies && !key;
		 i++)
		task->dependencies = resolve(task, NULL, usual[i], problems);
	return problems->count == before;
}

static void
set_kind(TaskFile *task)
{
	const char *kind = doc_text(task->document, "kind");
	const char *timeout = doc_text(task->document, "timeout");

	if (doc_member(task->document, "steps"))
		kind = "workflow";
	else if (kind == NULL)
		kind = task->program ? "remote" : "function";
	task->kind = pg_strdup(kind);
	task->timeout = timeout ? schema_seconds(timeout) : 0;
}

static void
check_files(const TaskFile *task, Problems *problems)
{
	const DocNode *name = doc_member(task->document, "name");
	bool workflow = strcmp(task->kind, "workflow") == 0;
	bool remote = strcmp(task->kind, "remote") == 0;
	size_t length;
	char *script;

	if (name && strcmp(name->text, task->name) != 0)
		problem_add(problems, task->path, 0, name,
					"\"%s\" is not the name of its folder, \"%s\"", name->text,
					task->name);
	if (!workflow && !remote && !doc_member(task->document, "handler") &&
		!doc_member(task->document, "endpoint") &&
		!doc_member(task->document, "request"))
		problem_add(
			problems, task->path, 0, NULL,
			"there is no handler, program or steps, nor an executable %s.*",
			task->name);
	if (task->dependencies && !task->program)
		problem_add(problems, task->path, 0,
					doc_member(task->document, "dependencies"),
					"only a program has dependencies");
	if (task->script == NULL)
		return;
	script = taskfile_contents(task->script, TASKFILE_SCRIPT, &length);
	if (script == NULL)
		problem_add(problems, task->script, 0, NULL, "%s", why(errno));
	else if (doc_bad_line(script, length) > 0)
		problem_add(problems, task->script, doc_bad_line(script, length), NULL,
					"it is not UTF-8");
	free(script);
}

/* ---------------------------------------------------------------- checksum */

/*
 * The name of each file and what is in it, by the order of the names.  What
 * begins with a dot, and what languages put beside programs, does not count.
 */
static void
digest_folder(Digest *digest, const char *folder, int depth)
{
	int count;
	char **names = list_folder(folder, &count);
	struct stat about;

	if (depth == 0)
		digest->reason = "it has too many folders in each other";
	for (int i = 0; i < count && !digest->reason; i++)
	{
		char *path = psprintf("%s/%s", folder, names[i]);

		if (names[i][0] == '.' || strcmp(names[i], "__pycache__") == 0 ||
			strcmp(names[i], "node_modules") == 0 || lstat(path, &about) != 0)
			;
		else if (S_ISDIR(about.st_mode))
			digest_folder(digest, path, depth - 1);
		else
			digest_file(digest, path);
		free(path);
	}
	free_names(names, count);
}

/*
 * A link counts as the file it leads to, which is in the folder.
 */
static void
digest_file(Digest *digest, const char *path)
{
	char buffer[65536];
	char *found = realpath(path, NULL);
	int fd = -1;
	ssize_t count;
	size_t length = 0;

	if (found && strncmp(found, path, digest->root) == 0)
		fd = open_plain(found);
	free(found);
	if (fd < 0)
	{
		digest->reason = "it has a file that is none, or cannot be read, or a "
						 "link out of its folder";
		return;
	}
	add_text(digest->hash, path + digest->root);
	while ((count = read(fd, buffer, sizeof(buffer))) > 0 &&
		   digest->bytes + length <= MOST_BYTES)
	{
		pg_cryptohash_update(digest->hash, (const uint8 *) buffer, count);
		length += count;
	}
	close(fd);
	/* so that what ends one file cannot begin the next */
	snprintf(buffer, sizeof(buffer), "%zu", length);
	add_text(digest->hash, buffer);
	digest->bytes += length;
	if (count < 0)
		digest->reason = "a file of it cannot be read";
	else if (digest->bytes > MOST_BYTES || ++digest->files > MOST_FILES)
		digest->reason = "it has more than 1000 files, or 64 MB of them";
}

static pg_cryptohash_ctx *
start_hash(void)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);

	if (hash == NULL || pg_cryptohash_init(hash) < 0)
		cli_fail(CLI_FAILED, "there is no SHA-256");
	return hash;
}

static void
finish_hash(pg_cryptohash_ctx *hash, TaskFile *task)
{
	uint8 bytes[PG_SHA256_DIGEST_LENGTH];

	if (pg_cryptohash_final(hash, bytes, sizeof(bytes)) < 0)
		cli_fail(CLI_FAILED, "there is no SHA-256");
	pg_cryptohash_free(hash);
	for (int i = 0; i < PG_SHA256_DIGEST_LENGTH; i++)
		snprintf(task->checksum + 2 * i, 3, "%02x", bytes[i]);
}

static void
add_text(pg_cryptohash_ctx *hash, const char *text)
{
	pg_cryptohash_update(hash, (const uint8 *) text, strlen(text) + 1);
}

static bool
make_checksum(TaskFile *task, Problems *problems)
{
	Digest digest = {start_hash(), strlen(task->folder) + 1};

	digest_folder(&digest, task->folder, MOST_DEPTH);
	finish_hash(digest.hash, task);
	if (digest.reason)
		problem_add(problems, task->path, 0, NULL, "%s", digest.reason);
	return digest.reason == NULL;
}

/* ----------------------------------------------------------------- folders */

static int
compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/*
 * What is in a folder, sorted; count is -1 if it cannot be read.
 */
static char **
list_folder(const char *folder, int *count)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	char **names = NULL;

	*count = dir ? 0 : -1;
	while (dir && (entry = readdir(dir)) != NULL)
	{
		names = pg_realloc(names, (*count + 1) * sizeof(char *));
		names[(*count)++] = pg_strdup(entry->d_name);
	}
	if (dir)
		closedir(dir);
	if (*count > 0)
		qsort(names, *count, sizeof(char *), compare_texts);
	return names;
}

static void
free_names(char **names, int count)
{
	for (int i = 0; i < count; i++)
		free(names[i]);
	free(names);
}

static bool
fill(TaskFile *task, Problems *problems)
{
	int before = problems->count;

	if (!read_document(task, problems) || !find_files(task, problems))
		return false;
	set_kind(task);
	check_files(task, problems);
	return problems->count == before && make_checksum(task, problems);
}

/*
 * The folder of a task, resolved; NULL, with a problem.
 */
static char *
find_folder(const char *folder, const char *name, Problems *problems)
{
	char *path = psprintf("%s/%s", folder, name);
	char *root = realpath(folder, NULL);
	char *found = root ? realpath(path, NULL) : NULL;
	size_t length = root ? strlen(root) : 0;
	struct stat about;

	if (found == NULL)
		problem_add(problems, path, 0, NULL, "%s",
					errno == ENOENT ? "there is no such task"
									: strerror(errno));
	else if (strncmp(found, root, length) != 0 ||
			 (found[length] != '/' && length > 1))
		problem_add(problems, path, 0, NULL,
					"it leads out of the folder of tasks");
	else if (stat(found, &about) != 0 || !S_ISDIR(about.st_mode))
		problem_add(problems, path, 0, NULL, "it is not a folder");
	else
	{
		free(path);
		free(root);
		return found;
	}
	free(path);
	free(root);
	free(found);
	return NULL;
}

TaskFile *
taskfile_read(const char *folder, const char *name, Problems *problems)
{
	TaskFile *task;
	char *found;

	if (!taskfile_good_name(name))
	{
		problem_add(
			problems, folder, 0, NULL,
			"\"%s\" cannot be the name of a task in a file: letters, digits, _, - and ., at most %d",
			name, MOST_NAME);
		return NULL;
	}
	found = find_folder(folder, name, problems);
	if (found == NULL)
		return NULL;
	task = pg_malloc0(sizeof(TaskFile));
	task->name = pg_strdup(name);
	task->folder = found;
	task->path = psprintf("%s/%s/task.json", folder, name);
	if (fill(task, problems))
		return task;
	taskfile_free(task);
	return NULL;
}

bool
taskfile_exists(const char *folder, const char *name)
{
	char *path;
	bool exists;

	if (!taskfile_good_name(name))
		return false;
	path = psprintf("%s/%s/task.json", folder, name);
	exists = access(path, F_OK) == 0;
	free(path);
	return exists;
}

/*
 * Each folder in the folder of tasks is a task, unless its name begins with
 * "." or "_".
 */
char **
taskfile_names(const char *folder, int *count, Problems *problems)
{
	char **names = list_folder(folder, count);
	struct stat about;
	int kept = 0;

	if (*count < 0)
		problem_add(problems, folder, 0, NULL, "%s", strerror(errno));
	for (int i = 0; i < *count; i++)
	{
		char *path = psprintf("%s/%s", folder, names[i]);

		if (names[i][0] == '.' || names[i][0] == '_' ||
			(stat(path, &about) == 0 && !S_ISDIR(about.st_mode)))
			free(names[i]);
		else
			names[kept++] = names[i];
		free(path);
	}
	*count = kept;
	return names;
}

void
taskfile_add_checksum(TaskFile *task, const char *other)
{
	pg_cryptohash_ctx *hash = start_hash();

	add_text(hash, task->checksum);
	add_text(hash, other);
	finish_hash(hash, task);
}

void
taskfile_free(TaskFile *task)
{
	if (task == NULL)
		return;
	free(task->name);
	free(task->kind);
	free(task->folder);
	free(task->program);
	free(task->script);
	free(task->dependencies);
	free(task->text);
	free(task->path);
	doc_free(task->document);
	free(task);
}
