// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/nss"
)

func (a *app) whyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why NAME", Short: "tell how a name, or an address, comes to be what it is here", Args: cobra.ExactArgs(1),
		Long: "Tells what a name in any of its forms, or an address, leads to on this node, who says so (a node's certificate, or a signed value in the store), how fresh that is, what else wanted the name and lost, " +
			"which values were refused, whether a change made here still waits, and what programs are told: by the snapshot, and by /etc/hosts, which comes before it. Without meshd it tells the latter. " +
			"The exit status is 1 where there is no such name.",
		Example:           "  mesh why printer\n  mesh why nas.bkero.mesh.internal\n  mesh why 10.11.0.77",
		ValidArgsFunction: a.completeHosts(func(api.Host) bool { return true }),
		RunE: func(cmd *cobra.Command, args []string) error {
			asked := args[0]
			var y api.Why
			err := a.client().Do(cmd.Context(), "GET", "/v1/why/"+url.PathEscape(asked), nil, &y)
			out := whyAll{Why: y, Programs: askAsProgram(a.paths.Snapshot(), "/etc/hosts", asked)}
			if err != nil {
				out.Why = api.Why{Asked: asked, Now: time.Now()}
			}
			if asJSON {
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), out)
			}
			showWhy(cmd.OutOrStdout(), out, err == nil)
			switch {
			case err != nil:
				return err
			case y.Host == nil && y.Waiting == nil && y.Form != "between" && y.Form != "zone":
				return errFound
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// whyAll is what `mesh why --json` prints.
type whyAll struct {
	api.Why
	Programs programs `json:"programs"`
}

// programs is what programs of this machine are told.
type programs struct {
	Snapshot string       `json:"snapshot"`        // the file
	Error    string       `json:"error,omitempty"` // why it is not believed
	Revision int64        `json:"revision"`
	Created  time.Time    `json:"created"`
	Name     string       `json:"name,omitempty"`  // the canonical one, empty where there is none
	Names    []string     `json:"names,omitempty"` // the others
	Addrs    []netip.Addr `json:"addrs,omitempty"`
	File     []string     `json:"file,omitempty"` // what /etc/hosts says, which comes first
}

// askAsProgram looks a name or an address up as libnss_mesh does, and before it in the hosts file.
func askAsProgram(snapshot, hostsFile, asked string) (p programs) {
	p.Snapshot = snapshot
	if b, err := os.ReadFile(hostsFile); err == nil {
		p.File = inHostsFile(string(b), asked)
	}
	set, err := nss.ReadFile(snapshot)
	if err != nil {
		p.Error = err.Error()
		return p
	}
	p.Revision, p.Created = set.Revision, set.Created
	var h nss.Host
	var ok bool
	if a, e := netip.ParseAddr(asked); e == nil {
		h, ok, err = nss.LookupAddr(snapshot, a)
	} else {
		h, ok, err = nss.LookupName(snapshot, asked)
	}
	switch {
	case err != nil:
		p.Error = err.Error()
	case ok:
		p.Name, p.Names, p.Addrs = h.Name, h.Aliases, h.Addrs
	}
	return p
}

// inHostsFile are the addresses that a hosts file has for a name, or the names that it has for an address.
func inHostsFile(text, asked string) (out []string) {
	asked = strings.TrimSuffix(asked, ".")
	addr, err := netip.ParseAddr(asked)
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case err == nil && f[0] == addr.String():
			out = append(out, f[1:]...)
		case err != nil && slices.ContainsFunc(f[1:], func(n string) bool { return strings.EqualFold(n, asked) }):
			out = append(out, f[0])
		}
	}
	return out
}

// formWords are the forms of a name in words.
var formWords = map[string]string{"full name": "its full name", "short name": "its short name", "alias": "an alias, in its short form", "full alias": "an alias, in its full form",
	"address": "an address", "zone": "the mesh's own zone", "between": "a name that has others below it"}

func showWhy(w io.Writer, y whyAll, asked bool) {
	p := paint(w)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(w, "%-9s  %s\n", label, fmt.Sprintf(format, args...))
	}
	if asked {
		showAnswer(w, p, y.Why, line)
	}
	showPrograms(p, y, asked, line)
}

