// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"mesh.internal/mesh/resolver/store"
)

// A service is in the store in two parts: what it is, which stays, and how it is, in one value for all services of a node
// that is leased and goes with the node.

// SetServices says which services this node offers: the whole set, whose Owner, Health and Addrs do not count. landed reports
// whether the store has it.
func (r *Resolver) SetServices(ctx context.Context, services []Service) (landed bool, err error) {
	if err := r.waitLoaded(ctx); err != nil {
		return false, err
	}
	self := r.cfg.Signer.Name()
	want := map[string]*ownValue{}
	if len(services) > MaxServices {
		return false, fmt.Errorf("%d services, and a node may offer at most %d", len(services), MaxServices)
	}
	for _, s := range services {
		if s.Owner = self; s.Host == "" {
			s.Host = self
		}
		key := kindServices + "/" + s.Name
		if err := CheckService(s); err != nil {
			return false, err
		}
		if want[key] != nil {
			return false, fmt.Errorf("there are two services %q: give one of them another name", s.Name)
		}
		want[key] = &ownValue{Value: serviceValue(s)}
	}
	r.mu.Lock()
	maps.DeleteFunc(r.own.values, func(key string, v *ownValue) bool {
		if x := want[key]; x != nil && same(x.Value, v.Value) {
			want[key] = v // it may have landed
		}
		return strings.HasPrefix(key, kindServices+"/")
	})
	maps.Copy(r.own.values, want)
	r.own.complete[kindServices] = true
	r.mu.Unlock()
	poke(r.untold)
	rev, err := r.reconcile(ctx, "")
	if err != nil {
		poke(r.behind)
		return false, nil // State tells what is waiting
	}
	return true, r.WaitRevision(ctx, rev)
}

// WaitingServices are the services of this node that the store does not have, by name, and why.
func (r *Resolver) WaitingServices() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for key, v := range r.own.values {
		if strings.HasPrefix(key, kindServices+"/") && !v.landed {
			out[v.Name] = v.why()
		}
	}
	return out
}

// SetHealth says how this node's services are, by their names.
func (r *Resolver) SetHealth(health map[string]Health) {
	r.mu.Lock()
	r.own.health = health
	r.renew(store.HealthKey(r.cfg.Signer.Name()))
	r.mu.Unlock()
	poke(r.untold)
	poke(r.dirty)
}

// tellHealth keeps what the store has of the health of this node's services, if it has any, until ctx ends.
func (r *Resolver) tellHealth(ctx context.Context) {
	leaser, ok := r.cfg.Store.(store.Leaser)
	for ok && ctx.Err() == nil {
		if r.State().State == "ok" && len(r.healthToTell()) > 0 {
			if err := leaser.Lease(ctx, r.keepTelling); err != nil && ctx.Err() == nil {
				r.cfg.Log.Debug("the health of services is not in the store", "err", err)
				if !sleep(ctx, retryMost) {
					return
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-r.untold: // also when the store is back
		}
	}
}

// keepTelling puts the health of this node's services whenever it changes, or is gone, until there are none, or ctx ends.
func (r *Resolver) keepTelling(ctx context.Context, put func(context.Context, string, []byte) error) error {
	key := store.HealthKey(r.cfg.Signer.Name())
	var told map[string]store.Health
	var seq uint64
	for {
		now := r.healthToTell()
		if len(now) == 0 {
			return nil
		}
		if !maps.Equal(now, told) || !r.stillTold(key) {
			r.mu.Lock()
			seq = max(uint64(time.Now().UnixMilli()), seq+1, r.seqs[key]+1)
			r.mu.Unlock()
			b, err := store.Seal(key, store.Value{Seq: seq, Health: now}, r.cfg.Signer)
			if err != nil {
				return err
			}
			call, cancel := context.WithTimeout(ctx, callLimit)
			err = put(call, key, b)
			cancel()
			if err != nil {
				return err
			}
			told = now
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.untold:
		}
	}
}

// stillTold reports whether nobody has deleted what was put, as far as is known.
func (r *Resolver) stillTold(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored(key) != nil
}

// healthToTell is the health of all services of this node, in few enough bytes.
func (r *Resolver) healthToTell() map[string]store.Health {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]store.Health{}
	for key, v := range r.own.values {
		if strings.HasPrefix(key, kindServices+"/") {
			h := r.own.healthOf(v.Name)
			out[v.Name] = store.Health{State: string(h.State), Output: oneLine(h.Output), Since: h.Since.UTC().Truncate(time.Second)}
		}
	}
	return out
}

// healthOf is the health of one of this node's services: before anything was said of it, unknown.
func (o *ownState) healthOf(name string) Health {
	if h, ok := o.health[name]; ok {
		return h
	}
	return Health{State: Unknown, Output: "not checked yet"}
}

// oneLine is the beginning of a text that others get to know.
func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > maxOutput {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

func serviceValue(s Service) store.Value {
	v := store.Value{Name: s.Name, Meta: s.Meta, Service: &store.Service{Type: s.Type, Proto: s.Proto, Port: s.Port, Host: s.Host,
		Tags: slices.Compact(slices.Sorted(slices.Values(s.Tags))), Priority: s.Priority, Weight: s.Weight, TTL: int(s.TTL / time.Second)}}
	if s.Host == s.Owner {
		v.Service.Host = ""
	}
	return v
}

func sameService(a, b *store.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Type == b.Type && a.Proto == b.Proto && a.Port == b.Port && a.Host == b.Host && a.Priority == b.Priority && a.Weight == b.Weight &&
		a.TTL == b.TTL && slices.Equal(a.Tags, b.Tags)
}

// service is a service as a value says it, with what its owner says of its health. r.mu is held.
func (r *Resolver) service(v store.Value) StaticService {
	x := v.Service
	s := StaticService{Service: Service{Name: v.Name, Type: x.Type, Proto: x.Proto, Port: x.Port, Owner: v.Owner, Host: x.Host, Tags: x.Tags, Meta: v.Meta,
		Priority: x.Priority, Weight: x.Weight, TTL: time.Duration(x.TTL) * time.Second}, Holder: r.holder(store.NameClaimKey(x.Type))}
	if s.Host == "" {
		s.Host = s.Owner
	}
	s.Health = r.health(v.Owner, v.Name)
	return s
}

// health is what is known of the health of a service. r.mu is held.
func (r *Resolver) health(owner, name string) Health {
	if owner == r.cfg.Signer.Name() {
		return r.own.healthOf(name)
	}
	v := r.values[store.HealthKey(owner)]
	if v == nil || v.err != nil {
		return Health{State: Offline, Output: owner + " is not heard of"}
	}
	h, ok := v.val.Health[name]
	switch s := State(h.State); {
	case !ok:
		return Health{State: Unknown, Output: owner + " does not say how it is"}
	case s == Passing || s == Warning || s == Critical || s == Unknown:
		return Health{State: s, Output: oneLine(h.Output), Since: h.Since}
	}
	return Health{State: Unknown, Output: fmt.Sprintf("%s says %q, which is no state", owner, oneLine(h.State)), Since: h.Since}
}
