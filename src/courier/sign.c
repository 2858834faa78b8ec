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

static char *make_content(const char *id, int64_t at, const char *body,
						  size_t *size);
static bool add_signature(const char *secret, size_t length,
						  const char *content, size_t size, char *signature);
static bool read_key(const char *secret, size_t length, Key *key);
static bool decode(const char *text, size_t length, Key *key);

bool
sign(const char *secret, const char *id, int64_t at, const char *body,
	 size_t size, char *signature)
{
	char *content = make_content(id, at, body, &size);
	bool good = true;

	signature[0] = '\0';
	while (good && *secret != '\0')
	{
		size_t length = strcspn(secret, "\n");

		good = add_signature(secret, length, content, size, signature);
		secret += length + strspn(secret + length, "\n");
	}
	free(content);
	return good;
}

/*
 * What is signed, of a body of that size.
 */
static char *
make_content(const char *id, int64_t at, const char *body, size_t *size)
{
	char *content = malloc(strlen(id) + *size + 32);
	int start;

	if (content == NULL)
		abort(); /* the courier starts another of us */
	start = sprintf(content, "%s.%lld.", id, (long long) at);
	if (*size > 0)
		memcpy(content + start, body, *size);
	*size += start;
	return content;
}

static bool
add_signature(const char *secret, size_t length, const char *content,
			  size_t size, char *signature)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int digest_size = 0;
	size_t used = strlen(signature);
	Key key;
	bool good;

	good = used + SIGNATURE_ONE <= SIGNATURE_SIZE &&
		   read_key(secret, length, &key) &&
		   HMAC(EVP_sha256(), key.bytes, (int) key.size,
				(const unsigned char *) content, size, digest,
				&digest_size) != NULL;
	explicit_bzero(&key, sizeof(key));
	if (!good)
		return false;
	used += sprintf(signature + used, "%sv1,", used > 0 ? " " : "");
	(void) EVP_EncodeBlock((unsigned char *) signature + used, digest,
						   (int) digest_size);
	return true;
}

/*
 * The bytes that a secret stands for: as it is, unless it says that it is in
 * base64.
 */
static bool
read_key(const char *secret, size_t length, Key *key)
{
	size_t prefix = strlen(ENCODED);

	if (length > prefix && strncmp(secret, ENCODED, prefix) == 0)
		return decode(secret + prefix, length - prefix, key) &&
			   key->size >= LEAST_KEY;
	key->size = length;
	memcpy(key->bytes, secret, length);
	return length >= LEAST_KEY;
}

static bool
decode(const char *text, size_t length, Key *key)
{
	size_t padding = 0;
	int decoded;

	while (padding < length && text[length - padding - 1] == '=')
		padding++;
	if (length % 4 != 0 || padding > 2)
		return false;
	/* three quarters of it, padding included */
	decoded = EVP_DecodeBlock(key->bytes, (const unsigned char *) text,
							  (int) length);
	if (decoded < 0)
		return false;
	key->size = (size_t) decoded - padding;
	return true;
}
