// SPDX-License-Identifier: MIT

//go:build linux

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sinkPort    = 5001
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
	go func() {
		buf := make([]byte, 1<<20)
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			if err := drain(c, buf); err != nil {
				fmt.Fprintln(os.Stderr, "sink:", err)
			}
			c.Close()
		}
	}()
	fmt.Fprintln(out, "true")
	io.Copy(io.Discard, in)
	return nil
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

// playSend is the sender.
func playSend(to, length string, out io.Writer) error {
	d, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	dial := net.Dialer{Timeout: dialTimeout, Control: func(_, _ string, c syscall.RawConn) (err error) {
		// A new namespace may have another default.
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
		}), err)
	}}
	c, err := dial.Dial("tcp4", to)
	if err != nil {
		return fmt.Errorf("connecting through the tunnel: %w", err)
	}
	defer c.Close()
	s := sent{}
	stop, pinged := make(chan struct{}), make(chan error, 1)
	go func() (err error) {
		defer func() { pinged <- err }()
		s.RoundTrips, err = ping(to, -1, loadedGap, stop)
		return err
	}()
	buf := make([]byte, 256<<10)
	for end := time.Now().Add(d); time.Now().Before(end); {
		c.SetDeadline(end.Add(dialTimeout))
		if _, err := c.Write(buf); err != nil {
			return fmt.Errorf("sending: %w", err)
		}
	}
	close(stop)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	var answer [2]int64
	if err := binary.Read(c, binary.BigEndian, &answer); err != nil {
		return fmt.Errorf("asking what arrived: %w", err)
	}
	s.Received, s.Took = answer[0], time.Duration(answer[1])
	if err := <-pinged; err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(s)
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
