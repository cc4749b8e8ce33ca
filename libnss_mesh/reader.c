// SPDX-License-Identifier: MIT

//go:build !amd64 && !arm64

// The look-up in C, written from docs/snapshot.md alone: the module has it on architectures for which package leaf has no
// trampoline, and the hazard suite builds it into a second module everywhere, with which the first is compared. It opens,
// reads and closes; there is no state, no lock, no allocation, and no cancellation point.

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "mesh.h"

enum { HEADER = 128, LINE = 64, SLOTS = 7, BLOCK = 4096, CHAIN = 8, RECORD = 24 };
enum { FOUND = 1, ABSENT = 0, UNAVAILABLE = -1 };
enum { HOST_NAME = KIND_NAME, NEXT = KIND_NEXT, GROUP_NAME = KIND_GROUP, IPV4 = 4, IPV6 = 16 };

typedef int find_fn(const char *path, const void *key, uint64_t n, uint64_t kind, struct result *r);
extern find_fn *mesh_leaf_find;

// file is an open snapshot and the part of it that is in memory.
struct file {
	int fd;
	unsigned char *buf;
	uint64_t from, to; // what of the file buf holds

	uint64_t seed, names, addrs, hosts, groups, end;
	uint32_t name_buckets, addr_buckets, bucket;
};

static uint64_t little(const unsigned char *p, int n)
{
	uint64_t v = 0;
	while (n--)
		v = v << 8 | p[n];
	return v;
}

static uint64_t mix(uint64_t h, uint64_t w)
{
	h = (h ^ w) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 32;
}

static uint64_t checksum(const unsigned char *p, size_t n, uint64_t seed, uint64_t offset)
{
	uint64_t h = mix(seed, offset);
	for (size_t i = 0; i < n; i += 8)
		h = mix(h, little(p + i, 8));
	return mix(h, n);
}

