// SPDX-License-Identifier: MIT

package vpntest

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// TUN is a TUN device in memory.
type TUN struct {
	Out    chan []byte    // packets that the kernel sends
	In     chan []byte    // packets that the kernel gets; dropped if nobody reads them
	Sink   func(b []byte) // gets them instead, and must not keep them; set before use
	events chan tun.Event
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	wake chan struct{} // closed while the deadline is past
}

// NewTUN returns a device that is up.
func NewTUN() *TUN {
	t := &TUN{Out: make(chan []byte, 64), In: make(chan []byte, 64), events: make(chan tun.Event, 1), closed: make(chan struct{}), wake: make(chan struct{})}
	t.events <- tun.EventUp
	return t
}

// SetReadDeadline ends reads at once where the deadline is past; other deadlines than none are not known.
func (t *TUN) SetReadDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.wake:
		if at.IsZero() {
			t.wake = make(chan struct{})
		}
	default:
		if !at.IsZero() {
			if time.Now().Before(at) {
				return errors.New("only past deadlines are known")
			}
			close(t.wake)
		}
	}
	return nil
}

// Read implements tun.Device.
func (t *TUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.mu.Lock()
	wake := t.wake
	t.mu.Unlock()
	select {
	case <-wake:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case <-wake:
		return 0, os.ErrDeadlineExceeded
	case p := <-t.Out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	}
}

// Write implements tun.Device.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if t.Sink != nil {
			t.Sink(b[offset:])
			continue
		}
		select {
		case t.In <- append([]byte(nil), b[offset:]...):
		default:
		}
	}
	return len(bufs), nil
}

// File implements tun.Device.
func (t *TUN) File() *os.File { return nil }

// MTU implements tun.Device.
func (t *TUN) MTU() (int, error) { return 1380, nil }

// Name implements tun.Device.
func (t *TUN) Name() (string, error) { return "test", nil }

// Events implements tun.Device.
func (t *TUN) Events() <-chan tun.Event { return t.events }

// BatchSize implements tun.Device.
func (t *TUN) BatchSize() int { return 1 }

// Close implements tun.Device.
func (t *TUN) Close() error {
	err := syscall.EBADF
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
		err = 0
	})
	if err != 0 {
		return err
	}
	return nil
}
