// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/etcd"
	"mesh.internal/mesh/vpn/identity"
)

// cluster is keepers with real etcd on loopback addresses, each a process, and what meshd says to all of them.
type cluster struct {
	t     *testing.T
	ca    *identity.CA
	run   config.Paths // where meshd says it
	nodes map[string]*member
	log   *os.File // what the keepers say

	evicted string
}

// memberVar has this test's program be a keeper: its name, its address, and its folders.
const memberVar = "KEEPER"

// TestMember is a keeper for TestLife.
func TestMember(t *testing.T) {
	f := strings.Fields(os.Getenv(memberVar))
	if len(f) != 5 {
		t.Skip("is for processes that TestLife starts")
	}
	go func() { // ends with the test, however that does
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	paths := config.Paths{State: f[2], Run: f[4]}
	k := &keeper{name: f[0], addr: netip.MustParseAddr(f[1]), paths: paths, data: f[3], anywhere: true, now: paths.LoadVoter,
		say:   func(format string, a ...any) { fmt.Fprintf(os.Stderr, f[0]+": "+format+"\n", a...) },
		ready: func(context.Context) error { return nil }}
	err := k.run(ctx)
	if errors.Is(err, errAgain) {
		err = again()
	}
	if err != nil {
		t.Fatal(err)
	}
}

type member struct {
	c    *cluster
	k    *keeper
	id   *identity.Identity
	stop func()
}

func newCluster(t *testing.T, names ...string) *cluster {
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, ca: ca, run: config.Paths{Run: t.TempDir()}, nodes: map[string]*member{}}
	if c.log, err = os.Create(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the last one registered before those of the processes
		if b, err := os.ReadFile(c.log.Name()); err == nil && t.Failed() {
			t.Logf("%s", b)
		}
	})
	for i, name := range names {
		paths := config.Paths{State: t.TempDir()}
		key, wg, err := paths.Keys()
		if err != nil {
			t.Fatal(err)
		}
		pid := os.Getpid() // another may be running
		addr := netip.AddrFrom4([4]byte{127, byte(64 + pid>>8&63), byte(pid), byte(i + 1)})
		cert, err := ca.Issue(name, "mesh.internal", []netip.Addr{addr}, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.New(&identity.CA{Cert: ca.Cert}, []*x509.Certificate{cert}, key, wg)
		if err != nil {
			t.Fatal(err)
		}
		if err := paths.SaveIdentity(id); err != nil {
			t.Fatal(err)
		}
		c.nodes[name] = &member{c: c, id: id, k: &keeper{name: name, addr: addr, paths: paths, data: t.TempDir()}}
	}
	return c
}

// say has these nodes keep the store.
func (c *cluster) say(epoch uint32, names ...string) {
	v := &config.Voter{Mesh: "test", Epoch: epoch}
	for name := range c.nodes {
		if name != c.evicted {
			v.Members = append(v.Members, name)
		}
	}
	slices.Sort(v.Members)
	for _, n := range names {
		v.Voters = append(v.Voters, config.Keeper{Name: n, Addr: c.nodes[n].k.addr})
	}
	if err := c.run.SaveVoter(v); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) start(names ...string) {
	for _, name := range names {
		m := c.nodes[name]
		cmd := exec.Command(os.Args[0], "-test.run=^TestMember$")
		cmd.Env = append(os.Environ(), memberVar+"="+strings.Join([]string{name, m.k.addr.String(), m.k.paths.State, m.k.data, c.run.Run}, " "))
		cmd.Stdout, cmd.Stderr = c.log, c.log
		if _, err := cmd.StdinPipe(); err != nil {
			c.t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			c.t.Fatal(err)
		}
		m.stop = sync.OnceFunc(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		})
		c.t.Cleanup(func() { m.stop() })
	}
}

// until asks a member for the members, once a tenth of a second, until they are as wanted.
func (c *cluster) until(at, what string, ok func([]etcd.Member) bool) []etcd.Member {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	a := c.nodes[at].admin(c.nodes[at])
	defer a.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last []etcd.Member
	var err error
	for {
		call, stop := context.WithTimeout(ctx, time.Second)
		if last, err = a.Members(call); err == nil && ok(last) {
			stop()
			return last
		}
		stop()
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("%s: not within a minute: %+v, %v", what, last, err)
		}
	}
}

