// SPDX-License-Identifier: MIT
//
// hazard TEST [ARGUMENT…]: is an ordinary program that looks mesh names up and does one thing that harms a module with
// threads, locks, signal handlers or descriptors of its own. It finds the module where glibc does, loads it itself and
// calls the functions glibc calls, so that glibc's own locks are not in the way; the tests whose name ends in "gai" go
// through getaddrinfo. Its last line says what happened. Exit status 0 is good, 1 is bad, 77 is "cannot be tested here".
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netdb.h>
#include <nss.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

#define MODULE "libnss_mesh.so.2"
#define SNAPSHOT "/run/mesh/hosts.db"

static void end(int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
static void end(int code, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	_exit(code);
}
#define GOOD(...) end(0, __VA_ARGS__)
#define BAD(...) end(1, __VA_ARGS__)

static void *module;
static enum nss_status (*by4)(const char *, struct gaih_addrtuple **, char *, size_t, int *, int *, int32_t *);

static void *load(void)
{
	if (!(module = dlopen(MODULE, RTLD_NOW)))
		BAD("dlopen: %s", dlerror());
	if (!(*(void **)&by4 = dlsym(module, "_nss_mesh_gethostbyname4_r")))
		BAD("no gethostbyname4_r");
	return module;
}

static enum nss_status ask(const char *name, uint32_t *addr)
{
	char buf[1024];
	int e = 0, h = 0;
	struct gaih_addrtuple *t = NULL;
	enum nss_status st = by4(name, &t, buf, sizeof buf, &e, &h, NULL);
	if (st == NSS_STATUS_SUCCESS)
		*addr = t->family == AF_INET ? t->addr[0] : 0;
	return st;
}

// resolve reports whether bkero has its address.
static int resolve(void)
{
	uint32_t a = 0;
	return ask("bkero", &a) == NSS_STATUS_SUCCESS && a == inet_addr("10.11.0.2");
}

static int resolve_gai(void)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_INET}, *list = NULL;
	if (getaddrinfo("bkero", NULL, &hints, &list) != 0)
		return 0;
	int ok = ((struct sockaddr_in *)list->ai_addr)->sin_addr.s_addr == inet_addr("10.11.0.2");
	freeaddrinfo(list);
	return ok;
}

static long ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int entries(const char *dir)
{
	int n = 0;
	DIR *d = opendir(dir);
	if (!d)
		return -1;
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}
static int threads(void) { return entries("/proc/self/task") - 2; }
static int descriptors(void) { return entries("/proc/self/fd") - 3; }

static long statm(int field)
{
	long v[2] = {0};
	FILE *f = fopen("/proc/self/statm", "r");
	if (!f || fscanf(f, "%ld %ld", &v[0], &v[1]) != 2)
		BAD("statm");
	fclose(f);
	return v[field] * 4;
}

// field returns a line of /proc/self/task/*/status or of the process, without its label.
static void field(const char *path, const char *label, char *out, size_t n)
{
	char line[256];
	FILE *f = fopen(path, "r");
	*out = 0;
	while (f && fgets(line, sizeof line, f))
		if (strncmp(line, label, strlen(label)) == 0) {
			char *v = line + strlen(label);
			v += strspn(v, ": \t");
			v[strcspn(v, "\n")] = 0;
			snprintf(out, n, "%s", v);
		}
	if (f)
		fclose(f);
}

// settle waits until a runtime that starts in the background has done so; a module without one costs 2 ms.
static void settle(void)
{
	for (int i = 0, t = threads(), d = descriptors(); i < 2; i++) {
		usleep(1000);
		if (threads() != t || descriptors() != d || t > 1)
			usleep(30000), t = threads(), d = descriptors();
	}
}

