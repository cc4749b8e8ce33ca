// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

func sizeGroup() *group {
	g := &group{name: "size", title: "Packets of every size", head: []string{"path MTU", "ICMP", "way", "found", "`ping -s 1300 -M do`", "`ping -s 1300 -M dont`", "TCP, 4 MB"},
		text: "bkero's uplink takes only smaller packets; *black hole*: no router says so. *Found*: the largest packet in the tunnel, as\n" +
			"`mesh status --json` has it; where routers say it, the kernel fragments what is too large, so more passes. A ping that may not be fragmented is answered, or refused at once with an MTU that works."}
	for _, relayed := range []bool{false, true} {
		for _, mtu := range []int{1492, 1400, 1280} {
			for _, hole := range []bool{false, true} {
				name, icmp, want := fmt.Sprintf("%d", mtu), "too big", "direct"
				if hole {
					icmp = "black hole"
				}
				if relayed {
					want = "relayed"
				}
				g.trials = append(g.trials, &trial{name: fmt.Sprintf("%d %s %s", mtu, icmp, want), row: []string{name, icmp}, do: func(t *trial) {
					size(t, mtu, hole, relayed)
				}})
			}
		}
	}
	return g
}

// How long to wait for what the nodes find of the path's MTU, and for how long it must stay to count.
const (
	measureLimit = 20 * time.Second
	measured     = 5 * time.Second // a size that passed once is asked again after two
)

func size(t *trial, mtu int, hole, relayed bool) {
	w, end := newWorld(t)
	defer end()
	w.public("sol", v4)
	a := w.behind("bkero", lab.NAT{Kind: lab.PortRestricted}, v4)
	b := w.behind("spencer", lab.NAT{Kind: lab.PortRestricted}, v4)
	t.must(a.uplink.SetMTU(mtu))
	if hole {
		t.must(a.uplink.Host().Silence())
		t.must(w.internet.Silence())
	}
	if relayed {
		t.must(w.internet.Lose(a.outside(), b.outside()))
		t.must(w.internet.Lose(b.outside(), a.outside()))
	}
	w.settle()
	for _, n := range w.nodes {
		n.start()
	}
	k := w.talk(a, b)
	defer k.end()
	ok := k.direct
	if relayed {
		ok = k.relayed
	}
	if !t.until(30*time.Second, ok) {
		t.must(fmt.Errorf("%s there and %s back\n%s", k.there.now(), k.back.now(), w.explain()))
	}
	t.tell("%s", k.there.now())
	var found [2]int
	var since time.Time
	t.until(measureLimit, func() bool { // until neither side has learnt more for a while
		if now := [2]int{a.peer(b.Name).MTU, b.peer(a.Name).MTU}; now != found || now[0] == 0 || now[1] == 0 {
			found, since = now, time.Now()
		}
		return time.Since(since) > measured
	})
	t.tell("%d", found[0])
	if max(found[0], found[1]) > mtu-60 && hole {
		t.problem("found %d there and %d back\n%s", found[0], found[1], w.explain())
		t.row[len(t.row)-1] = fmt.Sprintf("**%d**", found[0])
	}
	t.tell("%s", w.whole(a, b))
	ctx, cancel := context.WithTimeout(t.ctx, 10*time.Second)
	defer cancel()
	out, err := a.Run(ctx, "ping", "-c", "5", "-i", "0.2", "-W", "2", "-s", "1300", "-M", "dont", b.addr().String())
	if m := received.FindString(out); m != "5 received" {
		t.problem("ping -M dont: %v: %s", err, out)
		t.tell("**%s**", m)
	} else {
		t.tell("answered")
	}
	there, back := w.transferred(a, b), w.transferred(b, a)
	text := fmt.Sprintf("%s up, %s down", seconds(there), seconds(back))
	if there == 0 || back == 0 {
		t.problem("TCP: 4 MB did not come within 20 s: %s\n%s", text, w.explain())
		text = "**" + text + "**"
	}
	t.tell("%s", text)
}

var (
	received = regexp.MustCompile(`\d+ received`)
	tooLong  = regexp.MustCompile(`mtu ?= ?(\d+)`)
)

// whole pings with a packet that may not be fragmented.
func (w *world) whole(a, b *node) string {
	ping := func(size int) (string, bool) {
		ctx, cancel := context.WithTimeout(w.t.ctx, 10*time.Second)
		defer cancel()
		out, err := a.Command(ctx, "ping", "-c", "5", "-i", "0.2", "-W", "2", "-s", strconv.Itoa(size), "-M", "do", b.addr().String()).CombinedOutput()
		return string(out), err == nil && strings.Contains(string(out), " 5 received")
	}
	out, ok := ping(1300)
	if ok {
		return "answered"
	}
	m := tooLong.FindStringSubmatch(out)
	if m == nil {
		w.t.problem("ping -M do: %s", out)
		return "**" + received.FindString(out) + "**"
	}
	mtu, _ := strconv.Atoi(m[1])
	if out, ok := ping(mtu - 28); !ok {
		w.t.problem("ping -M do: was told MTU %d, and that does not pass: %s", mtu, out)
		return "**told a wrong MTU, " + m[1] + "**"
	}
	return "told MTU " + m[1] + ", which passes"
}

// transferred sends 4 MB and says how long it took; 0: more than 20 s.
func (w *world) transferred(a, b *node) time.Duration {
	begin := time.Now()
	if err := w.send(a, b, 4<<20, 20*time.Second); err != nil {
		return 0
	}
	return time.Since(begin)
}
