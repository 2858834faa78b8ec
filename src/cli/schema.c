/*
 * schema.c
 *	  The keys of task.json, and what may stand in them.
 *
 * They are the parameters of define(), define_workflow() and step(); a test
 * holds this table against those of the server.  What a single value cannot
 * tell (limits that belong together, whether a function exists) the server
 * checks when the task is uploaded.
 */
#include "postgres_fe.h"

#include "cli.h"
#include "schema.h"

#define ALL		  (PART_TASK | PART_WORKFLOW | PART_STEP)
#define TOP		  (PART_TASK | PART_WORKFLOW)
#define RUN		  (PART_TASK | PART_STEP)
#define INT_LEAST -2147483648.0
#define INT_MOST  2147483647.0
#define PRIORITY  -1000000, 1000000

/* clang-format off */
static const SchemaKey keys[] = {
	{"name", KEY_TEXT, ALL, NULL, 0, 0, "of a task the name of its folder, if it is given at all"},
	{"description", KEY_TEXT, ALL, NULL, 0, 0, "for people"},
	{"kind", KEY_TEXT, RUN, "function sql procedure utility remote http llm embedding tool webhook summarize checkpoint", 0, 0, "what the handler is; of a task remote if it has a program, else function"},
	{"handler", KEY_TEXT, RUN, NULL, 0, 0, "schema.function, or of kind sql and utility a command"},
	{"endpoint", KEY_TEXT, RUN, NULL, 0, 0, "of an outside call, the server of orchestrator_http that is called"},
	{"request", KEY_OBJECT, RUN, NULL, 0, 0, "and what is sent; of kind http: method, path, query, headers, body, expect"},
	{"program", KEY_TEXT, PART_TASK | PART_FILE, NULL, 0, 0, "of kind remote, the file that does it; else the only executable <name> or <name>.*"},
	{"dependencies", KEY_TEXT, PART_TASK | PART_FILE, NULL, 0, 0, "requirements.txt or package.json, if that is there; or another file in that form, of this ending"},
	{"queue", KEY_TEXT, ALL, NULL, 0, 0, "where its tasks wait"},
	{"priority", KEY_INTEGER, ALL, NULL, PRIORITY, "higher first"},
	{"preset", KEY_TEXT, PART_TASK, "light heavy bulk", 0, 0, "defaults of what is not given"},
	{"max_attempts", KEY_INTEGER, ALL, NULL, 1, 10000, "tries in all"},
	{"backoff", KEY_TEXT, ALL, "exponential fixed linear", 0, 0, "how the wait between attempts grows"},
	{"retry_delay", KEY_INTERVAL, ALL, NULL, 0, 0, "the first wait between attempts"},
	{"max_retry_delay", KEY_INTERVAL, ALL, NULL, 0, 0, "the longest"},
	{"retry_jitter", KEY_NUMBER, ALL, NULL, 0, 1, "by which part it varies"},
	{"retry_budget", KEY_INTERVAL, ALL, NULL, 0, 0, "no retry after this long"},
	{"never_retry", KEY_TEXTS, ALL, NULL, 0, 0, "SQLSTATEs, or classes of them, that fail at once"},
	{"retry_priority_step", KEY_INTEGER, ALL, NULL, 0, 1000000, "taken off the priority at each retry"},
	{"timeout", KEY_INTERVAL, ALL, NULL, 0, 0, "of one attempt; of a program as well"},
	{"timeout_policy", KEY_TEXT, ALL, "retry fail fail_workflow alert", 0, 0, "what a time-out does"},
	{"queue_timeout", KEY_INTERVAL, ALL, NULL, 0, 0, "fails unless started within this time"},
	{"response_timeout", KEY_INTERVAL, ALL, NULL, 0, 0, "must report within this time"},
	{"max_running", KEY_INTEGER, ALL, NULL, 1, INT_MOST, "at once"},
	{"rate_limit", KEY_INTEGER, ALL, NULL, 1, INT_MOST, "starts within rate_period"},
	{"rate_period", KEY_INTERVAL, ALL, NULL, 0, 0, ""},
	{"concurrency_key", KEY_TEXT, PART_TASK, NULL, 0, 0, "path of the input whose values have limits of their own"},
	{"key_max_running", KEY_INTEGER, PART_TASK, NULL, 1, INT_MOST, ""},
	{"key_rate_limit", KEY_INTEGER, PART_TASK, NULL, 1, INT_MOST, ""},
	{"key_rate_period", KEY_INTERVAL, PART_TASK, NULL, 0, 0, ""},
	{"batch_size", KEY_INTEGER, PART_TASK, NULL, 1, 200, "inputs of one call"},
	{"batch_wait", KEY_INTERVAL, PART_TASK, NULL, 0, 0, "how long to wait for them"},
	{"notify", KEY_TEXT, ALL, "off lifecycle all", 0, 0, "events"},
	{"success_callback", KEY_TEXT, TOP, NULL, 0, 0, "definition enqueued when a task completed"},
	{"failure_callback", KEY_TEXT, TOP, NULL, 0, 0, "the same when it failed"},
	{"estimated_duration", KEY_INTERVAL, ALL, NULL, 0, 0, "for people"},
	{"metadata", KEY_OBJECT, TOP, NULL, 0, 0, "for people; its key files is ours"},
	{"checkpoint_interval", KEY_INTEGER, PART_WORKFLOW, NULL, 1, INT_MOST, "steps between checkpoints"},
	{"max_steps", KEY_INTEGER, PART_WORKFLOW, NULL, 1, INT_MOST, "that a run may come to"},
	{"max_depth", KEY_INTEGER, PART_WORKFLOW, NULL, 1, INT_MOST, "of runs within runs"},
	{"context", KEY_OBJECT, PART_WORKFLOW, NULL, 0, 0, "when that of a run is summarised: limit, endpoint, model, part"},
	{"steps", KEY_STEPS, PART_WORKFLOW, NULL, 0, 0, "makes it a workflow"},
	{"definition", KEY_TEXT, PART_STEP, NULL, 0, 0, "what it runs, instead of a handler"},
	{"needs", KEY_TEXTS, PART_STEP, NULL, 0, 0, "steps that come first"},
	{"input", KEY_ANY, PART_STEP, NULL, 0, 0, "with paths, as in $.steps.a"},
	{"when", KEY_TEXT, PART_STEP, NULL, 0, 0, "path that says whether it runs"},
	{"each", KEY_TEXT, PART_STEP, NULL, 0, 0, "path of an array: once for each element"},
	{"max_parallel", KEY_INTEGER, PART_STEP, NULL, 1, INT_MOST, "of those at once"},
	{"wait_for", KEY_TEXT, PART_STEP, NULL, 0, 0, "signal that it waits for"},
	{"sleep", KEY_INTERVAL, PART_STEP, NULL, 0, 0, "that it waits"},
	{"on_timeout", KEY_TEXT, PART_STEP, NULL, 0, 0, "of a wait: fail, continue or a step"},
	{"on_failure", KEY_TEXT, PART_STEP, "fail continue skip_dependants", 0, 0, "what its failure does"},
	{"optional", KEY_BOOLEAN, PART_STEP, NULL, 0, 0, "its failure is as if it was skipped"},
	{"undo", KEY_TEXT, PART_STEP, NULL, 0, 0, "function or definition that undoes it"},
	{"repeat_while", KEY_TEXT, PART_STEP, NULL, 0, 0, "path: again, while it holds"},
	{"max_repeats", KEY_INTEGER, PART_STEP, NULL, 1, 1000000, ""},
	{"weight", KEY_NUMBER, PART_STEP, NULL, 0, 1e9, "in the progress of its run"},
	{NULL},
};
/* clang-format on */

