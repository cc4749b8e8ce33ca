// SPDX-License-Identifier: MIT

package netif

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// interruptible gives a device that has no file a read deadline, as *os.File has one. Its goroutine, which ends when the
// device is closed, reads one packet ahead: each is copied once more.
type interruptible struct {
	tun.Device
	ahead chan packet   // unbuffered; the packet is the reader's until it is taken
	taken chan struct{} // unbuffered
	shut  chan struct{} // closed by Close
	close func() error

	mu     sync.Mutex
	passed chan struct{} // closed when the deadline has passed
}

type packet struct {
	bytes []byte
	err   error
}

func newInterruptible(dev tun.Device) *interruptible {
	d := &interruptible{Device: dev, ahead: make(chan packet), taken: make(chan struct{}), shut: make(chan struct{}), passed: make(chan struct{})}
	ended := make(chan struct{})
	d.close = sync.OnceValue(func() error {
		close(d.shut)
		err := dev.Close()
		<-ended
		return err
	})
	go func() {
		defer close(ended)
		d.read()
	}()
	return d
}

// read reads until the device is closed.
func (d *interruptible) read() {
	const head = 16 // some devices want room before a packet
	bufs, sizes := [][]byte{make([]byte, head+64<<10)}, []int{0}
	for {
		n, err := d.Device.Read(bufs, sizes, head)
		if n == 0 && err == nil {
			continue
		}
		p := packet{err: err}
		if n > 0 {
			p.bytes = bufs[0][head : head+sizes[0]]
		}
		select {
		case d.ahead <- p:
		case <-d.shut:
			return
		}
		select {
		case <-d.taken:
		case <-d.shut:
			return
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// Read implements tun.Device: one packet at a time.
func (d *interruptible) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.mu.Lock()
	passed := d.passed
	d.mu.Unlock()
	select {
	case <-passed: // as for a file, also where there is something to read
		return 0, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-passed:
		return 0, os.ErrDeadlineExceeded
	case <-d.shut:
		return 0, os.ErrClosed
	case p := <-d.ahead:
		n := 0
		if p.bytes != nil {
			sizes[0], n = copy(bufs[0][offset:], p.bytes), 1
		}
		select {
		case d.taken <- struct{}{}:
		case <-d.shut:
		}
		return n, p.err
	}
}

// BatchSize implements tun.Device.
func (d *interruptible) BatchSize() int { return 1 }

// SetReadDeadline interrupts reads when t has passed, and no longer when t is zero. Deadlines to come are not supported.
func (d *interruptible) SetReadDeadline(t time.Time) error {
	if time.Until(t) > 0 {
		return os.ErrNoDeadline
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	has := false
	select {
	case <-d.passed:
		has = true
	default:
	}
	if t.IsZero() && has {
		d.passed = make(chan struct{})
	} else if !t.IsZero() && !has {
		close(d.passed)
	}
	return nil
}

// Close implements tun.Device.
func (d *interruptible) Close() error { return d.close() }
