// SPDX-License-Identifier: MIT

package splitdns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/config"
)

// WantOf is what is wanted of a machine on a mesh. Who may not read who the node is takes its interface's addresses.
func WantOf(paths config.Paths, c *config.Config) (Want, error) {
	w := Want{Zone: c.Domain, Interface: c.Interface}
	p4, err := c.Prefix4()
	if err != nil {
		return w, err
	}
	w.Reverse = ReverseZones(p4)
	var addrs []netip.Addr
	if n, err := paths.LoadNode(); err == nil {
		addrs = n.Addrs
	} else if i, err := net.InterfaceByName(c.Interface); err == nil {
		has, _ := i.Addrs()
		for _, x := range has {
			if p, err := netip.ParsePrefix(x.String()); err == nil {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	for _, x := range addrs {
		switch {
		case p4.Contains(x):
			w.Servers = append(w.Servers, x) // the other address is the same server
		case x.Is6() && !x.IsLinkLocalUnicast():
			w.Reverse = append(w.Reverse, ReverseZones(netip.PrefixFrom(x, 64))...) // identity.CA.Prefix6
		}
	}
	if len(w.Servers) == 0 {
		return w, errors.New("this node's address cannot be read")
	}
	return w, nil
}

// System is the machine that is read and changed.
type System struct {
	Root string // "/", or where a test has put a machine: then files alone are read and changed
}

func (s System) path(p string) string { return filepath.Join(s.Root, p) }
func (s System) live() bool           { return s.Root == "/" }

func (s System) text(p string) string {
	b, err := os.ReadFile(s.path(p))
	if err != nil {
		return ""
	}
	return string(b)
}

// Gather reads a machine and changes nothing. What it may not see is as if it were not there, so it should be root's.
func (s System) Gather(ctx context.Context, w Want) Machine {
	m := Machine{Files: map[string]string{}}
	m.Resolv = s.resolv()
	for line := range strings.Lines(s.text("/etc/nsswitch.conf")) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "hosts:" {
			m.NSSResolve = strings.Contains(" "+strings.Join(f[1:], " ")+" ", " resolve ")
		}
	}
	s.processes(&m)
	s.resolvconf(&m)
	for _, dir := range []string{nmFolder, dnsmasqDir, m.DnsmasqDir} {
		s.ours(&m, filepath.Join(dir, confName))
	}
	s.ours(&m, delegateFile)
	if !s.live() {
		return m
	}
	if i, err := net.InterfaceByName(w.Interface); err == nil {
		m.Interface = i.Index
	}
	_, err := os.Stat("/run/systemd/resolve/io.systemd.Resolve")
	m.Resolved.Running = err == nil
	b, err := openBus()
	if err != nil {
		m.Resolved.Err = err.Error()
		return m
	}
	defer b.conn.Close()
	m.NetworkManager = b.runs(ctx, networkManager)
	onBus := b.runs(ctx, resolve1)
	if m.Resolved.Running && !onBus {
		m.Resolved.Err = notOnBus
	}
	if m.Resolved.Running = m.Resolved.Running || onBus; !onBus {
		return m
	}
	var version string
	if b.property(ctx, systemd1, "/org/freedesktop/systemd1", systemd1+".Manager", "Version", &version) == nil {
		m.Resolved.Version, _ = strconv.Atoi(regexp.MustCompile(`^[0-9]*`).FindString(version))
	}
	if m.Interface != 0 {
		m.Resolved.Managed = managed(s.text(fmt.Sprintf("/run/systemd/netif/links/%d", m.Interface)))
		if err := b.link(ctx, m.Interface, &m.Resolved); err != nil {
			m.Resolved.Err = err.Error()
		}
	}
	return m
}

// managed reads systemd-networkd's word on a link, as systemd-resolved does (sd-network(3)).
func managed(text string) bool {
	for line := range strings.Lines(text) {
		if state, ok := strings.CutPrefix(strings.TrimSpace(line), "ADMIN_STATE="); ok {
			return state != "unmanaged" && state != "pending" && state != "initialized"
		}
	}
	return false
}

func (s System) resolv() (r Resolv) {
	b, err := os.ReadFile(s.path(resolvConf))
	r.Text = string(b)
	if err != nil {
		r.Err = "there is none"
		if !errors.Is(err, fs.ErrNotExist) {
			r.Err = err.Error()
		}
	}
	r.Target, _ = os.Readlink(s.path(resolvConf))
	if saved, err := os.Lstat(s.path(savedConf)); err == nil {
		now, err := os.Lstat(s.path(resolvConf))
		r.Cut = err == nil && os.SameFile(saved, now)
		r.Saved = !r.Cut
	}
	return r
}

func (s System) ours(m *Machine, path string) {
	if b, err := os.ReadFile(s.path(path)); err == nil {
		m.Files[path] = string(b)
	}
}

// processes looks for the dnsmasq of the machine and that of NetworkManager. Those of virtual networks (libvirt, LXC), which
// are given a file of their own, and those of containers are neither.
func (s System) processes(m *Machine) {
	found, _ := filepath.Glob(s.path("/proc/[0-9]*/comm"))
	net, _ := os.Readlink(s.path("/proc/self/ns/net"))
	for _, p := range found {
		if b, err := os.ReadFile(p); err != nil || strings.TrimSpace(string(b)) != "dnsmasq" {
			continue
		}
		if other, err := os.Readlink(filepath.Join(filepath.Dir(p), "ns/net")); err == nil && net != "" && other != net {
			continue
		}
		b, err := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		if err != nil {
			continue
		}
		switch dir, conf := dnsmasqArgs(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")); {
		case strings.HasPrefix(dir, "/etc/NetworkManager/"):
			m.NMDnsmasq = true
		case conf != "" && !strings.HasPrefix(conf, "/etc/"):
		default:
			m.Dnsmasq = true
			if dir == "" {
				if conf == "" {
					conf = "/etc/dnsmasq.conf"
				}
				dir = confDir(s.text(conf))
			}
			m.DnsmasqDir = dir
		}
	}
}

// dnsmasqArgs are the folder and the file that dnsmasq(8) is told to read.
func dnsmasqArgs(args []string) (dir, conf string) {
	for i, a := range args {
		next := ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		for _, o := range []struct {
			short, long string
			to          *string
		}{{"-7", "--conf-dir", &dir}, {"-C", "--conf-file", &conf}} {
			switch v, joined := strings.CutPrefix(a, o.long+"="); {
			case joined:
				*o.to = v
			case a == o.short || a == o.long:
				*o.to = next
			case strings.HasPrefix(a, o.short) && !strings.HasPrefix(a, "--"):
				*o.to = a[2:]
			}
		}
	}
	dir, _, _ = strings.Cut(dir, ",") // what follows is what is left out
	return strings.TrimRight(dir, "/"), conf
}

// confDir is the folder that dnsmasq's configuration names, if it takes files that end in .conf.
func confDir(text string) string {
	for line := range strings.Lines(text) {
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "conf-dir=")
		if !ok {
			continue
		}
		dir, rest, _ := strings.Cut(v, ",")
		if !strings.Contains(rest, "*") || strings.Contains(rest, "*.conf") {
			return strings.TrimRight(dir, "/")
		}
	}
	return ""
}

// resolvconf looks for one of the two programs of that name, and whether openresolv's has a name server to configure
// (resolvconf.conf(5)).
func (s System) resolvconf(m *Machine) {
	for _, p := range []string{"/usr/sbin/resolvconf", "/sbin/resolvconf", "/usr/bin/resolvconf"} {
		b, err := os.ReadFile(s.path(p))
		if err != nil {
			continue
		}
		switch text := string(b); {
		case strings.Contains(text, "openresolv") || strings.Contains(text, "Roy Marples"):
			m.Resolvconf = ByOpenresolv
		case strings.HasPrefix(text, "#!"):
			m.Resolvconf = "resolvconf"
		}
		break // or it is resolvectl by another name
	}
	if m.Resolvconf != ByOpenresolv {
		return
	}
	for line := range strings.Lines(s.text("/etc/resolvconf.conf")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name, kind, ok := strings.Cut(key, "_"); ok && value != "" && !strings.HasPrefix(key, "#") && (kind == "conf" || kind == "zones") && name != "resolv" {
			m.Openresolv = name
		}
	}
	for _, dir := range []string{"/run/resolvconf/interfaces", "/var/run/resolvconf/interfaces", "/run/resolvconf/keys"} {
		if _, err := os.Stat(s.path(filepath.Join(dir, privateName))); err == nil {
			m.Private = true
		}
	}
}

// notOnBus is so for a moment when a machine starts.
const notOnBus = "it is not on the D-Bus"

// Setup does what Choose says, and says in sentences what it has done; none if there was nothing to do. With auto it
// leaves alone what would leave something in /etc.
func (s System) Setup(ctx context.Context, w Want, auto bool) (did []string, err error) {
	m := s.Gather(ctx, w)
	for n := 0; auto && m.Resolved.Err == notOnBus && n < 25; n++ { // five seconds
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
			m = s.Gather(ctx, w)
		}
	}
	p := Choose(m, w)
	switch {
	case p.Way == "" || p.Done || auto && p.Lasting:
		return nil, nil
	case p.Problem != "":
		return nil, errors.New(p.Way + ": " + p.Problem)
	case p.Way == ByOpenresolv:
		if err := s.run(ctx, p.Text, "resolvconf", "-p", "-a", privateName); err != nil {
			return nil, err
		}
		return []string{"openresolv has the mesh's servers for " + w.Zone}, nil
	case p.File != "":
		if dir := filepath.Dir(s.path(p.File)); os.MkdirAll(filepath.Dir(dir), 0o755) == nil && os.Mkdir(dir, 0o755) == nil {
			if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask is: the name server's user must read it
				return nil, err
			}
		}
		if err := config.WriteFile(s.path(p.File), []byte(p.Text), 0o644); err != nil {
			return nil, fmt.Errorf("writing %s: %w", p.File, err)
		}
		return []string{p.File + " is written"}, s.reload(ctx, p.Way)
	}
	b, err := openBus()
	if err != nil {
		return nil, err
	}
	defer b.conn.Close()
	if err := b.setLink(ctx, m.Interface, w); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("systemd-resolved asks %s for %s, by %s", w.servers(), w.Zone, w.Interface)}, nil
}