static const struct
{
	const char *type; /* as the message calls it */
	DocKind kind;
	const char *json; /* of JSON Schema */
} types[] = {
	[KEY_TEXT] = {"a text", DOC_STRING, "\"type\": \"string\""},
	[KEY_INTEGER] = {"an integer", DOC_NUMBER, "\"type\": \"integer\""},
	[KEY_NUMBER] = {"a number", DOC_NUMBER, "\"type\": \"number\""},
	[KEY_BOOLEAN] = {"true or false", DOC_BOOLEAN, "\"type\": \"boolean\""},
	[KEY_INTERVAL] = {"an interval, as in \"1 min 30 s\" or \"00:01:30\"",
					  DOC_STRING, "\"$ref\": \"#/$defs/interval\""},
	[KEY_TEXTS] = {"an array of texts", DOC_ARRAY,
				   "\"type\": \"array\", \"items\": {\"type\": \"string\"}"},
	[KEY_OBJECT] = {"an object", DOC_OBJECT, "\"type\": \"object\""},
	[KEY_ANY] = {"anything", DOC_NULL, ""},
	[KEY_STEPS] =
		{"an array of steps", DOC_ARRAY,
		 "\"type\": \"array\", \"minItems\": 1, \"maxItems\": 10000, \"items\": {\"$ref\": \"#/$defs/step\"}"},
};

