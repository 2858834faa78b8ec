/*
 * note.c
 *	  The note file: which step each executor runs, told to whoever starts the
 *	  server after a crash.
 *
 * An executor writes its entry by plain stores.  They need no lock and no
 * write to the file: the pages belong to the kernel, which keeps them when the
 * process dies at any instruction.  The postmaster reads them when all
 * processes are gone.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "note.h"
#include "shmem.h"

#ifdef EXEC_BACKEND
#error                                                                        \
	"the mapping of the note file is inherited by fork: EXEC_BACKEND is not supported"
#endif

#define NOTE_FILE	 "orchestrator.notes"
#define NOTE_MAGIC	 UINT64CONST(0x6f7263686e6f7465)
#define NOTE_VERSION 1

#define BOOT_ID_FILE "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_SIZE 40

/* The breaker: so many crashes so close keep executors out for so long. */
#define CRASHES_KEPT	16
#define CRASHES_TO_TRIP 3
#define CRASH_WINDOW	(60 * USECS_PER_SEC)
#define FIRST_BACKOFF	(5 * USECS_PER_SEC)
#define MOST_BACKOFF	(60 * USECS_PER_SEC)

/* After a crash in a step, steps without rows are not run for so long: they
 * cannot be charged (workflow.c). */
#define STRAIGHT_ON_PAUSE (600 * USECS_PER_SEC)

typedef struct NoteHeader
{
	uint64 magic;
	uint32 version;
	uint32 ncrashes; /* ever; the last is in crashes[(ncrashes - 1) % kept] */
	uint64 inode;	 /* of the file: a copy of it tells of another server */
	char boot_id[BOOT_ID_SIZE];
	TimestampTz crashes[CRASHES_KEPT];
	TimestampTz breaker_until;
	int64 backoff; /* microseconds; 0: the breaker has not tripped */
} NoteHeader;

typedef struct NoteEntry
{
	Oid dboid;
	int32 epoch;
	int64 task;
	int32 attempt;
	uint32 in_use;
	uint32 innocent;
	uint32 present; /* an executor has the slot */
} NoteEntry;

/* A cache line each: they are written twice for every step. */
typedef struct NoteFile
{
	union
	{
		NoteHeader header;
		char line[512];
	};
	union
	{
		NoteEntry entry;
		char line[PG_CACHE_LINE_SIZE];
	} entries[ORCH_MAX_GUILTY];
} NoteFile;

StaticAssertDecl(sizeof(NoteHeader) <= 512, "the header outgrew its place");

static NoteFile *notes = NULL;

static NoteFile *map_file(uint64 *inode);
static bool fill_file(int fd);
static void *warn_of_file(int fd, const char *what);
static void read_boot_id(char *boot_id);
static bool belongs_to_us(uint64 inode);
static void start_over(uint64 inode);
static int take_evidence(void);
static void count_crash(TimestampTz now);
static int recent_crashes(TimestampTz now);
static void set_breaker(TimestampTz now);
static volatile NoteEntry *entry_of(int slot);

void
orch_note_load(void)
{
	TimestampTz now = GetCurrentTimestamp();

	/* A server in single-user mode runs no step: leave it what it found. */
	if (!IsPostmasterEnvironment)
		return;

	if (notes == NULL)
	{
		uint64 inode;

		notes = map_file(&inode);
		if (notes == NULL)
			return;
		if (!belongs_to_us(inode))
			start_over(inode);
	}

	if (take_evidence() > 0)
		count_crash(now);
	if (orch_shared->nguilty > 0)
		orch_shared->straight_on_from = now + STRAIGHT_ON_PAUSE;
	set_breaker(now);
}

/*
 * NULL when that cannot be done; then a warning was logged.
 */
static NoteFile *
map_file(uint64 *inode)
{
	char path[MAXPGPATH];
	struct stat status;
	int fd;
	void *map;

	snprintf(path, sizeof(path), "%s/" NOTE_FILE, DataDir);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		return warn_of_file(fd, "open");
	if (fstat(fd, &status) < 0)
		return warn_of_file(fd, "stat");
	if (status.st_size != sizeof(NoteFile) && !fill_file(fd))
		return warn_of_file(fd, "write");

	map = mmap(NULL, sizeof(NoteFile), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   0);
	if (map == MAP_FAILED)
		return warn_of_file(fd, "map");
	close(fd);
	*inode = (uint64) status.st_ino;
	return map;
}

/*
 * Make the file zeros of the right size.  They are written, not merely
 * declared by its length: a store into a page that the file system then has
 * no room for would be a crash.
 */
static bool
fill_file(int fd)
{
	char zeros[1024] = {0};
	size_t done = 0;

	if (ftruncate(fd, 0) < 0)
		return false;
	while (done < sizeof(NoteFile))
	{
		size_t size = Min(sizeof(zeros), sizeof(NoteFile) - done);

		errno = 0;
		if (write(fd, zeros, size) != (ssize_t) size)
		{
			if (errno == 0)
				errno = ENOSPC;
			return false;
		}
		done += size;
	}
	return true;
}

static void *
warn_of_file(int fd, const char *what)
{
	int failure = errno;

	if (fd >= 0)
		close(fd);
	errno = failure;
	ereport(
		WARNING,
		(errcode_for_file_access(),
		 errmsg("could not %s file \"%s\": %m", what, NOTE_FILE),
		 errdetail(
			 "A step that crashes the server may not be charged an attempt for it.")));
	return NULL;
}

/*
 * An empty string where the system has no such thing.  All its boots then
 * count as one, and after a crash of the machine a step may be charged an
 * attempt for nothing; without evidence a step that crashes the server would
 * be run for ever.
 */
