// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/netif"
)

// serveAPI answers on the unix socket, which root and the group mesh may use.
func (d *daemon) serveAPI(ctx context.Context) error {
	path := d.opts.Paths.Socket()
	os.Remove(path) // left behind by a daemon that was killed; a living one has the interface, and we would not be here
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("opening the API's socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("opening the API's socket: %w", err)
	}
	if g, err := user.LookupGroup("mesh"); err == nil {
		if gid, err := strconv.Atoi(g.Gid); err == nil {
			os.Chown(path, -1, gid)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", answer(func(*http.Request) (any, error) { return d.status(), nil }))
	d.handleHosts(mux)
	d.handleNames(mux)
	d.handleServices(mux)
	mux.HandleFunc("GET /v1/groups", answer(func(*http.Request) (any, error) { return d.groups(), nil }))
	mux.HandleFunc("PUT /v1/groups", answer(d.addGroup))
	mux.HandleFunc("DELETE /v1/groups/{name}", answer(d.removeGroup))
	mux.HandleFunc("POST /v1/invite", answer(d.invite))
	mux.HandleFunc("POST /v1/evict", answer(d.evict))
	d.handleNet(mux)
	d.handleBook(mux)
	d.handleGrants(mux)
	srv := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }, // so that streams end with the daemon
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, isRoot(c))
		}}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the API: %w", err)
	}
	return nil
}

// peerKey is where a request's context says whether root has sent it.
type peerKey struct{}

func fromRoot(ctx context.Context) bool { root, _ := ctx.Value(peerKey{}).(bool); return root }

// answer makes a handler of a function that returns what to send.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		v, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			v = api.Error{Message: err.Error()}
		}
		json.NewEncoder(w).Encode(v)
	}
}

func (d *daemon) status() api.Status {
	c := d.cfg.Load()
	own := d.node.Records()[0]
	s := api.Status{Version: d.opts.Version, Mesh: c.Mesh, Domain: c.Domain, Peers: []api.Peer{}, Warnings: []string{},
		Self: api.Self{Name: c.Name, Addrs: d.id.Node.Addrs, Endpoints: own.Hosts, Interface: c.Interface, MayInvite: d.id.CA.Key != nil}}
	for _, e := range own.Endpoints {
		s.Self.Endpoints = append(s.Self.Endpoints, e.String())
	}
	for _, p := range d.node.Peers() {
		ap := api.Peer{Name: p.Name, Addrs: p.Addrs, Active: p.Active, Neighbour: p.Neighbour, Via: p.Via, Stream: p.Stream, Reason: p.Reason,
			RTT: float64(p.RTT.Microseconds()) / 1000, Loss: p.Loss, MTU: p.MTU, RX: p.RX, TX: p.TX}
		if p.Endpoint.IsValid() {
			ap.Endpoint, ap.Direct = p.Endpoint.String(), true
		}
		if !p.Handshake.IsZero() {
			ap.LastHandshake = &p.Handshake
		}
		s.Peers = append(s.Peers, ap)
	}
	s.Dropped.Late, s.Dropped.Full = d.node.Dropped()
	st := d.names.State()
	s.Store = storeOf(st)
	s.Store.Endpoints = d.endpoints()
	s.Snapshot = api.Snapshot{Path: d.opts.Paths.Snapshot(), Names: int(d.snap.names.Load())}
	if st.State != "ok" {
		s.Snapshot.Age = time.Since(st.Since).Seconds()
		if st.State == "unreachable" {
			s.Warnings = append(s.Warnings, "the store is unreachable: names are as they were last seen, and changes made here wait")
		}
	}
	s.Projections = d.projected()
	for _, p := range s.Projections {
		for _, key := range p.Foreign {
			s.Warnings = append(s.Warnings, key+" was written by somebody else and is left alone: programs that read etcd do not see the mesh's name there")
		}
	}
	for _, r := range st.Refused {
		s.Warnings = append(s.Warnings, "not accepted from the store: "+r)
	}
	for _, x := range d.names.View().Conflicts {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s of %s is not a name of the mesh: %s", x.Name, x.Owner, x.Reason))
	}
	if route, found, err := netif.Overlap(d.prefixes[0], c.Interface); err == nil && found {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the route %s of this machine overlaps the mesh's prefix %s: some nodes cannot be reached", route, d.prefixes[0]))
	}
	for _, t := range d.node.Tombstones() {
		if t.Voids(d.id.Node) {
			s.Warnings = append(s.Warnings, fmt.Sprintf("this node, %s: nobody talks to it any more; to come back, ask for a new invitation, stop meshd, move %s and %s away, and join again",
				t, d.opts.Paths.State, d.opts.Paths.Config))
		} else if len(s.Evicted) < 20 {
			s.Evicted = append(s.Evicted, evicted(t))
		}
	}
	d.mu.Lock()
	for _, w := range d.warnings {
		s.Warnings = append(s.Warnings, w)
	}
	d.mu.Unlock()
	slices.Sort(s.Warnings)
	return s
}

