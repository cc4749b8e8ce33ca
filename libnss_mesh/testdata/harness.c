// SPDX-License-Identifier: MIT
//
// harness MODULE TEST: loads an NSS module and puts it to a test. Prints what went wrong; exit 0 is good.
// The snapshot has bkero (10.11.0.2 and fd00::2, alias bkero of bkero.mesh.internal), v4 (10.11.0.3 only) and
// many (64 IPv4 addresses).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <nss.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void *module;
static enum nss_status (*by4)(const char *, struct gaih_addrtuple **, char *, size_t, int *, int *, int32_t *);
static enum nss_status (*by3)(const char *, int, struct hostent *, char *, size_t, int *, int *, int32_t *, char **);
static enum nss_status (*by2)(const char *, int, struct hostent *, char *, size_t, int *, int *);
static enum nss_status (*byaddr)(const void *, socklen_t, int, struct hostent *, char *, size_t, int *, int *);
static enum nss_status (*set)(int);
static enum nss_status (*ent)(struct hostent *, char *, size_t, int *, int *);

// glibc's struct __netgrent, with room for the members that are its own.
struct group {
	int type;
	const char *host, *user, *domain;
	char *data;
	size_t data_size;
	char *cursor;
	int first;
	char rest[64];
};
static enum nss_status (*setgroup)(const char *, struct group *);
static enum nss_status (*getgroup)(struct group *, char *, size_t, int *);
static enum nss_status (*endgroup)(struct group *);

static int failures;
#define CHECK(c, ...) do { if (!(c)) { failures++; printf("line %d: ", __LINE__); printf(__VA_ARGS__); printf("\n"); } } while (0)

static void load(const char *path)
{
	if (!(module = dlopen(path, RTLD_NOW))) {
		printf("%s\n", dlerror());
		exit(1);
	}
#define SYM(v, n) *(void **)&v = dlsym(module, "_nss_mesh_" n)
	SYM(by4, "gethostbyname4_r");
	SYM(by3, "gethostbyname3_r");
	SYM(by2, "gethostbyname2_r");
	SYM(byaddr, "gethostbyaddr_r");
	SYM(set, "sethostent");
	SYM(ent, "gethostent_r");
	SYM(setgroup, "setnetgrent");
	SYM(getgroup, "getnetgrent_r");
	SYM(endgroup, "endnetgrent");
	if (!setgroup || !getgroup || !endgroup || !by4 || !by3 || !by2 || !byaddr || !set || !ent) {
		printf("a function is missing\n");
		exit(1);
	}
}

static int resolve(void)
{
	char buf[1024];
	int e = 0, h = 0;
	struct gaih_addrtuple *t = NULL;
	return by4("bkero", &t, buf, sizeof buf, &e, &h, NULL) == NSS_STATUS_SUCCESS && t->family == AF_INET && *(uint32_t *)t->addr == inet_addr("10.11.0.2");
}

static int count(const char *dir)
{
	int n = 0;
	DIR *d = opendir(dir);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

struct state {
	int threads, fds;
	long vsz;
	struct sigaction sa[65];
	sigset_t mask;
	stack_t alt;
};

static void look(struct state *s)
{
	memset(s, 0, sizeof *s);
	s->threads = count("/proc/self/task");
	s->fds = count("/proc/self/fd");
	FILE *f = fopen("/proc/self/statm", "r");
	if (fscanf(f, "%ld", &s->vsz) != 1)
		exit(1);
	fclose(f);
	for (int i = 1; i <= 64; i++)
		sigaction(i, NULL, &s->sa[i]);
	pthread_sigmask(SIG_BLOCK, NULL, &s->mask);
	sigaltstack(NULL, &s->alt);
}

static void test_unnoticed(const char *path)
{
	struct state a, b;
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	look(&a);
	load(path);
	errno = 4242;
	CHECK(resolve(), "no answer");
	CHECK(errno == 4242, "errno is %d", errno);
	look(&b);
	CHECK(a.threads == b.threads, "%d threads, then %d", a.threads, b.threads);
	CHECK(a.fds == b.fds, "%d descriptors, then %d", a.fds, b.fds);
	CHECK((b.vsz - a.vsz) * 4 < 2048, "%ld KiB of address space", (b.vsz - a.vsz) * 4);
	for (int i = 1; i <= 64; i++)
		CHECK(a.sa[i].sa_handler == b.sa[i].sa_handler && a.sa[i].sa_flags == b.sa[i].sa_flags, "signal %d changed", i);
	CHECK(memcmp(&a.mask, &b.mask, sizeof a.mask) == 0, "the signal mask changed");
	CHECK(a.alt.ss_sp == b.alt.ss_sp && a.alt.ss_flags == b.alt.ss_flags, "the signal stack changed");
	printf("+%d threads, +%d fds, +%ld KiB\n", b.threads - a.threads, b.fds - a.fds, (b.vsz - a.vsz) * 4);
}

static volatile int stop;
static void *busy(void *arg)
{
	(void)arg;
	while (!stop)
		resolve();
	return NULL;
}

static void test_fork(const char *path, int rounds)
{
	load(path);
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, busy, NULL);
	int ok = 0, hung = 0;
	for (int i = 0; i < rounds && hung < 3; i++) {
		pid_t p = fork();
		if (p == 0) {
			alarm(5);
			_exit(resolve() ? 0 : 1);
		}
		int st;
		waitpid(p, &st, 0);
		if (WIFEXITED(st) && WEXITSTATUS(st) == 0)
			ok++;
		else
			hung += WIFSIGNALED(st);
	}
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	CHECK(ok == rounds, "only so many were right");
	printf("%d of %d forked children resolved\n", ok, rounds);
}

