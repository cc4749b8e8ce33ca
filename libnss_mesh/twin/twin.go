// SPDX-License-Identifier: MIT

// Package twin is the C reader of the snapshot (libnss_mesh/reader.c) for Go programs, so that tests can hold package leaf
// against a reader that was written without it. Nothing that is shipped imports it.
package twin

/*
#cgo CFLAGS: -std=c11 -O2 -Wall -Wextra -Werror -Wno-unused-function
#include "../reader.c" // first: it says which functions of the C library it wants
#include <stdlib.h>

find_fn *mesh_leaf_find;

static int look(const char *path, const void *key, size_t n, uint64_t kind, struct result *r)
{
	return find(path, key, n, kind, r);
}
*/
import "C"

import (
	"encoding/binary"
	"unsafe"
)

// Lookup is leaf.Lookup, with the same statuses.
func Lookup(path string, key []byte, kind uintptr) (rec []byte, status int32) {
	if len(key) == 0 {
		return nil, 0
	}
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	var r C.struct_result
	status = int32(C.look(p, unsafe.Pointer(&key[0]), C.size_t(len(key)), C.uint64_t(kind), &r))
	if status != 1 {
		return nil, status
	}
	rec = C.GoBytes(unsafe.Pointer(&r.buf[r.record]), C.int(len(r.buf)-int(r.record)))
	return rec[:binary.LittleEndian.Uint32(rec[8:])], status
}
