// SPDX-License-Identifier: MIT

package daemon

import (
	"strings"
	"testing"

	"mesh.internal/mesh/vpn/join"
)

func TestUnreachable(t *testing.T) {
	own, member := []string{"192.168.1.2:7655"}, []string{"203.0.113.7:7655"}
	for name, c := range map[string]struct {
		token         join.Token
		public        bool
		warning, fail bool
	}{
		"public":              {join.Token{Endpoints: own}, true, false, false},
		"behind NAT":          {join.Token{Endpoints: own, Via: member}, false, false, false},
		"behind NAT, alone":   {join.Token{Endpoints: own}, false, true, false},
		"offline":             {join.Token{}, false, false, true},
		"on the overlay only": {join.Token{Via: member}, false, false, false},
	} {
		warning, err := unreachable(c.token, c.public)
		if (warning != "") != c.warning || (err != nil) != c.fail || !strings.Contains(warning, "public = ") && c.warning {
			t.Errorf("%s: %q, %v", name, warning, err)
		}
	}
}
