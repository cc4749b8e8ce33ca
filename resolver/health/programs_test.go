// SPDX-License-Identifier: MIT

//go:build linux

package health

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// served has another process of this test program serve programs as a user, at a socket in dir that is named as the user.
func served(t *testing.T, exe, dir, user string, uid int) {
	t.Helper()
	cmd := exec.Command("setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups", exe, "-test.run=^TestServer$", "-test.v")
	cmd.Env = append(os.Environ(), "MESH_TEST_SOCKET="+filepath.Join(dir, user))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	var said []byte
	b := make([]byte, 256)
	for !bytes.Contains(said, []byte("is served")) {
		n, err := out.Read(b)
		said = append(said, b[:n]...)
		if err != nil {
			t.Fatalf("the server: %v: %s", err, said)
		}
	}
	go func() { _, _ = bytes.NewBuffer(nil).ReadFrom(out) }()
}

// TestServer is the other process of TestOtherUser. It ends with its standard input.
func TestServer(t *testing.T) {
	at := os.Getenv("MESH_TEST_SOCKET")
	if at == "" {
		t.Skip("runs in other tests")
	}
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = os.Stdin.Read(make([]byte, 1)); cancel() }()
	fmt.Println("it is served")
	if err := ServePrograms(ctx, l); err != nil {
		t.Error(err)
	}
}

