// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/vpn/identity"
)

// The mesh's own store is kept by the nodes that the roster names. This file follows the roster: it tells the store's
// client where they are, and meshd-etcd of this machine what it is to do.

// movable is a store whose members may change.
type movable interface {
	store.Store
	Move(endpoints []string, anew bool)
}

const (
	keeper    = "meshd-etcd"
	etcdPort  = "2379"
	lookEvery = 30 * time.Second // at round trips between members
	leaveIn   = 2 * time.Minute  // that a member has to go, before the others are asked whether they have let it
)

// ownStore reports whether the mesh keeps its store itself: the configuration says so, or, as on nodes that joined before
// there was a roster, names addresses of the mesh.
func (d *daemon) ownStore() bool {
	c := d.cfg.Load()
	if c.Store.Embedded {
		return true
	}
	return len(c.Store.Endpoints) > 0 && !slices.ContainsFunc(c.Store.Endpoints, func(e string) bool { return !d.inMesh(e) })
}

// inMesh reports whether an endpoint is an address of the mesh.
func (d *daemon) inMesh(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return err == nil && slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// endpoints are where the store is.
func (d *daemon) endpoints() []string {
	c := d.cfg.Load()
	if !d.ownStore() {
		return c.Store.Endpoints
	}
	if eps := d.voterEndpoints(); len(eps) > 0 {
		return eps
	}
	if c.Store.Embedded { // nobody has said anything yet: it will be here, or elsewhere as soon as the roster comes
		return []string{endpoint(d.id.Node.Addrs[0])}
	}
	return c.Store.Endpoints
}

func endpoint(a netip.Addr) string { return "https://" + net.JoinHostPort(a.String(), etcdPort) }

func (d *daemon) voterEndpoints() (out []string) {
	for _, k := range d.keepers(d.node.Roster()) {
		if k.Addr.IsValid() {
			out = append(out, endpoint(k.Addr))
		}
	}
	return out
}

// keepers are the nodes of a roster; those whose records are not known have no address.
func (d *daemon) keepers(r *identity.Roster) (out []config.Keeper) {
	if r == nil {
		return nil
	}
	addrs := map[string]netip.Addr{}
	for _, rec := range d.node.Records() {
		addrs[rec.Node.Name] = rec.Node.Addrs[0]
	}
	rtt := map[string]time.Duration{}
	for _, p := range d.node.Peers() {
		rtt[p.Name] = p.RTT
	}
	for _, v := range r.Voters {
		out = append(out, config.Keeper{Name: v, Addr: addrs[v], RTT: float64(rtt[v].Microseconds()) / 1000})
	}
	return out
}

// keepStore follows the roster until ctx ends. st is nil where there is no store.
func (d *daemon) keepStore(st store.Store) func(context.Context) error {
	return func(ctx context.Context) error {
		if !d.ownStore() {
			return d.opts.Paths.SaveVoter(nil)
		}
		var last []string
		var epoch uint32
		known := false
		for ctx.Err() == nil {
			changed := d.node.Changed()
			r := d.node.Roster()
			if r == nil && d.cfg.Load().Store.Embedded && d.id.CA.Key != nil {
				var err error
				if r, err = d.node.SetRoster(0, []string{d.id.Node.Name}); err != nil {
					d.warn("roster", "who keeps the store cannot be said: "+err.Error())
				}
			}
			if eps := d.endpoints(); r != nil && (!slices.Equal(eps, last) || r.Epoch != epoch) {
				if m, ok := st.(movable); ok {
					m.Move(eps, known && r.Epoch != epoch)
				}
				last, epoch, known = eps, r.Epoch, true
			}
			if err := d.tellKeeper(ctx, r); err != nil {
				d.warn("keeper", "meshd-etcd of this machine does not hear what to do: "+err.Error())
			} else {
				d.warn("keeper", "")
			}
			select {
			case <-ctx.Done():
			case <-changed:
			case <-time.After(lookEvery):
			}
		}
		return nil
	}
}

// tellKeeper says what meshd-etcd of this machine is to do, if there is anything.
func (d *daemon) tellKeeper(ctx context.Context, r *identity.Roster) error {
	old, err := d.opts.Paths.LoadVoter()
	if err != nil {
		old = nil
	}
	if r == nil || !r.Has(d.id.Node.Name) && (old == nil || time.Since(r.At) > leaveIn && !d.stillMember(ctx, r)) {
		return d.opts.Paths.SaveVoter(nil)
	}
	v := &config.Voter{Mesh: d.cfg.Load().Mesh, Epoch: r.Epoch, Voters: d.keepers(r)}
	for _, rec := range d.node.Records() {
		v.Members = append(v.Members, rec.Node.Name)
	}
	slices.Sort(v.Members)
	if old != nil && sameVoter(old, v) {
		return nil
	}
	return d.opts.Paths.SaveVoter(v)
}

// stillMember reports whether those who keep the store have not let this node go yet, as far as they can be asked.
func (d *daemon) stillMember(ctx context.Context, r *identity.Roster) bool {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for _, k := range d.keepers(r) {
		if k.Addr.IsValid() {
			if names := memberNames(ctx, endpoint(k.Addr), d.id.TLS()); len(names) > 0 {
				return slices.Contains(names, d.id.Node.Name)
			}
		}
	}
	return true
}

// sameVoter reports whether nothing has changed that matters: round trips do when they are half or twice what they were.
func sameVoter(a, b *config.Voter) bool {
	if a.Mesh != b.Mesh || a.Epoch != b.Epoch || len(a.Voters) != len(b.Voters) || !slices.Equal(a.Members, b.Members) {
		return false
	}
	for i, x := range a.Voters {
		y := b.Voters[i]
		if x.Name != y.Name || x.Addr != y.Addr || x.RTT > 2*y.RTT || y.RTT > 2*x.RTT {
			return false
		}
	}
	return true
}

// fitness finds out how good a home this machine is for a part of the store.
func fitness(stateDir string) (f identity.Fit) {
	_, err := exec.LookPath(keeper)
	_, err2 := os.Stat("/usr/sbin/" + keeper)
	f.Can = err == nil || err2 == nil
	f.Battery = onBattery()
	f.Boot = bootTime().Truncate(time.Hour)
	f.Fsync = fsyncTime(stateDir)
	return f
}

// fsyncTime is the median of some small writes to the disk that the store would be on.
func fsyncTime(dir string) time.Duration {
	f, err := os.CreateTemp(dir, ".fsync-*")
	if err != nil {
		return 0
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var all []time.Duration
	for range 9 {
		begin := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil || f.Sync() != nil {
			return 0
		}
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	return all[len(all)/2]
}
