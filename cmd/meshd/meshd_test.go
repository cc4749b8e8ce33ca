// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// programs are the real programs, built once.
var programs = map[string]string{"mesh": "/usr/bin/mesh", "meshd": "/usr/sbin/meshd", "meshd-etcd": "/usr/sbin/meshd-etcd"}

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "meshd")
	if err == nil && lab.Problem() == nil && !testing.Short() {
		for name := range programs {
			build := exec.Command("go", "build", "-tags", "netgo,osusergo", "-o", filepath.Join(dir, name), "mesh.internal/mesh/cmd/"+name)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, e := build.CombinedOutput(); e != nil {
				err = errors.Join(err, e, errors.New(string(out)))
			}
		}
	}
	built = dir
	code := 1
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

var built string

// internet is a lab with a router, to which hosts can be attached.
func internet(t *testing.T) (*lab.Lab, *lab.Host) {
	if testing.Short() {
		t.Skip("runs the programs as they are shipped, which the race detector does not see")
	}
	lab.Require(t)
	l := lab.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	router, err := l.Router("internet")
	if err != nil {
		t.Fatal(err)
	}
	return l, router
}

// attach makes a host with the programs.
func attach(t *testing.T, l *lab.Lab, router *lab.Host, name string) (*lab.Host, *lab.Link) {
	t.Helper()
	h, err := l.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	link, err := l.Connect(h, router)
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range programs {
		if err := h.Install(filepath.Join(built, name), path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h, link
}

// machine is a host with the programs, reachable by nobody.
func machine(t *testing.T) *lab.Host {
	l, router := internet(t)
	h, _ := attach(t, l, router, "spencer")
	return h
}

// say runs a shell command inside, and returns all that it says and whether it succeeded.
func say(t *testing.T, h *lab.Host, command string) (string, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "sh", "-c", command).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s did not end: %s", command, out)
	}
	return string(out), err == nil
}

func must(t *testing.T, h *lab.Host, command string) string {
	t.Helper()
	out, ok := say(t, h, command)
	if !ok {
		t.Fatalf("%s: %s", command, out)
	}
	return out
}

// until repeats a command until it says what is wanted.
func until(t *testing.T, h *lab.Host, what, command, want string) {
	t.Helper()
	begin := time.Now()
	for out := ""; !strings.Contains(out, want); out, _ = say(t, h, command) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%s: %s", what, out)
		}
	}
}

// up starts meshd and waits until its API answers.
func up(t *testing.T, h *lab.Host, args ...string) *lab.Process {
	t.Helper()
	p, err := h.Start("meshd", args...)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for {
		out, ok := say(t, h, "mesh status")
		if ok {
			return p
		}
		select {
		case <-p.Done():
			t.Fatalf("meshd ended: %s", p.Output())
		default:
		}
		if time.Since(begin) > 15*time.Second {
			t.Fatalf("meshd does not come up: %s %s", out, p.Output())
		}
	}
}

// TestWhatIsWrongIsSaid breaks what meshd starts from. Each time it must end with one line that says what to do.
func TestWhatIsWrongIsSaid(t *testing.T) {
	h := machine(t)
	daemon := func(what, command string, want ...string) {
		t.Helper()
		out, ok := say(t, h, command)
		last := strings.TrimSpace(out)
		last = last[strings.LastIndexByte(last, '\n')+1:]
		if ok || !strings.HasPrefix(last, "meshd") {
			t.Errorf("%s: %q, success %v", what, out, ok)
		}
		for _, w := range want {
			if !strings.Contains(last, w) {
				t.Errorf("%s: it says %q, want %q in it", what, last, w)
			}
		}
	}
	daemon("nothing configured", "meshd", "/etc/mesh/mesh.toml does not exist", "mesh init")
	daemon("nothing configured", "meshd-etcd", "/etc/mesh/mesh.toml does not exist", "mesh init")
	if out, ok := say(t, h, "mesh status"); ok || !strings.Contains(out, "meshd is not running") {
		t.Errorf("status without a daemon: %s", out)
	}
	must(t, h, "mesh init --name spencer")
	if out := must(t, h, "stat -c '%a' /var/lib/mesh /var/lib/mesh/*.key"); strings.Trim(out, "\n0123456789") != "" || strings.Contains(out, "644") || !strings.HasPrefix(out, "700\n600\n") {
		t.Errorf("modes of the state directory and its keys: %s", out)
	}
	if out, ok := say(t, h, "mesh init --name again"); ok || !strings.Contains(out, "is on a mesh already") {
		t.Errorf("a second init: %s", out)
	}

	must(t, h, "cp /etc/mesh/mesh.toml /run/good.toml; sed -i '3i colour = \"red\"' /etc/mesh/mesh.toml")
	daemon("an unknown key", "meshd", "/etc/mesh/mesh.toml:3: unknown key", "colour")
	daemon("an unknown key", "meshd -check", "unknown key")
	must(t, h, "sed 's/^port =.*/port = 99999/' /run/good.toml >/etc/mesh/mesh.toml")
	daemon("a bad value", "meshd", "port: 99999")
	must(t, h, "cp /run/good.toml /etc/mesh/mesh.toml; cp /var/lib/mesh/node.crt /run; echo x >/var/lib/mesh/node.crt")
	daemon("a damaged certificate", "meshd", "/var/lib/mesh/node.crt", "restore it from a backup")
	must(t, h, "cp /run/node.crt /var/lib/mesh; cp /var/lib/mesh/node.key /run; echo x >/var/lib/mesh/node.key")
	daemon("a damaged key", "meshd", "/var/lib/mesh/node.key is damaged", "join again")
	must(t, h, "cp /run/node.key /var/lib/mesh; meshd -check")

	daemon("no rights", "chmod 755 /run /var/lib/mesh; chmod 644 /var/lib/mesh/*; setpriv --reuid 65534 --clear-groups meshd --run /tmp/meshd-test-$$; r=$?; rm -rf /tmp/meshd-test-$$; chmod 700 /var/lib/mesh; exit $r", "not permitted", "CAP_NET_ADMIN")
	daemon("no TUN", "mount -t tmpfs none /dev/net && meshd", "/dev/net/tun does not exist", "modprobe tun")
	must(t, h, "umount /dev/net")

	p := up(t, h)
	daemon("another meshd", "meshd", "the interface mesh0 exists already")
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	for network, want := range map[string]string{"udp4": "UDP port 7655 is in use", "tcp4": "TCP port 7655 is in use"} {
		var closer interface{ Close() error }
		err := h.Do(func() (err error) { closer, err = occupy(network, netip.MustParseAddrPort("0.0.0.0:7655")); return err })
		if err != nil {
			t.Fatal(err)
		}
		daemon(network+" port in use", "meshd", want, "port = ")
		closer.Close()
	}
	if out := must(t, h, "ip -brief link"); strings.Contains(out, "mesh0") {
		t.Errorf("the interface is left: %s", out)
	}
}

