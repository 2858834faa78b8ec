/*
 * frame.c
 *	  Frames between the courier and its child program.  Built into both, so
 *	  nothing of PostgreSQL is used here.
 */
#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define READ_SIZE	(64 * 1024)
#define HEADER_SIZE (2 * sizeof(uint32_t))

static bool make_room(FrameBuffer *buffer, size_t more);
static bool take(FrameReader *reader, void *to, size_t size);

/*
 * Room behind what is there; what was sent or read already is forgotten.
 */
static bool
make_room(FrameBuffer *buffer, size_t more)
{
	size_t used = buffer->size - buffer->start;
	size_t room = buffer->room;
	char *data;

	if (buffer->failed)
		return false;
	if (buffer->size + more <= buffer->room)
		return true;
	if (buffer->start > 0)
	{
		memmove(buffer->data, buffer->data + buffer->start, used);
		buffer->frame -= buffer->frame < buffer->start ? 0 : buffer->start;
		buffer->start = 0;
		buffer->size = used;
	}
	while (room < used + more)
		room = room == 0 ? READ_SIZE : room * 2;
	if (room == buffer->room)
		return true;
	data = realloc(buffer->data, room);
	if (data == NULL)
	{
		buffer->failed = true;
		return false;
	}
	buffer->data = data;
	buffer->room = room;
	return true;
}

void
frame_begin(FrameBuffer *buffer, FrameType type)
{
	buffer->frame = buffer->size;
	frame_u32(buffer, 0); /* its length, known at its end */
	frame_u32(buffer, type);
}

void
frame_end(FrameBuffer *buffer)
{
	uint32_t size = buffer->size - buffer->frame;

	if (!buffer->failed)
		memcpy(buffer->data + buffer->frame, &size, sizeof(size));
}

void
frame_undo(FrameBuffer *buffer)
{
	buffer->size = buffer->frame;
}

static void
put(FrameBuffer *buffer, const void *data, size_t size)
{
	if (size == 0 || !make_room(buffer, size))
		return;
	memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
}

void
frame_u32(FrameBuffer *buffer, uint32_t value)
{
	put(buffer, &value, sizeof(value));
}

void
frame_u64(FrameBuffer *buffer, uint64_t value)
{
	put(buffer, &value, sizeof(value));
}

void
frame_bytes(FrameBuffer *buffer, const void *data, size_t size)
{
	frame_u32(buffer, (uint32_t) size);
	put(buffer, data, size);
}

void
frame_text(FrameBuffer *buffer, const char *text)
{
	frame_bytes(buffer, text == NULL ? "" : text,
				text == NULL ? 0 : strlen(text));
}

bool
frame_pending(const FrameBuffer *buffer)
{
	return buffer->start < buffer->size;
}

bool
frame_send(FrameBuffer *buffer, int fd)
{
	while (frame_pending(buffer) && !buffer->failed)
	{
		ssize_t sent =
			send(fd, buffer->data + buffer->start,
				 buffer->size - buffer->start, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return true;
		if (sent < 0 && errno != EINTR)
			return false;
		if (sent > 0)
			buffer->start += sent;
	}
	if (!frame_pending(buffer))
		buffer->start = buffer->size = 0;
	return !buffer->failed;
}

/*
 * As much as is there, but not without end: the reader has its turn.
 */
bool
frame_receive(FrameBuffer *buffer, int fd)
{
	for (int i = 0; i < 64; i++)
	{
		ssize_t got;

		if (!make_room(buffer, READ_SIZE))
			return false;
		got = recv(fd, buffer->data + buffer->size, READ_SIZE, MSG_DONTWAIT);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK;
		if (got == 0)
			return false;
		buffer->size += got;
		if (got < READ_SIZE)
			return true;
	}
	return true;
}

bool
frame_next(FrameBuffer *buffer, FrameType *type, FrameReader *reader)
{
	uint32_t size;
	uint32_t kind;

	if (buffer->failed || buffer->size - buffer->start < HEADER_SIZE)
		return false;
	memcpy(&size, buffer->data + buffer->start, sizeof(size));
	memcpy(&kind, buffer->data + buffer->start + sizeof(size), sizeof(kind));
	if (size < HEADER_SIZE || size > FRAME_MAX_SIZE)
	{
		buffer->failed = true;
		return false;
	}
	if (buffer->size - buffer->start < size)
		return false;
	*type = (FrameType) kind;
	reader->at = buffer->data + buffer->start + HEADER_SIZE;
	reader->end = buffer->data + buffer->start + size;
	reader->bad = false;
	buffer->start += size;
	return true;
}

static bool
take(FrameReader *reader, void *to, size_t size)
{
	if (reader->bad || (size_t) (reader->end - reader->at) < size)
	{
		reader->bad = true;
		memset(to, 0, size);
		return false;
	}
	memcpy(to, reader->at, size);
	reader->at += size;
	return true;
}

uint32_t
frame_read_u32(FrameReader *reader)
{
	uint32_t value;

	(void) take(reader, &value, sizeof(value));
	return value;
}

uint64_t
frame_read_u64(FrameReader *reader)
{
	uint64_t value;

	(void) take(reader, &value, sizeof(value));
	return value;
}

FrameString
frame_read_string(FrameReader *reader)
{
	FrameString string = {"", 0};
	uint32_t size = frame_read_u32(reader);

	if (reader->bad || (size_t) (reader->end - reader->at) < size)
	{
		reader->bad = true;
		return string;
	}
	string.data = reader->at;
	string.size = size;
	reader->at += size;
	return string;
}

void
frame_free(FrameBuffer *buffer)
{
	free(buffer->data);
	memset(buffer, 0, sizeof(*buffer));
}