static unsigned char lower(unsigned char c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

static uint64_t hash(const unsigned char *key, size_t n, uint64_t kind, uint64_t seed)
{
	uint64_t h = mix(seed, kind);
	for (size_t i = 0; i < n; i++)
		h = (h ^ (kind == HOST_NAME || kind == GROUP_NAME ? lower(key[i]) : key[i])) * UINT64_C(0x100000001b3);
	return mix(mix(h, n), seed);
}

// bring returns the place of the file's bytes at offset, least of them or more, after reading most if they are not in
// memory. NULL: the file has not so many.
static const unsigned char *bring(struct file *f, uint64_t offset, size_t least, size_t most)
{
	if (offset < f->from || offset > f->to || f->to - offset < least) {
		ssize_t n = pread(f->fd, f->buf, most, offset);
		f->from = offset;
		f->to = offset + (n > 0 ? n : 0);
		if (f->to - offset < least)
			return NULL;
	}
	return f->buf + (offset - f->from);
}

static int read_header(struct file *f)
{
	const unsigned char *h = bring(f, 0, HEADER, BLOCK);
	if (!h || memcmp(h, "meshname", 8) != 0 || little(h + 8, 4) != 2 || little(h + 12, 4) != HEADER)
		return 0;
	uint64_t size = little(h + 16, 8);
	f->seed = little(h + 40, 8);
	if (checksum(h, 120, f->seed, 0) != little(h + 120, 8))
		return 0;
	f->name_buckets = little(h + 48, 4);
	f->addr_buckets = little(h + 52, 4);
	f->names = little(h + 64, 8);
	f->addrs = little(h + 72, 8);
	f->hosts = little(h + 80, 8);
	f->groups = little(h + 88, 8);
	f->end = little(h + 96, 8);
	f->bucket = little(h + 108, 4);
	if (f->bucket < LINE || f->bucket > BLOCK || f->bucket % LINE || !f->name_buckets || !f->addr_buckets)
		return 0;
	if (f->names < HEADER || f->addrs < HEADER || f->hosts < HEADER || (f->names | f->addrs | f->hosts | f->groups | f->end) % 8)
		return 0;
	return f->hosts <= f->groups && f->groups <= f->end && f->end <= size && f->names <= size && f->addrs <= size &&
	       (size - f->names) / f->bucket >= f->name_buckets && (size - f->addrs) / LINE >= f->addr_buckets;
}

// read_record brings a record that lies in [from, to) into memory and checks it.
static const unsigned char *read_record(struct file *f, uint64_t offset, uint64_t from, uint64_t to)
{
	if (offset < from || offset >= to || to - offset < RECORD || offset % 8)
		return NULL;
	const unsigned char *p = bring(f, offset, RECORD, BLOCK);
	if (!p)
		return NULL;
	size_t size = little(p + 8, 4);
	if (size < RECORD || size > BLOCK || size % 8 || size > to - offset || !(p = bring(f, offset, size, BLOCK)))
		return NULL;
	if (little(p + 8, 4) != size || checksum(p + 8, size - 8, f->seed, offset) != little(p, 8))
		return NULL;
	unsigned names = little(p + 12, 2);
	size_t at = RECORD + 4 * p[14] + 16 * p[15];
	if (!names || p[14] > 64 || p[15] > 64 || p[16] > 1 || p[17] > 1)
		return NULL;
	for (; names; names--) {
		if (at >= size || p[at] == 0 || p[at] > 253 || at + 1 + p[at] > size)
			return NULL;
		at += 1 + p[at];
	}
	return p;
}

static int is_name(const unsigned char *name, const unsigned char *key, size_t n)
{
	if (*name != n)
		return 0;
	for (size_t i = 0; i < n; i++)
		if (name[1 + i] != lower(key[i]))
			return 0;
	return 1;
}

// has reports whether a record is the one that a key of this kind means.
static int has(const unsigned char *p, const unsigned char *key, size_t n, uint64_t kind)
{
	const unsigned char *v4 = p + RECORD, *v6 = v4 + 4 * p[14], *name = v6 + 16 * p[15];
	if (p[16] != (kind == GROUP_NAME))
		return 0;
	if (kind == IPV4 || kind == IPV6) {
		const unsigned char *a = kind == IPV4 ? v4 : v6;
		for (unsigned i = p[kind == IPV4 ? 14 : 15]; i; i--, a += n)
			if (memcmp(a, key, n) == 0)
				return 1;
		return 0;
	}
	// A group is found by its own name only, the others are its members.
	for (unsigned i = kind == GROUP_NAME ? 1 : little(p + 12, 2); i; i--, name += 1 + *name)
		if (is_name(name, key, n))
			return 1;
	return 0;
}

// found leaves a record, which is at offset of the file, to the caller.
static int found(struct file *f, const unsigned char *p, uint64_t offset, struct result *r)
{
	r->record = p - f->buf;
	r->next = offset + little(p + 8, 4);
	r->seed = f->seed;
	return FOUND;
}

// next gives the record at offset, 0 being the first host's. Behind the last host, and behind the last group, is none.
static int next(struct file *f, uint64_t offset, struct result *r)
{
	if (offset == 0)
		offset = f->hosts;
	if (offset == f->groups || offset == f->end)
		return ABSENT;
	int group = offset > f->groups;
	const unsigned char *p = group ? read_record(f, offset, f->groups, f->end) : read_record(f, offset, f->hosts, f->groups);
	return p && p[16] == group ? found(f, p, offset, r) : UNAVAILABLE;
}

static int search(struct file *f, const unsigned char *key, size_t n, uint64_t kind, struct result *r)
{
	int by_name = kind == HOST_NAME || kind == GROUP_NAME;
	uint64_t index = by_name ? f->names : f->addrs, h = hash(key, n, kind, f->seed);
	uint32_t buckets = by_name ? f->name_buckets : f->addr_buckets, size = by_name ? f->bucket : LINE;
	uint32_t b = (h >> 32) * buckets >> 32;
	for (int i = 0; i < CHAIN; i++, b = b + 1 == buckets ? 0 : b + 1) {
		uint64_t offset = index + (uint64_t)b * size;
		const unsigned char *line = bring(f, offset, LINE, size);
		if (!line || checksum(line, LINE - 8, f->seed, offset) != little(line + LINE - 8, 8))
			return UNAVAILABLE;
		memcpy(r->line, line, LINE); // reading a record may overwrite it
		for (int s = 0; s < SLOTS; s++) {
			uint64_t to = little(r->line + 8 * s + 4, 4) * 8;
			if (to == 0)
				return ABSENT;
			if (little(r->line + 8 * s, 4) != (uint32_t)h)
				continue;
			// A copy is in its own bucket, and a record is where those of its kind are.
			const unsigned char *p;
			if (by_name && to >= offset + LINE && to < offset + size)
				p = read_record(f, to, offset + LINE, offset + size);
			else if (kind == GROUP_NAME)
				p = read_record(f, to, f->groups, f->end);
			else
				p = read_record(f, to, f->hosts, f->groups);
			if (!p)
				return UNAVAILABLE;
			if (has(p, key, n, kind))
				return found(f, p, to, r);
		}
	}
	return UNAVAILABLE; // no writer makes a longer chain
}

static int find(const char *path, const void *key, uint64_t n, uint64_t kind, struct result *r)
{
	int cancel, status = UNAVAILABLE;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	struct file f = {.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY), .buf = r->buf};
	if (f.fd >= 0) {
		if (read_header(&f))
			status = kind == NEXT ? next(&f, *(const uint64_t *)key, r) : search(&f, key, n, kind, r);
		close(f.fd);
	}
	pthread_setcancelstate(cancel, NULL);
	return status;
}

__attribute__((constructor)) static void meshnss_reader(void)
{
	mesh_leaf_find = find;
}
