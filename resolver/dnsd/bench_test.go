// SPDX-License-Identifier: MIT

package dnsd

import (
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkQuery is a query by UDP without the system's part.
func BenchmarkQuery(b *testing.B) {
	var names []string
	for i := range 20_000 {
		names = append(names, fmt.Sprintf("host%d", i))
	}
	v := hosts(1, names...)
	from := netip.MustParseAddrPort("127.0.0.1:5353")
	for _, c := range []struct{ name, query string }{{"address", "host9999.mesh.internal. A"}, {"no such type", "host9999.mesh.internal. AAAA"}, {"nobody", "nobody.mesh.internal. A"}, {"reverse", "1.1.11.10.in-addr.arpa. PTR"}} {
		b.Run(c.name, func(b *testing.B) {
			s := quiet(Config{})
			query, _ := query(c.query).Pack()
			out := make([]byte, 0, udpSize)
			b.ReportAllocs()
			for b.Loop() {
				if s.direct(v, query, out) == nil {
					s.answerUDP(b.Context(), nil, nil, v, query, from, from.Addr())
				}
			}
		})
	}
}