func voting(count int) func([]etcd.Member) bool {
	return func(all []etcd.Member) bool {
		return len(all) == count && !slices.ContainsFunc(all, func(m etcd.Member) bool { return m.Learner || m.Name == "" })
	}
}

func (m *member) tls() *tls.Config {
	t, err := m.k.tls()
	if err != nil {
		m.c.t.Fatal(err)
	}
	return t
}

// admin talks to at as m.
func (m *member) admin(at *member) *etcd.Admin {
	u := at.k.at(at.k.addr, clientPort)
	a, err := etcd.Dial(u.String(), m.tls())
	if err != nil {
		m.c.t.Fatal(err)
	}
	return a
}

// store is the store as m sees it at another.
func (m *member) store(at *member) *etcd.Store {
	u := at.k.at(at.k.addr, clientPort)
	s, err := etcd.Open(etcd.Config{Endpoints: []string{u.String()}, Prefix: store.DefaultPrefix("test"), TLS: m.tls()})
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.c.t.Cleanup(func() { s.Close() })
	return s
}

// put writes as m at another, and tries again for as long as what it meets passes.
func (m *member) put(at *member, key, value string) error {
	s := m.store(at)
	defer s.Close()
	var err error
	for range 20 {
		ctx, cancel := context.WithTimeout(m.c.t.Context(), 2*time.Second)
		_, err = s.Commit(ctx, nil, []store.Op{{Key: key, Value: []byte(value)}})
		cancel()
		if err == nil || strings.Contains(err.Error(), "permission") {
			return err
		}
		m.k.pause(m.c.t.Context())
	}
	return err
}

func (m *member) get(at *member, key string) string {
	s := m.store(at)
	defer s.Close()
	var err error
	for range 20 {
		ctx, cancel := context.WithTimeout(m.c.t.Context(), 2*time.Second)
		var kv store.KV
		kv, err = s.Get(ctx, key)
		cancel()
		if err == nil {
			return string(kv.Value)
		}
		m.k.pause(m.c.t.Context())
	}
	m.c.t.Fatalf("reading %s: %v", key, err)
	return ""
}

