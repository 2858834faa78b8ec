/*
 * receiver.c
 *	  What the benchmark of outside calls calls: answers every request after a
 *	  fixed time, on one thread, with epoll.  And, without the database, the
 *	  same calls by libcurl's own loop, to compare with.
 *
 *	receiver serve MS [ANSWER]         prints its port; ends with its input
 *	receiver call PORT CALLS AT_ONCE   prints seconds and CPU seconds
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 8192
#define ANSWER                                                                \
	"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "   \
	"%zu\r\n\r\n%s"

static char whole[4096];
static int whole_size;

/* Connections whose answer is due, in the order of their times. */
typedef struct Due
{
	int fd;
	double at;
} Due;

static Due queue[CONNECTIONS * 4];
static unsigned first = 0;
static unsigned last = 0;

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void
answer(int fd)
{
	if (write(fd, whole, whole_size) < 0)
		close(fd);
}

/*
 * Requests are small and come whole.
 */
static void
request(int fd, double delay)
{
	char buffer[65536];
	ssize_t n = read(fd, buffer, sizeof(buffer));
	unsigned place;

	if (n <= 0)
	{
		close(fd);
		return;
	}
	if (delay <= 0)
	{
		answer(fd);
		return;
	}
	place = last++ % (CONNECTIONS * 4);
	queue[place].fd = fd;
	queue[place].at = now() + delay;
}

static void
welcome(int listener, int epoll)
{
	struct epoll_event event = {.events = EPOLLIN};
	int on = 1;

	while ((event.data.fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
	{
		setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
	}
}

static int
serve(double delay, const char *body)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int epoll = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};

	whole_size = snprintf(whole, sizeof(whole), ANSWER, strlen(body), body);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *) &address, size) != 0 ||
		listen(listener, 4096) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &size) != 0)
		return 1;
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	event.data.fd = STDIN_FILENO;
	epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	for (;;)
	{
		struct epoll_event events[256];
		int wait = first == last
					   ? -1
					   : (int) ((queue[first % (CONNECTIONS * 4)].at - now()) *
								1000) +
							 1;
		int n = epoll_wait(epoll, events, 256, first == last || wait > 0 ? wait : 0);

		for (int i = 0; i < n; i++)
		{
			if (events[i].data.fd == STDIN_FILENO)
				return 0;
			if (events[i].data.fd == listener)
				welcome(listener, epoll);
			else
				request(events[i].data.fd, delay);
		}
		while (first != last && queue[first % (CONNECTIONS * 4)].at <= now())
			answer(queue[first++ % (CONNECTIONS * 4)].fd);
	}
}

static size_t
take(char *data, size_t one, size_t n, void *arg)
{
	return n;
}

static int
call(int port, int calls, int at_once)
{
	CURLM *multi = curl_multi_init();
	double began = now();
	struct rusage usage;
	int begun = 0;
	int ended = 0;
	int running;
	char url[64];

	snprintf(url, sizeof(url), "http://127.0.0.1:%d/", port);
	while (ended < calls)
	{
		CURLMsg *message;
		int left;

		for (; begun < calls && begun - ended < at_once; begun++)
		{
			CURL *easy = curl_easy_init();

			curl_easy_setopt(easy, CURLOPT_URL, url);
			curl_easy_setopt(easy, CURLOPT_POSTFIELDS, "{\"a\": 1}");
			curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
			curl_multi_add_handle(multi, easy);
		}
		curl_multi_perform(multi, &running);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			if (message->msg != CURLMSG_DONE)
				continue;
			if (message->data.result != CURLE_OK)
				return 1;
			ended++;
			curl_multi_remove_handle(multi, message->easy_handle);
			curl_easy_cleanup(message->easy_handle);
		}
		if (running > 0 && (begun == calls || begun - ended >= at_once))
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	getrusage(RUSAGE_SELF, &usage);
	printf("%.4f %.4f\n", now() - began,
		   usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
			   (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
	return 0;
}

int
main(int argc, char **argv)
{
	if ((argc == 3 || argc == 4) && strcmp(argv[1], "serve") == 0)
		return serve(atof(argv[2]) / 1000,
					 argc == 4 ? argv[3] : "{\"ok\":true}");
	if (argc == 5 && strcmp(argv[1], "call") == 0)
		return call(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	fprintf(stderr, "receiver serve MS [ANSWER] | receiver call PORT CALLS AT_ONCE\n");
	return 2;
}
