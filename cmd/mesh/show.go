// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/nss"
)

// paint colours text where out is a terminal and NO_COLOR is not set.
func paint(out io.Writer) func(colour, s string) string {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("NO_COLOR") != "" {
		return func(_, s string) string { return s }
	}
	return func(colour, s string) string {
		if colour == "" {
			return s
		}
		return "\x1b[" + colour + "m" + s + "\x1b[0m"
	}
}

// SGR codes.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show this node, its peers, the store and the names", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s api.Status
			if err := a.client().Do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			return showStatus(cmd.OutOrStdout(), s, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func showStatus(w io.Writer, s api.Status, now time.Time) error {
	p := paint(w)
	fmt.Fprintf(w, "%s  on the mesh %s as %s.%s\n", p(bold, s.Self.Name), s.Mesh, s.Self.Name, s.Domain)
	fmt.Fprintf(w, "%s on %s\n", addrs(s.Self.Addrs), s.Self.Interface)
	if len(s.Self.Endpoints) > 0 {
		fmt.Fprintf(w, "reached at %s\n", strings.Join(s.Self.Endpoints, ", "))
	}
	fmt.Fprintln(w)
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, "no other nodes yet: `mesh invite NAME` lets one in")
	}
	showPeers(w, p, s.Peers, now)
	fmt.Fprintln(w)
	switch s.Store.State {
	case "ok":
		fmt.Fprintf(w, "store      %s, revision %d, %s\n", p(green, "ok"), s.Store.Revision, strings.Join(s.Store.Endpoints, ", "))
	case "none":
		fmt.Fprintln(w, "store      none")
	default:
		fmt.Fprintf(w, "store      %s for %s: %s\n", p(red, s.Store.State), short(now.Sub(s.Store.Since)), s.Store.Error)
	}
	for _, x := range s.Store.Waiting {
		fmt.Fprintf(w, "waiting    %s\n", p(yellow, x))
	}
	if x := s.Store.LastSeen; x != nil {
		fmt.Fprintf(w, "last seen  %s\n", p(yellow, fmt.Sprintf("%d names of %s are as of %s ago, when the store began anew: it lacks them until they publish them again", x.Names, strings.Join(x.Owners, ", "), short(now.Sub(x.Since)))))
	}
	age := p(green, "up to date")
	if s.Snapshot.Age > 0 {
		age = p(yellow, "as of "+short(time.Duration(s.Snapshot.Age*float64(time.Second)))+" ago")
	}
	fmt.Fprintf(w, "snapshot   %d names, %s, %s\n", s.Snapshot.Names, age, s.Snapshot.Path)
	for _, x := range s.Projections {
		showProjection(w, p, x)
	}
	for i, x := range s.Evicted {
		if i == 3 {
			fmt.Fprintf(w, "%s\n", p(dim, "           and others"))
			break
		}
		fmt.Fprintf(w, "evicted    %s\n", p(dim, evictedLine(x)))
	}
	for _, x := range s.Warnings {
		fmt.Fprintf(w, "%s %s\n", p(yellow, "warning"), x)
	}
	return nil
}

func showPeers(w io.Writer, p func(colour, s string) string, peers []api.Peer, now time.Time) {
	name, way := len("PEER"), len("WAY")
	for _, q := range peers {
		text, _ := wayTo(q)
		name, way = max(name, len(q.Name)), max(way, len(text))
	}
	line := func(peer, addr, text, rtt, handshake, received, sent, colour string) string {
		return fmt.Sprintf("%-*s  %-15s  %s  %9s  %10s  %9s  %9s", name, peer, addr, p(colour, fmt.Sprintf("%-*s", way, text)), rtt, handshake, received, sent)
	}
	for i, q := range peers {
		if i == 0 {
			fmt.Fprintln(w, p(dim, line("PEER", "ADDRESS", "WAY", "RTT", "HANDSHAKE", "RECEIVED", "SENT", "")))
		}
		text, colour := wayTo(q)
		addr, rtt, hs := "", "-", "never"
		if len(q.Addrs) > 0 {
			addr = q.Addrs[0].String()
		}
		if q.RTT > 0 {
			rtt = fmt.Sprintf("%.1f ms", q.RTT)
		}
		if q.LastHandshake != nil {
			hs = short(now.Sub(*q.LastHandshake)) + " ago"
		}
		fmt.Fprintln(w, line(q.Name, addr, text, rtt, hs, bytes(q.RX), bytes(q.TX), colour))
	}
}

// wayTo is how packets get to a peer now, and the colour to say it in.
func wayTo(q api.Peer) (text, colour string) {
	switch {
	case q.Direct:
		text, colour = "direct "+q.Endpoint, green
	case len(q.Via) > 0:
		text, colour = "via "+strings.Join(q.Via, ", "), cyan
	case q.Stream:
		text, colour = "tls", cyan
	case q.Active:
		return "no way known now", yellow
	default:
		return "idle", dim
	}
	if lost := math.Round(q.Loss * 100); lost >= 1 {
		text, colour = fmt.Sprintf("%s, %.0f%% lost", text, lost), yellow
	}
	return text, colour
}

func addrs(as []netip.Addr) string {
	var s []string
	for _, a := range as {
		s = append(s, a.String())
	}
	return strings.Join(s, "  ")
}

// short is a length of time at a glance.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func bytes(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// tell says where a change is that has not reached the store.
func tell(cmd *cobra.Command, c api.Change) {
	if !c.Landed {
		fmt.Fprintln(cmd.ErrOrStderr(), "The store is away: the change is kept here and lands when it is back (see `mesh status`).")
	}
}

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "make or show a snapshot, the file that libnss_mesh reads, without a daemon"}
	var out string
	build := &cobra.Command{
		Use: "build HOSTSFILE -o FILE", Short: "make a snapshot of a file in the syntax of /etc/hosts", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			hosts, err := nss.ParseHosts(in)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return nss.WriteFile(out, nss.Set{Hosts: hosts, Created: time.Now()})
		},
	}
	build.Flags().StringVarP(&out, "output", "o", "", "the `file` to write")
	build.MarkFlagRequired("output")
	dump := &cobra.Command{
		Use: "dump FILE", Short: "check a snapshot and print it in the syntax of /etc/hosts", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := nss.ReadFile(args[0])
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "# %d hosts, %d groups, revision %d, made %s\n", len(s.Hosts), len(s.Groups), s.Revision, s.Created.UTC().Format(time.RFC3339Nano))
			for _, h := range s.Hosts {
				for _, x := range h.Addrs {
					fmt.Fprintln(w, strings.Join(append([]string{x.String(), h.Name}, h.Aliases...), "\t"))
				}
			}
			for _, g := range s.Groups {
				fmt.Fprintln(w, "# @"+g.Name+":", strings.Join(g.Members, " "))
			}
			return nil
		},
	}
	cmd.AddCommand(build, dump)
	return cmd
}
