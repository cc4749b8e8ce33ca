// SPDX-License-Identifier: MIT

// Package storetest is a store in memory for tests, which can be lost, compacted and held still, and the contract that
// every store must keep. Test starts goroutines and ends them before it returns.
package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"mesh.internal/mesh/resolver/store"
)

// ErrDown is what a store that is down answers.
var ErrDown = errors.New("the store is down")

// Memory is a store in memory. The zero value is an empty store.
type Memory struct {
	mu        sync.Mutex
	rev       int64
	compacted int64 // changes up to this revision are gone
	kvs       map[string]store.KV
	log       []entry
	down      bool
	locks     map[string]bool
	changed   chan struct{} // closed and replaced at every change of the fields above
}

type entry struct {
	rev     int64
	changes []store.Change
}

func (m *Memory) wake() {
	if m.changed != nil {
		close(m.changed)
	}
	m.changed = make(chan struct{})
}

// SetDown loses the store or brings it back.
func (m *Memory) SetDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
	m.wake()
}

// Compact forgets every change so far.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compacted, m.log = m.rev, nil
	m.wake()
}

// Load implements store.Store.
func (m *Memory) Load(context.Context) ([]store.KV, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, 0, ErrDown
	}
	var out []store.KV
	for _, kv := range m.kvs {
		out = append(out, kv)
	}
	slices.SortFunc(out, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) })
	return out, m.rev, nil
}

// Get implements store.Store.
func (m *Memory) Get(_ context.Context, key string) (store.KV, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return store.KV{}, ErrDown
	}
	kv := m.kvs[key]
	kv.Key = key
	return kv, nil
}

// Commit implements store.Store.
func (m *Memory) Commit(_ context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return 0, ErrDown
	}
	return m.commit(conds, ops)
}

// commit makes changes, whether or not the store is down. m.mu is held.
func (m *Memory) commit(conds []store.Cond, ops []store.Op) (int64, error) {
	if len(conds) > 128 || len(ops) > 128 {
		return 0, errors.New("too many operations, as etcd says")
	}
	for _, c := range conds {
		if m.kvs[c.Key].Modified != c.Rev {
			return m.rev, store.ErrConflict
		}
	}
	if m.kvs == nil {
		m.kvs = map[string]store.KV{}
	}
	m.rev++
	e := entry{rev: m.rev}
	for _, o := range ops {
		kv, old := m.kvs[o.Key], m.kvs[o.Key]
		kv.Key, kv.Value, kv.Modified = o.Key, slices.Clone(o.Value), m.rev
		if o.Value == nil {
			if old.Modified != 0 {
				delete(m.kvs, o.Key)
				e.changes = append(e.changes, store.Change{KV: kv, Deleted: true})
			}
			continue
		}
		if old.Modified == 0 {
			kv.Created = m.rev
		}
		m.kvs[o.Key] = kv
		e.changes = append(e.changes, store.Change{KV: kv})
	}
	m.log = append(m.log, e)
	m.wake()
	return m.rev, nil
}

// Follow implements store.Store.
func (m *Memory) Follow(ctx context.Context, rev int64, f func(int64, []store.Change)) error {
	for {
		m.mu.Lock()
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		var todo []entry
		var err error
		switch changed := m.changed; {
		case m.down:
			err = ErrDown
		case rev < m.compacted:
			err = store.ErrGap
		default:
			for _, e := range m.log {
				if e.rev > rev {
					todo = append(todo, e)
				}
			}
			if len(todo) == 0 {
				m.mu.Unlock()
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-changed:
				}
				continue
			}
		}
		m.mu.Unlock()
		if err != nil {
			return err
		}
		for _, e := range todo {
			f(e.rev, e.changes)
			rev = e.rev
		}
	}
}

// Lock implements store.Locker. The lock is never lost.
func (m *Memory) Lock(ctx context.Context, key string, f func(context.Context) error) error {
	for {
		m.mu.Lock()
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed, err := m.changed, error(nil)
		if m.down {
			err = ErrDown
		}
		mine := err == nil && !m.locks[key]
		if mine {
			if m.locks == nil {
				m.locks = map[string]bool{}
			}
			m.locks[key] = true
		}
		m.mu.Unlock()
		switch {
		case err != nil:
			return err
		case mine:
			defer m.unlock(key)
			return f(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Lease implements store.Leaser. The lease ends when the store is down.
func (m *Memory) Lease(ctx context.Context, f func(context.Context, func(context.Context, string, []byte) error) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var keys []string
	defer func() {
		var ops []store.Op
		for _, k := range keys {
			ops = append(ops, store.Op{Key: k})
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.commit(nil, ops)
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel(ErrDown)
		for {
			m.mu.Lock()
			if m.changed == nil {
				m.changed = make(chan struct{})
			}
			changed, down := m.changed, m.down
			m.mu.Unlock()
			if down {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	})
	err := f(ctx, func(_ context.Context, key string, value []byte) error {
		keys = append(keys, key)
		_, err := m.Commit(ctx, nil, []store.Op{{Key: key, Value: value}})
		return err
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	return err
}

func (m *Memory) unlock(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.locks, key)
	m.wake()
}
