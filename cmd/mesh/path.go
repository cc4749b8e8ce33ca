// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) pathCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "path NODE", Short: "show every way to a node, which one is used, and why", Args: cobra.ExactArgs(1),
		Long: "Asks on every way that is known to a node, given by its name, full name or address in the mesh, and shows what answers, which way is used, and why that one. Where it is not direct, " +
			"it says why. SOURCE is who told of a way: record, the node itself, to all; name, its public name in the DNS; told, the node itself, through the tunnel or on the LAN; " +
			"seen, its packets; map, the links that nodes tell of; stream, TLS. LOSS is that of probes, MTU the largest packet in bytes that passes in the tunnel.",
		ValidArgsFunction: a.completeNodes(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var p api.Path
			if err := a.client().Do(cmd.Context(), "GET", "/v1/path/"+url.PathEscape(args[0]), nil, &p); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			return showPath(cmd.OutOrStdout(), p)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showPath(w io.Writer, p api.Path) error {
	paint := paint(w)
	fmt.Fprintf(w, "%s  %s\n", paint(bold, p.Name), addrs(p.Addrs))
	used := "no way known now"
	t := &table{head: []string{"", "WAY", "STATE", "RTT", "LOSS", "MTU", "SOURCE"}, right: map[int]bool{3: true, 4: true, 5: true}}
	for _, x := range p.Ways {
		mark, state, colour, rtt, loss, mtu := "", "answers", green, "-", "-", "-"
		switch {
		case x.Missed > 0 && x.RTT > 0:
			state, colour = "silent", yellow
		case !x.Confirmed:
			state, colour = "no answer", dim
		}
		if x.Used {
			mark, used = "▶", x.Way.String()
			if x.Missed == 0 && x.Confirmed {
				state = "in use"
			}
		}
		if x.RTT > 0 {
			rtt, loss = took(x.RTT), fmt.Sprintf("%.0f%%", 100*x.Loss)
		}
		if x.MTU > 0 {
			mtu = fmt.Sprint(x.MTU)
		}
		t.add([]string{mark, x.Way.String(), state, rtt, loss, mtu, x.Source}, []string{green, "", colour})
	}
	if len(p.Ways) > 0 {
		fmt.Fprintln(w)
		t.print(w, paint)
		fmt.Fprintln(w)
	}
	switch {
	case used == "no way known now":
		fmt.Fprintf(w, "%s: %s.\n", paint(yellow, "No way works now"), p.NotDirect)
	case p.NotDirect != "":
		fmt.Fprintf(w, "In use: %s (%s).\n%s: %s.\n", used, p.Reason, paint(yellow, "Not direct"), p.NotDirect)
	default:
		fmt.Fprintf(w, "In use: %s (%s).\n", used, p.Reason)
	}
	return nil
}

// table is text in columns, with colours that take no width.
type table struct {
	head   []string
	right  map[int]bool // columns of numbers
	rows   [][]string
	colour [][]string
}

func (t *table) add(cells, colour []string) {
	t.rows, t.colour = append(t.rows, cells), append(t.colour, colour)
}

func (t *table) print(w io.Writer, paint func(colour, s string) string) {
	width := make([]int, len(t.head))
	for _, r := range append([][]string{t.head}, t.rows...) {
		for i, c := range r {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	line := func(cells, colour []string) {
		var b strings.Builder
		for i, c := range cells {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			if i < len(colour) && colour[i] != "" && c != "" {
				c = paint(colour[i], c)
			}
			if t.right[i] {
				c = pad + c
			} else if i < len(cells)-1 {
				c += pad
			}
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(c)
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	heads := make([]string, len(t.head))
	for i := range heads {
		heads[i] = dim
	}
	line(t.head, heads)
	for i, r := range t.rows {
		line(r, t.colour[i])
	}
}
