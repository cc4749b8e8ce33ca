// SPDX-License-Identifier: MIT

package main

import (
	"net/netip"
	"time"
)

const threeHosts = `
    spencer 198.18.1.2 ──┐
                         ├── router, not on the mesh ── nibz 198.18.3.2
    bkero   198.18.2.2 ──┘
`

// names is the story of make demo: names in every program.
type names struct {
	*demo
	spencer, bkero, nibz *node
}

func tellNames(demo *demo) []part {
	d := &names{demo: demo}
	return []part{
		{"Three hosts, joined by a router", d.hosts},
		{"spencer makes a mesh", func() error { return d.found(d.spencer) }},
		{"bkero and nibz join it", d.join},
		{"Names in the programs of the system", d.programsOfTheSystem},
		{"A name added on one host is known on all", d.publish},
		{"Names for programs that ask DNS", d.dns},
		{"A web server and a login, by name", d.programs},
		{"Parts of the mesh die", d.deaths},
		{"All is well again", d.recovery},
		{"Two who never met talk without the one who invited them", d.direct},
		{"At a glance", d.glance},
	}
}

// hosts makes the hosts and installs on each what a package would.
func (d *names) hosts() error {
	begin := time.Now()
	router, err := d.router("router")
	if err != nil {
		return err
	}
	for _, h := range []struct {
		name string
		node **node
	}{{"spencer", &d.spencer}, {"bkero", &d.bkero}, {"nibz", &d.nibz}} {
		if *h.node, err = d.host(h.name); err != nil {
			return err
		}
		if (*h.node).link, err = d.lab.Connect((*h.node).Host, router); err != nil {
			return err
		}
	}
	d.show.printf("%s\n", threeHosts[1:])
	d.run(d.spencer, "programs look for names in /etc/hosts, then in the mesh, then in DNS", says("files", "mesh", "dns"),
		"grep", "hosts:", "/etc/nsswitch.conf")
	d.run(d.spencer, "the hosts reach each other", succeeds, "ping", "-c1", "-W3", d.bkero.link.Addr4.String())
	d.run(d.spencer, "but the name is not known yet", unknown, "getent", "hosts", "bkero")
	d.show.note("three hosts in %s", round(time.Since(begin)))
	return nil
}

