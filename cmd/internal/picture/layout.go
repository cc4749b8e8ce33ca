// SPDX-License-Identifier: MIT

package picture

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
)

// Where nodes are drawn: stress majorization (Gansner, Koren and North, Graph Drawing 2004), that is, every pair is drawn as
// far apart as the shortest way between them is long; then parts that do not hang together are put side by side, and
// boxes that overlap are pushed apart. Nothing is random, so that the same mesh gives the same picture.

type point struct{ x, y float64 }

func (p point) sub(q point) point      { return point{p.x - q.x, p.y - q.y} }
func (p point) add(q point) point      { return point{p.x + q.x, p.y + q.y} }
func (p point) times(f float64) point  { return point{p.x * f, p.y * f} }
func (p point) norm() float64          { return math.Hypot(p.x, p.y) }
func middle(p, q point) point          { return point{(p.x + q.x) / 2, (p.y + q.y) / 2} }
func (b box) center() point            { return middle(b.min, b.max) }
func (b box) moved(d point) box        { return box{b.min.add(d), b.max.add(d)} }
func (b box) size() (float64, float64) { return b.max.x - b.min.x, b.max.y - b.min.y }
func (b box) grown(d float64) box      { return box{b.min.sub(point{d, d}), b.max.add(point{d, d})} }
func (b box) with(c box) box {
	return box{point{min(b.min.x, c.min.x), min(b.min.y, c.min.y)}, point{max(b.max.x, c.max.x), max(b.max.y, c.max.y)}}
}
func (b box) overlaps(c box) bool { dx, dy := b.overlap(c); return dx > 0 && dy > 0 }
func (b box) overlap(c box) (x, y float64) {
	return min(b.max.x, c.max.x) - max(b.min.x, c.min.x), min(b.max.y, c.max.y) - max(b.min.y, c.min.y)
}

// box is a rectangle.
type box struct{ min, max point }

const (
	unit     = 92.0 // pixels of a link between two nodes that have no others
	maxExact = 500  // nodes; with more, they are laid out in a spiral
	gap      = 56.0 // between parts
)

// layout places nodes, of which neighbours says who is linked with whom and boxes what each takes up around its place. name
// breaks ties.
func layout(name []string, neighbours [][]int, boxes []box) []point {
	at := make([]point, len(name))
	parts := components(neighbours)
	slices.SortStableFunc(parts, func(a, b []int) int { return cmp.Or(len(b)-len(a), cmp.Compare(name[a[0]], name[b[0]])) })
	for _, part := range parts {
		switch {
		case len(part) > maxExact:
			spiral(part, at)
		case len(part) > 1:
			stress(name, part, neighbours, at)
			level(part, at)
		}
		spread(part, boxes, at)
	}
	shelve(parts, boxes, at)
	return at
}

// components returns the sets of nodes that hang together, each in the order of a walk.
func components(neighbours [][]int) (parts [][]int) {
	seen := make([]bool, len(neighbours))
	for i := range neighbours {
		if seen[i] {
			continue
		}
		seen[i] = true
		part := []int{i}
		for k := 0; k < len(part); k++ {
			for _, j := range neighbours[part[k]] {
				if !seen[j] {
					seen[j] = true
					part = append(part, j)
				}
			}
		}
		parts = append(parts, part)
	}
	return parts
}

// distances are those between the nodes of a part, where the links of nodes that have many are longer.
func distances(part []int, neighbours [][]int) [][]float64 {
	index := map[int]int{}
	for k, i := range part {
		index[i] = k
	}
	length := func(i, j int) float64 {
		both := 0
		for _, k := range neighbours[i] {
			if slices.Contains(neighbours[j], k) {
				both++
			}
		}
		return math.Pow(float64(len(neighbours[i])+len(neighbours[j])-2*both), 0.4)
	}
	d := make([][]float64, len(part))
	for k := range part {
		d[k] = make([]float64, len(part))
		for m := range d[k] {
			d[k][m] = math.Inf(1)
		}
		d[k][k] = 0
		done := make([]bool, len(part))
		for range part { // Dijkstra's
			next := -1
			for m := range part {
				if !done[m] && (next < 0 || d[k][m] < d[k][next]) {
					next = m
				}
			}
			done[next] = true
			for _, j := range neighbours[part[next]] {
				m := index[j]
				d[k][m] = min(d[k][m], d[k][next]+length(part[next], j))
			}
		}
	}
	return d
}

// stress places the nodes of a part, from two beginnings, and takes what fits better.
func stress(name []string, part []int, neighbours [][]int, at []point) {
	d := distances(part, neighbours)
	best := math.Inf(1)
	for _, p := range [][]point{scaled(name, part, d), circle(len(part))} {
		for range 300 {
			if majorize(p, d) < 1e-3 {
				break
			}
		}
		sum := 0.0
		for i := range p {
			for j := range i {
				e := p[i].sub(p[j]).norm()/d[i][j] - 1
				sum += e * e
			}
		}
		if sum < best*0.999 {
			best = sum
			for k, i := range part {
				at[i] = p[k].times(unit)
			}
		}
	}
}

// majorize moves each node once to where its distances want it, and returns the longest move.
func majorize(p []point, d [][]float64) (moved float64) {
	for i := range p {
		var sum point
		weight := 0.0
		for j := range p {
			if i == j {
				continue
			}
			w := 1 / (d[i][j] * d[i][j])
			v := p[i].sub(p[j])
			if l := v.norm(); l > 1e-9 {
				v = v.times(d[i][j] / l)
			}
			sum = sum.add(p[j].add(v).times(w))
			weight += w
		}
		to := sum.times(1 / weight)
		moved = max(moved, to.sub(p[i]).norm())
		p[i] = to
	}
	return moved
}

