/*
 * said.c
 *	  What a program says while it runs, line by line: how far it is, and what
 *	  is to stand in the trace of its task.
 *
 *	  descriptor 3     0.4 page 3 of 7              progress, with a message
 *	                   40% page 3 of 7
 *	                   {"progress": 0.4, "message": "page 3", "stage": "scan"}
 *	                   {"log": "no text on page 3", "level": "warning"}
 *	                   anything else                the trace
 *	  standard error   orchestrator: ...            as on descriptor 3
 *	                   anything else                the trace
 */
#include "postgres_fe.h"

#include <math.h>

#include "cli.h"
#include "document.h"
#include "work.h"

#define PREFIX "orchestrator:"

/* To the trace of one attempt, and of those not sent yet. */
#define MOST_LINES	 1000
#define MOST_WAITING 200

/* Of standard error, for the error of the task. */
#define TAIL_SIZE 2000

static void keep_tail(Job *job, const char *text);
static void append_line(Job *job, const char *level, const char *message);
static void report_line(Job *job, const char *text);
static bool take_number(Job *job, const char *text);
static bool take_document(Job *job, const char *text);
static const char *level_of(const char *level);
static void set_text(char **place, const char *text);

void
line_take(void *owner, ProgramStream stream, const char *line, size_t length)
{
	Job *job = owner;
	PQExpBufferData text;

	initPQExpBuffer(&text);
	text_append_bytes(&text, line, length);
	if (text.len > 0 && text.data[text.len - 1] == '\r')
		text.data[--text.len] = '\0';
	if (stream == PROGRAM_REPORTS)
		report_line(job, text.data);
	else if (strncmp(text.data, PREFIX, strlen(PREFIX)) == 0)
		report_line(job, text.data + strlen(PREFIX));
	else if (text.len > 0)
	{
		keep_tail(job, text.data);
		line_keep(job, "info", text.data);
	}
	termPQExpBuffer(&text);
}

static void
keep_tail(Job *job, const char *text)
{
	size_t cut = 0;

	if (job->tail.len > 0)
		appendPQExpBufferChar(&job->tail, '\n');
	appendPQExpBufferStr(&job->tail, text);
	if (job->tail.len <= TAIL_SIZE)
		return;
	/* whole lines, or at least whole characters */
	cut = job->tail.len - TAIL_SIZE;
	if (strchr(job->tail.data + cut, '\n'))
		cut = strchr(job->tail.data + cut, '\n') + 1 - job->tail.data;
	while ((job->tail.data[cut] & 0xC0) == 0x80)
		cut++;
	job->tail.len -= cut;
	memmove(job->tail.data, job->tail.data + cut, job->tail.len + 1);
}

void
line_keep(Job *job, const char *level, const char *message)
{
	if (worker.verbose)
		job_say(job, level, message);
	if (job->unwanted)
		return;
	if (job->nlines >= MOST_WAITING || job->lines_kept >= MOST_LINES)
	{
		job->lines_dropped++;
		return;
	}
	append_line(job, level, message);
}

static void
append_line(Job *job, const char *level, const char *message)
{
	job->lines = pg_realloc(job->lines, (job->nlines + 1) * sizeof(JobLine));
	job->lines[job->nlines].level = pg_strdup(level);
	job->lines[job->nlines++].message = pg_strdup(message);
	job->lines_kept++;
}

void
line_tell_dropped(Job *job)
{
	char *message;

	if (job->lines_dropped == 0)
		return;
	message = psprintf("%d more lines were not kept", job->lines_dropped);
	job->lines_dropped = 0;
	append_line(job, "notice", message);
	free(message);
}

static void
report_line(Job *job, const char *text)
{
	text += strspn(text, " \t");
	if (*text == '\0' || take_number(job, text) || take_document(job, text))
		return;
	line_keep(job, "info", text);
}

/*
 * "0.4 message", "40% message".
 */
static bool
take_number(Job *job, const char *text)
{
	char *end;
	double fraction;

	if (strspn(text, "0123456789.") == 0)
		return false;
	fraction = strtod(text, &end);
	if (*end == '%')
	{
		fraction /= 100;
		end++;
	}
	if ((*end != '\0' && *end != ' ' && *end != '\t') || end == text ||
		fraction < 0 || fraction > 1)
		return false;
	job->fraction = fraction;
	job->progressed = true;
	end += strspn(end, " \t");
	if (*end != '\0')
		set_text(&job->message, end);
	return true;
}

static bool
take_document(Job *job, const char *text)
{
	DocNode *document;
	const DocNode *progress;
	const char *log;
	const char *message;
	const char *stage;
	char *error = NULL;
	int line;

	if (*text != '{')
		return false;
	document = doc_parse(text, strlen(text), &error, &line);
	free(error);
	if (document == NULL)
		return false;
	progress = doc_member(document, "progress");
	log = doc_text(document, "log");
	message = doc_text(document, "message");
	stage = doc_text(document, "stage");
	if (progress && progress->kind == DOC_NUMBER)
		job->fraction = Min(Max(strtod(progress->text, NULL), 0), 1);
	if (message)
		set_text(&job->message, message);
	if (stage)
		set_text(&job->stage, stage);
	if (log)
		line_keep(job, level_of(doc_text(document, "level")), log);
	job->progressed |= progress || message || stage;
	doc_free(document);
	return progress || message || stage || log;
}

static const char *
level_of(const char *level)
{
	static const char *const levels[] = {"debug", "info", "notice", "warning",
										 "error"};

	for (int i = 0; level && i < lengthof(levels); i++)
		if (strcmp(level, levels[i]) == 0)
			return levels[i];
	return "info";
}

static void
set_text(char **place, const char *text)
{
	free(*place);
	*place = pg_strdup(text);
}
