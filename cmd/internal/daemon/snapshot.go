// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/resolver"
)

// snapshot is what is known of the file that programs' look-ups read.
type snapshot struct {
	names atomic.Int64
	wrote atomic.Int64 // Unix nanoseconds
	sets  Sets         // these two are writeSnapshots'
	file  nss.Writer
}

const (
	// keepEvery bounds how often the copy for the next boot is written.
	keepEvery = 10 * time.Second
	// restShare is how many times as long as it took to write a snapshot the writer rests: the first change of some is
	// written at once, and however many names there are and however fast they change, a tenth of one core is spent.
	restShare = 9
)

// writeSnapshots writes the snapshot whenever the View changes, as restShare allows. changed is closed by the first View.
func (d *daemon) writeSnapshots(changed <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		kept := filepath.Join(d.opts.Paths.State, "hosts.db")
		if _, err := os.Stat(d.opts.Paths.Snapshot()); err != nil { // after a boot: the names of before, until the first View
			if b, err := os.ReadFile(kept); err == nil {
				if _, err := nss.Decode(b); err == nil {
					config.WriteFile(d.opts.Paths.Snapshot(), b, 0o644)
				}
			}
		}
		Pace(ctx, changed, d.names.Changed, func() {
			d.write(d.opts.Paths.Snapshot())
			sd.SdNotify(false, sd.SdNotifyReady) // names resolve; saying it again does no harm
		}, func() { d.write(kept) })
		return nil
	}
}

// Pace calls write when changed is closed, again when what next returned before that is, and rests in between; and keep
// after a write, at most once in keepEvery, and before it returns.
func Pace(ctx context.Context, changed <-chan struct{}, next func() <-chan struct{}, write, keep func()) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	behind := false
	kept := func() {
		if behind {
			keep()
			behind = false
		}
	}
	defer kept()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			kept()
			continue
		case <-changed:
		}
		changed = next()
		begin := time.Now()
		write()
		behind = true
		rest := time.NewTimer(restShare * time.Since(begin))
		select {
		case <-ctx.Done():
			rest.Stop()
			return
		case <-rest.C:
		}
	}
}

func (d *daemon) write(path string) {
	v := d.names.View()
	set := d.snap.sets.Of(v, hidden("/etc/hosts"))
	if err := d.snap.file.WriteFile(path, set); err != nil {
		d.warn("snapshot", api.SnapshotWarning+": "+err.Error())
		return
	}
	d.warn("snapshot", "")
	n := 0
	for _, h := range set.Hosts {
		n += 1 + len(h.Aliases)
	}
	d.snap.names.Store(int64(n))
	d.snap.wrote.Store(time.Now().UnixNano())
}

// Sets makes the snapshots' contents of Views, and remembers the last one's hosts, of which the next has most. A zero one is
// ready; it is for one goroutine.
type Sets struct {
	view   *resolver.View
	hidden map[string]bool
	hosts  []nss.Host // of view.Hosts
}

// Of is a View as a snapshot's content. hidden names get no short form. A host that does not fit the format is an error of
// who encodes it.
func (s *Sets) Of(v *resolver.View, hidden map[string]bool) nss.Set {
	var known []*resolver.Host
	if s.view != nil && maps.Equal(s.hidden, hidden) {
		known = s.view.Hosts()
	}
	out := nss.Set{Created: v.Built, Revision: v.Revision, Hosts: make([]nss.Host, 0, len(v.Hosts())+len(v.ServiceHosts()))}
	i := 0
	for h := range v.All() {
		var x nss.Host
		for i < len(known) && known[i].Name < h.Name {
			i++
		}
		if i < len(known) && known[i] == h {
			x = s.hosts[i]
			x.Shared = nil
		} else {
			forms := v.Forms(h, hidden)
			x = nss.Host{Name: forms[0], Aliases: forms[1:], Addrs: h.Addrs}
			_ = x.Prepare() // what is wrong with it, encoding says
		}
		for _, a := range h.Addrs { // an address leads back to the host of the View's choice
			if r, _ := v.Reverse(a); r != h {
				x.Shared = append(x.Shared, a)
			}
		}
		out.Hosts = append(out.Hosts, x)
	}
	for _, g := range v.Groups() {
		x := nss.Group{Name: g.Name}
		for _, h := range g.Hosts {
			x.Members = append(x.Members, v.Forms(h, hidden)...) // programs ask for a host by whichever name they have of it
		}
		out.Groups = append(out.Groups, x)
	}
	s.view, s.hidden, s.hosts = v, hidden, out.Hosts
	return out
}

// hidden are the names that this machine's own hosts file gives a meaning.
func hidden(path string) map[string]bool {
	out := map[string]bool{}
	b, err := os.ReadFile(path)
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		for i, f := range strings.Fields(line) {
			if i > 0 {
				out[strings.ToLower(f)] = true
			}
		}
	}
	return out
}
