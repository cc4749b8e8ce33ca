// SPDX-License-Identifier: MIT

// Package portmap asks the default gateways to let packets from outside through to this node: by PCP (RFC 6887),
// NAT-PMP (RFC 6886) and UPnP-IGD (WANIPConnection 1 and 2, WANPPPConnection 1), and for IPv6, where there is a firewall
// but no translation, by PCP and UPnP's WANIPv6FirewallControl 1.
//
// All protocols of a gateway are tried at once; the first in the order above that grants a mapping keeps it, so that a
// gateway holds one mapping for a port. It is renewed at half its lifetime and at least every ten minutes, when the
// machine's addresses change (Poke), and when the gateway announces a restart (RFC 6886 section 3.2.1, RFC 6887 section
// 14.1). Renewing makes a lost mapping anew and costs no more than comparing epochs, so epochs are not kept. It is given
// back when Run ends.
//
// The network is not trusted. Only the gateway is asked: every connection goes to its own address, whatever host it names
// in a URL, without a proxy, redirects, or more than 64 KiB read. What it says is an external address is reported only if
// it can be one. A private one is (Mapping.Public tells): behind a second NAT, nodes between the two can use it, and the
// gateway could as well have given us that address by DHCP. Mapped is a suggestion for others to try, never proof that
// packets arrive.
//
// New starts nothing. Run owns every goroutine and socket of the Mapper; Probe those of its own call.
package portmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	lifetime   = time.Hour // asked for; a crash leaves a mapping that long
	maxHold    = 24 * time.Hour
	renewAtMin = 30 * time.Second // whatever lifetime the gateway grants
	renewAtMax = 10 * time.Minute // notices a restarted gateway that does not announce it
	retryMin   = time.Minute      // doubles
	retryMax   = time.Hour
	pokeEvery  = 10 * time.Second        // at most, towards an unchanged gateway
	settleFor  = time.Second             // changes come in bursts
	answerTime = 3750 * time.Millisecond // four tries 250 ms, 500 ms, 1 s, 2 s long (RFC 6886 section 3.1); home routers can be slow
	closeTime  = 2 * time.Second
)

// Protocol is a port-mapping protocol.
type Protocol string

// The protocols, the preferred one first.
const (
	PCP    Protocol = "pcp"
	NATPMP Protocol = "nat-pmp"
	UPnP   Protocol = "upnp"
)

// Gateway is a router to ask.
type Gateway struct {
	Addr  netip.Addr // the router's, with a zone if it is link-local
	Local netip.Addr // this machine's, of the same family: what the mapping leads to
}

// Config is what a Mapper needs.
type Config struct {
	Port     uint16                    // at which this node listens for UDP
	TCP      bool                      // it listens for TCP at the same number
	Secret   []byte                    // of this node: its PCP mappings can be renewed after a crash; nil for a random one
	Gateways func() ([]Gateway, error) // the machine's default gateways
	Changed  func()                    // if not nil, called when Mapped has changed; must not block
	Log      *slog.Logger
}

// Mapping says that a gateway passes on what is sent to External.
type Mapping struct {
	Protocol Protocol
	Gateway  netip.Addr
	Internal netip.AddrPort
	External netip.AddrPort // the same as Internal where nothing is translated
	TCP      bool           // else UDP
	Expires  time.Time      // unless renewed
}

// Public reports whether the whole Internet may reach the mapping. If not, there is another NAT behind the gateway.
func (m Mapping) Public() bool {
	a := m.External.Addr()
	return !a.IsPrivate() && !shared.Contains(a)
}

var (
	shared   = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: of a provider's NAT
	reserved = netip.MustParsePrefix("240.0.0.0/4")
	this     = netip.MustParsePrefix("0.0.0.0/8")
)

// usable returns why nobody can send to an external address that a gateway has named.
func usable(external, internal netip.AddrPort) error {
	a, p := external.Addr(), external.Port()
	switch {
	case !a.IsGlobalUnicast() || a.Is4() != internal.Addr().Is4() || reserved.Contains(a) || this.Contains(a):
		return fmt.Errorf("the gateway names %v as external address, which cannot be one", a)
	case p < 1024 && p != internal.Port(): // nothing a gateway gives to a client, but services of others
		return fmt.Errorf("the gateway names %d as external port, which cannot be one", p)
	}
	return nil
}

// want is a mapping to ask for.
type want struct {
	tcp      bool
	port     uint16
	external netip.AddrPort // asked for if there is a choice; port 0 is any
}

func network(tcp bool) string {
	if tcp {
		return "tcp"
	}
	return "udp"
}

// grant is what a gateway gives.
type grant struct {
	external netip.AddrPort
	lifetime time.Duration // 0: for ever
}

