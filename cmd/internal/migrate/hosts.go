// SPDX-License-Identifier: MIT

package migrate

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Hosts reads hosts(5). Unlike nss.ParseHosts it goes on after a line that it does not understand.
func Hosts(r io.Reader, file string) (Found, error) {
	text, err := readAll(r, file)
	if err != nil {
		return Found{}, fmt.Errorf("reading hosts: %w", err)
	}
	var out Found
	n := 0
	for line := range strings.Lines(text) {
		n++
		where := fmt.Sprintf("%s:%d", file, n)
		content, _, _ := strings.Cut(line, "#")
		f := strings.Fields(content)
		if len(f) == 0 {
			continue
		}
		leave := func(why string) {
			out.Left = append(out.Left, Line{Where: where, What: clean(strings.Join(f, " ")), Why: why})
		}
		a, err := netip.ParseAddr(f[0])
		switch {
		case err != nil:
			leave("it does not begin with an address")
			continue
		case a.Zone() != "":
			leave("that address means something on its own machine or link only")
			continue
		case len(f) == 1:
			leave("the address has no name")
			continue
		}
		h := Host{Where: where, Addrs: []netip.Addr{a.Unmap()}}
		for _, name := range f[1:] {
			h.Names = append(h.Names, clean(strings.TrimSuffix(strings.ToLower(name), ".")))
		}
		out.Hosts = append(out.Hosts, h)
	}
	return out, nil
}

// clean is text that may be shown on a terminal: of one line, with what can be printed only, not too long.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}
