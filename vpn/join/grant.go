// SPDX-License-Identifier: MIT

package join

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/identity"
	"mesh.internal/mesh/vpn/tcp"
)

// A member that may invite does not get the mesh's key: it asks a node that has it, over TLS between members, and that one
// makes the invitation and lets the new node in. So what a member may is decided where the key is, at both times.

// InviteProtocol is the name in ALPN of asking for an invitation.
const InviteProtocol = "mesh-invite/1"

// MaxOpen bounds the invitations of one member that nobody has used yet.
const MaxOpen = 20

// Grant lets a node invite.
type Grant struct {
	Node   string    `json:"node"`
	Serial string    `json:"serial"`          // of its certificate: another node of that name may not
	Below  string    `json:"below,omitempty"` // only names that begin with this label and a hyphen
	At     time.Time `json:"at"`
}

// Grants keeps the grants of a mesh's key in a file. It is safe for concurrent use.
type Grants struct {
	path string

	mu sync.Mutex // guards the file
}

// NewGrants returns the grants in the file at path, which need not exist yet.
func NewGrants(path string) *Grants { return &Grants{path: path} }

// All lists the grants, sorted by node.
func (g *Grants) All() ([]Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.load()
}

// Set lets a node invite, in place of what it was granted before; below is a label or empty.
func (g *Grants) Set(n identity.Node, below string) error {
	if below != "" {
		if err := identity.CheckName(below); err != nil {
			return err
		}
	}
	return g.change(n.Name, &Grant{Node: n.Name, Serial: n.Serial.String(), Below: below, At: time.Now().Truncate(time.Second)})
}

// Take takes a node's grant back.
func (g *Grants) Take(name string) error { return g.change(name, nil) }

func (g *Grants) change(name string, to *Grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	all, err := g.load()
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(all), func(x Grant) bool { return x.Node == name })
	if to != nil {
		left = append(left, *to)
	} else if len(left) == len(all) {
		return fmt.Errorf("%s was not granted anything: `mesh grant` lists who was", name)
	}
	slices.SortFunc(left, func(a, b Grant) int { return strings.Compare(a.Node, b.Node) })
	return saveJSON(g.path, left)
}

// Check reports whether the node with this certificate may invite a node of that name now.
func (g *Grants) Check(node, serial, name string) error {
	all, err := g.All()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(x Grant) bool { return x.Node == node && x.Serial == serial })
	if i < 0 {
		return refusal{node + " may not invite: run `mesh grant " + node + " invite` on the node where `mesh init` was run"}
	}
	if b := all[i].Below; b != "" && !strings.HasPrefix(name, b+"-") {
		return refusal{fmt.Sprintf("%s may invite nodes whose names begin with %s- only", node, b)}
	}
	return nil
}

func (g *Grants) load() (all []Grant, err error) {
	b, err := os.ReadFile(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("reading who may invite (%s): %w", g.path, err)
	}
	return all, nil
}

// Request is what a member asks for.
type Request struct {
	Name    string        `cbor:"1,keyasint"`
	Addr    netip.Addr    `cbor:"2,keyasint"` // zero: the lowest free one
	Expires time.Duration `cbor:"3,keyasint"`
}

// Reply is what it gets.
type Reply struct {
	Token   string     `cbor:"1,keyasint"`
	Addr    netip.Addr `cbor:"2,keyasint"`
	Expires time.Time  `cbor:"3,keyasint"`
	Warning string     `cbor:"4,keyasint,omitempty"`
	Error   string     `cbor:"5,keyasint,omitempty"`
}

// Desk makes invitations for members.
type Desk struct {
	Identity *identity.Identity // with the mesh's key
	Book     *Book
	Grants   *Grants
	Invite   func(ctx context.Context, by identity.Node, q Request) (Reply, error) // Check has allowed it
	Log      *slog.Logger
}

// Protocol is what serves members.
func (d *Desk) Protocol() tcp.Protocol { return tcp.Protocol{TLS: d.Identity.TLS(), Serve: d.serve} }

func (d *Desk) serve(ctx context.Context, c *tls.Conn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c.SetDeadline(time.Now().Add(timeout))
	end := context.AfterFunc(ctx, func() { c.NetConn().Close() })
	defer end()
	n, err := d.Identity.CA.Verify(c.ConnectionState().PeerCertificates)
	var q Request
	if err == nil {
		err = read(c, &q)
	}
	var r Reply
	if err == nil {
		r, err = d.reply(ctx, n, q)
	}
	if err != nil {
		d.Log.Warn("an invitation was refused", "peer", n.Name, "err", err)
		r = Reply{Error: err.Error()}
	} else {
		d.Log.Info("an invitation was made", "peer", n.Name, "name", q.Name)
	}
	write(c, r)
}

func (d *Desk) reply(ctx context.Context, n identity.Node, q Request) (Reply, error) {
	if err := errors.Join(identity.CheckName(q.Name), d.Grants.Check(n.Name, n.Serial.String(), q.Name)); err != nil {
		return Reply{}, err
	}
	open, err := d.Book.Open()
	if err != nil {
		return Reply{}, err
	}
	if len(slices.DeleteFunc(open, func(i Invitation) bool { return i.By != n.Name })) >= MaxOpen {
		return Reply{}, fmt.Errorf("%d invitations of %s are open, more are not made until some are used or have expired", MaxOpen, n.Name)
	}
	return d.Invite(ctx, n, q)
}

// Ask asks the node of record r, which has the mesh's key as it says, for an invitation.
func Ask(ctx context.Context, dial tcp.Dial, id *identity.Identity, r *identity.Record, q Request) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", netip.AddrPortFrom(r.Node.Addrs[0], r.Join).String())
	if err != nil {
		return Reply{}, err
	}
	defer raw.Close()
	cfg := id.TLS()
	cfg.ServerName, cfg.NextProtos = r.Node.Name, []string{InviteProtocol}
	c := tls.Client(raw, cfg)
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	if err := c.HandshakeContext(ctx); err != nil {
		return Reply{}, err
	}
	if c.ConnectionState().NegotiatedProtocol != InviteProtocol {
		return Reply{}, errors.New("its version of mesh is older")
	}
	var a Reply
	if err := write(c, q); err != nil {
		return Reply{}, err
	}
	if err := read(c, &a); err != nil {
		return Reply{}, err
	}
	if a.Error != "" {
		return Reply{}, refusal{r.Node.Name + " says: " + printable(a.Error)}
	}
	t, err := ParseToken(a.Token)
	if err == nil && (t.Root != id.CA.Fingerprint() || t.Name != q.Name) {
		err = errors.New("it is for another mesh or another name")
	}
	if err != nil {
		return Reply{}, fmt.Errorf("the invitation of %s: %w", r.Node.Name, err)
	}
	a.Warning = printable(a.Warning)
	return a, nil
}
