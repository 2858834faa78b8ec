/*
 * transfer.c
 *	  Calls under way, by libcurl's multi interface.
 *
 * Nothing of a call is libcurl's default that could be set from outside: no
 * proxy, no netrc, no redirect, no other protocol, no certificate unchecked.
 * Addresses are judged when a socket is opened, and again before a request is
 * sent over a connection that was open already.
 */
#define _GNU_SOURCE
#include "carrier.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#if LIBCURL_VERSION_NUM < 0x075700
#error "orchestrator-courier needs libcurl 7.87 or later"
#endif

#define BUCKETS			 4096
#define MOST_IDLE		 256  /* handles kept for the next calls */
#define MOST_CONNECTIONS 1024 /* kept open */
#define MOST_REASON		 1024 /* of what is said of a webhook */

/* Between two looks for transfers that are silent. */
#define LOOK_MS 20

/* Parts that the courier has not taken, until no more of them are read. */
#define MOST_PARTS (4 * 1024 * 1024)

typedef struct Bytes
{
	char *data;
	size_t size;
	size_t room;
} Bytes;

typedef struct Transfer
{
	uint64_t call;
	struct Transfer *next; /* in its bucket */
	CURL *easy;
	CURLU *url;
	struct curl_slist *headers;
	char *secret; /* NULL: it has none */
	char *body;
	size_t body_size;
	bool allow_private;
	bool is_webhook; /* signed, and only its status is of interest */
	int requests;	 /* that were begun */
	uint64_t most;
	long silence;	  /* milliseconds without a byte; 0: any */
	int64_t heard_at; /* the last byte came or went */
	curl_off_t sent;  /* bytes, at the last look */
	bool may_stream;  /* its answer may be passed on in parts ... */
	bool streams;	  /* ... and is */
	bool waits;		  /* for the courier to take some */
	uint64_t passed_on;
	Bytes answer; /* of parts: what is not passed on yet */
	Bytes lines;  /* of its headers */
	int nlines;
	FrameResult refused; /* RESULT_ANSWERED: it was not */
	char message[MESSAGE_SIZE];
	char error[CURL_ERROR_SIZE];
} Transfer;

static CURLM *multi = NULL;
static int epoll_fd = -1;
static FrameBuffer *out = NULL;
static Transfer *buckets[BUCKETS];
static CURL *idle[MOST_IDLE];
static int nidle = 0;
static int count = 0;
static int nwaiting = 0;
static int64_t timer_at = -1;
static int64_t look_at = INT64_MAX; /* for silent ones */

static bool is_document(Transfer *transfer);
static bool pass_on(Transfer *transfer, const char *data, size_t size);
static void put_part(Transfer *transfer, size_t size);
static void read_on(void);
static void append(Bytes *bytes, const char *data, size_t size, bool *failed);
static char *copy_string(FrameString string);
static void refuse(Transfer *transfer, FrameResult result, const char *message,
				   const char *detail);
static bool set_up(Transfer *transfer, FrameReader *frame);
static bool set_url(Transfer *transfer, const char *url, const char *host);
static void set_method(Transfer *transfer, const char *method, bool has_body,
					   FrameString body);
static void set_secret(Transfer *transfer, const char *path,
					   const char *header, const char *prefix, const char *id);
static void set_signature(Transfer *transfer, const char *id);
static void add_line(Transfer *transfer, const char *name, const char *prefix,
					 const char *value);
static void add_header(Transfer *transfer, const char *line);
static void set_rules(Transfer *transfer);
static void look_for_silent(int64_t now);
static bool is_silent(Transfer *transfer, int64_t now);
static void finish(Transfer *transfer, CURLcode code);
static FrameResult judge(CURLcode code);
static void put_headers(Transfer *transfer);
static void forget(Transfer *transfer);

/* -------------------------------------------------- what libcurl calls */

static int
watch_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	struct epoll_event event = {.data.fd = fd};

	if (what == CURL_POLL_REMOVE)
	{
		(void) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) |
				   (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
				  &event) != 0)
		(void) epoll_ctl(epoll_fd, known ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd,
						 &event);
	(void) curl_multi_assign(multi, fd, multi);
	return 0;
}

