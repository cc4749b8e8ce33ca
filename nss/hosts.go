// SPDX-License-Identifier: MIT

package nss

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// ParseHosts reads the syntax of /etc/hosts (hosts(5)). Lines with the same canonical name make one host. Errors name
// the line.
func ParseHosts(r io.Reader) ([]Host, error) {
	var out []Host
	at := map[string]int{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<16)
	for line := 1; sc.Scan(); line++ {
		text, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return nil, fmt.Errorf("line %d: %q is not an address", line, f[0])
		}
		if len(f) == 1 {
			return nil, fmt.Errorf("line %d: address %s has no name", line, a)
		}
		for i := range f[1:] {
			f[1+i] = strings.TrimSuffix(strings.ToLower(f[1+i]), ".")
			if err := checkName(f[1+i]); err != nil {
				return nil, fmt.Errorf("line %d: %w", line, err)
			}
		}
		i, ok := at[f[1]]
		if !ok {
			i = len(out)
			at[f[1]] = i
			out = append(out, Host{Name: f[1]})
		}
		out[i].Addrs = append(out[i].Addrs, a)
		out[i].Aliases = append(out[i].Aliases, f[2:]...)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("reading hosts: %w", err)
	}
	return out, nil
}