/* Where a check is, and whom it tells. */
typedef struct Check
{
	const char *file;
	Problems *problems;
} Check;

static const SchemaKey *find_key(const char *name, int part);
static void check_object(const Check *check, const DocNode *object, int part);
static void check_value(const Check *check, const SchemaKey *key,
						const DocNode *value);
static void check_texts(const Check *check, const DocNode *array);
static bool has_word(const char *words, const char *word);
static void check_task(const Check *check, const DocNode *task);
static void check_steps(const Check *check, const DocNode *steps);
static void check_step(const Check *check, const DocNode *step);
static void check_needs(const Check *check, const DocNode *steps);
static void check_order(const Check *check, const DocNode *steps,
						const DocNode **sorted);
static void check_handler(const Check *check, const DocNode *object);

const SchemaKey *
schema_keys(void)
{
	return keys;
}

/* ---------------------------------------------------------------- problems */

void
problem_add(Problems *problems, const char *file, int line,
			const DocNode *node, const char *format, ...)
{
	Problem *problem;
	PQExpBufferData path;
	va_list args;

	problems->items =
		pg_realloc(problems->items, (problems->count + 1) * sizeof(Problem));
	problem = &problems->items[problems->count++];
	initPQExpBuffer(&path);
	if (node)
		doc_append_path(&path, node);
	problem->file = pg_strdup(file);
	problem->line = node ? node->line : line;
	problem->key = path.len > 0 ? pg_strdup(path.data) : NULL;
	va_start(args, format);
	problem->message = text_format(format, args);
	va_end(args);
	termPQExpBuffer(&path);
}

static void
append_problem_json(PQExpBuffer to, const Problem *problem)
{
	PQExpBufferData text;

	initPQExpBuffer(&text);
	appendPQExpBufferStr(&text, "{\"file\": ");
	text_append_quoted(&text, problem->file);
	if (problem->line > 0)
		appendPQExpBuffer(&text, ", \"line\": %d", problem->line);
	if (problem->key)
	{
		appendPQExpBufferStr(&text, ", \"key\": ");
		text_append_quoted(&text, problem->key);
	}
	appendPQExpBufferStr(&text, ", \"message\": ");
	text_append_quoted(&text, problem->message);
	appendPQExpBufferChar(&text, '}');
	text_append_json(to, text.data);
	termPQExpBuffer(&text);
}

void
problem_append_text(PQExpBuffer to, const Problem *problem)
{
	text_append(to, problem->file);
	if (problem->line > 0)
		appendPQExpBuffer(to, ":%d", problem->line);
	appendPQExpBufferStr(to, ": ");
	if (problem->key)
	{
		appendPQExpBufferStr(to, "key \"");
		text_append(to, problem->key);
		appendPQExpBufferStr(to, "\": ");
	}
	text_append(to, problem->message);
}