// Undo takes away what Setup and Takeover have made. With auto it leaves what Setup without auto has made, which does no
// harm without meshd.
func (s System) Undo(ctx context.Context, w Want, auto bool) (did []string, err error) {
	m := s.Gather(ctx, w)
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, err)
		} else {
			did = append(did, what)
		}
	}
	if m.Resolv.Cut {
		add("a second name of /etc/resolv.conf is gone", os.Remove(s.path(savedConf)))
	}
	if m.Resolv.Saved || m.Resolv.ours() {
		add(s.giveBack(m.Resolv))
	}
	if slices.Contains(m.Resolved.Domains, "~"+w.Zone) && !m.Resolved.Managed {
		if b, err := openBus(); err != nil {
			errs = append(errs, err)
		} else {
			add("systemd-resolved forgets "+w.Interface, b.revertLink(ctx, m.Interface))
			b.conn.Close()
		}
	}
	for path, text := range m.Files {
		way := ByDnsmasq
		switch {
		case path == delegateFile:
			way = ByDelegate
		case strings.HasPrefix(path, nmFolder):
			way = ByNetworkManager
		}
		if !strings.HasPrefix(text, mark) || auto && way != ByDelegate {
			continue
		}
		if err := os.Remove(s.path(path)); err != nil {
			errs = append(errs, err)
			continue
		}
		did = append(did, path+" is gone")
		if err := s.reload(ctx, way); err != nil {
			errs = append(errs, err)
		}
	}
	if m.Private && !auto {
		add("openresolv forgets the mesh's servers", s.run(ctx, "", "resolvconf", "-f", "-d", privateName))
	}
	return did, errors.Join(errs...)
}