// noise is the same for the same name, between -1 and 1.
func noise(name string, salt byte) float64 {
	h := fnv.New32a()
	h.Write(append([]byte(name), 0, salt))
	return float64(h.Sum32())/math.MaxUint32*2 - 1
}

// scaled begins with the two directions in which the distances differ most (classical multidimensional scaling).
func scaled(name []string, part []int, d [][]float64) []point {
	n := len(part)
	b := make([][]float64, n)
	mean, all := make([]float64, n), 0.0
	for i := range d {
		for j := range d[i] {
			mean[i] += d[i][j] * d[i][j] / float64(n)
		}
		all += mean[i] / float64(n)
	}
	for i := range d {
		b[i] = make([]float64, n)
		for j := range d[i] {
			b[i][j] = (mean[i] + mean[j] - all - d[i][j]*d[i][j]) / 2
		}
	}
	var axes [2][]float64
	for a := range axes {
		v := make([]float64, n)
		for i := range v {
			v[i] = noise(name[part[i]], byte(a))
		}
		for range 100 { // power iteration
			w := make([]float64, n)
			for i := range b {
				for j := range b[i] {
					w[i] += b[i][j] * v[j]
				}
			}
			if a == 1 {
				dot := 0.0
				for i := range w {
					dot += w[i] * axes[0][i]
				}
				for i := range w {
					w[i] -= dot * axes[0][i]
				}
			}
			value := 0.0
			for i := range w {
				value += w[i] * w[i]
			}
			if value = math.Sqrt(value); value < 1e-12 {
				break
			}
			for i := range w {
				v[i] = w[i] / value
			}
		}
		axes[a] = v
	}
	p := make([]point, n)
	extent := math.Sqrt(max(all, 1) * float64(n))
	for i := range p {
		x := name[part[i]]
		p[i] = point{axes[0][i]*extent + noise(x, 2)/10, axes[1][i]*extent + noise(x, 3)/10}
	}
	return p
}

// circle begins with a circle.
func circle(n int) []point {
	p := make([]point, n)
	for i := range p {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / float64(n))
		p[i] = point{cos, sin}.times(float64(n) / 4)
	}
	return p
}

// spiral is for more nodes than can be placed better.
func spiral(part []int, at []point) {
	golden := math.Pi * (3 - math.Sqrt(5))
	for k, i := range part {
		sin, cos := math.Sincos(golden * float64(k))
		at[i] = point{cos, sin}.times(unit * math.Sqrt(float64(k)))
	}
}

// level turns a part so that it is wide rather than high, with its first node to the left.
func level(part []int, at []point) {
	var mid point
	for _, i := range part {
		mid = mid.add(at[i].times(1 / float64(len(part))))
	}
	var xx, yy, xy float64
	for _, i := range part {
		p := at[i].sub(mid)
		xx, yy, xy = xx+p.x*p.x, yy+p.y*p.y, xy+p.x*p.y
	}
	sin, cos := math.Sincos(-math.Atan2(2*xy, xx-yy) / 2)
	if p := at[part[0]].sub(mid); p.x*cos-p.y*sin > 0 {
		sin, cos = -sin, -cos
	}
	for _, i := range part {
		p := at[i].sub(mid)
		at[i] = point{p.x*cos - p.y*sin, p.x*sin + p.y*cos}
	}
}

// spread pushes boxes that overlap apart, a little in each round.
func spread(part []int, boxes []box, at []point) {
	if len(part) > maxExact {
		return
	}
	for range 400 {
		still := true
		for x, i := range part {
			for _, j := range part[:x] {
				a, b := boxes[i].moved(at[i]), boxes[j].moved(at[j])
				dx, dy := a.overlap(b)
				if dx <= 0 || dy <= 0 {
					continue
				}
				still = false
				var push point
				c := a.center().sub(b.center())
				if dx < dy {
					push.x = math.Copysign(dx/2+0.5, c.x)
				} else {
					push.y = math.Copysign(dy/2+0.5, c.y)
				}
				at[i], at[j] = at[i].add(push), at[j].sub(push)
			}
		}
		if still {
			return
		}
	}
}

// shelve puts parts side by side, in rows of about equal width, single nodes below the others.
func shelve(parts [][]int, boxes []box, at []point) {
	area, widest := 0.0, 0.0
	outline := make([]box, len(parts))
	for k, part := range parts {
		outline[k] = boxes[part[0]].moved(at[part[0]])
		for _, i := range part[1:] {
			outline[k] = outline[k].with(boxes[i].moved(at[i]))
		}
		if w, h := outline[k].size(); len(part) > 1 || len(parts[0]) == 1 {
			area += (w + gap) * (h + gap)
			widest = max(widest, w)
		}
	}
	limit := max(widest, math.Sqrt(area*1.8), 420)
	var row []int
	x, y, height := 0.0, 0.0, 0.0
	end := func() {
		for _, k := range row { // rows are centred, and their parts too
			_, h := outline[k].size()
			for _, i := range parts[k] {
				at[i] = at[i].add(point{(limit - (x - gap)) / 2, (height - h) / 2})
			}
		}
		y += height + gap
		row, x, height = nil, 0, 0
	}
	for k, part := range parts {
		w, h := outline[k].size()
		if x > 0 && (x+w > limit || len(part) == 1 && len(parts[k-1]) > 1) {
			end()
		}
		for _, i := range part {
			at[i] = at[i].add(point{x, y}.sub(outline[k].min))
		}
		row = append(row, k)
		x += w + gap
		height = max(height, h)
	}
	end()
}
