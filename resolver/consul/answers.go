// SPDX-License-Identifier: MIT

package consul

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"mesh.internal/mesh/resolver"
)

// The objects of Consul's API, with the fields that clients read. Consul's names of things are kept: a service's ID is unique on
// its node, its Service or ServiceName is what clients look for.

type node struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
}

type agentService struct {
	ID      string
	Service string
	Tags    []string
	Address string
	Meta    map[string]string
	Port    uint16
	Weights weights
}

type weights struct{ Passing, Warning int }

type catalogService struct {
	node2
	ServiceID      string
	ServiceName    string
	ServiceAddress string
	ServiceTags    []string
	ServiceMeta    map[string]string
	ServicePort    uint16
	ServiceWeights weights
}

// node2 is a node as entries of services have it.
type node2 struct {
	ID, Node, Address, Datacenter string
	TaggedAddresses               map[string]string
	NodeMeta                      map[string]string
}

type check struct {
	Node, CheckID, Name, Status, Notes, Output, ServiceID, ServiceName string
	ServiceTags                                                        []string
}

type healthEntry struct {
	Node    node
	Service agentService
	Checks  []check
}

// hosts are what Consul calls nodes: the mesh's, and hosts that were added.
func (s *Server) nodeOf(v *resolver.View, h *resolver.Host) node {
	n := node{ID: nodeID(v, h), Node: h.Name, Address: first(h.Addrs), Datacenter: datacenter(v), TaggedAddresses: map[string]string{}, Meta: h.Meta}
	for _, a := range h.Addrs {
		key := "lan_ipv6"
		if a.Is4() {
			key = "lan_ipv4"
		}
		if n.TaggedAddresses[key] == "" {
			n.TaggedAddresses[key] = a.String()
		}
	}
	n.TaggedAddresses["lan"], n.TaggedAddresses["wan"] = n.Address, n.Address
	if n.Meta == nil {
		n.Meta = map[string]string{}
	}
	return n
}

