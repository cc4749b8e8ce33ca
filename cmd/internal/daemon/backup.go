// SPDX-License-Identifier: MIT

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
)

// Nodes that keep the store keep backups of it too, one a day.

const (
	backupEvery = 24 * time.Hour
	backupsKept = 7
	maxBackup   = 512 << 20 // bytes of one that is restored
)

func (d *daemon) backups() (dir string, files []string) {
	dir = filepath.Join(d.opts.Paths.State, "backups")
	files, _ = filepath.Glob(filepath.Join(dir, "names-*.jsonl"))
	slices.Sort(files)
	return dir, files
}

func (d *daemon) lastBackup() time.Time {
	_, files := d.backups()
	if len(files) == 0 {
		return time.Time{}
	}
	i, err := os.Stat(files[len(files)-1])
	if err != nil {
		return time.Time{}
	}
	return i.ModTime().Truncate(time.Second)
}

// keepBackups makes a backup each day, where this node keeps the store, until ctx ends.
func (d *daemon) keepBackups(ctx context.Context) error {
	for {
		wait := time.Minute
		if d.node.Roster().Has(d.id.Node.Name) && d.ownStore() && time.Since(d.lastBackup()) >= backupEvery {
			if err := d.backup(ctx); err != nil && ctx.Err() == nil {
				d.warn("backup", "the names are not backed up: "+err.Error())
				wait = time.Hour
			} else {
				d.warn("backup", "")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (d *daemon) backup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var b bytes.Buffer
	if _, err := d.names.Backup(ctx, &b); err != nil {
		return err
	}
	dir, _ := d.backups()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := filepath.Join(dir, "names-"+time.Now().UTC().Format("20060102-150405")+".jsonl")
	if err := config.WriteFile(name, b.Bytes(), 0o600); err != nil {
		return err
	}
	_, files := d.backups()
	for _, old := range files[:max(len(files)-backupsKept, 0)] {
		if err := os.Remove(old); err != nil {
			return err
		}
	}
	return nil
}

// sendBackup answers with a backup as of now.
func (d *daemon) sendBackup(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer // whole, so that an error is one
	if _, err := d.names.Backup(r.Context(), &b); err != nil {
		answer(func(*http.Request) (any, error) { return nil, err })(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Write(b.Bytes())
}

// takeBackup puts back what a backup has and the store lacks.
func (d *daemon) takeBackup(w http.ResponseWriter, r *http.Request) {
	http.NewResponseController(w).SetReadDeadline(time.Time{}) // a backup of many names takes its time
	http.NewResponseController(w).SetWriteDeadline(time.Time{})
	done, err := d.names.Restore(r.Context(), http.MaxBytesReader(w, r.Body, maxBackup))
	out := api.Restored{Put: done.Put, Newer: done.Newer, Refused: done.Refused, Others: done.Others}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		json.NewEncoder(w).Encode(api.Error{Message: errors.Join(err).Error()})
		return
	}
	json.NewEncoder(w).Encode(out)
}
