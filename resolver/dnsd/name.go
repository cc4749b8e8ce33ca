// SPDX-License-Identifier: MIT

package dnsd

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// labels cuts a name in presentation form (RFC 1035 section 5.1) into its labels as they are on the wire, in lower case: an
// instance of DNS-SD may have dots in its label, and any bytes.
func labels(name string) []string {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return nil
	}
	if !strings.Contains(name, `\`) {
		return strings.Split(strings.ToLower(name), ".")
	}
	var out []string
	var l []byte
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			out, l = append(out, lower(l)), nil
		case c == '\\' && i+3 < len(name) && digit(name[i+1]) && digit(name[i+2]) && digit(name[i+3]):
			l = append(l, (name[i+1]-'0')*100+(name[i+2]-'0')*10+name[i+3]-'0')
			i += 3
		case c == '\\' && i+1 < len(name):
			i++
			l = append(l, name[i])
		default:
			l = append(l, c)
		}
	}
	return append(out, lower(l))
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// lower is a label in lower case: of ASCII letters only (RFC 4343 section 3).
func lower(l []byte) string {
	for i, c := range l {
		if 'A' <= c && c <= 'Z' {
			l[i] = c + 'a' - 'A'
		}
	}
	return string(l)
}

// label is a label's presentation form.
func label(l string) string {
	var b strings.Builder
	for _, c := range []byte(l) {
		if c == '-' || c == '_' || digit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\%03d`, c)
		}
	}
	return b.String()
}

// text is a character string in the form in which package dns wants it.
func text(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// minimal cuts off what need not be in an answer that is too long, before it is truncated: RFC 2181 section 9 wants the TC bit
// only for what is asked for.
func minimal(m *dns.Msg, size int) {
	if m.Compress = false; m.Len() <= size { // as most are, and counting is cheaper than compressing
		m.Compress = true
		return
	}
	if m.Compress = true; m.Len() > size {
		opt := m.IsEdns0()
		m.Extra = nil
		if opt != nil {
			m.Extra = []dns.RR{opt}
		}
	}
	m.Truncate(size)
	m.Compress = true
}
