// SPDX-License-Identifier: MIT

//go:build unix

package health

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// plugins is where Debian's monitoring-plugins-basic has them.
const plugins = "/usr/lib/nagios/plugins/"

func me() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return ""
}

func TestScript(t *testing.T) {
	const wait = Duration(300 * time.Millisecond)
	r := New(Config{Env: []string{"MESH_NODE=bkero"}})
	t.Setenv("SECRET", "of meshd")
	none := t.TempDir()
	for _, c := range []struct {
		what   string
		script string // of sh
		limit  Duration
		state  State
		output string
	}{
		{"ok", "echo 'fine | a=1'", 0, Passing, "fine"},
		{"warning", "echo slow; exit 1", 0, Warning, "slow"},
		{"critical", "echo down; exit 2", 0, Critical, "down"},
		{"unknown", "echo who; exit 3", 0, Unknown, "who"},
		{"no plugin's status", "echo what; exit 4", 0, Critical, "exit status 4 is not a plugin's (0 to 3): what"},
		{"a command that is not there", "nonesuch", 0, Critical, "exit status 127 is not a plugin's"},
		{"a signal", "kill -SEGV $$", 0, Critical, "ended by signal: segmentation fault"},
		{"says nothing", "exit 2", 0, Critical, "no output, exit status 2"},
		{"standard error", "echo oops >&2; exit 2", 0, Critical, "oops"},
		{"both", "echo noise >&2; echo said", 0, Passing, "said"},
		{"the environment", "env | sort | tr '\\n' ,", 0, Passing, "LC_ALL=C,MESH_CHECK=,MESH_NODE=bkero,MESH_SERVICE=web,PATH=" + path + ",PWD=/"},
		{"the group", "ps -o pgid= -p $$ | tr -d ' ' | grep -x $$ >/dev/null && echo own", 0, Passing, "own"},
		{"much", "yes 0123456789 | head -c 50000000; exit 1", 0, Warning, "0123456789; 0123456789"},
		{"binary", "head -c 100000 /dev/urandom; exit 1", 0, Warning, ""},
		{"reads", "cat; echo nothing to read", 0, Passing, "nothing to read"},
		{"hangs", "exec cat " + none + "/fifo", wait, Unknown, "did not end in time"},
		{"hangs, having said something", "echo so far; exec cat " + none + "/fifo", wait, Unknown, "was killed: so far"},
		{"ignores SIGTERM", "trap '' TERM HUP INT; cat " + none + "/fifo", wait, Unknown, "was killed"},
		{"a child holds the pipe", "cat " + none + "/fifo & echo left one behind", 0, Passing, "left one behind"},
		{"a child holds the pipe and hangs", "cat " + none + "/fifo & cat " + none + "/fifo", wait, Unknown, "was killed"},
		{"a child in another session holds the pipe", "setsid sh -c 'echo $$ >" + none + "/pid; exec cat " + none + "/fifo' & read x <" + none + "/started; echo gone astray", 0, Passing, "gone astray"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if strings.Contains(c.script, "setsid") && runtime.GOOS != "linux" {
				t.Skip("no setsid(1)")
			}
			for _, fifo := range []string{"fifo", "started"} {
				_ = os.Remove(filepath.Join(none, fifo))
				if err := syscall.Mkfifo(filepath.Join(none, fifo), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if strings.Contains(c.script, "started") {
				go func() { _ = os.WriteFile(filepath.Join(none, "started"), []byte("x\n"), 0o600) }()
			}
			begun := time.Now()
			res := find(t, r, Check{Script: []string{"/bin/sh", "-c", c.script}, Timeout: c.limit, User: me()})
			expect(t, c.what, res, c.state, c.output)
			if d := time.Since(begun); c.limit != 0 && d > 5*time.Second {
				t.Errorf("it took %s", d)
			}
			if len(res.output) > maxOutput {
				t.Errorf("%d bytes", len(res.output))
			}
			if b, err := os.ReadFile(filepath.Join(none, "pid")); err == nil {
				if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				_ = os.Remove(filepath.Join(none, "pid"))
			}
		})
	}
}

// A program that cannot be started is critical, and says what to do.
func TestScriptNotStarted(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"plain": "#!/bin/sh\n", "odd": "#!/nonesuch\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "odd"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := New(Config{})
	for name, want := range map[string]string{"gone": "does not exist", "plain": "chmod 755", "odd": "interpreter"} {
		expect(t, name, find(t, r, Check{Script: []string{filepath.Join(dir, name)}, User: me()}), Critical, want)
	}
	want := "unknown user"
	if os.Geteuid() != 0 {
		want = "meshd is not root"
	}
	expect(t, "another user", find(t, r, Check{Script: []string{"/bin/true"}, User: "no-such-user"}), Critical, want)
}

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return l, port
}

