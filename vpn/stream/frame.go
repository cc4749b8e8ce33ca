// SPDX-License-Identifier: MIT

package stream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// MaxDatagram is the largest datagram that a link carries, in bytes.
const MaxDatagram = 65535

const (
	headSize    = 2
	controlSize = headSize + 1

	kindPing = 1 // wants a pong
	kindPong = 2

	readSize = 32 << 10 // a reader's buffer; grows to maxRead for large datagrams
	maxRead  = headSize + MaxDatagram
)

// appendControl adds a control frame to b.
func appendControl(b []byte, kind byte) []byte { return append(b, 0, 0, kind) }

// appendDatagram adds a datagram of 1 to MaxDatagram bytes to b.
func appendDatagram(b, p []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
}

// batch is what came together.
type batch struct {
	pkts       [][]byte // valid until the next call
	ping, pong bool
}

// reader takes frames from a stream.
type reader struct {
	src  io.Reader
	buf  []byte // what has been read
	off  int    // of what has not been returned
	pkts [][]byte
}

func newReader(src io.Reader) *reader { return &reader{src: src, buf: make([]byte, 0, readSize)} }

// next returns the frames that are there, at least one. Its error is io.EOF if the stream ended between two frames.
func (r *reader) next() (batch, error) {
	r.buf = r.buf[:copy(r.buf, r.buf[r.off:])]
	r.off = 0
	for {
		b, n, err := r.parse()
		if n > 0 || err != nil {
			return b, err
		}
		if len(r.buf) == cap(r.buf) {
			r.buf = append(make([]byte, 0, maxRead), r.buf...)
		}
		got, err := r.src.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+got]
		switch {
		case got > 0: // an error comes again
		case err == io.EOF && len(r.buf) > 0:
			return batch{}, io.ErrUnexpectedEOF
		case err != nil:
			return batch{}, err
		}
	}
}

// parse takes the whole frames from the buffer and returns their number. An error is returned when all before it are.
func (r *reader) parse() (b batch, n int, err error) {
	r.pkts = r.pkts[:0]
	for {
		rest := r.buf[r.off:]
		if len(rest) < controlSize {
			break
		}
		if size := int(binary.BigEndian.Uint16(rest)); size > 0 {
			if len(rest) < headSize+size {
				break
			}
			r.pkts = append(r.pkts, rest[headSize:headSize+size:headSize+size])
			r.off += headSize + size
		} else {
			switch rest[headSize] {
			case kindPing:
				b.ping = true
			case kindPong:
				b.pong = true
			default:
				if n == 0 {
					err = fmt.Errorf("a frame of unknown kind %d", rest[headSize])
				}
				b.pkts = r.pkts
				return b, n, err
			}
			r.off += controlSize
		}
		n++
	}
	b.pkts = r.pkts
	return b, n, nil
}
