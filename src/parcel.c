/*
 * parcel.c
 *	  Parcels: requests that are made for many calls, and what comes back for
 *	  each.
 *
 * The inputs of all calls go in one array, and of what comes back each call
 * gets its part, as if it had been made alone.  What the request used is shared
 * out by the sizes of the texts, so that the sums are right.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "guc.h"
#include "parcel.h"
#include "permit.h"

/* Numbers of frames that are parcels have this bit. */
#define PARCEL (UINT64CONST(1) << 63)

static HTAB *parcels = NULL;

static void find_input(Jsonb *request, JsonbValue *input);
static int32 size_of(const JsonbValue *text);
static void measure(OrchParcelItem *item);
static Datum join_inputs(const OrchParcel *parcel);
static char *make_key(const OrchParcel *parcel, const char *first);
static void share(const OrchParcel *parcel, Datum answer,
				  OrchParcelResult *results);
static void give_back(OrchParcel *parcel);
static Datum numbers(const OrchParcel *parcel, bool sizes);

OrchParcel *
orch_parcel(int32 number)
{
	HASHCTL control = {.keysize = sizeof(uint64),
					   .entrysize = sizeof(OrchParcel)};
	uint64 key = PARCEL | (uint64) number;
	OrchParcel *parcel;
	MemoryContext old;
	bool found;

	control.hcxt = TopMemoryContext;
	if (parcels == NULL)
		parcels = hash_create("orchestrator parcels", 64, &control,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	parcel = hash_search(parcels, &key, HASH_ENTER, &found);
	if (found)
		return parcel;
	memset(parcel, 0, sizeof(OrchParcel));
	parcel->number = key;
	parcel->context = AllocSetContextCreate(
		TopMemoryContext, "orchestrator parcel", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(parcel->context);
	parcel->room = 16;
	parcel->items = palloc(parcel->room * sizeof(OrchParcelItem));
	initStringInfo(&parcel->permits);
	MemoryContextSwitchTo(old);
	return parcel;
}

OrchParcel *
orch_parcel_find(uint64 number)
{
	return parcels == NULL ? NULL
						   : hash_search(parcels, &number, HASH_FIND, NULL);
}

OrchParcel *
orch_parcel_unwritten(void)
{
	HASH_SEQ_STATUS scan;
	OrchParcel *parcel;

	if (parcels == NULL)
		return NULL;
	hash_seq_init(&scan, parcels);
	while ((parcel = hash_seq_search(&scan)) != NULL)
	{
		if (parcel->written)
			continue;
		hash_seq_term(&scan);
		return parcel;
	}
	return NULL;
}

/* -------------------------------------------------------------- request */

void
orch_parcel_add(OrchParcel *parcel, const OrchCallSpec *spec, int64 task)
{
	OrchParcelItem *item;

	if (parcel->n == parcel->room)
	{
		parcel->room *= 2;
		parcel->items =
			repalloc(parcel->items, parcel->room * sizeof(OrchParcelItem));
	}
	if (parcel->n == 0)
	{
		parcel->spec = *spec;
		strlcpy(parcel->endpoint, spec->endpoint->name, NAMEDATALEN);
	}
	item = &parcel->items[parcel->n++];
	item->call = spec->number;
	item->task = task;
	item->request = spec->request;
	measure(item);
	parcel->left++;
}

static void
find_input(Jsonb *request, JsonbValue *input)
{
	JsonbValue body;

	input->type = jbvNull;
	if (getKeyJsonValueFromContainer(&request->root, "body", 4, &body) !=
			NULL &&
		body.type == jbvBinary)
		(void) getKeyJsonValueFromContainer(body.val.binary.data, "input", 5,
											input);
}

static int32
size_of(const JsonbValue *text)
{
	return text->type == jbvString ? Max(text->val.string.len, 1) : 1;
}

/*
 * Its input is a text or an array of texts.
 */
static void
measure(OrchParcelItem *item)
{
	JsonbValue input;
	JsonbValue text;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	find_input(item->request, &input);
	item->texts = 1;
	item->size = size_of(&input);
	if (input.type != jbvBinary ||
		!JsonContainerIsArray(input.val.binary.data))
		return;
	item->texts = 0;
	item->size = 1;
	iterator = JsonbIteratorInit(input.val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &text, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		item->texts++;
		item->size += size_of(&text);
	}
}

Datum
orch_parcel_write(OrchParcel *parcel, FrameBuffer *out)
{
	OrchCallSpec *spec = &parcel->spec;

	spec->endpoint = orch_endpoint(parcel->endpoint);
	if (spec->endpoint == NULL)
		elog(ERROR, "endpoint \"%s\" is gone", parcel->endpoint);
	parcel->written = true;
	parcel->over = parcel->n == 1;
	if (parcel->n == 1)
		return orch_call_write(out, spec);
	spec->number = parcel->number;
	spec->ncalls = parcel->n;
	spec->key = make_key(parcel, spec->key);
	spec->traceparent = NULL;
	spec->request = DatumGetJsonbP(join_inputs(parcel));
	parcel->provider =
		spec->endpoint->provider == ORCH_PROVIDER_OLLAMA ? "ollama" : "openai";
	return orch_call_write(out, spec);
}

/*
 * The request of the first call, with the inputs of all.
 */
static Datum
join_inputs(const OrchParcel *parcel)
{
	Datum names[] = {CStringGetTextDatum("body"),
					 CStringGetTextDatum("input")};
	JsonbParseState *state = NULL;
	JsonbValue input;
	JsonbValue text;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < parcel->n; i++)
	{
		find_input(parcel->items[i].request, &input);
		if (input.type != jbvBinary ||
			!JsonContainerIsArray(input.val.binary.data))
		{
			pushJsonbValue(&state, WJB_ELEM, &input);
			continue;
		}
		iterator = JsonbIteratorInit(input.val.binary.data);
		while ((token = JsonbIteratorNext(&iterator, &text, true)) != WJB_DONE)
		{
			if (token == WJB_ELEM)
				pushJsonbValue(&state, WJB_ELEM, &text);
		}
	}
	return DirectFunctionCall4(
		jsonb_set, JsonbPGetDatum(parcel->items[0].request),
		PointerGetDatum(
			construct_array(names, 2, TEXTOID, -1, false, TYPALIGN_INT)),
		JsonbPGetDatum(
			JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL))),
		BoolGetDatum(true));
}

