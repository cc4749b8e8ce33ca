// SPDX-License-Identifier: MIT

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sinkPort    = 5001
	floodPort   = 5002 // for small packets that only go one way
	congestion  = "cubic"
	pingSize    = 64
	pingGap     = time.Millisecond      // between round trips on an idle tunnel, as ping waits between its own
	loadedGap   = 10 * time.Millisecond // the same while TCP sends: too few to disturb it
	pingTimeout = time.Second           // a round trip that takes longer counts as this
	dialTimeout = 10 * time.Second
)

// sent is what a sender has to say.
type sent struct {
	Received   int64         // bytes, as the receiver counted
	Took       time.Duration // from the receiver's first byte to its last
	RoundTrips []float64     // microseconds, meanwhile
}

func (s sent) mbits() float64 {
	if s.Took <= 0 {
		return 0
	}
	return float64(s.Received) * 8 / 1e6 / s.Took.Seconds()
}

// playSink is the receiver: it counts what comes by TCP, says how much that was, and returns what comes by UDP.
func playSink(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", sinkPort))
	if err != nil {
		return err
	}
	defer l.Close()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{Port: sinkPort})
	if err != nil {
		return err
	}
	defer u.Close()
	go echo(u)
	go accept(l, func(c net.Conn) error { return drain(c, make([]byte, 1<<20)) })
	f, err := net.ListenUDP("udp4", &net.UDPAddr{Port: floodPort})
	if err != nil {
		return err
	}
	defer f.Close()
	fl, err := net.Listen("tcp4", fmt.Sprintf(":%d", floodPort))
	if err != nil {
		return err
	}
	defer fl.Close()
	var bytes atomic.Int64
	if err := setOption(f, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil { // many packets in one read
		return err
	}
	if err := f.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	go func() {
		for buf := make([]byte, 1<<16); ; {
			n, err := f.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			bytes.Add(int64(n))
		}
	}()
	go accept(fl, func(c net.Conn) error { return binary.Write(c, binary.BigEndian, bytes.Load()) })
	fmt.Fprintln(out, "true")
	io.Copy(io.Discard, in)
	return nil
}

// accept calls f for each connection, until the listener is closed.
func accept(l net.Listener, f func(net.Conn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if err := f(c); err != nil {
				fmt.Fprintln(os.Stderr, "sink:", err)
			}
		}()
	}
}

func setOption(c syscall.Conn, level, name, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }), err)
}

func echo(u *net.UDPConn) {
	buf := make([]byte, pingSize)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			u.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

// drain reads a connection to its end and answers with the count of bytes and nanoseconds.
func drain(c net.Conn, buf []byte) error {
	var total int64
	var first, last time.Time
	for {
		n, err := c.Read(buf)
		if n > 0 {
			last = time.Now()
			if total == 0 {
				first = last
			}
			total += int64(n)
		}
		if err == io.EOF {
			return binary.Write(c, binary.BigEndian, [2]int64{total, int64(last.Sub(first))})
		}
		if err != nil {
			return err
		}
	}
}

// playSend is the sender: of so many connections at once.
func playSend(to, length, streams string, out io.Writer) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(streams)
	if err != nil {
		return err
	}
	s := sent{}
	stop, pinged := make(chan struct{}), make(chan error, 1)
	go func() (err error) {
		defer func() { pinged <- err }()
		s.RoundTrips, err = ping(to, -1, loadedGap, stop)
		return err
	}()
	type result struct {
		answer [2]int64
		err    error
	}
	results := make(chan result)
	for range n {
		go func() {
			a, err := send(to, d)
			results <- result{a, err}
		}()
	}
	time.AfterFunc(d, func() { close(stop) })
	for range n {
		r := <-results
		err = errors.Join(err, r.err)
		s.Received += r.answer[0]
		s.Took = max(s.Took, time.Duration(r.answer[1]))
	}
	if err := errors.Join(err, <-pinged); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(s)
}

// send sends by TCP for d, and returns how many bytes arrived in how many nanoseconds.
func send(to string, d time.Duration) (answer [2]int64, err error) {
	dial := net.Dialer{Timeout: dialTimeout, Control: func(_, _ string, c syscall.RawConn) (err error) {
		// A new namespace may have another default.
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		}), err)
	}}
	c, err := dial.Dial("tcp4", to)
	if err != nil {
		return answer, fmt.Errorf("connecting through the tunnel: %w", err)
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	for end := time.Now().Add(d); time.Now().Before(end); {
		c.SetDeadline(end.Add(dialTimeout))
		if _, err := c.Write(buf); err != nil {
			return answer, fmt.Errorf("sending: %w", err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return answer, err
	}
	if err := binary.Read(c, binary.BigEndian, &answer); err != nil {
		return answer, fmt.Errorf("asking what arrived: %w", err)
	}
	return answer, nil
}

// playFlood sends small packets for a time, as fast as it can.
func playFlood(to, length string, out io.Writer) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	c, err := net.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	before, err := flooded(to)
	if err != nil {
		return err
	}
	pkt := make([]byte, pingSize)
	begin := time.Now()
	for time.Since(begin) < d {
		for range 16 {
			if _, err := c.Write(pkt); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("sending small packets: %w", err)
			}
		}
	}
	took := time.Since(begin)
	arrived, last := int64(0), int64(-1)
	for limit := time.Now().Add(dialTimeout); arrived != last && time.Now().Before(limit); { // until no more come
		if last = arrived; last == 0 {
			last = -1 // the first may be on their way
		}
		time.Sleep(50 * time.Millisecond)
		n, err := flooded(to)
		if err != nil {
			return err
		}
		arrived = n - before
	}
	return json.NewEncoder(out).Encode(sent{Received: arrived, Took: took})
}

// flooded asks the sink how many bytes have come at floodPort.
func flooded(to string) (n int64, err error) {
	c, err := net.DialTimeout("tcp4", to, dialTimeout)
	if err != nil {
		return 0, fmt.Errorf("asking what arrived: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(dialTimeout))
	return n, binary.Read(c, binary.BigEndian, &n)
}

// playPing measures round trips on an idle tunnel.
func playPing(to, count, gap string, out io.Writer) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(gap)
	if err != nil {
		return err
	}
	trips, err := ping(to, n, d, nil)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(trips)
}

// ping sends n small packets, or until stop is closed, one after the other has come back, and returns the microseconds.
func ping(to string, n int, gap time.Duration, stop <-chan struct{}) (trips []float64, err error) {
	c, err := net.Dial("udp4", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	pkt, got := make([]byte, pingSize), make([]byte, pingSize)
	for seq := uint64(1); len(trips) != n; seq++ {
		select {
		case <-stop:
			return trips, nil
		case <-time.After(gap):
		}
		binary.BigEndian.PutUint64(pkt, seq)
		begin := time.Now()
		c.SetReadDeadline(begin.Add(pingTimeout))
		if _, err := c.Write(pkt); err != nil {
			return nil, fmt.Errorf("sending a small packet: %w", err)
		}
		for {
			m, err := c.Read(got)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("waiting for a small packet: %w", err)
			}
			if m == pingSize && binary.BigEndian.Uint64(got) == seq {
				break
			}
		}
		trips = append(trips, float64(time.Since(begin).Nanoseconds())/1e3)
	}
	return trips, nil
}
