// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import "slices"

// Asking says whether programs that speak DNS see mesh names, and how they would. To them it is a warning: those of glibc
// see them by NSS.
func Asking(m *Machine) []Finding {
	var f findings
	if m.OnMesh != "" {
		f.problem("mesh", "`mesh init` makes a mesh, `mesh join TOKEN` joins one", "%s", m.OnMesh)
		return f
	}
	a, p := m.Asking, m.Asking.Plan
	const subject = "dns"
	switch {
	case a.Err != "":
		f.warning(subject, "run this as root, with meshd running", "%s", a.Err)
		return f
	case a.Sees == "":
		how := "/etc/resolv.conf"
		if p.Way != "" {
			how = p.Way
		}
		f.ok(subject, "programs that speak DNS see %s, by %s", a.Name, how)
	case p.Way == "":
		f.warning(subject, "`sudo mesh dns takeover` puts meshd first into /etc/resolv.conf, if nobody else writes that; programs of glibc need none of this",
			"programs that speak DNS do not see %s: %s", a.Name, p.Why)
	case p.Problem != "":
		f.warning(subject, p.Problem, "programs that speak DNS do not see %s, and %s cannot be told", a.Name, p.Way)
	case p.Done:
		f.problem(subject, "is meshd running? `mesh status` says what it has to say of DNS", "%s has been told, but programs that speak DNS do not see %s: %s", p.Way, a.Name, a.Sees)
	default:
		f.warning(subject, "`sudo mesh dns setup`", "programs that speak DNS do not see %s: %s, and has not been told yet", a.Name, p.Why)
	}
	here := len(slices.DeleteFunc(slices.Clone(m.Programs), func(p Program) bool {
		return p.Where != "" || !slices.Contains([]Reason{Static, Musl, OtherLibc, Go}, p.Why)
	}))
	switch {
	case here == 0:
	case a.Sees == "":
		f.ok("programs", "%s that cannot use NSS have DNS", count(here, "program"))
	default:
		f.warning("programs", "as above; `mesh doctor nss` lists them", "%s here can see mesh names by DNS only", count(here, "running program"))
	}
	return f
}
