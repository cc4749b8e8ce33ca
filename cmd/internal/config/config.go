// SPDX-License-Identifier: MIT

// Package config reads and writes what the programs of a node start from: the configuration file mesh.toml, which an
// administrator may edit, the state directory, which belongs to the programs, and the file by which meshd tells meshd-etcd
// what it is to do.
//
// Reading is strict: an unknown key or a value out of range is an error that names its line. Loading never touches the
// machine. The package starts no goroutine.
package config

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"mesh.internal/mesh/vpn/identity"
)

// DefaultPort is the port of the tunnels (UDP) and of joining (TCP).
const DefaultPort = 7655

// Paths says where a node's files are.
type Paths struct {
	Config string // the file mesh.toml
	State  string // directory, 0700: keys, certificates, known nodes
	Run    string // directory, 0755: API socket and snapshot
}

// DefaultPaths are, on Linux, the ones that libnss_mesh and the units know.
var DefaultPaths = defaultPaths()

// Socket is the API's unix socket.
func (p Paths) Socket() string { return filepath.Join(p.Run, "mesh.sock") }

// Snapshot is the file that libnss_mesh reads.
func (p Paths) Snapshot() string { return filepath.Join(p.Run, "hosts.db") }

// Programs is the folder of the sockets at which other users run the programs of checks (health.Config.Programs).
func (p Paths) Programs() string { return p.Run + "-check" }

// Config is mesh.toml.
type Config struct {
	Name      string   `toml:"name" comment:"This node's name, as in its certificate."`
	Mesh      string   `toml:"mesh" comment:"The mesh, the zone of its names and its IPv4 prefix: the same on every node."`
	Domain    string   `toml:"domain"`
	Prefix    string   `toml:"prefix"`
	Port      int      `toml:"port" comment:"UDP port of the tunnels; new nodes join on TCP at the same number, on this node or through it."`
	Public    []string `toml:"public" comment:"Where others reach this node from the Internet: host or host:port."`
	Connect   []string `toml:"connect" comment:"Nodes to keep a tunnel to, always."`
	Subnet    []string `toml:"subnet" comment:"Networks behind this node that it is the router of, with a weight: \"10.11.22.0/24#10\". Its certificate must allow them."`
	Relay     bool     `toml:"relay" comment:"Carry sealed packets between nodes that cannot reach each other, up to so many megabits a second for each (0: no limit)."`
	RelayMbit int      `toml:"relay_mbit"`
	PortMap   bool     `toml:"port_mapping" comment:"Ask routers to let others in (PCP, NAT-PMP, UPnP), and look for nodes on the same network."`
	LAN       bool     `toml:"lan_discovery"`
	Interface string   `toml:"interface" comment:"The tunnels' network interface, and the largest packet it takes in bytes, 1280 to 1420."`
	MTU       int      `toml:"mtu"`
	DNSSetup  string   `toml:"dns_setup,omitempty"` // what [dns] has as setup now
	LogLevel  string   `toml:"log_level" comment:"debug, info, warn or error."`
	Fallback  string   `toml:"service_fallback" comment:"What a name leads to when none who offer that service are well: \"none\" of them or \"all\"."`
	Consul    []string `toml:"consul,omitempty" comment:"Where to answer Consul's HTTP API, read-only: \"127.0.0.1:8500\". Reports of health are taken there where consul_reports is true, of whoever can reach it."`
	Reports   bool     `toml:"consul_reports,omitempty"`
	Store     Store    `toml:"-"`
	Project   Project  `toml:"-"`
	DNS       DNS      `toml:"dns,omitempty" comment:"How DNS queries are answered: see mesh.toml(5)."`
}

// file is mesh.toml: Config with the one key whose type varies, and those that belong to it.
type file struct {
	Config
	Store any `toml:"store" comment:"The book of names: \"embedded\" (kept by nodes of the mesh, see mesh store) or a list of etcd endpoints."`
	Access
	Project
}

// Store is where etcd is: embedded on this node, or at endpoints.
type Store struct {
	Embedded  bool
	Endpoints []string
	Access    Access
}

// Default returns the configuration that a file's keys are laid over.
func Default() Config {
	return Config{Mesh: "mesh", Domain: "mesh.internal", Port: DefaultPort, Interface: defaultInterface, MTU: 1380, Relay: true, RelayMbit: 1000, PortMap: true, LAN: true, LogLevel: "info", Fallback: FallbackNone}
}

// Values of service_fallback.
const (
	FallbackNone = "none"
	FallbackAll  = "all"
)

// Load reads and checks the file at path.
func Load(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: this machine is on no mesh yet; run `mesh init` or `mesh join`", path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return c, nil
}

