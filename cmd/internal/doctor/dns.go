// SPDX-License-Identifier: MIT

package doctor

import "fmt"

// DNS says how programs on a system without a name service switch of glibc's come to see mesh names: system is Go's word
// for it.
func DNS(m *Machine, system string) []Finding {
	var f findings
	if m.OnMesh != "" {
		f.problem("mesh", "`mesh init` makes a mesh, `mesh join TOKEN` joins one", "%s", m.OnMesh)
		return f
	}
	remedy := fmt.Sprintf("have questions for %s asked of %s, port 53", m.Zone, m.Addr)
	switch system {
	case "darwin":
		remedy = fmt.Sprintf("put into /etc/resolver/%s the line\n    nameserver %s", m.Zone, m.Addr)
	case "freebsd":
		remedy = fmt.Sprintf("with local_unbound(8), put into /var/unbound/conf.d/mesh.conf\n    server:\n    domain-insecure: %q\n    private-domain: %q\n"+
			"    forward-zone:\n    name: %q\n    forward-addr: %s\nand `service local_unbound restart`", m.Zone, m.Zone, m.Zone, m.Addr)
	case "windows":
		remedy = fmt.Sprintf("in PowerShell, as administrator, `Add-DnsClientNrptRule -Namespace .%s -NameServers %s`", m.Zone, m.Addr)
	}
	f.warning("names", remedy, "here programs see mesh names by DNS only, and whether they do was not looked at: meshd answers at %s, port 53", m.Addr)
	return f
}
