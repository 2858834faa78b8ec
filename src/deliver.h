/*
 * deliver.h
 *	  Settles of calls that the courier's child program has made, a batch to a
 *	  transaction.
 */
#ifndef ORCHESTRATOR_DELIVER_H
#define ORCHESTRATOR_DELIVER_H

#include "datatype/timestamp.h"

/* Settle what came back; and when what is left can be (0: at once). */
extern void orch_deliver(void);
extern TimestampTz orch_deliver_at(void);

#endif
