// SPDX-License-Identifier: MIT

package nettest

import (
	"bufio"
	"crypto/ecdh"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"mesh.internal/mesh/cmd/internal/lab"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/lan"
)

const member = "MESH_LAN_MEMBER" // in the environment: be the member in it

// papers is all of a member.
type papers struct {
	CA, Chain, Key, WG []byte
	Port               uint16
}

func issue(t *testing.T, ca *identity.CA, name string, n int) papers {
	t.Helper()
	key, wg, err := identity.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	addr6, err := ca.Addr6(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(name, "mesh.internal", []netip.Addr{netip.AddrFrom4([4]byte{10, 11, 0, byte(n)}), addr6}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err1 := identity.EncodeKey(key)
	w, err2 := identity.EncodeKey(wg)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return papers{identity.EncodeCerts(ca.Cert), identity.EncodeCerts(cert), k, w, uint16(7000 + n)}
}

func (p papers) identity() (*identity.Identity, error) {
	ca, err1 := identity.ParseCerts(p.CA)
	chain, err2 := identity.ParseCerts(p.Chain)
	key, err3 := identity.ParseKey[*ecdsa.PrivateKey](p.Key)
	wg, err4 := identity.ParseKey[*ecdh.PrivateKey](p.WG)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	return identity.New(&identity.CA{Cert: ca[0]}, chain, key, wg)
}

// TestMember is no test but a member on the LAN, in a process of its own.
func TestMember(t *testing.T) {
	env := os.Getenv(member)
	if env == "" {
		t.Skip("run by the other tests")
	}
	var p papers
	if err := json.Unmarshal([]byte(env), &p); err != nil {
		t.Fatal(err)
	}
	id, err := p.identity()
	if err != nil {
		t.Fatal(err)
	}
	record, err := id.Record(uint64(time.Now().UnixMilli()), identity.Said{})
	if err != nil {
		t.Fatal(err)
	}
	say := json.NewEncoder(os.Stderr)
	f, err := lan.New(lan.Config{
		Identity: id, Interface: "mesh0", Port: p.Port, Record: record.Bytes,
		Found: func(r *identity.Record, at netip.AddrPort) { say.Encode(sighting{r.Node.Name, at}) },
		Log:   slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { // a line on standard input is a change of addresses
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			f.Poke()
		}
	}()
	f.Run(t.Context())
}

// sighting is a line of a member.
type sighting struct {
	Name string
	At   netip.AddrPort
}

// room is a LAN.
type room struct {
	t   *testing.T
	lab *lab.Lab
	sw  *lab.Host
	n   int
}

func newRoom(t *testing.T) *room {
	lab.Require(t)
	for _, p := range []string{"nft", "ip"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("skipped: %v: install Debian's nftables and iproute2", err)
		}
	}
	l := lab.New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	sw, err := l.Switch("switch")
	if err != nil {
		t.Fatal(err)
	}
	return &room{t: t, lab: l, sw: sw}
}

// host plugs a host in. kind is "4", "6" or "46"; the commands are run first.
func (r *room) host(name, kind string, commands ...string) *lab.Host {
	r.t.Helper()
	r.n++
	h, err := r.lab.Host(name)
	if err != nil {
		r.t.Fatal(err)
	}
	var addrs []netip.Prefix
	if strings.Contains(kind, "4") {
		addrs = append(addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(r.n)}), 24))
	}
	if !strings.Contains(kind, "6") {
		commands = append(commands, "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
	}
	for _, c := range commands {
		if out, err := h.Command(r.t.Context(), "sh", "-c", c).CombinedOutput(); err != nil {
			r.t.Fatalf("%s: %v %s", c, err, out)
		}
	}
	if err := h.Plug(r.sw, addrs...); err != nil {
		r.t.Fatal(err)
	}
	return h
}

type running struct {
	t     *testing.T
	name  string
	in    io.Writer
	lines chan sighting
	found map[sighting]bool
	out   *strings.Builder
}

