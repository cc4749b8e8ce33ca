// SPDX-License-Identifier: MIT

package link

import (
	"crypto/ecdh"
	"crypto/rand"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// TestFamilies sends by IPv4 and by IPv6 in turn through real sockets: nothing may go elsewhere.
func TestFamilies(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := New(conn.NewStdNetBind(), key, 1412)
	if _, _, err := l.Bind.Open(0); err != nil {
		t.Fatal(err)
	}
	defer l.Bind.Close()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	to := func(a string) *conn.StdNetEndpoint {
		return &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(a), port)}
	}
	for range 100 {
		l.deliver([][]byte{{1}}, to("127.0.0.1"))
		l.deliver([][]byte{{2}}, to("::2")) // nobody has it; what goes to :: instead, which is this machine, arrives
		l.deliver([][]byte{{3}}, to("::1"))
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var b [16]byte
		if n, err := c.Read(b[:]); err != nil || n != 1 || b[0] != 3 {
			t.Fatalf("instead of the datagram to ::1 came %x, %v", b[:n], err)
		}
	}
}
