// SPDX-License-Identifier: MIT

package resolver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// A backup is what the store holds, as lines of JSON: the first says of what, each other one has a key and its value. Since
// every value is signed for its key, a backup can come from anywhere, and goes back into any store of the same mesh.

// backupHead is a backup's first line.
type backupHead struct {
	Kind     string    `json:"kind"` // backupKind
	Zone     string    `json:"zone"`
	Revision int64     `json:"revision"`
	At       time.Time `json:"at"`
}

const backupKind = "mesh store backup v1"

type backupLine struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// maxBackupLine bounds a line in bytes: a value with each byte escaped.
const maxBackupLine = 6*store.MaxValue + 4096

// Backup writes all that the store holds as of now, and returns how many values that is.
func (r *Resolver) Backup(ctx context.Context, w io.Writer) (int, error) {
	if r.cfg.Store == nil {
		return 0, errNoStore
	}
	kvs, rev, err := r.cfg.Store.Load(ctx)
	if err != nil {
		return 0, err
	}
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(backupHead{backupKind, r.cfg.Zone, rev, time.Now().UTC().Truncate(time.Second)}); err != nil {
		return 0, err
	}
	for _, kv := range kvs {
		if err := e.Encode(backupLine{kv.Key, string(kv.Value)}); err != nil {
			return 0, err
		}
	}
	return len(kvs), b.Flush()
}

var errNoStore = errors.New("this node has no store")

// Restored is what Restore has done.
type Restored struct {
	Put     int      // values put back
	Newer   int      // values that the store has in this version, or a newer one
	Refused []string // keys of values that are nobody's now, and why; at most 20
	Others  int      // as many more
}

// Restore puts back what a backup has and the store lacks, or has in an older version. A value is taken only if its owner
// signed it and is a member now. Where it ends early the error says why, and it can be done again.
func (r *Resolver) Restore(ctx context.Context, in io.Reader) (done Restored, err error) {
	if r.cfg.Store == nil {
		return done, errNoStore
	}
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxBackupLine)
	var head backupHead
	if !s.Scan() || json.Unmarshal(s.Bytes(), &head) != nil || head.Kind != backupKind {
		return done, errors.Join(errors.New("this is no backup of a store (mesh store backup makes them)"), s.Err())
	}
	if head.Zone != r.cfg.Zone {
		return done, fmt.Errorf("this is a backup of the zone %s; the mesh has %s", head.Zone, r.cfg.Zone)
	}
	for n := 2; s.Scan(); n++ {
		var l backupLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return done, fmt.Errorf("line %d of the backup is damaged: %w", n, err)
		}
		if err := r.restore(ctx, l, &done); err != nil {
			return done, fmt.Errorf("%s: %w", l.Key, err)
		}
	}
	return done, s.Err()
}

func (r *Resolver) restore(ctx context.Context, l backupLine, done *Restored) error {
	v, err := store.Open(l.Key, []byte(l.Value), r.cfg.Verifier)
	if owner, _, _ := strings.Cut(l.Key, "/"); err == nil && owner != "_claims" && owner != v.Owner {
		err = errors.New("it lies below another node's name")
	}
	if err != nil {
		if len(done.Refused) < 20 {
			done.Refused = append(done.Refused, fmt.Sprintf("%s: %v", l.Key, err))
		} else {
			done.Others++
		}
		return nil
	}
	for {
		now, err := r.cfg.Store.Get(ctx, l.Key)
		if err != nil {
			return err
		}
		// Who holds a claim now keeps it, whenever it was made.
		if old, err := store.Open(l.Key, now.Value, r.cfg.Verifier); err == nil && (old.Seq >= v.Seq || old.Owner != v.Owner) {
			done.Newer++
			return nil
		}
		_, err = r.cfg.Store.Commit(ctx, []store.Cond{{Key: l.Key, Rev: now.Modified}}, []store.Op{{Key: l.Key, Value: []byte(l.Value)}})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err == nil {
			done.Put++
		}
		return err
	}
}