static pthread_t start(size_t stack, void *(*f)(void *))
{
	pthread_t t;
	pthread_attr_t a;
	pthread_attr_init(&a);
	if (stack)
		pthread_attr_setstacksize(&a, stack);
	if (pthread_create(&t, &a, f, NULL) != 0)
		BAD("pthread_create: %s", strerror(errno));
	return t;
}

static volatile int stop, wrong;
static int (*lookup)(void) = resolve;

static void *busy(void *arg)
{
	while (!stop)
		if (!lookup())
			wrong++;
	return arg;
}

static void *once(void *arg)
{
	if (!lookup())
		wrong++;
	return arg;
}

// Forks rounds children that run child, or as many as 10 s allow; a child that takes 5 s hangs, and the second that hangs
// ends the test.
static void forks(int rounds, int (*child)(void))
{
	int hung = 0, bad = 0, i;
	long begin = ms();
	for (i = 0; i < rounds && hung < 2 && (i < 100 || ms() - begin < 10000); i++) {
		pid_t p = fork();
		if (p < 0)
			BAD("fork: %s", strerror(errno));
		if (p == 0) {
			signal(SIGALRM, SIG_DFL);
			sigset_t none;
			sigemptyset(&none);
			sigprocmask(SIG_SETMASK, &none, NULL);
			alarm(5);
			_exit(child() ? 0 : 1);
		}
		int st = 0;
		while (waitpid(p, &st, 0) < 0 && errno == EINTR)
			;
		hung += WIFSIGNALED(st) && WTERMSIG(st) == SIGALRM;
		bad += !WIFSIGNALED(st) && WEXITSTATUS(st) != 0;
		if (WIFSIGNALED(st) && WTERMSIG(st) != SIGALRM)
			BAD("a child died: %s", strsignal(WTERMSIG(st)));
	}
	stop = 1;
	if (hung || bad)
		BAD("**%s: %d of %d forks**", hung ? "hangs" : "wrong", hung + bad, i);
	GOOD("%d forks", i);
}

static int child_four_threads(void)
{
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		t[i] = start(0, once);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	return !wrong;
}

static void copy(const char *from, const char *to)
{
	char b[65536], tmp[256];
	snprintf(tmp, sizeof tmp, "%s.new", to);
	int in = open(from, O_RDONLY), out = open(tmp, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	ssize_t n;
	while ((n = read(in, b, sizeof b)) > 0)
		if (write(out, b, n) != n)
			BAD("write: %s", strerror(errno));
	if (in < 0 || out < 0 || n < 0 || rename(tmp, to) != 0)
		BAD("replacing %s: %s", to, strerror(errno));
	close(in);
	close(out);
}

static int superseded(void)
{
	return child_four_threads();
}

// What a process must not notice.
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
	s->threads = threads();
	s->fds = descriptors();
	s->vsz = statm(0);
	for (int i = 1; i <= 64; i++)
		sigaction(i, NULL, &s->sa[i]);
	pthread_sigmask(SIG_BLOCK, NULL, &s->mask);
	sigaltstack(NULL, &s->alt);
}

static void test_unnoticed(const char *what)
{
	struct state a, b;
	sigset_t all;
	sigfillset(&all);
	if (!strcmp(what, "mask"))
		pthread_sigmask(SIG_BLOCK, &all, NULL);
	look(&a);
	load();
	errno = 4242;
	if (!resolve())
		BAD("no answer");
	int e = errno;
	settle();
	look(&b);
	char list[512] = "";
	int changed = 0;
	if (!strcmp(what, "mask")) {
		for (int i = 1; i <= 64; i++)
			if (sigismember(&a.mask, i) != sigismember(&b.mask, i))
				changed++, snprintf(list + strlen(list), sizeof list - strlen(list), " %s", i < 32 ? sigabbrev_np(i) : "RT");
		if (changed)
			BAD("**unblocks %s**", list);
		GOOD("all stay blocked");
	}
	if (!strcmp(what, "handlers")) {
		for (int i = 1; i <= 64; i++)
			if (a.sa[i].sa_handler != b.sa[i].sa_handler || a.sa[i].sa_flags != b.sa[i].sa_flags)
				changed++, snprintf(list + strlen(list), sizeof list - strlen(list), " %s", i < 32 ? sigabbrev_np(i) : "RT");
		if (a.alt.ss_sp != b.alt.ss_sp || a.alt.ss_flags != b.alt.ss_flags)
			changed++, strcat(list, " sigaltstack");
		if (changed)
			BAD("**changes%s**", list);
		GOOD("none changed");
	}
	if (e != 4242)
		BAD("errno changed to %d", e);
	int bad = a.threads != b.threads || a.fds != b.fds || b.vsz - a.vsz > 2048;
	end(bad, "%s+%d threads, +%d descriptors, +%ld KiB%s", bad ? "**" : "", b.threads - a.threads, b.fds - a.fds, b.vsz - a.vsz, bad ? "**" : "");
}

