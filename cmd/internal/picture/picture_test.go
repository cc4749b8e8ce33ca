// SPDX-License-Identifier: MIT

package picture

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"mesh.internal/mesh/cmd/internal/api"
)

var people = []string{"spencer", "bkero", "nibz", "sol", "cellar", "phone", "nas", "attic", "office", "van", "pi", "workshop"}

// example is a mesh of n nodes as one of them may see it.
func example(n int) api.Graph {
	r := rand.New(rand.NewPCG(7, uint64(n)))
	g := api.Graph{Mesh: "friends", Self: people[0]}
	for i := range n {
		name := people[i%len(people)]
		if i >= len(people) {
			name += strconv.Itoa(i / len(people))
		}
		x := api.GraphNode{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 11, byte(i / 250), byte(1 + i%250)})}, Reachable: true, RTT: float64(1 + r.IntN(60))}
		switch {
		case i == 0:
			x.RTT = 0
		case i%11 == 10:
			x.Reachable, x.RTT = false, 0
		case i%7 == 3:
			x.Active, x.Way.Via = true, []string{people[1]}
		case i%13 == 5:
			x.Active, x.Way.Stream = true, true
		case i < 5 || i%5 == 1:
			x.Active, x.Way.Endpoint, x.MTU = true, fmt.Sprintf("192.0.2.%d:7655", i), 1376
		default:
			x.RTT = 0
		}
		g.Nodes = append(g.Nodes, x)
	}
	seen := map[[2]int]bool{}
	link := func(i, j int) {
		if i == j || !g.Nodes[i].Reachable || !g.Nodes[j].Reachable || seen[[2]int{min(i, j), max(i, j)}] {
			return
		}
		seen[[2]int{min(i, j), max(i, j)}] = true
		a, b := g.Nodes[i].Name, g.Nodes[j].Name
		g.Links = append(g.Links, api.GraphLink{A: min(a, b), B: max(a, b), Cost: float64(1 + r.IntN(80)), Own: i == 0 || j == 0})
	}
	for i := 1; i < n; i++ {
		if len(g.Nodes[i].Way.Via) > 0 {
			link(i, 1)
		} else if g.Nodes[i].Way.Direct() && i < 8 {
			link(i, 0)
		}
		for range min(3, n/4) {
			if j := r.IntN(n); j != 0 && i != 0 {
				link(i, j)
			}
		}
	}
	return g
}

// TestWrite leaves pictures to look at in the directory that MESH_PICTURES names.
func TestWrite(t *testing.T) {
	dir := os.Getenv("MESH_PICTURES")
	if dir == "" {
		t.Skip("MESH_PICTURES names no directory")
	}
	for _, n := range []int{1, 2, 5, 12, 30, 60, 200} {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("mesh%d.svg", n)), SVG(example(n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// parsed is what a reader finds in a picture.
type parsed struct {
	wide, high float64
	texts      map[string][]box // by class
	marks      []box
}

func parse(t *testing.T, svg []byte) (p parsed) {
	t.Helper()
	p.texts = map[string][]box{}
	d := xml.NewDecoder(bytes.NewReader(svg))
	number := func(e xml.StartElement, name string) float64 {
		for _, a := range e.Attr {
			if a.Name.Local == name {
				f, err := strconv.ParseFloat(a.Value, 64)
				if err != nil {
					t.Fatalf("%s of %s: %v", name, e.Name.Local, err)
				}
				return f
			}
		}
		return 0
	}
	var open xml.StartElement
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return p
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			open = e.Copy()
			switch e.Name.Local {
			case "svg":
				p.wide, p.high = number(e, "width"), number(e, "height")
			case "circle":
				if c := (point{number(e, "cx"), number(e, "cy")}); c != (point{}) { // the legend's are elsewhere
					r := number(e, "r")
					p.marks = append(p.marks, box{c, c}.grown(r))
				}
			}
		case xml.CharData:
			if open.Name.Local != "text" {
				continue
			}
			class := ""
			for _, a := range open.Attr {
				if a.Name.Local == "class" {
					class, _, _ = strings.Cut(a.Value, " ")
				}
			}
			size := map[string]float64{"name": nameSize, "note": noteSize, "cost": noteSize}[class]
			if size == 0 {
				continue
			}
			x, y, half := number(open, "x"), number(open, "y"), width(string(e), size)/2
			p.texts[class] = append(p.texts[class], box{point{x - half, y - size*0.75}, point{x + half, y + size*0.2}})
		case xml.EndElement:
			open = xml.StartElement{}
		}
	}
}

func TestSVG(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 5, 12, 30, 60, 200, maxExact + 50} {
		g := example(n)
		svg := SVG(g)
		p := parse(t, svg)
		if len(p.texts["name"]) != n {
			t.Errorf("%d nodes: %d names", n, len(p.texts["name"]))
		}
		all := p.marks
		for _, class := range []string{"name", "note", "cost"} {
			all = append(all, p.texts[class]...)
		}
		for _, b := range all {
			if b.min.x < 0 || b.min.y < 0 || b.max.x > p.wide || b.max.y > p.high {
				t.Errorf("%d nodes: something at %v is outside %v x %v", n, b, p.wide, p.high)
			}
		}
		if n <= 60 {
			texts := slices.Concat(p.texts["name"], p.texts["note"], p.texts["cost"])
			for i := range texts {
				for j := range i {
					if texts[i].overlaps(texts[j]) {
						t.Errorf("%d nodes: texts overlap at %v and %v", n, texts[i], texts[j])
					}
				}
			}
		}
		if n > 60 {
			continue // the same code, and slow
		}
		// The same mesh told in another order gives the same picture.
		slices.Reverse(g.Nodes)
		slices.Reverse(g.Links)
		if !bytes.Equal(svg, SVG(g)) {
			t.Errorf("%d nodes: another picture of the same mesh", n)
		}
		if len(svg) > 5000+n*1500 {
			t.Errorf("%d nodes: %d bytes", n, len(svg))
		}
	}
}

