// SPDX-License-Identifier: MIT

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
)

// What people do with the mesh's own store: doors of the API.
func (d *daemon) handleBook(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/store", answer(func(r *http.Request) (any, error) { return d.bookState(r.Context()), nil }))
	mux.HandleFunc("POST /v1/store/voters", answer(d.setVoters))
	mux.HandleFunc("POST /v1/store/recover", answer(d.recoverBook))
	mux.HandleFunc("GET /v1/store/backup", d.sendBackup)
	mux.HandleFunc("POST /v1/store/restore", d.takeBackup)
}

// askLimit is of asking a member how it is.
const askLimit = 2 * time.Second

// bookState asks all members how they are.
func (d *daemon) bookState(ctx context.Context) api.Book {
	b := api.Book{Own: d.ownStore(), Voters: []api.Voter{}, Candidates: []api.Candidate{}, MayChange: d.id.CA.Key != nil}
	if t := d.lastBackup(); !t.IsZero() {
		b.Backup = &t
	}
	r := d.node.Roster()
	switch {
	case b.Own && r == nil:
		return b
	case b.Own:
		b.Epoch, b.By, b.At = r.Epoch, r.By, &r.At
		for _, k := range d.keepers(r) {
			b.Voters = append(b.Voters, api.Voter{Name: k.Name, Addr: k.Addr})
		}
		b.Candidates = d.candidates(r)
	default:
		for _, e := range d.cfg.Load().Store.Endpoints {
			b.Voters = append(b.Voters, api.Voter{Name: e})
		}
	}
	var wg sync.WaitGroup
	for i := range b.Voters {
		v := &b.Voters[i]
		e := v.Name
		if b.Own {
			e = endpoint(v.Addr)
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askLimit)
			defer cancel()
			askMember(ctx, e, d.id.TLS(), v)
		})
	}
	wg.Wait()
	led, there := false, 0
	for _, v := range b.Voters {
		led = led || v.State == "leader"
		if v.State == "leader" || v.State == "follower" {
			there++
		}
	}
	b.Quorum = led && there > len(b.Voters)/2
	if b.Own && led {
		b.Leaving = d.leaving(ctx, b.Voters)
	}
	return b
}

// leaving are members that the roster does not name.
func (d *daemon) leaving(ctx context.Context, voters []api.Voter) (out []string) {
	i := slices.IndexFunc(voters, func(v api.Voter) bool { return v.State == "leader" })
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for _, name := range memberNames(ctx, endpoint(voters[i].Addr), d.id.TLS()) {
		if !slices.ContainsFunc(voters, func(v api.Voter) bool { return v.Name == name }) {
			out = append(out, name)
		}
	}
	return out
}

// candidates are the nodes that do not keep the store, the fittest first.
func (d *daemon) candidates(r *identity.Roster) []api.Candidate {
	out := []api.Candidate{}
	rtt := map[string]time.Duration{}
	for _, p := range d.node.Peers() {
		rtt[p.Name] = p.RTT
	}
	for _, rec := range d.node.Records() {
		if name := rec.Node.Name; !r.Has(name) {
			out = append(out, candidate(rec, rtt[name], time.Now()))
		}
	}
	slices.SortStableFunc(out, func(a, b api.Candidate) int {
		return cmp.Or(yesFirst(a.Fit, b.Fit), yesFirst(a.Public, b.Public), yesFirst(a.Up > 24, b.Up > 24),
			cmp.Compare(a.Fsync+a.RTT, b.Fsync+b.RTT), strings.Compare(a.Name, b.Name))
	})
	return out
}

func yesFirst(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}

// slowDisk is from when on a disk makes every change of the store wait.
const slowDisk = 50 * time.Millisecond

func candidate(rec *identity.Record, rtt time.Duration, now time.Time) api.Candidate {
	f := rec.Fit
	c := api.Candidate{Name: rec.Node.Name, Battery: f.Battery, Public: vpn.Public(rec), Fsync: ms(f.Fsync), RTT: ms(rtt)}
	if !f.Boot.IsZero() {
		c.Up = max(now.Sub(f.Boot).Hours(), 0)
	}
	switch {
	case !f.Can:
		c.Why = "meshd-etcd is not installed there"
	case f.Battery:
		c.Why = "it runs on a battery, so it sleeps and travels"
	case f.Fsync > slowDisk:
		c.Why = fmt.Sprintf("its disk takes %.0f ms for a small write", ms(f.Fsync))
	default:
		c.Fit = true
	}
	return c
}