static void limit(int what, rlim_t v)
{
	struct rlimit r = {v, v};
	if (setrlimit(what, &r) != 0)
		BAD("setrlimit: %s", strerror(errno));
}

static void load_and_resolve(const char *ok)
{
	load();
	for (int i = 0; i < 3; i++)
		if (!resolve())
			BAD("**no answer**");
	GOOD("%s", ok);
}

static void test_descriptors(int left)
{
	load();
	settle();
	if (left == 1 && !resolve())
		BAD("no answer before");
	int last = -1, fd;
	limit(RLIMIT_NOFILE, 64);
	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		last = fd;
	if (left == 1)
		close(last);
	uint32_t a;
	enum nss_status st = ask("bkero", &a);
	if (left == 0)
		end(st != NSS_STATUS_UNAVAIL, st == NSS_STATUS_UNAVAIL ? "unavailable" : "status %d", st);
	end(st != NSS_STATUS_SUCCESS, st == NSS_STATUS_SUCCESS ? "ok" : "**status %d**", st);
}

// One descriptor is free while the module is loaded.
static void test_one_descriptor(void)
{
	int fd = open("/dev/null", O_RDONLY);
	close(fd);
	limit(RLIMIT_NOFILE, fd + 1);
	load();
	for (int i = 0; i < 50; i++) { // a runtime takes its own descriptors once it runs
		usleep(1000);
		if (fcntl(fd, F_GETFD) >= 0)
			break;
	}
	for (int i = 0; i < 10; i++)
		if (!resolve())
			BAD("**no answer: the descriptor is taken**");
	if (fcntl(fd, F_GETFD) >= 0)
		BAD("**the last descriptor is taken**");
	GOOD("ok");
}

#if defined __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif

// What reading files, a DNS client, threads of glibc and the end of a process need.
static const int calls[] = {
	SYS_openat, SYS_read, SYS_pread64, SYS_close, SYS_mmap, SYS_mprotect, SYS_munmap, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_lseek, SYS_brk,
	SYS_write, SYS_writev, SYS_exit, SYS_exit_group, SYS_futex, SYS_rt_sigreturn, SYS_getrandom, SYS_clock_gettime, SYS_clock_nanosleep,
	SYS_socket, SYS_connect, SYS_sendto, SYS_recvfrom, SYS_recvmsg, SYS_sendmmsg, SYS_ppoll, SYS_bind, SYS_getsockname, SYS_setsockopt,
	SYS_ioctl, SYS_uname, SYS_getpid, SYS_getdents64, SYS_fcntl,
#ifdef __x86_64__
	SYS_open, SYS_stat, SYS_access, SYS_poll, SYS_readlink,
#else
	SYS_faccessat, SYS_readlinkat,
#endif
};

