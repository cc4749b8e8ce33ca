// SPDX-License-Identifier: MIT
//
// libnss_twin.so.2 answers from the same snapshot with the same reads as libnss_mesh.so.2, all in C. It was written from
// docs/snapshot.md alone, and only as far as the benchmark asks: getaddrinfo's entry and the one for addresses.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nss.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define SNAPSHOT "/run/mesh/hosts.db"

enum { HEADER = 128, LINE = 64, SLOTS = 7, BUCKETS = 8, MAX = 4096, HEAD = 24 };
enum { KIND_NAME = 0 };

static uint16_t u16(const unsigned char *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static uint32_t u32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static uint64_t u64(const unsigned char *p) { uint64_t v; memcpy(&v, p, 8); return v; }

static uint64_t mix(uint64_t h, uint64_t w)
{
	h = (h ^ w) * 0x9e3779b97f4a7c15u;
	return h ^ h >> 32;
}

static uint64_t checksum(const unsigned char *p, size_t n, uint64_t seed, uint64_t off)
{
	uint64_t h = mix(seed, off);
	for (size_t i = 0; i < n; i += 8)
		h = mix(h, u64(p + i));
	return mix(h, n);
}

static unsigned char lower(unsigned char c) { return (unsigned)(c - 'A') < 26 ? c + 32 : c; }

static uint64_t hash(const unsigned char *key, size_t n, int kind, uint64_t seed)
{
	uint64_t h = mix(seed, kind);
	for (size_t i = 0; i < n; i++)
		h = (h ^ (kind == KIND_NAME ? lower(key[i]) : key[i])) * 0x100000001b3u;
	return mix(mix(h, n), seed);
}

// work is where one look-up reads to; all of it is on the caller's stack.
struct work {
	unsigned char head[MAX], bucket[MAX], record[MAX];
};

// sound reports whether the record at p, of which avail bytes are there, is whole and undamaged.
static int sound(const unsigned char *p, uint64_t avail, uint64_t seed, uint64_t off)
{
	if (avail < HEAD)
		return 0;
	uint64_t size = u32(p + 8);
	if (size < HEAD || size > MAX || size % 8 || size > avail || checksum(p + 8, size - 8, seed, off) != u64(p))
		return 0;
	uint64_t at = HEAD + 4 * p[14] + 16 * p[15];
	unsigned n = u16(p + 12);
	if (n == 0)
		return 0;
	while (n--) {
		if (at >= size || p[at] == 0 || at + 1 + p[at] > size)
			return 0;
		at += 1 + p[at];
	}
	return 1;
}

static int matches(const unsigned char *p, const unsigned char *key, size_t n, int kind)
{
	if (p[16] != 0)
		return 0;
	const unsigned char *a = p + HEAD + (kind == 16 ? 4 * p[14] : 0);
	if (kind != KIND_NAME) {
		for (unsigned i = kind == 4 ? p[14] : p[15]; i--; a += n)
			if (memcmp(a, key, n) == 0)
				return 1;
		return 0;
	}
	a = p + HEAD + 4 * p[14] + 16 * p[15];
	for (unsigned i = u16(p + 12); i--; a += 1 + *a) {
		if (*a != n)
			continue;
		size_t j = 0;
		while (j < n && lower(key[j]) == a[1 + j])
			j++;
		if (j == n)
			return 1;
	}
	return 0;
}

// search returns 1 and a record, 0 if there is none, -1 if the file is not to be believed.
static int search(int fd, const unsigned char *key, size_t n, int kind, struct work *w, const unsigned char **found)
{
	ssize_t r = pread(fd, w->head, MAX, 0);
	const unsigned char *h = w->head;
	if (r < HEADER || memcmp(h, "meshname", 8) != 0 || u32(h + 8) != 2 || u32(h + 12) != HEADER)
		return -1;
	uint64_t got = r, seed = u64(h + 40), size = u64(h + 16);
	if (checksum(h, 120, seed, 0) != u64(h + 120))
		return -1;
	uint64_t buckets = u32(h + (kind == KIND_NAME ? 48 : 52)), index = u64(h + (kind == KIND_NAME ? 64 : 72));
	uint64_t step = kind == KIND_NAME ? u32(h + 108) : LINE;
	if (buckets == 0 || step < LINE || step > MAX || step % LINE || index < HEADER || index % 8 || index > size || (size - index) / step < buckets)
		return -1;
	uint64_t x = hash(key, n, kind, seed), at = (x >> 32) * buckets >> 32;
	for (int probe = 0; probe < BUCKETS; probe++, at = at + 1 == buckets ? 0 : at + 1) {
		uint64_t off = index + at * step;
		const unsigned char *b = w->bucket;
		if (off + step <= got)
			b = h + off;
		else if (pread(fd, w->bucket, step, off) != (ssize_t)step)
			return -1;
		if (checksum(b, LINE - 8, seed, off) != u64(b + LINE - 8))
			return -1;
		for (int s = 0; s < SLOTS; s++) {
			uint64_t to = (uint64_t)u32(b + 8 * s + 4) * 8, avail;
			if (to == 0)
				return 0;
			if (u32(b + 8 * s) != (uint32_t)x)
				continue;
			if (to < HEADER || to >= size || size - to < HEAD)
				return -1;
			const unsigned char *p;
			if (to >= off + LINE && to < off + step) {
				p = b + (to - off);
				avail = off + step - to;
			} else if (to + HEAD <= got && to + u32(h + to + 8) <= got) {
				p = h + to;
				avail = got - to;
			} else {
				if ((r = pread(fd, w->record, MAX, to)) < HEAD)
					return -1;
				p = w->record;
				avail = r;
			}
			if (!sound(p, avail, seed, to))
				return -1;
			if (matches(p, key, n, kind)) {
				*found = p;
				return 1;
			}
		}
	}
	return -1;
}

static enum nss_status find(const void *key, size_t n, int kind, struct work *w, const unsigned char **found, int *errnop, int *h_errnop)
{
	int saved = errno, rc = -1, fd = open(SNAPSHOT, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0) {
		rc = search(fd, key, n, kind, w, found);
		close(fd);
	}
	errno = saved;
	if (rc == 1)
		return NSS_STATUS_SUCCESS;
	*errnop = ENOENT;
	*h_errnop = rc == 0 ? HOST_NOT_FOUND : NO_RECOVERY;
	return rc == 0 ? NSS_STATUS_NOTFOUND : NSS_STATUS_UNAVAIL;
}

static enum nss_status too_small(int *errnop, int *h_errnop)
{
	*errnop = ERANGE;
	*h_errnop = NETDB_INTERNAL;
	return NSS_STATUS_TRYAGAIN;
}

static char *string(char **to, const unsigned char **from)
{
	char *s = *to;
	size_t n = *(*from)++;
	memcpy(s, *from, n);
	s[n] = 0;
	*to += n + 1;
	*from += n;
	return s;
}

EXPORT enum nss_status _nss_twin_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat, char *buf, size_t buflen, int *errnop,
						  int *h_errnop, int32_t *ttlp)
{
	struct work w;
	const unsigned char *p = NULL;
	size_t n = strnlen(name, 256);
	if (n > 0 && name[n - 1] == '.')
		n--;
	if (n == 0 || n > 253) {
		*errnop = ENOENT;
		*h_errnop = HOST_NOT_FOUND;
		return NSS_STATUS_NOTFOUND;
	}
	enum nss_status st = find(name, n, KIND_NAME, &w, &p, errnop, h_errnop);
	if (st != NSS_STATUS_SUCCESS)
		return st;
	size_t n4 = p[14], all = n4 + p[15], pad = -(uintptr_t)buf & 7, tuples = (all - (*pat != NULL)) * sizeof(struct gaih_addrtuple);
	if (all == 0) {
		*errnop = ENOENT;
		*h_errnop = NO_DATA;
		return NSS_STATUS_NOTFOUND;
	}
	const unsigned char *from = p + HEAD + 4 * n4 + 16 * p[15], *a = p + HEAD;
	if (buflen < pad + tuples + 1 + *from)
		return too_small(errnop, h_errnop);
	struct gaih_addrtuple *room = (void *)(buf + pad), **link = pat;
	char *s = buf + pad + tuples, *canonical = string(&s, &from);
	for (size_t i = 0; i < all; i++) {
		struct gaih_addrtuple *t = i == 0 && *pat ? *pat : room++;
		size_t size = i < n4 ? 4 : 16;
		memset(t, 0, sizeof *t);
		t->name = canonical;
		t->family = size == 4 ? AF_INET : AF_INET6;
		memcpy(t->addr, a, size);
		a += size;
		*link = t;
		link = &t->next;
	}
	if (ttlp)
		*ttlp = 0;
	*h_errnop = NETDB_SUCCESS;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_twin_gethostbyaddr2_r(const void *addr, socklen_t len, int af, struct hostent *he, char *buf, size_t buflen,
						  int *errnop, int *h_errnop, int32_t *ttlp)
{
	struct work w;
	const unsigned char *p = NULL;
	if (!(af == AF_INET && len == 4) && !(af == AF_INET6 && len == 16)) {
		*errnop = EAFNOSUPPORT;
		*h_errnop = NO_DATA;
		return NSS_STATUS_UNAVAIL;
	}
	enum nss_status st = find(addr, len, len, &w, &p, errnop, h_errnop);
	if (st != NSS_STATUS_SUCCESS)
		return st;
	unsigned names = u16(p + 12);
	const unsigned char *from = p + HEAD + 4 * p[14] + 16 * p[15], *end = from;
	for (unsigned i = 0; i < names; i++)
		end += 1 + *end;
	size_t pad = -(uintptr_t)buf & 7;
	if (buflen < pad + 16 + (2 + names) * sizeof(char *) + (end - from))
		return too_small(errnop, h_errnop);
	char *a = memcpy(buf + pad, addr, len), **list = (char **)(a + 16), **aliases = list + 2, *s = (char *)(aliases + names);
	*he = (struct hostent){.h_addrtype = af, .h_length = len, .h_addr_list = list, .h_aliases = aliases};
	list[0] = a;
	list[1] = NULL;
	he->h_name = string(&s, &from);
	for (unsigned i = 1; i < names; i++)
		*aliases++ = string(&s, &from);
	*aliases = NULL;
	if (ttlp)
		*ttlp = 0;
	*h_errnop = NETDB_SUCCESS;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_twin_gethostbyaddr_r(const void *addr, socklen_t len, int af, struct hostent *he, char *buf, size_t buflen,
						 int *errnop, int *h_errnop)
{
	return _nss_twin_gethostbyaddr2_r(addr, len, af, he, buf, buflen, errnop, h_errnop, NULL);
}
