// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mesh.internal/mesh/cmd/internal/api"
)

// completeHosts completes names of the mesh that keep accepts, from the daemon where it runs.
func (a *app) completeHosts(keep func(api.Host) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a person waits at the keyboard
		defer cancel()
		var h api.Hosts
		if a.client().Do(ctx, "GET", "/v1/hosts", nil, &h) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		for _, x := range h.Hosts {
			if keep(x) {
				names = append(names, cobra.CompletionWithDesc(x.Name, addrs(x.Addrs)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// manCommand is for package builders: the manual page is made of what the commands say of themselves, so it is true.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man", Short: "print the manual page mesh(1)", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return manPage(cmd.OutOrStdout(), cmd.Root())
		},
	}
}

// manPage writes root and all below it as a manual page in roff's man macros.
func manPage(out io.Writer, root *cobra.Command) error {
	var w strings.Builder
	fmt.Fprintf(&w, ".TH MESH 1 \"\" %s \"User Commands\"\n", quoted("mesh "+root.Version))
	fmt.Fprintf(&w, ".SH NAME\nmesh \\- %s\n", roff(root.Short))
	fmt.Fprintf(&w, ".SH SYNOPSIS\n.B mesh\n.RI [ options ]\n.I command\n.RI [ arguments ]\n")
	fmt.Fprintf(&w, ".SH DESCRIPTION\n%s\n", roff(root.Long))
	fmt.Fprintf(&w, ".SH COMMANDS\n")
	manCommands(&w, root)
	fmt.Fprintf(&w, ".SH OPTIONS\nEvery command takes these.\n")
	manFlags(&w, root.PersistentFlags())
	w.WriteString(`.SH EXIT STATUS
0 when all went well, else 1, with
.RB \(dq "mesh: error:" \(dq
on standard error and, where there is something to do about it,
.RB \(dq "mesh: hint:" \(dq.
.SH FILES
.TP
.I /etc/mesh/mesh.toml
configuration, see
.BR mesh.toml (5)
.TP
.I /var/lib/mesh
keys, certificates and what is known of the mesh
.TP
.I /run/mesh/mesh.sock
where
.BR meshd (8)
answers this command; root and members of the group
.B mesh
may use it
.TP
.I /run/mesh/hosts.db
the names, as programs look them up through
.BR libnss_mesh (8)
.SH SEE ALSO
.BR mesh.toml (5),
.BR libnss_mesh (8),
.BR meshd (8),
.BR meshd-etcd (8)
`)
	_, err := io.WriteString(out, w.String())
	return err
}

func manCommands(w *strings.Builder, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if !c.Runnable() {
			manCommands(w, c)
			continue
		}
		fmt.Fprintf(w, ".SS %s\n", quoted(strings.TrimSuffix(c.UseLine(), " [flags]")))
		fmt.Fprintf(w, "%s.\n", roff(strings.ToUpper(c.Short[:1])+c.Short[1:]))
		if c.Long != "" {
			fmt.Fprintf(w, ".PP\n%s\n", roff(c.Long))
		}
		manFlags(w, c.LocalFlags())
		if c.Example != "" {
			fmt.Fprintf(w, ".PP\n.EX\n%s\n.EE\n", roff(c.Example))
		}
		manCommands(w, c)
	}
}

func manFlags(w *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := `\fB\-\-` + roff(f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB\-` + f.Shorthand + `\fR, ` + name
		}
		if arg != "" {
			name += ` \fI` + roff(arg) + `\fR`
		}
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" && !strings.Contains(usage, "(default") {
			usage += " (default: " + f.DefValue + ")"
		}
		fmt.Fprintf(w, ".TP\n%s\n%s\n", name, roff(usage))
	})
}

// roff is text in which nothing is a request or an escape.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// quoted is text as one argument of a request.
func quoted(s string) string { return `"` + strings.ReplaceAll(roff(s), `"`, `\(dq`) + `"` }