static void filter(uint32_t otherwise, unsigned flags)
{
	enum { N = sizeof calls / sizeof *calls };
	struct sock_filter f[N + 6], *p = f;
	*p++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
	*p++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	*p++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < N; i++)
		*p++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], N - i, 0);
	*p++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, otherwise);
	*p++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog prog = {p - f, f};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog) != 0)
		BAD("seccomp: %s", strerror(errno));
}

static void test_seccomp_later(void)
{
	load();
	if (!resolve())
		BAD("no answer before");
	filter(SECCOMP_RET_KILL_PROCESS, SECCOMP_FILTER_FLAG_TSYNC);
	for (long begin = ms(); ms() - begin < 300;)
		if (!resolve())
			BAD("**no answer**");
	GOOD("ok");
}

// A program that believes it has one thread needs no TSYNC.
static void test_seccomp_one_thread(void)
{
	load();
	if (!resolve())
		BAD("no answer");
	settle();
	filter(SECCOMP_RET_ERRNO | EPERM, 0);
	int n = 0, open = 0;
	DIR *d = opendir("/proc/self/task");
	for (struct dirent *e; (e = readdir(d));) {
		char path[300], v[32];
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
		field(path, "Seccomp:", v, sizeof v);
		n++;
		open += strcmp(v, "2") != 0;
	}
	end(open != 0, open ? "**%d of %d threads run without the filter and without no_new_privs**" : "%d of %d unfiltered", open, n);
}

// A handler that uses the stack as freely as a program's own stack allows.
static volatile long handled;
static void handler(int sig)
{
	volatile char scratch[65536];
	for (unsigned i = 0; i < sizeof scratch; i += 64)
		scratch[i] = sig;
	handled++;
}

// Handlers without SA_ONSTACK, as most programs have them, and timers that use them.
static void test_handlers(void)
{
	load();
	resolve();
	int signals[] = {SIGALRM, SIGPROF, SIGUSR1};
	for (int i = 0; i < 3; i++) {
		struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_RESTART};
		sigaction(signals[i], &sa, NULL);
		if (i == 2) {
			struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
			struct itimerspec every = {{0, 200000}, {0, 200000}};
			timer_t t;
			timer_create(CLOCK_MONOTONIC, &ev, &t);
			timer_settime(t, 0, &every, NULL);
		} else {
			struct itimerval every = {{0, 200}, {0, 200}};
			setitimer(i ? ITIMER_PROF : ITIMER_REAL, &every, NULL);
		}
	}
	for (long begin = ms(); ms() - begin < 2000 || (handled < 10000 && ms() - begin < 6000);)
		if (!lookup())
			BAD("**wrong**");
	GOOD("ok");
}

static void test_signalfd(void)
{
	sigset_t chld;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	int fd = signalfd(-1, &chld, SFD_CLOEXEC), got = 0;
	load();
	if (!resolve())
		BAD("no answer");
	settle();
	for (int i = 0; i < 20; i++) {
		pid_t p = fork();
		if (p == 0)
			_exit(0);
		waitpid(p, NULL, __WALL);
		struct pollfd pf = {fd, POLLIN, 0};
		struct signalfd_siginfo si;
		if (poll(&pf, 1, 150) == 1 && read(fd, &si, sizeof si) == sizeof si)
			got++;
	}
	end(got != 20, got == 20 ? "%d of 20 events" : "**%d of 20 events**", got);
}

static void test_sigpipe(const char *self)
{
	signal(SIGPIPE, SIG_IGN);
	load();
	if (!resolve())
		BAD("no answer");
	settle();
	execl(self, self, "ignored", NULL);
	BAD("exec: %s", strerror(errno));
}

static void test_unshare(void)
{
	load();
	if (!resolve())
		BAD("no answer");
	settle();
	if (unshare(CLONE_NEWUSER) != 0)
		BAD("**%s**", strerror(errno));
	GOOD("ok");
}

