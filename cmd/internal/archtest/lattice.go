// SPDX-License-Identifier: MIT

package archtest

import (
	"fmt"
	"strings"
)

// module is the path of this module.
const module = "mesh.internal/mesh"

// lattice says which packages of ours each package may import: "package: allowed… | reason". "x/..." is x and all below
// it, "x(tests)" is x for test files only; "-" is none. Of the lines that match a package the longest holds. Do not change
// this table to make a build pass.
const lattice = `
nss/leaf: -                              | runs in any process without a Go runtime: everything it imports would too
nss/gate: -                              | judges a finished module, so it must not share code with what it judges
nss: nss/leaf                            | the file has one reader, used by the module, the daemon and the CLI
nss/...: nss/...                         | knows neither names' origin nor the network
libnss_mesh: nss/leaf nss(tests)         | is loaded into every program of the machine
libnss_mesh/...: nss/... libnss_mesh/... | tests and measures the module
resolver/store: -                        | a seam: what is behind it and before it must be replaceable
resolver/store/etcd: resolver/store resolver/store/storetest(tests) | one store of several
resolver/project: resolver resolver/store resolver/store/storetest(tests) | writes names for others and never takes them from there
resolver/consul: resolver                | a door to the View, knows nothing of where names come from
resolver/dnsd: resolver                  | a door to the View, knows nothing of where names come from
resolver/health: -                       | runs what this node's administrator says and knows nothing else
resolver: resolver/...                   | knows names and no packets
resolver/...: resolver/...               | knows names and no packets
vpn/identity: -                          | everything trusts it, so it trusts nothing of ours
vpn/vpntest: -                           | is a network, whatever runs on it
vpn/sim: vpn vpn/identity vpn/stream vpn/tcp vpn/vpntest | sees nodes from outside, as their users and the network do
vpn/tcp: vpn/identity(tests)             | makes and takes connections and does not know what is said over them
vpn/tcp/...: -                           | doubles of proxies
vpn/join: vpn/identity vpn/tcp           | is spoken before there is a tunnel
vpn/stream: vpn/identity vpn/tcp vpn/tcp/tcptest(tests) | carries what it does not understand between members
vpn/lan: vpn/identity                    | hears strangers: it suggests, and others decide
vpn/portmap: -                           | hears strangers: it suggests, and others decide
vpn/netcheck: -                          | pure functions
vpn: vpn/...                             | knows packets and no names
vpn/...: vpn/...                         | knows packets and no names
cmd/internal/config: vpn/identity resolver/health | reads files and starts nothing
cmd/internal/api: resolver/health        | is shared by programs that must not share more
cmd/internal/doctor: nss cmd/internal/api cmd/internal/config cmd/internal/splitdns | reads a machine as a program of the system would
cmd/internal/picture: cmd/internal/api    | is a pure function of what the API says
cmd/internal/export: cmd/internal/api    | is pure functions of what the API says
cmd/internal/migrate: resolver cmd/internal/api | plans what others carry out, by the resolver's rules for names
cmd/internal/lab: -                      | makes hosts and does not know what runs in them
cmd/internal/scripts: -                  | starts foreign programs and knows nothing else
cmd/internal/splitdns: cmd/internal/config | changes the machine, so it knows nothing but the machine
cmd/internal/demo: cmd/internal/lab      | uses the product as a user does, through its commands
cmd/internal/netlab: cmd/internal/lab cmd/internal/api cmd/internal/config vpn vpn/identity | gives nodes their certificates, and asks meshd how they are as mesh status does
cmd/internal/storelab: cmd/internal/lab cmd/internal/api cmd/internal/config resolver/store/etcd | has people's commands typed, asks meshd how it is as mesh status does, and compacts the store as a member
cmd/internal/dnsbench: cmd/internal/lab resolver resolver/dnsd | measures the server alone, without the rest of a node
cmd/internal/tour: cmd/internal/lab(tests) | types what the documents show, and knows no more than they say
cmd/internal/archtest: -                 | judges everything
cmd/...: ...                             | the root that introduces the engines to each other
`

