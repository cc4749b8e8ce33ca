// SPDX-License-Identifier: MIT

// Package dnsd answers DNS queries from the View: what NSS does not reach (musl, static binaries, containers, phones)
// gets the same names here. It is authoritative for the mesh's zone and for the reverse names of its prefixes, and
// refuses everything else, and everybody who is not on the mesh or on this machine: it is no open resolver.
//
// Run owns the sockets and all goroutines; at most maxInFlight queries are worked on at a time, more are dropped.
package dnsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"mesh.internal/mesh/resolver"
)

// Config is what a Server needs.
type Config struct {
	Addrs []netip.AddrPort // UDP and TCP
	View  func() *resolver.View
	Log   *slog.Logger
}

// Server answers DNS queries.
type Server struct {
	cfg   Config
	slots chan struct{}
}

const (
	ttl         = 10 // seconds
	negativeTTL = 5  // seconds (RFC 2308 section 5)
	udpSize     = 1232
	maxInFlight = 256
)

// New returns a Server that does nothing yet.
func New(cfg Config) *Server { return &Server{cfg: cfg, slots: make(chan struct{}, maxInFlight)} }

// Run answers until ctx ends. It fails at once if an address cannot be had.
func (s *Server) Run(ctx context.Context) error {
	var servers []*dns.Server
	var err error
	for _, a := range s.cfg.Addrs {
		var pc net.PacketConn
		var l net.Listener
		if pc, err = net.ListenPacket("udp", a.String()); err != nil {
			break
		}
		servers = append(servers, &dns.Server{PacketConn: pc, Handler: s, UDPSize: udpSize})
		if l, err = net.Listen("tcp", a.String()); err != nil {
			break
		}
		servers = append(servers, &dns.Server{Listener: l, Handler: s, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxTCPQueries: 128})
	}
	if err != nil {
		for _, srv := range servers {
			if srv.PacketConn != nil {
				srv.PacketConn.Close()
			} else {
				srv.Listener.Close()
			}
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("another DNS server listens there (make it leave this address alone, with bind-interfaces in dnsmasq for one): %w", err)
		}
		return fmt.Errorf("answering DNS: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		wg.Go(func() {
			defer cancel()
			defer close(ended)
			errs[i] = srv.ActivateAndServe()
		})
		wg.Go(func() {
			select {
			case <-started:
			case <-ended:
				return
			}
			<-ctx.Done()
			srv.Shutdown()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return
	}
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.Error("a DNS query could not be worked on", "endpoint", w.RemoteAddr().String(), "panic", r)
		}
	}()
	var from netip.Addr
	if ap, err := netip.ParseAddrPort(w.RemoteAddr().String()); err == nil {
		from = ap.Addr().Unmap().WithZone("")
	}
	m := Answer(s.cfg.View(), q, from)
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		size = min(max(int(o.UDPSize()), dns.MinMsgSize), udpSize)
	}
	if w.LocalAddr().Network() == "tcp" {
		size = dns.MaxMsgSize
	}
	m.Truncate(size)
	if err := w.WriteMsg(m); err != nil {
		s.cfg.Log.Debug("a DNS answer was not sent", "endpoint", w.RemoteAddr().String(), "err", err)
	}
}

// Answer is the answer to q, which from has asked.
func Answer(v *resolver.View, q *dns.Msg, from netip.Addr) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = false
	m.Compress = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(udpSize, false)
		if o.Version() != 0 {
			m.Rcode = dns.RcodeBadVers // RFC 6891 section 6.1.3
			return m
		}
	}
	if q.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	zone, reverse := zoneOf(v, name)
	if !from.IsLoopback() && !v.InPrefixes(from) || zone == "" || question.Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeRefused
		return m
	}
	m.Authoritative = true
	hdr := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: question.Name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl} // the case of the question is kept
	}
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: zone + ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns: "dns." + v.Zone + ".", Mbox: "hostmaster." + v.Zone + ".", Serial: uint32(v.Revision), Refresh: 60, Retry: 10, Expire: 86400, Minttl: negativeTTL}
	known := name == zone
	switch {
	case known && question.Qtype == dns.TypeSOA:
		soa.Hdr.Name, soa.Hdr.Ttl = question.Name, ttl
		m.Answer = append(m.Answer, soa)
	case known && question.Qtype == dns.TypeNS:
		m.Answer = append(m.Answer, &dns.NS{Hdr: hdr(dns.TypeNS), Ns: soa.Ns})
	case known:
	case reverse:
		a, whole, ok := addrOf(name)
		if known = ok && !whole && below(v, name); !whole {
			break
		}
		h, found := v.Reverse(a)
		known = found && v.InPrefixes(a)
		if known && question.Qtype == dns.TypePTR {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: hdr(dns.TypePTR), Ptr: v.FQDN(h) + "."})
		}
	default:
		var h *resolver.Host
		if h, known = v.Lookup(name); h == nil {
			break
		}
		for _, a := range h.Addrs {
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				m.Answer = append(m.Answer, &dns.A{Hdr: hdr(dns.TypeA), A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr(dns.TypeAAAA), AAAA: a.AsSlice()})
			}
		}
	}
	if known && question.Qtype == dns.TypeANY { // RFC 8482 section 4.2
		m.Answer = append(m.Answer, &dns.HINFO{Hdr: hdr(dns.TypeHINFO), Cpu: "RFC8482"})
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, soa) // RFC 2308 section 2
		if !known {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m
}

// zoneOf returns the zone of ours that a name lies in, and whether it is one of reverse names.
func zoneOf(v *resolver.View, name string) (zone string, reverse bool) {
	if name == v.Zone || strings.HasSuffix(name, "."+v.Zone) {
		return v.Zone, false
	}
	for _, p := range v.Prefixes {
		z := reverseZone(p)
		if name == z || strings.HasSuffix(name, "."+z) {
			return z, true
		}
	}
	return "", false
}

// reverseZone is the smallest zone of reverse names, at a whole label, that holds a prefix.
func reverseZone(p netip.Prefix) string {
	arpa, _ := dns.ReverseAddr(p.Masked().Addr().String())
	labels := strings.Split(strings.TrimSuffix(arpa, "."), ".")
	bits, per := p.Bits(), 8
	if p.Addr().Is6() {
		per = 4
	}
	drop := p.Addr().BitLen()/per - bits/per
	return strings.Join(labels[drop:], ".")
}

// addrOf reads a reverse name; whole is false for one that is only the end of some.
func addrOf(name string) (a netip.Addr, whole, ok bool) {
	if s, v4 := strings.CutSuffix(name, ".in-addr.arpa"); v4 {
		l := strings.Split(s, ".")
		if len(l) < 4 {
			return a, false, true
		}
		a, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
		return a, len(l) == 4 && err == nil, len(l) == 4
	}
	s := strings.TrimSuffix(name, ".ip6.arpa")
	l := strings.Split(s, ".")
	if len(l) < 32 {
		return a, false, true
	}
	if len(l) > 32 {
		return a, false, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		if len(l[i]) != 1 {
			return a, false, false
		}
		b.WriteString(l[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil, err == nil
}

// below reports whether a host's address has a reverse name below name (RFC 8020: such a name exists, without data).
func below(v *resolver.View, name string) bool {
	for _, h := range v.Hosts() {
		for _, a := range h.Addrs {
			if arpa, err := dns.ReverseAddr(a.String()); err == nil && strings.HasSuffix(strings.TrimSuffix(arpa, "."), "."+name) {
				return true
			}
		}
	}
	return false
}