static void
read_boot_id(char *boot_id)
{
	int fd = BasicOpenFile(BOOT_ID_FILE, O_RDONLY | PG_BINARY);

	memset(boot_id, 0, BOOT_ID_SIZE);
	if (fd < 0)
		return;
	if (read(fd, boot_id, 36) != 36)
		memset(boot_id, 0, BOOT_ID_SIZE);
	close(fd);
}

static bool
belongs_to_us(uint64 inode)
{
	NoteHeader *header = &notes->header;
	char boot_id[BOOT_ID_SIZE];

	read_boot_id(boot_id);
	return header->magic == NOTE_MAGIC && header->version == NOTE_VERSION &&
		   header->inode == inode &&
		   memcmp(header->boot_id, boot_id, BOOT_ID_SIZE) == 0;
}

static void
start_over(uint64 inode)
{
	NoteHeader *header = &notes->header;

	memset(notes, 0, sizeof(NoteFile));
	header->version = NOTE_VERSION;
	header->inode = inode;
	read_boot_id(header->boot_id);
	header->magic = NOTE_MAGIC;
}

/*
 * Move what the entries say into shared memory.  Returns how many executors
 * died that are not innocent, with a step or outside of one.
 */
static int
take_evidence(void)
{
	int count = 0;
	int died = 0;

	for (int i = 0; i < ORCH_MAX_GUILTY; i++)
	{
		NoteEntry *entry = &notes->entries[i].entry;

		if (entry->present && !entry->innocent)
			died++;
		if (entry->in_use && !entry->innocent && OidIsValid(entry->dboid))
		{
			OrchGuilty *guilty = &orch_shared->guilty[count++];

			guilty->dboid = entry->dboid;
			guilty->task = entry->task;
			guilty->epoch = entry->epoch;
			guilty->attempt = entry->attempt;
		}
		memset(entry, 0, sizeof(NoteEntry));
	}
	orch_shared->nguilty = count;
	return died;
}

/*
 * A step took the server down.  The breaker trips when that happens too
 * often, waits longer with every further crash, and is reset when executors
 * were let run for a minute without one.
 */
static void
count_crash(TimestampTz now)
{
	NoteHeader *header = &notes->header;

	header->crashes[header->ncrashes++ % CRASHES_KEPT] = now;

	if (header->backoff > 0 && now - header->breaker_until > CRASH_WINDOW)
		header->backoff = 0;
	if (header->backoff > 0)
		header->backoff = Min(2 * header->backoff, MOST_BACKOFF);
	else if (recent_crashes(now) >= CRASHES_TO_TRIP)
		header->backoff = FIRST_BACKOFF;
	else
		return;

	header->breaker_until = now + header->backoff;
	ereport(
		WARNING,
		(errcode(ERRCODE_CRASH_SHUTDOWN),
		 errmsg(
			 "steps crashed the server too often: no executor starts for %d seconds",
			 (int) (header->backoff / USECS_PER_SEC)),
		 errhint(
			 "The trace of failed and retried tasks names the steps. \"orchestrator.enabled = off\" stops all of them.")));
}

static int
recent_crashes(TimestampTz now)
{
	NoteHeader *header = &notes->header;
	int kept = Min(header->ncrashes, CRASHES_KEPT);
	int count = 0;

	for (int i = 0; i < kept; i++)
	{
		if (header->crashes[i] <= now &&
			now - header->crashes[i] <= CRASH_WINDOW)
			count++;
	}
	return count;
}

/*
 * It lies in the file because shared memory is new after every crash.
 */
static void
set_breaker(TimestampTz now)
{
	NoteHeader *header = &notes->header;

	/* The clock was set back: no backoff is that long. */
	if (header->breaker_until > now + MOST_BACKOFF)
		header->breaker_until = 0;
	orch_shared->breaker_until = header->breaker_until;
}

/*
 * NULL: nothing is noted.
 */
static volatile NoteEntry *
entry_of(int slot)
{
	Assert(slot >= 0 && slot < ORCH_MAX_GUILTY);
	return notes == NULL ? NULL : &notes->entries[slot].entry;
}

/*
 * An executor takes the slot: from now on its death counts for the breaker.
 */
void
orch_note_enter(int slot)
{
	volatile NoteEntry *entry = entry_of(slot);

	if (entry == NULL)
		return;
	entry->in_use = 0;
	entry->innocent = 0;
	pg_compiler_barrier();
	entry->present = 1;
}

/*
 * What the process did before it died is what the kernel has, in the order of
 * its instructions: only the compiler must be kept from changing it.
 */
void
orch_note_begin(int slot, Oid dboid, int64 task, int32 epoch, int32 attempt)
{
	volatile NoteEntry *entry = entry_of(slot);

	if (entry == NULL)
		return;
	entry->in_use = 0;
	pg_compiler_barrier();
	entry->dboid = dboid;
	entry->task = task;
	entry->epoch = epoch;
	entry->attempt = attempt;
	entry->innocent = 0;
	pg_compiler_barrier();
	entry->in_use = 1;
	pg_compiler_barrier();
}

void
orch_note_end(int slot)
{
	volatile NoteEntry *entry = entry_of(slot);

	if (entry == NULL)
		return;
	pg_compiler_barrier();
	entry->in_use = 0;
}

void
orch_note_innocent(int slot)
{
	volatile NoteEntry *entry;

	if (notes == NULL || slot < 0 || slot >= ORCH_MAX_GUILTY)
		return;
	entry = &notes->entries[slot].entry;
	entry->innocent = 1;
}
