// SPDX-License-Identifier: MIT

//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crashing, set in the environment, makes TestCrash the program that is killed.
const crashing = "MESH_LAB_CRASHING"

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// pair makes two hosts at one router.
func pair(t *testing.T) (l *Lab, a, b *Host, la, lb *Link) {
	t.Helper()
	Require(t)
	l = New(testLog(t))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	router, err := l.Router("internet")
	if err != nil {
		t.Fatal(err)
	}
	host := func(name string) (*Host, *Link) {
		h, err := l.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		link, err := l.Connect(h, router)
		if err != nil {
			t.Fatal(err)
		}
		return h, link
	}
	a, la = host("spencer")
	b, lb = host("bkero")
	return l, a, b, la, lb
}

// exchange sends a datagram from one host to an address of another and reports whether it arrived.
func exchange(t *testing.T, from, to *Host, addr netip.Addr, limit time.Duration) bool {
	t.Helper()
	var server, client net.PacketConn
	listen := func(conn *net.PacketConn, network, at string) func() error {
		return func() (err error) {
			*conn, err = net.ListenPacket(network, at)
			return err
		}
	}
	if err := to.Do(listen(&server, "udp", net.JoinHostPort(addr.String(), "0"))); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	network := "udp4"
	if addr.Is6() {
		network = "udp6"
	}
	if err := from.Do(listen(&client, network, ":0")); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.WriteTo([]byte("x"), server.LocalAddr()) // an unreachable network shows at the other end
	server.SetReadDeadline(time.Now().Add(limit))
	_, _, err := server.ReadFrom(make([]byte, 8))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// arrives retries exchange: a link that was put back needs a moment.
func arrives(t *testing.T, from, to *Host, addr netip.Addr) bool {
	t.Helper()
	for range 50 {
		if exchange(t, from, to, addr, 100*time.Millisecond) {
			return true
		}
	}
	return false
}

func TestHostsReachEachOther(t *testing.T) {
	_, a, b, la, lb := pair(t)
	addrs := []netip.Addr{lb.Addr4}
	if haveIPv6() {
		addrs = append(addrs, lb.Addr6)
	}
	for _, addr := range addrs {
		if !arrives(t, a, b, addr) {
			t.Errorf("%v: nothing arrived", addr)
		}
		if err := la.Cut(); err != nil {
			t.Fatal(err)
		}
		if exchange(t, a, b, addr, 100*time.Millisecond) {
			t.Errorf("%v: a packet went over a cut link", addr)
		}
		if err := la.Restore(); err != nil {
			t.Fatal(err)
		}
		if !arrives(t, a, b, addr) {
			t.Errorf("%v: nothing arrived after the link was restored", addr)
		}
	}
}

func TestHostIsIsolated(t *testing.T) {
	ctx := t.Context()
	_, a, b, _, _ := pair(t)
	for _, path := range []string{"/etc/nsswitch.conf", "/etc/mesh/mesh.toml", "/var/lib/mesh/key", "/usr/bin/lab-probe", "/run/mesh/hosts.db"} {
		before, beforeErr := os.ReadFile(path)
		if err := a.WriteFile(path, []byte("only here"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := a.ReadFile(path); err != nil || string(got) != "only here" {
			t.Errorf("%s inside: %q, %v", path, got, err)
		}
		after, afterErr := os.ReadFile(path)
		if !bytes.Equal(before, after) || (beforeErr == nil) != (afterErr == nil) {
			t.Errorf("%s on the machine: %q, %v; before: %q, %v", path, after, afterErr, before, beforeErr)
		}
		if other, err := b.ReadFile(path); string(other) == "only here" {
			t.Errorf("%s is in another host too: %v", path, err)
		}
	}
	for _, c := range []struct{ command, want string }{
		{"hostname", "spencer\n"},
		{"cat /etc/hostname", "spencer\n"},
		{"ls /sys/class/net", "eth0\nlo\n"},
		{"ls -d /proc/1 /run/*", "/proc/1\n/run/mesh\n"},
		{"cat /proc/1/comm", "cat\n"},
		{"grep hosts: /etc/nsswitch.conf || echo ours", "ours\n"},
	} {
		if got, err := a.Run(ctx, "sh", "-c", c.command); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.command, got, err, c.want)
		}
	}
	if got, _ := b.Run(ctx, "grep", "hosts:", "/etc/nsswitch.conf"); got != "hosts: files mesh dns\n" {
		t.Errorf("nsswitch.conf says %q", got)
	}
	if name, err := os.Hostname(); err != nil || name == "spencer" {
		t.Errorf("the machine is now called %q, %v", name, err)
	}
}

// An unknown name must fail at once: what is tested in a host must not wait for DNS.
func TestUnknownNameFailsAtOnce(t *testing.T) {
	_, a, _, _, _ := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var exit *exec.ExitError
	if out, err := a.Run(ctx, "getent", "ahosts", "bkero"); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("getent: %q, %v; want exit status 2", out, err)
	}
	if out, err := a.Run(ctx, "getent", "hosts", "localhost"); err != nil || !strings.Contains(out, "::1") {
		t.Errorf("getent localhost: %q, %v", out, err)
	}
}

