// SPDX-License-Identifier: MIT

// Package migrate reads what people had before they had a mesh, /etc/hosts and tinc, and plans which of it become hosts of
// the mesh. It says of each line what is taken, and of the rest why it is not. It reads what it is given, asks nobody and
// changes nothing.
package migrate

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
)

// Bounds of what is read.
const (
	maxFile  = 1 << 20 // bytes
	maxFiles = 10_000
)

// Found is what a source has.
type Found struct {
	Hosts []Host // that may be hosts of the mesh, in their order
	Left  []Line // that cannot be
}

// Host is a name with addresses as a source has it.
type Host struct {
	Where string   // the first of its lines
	Names []string // in lower case, without a final dot; the first one that will do is the host's, the others are aliases
	Addrs []netip.Addr
}

// Line is what has become of a line.
type Line struct {
	Where  string          `json:"where"` // FILE:LINE
	What   string          `json:"what"`
	Done   Done            `json:"done"`
	Why    string          `json:"why,omitempty"`    // of what is left
	Name   string          `json:"name,omitempty"`   // of the host that it becomes, or is
	Change *api.HostChange `json:"change,omitempty"` // of what is to be taken
}

// Done is what is done with a line.
type Done string

// What is done with lines.
const (
	Take  Done = "take"  // it is to be made a host of the mesh, or part of one
	There Done = "there" // it is one already
	Leave Done = "leave"
)

// Mesh is what a plan depends on.
type Mesh struct {
	Self string // the node on which hosts are added
	api.Hosts
}

// Plan says what is to be done, line by line. Done again after it was carried out, it finds everything there.
func Plan(f Found, m Mesh) []Line {
	out := slices.Clone(f.Left)
	for i := range out {
		out[i].Done = Leave
	}
	// has are the hosts of the mesh by their names and aliases, and after that what this plan makes of them.
	has := map[string]*api.Host{}
	for i := range m.Hosts.Hosts {
		h := m.Hosts.Hosts[i]
		for _, n := range append([]string{h.Name}, h.Aliases...) {
			has[n] = &h
		}
	}
	for _, h := range f.Hosts {
		out = append(out, plan(h, m, has)...)
	}
	slices.SortStableFunc(out, func(a, b Line) int { return compareWhere(a.Where, b.Where) })
	return out
}

func plan(h Host, m Mesh, has map[string]*api.Host) (out []Line) {
	leave := func(what, format string, args ...any) {
		out = append(out, Line{Where: h.Where, What: what, Done: Leave, Why: fmt.Sprintf(format, args...)})
	}
	var addrs []netip.Addr
	for _, a := range h.Addrs {
		switch {
		case a.IsLoopback(), a.IsMulticast(), a.IsUnspecified(), a.IsLinkLocalUnicast():
			leave(fmt.Sprint(a, " ", strings.Join(h.Names, " ")), "that address means something on its own machine or link only")
		case !slices.ContainsFunc(m.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }):
			leave(fmt.Sprint(a, " ", strings.Join(h.Names, " ")), "the address is outside the mesh (%s)", texts(m.Prefixes))
		case !slices.Contains(addrs, a):
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return out
	}
	var names []string
	for _, n := range h.Names {
		short := strings.TrimSuffix(n, "."+m.Domain)
		err := resolver.CheckName(short, m.Self)
		if err != nil && strings.Contains(short, ".") && short == n {
			err = fmt.Errorf("it is outside the zone %s", m.Domain)
		}
		if err != nil {
			leave(n, "%v", err)
		} else if !slices.Contains(names, short) {
			names = append(names, short)
		}
	}
	if len(names) == 0 {
		return out
	}
	name, aliases := names[0], names[1:]
	known := has[name]
	switch {
	case known == nil:
		known = &api.Host{Name: name, Owner: m.Self}
	case known.Node && contains(known.Addrs, addrs):
		out = append(out, Line{Where: h.Where, What: show(name, addrs, nil), Done: There, Name: known.Name})
		return out
	case known.Node:
		leave(show(name, addrs, nil), "%s is a node of the mesh, with %s", name, texts(known.Addrs))
		return out
	case known.Owner != m.Self:
		leave(show(name, addrs, nil), "%s of the mesh has that name, with %s, and belongs to %s", known.Name, texts(known.Addrs), known.Owner)
		return out
	}
	change := api.HostChange{Create: true}
	for _, a := range addrs {
		by := ""
		for _, o := range m.Hosts.Hosts {
			if o.Owner != m.Self && slices.Contains(o.Addrs, a) {
				by = o.Name
			}
		}
		switch {
		case by != "":
			leave(fmt.Sprint(a, " ", name), "the address is %s's", by)
		case !slices.Contains(known.Addrs, a):
			change.Add.Addrs = append(change.Add.Addrs, a)
		}
	}
	for _, n := range aliases {
		switch other := has[n]; {
		case other == known, n == known.Name:
		case other != nil:
			leave(n, "%s of the mesh has that name", other.Name)
		default:
			change.Add.Aliases = append(change.Add.Aliases, n)
		}
	}
	l := Line{Where: h.Where, What: show(known.Name, addrs, aliases), Done: Take, Name: known.Name, Change: &change}
	switch now := append(slices.Clone(known.Addrs), change.Add.Addrs...); {
	case len(now) == 0:
		return out // each address was left
	case len(now) > resolver.MaxAddrs:
		leave(l.What, "a host has at most %d addresses", resolver.MaxAddrs)
		return out
	case len(change.Add.Addrs)+len(change.Add.Aliases) == 0:
		l.Done, l.Change = There, nil
	default:
		next := *known
		next.Addrs, next.Aliases = now, append(slices.Clone(known.Aliases), change.Add.Aliases...)
		for _, n := range append([]string{next.Name}, next.Aliases...) {
			has[n] = &next
		}
	}
	return append(out, l)
}

// show is a host in few words.
func show(name string, addrs []netip.Addr, aliases []string) string {
	s := name + " " + texts(addrs)
	if len(aliases) > 0 {
		s += " (" + strings.Join(aliases, " ") + ")"
	}
	return s
}

func contains(all, some []netip.Addr) bool {
	return !slices.ContainsFunc(some, func(a netip.Addr) bool { return !slices.Contains(all, a) })
}

func texts[T fmt.Stringer](all []T) string {
	var s []string
	for _, x := range all {
		s = append(s, x.String())
	}
	return strings.Join(s, " ")
}

// compareWhere orders FILE:LINE by file, then by line.
func compareWhere(a, b string) int {
	fileA, lineA := cut(a)
	fileB, lineB := cut(b)
	return cmp.Or(strings.Compare(fileA, fileB), cmp.Compare(lineA, lineB))
}

func cut(where string) (file string, line int) {
	i := strings.LastIndexByte(where, ':')
	if i < 0 {
		return where, 0
	}
	fmt.Sscan(where[i+1:], &line)
	return where[:i], line
}

// readAll reads a file that is not larger than any that makes sense.
func readAll(r io.Reader, name string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return string(b), err
}