void
problem_append(PQExpBuffer to, const Problems *problems)
{
	if (cli_settings.json)
		appendPQExpBufferStr(to, "{\"problems\": [");
	for (int i = 0; i < problems->count; i++)
		if (cli_settings.json)
		{
			appendPQExpBufferStr(to, i > 0 ? ",\n " : "");
			append_problem_json(to, &problems->items[i]);
		}
		else
		{
			problem_append_text(to, &problems->items[i]);
			appendPQExpBufferChar(to, '\n');
		}
	if (cli_settings.json)
		appendPQExpBufferStr(to, "]}\n");
}

void
problem_free(Problems *problems)
{
	for (int i = 0; i < problems->count; i++)
	{
		free(problems->items[i].file);
		free(problems->items[i].key);
		free(problems->items[i].message);
	}
	free(problems->items);
	problems->items = NULL;
	problems->count = 0;
}

/* --------------------------------------------------------------- intervals */

/*
 * Seconds of a unit as PostgreSQL spells it; 0: it is none.
 */
static double
unit_seconds(const char *name, size_t length)
{
	static const struct
	{
		double seconds;
		const char *names;
	} units[] = {
		{1e-6, "us usec usecs microsecond microseconds"},
		{1e-3, "ms msec msecs millisecond milliseconds"},
		{1, "s sec secs second seconds"},
		{60, "m min mins minute minutes"},
		{3600, "h hr hrs hour hours"},
		{86400, "d day days"},
		{7 * 86400, "w week weeks"},
		{30 * 86400, "mon mons month months"},
		{365.25 * 86400, "y yr yrs year years"},
	};
	char word[16];

	if (length >= sizeof(word))
		return 0;
	memcpy(word, name, length);
	word[length] = '\0';
	for (int i = 0; i < lengthof(units); i++)
		if (has_word(units[i].names, word))
			return units[i].seconds;
	return 0;
}

/*
 * hh:mm or hh:mm:ss behind its hours; -1: it is not that.
 */
static double
clock_seconds(double hours, const char **at)
{
	double minutes;
	double seconds = 0;
	char *end;

	if (!isdigit((unsigned char) (*at)[1]))
		return -1;
	minutes = strtoul(*at + 1, &end, 10);
	if (*end == ':')
	{
		if (!isdigit((unsigned char) end[1]))
			return -1;
		seconds = strtod(end + 1, &end);
	}
	*at = end;
	if (minutes >= 60 || seconds >= 60)
		return -1;
	return hours * 3600 + minutes * 60 + seconds;
}

double
schema_seconds(const char *interval)
{
	const char *at = interval + strspn(interval, " ");
	double total = 0;
	double number;
	double unit;
	size_t length;
	char *end;

	if (*at == '\0')
		return -1;
	while (*at != '\0')
	{
		length = strspn(at, "0123456789.");
		number = strtod(at, &end);
		if (length == 0 || at[0] == '.' || (size_t) (end - at) != length)
			return -1;
		at = end;
		if (*at == ':')
		{
			unit = clock_seconds(number, &at);
			if (unit < 0)
				return -1;
			total += unit;
		}
		else
		{
			at += strspn(at, " ");
			length = strspn(at, "abcdefghijklmnopqrstuvwxyz");
			unit = length == 0 && *at == '\0' ? 1 : unit_seconds(at, length);
			if (unit == 0)
				return -1;
			total += number * unit;
			at += length;
		}
		at += strspn(at, " ");
	}
	return total;
}

/* ------------------------------------------------------------------ checks */

static const SchemaKey *
find_key(const char *name, int part)
{
	for (const SchemaKey *key = keys; key->name; key++)
		if ((key->parts & part) && strcmp(key->name, name) == 0)
			return key;
	return NULL;
}