static void test_chroot(int before)
{
	char dir[] = "/tmp/emptyXXXXXX";
	if (!mkdtemp(dir))
		BAD("mkdtemp");
	load();
	if (!before && !resolve())
		BAD("no answer before");
	if (chroot(dir) != 0 || chdir("/") != 0)
		BAD("chroot: %s", strerror(errno));
	uint32_t a;
	enum nss_status st = ask("bkero", &a);
	if (st == NSS_STATUS_UNAVAIL)
		GOOD("unavailable, as `files`");
	BAD("**status %d: answers from the file outside**", st);
}

static void *first(void *arg)
{
	load();
	return once(arg);
}

static void test_small_stack(const char *how)
{
	if (!strcmp(how, "gai"))
		lookup = resolve_gai;
	if (!strcmp(how, "later")) {
		load();
		resolve();
	}
	pthread_join(start(16384, !strcmp(how, "first") ? first : once), NULL);
	if (wrong)
		BAD("wrong");
	GOOD("ok");
}

static void test_churn(int n)
{
	load();
	resolve();
	settle();
	int before = threads();
	long rss = statm(1);
	for (int i = 0; i < n; i++)
		pthread_join(start(0, once), NULL);
	long grown = statm(1) - rss;
	settle();
	int more = threads() - before;
	end(wrong || grown > 4096 || more > 2, "%d threads, +%ld KiB, +%d threads", n, grown, more);
}

static void test_dlmopen(void)
{
	int before = threads();
	for (int i = 0; i < 10; i++) {
		void *m = dlmopen(LM_ID_NEWLM, MODULE, RTLD_NOW);
		if (!m)
			BAD("**dlmopen: %s**", dlerror());
		*(void **)&by4 = dlsym(m, "_nss_mesh_gethostbyname4_r");
		if (!resolve())
			BAD("no answer");
	}
	settle();
	int more = threads() - before;
	end(more != 0, more ? "**+%d threads**" : "+%d threads", more);
}

static void test_dlclose(void)
{
	int before = threads(), fds = descriptors();
	for (int i = 0; i < 100; i++) {
		load();
		if (!resolve())
			BAD("no answer");
		dlclose(module);
	}
	settle();
	int more = threads() - before, d = descriptors() - fds;
	end(more || d, more || d ? "**+%d threads, +%d descriptors stay**" : "+%d threads, +%d descriptors", more, d);
}

static void test_spawn(void)
{
	load();
	resolve();
	for (int i = 0; i < 200; i++) {
		pid_t p;
		int st;
		char *argv[] = {"true", NULL};
		if (posix_spawn(&p, "/bin/true", NULL, NULL, argv, environ) != 0 || waitpid(p, &st, 0) != p || st != 0)
			BAD("posix_spawn");
	}
	for (int i = 0; i < 300; i++) {
		pid_t p = vfork();
		if (p == 0)
			_exit(!resolve());
		int st;
		if (waitpid(p, &st, 0) != p || st != 0)
			BAD("vfork child: %x", st);
	}
	GOOD("200 spawns, 300 vforks");
}

static int at_exit_loads;
static void at_exit(void)
{
	if (at_exit_loads)
		load();
	if (!lookup())
		BAD("**wrong**");
	puts("ok");
}

__attribute__((destructor)) static void at_end(void)
{
	if (at_exit_loads == 0 && by4 && !resolve())
		BAD("**wrong in a destructor**");
}

// raw leaves root by the system call, as a program that has one thread may.
static void test_setresuid(int raw)
{
	load();
	if (!resolve())
		BAD("no answer");
	settle();
	if (!raw) {
		pthread_t t[4];
		for (int i = 0; i < 4; i++)
			t[i] = start(0, busy);
		for (int i = 0; i < 500; i++)
			if (setresuid(-1, i % 2 ? 0 : 65534, -1) != 0)
				BAD("setresuid: %s", strerror(errno));
		stop = 1;
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		end(wrong != 0, "500 times, %d wrong", wrong);
	}
	if (syscall(SYS_setresuid, 65534, 65534, 65534) != 0)
		BAD("setresuid: %s", strerror(errno));
	int n = 0, left = 0;
	DIR *d = opendir("/proc/self/task");
	for (struct dirent *e; (e = readdir(d));) {
		char path[300], v[64];
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
		field(path, "Uid:", v, sizeof v);
		n++;
		left += v[0] == '0';
	}
	end(left != 0, left ? "**%d of %d threads stay root**" : "%d of %d stay root", left, n);
}

