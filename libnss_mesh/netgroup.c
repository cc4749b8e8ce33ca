// SPDX-License-Identifier: MIT
//
// Groups of hosts as netgroups (setnetgrent(3), `netgroup: files mesh` in nsswitch.conf). A member is a triple with a
// host, the user "-" and no domain: it matches the host, whichever user is asked about or none, but a group of hosts
// never stands for a user (an empty user field would stand for every one).
//
// setnetgrent copies the members to the heap, where endnetgrent frees them, so that the walk is of one moment although
// the snapshot may be replaced during it. There is no other state.

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mesh.h"

// glibc's, of the header that it does not install (inet/netgroup.h), the same since 2.0. Its later members are glibc's own.
struct __netgrent {
	enum { triple_val, group_val } type;
	union {
		struct {
			const char *host, *user, *domain;
		} triple;
		const char *group;
	} val;
	char *data;
	size_t data_size;
	char *cursor;
	int first;
};

// append adds the members in a record, strings with a final zero, to *data. The first name is the group's own.
static int append(const unsigned char *rec, char **data, size_t *size)
{
	const unsigned char *p = rec + RECORD_HEAD, *from = p + 1 + *p, *end = from;
	unsigned n = (rec[12] | rec[13] << 8) - 1;
	for (unsigned i = 0; i < n; i++)
		end += 1 + *end;
	char *to = realloc(*data, *size + (end - from) + 1);
	if (!to)
		return -1;
	*data = to;
	for (to += *size; from < end; from += 1 + *from, *to++ = 0) {
		memcpy(to, from + 1, *from);
		to += *from;
	}
	*size = to - *data;
	return 0;
}

// collect reads the whole of a group. A file that is replaced meanwhile has another seed: then it begins again.
static enum nss_status collect(const char *group, size_t n, char **data, size_t *size)
{
	struct result r;
	for (int tries = 0; tries < 3; tries++) {
		enum nss_status st = mesh_find(group, n, KIND_GROUP, &r);
		if (st != NSS_STATUS_SUCCESS)
			return st;
		uint64_t seed = r.seed;
		*size = 0;
		while (st == NSS_STATUS_SUCCESS && r.seed == seed) {
			if (append(r.buf + r.record, data, size) < 0)
				return NSS_STATUS_TRYAGAIN; // errno is ENOMEM
			if (!r.buf[r.record + RECORD_MORE])
				return NSS_STATUS_SUCCESS;
			uint64_t next = r.next;
			st = mesh_find(&next, sizeof next, KIND_NEXT, &r);
		}
	}
	return NSS_STATUS_UNAVAIL;
}

EXPORT enum nss_status _nss_mesh_endnetgrent(struct __netgrent *result)
{
	free(result->data);
	result->data = result->cursor = NULL;
	result->data_size = 0;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_mesh_setnetgrent(const char *group, struct __netgrent *result)
{
	size_t n = strnlen(group, NAME_MAX_ + 1), size = 0;
	char *data = NULL;
	if (n == 0 || n > NAME_MAX_)
		return NSS_STATUS_NOTFOUND;
	enum nss_status st = collect(group, n, &data, &size);
	if (st != NSS_STATUS_SUCCESS) {
		free(data);
		return st;
	}
	result->data = result->cursor = data;
	result->data_size = size;
	result->first = 1;
	return NSS_STATUS_SUCCESS;
}

EXPORT enum nss_status _nss_mesh_getnetgrent_r(struct __netgrent *result, char *buffer, size_t buflen, int *errnop)
{
	if (!result->cursor || result->cursor >= result->data + result->data_size)
		return result->first ? NSS_STATUS_NOTFOUND : NSS_STATUS_RETURN;
	static const char none[] = "-";
	size_t n = strlen(result->cursor) + 1;
	if (buflen < n + sizeof none) {
		*errnop = ERANGE;
		return NSS_STATUS_TRYAGAIN;
	}
	result->type = triple_val;
	result->val.triple.host = memcpy(buffer, result->cursor, n);
	result->val.triple.user = memcpy(buffer + n, none, sizeof none);
	result->val.triple.domain = NULL;
	result->cursor += n;
	result->first = 0;
	return NSS_STATUS_SUCCESS;
}
