// SPDX-License-Identifier: MIT

package link

import "time"

// Look pings a peer on every way that is known, at once, so that Ways tells how things are now.
func (p *Peer) Look() {
	now := time.Now()
	p.mu.Lock()
	ready := p.ready
	p.sync()
	outs, asking := p.path.pingAll(now, false), p.path.asking
	p.mu.Unlock()
	if ready {
		p.transmit(outs, asking)
		p.wake()
	}
}
