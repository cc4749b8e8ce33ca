// SPDX-License-Identifier: MIT
//
// The measuring loops of the benchmark. Each command asks the questions of a file, checks every answer, and prints
// nanoseconds: one line for each contestant, one number for each batch. A wrong answer ends it with status 1.
//
//	harness steady  QUESTIONS THREADS LOOKUPS BATCHES ENTRY...   batches of the entries take turns
//	harness first   QUESTIONS PROCESSES CLOCK ENTRY...           each number is a new process's first look-up;
//	                                                             then a line for each entry with its page faults
//	harness once    QUESTIONS CLOCK ENTRY                        such a process
//	harness count   QUESTIONS LOOKUPS ENTRY                      look-ups and nothing else, to be traced
//
// A clock is "wall", or "cpu" for what never waits: only its own work counts, however busy the machine is.
// An entry is "libc" (getaddrinfo or getnameinfo, as nsswitch.conf says), "NAME=LIBRARY" (the functions of that NSS
// module themselves), or "reads=N" (what a module cannot do without: open the snapshot, N reads, close).
// A question is a line "name X ADDRESS", "name X -" (nobody's), "name X ?" (nobody's, any error will do) or
// "addr ADDRESS NAME". With LOOKUPS 0 steady finds out how many a batch should have
// and prints that number alone.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nss.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SNAPSHOT "/run/mesh/hosts.db"

struct question {
	char *key, *want;
	int reverse, family;
	size_t size;
	unsigned char addr[16]; // of the answer, or in reverse of the question
};

typedef enum nss_status by_name(const char *, struct gaih_addrtuple **, char *, size_t, int *, int *, int32_t *);
typedef enum nss_status by_addr(const void *, socklen_t, int, struct hostent *, char *, size_t, int *, int *, int32_t *);

struct entry {
	const char *spec;
	by_name *name;
	by_addr *addr;
	int reads;
	off_t size; // of the snapshot
};

static struct question *questions;
static size_t nquestions;

static void die(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	_exit(1);
}

static clockid_t the_clock = CLOCK_MONOTONIC;

