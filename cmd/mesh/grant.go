// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

// what checks the second argument of mesh grant and mesh revoke.
func what(args []string) error {
	if args[1] != "invite" {
		return hinted{fmt.Errorf("%q cannot be granted", args[1]), "what can be granted is: invite"}
	}
	return nil
}

func (a *app) grantCommand() *cobra.Command {
	var g api.Grant
	cmd := &cobra.Command{
		Use: "grant [NODE invite]", Short: "let another node invite, or list which may",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return cobra.ExactArgs(2)(cmd, args)
		},
		Long: "Lets whoever administers NODE run `mesh invite` there. The mesh's key stays here: NODE asks this node, which makes the invitation and lets the new node in, so it must be up both times. " +
			"With --below LABEL, NODE may invite nodes whose names begin with LABEL and a hyphen only. NODE cannot pass this on, invite routers of subnets, evict, or have more than 20 invitations open. " +
			"Without arguments, lists which nodes may invite.",
		Example:           "  mesh grant bkero invite --below lab",
		ValidArgsFunction: a.completeGrant,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				var all api.Grants
				if err := a.client().Do(cmd.Context(), "GET", "/v1/grants", nil, &all); err != nil {
					return err
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				for i, g := range all.Grants {
					if i == 0 {
						fmt.Fprintln(w, "NODE\tMAY\tNAMES\tSINCE")
					}
					fmt.Fprintf(w, "%s\tinvite\t%s\t%s\n", g.Node, scope(g), g.At.Local().Format("2006-01-02 15:04"))
				}
				return w.Flush()
			}
			if err := what(args); err != nil {
				return err
			}
			g.Node = args[0]
			if err := a.client().Do(cmd.Context(), "POST", "/v1/grants", g, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may invite now (names: %s); `mesh revoke %s invite` takes that back\n", g.Node, scope(g), g.Node)
			return nil
		},
	}
	cmd.Flags().StringVar(&g.Below, "below", "", "only names that begin with this `label` and a hyphen")
	return cmd
}

func scope(g api.Grant) string {
	switch {
	case g.Void:
		return "none: that node is no member any more"
	case g.Below != "":
		return g.Below + "-*"
	}
	return "any name that is free"
}

func (a *app) revokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NODE invite", Short: "take back what mesh grant gave", Args: cobra.ExactArgs(2),
		Long:              "Takes back that NODE may invite. Its invitations that nobody has used are void. Nodes that it has invited stay: their certificates are the mesh's. `mesh evict` cuts them off.",
		Example:           "  mesh revoke bkero invite",
		ValidArgsFunction: a.completeGrant,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := what(args); err != nil {
				return err
			}
			if err := a.client().Do(cmd.Context(), "DELETE", "/v1/grants/"+args[0], nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may not invite any more; nodes that it has invited stay\n", args[0])
			return nil
		},
	}
}

func (a *app) completeGrant(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeHosts(func(h api.Host) bool { return h.Node })(cmd, args, part)
	case 1:
		return []string{"invite"}, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
