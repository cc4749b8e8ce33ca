// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) groupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "group", Short: "name groups of hosts, for NFS exports and sshd (netgroups)",
		Long: "Names groups of hosts. With `netgroup: files mesh` in /etc/nsswitch.conf programs know them as netgroups: NFS exports as @friends, sshd's hosts.equiv as +@friends.",
	}
	add := &cobra.Command{
		Use: "add NAME [MEMBER…]", Short: "make a group on this node, or add members to one", Args: cobra.MinimumNArgs(1),
		Long:    "Makes a group on this node, or adds members to one: hosts of the mesh by name, and other groups as @NAME. A member need not exist yet.",
		Example: "  mesh group add friends bkero nibz nas.bkero\n  mesh group add everybody @friends spencer",
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Change
			if err := a.client().Do(cmd.Context(), "PUT", "/v1/groups", api.Group{Name: args[0], Members: args[1:]}, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME [MEMBER…]", Short: "remove members from a group of this node; without any, the group", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Change
			path := "/v1/groups/" + url.PathEscape(args[0])
			if len(args) > 1 {
				path += "?" + url.Values{"member": args[1:]}.Encode()
			}
			if err := a.client().Do(cmd.Context(), "DELETE", path, nil, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
	var asJSON bool
	list := &cobra.Command{
		Use: "list [NAME]", Short: "list groups, or what one comes to", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var g api.Groups
			if err := a.client().Do(cmd.Context(), "GET", "/v1/groups", nil, &g); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if len(args) == 0 {
				if asJSON {
					return writeJSON(w, g)
				}
				showGroups(w, g.Groups)
				return nil
			}
			name := strings.ToLower(strings.TrimPrefix(args[0], "@"))
			i := slices.IndexFunc(g.Groups, func(x api.Group) bool { return x.Name == name })
			if i < 0 {
				return hinted{fmt.Errorf("there is no group @%s", name), "mesh group list shows those that there are; mesh group add " + name + " MEMBER… makes it"}
			}
			if asJSON {
				return writeJSON(w, g.Groups[i])
			}
			showGroup(w, g.Groups[i])
			return nil
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(add, rm, list)
	return cmd
}

func showGroups(w io.Writer, groups []api.Group) {
	if len(groups) == 0 {
		fmt.Fprintln(w, "no groups yet: `mesh group add NAME MEMBER…` makes one")
		return
	}
	p := paint(w)
	name, owner := len("GROUP"), len("OWNER")
	for _, g := range groups {
		name, owner = max(name, 1+len(g.Name)), max(owner, len(g.Owner))
	}
	fmt.Fprintln(w, p(dim, fmt.Sprintf("%-*s  %-*s  %5s  %s", name, "GROUP", owner, "OWNER", "HOSTS", "MEMBERS")))
	for _, g := range groups {
		var members []string
		for _, m := range g.Members {
			if slices.Contains(g.Unknown, m) {
				m = p(yellow, m+" (unknown)")
			}
			members = append(members, m)
		}
		if len(members) == 0 {
			members = []string{p(dim, "nobody")}
		}
		fmt.Fprintf(w, "%s  %-*s  %5d  %s\n", p(bold, fmt.Sprintf("%-*s", name, "@"+g.Name)), owner, g.Owner, len(g.Hosts), strings.Join(members, " "))
	}
}

func showGroup(w io.Writer, g api.Group) {
	p := paint(w)
	fmt.Fprintf(w, "%s  of %s\n", p(bold, "@"+g.Name), g.Owner)
	members := strings.Join(g.Members, " ")
	if members == "" {
		members = p(dim, "nobody")
	}
	fmt.Fprintf(w, "members    %s\n", members)
	for i, h := range g.Hosts {
		label := "hosts"
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(w, "%-9s  %s\n", label, h)
	}
	if len(g.Unknown) > 0 {
		fmt.Fprintf(w, "unknown    %s %s\n", p(yellow, strings.Join(g.Unknown, " ")), p(dim, "(no host or group of that name now)"))
	}
}
