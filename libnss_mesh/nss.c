// SPDX-License-Identifier: MIT
//
// glibc's NSS interface (nss(5), the GNU C Library manual chapter 30) around the look-up in package leaf. Every function
// keeps no state, takes no lock, allocates nothing, reads no environment, and leaves errno as it was where it succeeds.
// Answers are packed into the caller's buffer: the size is computed first, then the parts follow in the order
// addresses, pointers, strings.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <string.h>

#include "mesh.h"

#ifndef MESH_SNAPSHOT
#define MESH_SNAPSHOT "/run/mesh/hosts.db"
#endif

typedef int find_fn(const char *path, const void *key, uint64_t n, uint64_t kind, struct result *r);
find_fn *mesh_leaf_find; // set by meshnss_init

enum nss_status mesh_find(const void *key, size_t n, uint64_t kind, struct result *r)
{
	int saved = errno, rc = mesh_leaf_find ? mesh_leaf_find(MESH_SNAPSHOT, key, n, kind, r) : -1;
	errno = saved;
	return rc == 1 ? NSS_STATUS_SUCCESS : rc == 0 ? NSS_STATUS_NOTFOUND : NSS_STATUS_UNAVAIL;
}

// A host's record that leaf has checked.
struct rec {
	const unsigned char *a4, *a6, *names;
	unsigned n4, n6, nnames;
};

// find returns the status of a look-up and, on success, its record.
static enum nss_status find(const void *key, size_t n, uint64_t kind, struct result *r, struct rec *rec, int *errnop, int *h_errnop)
{
	enum nss_status st = mesh_find(key, n, kind, r);
	if (st != NSS_STATUS_SUCCESS) {
		*errnop = ENOENT;
		*h_errnop = st == NSS_STATUS_NOTFOUND ? HOST_NOT_FOUND : NO_RECOVERY;
		return st;
	}
	const unsigned char *p = r->buf + r->record;
	*rec = (struct rec){.n4 = p[14], .n6 = p[15], .nnames = p[12] | p[13] << 8, .a4 = p + RECORD_HEAD};
	rec->a6 = rec->a4 + 4 * rec->n4;
	rec->names = rec->a6 + 16 * rec->n6;
	return NSS_STATUS_SUCCESS;
}

static enum nss_status find_name(const char *name, struct result *r, struct rec *rec, int *errnop, int *h_errnop)
{
	size_t n = strnlen(name, 256);
	if (n > 0 && name[n - 1] == '.')
		n--;
	if (n == 0 || n > NAME_MAX_) {
		*errnop = ENOENT;
		*h_errnop = HOST_NOT_FOUND;
		return NSS_STATUS_NOTFOUND;
	}
	return find(name, n, KIND_NAME, r, rec, errnop, h_errnop);
}

static enum nss_status too_small(int *errnop, int *h_errnop)
{
	*errnop = ERANGE;
	*h_errnop = NETDB_INTERNAL;
	return NSS_STATUS_TRYAGAIN;
}

static enum nss_status no_data(int *errnop, int *h_errnop)
{
	*errnop = ENOENT;
	*h_errnop = NO_DATA;
	return NSS_STATUS_NOTFOUND;
}

static enum nss_status bad_family(int *errnop, int *h_errnop)
{
	*errnop = EAFNOSUPPORT;
	*h_errnop = NO_DATA;
	return NSS_STATUS_UNAVAIL;
}

// align returns how many bytes lie before the next multiple of a pointer's alignment.
static size_t align(const char *p)
{
	return -(uintptr_t)p & (_Alignof(max_align_t) > 8 ? 7 : _Alignof(max_align_t) - 1);
}

// copy_string appends a record's string to *s with a final zero and moves both on.
static char *copy_string(char **s, const unsigned char **from)
{
	char *at = *s;
	size_t l = *(*from)++;
	memcpy(at, *from, l);
	at[l] = 0;
	*from += l;
	*s = at + l + 1;
	return at;
}

