// SPDX-License-Identifier: MIT

// Package dnsd answers DNS queries from the View: what NSS does not reach (musl, static binaries, containers, phones) gets the
// same names here, and services, which NSS has no words for. It is authoritative for the mesh's zone and for the reverse names
// of its prefixes, and gives them to secondaries where some are configured.
//
// It is no open resolver: everybody who is neither on the mesh nor on this machine nor allowed by the configuration is refused,
// and so is every other zone, unless the configuration says who is to be asked for it. It must never wait for anything to
// answer for a name of the mesh, and knows nothing of where names come from.
//
// Run owns the sockets and all goroutines: for each address one or more that read queries by UDP and answer them at once, those
// of package dns for TCP, at most maxForwarded that wait for other servers, and those that serve secondaries.
package dnsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"mesh.internal/mesh/resolver"
)

// Config is what a Server needs. All but Addrs, View and Log may be left out.
type Config struct {
	Addrs []netip.AddrPort      // to answer at, by UDP and TCP
	View  func() *resolver.View // the current one
	Log   *slog.Logger

	Allow        []netip.Prefix                       // who may ask beside the mesh and this machine
	SingleLabels bool                                 // "bkero." is answered too, which is in no zone of ours
	TTL          time.Duration                        // of answers, in whole seconds; 0: DefaultTTL. Denials hold for 5 s at most (RFC 2308 section 5)
	Rate         int                                  // answers a second to one source by UDP (see limiter); 0: no limit
	Near         func(node string) time.Duration      // round trip, negative if there is none measured; nil: those who offer a service are named in random order
	Forward      []Forward                            // other zones; none: they are refused
	Secondaries  []netip.AddrPort                     // who may have whole zones (RFC 5936, RFC 1995), and is told of changes at that port (RFC 1996)
	Changed      func() <-chan struct{}               // closed when View has changed after the call; needed with Secondaries
	Problem      func(addr netip.AddrPort, err error) // an address that cannot be had, while others can; nil: it is logged
}

// Forward says whom to ask for the names of a zone and below: the one of these that answered last, then the others.
type Forward struct {
	Zone    string // lower case, without a final dot; "" is everything
	Servers []netip.AddrPort
}

// DefaultTTL is how long answers hold: names change seldom, and when they do, somebody waits.
const DefaultTTL = 10 * time.Second

const (
	negativeTTL  = 5    // seconds (RFC 2308 section 5)
	udpSize      = 1232 // bytes of an answer by UDP, at most: it fits into every packet (RFC 9715)
	maxForwarded = 256  // queries that wait for other servers, of all clients
	maxConns     = 256  // TCP connections to one address
	maxOnConn    = 128  // queries on one of them
	idle         = 10 * time.Second
)

// Server answers DNS queries.
type Server struct {
	cfg       Config
	last      atomic.Pointer[index]
	limit     *limiter
	forward   *forwarder // nil: nothing is forwarded
	transfers *transfers // nil: there are no secondaries
	slots     chan struct{}
}

// New returns a Server that does nothing yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, limit: newLimiter(cfg.Rate), slots: make(chan struct{}, maxForwarded)}
	if len(cfg.Forward) > 0 {
		s.forward = newForwarder(cfg)
	}
	if len(cfg.Secondaries) > 0 {
		s.transfers = newTransfers(cfg)
	}
	return s
}

// sockets are those of one address.
type listener struct {
	udp []*net.UDPConn
	tcp net.Listener
}

func listen(ctx context.Context, addr netip.AddrPort) (l listener, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("another DNS server listens there (make it leave this address alone, with bind-interfaces in dnsmasq for one): %w", err)
		}
	}()
	// TCP first: several may have the address by UDP.
	if l.tcp, err = net.Listen("tcp", addr.String()); err != nil {
		return l, err
	}
	lc := net.ListenConfig{Control: reuse}
	for range sockets() {
		pc, err := lc.ListenPacket(ctx, "udp", l.tcp.Addr().String())
		if err != nil {
			return l, err
		}
		u := pc.(*net.UDPConn)
		u.SetReadBuffer(1 << 20) // what comes while a View is being made; the system may allow less
		l.udp = append(l.udp, u)
	}
	return l, nil
}

