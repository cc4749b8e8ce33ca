// SPDX-License-Identifier: MIT

package vpn

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"mesh.internal/mesh/vpn/queue"
	"mesh.internal/mesh/vpn/vpntest"
)

var (
	here  = netip.MustParseAddr("10.11.0.1")
	there = netip.MustParseAddr("10.11.0.2")
)

// udp4 makes a packet of size bytes, or flow's.
func udp4(dst netip.Addr, flow uint16, size int, dont bool) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 17
	if dont {
		b[6] = 0x40
	}
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	s, d := here.As4(), dst.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[20:], flow)
	return b
}

// harness is a seam between a device in memory and a test that is the engine.
type harness struct {
	*seam
	t    *testing.T
	tun  *vpntest.TUN
	peer map[netip.Addr]conn.Endpoint
	got  chan []byte // what Read returns
	end  chan error
}

// newHarness starts reading. It is called in a bubble.
func newHarness(t *testing.T, set func(*harness)) *harness {
	h := &harness{t: t, tun: vpntest.NewTUN(), got: make(chan []byte, 1000), end: make(chan error, 1),
		peer: map[netip.Addr]conn.Endpoint{there: &conn.StdNetEndpoint{}}}
	var err error
	if h.seam, err = newSeam(h.tun, 1380); err != nil {
		t.Fatal(err)
	}
	h.peerOf = func(dst netip.Addr) conn.Endpoint { return h.peer[dst] }
	h.heard, h.control = func(netip.Addr) {}, func(netip.Addr, []byte) {}
	if set != nil {
		set(h)
	}
	go func() {
		bufs, sizes := [][]byte{make([]byte, 1<<16)}, make([]int, 1)
		for {
			n, err := h.Read(bufs, sizes, 16)
			if err != nil {
				h.end <- err
				return
			}
			for i := range n {
				h.got <- append([]byte(nil), bufs[i][16:16+sizes[i]]...)
			}
		}
	}()
	return h
}

// close ends it all, and checks that Read ended too.
func (h *harness) close() {
	h.tun.Close()
	if err := <-h.end; !errors.Is(err, os.ErrClosed) {
		h.t.Errorf("Read ended with %v", err)
	}
}

// sealed is a message of the engine with a packet of so many bytes.
func sealedMessage(size int) []byte {
	b := make([]byte, sealed+padded(size))
	b[0] = transportData
	return b
}

// none checks that nothing comes.
func (h *harness) none(why string) {
	h.t.Helper()
	synctest.Wait()
	select {
	case b := <-h.got:
		h.t.Errorf("%s: a packet of %d bytes came", why, len(b))
	default:
	}
}

// TestRoom checks that the seam keeps what the engine cannot take yet, while small and control packets pass, and that it
// loses no room for what the engine drops.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, func(h *harness) { h.limit.Bytes = 5000 })
		defer h.close()
		link := counted{vpntest.NewNet().Bind(netip.MustParseAddrPort("192.0.2.1:1")), h.seam}
		ep := h.peer[there]
		in := 0
		take := func(want int) {
			t.Helper()
			synctest.Wait()
			for ; want > 0; want-- {
				select {
				case b := <-h.got:
					in += padded(len(b))
				default:
					t.Fatalf("%d packets lack", want)
				}
			}
			h.none("no more")
		}
		for range 12 {
			h.tun.Out <- udp4(there, 1, 1380, true)
		}
		take(4) // the fourth is let in when there are 4176 bytes
		h.tun.Out <- udp4(there, 2, 100, true)
		take(1)
		h.inject(packet(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), []byte("x")))
		if synctest.Wait(); len(h.got) != 1 || !isControl(<-h.got) {
			t.Error("the control packet did not come first")
		}
		link.Send([][]byte{sealedMessage(1380), make([]byte, 32), make([]byte, 148)}, ep) // and a keepalive and an initiation
		take(1)
		link.Send([][]byte{sealedMessage(1380), sealedMessage(1380)}, &conn.StdNetEndpoint{})
		h.none("sent to somebody else")

		// The rest is dropped by the engine, which does not say so.
		<-time.After(queue.Expire - time.Nanosecond)
		h.none("not yet lost")
		<-time.After(time.Nanosecond)
		take(4)
		<-time.After(queue.Expire)
		take(2) // and one has waited so long that it is dropped
	})
}

