// SPDX-License-Identifier: MIT
//
// differ N SEED MODULE MODULE SNAPSHOT… : damages a snapshot N times, each time in another way, and asks two modules one
// question about each. An answer is right, the one the undamaged file gives, or "unavailable"; anything else is wrong, and
// "no such name" about one that exists is as wrong as another's address. One damage in four is sealed again with good
// checksums: then the file may say what it likes, but the modules must not give two answers to one question; that one of
// them is stricter and calls the file unavailable is counted. The file is at /run/mesh/hosts.db.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nss.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAXFILE = 1 << 20, MAXPARTS = 4096, MAXKEYS = 1024, HEADER = 128, LINE = 64 };

static uint64_t seed;
static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}
static uint64_t below(uint64_t n) { return (rnd() >> 16) % n; }

static uint64_t get(const unsigned char *p, int n)
{
	uint64_t v = 0;
	memcpy(&v, p, n);
	return v;
}

static uint64_t mix(uint64_t h, uint64_t w)
{
	h = (h ^ w) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 32;
}

static uint64_t sum(const unsigned char *p, size_t n, uint64_t s, uint64_t at)
{
	uint64_t h = mix(s, at);
	for (size_t i = 0; i < n; i += 8)
		h = mix(h, get(p + i, 8));
	return mix(h, n);
}

// The head of glibc's struct __netgrent, with the members that the module fills.
struct netgrent {
	int type;
	const char *triple[3];
	char *data;
	size_t size;
	char *cursor;
	int first;
};

struct module {
	enum nss_status (*by4)(const char *, struct gaih_addrtuple **, char *, size_t, int *, int *, int32_t *);
	enum nss_status (*by3)(const char *, int, struct hostent *, char *, size_t, int *, int *, int32_t *, char **);
	enum nss_status (*byaddr)(const void *, socklen_t, int, struct hostent *, char *, size_t, int *, int *);
	enum nss_status (*set)(const char *, struct netgrent *);
	enum nss_status (*end)(struct netgrent *);
};

struct key {
	enum { NAME, FAMILY6, ADDR4, ADDR6, GROUP } kind;
	char name[260];
	unsigned char addr[16];
	uint64_t right; // what the undamaged file answers
};

struct part {
	uint32_t from, n, sum; // what the checksum covers, and where it is
	uint32_t at;           // the offset that goes into it
};

static struct base {
	unsigned char *data;
	size_t size;
	struct part parts[MAXPARTS];
	int nparts;
	struct key keys[MAXKEYS];
	int nkeys;
} bases[8], *base;
static int nbases;
static unsigned char *map;
static int fd;

static uint64_t add(uint64_t h, const void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const unsigned char *)p)[i]) * UINT64_C(0x100000001b3);
	return h;
}

// ask returns the status, and for a success all of the answer, as one number: 0 unavailable, 1 no such name, others.
static uint64_t ask(struct module *m, struct key *k)
{
	char buf[16384];
	int e = 0, he = 0;
	enum nss_status st;
	uint64_t h = 14695981039346656037u;
	struct hostent ent;
	struct gaih_addrtuple *t = NULL;
	switch (k->kind) {
	case NAME:
		if ((st = m->by4(k->name, &t, buf, sizeof buf, &e, &he, NULL)) == NSS_STATUS_SUCCESS)
			for (h = add(h, t->name, strlen(t->name)); t; t = t->next)
				h = add(add(h, &t->family, sizeof t->family), t->addr, 16);
		break;
	case GROUP: {
		struct netgrent g = {0};
		if ((st = m->set(k->name, &g)) == NSS_STATUS_SUCCESS)
			h = add(h, g.data, g.size);
		m->end(&g);
		break;
	}
	default:
		if (k->kind == FAMILY6)
			st = m->by3(k->name, AF_INET6, &ent, buf, sizeof buf, &e, &he, NULL, NULL);
		else
			st = m->byaddr(k->addr, k->kind == ADDR4 ? 4 : 16, k->kind == ADDR4 ? AF_INET : AF_INET6, &ent, buf, sizeof buf, &e, &he);
		if (st == NSS_STATUS_SUCCESS) {
			h = add(h, ent.h_name, strlen(ent.h_name));
			for (char **p = ent.h_aliases; *p; p++)
				h = add(h, *p, strlen(*p) + 1);
			for (char **p = ent.h_addr_list; *p; p++)
				h = add(h, *p, ent.h_length);
		}
	}
	return st == NSS_STATUS_UNAVAIL ? 0 : st == NSS_STATUS_NOTFOUND ? 1 + (he == NO_DATA) : st == NSS_STATUS_SUCCESS ? h | 8 : 4;
}