static bool
has_word(const char *words, const char *word)
{
	size_t length = strlen(word);

	for (const char *at = words; at && *at; at = *at ? at + 1 : at)
	{
		size_t here = strcspn(at, " ");

		if (here == length && strncmp(at, word, length) == 0)
			return true;
		at += here;
	}
	return false;
}

static void
check_object(const Check *check, const DocNode *object, int part)
{
	const SchemaKey *key;

	for (const DocNode *each = object->first; each; each = each->next)
	{
		key = find_key(each->key, part);
		if (key)
		{
			if (each->kind != DOC_NULL)
				check_value(check, key, each);
		}
		else if (strcmp(each->key, "owner") == 0 && part != PART_STEP)
			problem_add(check->problems, check->file, 0, each,
						"a task belongs to the role that uploads it");
		else
			problem_add(check->problems, check->file, 0, each,
						"%s has no such key",
						part == PART_STEP		? "a step"
						: part == PART_WORKFLOW ? "a workflow"
												: "a task without steps");
	}
}

static void
check_value(const Check *check, const SchemaKey *key, const DocNode *value)
{
	double number;

	if ((key->type != KEY_ANY && value->kind != types[key->type].kind) ||
		(key->type == KEY_INTERVAL && schema_seconds(value->text) < 0))
	{
		problem_add(check->problems, check->file, 0, value, "it is not %s",
					types[key->type].type);
		return;
	}
	if (key->type == KEY_TEXTS)
		check_texts(check, value);
	if (key->type == KEY_TEXT && value->text[0] == '\0')
		problem_add(check->problems, check->file, 0, value, "it is empty");
	else if (key->words && !has_word(key->words, value->text))
		problem_add(check->problems, check->file, 0, value,
					"\"%s\" is none of: %s", value->text, key->words);
	if (value->kind != DOC_NUMBER || key->type == KEY_ANY)
		return;
	number = strtod(value->text, NULL);
	if (key->type == KEY_INTEGER &&
		strspn(value->text, "-0123456789") != strlen(value->text))
		problem_add(check->problems, check->file, 0, value,
					"it is not an integer");
	else if (number < key->least || number > key->most)
		problem_add(check->problems, check->file, 0, value,
					"it is not from %.0f to %.0f", key->least, key->most);
}

static void
check_texts(const Check *check, const DocNode *array)
{
	for (const DocNode *each = array->first; each; each = each->next)
		if (each->kind != DOC_STRING)
			problem_add(check->problems, check->file, 0, each,
						"it is not a text");
}

/*
 * A function is named with its schema: what the path of one session is, that
 * of another is not.
 */
static void
check_handler(const Check *check, const DocNode *object)
{
	const DocNode *handler = doc_member(object, "handler");
	const char *kind = doc_text(object, "kind");

	if (handler == NULL || handler->kind != DOC_STRING)
		return;
	if ((kind == NULL || strcmp(kind, "function") == 0 ||
		 strcmp(kind, "procedure") == 0) &&
		strchr(handler->text, '.') == NULL)
		problem_add(check->problems, check->file, 0, handler,
					"\"%s\" is not of the form schema.function",
					handler->text);
}

static void
check_task(const Check *check, const DocNode *task)
{
	const DocNode *program = doc_member(task, "program");
	const char *kind = doc_text(task, "kind");

	check_handler(check, task);
	if (program && kind && strcmp(kind, "remote") != 0)
		problem_add(check->problems, check->file, 0, program,
					"only a task of kind remote has a program");
	if (program && doc_member(task, "handler"))
		problem_add(check->problems, check->file, 0, program,
					"it has a handler, too");
}

