// SPDX-License-Identifier: MIT

package vpn

import (
	"slices"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/link"
)

// Routes go along the links that nodes tell of in their records, and begin with a link of this node's own. The source
// of a packet chooses the whole route; that it works is shown by a probe before it is used (vpn/link), so a record that
// tells of links that are not there costs a probe.

// maxRoutes are told to a path: the shortest, and others that begin with another relay.
const maxRoutes = 3

// hopCost is what a relay costs in comparison, besides the round trips.
const hopCost = 5 * time.Millisecond

// routes is the map of the mesh as this node sees it. It is replaced as a whole.
type routes struct {
	index map[link.ID]int
	ids   []link.ID
	relay []bool    // may be a relay
	edges [][]edge  // of others, both ways
	own   []edge    // of this node
	trees []*tree   // by what is banned: nil first
	bans  []link.ID // zero: none
}

type edge struct {
	to   int
	cost time.Duration
}

// tree is the shortest way to each node by number of relays.
type tree struct {
	cost []time.Duration // by node: of the best; 0: none
	via  []link.Route
}

// node returns the number of a node.
func (r *routes) node(id link.ID) int {
	i, ok := r.index[id]
	if !ok {
		i = len(r.ids)
		r.index[id] = i
		r.ids = append(r.ids, id)
		r.relay = append(r.relay, false)
		r.edges = append(r.edges, nil)
	}
	return i
}

// newRoutes draws the map from the records of others and this node's own links.
func newRoutes(self link.ID, records map[link.ID]*identity.Record, own map[link.ID]time.Duration) *routes {
	r := &routes{index: map[link.ID]int{}}
	for id, rec := range records {
		if id == self {
			continue
		}
		i := r.node(id)
		r.relay[i] = !rec.NoRelay
		for _, l := range rec.Links {
			if to := link.ID(l.To); to != self && records[to] != nil {
				j := r.node(to)
				r.edges[i] = append(r.edges[i], edge{j, l.Cost})
				r.edges[j] = append(r.edges[j], edge{i, l.Cost})
			}
		}
	}
	for id, cost := range own {
		if records[id] != nil {
			r.own = append(r.own, edge{r.node(id), cost})
		}
	}
	slices.SortFunc(r.own, func(a, b edge) int { return int(a.cost - b.cost) })
	return r
}

// tree computes the shortest ways, none of which begins with banned: Bellman and Ford's, one round a link.
func (r *routes) tree(banned link.ID) *tree {
	if i := slices.Index(r.bans, banned); i >= 0 {
		return r.trees[i]
	}
	n := len(r.ids)
	t := &tree{cost: make([]time.Duration, n), via: make([]link.Route, n)}
	type reach struct {
		cost time.Duration
		via  link.Route
	}
	now := make([]reach, n)
	for _, e := range r.own {
		if r.ids[e.to] != banned {
			now[e.to] = reach{e.cost + 1, link.Route{}}
		}
	}
	for hops := 0; ; hops++ {
		next := make([]reach, n)
		for i, at := range now {
			if at.cost == 0 {
				continue
			}
			if hops > 0 && (t.cost[i] == 0 || at.cost < t.cost[i]) {
				t.cost[i], t.via[i] = at.cost, at.via
			}
			if !r.relay[i] || hops == len(link.Route{}) {
				continue
			}
			via := at.via
			via[hops] = r.ids[i]
			for _, e := range r.edges[i] {
				c := at.cost + e.cost + hopCost
				if slices.Contains(via[:], r.ids[e.to]) || next[e.to].cost != 0 && next[e.to].cost <= c {
					continue
				}
				next[e.to] = reach{c, via}
			}
		}
		if hops == len(link.Route{}) {
			break
		}
		now = next
	}
	r.trees, r.bans = append(r.trees, t), append(r.bans, banned)
	return t
}

