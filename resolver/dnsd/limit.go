// SPDX-License-Identifier: MIT

package dnsd

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// limiter bounds the answers that go to one source by UDP, whose sources can be forged: a bucket of tokens for each, one token an
// answer, filled at a rate of so many a second and never beyond what a second brings. Of the answers without a token every
// second one is sent all the same, truncated and therefore no longer than the query (BIND's "slip"): who has really asked asks
// again by TCP, and the rest is silence.
//
// A source is an address of the mesh, which nobody can forge, or as in BIND an IPv4 network of 24 bits or an IPv6 network of 56. The
// buckets are few and sources share them by a hash that nobody outside can know, so that memory is bounded.
type limiter struct {
	rate    float64 // tokens a second
	seed    maphash.Seed
	buckets [1024]bucket
}

type bucket struct {
	mu      sync.Mutex
	spent   float64 // tokens that are not there
	at      time.Time
	slipped bool
}

// verdict is what becomes of an answer.
type verdict int

const (
	send verdict = iota
	slip
	drop
)

func newLimiter(rate int) *limiter { return &limiter{rate: float64(rate), seed: maphash.MakeSeed()} }

// allow says what becomes of an answer to a source.
func (l *limiter) allow(from netip.Addr, member bool, now time.Time) verdict {
	if l.rate <= 0 || from.IsLoopback() {
		return send
	}
	if !member {
		bits := 56
		if from.Is4() {
			bits = 24
		}
		p, _ := from.Prefix(bits)
		from = p.Addr()
	}
	b := &l.buckets[maphash.Comparable(l.seed, from)%uint64(len(l.buckets))]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*l.rate)
	b.at = now
	if b.spent+1 <= l.rate {
		b.spent++
		return send
	}
	if b.slipped = !b.slipped; b.slipped {
		return slip
	}
	return drop
}
