// SPDX-License-Identifier: MIT

package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/vpn"
	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/join"
	"mesh.internal/mesh/vpn/netif"
	"mesh.internal/mesh/vpn/tcp"
)

func (a *app) initCommand() *cobra.Command {
	c := config.Default()
	var access storeFlags
	var prefix, store string
	var subnets []string
	cmd := &cobra.Command{
		Use: "init --name NAME", Short: "make a new mesh, with this machine as its first node", Args: cobra.NoArgs,
		Example: "  mesh init --name spencer --public 203.0.113.7",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := a.notYet(); err != nil {
				return err
			}
			if c.Name == "" {
				return hinted{errors.New("this node needs a name"), "say --name NAME, with the name by which others shall know this machine"}
			}
			if c.Store, err = config.ParseStore(store); err != nil {
				return fmt.Errorf("--store: %w", err)
			}
			if c.Store.Access, err = access.whole(); err != nil {
				return err
			}
			p, err := choosePrefix(prefix)
			if err != nil {
				return err
			}
			c.Prefix = p.String()
			allowed, err := parseSubnets(subnets)
			if err != nil {
				return err
			}
			c.Subnet = texts(allowed)
			b, err := c.Bytes()
			if err == nil {
				_, err = config.Parse(b) // every rule of the file holds for the flags too
			}
			if err != nil {
				return fmt.Errorf("these settings do not work: mesh.toml:%w", err)
			}
			key, wg, err := a.paths.Keys()
			if err != nil {
				return err
			}
			ca, err := identity.NewCA(c.Mesh)
			if err != nil {
				return err
			}
			a6, err := ca.Addr6(&key.PublicKey)
			if err != nil {
				return err
			}
			cert, err := ca.Issue(c.Name, c.Domain, []netip.Addr{p.Addr().Next(), a6}, &key.PublicKey, allowed...)
			if err != nil {
				return err
			}
			id, err := identity.New(ca, []*x509.Certificate{cert}, key, wg)
			if err != nil {
				return err
			}
			if err := a.save(&c, id); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s is the first node of the mesh %s: %s.%s has %s and %s, of %s.\n", c.Name, c.Mesh, c.Name, c.Domain, p.Addr().Next(), a6, p)
			fmt.Fprintf(out, "The key of the mesh is in %s: keep a copy of that directory in a safe place.\n", a.paths.State)
			return a.startServices(out, c.Store.Embedded, c.Store.Embedded)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", "", "this node's `name`: one label, a-z, 0-9 and hyphens")
	f.StringVar(&c.Mesh, "mesh", c.Mesh, "the mesh's `name`")
	f.StringSliceVar(&c.Public, "public", nil, "`host[:port]` at which others reach this machine; may be given more than once")
	f.StringSliceVar(&subnets, "subnet", nil, subnetUsage)
	f.StringVar(&prefix, "prefix", "", "the mesh's IPv4 `prefix`, private (default: a /16 that no route of this machine overlaps)")
	f.StringVar(&c.Domain, "domain", c.Domain, "the `zone` of the mesh's names")
	f.StringVar(&store, "store", "embedded", "`where` names are kept: embedded, or URLs of an etcd with commas between them")
	access.register(f)
	f.StringVar(&access.Prefix, "store-prefix", "", "what the mesh's `keys` begin with in an etcd elsewhere (default: /mesh/v1/MESH/)")
	f.IntVar(&c.Port, "port", c.Port, "UDP and TCP `port`")
	return cmd
}

const subnetUsage = "a `network` behind the node that it may be the router of for the whole mesh, as 10.99.0.0/24; may be given more than once"

func parseSubnets(all []string) (out []netip.Prefix, err error) {
	for _, s := range all {
		p, err := netip.ParsePrefix(s)
		if err == nil {
			err = identity.CheckSubnet(p)
		}
		if err != nil {
			return nil, fmt.Errorf("--subnet: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

func texts(all []netip.Prefix) (out []string) {
	for _, p := range all {
		out = append(out, p.String())
	}
	return out
}

// choosePrefix checks the wanted prefix, or finds one that overlaps no route of this machine.
func choosePrefix(want string) (netip.Prefix, error) {
	if want != "" {
		p, err := config.ParsePrefix(want)
		if err != nil {
			return p, fmt.Errorf("--prefix: %w", err)
		}
		route, found, err := netif.Overlap(p, "")
		if err != nil {
			return p, err
		}
		if found {
			return p, hinted{fmt.Errorf("%s overlaps the route %s of this machine", p, route), "leave --prefix out to have a free one chosen"}
		}
		return p, nil
	}
	for i := range 1000 {
		second := byte(11)
		if i > 0 {
			second = byte(12 + rand.N(244))
		}
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, 0, 0}), 16)
		if i >= 500 { // all of 10/8 is taken, as by a VPN at work
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + rand.N(16)), 0, 0}), 16)
		}
		if i >= 700 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(rand.N(256)), 0}), 24)
		}
		_, found, err := netif.Overlap(p, "")
		if err != nil || !found {
			return p, err
		}
	}
	return netip.Prefix{}, hinted{errors.New("the routes of this machine leave no private prefix free"), "choose one with --prefix"}
}

