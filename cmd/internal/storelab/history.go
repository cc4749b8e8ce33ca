// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
)

// history is what was promised to whom, and what nodes showed.
type history struct {
	looked atomic.Int64

	mu    sync.Mutex
	names map[string]*written       // by name
	seen  map[string]map[string]int // by node and name: the newest version it has shown, and since when
	at    map[string]map[string]time.Time
	count int                      // promises
	slow  map[string]time.Duration // by node: the longest that a change has taken to land since it was last asked
	began map[string]time.Time     // by node: when the first change that has not landed was made
	bad   []string
}

// written is a name and the addresses it was given, in order. An address is never given twice.
type written struct {
	by    string
	addrs []netip.Addr
	kept  int // versions that were promised
}

func newHistory() *history {
	return &history{names: map[string]*written{}, seen: map[string]map[string]int{}, at: map[string]map[string]time.Time{}, slow: map[string]time.Duration{}, began: map[string]time.Time{}}
}

func (h *history) promised() int { h.mu.Lock(); defer h.mu.Unlock(); return h.count }

func (h *history) problems() []string { h.mu.Lock(); defer h.mu.Unlock(); return h.bad }

// problem notes what is not as it must be; the first twenty are enough.
func (h *history) problem(format string, args ...any) {
	if len(h.bad) < 20 {
		h.bad = append(h.bad, fmt.Sprintf(format, args...))
		fmt.Println("PROBLEM", h.bad[len(h.bad)-1])
	}
}

const writeEvery = 250 * time.Millisecond

// write adds names to a node and changes one of them, until ctx ends.
func (h *history) write(ctx context.Context, n *node, number int) {
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		name := fmt.Sprintf("%s-%d", n.name, i/8)
		if i%2 == 1 { // every second time the one that changes
			name = n.name + "-moves"
		}
		a := netip.AddrFrom4([4]byte{10, 11, byte(100 + 20*number + i/250), byte(1 + i%250)})
		h.mu.Lock()
		w := h.names[name]
		if w == nil {
			w = &written{by: n.name}
			h.names[name] = w
		}
		w.addrs = append(w.addrs, a)
		version := len(w.addrs)
		h.mu.Unlock()
		begin := time.Now()
		var c api.Change
		err := n.ask("PUT", "/v1/hosts", api.Host{Name: name, Addrs: []netip.Addr{a}}, &c)
		h.mu.Lock()
		if err == nil {
			w.kept = version
			h.count++
		}
		if h.began[n.name].IsZero() {
			h.began[n.name] = begin
		}
		if err == nil && c.Landed {
			h.slow[n.name] = max(h.slow[n.name], time.Since(h.began[n.name]))
			h.began[n.name] = time.Time{}
		}
		h.mu.Unlock()
	}
}

// reborn says that a node lost its power: what it has learnt since it wrote names to its disk last is not there.
func (h *history) reborn(n *node, saved time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, at := range h.at[n.name] {
		if at.After(saved.Add(-time.Second)) { // it may have taken so long to write
			delete(h.seen[n.name], name)
		}
	}
}

// waited is the longest that a change on one of these nodes has taken to land since it was asked for last.
func (h *history) waited(nodes ...*node) (longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range nodes {
		longest = max(longest, h.slow[n.name])
		delete(h.slow, n.name)
	}
	return longest
}

// watch looks at what a node shows until ctx ends.
func (h *history) watch(ctx context.Context, n *node) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.look() == nil {
			h.looked.Add(1)
		}
	}
}

// look looks at what a node shows: one answer after the other, so that none passes for a step back that is only late.
func (n *node) look() error {
	n.looking.Lock()
	defer n.looking.Unlock()
	var hosts api.Hosts
	if err := n.ask("GET", "/v1/hosts", nil, &hosts); err != nil {
		return err
	}
	n.w.history.look(n, hosts)
	return nil
}

// look demands of what a node shows that it is right, and never goes back.
func (h *history) look(n *node, hosts api.Hosts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.seen[n.name]
	if seen == nil {
		seen = map[string]int{}
		h.seen[n.name], h.at[n.name] = seen, map[string]time.Time{}
	}
	there := map[string]bool{}
	for _, x := range hosts.Hosts {
		w := h.names[x.Name]
		if w == nil {
			continue
		}
		there[x.Name] = true
		version := 0
		for i, a := range w.addrs {
			if len(x.Addrs) == 1 && x.Addrs[0] == a {
				version = i + 1
			}
		}
		switch {
		case version == 0 || x.Owner != w.by:
			h.problem("%s shows %s as %s of %s, which it never was", n.name, x.Name, x.Addrs, x.Owner)
		case version < seen[x.Name]:
			h.problem("%s shows version %d of %s, and has shown %d before", n.name, version, x.Name, seen[x.Name])
		}
		if version > seen[x.Name] {
			seen[x.Name], h.at[n.name][x.Name] = version, time.Now()
		}
	}
	for name := range seen {
		if !there[name] {
			h.problem("%s does not show %s any more", n.name, name)
			delete(seen, name)
		}
	}
}

// wanted is what all nodes are to show, as of now: the names that were promised to nodes, with their versions.
func (h *history) wanted(of []*node) map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]int{}
	for name, w := range h.names {
		for _, n := range of {
			if w.by == n.name && w.kept > 0 {
				out[name] = w.kept
			}
		}
	}
	return out
}

func (h *history) ownerOf(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.names[name]; w != nil {
		return w.by
	}
	return ""
}

// shows reports what a node does not show of what it is to, and the name.
func (n *node) shows(want map[string]int) (string, error) {
	if err := n.look(); err != nil {
		return n.name, err
	}
	n.w.history.mu.Lock()
	defer n.w.history.mu.Unlock()
	for name, version := range want {
		if got := n.w.history.seen[n.name][name]; got < version {
			return name, fmt.Errorf("%s shows version %d of %s, not yet %d", n.name, got, name, version)
		}
	}
	return "", nil
}
