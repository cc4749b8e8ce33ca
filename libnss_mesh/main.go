// SPDX-License-Identifier: MIT

// Command libnss_mesh is the NSS module libnss_mesh.so.2, built by build.sh as a C shared library.
//
// It lives in every process of the machine, so no Go runtime ever starts in it: the library's only initializer is
// meshnss_init (package leaf), which leaves a function pointer in mesh_leaf_find and nothing else. The C side (nss.c)
// speaks glibc's NSS interface and packs answers into the caller's buffers; the look-up itself is package leaf. On an
// architecture for which leaf has no trampoline it is reader.c, in C, and Go is only compiled in: meshnss_init does
// nothing there.
package main

/*
#cgo CFLAGS: -std=c11 -O2 -Wall -Wextra -Werror -fvisibility=hidden
extern void *mesh_leaf_find;
*/
import "C"

import _ "mesh.internal/mesh/nss/leaf"

var _ = &C.mesh_leaf_find // makes the symbol known to package leaf's assembly

func main() {}