static int
set_timer(CURLM *which, long delay, void *arg)
{
	timer_at = delay < 0 ? -1 : now_ms() + delay;
	return 0;
}

static curl_socket_t
open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	Transfer *transfer = arg;
	const char *refusal =
		address_refusal(&address->addr, transfer->allow_private);

	if (refusal != NULL)
	{
		refuse(transfer, RESULT_REFUSED, "its address ", refusal);
		return CURL_SOCKET_BAD;
	}
	return socket(address->family, address->socktype | SOCK_CLOEXEC,
				  address->protocol);
}

/*
 * A connection may have been opened for an endpoint with other rules.  And a
 * request that was sent once may have arrived: libcurl must not send it again
 * by itself, for that is another attempt.
 */
static int
before_request(void *arg, char *address, char *local, int port, int local_port)
{
	Transfer *transfer = arg;
	const char *refusal =
		address_text_refusal(address, transfer->allow_private);

	transfer->refused = RESULT_ANSWERED; /* of another of its addresses */
	if (refusal != NULL)
		refuse(transfer, RESULT_REFUSED, "its address ", refusal);
	else if (transfer->requests++ > 0)
		refuse(transfer, RESULT_BROKEN, "the connection was closed", "");
	return transfer->refused == RESULT_ANSWERED ? CURL_PREREQFUNC_OK
												: CURL_PREREQFUNC_ABORT;
}

static size_t
take_body(char *data, size_t one, size_t n, void *arg)
{
	Transfer *transfer = arg;
	bool failed = false;

	transfer->heard_at = now_ms();
	if (transfer->is_webhook)
	{
		size_t room = MOST_REASON - transfer->answer.size;

		append(&transfer->answer, data, n < room ? n : room, &failed);
		return failed ? 0 : n;
	}
	if (transfer->may_stream && !transfer->streams)
		transfer->may_stream = transfer->streams = !is_document(transfer);
	if (transfer->streams && out->size - out->start >= MOST_PARTS)
	{
		nwaiting += !transfer->waits;
		transfer->waits = true;
		return CURL_WRITEFUNC_PAUSE;
	}
	if (transfer->streams)
		return pass_on(transfer, data, n) ? n : 0;
	if (transfer->answer.size + n > transfer->most)
	{
		refuse(transfer, RESULT_TOO_LARGE, "the answer is too large", "");
		return 0;
	}
	append(&transfer->answer, data, n, &failed);
	return failed ? 0 : n;
}

/*
 * An answer that is no success, or not of the kind that was asked for.
 */
static bool
is_document(Transfer *transfer)
{
	long status = 0;
	char *type = NULL;

	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &type);
	return status < 200 || status > 299 ||
		   (type != NULL && strncasecmp(type, "application/json", 16) == 0 &&
			strchr("; ", type[16]) != NULL);
}

/*
 * What may be the beginning of the secret waits for more.
 */
static bool
pass_on(Transfer *transfer, const char *data, size_t size)
{
	Bytes *rest = &transfer->answer;
	bool failed = false;

	transfer->passed_on += size;
	if (transfer->passed_on > FRAME_MAX_STREAM)
	{
		refuse(transfer, RESULT_TOO_LARGE, "the answer is too large", "");
		return false;
	}
	append(rest, data, size, &failed);
	if (failed)
		return false;
	secret_blot(transfer->secret, rest->data, rest->size);
	put_part(transfer, rest->size - secret_begins(transfer->secret, rest->data,
												  rest->size));
	return true;
}

static void
put_part(Transfer *transfer, size_t size)
{
	Bytes *rest = &transfer->answer;

	if (size == 0)
		return;
	frame_begin(out, FRAME_PART);
	frame_u64(out, transfer->call);
	frame_bytes(out, rest->data, size);
	frame_end(out);
	if (out->failed)
		abort();
	rest->size -= size;
	memmove(rest->data, rest->data + size, rest->size);
}

/*
 * The courier has taken what kept transfers waiting.
 */
