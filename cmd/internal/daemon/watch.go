// SPDX-License-Identifier: MIT

package daemon

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
)

const (
	// mostWatchers bounds who watches at a time: each may keep one View in memory that nobody else needs any more.
	mostWatchers = 64
	// watchWrite is how long a reader may take for what it was sent before it is cut off; api.Client connects again.
	watchWrite = 30 * time.Second
)

// watch tells a client all hosts, then every change. A client that reads slowly is told less often, by what differs between
// the last View that it knows and the present one, so nothing piles up for it.
func (d *daemon) watch(w http.ResponseWriter, r *http.Request) {
	refuse := func(err error) {
		answer(func(*http.Request) (any, error) { return nil, err })(w, r)
	}
	if d.watchers.Add(1) > mostWatchers {
		d.watchers.Add(-1)
		refuse(errors.New("too many programs watch already"))
		return
	}
	defer d.watchers.Add(-1)
	stream := http.NewResponseController(w)
	if err := stream.SetReadDeadline(time.Time{}); err != nil { // the server's limits are for requests
		refuse(err)
		return
	}
	select {
	case <-r.Context().Done():
		return
	case <-d.names.Built():
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	changed, known := d.names.Changed(), d.names.View()
	out := json.NewEncoder(w)
	send := func(v *resolver.View, e api.Event) bool {
		e.At, e.Revision = v.Built, v.Revision
		stream.SetWriteDeadline(time.Now().Add(watchWrite))
		return out.Encode(e) == nil
	}
	for _, is := range known.Hosts() {
		h := hostOf(known, is)
		if !send(known, api.Event{Kind: api.Is, Host: &h}) {
			return
		}
	}
	if !send(known, api.Event{Kind: api.Ready}) {
		return
	}
	for {
		if stream.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
		changed = d.names.Changed() // before View, so that none is missed
		next := d.names.View()
		for before, after := range resolver.Diff(known, next) {
			e, ok := api.Difference(optional(known, before), optional(next, after))
			if ok && !send(next, e) {
				return
			}
		}
		known = next
	}
}

// optional is a host as clients see it, or none.
func optional(v *resolver.View, h *resolver.Host) *api.Host {
	if h == nil {
		return nil
	}
	out := hostOf(v, h)
	return &out
}
