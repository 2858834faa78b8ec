/*
 * frame.h
 *	  What the courier and its child program say to each other, and how.
 *
 * Both ends of a socket are built with this file.  A frame is its length, its
 * type and its body: numbers in the machine's own form, and strings with their
 * length before them.  A frame that breaks these rules ends the child.
 */
#ifndef ORCHESTRATOR_FRAME_H
#define ORCHESTRATOR_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Both programs are of one build, or do not work together. */
#define FRAME_VERSION 3

/* Longest frame: the largest answer or request, and its headers. */
#define FRAME_MAX_SIZE (64 * 1024 * 1024)

/* Of an answer. */
#define FRAME_MAX_HEADERS	   100
#define FRAME_MAX_HEADERS_SIZE (64 * 1024)

/* Most of an answer that is passed on in parts, which are not kept here. */
#define FRAME_MAX_STREAM (16 * 1024 * 1024)

/* While calls are under way the child says so this often. */
#define FRAME_BEAT_MS 500

typedef enum FrameType
{
	/* to the child */
	FRAME_CALL = 1,
	FRAME_CANCEL, /* u64 call: no answer is wanted any more */

	/* from it */
	FRAME_HELLO, /* u32 FRAME_VERSION, when it is ready */
	FRAME_DONE,
	FRAME_BEAT, /* it is alive */
	FRAME_PART	/* u64 call, and a string: the next part of its answer */
} FrameType;

/*
 * The body of FRAME_CALL:
 *
 *	u64 call, u32 flags, u32 timeout, u32 connect timeout and u32 longest
 *	silence (milliseconds; 0: none), u64 largest answer, then strings: method,
 *	url, host (as the url must say it), body, file of the secret (empty: none),
 *	header and prefix to send it with, id to sign a webhook with, file of CA
 *	certificates (empty: the system's), and u32 n with so many lines of headers.
 */
#define FRAME_ALLOW_PRIVATE 0x1 /* private addresses may be called */
#define FRAME_COMPRESSED	0x2 /* ask for, and undo, compression */
#define FRAME_HAS_BODY		0x4
#define FRAME_WEBHOOK		0x8	 /* the secret signs, and is not sent */
#define FRAME_STREAM		0x10 /* pass on the answer in parts as it comes */

/*
 * The body of FRAME_DONE:
 *
 *	u64 call, u32 FrameResult, u32 HTTP status, u32 seconds of Retry-After (0:
 *	none), u64 microseconds it took, then strings: message (why there is no
 *	answer), body, and u32 n with so many pairs of strings, name and value of
 *	headers.  The body of an answer that went on in parts is empty: none does
 *	that is no success, or one document (application/json).
 */
typedef enum FrameResult
{
	RESULT_ANSWERED,
	RESULT_UNREACHED, /* no connection */
	RESULT_BROKEN,	  /* the connection failed under way */
	RESULT_TIMED_OUT,
	RESULT_REFUSED,	  /* by a rule of ours: trying again does not help */
	RESULT_UNTRUSTED, /* its certificate was not accepted */
	RESULT_TOO_LARGE
} FrameResult;

/* Bytes to be sent, or that came and are not read. */
typedef struct FrameBuffer
{
	char *data;
	size_t start; /* of what is still to be sent or read */
	size_t size;  /* end of it */
	size_t room;
	size_t frame; /* where the frame begins that is being written */
	bool failed;  /* out of memory, or a frame that cannot be */
} FrameBuffer;

/* The body of one frame. */
typedef struct FrameReader
{
	const char *at;
	const char *end;
	bool bad; /* it ended too early */
} FrameReader;

typedef struct FrameString
{
	const char *data; /* not ended by a zero */
	size_t size;
} FrameString;

/* Write a frame: begin, its parts, end. */
extern void frame_begin(FrameBuffer *buffer, FrameType type);
extern void frame_u32(FrameBuffer *buffer, uint32_t value);
extern void frame_u64(FrameBuffer *buffer, uint64_t value);
extern void frame_bytes(FrameBuffer *buffer, const void *data, size_t size);
extern void frame_text(FrameBuffer *buffer, const char *text);
extern void frame_end(FrameBuffer *buffer);

/* Take back the frame that is being written. */
extern void frame_undo(FrameBuffer *buffer);

/*
 * Send what is there, receive what has come, without waiting.  False: the
 * other end is gone.
 */
extern bool frame_send(FrameBuffer *buffer, int fd);
extern bool frame_receive(FrameBuffer *buffer, int fd);

/* The next whole frame that was received; what it points to stays until the
 * next call that receives. */
extern bool frame_next(FrameBuffer *buffer, FrameType *type,
					   FrameReader *reader);
extern uint32_t frame_read_u32(FrameReader *reader);
extern uint64_t frame_read_u64(FrameReader *reader);
extern FrameString frame_read_string(FrameReader *reader);

/* Whether anything is still to be sent. */
extern bool frame_pending(const FrameBuffer *buffer);

extern void frame_free(FrameBuffer *buffer);

#endif
