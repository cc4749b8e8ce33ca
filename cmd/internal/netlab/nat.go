// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// Limits of a pair that meets.
const (
	firstLimit  = 2 * time.Second  // from the moment at which the later one is ready
	directLimit = 10 * time.Second // the same
	steadyFor   = 3 * time.Second  // after it has become direct, all is answered
	relayedFor  = 10 * time.Second // where it cannot
)

// kinds are the rows and columns of the matrix; the first is no NAT.
var kinds = []lab.Kind{"", lab.FullCone, lab.AddressRestricted, lab.PortRestricted, lab.Symmetric, lab.Blocked}

func kindName(k lab.Kind) string {
	if k == "" {
		return "none"
	}
	return string(k)
}

// expected is what RFC 4787 lets a pair have: a direct way, unless a mapping of a symmetric NAT would have to be guessed
// by one that lets in only who was sent to.
func expected(a, b lab.Kind) string {
	is := func(x, y lab.Kind) bool { return a == x && b == y || a == y && b == x }
	switch {
	case a == lab.Blocked && b == "" || b == lab.Blocked && a == "":
		return "tls"
	case a == lab.Blocked || b == lab.Blocked, is(lab.Symmetric, lab.Symmetric), is(lab.PortRestricted, lab.Symmetric):
		return "relayed"
	}
	return "direct"
}

// meetings is the head of the table that meet fills in.
var meetings = []string{"a", "b", "first packet", "its way", "in the end", "after", "expected", "pings lost"}

func natGroup() *group {
	g := &group{name: "nat", title: "Behind NATs", head: meetings,
		text: "A relay, sol, that everybody reaches; then b starts while a pings it. Times are from b's start. A pair is *direct* wherever\n" +
			"RFC 4787 lets it be: not where a symmetric NAT's next port would have to be guessed. No ping may be lost from the first\n" +
			"answer until " + fmt.Sprint(int(steadyFor.Seconds())) + " s after the change to the direct way."}
	for i, a := range kinds {
		for _, b := range kinds[i:] {
			g.trials = append(g.trials, &trial{name: kindName(a) + " and " + kindName(b), row: []string{kindName(a), kindName(b)}, do: func(t *trial) {
				w, end := newWorld(t)
				defer end()
				w.public("sol", v4)
				w.behind("bkero", lab.NAT{Kind: a}, v4)
				w.behind("spencer", lab.NAT{Kind: b}, v4)
				w.meet(expected(a, b))
			}})
		}
	}
	return g
}

// meet starts the nodes, the last one while the one before pings it, and fills in a row: what came of the two.
func (w *world) meet(want string) *talk {
	t := w.t
	w.settle()
	sol, a, b := w.nodes[0], w.nodes[len(w.nodes)-2], w.nodes[len(w.nodes)-1]
	for _, n := range w.nodes[:len(w.nodes)-1] {
		n.start()
	}
	if !t.until(15*time.Second, func() bool { return way(a.peer(sol.Name)) != "none" }) {
		t.problem("%s has no way to %s\n%s", a.Name, sol.Name, w.explain())
	}
	k := w.talk(a, b)
	defer k.end()
	began := time.Now()
	ready := b.start()
	var first time.Time
	if !t.until(20*time.Second, func() bool { first = k.pings.after(began); return !first.IsZero() }) {
		t.problem("nothing comes through\n%s", w.explain())
		t.tell("**none**")
		t.tell("%s", k.there.now())
		t.tell("%s", k.there.now())
		t.tell("-")
		t.tell("%s", want)
		t.tell("all")
		return k
	}
	t.limit("the first packet", first.Sub(ready), firstLimit)
	arrived := func() bool {
		switch want {
		case "tls":
			return k.there.now() == "tls" && k.back.now() == "tls"
		case "relayed":
			return k.relayed()
		}
		return k.direct()
	}
	is := t.until(25*time.Second, arrived)
	at := time.Now()
	switch {
	case is && want == "direct":
		t.wait(steadyFor)
	default:
		t.wait(relayedFor)
	}
	is = is && arrived() // still
	until := time.Now()
	t.wait(time.Second)
	t.tell("%s", k.there.first())
	if !is {
		t.problem("expected %s, is %s there and %s back\n%s", want, k.there.now(), k.back.now(), w.explain())
		t.tell("**%s**", k.there.now())
		t.tell("-")
	} else {
		t.tell("%s", k.there.now())
		if want == "direct" {
			t.limit("the direct way", at.Sub(ready), directLimit)
		} else {
			t.tell("-")
		}
	}
	t.tell("%s", want)
	w.lossless(k, first, until)
	return k
}

// lossless notes pings lost between two times.
func (w *world) lossless(k *talk, from, until time.Time) {
	lost, sent := k.pings.lost(from, until)
	if lost > 0 {
		w.t.problem("%d of %d pings lost\n%s\nthere: %s\nback: %s", lost, sent, k.pings.holes(from, until), k.there.story(from), k.back.story(from))
		w.t.tell("**%d of %d**", lost, sent)
		return
	}
	w.t.tell("0 of %d", sent)
}