static void part(uint32_t from, uint32_t n, uint32_t where, uint32_t at)
{
	if (base->nparts < MAXPARTS)
		base->parts[base->nparts++] = (struct part){from, n, where, at};
}

static struct key *key(int kind, const void *name, size_t n)
{
	if (base->nkeys == MAXKEYS)
		return NULL;
	struct key *k = &base->keys[base->nkeys++];
	k->kind = kind;
	memcpy(kind == ADDR4 || kind == ADDR6 ? (void *)k->addr : k->name, name, n);
	return k;
}

static void read_base(const char *path)
{
	base = &bases[nbases++];
	FILE *f = fopen(path, "r");
	base->data = malloc(MAXFILE);
	base->size = f ? fread(base->data, 1, MAXFILE, f) : 0;
	unsigned char *d = base->data;
	if (base->size < HEADER || base->size == MAXFILE) {
		printf("%s cannot be read\n", path);
		exit(2);
	}
	fclose(f);
	part(0, 120, 120, 0);
	uint64_t hosts = get(d + 80, 8), groups = get(d + 88, 8), end = get(d + 96, 8), stride = get(d + 108, 4);
	for (uint64_t off = hosts, size; off < end; off += size) {
		size = get(d + off + 8, 4);
		part(off + 8, size - 8, off, off);
		unsigned char *v4 = d + off + 24, *v6 = v4 + 4 * d[off + 14], *name = v6 + 16 * d[off + 15];
		if (off >= groups) {
			key(GROUP, name + 1, *name);
			continue;
		}
		for (int i = get(d + off + 12, 2); i; i--, name += 1 + *name) {
			key(NAME, name + 1, *name);
			key(FAMILY6, name + 1, *name);
		}
		if (d[off + 14])
			key(ADDR4, v4, 4);
		if (d[off + 15])
			key(ADDR6, v6, 16);
	}
	for (int i = 0; i < 2; i++) {
		uint64_t at = get(d + (i ? 72 : 64), 8), n = get(d + (i ? 52 : 48), 4), step = i ? LINE : stride;
		for (; n; n--, at += step) {
			part(at, 56, at + 56, at);
			for (int s = 0; s < 7; s++) {
				uint64_t off = get(d + at + 8 * s + 4, 4) * 8;
				if (off > at && off < at + step)
					part(off + 8, get(d + off + 8, 4) - 8, off, off);
			}
		}
	}
	key(NAME, "nobody", 6);
	key(NAME, "nobody.mesh.internal", 20);
	key(GROUP, "bkero", 5);
	key(ADDR4, "\300\0\2\1", 4);
	key(ADDR6, "\375\0\0\0\0\0\0\0\0\0\0\0\0\0\0\143", 16);
}

// put makes the file the undamaged base again.
static void put(size_t from, size_t n)
{
	if (from < base->size)
		memcpy(map + from, base->data + from, from + n > base->size ? base->size - from : n);
}

// somewhere is a place in the file, more often one where all look-ups pass.
static size_t somewhere(void)
{
	if (below(4) == 0)
		return below(HEADER);
	struct part *p = &base->parts[below(base->nparts)];
	return below(3) ? p->from + below(p->n) : below(base->size);
}

