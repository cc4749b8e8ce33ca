// SPDX-License-Identifier: MIT

package netif

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// TestInterruptible holds the device that Windows gets against what *os.File does: a deadline that has passed ends a
// read that waits and every one after it, packets are neither lost nor doubled by it, and closing ends everything.
func TestInterruptible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := tuntest.NewChannelTUN()
		d := newInterruptible(inner.TUN())
		bufs, sizes := [][]byte{make([]byte, 100)}, []int{0}
		type result struct {
			packet string
			err    error
		}
		results := make(chan result, 1)
		read := func() {
			n, err := d.Read(bufs, sizes, 10)
			r := result{err: err}
			if n == 1 {
				r.packet = string(bufs[0][10 : 10+sizes[0]])
			}
			results <- r
		}
		want := func(what string, w result) {
			t.Helper()
			synctest.Wait()
			select {
			case r := <-results:
				if r.packet != w.packet || !errors.Is(r.err, w.err) {
					t.Errorf("%s: got %q, %v; want %q, %v", what, r.packet, r.err, w.packet, w.err)
				}
			default:
				t.Fatalf("%s: the read still waits", what)
			}
		}
		go read()
		inner.Outbound <- []byte("one")
		want("a packet", result{packet: "one"})
		go read()
		synctest.Wait()
		if err := d.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		want("a read that waits", result{err: os.ErrDeadlineExceeded})
		inner.Outbound <- []byte("two")
		synctest.Wait() // it has been read ahead
		go read()
		want("a packet while the deadline has passed", result{err: os.ErrDeadlineExceeded})
		d.SetReadDeadline(time.Time{})
		go read()
		want("the packet", result{packet: "two"})
		for i := range 100 {
			p := bytes.Repeat([]byte{byte(i)}, i%64+1)
			go func() { inner.Outbound <- p }()
			go read()
			want("one of many", result{packet: string(p)})
		}
		if err := d.SetReadDeadline(time.Now().Add(time.Hour)); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("a deadline to come: %v", err)
		}
		go read()
		synctest.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		want("closing", result{err: os.ErrClosed})
		go read()
		want("closed", result{err: os.ErrClosed})
		if d.Close() != nil {
			t.Error("closing twice")
		}
	})
}