// holes says when pings were lost.
func (p *pinger) holes(from, until time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for i, s := range p.sent {
		if !s.Before(from) && s.Before(until) && p.got[i].IsZero() {
			out = append(out, seconds(s.Sub(from)))
		}
	}
	return "lost at " + strings.Join(out, ", ")
}

func moreNATGroup() *group {
	g := &group{name: "more", title: "Other networks", head: append([]string{"network"}, meetings[2:]...),
		text: "As above, for pairs in networks that the matrix does not have."}
	add := func(name, want string, place func(w *world)) {
		g.trials = append(g.trials, &trial{name: name, row: []string{name}, do: func(t *trial) {
			w, end := newWorld(t)
			defer end()
			place(w)
			w.meet(want)
		}})
	}
	for _, k := range []lab.Kind{lab.PortRestricted, lab.Symmetric} {
		add("both behind the same "+string(k)+" NAT: one LAN", "direct", func(w *world) {
			w.public("sol", v4)
			lan, _ := w.home(lab.NAT{Kind: k}, v4)
			w.at("bkero", lan)
			w.at("spencer", lan)
		})
	}
	// Two LANs of one NAT that do not let each other through, as many routers' guest networks: outside addresses only.
	apart := func(hairpin bool) func(w *world) {
		return func(w *world) {
			w.public("sol", v4)
			lan, uplink := w.home(lab.NAT{Kind: lab.PortRestricted, Hairpin: hairpin}, v4)
			a := w.at("bkero", lan)
			b := w.at("spencer", w.network(uplink.Host(), true, v4))
			b.port++
			w.t.must(uplink.Host().Isolate(lanOf(a), lanOf(b)))
		}
	}
	add("two isolated LANs of one NAT, with hairpin", "direct", apart(true))
	add("two isolated LANs of one NAT, without hairpin", "relayed", apart(false))
	double := func(hairpin bool) func(w *world) {
		return func(w *world) {
			w.public("sol", v4)
			carrier, err := w.lab.Router("carrier")
			w.t.must(err)
			uplink, err := w.network(w.internet, false, v4).Plug(carrier)
			w.t.must(err)
			w.t.must(uplink.NAT(lab.NAT{Kind: lab.FullCone, Hairpin: hairpin}))
			for i, name := range []string{"bkero", "spencer"} {
				street, err := carrier.Subnet(netip.MustParsePrefix(fmt.Sprintf("100.64.%d.0/24", i)))
				w.t.must(err)
				lan, _ := w.homeAt(street, lab.NAT{Kind: lab.PortRestricted}, v4)
				n := w.at(name, lan)
				n.port += i
			}
			w.t.must(carrier.Isolate(netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("100.64.1.0/24")))
		}
	}
	add("two homes behind one carrier-grade NAT, with hairpin", "direct", double(true))
	add("two homes behind one carrier-grade NAT, without hairpin", "relayed", double(false))
	add("IPv6 only, home firewalls", "direct", func(w *world) {
		w.public("sol", v6)
		w.behind("bkero", lab.NAT{Kind: lab.PortRestricted}, v6)
		w.behind("spencer", lab.NAT{Kind: lab.PortRestricted}, v6)
	})
	add("IPv4 behind symmetric NATs, and IPv6 behind firewalls", "direct", func(w *world) {
		w.public("sol", v4|v6)
		w.behind("bkero", lab.NAT{Kind: lab.Symmetric}, v4|v6)
		w.behind("spencer", lab.NAT{Kind: lab.Symmetric}, v4|v6)
	})
	add("one with IPv4 only, one with IPv6 only", "relayed", func(w *world) {
		w.public("sol", v4|v6)
		w.behind("bkero", lab.NAT{Kind: lab.PortRestricted}, v4)
		w.behind("spencer", lab.NAT{Kind: lab.PortRestricted}, v6)
	})
	g.trials = append(g.trials, &trial{name: "mappings forgotten after 30 s", row: []string{"port-restricted NATs that forget mappings after 30 s; 70 s of silence, then pings again"}, do: func(t *trial) {
		w, end := newWorld(t)
		defer end()
		nat := lab.NAT{Kind: lab.PortRestricted, Timeout: 30 * time.Second}
		w.public("sol", v4)
		w.behind("bkero", nat, v4)
		w.behind("spencer", nat, v4)
		w.meet("direct")
		if len(t.problems) > 0 {
			return
		}
		t.wait(70 * time.Second)
		k := w.talk(w.nodes[1], w.nodes[2])
		defer k.end()
		began := time.Now()
		var first time.Time
		t.until(10*time.Second, func() bool { first = k.pings.after(began); return !first.IsZero() })
		t.wait(3 * time.Second)
		until := time.Now()
		t.wait(time.Second)
		if first.IsZero() {
			t.problem("nothing comes through after the silence\n%s", w.explain())
			return
		}
		t.row = t.row[:1]
		t.limit("the first packet after the silence", first.Sub(began), time.Second)
		t.tell("%s", k.there.first())
		t.tell("%s", k.there.now())
		t.tell("-")
		t.tell("direct")
		w.lossless(k, began, until)
	}})
	return g
}

// lanOf is the network a node is in.
func lanOf(n *node) netip.Prefix { return netip.PrefixFrom(n.link.Addr4, 24).Masked() }
