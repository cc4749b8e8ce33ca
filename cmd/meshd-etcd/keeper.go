// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"mesh.internal/mesh/cmd/internal/config"
)

const (
	lookEvery  = time.Second      // at the file of meshd, and at what is to be done
	aloneAfter = 30 * time.Second // a member that waits for a majority counts as up, so that booting goes on
	turn       = 2 * time.Second  // between the restarts of two members for the same reason
	settled    = 10 * time.Second // what a member is restarted for, and can wait, has to hold
)

// keeper keeps this node's part of the store.
type keeper struct {
	name  string
	addr  netip.Addr
	paths config.Paths
	data  string
	say   func(format string, args ...any)
	now   func() (*config.Voter, error) // what meshd says
	ready func(context.Context) error   // waits until the address is there
	heard string                        // what was last said of joining

	anywhere bool // tests: members connect from other addresses than their own
}

// errAgain says that what is to be done has changed, and that this process must begin anew to do it.
var errAgain = errors.New("what is to be done has changed")

// errGone says that the others have let this member go, so that it can never come back with the files that it has.
var errGone = errors.New("the others have let this member go")

// run keeps what is to be kept until ctx ends, or until it is errAgain.
func (k *keeper) run(ctx context.Context) error {
	told := false
	for ctx.Err() == nil {
		v, err := k.now()
		if err != nil {
			return err
		}
		if _, mine := v.Keeper(k.name); !mine && (v == nil || !k.has(v.Epoch)) { // with files it is a member until it was let go
			if told {
				k.say("this node does not keep the store any more")
				return nil
			}
			sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS=This node does not keep the store")
			k.pause(ctx)
			continue
		}
		told = true
		if err := k.ready(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		err = k.serve(ctx, v)
		if errors.Is(err, errGone) { // now that nothing uses them
			err = cmp.Or(k.aside(v.Epoch), errAgain)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, errAgain):
			return explain(err, k.addr)
		case err != nil:
			return err
		}
	}
	return nil
}

func (k *keeper) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(lookEvery):
	}
}

// serve runs the member as v says, until it is to run otherwise. Once there was a server that is errAgain.
func (k *keeper) serve(ctx context.Context, v *config.Voter) error {
	cluster, err := k.prepare(ctx, v)
	if err != nil || ctx.Err() != nil {
		return err
	}
	allowed := k.peers(v, nil)
	e, err := embed.StartEtcd(k.config(v, allowed, cluster))
	if err != nil && cluster != nil { // the others may not know yet that they may talk to this one
		k.joining(err)
		k.pause(ctx)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil {
			sd.SdNotify(false, sd.SdNotifyStopping)
		}
		// Not e.Close, which waits for connections that others hold, for seconds or for ever: this hands the lead over and
		// closes the files, and what was acknowledged is on the disk. The process ends or begins anew right after.
		e.Server.Stop()
	}()
	alone := time.NewTimer(aloneAfter)
	defer alone.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	ready, d := e.Server.ReadyNotify(), &duty{k: k, server: e.Server}
	d.away = map[types.ID]time.Time{}
	leaving := false
	var due timer
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS=Serving")
			ready = nil
		case <-alone.C:
			if ready != nil {
				sd.SdNotify(false, sd.SdNotifyReady+"\nSTATUS=Waiting for a majority of the members")
			}
		case err := <-e.Err():
			return k.ended(ctx, v, err)
		case <-e.Server.StopNotify():
			return k.ended(ctx, v, errors.New("etcd has stopped by itself: its log above says why"))
		case <-tick.C:
			next, err := k.now()
			if err != nil {
				k.say("%v", err)
				continue
			}
			_, mine := next.Keeper(k.name)
			switch {
			case next == nil || next.Epoch != v.Epoch && !mine: // another store has begun without this member
				k.say("this member is none of the store any more")
				return errAgain
			case next.Epoch != v.Epoch:
				k.say("the store begins anew")
				return errAgain
			case !mine && !leaving: // the others need its vote until they have let it go
				leaving = true
				k.say("leaving the store")
			}
			if ready != nil {
				continue
			}
			if due.now(k.whenAgain(v, next, allowed, k.peers(next, e.Server))) {
				return errAgain
			}
			d.do(ctx, next)
		}
	}
}