// to returns routes to a node through others, the best first.
func (r *routes) to(id link.ID) (out []link.Route) {
	i, ok := r.index[id]
	if ok {
		banned := link.ID{}
		for len(out) < maxRoutes-1 {
			t := r.tree(banned)
			if t.cost[i] == 0 {
				break
			}
			out = append(out, t.via[i])
			if banned != (link.ID{}) {
				break
			}
			banned = t.via[i][0]
		}
	}
	for _, e := range r.own { // who is near may know it, whatever the records say
		if len(out) == maxRoutes {
			break
		}
		if first := r.ids[e.to]; first != id && r.relay[e.to] && !slices.ContainsFunc(out, func(x link.Route) bool { return x[0] == first }) {
			out = append(out, link.Route{first})
		}
	}
	return out
}

// reroute tells the peers of new routes, at most every millisecond for each node that is known: a mesh that starts has news all the
// time, and what a map takes to draw grows with the mesh. It returns when it is to be called again; zero: there is no need. n.mu is held.
func (n *Node) reroute(now time.Time) (again time.Time) {
	if next := n.rerouting.Add(time.Duration(len(n.records)) * time.Millisecond); now.Before(next) {
		return next
	}
	n.rerouting = now
	n.routes = nil // drawn anew when somebody needs it
	for name := range n.peers {
		n.refresh(name)
	}
	return time.Time{}
}

// routesTo returns routes to a peer, if it may need some: it is not reached directly, or something is sent to it, so that
// they should be at hand when the direct way is cut. The map is drawn when it is needed. n.mu is held.
func (n *Node) routesTo(name string, s link.Status) []link.Route {
	if s.Direct && time.Since(s.LastSent) > routesLast {
		return nil
	}
	if n.routes == nil {
		own := map[link.ID]time.Duration{}
		for name, p := range n.peers {
			if s := p.Status(); s.Direct {
				own[n.members[name].id] = linkCost(s)
			}
		}
		byID := make(map[link.ID]*identity.Record, len(n.records))
		for name, r := range n.records {
			byID[n.members[name].id] = r
		}
		n.routes = newRoutes(n.members[n.self].id, byID, own)
	}
	return n.routes.to(n.members[name].id)
}

// routesLast is how long after the last packet a path is told of routes.
const routesLast = time.Minute

// linkCost is what a direct link to a peer costs, as records tell it.
func linkCost(s link.Status) time.Duration {
	return s.DirectRTT + time.Duration(s.Lost*float64(time.Second))
}

// links are what this node's record tells of: links to neighbours, its own choice first. n.mu is held.
func (n *Node) links() (out []identity.Link) {
	type cand struct {
		identity.Link
		mine bool
	}
	var all []cand
	for name, p := range n.peers {
		if s := p.Status(); s.Direct && (n.chosen[name] || s.Kept) {
			all = append(all, cand{identity.Link{To: n.members[name].id, Cost: max(linkCost(s).Round(time.Millisecond), time.Millisecond)}, n.chosen[name]})
		}
	}
	slices.SortFunc(all, func(a, b cand) int {
		switch {
		case a.mine != b.mine && a.mine:
			return -1
		case a.mine != b.mine:
			return 1
		}
		return slices.Compare(a.To[:], b.To[:])
	})
	for _, c := range all[:min(len(all), identity.MaxLinks)] {
		out = append(out, c.Link)
	}
	return out
}

// merge returns links with those of before that are not among them, as far as there is room.
func merge(links, before []identity.Link) []identity.Link {
	for _, l := range before {
		if len(links) < identity.MaxLinks && !slices.ContainsFunc(links, func(x identity.Link) bool { return x.To == l.To }) {
			links = append(links, l)
		}
	}
	return links
}

// steady returns what to announce of the links: the old ones, as long as the new differ in little.
func steady(old, now []identity.Link) []identity.Link {
	if len(old) != len(now) {
		return now
	}
	was := map[[6]byte]time.Duration{}
	for _, l := range old {
		was[l.To] = l.Cost
	}
	for _, l := range now {
		c, ok := was[l.To]
		if d := max(l.Cost-c, c-l.Cost); !ok || d > 20*time.Millisecond && d > c/2 {
			return now
		}
	}
	return old
}