// Every buffer length and alignment, with an unmapped page right behind the buffer.
static void test_erange(const char *path)
{
	load(path);
	long page = sysconf(_SC_PAGESIZE);
	char *map = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(map + 2 * page, page, PROT_NONE);
	const char *names[] = {"bkero", "V4.mesh.internal.", "many"};
	int small = 0, fit = 0;
	for (int n = 0; n < 3; n++)
		for (size_t len = 0; len < 2200; len++)
			for (int al = 0; al < 8; al++) {
				char *buf = map + 2 * page - len - al;
				buf -= 0;
				memset(buf, 0xaa, len);
				for (int f = 0; f < 4; f++) {
					struct gaih_addrtuple *t = NULL;
					struct hostent he;
					int e = 0, h = 0;
					unsigned char a[4] = {10, 11, 0, n == 0 ? 2 : n == 1 ? 3 : 100};
					enum nss_status st = f == 0   ? by4(names[n], &t, buf, len, &e, &h, NULL)
							     : f == 1 ? by3(names[n], AF_INET, &he, buf, len, &e, &h, NULL, NULL)
							     : f == 2 ? by2(names[n], AF_INET, &he, buf, len, &e, &h)
								      : byaddr(a, 4, AF_INET, &he, buf, len, &e, &h);
					if (st == NSS_STATUS_TRYAGAIN && e == ERANGE && h == NETDB_INTERNAL) {
						small++;
					} else if (st == NSS_STATUS_SUCCESS && h == NETDB_SUCCESS) {
						fit++;
						int got = 0;
						if (f == 0)
							for (; t; t = t->next)
								got++;
						else if (f == 3)
							CHECK(he.h_addr_list[1] == NULL && memcmp(he.h_addr_list[0], a, 4) == 0, "reverse");
						else
							for (char **p = he.h_addr_list; *p; p++)
								got++;
						CHECK(f == 3 || got == (n == 2 ? 64 : n == 1 ? 1 : f == 0 ? 2 : 1), "%s: %d addresses", names[n], got);
						CHECK(f == 0 || strstr(he.h_name, ".mesh.internal"), "name %s", he.h_name);
					} else {
						CHECK(0, "%s len %zu: status %d errno %d h_errno %d", names[n], len, st, e, h);
					}
				}
			}
	CHECK(small > 1000 && fit > 1000, "%d too small, %d fit", small, fit);
	printf("%d too small, %d fit\n", small, fit);
}

