// SPDX-License-Identifier: MIT

package etcd

import (
	"errors"
	"sync"
)

// errMoved ends Follow when the store has begun anew.
var errMoved = errors.New("the store has begun anew")

// place is where a store was when it was loaded last: whoever follows from there must know when that ends.
type place struct {
	mu    sync.Mutex
	here  chan struct{} // closed and replaced when the store begins anew
	known chan struct{} // here, as of the last Load
}

func newPlace() *place {
	p := &place{here: make(chan struct{})}
	p.known = p.here
	return p
}

func (p *place) loading() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = p.here
}

// loaded returns what is closed when the store that was loaded last is left.
func (p *place) loaded() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

func (p *place) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.here)
	p.here = make(chan struct{})
}

// Move says where the cluster is now. anew says that it is another one than before, whose revisions are none of the old
// one's: whoever follows has to load again.
func (s *Store) Move(endpoints []string, anew bool) {
	s.c.SetEndpoints(endpoints...)
	if anew {
		s.place.leave()
	}
}
