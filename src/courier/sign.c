/*
 * sign.c
 *	  Signatures of webhooks, in the form of Standard Webhooks: HMAC with
 *	  SHA-256 over "id.timestamp.body", by libcrypto.
 */
#define _GNU_SOURCE
#include "carrier.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENCODED	  "whsec_" /* before a key that is in base64 */
#define LEAST_KEY 24

typedef struct Key
{
	unsigned char bytes[SECRET_SIZE];
	size_t size;
} Key;

static bool read_key(const char *secret, Key *key);
static bool decode(const char *text, Key *key);

bool
sign(const char *secret, const char *id, int64_t at, const char *body,
	 size_t size, char *signature)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int digest_size = 0;
	char *content = malloc(strlen(id) + size + 32);
	Key key;
	int start;
	bool good = false;

	if (content == NULL)
		abort(); /* the courier starts another of us */
	start = sprintf(content, "%s.%lld.", id, (long long) at);
	if (size > 0)
		memcpy(content + start, body, size);
	if (read_key(secret, &key))
		good = HMAC(EVP_sha256(), key.bytes, (int) key.size,
					(unsigned char *) content, start + size, digest,
					&digest_size) != NULL;
	explicit_bzero(&key, sizeof(key));
	free(content);
	if (good)
		(void) EVP_EncodeBlock((unsigned char *) signature, digest,
							   (int) digest_size);
	return good;
}

/*
 * The bytes that a secret stands for: as it is, unless it says that it is in
 * base64.
 */
static bool
read_key(const char *secret, Key *key)
{
	size_t prefix = strlen(ENCODED);

	if (strncmp(secret, ENCODED, prefix) == 0)
		return decode(secret + prefix, key) && key->size >= LEAST_KEY;
	key->size = strlen(secret);
	memcpy(key->bytes, secret, key->size);
	return key->size >= LEAST_KEY;
}

static bool
decode(const char *text, Key *key)
{
	size_t size = strlen(text);
	size_t padding = size - strcspn(text, "=");
	int decoded;

	/* what is decoded is three quarters, padding included */
	if (size == 0 || size % 4 != 0 || padding > 2 ||
		strspn(text + size - padding, "=") != padding)
		return false;
	decoded =
		EVP_DecodeBlock(key->bytes, (const unsigned char *) text, (int) size);
	if (decoded < 0)
		return false;
	key->size = (size_t) decoded - padding;
	return true;
}