// Monitoring plugins as Debian has them, as root where the test is: they run as nobody.
func TestPlugins(t *testing.T) {
	if _, err := os.Stat(plugins + "check_dummy"); err != nil {
		t.Skip("needs monitoring-plugins-basic")
	}
	l, port := listen(t)
	defer l.Close()
	r := New(Config{})
	for _, c := range []struct {
		argv   string
		state  State
		output string
		perf   string
	}{
		{"check_dummy 0 fine", Passing, "OK: fine", ""},
		{"check_dummy 1 slow", Warning, "WARNING: slow", ""},
		{"check_dummy 2 down", Critical, "CRITICAL: down", ""},
		{"check_dummy 3 who", Unknown, "UNKNOWN: who", ""},
		{"check_dummy 7", Unknown, "Status 7 is not a supported error state", ""},
		{"check_tcp -H 127.0.0.1 -p " + port, Passing, "TCP OK", "time="},
		{"check_tcp -H 127.0.0.1 -p 1", Critical, "onnection refused", ""},
		{"check_procs -c 1:", Passing, "PROCS OK", "procs="},
		{"check_load -w 1000 -c 2000", Passing, "", "load1="},
		{"check_http -H 127.0.0.1 -p 1", Critical, "onnect", ""},
		{"check_http --nonsense", Unknown, "", ""},
		{"negate " + plugins + "check_dummy 0 x", Critical, "OK: x", ""},
	} {
		argv := strings.Fields(c.argv)
		argv[0] = plugins + argv[0]
		res := find(t, r, Check{Script: argv})
		expect(t, c.argv, res, c.state, c.output)
		if !strings.Contains(res.perf, c.perf) {
			t.Errorf("%s: performance data %q, want %q", c.argv, res.perf, c.perf)
		}
	}
}

// Everything has ended when Run returns, and a program that hangs does not hold it.
func TestRunEnds(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	set(t, r, map[string][]Check{"web": {{Script: []string{"/bin/sh", "-c", "trap '' TERM; echo $$ >" + fifo + "; cat " + fifo}, User: me()}}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	b, err := os.ReadFile(fifo) // returns when the script has said its number
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the program is still there")
	}
	if s := r.Checks()[0]; s.Result != "" {
		t.Errorf("what was cut off counts: %+v", s)
	}
}

// A program of on_change runs after every change, with what has happened, and one that fails is logged.
func TestOnChange(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	hook := []string{"/bin/sh", "-c", "echo $MESH_SERVICE $MESH_CHECK ${MESH_FROM:-new} $MESH_TO $MESH_OUTPUT $EXTRA >" + fifo + "; echo out; exit 5"}
	set(t, r, map[string][]Check{"job": {{TTL: second * 60, OnChange: hook, User: me(), Env: map[string]string{"EXTRA": "x"}}}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	for _, c := range []struct {
		state State
		want  string
	}{{Critical, "job ttl new critical it is x"}, {Passing, "job ttl critical passing it is x"}} {
		if err := r.Report("job", c.state, "it is"); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(fifo)
		if err != nil || strings.TrimSpace(string(b)) != c.want {
			t.Errorf("%q, %v, want %q", b, err, c.want)
		}
	}
	cancel()
	<-ended
	if !strings.Contains(log.String(), "exit status 5") {
		t.Error(log.String())
	}
}

// program is a copy of this test program that every user may run.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), "health.test")
	for dir := filepath.Dir(exe); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return exe
}

// helper runs this test program as another process, which prints what f's script has said.
func helper(t *testing.T, wrap []string, script string) string {
	t.Helper()
	cmd := exec.Command(wrap[0], append(append([]string{}, wrap[1:]...), program(t), "-test.run=^TestHelper$", "-test.v")...)
	cmd.Env = append(os.Environ(), "MESH_TEST_SCRIPT="+script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestHelper(t *testing.T) {
	script := os.Getenv("MESH_TEST_SCRIPT")
	if script == "" {
		t.Skip("runs in other tests")
	}
	r := New(Config{})
	for range 20 { // on any thread
		res := find(t, r, Check{Script: []string{"/bin/sh", "-c", script}})
		t.Log(res.state, res.output)
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
			t.Log("self", strings.TrimSpace(line))
		}
	}
}

// A program of meshd's user with ambient capabilities, as in meshd.service, has none of them; meshd keeps its own. One
// of root's is nobody's.
func TestPrivileges(t *testing.T) {
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root on Linux")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip(err)
	}
	const show = `grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status`
	out := helper(t, []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin,+net_bind_service", "--ambient-caps=+net_admin,+net_bind_service"}, show)
	zero := "0000000000000000"
	want := "passing Uid: 65534 65534 65534 65534; Gid: 65534 65534 65534 65534; Groups:; CapInh: " + zero + "; CapPrm: " + zero + "; CapEff: " + zero + "; CapAmb: " + zero + "; NoNewPrivs: 1"
	nobody := strings.Replace(want, "Groups:;", "Groups: 65534;", 1)
	if n := strings.Count(out, want); n != 20 {
		t.Errorf("%d of 20 programs have no capabilities:\n%s", n, out)
	}
	for _, own := range []string{"self CapAmb:\t0000000000001400", "self CapEff:\t0000000000001400", "self NoNewPrivs:\t0"} {
		if !strings.Contains(out, own) {
			t.Errorf("meshd itself has not %q:\n%s", own, out)
		}
	}
	out = helper(t, []string{"setpriv", "--clear-groups"}, show)
	if n := strings.Count(out, nobody); n != 20 {
		t.Errorf("%d of 20 programs are nobody's:\n%s", n, out)
	}
}

// BenchmarkScript is what it costs to run a program, and how much of that is giving up capabilities.
func BenchmarkScript(b *testing.B) {
	r := New(Config{})
	for b.Loop() {
		if res := script(b.Context(), r.command("web", Check{User: me()}, []string{"/bin/true"})); res.state != Passing {
			b.Fatal(res)
		}
	}
}

func BenchmarkPlain(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
