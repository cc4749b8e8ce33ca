// SPDX-License-Identifier: MIT

package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// way is one way to the inviter.
type way struct {
	addr string
	via  bool // through the member at addr
}

func (w way) String() string {
	if w.via {
		return "through the member at " + w.addr
	}
	return w.addr
}

// ways are a token's: those to the inviter itself first.
func ways(t Token) (out []way) {
	for _, e := range t.Endpoints {
		out = append(out, way{e, false})
	}
	for _, e := range t.Via {
		out = append(out, way{e, true})
	}
	return out
}

// channel is a connection that ends at the inviter: the pins have been checked.
type channel struct {
	*tls.Conn
	raw   net.Conn // below all TLS
	token Token
	ca    *identity.CA
	via   string
}

// Close does not wait for a dead connection.
func (c *channel) Close() error { return c.raw.Close() }

// reach goes a way.
func (w way) reach(ctx context.Context, dial tcp.Dial, t Token) (c *channel, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", w.addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	c = &channel{raw: raw, token: t}
	below := raw
	if w.via {
		var member *tls.Conn
		member, err = handshake(ctx, raw, ViaProtocol, func(shown []*x509.Certificate) error {
			_, n, err := checkRoot(t, shown)
			c.via = n.Name
			return err
		})
		if err != nil {
			return nil, err
		}
		if err = ask(ctx, member, t.Inviter); err != nil {
			return nil, err
		}
		below = member
	}
	c.Conn, err = handshake(ctx, below, Protocol, func(shown []*x509.Certificate) (err error) {
		c.ca, err = checkPins(t, shown)
		return err
	})
	return c, err
}

// handshake makes a TLS connection whose certificates check accepts. An older inviter names no protocol.
func handshake(ctx context.Context, c net.Conn, protocol string, check func([]*x509.Certificate) error) (*tls.Conn, error) {
	tc := tls.Client(c, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{protocol},
		InsecureSkipVerify: true, // VerifyConnection checks against the token's pins instead of names
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != protocol && (cs.NegotiatedProtocol != "" || protocol != Protocol) {
				return errors.New("the node there does not do this: its version of mesh may be older")
			}
			return check(cs.PeerCertificates)
		},
	})
	return tc, tc.HandshakeContext(ctx)
}

// ask asks a member for the inviter.
func ask(ctx context.Context, member *tls.Conn, inviter [32]byte) error {
	deadline, _ := ctx.Deadline()
	member.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { member.NetConn().Close() })
	defer stop()
	if err := write(member, viaRequest{Inviter: inviter[:]}); err != nil {
		return err
	}
	var a viaAnswer
	if err := read(member, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("the member says: %s", printable(a.Error))
	}
	return nil
}

// checkRoot finds the pinned root among the certificates shown, and whose certificate of it the first one is.
func checkRoot(t Token, shown []*x509.Certificate) (*identity.CA, identity.Node, error) {
	for i, c := range shown {
		if i > 0 && keyHash(c) == t.Root {
			ca := &identity.CA{Cert: c}
			n, err := ca.Verify(shown[:1])
			return ca, n, err
		}
	}
	return nil, identity.Node{}, errors.New("the node there is not of the inviter's mesh; nothing was sent")
}

// checkPins finds the pinned root among the certificates shown and checks that the pinned inviter is of it.
func checkPins(t Token, shown []*x509.Certificate) (*identity.CA, error) {
	ca, _, err := checkRoot(t, shown)
	if err != nil || keyHash(shown[0]) != t.Inviter {
		return nil, errors.New("somebody other than the inviter answered there: the address leads elsewhere, or somebody listens in between; nothing was sent")
	}
	return ca, nil
}