static void test_truncate(void)
{
	load();
	if (!resolve())
		BAD("no answer before");
	uint32_t a;
	struct stat s;
	stat(SNAPSHOT, &s);
	for (off_t size = s.st_size - 8; size >= 0; size -= 8) {
		if (truncate(SNAPSHOT, size) != 0)
			BAD("truncate: %s", strerror(errno));
		enum nss_status st = ask("bkero", &a);
		if (st == NSS_STATUS_NOTFOUND || (st == NSS_STATUS_SUCCESS && a != inet_addr("10.11.0.2")))
			BAD("**a wrong answer at %ld bytes: status %d**", (long)size, st);
		if (size < 128 && st != NSS_STATUS_UNAVAIL)
			BAD("**status %d at %ld bytes**", st, (long)size);
	}
	GOOD("unavailable");
}

// What is at the file's place but is no snapshot.
static void test_file(void)
{
	uint32_t a;
	load();
	struct { const char *what; int ok; } c[] = {{"FIFO", 0}, {"link", 0}, {"folder", 0}, {"device", 0}, {"empty", 0}, {"unreadable", 0}, {"gone", 0}};
	for (unsigned i = 0; i < sizeof c / sizeof *c; i++) {
		rename(SNAPSHOT, "/run/mesh/good.db");
		switch (i) {
		case 0: c[i].ok = mkfifo(SNAPSHOT, 0644) == 0; break;
		case 1: c[i].ok = symlink("/run/mesh/good.db", SNAPSHOT) == 0; break;
		case 2: c[i].ok = mkdir(SNAPSHOT, 0755) == 0; break;
		case 3: c[i].ok = mknod(SNAPSHOT, S_IFCHR | 0644, 1 << 8 | 5) == 0; break;
		case 4: c[i].ok = close(open(SNAPSHOT, O_CREAT | O_WRONLY, 0644)) == 0; break;
		case 5: c[i].ok = close(open(SNAPSHOT, O_CREAT | O_WRONLY, 0)) == 0; break;
		default: c[i].ok = 1;
		}
		if (!c[i].ok)
			BAD("making a %s: %s", c[i].what, strerror(errno));
		alarm(2);
		enum nss_status st = ask("bkero", &a);
		alarm(0);
		if (st != NSS_STATUS_UNAVAIL)
			BAD("**%s: status %d**", c[i].what, st);
		remove(SNAPSHOT);
		rename("/run/mesh/good.db", SNAPSHOT);
	}
	if (!resolve())
		BAD("no answer after all was put back");
	GOOD("unavailable");
}

static volatile int unavailable;
static void *either(void *arg)
{
	while (!stop) {
		uint32_t a = 0;
		enum nss_status st = ask("bkero", &a);
		if (st == NSS_STATUS_UNAVAIL)
			__sync_fetch_and_add(&unavailable, 1);
		else if (st != NSS_STATUS_SUCCESS || (a != inet_addr("10.11.0.2") && a != inet_addr("10.11.0.4")))
			__sync_fetch_and_add(&wrong, 1);
	}
	return arg;
}

