// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// TestEvict evicts a member of a mesh of real programs, and measures until nobody reaches it any more nor knows its
// names, and it reaches nobody, nor the store; then it is invited again.
func TestEvict(t *testing.T) {
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
	var hosts []*lab.Host
	var links []*lab.Link
	for _, name := range []string{"spencer", "bkero", "nibz"} {
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
		hosts, links = append(hosts, h), append(links, link)
	}
	spencer, bkero, nibz := hosts[0], hosts[1], hosts[2]
	until := func(h *lab.Host, what, command string) time.Duration {
		t.Helper()
		begin := time.Now()
		for {
			out, ok := say(t, h, command)
			if ok {
				return time.Since(begin)
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s, on %s: %s", what, h.Name, out)
			}
		}
	}
	must(t, spencer, "mesh init --name spencer --public "+links[0].Addr4.String())
	up(t, spencer)
	if _, err := spencer.Start("meshd-etcd"); err != nil {
		t.Fatal(err)
	}
	until(spencer, "the store comes up", "mesh status | grep 'ok, revision'")
	join := func(h *lab.Host) *lab.Process {
		t.Helper()
		must(t, h, "mesh join "+strings.TrimSpace(must(t, spencer, "mesh invite "+h.Name+" 2>/dev/null")))
		return up(t, h)
	}
	join(bkero)
	gone := join(nibz)
	addr := strings.Fields(must(t, spencer, "mesh hosts --format hosts | grep nibz.mesh.internal"))[0]
	store := strings.Fields(must(t, spencer, "mesh hosts --format hosts | grep spencer.mesh.internal"))[0]
	until(nibz, "it has the store", "mesh status | grep 'ok, revision' && mesh host add printer "+strings.TrimRight(addr, "0123456789")+"77")
	for _, h := range []*lab.Host{spencer, bkero} {
		until(h, "its names are known", "mesh snapshot dump /run/mesh/hosts.db | grep nibz && mesh snapshot dump /run/mesh/hosts.db | grep printer")
		until(h, "it answers", "ping -c 1 -W 1 "+addr)
	}
	until(nibz, "it reaches bkero", "ping -c 1 -W 1 $(mesh hosts --format hosts | grep -m 1 bkero | cut -f 1)")
	var cert tls.Certificate
	if err := nibz.Do(func() (err error) {
		cert, err = tls.LoadX509KeyPair("/var/lib/mesh/node.crt", "/var/lib/mesh/node.key")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// knock opens TLS to the store with nibz's certificate, and demands a first byte, which comes after the server's check.
	knock := func(h *lab.Host, host string) error {
		return h.Do(func() error {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", net.JoinHostPort(host, "2379"), &tls.Config{
				Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			_, err = c.Read(make([]byte, 1))
			return err
		})
	}
	if err := knock(nibz, store); err != nil {
		t.Fatalf("a member does not reach the store: %v", err)
	}

	for command, want := range map[string]string{
		"mesh evict nobody --yes":  "there is no node nobody",
		"mesh evict spencer --yes": "cannot evict itself",
		"mesh evict nibz":          "say --yes",
		"mesh evict printer --yes": "there is no node printer",
	} {
		if out, ok := say(t, spencer, command+" </dev/null"); ok || !strings.Contains(out, want) || !strings.Contains(out, "hint: ") {
			t.Errorf("%s: %s", command, out)
		}
	}
	if out, ok := say(t, bkero, "mesh evict nibz --yes"); ok || !strings.Contains(out, "does not hold the mesh's key") {
		t.Errorf("a mere member evicts: %s", out)
	}

	begin := time.Now()
	t.Log(must(t, spencer, "mesh evict nibz.mesh.internal --reason 'laptop stolen' --yes"))
	for _, h := range []*lab.Host{spencer, bkero} {
		until(h, "the names are gone", "! mesh snapshot dump /run/mesh/hosts.db | grep -e nibz -e printer")
		until(h, "the answers are gone", "! ping -c 1 -W 0.2 "+addr)
		t.Logf("on %s names and answers are gone after %s", h.Name, time.Since(begin))
	}
	until(nibz, "it reaches nobody", "! ping -c 1 -W 0.2 $(mesh hosts --format hosts | grep -m 1 bkero | cut -f 1)")
	took := time.Since(begin)
	t.Logf("all is done after %s", took)
	if took > 5*time.Second {
		t.Errorf("it takes %s, want at most 5 s", took)
	}
	for _, h := range []*lab.Host{spencer, bkero} {
		until(h, "status says so", "mesh status | grep 'evicted  *nibz by spencer .*laptop stolen' && ! mesh hosts | grep -e nibz -e printer")
	}
	until(nibz, "it says so itself", "mesh status | grep 'warning.*this node, nibz was evicted by spencer .*laptop stolen'")
	if !strings.Contains(gone.Output(), "this node was evicted") {
		t.Errorf("its log does not say so: %s", gone.Output())
	}
	if err := knock(nibz, store); err == nil {
		t.Error("the evicted node reaches the store")
	}
	if err := knock(nibz, links[0].Addr4.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the store listens on an address that is not the mesh's: %v", err)
	}
	if out := must(t, spencer, "mesh evict nibz"); !strings.Contains(out, "already") {
		t.Errorf("a second time: %s", out)
	}
	gone.Signal(syscall.SIGTERM)
	gone.Wait(t.Context())
	must(t, nibz, "rm -rf /var/lib/mesh /etc/mesh")
	join(nibz)
	again := strings.Fields(must(t, spencer, "mesh hosts --format hosts | grep nibz.mesh.internal"))[0]
	if again != addr {
		t.Errorf("its address was %s and is %s: the old one was not given back", addr, again)
	}
	for _, h := range []*lab.Host{spencer, bkero} {
		until(h, "it answers again", "ping -c 1 -W 1 "+again)
	}
	until(nibz, "it has the store again", "mesh status | grep 'ok, revision' && mesh host add printer "+strings.TrimRight(addr, "0123456789")+"77")
	until(bkero, "its names are known again", "mesh snapshot dump /run/mesh/hosts.db | grep printer")
}
