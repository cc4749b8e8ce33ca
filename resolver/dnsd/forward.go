// SPDX-License-Identifier: MIT

package dnsd

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Bounds of forwarding.
const (
	tryFor       = 1500 * time.Millisecond // one server, by UDP
	tryTCP       = 3 * time.Second         // one server, by TCP
	forwardFor   = 8 * time.Second         // all servers
	cacheBytes   = 8 << 20                 // about, of all answers that are remembered
	cacheTTL     = time.Hour               // at most
	cacheFailure = 2 * time.Second         // RFC 9520 section 3.2 wants one at least
)

// forwarder asks other servers and remembers what they say (RFC 2308 for denials).
//
// What it sends is hard to forge answers to: the port is new for each query, ID and the case of the name's letters are random
// (draft-vixie-dnsext-dns0x20), and an answer that does not have all of it is not taken; the server is asked again by TCP, as some
// do not keep the case.
//
// Two clients with one question are one query. A query that comes in with the very case that we have sent out is our own, sent
// back to us by who was to answer it: it is refused, and so ends the loop.
type forwarder struct {
	zones []*upstreams // the longest name first
	log   *slog.Logger

	mu     sync.Mutex // guards the rest
	calls  map[question]*call
	cached map[question]*cached
	size   int
}

// upstreams are the servers of a zone.
type upstreams struct {
	zone    string
	servers []netip.AddrPort
	good    atomic.Int64 // which one has answered last
}

// question is what is asked, and how: an answer with signatures is another one.
type question struct {
	name   string // lower case
	qtype  uint16
	do, cd bool
}

// call is a query under way.
type call struct {
	asked  string        // the name in the case in which it is sent
	done   chan struct{} // closed when answer is set
	answer *dns.Msg
}

// cached is an answer that is remembered.
type cached struct {
	msg   []byte
	at    time.Time
	until time.Time
}

func newForwarder(cfg Config) *forwarder {
	f := &forwarder{log: cfg.Log, calls: map[question]*call{}, cached: map[question]*cached{}}
	for _, w := range cfg.Forward {
		u := &upstreams{zone: w.Zone}
		for _, a := range w.Servers {
			if !slices.Contains(cfg.Addrs, a) { // we would ask ourselves
				u.servers = append(u.servers, a)
			}
		}
		f.zones = append(f.zones, u)
	}
	slices.SortFunc(f.zones, func(a, b *upstreams) int { return len(b.zone) - len(a.zone) })
	return f
}

// zone returns the servers to ask for a name, nil for none.
func (f *forwarder) zone(name string) *upstreams {
	for _, u := range f.zones {
		if u.zone == "" || name == u.zone || strings.HasSuffix(name, "."+u.zone) {
			return u
		}
	}
	return nil
}

// trim is a name in lower case and without its final dot.
func trim(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// failure is an answer that says only that there is none.
func failure(q *dns.Msg, rcode int) *dns.Msg {
	m, _ := reply(q)
	m.Rcode = rcode
	m.RecursionAvailable = true
	return m
}

// resolve returns the answer to q, which elsewhere has seen to be one question about somebody else's zone. It waits for forwardFor
// at most, or until ctx ends.
func (f *forwarder) resolve(ctx context.Context, q *dns.Msg) *dns.Msg {
	key := question{name: trim(q.Question[0].Name), qtype: q.Question[0].Qtype, cd: q.CheckingDisabled}
	if o := q.IsEdns0(); o != nil {
		key.do = o.Do()
	}
	now := time.Now()
	f.mu.Lock()
	if c := f.cached[key]; c != nil && now.Before(c.until) {
		f.mu.Unlock()
		return c.reply(q, now)
	}
	c := f.calls[key]
	switch {
	case c == nil:
		c = &call{asked: mixed(q.Question[0].Name), done: make(chan struct{})}
		f.calls[key] = c
		f.mu.Unlock()
		c.answer = f.ask(ctx, key, c.asked)
		f.mu.Lock()
		delete(f.calls, key)
		f.keep(key, c.answer)
		f.mu.Unlock()
		close(c.done)
	case c.asked == q.Question[0].Name:
		f.mu.Unlock()
		f.log.Warn("a DNS query that was forwarded has come back: let the other server not ask this one", "key", key.name)
		return failure(q, dns.RcodeRefused)
	default:
		f.mu.Unlock()
		select {
		case <-c.done:
		case <-ctx.Done():
		}
	}
	select {
	case <-c.done:
		if c.answer != nil {
			return answerFor(q, c.answer.Copy())
		}
	default:
	}
	return failure(q, dns.RcodeServerFailure)
}

// ask asks the servers of a zone one after the other. It returns nil if none has answered.
func (f *forwarder) ask(ctx context.Context, key question, name string) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, forwardFor)
	defer cancel()
	z := f.zone(key.name)
	q := new(dns.Msg)
	q.SetQuestion(name, key.qtype)
	q.CheckingDisabled = key.cd
	q.SetEdns0(udpSize, key.do)
	var failed *dns.Msg // SERVFAIL and REFUSED of one server may be its own trouble
	first := int(z.good.Load())
	for i := range z.servers {
		n := (first + i) % len(z.servers)
		m, err := exchange(ctx, q, z.servers[n].String())
		if err != nil {
			f.log.Debug("a DNS server did not answer", "endpoint", z.servers[n].String(), "err", err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
			z.good.Store(int64(n))
			return m
		}
		if failed == nil {
			failed = m
		}
	}
	return failed
}

