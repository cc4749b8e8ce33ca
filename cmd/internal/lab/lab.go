// SPDX-License-Identifier: MIT

// Package lab makes test hosts out of namespaces: each has its own network, mounts, processes and host name, on the
// machine's own programs and libraries.
//
// A host lives exactly as long as its holder, a shell that is process 1 of the host's pid namespace and waits on a pipe
// whose other end only this program has. When the pipe closes, the holder ends and the kernel kills everything in the
// host; mounts, interfaces and addresses go with the last process. So Close, a panic, SIGINT and SIGKILL of this program
// all leave the same: nothing. No name is registered anywhere, so any number of labs run side by side.
//
// What a host may change is its own: /etc, /var, /usr are overlays and /run a tmpfs, all in memory. The machine's own
// files, interfaces, services and names are never touched. The rest of the file system, /tmp included, is the machine's.
//
//	198.18.1.0/24, fd00:198:18:1::/64        198.18.2.0/24, fd00:198:18:2::/64
//	   spencer .2 ───────────────── .1 router .1 ───────────────── .2 bkero
//
// Where that is too plain, a router has Subnets into which hosts and other routers are plugged, and may be a NAT.
//
// The package starts one goroutine for each process given to Start; it ends with that process. Close waits for them.
package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lab is a set of hosts that end together.
type Lab struct {
	log *slog.Logger

	mu      sync.Mutex // guards the rest
	hosts   []*Host
	subnets int // subnets handed out by Connect
	closed  bool
}

// New returns a lab without hosts.
func New(log *slog.Logger) *Lab {
	return &Lab{log: log}
}

// Problem returns why hosts cannot be made here, nil where they can.
func Problem() error {
	if os.Geteuid() != 0 {
		return errors.New("making test hosts needs root")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("making tunnels needs TUN: %w", err)
	}
	tun.Close()
	probe := exec.Command("/bin/sh", "-c", "mount -t tmpfs lab /run")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: cloneFlags, Unshareflags: unix.CLONE_NEWNS}
	if out, err := probe.CombinedOutput(); err != nil {
		return fmt.Errorf("making namespaces is not permitted here: %w %s", err, out)
	}
	return nil
}

// Require skips a test, with the reason, where hosts cannot be made.
func Require(t interface {
	Helper()
	Skipf(format string, args ...any)
}) {
	t.Helper()
	if err := Problem(); err != nil {
		t.Skipf("skipped: %v", err)
	}
}

// Host starts a host that has a loopback interface and no other.
func (l *Lab) Host(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("making a host: the lab is closed")
	}
	h, err := startHost(name, l.log.With("host", name))
	if err != nil {
		return nil, fmt.Errorf("making host %s: %w", name, err)
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Router starts a host that forwards packets between the hosts connected to it and does nothing else.
func (l *Lab) Router(name string) (*Host, error) {
	h, err := l.Host(name)
	if err != nil {
		return nil, err
	}
	if err := h.forward(); err != nil {
		return nil, fmt.Errorf("making router %s: %w", name, err)
	}
	return h, nil
}

// Connect joins a host to a router over a subnet of its own, with the router as its default route.
func (l *Lab) Connect(h, router *Host) (*Link, error) {
	l.mu.Lock()
	l.subnets++
	n := l.subnets
	l.mu.Unlock()
	if n > 255 {
		return nil, errors.New("connecting a host: a lab has at most 255 subnets")
	}
	s, err := router.Subnet(netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:198:18:%d::/64", n)))
	if err != nil {
		return nil, err
	}
	return s.Plug(h)
}

// Close ends every host with all that runs in it and returns when the last process is gone.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, h := range l.hosts {
		h.hangUp()
	}
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.wait())
	}
	l.hosts = nil
	return errors.Join(errs...)
}

// Detach lets the hosts and what runs in them outlive this program. They end when their holders, the processes Host.PID
// names, are killed. The lab is then closed and empty.
func (l *Lab) Detach() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.detach())
	}
	l.hosts = nil
	return errors.Join(errs...)
}
