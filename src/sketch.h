/*
 * sketch.h
 *	  Percentiles without the values: a histogram on a logarithmic scale.
 *
 * As in DDSketch (Masson, Rim, Lee, 2019): bucket i counts values up to
 * GAMMA^i, so that every value is known within 5 % of itself.  Sketches are
 * added bucket by bucket, and nothing is lost by it.
 */
#ifndef ORCHESTRATOR_SKETCH_H
#define ORCHESTRATOR_SKETCH_H

#include "datatype/timestamp.h"

#define ORCH_SKETCH_BUCKETS 256

/* The bucket of a time in microseconds; of the last one, 33 hours and more. */
extern int orch_sketch_bucket(int64 microseconds);

/* A sketch as it is stored: the buckets that are not empty. */
extern bytea *orch_sketch_pack(const uint32 *buckets);

#endif
