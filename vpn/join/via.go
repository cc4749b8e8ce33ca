// SPDX-License-Identifier: MIT

package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// ViaProtocol is the name in ALPN of asking a member for an inviter.
const ViaProtocol = "mesh-join-via/1"

// What strangers may have of a member.
const (
	maxVias    = 8                // at once
	viaTime    = 60 * time.Second // each
	viaBytes   = 1 << 20          // each way
	viaConnect = 8 * time.Second  // to reach the inviter
)

// Via lets strangers speak to inviters through this member: a few at a time, briefly, with little, and only to the port
// that an inviter's signed record says is for joining, at the mesh address in its certificate.
type Via struct {
	identity *identity.Identity
	records  func() []*identity.Record
	dial     tcp.Dial
	log      *slog.Logger
	places   chan struct{} // those taken
}

// NewVia returns what serves strangers on behalf of the inviters among records. dial reaches mesh addresses.
func NewVia(id *identity.Identity, records func() []*identity.Record, dial tcp.Dial, log *slog.Logger) *Via {
	return &Via{identity: id, records: records, dial: dial, log: log, places: make(chan struct{}, maxVias)}
}

type (
	viaRequest struct {
		Inviter []byte `cbor:"1,keyasint"` // SHA-256 of its public key
	}
	viaAnswer struct {
		Error string `cbor:"1,keyasint,omitempty"` // "": what follows comes from the inviter
	}
)

// Protocol is what serves strangers.
func (v *Via) Protocol() tcp.Protocol { return tcp.Protocol{TLS: open(v.identity), Serve: v.serve} }

func (v *Via) serve(ctx context.Context, c *tls.Conn) {
	defer c.NetConn().Close()
	ctx, cancel := context.WithTimeout(ctx, viaTime)
	defer cancel()
	end := context.AfterFunc(ctx, func() { c.NetConn().Close() })
	defer end()
	peer, err := v.connect(ctx, c)
	if err != nil {
		v.log.Debug("a stranger was not brought to an inviter", "peer", peer, "endpoint", c.RemoteAddr().String(), "err", err)
	}
}

// connect does what a stranger asks for.
func (v *Via) connect(ctx context.Context, c *tls.Conn) (peer string, err error) {
	var q viaRequest
	c.SetReadDeadline(time.Now().Add(timeout))
	if err := read(c, &q); err != nil {
		return "", err
	}
	c.SetReadDeadline(time.Time{}) // serve ends it
	no := func(err error) error { return errors.Join(err, write(c, viaAnswer{Error: err.Error()})) }
	select {
	case v.places <- struct{}{}:
		defer func() { <-v.places }()
	default:
		return "", no(errors.New("too many join through this node now; try again in a minute"))
	}
	r := v.find(q.Inviter)
	if r == nil {
		return "", no(errors.New("no such inviter is known here"))
	}
	peer = r.Node.Name
	dctx, cancel := context.WithTimeout(ctx, viaConnect)
	defer cancel()
	far, err := v.dial(dctx, "tcp", net.JoinHostPort(r.Node.Addrs[0].String(), strconv.Itoa(int(r.Join))))
	if err != nil {
		return peer, errors.Join(err, no(errors.New("the inviter cannot be reached from here now: is it up?")))
	}
	defer far.Close()
	end := context.AfterFunc(ctx, func() { far.Close() })
	defer end()
	if err := write(c, viaAnswer{}); err != nil {
		return peer, err
	}
	v.log.Info("a stranger speaks to an inviter through this node", "peer", peer, "endpoint", c.RemoteAddr().String())
	ended := make(chan error, 2)
	pipe := func(to io.Writer, from io.Reader) {
		n, err := io.Copy(to, io.LimitReader(from, viaBytes))
		if err == nil && n == viaBytes {
			err = fmt.Errorf("more than %d bytes", viaBytes)
		}
		ended <- err
	}
	go pipe(far, c)
	go pipe(c, far)
	err = <-ended // what came before the end has been passed on
	far.Close()
	c.NetConn().Close()
	<-ended
	return peer, err
}

// find returns the record of the inviter with this key.
func (v *Via) find(key []byte) *identity.Record {
	for _, r := range v.records() {
		if h := r.Node.KeyHash(); r.Join != 0 && string(h[:]) == string(key) {
			return r
		}
	}
	return nil
}

// Members returns where strangers reach members: one TCP "host:port" each of the first MaxVia that have an address in
// the public Internet. Whether their firewalls let anybody through, their records do not say.
func Members(records []*identity.Record) (out []string) {
	for _, r := range records {
		if e, ok := publicEndpoint(r); ok && len(out) < MaxVia {
			out = append(out, e)
		}
	}
	return out
}

// publicEndpoint prefers names, which somebody has set, and IPv4, which everybody has. TCP's port is UDP's.
func publicEndpoint(r *identity.Record) (string, bool) {
	if len(r.Hosts) > 0 {
		return r.Hosts[0], true
	}
	var six netip.AddrPort
	for _, e := range r.Endpoints {
		switch {
		case !Public(e.Addr()):
		case e.Addr().Is4():
			return e.String(), true
		case !six.IsValid():
			six = e
		}
	}
	return six.String(), six.IsValid()
}

// shared is the address space behind carriers' NATs (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// Public reports whether an address may be reached from anywhere.
func Public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}