// Parse reads and checks a configuration. Its errors begin with the line, where there is one.
func Parse(b []byte) (*Config, error) {
	f := file{Config: Default()}
	if err := decode(b, &f, "mesh.toml(5)"); err != nil {
		return nil, err
	}
	c := f.Config
	if err := c.Store.set(f.Store); err != nil {
		return nil, keyError(b, "store", err)
	}
	c.Store.Access, c.Project = f.Access, f.Project
	if key, err := c.check(); err != nil {
		return nil, keyError(b, key, err)
	}
	return &c, nil
}

// decode reads TOML into v, all of whose keys are listed in manual.
func decode(b []byte, v any, manual string) error {
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(v)
	var strict *toml.StrictMissingError
	var dec *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		d := strict.Errors[0]
		line, _ := d.Position()
		return fmt.Errorf("%d: unknown key %q; the keys are listed in %s", line, strings.Join(d.Key(), "."), manual)
	case errors.As(err, &dec):
		line, col := dec.Position()
		return fmt.Errorf("%d:%d: %s", line, col, dec.Error())
	case err != nil:
		return fmt.Errorf(" %w", err)
	}
	return nil
}

// keyError names the line of a key whose value is wrong.
func keyError(b []byte, key string, err error) error {
	for n, l := range strings.Split(string(b), "\n") {
		if k, _, ok := strings.Cut(l, "="); ok && strings.TrimSpace(k) == key {
			return fmt.Errorf("%d: %s: %w", n+1, key, err)
		}
	}
	return fmt.Errorf(" %s: %w", key, err)
}

func (s *Store) set(v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		if v != "embedded" {
			return fmt.Errorf("%q is neither \"embedded\" nor a list of endpoints like [\"https://192.0.2.1:2379\"]", v)
		}
		s.Embedded = true
		return nil
	case []any:
		for _, e := range v {
			u, ok := e.(string)
			if !ok {
				return errors.New("endpoints must be text")
			}
			s.Endpoints = append(s.Endpoints, u)
		}
		return s.check()
	}
	return errors.New("want \"embedded\" or a list of endpoints like [\"https://192.0.2.1:2379\"]")
}

func (s Store) check() error {
	for _, e := range s.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "" {
			return fmt.Errorf("%q is not an endpoint like https://192.0.2.1:2379", e)
		}
	}
	return nil
}

// ParseStore reads the command line's form: embedded, or endpoints with commas between them.
func ParseStore(s string) (Store, error) {
	if s == "embedded" {
		return Store{Embedded: true}, nil
	}
	st := Store{Endpoints: strings.Split(s, ",")}
	return st, st.check()
}

// check returns the key that is wrong and why.
func (c *Config) check() (string, error) {
	if err := identity.CheckName(c.Name); err != nil {
		return "name", err
	}
	if err := identity.CheckName(c.Mesh); err != nil {
		return "mesh", err
	}
	if err := CheckDomain(c.Domain); err != nil {
		return "domain", err
	}
	if _, err := c.Prefix4(); err != nil {
		return "prefix", err
	}
	if c.Port < 1 || c.Port > 65535 {
		return "port", fmt.Errorf("%d is not from 1 to 65535", c.Port)
	}
	if c.MTU < 1280 || c.MTU > 1420 {
		return "mtu", fmt.Errorf("%d is not from 1280 to 1420", c.MTU)
	}
	if c.Interface == "" || len(c.Interface) > 15 || strings.ContainsAny(c.Interface, "/ :\t") {
		return "interface", fmt.Errorf("%q is not an interface's name of at most 15 characters", c.Interface)
	}
	for _, p := range c.Public {
		if _, err := HostPort(p, c.Port); err != nil {
			return "public", err
		}
	}
	for _, n := range c.Connect {
		if err := identity.CheckName(n); err != nil {
			return "connect", err
		}
	}
	if _, err := c.Subnets(); err != nil {
		return "subnet", err
	}
	if c.RelayMbit < 0 || c.RelayMbit > 1_000_000 {
		return "relay_mbit", fmt.Errorf("%d is not from 0 to 1000000", c.RelayMbit)
	}
	if !slices.Contains(dnsSetups, c.DNSSetup) {
		return "dns_setup", fmt.Errorf("%q is neither auto nor off", c.DNSSetup)
	}
	if _, err := c.Level(); err != nil {
		return "log_level", err
	}
	if c.Fallback != FallbackNone && c.Fallback != FallbackAll {
		return "service_fallback", fmt.Errorf("%q is neither %q nor %q", c.Fallback, FallbackNone, FallbackAll)
	}
	if _, err := c.ConsulAddrs(); err != nil {
		return "consul", err
	}
	if key, err := c.Store.checkAccess(c.Domain); err != nil {
		return key, err
	}
	if _, key, err := c.DNS.read(); err != nil {
		return key, fmt.Errorf("[dns]: %w", err)
	}
	return c.Project.check(c.StorePrefix())
}

