// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/cmd/internal/picture"
)

func (a *app) graphCommand() *cobra.Command {
	format, file := "dot", ""
	cmd := &cobra.Command{
		Use: "graph", Short: "draw the nodes and the links between them", Args: cobra.NoArgs,
		Long: "Draws the mesh as the nodes' records tell it, with this node's own tunnels as they are now: in the DOT language, with the colours and weights of tinc 1.1's dump graph, " +
			"as a picture (SVG, needs no other program), or as JSON. The same mesh gives the same picture.",
		Example: "  mesh graph --format svg -o mesh.svg\n  mesh graph | circo -Tpng >mesh.png",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var g api.Graph
			var out []byte
			draw := map[string]func() (err error){
				"dot":  func() error { out = picture.DOT(g); return nil },
				"svg":  func() error { out = picture.SVG(g); return nil },
				"json": func() (err error) { out, err = json.MarshalIndent(g, "", "  "); return err },
			}[format]
			if draw == nil {
				return fmt.Errorf("--format %s: want dot, svg or json", format)
			}
			if err := a.client().Do(cmd.Context(), "GET", "/v1/graph", nil, &g); err != nil {
				return err
			}
			if err := draw(); err != nil {
				return err
			}
			if file == "" || file == "-" {
				_, err := cmd.OutOrStdout().Write(out)
				return err
			}
			if i, err := os.Stat(file); err == nil && !i.Mode().IsRegular() { // a device or a pipe is written to, not replaced
				return os.WriteFile(file, out, 0o644)
			}
			return config.WriteFile(file, out, 0o644)
		},
	}
	cmd.Flags().StringVar(&format, "format", format, "`dot`, svg or json")
	cmd.Flags().StringVarP(&file, "output", "o", "", "the `file` to write, replaced as a whole (default: standard output)")
	return cmd
}
