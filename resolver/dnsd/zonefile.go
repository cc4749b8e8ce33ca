// SPDX-License-Identifier: MIT

package dnsd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mesh.internal/mesh/resolver"
)

// ZoneFile is the mesh's own zone as a zone file (RFC 1035 section 5): what a zone transfer has, sorted. ttl is that of answers
// whose service says nothing else, DefaultTTL if 0.
func ZoneFile(v *resolver.View, ttl time.Duration) string {
	s := Server{cfg: Config{TTL: ttl}}
	var lines []string
	for rr := range records(v, zone{name: v.Zone}, s.ttl()) {
		lines = append(lines, rr.String())
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	return fmt.Sprintf("; the mesh at revision %d\n%s\n%s\n", v.Revision, soa(v, v.Zone, s.ttl()), strings.Join(lines, "\n"))
}