// client speaks one protocol with one gateway. Calls do not overlap, and take little longer than answerTime each.
type client interface {
	name() Protocol
	probe(context.Context) error               // does the gateway speak it?
	open(context.Context, want) (grant, error) // makes or renews a mapping
	close(context.Context, want) error
}

// Mapper keeps the mappings of one port. Its methods are safe for concurrent use.
type Mapper struct {
	cfg     Config
	clients func(Gateway) []client // tests: others
	listen  func(context.Context)  // tests: another
	poke    chan struct{}          // capacity 1

	mu       sync.Mutex
	gateways []Gateway // that Run asks, for hear
	mapped   []Mapping
}

// New prepares a Mapper.
func New(cfg Config) *Mapper {
	m := &Mapper{cfg: cfg, poke: make(chan struct{}, 1)}
	m.listen = m.hear
	m.clients = func(gw Gateway) []client {
		c := []client{newPCP(gw, cfg.Secret)}
		if gw.Addr.Is4() {
			c = append(c, newNATPMP(gw))
		}
		return append(c, newUPnP(gw))
	}
	return m
}

// Mapped returns the mappings that are in force.
func (m *Mapper) Mapped() []Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mapped)
}

// Poke says that the machine's addresses or routes may have changed. It does not block.
func (m *Mapper) Poke() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Answer says whether a gateway speaks a protocol.
type Answer struct {
	Gateway  netip.Addr
	Protocol Protocol
	Err      error // nil if it does
}

// Probe asks the gateways which protocols they speak. It takes up to 6 s, and changes nothing at them.
func (m *Mapper) Probe(ctx context.Context) ([]Answer, error) {
	gateways, err := m.cfg.Gateways()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	var answers []Answer
	var waits []<-chan error
	for _, gw := range gateways {
		clients := m.clients(gw)
		waits = append(waits, probeAll(ctx, clients)...)
		for _, c := range clients {
			answers = append(answers, Answer{Gateway: gw.Addr, Protocol: c.name()})
		}
	}
	for i := range answers {
		answers[i].Err = <-waits[i]
	}
	return answers, nil
}

// probeAll probes at once. Each result must be received.
func probeAll(ctx context.Context, clients []client) []<-chan error {
	var out []<-chan error
	for _, c := range clients {
		result := make(chan error, 1)
		out = append(out, result)
		go func() { result <- tame(c.probe(ctx)) }()
	}
	return out
}

// tame makes an error, with whatever a gateway has put into it, fit for a log and a terminal.
func tame(err error) error {
	if err == nil {
		return nil
	}
	const most = 200
	s := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, err.Error())
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return errors.New(s)
}

// session is what Run knows of a gateway.
type session struct {
	gw       Gateway
	log      *slog.Logger
	clients  []client
	current  client            // that has granted what is held
	held     map[bool]*Mapping // by TCP
	failures int
	asked    time.Time
	next     time.Time
}

// Run keeps the mappings until ctx ends, and then gives them back, which takes up to 6 s where the gateway is gone.
func (m *Mapper) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.listen(ctx) })
	sessions := map[Gateway]*session{}
	for poked := false; ctx.Err() == nil; {
		next := m.round(ctx, sessions, poked)
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-timer.C:
			poked = false
		case <-m.poke:
			poked = true
			timer.Reset(settleFor + rand.N(settleFor)) // RFC 6887 section 14.1.3: not all clients at once
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		timer.Stop()
	}
	m.concern(nil)
	for _, s := range sessions {
		wg.Go(s.close)
	}
	wg.Wait()
	m.publish(nil)
}

// round does what is due and returns when there will be more to do.
func (m *Mapper) round(ctx context.Context, sessions map[Gateway]*session, poked bool) time.Time {
	gateways, err := m.cfg.Gateways()
	if err != nil {
		m.cfg.Log.Debug("the default gateways are not known", "err", err)
		return time.Now().Add(retryMin)
	}
	m.concern(gateways)
	var wg sync.WaitGroup
	for gw, s := range sessions {
		if !slices.Contains(gateways, gw) {
			delete(sessions, gw)
			wg.Go(s.close)
		}
	}
	now := time.Now()
	for _, gw := range gateways {
		s := sessions[gw]
		if s == nil {
			s = &session{gw: gw, log: m.cfg.Log.With("gateway", gw.Addr), clients: m.clients(gw), held: map[bool]*Mapping{}, next: now}
			sessions[gw] = s
		} else if due := s.asked.Add(pokeEvery); poked && due.Before(s.next) {
			s.next = due
		}
		if !s.next.After(now) {
			wg.Go(func() { s.step(ctx, m.cfg) })
		}
	}
	wg.Wait()
	m.publish(sessions)
	next := now.Add(retryMax)
	for _, s := range sessions {
		if s.next.Before(next) {
			next = s.next
		}
	}
	return next
}

