/*
 * wait.h
 *	  Sleeping until a task is final.
 */
#ifndef ORCHESTRATOR_WAIT_H
#define ORCHESTRATOR_WAIT_H

#include "utils/timestamp.h"

/*
 * The end of a timeout that begins now; PG_INT64_MAX: after more than a
 * century.  Raises invalid_parameter_value when it is negative.
 */
extern TimestampTz orch_wait_until(const Interval *timeout);

#endif
