// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) hostCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "host", Short: "names of hosts that are no nodes",
		Long: "Names hosts that run no daemon of ours, like printers, and adds names to addresses of this node. A host belongs to the node on which it was added, and is changed there.",
	}
	cmd.AddCommand(a.hostAddCommand(), a.hostSetCommand(), a.hostRemoveCommand(), a.hostAliasCommand(), a.hostShowCommand(), a.hostClaimCommand(), a.hostReleaseCommand(), a.hostGiveCommand())
	return cmd
}

// hostPath is where the API has a host.
func hostPath(name string) string { return "/v1/hosts/" + url.PathEscape(name) }

// patch changes a host.
func (a *app) patch(cmd *cobra.Command, name string, change api.HostChange) error {
	var c api.Change
	if err := a.client().Do(cmd.Context(), "PATCH", hostPath(name), change, &c); err != nil {
		return err
	}
	tell(cmd, c)
	return nil
}

func parseAddrs(args []string) (out []netip.Addr, err error) {
	for _, s := range args {
		x, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not an address", s)
		}
		out = append(out, x)
	}
	return out, nil
}

const metaUsage = "something to know of it, as `key=value`; may be given more than once"

func parseMeta(all []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range all {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--meta: %q is not key=value", s)
		}
		out[k] = v
	}
	return out, nil
}

func (a *app) completeOwn() cobra.CompletionFunc {
	return a.completeHosts(func(h api.Host) bool { return !h.Node })
}

func (a *app) hostAddCommand() *cobra.Command {
	var aliases, meta []string
	cmd := &cobra.Command{
		Use: "add NAME ADDRESS…", Short: "give a name to addresses of the mesh", Args: cobra.MinimumNArgs(2),
		Long: "Adds a host with these addresses, or adds addresses, aliases and metadata to one that was added on this node. A name is one label, which all share and the first one has, or lies below this node's own. " +
			"Without the store the host is kept here and lands when the store is back.",
		Example: "  mesh host add printer 10.11.0.77 --alias laser --meta location=cellar\n  mesh host add nas.bkero 10.11.0.80 10.11.0.81",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			change := api.HostChange{Create: true, Add: api.HostParts{Aliases: aliases}}
			if change.Add.Addrs, err = parseAddrs(args[1:]); err != nil {
				return err
			}
			if change.Meta, err = parseMeta(meta); err != nil {
				return err
			}
			return a.patch(cmd, args[0], change)
		},
	}
	cmd.Flags().StringSliceVar(&aliases, "alias", nil, "another `name` for it; may be given more than once")
	cmd.Flags().StringArrayVar(&meta, "meta", nil, metaUsage)
	return cmd
}

func (a *app) hostSetCommand() *cobra.Command {
	var aliases, meta []string
	cmd := &cobra.Command{
		Use: "set NAME [ADDRESS…]", Short: "change a host that was added on this node", Args: cobra.MinimumNArgs(1),
		Long:              "Changes what is given and leaves the rest: addresses and aliases replace those that there are, and --meta sets one key, or removes it where the value is empty.",
		Example:           "  mesh host set printer 10.11.0.78\n  mesh host set printer --alias laser,ink --meta location=attic --meta owner=",
		ValidArgsFunction: a.completeOwn(),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var change api.HostChange
			if change.Set.Addrs, err = parseAddrs(args[1:]); err != nil {
				return err
			}
			if change.Meta, err = parseMeta(meta); err != nil {
				return err
			}
			if cmd.Flags().Changed("alias") {
				change.Set.Aliases = &aliases
			}
			if len(args) == 1 && len(meta) == 0 && change.Set.Aliases == nil {
				return hinted{errors.New("nothing is to be changed"), "give addresses, --alias or --meta"}
			}
			return a.patch(cmd, args[0], change)
		},
	}
	cmd.Flags().StringSliceVar(&aliases, "alias", nil, "all its other `names`, with commas between them; empty for none")
	cmd.Flags().StringArrayVar(&meta, "meta", nil, "something to know of it, as `key=value`; an empty value removes the key; may be given more than once")
	return cmd
}

func (a *app) hostRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME [ADDRESS…]", Short: "remove a host that was added on this node, or some of its addresses", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeOwn(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				gone, err := parseAddrs(args[1:])
				if err != nil {
					return err
				}
				return a.patch(cmd, args[0], api.HostChange{Remove: api.HostParts{Addrs: gone}})
			}
			var c api.Change
			if err := a.client().Do(cmd.Context(), "DELETE", hostPath(args[0]), nil, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
}

func (a *app) hostAliasCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "alias", Short: "other names for a host that was added on this node"}
	add := &cobra.Command{
		Use: "add NAME ALIAS…", Short: "add aliases, and leave those that there are", Args: cobra.MinimumNArgs(2),
		Example:           "  mesh host alias add printer laser",
		ValidArgsFunction: a.completeOwn(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.patch(cmd, args[0], api.HostChange{Add: api.HostParts{Aliases: args[1:]}})
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME ALIAS…", Short: "remove aliases", Args: cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeOwn(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.patch(cmd, args[0], api.HostChange{Remove: api.HostParts{Aliases: args[1:]}})
		},
	}
	cmd.AddCommand(add, rm)
	return cmd
}

func (a *app) hostShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "show all that is known of a host or a node", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHosts(func(api.Host) bool { return true }),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := a.host(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), h)
			}
			showHost(cmd.OutOrStdout(), h)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) host(ctx context.Context, name string) (h api.HostShown, err error) {
	err = a.client().Do(ctx, "GET", hostPath(name), nil, &h)
	return h, err
}

func showHost(w io.Writer, h api.HostShown) {
	p := paint(w)
	fmt.Fprintf(w, "%s  %s\n", p(bold, h.Name), h.FQDN)
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(w, "%-9s  %s\n", label, text)
		}
	}
	line("addresses", addrs(h.Addrs))
	line("aliases", strings.Join(h.Aliases, "  "))
	if h.Node {
		line("owner", "itself, a node")
	} else {
		line("owner", h.Owner)
	}
	if len(h.Groups) > 0 {
		line("groups", "@"+strings.Join(h.Groups, "  @"))
	}
	label := "metadata"
	for _, k := range sortedKeys(h.Meta) {
		line(label, k+" = "+h.Meta[k])
		label = ""
	}
	if h.Waiting != "" {
		line("waiting", p(yellow, h.Waiting))
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
