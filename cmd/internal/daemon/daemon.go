// SPDX-License-Identifier: MIT

// Package daemon is the composition root of meshd: the one place that knows all engines and introduces them to each
// other. Tunnels tell the resolver which nodes there are; the resolver's View goes to the snapshot, the DNS server and
// the API; certificates sign and verify for both.
//
// Run owns every goroutine, the interface, the sockets and the API's file, and all are gone when it returns; the
// snapshot stays, so that names resolve without the daemon.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/scripts"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/project"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/tcp"
)

// Options is what Run starts from.
type Options struct {
	Paths   config.Paths
	Version string
	Level   *slog.LevelVar
	Log     *slog.Logger
	Reload  <-chan os.Signal // SIGHUP
}

// daemon is a running meshd.
type daemon struct {
	opts     Options
	log      *slog.Logger
	cfg      atomic.Pointer[config.Config]
	id       *identity.Identity
	prefixes []netip.Prefix // IPv4, IPv6
	node     *vpn.Node
	names    *resolver.Resolver
	keys     keyring
	book     *join.Book
	grants   *join.Grants
	snap     snapshot
	scripts  *scripts.Runner
	watchers atomic.Int64
	offers   offers
	reread   chan struct{} // capacity 1: files of services are to be read again

	projecting map[string]*project.Writer // by layout

	introducing sync.Mutex // held by introduce, so that no older state comes after a newer one

	mu       sync.Mutex // guards warnings
	warnings map[string]string
}

// Check reads everything that Run starts from and touches nothing.
func Check(paths config.Paths) error {
	c, _, err := load(paths)
	if err != nil {
		return err
	}
	return checkStore(c)
}

func load(paths config.Paths) (*config.Config, *identity.Identity, error) {
	c, err := config.Load(paths.Config)
	if err != nil {
		return nil, nil, err
	}
	id, err := paths.LoadIdentity()
	if err != nil {
		return nil, nil, err
	}
	if id.Node.Name != c.Name {
		return nil, nil, fmt.Errorf("%s says name = %q, but this node's certificate is %q's: set it back, or ask for an invitation with the new name", paths.Config, c.Name, id.Node.Name)
	}
	return c, id, nil
}

// Run keeps the node on the mesh until ctx ends.
func Run(ctx context.Context, opts Options) error {
	c, id, err := load(opts.Paths)
	if err != nil {
		return err
	}
	level, _ := c.Level()
	opts.Level.Set(level)
	p4, err := c.Prefix4()
	if err != nil {
		return err
	}
	d := &daemon{opts: opts, log: opts.Log, id: id, prefixes: []netip.Prefix{p4, id.CA.Prefix6()},
		book: join.NewBook(filepath.Join(opts.Paths.State, "invitations.json")), grants: join.NewGrants(filepath.Join(opts.Paths.State, "grants.json")),
		warnings: map[string]string{}, reread: make(chan struct{}, 1)}
	d.cfg.Store(c)
	if err := os.MkdirAll(opts.Paths.Run, 0o755); err != nil {
		return fmt.Errorf("making the directory of the snapshot: %w", err)
	}
	subnets, err := c.Subnets()
	if err != nil {
		return err
	}
	d.scripts = scripts.New(scripts.Config{Dir: filepath.Dir(opts.Paths.Config), Mesh: c.Mesh, Name: c.Name, Interface: c.Interface, Log: d.log})
	dial, err := tcp.Through(tcp.FromEnvironment) // a password does not belong into mesh.toml, which all may read
	if err != nil {
		return err
	}
	if d.node, err = vpn.New(vpn.Config{Identity: id, Prefixes: d.prefixes, Port: c.Port, Public: public(c), Join: joinPort(c, id), Connect: c.Connect,
		Subnets: subnets, Event: d.event, NoRelay: !c.Relay, RelayRate: int64(c.RelayMbit) * 1e6 / 8, PortMap: c.PortMap, LAN: c.LAN,
		Interface: c.Interface, MTU: c.MTU, StateDir: opts.Paths.State, Dial: dial, Fit: fitness(opts.Paths.State), Log: d.log}); err != nil {
		return err
	}
	id.Evicted = d.node.Evicted
	rc := resolver.Config{Zone: c.Domain, Prefixes: d.prefixes, Signer: signer{id}, Verifier: &d.keys, StateDir: opts.Paths.State,
		LearnNode: d.node.Learn, LastResort: c.Fallback == config.FallbackAll, Log: d.log}
	var st store.Store
	if eps := d.endpoints(); len(eps) > 0 {
		var closeStore func() error
		if st, closeStore, err = openStore(c, id, eps); err != nil {
			return err
		}
		defer closeStore()
		rc.Store = st
	}
	d.names = resolver.New(rc)
	d.offers.checks = d.newChecks()
	d.projecting = d.projections(c, rc.Store)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	goRun := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				errs <- err
				cancel()
			}
		})
	}
	goRun(d.node.Run)
	select {
	case <-d.node.Ready():
		changed := d.introduce() // before there is a View, so that the first one has everybody who was known
		goRun(func(ctx context.Context) error { return d.introduceMore(ctx, changed) })
		goRun(d.writeSnapshots(d.names.Changed()))
		goRun(d.names.Run)
		goRun(func(ctx context.Context) error { d.scripts.Run(ctx); return nil })
		goRun(d.serveServices)
		goRun(d.keepStore(st))
		goRun(d.keepBackups)
		goRun(d.serveTCP)
		goRun(d.afterLoading(d.serveDNS)) // no name is denied that is on the disk
		goRun(d.afterLoading(d.serveConsul))
		goRun(d.afterLoading(d.serveAPI))
		goRun(d.reload)
		goRun(d.watchdog)
		for _, w := range d.projecting {
			goRun(w.Run)
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	sd.SdNotify(false, sd.SdNotifyStopping)
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// afterLoading is f when the names of earlier runs are there.
func (d *daemon) afterLoading(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-d.names.Built():
		}
		return f(ctx)
	}
}