// notYet refuses where this machine is on a mesh already.
func (a *app) notYet() error {
	if !a.paths.HasIdentity() {
		return nil
	}
	return hinted{fmt.Errorf("this machine is on a mesh already (%s exists)", a.paths.CertFile()), "to leave that mesh, stop meshd and meshd-etcd and move " + a.paths.State + " and " + a.paths.Config + " away"}
}

// save writes the configuration, then the identity: with the latter, this machine is on the mesh. meshd owns it then.
func (a *app) save(c *config.Config, id *identity.Identity) error {
	b, err := c.Bytes()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.paths.Config), 0o755); err != nil {
		return fmt.Errorf("making the directory of the configuration: %w", err)
	}
	if err := config.WriteFile(a.paths.Config, b, 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := a.paths.SaveIdentity(id); err != nil {
		return err
	}
	return a.paths.HandOver()
}

// keeperUnit waits until meshd says that this node is to keep a part of the store.
const keeperUnit = "meshd-etcd.path"

// startServices starts the daemons where systemd runs and has their units, else says how. The mesh's first node, which keeps
// its own store, has to have one.
func (a *app) startServices(out io.Writer, embedded, first bool) error {
	units := []string{"meshd.service"}
	if embedded && exec.Command("systemctl", "cat", keeperUnit).Run() == nil {
		units = append(units, keeperUnit) // which starts meshd-etcd where this node is to keep a part of the store
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil && a.paths == config.DefaultPaths &&
		exec.Command("systemctl", append([]string{"cat"}, units...)...).Run() == nil {
		fmt.Fprintf(out, "Starting %v.\n", units)
		if b, err := exec.Command("systemctl", append([]string{"enable", "--now"}, units...)...).CombinedOutput(); err != nil {
			return hinted{fmt.Errorf("starting the services: %w: %s", err, b), "see journalctl -u meshd -u meshd-etcd"}
		}
		return nil
	}
	flags := ""
	for _, p := range []struct{ flag, is, def string }{{"config", a.paths.Config, config.DefaultPaths.Config}, {"state", a.paths.State, config.DefaultPaths.State}} {
		if p.is != p.def {
			flags += " --" + p.flag + " " + p.is
		}
	}
	run := ""
	if a.paths.Run != config.DefaultPaths.Run {
		run = " --run " + a.paths.Run
	}
	fmt.Fprintln(out, "Now run, and keep running:")
	fmt.Fprintln(out, "    meshd"+flags+run)
	if first {
		fmt.Fprintln(out, "    meshd-etcd"+flags+run)
	}
	return nil
}

func (a *app) inviteCommand() *cobra.Command {
	var q api.Invite
	var addr string
	var subnets []string
	cmd := &cobra.Command{
		Use: "invite NAME", Short: "print an invitation for a new node", Args: cobra.ExactArgs(1),
		Long: "Prints one line, which lets one machine join the mesh as NAME, once. Whoever has the line can join: send it over a channel that you trust. The new node needs to reach this one or, where that is behind NAT, one of up to three members with public addresses that the line names too; they pass on what they cannot read.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q.Name = args[0]
			if err := identity.CheckName(q.Name); err != nil {
				return err
			}
			if addr != "" {
				if q.Addr, err = netip.ParseAddr(addr); err != nil {
					return fmt.Errorf("--address: %w", err)
				}
			}
			if q.Subnets, err = parseSubnets(subnets); err != nil {
				return err
			}
			var inv api.Invitation
			if err := a.client().Do(cmd.Context(), "POST", "/v1/invite", q, &inv); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), inv.Token)
			if inv.Warning != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "mesh: hint:", inv.Warning)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s will have %s. On that machine, until %s: mesh join TOKEN\n", q.Name, inv.Addr, inv.Expires.Local().Format("2006-01-02 15:04"))
			return nil
		},
	}
	cmd.Flags().StringVar(&addr, "address", "", "the new node's IPv4 `address` (default: the lowest free one)")
	cmd.Flags().StringSliceVar(&subnets, "subnet", nil, subnetUsage)
	cmd.Flags().DurationVar(&q.Expires, "expires", 24*time.Hour, "how `long` the invitation is good")
	return cmd
}

