// SPDX-License-Identifier: MIT

package migrate

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tinc reads the configuration tree of tinc 1.0 or 1.1, a directory like /etc/tinc/NET: tinc.conf, conf.d and hosts. A node
// that has single addresses as subnets may become a host of the mesh; everything else is left, with what to do about it.
// Private keys are not read.
func Tinc(tree fs.FS) (Found, error) {
	var out Found
	if _, err := fs.Stat(tree, "tinc.conf"); err != nil {
		return out, fmt.Errorf("this is no configuration of tinc, a directory with a file tinc.conf: %w", err)
	}
	configs := []string{"tinc.conf"}
	more, err := fs.Glob(tree, "conf.d/*.conf")
	if err != nil {
		return out, err
	}
	for _, file := range append(configs, more...) {
		if err := out.server(tree, file); err != nil {
			return out, err
		}
	}
	entries, err := fs.ReadDir(tree, "hosts")
	if err != nil {
		return out, fmt.Errorf("reading the hosts of tinc: %w", err)
	}
	if len(entries) > maxFiles {
		return out, fmt.Errorf("%d files in hosts are more than any mesh has", len(entries))
	}
	was := map[string]string{} // name here → file of the first that becomes it
	for _, e := range entries {
		file := path.Join("hosts", e.Name())
		if e.IsDir() || !tincName(e.Name()) {
			out.other(file)
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(e.Name(), "_", "-"))
		h, err := out.host(tree, file, name)
		if err != nil {
			return out, err
		}
		first, twice := was[name]
		was[name] = file
		switch {
		case len(h.Addrs) == 0:
		case twice:
			out.leave(file, 1, e.Name(), fmt.Sprintf("its name would be %s here, which %s has already", name, first))
		default:
			out.Hosts = append(out.Hosts, h)
		}
	}
	rest, err := fs.ReadDir(tree, ".")
	if err != nil {
		return out, err
	}
	for _, e := range rest {
		if !slices.Contains([]string{"tinc.conf", "hosts", "conf.d"}, e.Name()) {
			out.other(e.Name())
		}
	}
	return out, nil
}

// tincName reports whether a file in hosts is a node's: tinc's names are of letters, digits and underscores.
func tincName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

func (f *Found) leave(file string, line int, what, why string) {
	f.Left = append(f.Left, Line{Where: fmt.Sprintf("%s:%d", clean(file), line), What: clean(what), Why: why})
}

// other says of a file that is no configuration what it is for.
func (f *Found) other(file string) {
	base := path.Base(file)
	switch {
	case strings.HasSuffix(base, ".priv"), strings.HasPrefix(base, "rsa_key"), strings.HasPrefix(base, "ed25519_key"):
		f.leave(file, 0, "a private key", "not read: nodes of the mesh make their own keys when they join")
	case strings.HasSuffix(base, "-up"), strings.HasSuffix(base, "-down"):
		f.leave(file, 0, "a script", "nodes run scripts of these names from /etc/mesh, with tinc's environment; tinc-up and tinc-down are mesh-up and mesh-down there: look it through and copy it")
	default:
		f.leave(file, 0, "another file", "tinc takes no nodes from it")
	}
}

// setting is a line of a configuration.
type setting struct {
	line       int
	key, value string // key in lower case
	name       string // key as it is written
}

// settings reads a file as tinc's read_config_file does: "Key = Value", "Key Value", comments, and blocks of PEM, of which
// each counts as one setting without a value.
func settings(text string) (out []setting) {
	n, pem := 0, false
	for line := range strings.Lines(text) {
		n++
		line = strings.Trim(line, " \t\r\n")
		switch {
		case pem:
			pem = !strings.HasPrefix(line, "-----END")
			continue
		case strings.HasPrefix(line, "-----BEGIN"):
			pem = true
			out = append(out, setting{line: n, key: "pem", name: strings.Trim(line, "- ")})
			continue
		case line == "" || line[0] == '#':
			continue
		}
		i := strings.IndexAny(line, " \t=")
		if i < 0 {
			out = append(out, setting{line: n, key: strings.ToLower(line), name: line})
			continue
		}
		value := strings.TrimLeft(line[i:], " \t")
		value = strings.TrimLeft(strings.TrimPrefix(value, "="), " \t")
		out = append(out, setting{n, strings.ToLower(line[:i]), value, line[:i]})
	}
	return out
}

func readSettings(tree fs.FS, file string) ([]setting, error) {
	f, err := tree.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading tinc's configuration: %w", err)
	}
	defer f.Close()
	text, err := readAll(f, file)
	if err != nil {
		return nil, fmt.Errorf("reading tinc's configuration: %w", err)
	}
	return settings(text), nil
}

// server reads tinc.conf, of which nothing becomes a host.
func (f *Found) server(tree fs.FS, file string) error {
	all, err := readSettings(tree, file)
	if err != nil {
		return err
	}
	for _, s := range all {
		f.setting(file, s)
	}
	return nil
}

