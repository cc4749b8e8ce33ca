// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"
)

// lockTTL is how many seconds after its holder was last heard of a lock is another's.
const lockTTL = 15

// Lock implements store.Locker with a lease, which costs a message every five seconds and no write.
func (s *Store) Lock(ctx context.Context, key string, f func(context.Context) error) error {
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
			cancel(errors.New("the lock is lost: the store was out of reach for too long"))
		case <-ctx.Done():
		}
	})
	err = s.do(ctx, concurrency.NewMutex(session, s.prefix+key).Lock)
	if err == nil {
		err = f(ctx)
	}
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