func (d *names) join() error {
	for _, n := range []*node{d.bkero, d.nibz} {
		if err := d.invite(d.spencer, n); err != nil {
			return err
		}
		if err := d.up(n, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func (d *names) programsOfTheSystem() error {
	bkero := d.bkero.status.Self.Addrs
	bkero4 := ipv4(bkero)
	d.until(d.spencer, "ping bkero", time.Now(), 10*time.Second, answers(bkero), "ping", "-c1", "-W2", "bkero")
	d.run(d.spencer, "the name gives an address", resolvesOne("bkero", bkero), "getent", "hosts", "bkero")
	d.run(d.spencer, "in any case, all of them", resolves("bkero", bkero...), "getent", "ahosts", "BKERO")
	d.run(d.spencer, "the address gives the name", resolves("bkero", bkero4), "getent", "hosts", bkero4.String())
	d.until(d.spencer, "the list has everybody", time.Now(), 10*time.Second, everybody("spencer", "bkero", "nibz"), "getent", "hosts")
	return nil
}

// everybody expects getent to list all these hosts.
func everybody(names ...string) expectation {
	return func(r result) error {
		for _, name := range names {
			if err := resolves(name)(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// printer is the address of a host that is not on the mesh, in the mesh's prefix.
func (d *names) printer() netip.Addr {
	a := ipv4(d.spencer.status.Self.Addrs).As4()
	a[3] = 77
	return netip.AddrFrom4(a)
}

func (d *names) publish() error {
	printer := d.printer()
	d.run(d.spencer, "spencer knows no printer", unknown, "getent", "hosts", "printer")
	begin := time.Now()
	d.run(d.nibz, "nibz says where it is", succeeds, "mesh", "host", "add", "printer", printer.String())
	d.until(d.spencer, "spencer knows it too, so long after the command began", begin, 10*time.Second,
		resolves("printer", printer), "getent", "hosts", "printer")
	begin = time.Now()
	d.run(d.nibz, "a group of hosts, for NFS exports and sshd", succeeds, "mesh", "group", "add", "friends", "bkero", "printer")
	d.until(d.spencer, "programs know it as a netgroup", begin, 10*time.Second,
		says("(bkero.mesh.internal,-,)", "(printer.mesh.internal,-,)"), "getent", "netgroup", "friends")
	d.run(d.spencer, "and people", says("@friends", "nibz", "bkero", "printer"), "mesh", "group", "list")
	return nil
}

func (d *names) dns() error {
	dig := func(claim string, want expectation, name, kind string) {
		d.run(d.spencer, claim, want, "dig", "+nocmd", "+noquestion", "+nostats", "+time=3", "+tries=1",
			"@"+ipv4(d.spencer.status.Self.Addrs).String(), name, kind)
	}
	dig("DNS gives the same address", dns("NOERROR", ipv4(d.bkero.status.Self.Addrs)), "bkero.mesh.internal", "A")
	dig("a name without an IPv6 address is a name (NODATA)", dns("NOERROR"), "printer.mesh.internal", "AAAA")
	dig("a name that nobody has is none (NXDOMAIN)", dns("NXDOMAIN"), "nobody.mesh.internal", "A")
	return nil
}

func (d *names) programs() error {
	self := built("demo")
	if _, err := d.bkero.Start(self, "serve", ":8080"); err != nil {
		return err
	}
	d.show.note("a web server is started on bkero")
	d.until(d.nibz, "curl reaches it by name", time.Now(), 5*time.Second, says("hello", "from", "bkero"),
		"curl", "--silent", "--show-error", "--max-time", "5", "http://bkero:8080/")
	where, err := d.logins(d.spencer, d.bkero)
	if err != nil || where == "" {
		return err
	}
	d.until(d.spencer, "ssh reaches it by name", time.Now(), 10*time.Second, succeeds, "ssh", "-F", where, "bkero", "true")
	return nil
}

func (d *names) deaths() error {
	if err := d.kill(d.spencer, d.spencer.store, "meshd-etcd, the store", "KILL"); err != nil {
		return err
	}
	known := func(n *node, who, name string, addrs []netip.Addr) {
		d.run(n, who+" still knows "+name, resolves(name, addrs...), "getent", "ahosts", name)
	}
	printer := []netip.Addr{d.printer()}
	known(d.spencer, "spencer", "bkero", d.bkero.status.Self.Addrs)
	known(d.nibz, "nibz", "printer", printer)
	if err := d.kill(d.spencer, d.spencer.daemon, "meshd, the daemon", "KILL"); err != nil {
		return err
	}
	known(d.spencer, "spencer, without a daemon,", "bkero", d.bkero.status.Self.Addrs)
	known(d.spencer, "spencer, without a daemon,", "printer", printer)
	d.run(d.spencer, "and that nobody has the name nobody", unknown, "getent", "hosts", "nobody")
	return nil
}

func (d *names) recovery() error {
	begin := time.Now()
	if err := d.up(d.spencer, begin); err != nil {
		return err
	}
	d.until(d.spencer, "ping bkero, so long after the restart", begin, 15*time.Second, answers(d.bkero.status.Self.Addrs),
		"ping", "-c1", "-W2", "bkero")
	d.until(d.bkero, "and back", begin, 15*time.Second, answers(d.spencer.status.Self.Addrs), "ping", "-c1", "-W2", "spencer")
	return nil
}

func (d *names) direct() error {
	spencer, bkero, nibz := d.spencer.status.Self.Addrs, d.bkero.status.Self.Addrs, d.nibz.status.Self.Addrs
	d.until(d.nibz, "nibz reaches bkero", time.Now(), 10*time.Second, answers(bkero), "ping", "-c1", "-W2", "bkero")
	d.until(d.nibz, "directly", time.Now(), 10*time.Second, well("nibz", "bkero"), "mesh", "status", "--json")
	if err := d.spencer.link.Cut(); err != nil {
		return err
	}
	d.show.note("spencer's cable is pulled out of the router")
	d.run(d.bkero, "spencer is out of reach", silent, "ping", "-c1", "-W1", ipv4(spencer).String())
	d.until(d.bkero, "bkero reaches nibz", time.Now(), 10*time.Second, answers(nibz), "ping", "-c1", "-W2", "nibz")
	d.until(d.nibz, "nibz reaches bkero", time.Now(), 10*time.Second, answers(bkero), "ping", "-c1", "-W2", "bkero")
	if err := d.spencer.link.Restore(); err != nil {
		return err
	}
	d.show.note("spencer's cable is put back")
	d.until(d.bkero, "bkero reaches spencer again", time.Now(), 30*time.Second, answers(spencer), "ping", "-c1", "-W2", "spencer")
	return nil
}

func (d *names) glance() error {
	d.until(d.nibz, "nibz is well, and so is the store", time.Now(), 20*time.Second, well("nibz"), "mesh", "status", "--json")
	d.run(d.nibz, "the mesh, for people", says("nibz", "spencer", "bkero"), "mesh", "status")
	d.run(d.nibz, "its names, for people", everybody("spencer", "bkero", "nibz", "printer"), "mesh", "hosts")
	d.run(d.nibz, "and every program can see them", succeeds, "mesh", "doctor", "nss")
	return nil
}
