// SPDX-License-Identifier: MIT

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Event is a line of GET /v1/watch: what has become of one host. The answer does not end by itself. It begins with all hosts
// as they are ("is"), then "ready"; from there on each change comes when it happens. Changes that come faster than they
// are read become one, from what the reader has last been told to what is.
type Event struct {
	Kind     string    `json:"kind"` // "is", "ready", "added", "removed" or "changed"
	At       time.Time `json:"at"`
	Revision int64     `json:"revision"`          // of the store
	Changed  []string  `json:"changed,omitempty"` // "addresses", "aliases", "owner", "kind" (a node or not), "metadata"
	Host     *Host     `json:"host,omitempty"`    // as it is; as it was, if it was removed
	Before   *Host     `json:"before,omitempty"`  // as it was, if it was changed
}

// Kinds of events.
const (
	Is      = "is"
	Ready   = "ready"
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Difference is the event that leads from one state of a host to another; nil stands for none. ok is false where they say the
// same.
func Difference(before, after *Host) (e Event, ok bool) {
	switch {
	case before == nil && after == nil:
		return e, false
	case before == nil:
		return Event{Kind: Added, Host: after}, true
	case after == nil:
		return Event{Kind: Removed, Host: before}, true
	}
	e = Event{Kind: Changed, Host: after, Before: before}
	for what, differs := range map[string]bool{
		"addresses": !slices.EqualFunc(before.Addrs, after.Addrs, func(a, b netip.Addr) bool { return a == b }),
		"aliases":   !slices.Equal(before.Aliases, after.Aliases),
		"owner":     before.Owner != after.Owner,
		"kind":      before.Node != after.Node,
		"metadata":  !maps.Equal(before.Meta, after.Meta),
	} {
		if differs {
			e.Changed = append(e.Changed, what)
		}
	}
	slices.Sort(e.Changed)
	return e, len(e.Changed) > 0
}

// ErrEnded is Watch's when the daemon has ended the stream or is not there: it may come back.
var ErrEnded = errors.New("the connection to meshd has ended")

// ended is an error that is ErrEnded too, and does not say so.
type ended struct{ error }

func (ended) Is(target error) bool { return target == ErrEnded }
func (e ended) Unwrap() error      { return e.error }

// Watch calls f with every event until ctx ends, f fails, or the daemon does (ErrEnded).
func (c Client) Watch(ctx context.Context, f func(Event) error) error {
	resp, done, err := c.send(ctx, "GET", "/v1/watch", nil)
	if errors.Is(err, errNotRunning) {
		return ended{err}
	}
	if err != nil {
		return err
	}
	defer done()
	in := json.NewDecoder(resp.Body)
	for {
		var e Event
		switch err := in.Decode(&e); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return ErrEnded
		case err != nil:
			return fmt.Errorf("%w: %w", ErrEnded, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}