func (r *room) member(h *lab.Host, p papers) *running {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	env, err := json.Marshal(p)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := h.Command(r.t.Context(), self, "-test.run=^TestMember$")
	cmd.Env = append(cmd.Env, member+"="+string(env))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2); err != nil {
		r.t.Fatal(err)
	}
	m := &running{t: r.t, name: h.Name, in: in, lines: make(chan sighting, 1000), found: map[sighting]bool{}, out: &strings.Builder{}}
	cmd.Stdout = m.out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		defer close(m.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var l sighting
			if json.Unmarshal(s.Bytes(), &l) == nil {
				m.lines <- l
			}
		}
	}()
	r.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if r.t.Failed() {
			r.t.Logf("%s: %s", m.name, m.out)
		}
	})
	return m
}

// finds waits until the member has found another at an address.
func (m *running) finds(name string, at netip.AddrPort) {
	m.t.Helper()
	limit := time.After(60 * time.Second)
	for !m.found[sighting{name, at}] {
		select {
		case s, ok := <-m.lines:
			if !ok {
				m.t.Fatalf("%s ended", m.name)
			}
			m.found[s] = true
		case <-limit:
			m.t.Fatalf("%s has not found %s at %v, but %v", m.name, name, at, m.found)
		}
	}
}

func linkLocal(t *testing.T, h *lab.Host) netip.Addr {
	t.Helper()
	var found netip.Addr
	err := h.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsLinkLocalUnicast() {
				found = p.Addr().WithZone("eth0")
			}
		}
		return err
	})
	if err != nil || !found.IsValid() {
		t.Fatalf("%s has no link-local address (%v)", h.Name, err)
	}
	return found
}

// TestLAN has two members find each other, who knew nothing of one another, on LANs of every kind.
func TestLAN(t *testing.T) {
	const filter = "nft add table inet f; nft 'add chain inet f input { type filter hook input priority 0; }'; nft add rule inet f input meta l4proto udp meta pkttype %s drop"
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, kind, filter string }{
		{"both", "46", ""},
		{"IPv4 only", "4", ""},
		{"IPv6 only", "6", ""},
		{"no broadcast", "4", "broadcast"},
		{"no multicast", "46", "multicast"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRoom(t)
			var commands []string
			if c.filter != "" {
				commands = []string{fmt.Sprintf(filter, c.filter)}
			}
			ha, hb := r.host("spencer", c.kind, commands...), r.host("bkero", c.kind, commands...)
			a, b := r.member(ha, issue(t, ca, "spencer", 1)), r.member(hb, issue(t, ca, "bkero", 2))
			if strings.Contains(c.kind, "4") {
				a.finds("bkero", netip.MustParseAddrPort("198.18.0.2:7002"))
				b.finds("spencer", netip.MustParseAddrPort("198.18.0.1:7001"))
			}
			if strings.Contains(c.kind, "6") && c.filter == "" {
				a.finds("bkero", netip.AddrPortFrom(linkLocal(t, hb), 7002))
				b.finds("spencer", netip.AddrPortFrom(linkLocal(t, ha), 7001))
			}
		})
	}
}

