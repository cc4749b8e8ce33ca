// SPDX-License-Identifier: MIT

package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// Test holds s, which must be empty, against the contract of store.Store. compact makes it forget its changes so far.
func Test(t *testing.T, s store.Store, compact func(rev int64)) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	commit := func(conds []store.Cond, ops ...store.Op) int64 {
		t.Helper()
		rev, err := s.Commit(ctx, conds, ops)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	kvs, begin, err := s.Load(ctx)
	if err != nil || len(kvs) != 0 {
		t.Fatalf("an empty store has %v, %v", kvs, err)
	}
	if kv, err := s.Get(ctx, "a"); err != nil || kv.Modified != 0 || kv.Key != "a" {
		t.Errorf("a key that is not there: %+v, %v", kv, err)
	}

	r1 := commit([]store.Cond{{Key: "a", Rev: 0}}, store.Op{Key: "a", Value: []byte("1")}, store.Op{Key: "b/c", Value: []byte("2")})
	if _, err := s.Commit(ctx, []store.Cond{{Key: "a", Rev: 0}}, []store.Op{{Key: "a", Value: []byte("stolen")}}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("creating what is there: %v", err)
	}
	r2 := commit([]store.Cond{{Key: "a", Rev: r1}}, store.Op{Key: "a", Value: []byte("3")})
	r3 := commit(nil, store.Op{Key: "b/c"})
	if !(begin < r1 && r1 < r2 && r2 < r3) {
		t.Errorf("revisions %d, %d, %d, %d", begin, r1, r2, r3)
	}
	if kv, err := s.Get(ctx, "a"); err != nil || string(kv.Value) != "3" || kv.Created != r1 || kv.Modified != r2 {
		t.Errorf("a is %+v, %v", kv, err)
	}
	kvs, rev, err := s.Load(ctx)
	if err != nil || rev != r3 || len(kvs) != 1 || kvs[0].Key != "a" {
		t.Errorf("loaded %v at %d, %v", kvs, rev, err)
	}

	// All changes after a revision, those made while it follows too, in order.
	var got bytes.Buffer
	followed, stop := context.WithCancel(ctx)
	err = s.Follow(followed, begin, func(rev int64, changes []store.Change) {
		for _, c := range changes {
			fmt.Fprintf(&got, "%s=%s,%v ", c.Key, c.Value, c.Deleted)
		}
		switch rev {
		case r3:
			commit(nil, store.Op{Key: "d", Value: []byte("4")})
		case r3 + 1:
			stop()
		}
	})
	if want := "a=1,false b/c=2,false a=3,false b/c=,true d=4,false "; got.String() != want || !errors.Is(err, context.Canceled) {
		t.Errorf("followed %q, %v; want %q", got.String(), err, want)
	}
	stop()

	compact(r3)
	err = s.Follow(ctx, begin, func(rev int64, changes []store.Change) { t.Errorf("followed a compacted store: %d %v", rev, changes) })
	if !errors.Is(err, store.ErrGap) {
		t.Errorf("following from before a compaction: %v", err)
	}
	if l, ok := s.(store.Locker); ok {
		testLock(t, ctx, l)
	}
	if l, ok := s.(store.Leaser); ok {
		testLease(t, ctx, s, l)
	}
}

// testLease holds a store against store.Leaser: what is put is there, and gone when f returns.
func testLease(t *testing.T, ctx context.Context, s store.Store, l store.Leaser) {
	t.Helper()
	told := errors.New("what f says")
	err := l.Lease(ctx, func(ctx context.Context, put func(context.Context, string, []byte) error) error {
		for _, v := range []string{"1", "2"} {
			if err := put(ctx, "leased", []byte(v)); err != nil {
				return err
			}
			if kv, err := s.Get(ctx, "leased"); err != nil || string(kv.Value) != v {
				t.Errorf("leased is %+v, %v", kv, err)
			}
		}
		return told
	})
	if kv, err2 := s.Get(ctx, "leased"); !errors.Is(err, told) || err2 != nil || kv.Modified != 0 {
		t.Errorf("leased: %v; and after it %+v, %v", err, kv, err2)
	}
}

// testLock holds a store against store.Locker: of two who want a lock the second waits until the first gives it back.
func testLock(t *testing.T, ctx context.Context, l store.Locker) {
	t.Helper()
	held, second := make(chan struct{}), make(chan error, 1)
	var free atomic.Bool
	go func() {
		<-held
		second <- l.Lock(ctx, store.LockPrefix+"test", func(context.Context) error {
			if !free.Load() {
				return errors.New("two hold one lock")
			}
			return nil
		})
	}()
	told := errors.New("what f says")
	err := l.Lock(ctx, store.LockPrefix+"test", func(ctx context.Context) error {
		close(held)
		if err := l.Lock(ctx, store.LockPrefix+"other", func(context.Context) error { return nil }); err != nil {
			t.Errorf("another lock: %v", err)
		}
		free.Store(true) // before the lock is given back
		return told
	})
	if err2 := <-second; !errors.Is(err, told) || err2 != nil {
		t.Errorf("locked: %v, %v", err, err2)
	}
}