// TestNoPeer checks that packets for nobody do not keep others waiting, without end.
func TestNoPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, func(h *harness) { h.limit.Bytes = 5000 })
		defer h.close()
		for range 8 {
			h.tun.Out <- udp4(netip.MustParseAddr("10.11.0.9"), 1, 1380, true)
		}
		synctest.Wait()
		h.tun.Out <- udp4(there, 1, 1380, true)
		for range 5 {
			if b := <-h.got; netip.AddrFrom4([4]byte(b[16:20])) == there {
				return
			}
		}
		t.Error("the peer's packet waits for those of nobody")
	})
}

func TestDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan netip.Addr, 10)
		ready := false
		h := newHarness(t, func(h *harness) {
			h.demand = func(dst netip.Addr) {
				asked <- dst
				if !ready {
					<-time.After(200 * time.Microsecond) // as the engine takes
				}
				ready = true
			}
			of := h.peerOf
			h.peerOf = func(dst netip.Addr) conn.Endpoint {
				if !ready {
					t.Error("the peer is asked for before there is one")
				}
				return of(dst)
			}
		})
		defer h.close()
		for _, dst := range []netip.Addr{there, here, there} {
			h.tun.Out <- udp4(dst, 1, 100, true)
			if <-h.got; !ready {
				t.Error("a packet came before its peer")
			}
			if got := <-asked; got != dst {
				t.Errorf("asked for %v, not %v", got, dst)
			}
		}
	})
}

func TestTooBig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mtu := 0
		h := newHarness(t, func(h *harness) {
			h.pathMTU = func(dst netip.Addr) int {
				if dst == there {
					return mtu
				}
				return 0
			}
		})
		defer h.close()
		send := func(b []byte, pieces int, answered bool) {
			t.Helper()
			h.tun.Out <- b
			synctest.Wait()
			for range pieces {
				if b := <-h.got; mtu > 0 && len(b) > mtu && netip.AddrFrom4([4]byte(b[16:20])) == there {
					t.Errorf("a packet of %d bytes came through", len(b))
				}
			}
			h.none("that is all")
			if got := len(h.tun.In); got == 1 != answered {
				t.Fatalf("%d answers", got)
			}
			if answered {
				if a := <-h.tun.In; a[9] != 1 || a[20] != 3 || a[21] != 4 || int(binary.BigEndian.Uint16(a[26:])) != mtu {
					t.Errorf("the answer is %x", a)
				}
			}
		}
		send(udp4(there, 1, 1380, true), 1, false)
		mtu = 1200
		send(udp4(there, 1, 1201, true), 0, true)
		send(udp4(there, 1, 1200, true), 1, false)
		send(udp4(there, 1, 1380, false), 2, false)
		send(udp4(here, 1, 1380, true), 1, false)

		// Answers are few, however many packets there are.
		n := 0
		for range 10 * answerRate {
			h.tun.Out <- udp4(there, 1, 1300, true)
			synctest.Wait()
			for ; len(h.tun.In) > 0; n++ {
				<-h.tun.In
			}
		}
		if n < answerRate/2 || n > answerRate {
			t.Errorf("%d answers at once", n)
		}
		<-time.After(time.Second)
		send(udp4(there, 1, 1300, true), 0, true)
	})
}

func TestClamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, func(h *harness) {
			h.pathMTU = func(other netip.Addr) int {
				if other == there {
					return 1200
				}
				return 0
			}
		})
		defer h.close()
		syn := udp4(there, 1, 44, true)
		syn[9], syn[32], syn[33] = 6, 6<<4, 2
		copy(syn[40:], []byte{2, 4, 5, 180}) // 1460
		mss := func(b []byte) uint16 { return binary.BigEndian.Uint16(b[42:]) }
		h.tun.Out <- append([]byte(nil), syn...)
		if got := mss(<-h.got); got != 1160 {
			t.Errorf("the MSS goes out as %d", got)
		}
		in := append(make([]byte, 16), syn...)
		for src, want := range map[netip.Addr]uint16{there: 1160, here: 1340} {
			copy(in[16:], syn)
			a := src.As4()
			copy(in[16+12:], a[:])
			h.Write([][]byte{in}, 16)
			if got := mss(<-h.tun.In); got != want {
				t.Errorf("from %v the MSS comes in as %d", src, got)
			}
		}
	})
}

// TestKernelMayNotSpeak checks that a program of this machine cannot send control packets.
func TestKernelMayNotSpeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, nil)
		defer h.close()
		h.tun.Out <- packet(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), []byte("x"))
		h.tun.Out <- []byte{0x45}
		h.none("a control packet of the kernel, and junk")
	})
}
