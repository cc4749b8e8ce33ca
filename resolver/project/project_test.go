// SPDX-License-Identifier: MIT

package project

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

const zone = "mesh.internal"

var (
	prefixes = []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd77:f5a3:5fca::/48")}
	layout   = SkyDNS{Path: "/skydns", TTL: 60, Server: "spencer"}
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// view is a mesh of two nodes with hosts below and beside them.
func view(more ...resolver.Static) *resolver.View {
	static := func(owner, name string, aliases []string, as ...string) resolver.Static {
		return resolver.Static{Host: resolver.Host{Name: name, Owner: owner, Addrs: addrs(as...), Aliases: aliases}}
	}
	return resolver.Build(resolver.Parts{Zone: zone, Prefixes: prefixes, Revision: 7, Nodes: []resolver.Node{
		{Name: "spencer", Addrs: addrs("10.11.0.1", "fd77:f5a3:5fca:0:90a5:61e7:59e9:bdf")},
		{Name: "bkero", Addrs: addrs("10.11.0.2", "fd77:f5a3:5fca:0:aeea:665c:6f59:470")},
		{Name: "six", Addrs: addrs("fd77:f5a3:5fca::6")},
	}, Hosts: append([]resolver.Static{
		static("bkero", "nas.bkero", []string{"files.bkero", "backup"}, "10.11.0.80", "10.11.0.81", "fd77:f5a3:5fca::80"),
		static("six", "a.six", nil, "10.11.0.66"),
		static("bkero", "v4.bkero", nil, "10.11.0.44"),
		static("bkero", "deep.down.bkero", nil, "10.11.0.45"),
		static("spencer", "printer", nil, "10.11.0.77"),
		static("spencer", "printer2", nil, "10.11.0.77"), // the address leads back to one of them
		static("bkero", "x.files.bkero", nil, "10.11.0.90"),
	}, more...)})
}

// written is all that a layout would write.
func written(v *resolver.View) map[string]string {
	out := map[string]string{}
	for _, l := range layout.Layouts(zone, prefixes) {
		for k, value := range l.Encode(v) {
			out[l.Prefix+k] = value
			if !l.Ours(value) {
				panic("not ours: " + value)
			}
		}
	}
	return out
}

// TestKeys shows some keys as they are.
func TestKeys(t *testing.T) {
	got := written(view())
	for key, want := range map[string]string{
		"/skydns/internal/mesh/bkero/v4":                                                   `{"host":"10.11.0.2","ttl":60,"targetstrip":1,"group":"mesh:bkero.mesh.internal"}`,
		"/skydns/internal/mesh/bkero/v6":                                                   `{"host":"fd77:f5a3:5fca:0:aeea:665c:6f59:470","ttl":60,"targetstrip":1,"group":"mesh:bkero.mesh.internal"}`,
		"/skydns/internal/mesh/bkero/nas/v4-2":                                             `{"host":"10.11.0.81","ttl":60,"targetstrip":1,"group":"mesh:nas.bkero.mesh.internal"}`,
		"/skydns/internal/mesh/backup/v4":                                                  `{"host":"10.11.0.80","ttl":60,"targetstrip":1,"group":"mesh:backup.mesh.internal"}`,
		"/skydns/internal/mesh/dns/apex/x":                                                 `{"text":"names of a mesh, written by meshd","ttl":60,"group":"mesh:apex.dns.mesh.internal"}`,
		"/skydns/internal/mesh/dns/ns/spencer/v4":                                          `{"host":"10.11.0.1","ttl":60,"targetstrip":1,"group":"mesh:ns.dns.mesh.internal"}`,
		"/skydns/arpa/in-addr/10/11/0/2":                                                   `{"host":"bkero.mesh.internal.","ttl":60,"group":"mesh:bkero.mesh.internal"}`,
		"/skydns/arpa/ip6/f/d/7/7/f/5/a/3/5/f/c/a/0/0/0/0/a/e/e/a/6/6/5/c/6/f/5/9/0/4/7/0": `{"host":"bkero.mesh.internal.","ttl":60,"group":"mesh:bkero.mesh.internal"}`,
	} {
		if got[key] != want {
			t.Errorf("%s is %s, want %s", key, got[key], want)
		}
	}
	hosts := Hosts("/hosts", prefixes[0]).Encode(view())
	for name, want := range map[string]string{"bkero": "10.11.0.2", "bkero.mesh.internal": "10.11.0.2", "nas.bkero": "10.11.0.80", "backup": "10.11.0.80",
		"backup.mesh.internal": "10.11.0.80", "printer2": "10.11.0.77"} {
		if hosts[name] != want {
			t.Errorf("/hosts/%s is %q, want %s", name, hosts[name], want)
		}
	}
	if _, ok := hosts["six"]; ok {
		t.Error("/hosts/six, which has no IPv4 address")
	}
}

// arpaName is an address's name in its reverse zone.
func arpaName(a netip.Addr) string {
	labels := arpa(a)
	slices.Reverse(labels)
	return strings.Join(labels, ".") + "." + arpaTree(a) + ".arpa"
}

// TestCoreDNS asks CoreDNS's way for everything that the View has, and for what it has not.
func TestCoreDNS(t *testing.T) {
	v := view()
	c := coreDNS{keys: written(v), path: "/skydns", zone: zone}
	ask := func(name, kind string) string {
		got, err := c.lookup(name, kind)
		if err != nil {
			return err.Error()
		}
		slices.Sort(got)
		return strings.Join(got, ", ")
	}
	for _, h := range v.Hosts() {
		for _, n := range append([]string{h.Name}, h.Aliases...) {
			var a4, a6 []string
			for _, a := range h.Addrs {
				if a.Is4() {
					a4 = append(a4, "A 60 "+a.String())
				} else {
					a6 = append(a6, "AAAA 60 "+a.String())
				}
			}
			if got, want := ask(n+"."+zone, "A"), strings.Join(a4, ", "); got != want {
				t.Errorf("%s: %q, want %q", n, got, want)
			}
			if got, want := ask(strings.ToUpper(n)+"."+zone, "AAAA"), strings.Join(a6, ", "); got != want {
				t.Errorf("%s: %q, want %q", n, got, want)
			}
		}
		for _, a := range h.Addrs {
			r, _ := v.Reverse(a)
			if got, want := ask(arpaName(a), "PTR"), "PTR 60 "+v.FQDN(r)+"."; got != want {
				t.Errorf("%s: %q, want %q", a, got, want)
			}
		}
	}
	for _, q := range []struct{ name, kind, want string }{
		{zone, "A", ""}, // the zone is a name without addresses, not the sum of all
		{zone, "NS", "NS 60 spencer.ns.dns.mesh.internal 10.11.0.1, NS 60 spencer.ns.dns.mesh.internal fd77:f5a3:5fca:0:90a5:61e7:59e9:bdf"},
		{"spencer.ns.dns." + zone, "A", "A 60 10.11.0.1"},
		{"apex.dns." + zone, "TXT", `TXT 60 "names of a mesh, written by meshd"`},
		{"bkero." + zone, "SRV", "SRV 60 10 50 0 bkero.mesh.internal"},
		{"bkero." + zone, "TXT", ""},
		{"nobody." + zone, "A", "NXDOMAIN"},
		{"bker." + zone, "A", "NXDOMAIN"},
		{"2.0.12.10.in-addr.arpa", "PTR", "NXDOMAIN"},
		{"0.11.10.in-addr.arpa", "PTR", "NXDOMAIN"}, // what lies below counts for nothing
		// The one difference to the View, which says that the name is there and has no address: docs/store.md.
		{"down.bkero." + zone, "A", "A 60 10.11.0.45"},
	} {
		if got := ask(q.name, q.kind); got != q.want {
			t.Errorf("%s %s: %q, want %q", q.name, q.kind, got, q.want)
		}
	}
}

// cluster is a store with prefixes.
type cluster struct {
	storetest.Memory // locks
	mu               sync.Mutex
	places           map[string]*storetest.Memory
}

func (c *cluster) at(prefix string) *storetest.Memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.places == nil {
		c.places = map[string]*storetest.Memory{}
	}
	if c.places[prefix] == nil {
		c.places[prefix] = new(storetest.Memory)
	}
	return c.places[prefix]
}