static void
read_on(void)
{
	for (int i = 0; i < BUCKETS && nwaiting > 0; i++)
	{
		for (Transfer *each = buckets[i]; each != NULL; each = each->next)
		{
			if (!each->waits)
				continue;
			each->waits = false;
			nwaiting--;
			(void) curl_easy_pause(each->easy, CURLPAUSE_CONT);
		}
	}
}

/*
 * Lines of one answer: those of an answer before (100 Continue) do not count.
 */
static size_t
take_header(char *data, size_t one, size_t n, void *arg)
{
	Transfer *transfer = arg;
	bool failed = false;

	transfer->heard_at = now_ms();
	if (n >= 5 && memcmp(data, "HTTP/", 5) == 0)
	{
		transfer->lines.size = 0;
		transfer->nlines = 0;
		return n;
	}
	if (++transfer->nlines > FRAME_MAX_HEADERS + 1 ||
		transfer->lines.size + n > FRAME_MAX_HEADERS_SIZE)
	{
		refuse(transfer, RESULT_TOO_LARGE,
			   "the answer has too many or too large headers", "");
		return 0;
	}
	append(&transfer->lines, data, n, &failed);
	return failed ? 0 : n;
}

/* ------------------------------------------------------------- a call */

bool
transfer_install(int epoll, FrameBuffer *answers)
{
	epoll_fd = epoll;
	out = answers;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return false;
	multi = curl_multi_init();
	if (multi == NULL)
		return false;
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, (long) MOST_CONNECTIONS);
	return true;
}

static void
append(Bytes *bytes, const char *data, size_t size, bool *failed)
{
	if (bytes->size + size > bytes->room)
	{
		size_t room = bytes->room == 0 ? 1024 : bytes->room;
		char *more;

		while (room < bytes->size + size)
			room *= 2;
		more = realloc(bytes->data, room);
		*failed = more == NULL;
		if (more == NULL)
			return;
		bytes->data = more;
		bytes->room = room;
	}
	memcpy(bytes->data + bytes->size, data, size);
	bytes->size += size;
}

static char *
copy_string(FrameString string)
{
	return strndup(string.data, string.size);
}

/*
 * Why a call ends, or cannot begin; the first reason stands.
 */
static void
refuse(Transfer *transfer, FrameResult result, const char *message,
	   const char *detail)
{
	if (transfer->refused != RESULT_ANSWERED)
		return;
	transfer->refused = result;
	snprintf(transfer->message, MESSAGE_SIZE, "%s%s", message, detail);
}

void
transfer_begin(FrameReader *frame)
{
	Transfer *transfer = calloc(1, sizeof(Transfer));
	Transfer **bucket;

	if (transfer == NULL)
		abort(); /* the courier starts another of us */
	transfer->call = frame_read_u64(frame);
	transfer->easy = nidle > 0 ? idle[--nidle] : curl_easy_init();
	if (transfer->easy == NULL)
		abort();
	bucket = &buckets[transfer->call % BUCKETS];
	transfer->next = *bucket;
	*bucket = transfer;
	count++;
	if (!set_up(transfer, frame))
		finish(transfer, CURLE_FAILED_INIT);
	else if (curl_multi_add_handle(multi, transfer->easy) != CURLM_OK)
		finish(transfer, CURLE_OUT_OF_MEMORY);
}

/*
 * In the order of FRAME_CALL.
 */
