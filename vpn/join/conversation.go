// SPDX-License-Identifier: MIT

package join

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// Protocol is the conversation's name in ALPN. Clients that name none mean it too.
const Protocol = "mesh-join/1"

const (
	maxFrame = 65535
	timeout  = 15 * time.Second       // of one whole conversation, either side
	stagger  = 250 * time.Millisecond // between the beginnings of two ways to the inviter
)

// Server lets invited strangers in.
type Server struct {
	Identity *identity.Identity // with the mesh's key
	Book     *Book
	Mesh     func() Mesh                  // what a new node is told
	Records  func() []*identity.Record    // whom it gets to know at once
	Evicted  func() []*identity.Tombstone // and of whom it takes nothing, the latest first
	Learn    func(record []byte) error    // takes the new node's record
	Grants   *Grants                      // who else may invite
	Log      *slog.Logger
}

// Protocol is what serves strangers.
func (s *Server) Protocol() tcp.Protocol { return tcp.Protocol{TLS: open(s.Identity), Serve: s.serve} }

// open is TLS for strangers: they show no certificate, and see the root, which they know by its hash.
func open(id *identity.Identity) *tls.Config {
	cfg := id.TLS()
	cfg.ClientAuth = tls.NoClientCert
	cfg.Certificates[0].Certificate = append(cfg.Certificates[0].Certificate, id.CA.Cert.Raw)
	return cfg
}

func (s *Server) serve(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	end := context.AfterFunc(ctx, func() { c.NetConn().Close() })
	defer end()
	name, err := s.converse(c)
	switch {
	case err == nil:
		s.Log.Info("a node joined", "peer", name, "endpoint", c.RemoteAddr().String())
	case name != "" || errors.As(err, new(refusal)):
		s.Log.Warn("a stranger was not let in", "peer", name, "endpoint", c.RemoteAddr().String(), "err", err)
	default: // scanners
		s.Log.Debug("a connection came to nothing", "endpoint", c.RemoteAddr().String(), "err", err)
	}
}

func (s *Server) converse(c *tls.Conn) (name string, err error) {
	var h hello
	if err := read(c, &h); err != nil {
		return "", err
	}
	w, name, err := s.welcome(h)
	if err != nil {
		var r refusal
		if !errors.As(err, &r) {
			r.msg = "the inviter could not let you in; its log says why"
		}
		return name, errors.Join(err, write(c, welcome{Error: r.msg}))
	}
	if err := write(c, w); err != nil {
		return name, err
	}
	var f finish
	if err := read(c, &f); err != nil {
		return name, err
	}
	rec, err := s.Identity.CA.ParseRecord(f.Record)
	if err == nil && rec.Node.Name != name {
		err = fmt.Errorf("%s sent the record of %s", name, rec.Node.Name)
	}
	if err == nil {
		err = s.Learn(f.Record)
	}
	if err != nil {
		return name, errors.Join(err, write(c, done{Error: "the inviter did not accept the new node's record"}))
	}
	return name, write(c, done{})
}