// joining says what keeps this member from joining, once.
func (k *keeper) joining(err error) {
	s := err.Error()
	if strings.Contains(s, "unhealthy cluster") {
		s += " (it takes another in when all that it has have been there for five seconds)"
	}
	if s != k.heard {
		k.say("joining the other members: %s", s)
		k.heard = s
	}
}

// whenAgain returns in what time the member is to be restarted, and what for: because somebody may not talk to it who is to,
// soon; because somebody still may who is gone, or for another heartbeat, when that has settled. What is empty: it is not.
func (k *keeper) whenAgain(v, next *config.Voter, allowed, want []string) (in time.Duration, what string) {
	what = strings.Join(want, " ") + " " + heartbeat(next).String()
	after := time.Duration(max(k.place(next), 0)) * turn // one after the other
	switch {
	case slices.ContainsFunc(want, func(a string) bool { return !slices.Contains(allowed, a) }):
		return after, what
	case len(want) != len(allowed) || heartbeat(v) != heartbeat(next):
		return settled + after, what
	}
	return 0, ""
}

// timer runs for as long as there is the same to wait for.
type timer struct {
	what string
	at   time.Time
}

// now reports whether the time has come.
func (t *timer) now(in time.Duration, what string) bool {
	if what != t.what {
		t.what, t.at = what, time.Now().Add(in)
	}
	return what != "" && !time.Now().Before(t.at)
}

// place is this node's place among the voters.
func (k *keeper) place(v *config.Voter) int {
	return slices.IndexFunc(v.Voters, func(x config.Keeper) bool { return x.Name == k.name })
}

// peers are the addresses that may speak raft with this member: of who is to keep the store, and of who does still. It
// remembers these for the next start; s is nil until there is a server.
func (k *keeper) peers(v *config.Voter, s *etcdserver.EtcdServer) (out []string) {
	file := k.peersFile()
	old, _ := os.ReadFile(file) // without it, members that are leaving have to wait until all others know that they are gone
	if s == nil {
		out = strings.Fields(string(old))
	} else {
		var urls []string
		for _, m := range s.Cluster().Members() {
			urls = append(urls, m.PeerURLs...)
		}
		out = hosts(urls)
		if now := strings.Join(out, "\n") + "\n"; now != string(old) {
			if err := config.WriteFile(file, []byte(now), 0o600); err != nil {
				k.say("keeping who the members are: %v", err)
			}
		}
	}
	out = append(out, addrs(v)...)
	slices.Sort(out)
	return slices.Compact(out)
}

func (k *keeper) peersFile() string { return filepath.Join(k.data, "peers") }

// hosts are the addresses in URLs, sorted.
func hosts(urls []string) (out []string) {
	for _, p := range urls {
		if u, err := url.Parse(p); err == nil {
			out = append(out, u.Hostname())
		}
	}
	slices.Sort(out)
	return out
}

// addrs are of who is to keep the store.
func addrs(v *config.Voter) (out []string) {
	for _, x := range v.Voters {
		if x.Addr.IsValid() {
			out = append(out, x.Addr.String())
		}
	}
	slices.Sort(out)
	return out
}

// ended finds out why the member has ended without being told to: if the others have let it go, what it has is put aside.
func (k *keeper) ended(ctx context.Context, v *config.Voter, why error) error {
	if ctx.Err() != nil {
		return nil
	}
	next, err := k.now()
	if err != nil || next == nil || next.Epoch != v.Epoch {
		return cmp.Or(err, errAgain)
	}
	gone, err := k.removed(ctx, next)
	if err != nil || !gone {
		return fmt.Errorf("%w", why)
	}
	k.say("the others have let this member go")
	return errGone
}
