// SPDX-License-Identifier: MIT

// Package tcptest has proxies on the loopback address, as small as they can be, for tests of what goes through one.
package tcptest

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
)

// HTTP starts a proxy that knows CONNECT only, and returns its host:port. With a user, it wants that and the password.
// asked, if not nil, sees every target.
func HTTP(t testing.TB, user, password string, asked func(addr string)) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		if user != "" && r.Header.Get("Proxy-Authorization") != want {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if asked != nil {
			asked(r.Host)
		}
		out, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		in, _, err := http.NewResponseController(w).Hijack() // before the client may speak: nothing is buffered
		if err != nil {
			out.Close()
			return
		}
		io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		join(in, out)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// SOCKS starts a SOCKS 5 proxy (RFC 1928, 1929) like HTTP.
func SOCKS(t testing.TB, user, password string, asked func(addr string)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				addr, ok := socks(c, user, password)
				if !ok {
					return
				}
				if asked != nil {
					asked(addr)
				}
				out, err := net.Dial("tcp", addr)
				if err != nil {
					c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0}) // connection refused
					return
				}
				c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
				join(c, out)
			}()
		}
	}()
	return l.Addr().String()
}

// socks reads a request and returns its target.
func socks(c net.Conn, user, password string) (addr string, ok bool) {
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	method := byte(0)
	if user != "" {
		method = 2
	}
	read(int(read(2)[1]))
	c.Write([]byte{5, method})
	if user != "" {
		u := string(read(int(read(2)[1])))
		p := string(read(int(read(1)[0])))
		if u != user || p != password {
			c.Write([]byte{1, 1})
			return "", false
		}
		c.Write([]byte{1, 0})
	}
	host := ""
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	case 4:
		host = net.IP(read(16)).String()
	default:
		return "", false
	}
	return net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(read(2))))), true
}

// join copies both ways until either ends.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, x := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			io.Copy(x[0], x[1])
			a.Close()
			b.Close()
		})
	}
	wg.Wait()
}