func showAnswer(w io.Writer, p func(colour, s string) string, y api.Why, line func(label, format string, args ...any)) {
	h := y.Host
	switch {
	case h != nil:
		fmt.Fprintf(w, "%s  is %s, %s\n", p(bold, y.Asked), h.FQDN, addrs(h.Addrs))
		line("asked as", "%s", formWords[y.Form])
	case y.Never != "":
		fmt.Fprintf(w, "%s  is no name of the mesh, and cannot be: %s\n", p(bold, y.Asked), y.Never)
	case y.Form == "none":
		fmt.Fprintf(w, "%s  is no name of the mesh\n", p(bold, y.Asked))
	case len(y.Services) > 0:
		fmt.Fprintf(w, "%s  stands for those who offer it and are well: nobody\n", p(bold, y.Asked))
	default:
		fmt.Fprintf(w, "%s  is %s: it exists, and has no address\n", p(bold, y.Asked), formWords[y.Form])
	}
	if h != nil {
		owner := h.Owner
		switch {
		case h.Node:
			owner = "itself, a node"
		case len(y.Services) > 0:
			owner = "nobody: it stands for those who offer it and are well"
		}
		line("owner", "%s", owner)
	}
	for i, s := range y.Services {
		label := "offered"
		if i > 0 {
			label = ""
		}
		text := s.Output
		if text != "" {
			text = ": " + text
		}
		line(label, "%s:%d/%s, %s%s", s.Host, s.Port, s.Proto, p(stateColours[s.State], s.State), text)
	}
	switch {
	case y.Record != nil:
		r := y.Record
		line("said by", "its certificate, issued %s, which the mesh's root has signed", stamp(r.Issued))
		line("", "gossip brought it, with the node's record %d of %s", r.Sequence, ago(r.At, y.Now))
	case y.Said != nil:
		s := y.Said
		line("said by", "%s in the store, signed by %s", s.Key, s.Owner)
		line("", "revision %d, sequence %d of %s", s.Modified, s.Sequence, ago(s.At, y.Now))
	}
	if h != nil && !h.Node {
		line("fresh", "%s", freshness(p, y))
	}
	for _, c := range y.Claims {
		if c.LastSeen != nil {
			line("claim", "%s", fmt.Sprintf("%s was claimed by %s when the store began anew, %s, which does not have that yet", c.What, c.Owner, ago(*c.LastSeen, y.Now)))
			continue
		}
		text := fmt.Sprintf("%s is claimed by %s, since revision %d", c.What, c.Owner, c.Modified)
		if c.To != "" {
			text = fmt.Sprintf("%s was given by %s to %s at revision %d, which has not taken it yet", c.What, c.Owner, c.To, c.Modified)
		}
		if c.For != "" && c.Expires != nil {
			text = fmt.Sprintf("%s was promised by %s to %s, which was invited, until %s", c.What, c.Owner, c.For, stamp(*c.Expires))
		}
		if c.Void != "" {
			text += p(yellow, "; that counts for nothing: "+c.Void)
		}
		line("claim", "%s", text)
	}
	for _, n := range y.Sharing {
		line("also", "%s has this address too", n)
	}
	for _, x := range y.Lost {
		line("lost", "%s of %s: %s", x.Name, x.Owner, x.Reason)
	}
	for _, x := range y.Refused {
		at := "the value accepted before stays"
		if x.Revision > 0 {
			at = fmt.Sprintf("revision %d", x.Revision)
		}
		line("refused", "%s (%s): %s", x.Key, at, x.Reason)
	}
	if x := y.Waiting; x != nil {
		line("waiting", "%s", p(yellow, fmt.Sprintf("here it was made %s; %s", addrs(x.Addrs), x.Waiting)))
	}
}

// freshness is how old what the store says may be.
func freshness(p func(colour, s string) string, y api.Why) string {
	s := y.Store
	switch {
	case y.Said != nil && y.Said.LastSeen != nil:
		return p(yellow, "as last seen") + fmt.Sprintf(": the store began anew %s and does not have it until %s publishes it again", ago(*y.Said.LastSeen, y.Now), y.Said.Owner)
	case s.State == "ok":
		return p(green, "as of now") + fmt.Sprintf(": the store is followed, at revision %d", s.Revision)
	case y.Source == "disk":
		return p(yellow, "as it was kept on disk") + fmt.Sprintf(", at revision %d: the store is %s since meshd began, %s", s.Revision, s.State, ago(s.Since, y.Now))
	}
	return p(yellow, "as of "+ago(s.Since, y.Now)) + fmt.Sprintf(", at revision %d: the store is %s: %s", s.Revision, s.State, s.Error)
}

func showPrograms(p func(colour, s string) string, y whyAll, asked bool, line func(label, format string, args ...any)) {
	s := y.Programs
	if len(s.File) > 0 {
		line("programs", "%s", p(yellow, "are told "+strings.Join(s.File, "  ")+" by /etc/hosts, which comes before the mesh"))
	}
	made := fmt.Sprintf("made %s at revision %d", ago(s.Created, y.Now), s.Revision)
	_, err := netip.ParseAddr(y.Asked)
	says := addrs(s.Addrs)
	if err == nil {
		says = s.Name
	}
	switch {
	case s.Error != "":
		line("snapshot", "%s", p(red, s.Error))
		return
	case s.Name == "":
		says = "does not have it"
	default:
		says = "says " + says
	}
	text := says + ", " + made
	switch {
	case !asked:
	case s.agrees(y.Host, err == nil):
		text += p(green, ": as it should")
	case len(s.File) > 0: // a name that /etc/hosts has is left out
	case y.Host != nil && !slices.Contains(y.Host.Names, strings.ToLower(strings.TrimSuffix(y.Asked, "."))) && err != nil:
		text += ": this form could be taken for a name of the public DNS; use " + y.Host.FQDN
	default:
		text += p(yellow, ": it is behind; if it stays so, `mesh doctor` says why")
	}
	line("snapshot", "%s", text)
}

// agrees reports whether programs are told what the daemon knows.
func (s programs) agrees(h *api.Host, byAddr bool) bool {
	if h == nil || s.Name == "" || byAddr {
		return h == nil && s.Name == "" || h != nil && s.Name == h.FQDN
	}
	a, b := slices.Clone(s.Addrs), slices.Clone(h.Addrs)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return s.Name == h.FQDN && slices.Equal(a, b)
}

// stamp is a moment for people.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

// ago is how long ago something was, or when, if that clock is ahead of ours.
func ago(t, now time.Time) string {
	if t.After(now.Add(time.Second)) {
		return stamp(t) + ", which is yet to come by this machine's clock"
	}
	return short(max(now.Sub(t), 0)) + " ago"
}