static void test_contract(const char *path)
{
	load(path);
	char buf[4096];
	struct hostent he;
	int e = 0, h = 0;
	int32_t ttl = 7;
	char *canon = NULL;
	struct gaih_addrtuple preset, *t = &preset;
	memset(&preset, 0xff, sizeof preset);
	CHECK(by4("BKERO.MESH.internal.", &t, buf, sizeof buf, &e, &h, &ttl) == NSS_STATUS_SUCCESS && t == &preset && ttl == 0, "preset entry");
	CHECK(preset.family == AF_INET && preset.next && preset.next->family == AF_INET6 && !preset.next->next && !strcmp(preset.name, "bkero.mesh.internal"), "preset content");
	CHECK(by3("v4", AF_INET6, &he, buf, sizeof buf, &e, &h, &ttl, &canon) == NSS_STATUS_NOTFOUND && h == NO_DATA && e == ENOENT, "NODATA: %d %d", h, e);
	CHECK(by3("nobody", AF_INET, &he, buf, sizeof buf, &e, &h, &ttl, &canon) == NSS_STATUS_NOTFOUND && h == HOST_NOT_FOUND, "NOTFOUND: %d", h);
	CHECK(by3("bkero", AF_INET6, &he, buf, sizeof buf, &e, &h, &ttl, &canon) == NSS_STATUS_SUCCESS && canon == he.h_name && he.h_length == 16, "IPv6");
	CHECK(!strcmp(he.h_name, "bkero.mesh.internal") && !strcmp(he.h_aliases[0], "bkero") && !he.h_aliases[1], "aliases");
	CHECK(by3("bkero", AF_UNIX, &he, buf, sizeof buf, &e, &h, &ttl, &canon) == NSS_STATUS_UNAVAIL && e == EAFNOSUPPORT, "AF_UNIX");
	char longname[400];
	memset(longname, 'a', sizeof longname);
	longname[399] = 0;
	CHECK(by2(longname, AF_INET, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_NOTFOUND && h == HOST_NOT_FOUND, "long name");
	CHECK(by2("", AF_INET, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_NOTFOUND, "empty name");
	CHECK(by2(".", AF_INET, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_NOTFOUND, "a dot");
	CHECK(by2("bkero..", AF_INET, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_NOTFOUND, "two dots");
	struct in6_addr a6;
	inet_pton(AF_INET6, "fd00::2", &a6);
	CHECK(byaddr(&a6, 16, AF_INET6, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_SUCCESS && !strcmp(he.h_name, "bkero.mesh.internal"), "reverse IPv6");
	inet_pton(AF_INET6, "fd00::99", &a6);
	CHECK(byaddr(&a6, 16, AF_INET6, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_NOTFOUND && h == HOST_NOT_FOUND, "reverse of nobody");
	CHECK(byaddr(&a6, 4, AF_INET6, &he, buf, sizeof buf, &e, &h) == NSS_STATUS_UNAVAIL && e == EAFNOSUPPORT, "reverse of a wrong length");
	for (int round = 0; round < 2; round++) {
		int n = 0, six = 0;
		set(0);
		while (ent(&he, buf, n % 2 ? sizeof buf : 40, &e, &h) != NSS_STATUS_NOTFOUND && n < 100) {
			if (e == ERANGE) {
				e = 0;
				if (ent(&he, buf, sizeof buf, &e, &h) != NSS_STATUS_SUCCESS)
					break;
			}
			n++;
			six += he.h_addrtype == AF_INET6;
		}
		CHECK(n == 4 && six == 1 && h == HOST_NOT_FOUND, "enumeration: %d entries, %d IPv6", n, six);
	}
}

// friends is bkero in two forms; crowd is 500 hosts, in several records; empty has nobody.
static void test_netgroup(const char *path)
{
	load(path);
	struct group g;
	char buf[300];
	int e = 0, n = 0;
	memset(&g, 0xaa, sizeof g);
	CHECK(setgroup("FRIENDS", &g) == NSS_STATUS_SUCCESS, "friends is not there");
	CHECK(getgroup(&g, buf, 4, &e) == NSS_STATUS_TRYAGAIN && e == ERANGE, "a small buffer");
	CHECK(getgroup(&g, buf, strlen("bkero.mesh.internal") + 3, &e) == NSS_STATUS_SUCCESS && g.type == 0 && !strcmp(g.host, "bkero.mesh.internal") && !strcmp(g.user, "-") && !g.domain, "first member");
	CHECK(getgroup(&g, buf, sizeof buf, &e) == NSS_STATUS_SUCCESS && !strcmp(g.host, "bkero"), "second member");
	CHECK(getgroup(&g, buf, sizeof buf, &e) == NSS_STATUS_RETURN, "end");
	CHECK(endgroup(&g) == NSS_STATUS_SUCCESS && !g.data, "endnetgrent");
	CHECK(endgroup(&g) == NSS_STATUS_SUCCESS, "endnetgrent again");
	CHECK(setgroup("crowd", &g) == NSS_STATUS_SUCCESS, "crowd is not there");
	for (char want[64]; getgroup(&g, buf, sizeof buf, &e) == NSS_STATUS_SUCCESS; n++) {
		snprintf(want, sizeof want, "host%d.mesh.internal", n);
		CHECK(!strcmp(g.host, want), "member %d is %s", n, g.host);
	}
	CHECK(n == 500, "%d members", n);
	endgroup(&g);
	CHECK(setgroup("empty", &g) == NSS_STATUS_SUCCESS && getgroup(&g, buf, sizeof buf, &e) == NSS_STATUS_NOTFOUND, "empty");
	endgroup(&g);
	CHECK(setgroup("nobody", &g) == NSS_STATUS_NOTFOUND, "nobody");
	CHECK(setgroup("bkero", &g) == NSS_STATUS_NOTFOUND, "a host is no group");
	CHECK(setgroup("", &g) == NSS_STATUS_NOTFOUND, "no name");
	struct gaih_addrtuple *t = NULL;
	int h;
	CHECK(by4("friends", &t, buf, sizeof buf, &e, &h, NULL) == NSS_STATUS_NOTFOUND, "a group is no host");
}

static void test_absent(const char *path)
{
	load(path);
	char buf[1024];
	int e = 0, h = 0;
	struct gaih_addrtuple *t = NULL;
	CHECK(by4("bkero", &t, buf, sizeof buf, &e, &h, NULL) == NSS_STATUS_UNAVAIL && h == NO_RECOVERY, "no file: h_errno %d", h);
	struct group g;
	CHECK(setgroup("friends", &g) == NSS_STATUS_UNAVAIL, "no file, but a group");
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	const char *t = argv[2];
	if (!strcmp(t, "unnoticed"))
		test_unnoticed(argv[1]);
	else if (!strcmp(t, "fork"))
		test_fork(argv[1], 10000);
	else if (!strcmp(t, "erange"))
		test_erange(argv[1]);
	else if (!strcmp(t, "contract"))
		test_contract(argv[1]);
	else if (!strcmp(t, "netgroup"))
		test_netgroup(argv[1]);
	else if (!strcmp(t, "absent"))
		test_absent(argv[1]);
	else
		return 2;
	return failures != 0;
}