func TestCommand(t *testing.T) {
	_, a, _, _, _ := pair(t)
	if err := a.WriteFile("/usr/local/bin/only-here", []byte("#!/bin/sh\necho out; echo err >&2; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := a.Run(t.Context(), "only-here")
	var exit *exec.ExitError
	if out != "out\n" || !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(err.Error(), ": err") {
		t.Errorf("only-here: %q, %v", out, err)
	}
	if _, err := a.Run(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no-such-program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := a.Command(ctx, "sh", "-c", "sleep 1000 & echo started; wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(stdout).ReadString('\n')
	cancel()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) && !errors.As(err, &exit) {
		t.Errorf("a cancelled command ended with %v", err)
	}
	if out, err := a.Run(t.Context(), "sh", "-c", "cat /proc/[0-9]*/comm"); err != nil || strings.Contains(out, "sleep") {
		t.Errorf("left behind by a cancelled command: %q, %v", out, err)
	}
}

func TestProcess(t *testing.T) {
	_, a, _, _, _ := pair(t)
	p, err := a.Start("sh", "-c", `trap "echo bye; exit 0" TERM; : >/run/ready; while :; do :; done`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Run(t.Context(), "sh", "-c", "until test -e /run/ready; do :; done"); err != nil {
		t.Fatal(err)
	}
	pid, err := p.PID()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Run(t.Context(), "sh", "-c", fmt.Sprintf("kill %d", pid)); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Errorf("ended with %v", err)
	}
	if out := p.Output(); !strings.HasSuffix(out, "bye\n") {
		t.Errorf("output %q", out)
	}
	if _, err := a.Start("no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no-such-program: %v", err)
	}
}

// The kernel reaps what its parent left to the holder: a test that looks for a process must not meet a zombie.
func TestOrphansAreReaped(t *testing.T) {
	_, a, _, _, _ := pair(t)
	out, err := a.Run(t.Context(), "sh", "-c", `(sh -c 'echo $$ >/run/orphan' &); until test -s /run/orphan; do :; done
		pid=$(cat /run/orphan); i=0; while test -e /proc/$pid && test $i -lt 100000; do i=$((i+1)); done; test ! -e /proc/$pid`)
	if err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestInstall(t *testing.T) {
	_, a, _, _, _ := pair(t)
	lib, err := LibDir()
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(lib + "/libc.so.6"); len(found) != 1 {
		t.Fatalf("no C library in %s", lib)
	}
	from := filepath.Join(t.TempDir(), "module")
	if err := os.WriteFile(from, []byte("module"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := lib + "/libnss_lab_probe.so.2"
	if err := a.Install(from, to, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := a.Run(t.Context(), "stat", "-c", "%a %s", to); err != nil || out != "644 6\n" {
		t.Errorf("inside: %q, %v", out, err)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on the machine: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := machine(t)
	l, a, b, _, _ := pair(t)
	for _, h := range []*Host{a, b} {
		if _, err := h.Start("sleep", "1000"); err != nil {
			t.Fatal(err)
		}
	}
	var namespaces []string
	for _, h := range l.hosts {
		namespaces = append(namespaces, namespace(t, h.PID))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, namespaces)
	if after := machine(t); after != before {
		t.Errorf("the machine has changed:\n%s\nbefore:\n%s", after, before)
	}
	if _, err := l.Host("late"); err == nil {
		t.Error("a closed lab makes hosts")
	}
}

// TestCrash kills a program that has a lab, in the middle of its work.
func TestCrash(t *testing.T) {
	if os.Getenv(crashing) != "" {
		crash(t)
	}
	Require(t)
	before := machine(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestCrash$")
	cmd.Env = append(os.Environ(), crashing+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var pidfds []int
	var namespaces []string
	for out := bufio.NewScanner(stdout); len(pidfds) < 4 && out.Scan(); {
		pid, err := strconv.Atoi(out.Text())
		if err != nil {
			t.Fatalf("the program that will be killed says: %s", out.Text())
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		pidfds = append(pidfds, fd)
		namespaces = append(namespaces, namespace(t, pid))
	}
	if len(pidfds) != 4 {
		t.Fatalf("the program that will be killed named %d processes", len(pidfds))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, fd := range pidfds {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); n != 1 {
			t.Fatalf("a process is left 5 s after the program was killed (%v)", err)
		}
	}
	gone(t, namespaces)
	if after := machine(t); after != before {
		t.Errorf("the machine has changed:\n%s\nbefore:\n%s", after, before)
	}
}

// crash makes three hosts and a process, names the four processes, and waits to be killed.
func crash(t *testing.T) {
	l, a, _, _, _ := pair(t)
	p, err := a.Start("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.hosts {
		fmt.Println(h.PID)
	}
	fmt.Println(p.cmd.Process.Pid)
	<-p.Done()
}

// Hosts of a detached lab stay until their holders are killed.
func TestDetach(t *testing.T) {
	l, a, _, _, _ := pair(t)
	p, err := a.Start("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	hosts := slices.Clone(l.hosts)
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	var namespaces []string
	for _, h := range hosts {
		namespaces = append(namespaces, namespace(t, h.PID))
	}
	if out, err := a.Run(t.Context(), "hostname"); err != nil || out != "spencer\n" {
		t.Errorf("in a detached host: %q, %v", out, err)
	}
	for _, h := range hosts {
		if err := unix.Kill(h.PID, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if err := p.Wait(t.Context()); err == nil {
		t.Error("the process ended by itself")
	}
	for _, h := range hosts {
		if err := h.wait(); err != nil {
			t.Error(err)
		}
	}
	gone(t, namespaces)
}

// machine describes what a lab could have changed on the machine.
func machine(t *testing.T) string {
	t.Helper()
	links, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(links)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ") + "\n" + string(mounts)
}

// namespace names the network of a process.
func namespace(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// gone checks that no process is in one of the networks.
func gone(t *testing.T, namespaces []string) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if name, err := os.Readlink(p); err == nil && slices.Contains(namespaces, name) {
			t.Errorf("%s is still in %s", p, name)
		}
	}
}
