// SPDX-License-Identifier: MIT

package migrate

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"mesh.internal/mesh/cmd/internal/api"
)

func as(s string) (out []netip.Addr) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

func mesh() Mesh {
	return Mesh{Self: "nibz", Hosts: api.Hosts{Domain: "mesh.internal", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}, Hosts: []api.Host{
		{Name: "bkero", Owner: "bkero", Node: true, Addrs: as("10.11.0.2 fd00:1::2")},
		{Name: "camera", Owner: "bkero", Addrs: as("10.11.0.90"), Aliases: []string{"eye"}},
		{Name: "nibz", Owner: "nibz", Node: true, Addrs: as("10.11.0.3")},
		{Name: "scanner", Owner: "nibz", Addrs: as("10.11.0.78"), Aliases: []string{"flatbed"}},
	}}}
}

// text is a plan in lines that can be compared.
func text(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%s %s %s", l.Where, l.Done, l.What)
		if l.Why != "" {
			fmt.Fprintf(&b, ": %s", l.Why)
		}
		if l.Change != nil {
			fmt.Fprintf(&b, " | +%v +%v", l.Change.Add.Addrs, l.Change.Add.Aliases)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// carry does what a plan says.
func carry(m Mesh, lines []Line) Mesh {
	m.Hosts.Hosts = slices.Clone(m.Hosts.Hosts)
	for _, l := range lines {
		if l.Done != Take {
			continue
		}
		i := slices.IndexFunc(m.Hosts.Hosts, func(h api.Host) bool { return h.Name == l.Name })
		if i < 0 {
			i = len(m.Hosts.Hosts)
			m.Hosts.Hosts = append(m.Hosts.Hosts, api.Host{Name: l.Name, Owner: m.Self})
		}
		h := &m.Hosts.Hosts[i]
		h.Addrs, h.Aliases = append(slices.Clone(h.Addrs), l.Change.Add.Addrs...), append(slices.Clone(h.Aliases), l.Change.Add.Aliases...)
	}
	return m
}

const hostsFile = `# a hosts file
127.0.0.1	localhost
::1		localhost ip6-localhost
ff02::1		ip6-allnodes
192.0.2.7	www.example.org www   # outside

10.11.0.77	printer.example.org PRINTER Laser.
fd00:1::77	printer
10.11.0.78	scanner flatbed
10.11.0.79	scanner sheet
10.11.0.2	bkero
10.11.0.3	bkero
10.11.0.90	camera
10.11.0.91	eye
10.11.0.90	other
10.11.0.80	nas.nibz
10.11.0.81	nas.bkero
10.11.0.82	copy.mesh.internal laser
10.11.0.83	wpad
10.11.0.84	under_score
10.11.0.85
fe80::1%eth0	router
nonsense here
10.11.0.78	scanner
`

const hostsPlan = `hosts:2 leave 127.0.0.1 localhost: that address means something on its own machine or link only
hosts:3 leave ::1 localhost ip6-localhost: that address means something on its own machine or link only
hosts:4 leave ff02::1 ip6-allnodes: that address means something on its own machine or link only
hosts:5 leave 192.0.2.7 www.example.org www: the address is outside the mesh (10.11.0.0/16 fd00:1::/48)
hosts:7 leave printer.example.org: it is outside the zone mesh.internal
hosts:7 take printer 10.11.0.77 (laser) | +[10.11.0.77] +[laser]
hosts:8 take printer fd00:1::77 | +[fd00:1::77] +[]
hosts:9 there scanner 10.11.0.78 (flatbed)
hosts:10 take scanner 10.11.0.79 (sheet) | +[10.11.0.79] +[sheet]
hosts:11 there bkero 10.11.0.2
hosts:12 leave bkero 10.11.0.3: bkero is a node of the mesh, with 10.11.0.2 fd00:1::2
hosts:13 leave camera 10.11.0.90: camera of the mesh has that name, with 10.11.0.90, and belongs to bkero
hosts:14 leave eye 10.11.0.91: camera of the mesh has that name, with 10.11.0.90, and belongs to bkero
hosts:15 leave 10.11.0.90 other: the address is camera's
hosts:16 take nas.nibz 10.11.0.80 | +[10.11.0.80] +[]
hosts:17 leave nas.bkero: it is outside the zone mesh.internal
hosts:18 leave laser: printer of the mesh has that name
hosts:18 take copy 10.11.0.82 (laser) | +[10.11.0.82] +[]
hosts:19 leave wpad: name "wpad" is reserved: programs give it a meaning of its own
hosts:20 leave under_score: name "under_score" may hold only a-z, 0-9, hyphens and dots
hosts:21 leave 10.11.0.85: the address has no name
hosts:22 leave fe80::1%eth0 router: that address means something on its own machine or link only
hosts:23 leave nonsense here: it does not begin with an address
hosts:24 there scanner 10.11.0.78
`

func TestHosts(t *testing.T) {
	f, err := Hosts(strings.NewReader(hostsFile), "hosts")
	if err != nil {
		t.Fatal(err)
	}
	first := Plan(f, mesh())
	if got := text(first); got != hostsPlan {
		t.Errorf("got\n%s", got)
	}
	for _, l := range Plan(f, carry(mesh(), first)) {
		if l.Done == Take {
			t.Errorf("done again, there is still to take: %+v", l)
		}
	}
}

// tree is a configuration as tinc 1.0 takes it.
var tree = map[string]string{
	"tinc.conf": "# my net\nName = nibz\nConnectTo = sol_3\nConnectTo spencer\nMode=router\nDeviceType = dummy\nAddressFamily = ipv4\nBindToAddress = 127.0.0.1\nStrictSubnets = yes\n" +
		"Port = 0\nColour = red\nPrivateKeyFile = /x\n",
	"hosts/nibz":     "Subnet = 10.11.0.3/32\nPort = 0\n",
	"hosts/sol_3":    "Address = sol.example.org 655\nSubnet = 10.11.0.50/32\nSubnet = fd00:1::50\nSubnet=10.11.22.0/24#5\nCipher = aes-256-cbc\n-----BEGIN RSA PUBLIC KEY-----\nMIIBCgKCAQEA\nSubnet = 10.11.0.66\n-----END RSA PUBLIC KEY-----\n",
	"hosts/Printer":  "Subnet 10.11.0.77#3\n",
	"hosts/printer":  "subnet = 10.11.0.88\n",
	"hosts/far":      "Subnet = 192.0.2.9\nSubnet = 10.99.0.0/16\nWeight = 3\nIndirectData = yes\n",
	"hosts/keys":     "Ed25519PublicKey = abc\n",
	"hosts/sol_3-up": "#!/bin/sh\n",
	"tinc-up":        "#!/bin/sh\n",
	"rsa_key.priv":   "secret\n",
	"hosts/sub/x":    "x",
	"tinc.conf.bak":  "x",
}

const treePlan = `hosts/Printer:1 take printer 10.11.0.77 | +[10.11.0.77] +[]
hosts/far:1 leave 192.0.2.9 far: the address is outside the mesh (10.11.0.0/16 fd00:1::/48)
hosts/far:2 leave Subnet = 10.99.0.0/16: it is a network: if the node joins the mesh as its router, invite it with --subnet 10.99.0.0/16 and put subnet = ["10.99.0.0/16"] into its mesh.toml
hosts/far:3 leave Weight = 3: the mesh measures its links
hosts/far:4 leave IndirectData = yes: the mesh sees to that by itself
hosts/keys:1 leave Ed25519PublicKey = abc: nodes of the mesh make their own keys when they join
hosts/nibz:1 there nibz 10.11.0.3
hosts/nibz:2 leave Port = 0: port is a setting of that node's own mesh.toml
hosts/printer:1 leave printer: its name would be printer here, which hosts/Printer has already
hosts/sol_3:1 leave Address = sol.example.org 655: a node says itself where it is reached; put public = ["HOST"] into its own mesh.toml
hosts/sol_3:2 take sol-3 10.11.0.50 fd00:1::50 | +[10.11.0.50 fd00:1::50] +[]
hosts/sol_3:4 leave Subnet = 10.11.22.0/24#5: it is a network: if the node joins the mesh as its router, invite it with --subnet 10.11.22.0/24 and put subnet = ["10.11.22.0/24#5"] into its mesh.toml
hosts/sol_3:5 leave Cipher = aes-256-cbc: WireGuard leaves no choice of ciphers
hosts/sol_3:6 leave BEGIN RSA PUBLIC KEY: nodes of the mesh make their own keys when they join
hosts/sol_3-up:0 leave a script: nodes run scripts of these names from /etc/mesh, with tinc's environment; tinc-up and tinc-down are mesh-up and mesh-down there: look it through and copy it
hosts/sub:0 leave another file: tinc takes no nodes from it
rsa_key.priv:0 leave a private key: not read: nodes of the mesh make their own keys when they join
tinc-up:0 leave a script: nodes run scripts of these names from /etc/mesh, with tinc's environment; tinc-up and tinc-down are mesh-up and mesh-down there: look it through and copy it
tinc.conf:2 leave Name = nibz: a node's name is chosen when it is invited
tinc.conf:3 leave ConnectTo = sol_3: nodes find each other; to keep a tunnel to that one always, put connect = ["sol-3"] into mesh.toml
tinc.conf:4 leave ConnectTo = spencer: nodes find each other; to keep a tunnel to that one always, put connect = ["spencer"] into mesh.toml
tinc.conf:5 leave Mode = router: the mesh carries IP, and broadcasts of IP only
tinc.conf:6 leave DeviceType = dummy: the mesh has no such setting
tinc.conf:7 leave AddressFamily = ipv4: the mesh has no such setting
tinc.conf:8 leave BindToAddress = 127.0.0.1: the mesh has no such setting
tinc.conf:9 leave StrictSubnets = yes: the mesh sees to that by itself
tinc.conf:10 leave Port = 0: port is a setting of that node's own mesh.toml
tinc.conf:11 leave Colour = red: tinc does not know that setting either
tinc.conf:12 leave PrivateKeyFile = …: nodes of the mesh make their own keys when they join
tinc.conf.bak:0 leave another file: tinc takes no nodes from it
`

func TestTinc(t *testing.T) {
	fsys := fstest.MapFS{}
	for name, text := range tree {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	f, err := Tinc(fsys)
	if err != nil {
		t.Fatal(err)
	}
	first := Plan(f, mesh())
	if got := text(first); got != treePlan {
		t.Errorf("got\n%s", got)
	}
	for _, l := range Plan(f, carry(mesh(), first)) {
		if l.Done == Take {
			t.Errorf("done again, there is still to take: %+v", l)
		}
	}
	if _, err := Tinc(fstest.MapFS{"x": {}}); err == nil || !strings.Contains(err.Error(), "no configuration of tinc") {
		t.Errorf("no tree: %v", err)
	}
}

func TestSingle(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "10.0.0.1/32": "10.0.0.1", "10.0.0.1#7": "10.0.0.1", "fd00::1/128#0": "fd00::1", "::ffff:10.0.0.1": "10.0.0.1",
		"10.0.0.0/24": "is a network", "10.0.0.1/24": "do not fit", "02:00:00:00:00:01": "Ethernet", "10.0.0.1#x": "weight", "10.0.0": "not a subnet", "": "not a subnet",
	} {
		a, why := single(in)
		if why == "" && a.String() != want || why != "" && !strings.Contains(why, want) {
			t.Errorf("%q: %v, %q, want %s", in, a, why, want)
		}
	}
}

// TestTincReader has tinc itself read a tree, and compares which single addresses it has found: with StrictSubnets it
// reads all hosts, and on SIGUSR2 it lists their subnets.
func TestTincReader(t *testing.T) {
	tincd := "/usr/sbin/tincd"
	if _, err := os.Stat(tincd); err != nil {
		t.Skip("tincd (package tinc) is not here: the tree was read by us only")
	}
	dir := t.TempDir()
	for name, text := range tree {
		if name == "hosts/sub/x" || name == "rsa_key.priv" || name == "hosts/printer" {
			continue
		}
		if strings.HasSuffix(name, "tinc.conf") {
			text = strings.NewReplacer("PrivateKeyFile = /x\n", "", "ConnectTo = sol_3\nConnectTo spencer\n", "").Replace(text)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys := exec.CommandContext(t.Context(), tincd, "-c", dir, "-K1024")
	if out, err := keys.CombinedOutput(); err != nil {
		t.Fatalf("making keys: %v: %s", err, out)
	}
	f, err := Tinc(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, h := range f.Hosts {
		for _, a := range h.Addrs {
			ours = append(ours, a.String()+" "+h.Names[0])
		}
	}
	cmd := exec.CommandContext(t.Context(), tincd, "-c", dir, "-D", "-d3", "--pidfile", filepath.Join(dir, "pid"))
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var log bytes.Buffer
	var theirs []string
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		line := sc.Text()
		fmt.Fprintln(&log, line)
		switch fields := strings.Fields(line); {
		case line == "Ready":
			cmd.Process.Signal(syscall.SIGUSR2)
		case len(fields) == 3 && fields[1] == "owner":
			if a, why := single(fields[0]); why == "" {
				theirs = append(theirs, a.String()+" "+strings.ToLower(strings.ReplaceAll(fields[2], "_", "-")))
			}
		}
		if strings.HasPrefix(strings.TrimSpace(line), "End of subnet list") {
			break
		}
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	if len(theirs) < 5 || !slices.Equal(ours, theirs) {
		t.Errorf("we read %q, tinc %q\n%s", ours, theirs, log.String())
	}
}

func FuzzHosts(f *testing.F) {
	f.Add(hostsFile)
	f.Add("10.11.0.1 a\x00b \xff\n::ffff:10.11.0.1 x\n")
	f.Fuzz(func(t *testing.T, s string) {
		found, err := Hosts(strings.NewReader(s), "f")
		if err != nil {
			return
		}
		check(t, found)
	})
}

func FuzzTinc(f *testing.F) {
	f.Add(tree["tinc.conf"], tree["hosts/sol_3"])
	f.Add("=\n-----BEGIN\n", "Subnet = ::/0#\nSubnet\n\x1b[2J = x\n")
	f.Fuzz(func(t *testing.T, config, host string) {
		found, err := Tinc(fstest.MapFS{"tinc.conf": {Data: []byte(config)}, "hosts/a_B": {Data: []byte(host)}})
		if err != nil {
			return
		}
		check(t, found)
	})
}

// check holds what must be true of every plan: what it shows is safe for a terminal, and a second time there is nothing to
// do.
func check(t *testing.T, found Found) {
	first := Plan(found, mesh())
	for _, l := range first {
		if strings.ContainsFunc(l.Where+l.What+l.Why, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
			t.Errorf("control characters: %q", l.Where+l.What+l.Why)
		}
		if l.Done == Take && (l.Change == nil || l.Name == "") || l.Done == Leave && l.Why == "" {
			t.Errorf("half a line: %+v", l)
		}
	}
	for _, l := range Plan(found, carry(mesh(), first)) {
		if l.Done == Take {
			t.Errorf("done again, there is still to take: %+v", l)
		}
	}
}
