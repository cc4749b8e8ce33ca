// SPDX-License-Identifier: MIT

package join

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mesh.internal/mesh/vpn/identity"
)

// Invitation is an invitation as its giver keeps it: without the secret, only its hash.
type Invitation struct {
	SecretHash string         `json:"secret_hash"`
	Name       string         `json:"name"`
	Addr       netip.Addr     `json:"addr"`              // IPv4, claimed for the new node
	Subnets    []netip.Prefix `json:"subnets,omitempty"` // that it may be the router of
	Made       time.Time      `json:"made"`
	Expires    time.Time      `json:"expires"`
	UsedBy     string         `json:"used_by,omitempty"` // SHA-256 of the key that redeemed it
	By         string         `json:"by,omitempty"`      // the member that asked for it, and the serial number of its certificate
	BySerial   string         `json:"by_serial,omitempty"`
}

// Book keeps a node's invitations in a file (JSON, 0600, replaced as a whole). It is safe for concurrent use.
type Book struct {
	path string

	mu sync.Mutex // guards the file
}

// NewBook returns the book in the file at path, which need not exist yet.
func NewBook(path string) *Book { return &Book{path: path} }

// keepUsed is how long a used or expired invitation is remembered, so that its refusal can say why.
const keepUsed = 30 * 24 * time.Hour

// Add records an invitation for secret, and which subnets the new node may be the router of.
func (b *Book) Add(secret [16]byte, name string, addr netip.Addr, expires time.Time, subnets ...netip.Prefix) error {
	return b.add(Invitation{SecretHash: hashSecret(secret[:]), Name: name, Addr: addr, Subnets: subnets, Expires: expires})
}

// AddFor records an invitation that a member has asked for.
func (b *Book) AddFor(by identity.Node, secret [16]byte, name string, addr netip.Addr, expires time.Time) error {
	return b.add(Invitation{SecretHash: hashSecret(secret[:]), Name: name, Addr: addr, Expires: expires, By: by.Name, BySerial: by.Serial.String()})
}

func (b *Book) add(i Invitation) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := b.load()
	if err != nil {
		return err
	}
	kept := all[:0]
	for _, x := range all {
		if time.Since(x.Expires) < keepUsed {
			kept = append(kept, x)
		}
	}
	i.Made = time.Now()
	return b.save(append(kept, i))
}

// Open returns the invitations that have neither been used nor expired.
func (b *Book) Open() ([]Invitation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := b.load()
	var open []Invitation
	for _, i := range all {
		if i.UsedBy == "" && time.Now().Before(i.Expires) {
			open = append(open, i)
		}
	}
	return open, err
}

// redeem finds the invitation with this secret and gives it, for good, to the key with the hash used.
func (b *Book) redeem(secret []byte, used string) (Invitation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all, err := b.load()
	if err != nil {
		return Invitation{}, err
	}
	h := []byte(hashSecret(secret))
	for n := range all {
		i := &all[n]
		if subtle.ConstantTimeCompare([]byte(i.SecretHash), h) != 1 {
			continue
		}
		switch {
		case i.UsedBy == used:
			return *i, nil // the answer was lost on the way: the same key may ask again
		case i.UsedBy != "":
			return Invitation{}, refusal{"this invitation has been used already; ask for a new one"}
		case time.Now().After(i.Expires):
			return Invitation{}, refusal{fmt.Sprintf("this invitation expired on %s; ask for a new one", i.Expires.UTC().Format("2006-01-02 15:04 UTC"))}
		}
		i.UsedBy = used
		return *i, b.save(all)
	}
	return Invitation{}, refusal{"this invitation is not known here: it was withdrawn, or was made long ago; ask for a new one"}
}

// refusal is an error that the stranger may read.
type refusal struct{ msg string }

func (r refusal) Error() string { return r.msg }

func hashSecret(s []byte) string {
	h := sha256.Sum256(s)
	return hex.EncodeToString(h[:])
}

func (b *Book) load() ([]Invitation, error) {
	data, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the invitations: %w", err)
	}
	var all []Invitation
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("the file of invitations %s is damaged (%w): move it away; invitations that are still open must be made again", b.path, err)
	}
	return all, nil
}

func (b *Book) save(all []Invitation) error { return saveJSON(b.path, all) }

// saveJSON replaces a file as a whole.
func saveJSON(path string, all any) error {
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data) // CreateTemp made it 0600
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
