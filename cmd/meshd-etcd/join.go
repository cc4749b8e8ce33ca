// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store/etcd"
)

// callLimit is of one call to another member.
const callLimit = 3 * time.Second

// tls is how this member talks to the others as a client.
func (k *keeper) tls() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(k.paths.CertFile(), k.paths.KeyFile())
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(k.paths.CAFile())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", k.paths.CAFile())
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, nil
}

// others calls f with each other member in turn until it has no error.
func (k *keeper) others(ctx context.Context, v *config.Voter, f func(context.Context, *etcd.Admin) error) error {
	t, err := k.tls()
	if err != nil {
		return err
	}
	err = errors.New("the addresses of the other members are not known")
	for _, x := range v.Voters {
		if x.Name == k.name || !x.Addr.IsValid() {
			continue
		}
		u := k.at(x.Addr, clientPort)
		a, e := etcd.Dial(u.String(), t)
		if e != nil {
			return e
		}
		call, cancel := context.WithTimeout(ctx, callLimit)
		err = f(call, a)
		cancel()
		a.Close()
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", x.Name, err)
	}
	return err
}

// join makes a place for this member, which has no files, among the others, and returns the cluster with it: names by
// URL. Where they know it already under an ID with which it has been there, its disk was lost: it comes back under another.
func (k *keeper) join(ctx context.Context, v *config.Voter) (cluster map[string]string, err error) {
	for ctx.Err() == nil {
		err = k.others(ctx, v, func(ctx context.Context, a *etcd.Admin) error {
			cluster, err = k.settle(ctx, v, a)
			return err
		})
		if err == nil {
			return cluster, nil
		}
		k.joining(err)
		k.pause(ctx)
		next, e := k.now()
		if e != nil {
			return nil, e
		}
		if _, mine := next.Keeper(k.name); !mine || next.Epoch != v.Epoch || len(next.Voters) == 1 {
			return nil, errAgain
		}
		v = next
	}
	return nil, ctx.Err()
}

func (k *keeper) settle(ctx context.Context, v *config.Voter, a *etcd.Admin) (map[string]string, error) {
	members, err := a.Members(ctx)
	if err != nil {
		return nil, err
	}
	u := k.at(k.addr, peerPort)
	self := u.String()
	i := slices.IndexFunc(members, func(m etcd.Member) bool { return slices.Contains(m.Peers, self) })
	if i >= 0 && members[i].Name != "" {
		k.say("the files of this member are lost: it comes back as a new one")
		if err := a.Remove(ctx, members[i].ID); err != nil {
			return nil, err
		}
		members, i = slices.Delete(members, i, i+1), -1
	}
	if i < 0 {
		id, err := a.AddLearner(ctx, self)
		if err != nil {
			return nil, err
		}
		k.say("a place is made for this member: %x", id)
		members = append(members, etcd.Member{Peers: []string{self}})
	}
	cluster := map[string]string{}
	var urls []string
	for _, m := range members {
		urls = append(urls, m.Peers...)
		for _, p := range m.Peers {
			cluster[p] = m.Name
			if m.Name == "" {
				cluster[p] = k.nameAt(v, p)
			}
		}
	}
	// Those that are leaving take part until they are gone.
	return cluster, config.WriteFile(k.peersFile(), []byte(strings.Join(hosts(urls), "\n")+"\n"), 0o600)
}

// nameAt is the name of the voter whose peer URL this is.
func (k *keeper) nameAt(v *config.Voter, peer string) string {
	for _, x := range v.Voters {
		if u := k.at(x.Addr, peerPort); u.String() == peer {
			return x.Name
		}
	}
	return fmt.Sprintf("at-%x", peer)
}

// removed reports whether the others have no member at this address, or only one that has not started.
func (k *keeper) removed(ctx context.Context, v *config.Voter) (gone bool, err error) {
	u := k.at(k.addr, peerPort)
	err = k.others(ctx, v, func(ctx context.Context, a *etcd.Admin) error {
		members, err := a.Members(ctx)
		gone = !slices.ContainsFunc(members, func(m etcd.Member) bool { return m.Name != "" && slices.Contains(m.Peers, u.String()) })
		return err
	})
	return gone, err
}
