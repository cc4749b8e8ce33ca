// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/netcheck"
)

// What of the network a person can see: doors of the API beside status.
func (d *daemon) handleNet(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/ping", answer(d.ping))
	mux.HandleFunc("GET /v1/path/{node}", answer(d.path))
	mux.HandleFunc("GET /v1/graph", answer(func(*http.Request) (any, error) { return d.graph(), nil }))
	mux.HandleFunc("POST /v1/netcheck", answer(d.netcheck))
}

// nodeOf is the node that a person means by a name, full name, or address inside the mesh.
func (d *daemon) nodeOf(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if name, ok := d.node.NameOf(a.Unmap()); ok {
			return name, nil
		}
		return "", fmt.Errorf("no node of the mesh has the address %s: `mesh status` lists them", a)
	}
	name := d.relative(s)
	records := d.node.Records()
	for _, r := range records {
		if r.Node.Name == name {
			return name, nil
		}
	}
	v := d.names.View()
	for _, h := range v.Hosts() {
		if (h.Name == name || slices.Contains(h.Aliases, name)) && !h.Node {
			return "", fmt.Errorf("%s is not a node but a host behind one: try its owner, %s", name, h.Owner)
		}
	}
	return "", fmt.Errorf("no node of the mesh is called %q: `mesh status` lists them", s)
}

func wayOf(s vpn.PeerStatus) api.Way {
	w := api.Way{Via: s.Via, Stream: s.Stream}
	if s.Endpoint.IsValid() {
		w.Endpoint = s.Endpoint.String()
	}
	return w
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// longestWait is how long an echo is waited for at most; the API reads a request for up to 10 s.
const longestWait = 8 * time.Second

func (d *daemon) ping(r *http.Request) (any, error) {
	var q api.Ping
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	if q.Wait <= 0 || q.Wait > longestWait {
		return nil, fmt.Errorf("an echo is waited for up to %s, not %s", longestWait, q.Wait)
	}
	name, err := d.nodeOf(q.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), q.Wait)
	defer cancel()
	rtt, s, err := d.node.Ping(ctx, name)
	out := api.Pong{Name: name, RTT: ms(rtt), Way: wayOf(s)}
	out.Direct = out.Way.Direct()
	switch {
	case errors.Is(err, vpn.ErrNoWay) || errors.Is(err, vpn.ErrSilent):
		out.Error = err.Error()
	case err != nil:
		return nil, err
	}
	if len(s.Addrs) > 0 {
		out.Addr = s.Addrs[0]
	}
	return out, nil
}

func (d *daemon) path(r *http.Request) (any, error) {
	name, err := d.nodeOf(r.PathValue("node"))
	if err != nil {
		return nil, err
	}
	p, err := d.node.Paths(r.Context(), name)
	if err != nil {
		return nil, err
	}
	out := api.Path{Name: p.Name, Addrs: p.Addrs, Reason: p.Reason, NotDirect: notDirect(p, d.node.Found()), Ways: []api.PathWay{}}
	for _, w := range p.Ways {
		out.Ways = append(out.Ways, api.PathWay{Way: wayOf(vpn.PeerStatus{Endpoint: w.Endpoint, Via: w.Via, Stream: w.Stream}), Used: w.Used, Source: string(w.Source),
			Confirmed: w.Confirmed, RTT: ms(w.RTT), Loss: w.Loss, Missed: w.Missed, MTU: w.MTU})
	}
	return out, nil
}

// notDirect says in a sentence why the way in use is not direct; nothing where it is.
func notDirect(p vpn.Paths, found *vpn.Netcheck) string {
	if p.Endpoint.IsValid() {
		return ""
	}
	var direct []vpn.WayStatus
	for _, w := range p.Ways {
		if w.Endpoint.IsValid() {
			direct = append(direct, w)
		}
	}
	if len(direct) == 0 {
		return fmt.Sprintf("no address is known at which %s could be reached", p.Name)
	}
	for _, w := range direct {
		if w.Works() {
			return fmt.Sprintf("%s answers, but costs more than the way in use: %.1f ms, %.0f%% lost", w.Endpoint, ms(w.RTT), 100*w.Loss)
		}
	}
	s := fmt.Sprintf("none of its %d addresses answers", len(direct))
	if len(direct) == 1 {
		s = fmt.Sprintf("its only known address, %s, does not answer", direct[0].Endpoint)
	}
	switch {
	case found == nil:
		return s + "; run `mesh netcheck` on both nodes to see which kind of NAT or firewall is between them"
	case found.IPv4.Answered+found.IPv6.Answered == 0:
		return s + "; UDP to other nodes does not get through from here at all"
	case symmetric(found.IPv4.Mapping):
		return s + "; the NAT here gives every destination another port, so only nodes that take packets from anywhere are reached directly"
	}
	return s + fmt.Sprintf("; the network here lets packets through as far as is known, so see `mesh netcheck` on %s", p.Name)
}

// symmetric reports whether others cannot be told where a NAT's packets will come from.
func symmetric(b netcheck.Behaviour) bool { return b >= netcheck.AddressDependent }

func (d *daemon) graph() api.Graph {
	g := d.node.Graph()
	out := api.Graph{Mesh: d.cfg.Load().Mesh, Self: d.id.Node.Name, Nodes: []api.GraphNode{}, Links: []api.GraphLink{}}
	for _, n := range g.Nodes {
		out.Nodes = append(out.Nodes, api.GraphNode{Name: n.Name, Addrs: n.Addrs, Reachable: n.Reachable, Active: n.Active, NoRelay: n.NoRelay,
			Way: wayOf(n.PeerStatus), RTT: ms(n.RTT), MTU: n.MTU})
	}
	for _, l := range g.Links {
		out.Links = append(out.Links, api.GraphLink{A: l.A, B: l.B, Cost: ms(l.Cost), Own: l.Own})
	}
	return out
}