// importers says which packages may import a dependency: "dependency: importers… | reason", in the same form. A dependency holds for all below it too; of those that match an import the longest holds.
const importers = `
C: libnss_mesh/...                                                                           | everything else is built without cgo, so it never calls getaddrinfo, which may be ours
go.etcd.io/etcd/client: resolver/store/etcd cmd/meshd-etcd cmd/internal/storebench           | gRPC and its dependencies stay behind the Store seam
go.etcd.io/etcd/api: resolver/store/etcd cmd/meshd-etcd                                      | as the client
go.etcd.io/etcd/server: cmd/meshd-etcd cmd/internal/storebench resolver/store/etcd(tests)    | a panic or a full disk there must not touch tunnels and names
github.com/miekg/dns: resolver/dnsd                                                          | one place that knows the wire format of DNS
golang.zx2c4.com/wireguard: vpn vpn/...                                                      | the tunnel engine is replaceable
github.com/vishvananda/netlink: vpn/netif cmd/internal/lab vpn/bench vpn(tests) | one place that changes the machine's network
golang.org/x/net/proxy: vpn/tcp                                                              | one place that speaks to proxies
golang.org/x/net/http: vpn/tcp                                                               | one place that speaks to proxies
github.com/huin/goupnp: vpn/portmap                                                          | one place that asks gateways
github.com/jackpal/go-nat-pmp: vpn/portmap                                                   | as goupnp
github.com/godbus/dbus: cmd/internal/splitdns                                                | one place that talks to programs of the system
github.com/spf13/cobra: cmd/...                                                              | an engine has no command line
`

// rule is a line of one of the tables.
type rule struct {
	subject string
	allowed []string
	reason  string
}

// parseRules reads a table. It panics on a bad line: the tables are part of this program.
func parseRules(table string) []rule {
	var rules []rule
	for line := range strings.Lines(strings.TrimSpace(table)) {
		head, reason, ok := strings.Cut(line, "|")
		subject, allowed, ok2 := strings.Cut(head, ":")
		if !ok || !ok2 || strings.TrimSpace(reason) == "" || len(strings.Fields(allowed)) == 0 {
			panic(fmt.Sprintf("bad rule %q", line))
		}
		rules = append(rules, rule{strings.TrimSpace(subject), strings.Fields(allowed), strings.TrimSpace(reason)})
	}
	return rules
}

// matches reports whether a package is one of those a pattern stands for.
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == tree || strings.HasPrefix(pkg, tree+"/")
	}
	return pkg == pattern
}

// ruleOf returns the rule of a package; a pattern without "..." is always longer than one with it.
func ruleOf(rules []rule, pkg string) (best rule, found bool) {
	length := func(subject string) int {
		if tree, ok := strings.CutSuffix(subject, "..."); ok {
			return 2 * len(tree)
		}
		return 2*len(subject) + 3
	}
	for _, r := range rules {
		if matches(r.subject, pkg) && (!found || length(r.subject) > length(best.subject)) {
			best, found = r, true
		}
	}
	return best, found
}

// checkImports holds every import of the tree against both tables.
func checkImports(t *tree) []string {
	var found []string
	ours, heavy := parseRules(lattice), parseRules(importers)
	for i := range heavy { // a dependency stands for all below it
		heavy[i].subject += "/..."
	}
	for _, f := range t.files {
		r, ok := ruleOf(ours, f.pkg)
		if !ok {
			found = append(found, fmt.Sprintf("%s: package %s is not in the lattice: add it, with what it may import and why", f.path, f.pkg))
			continue
		}
		for _, imp := range f.imports() {
			switch pkg, isOurs := strings.CutPrefix(imp, module+"/"); {
			case isOurs && !permitted(r.allowed, pkg, f.isTest) && !(f.isTest && isDouble(f.pkg, pkg)):
				found = append(found, fmt.Sprintf("%s: %s may not import %s: it %s", f.path, f.pkg, pkg, r.reason))
			case !isOurs:
				if h, ok := ruleOf(heavy, imp); ok && !permitted(h.allowed, f.pkg, f.isTest) {
					found = append(found, fmt.Sprintf("%s: %s may not import %s (only %s): %s", f.path, f.pkg, imp, strings.Join(h.allowed, ", "), h.reason))
				}
			}
		}
	}
	return found
}

// permitted reports whether a package is among those allowed.
func permitted(allowed []string, pkg string, inTest bool) bool {
	for _, a := range allowed {
		a, testsOnly := strings.CutSuffix(a, "(tests)")
		if matches(a, pkg) && (!testsOnly || inTest) {
			return true
		}
	}
	return false
}

// isDouble reports whether imp holds a test double that tests of pkg may use: a package …test below pkg, or pkg itself,
// which an external test (package x_test) imports.
func isDouble(pkg, imp string) bool {
	return imp == pkg || strings.HasPrefix(imp, pkg+"/") && strings.HasSuffix(imp, "test")
}