// nodeID is a UUID made of a host's full name.
func nodeID(v *resolver.View, h *resolver.Host) string {
	b := sha256.Sum256([]byte(v.FQDN(h)))
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// first is the address that programs get first: the first IPv4 one, where there is one.
func first(addrs []netip.Addr) string {
	for _, a := range addrs {
		if a.Is4() {
			return a.String()
		}
	}
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

func (s *Server) address(v *resolver.View) string {
	if h := v.Host(s.cfg.Self); h != nil {
		return net.JoinHostPort(first(h.Addrs), "8300")
	}
	return ""
}

func (s *Server) nodes(v *resolver.View, r *http.Request) (any, error) {
	out := []node{}
	for _, h := range v.Hosts() {
		if metaMatches(h.Meta, r) {
			out = append(out, s.nodeOf(v, h))
		}
	}
	return out, near(s, r, out, func(n node) string { return n.Node })
}

// metaMatches reports whether metadata are as node-meta=KEY:VALUE, each that is given, says.
func metaMatches(meta map[string]string, r *http.Request) bool {
	for _, m := range r.URL.Query()["node-meta"] {
		k, want, _ := strings.Cut(m, ":")
		if got, ok := meta[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// id is a service's on its node in Consul's sense, which is the host it is on: unique there.
func id(s *resolver.Service) string {
	if s.Host == s.Owner {
		return s.Name
	}
	return s.Name + "@" + s.Owner
}

func serviceOf(s *resolver.Service) agentService {
	w := int(cmp.Or(s.Weight, 1))
	return agentService{ID: id(s), Service: s.Type, Tags: list(s.Tags), Address: first(s.Addrs), Meta: object(s.Meta), Port: s.Port, Weights: weights{w, w}}
}

func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func object(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func checkOf(s *resolver.Service) check {
	status := string(s.Health.State)
	if !s.Usable() {
		status = "critical" // Consul knows no other word for unknown
	}
	return check{Node: s.Host, CheckID: "service:" + id(s), Name: "Service '" + s.Type + "' check", Status: status, Output: s.Health.Output, ServiceID: id(s), ServiceName: s.Type, ServiceTags: list(s.Tags)}
}

// known are the services that Consul would know: not those of nodes that are not heard of, whose entries it removes.
func known(those []*resolver.Service, r *http.Request) (out []*resolver.Service) {
	for _, s := range those {
		all := s.Health.State != resolver.Offline
		for _, tag := range r.URL.Query()["tag"] {
			all = all && slices.Contains(s.Tags, strings.ToLower(tag))
		}
		if all {
			out = append(out, s)
		}
	}
	return out
}

func (s *Server) services(v *resolver.View, r *http.Request) (any, error) {
	out := map[string][]string{}
	for _, x := range known(v.Services(), r) {
		if h := v.Host(x.Host); h == nil || !metaMatches(h.Meta, r) {
			continue
		}
		tags := append(list(out[x.Type]), x.Tags...)
		slices.Sort(tags)
		out[x.Type] = slices.Compact(tags)
	}
	return out, nil
}

func (s *Server) catalog(v *resolver.View, r *http.Request) (any, error) {
	those := known(v.ServicesOf(r.PathValue("service")), r)
	err := near(s, r, those, func(x *resolver.Service) string { return x.Owner })
	out := []catalogService{}
	for _, x := range those {
		h := v.Host(x.Host)
		if h == nil || !metaMatches(h.Meta, r) {
			continue
		}
		n, a := s.nodeOf(v, h), serviceOf(x)
		out = append(out, catalogService{node2{n.ID, n.Node, n.Address, n.Datacenter, n.TaggedAddresses, n.Meta}, a.ID, a.Service, a.Address, a.Tags, a.Meta, a.Port, a.Weights})
	}
	return out, err
}

func (s *Server) health(v *resolver.View, r *http.Request) (any, error) {
	q := r.URL.Query()
	those := known(v.ServicesOf(r.PathValue("service")), r)
	err := near(s, r, those, func(x *resolver.Service) string { return x.Owner })
	out := []healthEntry{}
	for _, x := range those {
		h := v.Host(x.Host)
		if h == nil || !metaMatches(h.Meta, r) || q.Has("passing") && q.Get("passing") != "false" && x.Health.State != resolver.Passing {
			continue
		}
		out = append(out, healthEntry{s.nodeOf(v, h), serviceOf(x), []check{checkOf(x)}})
	}
	return out, err
}

func (s *Server) checks(v *resolver.View, r *http.Request) (any, error) {
	return checksOf(known(v.ServicesOf(r.PathValue("service")), r)), nil
}

func checksOf(those []*resolver.Service) []check {
	out := []check{}
	for _, x := range those {
		out = append(out, checkOf(x))
	}
	return out
}

// on are the services on a host.
func on(v *resolver.View, name string, r *http.Request) []*resolver.Service {
	h := v.Host(name)
	return slices.DeleteFunc(known(v.Services(), r), func(x *resolver.Service) bool { return h == nil || x.Host != h.Name })
}

func (s *Server) node(v *resolver.View, r *http.Request) (any, error) {
	h := v.Host(r.PathValue("node"))
	if h == nil {
		return nil, nil
	}
	services := map[string]agentService{}
	for _, x := range on(v, h.Name, r) {
		services[id(x)] = serviceOf(x)
	}
	return map[string]any{"Node": s.nodeOf(v, h), "Services": services}, nil
}

func (s *Server) nodeChecks(v *resolver.View, r *http.Request) (any, error) {
	return checksOf(on(v, r.PathValue("node"), r)), nil
}

func (s *Server) state(v *resolver.View, r *http.Request) (any, error) {
	state := r.PathValue("state")
	if !slices.Contains([]string{"any", "passing", "warning", "critical"}, state) {
		return nil, fmt.Errorf("state %q is not any, passing, warning or critical", state)
	}
	return slices.DeleteFunc(checksOf(known(v.Services(), r)), func(c check) bool { return state != "any" && c.Status != state }), nil
}

func (s *Server) self(v *resolver.View, _ *http.Request) (any, error) {
	member := map[string]any{"Name": s.cfg.Self, "Status": 1}
	if h := v.Host(s.cfg.Self); h != nil {
		member["Addr"] = first(h.Addrs)
	}
	return map[string]any{"Config": map[string]any{"Datacenter": datacenter(v), "NodeName": s.cfg.Self, "Server": false, "Version": "1.17.0"}, "Member": member}, nil
}

func (s *Server) ownServices(v *resolver.View, r *http.Request) (any, error) {
	out := map[string]agentService{}
	for _, x := range known(v.Services(), r) {
		if x.Owner == s.cfg.Self {
			out[id(x)] = serviceOf(x)
		}
	}
	return out, nil
}
