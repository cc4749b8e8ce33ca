// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) evictCommand() *cobra.Command {
	var q api.Evict
	var yes bool
	cmd := &cobra.Command{
		Use: "evict NAME", Short: "cut a node off the mesh, everywhere and for good", Args: cobra.ExactArgs(1),
		Long: "Cuts a node off: every other node ends its tunnel to it, takes its names away, and takes nothing from it or about it any more, however it comes by. " +
			"It comes back with a new invitation only. Nodes that are off learn it when they come back. Works where `mesh invite` does. " +
			"A node that holds the key of the mesh itself, as the one where `mesh init` was run does, could invite itself again: against whoever has that key only a new mesh helps.",
		Example:           "  mesh evict bkero --reason \"laptop stolen\"",
		ValidArgsFunction: a.completeHosts(func(h api.Host) bool { return h.Node }),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s api.Status
			if err := a.client().Do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			q.Name = strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(args[0], ".")), "."+s.Domain)
			i := slices.IndexFunc(s.Peers, func(p api.Peer) bool { return p.Name == q.Name })
			switch {
			case !s.Self.MayInvite:
				return hinted{errors.New("this node may not evict: it does not hold the mesh's key"), "run mesh evict on the node where mesh init was run"}
			case q.Name == s.Self.Name:
				return hinted{fmt.Errorf("%s is this node, which cannot evict itself", q.Name), "to leave the mesh, stop meshd and move " + a.paths.State + " away"}
			case i < 0 && !slices.ContainsFunc(s.Evicted, func(e api.Evicted) bool { return e.Name == q.Name }):
				return hinted{fmt.Errorf("there is no node %s", q.Name), "mesh status lists those that there are; hosts that are no nodes go with mesh host rm"}
			case i < 0: // once more, for the store
			case !yes:
				fmt.Fprintf(cmd.ErrOrStderr(), "%s (%s) will be cut off everywhere: its tunnels, its names, and what it added to the mesh. It can come back with a new invitation only.\n",
					q.Name, addrs(s.Peers[i].Addrs))
				if in, ok := cmd.InOrStdin().(*os.File); ok && !term.IsTerminal(int(in.Fd())) {
					return hinted{errors.New("nobody is at the terminal to confirm that"), "say --yes if it is meant"}
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Evict %s? [y/N] ", q.Name)
				line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
				if l := strings.ToLower(strings.TrimSpace(line)); l != "y" && l != "yes" {
					return errors.New("nothing was done")
				}
			}
			var e api.Evicted
			if err := a.client().Do(cmd.Context(), "POST", "/v1/evict", q, &e); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if i < 0 {
				fmt.Fprintln(out, "already evicted: "+evictedLine(e))
			} else {
				fmt.Fprintf(out, "%s is evicted: its tunnel to this node is gone, and its names. That spreads now; nodes that are off learn it when they come back.\n", e.Name)
			}
			if e.StoreError != "" {
				return hinted{fmt.Errorf("what %s has left in the store is still there, where nobody takes it for true any more: %s", e.Name, e.StoreError),
					"when mesh status shows the store again, run mesh evict " + e.Name + " again, so that its address can be given to another"}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&q.Reason, "reason", "", "`text` for the others to read, and for the node itself; one line, at most 200 bytes")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func evictedLine(e api.Evicted) string {
	s := fmt.Sprintf("%s by %s on %s", e.Name, e.By, e.At.Local().Format("2006-01-02 15:04"))
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}
