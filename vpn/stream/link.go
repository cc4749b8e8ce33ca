// SPDX-License-Identifier: MIT

package stream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	maxQueue = 256 << 10 // bytes that wait or are being written, of one link

	pingAfter   = 500 * time.Millisecond // of silence after something was sent
	deadAfter   = 2 * time.Second        // of silence after something was sent
	idle        = 20 * time.Second       // without traffic until a ping keeps NATs and proxies from forgetting us
	late        = 500 * time.Millisecond // our own timers that are later than this say nothing of others
	writeLimit  = 10 * time.Second       // for one write
	retireLimit = 5 * time.Second        // for what is under way when a link is given up
)

var (
	errSilent  = fmt.Errorf("nothing came back for %v", deadAfter)
	errRetired = errors.New("it was given up")
)

// link is one TLS connection to a member.
//
// Its reader runs in carry, its writer in write. It ends in one of two ways: cut, at once; or retire, when what waits is
// written first, then TLS's close_notify, and the other side does the same.
type link struct {
	name    string
	peer    *peer // once it is attached
	used    bool  // a frame has come since; guarded by Streams.mu
	conn    *tls.Conn
	dialled bool // by us
	since   time.Time
	wake    chan struct{} // capacity 1: there is something to write

	mu         sync.Mutex // guards the fields below
	queue      []byte     // frames that wait, after room for two control frames
	spare      []byte     // the other buffer, while it is not being written
	writing    int        // bytes being written
	ping, pong bool       // to be sent
	closing    bool       // nothing more is taken
	ended      bool
	err        error     // why it ended, the first reason
	sent       time.Time // the last write began
	heard      time.Time // the last frame came
	unanswered time.Time // the first write began after which nothing was heard; zero if there is none
	pinged     bool      // since then
	watch      *time.Timer
	due        time.Time // of watch
	rx, tx     uint64    // bytes of datagrams
	dropped    uint64    // datagrams
}

// room is what the queue leaves free at its start for control frames.
const room = 2 * controlSize

func newLink(name string, c *tls.Conn, dialled bool) *link {
	now := time.Now()
	l := &link{name: name, conn: c, dialled: dialled, since: now, heard: now, sent: now, pong: true, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watch = time.AfterFunc(idle, l.check)
	l.due = now.Add(idle)
	return l
}

// send queues copies of datagrams, those that do not fit apart. It reports whether the link still takes any.
func (l *link) send(bufs [][]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return false
	}
	for _, p := range bufs {
		if len(p) == 0 || len(p) > MaxDatagram || len(l.queue)+l.writing+headSize+len(p) > maxQueue {
			l.dropped++
			continue
		}
		if len(l.queue) == 0 {
			l.queue = append(l.queue, make([]byte, room)...)
		}
		l.queue = appendDatagram(l.queue, p)
		l.tx += uint64(len(p))
	}
	l.poke()
	return true
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be written now, and whether nothing will come after it. l.mu is held.
func (l *link) take(now time.Time) (b []byte, last bool) {
	var control [room]byte
	head := control[:0]
	if l.pong {
		head = appendControl(head, kindPong)
	}
	if l.ping {
		head = appendControl(head, kindPing)
	}
	l.ping, l.pong = false, false
	if len(l.queue) == 0 && len(head) == 0 {
		return nil, l.closing
	}
	if len(l.queue) == 0 {
		l.queue = append(l.queue, control[:]...)
	}
	b = l.queue[room-len(head):]
	copy(b, head)
	l.queue, l.spare = l.spare, l.queue[:0]
	l.writing, l.sent = len(b), now
	if l.unanswered.IsZero() {
		l.unanswered, l.pinged = now, false
		l.arm(now, now.Add(pingAfter))
	}
	return b, false
}

// arm makes check run at a time, or earlier. l.mu is held.
func (l *link) arm(now, at time.Time) {
	if !l.closing && (at.Before(l.due) || !l.due.After(now)) {
		l.due = at
		l.watch.Reset(at.Sub(now))
	}
}

// write writes what is queued until the link ends.
func (l *link) write() {
	for {
		l.mu.Lock()
		b, last := l.take(time.Now())
		l.mu.Unlock()
		if last {
			l.conn.SetWriteDeadline(time.Now().Add(writeLimit))
			l.conn.CloseWrite()
			return
		}
		if b == nil {
			<-l.wake
			continue
		}
		l.conn.SetWriteDeadline(time.Now().Add(writeLimit))
		_, err := l.conn.Write(b)
		l.mu.Lock()
		l.writing = 0
		l.mu.Unlock()
		if err != nil {
			l.cut(err)
			return
		}
	}
}

// carry runs the link until it has ended, and returns why. It calls used once, after the first frame.
func (l *link) carry(receive func(from string, pkts [][]byte), used func()) error {
	var wg sync.WaitGroup
	wg.Go(l.write)
	r := newReader(l.conn)
	for {
		b, err := r.next()
		if err != nil {
			if err == io.EOF {
				l.retire(io.EOF) // the other side has nothing more; ours is flushed
			} else {
				l.cut(err)
			}
			break
		}
		l.hear(b)
		if used != nil {
			used()
			used = nil
		}
		if len(b.pkts) > 0 {
			receive(l.name, b.pkts)
		}
	}
	wg.Wait()
	l.cut(errRetired)
	return l.err // nothing writes it any more
}

// hear notes what came, and answers.
func (l *link) hear(b batch) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard, l.unanswered = now, time.Time{}
	for _, p := range b.pkts {
		l.rx += uint64(len(p))
	}
	// One who only receives says so now and then: a sender whose data moves, however slowly, does not hear silence.
	if b.ping || len(b.pkts) > 0 && now.Sub(l.sent) >= pingAfter {
		l.pong = true
		l.poke()
	}
}

// check runs when the other side may be dead, or forgotten by a NAT.
func (l *link) check() {
	if err := l.verdict(time.Now()); err != nil {
		l.cut(err)
	}
}

// verdict returns why the link must end now, or nil after it has set the time of the next check.
func (l *link) verdict(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wasLate := now.Sub(l.due) > late
	silent := now.Sub(l.unanswered)
	var next time.Time
	switch {
	case l.ended:
		return nil
	case l.closing:
		return errRetired
	case l.unanswered.IsZero() && now.Sub(l.heard) < idle:
		next = l.heard.Add(idle)
	case l.unanswered.IsZero():
		l.ping = true
		if l.spare = nil; len(l.queue) == 0 {
			l.queue = nil // an idle link holds no buffers
		}
		next = now.Add(idle) // writing the ping makes it sooner
	case wasLate: // it may have answered while we were asleep
		l.unanswered, l.pinged = now, false
		next = now.Add(pingAfter)
	case silent >= deadAfter:
		return errSilent
	case silent >= pingAfter:
		l.ping = l.ping || !l.pinged
		l.pinged = true
		next = l.unanswered.Add(deadAfter)
	default:
		next = l.unanswered.Add(pingAfter)
	}
	l.due = next
	l.watch.Reset(next.Sub(now))
	l.poke()
	return nil
}

// retire gives the link up without loss: why is what carry will return.
func (l *link) retire(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return
	}
	l.closing, l.err = true, why
	l.due = time.Now().Add(retireLimit)
	l.watch.Reset(retireLimit)
	l.poke()
}

// cut ends the link at once.
func (l *link) cut(why error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = why
	}
	l.closing, l.ended, l.queue = true, true, nil
	l.watch.Stop()
	l.mu.Unlock()
	l.conn.NetConn().Close() // what TLS has to say would wait for a dead connection
	l.poke()
}
