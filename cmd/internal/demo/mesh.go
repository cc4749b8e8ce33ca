// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

const fiveHosts = `
    bkero  192.168.1.2 ─┐
                        ├─ home of bkero, NAT ── 198.18.3.2 ─┐            ┌─ 198.18.1.2 spencer
    edolnx 192.168.1.3 ─┘                                    ├─ internet ─┤
                                                             │            └─ 198.18.2.2 nibz
    krum   192.168.2.2 ─── home of krum, NAT ─── 198.18.4.2 ─┤
                           café, NAT ─────────── 198.18.5.2 ─┘

    NATs: bkero's home port-restricted, krum's home symmetric, the café address-restricted (RFC 4787).
`

// journey is the story of make demo-mesh: a mesh that finds its own way.
type journey struct {
	*demo
	internet                           *lab.Host
	spencer, nibz, bkero, krum, edolnx *node
	cafe                               *lab.Subnet
	krumLine, cafeLine                 *lab.Link // of the homes' routers to the internet

	config string // for ssh
	shell  *shell
	pings  *lab.Process
	copy   *lab.Process
	copied int64 // bytes
	relay  *node // that was in use
}

func tellJourney(demo *demo) []part {
	d := &journey{demo: demo}
	return []part{
		{"Five hosts, three of them behind NATs", d.hosts},
		{"A mesh", d.join},
		{"Everybody reaches everybody, by name", d.ways},
		{"The mesh, drawn", func() error { return d.graph("before", false) }},
		{"edolnx logs in on krum, and begins to copy a file", d.begin},
		{"edolnx, a laptop, is carried to a café", d.move},
		{"The line between the café and krum's home breaks", d.cut},
		{"The relay is killed", d.kills},
		{"All is well again", d.heal},
		{"The login and the copy", d.finish},
		{"The mesh, drawn again", func() error { return d.graph("after", true) }},
	}
}

// hosts makes the networks and the hosts in them.
func (d *journey) hosts() (err error) {
	begin := time.Now()
	if d.internet, err = d.router("internet"); err != nil {
		return err
	}
	net := func(r *lab.Host, prefix string) (s *lab.Subnet) {
		if err == nil {
			s, err = r.Subnet(netip.MustParsePrefix(prefix))
		}
		return s
	}
	home := func(name, outside, inside string, kind lab.Kind) (line *lab.Link, lan *lab.Subnet) {
		var r *lab.Host
		out := net(d.internet, outside)
		if err == nil {
			r, err = d.router(name)
		}
		if err == nil {
			line, err = out.Plug(r)
		}
		if err == nil {
			err = line.NAT(lab.NAT{Kind: kind})
		}
		return line, net(r, inside)
	}
	host := func(name string, s *lab.Subnet) (n *node) {
		if err == nil {
			n, err = d.host(name)
		}
		if err == nil {
			n.link, err = s.Plug(n.Host)
		}
		return n
	}
	d.spencer = host("spencer", net(d.internet, "198.18.1.0/24"))
	d.nibz = host("nibz", net(d.internet, "198.18.2.0/24"))
	_, lan := home("home-of-bkero", "198.18.3.0/24", "192.168.1.0/24", lab.PortRestricted)
	d.bkero, d.edolnx = host("bkero", lan), host("edolnx", lan)
	d.krumLine, lan = home("home-of-krum", "198.18.4.0/24", "192.168.2.0/24", lab.Symmetric)
	d.krum = host("krum", lan)
	d.cafeLine, d.cafe = home("cafe", "198.18.5.0/24", "192.168.3.0/24", lab.AddressRestricted)
	if err != nil {
		return err
	}
	d.show.printf("%s\n", fiveHosts[1:])
	d.run(d.edolnx, "edolnx reaches the internet", succeeds, "ping", "-c1", "-W3", d.spencer.link.Addr4.String())
	d.show.note("five hosts in %s", round(time.Since(begin)))
	return nil
}

