// SPDX-License-Identifier: MIT

// Package export writes the mesh's names in the forms that other programs read: /etc/hosts, zone files, ssh_config, Ansible
// and Prometheus. It has pure functions of what the API says.
//
// Names, addresses and groups are of a narrow alphabet (resolver/names.go); metadata is not: any member may write what it
// likes there. So each form says how it keeps metadata from being taken for anything but text.
package export

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"mesh.internal/mesh/cmd/internal/api"
)

// Mesh is what is to be written.
type Mesh struct {
	api.Hosts
	Groups []api.Group
}

// Options are what some of the forms need to know.
type Options struct {
	Reverse netip.Prefix // zone: the reverse zone of this network
	Port    int          // prometheus-sd: the port that is scraped
}

// Formats are the names of all forms, in the order in which people are told of them.
var Formats = []string{"hosts", "json", "zone", "ssh-config", "ansible", "prometheus-sd"}

// Write writes m in a form.
func Write(w io.Writer, format string, m Mesh, o Options) error {
	switch format {
	case "hosts":
		return hosts(w, m)
	case "json":
		return writeJSON(w, m.Hosts)
	case "zone":
		return reverse(w, m, o.Reverse)
	case "ssh-config":
		return sshConfig(w, m)
	case "ansible":
		return writeJSON(w, ansible(m))
	case "prometheus-sd":
		return writeJSON(w, prometheus(m, o.Port))
	}
	return fmt.Errorf("--format %s: want table, %s or %s", format, strings.Join(Formats[:len(Formats)-1], ", "), Formats[len(Formats)-1])
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// hosts writes hosts(5). The host that an address leads back to comes before others that have it, since the first line is
// what reverse look-ups find.
func hosts(w io.Writer, m Mesh) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# names of the mesh at revision %d\n", m.Revision)
	for _, shared := range []bool{false, true} {
		for _, h := range m.Hosts.Hosts {
			for _, a := range h.Addrs {
				if slices.Contains(h.Shared, a) == shared {
					fmt.Fprintln(&b, strings.Join(append([]string{a.String()}, names(h)...), "\t"))
				}
			}
		}
	}
	for _, h := range m.Services {
		for _, a := range h.Addrs {
			fmt.Fprintln(&b, strings.Join(append([]string{a.String()}, names(h)...), "\t"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// names are all forms of a host's name, the canonical one first; a daemon of before did not tell them.
func names(h api.Host) []string {
	if len(h.Names) > 0 {
		return h.Names
	}
	return append([]string{h.FQDN, h.Name}, h.Aliases...)
}

// sshConfig writes ssh_config(5), for an Include. Keys are remembered by the full name, whichever name was typed.
func sshConfig(w io.Writer, m Mesh) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# hosts of the mesh at revision %d\n", m.Revision)
	for _, h := range m.Hosts.Hosts {
		if len(h.Addrs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\nHost %s\n    HostName %s\n    HostKeyAlias %s\n", strings.Join(names(h), " "), h.Addrs[0], h.FQDN)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// groupsOf are the groups that each host is in, by its full name, sorted.
func groupsOf(m Mesh) map[string][]string {
	out := map[string][]string{}
	for _, g := range m.Groups {
		for _, h := range g.Hosts {
			out[h] = append(out[h], g.Name)
		}
	}
	return out
}

// word is a name as a variable of Ansible or a label of Prometheus may be called.
func word(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
}

func texts(as []netip.Addr) []string {
	out := make([]string, 0, len(as))
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}
