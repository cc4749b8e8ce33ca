// SPDX-License-Identifier: MIT

package stream

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

// frames reads all of a stream: how it ends, and what was in it.
func frames(r io.Reader) (pkts [][]byte, pings, pongs bool, err error) {
	f := newReader(r)
	for {
		b, err := f.next()
		if err != nil {
			return pkts, pings, pongs, err
		}
		for _, p := range b.pkts {
			pkts = append(pkts, bytes.Clone(p))
		}
		pings, pongs = pings || b.ping, pongs || b.pong
	}
}

func TestFrames(t *testing.T) {
	big := bytes.Repeat([]byte{7}, MaxDatagram)
	b := appendDatagram(nil, []byte{1})
	b = appendControl(b, kindPing)
	b = appendDatagram(b, big)
	b = appendControl(b, kindPong)
	b = appendDatagram(b, []byte{2, 3})
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(b), "byte by byte": iotest.OneByteReader(bytes.NewReader(b))} {
		pkts, ping, pong, err := frames(r)
		if len(pkts) != 3 || !bytes.Equal(pkts[1], big) || !bytes.Equal(pkts[2], []byte{2, 3}) || !ping || !pong || err != io.EOF {
			t.Errorf("%s: %d datagrams, %v, %v, %v", name, len(pkts), ping, pong, err)
		}
	}
	for cut := 1; cut < 3+3; cut++ {
		if cut == 3 {
			continue // between two frames
		}
		if _, _, _, err := frames(bytes.NewReader(b[:cut])); err != io.ErrUnexpectedEOF {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
}

// FuzzReader gives a reader any stream, in pieces of any size: it returns what an encoder made, and no more.
func FuzzReader(f *testing.F) {
	f.Add(appendControl(appendDatagram(nil, []byte("hello")), kindPing), uint16(3))
	f.Add([]byte{0, 0, 9}, uint16(1))
	f.Add([]byte{255, 255, 0}, uint16(70))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		whole, _, _, err := frames(bytes.NewReader(b))
		pieces, _, _, err2 := frames(&chopped{b, int(piece) + 1})
		if len(whole) != len(pieces) || (err == io.EOF) != (err2 == io.EOF) {
			t.Fatalf("whole: %d datagrams, %v; in pieces of %d: %d, %v", len(whole), err, piece+1, len(pieces), err2)
		}
		if err != io.EOF {
			return
		}
		size := 0
		for i, p := range whole {
			if !bytes.Equal(p, pieces[i]) || len(p) == 0 {
				t.Fatalf("datagram %d differs", i)
			}
			size += headSize + len(p)
		}
		if (len(b)-size)%controlSize != 0 || size > len(b) {
			t.Fatalf("%d bytes made %d bytes of frames", len(b), size)
		}
	})
}

// chopped reads in pieces.
type chopped struct {
	b    []byte
	size int
}

func (c *chopped) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b[:min(len(c.b), c.size)])
	c.b = c.b[n:]
	return n, nil
}