static bool
set_up(Transfer *transfer, FrameReader *frame)
{
	CURL *easy = transfer->easy;
	uint32_t flags = frame_read_u32(frame);
	long timeout = frame_read_u32(frame);
	long connect = frame_read_u32(frame);
	FrameString body;
	char *texts[7]; /* method, url, host, secret's file, header, prefix, id */
	char *ca_file;
	uint32_t nheaders;

	transfer->silence = frame_read_u32(frame);
	transfer->heard_at = now_ms();
	if (transfer->silence > 0 &&
		look_at > transfer->heard_at + transfer->silence)
		look_at = transfer->heard_at + transfer->silence;
	transfer->most = frame_read_u64(frame);
	for (int i = 0; i < 3; i++)
		texts[i] = copy_string(frame_read_string(frame));
	body = frame_read_string(frame);
	for (int i = 3; i < 7; i++)
		texts[i] = copy_string(frame_read_string(frame));
	ca_file = copy_string(frame_read_string(frame));
	nheaders = frame_read_u32(frame);
	transfer->allow_private = (flags & FRAME_ALLOW_PRIVATE) != 0;
	transfer->may_stream = (flags & FRAME_STREAM) != 0;
	transfer->is_webhook = (flags & FRAME_WEBHOOK) != 0;

	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, timeout);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, connect);
	if (ca_file != NULL && ca_file[0] != '\0')
		curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);
	/* else what is compressed stays so, and is no text */
	curl_easy_setopt(easy, CURLOPT_HTTP_CONTENT_DECODING,
					 flags & FRAME_COMPRESSED ? 1L : 0L);
	if (flags & FRAME_COMPRESSED)
		curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "gzip, deflate");
	set_rules(transfer);
	set_url(transfer, texts[1], texts[2]);
	set_method(transfer, texts[0], (flags & FRAME_HAS_BODY) != 0, body);
	if (texts[3] != NULL && texts[3][0] != '\0')
		set_secret(transfer, texts[3], texts[4], texts[5], texts[6]);
	for (uint32_t i = 0; i < nheaders && !frame->bad; i++)
	{
		char *line = copy_string(frame_read_string(frame));

		add_header(transfer, line);
		free(line);
	}
	add_header(transfer, "Expect:");
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer->headers);
	for (int i = 0; i < 7; i++)
		free(texts[i]);
	free(ca_file);
	return transfer->refused == RESULT_ANSWERED && !frame->bad;
}

/*
 * The parser that judges a URL is the one that is used to call it.
 */
static bool
set_url(Transfer *transfer, const char *url, const char *host)
{
	char *found = NULL;
	char *scheme = NULL;
	CURLUcode code;
	bool good;

	transfer->url = curl_url();
	code = curl_url_set(transfer->url, CURLUPART_URL, url,
						CURLU_DISALLOW_USER | CURLU_PATH_AS_IS);
	good =
		code == CURLUE_OK &&
		curl_url_get(transfer->url, CURLUPART_HOST, &found, 0) == CURLUE_OK &&
		curl_url_get(transfer->url, CURLUPART_SCHEME, &scheme, 0) ==
			CURLUE_OK &&
		strcasecmp(found, host) == 0 &&
		(strcmp(scheme, "https") == 0 || strcmp(scheme, "http") == 0);
	if (!good)
		refuse(transfer, RESULT_REFUSED, "the URL cannot be called", "");
	curl_free(found);
	curl_free(scheme);
	curl_easy_setopt(transfer->easy, CURLOPT_CURLU, transfer->url);
	return good;
}

static void
set_method(Transfer *transfer, const char *method, bool has_body,
		   FrameString body)
{
	CURL *easy = transfer->easy;
	bool sends = has_body || strcmp(method, "POST") == 0 ||
				 strcmp(method, "PUT") == 0 || strcmp(method, "PATCH") == 0;

	if (strcmp(method, "HEAD") == 0)
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	else if (sends)
	{
		transfer->body = malloc(body.size + 1);
		if (transfer->body == NULL)
			abort();
		memcpy(transfer->body, body.data, body.size);
		transfer->body_size = body.size;
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
						 (curl_off_t) body.size);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, transfer->body);
		if (!has_body)
			add_header(transfer, "Content-Type:");
	}
	curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
}

/*
 * One that signs is not sent.
 */
static void
set_secret(Transfer *transfer, const char *path, const char *header,
		   const char *prefix, const char *id)
{
	transfer->secret =
		secret_read(path, transfer->is_webhook, transfer->message);
	if (transfer->secret == NULL)
		transfer->refused = RESULT_REFUSED;
	else if (transfer->is_webhook)
		set_signature(transfer, id);
	else
		add_line(transfer, header, prefix, transfer->secret);
}

/*
 * Of this attempt: the id is that of all, the time is not.
 */
