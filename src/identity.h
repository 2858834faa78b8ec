/*
 * identity.h
 *	  Whether this database is the one that its tasks are to run in, or a
 *	  restored or cloned one.
 */
#ifndef ORCHESTRATOR_IDENTITY_H
#define ORCHESTRATOR_IDENTITY_H

/*
 * Warn, once in a session, when tasks do not run here because this database is
 * a copy.  Inside a transaction; later calls cost nothing.
 */
extern void orch_identity_warn(void);

#endif
