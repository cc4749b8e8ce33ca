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
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/identity"
)

const (
	maxFrame    = 65535
	timeout     = 15 * time.Second // of one whole conversation, either side
	maxSessions = 16               // conversations at a time; more wait in the listener's backlog
)

// Server lets invited strangers in.
type Server struct {
	Identity *identity.Identity // with the mesh's key
	Book     *Book
	Mesh     func() Mesh                  // what a new node is told
	Records  func() []*identity.Record    // whom it gets to know at once
	Evicted  func() []*identity.Tombstone // and of whom it takes nothing, the latest first
	Learn    func(record []byte) error    // takes the new node's record
	Log      *slog.Logger
}

// Serve answers on l until ctx ends, then closes l and returns when every conversation has ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	cfg := s.Identity.TLS()
	cfg.ClientAuth = tls.NoClientCert
	cfg.SessionTicketsDisabled = true
	cfg.Certificates[0].Certificate = append(cfg.Certificates[0].Certificate, s.Identity.CA.Cert.Raw)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxSessions)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if c != nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting strangers: %w", err)
		}
		slots <- struct{}{} // freed within timeout
		wg.Go(func() {
			defer func() { c.Close(); <-slots }()
			c.SetDeadline(time.Now().Add(timeout))
			end := context.AfterFunc(ctx, func() { c.Close() })
			defer end()
			name, err := s.converse(tls.Server(c, cfg))
			switch {
			case err == nil:
				s.Log.Info("a node joined", "peer", name, "endpoint", c.RemoteAddr().String())
			case name != "" || errors.As(err, new(refusal)):
				s.Log.Warn("a stranger was not let in", "peer", name, "endpoint", c.RemoteAddr().String(), "err", err)
			default: // scanners
				s.Log.Debug("a connection came to nothing", "endpoint", c.RemoteAddr().String(), "err", err)
			}
		})
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
	a6, err := s.Identity.CA.Addr6(pub)
	if err != nil {
		return welcome{}, inv.Name, err
	}
	m := s.Mesh()
	cert, err := s.Identity.CA.Issue(inv.Name, m.Domain, []netip.Addr{inv.Addr, a6}, pub)
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
}

// Join redeems t for a node with these keys. It tries the token's endpoints in turn and returns the inviter's refusal,
// or why each endpoint failed. With the same keys it may be called again.
func Join(ctx context.Context, t Token, key *ecdsa.PrivateKey, wg *ecdh.PrivateKey) (*Result, error) {
	var errs []error
	for _, e := range t.Endpoints {
		r, err := joinAt(ctx, e, t, key, wg)
		if err == nil || errors.As(err, new(refusal)) {
			return r, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", e, err))
	}
	return nil, fmt.Errorf("the inviter could not be reached: %w", errors.Join(errs...))
}

func joinAt(ctx context.Context, endpoint string, t Token, key *ecdsa.PrivateKey, wg *ecdh.PrivateKey) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var ca *identity.CA
	d := tls.Dialer{Config: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection below checks against the token's pins instead of names
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			ca, err = checkPins(t, cs.PeerCertificates)
			return err
		},
	}}
	c, err := d.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	dl, _ := ctx.Deadline()
	c.SetDeadline(dl)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()

	csr, err := request(key)
	if err != nil {
		return nil, err
	}
	if err := write(c, hello{Secret: t.Secret[:], CSR: csr}); err != nil {
		return nil, err
	}
	var w welcome
	if err := read(c, &w); err != nil {
		return nil, err
	}
	if w.Error != "" {
		return nil, refusal{"the inviter says: " + printable(w.Error)}
	}
	res := &Result{Mesh: w.Mesh}
	var chain []*x509.Certificate
	for _, der := range w.Chain {
		crt, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate that the inviter issued: %w", err)
		}
		chain = append(chain, crt)
	}
	if res.Identity, err = identity.New(ca, chain, key, wg); err != nil {
		return nil, fmt.Errorf("the certificate that the inviter issued: %w", err)
	}
	for _, b := range w.Records {
		r, err := ca.ParseRecord(b)
		if err != nil {
			return nil, fmt.Errorf("the inviter sent a bad node record: %w", err)
		}
		res.Records = append(res.Records, r)
	}
	for _, b := range w.Evicted {
		t, err := ca.ParseTombstone(b)
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

// checkPins finds the pinned root among the certificates shown and checks that the pinned inviter is of it.
func checkPins(t Token, shown []*x509.Certificate) (*identity.CA, error) {
	bad := errors.New("somebody other than the inviter answered there: the address leads elsewhere, or somebody listens in between; nothing was sent")
	if len(shown) == 0 || keyHash(shown[0]) != t.Inviter {
		return nil, bad
	}
	for _, c := range shown[1:] {
		if keyHash(c) == t.Root {
			ca := &identity.CA{Cert: c}
			if _, err := ca.Verify(shown[:1]); err != nil {
				return nil, bad
			}
			return ca, nil
		}
	}
	return nil, bad
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
