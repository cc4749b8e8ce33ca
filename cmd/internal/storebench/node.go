// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mesh.internal/mesh/cmd/internal/daemon"
	"mesh.internal/mesh/nss"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/etcd"
	"mesh.internal/mesh/vpn/identity"
)

// open is a person's store.
func (p place) open() (*etcd.Store, *identity.Identity, error) {
	id, err := p.paths(p.Name).LoadIdentity()
	if err != nil {
		return nil, nil, err
	}
	st, err := etcd.Open(etcd.Config{Endpoints: p.Endpoints, Prefix: store.DefaultPrefix(meshName), TLS: id.TLS()})
	return st, id, err
}

// order is what a node is told to do, and answer what it says then.
type order struct {
	Add  string // a host of this name
	Addr netip.Addr
	Rest bool // what it has cost since it was last asked
}

type answer struct {
	At       int64 // when the change was begun, nanoseconds since 1970
	Took     time.Duration
	Writes   int64 // snapshots
	WriteFor time.Duration
	Load     time.Duration // from the start until all names were there, and in the snapshot where one is written
}

// writes counts snapshots.
type writes struct {
	n, ns, names atomic.Int64
	sets         daemon.Sets
	file         nss.Writer
}

// playNode is a node until its input ends.
func playNode(in io.Reader, out io.Writer) error {
	begin := time.Now()
	lines := bufio.NewReader(in)
	var p place
	if err := readJSON(lines, &p); err != nil {
		return err
	}
	st, id, err := p.open()
	if err != nil {
		return err
	}
	defer st.Close()
	verifier, nodes, err := p.nodes()
	if err != nil {
		return err
	}
	r := resolver.New(resolver.Config{Zone: zone, Prefixes: []netip.Prefix{prefix}, Signer: signer{id}, Verifier: verifier, StateDir: p.paths(p.Name).State,
		Store: st, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	r.SetNodes(nodes)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var w writes
	wrote := make(chan error, 1)
	if p.Snapshot != "" {
		changed := r.Changed()
		wg.Go(func() {
			daemon.Pace(ctx, changed, r.Changed, func() { w.write(r.View(), p.Snapshot, wrote) }, func() {})
		})
	}
	wg.Go(func() { r.Run(ctx) })
	for changed := r.Changed(); len(r.View().Hosts()) < p.Names+len(nodes); changed = r.Changed() {
		<-changed
	}
	for p.Snapshot != "" && int(w.names.Load()) < p.Names {
		if err := <-wrote; err != nil {
			return err
		}
	}
	say := json.NewEncoder(out)
	say.Encode(answer{Load: time.Since(begin)})
	for {
		var o order
		if err := readJSON(lines, &o); err != nil {
			return nil
		}
		a := answer{At: time.Now().UnixNano()}
		if o.Add != "" {
			landed, err := r.AddHost(ctx, resolver.Host{Name: o.Add, Addrs: []netip.Addr{o.Addr}})
			if err != nil || !landed {
				return fmt.Errorf("adding %s: %v, landed: %v", o.Add, err, landed)
			}
			a.Took = time.Since(time.Unix(0, a.At))
		}
		if o.Rest {
			a.Writes, a.WriteFor = w.n.Swap(0), time.Duration(w.ns.Swap(0))
		}
		say.Encode(a)
	}
}

func (w *writes) write(v *resolver.View, path string, wrote chan<- error) {
	begin := time.Now()
	err := w.file.WriteFile(path, w.sets.Of(v, nil))
	w.n.Add(1)
	w.ns.Add(int64(time.Since(begin)))
	w.names.Store(int64(len(v.Hosts())))
	select {
	case wrote <- err:
	default:
	}
}

// playFill publishes the names that there are to begin with, with their claims, as the resolver would one by one.
func playFill(in io.Reader, out io.Writer) error {
	var p place
	if err := readJSON(bufio.NewReader(in), &p); err != nil {
		return err
	}
	st, id, err := p.open()
	if err != nil {
		return err
	}
	defer st.Close()
	const atOnce = 40 // hosts, of three keys each
	seq := uint64(time.Now().UnixMilli())
	for i := 0; i < p.Names; i += atOnce {
		var ops []store.Op
		for j := i; j < min(i+atOnce, p.Names); j++ {
			name, addr := hostAt(j)
			for key, v := range map[string]store.Value{
				store.HostKey(p.Name, name):       {Seq: seq, Name: name, Addrs: []netip.Addr{addr}},
				store.NameClaimKey(name):          {Seq: seq, Name: name},
				store.AddrClaimKey(addr.String()): {Seq: seq, Name: name},
			} {
				b, err := store.Seal(key, v, signer{id})
				if err != nil {
					return err
				}
				ops = append(ops, store.Op{Key: key, Value: b})
			}
		}
		if _, err := st.Commit(context.Background(), nil, ops); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, `{}`)
	return nil
}