static const uint64_t odd[] = {0, 1, 7, 8, 64, 127, 128, 4095, 4096, 4097, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, ~UINT64_C(0)};
static uint64_t value(uint64_t old)
{
	switch (below(5)) {
	case 0: return odd[below(sizeof odd / sizeof *odd)];
	case 1: return old + below(17) - 8;
	case 2: return old ^ UINT64_C(1) << below(64);
	case 3: return old + (below(33) - 16) * 64;
	default: return rnd();
	}
}

// damage changes the file and says what must be put back.
static void damage(size_t *from, size_t *n, int *truncated)
{
	*truncated = 0;
	*from = somewhere();
	*n = 1;
	switch (below(6)) {
	case 0:
		map[*from] ^= 1 << below(8);
		return;
	case 1:
		map[*from] = rnd() >> 32;
		return;
	case 2: {
		int w = below(2) ? 8 : 4;
		*from &= ~(size_t)(w - 1);
		*n = w;
		uint64_t v = value(get(map + *from, w));
		memcpy(map + *from, &v, w);
		return;
	}
	case 3: { // a part of this file, elsewhere
		static const int sizes[] = {8, 64, 64, 128, 256, 512};
		*n = sizes[below(6)];
		size_t other = somewhere() & ~(size_t)7;
		*from &= ~(size_t)7;
		if (*from + *n > base->size || other + *n > base->size)
			*n = 8;
		if (*from + *n <= base->size && other + *n <= base->size)
			memcpy(map + *from, base->data + other, *n);
		return;
	}
	case 4: { // the same part of another file
		struct base *o = &bases[below(nbases)];
		*n = 8 << below(10);
		*from &= ~(size_t)7;
		if (*from < 48) // with its seed the whole of another file could be here
			*from = 48;
		if (*from + *n > base->size)
			*n = base->size - *from;
		if (*from < o->size)
			memcpy(map + *from, o->data + *from, *from + *n > o->size ? o->size - *from : *n);
		return;
	}
	default:
		if (below(8) == 0) {
			*truncated = 1;
			*n = base->size - *from;
			if (ftruncate(fd, *from) != 0)
				exit(2);
			return;
		}
		*n = 1 + below(64);
		if (*from + *n > base->size)
			*n = base->size - *from;
		memset(map + *from, below(2) ? 0 : 0xff, *n);
	}
}

// forge changes fields of one part and seals it again.
static void forge(size_t *from, size_t *n)
{
	struct part *p = &base->parts[below(3) ? below(base->nparts) : 0];
	for (int i = 1 + below(3); i; i--) {
		int w = 1 << below(4);
		size_t at = p->from + below(p->n) / w * w;
		if (p->n > 256 && below(2))
			at = p->from + below(24) / w * w;
		if (p->at == 0 && below(2)) // the header's numbers, which are of 4 and 8 bytes
			at = 16 + below(12) * 8, w = 8 >> below(2);
		if (p->at == 0 && at >= 40 && at < 48)
			continue; // the seed: nothing would fit any more
		if (at + w > p->from + p->n)
			continue;
		uint64_t v = value(get(map + at, w));
		memcpy(map + at, &v, w);
	}
	uint64_t s = sum(map + p->from, p->n, get(base->data + 40, 8), p->at);
	memcpy(map + p->sum, &s, 8);
	*from = p->from < p->sum ? p->from : p->sum;
	*n = p->n + 8;
}

static void load(struct module *m, const char *path)
{
	void *l = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!l) {
		puts(dlerror());
		exit(2);
	}
	*(void **)&m->by4 = dlsym(l, "_nss_mesh_gethostbyname4_r");
	*(void **)&m->by3 = dlsym(l, "_nss_mesh_gethostbyname3_r");
	*(void **)&m->byaddr = dlsym(l, "_nss_mesh_gethostbyaddr_r");
	*(void **)&m->set = dlsym(l, "_nss_mesh_setnetgrent");
	*(void **)&m->end = dlsym(l, "_nss_mesh_endnetgrent");
}

