// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) netcheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "netcheck", Short: "find out what stands between this node and the others", Args: cobra.NoArgs,
		Long: "Checks, with the help of nodes that it reaches directly, whether UDP works over IPv4 and IPv6, at which addresses others see this node, how the NAT or firewall here maps ports and filters " +
			"what comes in (in the terms of RFC 4787), which port-mapping protocols the routers speak, how large packets may be, and which nodes can relay; and says what that means. It takes some seconds, and " +
			"makes up to 32 nodes peers. Members send this node one frame of 92 bytes for each question, at most one a second.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, ok := cmd.ErrOrStderr().(*os.File)
			wait := ok && !asJSON && term.IsTerminal(int(f.Fd()))
			if wait {
				fmt.Fprint(f, "asking other nodes, for up to 7 s …")
			}
			var c api.Netcheck
			err := a.client().Do(cmd.Context(), "POST", "/v1/netcheck", nil, &c)
			if wait {
				fmt.Fprint(f, "\r\x1b[K")
			}
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), c)
			}
			showNetcheck(cmd.OutOrStdout(), c)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// What the words of RFC 4787 mean for a person.
var (
	mapping = map[string]string{
		"unknown":                     "no node outside could tell",
		"no NAT":                      "",
		"NAT of undetermined kind":    "it takes two nodes outside to tell",
		"endpoint-independent":        "the same port for all: others can be told where to send",
		"address-dependent":           "another port for each address: others cannot be told where to send",
		"address- and port-dependent": "another port for everybody: others cannot be told where to send",
		"address- or port-dependent":  "another port for everybody: others cannot be told where to send",
	}
	filtering = map[string]string{
		"unknown":                     "it takes two nodes at different addresses to tell",
		"endpoint-independent":        "everybody gets in",
		"address-dependent":           "addresses that were sent to get in",
		"address- and port-dependent": "only who was sent to gets in",
		"address- or port-dependent":  "only who was sent to gets in",
	}
)

func showNetcheck(w io.Writer, c api.Netcheck) {
	p := paint(w)
	const good, poor, none = "✔ ", "✘ ", "· "
	row := func(mark, name, text string) {
		colour := map[string]string{good: green, poor: yellow, none: dim}[mark]
		fmt.Fprintf(w, "%s%-13s %s\n", p(colour, mark), name, text)
	}
	detail := func(name, text, means string) {
		if means != "" {
			text += ": " + p(dim, means)
		}
		fmt.Fprintf(w, "    %-11s %s\n", name, text)
	}
	reached := func(is func(api.PeerCheck) bool) (names []string) {
		for _, x := range c.Peers {
			if is(x) {
				names = append(names, x.Name)
			}
		}
		return names
	}
	all := len(c.Peers)
	if direct := reached(func(x api.PeerCheck) bool { return x.Direct4+x.Direct6 > 0 }); len(direct) > 0 {
		row(good, "UDP", fmt.Sprintf("%d of %d nodes answer directly", len(direct), all))
	} else {
		row(poor, "UDP", fmt.Sprintf("none of %d nodes answers directly", all))
	}
	for _, f := range []struct {
		name string
		api.Outside
		direct []string
	}{
		{"IPv4", c.IPv4, reached(func(x api.PeerCheck) bool { return x.Direct4 > 0 })},
		{"IPv6", c.IPv6, reached(func(x api.PeerCheck) bool { return x.Direct6 > 0 })},
	} {
		switch {
		case len(f.Addrs) == 0 && len(f.direct) == 0:
			row(none, f.name, "no address on this machine")
			continue
		case f.Asked == 0:
			row(none, f.name, addrs(f.Addrs)+", and no node has such an address")
			continue
		case len(f.direct) == 0:
			row(poor, f.name, addrs(f.Addrs)+", but no node answers")
			continue
		}
		row(good, f.name, fmt.Sprintf("%s, %d of %d nodes answer", addrs(f.Addrs), len(f.direct), all))
		for i, x := range f.Seen {
			name := ""
			if i == 0 {
				name = "seen as"
			}
			detail(name, fmt.Sprintf("%s by %s", x.Addr, few(x.By)), "")
		}
		detail("mapping", f.Mapping, mapping[f.Mapping])
		detail("filtering", f.Filtering, filtering[f.Filtering])
	}
	switch {
	case c.NotAsked != "":
		row(none, "port mapping", "not checked: "+c.NotAsked)
	case len(c.PortMapping) == 0:
		row(none, "port mapping", "there is no router to ask")
	default:
		var speak, silent []string
		for _, g := range c.PortMapping {
			if g.Error == "" {
				speak = append(speak, fmt.Sprintf("%s at %s", g.Protocol, g.Gateway))
			} else if s := g.Gateway.String(); !slices.Contains(silent, s) {
				silent = append(silent, s)
			}
		}
		switch text := "no protocol is spoken at " + strings.Join(silent, ", "); {
		case len(speak) > 0:
			row(good, "port mapping", strings.Join(speak, ", "))
		case c.IPv4.Mapping == "no NAT":
			row(none, "port mapping", text+", and none is needed")
		default:
			row(poor, "port mapping", text)
		}
		if len(c.Mapped) > 0 {
			detail("mapped", strings.Join(c.Mapped, ", "), "")
		}
	}
	least := c.MTU &^ 15
	for _, x := range c.Peers {
		if x.MTU > 0 {
			least = min(least, x.MTU)
		}
	}
	if least < c.MTU&^15 {
		row(poor, "packet size", fmt.Sprintf("up to %d bytes pass to every node, of %d", least, c.MTU))
	} else {
		row(good, "packet size", fmt.Sprintf("%d bytes pass to every node that was measured", c.MTU))
	}
	if relays := reached(func(x api.PeerCheck) bool { return x.Relays && x.Way.Direct() }); len(relays) > 0 {
		row(good, "relays", few(relays))
	} else {
		row(poor, "relays", "no node that carries packets for others is reached directly")
	}

	fmt.Fprintln(w)
	t := &table{head: []string{"NODE", "WAY", "RTT", "IPv4", "IPv6", "MTU", "RELAYS"}, right: map[int]bool{2: true, 3: true, 4: true, 5: true}}
	dash := func(ms float64) string {
		if ms == 0 {
			return "-"
		}
		return took(ms)
	}
	for _, x := range c.Peers {
		mtu, relays := "-", "no"
		if x.MTU > 0 {
			mtu = fmt.Sprint(x.MTU)
		}
		if x.Relays {
			relays = "yes"
		}
		t.add([]string{x.Name, x.Way.String(), dash(x.RTT), dash(x.Direct4), dash(x.Direct6), mtu, relays}, []string{"", wayColour(x.Way)})
	}
	t.print(w, p)
	for _, h := range c.Hints {
		fmt.Fprintf(w, "\n%s\n", wrap(h, 100))
	}
}

// few are some names of many.
func few(names []string) string {
	const most = 6
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// wrap breaks a text into lines.
func wrap(s string, width int) string {
	var b strings.Builder
	n := 0
	for i, word := range strings.Fields(s) {
		switch l := len([]rune(word)); {
		case i > 0 && n+1+l > width:
			b.WriteByte('\n')
			n = l
		case i > 0:
			b.WriteByte(' ')
			n += 1 + l
		default:
			n = l
		}
		b.WriteString(word)
	}
	return b.String()
}
