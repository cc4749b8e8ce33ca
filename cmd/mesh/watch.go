// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) watchCommand() *cobra.Command {
	w := watch{again: time.Second}
	cmd := &cobra.Command{
		Use: "watch [NAME…]", Short: "show changes of names as they happen",
		Long: "Shows every name that is added, removed or changed on the mesh, as it happens, until it is interrupted; with names, only those, by any of their forms. When meshd ends, it waits for it and goes on, " +
			"and shows then what has changed meanwhile.",
		Example:           "  mesh watch\n  mesh watch --all --json printer | jq -r .host.addrs[0]",
		ValidArgsFunction: a.completeHosts(func(api.Host) bool { return true }),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, n := range args {
				w.names = append(w.names, strings.ToLower(strings.TrimSuffix(n, ".")))
			}
			w.out, w.log, w.connect = cmd.OutOrStdout(), cmd.ErrOrStderr(), a.client().Watch
			return w.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&w.all, "all", false, "begin with all names as they are")
	cmd.Flags().BoolVar(&w.json, "json", false, "print JSON: one object a line")
	return cmd
}

// watch shows events. What it knows of hosts outlives a connection, so that after another one it can tell what has changed.
type watch struct {
	names     []string // empty: all
	all, json bool
	again     time.Duration // after this time it connects again
	out, log  io.Writer
	connect   func(context.Context, func(api.Event) error) error

	known map[string]*api.Host // nil before the first "ready"
}

func (w *watch) run(ctx context.Context) error {
	for told := false; ; {
		seen, ready := map[string]*api.Host{}, false
		err := w.connect(ctx, func(e api.Event) error {
			switch {
			case e.Kind == api.Ready:
				told, ready = false, true
				return w.begin(e, seen)
			case e.Host == nil:
				return nil // of a later version
			case e.Kind == api.Is:
				seen[e.Host.Name] = e.Host
				return nil
			case !ready:
				return nil
			case e.Kind == api.Removed:
				delete(w.known, e.Host.Name)
			default:
				w.known[e.Host.Name] = e.Host
			}
			return w.show(e)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, api.ErrEnded) || w.known == nil: // at the beginning it is better to say that nobody is there
			return err
		}
		if !told {
			fmt.Fprintln(w.log, "meshd is away; waiting for it")
			told = true
		}
		wait := time.NewTimer(w.again)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-wait.C:
		}
	}
}

// begin takes all hosts as they are: the first time for what there is, later for what has changed meanwhile.
func (w *watch) begin(ready api.Event, seen map[string]*api.Host) error {
	before, first := w.known, w.known == nil
	w.known = seen
	names := maps.Clone(seen)
	maps.Copy(names, before)
	for _, n := range slices.Sorted(maps.Keys(names)) {
		e, ok := api.Difference(before[n], seen[n])
		if first {
			e, ok = api.Event{Kind: api.Is, Host: seen[n]}, w.all
		}
		if !ok {
			continue
		}
		e.At, e.Revision = ready.At, ready.Revision
		if err := w.show(e); err != nil {
			return err
		}
	}
	return nil
}

// wanted reports whether a host is one of those that are watched.
func (w *watch) wanted(h *api.Host) bool {
	if h == nil || len(w.names) == 0 {
		return h != nil
	}
	return slices.ContainsFunc(w.names, func(n string) bool {
		return n == h.Name || n == h.FQDN || slices.Contains(h.Aliases, n) || slices.Contains(h.Names, n)
	})
}

func (w *watch) show(e api.Event) error {
	if !w.wanted(e.Host) && !w.wanted(e.Before) {
		return nil
	}
	if w.json {
		return json.NewEncoder(w.out).Encode(e)
	}
	p := paint(w.out)
	colour := map[string]string{api.Added: green, api.Removed: red, api.Changed: yellow}[e.Kind]
	_, err := fmt.Fprintf(w.out, "%s  %s  %s  %s\n", p(dim, e.At.Local().Format(time.TimeOnly)), p(colour, fmt.Sprintf("%-7s", e.Kind)), p(bold, e.Host.Name), eventText(e))
	return err
}

// eventText is what an event says beside the name.
func eventText(e api.Event) string {
	if e.Kind != api.Changed || e.Before == nil {
		text := addrs(e.Host.Addrs)
		if len(e.Host.Aliases) > 0 {
			text += "  (" + strings.Join(e.Host.Aliases, " ") + ")"
		}
		if !e.Host.Node {
			text += "  of " + e.Host.Owner
		}
		return text
	}
	var parts []string
	for _, what := range e.Changed {
		was, is := part(e.Before, what), part(e.Host, what)
		parts = append(parts, fmt.Sprintf("%s: %s → %s", what, was, is))
	}
	return strings.Join(parts, "; ")
}

// part is a part of a host in words.
func part(h *api.Host, what string) string {
	text := ""
	switch what {
	case "addresses":
		text = addrs(h.Addrs)
	case "aliases":
		text = strings.Join(h.Aliases, " ")
	case "owner":
		text = h.Owner
	case "kind":
		if text = "a host"; h.Node {
			text = "a node"
		}
	case "metadata":
		var all []string
		for _, k := range sortedKeys(h.Meta) {
			all = append(all, k+"="+h.Meta[k])
		}
		text = strings.Join(all, ", ")
	}
	if text == "" {
		return "none"
	}
	return text
}