// StorePrefix is what the mesh's keys begin with in the store.
func (c *Config) StorePrefix() string { return cmp.Or(c.Store.Access.Prefix, "/mesh/v1/"+c.Mesh+"/") }

// CheckDomain reports whether d can be the zone of a mesh's names: two labels or more, lower case.
func CheckDomain(d string) error {
	labels := strings.Split(d, ".")
	if len(labels) < 2 || len(d) > 128 {
		return fmt.Errorf("%q is not a domain of two labels or more like mesh.internal", d)
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || l[0] == '-' || l[len(l)-1] == '-' {
			return fmt.Errorf("%q is not a domain like mesh.internal, in lower case", d)
		}
	}
	return nil
}

// Prefix4 is the mesh's IPv4 prefix.
func (c *Config) Prefix4() (netip.Prefix, error) { return ParsePrefix(c.Prefix) }

// ParsePrefix reads an IPv4 prefix that a mesh may use: private (RFC 1918), of 2 to 2^24 addresses.
func ParsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p != p.Masked() {
		return p, fmt.Errorf("%q is not an IPv4 prefix like 10.11.0.0/16", s)
	}
	if !p.Addr().IsPrivate() || p.Bits() < 8 || p.Bits() > 29 {
		return p, fmt.Errorf("%s is not a private prefix (RFC 1918) of length 8 to 29", s)
	}
	return p, nil
}

// Subnets are the networks behind this node.
func (c *Config) Subnets() (out []identity.Subnet, err error) {
	for _, s := range c.Subnet {
		sub, err := identity.ParseSubnet(s)
		if err != nil {
			return nil, err
		}
		out = append(out, sub)
	}
	return out, nil
}

// ConsulAddrs is where Consul's HTTP API is answered: addresses of this machine, or of its mesh interface.
func (c *Config) ConsulAddrs() (out []netip.AddrPort, err error) {
	p, _ := c.Prefix4()
	for _, s := range c.Consul {
		a, err := netip.ParseAddrPort(s)
		if err != nil || a.Port() == 0 || !a.Addr().IsLoopback() && !p.Contains(a.Addr()) {
			return nil, fmt.Errorf("%q is not a loopback address or one of the mesh, with a port, like 127.0.0.1:8500", s)
		}
		out = append(out, a)
	}
	return out, nil
}

// HostPort completes host or host:port with a default port.
func HostPort(s string, port int) (string, error) {
	h, p := s, strconv.Itoa(port)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(a.String(), p), nil
	}
	if strings.Contains(s, ":") {
		var err error
		if h, p, err = net.SplitHostPort(s); err != nil {
			return "", fmt.Errorf("%q is not host or host:port", s)
		}
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 || h == "" || strings.ContainsAny(h, "/ ") {
		return "", fmt.Errorf("%q is not host or host:port", s)
	}
	return net.JoinHostPort(h, p), nil
}

