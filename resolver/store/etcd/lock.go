// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// lockTTL is how many seconds after its holder was last heard of a lock is another's, and what was leased is gone.
const lockTTL = 15

// Lock implements store.Locker with a lease, which costs a message every five seconds and no write.
func (s *Store) Lock(ctx context.Context, key string, f func(context.Context) error) error {
	return s.session(ctx, func(ctx context.Context, session *concurrency.Session) error {
		if err := s.do(ctx, concurrency.NewMutex(session, s.prefix+key).Lock); err != nil {
			return err
		}
		return f(ctx)
	})
}

// Lease implements store.Leaser, as Lock does what it does.
func (s *Store) Lease(ctx context.Context, f func(context.Context, func(context.Context, string, []byte) error) error) error {
	return s.session(ctx, func(ctx context.Context, session *concurrency.Session) error {
		return f(ctx, func(ctx context.Context, key string, value []byte) error {
			return s.do(ctx, func(ctx context.Context) error {
				_, err := s.c.Put(ctx, s.prefix+key, string(value), clientv3.WithLease(session.Lease()))
				return err
			})
		})
	})
}

// session calls f with a lease, and ends it when f returns. f's context ends when the store has not heard of this node for
// lockTTL.
func (s *Store) session(ctx context.Context, f func(context.Context, *concurrency.Session) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	var session *concurrency.Session
	err := s.do(ctx, func(ctx context.Context) (err error) {
		session, err = concurrency.NewSession(s.c, concurrency.WithTTL(lockTTL), concurrency.WithContext(ctx))
		return err
	})
	if err != nil {
		return err
	}
	defer s.giveBack(ctx, session)
	wg.Go(func() {
		select {
		case <-session.Done():
			cancel(errors.New("the store was out of reach for too long"))
		case <-ctx.Done():
		}
	})
	err = f(ctx, session)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// giveBack ends the session, so that the next in line need not wait for its lease to end. A store that is away is not
// waited for.
func (s *Store) giveBack(ctx context.Context, session *concurrency.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	session.Orphan()
	s.c.Revoke(ctx, session.Lease())
}
