// SPDX-License-Identifier: MIT

package picture

import (
	"bytes"
	"fmt"
	"strings"

	"mesh.internal/mesh/cmd/internal/api"
)

// DOT writes a mesh for graphviz as tinc 1.1's `tinc dump graph` does, so that scripts made for that go on: this node is
// green and filled; of the others, those not reachable are red, those reached through others orange, those with a measured
// direct way green, the rest black. A link's weight is 1 + 65536 / milliseconds.
func DOT(g api.Graph) []byte {
	var b bytes.Buffer
	b.WriteString("graph {\n")
	for _, n := range g.Nodes {
		colour, style := "black", ""
		switch {
		case n.Name == g.Self:
			colour, style = "green", `, style = "filled"`
		case !n.Reachable:
			colour = "red"
		case len(n.Way.Via) > 0:
			colour = "orange"
		case n.Way.Direct() && n.MTU > 0:
			colour = "green"
		}
		fmt.Fprintf(&b, " %s [label = %s, color = %q%s];\n", dotName(n.Name), dotName(n.Name), colour, style)
	}
	for _, l := range g.Links {
		a, z := max(l.A, l.B), min(l.A, l.B)
		w := 1 + 65536/max(l.Cost, 1)
		fmt.Fprintf(&b, " %s -- %s [w = %f, weight = %f];\n", dotName(a), dotName(z), w, w)
	}
	b.WriteString("}\n")
	return b.Bytes()
}

// dotName is a quoted identifier.
func dotName(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