// event hands what happens on the mesh to the scripts.
func (d *daemon) event(e vpn.Event) {
	s := scripts.Event{Kind: e.Kind, Node: e.Node}
	if e.Remote.IsValid() {
		s.Addr, s.Port = e.Remote.Addr().String(), strconv.Itoa(int(e.Remote.Port()))
	}
	if e.Subnet.Prefix.IsValid() {
		s.Subnet, s.Weight = e.Subnet.Prefix.String(), strconv.Itoa(int(e.Subnet.Weight))
	}
	d.scripts.Tell(s)
}

func public(c *config.Config) (out []string) {
	for _, p := range c.Public {
		if hp, err := config.HostPort(p, c.Port); err == nil {
			out = append(out, hp)
		}
	}
	return out
}

// warn sets the warning about a subject; an empty text takes it away.
func (d *daemon) warn(subject, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if text == "" {
		delete(d.warnings, subject)
	} else if d.warnings[subject] != text {
		d.warnings[subject] = text
		d.log.Warn(text)
	}
}

// introduce tells the resolver who is on the mesh, and returns what is closed when that has changed.
func (d *daemon) introduce() (changed <-chan struct{}) {
	d.introducing.Lock()
	defer d.introducing.Unlock()
	changed = d.node.Changed()
	records := d.node.Records()
	d.keys.set(records, d.node.Tombstones())
	nodes := make([]resolver.Node, 0, len(records))
	for _, r := range records {
		nodes = append(nodes, resolver.Node{Name: r.Node.Name, Addrs: r.Node.Addrs, Key: r.Node.Serial.String()})
	}
	d.names.SetNodes(nodes)
	d.names.SetSelf(d.id.Node.Addrs, records[0].Bytes())
	return changed
}

// introduceMore introduces again whenever there is somebody new.
func (d *daemon) introduceMore(ctx context.Context, changed <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			changed = d.introduce()
		}
	}
}

// reload reads the configuration again when asked to. What cannot change in a running daemon is named.
func (d *daemon) reload(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.opts.Reload:
		}
		select {
		case d.reread <- struct{}{}:
		default:
		}
		c, err := config.Load(d.opts.Paths.Config)
		if err != nil {
			d.warn("reload", "the configuration was not read again: "+err.Error())
			continue
		}
		d.warn("reload", "")
		old := d.cfg.Load()
		rest := *c
		rest.Public, rest.LogLevel = old.Public, old.LogLevel
		if !reflect.DeepEqual(rest, *old) {
			d.warn("reload", "only public and log_level take effect at once; restart meshd for the rest")
		}
		next := *old
		next.Public, next.LogLevel = c.Public, c.LogLevel
		d.cfg.Store(&next)
		level, _ := c.Level()
		d.opts.Level.Set(level)
		d.node.SetPublic(public(c))
		d.log.Info("the configuration was read again")
	}
}

// watchdog tells the service manager that the daemon lives, for as long as what `mesh status` reads answers: a deadlock
// in tunnels or names ends in a restart.
func (d *daemon) watchdog(ctx context.Context) error {
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil || limit == 0 {
		return nil // nobody watches
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.node.Peers()
			d.names.State()
			sd.SdNotify(false, sd.SdNotifyWatchdog)
		}
	}
}

// signer signs values of the store as this node.
type signer struct{ id *identity.Identity }

func (s signer) Name() string                    { return s.id.Node.Name }
func (s signer) Sign(msg []byte) ([]byte, error) { return s.id.Sign(msg) }

// keyring verifies values of the store by the members' certificates.
type keyring struct {
	nodes atomic.Pointer[map[string]identity.Node] // those that were evicted have no key
}

func (k *keyring) set(records []*identity.Record, evicted []*identity.Tombstone) {
	m := make(map[string]identity.Node, len(records)+len(evicted))
	for _, t := range evicted {
		m[t.Name] = identity.Node{}
	}
	for _, r := range records { // of one that was invited again, too
		m[r.Node.Name] = r.Node
	}
	k.nodes.Store(&m)
}

// Verify implements store.Verifier.
func (k *keyring) Verify(owner string, msg, sig []byte) error {
	m := k.nodes.Load()
	if m == nil {
		return store.ErrUnknownOwner
	}
	n, ok := (*m)[owner]
	if !ok {
		return store.ErrUnknownOwner
	}
	if n.Key == nil {
		return store.ErrEvicted
	}
	return n.VerifySignature(msg, sig)
}
