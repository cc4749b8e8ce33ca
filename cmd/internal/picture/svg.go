// SPDX-License-Identifier: MIT

// Package picture draws a mesh: as SVG, without any other program, and in the DOT language for graphviz. Both are pure
// functions of what the API says of the mesh: the same mesh gives the same picture.
package picture

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"

	"mesh.internal/mesh/cmd/internal/api"
)

// Sizes in pixels; a letter's width is that of a wide font's average.
const (
	radius    = 11.0
	nameSize  = 14.0
	noteSize  = 11.5
	letter    = 0.6 // of the size
	margin    = 32.0
	titleHigh = 62.0
	leastWide = 560.0
	longest   = 24 // letters of a name
)

// Kinds of nodes. They differ in shape, not in colour alone.
const (
	self   = "self"
	direct = "direct"
	relay  = "relay"
	stream = "stream"
	idle   = "idle"
	gone   = "gone"
)

// style has both modes; every colour has a contrast of at least 3 : 1 with the ground, text 4.5 : 1.
const style = `
.mesh{--ground:#fdfdfc;--text:#1c2024;--note:#5f666d;--line:#a3abb2;--self:#0b62c4;--direct:#1f7a3d;--relay:#b35309;--stream:#7a3fb8;--idle:#6b737b;--gone:#c4261d;font-family:system-ui,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans","DejaVu Sans",Arial,sans-serif}
@media(prefers-color-scheme:dark){.mesh{--ground:#14171a;--text:#eceef0;--note:#a3abb3;--line:#59626a;--self:#6cb0ff;--direct:#55c57c;--relay:#f29a4a;--stream:#c59bf5;--idle:#929ba4;--gone:#ff7b72}}
.mesh .ground{fill:var(--ground)}
.mesh text{fill:var(--text);font-size:14px;text-anchor:middle}
.mesh .name,.mesh .cost,.mesh .note{paint-order:stroke;stroke:var(--ground);stroke-width:6px;stroke-linejoin:round}
.mesh .name{font-weight:500}
.mesh .cost,.mesh .note,.mesh .key{font-size:11.5px;fill:var(--note)}
.mesh .title{font-size:20px;font-weight:600;text-anchor:start}
.mesh .under{font-size:13px;fill:var(--note);text-anchor:start}
.mesh .key{text-anchor:start;font-size:12px}
.mesh .link{stroke:var(--line);stroke-width:1.4;fill:none}
.mesh .own{stroke:var(--direct);stroke-width:2.8}
.mesh .through{stroke:var(--relay);stroke-width:1.8;stroke-dasharray:2 5;stroke-linecap:round;fill:none}
.mesh .self{fill:var(--self);stroke:var(--self)}
.mesh .direct{fill:var(--direct);stroke:var(--direct)}
.mesh .relay{fill:var(--relay);stroke:var(--relay)}
.mesh .stream{fill:var(--stream);stroke:var(--stream)}
.mesh .idle{fill:var(--idle);stroke:var(--idle)}
.mesh .gone{fill:var(--gone);stroke:var(--gone)}
.mesh .open{fill:var(--ground);stroke-width:2.4}
.mesh .bare{fill:none;stroke-width:2.4}
.mesh .faint{fill:var(--note);font-weight:400}
`

// drawn is a node with what is to be drawn of it.
type drawn struct {
	api.GraphNode
	kind  string
	label string
	notes []string // below the label
	at    point
}

func kindOf(n api.GraphNode, me string) string {
	switch {
	case n.Name == me:
		return self
	case !n.Reachable:
		return gone
	case n.Way.Direct():
		return direct
	case len(n.Way.Via) > 0:
		return relay
	case n.Way.Stream:
		return stream
	}
	return idle
}

// width is that of a text, a little more rather than less.
func width(s string, size float64) float64 { return float64(len([]rune(s))) * size * letter }