func (d *daemon) netcheck(r *http.Request) (any, error) {
	c, err := d.node.Netcheck(r.Context())
	if err != nil {
		return nil, err
	}
	out := api.Netcheck{IPv4: outside(c.IPv4), IPv6: outside(c.IPv6), MTU: d.cfg.Load().MTU, Peers: []api.PeerCheck{}}
	switch {
	case errors.Is(c.RoutersErr, vpn.ErrNotAsked):
		out.NotAsked = "port_mapping = false in mesh.toml"
	case c.RoutersErr != nil:
		out.NotAsked = c.RoutersErr.Error()
	}
	for _, a := range c.Routers {
		g := api.Gateway{Gateway: a.Gateway, Protocol: string(a.Protocol)}
		if a.Err != nil {
			g.Error = a.Err.Error()
		}
		out.PortMapping = append(out.PortMapping, g)
	}
	for _, a := range c.Mapped {
		out.Mapped = append(out.Mapped, a.String())
	}
	for _, p := range c.Peers {
		out.Peers = append(out.Peers, api.PeerCheck{Name: p.Name, Way: wayOf(p.PeerStatus), RTT: ms(p.RTT), Direct4: ms(p.Direct4), Direct6: ms(p.Direct6),
			Loss: p.Loss, MTU: p.MTU, Relays: !p.NoRelay})
	}
	out.Hints = hints(c, d.cfg.Load())
	return out, nil
}

func outside(o vpn.Outside) api.Outside {
	out := api.Outside{Addrs: o.Addrs, Answered: o.Answered, Asked: o.Asked, Mapping: o.Mapping.String(), Filtering: o.Filtering.String()}
	for _, s := range o.Seen { // sorted by address
		a := s.Mapped.String()
		if n := len(out.Seen); n > 0 && out.Seen[n-1].Addr == a {
			if by := &out.Seen[n-1].By; !slices.Contains(*by, s.Peer) {
				*by = append(*by, s.Peer)
			}
			continue
		}
		out.Seen = append(out.Seen, api.Seen{Addr: a, By: []string{s.Peer}})
	}
	return out
}

// hints say in plain words what a check means for this node.
func hints(c vpn.Netcheck, conf *config.Config) []string {
	out := []string{}
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var relays, relayed, away, small []string
	for _, p := range c.Peers {
		switch {
		case p.Endpoint.IsValid() && !p.NoRelay:
			relays = append(relays, p.Name)
		case len(p.Via) > 0 || p.Stream:
			relayed = append(relayed, p.Name)
		case !p.Up():
			away = append(away, p.Name)
		}
		if p.MTU > 0 && p.MTU < conf.MTU&^15 {
			small = append(small, fmt.Sprintf("%s (%d)", p.Name, p.MTU))
		}
	}
	through := "other nodes"
	if len(relays) > 0 {
		through = strings.Join(relays[:min(len(relays), 3)], ", ")
	}
	udp := c.IPv4.Answered+c.IPv6.Answered > 0
	switch {
	case !udp && len(relayed) > 0:
		add("UDP is blocked here, or all nodes are out of reach of it: packets take other ways, which are slower. Let UDP out, or move to another network.")
	case !udp:
		add("No node answers over UDP. Is UDP blocked here, or is this machine offline?")
	}
	switch o := c.IPv4; {
	case o.Mapping > netcheck.NoNAT && slices.ContainsFunc(c.Mapped, func(a netip.AddrPort) bool { return a.Addr().Is4() && !a.Addr().IsPrivate() }):
		add("Behind a NAT whose router passes packets on to this node: others may reach it from anywhere.")
	case symmetric(o.Mapping):
		add("Behind a symmetric NAT (%s mapping): direct only with nodes that can be reached from everywhere or filter nothing; with others through %s. "+
			"To be reached from everywhere, have the router pass UDP port %d on to this machine.", o.Mapping, through, conf.Port)
	case o.Mapping == netcheck.EndpointIndependent && o.Filtering == netcheck.EndpointIndependent:
		add("Behind a NAT that lets everybody in (full cone): direct with every node that can send UDP.")
	case o.Mapping == netcheck.EndpointIndependent:
		add("Behind a NAT that keeps its port for all (cone): direct with all nodes but those behind a symmetric NAT, with which it is through %s.", through)
	case o.Mapping == netcheck.NoNAT && o.Filtering == netcheck.EndpointIndependent:
		say := "No NAT and no firewall in the way of IPv4: others may reach this node from anywhere."
		if len(conf.Public) == 0 {
			say += " If the address stays, announce it: public = [\"HOST\"] in mesh.toml."
		}
		add("%s", say)
	case o.Mapping == netcheck.NoNAT && o.Filtering != netcheck.Unknown:
		add("No NAT, but a firewall lets in only answers: allow UDP to port %d to be reached from everywhere.", conf.Port)
	case o.Mapping == netcheck.Undetermined:
		add("There is a NAT, but fewer than two nodes outside it answered, so its kind is not known.")
	}
	if udp && c.IPv6.Answered == 0 && len(c.IPv6.Addrs) > 0 && c.IPv6.Asked > 0 {
		add("This machine has IPv6 addresses, but no node answers over IPv6.")
	}
	if len(small) > 0 {
		add("Large packets do not pass to %s: packets for them are kept that small, which costs some speed.", strings.Join(small, ", "))
	}
	if len(away) > 0 {
		add("Not reached at all now, perhaps switched off: %s.", strings.Join(away, ", "))
	}
	return out
}
