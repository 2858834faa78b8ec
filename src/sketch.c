/*
 * sketch.c
 *	  Percentiles without the values: a histogram on a logarithmic scale.
 *
 * A stored sketch is a row of pairs: the number of a bucket (one byte, rising)
 * and its count (seven bits to a byte, the lowest first; the highest bit says
 * that more follow).
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "sketch.h"

/* (1 + e) / (1 - e) for a relative error e of 5 %. */
#define GAMMA (1.05 / 0.95)

#define MAX_VARINT 10

static bytea *pack(const uint64 *buckets);
static void unpack(uint64 *buckets, const bytea *sketch);
static uint64 read_count(const uint8 **at, const uint8 *end);

PG_FUNCTION_INFO_V1(orchestrator_sketch_add);
PG_FUNCTION_INFO_V1(orchestrator_sketch_result);
PG_FUNCTION_INFO_V1(orchestrator_sketch_percentile);

int
orch_sketch_bucket(int64 microseconds)
{
	double bucket;

	if (microseconds <= 1)
		return 0;
	bucket = ceil(log((double) microseconds) / log(GAMMA));
	return (int) Min(bucket, ORCH_SKETCH_BUCKETS - 1);
}

bytea *
orch_sketch_pack(const uint32 *buckets)
{
	uint64 wide[ORCH_SKETCH_BUCKETS];

	for (int i = 0; i < ORCH_SKETCH_BUCKETS; i++)
		wide[i] = buckets[i];
	return pack(wide);
}

static bytea *
pack(const uint64 *buckets)
{
	bytea *sketch = palloc(VARHDRSZ + ORCH_SKETCH_BUCKETS * (1 + MAX_VARINT));
	uint8 *at = (uint8 *) VARDATA(sketch);

	for (int i = 0; i < ORCH_SKETCH_BUCKETS; i++)
	{
		uint64 count = buckets[i];

		if (count == 0)
			continue;
		*at++ = i;
		for (; count >= 0x80; count >>= 7)
			*at++ = 0x80 | (count & 0x7f);
		*at++ = count;
	}
	SET_VARSIZE(sketch, (char *) at - (char *) sketch);
	return sketch;
}

/*
 * Add what is stored to buckets.
 */
static void
unpack(uint64 *buckets, const bytea *sketch)
{
	const uint8 *at = (const uint8 *) VARDATA_ANY(sketch);
	const uint8 *end = at + VARSIZE_ANY_EXHDR(sketch);

	while (at < end)
	{
		int bucket = *at++;

		buckets[bucket] += read_count(&at, end);
	}
}

static uint64
read_count(const uint8 **at, const uint8 *end)
{
	uint64 count = 0;

	for (int shift = 0; shift < 64; shift += 7)
	{
		uint8 byte;

		if (*at >= end)
			break;
		byte = *(*at)++;
		count |= (uint64) (byte & 0x7f) << shift;
		if (byte < 0x80)
			return count;
	}
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("invalid sketch in orchestrator.stats")));
}

/*
 * The state of the aggregate: buckets, in its own memory.
 */
Datum
orchestrator_sketch_add(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	uint64 *buckets;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "sketch_add called outside of an aggregate");
	buckets = PG_ARGISNULL(0)
				  ? MemoryContextAllocZero(context, ORCH_SKETCH_BUCKETS *
														sizeof(uint64))
				  : (uint64 *) PG_GETARG_POINTER(0);
	if (!PG_ARGISNULL(1))
		unpack(buckets, PG_GETARG_BYTEA_PP(1));
	PG_RETURN_POINTER(buckets);
}

Datum
orchestrator_sketch_result(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(pack((uint64 *) PG_GETARG_POINTER(0)));
}

/*
 * percentile(sketch, fraction): the value below which that part of the values
 * is, as percentile_disc() says it; null when there are none.
 */
Datum
orchestrator_sketch_percentile(PG_FUNCTION_ARGS)
{
	double fraction = PG_GETARG_FLOAT8(1);
	uint64 buckets[ORCH_SKETCH_BUCKETS] = {0};
	uint64 total = 0;
	uint64 below = 0;
	uint64 rank;
	Interval *value;
	int i = 0;

	if (!(fraction >= 0 && fraction <= 1))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a fraction is between 0 and 1")));
	unpack(buckets, PG_GETARG_BYTEA_PP(0));
	for (int j = 0; j < ORCH_SKETCH_BUCKETS; j++)
		total += buckets[j];
	if (total == 0)
		PG_RETURN_NULL();
	rank = Max((uint64) ceil(fraction * total), 1);
	while (i < ORCH_SKETCH_BUCKETS - 1 && (below += buckets[i]) < rank)
		i++;

	value = palloc0(sizeof(Interval));
	value->time = i == 0 ? 1 : rint(2 * pow(GAMMA, i) / (GAMMA + 1));
	PG_RETURN_INTERVAL_P(value);
}
