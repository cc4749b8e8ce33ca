// SPDX-License-Identifier: MIT

package vpn

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"mesh.internal/mesh/vpn/netif"
	"mesh.internal/mesh/vpn/vpntest"
)

// kernel is a network namespace with a TUN device, a seam and an engine, whose UDP is in memory.
type kernel struct {
	ns   *os.File
	tun  tun.Device
	seam *seam
	dev  *device.Device
	key  *ecdh.PrivateKey
	wire *narrow
}

// narrow is a link to one peer on which nothing longer than max passes.
type narrow struct {
	conn.Bind
	to        *conn.StdNetEndpoint
	max       atomic.Int64
	swallowed atomic.Int64
}

func (w *narrow) ParseEndpoint(string) (conn.Endpoint, error) { return w.to, nil }

func (w *narrow) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		if len(b) > int(w.max.Load()) {
			w.swallowed.Add(1)
			continue
		}
		if err := w.Bind.Send([][]byte{b}, w.to); err != nil {
			return err
		}
	}
	return nil
}

// in calls f on a thread in the namespace.
func (k *kernel) in(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := error(nil)
		if k.ns == nil {
			if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
				k.ns, err = os.Open("/proc/thread-self/ns/net")
			}
		} else {
			err = unix.Setns(int(k.ns.Fd()), unix.CLONE_NEWNET)
		}
		done <- errors.Join(err, f())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newKernels makes two of them with the addresses 10.11.0.1 and .2, between which the path has an MTU.
func newKernels(t *testing.T, mtu *atomic.Int64) (ks [2]*kernel) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: making network namespaces needs root")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("skipped: making tunnels needs TUN: %v", err)
	} else {
		f.Close()
	}
	network := vpntest.NewNet()
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 7655)
	}
	for i := range ks {
		k := &kernel{}
		ks[i] = k
		var err error
		if k.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
		k.in(t, func() (err error) {
			k.tun, err = netif.Create("mesh0", 1380, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 11, 0, byte(i + 1)}), 24)})
			return err
		})
		t.Cleanup(func() { k.ns.Close() })
		k.wire = &narrow{Bind: network.Bind(addr(i)), to: &conn.StdNetEndpoint{AddrPort: addr(1 - i)}}
		k.wire.max.Store(1 << 16)
		if k.seam, err = newSeam(k.tun, 1380); err != nil {
			t.Fatal(err)
		}
		k.seam.peerOf = func(netip.Addr) conn.Endpoint { return k.wire.to }
		k.seam.pathMTU = func(netip.Addr) int { return int(mtu.Load()) }
		k.seam.heard, k.seam.control = func(netip.Addr) {}, func(netip.Addr, []byte) {}
		k.dev = device.NewDevice(k.seam, counted{k.wire, k.seam}, device.NewLogger(device.LogLevelSilent, ""))
		k.dev.DisableSomeRoamingForBrokenMobileSemantics()
		t.Cleanup(k.dev.Close)
	}
	for i, k := range ks {
		if err := k.dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=x\nallowed_ip=10.11.0.%d/32\n",
			hex.EncodeToString(k.key.Bytes()), hex.EncodeToString(ks[1-i].key.PublicKey().Bytes()), 2-i)); err != nil {
			t.Fatal(err)
		}
		if err := k.dev.Up(); err != nil {
			t.Fatal(err)
		}
	}
	return ks
}

// TestShrinkingPath has a TCP connection go on when its path begins to swallow packets that it took before.
func TestShrinkingPath(t *testing.T) {
	var mtu atomic.Int64
	ks := newKernels(t, &mtu)
	var l net.Listener
	var c net.Conn
	ks[1].in(t, func() (err error) {
		l, err = net.Listen("tcp4", "10.11.0.2:5001")
		return err
	})
	defer l.Close()
	ks[0].in(t, func() (err error) {
		c, err = net.DialTimeout("tcp4", "10.11.0.2:5001", 20*time.Second)
		return err
	})
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	mss := func() int {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	data := make([]byte, 2<<20)
	rand.Read(data)
	exchange := func(half func()) {
		t.Helper()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		peer.SetDeadline(time.Now().Add(30 * time.Second))
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			sent <- err
		}()
		got := make([]byte, len(data))
		_, err := io.ReadFull(peer, got[:len(data)/2])
		half()
		if err == nil {
			_, err = io.ReadFull(peer, got[len(data)/2:])
		}
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("what arrived is not what was sent: %v", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	exchange(func() {})
	if n := mss(); n < 1300 {
		t.Errorf("before, the MSS is %d", n)
	}
	var begin time.Time
	exchange(func() {
		begin = time.Now()
		mtu.Store(1200)
		for _, k := range ks {
			k.wire.max.Store(1200 + sealed + 15)
		}
	})
	if n := mss(); n < 1100 || n > 1160 {
		t.Errorf("after, the MSS is %d", n)
	}
	t.Logf("the path shrank; the other half of 2 MiB took %v, %d packets were swallowed", time.Since(begin).Round(time.Millisecond), ks[0].wire.swallowed.Load())

	// What was on its way when the path shrank is lost, and nothing after that.
	lost := ks[0].wire.swallowed.Load()
	exchange(func() {})
	if n := ks[0].wire.swallowed.Load() - lost; n > 0 {
		t.Errorf("the path swallowed %d more packets", n)
	}

	// Negative check: without the seam's knowledge it would not go on.
	for _, k := range ks {
		k.wire.max.Store(900)
	}
	c.SetDeadline(time.Now().Add(time.Second))
	peer.SetDeadline(time.Now().Add(time.Second))
	go c.Write(data)
	if _, err := io.ReadFull(peer, make([]byte, len(data))); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a path that swallows everything large: %v", err)
	}
}

// TestPingTooBig checks that a program that asks for it is told of the path's MTU.
func TestPingTooBig(t *testing.T) {
	var mtu atomic.Int64
	ks := newKernels(t, &mtu)
	mtu.Store(1200)
	// A UDP socket that may not fragment: the first packet is answered, and then the kernel knows.
	ks[0].in(t, func() error {
		c, err := net.Dial("udp4", "10.11.0.2:5001")
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		})
		if err != nil {
			return err
		}
		for end := time.Now().Add(10 * time.Second); ; {
			if _, err = c.Write(make([]byte, 1300)); errors.Is(err, syscall.EMSGSIZE) {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("the kernel was not told of the path's MTU: %v", err)
			}
			runtime.Gosched()
		}
		n := 0
		raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) })
		if err != nil || n != 1200 {
			return fmt.Errorf("the kernel takes the path's MTU to be %d: %v", n, err)
		}
		return nil
	})
	if _, err := exec.LookPath("ping"); err != nil {
		t.Skip("the rest is skipped: ping is not installed")
	}
	for _, c := range []struct {
		dst  string
		args []string
		want string
	}{
		{"10.11.0.2", []string{"-s", "1300", "-M", "do"}, "mtu"}, // "message too long, mtu: 1200", or "Frag needed and DF set (mtu = 1200)"
		{"10.11.0.2", []string{"-s", "1300", "-M", "dont"}, "1 received"},
		{"10.11.0.2", []string{"-s", "1172", "-M", "do"}, "1 received"},
	} {
		ks[0].in(t, func() error {
			out, _ := exec.Command("ping", append(c.args, "-c", "1", "-W", "5", c.dst)...).CombinedOutput()
			if !strings.Contains(strings.ToLower(string(out)), c.want) {
				return fmt.Errorf("ping %v says:\n%s", c.args, out)
			}
			t.Logf("ping %v: %s", c.args, out)
			return nil
		})
	}
}
