// SPDX-License-Identifier: MIT

package vpn_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
)

// lan returns a configuration with a subnet, and where its events go.
func lan(t *testing.T, subnet string) func(*vpn.Config) {
	s, err := identity.ParseSubnet(subnet)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *vpn.Config) { c.Subnets = []identity.Subnet{s} }
}

// arrives sends packets to an address again and again until one of the nodes' kernels has it, which must be want.
func arrives(t *testing.T, from *node, to netip.Addr, want *node, others ...*node) time.Duration {
	t.Helper()
	start := time.Now()
	mark := uint32(start.UnixNano())
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for limit := time.After(8 * time.Second); ; {
		from.tun.Out <- ipv4(from.v4(), to, mark)
		select {
		case p := <-want.tun.In:
			if binary.BigEndian.Uint32(p[20:]) == mark {
				for _, o := range others {
					for len(o.tun.In) > 0 {
						if p := <-o.tun.In; len(p) == 28 && binary.BigEndian.Uint32(p[20:]) == mark {
							t.Errorf("%s got it too", o.id.Node.Name)
						}
					}
				}
				return time.Since(start)
			}
		case <-again.C:
		case <-limit:
			t.Fatalf("nothing for %s arrives at %s", to, want.id.Node.Name)
		}
	}
}

func TestSubnets(t *testing.T) {
	m := newMesh(t)
	events := make(chan vpn.Event, 100)
	m.config = func(c *vpn.Config) { c.Event = func(e vpn.Event) { events <- e } }
	a := m.node(1)
	m.allow = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
	m.config = lan(t, "10.99.7.0/24#5")
	r1 := m.node(2)
	m.config = lan(t, "10.99.7.0/24")
	r2 := m.node(3)
	for _, r := range []*node{r1, r2} {
		a.introduce(t, r)
		r.introduce(t, a)
	}
	host := netip.MustParseAddr("10.99.7.77")
	arrives(t, a, host, r1, r2)
	r1.tun.Out <- ipv4(host, a.v4(), 4711) // the way back is allowed
	if d := arrives(t, r1, a.v4(), a); d > time.Second {
		t.Error(d)
	}
	r1.stop()
	t.Logf("the other router took over after %s", arrives(t, a, host, r2))
	m.config = lan(t, "10.99.7.0/24#5")
	m.start(r1)
	back := time.After(20 * time.Second)
	for a.Subnets()[netip.MustParsePrefix("10.99.7.0/24")] != "n2" {
		select {
		case <-back:
			t.Fatal("the router with the least weight is not used again")
		case <-events:
		}
	}
	arrives(t, a, host, r1)
}

// A subnet that the certificate does not allow is neither announced nor believed.
func TestSubnetNotAllowed(t *testing.T) {
	m := newMesh(t)
	m.allow = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
	n := m.node(1)
	for subnet, ok := range map[string]bool{"10.99.0.0/24": true, "10.99.0.0/16#1": true, "10.98.0.0/15": false, "10.97.0.0/24": false} {
		s, err := identity.ParseSubnet(subnet)
		if err != nil {
			t.Fatal(err)
		}
		_, err = vpn.New(vpn.Config{Identity: n.id, Subnets: []identity.Subnet{s}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", subnet, err)
		}
		r, err := n.id.Record(1, identity.Said{Subnets: []identity.Subnet{s}})
		if err != nil || (len(r.Subnets) == 1) != ok {
			t.Errorf("%s in a record: %v, %v", subnet, r.Subnets, err)
		}
	}
}