// strings_size is the room that a record's first n strings need with their final zeros: as much as they take in it.
static size_t strings_size(const struct rec *rec, unsigned n)
{
	const unsigned char *p = rec->names;
	while (n--)
		p += 1 + *p;
	return p - rec->names;
}

// pack_hostent fills he with one family's addresses; only, if not NULL, is the one address to give.
static enum nss_status pack_hostent(const struct rec *rec, int af, const void *only, struct hostent *he, char *buf, size_t buflen,
				    int *errnop, int *h_errnop)
{
	size_t size = af == AF_INET ? 4 : 16, n = only ? 1 : af == AF_INET ? rec->n4 : rec->n6;
	const void *from = only ? only : af == AF_INET ? rec->a4 : rec->a6;
	if (n == 0)
		return no_data(errnop, h_errnop);
	size_t pad = align(buf), addrs = (n * size + 7) & ~(size_t)7, ptrs = (n + 1 + rec->nnames) * sizeof(char *);
	if (buflen < pad + addrs + ptrs + strings_size(rec, rec->nnames))
		return too_small(errnop, h_errnop);
	char *a = buf + pad, **list = (char **)(a + addrs), **aliases = list + n + 1, *s = (char *)(aliases + rec->nnames);
	memcpy(a, from, n * size);
	for (size_t i = 0; i < n; i++)
		list[i] = a + i * size;
	list[n] = NULL;
	const unsigned char *p = rec->names;
	he->h_name = copy_string(&s, &p);
	for (unsigned i = 1; i < rec->nnames; i++)
		aliases[i - 1] = copy_string(&s, &p);
	aliases[rec->nnames - 1] = NULL;
	he->h_aliases = aliases;
	he->h_addrtype = af;
	he->h_length = size;
	he->h_addr_list = list;
	*h_errnop = NETDB_SUCCESS;
	return NSS_STATUS_SUCCESS;
}

