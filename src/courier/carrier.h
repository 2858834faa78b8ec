/*
 * carrier.h
 *	  The courier's child program, orchestrator-courier: it makes the calls.
 *
 * It has no connection to the database and reads nothing but the socket it was
 * started with, files of secrets and of certificates, and what is called.
 */
#ifndef CARRIER_H
#define CARRIER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "frame.h"

#define MESSAGE_SIZE 256
#define SECRET_SIZE	 8192 /* the longest */

/* ------------------------------------------------------------ transfer.c */

/*
 * Start.  Sockets are watched in the epoll instance; answers are written to
 * the buffer.  False: libcurl cannot be used.
 */
extern bool transfer_install(int epoll, FrameBuffer *answers);

/* Begin a call that the courier asked for; end one without an answer. */
extern void transfer_begin(FrameReader *frame);
extern void transfer_cancel(uint64_t call);

/* A socket of libcurl's is ready; events as of epoll. */
extern void transfer_ready(int fd, uint32_t events);

/* See to what is due, and answer what ended. */
extern void transfer_go_on(void);

/* Milliseconds until something is due; -1: nothing is. */
extern int transfer_due(void);

/* Calls under way. */
extern int transfer_count(void);

/* Milliseconds of a clock that never jumps. */
extern int64_t now_ms(void);

/* ------------------------------------------------------------- address.c */

/* Why an address may not be called; NULL: it may. */
extern const char *address_refusal(const struct sockaddr *address,
								   bool allow_private);

/* The same of one that is written. */
extern const char *address_text_refusal(const char *text, bool allow_private);

/* -------------------------------------------------------------- secret.c */

/*
 * Read a secret, of one line unless lines says so; the caller wipes and frees
 * it.  NULL: it cannot be used, and the message, without the folder, says why.
 */
extern char *secret_read(const char *path, bool lines, char *message);
extern void secret_free(char *secret);

/* Blot a secret out wherever it stands in some data. */
extern void secret_blot(const char *secret, char *data, size_t size);

/* How many bytes at the end of some data may be the beginning of one. */
extern size_t secret_begins(const char *secret, const char *data, size_t size);

/* ---------------------------------------------------------------- sign.c */

#define SIGNATURE_ONE  48 /* " v1," and base64 of 32 bytes */
#define SIGNATURE_SIZE (4 * SIGNATURE_ONE + 1)

/*
 * Sign a body with each line of a secret, as a webhook that is sent at a time
 * (in seconds).  False: one is no key, or there are more than four.
 */
extern bool sign(const char *secret, const char *id, int64_t at,
				 const char *body, size_t size, char *signature);

#endif
