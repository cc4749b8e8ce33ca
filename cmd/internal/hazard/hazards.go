// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"strings"
	"time"
)

// hazard is one test.
type hazard struct {
	name     string
	what     string
	run      string                             // shell, in the arena; $H is testdata/hazard.c
	hosts    string                             // which of hostsLines
	needs    []string                           // programs
	survives string                             // why the naive module passes; empty where it must not
	says     string                             // what the table says of a pass, instead of the last line
	limit    time.Duration                      // of the naive module, instead of naiveLimit
	after    string                             // shell, to clean up
	check    func(stdout, stderr string) string // what is wrong with the output of a test that passed

	result [len(modules)]*result
}

const hostile = `GODEBUG=inittrace=1,gctrace=1 GOGC=1 GOTRACEBACK=crash `

// silent demands that nothing is written to standard error.
func silent(_, stderr string) string {
	if stderr != "" {
		return "**writes " + stderr[:min(len(stderr), 60)] + "**"
	}
	return ""
}

const (
	rebinds    = "the thread that forked is the only one, and the runtime takes it again"
	twoRuns    = "two runtimes, which Go does not support (golang/go#65050)"
	noHarm     = "what it harms is not used here"
	order      = "the order is glibc's"
	sigHandler = "Go's handlers pass on what is not theirs"
)

