// SPDX-License-Identifier: MIT

package portmap

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// There is no kept library for PCP in Go: what exists is inside larger programs. All that is needed of it is here: the
// MAP and ANNOUNCE messages without options.

const (
	pcpPort    = 5351
	pcpVersion = 2
	pcpHeader  = 24 // bytes, RFC 6887 section 7.1
	pcpMap     = 60 // with the MAP opcode's, section 11.1
	pcpMax     = 1100
	opAnnounce = 0
	opMap      = 1
	opAnswer   = 0x80 // set in answers
)

var pcpResults = [...]string{"success", "unsupported version", "not authorized", "malformed request", "unsupported opcode",
	"unsupported option", "malformed option", "network failure", "no resources", "unsupported protocol",
	"user exceeds quota", "cannot provide external address", "address mismatch", "excessive remote peers"} // section 7.4

// pcpError is a result code other than success.
type pcpError byte

func (e pcpError) Error() string {
	if int(e) < len(pcpResults) {
		return "the gateway says: " + pcpResults[e]
	}
	return fmt.Sprintf("the gateway says: result %d", byte(e))
}

var errNotPCP = errors.New("the gateway speaks an older protocol")

// pcpAnswer is an answer's content.
type pcpAnswer struct {
	lifetime time.Duration
	external netip.AddrPort // MAP only
}

// appendPCP makes a request without its opcode's part.
func appendPCP(b []byte, op byte, lifetime time.Duration, local netip.Addr) []byte {
	b = append(b, pcpVersion, op, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
	a := local.As16()
	return append(b, a[:]...)
}

// parsePCP reads b, which may come from anybody, as the answer to req. ok is false if it is none; err is what the gateway
// objects.
func parsePCP(b, req []byte) (a pcpAnswer, ok bool, err error) {
	switch {
	case len(b) >= 4 && b[0] < pcpVersion && b[1]&opAnswer != 0: // section 9: or NAT-PMP's, RFC 6886 section 3.5
		return a, true, errNotPCP
	case len(b) < pcpHeader || len(b) > pcpMax || len(b)%4 != 0 || b[0] != pcpVersion || b[1] != req[1]|opAnswer:
		return a, false, nil
	}
	isMap := req[1] == opMap
	if isMap && len(b) >= pcpMap {
		if !bytes.Equal(b[24:37], req[24:37]) || !bytes.Equal(b[40:42], req[40:42]) { // nonce and protocol, internal port
			return a, false, nil
		}
	} else if isMap && b[3] == 0 {
		return a, false, nil
	}
	if b[3] != 0 {
		return a, true, pcpError(b[3])
	}
	a.lifetime = time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second
	if isMap {
		a.external = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	}
	return a, true, nil
}

type pcp struct {
	gw     Gateway
	secret []byte
}

func newPCP(gw Gateway, secret []byte) *pcp {
	if secret == nil {
		secret = make([]byte, 32)
		rand.Read(secret)
	}
	return &pcp{gw, secret}
}

func (*pcp) name() Protocol { return PCP }

func (c *pcp) probe(ctx context.Context) error {
	_, err := c.exchange(ctx, appendPCP(nil, opAnnounce, 0, c.gw.Local))
	var e pcpError
	if errors.As(err, &e) { // it does not announce, but speaks
		return nil
	}
	return err
}

func (c *pcp) open(ctx context.Context, w want) (grant, error) {
	a, err := c.exchange(ctx, c.mapping(w, lifetime))
	return grant{a.external, max(a.lifetime, time.Second)}, err // 0 is no life, not eternal life
}

func (c *pcp) close(ctx context.Context, w want) error {
	_, err := c.exchange(ctx, c.mapping(want{tcp: w.tcp, port: w.port}, 0)) // section 15: suggest nothing
	return err
}

// mapping makes a MAP request (section 11.1).
func (c *pcp) mapping(w want, lifetime time.Duration) []byte {
	b := appendPCP(make([]byte, 0, pcpMap), opMap, lifetime, c.gw.Local)
	protocol := byte(17)
	if w.tcp {
		protocol = 6
	}
	nonce := hmac.New(sha256.New, c.secret)
	fmt.Fprintf(nonce, "mesh PCP nonce v1\n%s\n%s\n%s\n%d\n", c.gw.Addr, c.gw.Local, network(w.tcp), w.port)
	b = append(b, nonce.Sum(nil)[:12]...)
	b = append(b, protocol, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, w.port)
	b = binary.BigEndian.AppendUint16(b, w.external.Port())
	a := w.external.Addr()
	if !a.IsValid() { // "none" has the family of what is asked for
		if a = netip.IPv6Unspecified(); c.gw.Local.Is4() {
			a = netip.IPv4Unspecified()
		}
	}
	a16 := a.As16()
	return append(b, a16[:]...)
}

// exchange sends a request, four times if need be, and returns the answer.
func (c *pcp) exchange(ctx context.Context, req []byte) (pcpAnswer, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.gw.Local, 0))}
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(c.gw.Addr, pcpPort).String())
	if err != nil {
		return pcpAnswer{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b := make([]byte, pcpMax+1)
	end := time.Now()
	for wait := answerTime / 15; wait < answerTime; wait *= 2 {
		end = end.Add(wait)
		conn.SetDeadline(end)
		if _, err := conn.Write(req); err != nil {
			return pcpAnswer{}, err
		}
		for {
			n, err := conn.Read(b)
			if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
				break
			} else if err != nil {
				return pcpAnswer{}, err
			}
			if a, ok, err := parsePCP(b[:n], req); ok {
				return a, err
			}
		}
	}
	return pcpAnswer{}, errors.New("the gateway does not answer")
}
