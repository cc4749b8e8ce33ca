// SPDX-License-Identifier: MIT

package vpn

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"mesh.internal/mesh/vpn/ip"
	"mesh.internal/mesh/vpn/queue"
)

// tunReader reads packets and super-packets from a TUN device, without waiting too, which tun.Device cannot. A device
// that is no file, as a test's double, is read through tun.Device: then nothing is known to be there until it is waited
// for. One goroutine uses it.
type tunReader struct {
	dev tun.Device

	raw  syscall.RawConn // nil: none
	try  func(fd uintptr) bool
	wait bool   // whether try has the poller wait
	in   []byte // what try reads into
	n    int    // bytes that it has read
	err  error

	bufs  [][]byte // the first is the caller's
	sizes []int
	next  int // of those in bufs
	got   int
}

func newTUNReader(dev tun.Device) (*tunReader, error) {
	r := &tunReader{dev: dev}
	if f := dev.File(); f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		vnet := false
		if err := raw.Control(func(fd uintptr) {
			if ifr, err := unix.NewIfreq(""); err == nil && unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) == nil {
				vnet = ifr.Uint16()&unix.IFF_VNET_HDR != 0
			}
		}); err != nil {
			return nil, err
		}
		if vnet {
			r.raw, r.try = raw, r.readFD
			return r, nil
		}
	}
	n := dev.BatchSize()
	r.bufs, r.sizes = make([][]byte, n), make([]int, n)
	for i := 1; i < n; i++ {
		r.bufs[i] = make([]byte, queue.MaxPacket)
	}
	return r, nil
}

// readFD is for syscall.RawConn.Read.
func (r *tunReader) readFD(fd uintptr) bool {
	for {
		// The descriptor does not block, so the scheduler need not know of the call.
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&r.in[0])), uintptr(len(r.in)))
		switch errno {
		case 0:
			r.n, r.err = int(n), nil
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			r.n, r.err = 0, nil
			return !r.wait
		case unix.EBADFD: // the interface is gone
			r.err = os.ErrClosed
			return true
		default:
			r.err = os.NewSyscallError("read", errno)
			return true
		}
	}
}

// read reads the next packet into buf, of queue.MaxPacket bytes, and returns it. If there is none, it waits or returns nil.
// The error is os.ErrDeadlineExceeded where the device's deadline is past.
func (r *tunReader) read(buf []byte, wait bool) (pkt []byte, g ip.GSO, err error) {
	if r.raw == nil {
		if r.next == r.got {
			if !wait {
				return nil, g, nil
			}
			r.next, r.got, r.bufs[0] = 0, 0, buf
			if r.got, err = r.dev.Read(r.bufs, r.sizes, 0); r.got == 0 || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, g, err
			}
		}
		pkt = r.bufs[r.next][:r.sizes[r.next]]
		if r.next++; r.next > 1 {
			pkt = buf[:copy(buf, pkt)]
		}
		return pkt, g, nil
	}
	r.wait, r.in = wait, buf
	switch err := r.raw.Read(r.try); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, g, err
	case err != nil:
		return nil, g, os.ErrClosed // there is no other, but os.File calls it so itself
	}
	if r.err != nil || r.n == 0 {
		return nil, g, r.err
	}
	if pkt, g, err = ip.ParseVNet(buf[:r.n]); err != nil {
		pkt = buf[:0] // the kernel does not do that; it is dropped
	}
	return pkt, g, nil
}