func (a *app) joinCommand() *cobra.Command {
	c := config.Default()
	var access storeFlags
	var overlap bool
	var proxy string
	cmd := &cobra.Command{
		Use: "join TOKEN", Short: "join the mesh that an invitation is for", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.notYet(); err != nil {
				return err
			}
			t, err := join.ParseToken(args[0])
			if err != nil {
				return err
			}
			dial, err := tcp.Through(proxy)
			if err != nil {
				return fmt.Errorf("--proxy: %w", err)
			}
			key, wg, err := a.paths.Keys()
			if err != nil {
				return err
			}
			r, err := join.Join(cmd.Context(), dial, t, key, wg)
			if err != nil {
				return err
			}
			p, err := config.ParsePrefix(r.Mesh.Prefix)
			if err != nil {
				return fmt.Errorf("the inviter's answer: %w", err)
			}
			route, found, err := netif.Overlap(p, c.Interface)
			if err != nil {
				return err
			}
			if found && !overlap {
				return hinted{fmt.Errorf("the mesh's prefix %s overlaps the route %s of this machine, so one would hide the other", p, route),
					"take that route away, or join with --allow-overlap; the invitation is still good for this machine"}
			}
			c.Subnet = texts(r.Identity.Node.Subnets)
			c.Name, c.Mesh, c.Domain, c.Prefix = r.Identity.Node.Name, r.Mesh.Name, r.Mesh.Domain, r.Mesh.Prefix
			c.Store.Endpoints, c.Connect = r.Mesh.Store, []string{r.Mesh.Inviter}
			var roster *identity.Roster
			if len(r.Mesh.Roster) > 0 { // the mesh keeps its store itself
				if roster, err = r.Identity.CA.ParseRoster(r.Mesh.Roster); err != nil {
					return fmt.Errorf("the inviter's answer: %w", err)
				}
				c.Store.Embedded, c.Store.Endpoints = true, nil
			}
			if c.Store.Access, err = access.whole(); err != nil {
				return err
			}
			c.Store.Access.Prefix = r.Mesh.StorePrefix
			if r.Via != "" { // the inviter may be out of our reach
				c.Connect = append(c.Connect, r.Via)
			}
			if !cmd.Flags().Changed("port") {
				c.Port = int(r.Mesh.Port)
			}
			b, err := c.Bytes()
			if err == nil {
				_, err = config.Parse(b)
			}
			if err != nil {
				return fmt.Errorf("what the inviter says of the mesh does not work here: mesh.toml:%w", err)
			}
			if err := errors.Join(vpn.SaveRecords(a.paths.State, r.Records), vpn.SaveTombstones(a.paths.State, r.Evicted), vpn.SaveRoster(a.paths.State, roster)); err != nil {
				return err
			}
			if err := a.save(&c, r.Identity); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "This machine is %s on the mesh %s: %s.%s has %s.\n", c.Name, c.Mesh, c.Name, c.Domain, r.Identity.Node.Addrs)
			return a.startServices(out, c.Store.Embedded, false)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&c.Public, "public", nil, "`host[:port]` at which others reach this machine, if there is one")
	f.IntVar(&c.Port, "port", c.Port, "UDP and TCP `port` (default: the inviter's)")
	f.StringVar(&proxy, "proxy", "", "join through this HTTP or SOCKS 5 proxy: a `URL` like http://user:password@host:port or socks5://host:port, or env for what HTTPS_PROXY says")
	access.register(f)
	f.BoolVar(&overlap, "allow-overlap", false, "join although a route of this machine overlaps the mesh's prefix")
	return cmd
}
