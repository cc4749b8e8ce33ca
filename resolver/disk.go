// SPDX-License-Identifier: MIT

package resolver

import (
	"bytes"
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
// need not be trusted. What has changed since is in names.log, a logLine a save; it goes before names.json is made anew.
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

// logLine is a line of names.log.
type logLine struct {
	Revision int64    `json:"revision"`
	Keys     []logged `json:"keys"`
}

// logged is what became of a key: without a value it is gone.
type logged struct {
	cached
	Seq      uint64    `json:"seq,omitempty"`
	LastSeen time.Time `json:"last_seen,omitzero"`
}

// names.log may have as many bytes as a part of names.json, and logLeast at any rate; then names.json is made anew.
const (
	logShare = 2 // the half
	logLeast = 64 << 10
)

// loadDisk reads what the last run has kept. A damaged file is set aside, never a reason not to start.
func (r *Resolver) loadDisk() {
	var c cache
	err := readJSON(r.cacheFile(), &c)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.cfg.Log.Warn("the names kept on disk cannot be read; they come back with the store", "err", err)
	}
	lines, whole := readLog(r.logFile())
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
	r.rev, r.stale = c.Revision, nil
	maps.Copy(r.seqs, c.Seqs)
	maps.Copy(r.lastSeen, c.LastSeen)
	values := make(map[string]cached, len(c.Values))
	for _, kv := range c.Values {
		values[kv.Key] = kv
	}
	for _, l := range lines {
		r.rev = l.Revision
		for _, k := range l.Keys {
			values[k.Key], r.lastSeen[k.Key] = k.cached, k.LastSeen
			if k.Seq > 0 {
				r.seqs[k.Key] = k.Seq
			}
			if k.Value == "" {
				delete(values, k.Key)
			}
			if k.LastSeen.IsZero() {
				delete(r.lastSeen, k.Key)
			}
		}
	}
	for key, kv := range values {
		v := &value{kv: store.KV{Key: key, Value: []byte(kv.Value), Created: kv.Created, Modified: kv.Modified}}
		r.check(key, v)
		r.values[key] = v
		if len(v.val.Record) > 0 {
			records = append(records, v.val.Record)
		}
	}
	if whole && err == nil {
		r.unkept = map[string]bool{}
	}
	r.mu.Unlock()
	if r.cfg.LearnNode != nil {
		for _, rec := range records {
			r.cfg.LearnNode(rec) // what is wrong with one was said when it came
		}
	}
}

// readLog reads names.log as far as it is whole: a crash may have left a part of the last line.
func readLog(path string) (lines []logLine, whole bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, errors.Is(err, fs.ErrNotExist)
	}
	for len(b) > 0 {
		text, rest, ended := bytes.Cut(b, []byte("\n"))
		var l logLine
		if !ended || json.Unmarshal(text, &l) != nil {
			return lines, false
		}
		lines, b = append(lines, l), rest
	}
	return lines, true
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

// saveCache appends what has changed to names.log, or makes names.json anew.
func (r *Resolver) saveCache() {
	r.mu.Lock()
	keys := r.unkept
	r.unkept = map[string]bool{}
	r.mu.Unlock()
	var err error
	if keys == nil {
		err = r.saveAll()
	} else {
		err = r.saveLog(keys)
	}
	if err != nil {
		r.mu.Lock()
		r.unkept = nil
		r.mu.Unlock()
		r.cfg.Log.Warn("names are not kept on disk", "err", err)
	}
}

func size(path string) int64 {
	if st, err := os.Stat(path); err == nil {
		return st.Size()
	}
	return 0
}

// keep reports whether a value is worth keeping: what was refused was never anybody's.
func (v *value) keep() bool {
	return v != nil && (v.err == nil || errors.Is(v.err, store.ErrUnknownOwner))
}

func (r *Resolver) saveAll() error {
	r.mu.Lock()
	c := cache{Revision: r.rev, Seqs: maps.Clone(r.seqs), LastSeen: maps.Clone(r.lastSeen)}
	kvs := make([]store.KV, 0, len(r.values))
	for _, v := range r.values {
		if v.keep() {
			kvs = append(kvs, v.kv)
		}
	}
	r.mu.Unlock()
	for _, kv := range kvs {
		c.Values = append(c.Values, cached{kv.Key, string(kv.Value), kv.Created, kv.Modified})
	}
	if err := os.Remove(r.logFile()); err != nil && !errors.Is(err, fs.ErrNotExist) { // first: it goes with the names.json that there was
		return err
	}
	return writeJSON(r.cacheFile(), c)
}

func (r *Resolver) saveLog(keys map[string]bool) error {
	r.mu.Lock()
	l := logLine{Revision: r.rev}
	for key := range keys {
		k := logged{cached{Key: key}, r.seqs[key], r.lastSeen[key]}
		if v := r.values[key]; v.keep() {
			k.Value, k.Created, k.Modified = string(v.kv.Value), v.kv.Created, v.kv.Modified
		}
		l.Keys = append(l.Keys, k)
	}
	r.mu.Unlock()
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if size(r.logFile())+int64(len(b)) > logLeast+size(r.cacheFile())/logShare {
		return r.saveAll()
	}
	f, err := os.OpenFile(r.logFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
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
