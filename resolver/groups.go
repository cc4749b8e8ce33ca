// SPDX-License-Identifier: MIT

package resolver

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Group is a set of hosts under one name, for programs that ask for netgroups (NFS exports, sshd). Names of groups are
// a space of their own beside those of hosts, and DNS knows nothing of them.
type Group struct {
	Name    string   `json:"name"`    // by the rules of hosts' names: "friends", "servers.bkero"
	Owner   string   `json:"owner"`   // the node that says so
	Members []string `json:"members"` // as written: hosts, relative to the zone or by an alias, and other groups as "@name"

	Hosts   []*Host  `json:"-"` // in a View: the members, those of groups in it too, each once, sorted by name
	Unknown []string `json:"-"` // in a View: members, of groups in it too, that nobody has now
}

// maxWork bounds the members of all groups of one owner, those of groups in them counted each time and a host as often
// as it has names, so that nobody makes the others work or write without end.
const maxWork = 1 << 16

// admitGroups takes those groups into the View that may enter it, and writes their members out.
func (v *View) admitGroups(groups []StaticGroup, refuse func(name, owner string, err error)) {
	groups = slices.Clone(groups)
	slices.SortFunc(groups, func(a, b StaticGroup) int {
		return cmp.Or(a.Standing.compare(b.Standing), strings.Compare(a.Owner, b.Owner), strings.Compare(a.Name, b.Name))
	})
	byName := map[string]*Group{}
	for i := range groups {
		g := &groups[i].Group
		err := CheckGroup(*g)
		if other := byName[g.Name]; err == nil && other != nil {
			err = fmt.Errorf("the name is %w: it belongs to %s", ErrTaken, other.Owner)
		}
		if err != nil {
			refuse("@"+g.Name, g.Owner, err)
			continue
		}
		byName[g.Name] = g
		v.groups = append(v.groups, g)
	}
	for again := true; again; { // once more where a group was refused, without it
		again = false
		work := map[string]int{} // by owner
		v.groups = slices.DeleteFunc(v.groups, func(g *Group) bool {
			work[g.Owner] += v.writeOut(g, byName, maxWork-work[g.Owner])
			if work[g.Owner] <= maxWork {
				return false
			}
			refuse("@"+g.Name, g.Owner, fmt.Errorf("the groups of %s, with the groups in them written out, have over %d members", g.Owner, maxWork))
			delete(byName, g.Name)
			again = true
			return true
		})
	}
	slices.SortFunc(v.groups, func(a, b *Group) int { return strings.Compare(a.Name, b.Name) })
}

// writeOut sets a group's Hosts and Unknown. A group that is reached again adds nothing, so cycles end. It stops when it
// has done more work than is allowed, and returns how much it has done.
func (v *View) writeOut(g *Group, byName map[string]*Group, allowed int) (work int) {
	hosts, unknown := map[*Host]bool{}, map[string]bool{}
	reached := map[*Group]bool{g: true}
	for todo := []*Group{g}; len(todo) > 0; todo = todo[1:] {
		for _, m := range todo[0].Members {
			if work++; work > allowed {
				return work
			}
			name, isGroup := strings.CutPrefix(m, "@")
			h, in := v.byName.get(name), byName[name]
			switch {
			case isGroup && in != nil:
				if !reached[in] {
					reached[in] = true
					todo = append(todo, in)
				}
			case !isGroup && h != nil:
				if !hosts[h] {
					hosts[h] = true
					work += len(h.Aliases)
				}
			default:
				unknown[m] = true
			}
		}
	}
	g.Hosts, g.Unknown = make([]*Host, 0, len(hosts)), nil
	for h := range hosts {
		g.Hosts = append(g.Hosts, h)
	}
	slices.SortFunc(g.Hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	for m := range unknown {
		g.Unknown = append(g.Unknown, m)
	}
	slices.Sort(g.Unknown)
	return work
}

// Groups returns every group, sorted by name.
func (v *View) Groups() []*Group { return v.groups }

// Group finds a group by its name, in any case, with or without "@"; nil if there is none.
func (v *View) Group(name string) *Group {
	name = strings.ToLower(strings.TrimPrefix(name, "@"))
	i, ok := slices.BinarySearchFunc(v.groups, name, func(g *Group, n string) int { return strings.Compare(g.Name, n) })
	if !ok {
		return nil
	}
	return v.groups[i]
}