// step renews what is held, or looks for a protocol that grants it.
func (s *session) step(ctx context.Context, cfg Config) {
	s.asked = time.Now()
	err := error(nil)
	if s.current != nil {
		if err = s.renew(ctx, s.current, cfg); err == nil {
			return
		}
		s.log.Debug("a port mapping was not renewed", "protocol", s.current.name(), "err", err)
	}
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := probeAll(pctx, s.clients)
	granted := false
	for i, c := range s.clients {
		err := <-results[i]
		if granted {
			continue
		}
		if err == nil {
			err = s.renew(ctx, c, cfg)
		}
		if granted = err == nil; granted {
			cancel()
			s.current = c
			s.log.Info("the gateway lets packets through to this node", "protocol", c.name(), "endpoint", s.held[false].External)
		} else {
			s.log.Debug("no port mapping", "protocol", c.name(), "err", err)
		}
	}
	if granted {
		return
	}
	wait := min(retryMin<<min(s.failures, 10), retryMax)
	s.failures++
	s.next = time.Now().Add(wait)
	for tcp, h := range s.held { // it may yet be in force: the gateway has not taken it back
		if !h.Expires.After(time.Now()) {
			delete(s.held, tcp)
		} else if h.Expires.Before(s.next) {
			s.next = h.Expires
		}
	}
	if len(s.held) == 0 {
		s.current = nil
	}
}

// renew makes or renews all mappings by c.
func (s *session) renew(ctx context.Context, c client, cfg Config) error {
	due := renewAtMax
	for _, tcp := range []bool{false, true} {
		if tcp && !cfg.TCP {
			break
		}
		w := want{tcp: tcp, port: cfg.Port, external: netip.AddrPortFrom(netip.Addr{}, cfg.Port)}
		if h := cmp.Or(s.held[tcp], s.held[false]); h != nil {
			w.external = h.External
		}
		internal := netip.AddrPortFrom(s.gw.Local, cfg.Port)
		g, err := c.open(ctx, w)
		if err = tame(err); err == nil {
			err = usable(g.external, internal)
		}
		if err != nil && tcp { // UDP is what matters
			delete(s.held, tcp)
			s.log.Debug("no port mapping for TCP", "protocol", c.name(), "err", err)
			continue
		} else if err != nil {
			return err
		}
		if g.lifetime == 0 || g.lifetime > maxHold { // RFC 6887 section 15
			g.lifetime = maxHold
		}
		s.held[tcp] = &Mapping{Protocol: c.name(), Gateway: s.gw.Addr, Internal: internal, External: g.external, TCP: tcp,
			Expires: time.Now().Add(g.lifetime)}
		due = min(due, max(g.lifetime/2, renewAtMin))
	}
	s.failures = 0
	s.next = time.Now().Add(due)
	return nil
}

// close gives back what is held, within closeTime and one answer's time.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	for tcp, h := range s.held {
		if err := tame(s.current.close(ctx, want{tcp: tcp, port: h.Internal.Port(), external: h.External})); err != nil {
			s.log.Debug("a port mapping was not given back", "protocol", h.Protocol, "err", err)
		}
	}
}

// publish makes what the sessions hold what Mapped returns.
func (m *Mapper) publish(sessions map[Gateway]*session) {
	var now []Mapping
	for _, s := range sessions {
		for _, h := range s.held {
			now = append(now, *h)
		}
	}
	slices.SortFunc(now, func(a, b Mapping) int {
		return cmp.Or(a.Internal.Addr().Compare(b.Internal.Addr()), cmp.Compare(network(b.TCP), network(a.TCP)))
	})
	m.mu.Lock()
	same := slices.EqualFunc(now, m.mapped, func(a, b Mapping) bool {
		a.Expires = b.Expires
		return a == b
	})
	m.mapped = now
	m.mu.Unlock()
	if !same && m.cfg.Changed != nil {
		m.cfg.Changed()
	}
}

// concern says whose announcements count.
func (m *Mapper) concern(gateways []Gateway) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gateways = gateways
}

// hear takes a gateway's announcements that it has restarted, or has another address. What they say does not matter:
// that the gateway, or somebody on the LAN in its name, says something is cause for renewing, at most every pokeEvery.
func (m *Mapper) hear(ctx context.Context) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { // others listen too
			err = share(fd)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(ctx, "udp4", "224.0.0.1:5350") // every host is in this group
	if err != nil {
		m.cfg.Log.Debug("announcements of gateways are not heard", "err", err)
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	for b := make([]byte, 1); ; {
		_, from, err := conn.(*net.UDPConn).ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		m.mu.Lock()
		known := slices.ContainsFunc(m.gateways, func(gw Gateway) bool { return gw.Addr == from.Addr().Unmap() })
		m.mu.Unlock()
		if known {
			m.Poke()
		}
	}
}