func (d *daemon) groups() api.Groups {
	v := d.names.View()
	out := api.Groups{Revision: v.Revision, Groups: []api.Group{}}
	for _, g := range v.Groups() {
		x := api.Group{Name: g.Name, Owner: g.Owner, Members: append([]string{}, g.Members...), Hosts: []string{}, Unknown: g.Unknown}
		for _, h := range g.Hosts {
			x.Hosts = append(x.Hosts, v.FQDN(h))
		}
		out.Groups = append(out.Groups, x)
	}
	return out
}

func (d *daemon) addGroup(r *http.Request) (any, error) {
	var g api.Group
	if err := json.NewDecoder(r.Body).Decode(&g); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	landed, err := d.names.AddGroup(r.Context(), groupName(g.Name), d.relatives(g.Members)...)
	return api.Change{Landed: landed}, err
}

func (d *daemon) removeGroup(r *http.Request) (any, error) {
	landed, err := d.names.RemoveGroup(r.Context(), groupName(r.PathValue("name")), d.relatives(r.URL.Query()["member"])...)
	return api.Change{Landed: landed}, err
}

func storeOf(st resolver.StoreState) api.Store {
	return api.Store{State: st.State, Since: st.Since, Revision: st.Revision, Error: st.Err, Waiting: st.Waiting, LastSeen: (*api.LastSeen)(st.LastSeen)}
}

// groupName is a group's name as people write it, with or without "@".
func groupName(s string) string { return strings.ToLower(strings.TrimPrefix(s, "@")) }

// relatives are members of a group, hosts without the zone.
func (d *daemon) relatives(members []string) []string {
	var out []string
	for _, m := range members {
		if strings.HasPrefix(m, "@") {
			m = strings.ToLower(m)
		} else {
			m = d.relative(m)
		}
		out = append(out, m)
	}
	return out
}

// Bounds of an invitation's life.
const (
	shortest = time.Minute
	longest  = 30 * 24 * time.Hour
)

func (d *daemon) invite(r *http.Request) (any, error) {
	var q api.Invite
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	if d.id.CA.Key == nil {
		return d.askInvitation(r.Context(), q)
	}
	return d.makeInvitation(r.Context(), q, nil)
}

// makeInvitation makes an invitation, for a member that has asked for it unless by is nil.
func (d *daemon) makeInvitation(ctx context.Context, q api.Invite, by *identity.Node) (inv api.Invitation, err error) {
	if q.Expires < shortest || q.Expires > longest {
		return inv, fmt.Errorf("an invitation is good for %s to %s, not %s", shortest, longest, q.Expires)
	}
	for _, p := range q.Subnets {
		if err := identity.CheckSubnet(p); err != nil {
			return inv, err
		}
	}
	c := d.cfg.Load()
	for _, t := range d.node.Tombstones() {
		if t.Name == d.relative(q.Name) && !time.Now().After(t.At) {
			return inv, fmt.Errorf("%s: by this machine's clock that is yet to come, so an invitation would be void; set the clock", t)
		}
	}
	expires := time.Now().Add(q.Expires).Truncate(time.Second)
	t := join.Token{Root: d.id.CA.Fingerprint(), Inviter: d.id.Node.KeyHash(), Secret: join.NewSecret(),
		Name: d.relative(q.Name), Expires: expires}
	add := func(hp string) {
		if len(t.Endpoints) < 8 && !slices.Contains(t.Endpoints, hp) {
			t.Endpoints = append(t.Endpoints, hp)
		}
	}
	for _, p := range public(c) {
		add(p)
	}
	locals, err := netif.Addrs(d.prefixes)
	if err != nil {
		return inv, err
	}
	for _, a := range locals {
		add(netip.AddrPortFrom(a, uint16(c.Port)).String())
	}
	t.Via = d.between()
	warning, err := unreachable(t, len(c.Public) > 0 || slices.ContainsFunc(locals, join.Public))
	if err != nil {
		return inv, err
	}
	addr, err := d.names.ClaimNode(ctx, t.Name, q.Addr, expires)
	if err != nil {
		return inv, err
	}
	if by != nil {
		err = d.book.AddFor(*by, t.Secret, t.Name, addr, expires)
	} else {
		err = d.book.Add(t.Secret, t.Name, addr, expires, q.Subnets...)
	}
	if err != nil {
		return inv, err
	}
	return api.Invitation{Token: t.String(), Addr: addr, Expires: expires, Warning: strings.Join(slices.DeleteFunc([]string{warning, storeAccess(c, t.Name)}, func(s string) bool { return s == "" }), "; ")}, nil
}

func evicted(t *identity.Tombstone) api.Evicted {
	return api.Evicted{Name: t.Name, At: t.At, By: t.By, Reason: t.Reason}
}

// evict evicts a node, and clears the store of what it has left there. Done again it clears the store again.
func (d *daemon) evict(r *http.Request) (any, error) {
	var q api.Evict
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	t, err := d.node.Evict(d.relative(q.Name), q.Reason)
	if err != nil {
		return nil, err
	}
	d.introduce() // so that names are gone when this is answered
	if err := d.dropVoter(t.Name); err != nil {
		return nil, err
	}
	out := evicted(t)
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	if err := d.names.Clear(ctx, t.Name); err != nil {
		out.StoreError = err.Error()
	}
	return out, nil
}
