// SPDX-License-Identifier: MIT

package vpn

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// An echo goes through the tunnel as a control message and comes back as one. Nothing is kept of those of others.

const (
	maxEchoes  = 256                   // that are waited for
	echoesFast = 50                    // answered to one member at once
	echoEvery  = 20 * time.Millisecond // answered to one member in the long run
)

// echoes are this node's, on their way.
type echoes struct {
	mu   sync.Mutex
	open map[uint64]chan time.Time
}

func (e *echoes) begin() (id uint64, answer chan time.Time, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.open) >= maxEchoes {
		return 0, nil, fmt.Errorf("%d echoes are on their way already: wait for some to return", maxEchoes)
	}
	if e.open == nil {
		e.open = map[uint64]chan time.Time{}
	}
	id, answer = 1+rand.Uint64N(1<<63), make(chan time.Time, 1)
	e.open[id] = answer
	return id, answer, nil
}

func (e *echoes) end(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, id)
}

// back takes an answer. Only the node asked can know the number, which went through its tunnel alone.
func (e *echoes) back(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if answer := e.open[id]; answer != nil {
		select {
		case answer <- time.Now():
		default:
		}
	}
}

// echo answers a member, takes what it answers, and returns what that has cost. n.mu is held.
func (n *Node) echo(sender string, m message) (cost int) {
	if m.Echoed != 0 {
		n.echoes.back(m.Echoed)
	}
	if m.Echo == 0 || !n.members[sender].echoes.may(time.Now(), echoEvery, echoesFast) {
		return 0
	}
	n.send(sender, message{Echoed: m.Echo})
	return costAnswer
}

// Errors of Ping and Paths, as errors.Is finds them.
var (
	ErrNoNode = errors.New("no node of the mesh")
	ErrSelf   = errors.New("this node itself")
	ErrNoWay  = errors.New("no way known")
	ErrSilent = errors.New("no answer")
)

// Ping sends an echo through the tunnel to a node and waits for its answer until ctx ends. The node becomes a peer if it
// is none. The status says by which way it is reached, also with an error.
func (n *Node) Ping(ctx context.Context, name string) (rtt time.Duration, s PeerStatus, err error) {
	id, answer, err := n.echoes.begin()
	if err != nil {
		return 0, s, err
	}
	defer n.echoes.end(id)
	begin := time.Now()
	n.mu.Lock()
	err = n.talkable(name)
	if err == nil {
		n.need(name)
		n.send(name, message{Echo: id})
	}
	n.mu.Unlock()
	if err != nil {
		return 0, s, err
	}
	select {
	case at := <-answer:
		rtt = at.Sub(begin)
	case <-ctx.Done():
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err = n.talkable(name); err != nil {
		return 0, s, err
	}
	s = n.statusOf(name, nil)
	if rtt > 0 {
		return rtt, s, nil
	}
	waited := time.Since(begin).Round(100 * time.Millisecond)
	if !s.Up() {
		return 0, s, fmt.Errorf("%w: in %s no address of %s answered, and no relay reaches it", ErrNoWay, waited, name)
	}
	return 0, s, fmt.Errorf("%w of %s in %s", ErrSilent, name, waited)
}

// talkable reports why a node cannot be talked to. n.mu is held.
func (n *Node) talkable(name string) error {
	switch {
	case name == n.self:
		return fmt.Errorf("%s is %w", name, ErrSelf)
	case n.records[name] == nil:
		return fmt.Errorf("%q is %w", name, ErrNoNode)
	case n.engine == nil:
		return errors.New("the tunnels are not up")
	}
	return nil
}

// NameOf returns the name of the node that has an address inside the mesh.
func (n *Node) NameOf(a netip.Addr) (name string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok = n.byAddr[a]
	return name, ok
}
