// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// away is how long a member is away that comes back.
const away = 8 * time.Second

const data = "/var/lib/mesh/etcd"

// story is a mesh of five nodes and what happens to its store, one fault after the other, while all of them change names.
func (w *world) story() {
	router := must1(w.lab.Router("internet"))
	for _, name := range []string{"spencer", "bkero", "nibz", "mammon", "jo"} {
		w.node(name, router)
	}
	spencer, bkero, nibz, mammon, jo := w.nodes[0], w.nodes[1], w.nodes[2], w.nodes[3], w.nodes[4]
	spencer.mesh("init", "--name", "spencer", "--prefix", "10.11.0.0/16", "--public", spencer.link.Addr4.String())
	spencer.start()
	w.voters(spencer, "spencer")
	for _, n := range w.nodes[1:] {
		n.mesh("join", strings.TrimSpace(spencer.mesh("invite", n.name)), "--public", n.link.Addr4.String())
		n.start()
	}
	for _, n := range w.nodes {
		n.until("it has the store", func() error {
			s, err := n.status()
			if err == nil && s.Store.State != "ok" {
				err = fmt.Errorf("the store is %s: %s", s.Store.State, s.Store.Error)
			}
			return err
		})
	}
	ctx, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	writing, quiet := context.WithCancel(ctx)
	defer quiet()
	var writers sync.WaitGroup
	for i, n := range w.nodes {
		writers.Go(func() { w.history.write(writing, n, i) })
		wg.Go(func() { w.history.watch(ctx, n) })
	}
	w.pause(3 * time.Second)

	w.fault("one member becomes three", "", w.nodes, func() string {
		spencer.mesh("store", "add", "bkero", "nibz")
		return "three after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("the leading member is killed", "and comes back", w.nodes, func() string {
		l := w.leader(spencer)
		end(l.keeper, unix.SIGKILL)
		w.pause(away)
		l.startKeeper()
		return "back after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("a member loses its disk", "", w.nodes, func() string {
		n := w.follower(spencer)
		end(n.keeper, unix.SIGKILL)
		n.sh("rm -rf " + data + "/*")
		n.startKeeper()
		return "it is back, under a new ID, after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("a member's machine is off", "and on again", without(w.nodes, nibz), func() string {
		nibz.off()
		w.pause(away)
		nibz.start()
		return "back after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("a member is cut off", "its own changes wait there, and land", without(w.nodes, bkero), func() string {
		must(bkero.link.Cut())
		w.pause(away)
		must(bkero.link.Restore())
		return "back after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("all members are cut off from each other", "all changes wait", w.nodes, func() string {
		must(bkero.link.Cut())
		must(nibz.link.Cut())
		w.pause(away)
		must(bkero.link.Restore())
		must(nibz.link.Restore())
		return fmt.Sprintf("for %.0f s; it works again %s after", away.Seconds(), seconds(w.voters(spencer, "bkero", "nibz", "spencer")))
	})
	w.fault("the leading member's machine gets another address", "", w.nodes, func() string {
		must(w.leader(spencer).link.Renumber())
		return "all are there after " + seconds(w.voters(spencer, "bkero", "nibz", "spencer"))
	})
	w.fault("a member's disk is full", "", w.nodes, func() string {
		n := w.follower(spencer)
		end(n.keeper, unix.SIGTERM)
		n.sh("mkdir -p /mnt/small && mount -t tmpfs -o size=160m none /mnt/small && cp -a " + data + "/. /mnt/small/ && mount --bind /mnt/small " + data)
		n.startKeeper()
		w.voters(spencer, "bkero", "nibz", "spencer")
		n.sh("dd if=/dev/zero of=" + data + "/junk bs=1M 2>/dev/null; true")
		w.pause(away)
		ended := "it lives on from what it has reserved"
		select {
		case <-n.keeper.Done():
			ended = "it ended"
		default:
		}
		n.sh("rm " + data + "/junk")
		if ended == "it ended" {
			n.startKeeper()
		}
		took := w.voters(spencer, "bkero", "nibz", "spencer")
		end(n.keeper, unix.SIGTERM)
		n.sh("umount " + data + " && rm -rf " + data + "/* && cp -a /mnt/small/. " + data + "/ && umount /mnt/small")
		n.startKeeper()
		w.voters(spencer, "bkero", "nibz", "spencer")
		return ended + "; when there is room again, all are there after " + seconds(took)
	})
	w.fault("a node sleeps through many changes", "", without(w.nodes, jo), func() string {
		must(jo.meshd.Signal(unix.SIGSTOP))
		w.pause(away)
		must(jo.meshd.Signal(unix.SIGCONT))
		return fmt.Sprintf("it has them %s after it woke", seconds(w.same(jo, spencer)))
	})
	w.fault("a node sleeps while the store is compacted and its members are restarted", "", without(w.nodes, jo), func() string {
		spencer.mesh("host", "add", "passing", "10.11.9.9")
		jo.until("it has the name", func() error { _, err := jo.host.Run(w.ctx, "mesh", "host", "show", "passing"); return err })
		must(jo.meshd.Signal(unix.SIGSTOP))
		had := must1(spencer.status()).Store.Revision
		spencer.mesh("host", "rm", "passing")
		w.pause(away)
		for _, n := range []*node{bkero, nibz, spencer} {
			end(n.keeper, unix.SIGTERM)
			n.startKeeper()
			w.voters(spencer, "bkero", "nibz", "spencer")
		}
		forgotten := spencer.compact()
		must(jo.meshd.Signal(unix.SIGCONT))
		took := w.same(jo, spencer)
		jo.until("a name that was removed is gone", func() error {
			if out, err := jo.host.Run(w.ctx, "mesh", "host", "show", "passing"); err == nil {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		return fmt.Sprintf("%d revisions that it has not seen are forgotten; it has all %s after it woke, and what was removed is gone", forgotten-had, seconds(took))
	})
	w.fault("a member moves to another node", "", w.nodes, func() string {
		spencer.mesh("store", "move", "nibz", "mammon")
		return "done after " + seconds(w.voters(spencer, "bkero", "mammon", "spencer"))
	})
	w.fault("a member is dead, and another takes its place", "", without(w.nodes, bkero), func() string {
		bkero.off()
		begin := time.Now()
		spencer.mesh("store", "move", "bkero", "nibz")
		took := time.Since(begin)
		w.pause(time.Second)
		bkero.start()
		w.voters(spencer, "mammon", "nibz", "spencer")
		return "done after " + seconds(took) + "; it comes back and has to go"
	})
	w.fault("most members are lost for good: `mesh store recover`", "", without(w.nodes, mammon, nibz), func() string {
		for _, n := range []*node{mammon, nibz} {
			n.off()
		}
		w.pause(2 * time.Second)
		spencer.mesh("store", "recover", "--yes")
		w.voters(spencer, "spencer")
		for _, n := range []*node{mammon, nibz} { // with all that they had, and a majority of the old store
			n.start()
		}
		w.pause(3 * time.Second)
		w.voters(spencer, "spencer")
		spencer.mesh("store", "add", "mammon", "nibz")
		w.voters(spencer, "mammon", "nibz", "spencer")
		return "one begins anew; the others, back, are fenced off, and join again"
	})
	w.fault("a member's clock is an hour ahead", "", w.nodes, func() string {
		nibz.stop()
		nibz.startAs("skewed-")
		took := w.voters(spencer, "mammon", "nibz", "spencer")
		w.pause(away)
		return "back after " + seconds(took) + "; its changes land, and those of others there"
	})
	w.fault("and is put right", "", without(w.nodes, nibz), func() string {
		nibz.stop()
		nibz.start()
		addr := must1(nibz.status()).Self.Addrs[0].String()
		var took time.Duration
		for _, n := range without(w.nodes, nibz) {
			took += n.until("it reaches nibz", func() error { _, err := n.host.Run(w.ctx, "ping", "-c", "1", "-W", "1", addr); return err })
		}
		w.voters(spencer, "mammon", "nibz", "spencer")
		return "all reach it after " + seconds(took) + "; its changes after that are later than those before"
	})
	w.fault("three members become one", "", w.nodes, func() string {
		spencer.mesh("store", "remove", "mammon", "nibz")
		return "one after " + seconds(w.voters(spencer, "spencer"))
	})
	w.fault("the only member loses its disk", "it begins empty; nodes publish again what is theirs", w.nodes, func() string {
		spencer.mesh("store", "backup", "/var/tmp/names.jsonl")
		end(spencer.keeper, unix.SIGKILL)
		spencer.sh("rm -rf " + data + "/*")
		spencer.startKeeper()
		w.voters(spencer, "spencer")
		return "`mesh store restore`: " + strings.TrimSpace(spencer.mesh("store", "restore", "/var/tmp/names.jsonl"))
	})

	quiet()
	writers.Wait()
	w.same(w.nodes...)
}

// fault does something to the store and makes a row of it: how long changes on those nodes waited at most, and when all
// nodes showed the same again.
func (w *world) fault(what, then string, asked []*node, do func() string) {
	w.history.waited(w.nodes...)
	did := do()
	if then != "" {
		did = then + "; " + did
	}
	same := w.same(w.nodes...)
	w.pause(2 * time.Second)
	w.row(what, did, seconds(w.history.waited(asked...)), seconds(same))
}

// follower is a member's node that does not lead, and not the one that commands are typed on.
func (w *world) follower(at *node) *node {
	l := w.leader(at)
	for _, v := range must1(at.book()).Voters {
		if n := w.called(v.Name); n != l && n != at {
			return n
		}
	}
	panic(stop{fmt.Errorf("no member follows")})
}

func without(all []*node, but ...*node) (out []*node) {
next:
	for _, n := range all {
		for _, b := range but {
			if n == b {
				continue next
			}
		}
		out = append(out, n)
	}
	return out
}

func (w *world) pause(d time.Duration) {
	select {
	case <-w.ctx.Done():
		must(w.ctx.Err())
	case <-time.After(d):
	}
}

func (n *node) sh(script string) string { return must1(n.host.Run(n.w.ctx, "sh", "-c", script)) }