// TestLANStrangers has a host on the LAN that is no member listen, send rubbish, replay and flood.
func TestLANStrangers(t *testing.T) {
	ca, err1 := identity.NewCA("mesh")
	other, err2 := identity.NewCA("other")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	r := newRoom(t)
	spy := r.host("spy", "4")
	var conn *ipv4.PacketConn
	var sock net.PacketConn
	err := spy.Do(func() (err error) {
		sock, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", lan.Port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	conn = ipv4.NewPacketConn(sock)
	receive := func(from string, limit time.Duration) []byte {
		t.Helper()
		b := make([]byte, 2000)
		sock.SetReadDeadline(time.Now().Add(limit))
		for {
			n, _, src, err := conn.ReadFrom(b)
			if err != nil {
				return nil
			}
			if src.(*net.UDPAddr).IP.String() == from {
				return b[:n]
			}
		}
	}
	send := func(b []byte, to string, ttl int) {
		t.Helper()
		if err := conn.SetTTL(ttl); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(b, nil, &net.UDPAddr{IP: net.ParseIP(to), Port: lan.Port}); err != nil {
			t.Fatal(err)
		}
	}

	hs, hb := r.host("spencer", "4"), r.host("bkero", "4")
	spencer := r.member(hs, issue(t, ca, "spencer", 1))
	old := receive("198.18.0.2", 10*time.Second)
	recorded := receive("198.18.0.2", 10*time.Second)
	if len(recorded) != lan.Size {
		t.Fatalf("an announcement has %d bytes, want %d", len(recorded), lan.Size)
	}
	for _, secret := range []string{"spencer", "mesh"} {
		if strings.Contains(string(recorded), secret) {
			t.Errorf("an announcement shows %q", secret)
		}
	}
	stranger := r.member(r.host("stranger", "4"), issue(t, other, "stranger", 4))
	bkero := r.member(hb, issue(t, ca, "bkero", 2))
	bkero.finds("spencer", netip.MustParseAddrPort("198.18.0.2:7001"))
	for receive("198.18.0.3", 4*time.Second) != nil { // until the burst of the beginning is over
	}

	// What is not sealed, and what came over a router, has no answer and finds nobody.
	changed := append([]byte(nil), recorded...)
	changed[len(changed)-1] ^= 1
	send(changed, "198.18.0.3", 255)
	send([]byte("hello"), "198.18.0.3", 255)
	send(recorded, "198.18.0.3", 64)
	send(old, "198.18.0.3", 255) // bkero knows a newer one
	if b := receive("198.18.0.3", time.Second); b != nil {
		t.Errorf("a stranger got an answer of %d bytes", len(b))
	}
	// The newest one has one answer, whoever sends it.
	var newest []byte
	io.WriteString(spencer.in, "\n")
	for limit := 10 * time.Second; ; limit = 4 * time.Second { // to the end of the burst
		b := receive("198.18.0.2", limit)
		if b == nil {
			break
		}
		newest = append([]byte(nil), b...)
	}
	send(newest, "198.18.0.3", 255)
	if b := receive("198.18.0.3", time.Second); len(b) != len(newest) {
		t.Errorf("a member got an answer of %d bytes, want %d", len(b), len(newest))
	}
	send(newest, "198.18.0.3", 255)
	if b := receive("198.18.0.3", time.Second); b != nil {
		t.Errorf("a second answer came at once")
	}
	// A flood keeps nobody from the rest for long.
	for range 20000 {
		conn.WriteTo(changed, nil, &net.UDPAddr{IP: net.IPv4(198, 18, 0, 3), Port: lan.Port})
	}
	late := r.member(r.host("nibz", "4"), issue(t, ca, "nibz", 3))
	bkero.finds("nibz", netip.MustParseAddrPort("198.18.0.5:7003"))
	late.finds("bkero", netip.MustParseAddrPort("198.18.0.3:7002"))

	// A new address is announced at once.
	hb.Run(t.Context(), "ip", "addr", "add", "198.18.0.99/24", "dev", "eth0")
	hb.Run(t.Context(), "ip", "addr", "del", "198.18.0.3/24", "dev", "eth0")
	hb.Run(t.Context(), "ip", "addr", "add", "198.18.0.99/24", "dev", "eth0") // it went with the first
	io.WriteString(bkero.in, "\n")
	late.finds("bkero", netip.MustParseAddrPort("198.18.0.99:7002"))
	select {
	case s := <-stranger.lines:
		t.Errorf("a member of another mesh found %v", s)
	default:
	}
}

// TestLANOneHost has two members on one host, and one beside.
func TestLANOneHost(t *testing.T) {
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	r := newRoom(t)
	h := r.host("spencer", "46")
	a, b := r.member(h, issue(t, ca, "spencer", 1)), r.member(h, issue(t, ca, "guest", 2))
	a.finds("guest", netip.MustParseAddrPort("198.18.0.1:7002"))
	b.finds("spencer", netip.MustParseAddrPort("198.18.0.1:7001"))
	c := r.member(r.host("bkero", "46"), issue(t, ca, "bkero", 3))
	for _, m := range []*running{a, b} {
		m.finds("bkero", netip.MustParseAddrPort("198.18.0.2:7003"))
	}
	c.finds("spencer", netip.MustParseAddrPort("198.18.0.1:7001"))
	c.finds("guest", netip.MustParseAddrPort("198.18.0.1:7002"))
}
