// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of services.
const (
	MaxServices   = 64 // of one node
	maxServiceTag = 16 // tags of one service
	maxOutput     = 96 // bytes of what checks say that the others get to know; all of it stays on the owner's node
	maxTTL        = 24 * time.Hour
)

// State is how a service is.
type State string

// The states of a service. Unknown is what checks could not find out; it counts as critical, as in Nagios. Offline is what its
// owner is: not heard of.
const (
	Passing  State = "passing"
	Warning  State = "warning"
	Critical State = "critical"
	Unknown  State = "unknown"
	Offline  State = "offline"
)

// Usable reports whether what is in this state belongs into answers.
func (s State) Usable() bool { return s == Passing || s == Warning }

// Health is how a service is, as its owner's checks say.
type Health struct {
	State  State     `json:"state"`
	Output string    `json:"output,omitempty"` // one line
	Since  time.Time `json:"since"`
}

// Service is something that a node offers at a port.
type Service struct {
	Name     string            `json:"name"`  // by which its owner knows it: UTF-8, at most 40 bytes; the type, where nobody says otherwise
	Type     string            `json:"type"`  // "http": a label of a-z, 0-9 and hyphens (RFC 6335 section 5.1 allows 15 of them, here 62)
	Proto    string            `json:"proto"` // "tcp" or "udp"
	Port     uint16            `json:"port"`
	Owner    string            `json:"owner"` // the node that offers it, and checks it
	Host     string            `json:"host"`  // on which it is, relative to the zone: its owner, or a host that this has added
	Tags     []string          `json:"tags,omitempty"`
	Meta     map[string]string `json:"meta,omitempty"`     // see CheckMeta
	Priority uint16            `json:"priority,omitempty"` // lower is asked first (RFC 2782)
	Weight   uint16            `json:"weight,omitempty"`
	TTL      time.Duration     `json:"ttl,omitempty"` // of answers, in whole seconds up to a day; 0: as other names
	Health   Health            `json:"health"`
	Addrs    []netip.Addr      `json:"addrs,omitempty"` // in a View: the host's
}

// Usable reports whether the service belongs into answers.
func (s *Service) Usable() bool { return s.Health.State.Usable() }

// Instance is the label by which DNS-SD knows it (RFC 6763 section 4.1.1): the host alone, or the service's own name with it,
// so that nobody can take another's. It is UTF-8 and at most 63 bytes.
func (s *Service) Instance() string {
	if s.Name == s.Type {
		return s.Host
	}
	return s.Name + " @ " + s.Host
}

// CheckService reports whether a service keeps to all bounds. Whether there is such a host, only a View knows.
func CheckService(s Service) error {
	say := func(format string, args ...any) error {
		return fmt.Errorf("service %q: %w", s.Name, fmt.Errorf(format, args...))
	}
	label := func(l string, most int) bool {
		return l != "" && len(l) <= most && l[0] != '-' && l[len(l)-1] != '-' && strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	}
	switch {
	case s.Name == "" || len(s.Name) > 40 || !utf8.ValidString(s.Name) || strings.ContainsFunc(s.Name, func(r rune) bool { return !unicode.IsPrint(r) || r == '/' }) || strings.TrimSpace(s.Name) != s.Name:
		return say("a name has 1 to 40 bytes of one line of text, without \"/\"")
	case !label(s.Type, 62) || strings.Trim(s.Type, "0123456789-") == "":
		return say("%q is no type of services: 1 to 62 of a-z, 0-9 and hyphens, with a letter, as in /etc/services", s.Type)
	case s.Proto != "tcp" && s.Proto != "udp":
		return say("the protocol is tcp or udp, not %q", s.Proto)
	case s.Port == 0:
		return say("the port is a number from 1 to 65535")
	case len(s.Tags) > maxServiceTag:
		return say("%d tags, at most %d are allowed", len(s.Tags), maxServiceTag)
	case s.TTL < 0 || s.TTL > maxTTL || s.TTL%time.Second != 0:
		return say("ttl is %s: whole seconds up to %s are allowed", s.TTL, maxTTL)
	case len(s.Instance()) > 63:
		return say("%q has %d bytes, and DNS-SD has room for 63 (RFC 6763): choose a shorter name", s.Instance(), len(s.Instance()))
	}
	for _, t := range s.Tags {
		if !label(t, 63) {
			return say("tag %q: a tag has 1 to 63 of a-z, 0-9 and hyphens", t)
		}
	}
	if err := CheckName(s.Host, s.Owner); err != nil {
		return say("host: %w", err)
	}
	if err := CheckMeta(s.Meta); err != nil {
		return say("%w", err)
	}
	return nil
}

// StaticService is a service that a node has put into the store, read from a value that the node signed, with what its owner
// last said of its health.
type StaticService struct {
	Service
	Holder string // who has claimed the type as a name of one label: nobody else's services are found by it; "" for none
}

// compareServices is the order in which a View has them.
func compareServices(a, b *Service) int {
	return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Proto, b.Proto), strings.Compare(a.Host, b.Host), strings.Compare(a.Name, b.Name), strings.Compare(a.Owner, b.Owner))
}

