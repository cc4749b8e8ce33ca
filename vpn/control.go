// SPDX-License-Identifier: MIT

package vpn

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// Control messages travel inside the tunnels as IPv6 packets between the nodes' ULA addresses, with the protocol number
// for experiments (RFC 3692), and never touch the kernel: seam puts them between its packets on the way to the engine
// and takes them out on the way back. The engine has checked by then that the source address is the sender's.
const (
	controlProtocol = 253
	controlHead     = 40   // an IPv6 header (RFC 8200 section 3)
	maxControl      = 1280 // bytes of a whole packet
	maxQueued       = 256  // control packets that wait for the engine; more are dropped, repair brings them again
)

func isControl(b []byte) bool {
	return len(b) >= controlHead && b[0]>>4 == 6 && b[6] == controlProtocol
}

// packet makes a control packet. It returns nil if payload is too large for one.
func packet(src, dst netip.Addr, payload []byte) []byte {
	if controlHead+len(payload) > maxControl {
		return nil
	}
	b := make([]byte, controlHead, controlHead+len(payload))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = controlProtocol, 1
	s, d := src.As16(), dst.As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return append(b, payload...)
}

// deadliner is what interrupts a read of the device: *os.File, or a test's double.
type deadliner interface{ SetReadDeadline(time.Time) error }

// seam is the TUN device as the engine sees it.
type seam struct {
	tun.Device
	interrupt deadliner
	control   func(from netip.Addr, payload []byte) // called by the engine's receiving goroutines; must not block
	heard     func(from netip.Addr)                 // the same, once a batch
	demand    func(dst netip.Addr)                  // called by the engine before it gets packets for dst

	mu    sync.Mutex
	queue [][]byte
}

func newSeam(dev tun.Device) (*seam, error) {
	s := &seam{Device: dev}
	if f := dev.File(); f != nil {
		s.interrupt = f
	} else if d, ok := dev.(deadliner); ok {
		s.interrupt = d
	}
	if s.interrupt == nil || s.interrupt.SetReadDeadline(time.Time{}) != nil {
		return nil, errors.New("reads of this TUN device cannot be interrupted")
	}
	return s, nil
}

// inject hands a control packet to the engine as if it came from the kernel.
func (s *seam) inject(pkt []byte) {
	s.mu.Lock()
	if len(s.queue) < maxQueued {
		s.queue = append(s.queue, pkt)
	}
	s.mu.Unlock()
	s.interrupt.SetReadDeadline(time.Unix(1, 0))
}

// Read implements tun.Device.
func (s *seam) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		s.mu.Lock()
		n := min(len(s.queue), len(bufs))
		for i, p := range s.queue[:n] {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		s.queue = s.queue[n:]
		s.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		n, err := s.Device.Read(bufs, sizes, offset)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.interrupt.SetReadDeadline(time.Time{}) // before the queue is looked at: what is put there later sets it again
			if n == 0 {
				continue
			}
			err = nil
		}
		var last netip.Addr
		for i := range n {
			if isControl(bufs[i][offset : offset+sizes[i]]) {
				sizes[i] = 0 // a program of this machine may not speak for the node
			} else if to, ok := destination(bufs[i][offset : offset+sizes[i]]); ok && to != last && s.demand != nil {
				s.demand(to)
				last = to
			}
		}
		return n, err
	}
}

// Write implements tun.Device.
func (s *seam) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) > 0 {
		if from, ok := source(bufs[0][offset:]); ok { // a batch is of one peer
			s.heard(from)
		}
	}
	kept := bufs[:0]
	for _, b := range bufs {
		if p := b[offset:]; isControl(p) {
			from, _ := source(p)
			s.control(from, p[controlHead:])
			continue
		}
		kept = append(kept, b)
	}
	if len(kept) == 0 {
		return len(bufs), nil
	}
	_, err := s.Device.Write(kept, offset)
	return len(bufs), err
}

func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40])), true
	}
	return netip.Addr{}, false
}

func source(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:16])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:24])), true
	}
	return netip.Addr{}, false
}