static void test_replace(void)
{
	load();
	pthread_t t[8];
	for (int i = 0; i < 8; i++)
		t[i] = start(0, either);
	for (int i = 0; i < 3000; i++)
		copy(i % 2 ? "/run/mesh/a.db" : "/run/mesh/b.db", SNAPSHOT);
	stop = 1;
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	copy("/run/mesh/b.db", SNAPSHOT);
	uint32_t a = 0;
	if (ask("bkero", &a) != NSS_STATUS_SUCCESS || a != inet_addr("10.11.0.4"))
		BAD("**the new file is not read**");
	end(wrong || unavailable, "3000 replacements, %d unavailable, %d wrong", unavailable, wrong);
}

static void *cancelled(void *arg)
{
	if (arg)
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	for (;;) {
		lookup();
		pthread_testcancel();
	}
	return arg;
}

// cancel_first cancels a look-up in the first moments after the module was loaded, each in a process of its own.
static void cancel_first(void)
{
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			struct addrinfo *found; // of "files": getaddrinfo has read nsswitch.conf, and the module is not loaded yet
			if (lookup != resolve && getaddrinfo("localhost", NULL, NULL, &found) != 0)
				_exit(3);
			load();
			pthread_t t;
			if (pthread_create(&t, NULL, cancelled, NULL) != 0)
				_exit(2);
			usleep(i * 10);
			pthread_cancel(t);
			struct timespec until;
			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_sec += 5;
			if (pthread_timedjoin_np(t, NULL, &until) != 0)
				_exit(1);
			alarm(5); // a lock that the thread holds
			_exit(!lookup());
		}
		int status = -1;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
			BAD("**hangs in its first moments: %d of 100 ended**", i);
	}
}

static void test_cancel(int async)
{
	if (!async)
		cancel_first();
	if (lookup == resolve)
		load(); // otherwise a thread that is cancelled may be the one that loads it
	for (int i = 0; i < 500; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, cancelled, async ? (void *)1 : NULL) != 0)
			BAD("pthread_create: %s", strerror(errno));
		usleep(i * 10);
		pthread_cancel(t);
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 5;
		if (pthread_timedjoin_np(t, NULL, &until) != 0)
			BAD("**hangs: %d of 500 ended**", i);
	}
	alarm(5); // a lock that a cancelled thread holds
	if (!lookup())
		BAD("**wrong after it**");
	GOOD("500 cancelled");
}

// What must hold of the environment of a program that runs as another user.
static void test_setuid(void)
{
	if (!getauxval(AT_SECURE))
		BAD("not a setuid program");
	load();
	settle();
	if (!resolve())
		BAD("no answer");
	if (threads() > 8)
		BAD("**%d threads**", threads());
	GOOD("ok");
}