// box is what a node takes up around its place: its mark, and its label below.
func (n drawn) box() box {
	w := max(width(n.label, nameSize), 2*radius+8)
	for _, s := range n.notes {
		w = max(w, width(s, noteSize))
	}
	return box{point{-w/2 - 5, -radius - 8}, point{w/2 + 5, radius + 26 + 14*float64(len(n.notes))}}
}

func shorten(s string) string {
	if r := []rune(s); len(r) > longest {
		return string(r[:longest-1]) + "…"
	}
	return s
}

// SVG draws a mesh. The picture has colours for light and dark, its own legend, and texts that a screen reader or a
// pointer over a node or a link finds.
func SVG(g api.Graph) []byte {
	nodes, links, neighbours := prepare(g)
	names, boxes := make([]string, len(nodes)), make([]box, len(nodes))
	for i, n := range nodes {
		names[i], boxes[i] = n.Name, n.box()
	}
	all := box{max: point{1, 1}}
	for i, p := range layout(names, neighbours, boxes) {
		nodes[i].at = p
		if b := boxes[i].moved(p); i == 0 {
			all = b
		} else {
			all = all.with(b)
		}
	}
	keys := legend(nodes, links)
	wide := max(all.max.x-all.min.x, leastWide, keys.widest())
	keyRows := keys.wrap(wide)
	w := wide + 2*margin
	h := titleHigh + all.max.y - all.min.y + 2*margin + 26*float64(len(keyRows))
	shift := point{margin + (wide-(all.max.x-all.min.x))/2 - all.min.x, titleHigh + margin/2 - all.min.y}
	for i := range nodes {
		nodes[i].at = nodes[i].at.add(shift)
	}

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" class="mesh" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`+"\n", math.Ceil(w), math.Ceil(h), math.Ceil(w), math.Ceil(h))
	about := fmt.Sprintf("%s, %s, as %s sees it", count(len(nodes), "node"), count(len(links), "direct link"), g.Self)
	fmt.Fprintf(&b, "<title>the mesh %s: %s</title>\n<style>%s</style>\n<rect class=\"ground\" width=\"100%%\" height=\"100%%\"/>\n", text(g.Mesh), text(about), style)
	fmt.Fprintf(&b, `<text class="title" x="%g" y="40">%s</text><text class="under" x="%g" y="60">%s</text>`+"\n", margin, text(g.Mesh), margin, text(about))
	drawLinks(&b, nodes, links)
	for _, n := range nodes {
		n.draw(&b)
	}
	drawCosts(&b, nodes, links)
	for i, row := range keyRows {
		row.draw(&b, margin, h-margin/2-26*float64(len(keyRows)-i)+8, keys.widest())
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// line is a link between two nodes, by number.
type line struct {
	a, b int
	cost float64
	own  bool
}

// prepare sorts what is drawn, so that the order in which it is told does not matter, and takes out what is there twice.
func prepare(g api.Graph) (nodes []drawn, links []line, neighbours [][]int) {
	index := map[string]int{}
	all := slices.Clone(g.Nodes)
	slices.SortFunc(all, func(a, b api.GraphNode) int { return cmp.Compare(a.Name, b.Name) })
	for _, n := range slices.CompactFunc(all, func(a, b api.GraphNode) bool { return a.Name == b.Name }) {
		d := drawn{GraphNode: n, kind: kindOf(n, g.Self), label: shorten(n.Name)}
		switch d.kind {
		case self:
			d.notes = []string{"this node"}
		case relay:
			d.notes = []string{shorten("via " + strings.Join(n.Way.Via, ", "))}
			if n.RTT > 0 {
				d.notes = append(d.notes, millis(n.RTT))
			}
		case stream:
			d.notes = []string{"TLS, " + millis(n.RTT)}
		}
		index[n.Name] = len(nodes)
		nodes = append(nodes, d)
	}
	neighbours = make([][]int, len(nodes))
	told := slices.Clone(g.Links)
	slices.SortFunc(told, func(a, b api.GraphLink) int { return cmp.Or(cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B)) })
	for _, l := range told {
		a, ok1 := index[l.A]
		b, ok2 := index[l.B]
		if !ok1 || !ok2 || a == b || slices.Contains(neighbours[a], b) {
			continue
		}
		neighbours[a], neighbours[b] = append(neighbours[a], b), append(neighbours[b], a)
		links = append(links, line{a, b, l.Cost, l.Own})
	}
	return nodes, links, neighbours
}

func drawLinks(b *bytes.Buffer, nodes []drawn, links []line) {
	b.WriteString("<g>\n")
	me := slices.IndexFunc(nodes, func(n drawn) bool { return n.kind == self })
	for _, n := range nodes {
		if me < 0 || n.kind != relay {
			continue
		}
		from, to := nodes[me].at, n.at
		d := to.sub(from)
		c := middle(from, to).add(point{-d.y, d.x}.times(0.16))
		fmt.Fprintf(b, `<path class="through" d="M%.1f %.1fQ%.1f %.1f %.1f %.1f"><title>%s to %s: %s</title></path>`+"\n", from.x, from.y, c.x, c.y, to.x, to.y,
			text(nodes[me].Name), text(n.Name), text(n.Way.String()))
	}
	for _, own := range []bool{false, true} {
		for _, l := range links {
			if l.own != own {
				continue
			}
			p, q, class := nodes[l.a].at, nodes[l.b].at, "link"
			if own {
				class = "link own"
			}
			fmt.Fprintf(b, `<path class="%s" d="M%.1f %.1fL%.1f %.1f"><title>%s to %s: %s</title></path>`+"\n", class, p.x, p.y, q.x, q.y, text(nodes[l.a].Name), text(nodes[l.b].Name), millis(l.cost))
		}
	}
	b.WriteString("</g>\n")
}

// drawCosts writes round trips on links where there is room: on this node's first, then on the longest.
func drawCosts(b *bytes.Buffer, nodes []drawn, links []line) {
	links = slices.Clone(links)
	long := func(l line) float64 { return nodes[l.a].at.sub(nodes[l.b].at).norm() }
	slices.SortStableFunc(links, func(x, y line) int {
		if x.own != y.own {
			if x.own {
				return -1
			}
			return 1
		}
		return cmp.Compare(math.Round(long(y)), math.Round(long(x)))
	})
	var taken []box
	for _, n := range nodes {
		taken = append(taken, n.box().moved(n.at))
	}
	for _, l := range links {
		if !l.own && len(nodes) > 30 {
			break
		}
		s := millis(l.cost)
		half := point{width(s, noteSize)/2 + 2, 8}
		for _, f := range []float64{0.5, 0.42, 0.58, 0.34, 0.66} {
			p := nodes[l.a].at.times(1 - f).add(nodes[l.b].at.times(f))
			at := box{p.sub(half), p.add(half)}
			if slices.ContainsFunc(taken, at.overlaps) {
				continue
			}
			taken = append(taken, at)
			fmt.Fprintf(b, `<text class="cost" x="%.1f" y="%.1f">%s</text>`+"\n", p.x, p.y+4, s)
			break
		}
	}
}

func (n drawn) draw(b *bytes.Buffer) {
	about := []string{n.Name}
	for _, a := range n.Addrs {
		about = append(about, a.String())
	}
	about = append(about, phrases[n.kind])
	if n.kind == direct || n.kind == relay {
		about[len(about)-1] = n.Way.String()
	}
	if n.RTT > 0 {
		about = append(about, "round trip "+millis(n.RTT))
	}
	if n.MTU > 0 {
		about = append(about, fmt.Sprintf("MTU %d", n.MTU))
	}
	if n.NoRelay {
		about = append(about, "carries nothing for others")
	}
	fmt.Fprintf(b, `<g><title>%s</title>`, text(strings.Join(about, "\n")))
	mark(b, n.kind, n.at)
	class := "name"
	if n.kind == idle || n.kind == gone {
		class = "name faint"
	}
	fmt.Fprintf(b, `<text class="%s" x="%.1f" y="%.1f">%s</text>`, class, n.at.x, n.at.y+radius+18, text(n.label))
	for i, s := range n.notes {
		fmt.Fprintf(b, `<text class="note" x="%.1f" y="%.1f">%s</text>`, n.at.x, n.at.y+radius+33+14*float64(i), text(s))
	}
	b.WriteString("</g>\n")
}

// mark draws the shape of a kind.
func mark(b *bytes.Buffer, kind string, p point) {
	circle := func(class string, r float64) {
		fmt.Fprintf(b, `<circle class="%s %s" cx="%.1f" cy="%.1f" r="%g"/>`, kind, class, p.x, p.y, r)
	}
	switch kind {
	case self:
		circle("open", radius+4)
		circle("full", radius-1)
	case direct:
		circle("full", radius)
	case relay:
		circle("open", radius)
		circle("full", radius/3)
	case stream:
		fmt.Fprintf(b, `<rect class="%s open" x="%.1f" y="%.1f" width="%g" height="%g" rx="4"/>`, kind, p.x-radius, p.y-radius, 2*radius, 2*radius)
		circle("full", radius/3)
	case idle:
		circle("open", radius-1)
	case gone:
		circle("open", radius-1)
		r := radius / 2.6
		fmt.Fprintf(b, `<path class="%s bare" d="M%.1f %.1fl%.1f %.1fm0 %.1fl%.1f %.1f"/>`, kind, p.x-r, p.y-r, 2*r, 2*r, -2*r, -2*r, 2*r)
	}
}

// phrases are what kinds mean.
var phrases = map[string]string{
	self:   "this node",
	direct: "reached directly",
	relay:  "reached through others",
	stream: "reached over TLS",
	idle:   "no tunnel from here now",
	gone:   "not reached",
}

// key is an entry of the legend.
type key struct{ kind, text string }

func (k key) width() float64 { return 42 + width(k.text, 12) }

type keys []key

// legend explains what is in the picture, and nothing else.
func legend(nodes []drawn, links []line) (out keys) {
	for _, kind := range []string{direct, relay, stream, idle, gone} {
		if slices.ContainsFunc(nodes, func(n drawn) bool { return n.kind == kind }) {
			out = append(out, key{kind, phrases[kind]})
		}
	}
	if slices.ContainsFunc(links, func(l line) bool { return l.own }) {
		out = append(out, key{"link own", "direct link of this node"})
	}
	if slices.ContainsFunc(links, func(l line) bool { return !l.own }) {
		out = append(out, key{"link", "direct link of others"})
	}
	if slices.ContainsFunc(nodes, func(n drawn) bool { return n.kind == relay }) {
		out = append(out, key{"through", "tunnel through others"})
	}
	return out
}

func (k keys) widest() (w float64) {
	for _, x := range k {
		w = max(w, x.width())
	}
	return w
}

// wrap breaks the legend into rows of equal columns.
func (k keys) wrap(wide float64) (rows []keys) {
	for row := range slices.Chunk(k, max(int(wide/k.widest()), 1)) {
		rows = append(rows, row)
	}
	return rows
}

func (k keys) draw(b *bytes.Buffer, x, y, column float64) {
	for _, e := range k {
		if strings.HasPrefix(e.kind, "link") || e.kind == "through" {
			fmt.Fprintf(b, `<path class="%s" d="M%.1f %.1fh24"/>`, e.kind, x, y)
		} else {
			fmt.Fprintf(b, `<g transform="translate(%.1f %.1f) scale(.7)">`, x+12, y)
			mark(b, e.kind, point{})
			b.WriteString("</g>")
		}
		fmt.Fprintf(b, `<text class="key" x="%.1f" y="%.1f">%s</text>`+"\n", x+30, y+4, text(e.text))
		x += column
	}
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// millis is a round trip at a glance.
func millis(ms float64) string {
	if ms < 9.95 {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", ms), ".0") + " ms"
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// text is what XML can carry.
func text(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s))
	return b.String()
}
