// SPDX-License-Identifier: MIT

package nettest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
	"mesh.internal/mesh/vpn/netif"
	"mesh.internal/mesh/vpn/portmap"
)

// A router with Debian's miniupnpd, a node behind it, and a host outside:
//
//	home 198.18.1.2 ──── 198.18.1.1 gw 11.0.0.2 ──── 11.0.0.1 internet ──── 198.18.3.2 outside
//	2001:db8:1::2        2001:db8:1::1
//
// 11.0.0.0/24 never leaves these namespaces; miniupnpd wants its external address to be in none of the reserved networks.
const (
	node    = "MESH_PORTMAP_NODE" // in the environment: be the node, with what is in it as configuration
	port    = 7655
	homeNet = `2001:db8:1::`

	ruleset = `
table inet filter {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "net-1" accept
		jump miniupnpd
	}
	chain miniupnpd {}
	chain input {
		type filter hook input priority 0;
		%s
	}
	chain prerouting {
		type nat hook prerouting priority -100;
		jump prerouting_miniupnpd
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		jump postrouting_miniupnpd
		oifname "eth0" meta nfproto ipv4 snat to 11.0.0.2
	}
	chain prerouting_miniupnpd {}
	chain postrouting_miniupnpd {}
}
`
	config = `
ext_ifname=eth0
ext_ifname6=eth0
listening_ip=net-1
enable_upnp=yes
enable_natpmp=yes
secure_mode=yes
uuid=78b7b903-83c1-4036-8fcd-f64aee25baca
lease_file=/run/miniupnpd.leases
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`
)

// TestNode is no test but the node behind the router, in a process of its own, since a process is in one network.
func TestNode(t *testing.T) {
	protocol := os.Getenv(node)
	if protocol == "" {
		t.Skip("run by the other tests")
	}
	say := json.NewEncoder(os.Stderr)
	conn, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for b := make([]byte, 100); ; {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			say.Encode(said{Got: string(b[:n])})
		}
	}()
	var m *portmap.Mapper
	m = portmap.New(portmap.Config{
		Port: port, TCP: true, Secret: []byte("x"),
		Gateways: gateways,
		Changed:  func() { say.Encode(said{Mapped: m.Mapped()}) },
		Log:      slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if protocol == "probe" {
		answers, err := m.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range answers {
			say.Encode(said{Answer: fmt.Sprintf("%s %s %v", family(a.Gateway), a.Protocol, a.Err)})
		}
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	m.Run(ctx)
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func gateways() (out []portmap.Gateway, err error) {
	found, err := netif.Gateways("mesh0")
	for _, g := range found {
		out = append(out, portmap.Gateway(g))
	}
	return out, err
}

// said is a line of the node.
type said struct {
	Mapped []portmap.Mapping
	Got    string
	Answer string
}

type world struct {
	t                 *testing.T
	home, gw, outside *lab.Host
	daemon            *lab.Process
	lines             chan said
	stop              func()
}

// newWorld makes the world, with a router that does not hear what the rule input drops.
func newWorld(t *testing.T, input string) *world {
	lab.Require(t)
	for _, p := range []string{"miniupnpd", "nft", "ip"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: %v: install Debian's miniupnpd-nftables, nftables and iproute2", err)
		}
	}
	l := lab.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t}
	var err error
	host := func(name string, router bool) *lab.Host {
		f := l.Host
		if router {
			f = l.Router
		}
		h, err := f(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	w.home, w.gw, w.outside = host("home", false), host("gw", true), host("outside", false)
	internet := host("internet", true)
	for _, link := range [][2]*lab.Host{{w.home, w.gw}, {w.gw, internet}, {w.outside, internet}} {
		if _, err = l.Connect(link[0], link[1]); err != nil {
			t.Fatal(err)
		}
	}
	w.run(w.gw, "ip addr add 11.0.0.2/24 dev eth0", "ip addr del 198.18.2.2/24 dev eth0", "ip addr add 2001:db8:1::1/64 dev net-1 nodad",
		"ip addr add 2001:db8:2::2/64 dev eth0 nodad", "ip -6 addr flush dev net-1 scope link", "ip addr add fe80::1/64 dev net-1 nodad")
	w.run(internet, "ip addr add 11.0.0.1/24 dev net-1", "ip addr add 2001:db8:2::1/64 dev net-1 nodad", "ip -6 route add 2001:db8:1::/64 via 2001:db8:2::2")
	w.run(w.home, "ip addr add 2001:db8:1::2/64 dev eth0 nodad", "ip -6 route replace default via fe80::1 dev eth0")
	if err := w.gw.WriteFile("/run/rules.nft", fmt.Appendf(nil, ruleset, input), 0o644); err != nil {
		t.Fatal(err)
	}
	w.run(w.gw, "nft -f /run/rules.nft")
	return w
}

func (w *world) run(h *lab.Host, commands ...string) string {
	w.t.Helper()
	var out string
	for _, c := range commands {
		f := strings.Fields(c)
		var err error
		if out, err = h.Run(w.t.Context(), f[0], f[1:]...); err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// serve starts miniupnpd.
func (w *world) serve() {
	w.t.Helper()
	if err := w.gw.WriteFile("/run/miniupnpd.conf", []byte(config), 0o644); err != nil {
		w.t.Fatal(err)
	}
	d, err := w.gw.Start("miniupnpd", "-d", "-f", "/run/miniupnpd.conf", "-P", "/run/miniupnpd.pid")
	if err != nil {
		w.t.Fatal(err)
	}
	w.daemon = d
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Log(d.Output())
		}
	})
	await(w.t, "miniupnpd to listen", func() bool {
		sockets := w.run(w.gw, "ss -lun")
		return strings.Contains(sockets, ":5351") && strings.Contains(sockets, ":1900")
	})
}

// await polls for something that says nothing when it happens.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(60 * time.Second); !happened(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// quit ends miniupnpd.
func (w *world) quit(sig os.Signal) {
	w.t.Helper()
	if err := w.daemon.Signal(sig); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	w.daemon.Wait(ctx)
	if ctx.Err() != nil {
		w.t.Fatal("miniupnpd does not end")
	}
}

// start starts the node.
func (w *world) start(what string) {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := w.home.Command(w.t.Context(), self, "-test.run=^TestNode$", "-test.v")
	cmd.Env = append(cmd.Env, node+"="+what)
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	var log strings.Builder
	cmd.Stdout = &log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	lines := make(chan said, 100)
	w.lines = lines
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var l said
			if json.Unmarshal(s.Bytes(), &l) == nil {
				lines <- l
			}
		}
	}()
	w.stop = func() {
		in.Close()
		for range lines {
		}
		if err := cmd.Wait(); err != nil {
			w.t.Errorf("the node: %v", err)
		}
		w.t.Log(log.String())
		w.stop = func() {}
	}
	w.t.Cleanup(func() { w.stop() })
}