/*
 * The same for the same tasks.
 */
static char *
make_key(const OrchParcel *parcel, const char *first)
{
	uint64 hash = 0;

	for (int i = 0; i < parcel->n; i++)
		hash = hash_combine64(
			hash,
			hash_bytes_extended((const unsigned char *) &parcel->items[i].task,
								sizeof(int64), 0));
	return psprintf("%s+%d-" UINT64_FORMAT, first, parcel->n - 1, hash);
}

/* --------------------------------------------------------------- answer */

OrchParcelResult *
orch_parcel_read(OrchParcel *parcel, FrameReader *frame)
{
	OrchParcelResult *results = palloc(parcel->n * sizeof(OrchParcelResult));
	bool too_many = false;
	OrchParcelResult all;

	all.outcome =
		orch_call_read(frame, parcel->n, NULL, &all.result, &too_many);
	parcel->over = true;
	if (too_many)
		all.outcome = "released";
	for (int i = 0; i < parcel->n; i++)
		results[i] = all;
	if (!frame->bad && strcmp(all.outcome, "completed") == 0)
		share(parcel, all.result, results);
	return results;
}

/*
 * An answer that has not a vector for each text may be one to an array that is
 * not understood.
 */
static void
share(const OrchParcel *parcel, Datum answer, OrchParcelResult *results)
{
	NullableDatum args[4] = {0};
	Datum shares;
	Datum *each;
	int n;
	bool isnull;

	args[0].value = CStringGetTextDatum(parcel->provider);
	args[1].value = answer;
	args[2].value = numbers(parcel, false);
	args[3].value = numbers(parcel, true);
	shares = orch_catalog_call(ORCH_FN_SHARE_ANSWER, 4, args, &isnull);
	for (int i = 0; isnull && i < parcel->n; i++)
		results[i].outcome = "released";
	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(shares), JSONBOID, -1, false,
					  TYPALIGN_INT, &each, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		results[i].result = each[i];
		if (VARSIZE_ANY(DatumGetPointer(each[i])) <=
			(Size) orch_max_input_size * 1024)
			continue;
		results[i].outcome = "error";
		results[i].result = orch_call_refusal(
			"OR013", "its part of the answer is too large to be kept",
			"An administrator raises orchestrator.max_input_size.");
	}
}

/*
 * Of each call how many texts it has, or how large they are: what it pays for.
 * Who has left pays nothing.
 */
static Datum
numbers(const OrchParcel *parcel, bool sizes)
{
	Datum *values = palloc(parcel->n * sizeof(Datum));

	for (int i = 0; i < parcel->n; i++)
	{
		const OrchParcelItem *item = &parcel->items[i];

		values[i] = Int32GetDatum(!sizes			? item->texts
								  : item->call == 0 ? 0
													: item->size);
	}
	return PointerGetDatum(
		construct_array(values, parcel->n, INT4OID, 4, true, TYPALIGN_INT));
}

/* ------------------------------------------------------------------ end */

bool
orch_parcel_leave(OrchParcel *parcel, uint64 call)
{
	for (int i = 0; i < parcel->n; i++)
	{
		if (parcel->items[i].call == call)
			parcel->items[i].call = 0;
	}
	return --parcel->left == 0;
}

void
orch_parcel_keep_permits(OrchParcel *parcel, const int64 *permits, int n)
{
	appendBinaryStringInfo(&parcel->permits, (const char *) permits,
						   n * sizeof(int64));
}

void
orch_parcel_free(OrchParcel *parcel)
{
	give_back(parcel);
	MemoryContextDelete(parcel->context);
	(void) hash_search(parcels, &parcel->number, HASH_REMOVE, NULL);
}

static void
give_back(OrchParcel *parcel)
{
	orch_permit_give_back((const int64 *) parcel->permits.data,
						  parcel->permits.len / sizeof(int64));
	resetStringInfo(&parcel->permits);
}

void
orch_parcel_lose(void)
{
	HASH_SEQ_STATUS scan;
	OrchParcel *parcel;

	if (parcels == NULL)
		return;
	hash_seq_init(&scan, parcels);
	while ((parcel = hash_seq_search(&scan)) != NULL)
	{
		parcel->over = true;
		give_back(parcel);
	}
}
