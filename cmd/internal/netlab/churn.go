// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// The mesh that is cut at random.
const (
	churnNodes = 12
	churnLasts = time.Minute
	healLimit  = 10 * time.Second // until everybody reaches everybody
)

func churnGroup(seed uint64) *group {
	return &group{name: "churn", title: "Twelve nodes, cut at random", head: []string{"seed", "cuts", "all reached after", "pings in the meantime"},
		text: "Two public nodes, ten behind NATs of all kinds but blocked ones. For a minute a path between two of them is cut every second, one\n" +
			"way or both, and healed some seconds later; now and then a node is killed and started again. Then everybody must reach\n" +
			"everybody: 132 pairs.",
		trials: []*trial{{name: fmt.Sprint(seed), row: []string{fmt.Sprint(seed)}, do: func(t *trial) { churn(t, seed) }}}}
}

func churn(t *trial, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	w, end := newWorld(t)
	defer end()
	w.public("n1", v4)
	w.public("n2", v4)
	some := []lab.Kind{"", lab.FullCone, lab.AddressRestricted, lab.PortRestricted, lab.PortRestricted, lab.Symmetric}
	for i := 3; i <= churnNodes; i++ {
		w.behind(fmt.Sprintf("n%d", i), lab.NAT{Kind: some[r.IntN(len(some))]}, v4)
	}
	w.settle()
	for _, n := range w.nodes {
		n.launch()
	}
	for _, n := range w.nodes {
		n.ready()
	}
	var talks []*talk
	for range 4 {
		i := r.Perm(churnNodes)
		talks = append(talks, w.talk(w.nodes[i[0]], w.nodes[i[1]]))
	}
	began := time.Now()
	type cut struct {
		from, to netip.Addr
		until    time.Time
	}
	var cuts []cut
	var log []string
	count := 0
	for next := time.Now(); time.Since(began) < churnLasts; next = next.Add(time.Second) {
		i := r.Perm(churnNodes)
		a, b := w.nodes[i[0]], w.nodes[i[1]]
		lasts := time.Second + time.Duration(r.IntN(int(15*time.Second)))
		both, kill := r.IntN(2) == 0, r.IntN(15) == 0
		count++
		if kill {
			log = append(log, fmt.Sprintf("%s %s is killed", seconds(time.Since(began)), a.Name))
			a.kill()
			a.launch()
		} else {
			log = append(log, fmt.Sprintf("%s %s to %s, both ways %v, for %s", seconds(time.Since(began)), a.Name, b.Name, both, seconds(lasts)))
			ends := [][2]netip.Addr{{a.outside(), b.outside()}}
			if both {
				ends = append(ends, [2]netip.Addr{b.outside(), a.outside()})
			}
			for _, e := range ends {
				if !slices.ContainsFunc(cuts, func(c cut) bool { return c.from == e[0] && c.to == e[1] }) {
					t.must(w.internet.Lose(e[0], e[1]))
					cuts = append(cuts, cut{e[0], e[1], time.Now().Add(lasts)})
				}
			}
		}
		t.wait(time.Until(next.Add(time.Second)))
		cuts = slices.DeleteFunc(cuts, func(c cut) bool {
			if time.Now().Before(c.until) {
				return false
			}
			t.must(w.internet.Pass(c.from, c.to))
			return true
		})
	}
	for _, c := range cuts {
		t.must(w.internet.Pass(c.from, c.to))
	}
	healed := time.Now()
	lost, sent := 0, 0
	for _, k := range talks {
		k.end()
		l, s := k.pings.lost(began, healed.Add(-time.Second))
		lost, sent = lost+l, sent+s
	}
	t.tell("%d", count)

	// All at once: this is what a mesh must bear too.
	var wg sync.WaitGroup
	var mu sync.Mutex
	var missing []string
	var last time.Duration
	for _, a := range w.nodes {
		a.ready()
	}
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b {
				continue
			}
			wg.Go(func() {
				took, err := reach(a, b, 20*time.Second)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					missing = append(missing, fmt.Sprintf("%s to %s: %v", a.Name, b.Name, err))
				}
				last = max(last, took)
			})
		}
	}
	wg.Wait()
	if len(missing) > 0 {
		t.problem("%d pairs are not reached\n%s\n%s\n%s", len(missing), strings.Join(missing, "\n"), strings.Join(log, "\n"), w.explain())
		t.tell("**%d pairs never**", len(missing))
	} else {
		t.limit("until everybody was reached", last, healLimit)
	}
	t.tell("%d of %d answered", sent-lost, sent)
}