static void
set_signature(Transfer *transfer, const char *id)
{
	int64_t at = (int64_t) time(NULL);
	char signature[SIGNATURE_SIZE];
	char text[24];

	if (!sign(transfer->secret, id, at, transfer->body, transfer->body_size,
			  signature))
	{
		refuse(
			transfer, RESULT_REFUSED, "its secret cannot sign: it must be ",
			"whsec_ and base64, or plain, of 24 bytes at least, in up to four "
			"lines");
		return;
	}
	snprintf(text, sizeof(text), "%lld", (long long) at);
	add_line(transfer, "webhook-id", "", id);
	add_line(transfer, "webhook-timestamp", "", text);
	add_line(transfer, "webhook-signature", "", signature);
}

static void
add_line(Transfer *transfer, const char *name, const char *prefix,
		 const char *value)
{
	char *line = NULL;
	int size = asprintf(&line, "%s: %s%s", name, prefix, value);

	if (size < 0)
		abort();
	add_header(transfer, line);
	explicit_bzero(line, size);
	free(line);
}

/*
 * The courier has looked at them; a line end would begin another one.
 */
static void
add_header(Transfer *transfer, const char *line)
{
	struct curl_slist *more;

	if (line == NULL || strpbrk(line, "\r\n") != NULL)
	{
		refuse(transfer, RESULT_REFUSED, "a header has a line end", "");
		return;
	}
	more = curl_slist_append(transfer->headers, line);
	if (more == NULL)
		abort();
	transfer->headers = more;
}

static void
set_rules(Transfer *transfer)
{
	CURL *easy = transfer->easy;

	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "https");
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* of name look-ups */
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, before_request);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
	curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "orchestrator");
}

void
transfer_ready(int fd, uint32_t events)
{
	int running;
	int what = (events & EPOLLIN ? CURL_CSELECT_IN : 0) |
			   (events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			   (events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);

	(void) curl_multi_socket_action(multi, fd, what, &running);
}

void
transfer_go_on(void)
{
	CURLMsg *message;
	int64_t now = now_ms();
	int left;
	int running;

	if (nwaiting > 0 && out->size - out->start < MOST_PARTS / 2)
		read_on();
	if (timer_at >= 0 && now >= timer_at)
	{
		timer_at = -1;
		(void) curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0,
										&running);
	}
	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		CURLcode code = message->data.result;
		Transfer *transfer = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		(void) curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE,
								 (char **) &transfer);
		finish(transfer, code);
	}
	if (now >= look_at)
		look_for_silent(now);
}

/*
 * libcurl's own limit is one of the mean speed of some seconds.
 */
static void
look_for_silent(int64_t now)
{
	look_at = INT64_MAX;
	for (int i = 0; i < BUCKETS; i++)
	{
		Transfer *next;

		for (Transfer *each = buckets[i]; each != NULL; each = next)
		{
			next = each->next;
			if (is_silent(each, now))
				finish(each, CURLE_OPERATION_TIMEDOUT);
			else if (each->silence > 0 &&
					 look_at > each->heard_at + each->silence)
				look_at = each->heard_at + each->silence;
		}
	}
	if (look_at < now + LOOK_MS)
		look_at = now + LOOK_MS;
}

/*
 * One that waits for the courier does not listen.
 */
static bool
is_silent(Transfer *transfer, int64_t now)
{
	curl_off_t sent = 0;

	if (transfer->silence == 0)
		return false;
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	if (sent != transfer->sent || transfer->waits)
		transfer->heard_at = now;
	transfer->sent = sent;
	if (now - transfer->heard_at < transfer->silence)
		return false;
	snprintf(transfer->error, sizeof(transfer->error),
			 "nothing came for %ld ms", transfer->silence);
	return true;
}

int
transfer_due(void)
{
	int64_t at = timer_at < 0 || timer_at > look_at ? look_at : timer_at;
	int64_t left = at - now_ms();

	if (nwaiting > 0 && out->size - out->start < MOST_PARTS / 2)
		return 0;
	if (at == INT64_MAX)
		return -1;
	return left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int) left;
}

int
transfer_count(void)
{
	return count;
}

void
transfer_cancel(uint64_t call)
{
	for (Transfer *each = buckets[call % BUCKETS]; each != NULL;
		 each = each->next)
	{
		if (each->call == call)
		{
			forget(each);
			return;
		}
	}
}

/*
 * Answer a call.
 */