// content is all that is there.
func (c *cluster) content() map[string]string {
	c.mu.Lock()
	places := maps.Clone(c.places)
	c.mu.Unlock()
	out := map[string]string{}
	for prefix, m := range places {
		kvs, _, _ := m.Load(context.Background())
		for _, kv := range kvs {
			out[prefix+kv.Key] = string(kv.Value)
		}
	}
	return out
}

// names is a View that changes.
type names struct {
	mu      sync.Mutex
	view    *resolver.View
	fresh   bool
	changed chan struct{}
}

func (n *names) set(v *resolver.View, fresh bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view, n.fresh = v, fresh
	if n.changed != nil {
		close(n.changed)
	}
	n.changed = make(chan struct{})
}

func (n *names) get() (*resolver.View, bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view, n.fresh, n.changed
}

func writer(c *cluster, n *names) *Writer {
	return New(Config{Name: "skydns", Locker: c, Layouts: append(layout.Layouts(zone, prefixes), Hosts("/hosts", prefixes[0])),
		Store: func(prefix string) store.Store { return c.at(prefix) }, Log: slog.New(slog.DiscardHandler),
		View: func() *resolver.View { v, _, _ := n.get(); return v }, Fresh: func() bool { _, f, _ := n.get(); return f },
		Changed: func() <-chan struct{} { _, _, ch := n.get(); return ch }})
}