// Level is the lowest level that is logged.
func (c *Config) Level() (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("%q is not debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// Bytes is the configuration as a file with its comments.
func (c *Config) Bytes() ([]byte, error) {
	f := file{Config: *c, Store: c.Store.Endpoints, Access: c.Store.Access, Project: c.Project}
	if c.Store.Embedded {
		f.Store = "embedded"
	}
	var b bytes.Buffer
	b.WriteString("# mesh.toml: see mesh.toml(5). After a change: systemctl reload meshd, or send SIGHUP to meshd.\n\n")
	err := toml.NewEncoder(&b).Encode(f)
	return b.Bytes(), err
}

// WriteFile replaces the file at path as a whole: temporary file beside it, fsync, rename.
func WriteFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// The files of the state directory.
const (
	fileCACert = "ca.crt"
	fileCAKey  = "ca.key" // only where this node may invite
	fileCert   = "node.crt"
	fileKey    = "node.key"
	fileWG     = "wireguard.key"
)

// CAFile, CertFile and KeyFile are what TLS programs beside meshd are given.
func (p Paths) CAFile() string   { return filepath.Join(p.State, fileCACert) }
func (p Paths) CertFile() string { return filepath.Join(p.State, fileCert) }
func (p Paths) KeyFile() string  { return filepath.Join(p.State, fileKey) }

// Keys returns the keys in the state directory, making them first where there are none, so that a join that was cut
// off goes on with the same ones.
func (p Paths) Keys() (*ecdsa.PrivateKey, *ecdh.PrivateKey, error) {
	if err := os.MkdirAll(p.State, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the state directory: %w", err)
	}
	if err := keepPrivate(p.State); err != nil {
		return nil, nil, fmt.Errorf("closing the state directory to others: %w", err)
	}
	if _, err := os.Stat(p.KeyFile()); errors.Is(err, fs.ErrNotExist) {
		k, wg, err := identity.NewKeys()
		if err != nil {
			return nil, nil, err
		}
		kb, err1 := identity.EncodeKey(k)
		wb, err2 := identity.EncodeKey(wg)
		if err := errors.Join(err1, err2, WriteFile(filepath.Join(p.State, fileWG), wb, 0o600), WriteFile(p.KeyFile(), kb, 0o600)); err != nil {
			return nil, nil, fmt.Errorf("writing the node's keys: %w", err)
		}
	}
	k, err1 := readKey[*ecdsa.PrivateKey](p.KeyFile())
	wg, err2 := readKey[*ecdh.PrivateKey](filepath.Join(p.State, fileWG))
	return k, wg, errors.Join(err1, err2)
}

func readKey[K any](path string) (K, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		var zero K
		return zero, fmt.Errorf("reading a key of this node: %w", err)
	}
	k, err := identity.ParseKey[K](b)
	if err != nil {
		return k, fmt.Errorf("%s is damaged (%w): restore it from a backup, or ask for a new invitation and join again", path, err)
	}
	return k, nil
}

// SaveIdentity writes certificates, and the mesh's key where id holds it. The node's own keys are there already.
func (p Paths) SaveIdentity(id *identity.Identity) error {
	err := WriteFile(p.CAFile(), identity.EncodeCerts(id.CA.Cert), 0o600)
	if err == nil && id.CA.Key != nil {
		var b []byte
		if b, err = identity.EncodeKey(id.CA.Key); err == nil {
			err = WriteFile(filepath.Join(p.State, fileCAKey), b, 0o600)
		}
	}
	if err == nil { // last: with this file the identity is complete
		err = WriteFile(p.CertFile(), identity.EncodeCerts(id.Chain...), 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the node's certificate: %w", err)
	}
	return nil
}

// HasIdentity reports whether this machine is on a mesh.
func (p Paths) HasIdentity() bool {
	_, err := os.Stat(p.CertFile())
	return err == nil
}

// LoadIdentity reads the state directory.
func (p Paths) LoadIdentity() (*identity.Identity, error) {
	ca, chain, err := p.certs()
	if err != nil {
		return nil, err
	}
	if b, err := os.ReadFile(filepath.Join(p.State, fileCAKey)); err == nil {
		if ca.Key, err = identity.ParseKey[*ecdsa.PrivateKey](b); err != nil {
			return nil, p.damaged(fileCAKey, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, p.damaged(fileCAKey, err)
	}
	k, err1 := readKey[*ecdsa.PrivateKey](p.KeyFile())
	wg, err2 := readKey[*ecdh.PrivateKey](filepath.Join(p.State, fileWG))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	id, err := identity.New(ca, chain, k, wg)
	if err != nil {
		return nil, p.damaged(fileCert, err)
	}
	return id, nil
}

// LoadNode reads who this node is from the certificates alone, for programs that are given no more than those.
func (p Paths) LoadNode() (identity.Node, error) {
	ca, chain, err := p.certs()
	if err != nil {
		return identity.Node{}, err
	}
	n, err := ca.Verify(chain)
	if err != nil {
		return n, p.damaged(fileCert, err)
	}
	return n, nil
}

// certs reads the mesh's root and this node's chain.
func (p Paths) certs() (*identity.CA, []*x509.Certificate, error) {
	if !p.HasIdentity() {
		return nil, nil, fmt.Errorf("%s does not exist: this machine is on no mesh yet; run `mesh init` or `mesh join`", p.CertFile())
	}
	read := func(file string) ([]*x509.Certificate, error) {
		b, err := os.ReadFile(filepath.Join(p.State, file))
		if err != nil {
			return nil, p.damaged(file, err)
		}
		certs, err := identity.ParseCerts(b)
		if err != nil {
			return nil, p.damaged(file, err)
		}
		return certs, nil
	}
	roots, err := read(fileCACert)
	if err != nil {
		return nil, nil, err
	}
	chain, err := read(fileCert)
	return &identity.CA{Cert: roots[0]}, chain, err
}

func (p Paths) damaged(file string, err error) error {
	return fmt.Errorf("%s: %w: restore it from a backup, or ask for a new invitation and join again", filepath.Join(p.State, file), err)
}

// User is the user that meshd runs as where a package has made it, and the group that may use the API's socket.
const User = "mesh"

// HandOver gives the state directory, as root has written it, to meshd's user, if there is one.
func (p Paths) HandOver() error {
	u, err := user.Lookup(User)
	if err != nil || p.State != DefaultPaths.State || os.Geteuid() != 0 {
		return nil // meshd runs as who we are
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("the user %s: %w", User, err)
	}
	return filepath.WalkDir(p.State, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, uid, gid)
		}
		if err != nil {
			return fmt.Errorf("giving the state directory to the user %s: %w", User, err)
		}
		return nil
	})
}