int main(int argc, char **argv)
{
	if (argc < 6)
		return 2;
	long rounds = atol(argv[1]);
	seed = strtoull(argv[2], NULL, 0) * 2 + 1;
	struct module m[2];
	load(&m[0], argv[3]);
	load(&m[1], argv[4]);
	for (int i = 5; i < argc && i < 13; i++)
		read_base(argv[i]);
	fd = open("/run/mesh/hosts.db", O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || ftruncate(fd, MAXFILE) != 0 || (map = mmap(NULL, MAXFILE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
		perror("the snapshot");
		return 2;
	}
	long wrong[2] = {0}, right[2] = {0}, unavailable[2] = {0}, forged = 0, differ = 0, forged_differ = 0, stricter = 0, shown = 0;
	for (long done = 0; done < rounds;) {
		base = &bases[below(nbases)];
		if (ftruncate(fd, base->size) != 0)
			return 2;
		memcpy(map, base->data, base->size);
		for (int i = 0; i < base->nkeys; i++) {
			struct key *k = &base->keys[i];
			k->right = ask(&m[0], k);
			if (k->right == 0 || k->right == 4 || ask(&m[1], k) != k->right) {
				printf("**the undamaged file: %s: %lx and %lx**\n", k->name, (long)k->right, (long)ask(&m[1], k));
				return 1;
			}
		}
		for (int i = 0; i < 100000 && done < rounds; i++, done++) {
			size_t from, n;
			int truncated = 0, sealed = below(4) == 0;
			uint64_t state = seed, a[2];
			if (sealed)
				forge(&from, &n);
			else
				damage(&from, &n, &truncated);
			struct key *k = &base->keys[below(base->nkeys)];
			for (int j = 0; j < 2; j++) {
				a[j] = ask(&m[j], k);
				if (sealed)
					continue;
				right[j] += a[j] == k->right;
				unavailable[j] += a[j] == 0;
				if (a[j] != k->right && a[j] != 0) {
					wrong[j]++;
					if (shown++ < 10)
						printf("wrong: module %d, file %ld, state %#lx, %zu bytes at %zu: %s: %#lx for %#lx\n", j, (long)(base - bases), (long)state, n, from, k->name, (long)a[j], (long)k->right);
				}
			}
			forged += sealed;
			stricter += sealed && a[0] != a[1] && (!a[0] || !a[1]);
			if (a[0] != a[1] && !(sealed && (!a[0] || !a[1]))) {
				*(sealed ? &forged_differ : &differ) += 1;
				if (shown++ < 10) {
					printf("differ%s: file %ld, state %#lx, %zu bytes at %zu: kind %d %s: %#lx and %#lx\n", sealed ? " (sealed)" : "", (long)(base - bases), (long)state, n, from, k->kind, k->name, (long)a[0], (long)a[1]);
					for (size_t b = from & ~(size_t)7; b < from + n && b < from + 128 && !truncated; b += 8)
						if (get(map + b, 8) != get(base->data + b, 8))
							printf("  %zu: %016lx was %016lx\n", b, (long)get(map + b, 8), (long)get(base->data + b, 8));
				}
			}
			if (truncated && ftruncate(fd, base->size) != 0)
				return 2;
			put(from, n);
		}
	}
	printf("%ld damaged files: %ld and %ld right, %ld and %ld unavailable, %ld and %ld wrong, %ld unlike; %ld sealed again: %ld unlike, %ld unavailable for one\n", rounds - forged,
	       right[0], right[1], unavailable[0], unavailable[1], wrong[0], wrong[1], differ, forged, forged_differ, stricter);
	return wrong[0] || wrong[1] || differ || forged_differ;
}