// TestManners ends and reloads a running meshd, kills it, and starts it again.
func TestManners(t *testing.T) {
	h := machine(t)
	must(t, h, "mesh init --name spencer")
	before := must(t, h, "ip -brief link; ip -brief addr; ip route; ip -6 route")
	p := up(t, h)
	if out := must(t, h, "mesh status | cat"); strings.Contains(out, "\x1b") {
		t.Errorf("colours in a pipe: %q", out)
	}
	must(t, h, "echo 'public = [\"203.0.113.9\"]' >/run/p; grep -v ^public /etc/mesh/mesh.toml >>/run/p; cp /run/p /etc/mesh/mesh.toml")
	p.Signal(syscall.SIGHUP)
	for begin := time.Now(); !strings.Contains(must(t, h, "mesh status"), "203.0.113.9:7655"); {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("SIGHUP had no effect: %s", p.Output())
		}
	}
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.Output())
	}
	if after := must(t, h, "ip -brief link; ip -brief addr; ip route; ip -6 route"); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	p = up(t, h)
	p.Signal(syscall.SIGKILL)
	p.Wait(t.Context())
	up(t, h)
	if out := must(t, h, "mesh snapshot dump /run/mesh/hosts.db"); !strings.Contains(out, "spencer.mesh.internal") {
		t.Errorf("snapshot: %s", out)
	}
}

// TestStoreComesAndGoes adds names while there is no store, one that runs, and one that was killed.
func TestStoreComesAndGoes(t *testing.T) {
	h := machine(t)
	must(t, h, "mesh init --name spencer")
	up(t, h)
	if out := must(t, h, "mesh host add early 10.11.7.1 2>&1"); !strings.Contains(out, "The store is away") {
		t.Errorf("without a store: %q", out)
	}
	until := func(what, command, want string) { t.Helper(); until(t, h, what, command, want) }
	etcd, err := h.Start("meshd-etcd")
	if err != nil {
		t.Fatal(err)
	}
	until("what waited lands", "mesh hosts", "early")
	if out := must(t, h, "mesh host add printer 10.11.7.2 2>&1 && mesh hosts --format hosts"); strings.Contains(out, "away") || !strings.Contains(out, "10.11.7.2\tprinter.mesh.internal\tprinter") {
		t.Errorf("with a store: %q", out)
	}
	if out, ok := say(t, h, "mesh host add spencer 10.11.7.3"); ok || !strings.Contains(out, "taken") {
		t.Errorf("a node's name for another: %s", out)
	}
	if out, ok := say(t, h, "mesh host add nas 192.0.2.1"); ok || !strings.Contains(out, "outside the mesh") {
		t.Errorf("an address of others: %s", out)
	}
	etcd.Signal(syscall.SIGKILL)
	etcd.Wait(t.Context())
	until("the loss is shown", "mesh status", "unreachable")
	must(t, h, "mesh hosts | grep printer && mesh host rm printer")
	if etcd, err = h.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until("all is well again", "mesh status", "ok, revision")
	until("the removal has landed", "mesh hosts | grep -c printer", "0")
	etcd.Signal(syscall.SIGTERM)
	if err := etcd.Wait(t.Context()); err != nil {
		t.Errorf("meshd-etcd after SIGTERM: %v\n%s", err, etcd.Output())
	}
}
