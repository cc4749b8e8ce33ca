// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// gapLimit is how long a pair that talks may hear nothing where there is another way.
const gapLimit = time.Second

// quietLimit is how many packets a node may be sent by three others in a minute without an answer from it.
const quietLimit = 3 * 60 * 10

// healedFor is how long the ways are watched after all is well again.
const healedFor = 30 * time.Second

// breaking is a pair that talks, in a mesh with two relays.
type breaking struct {
	*world
	t         *trial
	a, b      *node
	sol, luna *node // public
	k         *talk
	x         *transfer
	at        time.Time // of the break
}

func breakGroup() *group {
	g := &group{name: "break", title: "Round what breaks", head: []string{"what breaks", "before", "gap", "during", "after", "ways taken in 30 s", "TCP"},
		text: "bkero pings spencer, and sends 1 MB/s over TCP whose SHA-256 is compared; there are two relays, sol and luna. *Gap*: from the\n" +
			"last answered ping before to the first after; where no way is left, from the moment at which there is one again. *Ways taken*:\n" +
			"changes on either side in the 30 s after all is well again. TCP *stood* for the longest time without a byte, which the kernel's\n" +
			"doubling retransmission timer makes longer than the gap."}
	home := lab.NAT{Kind: lab.PortRestricted}
	homes := func(w *breaking) {
		w.a, w.b = w.behind("bkero", home, v4), w.behind("spencer", home, v4)
	}
	add := func(name, before string, changes int, place, do func(w *breaking)) {
		g.trials = append(g.trials, &trial{name: name, row: []string{name}, do: func(t *trial) {
			world, end := newWorld(t)
			defer end()
			w := &breaking{world: world, t: t}
			w.sol, w.luna = w.public("sol", v4), w.public("luna", v4)
			place(w)
			w.begin(before)
			defer w.k.end()
			do(w)
			w.finish(changes)
		}})
	}
	cut := func(there, back bool) func(w *breaking) {
		return func(w *breaking) {
			from, to := w.a.outside(), w.b.outside()
			w.at = time.Now()
			if there {
				w.t.must(w.internet.Lose(from, to))
			}
			if back {
				w.t.must(w.internet.Lose(to, from))
			}
			w.t.wait(6 * time.Second)
			w.gap(w.at)
			if !w.k.relayed() {
				w.t.problem("during the cut: %s there, %s back\n%s", w.k.there.now(), w.k.back.now(), w.explain())
			}
			w.during()
			if there {
				w.t.must(w.internet.Pass(from, to))
			}
			if back {
				w.t.must(w.internet.Pass(to, from))
			}
		}
	}
	add("the path between them, both ways", "direct", 1, homes, cut(true, true))
	add("the path from bkero to spencer only", "direct", 1, homes, cut(true, false))
	add("the path from spencer to bkero only", "direct", 1, homes, cut(false, true))
	add("the relay in use (SIGKILL)", "via", 1, func(w *breaking) {
		w.a, w.b = w.behind("bkero", lab.NAT{Kind: lab.Symmetric}, v4), w.behind("spencer", lab.NAT{Kind: lab.Symmetric}, v4)
	}, func(w *breaking) {
		relay := w.sol
		if strings.Contains(w.k.there.now(), "luna") {
			relay = w.luna
		}
		w.at = time.Now()
		relay.kill()
		w.t.wait(6 * time.Second)
		w.gap(w.at)
		w.during()
		relay.start()
	})
	add("bkero's NAT restarts, with other ports", "direct", 1, homes, func(w *breaking) {
		w.at = time.Now()
		w.t.must(w.a.uplink.Rebind())
		w.t.wait(6 * time.Second)
		w.gap(w.at)
		w.during()
	})
	add("both NATs restart, with other ports", "direct", 1, homes, func(w *breaking) {
		w.at = time.Now()
		w.t.must(w.a.uplink.Rebind())
		w.t.must(w.b.uplink.Rebind())
		w.t.wait(6 * time.Second)
		w.gap(w.at)
		w.during()
	})
	publicA := func(w *breaking) { w.a, w.b = w.behind("bkero", lab.NAT{}, v4), w.behind("spencer", home, v4) }
	add("bkero's address: another in the subnet", "direct", 1, publicA, func(w *breaking) {
		w.at = time.Now()
		w.t.must(w.a.link.Renumber())
		w.t.wait(6 * time.Second)
		w.gap(w.at)
		w.during()
	})
	add("bkero moves to another home", "direct", 1, homes, func(w *breaking) {
		lan, uplink := w.home(home, v4)
		w.t.must(w.a.link.Unplug())
		w.t.wait(time.Second)
		var err error
		w.a.link, err = lan.Plug(w.a.Host)
		w.t.must(err)
		w.a.uplink = uplink
		w.at = time.Now()
		w.t.wait(6 * time.Second)
		w.since(w.at)
		w.during()
	})
	add("bkero's interface is down for 3 s", "direct", 1, homes, func(w *breaking) {
		w.t.must(w.a.link.Down())
		w.t.wait(3 * time.Second)
		w.t.must(w.a.link.Up())
		w.at = time.Now()
		w.t.wait(6 * time.Second)
		w.since(w.at)
		w.during()
	})
	add("bkero's cable is out for 3 s", "direct", 1, homes, func(w *breaking) {
		w.t.must(w.a.link.Cut())
		w.t.wait(3 * time.Second)
		w.t.must(w.a.link.Restore())
		w.at = time.Now()
		w.t.wait(6 * time.Second)
		w.since(w.at)
		w.during()
	})
	add("bkero sleeps: SIGSTOP for 60 s", "direct", 0, homes, func(w *breaking) {
		others := w.talk(w.b, w.sol)
		began, before := time.Now(), w.a.received()
		w.t.must(w.a.daemon.Signal(syscall.SIGSTOP))
		w.t.wait(60 * time.Second)
		if n := w.a.received() - before; n > quietLimit {
			w.t.problem("it was sent %d packets in its sleep, at most %d", n, quietLimit)
		}
		w.t.must(w.a.daemon.Signal(syscall.SIGCONT))
		w.at = time.Now()
		w.t.wait(6 * time.Second)
		until := time.Now()
		w.t.wait(time.Second)
		others.end()
		if lost, sent := others.pings.lost(began.Add(time.Second), until); lost > 0 {
			w.t.problem("spencer lost %d of %d pings to sol; ways %s", lost, sent, strings.Join(others.there.changes(began), ", "))
		}
		w.since(w.at)
		w.during()
	})
	add("spencer's meshd (SIGKILL), started again after 2 s", "direct", 1, homes, func(w *breaking) {
		w.b.kill()
		w.t.wait(2 * time.Second)
		w.at = w.b.start()
		w.t.wait(6 * time.Second)
		w.since(w.at)
		w.during()
	})
	add("bkero's meshd (SIGKILL), started again after 2 s", "direct", 1, homes, func(w *breaking) {
		w.a.kill()
		w.t.wait(2 * time.Second)
		w.at = w.a.start()
		w.t.wait(6 * time.Second)
		w.since(w.at)
		w.during()
	})
	return g
}

