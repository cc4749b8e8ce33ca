// SPDX-License-Identifier: MIT

// Package project writes the mesh's names into the store in the layouts of programs that read etcd themselves: CoreDNS
// and what followed SkyDNS (skydns.go), and the old libnss-etcd (hosts.go). What it has written it never takes for true:
// names come from the View alone, and what differs from it is put right, whoever changed it.
//
// One node at a time does it, by a lock: two whose Views differ for a while, as one knows a node by gossip that the other
// does not, would undo each other's work without end. What others have written in the same place is left alone, as far as
// it can be told from ours. A Writer starts nothing until Run, which owns its goroutines.
package project

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store"
)

// Layout is a form of the names, or a part of one, below a prefix of the store.
type Layout struct {
	Prefix string                                 // with a slash behind
	Encode func(*resolver.View) map[string]string // values by key below Prefix
	Ours   func(value string) bool                // whether a value that is there may be changed or deleted
}

// Config is what a Writer needs.
type Config struct {
	Name    string       // of the lock: the same on all nodes that write the same
	Locker  store.Locker // where the lock is
	Layouts []Layout
	Store   func(prefix string) store.Store // the store below a prefix
	View    func() *resolver.View
	Changed func() <-chan struct{} // closed when View has changed
	Fresh   func() bool            // whether View holds all that the store has: before, it may miss names
	Log     *slog.Logger
}

// State says how things stand.
type State struct {
	Held    bool     // this node writes
	Keys    int      // that are to be there
	Err     string   // why nothing is written now
	Foreign []string // keys that somebody else has written, at most ten
}

// Writer writes. Its methods are safe for concurrent use.
type Writer struct {
	cfg Config

	mu     sync.Mutex // guards the fields below
	held   bool
	err    error
	places []*place // while held
}

// New returns a Writer.
func New(cfg Config) *Writer { return &Writer{cfg: cfg} }

// Bounds in time.
const (
	rest      = 250 * time.Millisecond // between two passes over the names, at least
	restShare = 9                      // times as long as the names took to encode: a tenth of a core, however many there are
	retry     = 3 * time.Second        // after a failure
	callLimit = 10 * time.Second       // of one call to the store
)

// Run writes whenever this node has the lock, until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.cfg.Locker.Lock(ctx, store.LockPrefix+"project-"+w.cfg.Name, w.hold)
		if ctx.Err() != nil {
			break
		}
		w.set(false, err, nil)
		w.cfg.Log.Warn("names are not written for programs that read etcd", "layout", w.cfg.Name, "err", err)
		t := time.NewTimer(retry)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

func (w *Writer) set(held bool, err error, places []*place) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.err, w.places = held, err, places
}

// State returns how things stand.
func (w *Writer) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := State{Held: w.held}
	if w.err != nil {
		s.Err = w.err.Error()
	}
	for _, p := range w.places {
		n, foreign := p.count()
		s.Keys += n
		s.Foreign = append(s.Foreign, foreign...)
	}
	s.Foreign = s.Foreign[:min(len(s.Foreign), 10)]
	return s
}

// hold writes for as long as the lock is held.
func (w *Writer) hold(ctx context.Context) error {
	var places []*place
	for _, l := range w.cfg.Layouts {
		places = append(places, &place{layout: l, store: w.cfg.Store(l.Prefix), changed: make(chan struct{}, 1), have: map[string]held{}})
	}
	w.set(true, nil, places)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(places))
	var wg sync.WaitGroup
	for _, p := range places {
		wg.Go(func() {
			errs <- p.keep(ctx, w.cfg)
			cancel()
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		if !errors.Is(err, context.Canceled) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// place is a layout in the store.
type place struct {
	layout  Layout
	store   store.Store
	changed chan struct{} // capacity 1: have has changed

	mu      sync.Mutex // guards the fields below
	have    map[string]held
	keys    int
	foreign []string
}

// held is a value that is in the store.
type held struct {
	value string
	rev   int64
}

func (p *place) count() (keys int, foreign []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys, p.foreign
}

// keep brings the place in line until ctx ends or the store fails.
func (p *place) keep(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	call, stop := context.WithTimeout(ctx, callLimit)
	kvs, rev, err := p.store.Load(call)
	stop()
	if err != nil {
		return err
	}
	for _, kv := range kvs {
		p.have[kv.Key] = held{string(kv.Value), kv.Modified}
	}
	wg.Go(func() { cancel(p.store.Follow(ctx, rev, p.apply)) })
	for {
		names := cfg.Changed() // before View, so that no change is missed
		begin := time.Now()
		var steps []step
		if cfg.Fresh() {
			steps = p.diff(p.layout.Encode(cfg.View()))
		}
		t := time.NewTimer(max(rest, restShare*time.Since(begin)))
		if err := p.make(ctx, steps); err != nil && ctx.Err() == nil {
			t.Stop()
			return err
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-names:
		case <-p.changed:
		}
	}
}

// apply takes changes of the store; what this node has written is among them, and known already.
func (p *place) apply(_ int64, changes []store.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range changes {
		if h, ok := p.have[c.Key]; ok && h.rev >= c.Modified {
			continue
		}
		if c.Deleted {
			delete(p.have, c.Key)
		} else {
			p.have[c.Key] = held{string(c.Value), c.Modified}
		}
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}

// step is a change to make, and on what condition.
type step struct {
	cond store.Cond
	op   store.Op
}

// stepsMost is how many keys are changed at once: etcd takes 128 operations by default.
const stepsMost = 100

// make makes changes. Where somebody else was faster, his change comes by Follow, and another pass.
func (p *place) make(ctx context.Context, steps []step) error {
	for part := range slices.Chunk(steps, stepsMost) {
		var conds []store.Cond
		var ops []store.Op
		for _, s := range part {
			conds, ops = append(conds, s.cond), append(ops, s.op)
		}
		call, stop := context.WithTimeout(ctx, callLimit)
		rev, err := p.store.Commit(call, conds, ops)
		stop()
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		p.wrote(rev, ops)
	}
	return nil
}

// wrote takes over what was written, before Follow tells of it.
func (p *place) wrote(rev int64, ops []store.Op) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range ops {
		if h, ok := p.have[o.Key]; ok && h.rev > rev {
			continue
		}
		if o.Value == nil {
			delete(p.have, o.Key)
		} else {
			p.have[o.Key] = held{string(o.Value), rev}
		}
	}
}

// diff is what is to be done so that want is there, and nothing else of ours.
func (p *place) diff(want map[string]string) []step {
	p.mu.Lock()
	defer p.mu.Unlock()
	var steps []step
	var foreign []string
	for key, value := range want {
		switch h, there := p.have[key]; {
		case there && h.value == value:
		case there && !p.layout.Ours(h.value):
			foreign = append(foreign, p.layout.Prefix+key)
		default:
			steps = append(steps, step{store.Cond{Key: key, Rev: h.rev}, store.Op{Key: key, Value: []byte(value)}})
		}
	}
	for key, h := range p.have {
		if _, wanted := want[key]; !wanted && p.layout.Ours(h.value) {
			steps = append(steps, step{store.Cond{Key: key, Rev: h.rev}, store.Op{Key: key}})
		}
	}
	slices.SortFunc(steps, func(a, b step) int { return strings.Compare(a.op.Key, b.op.Key) })
	slices.Sort(foreign)
	p.keys, p.foreign = len(want)-len(foreign), foreign
	return steps
}