// hazards are all tests. They are named as the measurements are on which the module's design rests; y are about its place
// in nsswitch.conf.
var hazards = []hazard{
	// fork
	{name: "a1", what: "up to 10,000 forks in 10 s of a process that has looked up; the child looks up", run: "exec $H fork", survives: rebinds, limit: 60 * time.Second},
	{name: "a2", what: "fork while 4 threads look up; the child looks up", run: "exec $H fork-busy", limit: 40 * time.Second},
	{name: "a3", what: "fork; the child looks up in 4 threads", run: "exec $H fork-threads", limit: 30 * time.Second},
	{name: "a4", what: "Python multiprocessing, 16 threads in each child", run: "exec /usr/bin/python3 multi.py processes", needs: []string{"python3"}, limit: 40 * time.Second},
	{name: "a5", what: "fork; the file was replaced; 4 threads of the child look up", run: "exec $H fork-superseded", limit: 30 * time.Second},
	{name: "q", what: "Python pre-fork server, 8 workers of 8 threads", run: "exec /usr/bin/python3 multi.py prefork", needs: []string{"python3"}, limit: 40 * time.Second},
	{name: "q2", what: "Apache prefork, 300 requests, HostnameLookups Double", needs: []string{"apache2", "python3"}, survives: "its children have one thread", limit: 60 * time.Second, run: `
/usr/sbin/apache2 -f ` + dir + `/httpd.conf
/usr/bin/python3 requests.py http://bkero:8080/index.html 300
i=0; while [ $(wc -l </tmp/access.log) -lt 300 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done # it logs after it has answered
n=$(grep -c bkero.mesh.internal /tmp/access.log)
echo "$n of 300 requests from bkero.mesh.internal"
[ $n = 300 ]`},
	{name: "r", what: "200 posix_spawn, 300 look-ups in a vfork child", run: "exec $H spawn", survives: noHarm},

	// limits
	{name: "c1", what: "RLIMIT_AS 64 MiB", run: "exec $H as 64"},
	{name: "c2", what: "RLIMIT_AS 512 MiB", run: "exec $H as 512"},
	{name: "c3", what: "RLIMIT_DATA 64 MiB", run: "exec $H data 64"},
	{name: "c4", what: "`ulimit -v 300000; curl`", hosts: "dns", needs: []string{"curl", "python3"}, run: `
mkdir -p www; (cd www && exec /usr/bin/python3 -m http.server --bind 10.11.0.2 8080 >/dev/null 2>&1) &
curl -s --retry 50 --retry-connrefused --retry-delay 1 -o /tmp/first http://10.11.0.2:8080/index.html
ulimit -v 300000; curl -sS http://bkero:8080/index.html >/tmp/page; grep -q hello /tmp/page && echo ok`},
	{name: "c5", what: "`ulimit -v 300000; python3`", needs: []string{"python3"}, run: `ulimit -v 300000
exec /usr/bin/python3 -c 'import socket; print(socket.gethostbyname("bkero"))'`, says: "ok"},
	{name: "d1", what: "RLIMIT_NPROC 1, as nobody", run: "exec $H nproc"},
	{name: "d2", what: "cgroup with pids.max 3", run: `
mount -t cgroup -o pids pids /mnt 2>/dev/null || mount -t cgroup2 cgroup2 /mnt || { echo no cgroups here; exit 77; }
g=/mnt/mesh-hazard-$MODULE; mkdir -p $g
echo 3 >$g/pids.max || { echo no pids controller here; exit 77; }
echo $$ >$g/cgroup.procs
exec $H lookup`, after: `exec unshare --mount sh -c 'mount -t cgroup -o pids pids /mnt 2>/dev/null || mount -t cgroup2 cgroup2 /mnt; rmdir /mnt/mesh-hazard-'$MODULE`},
	{name: "e1", what: "one descriptor is left when it is loaded", run: "exec $H one-descriptor"},
	{name: "e2", what: "one descriptor is left after it is loaded", run: "exec $H descriptors 1", survives: "it has taken its descriptors already"},
	{name: "e3", what: "no descriptor is left", run: "exec $H descriptors 0", survives: "to answer needs a descriptor"},

	// sandboxes
	{name: "f1", what: "seccomp list of calls before loading, others EPERM", run: "exec $H seccomp eperm"},
	{name: "f1k", what: "the same, others kill", run: "exec $H seccomp kill"},
	{name: "f2", what: "the same, kill, with TSYNC after a look-up", run: "exec $H seccomp-later"},
	{name: "f3", what: "the same without TSYNC in a process of one thread", run: "exec $H seccomp-one-thread"},
	{name: "j", what: "unshare(CLONE_NEWUSER) after a look-up", run: "exec $H unshare"},
	{name: "k1", what: "chroot after loading, before a look-up", run: "exec $H chroot before", survives: "nothing is mapped yet"},
	{name: "k2", what: "chroot after a look-up", run: "exec $H chroot after"},
	{name: "t1", what: "500 setresuid(2) through glibc with 4 busy threads", run: "exec $H setresuid", survives: "glibc changes Go's threads too", limit: 60 * time.Second},
	{name: "t2", what: "the system call setresuid in a process of one thread", run: "exec $H setresuid raw"},

	// setuid programs and the environment
	{name: "g1", what: "setuid root, hostile GODEBUG and GOGC", run: hostile + "setpriv --reuid 65534 --regid 65534 --clear-groups ./hazard-setuid setuid", needs: []string{"setpriv"}, check: silent},
	{name: "g2", what: "setuid root, GOMAXPROCS=99999", run: "GOMAXPROCS=99999 setpriv --reuid 65534 --regid 65534 --clear-groups ./hazard-setuid setuid", needs: []string{"setpriv"}},
	{name: "g3", what: "setuid root, GOMEMLIMIT=bogus", run: "GOMEMLIMIT=bogus setpriv --reuid 65534 --regid 65534 --clear-groups ./hazard-setuid setuid", needs: []string{"setpriv"}, check: silent},
	{name: "g4", what: "sudo (fqdn), GODEBUG, GOMEMLIMIT=bogus", run: "hostname bkero\n" + hostile + "GOMEMLIMIT=bogus setpriv --reuid 65534 --regid 65534 --clear-groups /usr/bin/sudo -n id -u", needs: []string{"sudo", "setpriv"}, check: silent, says: "ok"},
	{name: "g5", what: "setuid ping, GODEBUG, GOMEMLIMIT=bogus", run: hostile + "GOMEMLIMIT=bogus setpriv --reuid 65534 --regid 65534 --clear-groups ./ping-setuid -c 1 -W 2 bkero", needs: []string{"ping", "setpriv"}, check: silent, says: "ok"},
	{name: "g6", what: "any program, GOMEMLIMIT=bogus", run: "GOMEMLIMIT=bogus exec $H lookup"},

	// signals
	{name: "i1", what: "handlers without SA_ONSTACK for SIGALRM, SIGPROF, SIGUSR1, every 200 µs", run: "exec $H handlers"},
	{name: "i1g", what: "the same through getaddrinfo", run: "GAI=1 exec $H handlers", survives: "most signals arrive in glibc's part"},
	{name: "i2", what: "all signals are blocked", run: "exec $H unnoticed mask"},
	{name: "i3", what: "signalfd for SIGCHLD, 20 children", run: "exec $H signalfd"},
	{name: "i4", what: "handlers and the signal stack", run: "exec $H unnoticed handlers"},
	{name: "i5", what: "SIGPIPE is ignored, then exec", run: "exec $H sigpipe"},
	{name: "u0", what: "threads, descriptors, address space, errno after a look-up", run: "exec $H unnoticed counts"},

	// threads
	{name: "m1", what: "stack of 16 KiB", run: "exec $H small-stack later", survives: "a callback runs on Go's own stack"},
	{name: "m2", what: "stack of 16 KiB, it also loads the module", run: "exec $H small-stack first", survives: "as m1"},
	{name: "m3", what: "stack of 16 KiB, getaddrinfo", run: "exec $H small-stack gai", survives: "as m1"},
	{name: "n", what: "10,000 short threads, one look-up each", run: "exec $H churn", survives: "Go 1.21 and later give a thread's part back", limit: 60 * time.Second},
	{name: "v1", what: "500 threads cancelled in getaddrinfo", run: "GAI=1 exec $H cancel deferred", limit: 60 * time.Second},
	{name: "v2", what: "500 threads cancelled, deferred", run: "exec $H cancel deferred", limit: 60 * time.Second},
	{name: "v3", what: "500 threads cancelled, asynchronously", run: "exec $H cancel async", limit: 60 * time.Second},

	// loading and ending
	{name: "l", what: "statically linked program", run: "exec ./static", needs: []string{"static"}},
	{name: "o", what: "valgrind, full leak check", run: "exec valgrind -q --leak-check=full --errors-for-leak-kinds=definite,possible --error-exitcode=9 $H lookup", needs: []string{"valgrind"}, limit: 60 * time.Second},
	{name: "p1", what: "dlmopen 10 times", run: "exec $H dlmopen"},
	{name: "p2", what: "dlopen and dlclose 100 times", run: "exec $H dlclose"},
	{name: "s1", what: "look-ups in atexit and in a destructor", run: "exec $H atexit", survives: "the runtime still runs"},
	{name: "s2", what: "first look-up in atexit", run: "exec $H atexit first", survives: "the runtime can still start"},

	// the file
	{name: "u1", what: "the file is truncated in place, 8 bytes at a time", run: "exec $H truncate"},
	{name: "u2", what: "FIFO, link, folder, device, empty, unreadable, none", run: "exec $H file"},
	{name: "u3", what: "3,000 replacements under 8 threads", run: "exec $H replace", survives: "a rename is atomic for a map, too", limit: 60 * time.Second},
	{name: "x", what: "every length and alignment of the buffer, before an unmapped page", run: "exec $H erange", survives: "the packing is the same C"},

	// real hosts
	{name: "b", what: "cgo Go program, 64 goroutines, GC, nil panics, profile", run: "GODEBUG=netdns=cgo exec ./cgohost", survives: twoRuns, limit: 60 * time.Second},
	{name: "h1", what: "OpenJDK -Xcheck:jni, null pointers, stack overflows, GC", run: "exec /usr/bin/java -Xcheck:jni -Xmx128m -Djava.net.preferIPv4Stack=true -cp . Hazard", needs: []string{"javac"}, limit: 60 * time.Second,
		check: func(stdout, stderr string) string {
			if strings.Contains(stdout+stderr, "handler modified") || strings.Contains(stdout+stderr, "Handler was modified") {
				return "**\"SIGSEGV handler modified!\"**"
			}
			return ""
		}},
	{name: "h2", what: "Node, 200 dns.lookup in its thread pool and in 4 children", survives: sigHandler, needs: []string{"node"}, limit: 60 * time.Second, run: `exec node -e '
const dns = require("dns").promises, cp = require("child_process");
const ask = n => Promise.all(Array.from({length: n}, () => dns.lookup("bkero", 4))).then(a => { if (a.some(x => x.address != "10.11.0.2")) process.exit(1); });
if (process.argv[1] == "child") ask(10); else ask(200).then(() => Promise.all(Array.from({length: 4}, () => new Promise(done =>
  cp.spawn(process.execPath, ["-e", "require(\"dns\").lookup(\"bkero\", 4, (e, a) => process.exit(a == \"10.11.0.2\" ? 0 : 1))"]).on("exit", done))))
).then(codes => { if (codes.some(c => c)) process.exit(1); console.log("ok"); });'`},
	{name: "h3", what: "ping", run: "ping -c 1 -W 2 bkero", needs: []string{"ping"}, survives: noHarm, says: "ok"},
	{name: "h4", what: "getent, all its databases of hosts", survives: noHarm, says: "ok", run: `
getent hosts bkero | grep -q fd00::2; getent ahosts BKERO. | grep -q 10.11.0.2; getent ahostsv4 bkero.mesh.internal | grep -q 10.11.0.2
getent hosts 10.11.0.2 | grep -q 'bkero.mesh.internal bkero'; getent hosts fd00::2 | grep -q bkero.mesh.internal; ! getent hosts nobody; getent ahosts localhost >/dev/null`},
	{name: "h5", what: "curl", survives: noHarm, needs: []string{"curl", "python3"}, hosts: "dns", run: `
(cd www && exec /usr/bin/python3 -m http.server --bind 10.11.0.2 8080 >/dev/null 2>&1) &
curl -sS --retry 50 --retry-connrefused --retry-delay 1 http://bkero:8080/index.html >/tmp/page; grep -q hello /tmp/page && echo ok`},
	{name: "h6", what: "ssh; sshd looks the client up in its children (from=\"*.mesh.internal\")", survives: "it does not always hang", needs: []string{"sshd"}, limit: 30 * time.Second, says: "ok", run: `
mount -t tmpfs -o mode=700 tmpfs ~root # a shell there would do what the machine's own says
mkdir -p /run/sshd /tmp/k && install -m 600 key /tmp/k/key && install -m 644 authorized_keys /tmp/k/authorized_keys && chmod 711 /tmp/k
$(command -v sshd || echo /usr/sbin/sshd) -o ListenAddress=10.11.0.2 -o UseDNS=yes -o StrictModes=no -o AuthorizedKeysFile=/tmp/k/authorized_keys -o PermitRootLogin=yes -E /tmp/sshd.log
for i in 1 2 3 4 5; do ssh -4 -n -b 10.11.0.3 -i /tmp/k/key -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR root@bkero true || { cat /tmp/sshd.log >&2; exit 1; }; done`},
	{name: "h7", what: "nscd answers for programs that have no module", survives: "nscd is one process that does not fork after its start", needs: []string{"nscd"}, limit: 30 * time.Second, says: "ok", run: `
mkdir -p /run/nscd && printf 'enable-cache hosts yes\npositive-time-to-live hosts 600\nnegative-time-to-live hosts 20\n' >/tmp/nscd.conf
/usr/sbin/nscd -f /tmp/nscd.conf
for i in $(seq 100); do [ -S /run/nscd/socket ] && break; sleep 0.1; done
exec unshare --mount sh -ec 'mount --bind /dev/null "$LIB/libnss_mesh.so.2"
getent hosts bkero | grep -q fd00::2; getent ahostsv4 bkero | grep -q 10.11.0.2; getent ahosts bkero | grep -q fd00::2; getent hosts 10.11.0.2 | grep -q bkero.mesh.internal; ! getent hosts nobody'`},

	// beside other modules
	{name: "y1", what: "`mesh dns`: a name of others goes on to DNS", hosts: "dns", survives: order, needs: []string{"python3"}, says: "ok", run: withDNS + `
getent hosts bkero | grep -q fd00::2; getent ahostsv4 elsewhere.example | grep -q 192.0.2.7`},
	{name: "y2", what: "`mesh [NOTFOUND=return] dns`: DNS is not asked, but it is where there is no snapshot", hosts: "authority", survives: order, needs: []string{"python3"}, says: "ok", run: withDNS + `
getent hosts bkero | grep -q fd00::2; ! getent hosts elsewhere.example; rm /run/mesh/hosts.db; getent ahostsv4 elsewhere.example | grep -q 192.0.2.7`},
	{name: "y3", what: "`dns mesh`: DNS that knows every name hides ours", hosts: "after-dns", survives: order, needs: []string{"python3"}, says: "hidden, as documented", run: withDNS + `
getent ahostsv4 bkero | grep -q 192.0.2.7`},
	{name: "y4", what: "`mesh resolve [!UNAVAIL=return] dns`, systemd-resolved runs", hosts: "resolve", survives: order, needs: []string{"resolved", "nss-resolve"}, says: "ok", limit: 30 * time.Second, run: withResolved + `
getent hosts bkero | grep -q fd00::2; getent hosts 10.11.0.2 | grep -q bkero.mesh.internal; ! getent hosts nobody.example`},
	{name: "y5", what: "`resolve [!UNAVAIL=return] mesh dns`: resolved ends the search before us", hosts: "behind", survives: order, needs: []string{"resolved", "nss-resolve"}, says: "hidden, as documented", limit: 30 * time.Second, run: withResolved + `
getent hosts v4.mesh.internal && exit 1; exit 0`},
	{name: "y6", what: "the same, resolved does not run", hosts: "behind", survives: order, needs: []string{"nss-resolve"}, says: "ok", run: "getent hosts bkero | grep -q fd00::2"},
	{name: "y7", what: "`mesh mdns4_minimal [NOTFOUND=return] dns`", hosts: "mdns", survives: order, needs: []string{"nss-mdns", "python3"}, says: "ok", run: withDNS + `
getent hosts bkero | grep -q fd00::2; getent ahostsv4 elsewhere.example | grep -q 192.0.2.7`},
	{name: "y8", what: "`mdns4_minimal [NOTFOUND=return] mesh dns`: it ends the search for .local only", hosts: "after-mdns", survives: order, needs: []string{"nss-mdns"}, says: "ok", run: `
getent hosts bkero | grep -q fd00::2; getent hosts bkero.mesh.internal | grep -q fd00::2; getent hosts 10.11.0.2 | grep -q bkero`},
	{name: "y9", what: "`mesh myhostname`: the host's own name has its address in the mesh", hosts: "myhostname", survives: order, needs: []string{"nss-myhostname"}, says: "ok", run: `
hostname v4; getent ahostsv4 v4 | grep -q 10.11.0.3; ! getent ahostsv4 v4 | grep -q 10.11.0.2; getent hosts _gateway || true`},
	{name: "y10", what: "`myhostname mesh`: the host's own name has the addresses of all interfaces", hosts: "own-name", survives: order, needs: []string{"nss-myhostname"}, says: "hidden, as documented", run: `
hostname v4; getent ahostsv4 v4 >/tmp/x; grep -q 10.11.0.2 /tmp/x; getent hosts bkero | grep -q fd00::2`},
	{name: "y11", what: "Debian's line with all of them, ours first", hosts: "debian", survives: order, needs: []string{"nss-resolve", "nss-mdns", "nss-myhostname"}, says: "ok", run: `
getent hosts bkero | grep -q fd00::2; getent hosts 10.11.0.2 | grep -q bkero.mesh.internal; getent ahosts localhost >/dev/null; ! getent hosts nobody.example`},
	{name: "y12", what: "`netgroup: files mesh`", survives: "the walk is the same C", says: "ok", run: "getent netgroup friends >/tmp/x; grep -q bkero.mesh.internal /tmp/x"},
}

const (
	// withDNS has every question over DNS answered with 192.0.2.7.
	withDNS = `/usr/bin/python3 dns.py & i=0; while [ ! -e /tmp/dns ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done
`
	// withResolved runs systemd-resolved, without a bus.
	withResolved = `mkdir -p /run/systemd
/lib/systemd/systemd-resolved >/tmp/resolved.log 2>&1 & i=0; while [ ! -S /run/systemd/resolve/io.systemd.Resolve ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done
[ -S /run/systemd/resolve/io.systemd.Resolve ] || { tail -1 /tmp/resolved.log; exit 77; }
`
)