// Used by getaddrinfo: both families at once. *pat may be an entry of the caller's (nscd) to be used first.
EXPORT enum nss_status _nss_mesh_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat, char *buf, size_t buflen, int *errnop,
						  int *h_errnop, int32_t *ttlp)
{
	struct result r;
	struct rec rec;
	enum nss_status st = find_name(name, &r, &rec, errnop, h_errnop);
	if (st != NSS_STATUS_SUCCESS)
		return st;
	size_t n = rec.n4 + rec.n6, pad = align(buf);
	if (n == 0)
		return no_data(errnop, h_errnop);
	size_t tuples = (n - (*pat != NULL)) * sizeof(struct gaih_addrtuple);
	if (buflen < pad + tuples + strings_size(&rec, 1))
		return too_small(errnop, h_errnop);
	struct gaih_addrtuple *next = (void *)(buf + pad), **link = pat, *t = *pat ? *pat : next++;
	const unsigned char *p = rec.names;
	char *s = buf + pad + tuples, *canon = copy_string(&s, &p);
	for (size_t i = 0; i < n; i++, t = next++) {
		*t = (struct gaih_addrtuple){.name = canon};
		if (i < rec.n4) {
			t->family = AF_INET;
			memcpy(t->addr, rec.a4 + 4 * i, 4);
		} else {
			t->family = AF_INET6;
			memcpy(t->addr, rec.a6 + 16 * (i - rec.n4), 16);
		}
		*link = t;
		link = &t->next;
	}
	if (ttlp)
		*ttlp = 0;
	*h_errnop = NETDB_SUCCESS;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_mesh_gethostbyname3_r(const char *name, int af, struct hostent *he, char *buf, size_t buflen, int *errnop,
						  int *h_errnop, int32_t *ttlp, char **canonp)
{
	struct result r;
	struct rec rec;
	if (af != AF_INET && af != AF_INET6)
		return bad_family(errnop, h_errnop);
	enum nss_status st = find_name(name, &r, &rec, errnop, h_errnop);
	if (st == NSS_STATUS_SUCCESS)
		st = pack_hostent(&rec, af, NULL, he, buf, buflen, errnop, h_errnop);
	if (st == NSS_STATUS_SUCCESS && ttlp)
		*ttlp = 0;
	if (st == NSS_STATUS_SUCCESS && canonp)
		*canonp = he->h_name;
	return st;
}

EXPORT enum nss_status _nss_mesh_gethostbyname2_r(const char *name, int af, struct hostent *he, char *buf, size_t buflen, int *errnop,
						  int *h_errnop)
{
	return _nss_mesh_gethostbyname3_r(name, af, he, buf, buflen, errnop, h_errnop, NULL, NULL);
}

EXPORT enum nss_status _nss_mesh_gethostbyname_r(const char *name, struct hostent *he, char *buf, size_t buflen, int *errnop, int *h_errnop)
{
	return _nss_mesh_gethostbyname3_r(name, AF_INET, he, buf, buflen, errnop, h_errnop, NULL, NULL);
}

EXPORT enum nss_status _nss_mesh_gethostbyaddr2_r(const void *addr, socklen_t len, int af, struct hostent *he, char *buf, size_t buflen,
						  int *errnop, int *h_errnop, int32_t *ttlp)
{
	struct result r;
	struct rec rec;
	if (!(af == AF_INET && len == 4) && !(af == AF_INET6 && len == 16))
		return bad_family(errnop, h_errnop);
	unsigned char key[16];
	size_t n = len;
	memcpy(key, addr, n);
	static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
	uint64_t kind = n;
	enum nss_status st = NSS_STATUS_NOTFOUND;
	if (n == 16 && memcmp(key, mapped, 12) == 0) // no IPv4-mapped address is in the file
		*errnop = ENOENT, *h_errnop = HOST_NOT_FOUND;
	else
		st = find(key, n, kind, &r, &rec, errnop, h_errnop);
	if (st == NSS_STATUS_SUCCESS)
		st = pack_hostent(&rec, af, key, he, buf, buflen, errnop, h_errnop);
	if (st == NSS_STATUS_SUCCESS && ttlp)
		*ttlp = 0;
	return st;
}

EXPORT enum nss_status _nss_mesh_gethostbyaddr_r(const void *addr, socklen_t len, int af, struct hostent *he, char *buf, size_t buflen,
						 int *errnop, int *h_errnop)
{
	return _nss_mesh_gethostbyaddr2_r(addr, len, af, he, buf, buflen, errnop, h_errnop, NULL);
}

// The enumeration's position in the file; glibc itself serializes sethostent, gethostent_r and endhostent. A file
// replaced meanwhile has another layout, and the position then leads to no record: the enumeration ends.
static uint64_t position;
static unsigned char second; // the host at position has given its first family, its second is next

EXPORT enum nss_status _nss_mesh_sethostent(int stayopen)
{
	(void)stayopen;
	position = 0;
	second = 0;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_mesh_endhostent(void)
{
	return _nss_mesh_sethostent(0);
}

// Like /etc/hosts, the enumeration has one entry for each family of a host.
EXPORT enum nss_status _nss_mesh_gethostent_r(struct hostent *he, char *buf, size_t buflen, int *errnop, int *h_errnop)
{
	struct result r;
	struct rec rec;
	uint64_t at = position;
	enum nss_status st = find(&at, sizeof at, KIND_NEXT, &r, &rec, errnop, h_errnop);
	if (st != NSS_STATUS_SUCCESS)
		return st;
	int af = rec.n4 == 0 || second ? AF_INET6 : AF_INET;
	st = pack_hostent(&rec, af, NULL, he, buf, buflen, errnop, h_errnop);
	if (st == NSS_STATUS_TRYAGAIN)
		return st; // the same entry again, with a larger buffer
	if (af == AF_INET && rec.n6 > 0) {
		second = 1;
	} else {
		second = 0;
		position = r.next;
	}
	return st;
}
