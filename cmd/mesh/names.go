// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) hostClaimCommand() *cobra.Command {
	return &cobra.Command{
		Use: "claim [NAME]", Short: "keep a short name for this node, with or without a host", Args: cobra.MaximumNArgs(1),
		Long: "Claims a name of one label for this node: nobody else can have it, and it stays this node's when its host is removed, until `mesh host release`. Without a name it lists those that are kept.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listKept(cmd)
			}
			var c api.Change
			if err := a.client().Do(cmd.Context(), "POST", "/v1/names", api.Kept{Name: args[0]}, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
}

func (a *app) listKept(cmd *cobra.Command) error {
	var all []api.Kept
	if err := a.client().Do(cmd.Context(), "GET", "/v1/names", nil, &all); err != nil {
		return err
	}
	for _, k := range all {
		if k.To != "" {
			k.Name += "  given to " + k.To + ", which has not taken it yet"
		}
		fmt.Fprintln(cmd.OutOrStdout(), k.Name)
	}
	return nil
}

func (a *app) hostReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "release NAME", Short: "give up a name that was claimed, so that anybody may have it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Released
			if err := a.client().Do(cmd.Context(), "DELETE", "/v1/names/"+url.PathEscape(args[0]), nil, &c); err != nil {
				return err
			}
			tell(cmd, c.Change)
			if c.Host != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "The name stays this node's as long as the host %s has it.\n", c.Host)
			}
			return nil
		},
	}
}

func (a *app) hostGiveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "give NAME NODE", Short: "hand a short name, and the host that has it, over to another node", Args: cobra.ExactArgs(2),
		Long: "Hands a name of one label over to another node, with the host of that name if there is one: its addresses, aliases and metadata. It is the other node's from that moment on, on all nodes, also while that " +
			"node is off. Until it has taken the name, giving it to this node itself takes it back.",
		Example:           "  mesh host give printer bkero",
		ValidArgsFunction: a.completeOwn(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Change
			if err := a.client().Do(cmd.Context(), "POST", "/v1/give", api.Give{Name: args[0], To: args[1]}, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
}