// begin starts the nodes and waits until the pair has the way it is to begin with.
func (w *breaking) begin(before string) {
	t := w.t
	w.settle()
	for _, n := range w.nodes {
		n.start()
	}
	w.k = w.talk(w.a, w.b)
	ok := func() bool {
		if before == "direct" {
			return w.k.direct()
		}
		return w.k.relayed()
	}
	if !t.until(40*time.Second, ok) {
		t.must(fmt.Errorf("not %s in the beginning, but %s there and %s back\n%s", before, w.k.there.now(), w.k.back.now(), w.explain()))
	}
	t.wait(5 * time.Second) // so that other ways are known, and none is new
	if !ok() {
		t.problem("%s there and %s back, 5 s after it was %s", w.k.there.now(), w.k.back.now(), before)
	}
	t.tell("%s", w.k.there.now())
	w.x = w.transfer(w.a, w.b)
	t.wait(2 * time.Second)
}

// gap tells the longest silence after a time.
func (w *breaking) gap(since time.Time) {
	gap := w.k.pings.gap(since)
	w.t.limit("the gap", gap, gapLimit)
	if gap > gapLimit {
		w.why()
	}
}

// since tells how long after a time the first ping was answered, or the longest silence after that.
func (w *breaking) since(at time.Time) {
	first := w.k.pings.after(at)
	took := time.Since(at)
	if !first.IsZero() {
		took = max(first.Sub(at), w.k.pings.gap(first))
	}
	w.t.limit("the gap", took, gapLimit)
	if took > gapLimit {
		w.why()
	}
}

// why adds what is known to the last problem.
func (w *breaking) why() {
	w.t.problems[len(w.t.problems)-1] += fmt.Sprintf("\n%s\nthere: %s\nback: %s\n%s", w.k.pings.seconds(w.at), w.k.there.story(w.at), w.k.back.story(w.at), w.explain())
}

// during tells which ways were taken since the break.
func (w *breaking) during() {
	ways := append([]string{}, w.k.there.changes(w.at.Add(-5*time.Second))...)
	if len(ways) == 0 {
		ways = []string{w.k.there.now()}
	}
	w.t.tell("%s", strings.Join(ways, ", "))
}

// finish watches what happens after all is well again, and ends the transfer.
func (w *breaking) finish(changes int) {
	healed := time.Now()
	w.t.wait(healedFor)
	there, back := w.k.there.changes(healed), w.k.back.changes(healed)
	w.t.tell("%s", w.k.there.now())
	text := fmt.Sprintf("%d there, %d back", len(there), len(back))
	if n := max(len(there), len(back)); n > changes {
		w.t.problem("%d changes of the way in %s\nthere: %s\nback: %s", n, seconds(healedFor), w.k.there.story(healed), w.k.back.story(healed))
		text = "**" + text + "**"
	}
	w.t.tell("%s", text)
	if !strings.HasPrefix(w.k.there.now(), strings.Fields(w.t.row[1])[0]) || !strings.HasPrefix(w.k.back.now(), strings.Fields(w.t.row[1])[0]) {
		w.t.problem("in the end %s there and %s back\n%s", w.k.there.now(), w.k.back.now(), w.explain())
	}
	w.t.tell("%s", w.x.done(15*time.Second))
}
