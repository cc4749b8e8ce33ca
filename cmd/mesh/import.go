// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/migrate"
)

func (a *app) importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import", Short: "add hosts from what there was before the mesh",
		Long: "Adds hosts on this node from a hosts file or from a configuration of tinc, and says of each line what was taken and, of what was left, why. Done again, it finds everything there.",
	}
	var dry, asJSON bool
	add := func(use, short, long, example string, read func(*cobra.Command, string) (migrate.Found, error)) {
		sub := &cobra.Command{
			Use: use, Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				found, err := read(cmd, args[0])
				if err != nil {
					return err
				}
				i := imports{dry: dry, client: a.client()}
				lines, err := i.run(cmd.Context(), found)
				if err != nil {
					return err
				}
				if asJSON {
					err = writeJSON(cmd.OutOrStdout(), lines)
				} else {
					i.show(cmd.OutOrStdout(), lines)
				}
				if i.waiting {
					tell(cmd, api.Change{})
				}
				if err == nil && i.failed > 0 {
					return hinted{fmt.Errorf("%d of them could not be added", i.failed), "what was refused is marked above; it may be run again"}
				}
				return err
			},
		}
		sub.Flags().BoolVarP(&dry, "dry-run", "n", false, "change nothing, say what would be done")
		sub.Flags().BoolVar(&asJSON, "json", false, "print JSON")
		cmd.AddCommand(sub)
	}
	add("hosts FILE", "add hosts from a file in the syntax of /etc/hosts",
		"Adds hosts from a file in the syntax of /etc/hosts; - is standard input. Of a line's names the first one that this node may have becomes the host's, others become aliases; names outside the mesh's zone and addresses outside the mesh are left.",
		"  mesh import hosts --dry-run /etc/hosts",
		func(cmd *cobra.Command, path string) (migrate.Found, error) {
			if path == "-" {
				return migrate.Hosts(cmd.InOrStdin(), "-")
			}
			f, err := os.Open(path)
			if err != nil {
				return migrate.Found{}, err
			}
			defer f.Close()
			return migrate.Hosts(f, filepath.Base(path))
		})
	add("tinc DIR", "add hosts from a configuration of tinc 1.0 or 1.1",
		"Adds the nodes of a configuration of tinc, a directory like /etc/tinc/NET, as hosts: those that have single addresses as subnets, with underscores as hyphens. "+
			"So their names resolve here while they are still on tinc's net. It says of everything else what to do about it when a node moves over.",
		"  mesh import tinc --dry-run /etc/tinc/friends",
		func(_ *cobra.Command, path string) (migrate.Found, error) { return migrate.Tinc(os.DirFS(path)) })
	return cmd
}

// imports carries a plan out.
type imports struct {
	dry     bool
	client  api.Client
	waiting bool // something has not landed
	failed  int
}

func (i *imports) run(ctx context.Context, found migrate.Found) ([]migrate.Line, error) {
	var s api.Status
	var m migrate.Mesh
	if err := i.client.Do(ctx, "GET", "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	if err := i.client.Do(ctx, "GET", "/v1/hosts", nil, &m.Hosts); err != nil {
		return nil, err
	}
	m.Self = s.Self.Name
	lines := migrate.Plan(found, m)
	for n := range lines {
		l := &lines[n]
		if i.dry || l.Done != migrate.Take {
			continue
		}
		var c api.Change
		err := i.client.Do(ctx, "PATCH", hostPath(l.Name), l.Change, &c)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // somebody has it since, or has reserved it
			l.Done, l.Why = migrate.Leave, err.Error()
			i.failed++
		}
		i.waiting = i.waiting || err == nil && !c.Landed
	}
	return lines, nil
}

func (i *imports) show(w io.Writer, lines []migrate.Line) {
	p := paint(w)
	took := "took"
	if i.dry {
		took = "would take"
	}
	words := map[migrate.Done]string{migrate.Take: took, migrate.There: "there", migrate.Leave: "left"}
	colours := map[migrate.Done]string{migrate.Take: green, migrate.There: dim, migrate.Leave: yellow}
	width := max(len(took), len("there"))
	where, count := 0, map[migrate.Done]int{}
	for _, l := range lines {
		where = max(where, len(whereOf(l)))
		count[l.Done]++
	}
	for _, l := range lines {
		text := l.What
		if l.Why != "" {
			text += p(dim, ": "+l.Why)
		}
		fmt.Fprintf(w, "%s  %-*s  %s\n", p(colours[l.Done], fmt.Sprintf("%-*s", width, words[l.Done])), where, whereOf(l), text)
	}
	fmt.Fprintf(w, "%s %d, there already %d, left %d\n", took, count[migrate.Take], count[migrate.There], count[migrate.Leave])
}

// whereOf is a line's place; a file as a whole has no number.
func whereOf(l migrate.Line) string { return strings.TrimSuffix(l.Where, ":0") }