// until reads the node's lines up to one that fits.
func (w *world) until(what string, fits func(said) bool) said {
	w.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		select {
		case l, ok := <-w.lines:
			if !ok {
				w.t.Fatalf("waited for %s: the node ended", what)
			}
			if fits(l) {
				return l
			}
		case <-limit:
			w.t.Fatalf("waited for %s in vain", what)
		}
	}
}

// reaches sends to an address from outside and waits until the node says that it has come: nothing here loses datagrams.
func (w *world) reaches(to netip.AddrPort) {
	w.t.Helper()
	var conn net.Conn
	if err := w.outside.Do(func() (err error) { conn, err = net.Dial("udp", to.String()); return err }); err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	text := fmt.Sprintf("to %v at %d", to, time.Now().UnixNano())
	conn.Write([]byte(text))
	w.until("a datagram to "+to.String(), func(l said) bool { return l.Got == text })
}

func (w *world) rules() string { return w.run(w.gw, "nft list ruleset") }

// TestRouter has every protocol make, renew and remove mappings at a real router.
func TestRouter(t *testing.T) {
	for _, c := range []struct {
		input    string
		ip4, ip6 portmap.Protocol
	}{
		{"", portmap.PCP, portmap.PCP},
		{"udp dport 5351 @th,64,8 2 drop", portmap.NATPMP, portmap.UPnP}, // version 2 is PCP
		{"udp dport 5351 reject", portmap.UPnP, portmap.UPnP},
	} {
		if testing.Short() && c.ip4 != portmap.NATPMP {
			continue
		}
		t.Run(fmt.Sprint(c.ip4), func(t *testing.T) {
			w := newWorld(t, c.input)
			w.serve()
			w.start("run")
			mapped := w.until("mappings", func(l said) bool { return len(l.Mapped) == 4 }).Mapped
			var udp []netip.AddrPort
			for _, m := range mapped {
				t.Logf("%+v", m)
				if want := map[bool]portmap.Protocol{true: c.ip4, false: c.ip6}[m.Gateway.Is4()]; m.Protocol != want {
					t.Errorf("mapped by %s, want %s", m.Protocol, want)
				}
				if !m.Public() {
					t.Errorf("%v is not public", m.External)
				}
				if !m.TCP {
					udp = append(udp, m.External)
				}
			}
			if want := netip.MustParseAddrPort("11.0.0.2:7655"); !slices.Contains(udp, want) {
				t.Errorf("the mapping is to %v, want %v", udp, want)
			}
			for _, to := range udp {
				w.reaches(to)
			}
			rules := strings.Count(w.rules(), "7655")

			if c.ip4 != portmap.UPnP { // which says it to subscribers only, and is renewed every ten minutes
				// A daemon that is killed and has forgotten its mappings says so when it is back.
				w.quit(syscall.SIGKILL)
				w.run(w.gw, "rm -f /run/miniupnpd.leases", "nft flush chain inet filter miniupnpd",
					"nft flush chain inet filter prerouting_miniupnpd", "nft flush chain inet filter postrouting_miniupnpd")
				if strings.Contains(w.rules(), "7655") {
					t.Fatal("the rules are still there")
				}
				w.serve()
				await(t, "the mappings to be renewed", func() bool { return strings.Count(w.rules(), "7655") >= rules })
				for _, to := range udp {
					w.reaches(to)
				}
			}

			w.stop()
			if r := w.rules(); strings.Contains(r, "7655") {
				t.Errorf("a mapping is left:\n%s", r)
			}
		})
	}
}

// TestProbe asks a real router what it speaks.
func TestProbe(t *testing.T) {
	w := newWorld(t, "")
	w.serve()
	w.start("probe")
	var got []string
	for l := range w.lines {
		got = append(got, l.Answer)
	}
	w.stop()
	want := []string{"IPv4 pcp <nil>", "IPv4 nat-pmp <nil>", "IPv4 upnp <nil>", "IPv6 pcp <nil>", "IPv6 upnp <nil>"}
	if !slices.Equal(got, want) {
		t.Errorf("the router speaks %q, want %q", got, want)
	}
}