static long long now(void)
{
	struct timespec t;
	clock_gettime(the_clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static size_t parse_addr(const char *s, int *family, unsigned char *to)
{
	if (inet_pton(*family = AF_INET, s, to) == 1)
		return 4;
	if (inet_pton(*family = AF_INET6, s, to) == 1)
		return 16;
	die(s, "is no address");
	return 0;
}

static void load(const char *path)
{
	FILE *f = fopen(path, "re");
	char kind[8], key[256], want[256];
	if (!f)
		die(path, strerror(errno));
	for (size_t room = 0; fscanf(f, "%7s %255s %255s", kind, key, want) == 3; nquestions++) {
		if (nquestions == room)
			questions = realloc(questions, (room = room * 2 + 16) * sizeof *questions);
		struct question *q = questions + nquestions;
		*q = (struct question){.key = strdup(key), .want = strdup(want), .reverse = kind[0] == 'a'};
		if (q->reverse || (want[0] != '-' && want[0] != '?'))
			q->size = parse_addr(q->reverse ? key : want, &q->family, q->addr);
	}
	fclose(f);
	if (nquestions == 0)
		die(path, "has no question");
}

static void open_entry(struct entry *e, const char *spec)
{
	*e = (struct entry){.spec = spec};
	char name[64], symbol[128];
	const char *library = strchr(spec, '=');
	if (!library)
		return;
	snprintf(name, sizeof name, "%.*s", (int)(library - spec), spec);
	if (strcmp(name, "reads") == 0) {
		struct stat st;
		if (stat(SNAPSHOT, &st) != 0)
			die(SNAPSHOT, strerror(errno));
		e->size = st.st_size;
		e->reads = atoi(library + 1);
		return;
	}
	void *h = dlopen(library + 1, RTLD_NOW | RTLD_LOCAL);
	if (!h)
		die(spec, dlerror());
	snprintf(symbol, sizeof symbol, "_nss_%s_gethostbyname4_r", name);
	e->name = (by_name *)dlsym(h, symbol);
	snprintf(symbol, sizeof symbol, "_nss_%s_gethostbyaddr2_r", name);
	e->addr = (by_addr *)dlsym(h, symbol);
	if (!e->name || !e->addr)
		die(spec, "has not both functions");
}

static void wrong(const struct entry *e, const struct question *q, const char *got)
{
	fprintf(stderr, "%s: the answer to \"%s\" is %s, not %s\n", e->spec, q->key, got, q->want);
	_exit(1);
}

static void ask_libc(const struct entry *e, const struct question *q)
{
	if (q->reverse) {
		struct sockaddr_storage sa = {.ss_family = q->family};
		char host[NI_MAXHOST];
		memcpy((char *)&sa + (q->size == 4 ? offsetof(struct sockaddr_in, sin_addr) : offsetof(struct sockaddr_in6, sin6_addr)), q->addr, q->size);
		int rc = getnameinfo((struct sockaddr *)&sa, q->size == 4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6), host, sizeof host, NULL, 0, NI_NAMEREQD);
		if (rc != 0)
			wrong(e, q, gai_strerror(rc));
		if (strcmp(host, q->want) != 0)
			wrong(e, q, host);
		return;
	}
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	int rc = getaddrinfo(q->key, NULL, &hints, &found);
	if (q->size == 0) {
		if (rc == 0)
			wrong(e, q, "an address");
		if (rc != EAI_NONAME && rc != EAI_NODATA && q->want[0] == '-')
			wrong(e, q, gai_strerror(rc));
		return;
	}
	if (rc != 0)
		wrong(e, q, gai_strerror(rc));
	const void *got = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
						      : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
	if (found->ai_family != q->family || memcmp(got, q->addr, q->size) != 0 || found->ai_next)
		wrong(e, q, "something else");
	freeaddrinfo(found);
}

static void ask_reads(const struct entry *e, const struct question *q)
{
	char buf[4096];
	int fd = open(SNAPSHOT, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	off_t at = 0;
	size_t n = sizeof buf;
	for (int i = 0; i < e->reads; i++) {
		if (pread(fd, buf, n, at) <= 0)
			wrong(e, q, strerror(errno));
		// somewhere in the file, on a line, as a hash would have it
		at = (off_t)(((uintptr_t)q * 0x9e3779b97f4a7c15u >> 20) % (unsigned long)e->size) & ~(off_t)63;
		n = 512;
	}
	close(fd);
}

static void ask(const struct entry *e, const struct question *q)
{
	char buf[1024];
	int err = 0, herr = 0;
	if (e->reads) {
		ask_reads(e, q);
	} else if (!e->name) {
		ask_libc(e, q);
	} else if (q->reverse) {
		struct hostent he;
		if (e->addr(q->addr, q->size, q->family, &he, buf, sizeof buf, &err, &herr, NULL) != NSS_STATUS_SUCCESS)
			wrong(e, q, "no success");
		if (strcmp(he.h_name, q->want) != 0)
			wrong(e, q, he.h_name);
	} else {
		struct gaih_addrtuple *t = NULL;
		enum nss_status st = e->name(q->key, &t, buf, sizeof buf, &err, &herr, NULL);
		if (q->size == 0) {
			if (st != NSS_STATUS_NOTFOUND || herr != HOST_NOT_FOUND)
				wrong(e, q, st == NSS_STATUS_SUCCESS ? "an address" : "another failure");
		} else if (st != NSS_STATUS_SUCCESS || t->family != q->family || memcmp(t->addr, q->addr, q->size) != 0 || t->next) {
			wrong(e, q, "something else");
		}
	}
}

struct worker {
	pthread_t thread;
	const struct entry *entry;
	long lookups;
	size_t from;
};

static void run(const struct entry *e, long lookups, size_t from)
{
	for (long i = 0; i < lookups; i++) {
		ask(e, questions + from);
		if (++from == nquestions)
			from = 0;
	}
}

static pthread_barrier_t gate;

static void *work(void *p)
{
	struct worker *w = p;
	pthread_barrier_wait(&gate);
	run(w->entry, w->lookups, w->from);
	pthread_barrier_wait(&gate);
	return NULL;
}

// batch returns the nanoseconds of wall time that a look-up took, of all that the threads did together.
static double batch(const struct entry *e, int threads, long lookups, size_t from)
{
	if (threads == 1) {
		long long t = now();
		run(e, lookups, from % nquestions);
		return (double)(now() - t) / lookups;
	}
	struct worker w[threads];
	pthread_barrier_init(&gate, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		w[i] = (struct worker){.entry = e, .lookups = lookups, .from = (from + i * 31) % nquestions};
		if ((errno = pthread_create(&w[i].thread, NULL, work, w + i)))
			die("starting a thread", strerror(errno));
	}
	pthread_barrier_wait(&gate);
	long long t = now();
	pthread_barrier_wait(&gate);
	t = now() - t;
	for (int i = 0; i < threads; i++)
		pthread_join(w[i].thread, NULL);
	pthread_barrier_destroy(&gate);
	return (double)t / (lookups * threads);
}

static void print(int n, double *row)
{
	for (int i = 0; i < n; i++)
		printf("%.1f%c", row[i], i == n - 1 ? '\n' : ' ');
}

static int steady(int threads, long lookups, int batches, int n, char **specs)
{
	struct entry e[n];
	double ns[n][batches];
	for (int i = 0; i < n; i++)
		open_entry(e + i, specs[i]);
	if (lookups == 0) {
		batch(e, threads, 1, 0);
		double one = batch(e, threads, 1, 0);
		one = batch(e, threads, 1 + (long)(2e5 / one), 0);
		// Short ones, so that few contain a turn of another program; threads take a while to be all at work.
		printf("%ld\n", 1 + (long)((threads == 1 ? 3e5 : 2e6) / one / threads));
		return 0;
	}
	for (int i = 0; i < n; i++) // each code path and page once
		batch(e + i, threads, 1 + lookups / 4, 0);
	for (int b = 0; b < batches; b++)
		for (int i = 0; i < n; i++) {
			int j = b % 2 ? n - 1 - i : i;
			ns[j][b] = batch(e + j, threads, lookups, b * lookups);
		}
	for (int i = 0; i < n; i++)
		print(batches, ns[i]);
	return 0;
}

// once measures the loading of a module and its first look-up, or the first look-up through libc.
static int once(const char *spec)
{
	struct entry e;
	struct rusage before, after;
	getrusage(RUSAGE_SELF, &before);
	long long t = now();
	open_entry(&e, spec);
	ask(&e, questions);
	t = now() - t;
	getrusage(RUSAGE_SELF, &after);
	printf("%lld %ld\n", t, after.ru_minflt - before.ru_minflt + after.ru_majflt - before.ru_majflt);
	return 0;
}

// spawn starts a process for one look-up and takes the nanoseconds and page faults that it says.
static void spawn(const char *self, const char *file, const char *clock, char *spec, double *ns, double *faults)
{
	int p[2], status = -1;
	char text[64];
	if (pipe2(p, O_CLOEXEC) != 0)
		die("pipe", strerror(errno));
	pid_t pid = fork();
	if (pid == 0) {
		dup2(p[1], 1);
		execl(self, self, "once", file, clock, spec, NULL);
		_exit(127);
	}
	close(p[1]);
	ssize_t got = read(p[0], text, sizeof text - 1);
	close(p[0]);
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0 || got <= 0)
		die(spec, "a process for one look-up failed");
	text[got] = 0;
	if (sscanf(text, "%lf %lf", ns, faults) != 2)
		die(spec, "a process for one look-up said something else");
}

static int first(const char *self, const char *file, int processes, const char *clock, int n, char **specs)
{
	double ns[n][processes], faults[n][processes];
	for (int b = 0; b < processes; b++)
		for (int i = 0; i < n; i++) {
			int j = b % 2 ? n - 1 - i : i;
			spawn(self, file, clock, specs[j], &ns[j][b], &faults[j][b]);
		}
	for (int i = 0; i < n; i++)
		print(processes, ns[i]);
	for (int i = 0; i < n; i++)
		print(processes, faults[i]);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		die(argv[0], "see its source for what it wants");
	load(argv[2]);
	if (argc > 6 && strcmp(argv[1], "steady") == 0)
		return steady(atoi(argv[3]), atol(argv[4]), atoi(argv[5]), argc - 6, argv + 6);
	if (argc > 5 && strcmp(argv[1], "first") == 0)
		return first(argv[0], argv[2], atoi(argv[3]), argv[4], argc - 5, argv + 5);
	if (argc == 5 && strcmp(argv[1], "once") == 0) {
		if (strcmp(argv[3], "cpu") == 0)
			the_clock = CLOCK_PROCESS_CPUTIME_ID;
		return once(argv[4]);
	}
	if (argc == 5 && strcmp(argv[1], "count") == 0) {
		struct entry e;
		open_entry(&e, argv[4]);
		run(&e, atol(argv[3]), 0);
		return 0;
	}
	die(argv[1], "is no command");
}