// Every length and alignment of the caller's buffer, with an unmapped page behind it.
static void test_erange(void)
{
	load();
	enum nss_status (*by2)(const char *, int, struct hostent *, char *, size_t, int *, int *);
	enum nss_status (*byaddr)(const void *, socklen_t, int, struct hostent *, char *, size_t, int *, int *);
	*(void **)&by2 = dlsym(module, "_nss_mesh_gethostbyname2_r");
	*(void **)&byaddr = dlsym(module, "_nss_mesh_gethostbyaddr_r");
	long page = sysconf(_SC_PAGESIZE);
	char *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(map + page, page, PROT_NONE);
	int small = 0, fit = 0;
	for (size_t len = 0; len < 600; len++)
		for (int al = 0; al < 8; al++)
			for (int f = 0; f < 3; f++) {
				char *buf = map + page - len - al;
				struct gaih_addrtuple *t = NULL;
				struct hostent he;
				int e = 0, h = 0;
				unsigned char a[4] = {10, 11, 0, 2};
				enum nss_status st = f == 0   ? by4("bkero", &t, buf, len, &e, &h, NULL)
						     : f == 1 ? by2("bkero", AF_INET6, &he, buf, len, &e, &h)
							      : byaddr(a, 4, AF_INET, &he, buf, len, &e, &h);
				if (st == NSS_STATUS_TRYAGAIN && e == ERANGE && h == NETDB_INTERNAL)
					small++;
				else if (st == NSS_STATUS_SUCCESS && h == NETDB_SUCCESS)
					fit++;
				else
					BAD("**length %zu: status %d errno %d h_errno %d**", len, st, e, h);
			}
	end(small < 100 || fit < 100, "%d too small, %d fit", small, fit);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	const char *t = argc > 1 ? argv[1] : "", *arg = argc > 2 ? argv[2] : "";
	if (getenv("GAI"))
		lookup = resolve_gai;
#define IS(name) (!strcmp(t, name))
	if (IS("lookup")) {
		load_and_resolve("ok");
	} else if (IS("fork")) {
		load();
		resolve();
		forks(10000, resolve);
	} else if (IS("fork-busy")) {
		load();
		for (int i = 0; i < 4; i++)
			start(0, busy);
		forks(10000, resolve);
	} else if (IS("fork-threads")) {
		load();
		resolve();
		forks(1000, child_four_threads);
	} else if (IS("fork-superseded")) {
		load();
		resolve();
		copy("/run/mesh/a.db", SNAPSHOT);
		forks(1000, superseded);
	} else if (IS("unnoticed")) {
		test_unnoticed(arg);
	} else if (IS("as")) {
		limit(RLIMIT_AS, atol(arg) << 20);
		load_and_resolve("ok");
	} else if (IS("data")) {
		limit(RLIMIT_DATA, atol(arg) << 20);
		load_and_resolve("ok");
	} else if (IS("nproc")) {
		limit(RLIMIT_NPROC, 1);
		if (setgroups(0, NULL) != 0 || setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
			BAD("setresuid: %s", strerror(errno));
		load_and_resolve("ok");
	} else if (IS("descriptors")) {
		test_descriptors(atoi(arg));
	} else if (IS("one-descriptor")) {
		test_one_descriptor();
	} else if (IS("seccomp")) {
		filter(!strcmp(arg, "kill") ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM, 0);
		load_and_resolve("ok");
	} else if (IS("seccomp-later")) {
		test_seccomp_later();
	} else if (IS("seccomp-one-thread")) {
		test_seccomp_one_thread();
	} else if (IS("setuid")) {
		test_setuid();
	} else if (IS("handlers")) {
		test_handlers();
	} else if (IS("signalfd")) {
		test_signalfd();
	} else if (IS("sigpipe")) {
		test_sigpipe(argv[0]);
	} else if (IS("ignored")) {
		char v[32];
		field("/proc/self/status", "SigIgn:", v, sizeof v);
		int kept = strtoull(v, NULL, 16) >> (SIGPIPE - 1) & 1;
		end(!kept, kept ? "kept" : "**lost**");
	} else if (IS("unshare")) {
		test_unshare();
	} else if (IS("chroot")) {
		test_chroot(!strcmp(arg, "before"));
	} else if (IS("gai")) {
		for (int i = 0; i < 3; i++)
			if (!resolve_gai())
				BAD("**no answer**");
		GOOD("ok");
	} else if (IS("small-stack")) {
		test_small_stack(arg);
	} else if (IS("churn")) {
		test_churn(10000);
	} else if (IS("dlmopen")) {
		test_dlmopen();
	} else if (IS("dlclose")) {
		test_dlclose();
	} else if (IS("spawn")) {
		test_spawn();
	} else if (IS("atexit")) {
		at_exit_loads = !strcmp(arg, "first");
		if (!at_exit_loads)
			load();
		atexit(at_exit);
		exit(0);
	} else if (IS("setresuid")) {
		test_setresuid(!strcmp(arg, "raw"));
	} else if (IS("truncate")) {
		test_truncate();
	} else if (IS("file")) {
		test_file();
	} else if (IS("replace")) {
		test_replace();
	} else if (IS("cancel")) {
		test_cancel(!strcmp(arg, "async"));
	} else if (IS("erange")) {
		test_erange();
	} else {
		return 2;
	}
}