// reload has a program read its files again.
func (s System) reload(ctx context.Context, way string) error {
	if !s.live() {
		return nil
	}
	_, err := os.Stat("/run/systemd/system")
	systemd := err == nil
	switch way {
	case ByNetworkManager:
		b, err := openBus()
		if err != nil {
			return err
		}
		defer b.conn.Close()
		const dnsFull = uint32(4) // restarts the name server (NetworkManager's D-Bus API, Reload)
		if err := b.call(ctx, networkManager, "/org/freedesktop/NetworkManager", networkManager+".Reload", dnsFull).Err; err != nil {
			return fmt.Errorf("NetworkManager, Reload: %w", err)
		}
		return nil
	case ByDelegate:
		return s.run(ctx, "", "systemctl", "reload", "systemd-resolved.service")
	}
	if systemd {
		return s.run(ctx, "", "systemctl", "try-restart", "dnsmasq.service")
	}
	if _, err := exec.LookPath("rc-service"); err == nil {
		return s.run(ctx, "", "rc-service", "--ifstarted", "dnsmasq", "restart")
	}
	return errors.New("dnsmasq reads it when it starts: restart it")
}

func (s System) run(ctx context.Context, stdin string, argv ...string) error {
	if !s.live() {
		return nil
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Takeover puts meshd's server first into /etc/resolv.conf, and keeps the file that was there beside it.
func (s System) Takeover(ctx context.Context, w Want) (did []string, err error) {
	m := s.Gather(ctx, w)
	if len(w.Servers) == 0 {
		return nil, errors.New("this node has no address yet")
	}
	if p := Choose(m, w); p.Way != "" {
		return nil, fmt.Errorf("it is not needed: %s; `mesh dns setup` does it", p.Why)
	}
	if who := m.manager(); who != "" {
		return nil, fmt.Errorf("%s looks after /etc/resolv.conf and would write it again: have that ask %s for %s", who, w.servers(), w.Zone)
	}
	saved, conf := s.path(savedConf), s.path(resolvConf)
	text := m.Resolv.Text
	if m.Resolv.ours() { // again: from what was there before
		b, err := os.ReadFile(saved)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		text = string(b)
	}
	next := takenOver(text, w)
	if next == m.Resolv.Text {
		return nil, nil
	}
	if !m.Resolv.ours() && m.Resolv.Err == "" && !m.Resolv.Cut {
		if m.Resolv.Saved {
			return nil, fmt.Errorf("%s is there from before, and /etc/resolv.conf was written by somebody else since: look at both, and remove the one", savedConf)
		}
		if err := os.Link(conf, saved); err != nil { // the link itself, where it is one
			return nil, fmt.Errorf("keeping /etc/resolv.conf: %w", err)
		}
	}
	if err := config.WriteFile(conf, []byte(next), 0o644); err != nil {
		if !m.Resolv.ours() {
			err = errors.Join(err, os.Remove(saved))
		}
		return nil, fmt.Errorf("writing /etc/resolv.conf: %w; it may be mounted there, or immutable (lsattr)", err)
	}
	return []string{fmt.Sprintf("/etc/resolv.conf sends programs to %s first; what was there is kept in %s", w.Servers[0], savedConf)}, nil
}

// giveBack puts /etc/resolv.conf back as it was before Takeover: the same file, or none.
func (s System) giveBack(r Resolv) (string, error) {
	switch {
	case !r.ours() && r.Err == "":
		return "", fmt.Errorf("/etc/resolv.conf was written by somebody else since mesh dns takeover: it stays, and what was there before too, in %s", savedConf)
	case !r.Saved:
		return "/etc/resolv.conf is gone, as there was none before", os.Remove(s.path(resolvConf))
	}
	return "/etc/resolv.conf is as it was", os.Rename(s.path(savedConf), s.path(resolvConf))
}

// Sees says why a program that speaks DNS, as Go's do, does not find a name at one of these addresses; nil: it does.
func Sees(ctx context.Context, name string, at []netip.Addr) error {
	addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, "ip4", name+".")
	var dnsErr *net.DNSError
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		return errors.New("no such name, says " + dnsErr.Server)
	case err != nil:
		return err
	}
	for _, a := range addrs {
		if slices.Contains(at, a.Unmap()) {
			return nil
		}
	}
	return fmt.Errorf("it is at %v there", addrs)
}