// all is what is to be there for a View.
func all(v *resolver.View) map[string]string {
	out := written(v)
	for k, value := range Hosts("/hosts", prefixes[0]).Encode(v) {
		out["/hosts/"+k] = value
	}
	return out
}

func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	for k, v := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%s is there: %s", k, v)
		}
	}
}

func put(t *testing.T, m *storetest.Memory, key, value string) {
	t.Helper()
	op := store.Op{Key: key}
	if value != "" {
		op.Value = []byte(value)
	}
	if _, err := m.Commit(t.Context(), nil, []store.Op{op}); err != nil {
		t.Fatal(err)
	}
}

// TestWriter: two nodes of which one writes; names come and go; others write, change and delete; the store goes away.
func TestWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, n := new(cluster), new(names)
		forward, hosts := c.at("/skydns/internal/mesh/"), c.at("/hosts/")
		put(t, forward, "stale/v4", record{Host: "10.11.0.99", Group: groupMark + "stale.mesh.internal"}.text())
		put(t, forward, "theirs/v4", `{"host":"192.0.2.1"}`)
		put(t, forward, "printer/v4", `{"host":"192.0.2.2"}`)
		put(t, hosts, "stale", "10.11.0.99")
		put(t, hosts, "router", "192.0.2.1")
		before := c.content()
		n.set(view(), false) // the store was not loaded yet: names may be missing
		a, b := writer(c, n), writer(c, n)
		ctxA, stopA := context.WithCancel(t.Context())
		ctxB, stopB := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stopB()
		wg.Go(func() { a.Run(ctxA) })
		synctest.Wait()
		wg.Go(func() { b.Run(ctxB) })
		settle := func() {
			<-time.After(10 * time.Second) // of the bubble
			synctest.Wait()
		}
		settle()
		same(t, c.content(), before)

		want := func(v *resolver.View) map[string]string {
			w := all(v)
			w["/skydns/internal/mesh/theirs/v4"] = `{"host":"192.0.2.1"}`
			w["/skydns/internal/mesh/printer/v4"] = `{"host":"192.0.2.2"}`
			w["/hosts/router"] = "192.0.2.1"
			return w
		}
		n.set(view(), true)
		settle()
		same(t, c.content(), want(view()))
		sa, sb := a.State(), b.State()
		if !sa.Held || sb.Held || sa.Keys != len(all(view()))-1 || !slices.Equal(sa.Foreign, []string{"/skydns/internal/mesh/printer/v4"}) {
			t.Errorf("%+v, %+v", sa, sb)
		}

		// Names come, go, and are many.
		var more []resolver.Static
		for i := range 250 {
			more = append(more, resolver.Static{Host: resolver.Host{Name: fmt.Sprintf("h%d", i), Owner: "bkero", Addrs: addrs(fmt.Sprintf("10.11.1.%d", i))}})
		}
		n.set(view(more...), true)
		settle()
		same(t, c.content(), want(view(more...)))
		n.set(view(more[3]), true)
		settle()
		same(t, c.content(), want(view(more[3])))

		// What others do to ours is put right.
		put(t, forward, "bkero/v4", "")
		put(t, hosts, "bkero", "10.11.0.250")
		put(t, forward, "evil/v4", record{Host: "10.11.0.3", Group: groupMark + "evil"}.text())
		settle()
		same(t, c.content(), want(view(more[3])))

		// The other one takes over.
		stopA()
		settle()
		n.set(view(), true)
		settle()
		same(t, c.content(), want(view()))
		if !b.State().Held {
			t.Error("nobody has taken over")
		}

		// The store goes away, and says so.
		forward.SetDown(true)
		c.SetDown(true)
		settle()
		if s := b.State(); s.Held || !strings.Contains(s.Err, "down") {
			t.Errorf("%+v", s)
		}
		n.set(view(more[4]), true)
		forward.SetDown(false)
		c.SetDown(false)
		settle()
		same(t, c.content(), want(view(more[4])))
		if s := b.State(); !s.Held || s.Err != "" {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzOurs(f *testing.F) {
	f.Add(`{"host":"10.11.0.2","group":"mesh:bkero.mesh.internal"}`)
	f.Add(`{"group":7}`)
	f.Add("10.11.0.2")
	hosts := Hosts("/hosts", prefixes[0])
	f.Fuzz(func(t *testing.T, value string) {
		if ourRecord(value) && !strings.Contains(value, "mesh") && !strings.Contains(value, `\u`) {
			t.Errorf("%q is ours", value)
		}
		if hosts.Ours(value) && !strings.HasPrefix(value, "10.11.") {
			t.Errorf("%q is ours", value)
		}
	})
}
