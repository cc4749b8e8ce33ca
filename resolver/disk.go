// SPDX-License-Identifier: MIT

package resolver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"mesh.internal/mesh/resolver/store"
)

// cache is names.json: the last good state of the store. Its values are verified again when it is read, so the file
// need not be trusted.
type cache struct {
	Revision int64             `json:"revision"`
	Values   []cached          `json:"values"`
	Seqs     map[string]uint64 `json:"seqs"`

	LastSeen map[string]time.Time `json:"last_seen,omitempty"` // keys that the store lacks since it began anew
}

type cached struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Created  int64  `json:"created"`
	Modified int64  `json:"modified"`
}

// loadDisk reads what the last run has kept. A damaged file is set aside, never a reason not to start.
func (r *Resolver) loadDisk() {
	var c cache
	if err := readJSON(r.cacheFile(), &c); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.cfg.Log.Warn("the names kept on disk cannot be read; they come back with the store", "err", err)
	}
	var own ownList
	if err := readJSON(r.ownFile(), &own); err != nil && !errors.Is(err, fs.ErrNotExist) {
		own = ownList{}
		r.cfg.Log.Warn("the list of what was added here cannot be read; it comes back from the store", "err", err)
	}
	var records [][]byte
	r.mu.Lock()
	self := r.own
	r.own = own.state()
	r.own.addrs, r.own.record, r.own.health = self.addrs, self.record, self.health // SetSelf and SetHealth may have been first
	for k, s := range c.Seqs {
		r.seqs[k] = s
	}
	for _, kv := range c.Values {
		v := &value{kv: store.KV{Key: kv.Key, Value: []byte(kv.Value), Created: kv.Created, Modified: kv.Modified}}
		r.check(kv.Key, v)
		r.values[kv.Key] = v
		if len(v.val.Record) > 0 {
			records = append(records, v.val.Record)
		}
	}
	for key, since := range c.LastSeen {
		r.lastSeen[key] = since
	}
	r.rev, r.stale = c.Revision, nil
	r.mu.Unlock()
	if r.cfg.LearnNode != nil {
		for _, rec := range records {
			r.cfg.LearnNode(rec) // what is wrong with one was said when it came
		}
	}
}

// saveShare is how many times as long as the cache took to write it is left alone: a tenth of a core, however many names.
const saveShare = 9

// save writes the cache until ctx ends: saveEvery after a change, when programs have it, whose look-ups come first.
func (r *Resolver) save(ctx context.Context) {
	for wait := saveEvery; ; {
		select {
		case <-ctx.Done():
			select {
			case <-r.unsaved:
				r.saveCache()
			default:
			}
			return
		case <-r.unsaved:
		}
		goesOn := sleep(ctx, wait)
		begin := time.Now()
		r.saveCache()
		if !goesOn {
			return
		}
		wait = max(saveEvery, saveShare*time.Since(begin))
	}
}

func (r *Resolver) saveCache() {
	r.mu.Lock()
	c := cache{Revision: r.rev, Seqs: make(map[string]uint64, len(r.seqs)), LastSeen: maps.Clone(r.lastSeen)}
	for k, s := range r.seqs {
		c.Seqs[k] = s
	}
	for k, v := range r.values {
		if v.err == nil || errors.Is(v.err, store.ErrUnknownOwner) {
			c.Values = append(c.Values, cached{k, string(v.kv.Value), v.kv.Created, v.kv.Modified})
		}
	}
	r.mu.Unlock()
	if err := writeJSON(r.cacheFile(), c); err != nil {
		r.cfg.Log.Warn("names are not kept on disk", "err", err)
	}
}

// readJSON reads a file; one that is damaged is renamed to FILE.bad.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errors.Join(fmt.Errorf("%s is damaged (%w) and was set aside as %s.bad", path, err, path), os.Rename(path, path+".bad"))
	}
	return nil
}

// writeJSON replaces a file as a whole, mode 0600.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
