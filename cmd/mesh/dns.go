// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/splitdns"
)

func (a *app) dnsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dns", Short: "have programs that speak DNS ask for mesh names", Args: cobra.NoArgs,
		Long: "Has programs that do not use glibc's name service switch (static ones, Go, musl, containers) see mesh names, by having the machine's own name server ask meshd for the zone, and nobody else for anything. Programs of glibc need none of this.",
	}
	var auto, asJSON bool
	system := splitdns.System{Root: "/"}
	does := func(use, short, long string, do func(ctx context.Context, w splitdns.Want) ([]string, error)) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return hinted{errors.New("this changes the machine, so it needs root"), "sudo mesh dns " + use}
			}
			c, w, err := a.want()
			if err != nil && use != "undo" {
				return err
			}
			if auto && use == "setup" && !c.SetupDNS() {
				return nil
			}
			did, err := do(cmd.Context(), w)
			for _, d := range did {
				fmt.Fprintln(cmd.OutOrStdout(), d)
			}
			if err == nil && len(did) == 0 && !auto {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to do; mesh dns status says how it is")
			}
			return err
		}}
	}
	setup := does("setup", "have the machine's name server ask meshd for mesh names",
		"Has systemd-resolved, the dnsmasq of NetworkManager or of the machine, or a name server that openresolv configures ask meshd for the mesh's zone and the reverse zones of its addresses: whichever /etc/resolv.conf sends programs to. It may be repeated, and changes /etc/resolv.conf never.",
		func(ctx context.Context, w splitdns.Want) ([]string, error) {
			if auto && a.takenOver() {
				return system.Takeover(ctx, w)
			}
			did, err := system.Setup(ctx, w, auto)
			if p := splitdns.Choose(system.Gather(ctx, w), w); err == nil && p.Way == "" && !auto {
				return did, hinted{errors.New(p.Why), "programs of glibc see mesh names without it; for others, `mesh dns takeover` puts meshd first into /etc/resolv.conf"}
			}
			return did, err
		})
	undo := does("undo", "take back what setup and takeover have done", "Takes back what mesh dns setup and mesh dns takeover have done, known or not: /etc/resolv.conf is the very file again that it was.",
		func(ctx context.Context, w splitdns.Want) ([]string, error) {
			did, err := system.Undo(ctx, w, auto)
			if !auto {
				if e := os.Remove(a.takeoverFile()); !errors.Is(e, fs.ErrNotExist) {
					err = errors.Join(err, e)
				}
			}
			return did, err
		})
	takeover := does("takeover", "put meshd first into /etc/resolv.conf, where there is no other way",
		"Puts meshd first into /etc/resolv.conf while it runs, and keeps the file that is there beside it; mesh dns undo puts that back. meshd refuses what is not the mesh's, and programs then ask the next server. It is refused where another way is there, and where a program looks after /etc/resolv.conf.",
		func(ctx context.Context, w splitdns.Want) ([]string, error) {
			did, err := system.Takeover(ctx, w)
			if err == nil {
				err = config.WriteFile(a.takeoverFile(), []byte("# mesh dns takeover was said; mesh dns undo takes it back\n"), 0o644)
			}
			return did, err
		})
	for _, c := range []*cobra.Command{setup, undo} {
		c.Flags().BoolVar(&auto, "auto", false, "as meshd.service has it done when it starts and ends: nothing that leaves a file in /etc, and as setup in [dns] of mesh.toml says")
	}
	status := &cobra.Command{Use: "status", Short: "show whom programs that speak DNS ask, and whether they see mesh names", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, w, err := a.want()
			if err != nil {
				return err
			}
			s := dnsStatus(cmd.Context(), system, c, w)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(t, "zone\t%s, %s\n", s.Zone, strings.Join(w.Reverse, ", "))
			fmt.Fprintf(t, "meshd\t%s, port 53\n", strings.Join(s.Servers, ", "))
			switch {
			case s.Way == "":
				fmt.Fprintf(t, "way\tnone: %s\n", s.Why)
			case s.Problem != "":
				fmt.Fprintf(t, "way\t%s: %s\n", s.Way, s.Problem)
			case s.Done:
				fmt.Fprintf(t, "way\t%s, set up\n", s.Way)
			default:
				fmt.Fprintf(t, "way\t%s, not set up: mesh dns setup\n", s.Way)
			}
			if s.Sees == "" {
				fmt.Fprintf(t, "DNS\tprograms that speak DNS see %s\n", s.Name)
			} else {
				fmt.Fprintf(t, "DNS\tprograms that speak DNS do not see %s: %s\n", s.Name, s.Sees)
			}
			return t.Flush()
		}}
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(setup, undo, takeover, status)
	return cmd
}

// takeoverFile says that meshd is to be first in /etc/resolv.conf whenever it runs.
func (a *app) takeoverFile() string {
	return filepath.Join(filepath.Dir(a.paths.Config), "dns-takeover")
}

func (a *app) takenOver() bool {
	_, err := os.Stat(a.takeoverFile())
	return err == nil
}

// want is what programs are to ask, and whom. To undo, no configuration is needed.
func (a *app) want() (*config.Config, splitdns.Want, error) {
	c, err := config.Load(a.paths.Config)
	if err != nil {
		d := config.Default()
		return nil, splitdns.Want{Zone: d.Domain, Interface: d.Interface}, err
	}
	w, err := splitdns.WantOf(a.paths, c)
	if err != nil {
		err = hinted{err, "run this as root, with meshd running"}
	}
	return c, w, err
}

// dnsReport is mesh dns status.
type dnsReport struct {
	Zone    string   `json:"zone"`
	Servers []string `json:"servers"` // meshd's
	Way     string   `json:"way"`     // empty: there is none
	Why     string   `json:"why"`
	Done    bool     `json:"set_up"`
	Lasting bool     `json:"lasting"` // it would leave a file in /etc
	Problem string   `json:"problem,omitempty"`
	Name    string   `json:"name"`           // that was looked up
	Sees    string   `json:"sees,omitempty"` // why programs that speak DNS do not see it; empty: they do
}

func dnsStatus(ctx context.Context, system splitdns.System, c *config.Config, w splitdns.Want) dnsReport {
	p := splitdns.Choose(system.Gather(ctx, w), w)
	r := dnsReport{Zone: w.Zone, Way: p.Way, Why: p.Why, Done: p.Done, Lasting: p.Lasting, Problem: p.Problem, Name: c.Name + "." + c.Domain}
	for _, a := range w.Servers {
		r.Servers = append(r.Servers, a.String())
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := splitdns.Sees(ctx, r.Name, w.Servers); err != nil {
		r.Sees = err.Error()
	}
	return r
}