static void
check_step(const Check *check, const DocNode *step)
{
	if (step->kind != DOC_OBJECT)
	{
		problem_add(check->problems, check->file, 0, step,
					"it is not an object");
		return;
	}
	check_object(check, step, PART_STEP);
	if (doc_text(step, "name") == NULL)
		problem_add(check->problems, check->file, 0, step, "it has no name");
	if (!doc_member(step, "handler") && !doc_member(step, "endpoint") &&
		!doc_member(step, "request") && !doc_member(step, "definition") &&
		!doc_member(step, "wait_for") && !doc_member(step, "sleep") &&
		strcmp(doc_text(step, "kind") ? doc_text(step, "kind") : "",
			   "checkpoint") != 0)
		problem_add(
			check->problems, check->file, 0, step,
			"it does nothing: give it a definition, a handler, an endpoint, wait_for or sleep");
	if (doc_member(step, "handler") && doc_member(step, "definition"))
		problem_add(check->problems, check->file, 0,
					doc_member(step, "definition"), "it has a handler, too");
	check_handler(check, step);
}

static int
compare_names(const void *a, const void *b)
{
	const DocNode *left = *(const DocNode *const *) a;
	const DocNode *right = *(const DocNode *const *) b;

	return strcmp(doc_text(left, "name"), doc_text(right, "name"));
}

static int
compare_name(const void *name, const void *step)
{
	return strcmp(name, doc_text(*(const DocNode *const *) step, "name"));
}

static void
check_steps(const Check *check, const DocNode *steps)
{
	int before = check->problems->count;

	if (steps->count == 0 || steps->count > 10000)
		problem_add(check->problems, check->file, 0, steps,
					"a workflow has 1 to 10000 steps");
	for (const DocNode *each = steps->first; each; each = each->next)
		check_step(check, each);
	if (check->problems->count == before)
		check_needs(check, steps);
}

/*
 * Names are unique, and those that are needed are there.
 */
static void
check_needs(const Check *check, const DocNode *steps)
{
	const DocNode **sorted = pg_malloc(steps->count * sizeof(DocNode *));
	int before = check->problems->count;
	const DocNode *needs;
	int count = 0;

	for (const DocNode *each = steps->first; each; each = each->next)
		sorted[count++] = each;
	qsort(sorted, count, sizeof(DocNode *), compare_names);
	for (int i = 1; i < count; i++)
		if (compare_names(&sorted[i - 1], &sorted[i]) == 0)
			problem_add(
				check->problems, check->file, 0, doc_member(sorted[i], "name"),
				"there are two steps \"%s\"", doc_text(sorted[i], "name"));
	for (const DocNode *each = steps->first; each; each = each->next)
	{
		needs = doc_member(each, "needs");
		for (const DocNode *need = needs ? needs->first : NULL; need;
			 need = need->next)
			if (!bsearch(need->text, sorted, count, sizeof(DocNode *),
						 compare_name))
				problem_add(check->problems, check->file, 0, need,
							"there is no step \"%s\"", need->text);
	}
	if (check->problems->count == before)
		check_order(check, steps, sorted);
	free(sorted);
}

/*
 * For each step the places of those that it needs, one behind the other, each
 * ended by -1; first[i] is where those of step i begin.
 */
static int *
find_needs(const DocNode *steps, const DocNode **sorted, int *first)
{
	int *places = NULL;
	int count = 0;

	for (const DocNode *step = steps->first; step; step = step->next)
	{
		const DocNode *needs = doc_member(step, "needs");
		const DocNode **other;

		places = pg_realloc(places, (count + 1 + (needs ? needs->count : 0)) *
										sizeof(int));
		first[step->place] = count;
		for (const DocNode *need = needs ? needs->first : NULL; need;
			 need = need->next)
		{
			other = bsearch(need->text, sorted, steps->count,
							sizeof(DocNode *), compare_name);
			places[count++] = (*other)->place;
		}
		places[count++] = -1;
	}
	return places;
}

/*
 * Take away steps that need nothing any more, until none is left; else those
 * that are left need each other.
 */