// TestShapes draws stars, rings, lines, cliques and loners, which are hard to place.
func TestShapes(t *testing.T) {
	shape := func(n int, link func(i, j int) bool) api.Graph {
		g := api.Graph{Mesh: "m", Self: "n00"}
		for i := range n {
			g.Nodes = append(g.Nodes, api.GraphNode{Name: fmt.Sprintf("n%02d", i), Reachable: true})
			for j := range i {
				if link(j, i) {
					g.Links = append(g.Links, api.GraphLink{A: fmt.Sprintf("n%02d", j), B: fmt.Sprintf("n%02d", i), Cost: 1})
				}
			}
		}
		return g
	}
	const n = 16
	for name, link := range map[string]func(i, j int) bool{
		"star":    func(i, j int) bool { return i == 0 },
		"line":    func(i, j int) bool { return j == i+1 },
		"ring":    func(i, j int) bool { return j == i+1 || i == 0 && j == n-1 },
		"clique":  func(i, j int) bool { return true },
		"loners":  func(i, j int) bool { return false },
		"pairs":   func(i, j int) bool { return i%2 == 0 && j == i+1 },
		"two hub": func(i, j int) bool { return i < 2 },
	} {
		p := parse(t, SVG(shape(n, link)))
		for i := range p.marks {
			for j := range i {
				if a, b := p.marks[i], p.marks[j]; a.center() != b.center() && a.overlaps(b) {
					t.Errorf("%s: nodes at %v and %v", name, a.center(), b.center())
				}
			}
		}
		if r := p.wide / p.high; r < 0.5 || r > 8 {
			t.Errorf("%s: %v x %v", name, p.wide, p.high)
		}
	}
}

// TestHostile draws names that no node can have, and links that lead nowhere.
func TestHostile(t *testing.T) {
	g := api.Graph{Mesh: "<m>", Self: "a&b", Nodes: []api.GraphNode{{Name: "a&b"}, {Name: `"><script>`}, {Name: "a&b"}, {Name: "\x00\xff"}, {Name: strings.Repeat("long", 100)}},
		Links: []api.GraphLink{{A: "a&b", B: "a&b"}, {A: "x", B: "y"}, {A: `"><script>`, B: "a&b", Cost: -1}, {A: "a&b", B: `"><script>`}}}
	svg := SVG(g)
	parse(t, svg)
	if bytes.Contains(svg, []byte("<script")) {
		t.Error("a name became an element")
	}
	if dot := string(DOT(g)); !strings.Contains(dot, `"\"><script>"`) {
		t.Errorf("DOT: %s", dot)
	}
}

func TestDOT(t *testing.T) {
	g := api.Graph{Self: "bkero", Nodes: []api.GraphNode{
		{Name: "bkero", Reachable: true},
		{Name: "cellar", Reachable: true},
		{Name: "gone"},
		{Name: "nibz", Reachable: true, Way: api.Way{Via: []string{"spencer"}}, MTU: 1300},
		{Name: "spencer", Reachable: true, Way: api.Way{Endpoint: "192.0.2.1:7655"}, MTU: 1376},
	}, Links: []api.GraphLink{{A: "bkero", B: "spencer", Cost: 0.4, Own: true}, {A: "nibz", B: "spencer", Cost: 32}}}
	const want = `graph {
 "bkero" [label = "bkero", color = "green", style = "filled"];
 "cellar" [label = "cellar", color = "black"];
 "gone" [label = "gone", color = "red"];
 "nibz" [label = "nibz", color = "orange"];
 "spencer" [label = "spencer", color = "green"];
 "spencer" -- "bkero" [w = 65537.000000, weight = 65537.000000];
 "spencer" -- "nibz" [w = 2049.000000, weight = 2049.000000];
}
`
	if got := string(DOT(g)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
