// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"mesh.internal/mesh/resolver/store"
)

// errMoved ends Follow when the store has begun anew.
var errMoved = errors.New("the store has begun anew")

// place is where a store was when it was loaded last: whoever follows from there must know when that ends.
type place struct {
	mu    sync.Mutex
	here  chan struct{} // closed and replaced when the store begins anew
	known chan struct{} // here, as of the last Load
	mark  store.KV      // the newest key of the last Load: another store does not have it, or not since the same revision
}

func newPlace() *place {
	p := &place{here: make(chan struct{})}
	p.known = p.here
	return p
}

// now is what is closed when the store that is here now is left.
func (p *place) now() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here
}

// loading notes what was loaded of the store that was here when that began.
func (p *place) loading(here chan struct{}, all []store.KV) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.mark = here, store.KV{}
	for _, kv := range all {
		if kv.Modified > p.mark.Modified {
			p.mark = kv
		}
	}
}

func (p *place) marked() store.KV {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mark
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

// anew reports whether the store is another one than was loaded, as after its only member has lost its disk: it has not come
// as far as was seen of it, or its keys are others. It asks for as long as there is a connection and no answer.
func (s *Store) anew(ctx context.Context, seen *atomic.Int64) bool {
	mark, was := s.place.marked(), seen.Load()
	for conn := s.c.ActiveConnection(); conn.GetState() == connectivity.Ready; {
		call, cancel := context.WithTimeout(ctx, reconnectIn)
		var r *clientv3.GetResponse
		err := s.do(call, func(ctx context.Context) (err error) {
			r, err = s.c.Get(ctx, s.prefix+mark.Key)
			return err
		})
		cancel()
		if err == nil {
			return r.Header.Revision < was || mark.Modified > 0 && (len(r.Kvs) == 0 || r.Kvs[0].CreateRevision != mark.Created)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(askAgain):
		}
	}
	return false
}

// askAgain is the pause between questions that were not answered.
const askAgain = 500 * time.Millisecond

// Move says where the cluster is now. anew says that it is another one than before, whose revisions are none of the old
// one's: whoever follows has to load again.
func (s *Store) Move(endpoints []string, anew bool) {
	s.c.SetEndpoints(endpoints...)
	if anew {
		s.place.leave()
	}
}
