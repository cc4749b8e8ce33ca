// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const pingEvery = 20 * time.Millisecond

// talk is two nodes that talk: pings from one to the other, and a look at the way on both sides.
type talk struct {
	t           *trial
	a, b        *node
	pings       *pinger
	there, back *watch
	end         func()
}

// talk begins to ping; end ends it.
func (w *world) talk(a, b *node) *talk {
	ctx, cancel := context.WithCancel(w.t.ctx)
	var wg sync.WaitGroup
	k := &talk{t: w.t, a: a, b: b, there: &watch{}, back: &watch{}}
	k.end = func() { cancel(); wg.Wait() }
	var err error
	if k.pings, err = newPinger(a, b.addr()); err != nil {
		cancel()
		w.t.must(err)
	}
	wg.Go(func() { k.pings.receive() })
	wg.Go(func() { k.pings.send(ctx) })
	wg.Go(func() { k.there.follow(ctx, a, b.Name) })
	wg.Go(func() { k.back.follow(ctx, b, a.Name) })
	return k
}

// direct reports whether both sides see the other directly.
func (k *talk) direct() bool { return k.there.now() == "direct" && k.back.now() == "direct" }

// relayed reports whether both sides see the other through a node.
func (k *talk) relayed() bool {
	via := func(w *watch) bool { s := w.now(); return len(s) > 4 && s[:4] == "via " }
	return via(k.there) && via(k.back)
}

// watch is how a way changed.
type watch struct {
	mu   sync.Mutex
	ways []string
	at   []time.Time
	why  []string // as the node says
}

func (w *watch) follow(ctx context.Context, n *node, peer string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		p := n.peer(peer)
		s := way(p)
		w.mu.Lock()
		if last := len(w.ways) - 1; last < 0 || w.ways[last] != s {
			w.ways, w.at = append(w.ways, s), append(w.at, time.Now())
			w.why = append(w.why, fmt.Sprintf("%s, %.1f ms", p.Reason, p.RTT))
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *watch) now() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ways) == 0 {
		return "none"
	}
	return w.ways[len(w.ways)-1]
}

// first is the first way that was one.
func (w *watch) first() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.ways {
		if s != "none" {
			return s
		}
	}
	return "none"
}

// changes are the ways taken after a time.
func (w *watch) changes(since time.Time) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range w.ways {
		if w.at[i].After(since) {
			out = append(out, s)
		}
	}
	return out
}

// story is the changes with their reasons, and their times after since.
func (w *watch) story(since time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for i, s := range w.ways {
		out = append(out, fmt.Sprintf("%+.2f s %s (%s)", w.at[i].Sub(since).Seconds(), s, w.why[i]))
	}
	return strings.Join(out, "; ")
}

// pinger sends an ICMP echo request (RFC 792) every pingEvery.
type pinger struct {
	conn net.PacketConn
	to   *net.IPAddr
	id   uint16

	mu   sync.Mutex
	sent []time.Time
	got  []time.Time // zero: no answer yet
}

var pingers atomic.Uint32

func newPinger(from *node, to netip.Addr) (*pinger, error) {
	p := &pinger{to: &net.IPAddr{IP: to.AsSlice()}, id: uint16(pingers.Add(1))}
	err := from.Do(func() (err error) {
		p.conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pinging from %s: %w", from.Name, err)
	}
	return p, nil
}

func (p *pinger) send(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	defer p.conn.Close()
	for {
		b := make([]byte, 64)
		b[0] = 8
		binary.BigEndian.PutUint16(b[4:], p.id)
		p.mu.Lock()
		seq := len(p.sent)
		p.sent, p.got = append(p.sent, time.Now()), append(p.got, time.Time{})
		p.mu.Unlock()
		binary.BigEndian.PutUint16(b[6:], uint16(seq))
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum += sum >> 16
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
		p.conn.WriteTo(b, p.to) // what is not sent is not answered
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *pinger) receive() {
	b := make([]byte, 2048)
	for {
		n, _, err := p.conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 8 || b[0] != 0 || binary.BigEndian.Uint16(b[4:]) != p.id {
			continue
		}
		now := time.Now()
		p.mu.Lock()
		seq := len(p.sent) - 1
		for seq >= 0 && uint16(seq) != binary.BigEndian.Uint16(b[6:]) {
			seq--
		}
		if seq >= 0 && p.got[seq].IsZero() {
			p.got[seq] = now
		}
		p.mu.Unlock()
	}
}

// after is when the first ping sent after a time was answered; zero: not yet.
func (p *pinger) after(at time.Time) (first time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sent {
		if got := p.got[i]; s.After(at) && !got.IsZero() && (first.IsZero() || got.Before(first)) {
			first = got
		}
	}
	return first
}

// lost is how many pings sent between two times had no answer, and how many were sent.
func (p *pinger) lost(from, to time.Time) (lost, sent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.sent {
		if !s.Before(from) && s.Before(to) {
			sent++
			if p.got[i].IsZero() {
				lost++
			}
		}
	}
	return lost, sent
}

// seconds tells, of the pings sent in each second after since, how many were answered, and how late the latest of them.
func (p *pinger) seconds(since time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	sent, answered, latest, second := 0, 0, time.Duration(0), 0
	flush := func() {
		out = append(out, fmt.Sprintf("%d of %d (%d ms)", answered, sent, latest.Milliseconds()))
		sent, answered, latest = 0, 0, 0
	}
	for i, s := range p.sent {
		if s.Before(since) {
			continue
		}
		for ; s.Sub(since) > time.Duration(second+1)*time.Second; second++ {
			flush()
		}
		if sent++; !p.got[i].IsZero() {
			answered++
			latest = max(latest, p.got[i].Sub(s))
		}
	}
	flush()
	return "answered in each second: " + strings.Join(out, ", ")
}

// gap is the longest time without an answer that ended after since, from the last one before it.
func (p *pinger) gap(since time.Time) (longest time.Duration) {
	p.mu.Lock()
	got := slices.Clone(p.got)
	p.mu.Unlock()
	got = slices.DeleteFunc(got, time.Time.IsZero)
	slices.SortFunc(got, time.Time.Compare)
	got = append(got, time.Now())
	for i := 1; i < len(got); i++ {
		if got[i].After(since) {
			longest = max(longest, got[i].Sub(got[i-1]))
		}
	}
	return longest
}

// transfer is a TCP stream through the tunnel that goes on until it is told to finish.
type transfer struct {
	t        *trial
	from, to net.Conn
	listener net.Listener
	stop     chan struct{}
	finished chan struct{}

	sum, got [sha256.Size]byte
	bytes    int64
	err      error
	last     atomic.Int64 // Unix nanoseconds of the last bytes that came
	mu       sync.Mutex
	stalled  time.Duration
}

// transferRate is in bytes a second.
const transferRate = 1 << 20

// transfer begins to send from one node to another. It is over when done has been called, or with the trial.
func (w *world) transfer(a, b *node) *transfer {
	x := &transfer{t: w.t, stop: make(chan struct{}), finished: make(chan struct{})}
	w.t.must(b.Do(func() (err error) {
		x.listener, err = net.Listen("tcp", netip.AddrPortFrom(b.addr(), 0).String())
		return err
	}))
	defer x.listener.Close()
	w.t.must(a.Do(func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second}
		x.from, err = d.Dial("tcp", x.listener.Addr().String())
		return err
	}))
	var err error
	x.to, err = x.listener.Accept()
	w.t.must(err)
	context.AfterFunc(w.t.ctx, func() { x.from.Close(); x.to.Close() })
	var wg sync.WaitGroup
	var sendErr, receiveErr error
	wg.Go(func() { sendErr = x.send() })
	wg.Go(func() { receiveErr = x.receive() })
	go func() {
		wg.Wait()
		x.err = errors.Join(sendErr, receiveErr)
		close(x.finished)
	}()
	return x
}