// TestOtherUser plays a meshd that is not root, with the capabilities of meshd.service and a key. Its programs are those of
// another user: they neither read the key nor signal or trace meshd, however they end.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	exe := program(t)
	sockets := filepath.Join(dir, "sockets")
	for path, mode := range map[string]os.FileMode{dir: 0o755, filepath.Dir(dir): 0o755, sockets: 0o777, filepath.Join(dir, "state"): 0o700} {
		_ = os.Mkdir(path, mode)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(dir, "state", "node.key")
	if err := os.WriteFile(key, []byte("SECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(key), key} {
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	served(t, exe, sockets, defaultUser, 54321)
	served(t, exe, sockets, "bin", 2)
	type run struct {
		Check
		State  State
		Output string
	}
	sh := func(user, script string) Check { return Check{Script: []string{"/bin/sh", "-c", script}, User: user} }
	const wait = Duration(300 * time.Millisecond)
	runs := []run{
		{sh("", "id -u; id -G; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status"), Passing, "54321; 54321; CapEff: 0000000000000000; NoNewPrivs: 1"},
		{sh("", "cat "+key+" 2>&1"), Warning, "Permission denied"},
		{sh("", "kill -TERM $MESHD 2>&1 || exit 1"), Warning, "ermitted"},
		{sh("", "cat /proc/$MESHD/environ 2>&1"), Warning, "Permission denied"},
		{sh("", "echo fine '| a=1'"), Passing, "fine"},
		{sh("", "echo down; exit 2"), Critical, "down"},
		{sh("", "env | sort | tr '\\n' ,"), Passing, "LC_ALL=C,MESHD="},
		{sh("", "pwd"), Passing, "/"},
		{sh("", "kill -SEGV $$"), Critical, "ended by signal: segmentation fault"},
		{sh("", "yes 0123456789 | head -c 50000000; exit 1"), Warning, "0123456789; 0123456789"},
		{sh("", "mkfifo /tmp/mesh-test-$$; exec 3<>/tmp/mesh-test-$$; rm /tmp/mesh-test-$$; echo so far; read x <&3"), Unknown, "did not end in time and was killed: so far"},
		{Check{Script: []string{"/nonesuch"}}, Critical, "/nonesuch does not exist"},
		{sh("bin", "id -u"), Passing, "2"},
		{sh("bin", "cat "+key+" 2>&1"), Warning, "Permission denied"},
		{sh("daemon", "id -u"), Unknown, "systemctl enable --now meshd-check@daemon.socket"},
		{sh("root", "id -u"), Unknown, "nobody runs programs as the user root"},
		{sh("nobody", "id -u; cat "+key), Passing, "65534; SECRET"}, // this meshd's own user, as was said
	}
	for i := range runs {
		runs[i].Timeout = wait
		if runs[i].State != Unknown {
			runs[i].Timeout = 0
		}
	}
	in, err := json.Marshal(runs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin,+net_bind_service", "--ambient-caps=+net_admin,+net_bind_service", exe, "-test.run=^TestOtherUsersPrograms$", "-test.v")
	cmd.Env = append(os.Environ(), "MESH_TEST_SOCKETS="+sockets)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestOtherUsersPrograms") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOtherUsersPrograms is the other process of TestOtherUser, meshd's.
func TestOtherUsersPrograms(t *testing.T) {
	sockets := os.Getenv("MESH_TEST_SOCKETS")
	if sockets == "" {
		t.Skip("runs in other tests")
	}
	var runs []struct {
		Check
		State  State
		Output string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&runs); err != nil || len(runs) == 0 {
		t.Fatal(err)
	}
	r := New(Config{Programs: sockets, Env: []string{fmt.Sprintf("MESHD=%d", os.Getpid())}})
	for _, c := range runs {
		expect(t, fmt.Sprintf("%s of %q", c.Script[len(c.Script)-1], c.User), find(t, r, c.Check), c.State, c.Output)
	}
}

// A program that is handed over ends with who has handed it over, and a server that says nonsense is no danger.
func TestHandedOver(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- ServePrograms(ctx, l) }()
	fifo := filepath.Join(dir, "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conn, err := net.Dial("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(conn).Encode(order{Argv: []string{"/bin/sh", "-c", "echo begun >" + fifo + "; exec sleep 1000 >" + fifo}, Env: []string{"PATH=" + path}, Dir: "/"}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	conn.Close() // as when meshd is killed
	for {        // until nobody has the pipe
		if n, _ := f.Read(make([]byte, 6)); n == 0 {
			break
		}
	}
	for _, text := range []string{"", "x", "{}", `{"argv":["ls"],"dir":"/"}`, `{"argv":["/bin/ls"]}`, `{"argv":[]}`, strings.Repeat(" ", 1000), `{"argv":["/bin/ls\u0000"],"dir":"/"}`} {
		conn, err := net.Dial("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(text + "\n"))
		_ = conn.(*net.UnixConn).CloseWrite()
		var o outcome
		if err := json.NewDecoder(conn).Decode(&o); err != nil || o.Err == "" {
			t.Errorf("%q: %+v, %v", text, o, err)
		}
		conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	l, err = net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for answer, want := range map[string]string{"": "gave no answer", "nonsense": "gave no answer", `{"code":7}`: "exit status 7", `{"err":"\u001b[31mred"}`: "[31mred",
		`{"out":"` + strings.Repeat("A", 10*maxOutcome) + `"}`: "gave no answer"} {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_ = json.NewDecoder(conn).Decode(new(order))
			_, _ = conn.Write([]byte(answer))
		}()
		res := script(t.Context(), command{argv: []string{"/bin/true"}, dir: "/", user: "x", at: at})
		expect(t, head(answer, 20), res, Critical, want)
		if strings.ContainsRune(res.output, '\x1b') {
			t.Errorf("%q", res.output)
		}
	}
}

func FuzzOrder(f *testing.F) {
	for _, s := range []string{`{"argv":["/bin/true","x"],"env":["A=b"],"dir":"/"}`, `{"argv":["true"],"dir":"/"}`, `{"argv":[],"dir":""}`, "null", "{"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readOrder(bytes.NewReader(b))
		if err == nil && (len(c.argv) == 0 || !filepath.IsAbs(c.argv[0]) || !filepath.IsAbs(c.dir) || c.at != "" || !slices.Contains([]string{"", "root"}, c.user)) {
			t.Errorf("%q became %+v", b, c)
		}
	})
}