// TestLife is a store from one member to three, through a lost disk, a member that leaves, and a lost majority.
func TestLife(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a minute")
	}
	c := newCluster(t, "a", "b", "c", "d")
	a, b, d := c.nodes["a"], c.nodes["b"], c.nodes["d"]
	c.say(0, "a")
	c.start("a")
	c.until("a", "one member", voting(1))
	if err := a.put(a, "a/node", "1"); err != nil {
		t.Fatal(err)
	}

	c.say(0, "a", "b", "c")
	c.start("b", "c")
	before := c.until("a", "three members", voting(3))
	if got := b.get(c.nodes["c"], "a/node"); got != "1" {
		t.Errorf("the new member has %q", got)
	}
	t.Log("three members")

	// Who does not keep it writes what is its own, and that is all.
	if err := d.put(b, "d/node", "4"); err != nil {
		t.Errorf("d writes below its own name: %v", err)
	}
	if err := d.put(b, "_claims/names/x", "4"); err != nil {
		t.Errorf("d claims a name: %v", err)
	}
	if got := d.get(b, "a/node"); got != "1" {
		t.Errorf("d reads %q", got)
	}
	for _, key := range []string{"a/node", "a/hosts/x", "x", "_store"} {
		if err := d.put(b, key, "forged"); err == nil || !strings.Contains(err.Error(), "permission") {
			t.Errorf("d writes %s: %v", key, err)
		}
	}
	admin := d.admin(b)
	defer admin.Close()
	if _, err := admin.AddLearner(t.Context(), "https://198.18.0.4:2380"); err == nil {
		t.Error("d adds a member")
	}
	if err := admin.Remove(t.Context(), before[0].ID); err == nil {
		t.Error("d removes a member")
	}
	if err := greet(d, a); err == nil {
		t.Error("d talks to a member's peer port")
	}
	if err := greet(b, a); err != nil {
		t.Errorf("a member cannot talk to another: %v", err)
	}

	// A lost disk.
	b.stop()
	if err := os.RemoveAll(b.k.data); err != nil {
		t.Fatal(err)
	}
	c.start("b")
	after := c.until("a", "the member is back under another ID", func(all []etcd.Member) bool {
		return voting(3)(all) && slices.ContainsFunc(all, func(m etcd.Member) bool {
			return m.Name == "b" && !slices.ContainsFunc(before, func(o etcd.Member) bool { return o.ID == m.ID })
		})
	})
	t.Logf("after the lost disk: %v", after)
	if got := d.get(b, "a/node"); got != "1" {
		t.Errorf("after its disk was lost, b has %q", got)
	}

	// A member is away, and its place goes to another.
	c.nodes["c"].stop()
	c.say(0, "a", "b", "d")
	c.start("d")
	c.until("a", "d instead of c", func(all []etcd.Member) bool {
		return voting(3)(all) && !slices.ContainsFunc(all, func(m etcd.Member) bool { return m.Name == "c" })
	})
	// It comes back, and has to go.
	c.start("c")
	if err := c.nodes["c"].put(a, "a/node", "2"); err == nil {
		t.Error("c writes what is a's")
	}

	// Whoever leads moves, which has to let the new one in first; and back.
	without := func(name string) func([]etcd.Member) bool {
		return func(all []etcd.Member) bool {
			return voting(3)(all) && !slices.ContainsFunc(all, func(m etcd.Member) bool { return m.Name == name })
		}
	}
	leads, rest := "a", []string{"b", "d"}
	for name, m := range c.nodes {
		admin := d.admin(m)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if h, err := admin.Health(ctx); err == nil && h.Leader == h.ID && name != "c" {
			leads = name
			rest = slices.DeleteFunc([]string{"a", "b", "d"}, func(n string) bool { return n == name })
		}
		cancel()
		admin.Close()
	}
	c.say(0, append(rest, "c")...)
	c.until(rest[0], leads+", which leads, moves to c", without(leads))
	c.say(0, "a", "b", "d")
	c.until(rest[0], "and back", without("c"))

	// Most are lost for good: a begins anew with what it has, and b, which comes back, is fenced off.
	if err := a.put(a, "a/node", "3"); err != nil {
		t.Fatal(err)
	}
	b.stop()
	d.stop()
	c.say(1, "a")
	c.until("a", "one member, anew", voting(1))
	if got := a.get(a, "a/node"); got != "3" {
		t.Errorf("after the recovery it has %q", got)
	}
	if err := a.put(a, "a/node", "4"); err != nil {
		t.Errorf("after the recovery: %v", err)
	}
	c.say(1, "a", "b", "c")
	c.start("b")
	c.until("a", "three members again", voting(3))
	if got := d.get(b, "a/node"); got != "4" {
		t.Errorf("after the recovery, b has %q", got)
	}

	// All but the one that may be leading leave.
	c.say(1, "c")
	c.until("c", "one member is left", voting(1))
	if got := d.get(c.nodes["c"], "a/node"); got != "4" {
		t.Errorf("the last one has %q", got)
	}

	// Who is evicted reads nothing any more.
	c.evicted = "d"
	c.say(1, "c")
	s, last := d.store(c.nodes["c"]), error(nil)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, last = s.Get(ctx, "a/node")
		cancel()
		if last != nil && strings.Contains(last.Error(), "permission") {
			return
		}
		d.k.pause(t.Context())
	}
	t.Errorf("d, evicted, reads: %v", last)
}

// greet opens a connection to another's peer port and asks for something.
func greet(from, to *member) error {
	u := to.k.at(to.k.addr, peerPort)
	conn, err := tls.Dial("tcp", u.Host, from.tls())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	fmt.Fprintf(conn, "GET /version HTTP/1.0\r\n\r\n")
	b := make([]byte, 16)
	_, err = conn.Read(b)
	return err
}