func (d *journey) join() error {
	if err := d.found(d.spencer); err != nil {
		return err
	}
	if err := d.invite(d.spencer, d.nibz, "--public", d.nibz.link.Addr4.String()); err != nil {
		return err
	}
	if err := d.up(d.nibz, time.Now()); err != nil {
		return err
	}
	for _, n := range []*node{d.bkero, d.krum, d.edolnx} {
		if err := d.invite(d.spencer, n); err != nil {
			return err
		}
		d.run(n, "a home's line carries nothing for others", says("relay", "=", "false"),
			"sed", "-i", "s/^relay = .*/relay = false/w /dev/stdout", "/etc/mesh/mesh.toml")
		if err := d.up(n, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func (d *journey) ways() error {
	ping := func(from, to *node) {
		d.until(from, from.Name+" reaches "+to.Name, time.Now(), 10*time.Second, answers(to.status.Self.Addrs), "ping", "-c1", "-W2", to.Name)
	}
	ping(d.edolnx, d.bkero)
	d.until(d.edolnx, "on their LAN", time.Now(), 10*time.Second, onLAN(d.bkero.link.Addr4), "mesh", "ping", "-c1", "bkero")
	ping(d.bkero, d.krum)
	ping(d.edolnx, d.krum)
	d.run(d.edolnx, "through a relay: these two kinds of NAT allow nothing else", says("via"), "mesh", "ping", "-c5", "-i", "300ms", "krum")
	for _, n := range []*node{d.krum, d.edolnx} {
		d.until(n, n.Name+" keeps tunnels to more than one who might relay", time.Now(), 30*time.Second, well(n.Name, "spencer", "nibz"),
			"mesh", "status", "--json")
	}
	d.run(d.edolnx, "at a glance", says("spencer", "nibz", "bkero", "krum", "via"), "mesh", "status")
	return nil
}

// onLAN expects mesh ping to be answered directly from this address, or a link-local one of IPv6.
func onLAN(addr netip.Addr) expectation {
	return func(r result) error {
		if err := says("direct")(r); err != nil {
			return err
		}
		for _, word := range strings.Fields(r.out) {
			if a, err := netip.ParseAddrPort(word); err == nil && (a.Addr() == addr || a.Addr().IsLinkLocalUnicast()) {
				return nil
			}
		}
		return errors.New("the answer is not from the LAN")
	}
}

// graph shows the mesh in the DOT language and keeps it as a picture.
func (d *journey) graph(when string, direct bool) error {
	links := "edolnx is linked with bkero and not with krum"
	if direct {
		links = "edolnx is linked with krum"
	}
	d.until(d.edolnx, links, time.Now(), 20*time.Second, func(r result) error {
		if err := succeeds(r); err != nil {
			return err
		}
		for _, n := range d.nodes {
			if !strings.Contains(r.out, strconv.Quote(n.Name)+" [") {
				return fmt.Errorf("%s is not in it", n.Name)
			}
		}
		if linked := strings.Contains(r.out, `"krum" -- "edolnx"`); linked != direct {
			return fmt.Errorf("edolnx is linked with krum: %v", linked)
		}
		if linked := strings.Contains(r.out, `"edolnx" -- "bkero"`); !direct && !linked {
			return errors.New("edolnx is not linked with bkero")
		}
		return nil
	}, "mesh", "graph")
	const file = "/var/mesh.svg"
	if _, ok := d.run(d.edolnx, "as a picture", succeeds, "mesh", "graph", "--format", "svg", "-o", file); !ok {
		return nil
	}
	svg, err := d.edolnx.ReadFile(file)
	if err != nil {
		return err
	}
	name := "demo-mesh-" + when + ".svg"
	d.show.note("it is build/%s", name)
	d.show.picture(name, svg)
	return os.WriteFile(built(name), svg, 0o644)
}

// The file that is copied: it takes about 32 s.
const (
	file     = "/var/photos"
	fileSize = 32 << 20 // bytes
	fileRate = 8192     // kbit/s, scp's unit
)

func (d *journey) begin() (err error) {
	if d.config, err = d.logins(d.edolnx, d.krum); err != nil {
		return err
	}
	if _, ok := d.until(d.edolnx, "ssh reaches it by name", time.Now(), 10*time.Second, says("krum"), "ssh", "-F", d.config, "krum", "hostname"); !ok {
		return errors.New("nobody can log in on krum")
	}
	if d.shell, err = d.newShell(d.edolnx, "ssh", "-F", d.config, "krum", "sh"); err != nil {
		return err
	}
	d.types("a shell on krum", commandLimit)
	if d.pings, err = d.start(d.edolnx, "ping", "-D", "-i", "0.02", "krum"); err != nil {
		return err
	}
	if r := d.try(d.edolnx, "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom >%s", fileSize, file)); r.code != 0 {
		return errors.New(r.err)
	}
	if d.copy, err = d.start(d.edolnx, "scp", "-F", d.config, "-l", strconv.Itoa(fileRate), file, "krum:"+file); err != nil {
		return err
	}
	d.grows("the file begins to come")
	return nil
}

// types types a command into the login that only this one shell answers so.
func (d *journey) types(claim string, limit time.Duration) {
	begin := time.Now()
	d.show.command("krum", strings.Fields(countCommand)...)
	answer, err := d.shell.count(d.ctx, limit)
	d.show.output(answer)
	d.show.check(claim, time.Since(begin), err)
}

// grows checks that the copy goes on.
func (d *journey) grows(claim string) {
	d.until(d.krum, claim, time.Now(), 5*time.Second, func(r result) error {
		size, err := strconv.ParseInt(strings.TrimSpace(r.out), 10, 64)
		switch {
		case r.code != 0 || err != nil:
			return errors.New("the file is not there")
		case size <= d.copied:
			return errors.New("it does not grow")
		case size >= fileSize:
			return errors.New("it is complete already: this machine was too slow")
		}
		d.copied = size
		return nil
	}, "stat", "-c", "%s", file)
}

// outlives checks that all goes on after a break at that time, by another way.
func (d *journey) outlives(since time.Time, claim string, way expectation) {
	failed := d.show.failed
	d.types("the login answers", typeLimit)
	d.reaches(claim, since, way)
	d.grows("the copy goes on")
	d.gap(since)
	if d.show.failed > failed {
		d.why()
	}
}

// Limits of what a break may cost where there is another way.
const (
	gapLimit  = time.Second     // two who talk hear nothing of each other
	typeLimit = 2 * time.Second // a login does not answer: TCP sends again after 0.2 s, 0.4 s, 0.8 s
)

// gap checks how long the pings were not answered since a time, and watches for that until 2 s after it.
func (d *journey) gap(since time.Time) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	const watch, limit = 2 * time.Second, 10 * time.Second
	longest := limit
	for d.ctx.Err() == nil {
		var back bool
		now := time.Now()
		if longest, back = silence(d.pings.Output(), since, now); back && time.Since(since) > watch || time.Since(since) > limit {
			break
		}
		<-tick.C
	}
	var err error
	if longest > gapLimit {
		err = fmt.Errorf("that is more than %v", gapLimit)
	}
	d.show.check("the longest time without an answer to a ping", longest, err)
}

// silence is the longest time without an answer in what ping -D printed, between two times, and whether the last one was
// followed by an answer.
func silence(pings string, since, now time.Time) (longest time.Duration, back bool) {
	last := since
	for line := range strings.Lines(pings) {
		stamp, _, ok := strings.Cut(line, "] ")
		seconds, err := strconv.ParseFloat(strings.TrimPrefix(stamp, "["), 64)
		if !ok || err != nil || !strings.Contains(line, " bytes from ") {
			continue
		}
		if at := time.UnixMicro(int64(seconds * 1e6)); at.After(since) {
			longest, last, back = max(longest, at.Sub(last)), at, true
		}
	}
	if rest := now.Sub(last); rest > longest {
		return rest, false
	}
	return longest, back
}

// reaches waits for a way between edolnx and krum.
func (d *journey) reaches(claim string, since time.Time, want expectation) {
	d.until(d.edolnx, claim, since, 15*time.Second, want, "mesh", "ping", "-c1", "-W1s", "krum")
}

// why shows, for who reads of a failure, what edolnx and krum know of each other.
func (d *journey) why() {
	for _, pair := range [][2]*node{{d.edolnx, d.krum}, {d.krum, d.edolnx}} {
		for _, args := range [][]string{{"mesh", "status"}, {"mesh", "path", pair[1].Name}} {
			d.show.command(pair[0].Name, args...)
			r := d.try(pair[0], args...)
			d.show.output(r.out + r.err)
		}
	}
}

func (d *journey) move() (err error) {
	out := time.Now()
	if err := d.edolnx.link.Unplug(); err != nil {
		return err
	}
	d.show.note("edolnx's cable is pulled out at bkero's home")
	d.until(d.edolnx, "it has no network", out, 5*time.Second, lacks("eth0"), "ip", "-brief", "address")
	if d.edolnx.link, err = d.cafe.Plug(d.edolnx.Host); err != nil {
		return err
	}
	in := time.Now()
	d.show.note("and put in at the café, %s later", round(in.Sub(out)))
	d.run(d.edolnx, "it has another address", says(d.edolnx.link.Addr4.String()+"/24"), "ip", "-brief", "address", "show", "eth0")
	d.outlives(in, "by some way", succeeds)
	d.reaches("directly: these two kinds of NAT allow it", in, says("direct"))
	return nil
}

func (d *journey) cut() error {
	begin := time.Now()
	if err := d.line((*lab.Host).Lose); err != nil {
		return err
	}
	d.show.note("what the café and krum's home send each other is lost")
	d.outlives(begin, "by a relay", says("via"))
	return nil
}

// line does something with both directions of the line between the café and krum's home.
func (d *journey) line(do func(h *lab.Host, from, to netip.Addr) error) error {
	return errors.Join(do(d.internet, d.cafeLine.Addr4, d.krumLine.Addr4), do(d.internet, d.krumLine.Addr4, d.cafeLine.Addr4))
}

func (d *journey) kills() error {
	s, err := parseStatus(d.try(d.edolnx, "mesh", "status", "--json"))
	if err != nil {
		return err
	}
	via := ""
	for _, p := range s.Peers {
		if p.Name == "krum" && len(p.Via) > 0 {
			via = p.Via[0]
		}
	}
	for _, n := range d.nodes {
		if n.Name == via {
			d.relay = n
		}
	}
	if d.relay == nil {
		return errors.New("edolnx reaches krum through nobody")
	}
	begin := time.Now()
	if err := d.kill(d.relay, d.relay.daemon, "meshd, the relay", "KILL"); err != nil {
		return err
	}
	d.outlives(begin, "by the other relay", func(r result) error {
		if says("via", d.relay.Name)(r) == nil {
			return errors.New("it is the same")
		}
		return says("via")(r)
	})
	return nil
}

func (d *journey) heal() error {
	begin := time.Now()
	if err := d.line((*lab.Host).Pass); err != nil {
		return err
	}
	d.show.note("the line is repaired")
	if err := d.up(d.relay, begin); err != nil {
		return err
	}
	d.outlives(begin, "the better way is taken again", says("direct"))
	d.run(d.bkero, "who has no better way keeps the relay", says("via"), "mesh", "ping", "-c1", "krum")
	return nil
}

func (d *journey) finish() error {
	d.types("it is the same shell", typeLimit)
	begin := time.Now()
	err := d.shell.end(d.ctx)
	d.show.command("krum", "exit")
	d.show.check("it ends, with exit status 0", time.Since(begin), err)
	begin = time.Now()
	err = d.copy.Wait(d.ctx)
	d.show.check("the copy ends, with exit status 0", time.Since(begin), d.edolnx.explain(err))
	sums := map[string]bool{}
	sum := func(r result) error {
		if f := strings.Fields(r.out); r.code == 0 && len(f) == 2 && len(f[0]) == 64 {
			sums[f[0]] = true
		}
		if len(sums) != 1 {
			return errors.New("the checksums differ")
		}
		return nil
	}
	d.run(d.edolnx, "what was sent", sum, "sha256sum", file)
	d.run(d.krum, "is what came", sum, "sha256sum", file)
	if err := d.kill(d.edolnx, d.pings, "ping", "INT"); err != nil {
		return err
	}
	d.run(d.edolnx, "the pings", succeeds, "tail", "-n3", d.pings.Log)
	return nil
}