func (l listener) close() {
	if l.tcp != nil {
		l.tcp.Close()
	}
	for _, u := range l.udp {
		u.Close()
	}
}

// Run answers until ctx ends. It fails at once if no address can be had.
func (s *Server) Run(ctx context.Context) error {
	var all []listener
	var errs []error
	for _, a := range s.cfg.Addrs {
		l, err := listen(ctx, a)
		if err != nil {
			err = fmt.Errorf("answering DNS: %w", err)
			errs = append(errs, err)
			if s.cfg.Problem != nil {
				s.cfg.Problem(a, err)
			} else {
				s.cfg.Log.Warn("an address to answer DNS at cannot be had", "endpoint", a.String(), "err", err)
			}
			continue
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	fail := func(err error) {
		if err != nil && ctx.Err() == nil {
			select {
			case failed <- err:
			default:
			}
			cancel()
		}
	}
	for _, l := range all {
		started, ended := make(chan struct{}), make(chan struct{})
		srv := &dns.Server{Listener: netutil.LimitListener(l.tcp, maxConns), Handler: tcpHandler{s, ctx}, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
			IdleTimeout: func() time.Duration { return idle }, MaxTCPQueries: maxOnConn, NotifyStartedFunc: func() { close(started) }}
		wg.Go(func() {
			defer close(ended)
			fail(srv.ActivateAndServe())
		})
		wg.Go(func() {
			select {
			case <-started:
				<-ctx.Done()
				srv.Shutdown()
			case <-ended:
			}
			l.close()
		})
		for _, u := range l.udp {
			wg.Go(func() { fail(s.serveUDP(ctx, u, &wg)) })
		}
	}
	if s.transfers != nil {
		wg.Go(func() { s.transfers.run(ctx) })
	}
	wg.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("answering DNS: %w", err)
	default:
		return nil
	}
}

// elsewhere reports whether a query is one to be forwarded.
func (s *Server) elsewhere(v *resolver.View, q *dns.Msg, from netip.Addr) bool {
	if s.forward == nil || !q.RecursionDesired || q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET || !s.permitted(v, from) {
		return false
	}
	name := trim(q.Question[0].Name)
	switch q.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeANY:
		return false
	}
	return s.index(v).zoneOf(name) == nil && !s.single(v, name) && s.forward.zone(name) != nil
}

// tcpHandler answers what comes by TCP.
type tcpHandler struct {
	s   *Server
	ctx context.Context // of Run
}

// ServeDNS implements dns.Handler.
func (h tcpHandler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s := h.s
	defer s.recovered(w.RemoteAddr().String())
	from := w.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
	v := s.cfg.View()
	if s.transfers != nil && len(q.Question) == 1 && s.secondary(from) && s.transfers.serve(w, q) {
		return
	}
	var m *dns.Msg
	if s.elsewhere(v, q, from) {
		select {
		case s.slots <- struct{}{}:
			m = s.forward.resolve(h.ctx, q)
			<-s.slots
		default:
			m = failure(q, dns.RcodeServerFailure)
		}
	} else {
		m = s.Answer(v, q, from)
		m.RecursionAvailable = s.forward != nil
	}
	minimal(m, dns.MaxMsgSize)
	if err := w.WriteMsg(m); err != nil {
		s.cfg.Log.Debug("a DNS answer was not sent", "endpoint", w.RemoteAddr().String(), "err", err)
	}
}

// recovered, deferred, keeps what one query does from ending the program.
func (s *Server) recovered(endpoint string) {
	if r := recover(); r != nil {
		s.cfg.Log.Error("a DNS query could not be worked on", "endpoint", endpoint, "panic", r)
	}
}

// secondary reports whether an address is that of one.
func (s *Server) secondary(from netip.Addr) bool {
	for _, a := range s.cfg.Secondaries {
		if a.Addr() == from {
			return true
		}
	}
	return false
}