// host reads a node's file.
func (f *Found) host(tree fs.FS, file, name string) (Host, error) {
	h := Host{Names: []string{name}}
	all, err := readSettings(tree, file)
	if err != nil {
		return h, err
	}
	for _, s := range all {
		if s.key != "subnet" {
			f.setting(file, s)
			continue
		}
		a, why := single(s.value)
		if why != "" {
			f.leave(file, s.line, "Subnet = "+s.value, why)
			continue
		}
		if h.Where == "" {
			h.Where = fmt.Sprintf("%s:%d", file, s.line)
		}
		h.Addrs = append(h.Addrs, a)
	}
	return h, nil
}

// single is the address of a subnet that is one address, else why it is not taken.
func single(subnet string) (a netip.Addr, why string) {
	net1, weight, weighted := strings.Cut(subnet, "#")
	if _, err := strconv.ParseInt(weight, 10, 32); weighted && err != nil {
		return a, "its weight is not a number"
	}
	if _, err := net.ParseMAC(net1); err == nil && strings.Count(net1, ":") == 5 {
		return a, "that is an address of Ethernet (tinc's switch mode); the mesh carries IP"
	}
	if a, err := netip.ParseAddr(net1); err == nil && a.Zone() == "" {
		return a.Unmap(), ""
	}
	p, err := netip.ParsePrefix(net1)
	switch {
	case err != nil:
		return a, "it is not a subnet"
	case p.IsSingleIP():
		return p.Addr().Unmap(), ""
	case p != p.Masked():
		return a, "address and length do not fit together"
	}
	entry := p.String()
	if weighted {
		entry += "#" + weight
	}
	return a, fmt.Sprintf("it is a network: if the node joins the mesh as its router, invite it with --subnet %s and put subnet = [%q] into its mesh.toml", p, entry)
}

// setting says why a setting is not taken, and what to do instead.
func (f *Found) setting(file string, s setting) {
	what, why := s.name+" = "+s.value, ""
	switch s.key {
	case "pem":
		f.leave(file, s.line, s.name, "nodes of the mesh make their own keys when they join")
		return
	case "ed25519publickey", "publickey", "publickeyfile", "privatekey", "privatekeyfile", "ed25519privatekeyfile":
		if strings.Contains(s.key, "privatekey") {
			what = s.name + " = …"
		}
		why = "nodes of the mesh make their own keys when they join"
	case "name":
		why = "a node's name is chosen when it is invited"
	case "connectto":
		why = fmt.Sprintf("nodes find each other; to keep a tunnel to that one always, put connect = [%q] into mesh.toml", strings.ToLower(strings.ReplaceAll(s.value, "_", "-")))
	case "address":
		why = "a node says itself where it is reached; put public = [\"HOST\"] into its own mesh.toml"
	case "port":
		why = "port is a setting of that node's own mesh.toml"
	default:
		why = tincSettings[s.key]
	}
	if why == "" {
		why = "tinc does not know that setting either"
	}
	f.leave(file, s.line, what, why)
}

// byItself and others are what the mesh does instead of what tinc is told.
const (
	byItself  = "the mesh sees to that by itself"
	noSetting = "the mesh has no such setting"
	oneCrypto = "WireGuard leaves no choice of ciphers"
	layer3    = "the mesh carries IP, and broadcasts of IP only"
	measured  = "the mesh measures its links"
)

// tincSettings are tinc 1.0's and 1.1's other settings (tinc.conf(5)), in lower case.
var tincSettings = table(map[string]string{
	byItself: "AutoConnect LocalDiscovery LocalDiscoveryAddress MaxTimeout PingInterval PingTimeout PMTU PMTUDiscovery ClampMSS MTUInfoInterval UDPDiscovery UDPDiscoveryKeepaliveInterval " +
		"UDPDiscoveryInterval UDPDiscoveryTimeout UDPInfoInterval UPnPDiscoverWait UPnPRefreshPeriod IndirectData DirectOnly TCPOnly StrictSubnets TunnelServer ExperimentalProtocol KeyExpire " +
		"ReplayWindow MaxConnectionBurst",
	oneCrypto: "Cipher Digest MACLength Compression",
	layer3:    "Mode Broadcast BroadcastSubnet MACExpire DecrementTTL VDEGroup VDEPort",
	measured:  "Weight",
	noSetting: "AddressFamily BindToAddress BindToInterface ListenAddress Device DeviceStandby DeviceType Forwarding FWMark Hostnames IffOneQueue MaxOutputBufferSize PriorityInheritance " +
		"ProcessPriority Sandbox ScriptsExtension ScriptsInterpreter UDPRcvBuf UDPSndBuf GraphDumpFile InvitationExpire",
	"interface is a setting of mesh.toml":                            "Interface",
	"log_level is a setting of mesh.toml":                            "LogLevel",
	"port_mapping is a setting of mesh.toml":                         "UPnP",
	"set HTTPS_PROXY in meshd's environment where a proxy is needed": "Proxy",
})

func table(byReason map[string]string) map[string]string {
	out := map[string]string{}
	for why, names := range byReason {
		for n := range strings.FieldsSeq(names) {
			out[strings.ToLower(n)] = why
		}
	}
	return out
}