// exchange asks one server, by TCP if need be.
func exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	q.Id = dns.Id()
	c := dns.Client{Net: "udp", Timeout: tryFor, UDPSize: udpSize}
	m, _, err := c.ExchangeContext(ctx, q, server)
	if err == nil && !m.Truncated && answers(m, q, true) {
		return m, nil
	}
	if err != nil && ctx.Err() != nil || isTimeout(err) {
		return nil, err // TCP to who is silent would take the time of the next one
	}
	q.Id = dns.Id()
	c = dns.Client{Net: "tcp", Timeout: tryTCP}
	if m, _, err = c.ExchangeContext(ctx, q, server); err == nil && !answers(m, q, false) {
		err = dns.ErrId
	}
	return m, err
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// answers reports whether m is an answer to q, with the name in the same case where exact.
func answers(m, q *dns.Msg, exact bool) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return false
	}
	x, y := m.Question[0], q.Question[0]
	return x.Qtype == y.Qtype && x.Qclass == y.Qclass && (x.Name == y.Name || !exact && strings.EqualFold(x.Name, y.Name))
}

// mixed is a name with the case of its letters at random, and one capital at least where it has letters: a client's is mostly
// lower case.
func mixed(name string) string {
	b := []byte(strings.ToLower(name))
	var bits [32]byte
	rand.Read(bits[:])
	letters := 0
	for i, c := range b {
		if 'a' <= c && c <= 'z' && (i == 0 || b[i-1] != '\\') {
			if bit := bits[letters/8%len(bits)] >> (letters % 8) & 1; bit == 1 {
				b[i] -= 'a' - 'A'
			}
			letters++
		}
	}
	if i := strings.IndexAny(string(b), "abcdefghijklmnopqrstuvwxyz"); i >= 0 && strings.ToLower(string(b)) == string(b) {
		b[i] -= 'a' - 'A'
	}
	return string(b)
}

// answerFor makes m, which is ours to change, the answer to a client's query: with its ID, its flags, and the name in its case.
func answerFor(q, m *dns.Msg) *dns.Msg {
	asked, name := m.Question[0].Name, q.Question[0].Name
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			if h := rr.Header(); strings.EqualFold(h.Name, asked) {
				h.Name = name
			}
		}
	}
	out, _ := reply(q)
	out.Rcode = m.Rcode & 0xf
	out.RecursionAvailable = true
	out.AuthenticatedData = m.AuthenticatedData
	out.Answer, out.Ns = m.Answer, m.Ns
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			out.Extra = append([]dns.RR{rr}, out.Extra...) // the OPT record last
		}
	}
	return out
}

// keep remembers an answer. mu is held.
func (f *forwarder) keep(key question, m *dns.Msg) {
	ttl := cacheFailure
	if m != nil {
		ttl = holds(m)
	} else {
		m = new(dns.Msg)
		m.SetQuestion(key.name+".", key.qtype)
		m.Response, m.Rcode = true, dns.RcodeServerFailure
	}
	b, err := m.Pack()
	if err != nil || ttl <= 0 {
		return
	}
	if old := f.cached[key]; old != nil {
		f.forget(key, old)
	}
	now := time.Now()
	c := &cached{msg: b, at: now, until: now.Add(ttl)}
	f.size += weight(key, c)
	f.cached[key] = c
	for k, o := range f.cached { // in no order, so what goes is any
		if f.size <= cacheBytes {
			break
		}
		if k != key {
			f.forget(k, o)
		}
	}
}

func (f *forwarder) forget(key question, c *cached) {
	f.size -= weight(key, c)
	delete(f.cached, key)
}

func weight(key question, c *cached) int { return len(key.name) + len(c.msg) + 200 }

// holds is how long an answer may be remembered: as its records say, or for a denial its SOA record (RFC 2308 section 5), without
// which it may not be.
func holds(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return cacheFailure
	}
	ttl := uint32(cacheTTL / time.Second)
	denied := len(m.Answer) == 0 || m.Rcode == dns.RcodeNameError
	for _, rr := range m.Answer {
		ttl = min(ttl, rr.Header().Ttl)
	}
	soa := false
	for _, rr := range m.Ns {
		ttl = min(ttl, rr.Header().Ttl)
		if s, ok := rr.(*dns.SOA); ok {
			soa = true
			ttl = min(ttl, s.Minttl)
		}
	}
	if denied && !soa {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// reply is the answer again, its records as much older as it is.
func (c *cached) reply(q *dns.Msg, now time.Time) *dns.Msg {
	m := new(dns.Msg)
	if m.Unpack(c.msg) != nil || len(m.Question) != 1 {
		return failure(q, dns.RcodeServerFailure)
	}
	age := uint32(now.Sub(c.at) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return answerFor(q, m)
}
