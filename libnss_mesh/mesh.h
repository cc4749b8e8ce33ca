// SPDX-License-Identifier: MIT
//
// What the parts of the module share: the look-up in package leaf and what it returns.

#include <nss.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

// The same layout as leaf.Result.
struct result {
	uint64_t record, next, seed, base, have;
	unsigned char line[64];
	unsigned char buf[4096];
};

enum { KIND_NAME = 0, KIND_NEXT = 1, KIND_GROUP = 2 };
enum { RECORD_HEAD = 24, RECORD_MORE = 17 };
enum { NAME_MAX_ = 253 };

// mesh_find looks key up in the snapshot and leaves errno alone. What it found is at buf + record, checked.
enum nss_status mesh_find(const void *key, size_t n, uint64_t kind, struct result *r);
