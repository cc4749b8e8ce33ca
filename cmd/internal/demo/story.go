// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// story is what can be shown.
type story struct {
	title string
	made  string            // by this command
	tools map[string]string // programs of the system that it shows, and the packages that have them
	parts func(*demo) []part
}

// part is one of a story's. Its error is one after which nothing further can be shown.
type part struct {
	title string
	tell  func() error
}

var stories = map[string]story{
	"names": {"A mesh, and its names in every program", "make demo", map[string]string{"ping": "iputils-ping",
		"dig": "bind9-dnsutils", "curl": "curl", "getent": "libc-bin", "ip": "iproute2"}, tellNames},
	"mesh": {"A mesh that finds its own way", "make demo-mesh", map[string]string{"ping": "iputils-ping", "ip": "iproute2",
		"nft": "nftables", "ssh": "openssh-client", "scp": "openssh-client", "sshd": "openssh-server"}, tellJourney},
	"services": {"Services that are found while they are well", "make demo-services", map[string]string{"ping": "iputils-ping", "ip": "iproute2",
		"dig": "bind9-dnsutils", "curl": "curl", "getent": "libc-bin", "apache2": "apache2-bin", "/usr/lib/nagios/plugins/check_http": "monitoring-plugins-basic"}, tellServices},
}

// tell shows everything in its order.
func (d *demo) tell(parts []part) error {
	if !d.keep {
		parts = append(parts, part{"The end", d.end})
	}
	for _, part := range parts {
		if err := d.ctx.Err(); err != nil {
			return errors.New("interrupted")
		}
		d.show.title(part.title)
		if err := part.tell(); err != nil {
			return err
		}
	}
	return nil
}

// router makes a host that is not on the mesh and forwards packets.
func (d *demo) router(name string) (*lab.Host, error) {
	r, err := d.lab.Router(name)
	if err == nil {
		d.routers = append(d.routers, r)
	}
	return r, err
}

// host makes a host without a cable and installs on it what a package would.
func (d *demo) host(name string) (*node, error) {
	lib, err := lab.LibDir()
	if err != nil {
		return nil, err
	}
	h, err := d.lab.Host(name)
	if err != nil {
		return nil, err
	}
	n := &node{Host: h, explained: map[string]string{}}
	d.nodes = append(d.nodes, n)
	return n, errors.Join(
		h.Install(built("mesh"), "/usr/bin/mesh", 0o755),
		h.Install(built("meshd"), "/usr/sbin/meshd", 0o755),
		h.Install(built("meshd-etcd"), "/usr/sbin/meshd-etcd", 0o755),
		h.Install(built(module), filepath.Join(lib, module), 0o644))
}

// upLimit is how long a node may take from its daemons' start to being well.
const upLimit = 30 * time.Second

// up starts those of a node's daemons that do not run and waits until it is well.
func (d *demo) up(n *node, begin time.Time) (err error) {
	if !slices.Contains(n.started, n.daemon) {
		if n.daemon, err = d.start(n, "meshd"); err != nil {
			return err
		}
	}
	if n.keeps && !slices.Contains(n.started, n.store) {
		if n.store, err = d.start(n, "meshd-etcd"); err != nil {
			return err
		}
	}
	r, ok := d.until(n, n.Name+" is on the mesh", begin, upLimit, well(n.Name), "mesh", "status", "--json")
	if !ok {
		return fmt.Errorf("%s is not on the mesh", n.Name)
	}
	n.status, err = parseStatus(r)
	return err
}

// found makes a mesh on its first node.
func (d *demo) found(n *node) error {
	if _, ok := d.run(n, "the mesh is made", succeeds,
		"mesh", "init", "--name", n.Name, "--public", n.link.Addr4.String(), "--store", "embedded"); !ok {
		return errors.New("there is no mesh")
	}
	n.keeps = true
	return d.up(n, time.Now())
}

// invite gives a host what makes it a node; join has further options.
func (d *demo) invite(inviter, n *node, options ...string) error {
	r, ok := d.run(inviter, "one line, to be sent to "+n.Name, token, "mesh", "invite", n.Name)
	if !ok {
		return errors.New("there is no invitation")
	}
	join := append(append([]string{"mesh", "join"}, options...), strings.TrimSpace(r.out))
	if _, ok := d.run(n, n.Name+" has its name, address and keys", succeeds, join...); !ok {
		return fmt.Errorf("%s has not joined", n.Name)
	}
	return nil
}

// end stops the daemons of every node as an administrator would.
func (d *demo) end() error {
	stop := func(n *node, p *lab.Process, program string) {
		begin := time.Now()
		err := d.kill(n, p, program, "TERM")
		d.show.check(program+" ends, with exit status 0", time.Since(begin), n.explain(err))
	}
	for _, n := range d.nodes {
		if n.keeps {
			stop(n, n.store, "meshd-etcd")
		}
	}
	for _, n := range d.nodes {
		stop(n, n.daemon, "meshd")
		d.run(n, "its interface is gone, and with it addresses and routes", lacks("mesh0"), "ip", "-brief", "link")
	}
	return nil
}

// leave lets the hosts stay and says how to use and how to end them.
func (d *demo) leave() error {
	if len(d.nodes) == 0 {
		return d.lab.Close()
	}
	if err := d.lab.Detach(); err != nil {
		return err
	}
	d.show.title("The hosts stay (KEEP=1). To enter one:")
	end := "sudo kill -KILL"
	for _, n := range d.nodes {
		d.show.printf("  %-8s sudo nsenter -t %d -m -u -i -n -p bash\n", n.Name, n.PID)
		end += fmt.Sprint(" ", n.PID)
	}
	for _, r := range d.routers {
		end += fmt.Sprint(" ", r.PID)
	}
	d.show.printf("To end them and all that runs in them:\n  %s\n", end)
	return nil
}

func ipv4(addrs []netip.Addr) netip.Addr {
	if i := slices.IndexFunc(addrs, netip.Addr.Is4); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}
