// SPDX-License-Identifier: MIT
//
// A statically linked program, into which glibc loads the module together with a second copy of itself.
#include <netdb.h>
#include <stdio.h>

int main(void)
{
	struct addrinfo *list;
	int e = getaddrinfo("bkero", "80", NULL, &list);
	puts(e ? gai_strerror(e) : "ok");
	return e != 0;
}