func (x *transfer) send() error {
	defer x.from.Close()
	h := sha256.New()
	var seed [32]byte
	r := rand.NewChaCha8(seed)
	b := make([]byte, transferRate/50)
	tick := time.NewTicker(time.Second / 50)
	defer tick.Stop()
	for {
		r.Read(b)
		h.Write(b)
		if _, err := x.from.Write(b); err != nil {
			return err
		}
		select {
		case <-x.stop:
			h.Sum(x.sum[:0])
			return x.from.(*net.TCPConn).CloseWrite()
		case <-tick.C:
		}
	}
}

func (x *transfer) receive() error {
	defer x.to.Close()
	h := sha256.New()
	b := make([]byte, 64<<10)
	x.last.Store(time.Now().UnixNano())
	for {
		n, err := x.to.Read(b)
		h.Write(b[:n])
		x.bytes += int64(n)
		now := time.Now()
		x.mu.Lock()
		x.stalled = max(x.stalled, now.Sub(time.Unix(0, x.last.Swap(now.UnixNano()))))
		x.mu.Unlock()
		if errors.Is(err, io.EOF) {
			h.Sum(x.got[:0])
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// done ends the transfer and says how it was.
func (x *transfer) done(limit time.Duration) string {
	close(x.stop)
	select {
	case <-x.finished:
	case <-time.After(limit):
		x.from.Close()
		x.to.Close()
		<-x.finished
		x.t.problem("TCP: %d bytes came, the rest did not within %s", x.bytes, seconds(limit))
		return "**did not end**"
	}
	switch {
	case x.err != nil:
		x.t.problem("TCP: %v", x.err)
		return "**" + x.err.Error() + "**"
	case x.sum != x.got:
		x.t.problem("TCP: %d bytes with the checksum %x instead of %x", x.bytes, x.got, x.sum)
		return "**wrong checksum**"
	}
	return fmt.Sprintf("%.1f MB right, stood %s", float64(x.bytes)/1e6, seconds(x.stalled))
}

// reach pings until there is an answer, and says how long that took.
func reach(a, b *node, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(a.w.t.ctx, limit)
	p, err := newPinger(a, b.addr())
	if err != nil {
		cancel()
		return 0, err
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.receive() })
	wg.Go(func() { p.send(ctx) })
	defer wg.Wait()
	defer cancel()
	begin := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if at := p.after(begin.Add(-time.Second)); !at.IsZero() {
			return at.Sub(begin), nil
		}
		select {
		case <-ctx.Done():
			return limit, errors.New("no answer")
		case <-tick.C:
		}
	}
}

// send sends n bytes over TCP as fast as it goes.
func (w *world) send(a, b *node, n int, limit time.Duration) error {
	end := time.Now().Add(limit)
	var l net.Listener
	err := b.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(b.addr(), 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	l.(*net.TCPListener).SetDeadline(end)
	var c net.Conn
	err = a.Do(func() (err error) {
		d := net.Dialer{Deadline: end}
		c, err = d.Dial("tcp", l.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	c.SetDeadline(end)
	s.SetDeadline(end)
	go func() {
		c.Write(make([]byte, n))
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.Copy(io.Discard, s)
	if err == nil && got != int64(n) {
		err = fmt.Errorf("%d of %d bytes came", got, n)
	}
	return err
}