// setVoters changes who keeps the store. It is done when the answer comes that it is said; the members then bring it about.
func (d *daemon) setVoters(q *http.Request) (any, error) {
	var v api.Voters
	if err := json.NewDecoder(q.Body).Decode(&v); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	r, err := d.mayChange()
	if err != nil {
		return nil, err
	}
	records := map[string]*identity.Record{}
	for _, rec := range d.node.Records() {
		records[rec.Node.Name] = rec
	}
	for i, name := range v.Add {
		v.Add[i] = d.relative(name)
	}
	for i, name := range v.Remove {
		v.Remove[i] = d.relative(name)
	}
	next, err := changeVoters(r.Voters, v, records)
	if err != nil {
		return nil, err
	}
	if !v.Force && !d.hasQuorum(q.Context()) {
		return nil, errors.New("the store cannot be changed now, most of its members are away: wait until they are back, or, if they never will be, `mesh store recover`")
	}
	if _, err := d.node.SetRoster(r.Epoch, next); err != nil {
		return nil, err
	}
	return d.bookState(q.Context()), nil
}

// quorumIn is how long a majority is waited for: another member may just be taking the lead.
const quorumIn = 10 * time.Second

func (d *daemon) hasQuorum(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, quorumIn)
	defer cancel()
	for {
		if d.bookState(ctx).Quorum {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(askLimit / 4):
		}
	}
}

// mayChange returns the roster if this node may replace it.
func (d *daemon) mayChange() (*identity.Roster, error) {
	if !d.ownStore() {
		return nil, errors.New("this mesh's names are in an etcd elsewhere (store in mesh.toml): its members are the business of whoever runs it")
	}
	r := d.node.Roster()
	if d.id.CA.Key == nil {
		where := "the node where `mesh init` was run"
		if r != nil {
			where = r.By
		}
		return nil, fmt.Errorf("who keeps the store can be changed only where the mesh's key is: run this on %s", where)
	}
	if r == nil {
		return nil, errors.New("it is not known yet who keeps the store: try again in a moment")
	}
	return r, nil
}

// changeVoters returns who keeps the store after a change, or why that would not be good.
func changeVoters(now []string, v api.Voters, records map[string]*identity.Record) ([]string, error) {
	next := slices.Clone(now)
	for _, name := range v.Add {
		rec := records[name]
		switch {
		case slices.Contains(next, name):
			return nil, fmt.Errorf("%s keeps the store already", name)
		case rec == nil:
			return nil, fmt.Errorf("no node %s is known here: `mesh status` lists those that are", name)
		}
		if c := candidate(rec, 0, time.Now()); !c.Fit && !v.Force {
			return nil, fmt.Errorf("%s is no good home for the store: %s (--force takes it all the same)", name, c.Why)
		}
		next = append(next, name)
	}
	for _, name := range v.Remove {
		i := slices.Index(next, name)
		if i < 0 {
			return nil, fmt.Errorf("%s does not keep the store: %s do", name, strings.Join(now, ", "))
		}
		next = slices.Delete(next, i, i+1)
	}
	switch {
	case len(next) == 0:
		return nil, errors.New("the last member cannot leave: move it to another node instead (mesh store move)")
	case len(next) > identity.MaxVoters:
		return nil, fmt.Errorf("%d members would be slower and no safer than %d", len(next), identity.MaxVoters)
	case len(next)%2 == 0 && !v.Force:
		return nil, fmt.Errorf("%d members survive no more losses than %d, and are more that can fail: name two nodes at once, or --force", len(next), len(next)-1)
	}
	return next, nil
}

// dropVoter takes a node that was evicted out of those that keep the store.
func (d *daemon) dropVoter(name string) error {
	r := d.node.Roster()
	if !r.Has(name) || d.id.CA.Key == nil || !d.ownStore() {
		return nil
	}
	next := slices.DeleteFunc(slices.Clone(r.Voters), func(v string) bool { return v == name })
	if len(next) == 0 {
		return fmt.Errorf("%s kept the mesh's only store: `mesh store recover` begins a new one here", name)
	}
	_, err := d.node.SetRoster(r.Epoch, next)
	return err
}

// recoverBook has the store begin anew with what one member has. All others are fenced off by the same statement: where it
// is known, no client asks them any more, and they stop.
func (d *daemon) recoverBook(q *http.Request) (any, error) {
	var v api.Recover
	if err := json.NewDecoder(q.Body).Decode(&v); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	r, err := d.mayChange()
	if err != nil {
		return nil, err
	}
	from := d.relative(v.From)
	if from == "" {
		from = d.id.Node.Name
	}
	if !slices.ContainsFunc(d.node.Records(), func(rec *identity.Record) bool { return rec.Node.Name == from }) {
		return nil, fmt.Errorf("no node %s is known here: `mesh status` lists those that are", from)
	}
	if d.bookState(q.Context()).Quorum && !v.Force {
		return nil, errors.New("the store works: nothing is to be recovered")
	}
	if _, err := d.node.SetRoster(r.Epoch+1, []string{from}); err != nil {
		return nil, err
	}
	return d.bookState(q.Context()), nil
}
