// SPDX-License-Identifier: MIT

// Package etcd is the store in an etcd cluster (v3 API, servers 3.5 and newer). It is the only importer of the etcd
// client, whose goroutines live from Open to Close. It never resolves a name of the mesh: endpoints are addresses, or
// names of the public DNS.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"mesh.internal/mesh/resolver/store"
)

// Config says which cluster, and as whom.
type Config struct {
	Endpoints []string // https://ADDRESS:PORT
	Prefix    string   // of every key; see store.DefaultPrefix
	TLS       *tls.Config
	User      string // optional: whose password is in Files
	Files     Files
}

// secure reports whether TLS is spoken.
func (c Config) secure() bool {
	return len(c.Endpoints) > 0 && strings.HasPrefix(c.Endpoints[0], "https:")
}

// Store is a cluster. It implements store.Store, store.Locker and store.Leaser.
type Store struct {
	c      *clientv3.Client
	prefix string
	links  *links
	login  *login // nil: without user and password
	place  *place
}

// Open prepares the client; it connects when it is first used, and again by itself whenever it has to.
func Open(cfg Config) (*Store, error) {
	s := &Store{prefix: cfg.Prefix, links: &links{cfg: cfg}, place: newPlace()}
	s.links.met.Store(-1)
	options := s.links.options()
	if cfg.User != "" {
		s.login = &login{user: cfg.User, files: cfg.Files}
		options = append(options, grpc.WithPerRPCCredentials(s.login))
	}
	var err error
	s.c, err = clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints, DialOptions: options,
		DialTimeout: 5 * time.Second,
		// A server that is gone without a word is noticed after at most 5 s.
		DialKeepAliveTime: 3 * time.Second, DialKeepAliveTimeout: 2 * time.Second, PermitWithoutStream: false,
		BackoffWaitBetween: 100 * time.Millisecond, MaxUnaryRetries: 2,
		Logger: zap.NewNop(), // what matters is in the errors
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the etcd client: %w", err)
	}
	return s, nil
}

// Under is the same cluster with another prefix. Closing either closes both.
func (s *Store) Under(prefix string) *Store {
	other := *s
	other.prefix = prefix
	return &other
}

// Close ends the client.
func (s *Store) Close() error { return s.c.Close() }

// pageSize bounds the keys of one answer: at 16 KiB a value it stays within gRPC's message size in practice.
const pageSize = 1000

// pageIn is how long a page may take until the store counts as away.
const pageIn = 5 * time.Second

// Load implements store.Store.
func (s *Store) Load(ctx context.Context) ([]store.KV, int64, error) {
	here := s.place.now()
	var out []store.KV
	var rev int64
	from, end := s.prefix, clientv3.GetPrefixRangeEnd(s.prefix)
	for {
		// All pages at the revision of the first, so that together they are one moment.
		var r *clientv3.GetResponse
		page, cancel := context.WithTimeout(ctx, pageIn) // of each, since how many there are is not known
		err := s.do(page, func(ctx context.Context) (err error) {
			r, err = s.c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(rev),
				clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
			return err
		})
		cancel()
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			out = append(out, store.KV{Key: strings.TrimPrefix(string(kv.Key), s.prefix), Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision})
		}
		if !r.More {
			s.place.loading(here, out)
			return out, rev, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	var r *clientv3.GetResponse
	err := s.do(ctx, func(ctx context.Context) (err error) {
		r, err = s.c.Get(ctx, s.prefix+key)
		return err
	})
	if err != nil {
		return store.KV{}, err
	}
	out := store.KV{Key: key}
	if len(r.Kvs) > 0 {
		kv := r.Kvs[0]
		out.Value, out.Created, out.Modified = kv.Value, kv.CreateRevision, kv.ModRevision
	}
	return out, nil
}

// Follow implements store.Store.
func (s *Store) Follow(ctx context.Context, rev int64, f func(int64, []store.Change)) error {
	ctx, cancel := context.WithCancelCause(ctx) // ends the watch on the server too
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	moved := s.place.loaded()
	var seen atomic.Int64
	seen.Store(rev)
	tell := f
	f = func(rev int64, changes []store.Change) {
		seen.Store(rev)
		tell(rev, changes)
	}
	wg.Go(func() { s.untilLost(ctx, cancel, &seen) })
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-moved:
			cancel(errMoved)
		}
	})
	return s.do(ctx, func(ctx context.Context) error { return s.watch(ctx, &rev, f) })
}

// watch is Follow on one watch. It moves rev on, so that it can be called again.
func (s *Store) watch(ctx context.Context, rev *int64, f func(int64, []store.Change)) error {
	for r := range s.c.Watch(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithRev(*rev+1)) {
		if r.CompactRevision != 0 {
			return store.ErrGap
		}
		if err := r.Err(); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return canceled(err)
		}
		if len(r.Events) == 0 {
			continue
		}
		changes := make([]store.Change, 0, len(r.Events))
		for _, e := range r.Events {
			changes = append(changes, store.Change{
				KV:      store.KV{Key: strings.TrimPrefix(string(e.Kv.Key), s.prefix), Value: e.Kv.Value, Created: e.Kv.CreateRevision, Modified: e.Kv.ModRevision},
				Deleted: e.Type == clientv3.EventTypeDelete,
			})
		}
		*rev = r.Header.Revision
		f(*rev, changes)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.New("the store ended the watch")
}

// reconnectIn is how long a connection may be away before the store counts as lost.
const reconnectIn = 2 * time.Second

// untilLost cancels when no endpoint has been reachable for reconnectIn, or when what is reached again is another store than
// before. The client itself would go on looking, or wait for a revision that may never come, and say nothing.
func (s *Store) untilLost(ctx context.Context, cancel context.CancelCauseFunc, seen *atomic.Int64) {
	conn := s.c.ActiveConnection()
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			if !conn.WaitForStateChange(ctx, state) {
				return
			}
			continue
		}
		wait, stop := context.WithTimeout(ctx, reconnectIn)
		for ; state != connectivity.Ready && wait.Err() == nil; state = conn.GetState() {
			conn.Connect()
			conn.WaitForStateChange(wait, state)
		}
		stop()
		if state != connectivity.Ready {
			cancel(errors.New("the connection to the store is lost: nobody answers at any endpoint"))
			return
		}
		if s.anew(ctx, seen) {
			cancel(errMoved)
			return
		}
	}
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	var ifs []clientv3.Cmp
	for _, c := range conds {
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.Rev))
	}
	var thens []clientv3.Op
	for _, o := range ops {
		if o.Value == nil {
			thens = append(thens, clientv3.OpDelete(s.prefix+o.Key))
		} else {
			thens = append(thens, clientv3.OpPut(s.prefix+o.Key, string(o.Value)))
		}
	}
	var r *clientv3.TxnResponse
	err := s.do(ctx, func(ctx context.Context) (err error) {
		r, err = s.c.Txn(ctx).If(ifs...).Then(thens...).Commit()
		return err
	})
	if err != nil {
		return 0, err
	}
	if !r.Succeeded {
		return r.Header.Revision, store.ErrConflict
	}
	return r.Header.Revision, nil
}