// welcome checks an invitation and issues the certificate it is good for.
func (s *Server) welcome(h hello) (welcome, string, error) {
	csr, err := x509.ParseCertificateRequest(h.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return welcome{}, "", fmt.Errorf("certificate request: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return welcome{}, "", fmt.Errorf("certificate request has a %T", csr.PublicKey)
	}
	used := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	inv, err := s.Book.redeem(h.Secret, hex.EncodeToString(used[:]))
	if err != nil {
		return welcome{}, "", err
	}
	evicted := s.Evicted()
	var tomb *identity.Tombstone
	if i := slices.IndexFunc(evicted, func(t *identity.Tombstone) bool { return t.Name == inv.Name }); i >= 0 {
		tomb = evicted[i]
	}
	if tomb != nil && !inv.Made.After(tomb.At) { // also one that this very key has used: or who was evicted would be back at once
		return welcome{}, inv.Name, refusal{tomb.String() + ", after this invitation was made; ask for a new one"}
	}
	if inv.By != "" { // who asked for it must be allowed to still
		if err := s.Grants.Check(inv.By, inv.BySerial, inv.Name); err != nil {
			return welcome{}, inv.Name, refusal{inv.By + ", which made this invitation, may not invite any more; ask another for one"}
		}
		by := identity.Node{Name: inv.By, Serial: new(big.Int)}
		by.Serial.SetString(inv.BySerial, 10)
		if i := slices.IndexFunc(evicted, func(t *identity.Tombstone) bool { return t.Voids(by) }); i >= 0 {
			return welcome{}, inv.Name, refusal{evicted[i].String() + ", which made this invitation; ask another for one"}
		}
	}
	a6, err := s.Identity.CA.Addr6(pub)
	if err != nil {
		return welcome{}, inv.Name, err
	}
	m := s.Mesh()
	cert, err := s.Identity.CA.Issue(inv.Name, m.Domain, []netip.Addr{inv.Addr, a6}, pub, inv.Subnets...)
	if err != nil {
		return welcome{}, inv.Name, err
	}
	if leaf := (identity.Node{Name: inv.Name, Serial: cert.SerialNumber}); tomb.Voids(leaf) {
		return welcome{}, inv.Name, refusal{"the inviter's clock is behind: by it " + tomb.Name + " is yet to be evicted; it must be set"}
	}
	w := welcome{Chain: [][]byte{cert.Raw}, Root: s.Identity.CA.Cert.Raw, Mesh: m}
	room := maxFrame - 4096
	for _, t := range evicted {
		if len(t.Bytes())+8 > room-maxFrame*3/4 { // a quarter is theirs
			break
		}
		room -= len(t.Bytes()) + 8
		w.Evicted = append(w.Evicted, t.Bytes())
	}
	for _, r := range s.Records() { // the inviter's own comes first; what does not fit, gossip brings
		if room -= len(r.Bytes()) + 8; room < 0 {
			break
		}
		w.Records = append(w.Records, r.Bytes())
	}
	return w, inv.Name, nil
}

// Result is what a stranger brings home.
type Result struct {
	Identity *identity.Identity
	Mesh     Mesh
	Records  []*identity.Record
	Evicted  []*identity.Tombstone
	Via      string // the member through which the inviter was reached; "" if directly
}

// Join redeems t for a node with these keys. It tries all ways to the inviter, each a little later than the one before,
// and speaks over the first that leads to it; if that breaks, over the next. It returns the inviter's refusal, or why
// each way failed. With the same keys it may be called again. dial is tcp.Direct or goes through a proxy.
func Join(ctx context.Context, dial tcp.Dial, t Token, key *ecdsa.PrivateKey, wg *ecdh.PrivateKey) (*Result, error) {
	ways := ways(t)
	var errs []error
	for len(ways) > 0 {
		c, i, err := tcp.Race(ctx, len(ways), stagger, func(ctx context.Context, i int) (*channel, error) {
			c, err := ways[i].reach(ctx, dial, t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ways[i], err)
			}
			return c, nil
		})
		if err != nil {
			errs = append(errs, err)
			break
		}
		r, err := joinOver(ctx, c, key, wg)
		if err == nil || errors.As(err, new(refusal)) {
			return r, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", ways[i], err))
		ways = slices.Delete(ways, i, i+1)
	}
	return nil, fmt.Errorf("the inviter could not be reached: %w", errors.Join(errs...))
}

func joinOver(ctx context.Context, c *channel, key *ecdsa.PrivateKey, wg *ecdh.PrivateKey) (*Result, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	if err := write(c, hello{Secret: c.token.Secret[:], CSR: csr}); err != nil {
		return nil, err
	}
	var w welcome
	if err := read(c, &w); err != nil {
		return nil, err
	}
	if w.Error != "" {
		return nil, refusal{"the inviter says: " + printable(w.Error)}
	}
	res := &Result{Mesh: w.Mesh, Via: c.via}
	var chain []*x509.Certificate
	for _, der := range w.Chain {
		crt, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate that the inviter issued: %w", err)
		}
		chain = append(chain, crt)
	}
	if res.Identity, err = identity.New(c.ca, chain, key, wg); err != nil {
		return nil, fmt.Errorf("the certificate that the inviter issued: %w", err)
	}
	for _, b := range w.Records {
		r, err := c.ca.ParseRecord(b)
		if err != nil {
			return nil, fmt.Errorf("the inviter sent a bad node record: %w", err)
		}
		res.Records = append(res.Records, r)
	}
	for _, b := range w.Evicted {
		t, err := c.ca.ParseTombstone(b)
		if err != nil {
			return nil, fmt.Errorf("the inviter sent a bad tombstone: %w", err)
		}
		res.Evicted = append(res.Evicted, t)
	}
	rec, err := res.Identity.Record(uint64(time.Now().UnixMilli()), identity.Said{})
	if err != nil {
		return nil, err
	}
	if err := write(c, finish{Record: rec.Bytes()}); err != nil {
		return nil, err
	}
	var dn done
	if err := read(c, &dn); err != nil {
		return nil, err
	}
	if dn.Error != "" {
		return nil, refusal{"the inviter says: " + printable(dn.Error)}
	}
	return res, nil
}

// printable keeps a peer's text from playing with the terminal.
func printable(s string) string {
	if len(s) > 300 {
		s = s[:300]
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

func write(w io.Writer, v any) error {
	b, err := encMode.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fmt.Errorf("message of %d bytes is too large", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func read(r io.Reader, v any) error {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return fmt.Errorf("the connection broke: %w", err)
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("the connection broke: %w", err)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("the other side's message: %w", err)
	}
	return nil
}