static void
finish(Transfer *transfer, CURLcode code)
{
	FrameResult result = judge(code);
	const char *message = transfer->error;
	long status = 0;
	curl_off_t retry_after = 0;
	curl_off_t took = 0;

	if (code != CURLE_OK && transfer->refused != RESULT_ANSWERED)
	{
		result = transfer->refused;
		message = transfer->message;
	}
	else if (code == CURLE_OK || message[0] == '\0')
		message = code == CURLE_OK ? "" : curl_easy_strerror(code);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER,
							 &retry_after);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_TOTAL_TIME_T, &took);
	secret_blot(transfer->secret, transfer->answer.data,
				transfer->answer.size);
	secret_blot(transfer->secret, transfer->lines.data, transfer->lines.size);
	secret_blot(transfer->secret, transfer->error, strlen(transfer->error));
	if (transfer->streams)
		put_part(transfer, transfer->answer.size);

	if (transfer->is_webhook && status >= 200 && status < 300)
		transfer->answer.size = 0;

	frame_begin(out, FRAME_DONE);
	frame_u64(out, transfer->call);
	frame_u32(out, result);
	frame_u32(out, (uint32_t) status);
	frame_u32(out,
			  (uint32_t) (retry_after > INT32_MAX ? INT32_MAX : retry_after));
	frame_u64(out, (uint64_t) took);
	frame_text(out, message);
	frame_bytes(out, transfer->answer.data,
				result == RESULT_ANSWERED ? transfer->answer.size : 0);
	put_headers(transfer);
	frame_end(out);
	if (out->failed)
		abort();
	forget(transfer);
}

static FrameResult
judge(CURLcode code)
{
	switch (code)
	{
		case CURLE_OK:
			return RESULT_ANSWERED;
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_CONNECT:
			return RESULT_UNREACHED;
		case CURLE_OPERATION_TIMEDOUT:
			return RESULT_TIMED_OUT;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			return RESULT_UNTRUSTED;
		case CURLE_URL_MALFORMAT:
		case CURLE_UNSUPPORTED_PROTOCOL:
			return RESULT_REFUSED;
		default:
			return RESULT_BROKEN;
	}
}

/*
 * Lines that are no "name: value" are left out.
 */
static void
put_headers(Transfer *transfer)
{
	const char *at = transfer->lines.data;
	const char *end = at + transfer->lines.size;
	uint32_t n = 0;
	size_t place = out->size - out->frame;

	frame_u32(out, 0);
	while (at < end)
	{
		const char *line_end = memchr(at, '\n', end - at);
		const char *stop = line_end == NULL ? end : line_end;
		const char *colon = memchr(at, ':', stop - at);

		if (colon != NULL)
		{
			const char *value = colon + 1;
			const char *last = stop;

			while (value < last && (*value == ' ' || *value == '\t'))
				value++;
			while (last > value && strchr(" \t\r", last[-1]) != NULL)
				last--;
			frame_bytes(out, at, colon - at);
			frame_bytes(out, value, last - value);
			n++;
		}
		at = line_end == NULL ? end : line_end + 1;
	}
	if (!out->failed)
		memcpy(out->data + out->frame + place, &n, sizeof(n));
}

/*
 * Of a call that is over nothing stays, least of all its secret.
 */
static void
forget(Transfer *transfer)
{
	Transfer **place = &buckets[transfer->call % BUCKETS];

	(void) curl_multi_remove_handle(multi, transfer->easy);
	while (*place != transfer)
		place = &(*place)->next;
	*place = transfer->next;
	count--;
	nwaiting -= transfer->waits;
	if (nidle < MOST_IDLE)
	{
		curl_easy_reset(transfer->easy);
		idle[nidle++] = transfer->easy;
	}
	else
		curl_easy_cleanup(transfer->easy);
	curl_url_cleanup(transfer->url);
	for (struct curl_slist *each = transfer->headers;
		 each != NULL && transfer->secret != NULL; each = each->next)
		explicit_bzero(each->data, strlen(each->data));
	curl_slist_free_all(transfer->headers);
	secret_free(transfer->secret);
	free(transfer->body);
	free(transfer->answer.data);
	free(transfer->lines.data);
	free(transfer);
}