static void
check_order(const Check *check, const DocNode *steps, const DocNode **sorted)
{
	bool *done = pg_malloc0(steps->count * sizeof(bool));
	int *first = pg_malloc(steps->count * sizeof(int));
	int *needs = find_needs(steps, sorted, first);
	const DocNode *left;
	bool found;
	int at;

	do
	{
		found = false;
		left = NULL;
		for (const DocNode *step = steps->first; step; step = step->next)
		{
			if (done[step->place])
				continue;
			for (at = first[step->place]; needs[at] >= 0; at++)
				if (!done[needs[at]])
					break;
			if (needs[at] < 0)
				done[step->place] = found = true;
			else
				left = step;
		}
	} while (found);
	free(done);
	free(first);
	free(needs);
	if (left)
		problem_add(check->problems, check->file, 0, doc_member(left, "needs"),
					"the steps need each other in a circle");
}

void
schema_check(const DocNode *document, const char *file, Problems *problems)
{
	Check check = {file, problems};
	const DocNode *steps;

	if (document->kind != DOC_OBJECT)
	{
		problem_add(problems, file, 0, document, "it is not an object");
		return;
	}
	steps = doc_member(document, "steps");
	check_object(&check, document, steps ? PART_WORKFLOW : PART_TASK);
	if (steps == NULL)
		check_task(&check, document);
	else if (steps->kind == DOC_ARRAY)
		check_steps(&check, steps);
}

/* -------------------------------------------------------------- the schema */

static void
append_key(PQExpBuffer to, const SchemaKey *key)
{
	appendPQExpBuffer(to, "      \"%s\": {%s", key->name,
					  types[key->type].json);
	if (key->words)
	{
		appendPQExpBufferStr(to, ", \"enum\": [\"");
		for (const char *at = key->words; *at; at++)
			if (*at == ' ')
				appendPQExpBufferStr(to, "\", \"");
			else
				appendPQExpBufferChar(to, *at);
		appendPQExpBufferStr(to, "\"]");
	}
	else if (key->type == KEY_TEXT)
		appendPQExpBufferStr(to, ", \"minLength\": 1");
	if (key->type == KEY_INTEGER || key->type == KEY_NUMBER)
		appendPQExpBuffer(to, ", \"minimum\": %.0f, \"maximum\": %.0f",
						  key->least, key->most);
	if (key->help[0] != '\0')
	{
		appendPQExpBufferStr(to, key->type == KEY_ANY ? "" : ", ");
		appendPQExpBufferStr(to, "\"description\": ");
		text_append_quoted(to, key->help);
	}
	appendPQExpBufferChar(to, '}');
}

static void
append_part(PQExpBuffer to, const char *name, const char *required, int part)
{
	bool first = true;

	appendPQExpBuffer(to,
					  "    \"%s\": {\n     \"type\": \"object\",\n"
					  "     \"required\": [%s],\n"
					  "     \"additionalProperties\": false,\n"
					  "     \"properties\": {\n",
					  name, required);
	for (const SchemaKey *key = keys; key->name; key++)
		if (key->parts & part)
		{
			appendPQExpBufferStr(to, first ? "" : ",\n");
			append_key(to, key);
			first = false;
		}
	appendPQExpBufferStr(to, "\n     }\n    }");
}

void
schema_append(PQExpBuffer to)
{
	appendPQExpBufferStr(
		to,
		"{\n"
		"  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n"
		"  \"title\": \"task.json of orchestrator\",\n"
		"  \"oneOf\": [{\"$ref\": \"#/$defs/task\"}, {\"$ref\": \"#/$defs/workflow\"}],\n"
		"  \"$defs\": {\n"
		"    \"interval\": {\"type\": \"string\", \"pattern\": \"^[0-9]\"},\n");
	append_part(to, "task", "", PART_TASK);
	appendPQExpBufferStr(to, ",\n");
	append_part(to, "workflow", "\"steps\"", PART_WORKFLOW);
	appendPQExpBufferStr(to, ",\n");
	append_part(to, "step", "\"name\"", PART_STEP);
	appendPQExpBufferStr(to, "\n  }\n}\n");
}
