// SPDX-License-Identifier: MIT

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/export"
)

func (a *app) hostsCommand() *cobra.Command {
	format, reverse := "table", ""
	o := export.Options{Port: 9100}
	cmd := &cobra.Command{
		Use: "hosts", Short: "list every name of the mesh, also in the forms of other programs", Args: cobra.NoArgs,
		Long: "Lists every name of the mesh: as a table, or for other programs. hosts is the syntax of /etc/hosts; zone a zone file with all that DNS answers, services too; ssh-config something to Include in ~/.ssh/config; " +
			"ansible what a dynamic inventory prints, so a script that runs this is one; prometheus-sd what file_sd_configs read and http_sd_configs fetch.",
		Example: "  mesh hosts --format hosts >/etc/dnsmasq.mesh\n  mesh hosts --format zone >/etc/bind/mesh.internal\n  mesh hosts --format zone --reverse 10.11.0.0/16 >/etc/bind/11.10.in-addr.arpa\n" +
			"  mesh hosts --format ssh-config >~/.ssh/mesh\n  mesh hosts --format prometheus-sd --port 9100 >/etc/prometheus/mesh.json",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if format != "table" && !slices.Contains(export.Formats, format) {
				return export.Write(io.Discard, format, export.Mesh{}, o)
			}
			if reverse != "" {
				if o.Reverse, err = netip.ParsePrefix(reverse); err != nil {
					return fmt.Errorf("--reverse: %q is not a network like 10.11.0.0/16", reverse)
				}
			}
			if o.Port < 1 || o.Port > 65535 {
				return errors.New("--port is 1 to 65535")
			}
			if format == "zone" && reverse == "" {
				var z api.Zone
				if err := a.client().Do(cmd.Context(), "GET", "/v1/zone", nil, &z); err != nil {
					return err
				}
				_, err := io.WriteString(cmd.OutOrStdout(), z.Text)
				return err
			}
			var m export.Mesh
			if err := a.client().Do(cmd.Context(), "GET", "/v1/hosts", nil, &m.Hosts); err != nil {
				return err
			}
			switch format {
			case "table":
				return showHosts(cmd.OutOrStdout(), m.Hosts)
			case "ansible", "prometheus-sd":
				var g api.Groups
				if err := a.client().Do(cmd.Context(), "GET", "/v1/groups", nil, &g); err != nil {
					return err
				}
				m.Groups = g.Groups
			}
			return export.Write(cmd.OutOrStdout(), format, m, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", format, "`table`, "+strings.Join(export.Formats, ", "))
	f.StringVar(&reverse, "reverse", "", "with zone: the reverse zone of this `network`, as 10.11.0.0/16")
	f.IntVar(&o.Port, "port", o.Port, "with prometheus-sd: the `port` that is scraped")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(append([]string{"table"}, export.Formats...), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func showHosts(w io.Writer, h api.Hosts) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESSES\tALIASES\tOWNER")
	for _, x := range h.Hosts {
		owner := x.Owner
		if x.Node {
			owner = "(node)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", x.Name, addrs(x.Addrs), strings.Join(x.Aliases, " "), owner)
	}
	return t.Flush()
}
