// SPDX-License-Identifier: MIT

//go:build nssmodule

// The functions that cgo's start of a Go runtime wants of a newer glibc than the module does. No Go runtime starts here
// (the gate proves that nothing reaches it), so they are never called: with them in the library it loads with glibc 2.14
// on amd64 and 2.17 on arm64, and could not make a thread if it wanted to. Tests are programs with a runtime, and have
// their own: build.sh sets the tag.

#include <stdlib.h>

#define NEVER(name) \
	int name(void); \
	int name(void) { abort(); }

NEVER(pthread_attr_getstack)
NEVER(pthread_attr_getstacksize)
NEVER(pthread_create)
NEVER(pthread_getattr_np)
NEVER(pthread_key_create)
NEVER(pthread_setspecific)
NEVER(pthread_sigmask)
