/*
 * address.c
 *	  Which addresses may be called: looked at when a socket is to be opened,
 *	  so that no name, spelling or second answer of a name server gets around.
 */
#include "carrier.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define PRIVATE	   "is private, and the endpoint does not say allow_private"
#define OWN		   "is this machine's, and the endpoint does not say allow_private"
#define LINK_LOCAL "is link-local, which is never called"
#define UNKNOWN	   "is of no family that is called"

typedef struct Range
{
	uint8_t bytes[16];
	int bits;
} Range;

/* Besides link-local ones, which are looked at first. */
static const Range private4[] = {
	{{0}, 8},		 {{10}, 8},			{{100, 64}, 10},  {{127}, 8},
	{{172, 16}, 12}, {{192, 0, 0}, 24}, {{192, 168}, 16}, {{198, 18}, 15},
	{{224}, 4},		 {{240}, 4},
};

static const Range private6[] = {
	{{0}, 96},						/* ::, ::1, and what stood for IPv4 */
	{{[8] = 0xff, [9] = 0xff}, 96}, /* likewise */
	{{0x20, 0x01, 0, 0}, 32},		/* Teredo: leads to IPv4 */
	{{0xfc}, 7},					/* unique local */
	{{0xfe, 0xc0}, 10},				/* site-local, as it was called */
	{{0xff}, 8},					/* multicast */
	{{0x00, 0x64, 0xff, 0x9b}, 96}, /* to IPv4, below */
	{{0x20, 0x02}, 16},				/* likewise */
	{{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}, 48}, /* as a network likes */
};

static bool is_in(const uint8_t *address, const Range *range);
static const char *refusal4(const uint8_t *address, bool allow_private);
static const char *refusal6(const uint8_t *address, bool allow_private);
static bool is_own(int family, const uint8_t *address);

static bool
is_in(const uint8_t *address, const Range *range)
{
	int whole = range->bits / 8;
	int rest = range->bits % 8;
	uint8_t mask = (uint8_t) (0xff << (8 - rest));

	return memcmp(address, range->bytes, whole) == 0 &&
		   (rest == 0 || ((address[whole] ^ range->bytes[whole]) & mask) == 0);
}

static const char *
refusal4(const uint8_t *address, bool allow_private)
{
	static const Range link_local = {{169, 254}, 16};

	if (is_in(address, &link_local))
		return LINK_LOCAL;
	if (allow_private)
		return NULL;
	for (size_t i = 0; i < sizeof(private4) / sizeof(private4[0]); i++)
	{
		if (is_in(address, &private4[i]))
			return PRIVATE;
	}
	return is_own(AF_INET, address) ? OWN : NULL;
}

/*
 * Addresses that stand for one of IPv4 are judged by that as well.
 */
static const char *
refusal6(const uint8_t *address, bool allow_private)
{
	static const Range link_local = {{0xfe, 0x80}, 10};
	static const Range mapped = {{[10] = 0xff, [11] = 0xff}, 96};
	static const Range translated = {{0x00, 0x64, 0xff, 0x9b}, 96};
	static const Range six_to_four = {{0x20, 0x02}, 16};
	const char *inner = NULL;

	if (is_in(address, &mapped))
		return refusal4(address + 12, allow_private);
	if (is_in(address, &translated))
		inner = refusal4(address + 12, allow_private);
	else if (is_in(address, &six_to_four))
		inner = refusal4(address + 2, allow_private);
	if (inner != NULL)
		return inner;
	if (is_in(address, &link_local))
		return LINK_LOCAL;
	if (allow_private)
		return NULL;
	for (size_t i = 0; i < sizeof(private6) / sizeof(private6[0]); i++)
	{
		if (is_in(address, &private6[i]))
			return PRIVATE;
	}
	return is_own(AF_INET6, address) ? OWN : NULL;
}

/*
 * A public address of this machine leads to what listens here only.
 */
static bool
is_own(int family, const uint8_t *address)
{
	struct ifaddrs *all;
	bool found = false;

	if (getifaddrs(&all) != 0)
		return true;
	for (struct ifaddrs *each = all; each != NULL && !found;
		 each = each->ifa_next)
	{
		if (each->ifa_addr == NULL || each->ifa_addr->sa_family != family)
			continue;
		found =
			family == AF_INET
				? memcmp(&((struct sockaddr_in *) each->ifa_addr)->sin_addr,
						 address, 4) == 0
				: memcmp(&((struct sockaddr_in6 *) each->ifa_addr)->sin6_addr,
						 address, 16) == 0;
	}
	freeifaddrs(all);
	return found;
}

const char *
address_refusal(const struct sockaddr *address, bool allow_private)
{
	if (address->sa_family == AF_INET)
		return refusal4(
			(const uint8_t *) &((const struct sockaddr_in *) address)
				->sin_addr,
			allow_private);
	if (address->sa_family == AF_INET6)
		return refusal6(
			(const uint8_t *) &((const struct sockaddr_in6 *) address)
				->sin6_addr,
			allow_private);
	return UNKNOWN;
}

const char *
address_text_refusal(const char *text, bool allow_private)
{
	uint8_t address[16];

	if (inet_pton(AF_INET, text, address) == 1)
		return refusal4(address, allow_private);
	if (inet_pton(AF_INET6, text, address) == 1)
		return refusal6(address, allow_private);
	return UNKNOWN;
}
