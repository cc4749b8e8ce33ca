// SPDX-License-Identifier: MIT

// Package netcheck says from what others observe of this node which kind of NAT it is behind (RFC 4787). Its functions are
// pure; whoever calls them gathers what they are given.
package netcheck

import (
	"cmp"
	"net/netip"
	"slices"
)

// Behaviour is how a NAT maps (RFC 4787 section 4.1) or filters (section 5).
type Behaviour int

// The behaviours, from the kindest to the strictest.
const (
	Unknown                 Behaviour = iota // nothing has been observed
	NoNAT                                    // of mapping: addresses are not translated
	Undetermined                             // there is a NAT, but too little has been observed to tell more
	EndpointIndependent                      // the same for every other side: punching works with all but the strictest
	AddressDependent                         // another for each address
	AddressAndPortDependent                  // another for each address and port
	Dependent                                // one of the last two; an observer with two ports would tell
)

var names = [...]string{"unknown", "no NAT", "NAT of undetermined kind", "endpoint-independent", "address-dependent",
	"address- and port-dependent", "address- or port-dependent"}

func (b Behaviour) String() string { return names[b] }

// Observation is what an observer says of one packet of ours.
type Observation struct {
	Peer     string         // the observer's name
	Local    netip.AddrPort // from which we sent, with the interface's address
	Observer netip.AddrPort // to which we sent
	Mapped   netip.AddrPort // from which it came to the observer
}

// Mapping classifies how the sockets of one address family are mapped. Observations must be of about one time: a NAT that
// forgot a mapping between two of them looks dependent. Observers that see the local address itself are on this side of
// the NAT and say nothing of it; only if that is a public address is there none.
func Mapping(all []Observation) Behaviour {
	var outside []Observation
	for _, o := range all {
		if o.Mapped != o.Local {
			outside = append(outside, o)
		}
	}
	switch {
	case len(outside) == 0 && slices.ContainsFunc(all, isPublic):
		return NoNAT
	case len(outside) == 0:
		return Unknown
	}
	result := Undetermined
	for _, a := range outside {
		for _, b := range outside {
			if a.Local != b.Local || a.Observer == b.Observer {
				continue
			}
			sameAddr, sameMapped := a.Observer.Addr() == b.Observer.Addr(), a.Mapped == b.Mapped
			switch {
			case sameAddr && !sameMapped:
				return AddressAndPortDependent
			case !sameAddr && !sameMapped:
				result = Dependent
			case !sameAddr && result == Undetermined:
				result = EndpointIndependent
			}
		}
	}
	if result == Dependent && twoPorts(outside) {
		return AddressDependent
	}
	return result
}

func isPublic(o Observation) bool {
	return o.Local.Addr().IsGlobalUnicast() && !o.Local.Addr().IsPrivate()
}

// twoPorts reports whether one observer saw packets of one socket at two ports.
func twoPorts(all []Observation) bool {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Observation) int {
		return cmp.Or(a.Local.Compare(b.Local), a.Observer.Compare(b.Observer))
	})
	for i := range all[1:] {
		if a, b := all[i], all[i+1]; a.Local == b.Local && a.Observer.Addr() == b.Observer.Addr() && a.Observer.Port() != b.Observer.Port() {
			return true
		}
	}
	return false
}

// Probe is what became of a packet that a peer has sent to our mapped address from where we had not sent to.
type Probe struct {
	OtherAddress bool // from an address that we had not sent to; else from another port of one that we had
	Arrived      bool
}

// Filtering classifies what gets in. Packets also get lost: peers should send several and any that arrives counts.
func Filtering(probes []Probe) Behaviour {
	var sent, arrived [2]bool // from another port, from another address
	for _, p := range probes {
		i := 0
		if p.OtherAddress {
			i = 1
		}
		sent[i], arrived[i] = true, arrived[i] || p.Arrived
	}
	switch {
	case arrived[1]:
		return EndpointIndependent
	case sent[1] && arrived[0]:
		return AddressDependent
	case sent[0] && !arrived[0]:
		return AddressAndPortDependent
	case sent[1]:
		return Dependent
	}
	return Unknown
}
