// SPDX-License-Identifier: MIT

//go:build linux

package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Database is a line of /etc/nsswitch.conf (nsswitch.conf(5)), as glibc reads it.
type Database struct {
	Line     int // in the file, from 1
	Text     string
	Services []Service
	Err      string // where glibc stops reading the line: what was read before holds
	Earlier  []int  // lines for the same database before, which count for nothing
}

// Service is one source of a database, with what is to be done after it.
type Service struct {
	Name    string
	Actions []Action // in the order of the line: later ones override
}

// Action is [STATUS=action]; Not is "!", which means every other status.
type Action struct {
	Not    bool
	Status string // SUCCESS, NOTFOUND, UNAVAIL or TRYAGAIN
	Do     string // return, continue or merge
}

var (
	statuses = []string{"SUCCESS", "NOTFOUND", "UNAVAIL", "TRYAGAIN"}
	actions  = []string{"return", "continue", "merge"}
)

// after is what is done when the service says status.
func (s Service) after(status string) string {
	do := "continue"
	if status == "SUCCESS" {
		do = "return"
	}
	for _, a := range s.Actions {
		if (a.Status == status) != a.Not {
			do = a.Do
		}
	}
	return do
}

func (s Service) String() string {
	var b strings.Builder
	b.WriteString(s.Name)
	for i, a := range s.Actions {
		sep := " "
		if i == 0 {
			sep = " ["
		}
		not := ""
		if a.Not {
			not = "!"
		}
		b.WriteString(sep + not + a.Status + "=" + a.Do)
	}
	if len(s.Actions) > 0 {
		b.WriteByte(']')
	}
	return b.String()
}

func (d *Database) String() string {
	var s []string
	for _, x := range d.Services {
		s = append(s, x.String())
	}
	return strings.Join(s, " ")
}

// ParseNsswitch reads nsswitch.conf. Of several lines for one database the last one holds.
func ParseNsswitch(text string) map[string]*Database {
	out := map[string]*Database{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		name, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
			continue
		}
		d := parseDatabase(rest)
		d.Line, d.Text = n, strings.TrimSpace(line)
		if old := out[name]; old != nil {
			d.Earlier = append(old.Earlier, old.Line)
		}
		out[name] = d
	}
	return out
}

func parseDatabase(rest string) *Database {
	d := &Database{}
	for {
		rest = strings.TrimLeft(rest, " \t\r\n\v\f")
		if rest == "" {
			return d
		}
		if rest[0] != '[' {
			i := strings.IndexAny(rest, " \t\r\n\v\f[")
			if i < 0 {
				i = len(rest)
			}
			d.Services = append(d.Services, Service{Name: rest[:i]})
			rest = rest[i:]
			continue
		}
		body, after, closed := strings.Cut(rest[1:], "]")
		if len(d.Services) == 0 {
			d.Err = "it begins with an action in brackets, which belongs behind a source"
			return d
		}
		if !closed {
			d.Err = fmt.Sprintf("the bracket in %q is not closed", rest)
			return d
		}
		rest = after
		// "! STATUS = action" may have spaces in it.
		body = strings.NewReplacer("=", " = ", "!", " ! ").Replace(body)
		f := strings.Fields(body)
		s := &d.Services[len(d.Services)-1]
		for len(f) > 0 {
			var a Action
			if f[0] == "!" {
				a.Not, f = true, f[1:]
			}
			if len(f) < 3 || f[1] != "=" {
				d.Err = fmt.Sprintf("[%s] is not [STATUS=action]", strings.Join(strings.Fields(body), " "))
				return d
			}
			a.Status, a.Do = strings.ToUpper(f[0]), strings.ToLower(f[2])
			if !slices.Contains(statuses, a.Status) || !slices.Contains(actions, a.Do) {
				d.Err = fmt.Sprintf("%s=%s is unknown: a status is one of %s, an action one of %s", f[0], f[2], strings.Join(statuses, " "), strings.Join(actions, " "))
				return d
			}
			s.Actions = append(s.Actions, a)
			f = f[3:]
		}
	}
}

// moduleName is our service's name in nsswitch.conf.
const moduleName = "mesh"

// proposed is the line as it should be: files, mesh, then the rest in its order. What is done after files and mesh is
// the default, which no other source needs differently.
func (d *Database) proposed() string {
	next := Database{Services: []Service{{Name: "files"}, {Name: moduleName}}}
	if d != nil {
		for _, s := range d.Services {
			if s.Name != "files" && s.Name != moduleName {
				next.Services = append(next.Services, s)
			}
		}
	}
	return next.String()
}

// describe says in a few words what a source of the hosts line is.
func describe(service, zone string) string {
	switch strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(service, "_minimal"), "4"), "6") {
	case "files":
		return "/etc/hosts; what it has, wins"
	case "mesh":
		return "the mesh's names, from the snapshot, without asking anybody"
	case "dns":
		return "the DNS servers of /etc/resolv.conf"
	case "resolve":
		return "systemd-resolved, which asks DNS"
	case "mdns":
		if strings.HasSuffix(service, "_minimal") {
			return "names below .local, by multicast"
		}
		return "names by multicast"
	case "myhostname":
		return "this machine's own name, localhost and _gateway"
	case "mymachines":
		return "containers of systemd-machined"
	case "libvirt", "libvirt_guest":
		return "guests of libvirt"
	case "wins":
		return "Windows names, by broadcast"
	case "ldap", "sss", "nis", "nisplus", "winbind":
		return "a directory in the network"
	case "db", "compat":
		return "a local database"
	}
	return "another module"
}
