// SPDX-License-Identifier: MIT

package queue

import (
	"sync"
	"time"
)

// Expire is after what time without progress a peer's bytes count as lost inside the engine: it drops what it has no
// session for, and says nothing. A wrong guess costs latency for that time, not throughput.
const Expire = 10 * time.Millisecond

// Limit keeps the queues inside the engine short: it counts the bytes that went in and have not come out, sealed and
// sent, and says whether there is room for more. There must be enough for all stages of the engine to have work, and what
// is more is latency. It is safe for concurrent use.
type Limit struct {
	Bytes int    // of all peers together: more goes in only while fewer are inside
	Wake  func() // called when there may be room again, after Room was false

	mu     sync.Mutex
	total  int       // of the flights below
	active []*Flight // those that are proven and have bytes inside
	denied bool
}

// Flight is what of one peer is inside the engine. The zero value is that of a peer nothing was sent to.
//
// Until something has come out it is not known whether the engine has a session at all; its bytes are not counted among
// all peers' until then, so that nobody but itself waits for it.
type Flight struct {
	bytes  int
	since  time.Time // of the last progress, or when the first went in
	proven bool      // something came out since bytes were last taken for lost
	place  int       // in Limit.active, plus 1
}

// Room reports whether more of a peer may go in. Where it is false it has to be asked again after Wake, or Expire.
func (l *Limit) Room(f *Flight, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(f, now)
	if f.bytes >= l.Bytes {
		l.denied = true
		return false
	}
	if !f.proven || l.total < l.Bytes {
		return true
	}
	for i := len(l.active) - 1; i >= 0; i-- { // expire removes the i-th, or none
		l.expire(l.active[i], now)
	}
	l.denied = l.total >= l.Bytes
	return !l.denied
}

func (l *Limit) expire(f *Flight, now time.Time) {
	if f.bytes > 0 && now.Sub(f.since) >= Expire {
		l.add(f, -f.bytes)
		f.proven = false
	}
}

// add changes a flight's bytes and what follows from them. l.mu is held.
func (l *Limit) add(f *Flight, bytes int) {
	if f.bytes += bytes; !f.proven {
		return
	}
	l.total += bytes
	switch {
	case f.bytes > 0 && f.place == 0:
		l.active = append(l.active, f)
		f.place = len(l.active)
	case f.bytes == 0 && f.place > 0:
		last := l.active[len(l.active)-1]
		l.active[f.place-1], last.place = last, f.place
		l.active = l.active[:len(l.active)-1]
		f.place = 0
	}
}

// In counts bytes that go into the engine.
func (l *Limit) In(f *Flight, bytes int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.bytes == 0 {
		f.since = now
	}
	l.add(f, bytes)
}

// Out counts bytes that have come out.
func (l *Limit) Out(f *Flight, bytes int, now time.Time) {
	l.mu.Lock()
	if f.since = now; !f.proven {
		f.proven = true
		l.total += f.bytes
	}
	l.add(f, -min(bytes, f.bytes)) // what was taken for lost may come out yet
	wake := l.denied && l.total < l.Bytes
	if wake {
		l.denied = false
	}
	l.mu.Unlock()
	if wake {
		l.Wake()
	}
}