// admitServices takes those services into the View that may enter it, and makes the names by which hosts are found that offer
// them: "http", "http.service" and "TAG.http.service".
func (v *View) admitServices(services []StaticService, lastResort bool, refuse func(name, owner string, err error)) {
	holders := map[string]string{} // type → who has claimed it
	count := map[string]int{}
	for i := range services {
		s := services[i].Service // a copy
		err := CheckService(s)
		h := v.byName.get(s.Host)
		if err == nil && (h == nil || h.Owner != s.Owner) {
			err = fmt.Errorf("service %q is on %s, and %s has no such host", s.Name, s.Host, s.Owner)
		}
		if count[s.Owner]++; err == nil && count[s.Owner] > MaxServices {
			err = fmt.Errorf("%s has more than %d services", s.Owner, MaxServices)
		}
		if err != nil {
			refuse(s.Type+".service", s.Owner, err)
			continue
		}
		s.Host, s.Addrs = h.Name, h.Addrs
		v.services = append(v.services, &s)
		if services[i].Holder != "" {
			holders[s.Type] = services[i].Holder
		}
	}
	slices.SortFunc(v.services, compareServices)

	add := func(name string, those []*Service) {
		h := &Host{Name: name, Service: true}
		all := lastResort && !slices.ContainsFunc(those, (*Service).Usable)
		for _, s := range those {
			if s.Usable() || all && s.Health.State != Offline {
				h.Addrs = append(h.Addrs, s.Addrs...)
			}
		}
		slices.SortFunc(h.Addrs, netip.Addr.Compare)
		h.Addrs = slices.Compact(h.Addrs)
		h.Addrs = h.Addrs[:min(len(h.Addrs), MaxAddrs)]
		for n := range parents(name) {
			v.emptyService[n] = true
		}
		if len(h.Addrs) == 0 {
			v.emptyService[name] = true // the name is there, and nobody who answers to it
			return
		}
		v.byService[name] = h
		v.standIns = append(v.standIns, h)
	}
	for rest := v.services; len(rest) > 0; {
		typ := rest[0].Type
		n := slices.IndexFunc(rest, func(s *Service) bool { return s.Type != typ })
		if n < 0 {
			n = len(rest)
		}
		those := rest[:n]
		rest = rest[n:]
		add(typ+".service", those)
		var tags []string
		for _, s := range those {
			tags = append(tags, s.Tags...)
		}
		slices.Sort(tags)
		for _, tag := range slices.Compact(tags) {
			add(tag+"."+typ+".service", slices.DeleteFunc(slices.Clone(those), func(s *Service) bool { return !slices.Contains(s.Tags, tag) }))
		}
		if CheckLabels(typ) != nil {
			continue // a name with a meaning of its own
		}
		if h := v.byName.get(typ); h != nil {
			refuse(typ, those[0].Owner, fmt.Errorf("the name is %w: it belongs to %s, so those who offer %s are found as %s.service.%s only", ErrTaken, h.Owner, typ, typ, v.Zone))
			continue
		}
		if by := holders[typ]; by != "" {
			those = slices.DeleteFunc(slices.Clone(those), func(s *Service) bool { return s.Owner != by })
		}
		add(typ, those)
	}
	slices.SortFunc(v.standIns, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
}

// Services returns every service, whatever its state, sorted by type, protocol, host and name.
func (v *View) Services() []*Service { return v.services }

// ServicesOf returns the services of a type, in any case, whatever their state.
func (v *View) ServicesOf(typ string) []*Service {
	typ = strings.ToLower(typ)
	i, _ := slices.BinarySearchFunc(v.services, typ, func(s *Service, t string) int { return strings.Compare(s.Type, t) })
	n := i
	for n < len(v.services) && v.services[n].Type == typ {
		n++
	}
	return v.services[i:n]
}

// StoodFor returns the services that a name stands for, whatever their state: "http", "http.service" or "TAG.http.service". A
// host may have the first of these names instead.
func (v *View) StoodFor(name string) (out []*Service) {
	name = strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(name, ".")), "."+v.Zone)
	base, tree := strings.CutSuffix(name, ".service")
	tag, typ, tagged := strings.Cut(base, ".")
	if !tagged {
		tag, typ = "", base
	}
	if tagged && !tree || v.Host(name) != nil {
		return nil
	}
	for _, s := range v.ServicesOf(typ) {
		if !tagged || slices.Contains(s.Tags, tag) {
			out = append(out, s)
		}
	}
	return out
}

// ServiceHosts returns the names that stand for services, each with the addresses of those that are usable, sorted by name:
// "http", "http.service", "TAG.http.service". Lookup finds them, and Hosts does not have them.
func (v *View) ServiceHosts() []*Host { return v.standIns }

// All yields Hosts and then ServiceHosts: everything that a name with addresses is to be written for.
func (v *View) All() iter.Seq[*Host] {
	return func(yield func(*Host) bool) {
		for _, h := range v.hosts {
			if !yield(h) {
				return
			}
		}
		for _, h := range v.standIns {
			if !yield(h) {
				return
			}
		}
	}
}
