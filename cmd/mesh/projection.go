// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"

	"mesh.internal/mesh/cmd/internal/api"
)

// showProjection is a line of `mesh status`.
func showProjection(w io.Writer, p func(colour, s string) string, x api.Projection) {
	switch x.State {
	case "writing":
		fmt.Fprintf(w, "project    %s, %s, %d keys\n", x.Layout, p(green, "written by this node"), x.Keys)
	case "waiting":
		fmt.Fprintf(w, "project    %s, another node writes it\n", x.Layout)
	default:
		fmt.Fprintf(w, "project    %s, %s: %s\n", x.Layout, p(red, "not written"), x.Error)
	}
}
