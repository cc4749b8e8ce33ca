// SPDX-License-Identifier: MIT

package netcheck

import (
	"net/netip"
	"testing"
)

// seen makes an observation; a "b:1" is of port 1 of observer b.
func seen(observer, mapped string) Observation {
	at := map[string]string{"a:1": "192.0.2.1:1", "a:2": "192.0.2.1:2", "b:1": "192.0.2.2:1", "b:2": "192.0.2.2:2", "c:1": "192.0.2.3:1"}
	return Observation{observer, netip.MustParseAddrPort("192.168.1.7:7655"), netip.MustParseAddrPort(at[observer]), netip.MustParseAddrPort(mapped)}
}

func TestMapping(t *testing.T) {
	const local, m1, m2, m3 = "192.168.1.7:7655", "203.0.113.5:7655", "203.0.113.5:40000", "203.0.113.6:7655"
	other := seen("b:1", m2)
	other.Local = netip.MustParseAddrPort("192.168.1.7:8000")
	public := seen("a:1", "198.51.100.1:7655")
	public.Local = public.Mapped
	for _, c := range []struct {
		name string
		all  []Observation
		want Behaviour
	}{
		{"nobody", nil, Unknown},
		{"untranslated", []Observation{public, public}, NoNAT},
		{"all on the LAN", []Observation{seen("a:1", local), seen("b:1", local)}, Unknown},
		{"one observer", []Observation{seen("a:1", m1)}, Undetermined},
		{"one observer twice", []Observation{seen("a:1", m1), seen("a:1", m1)}, Undetermined},
		{"one observer, rebound", []Observation{seen("a:1", m1), seen("a:1", m2)}, Undetermined},
		{"one observer, two ports", []Observation{seen("a:1", m1), seen("a:2", m1)}, Undetermined},
		{"the same for all", []Observation{seen("a:1", m1), seen("b:1", m1)}, EndpointIndependent},
		{"the same for all, one on the LAN", []Observation{seen("c:1", local), seen("a:1", m1), seen("b:1", m1)}, EndpointIndependent},
		{"all on the LAN but one", []Observation{seen("c:1", local), seen("a:1", m1)}, Undetermined},
		{"the same for all, two ports", []Observation{seen("a:1", m1), seen("a:2", m1), seen("b:1", m1)}, EndpointIndependent},
		{"another for each address", []Observation{seen("a:1", m1), seen("a:2", m1), seen("b:1", m2)}, AddressDependent},
		{"another for each port", []Observation{seen("a:1", m1), seen("a:2", m2)}, AddressAndPortDependent},
		{"another for each port and address", []Observation{seen("a:1", m1), seen("b:1", m2), seen("b:2", m3)}, AddressAndPortDependent},
		{"another, one port each", []Observation{seen("a:1", m1), seen("b:1", m2)}, Dependent},
		{"another address, arbitrary pooling", []Observation{seen("a:1", m1), seen("b:1", m3)}, Dependent},
		{"one differs", []Observation{seen("a:1", m1), seen("b:1", m1), seen("c:1", m2)}, Dependent},
		{"two sockets", []Observation{seen("a:1", m1), other}, Undetermined},
	} {
		if got := Mapping(c.all); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for i, j := 0, len(c.all)-1; i < j; i, j = i+1, j-1 {
			c.all[i], c.all[j] = c.all[j], c.all[i]
		}
		if got := Mapping(c.all); got != c.want {
			t.Errorf("%s, the other way round: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFiltering(t *testing.T) {
	const port, addr = false, true
	for _, c := range []struct {
		name   string
		probes []Probe
		want   Behaviour
	}{
		{"nobody", nil, Unknown},
		{"all get in", []Probe{{port, true}, {addr, true}}, EndpointIndependent},
		{"another address gets in", []Probe{{addr, true}}, EndpointIndependent},
		{"one of several is lost", []Probe{{addr, false}, {addr, true}, {port, false}}, EndpointIndependent},
		{"the same address gets in", []Probe{{port, true}, {addr, false}}, AddressDependent},
		{"nobody gets in", []Probe{{port, false}, {addr, false}}, AddressAndPortDependent},
		{"another port does not get in", []Probe{{port, false}}, AddressAndPortDependent},
		{"another address does not get in", []Probe{{addr, false}}, Dependent},
		{"another port gets in", []Probe{{port, true}}, Unknown},
	} {
		if got := Filtering(c.probes); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
