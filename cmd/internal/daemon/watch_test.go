// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/store/storetest"
)

// slow is a client that reads when it is let.
type slow struct {
	header http.Header
	let    chan struct{}
	got    chan api.Event
}

func (s *slow) Header() http.Header             { return s.header }
func (s *slow) WriteHeader(int)                 {}
func (s *slow) Flush()                          {}
func (s *slow) SetReadDeadline(time.Time) error { return nil }

func (s *slow) SetWriteDeadline(time.Time) error { return nil }

func (s *slow) Write(b []byte) (int, error) {
	<-s.let
	var e api.Event
	if err := json.Unmarshal(b, &e); err != nil {
		return 0, err
	}
	s.got <- e
	return len(b), nil
}

// TestWatchSlowly has a client that does not read while a host changes 100 times: it is told once, of the last state.
func TestWatchSlowly(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := names(t, dir, new(storetest.Memory))
		synctest.Wait()
		s := &slow{http.Header{}, make(chan struct{}, 1000), make(chan api.Event, 1000)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			d.watch(s, httptest.NewRequest("GET", "/v1/watch", nil).WithContext(ctx))
			close(ended)
		}()
		for _, want := range []string{"is bkero", "is nibz", "ready"} {
			s.let <- struct{}{}
			e := <-s.got
			got := e.Kind
			if e.Host != nil {
				got += " " + e.Host.Name
			}
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		change := func(addr string, meta string) {
			if _, err := d.names.AddHost(t.Context(), resolver.Host{Name: "printer", Addrs: as(addr), Meta: map[string]string{"n": meta}}); err != nil {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
			synctest.Wait()
		}
		change("10.11.0.77", "0")
		for i := range 100 {
			change("10.11.0.78", fmt.Sprint(i))
		}
		for range cap(s.let) {
			s.let <- struct{}{}
		}
		synctest.Wait()
		var got []string
		for len(s.got) > 0 {
			e := <-s.got
			got = append(got, fmt.Sprintf("%s %v %v", e.Kind, e.Host.Addrs, e.Changed))
		}
		if want := []string{"added [10.11.0.77] []", "changed [10.11.0.78] [addresses metadata]"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if _, err := d.names.RemoveHost(t.Context(), "printer"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if e := <-s.got; e.Kind != api.Removed || e.Host.Name != "printer" || e.Revision == 0 || e.At.IsZero() {
			t.Errorf("removed: %+v", e)
		}
		cancel()
		<-ended
		if n := d.watchers.Load(); n != 0 {
			t.Errorf("%d watchers are left", n)
		}
		d.watchers.Store(mostWatchers)
		w := httptest.NewRecorder()
		if d.watch(w, httptest.NewRequest("GET", "/v1/watch", nil)); w.Code == http.StatusOK || !strings.Contains(w.Body.String(), "too many") {
			t.Errorf("one too many: %d %s", w.Code, w.Body)
		}
	})
}

// TestWatchStays watches through a server whose limits for a request have long passed: they do not hold for a stream.
func TestWatchStays(t *testing.T) {
	d := names(t, t.TempDir(), new(storetest.Memory))
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	d.handleHosts(mux)
	const limit = 50 * time.Millisecond
	srv := &http.Server{Handler: mux, ReadTimeout: limit, WriteTimeout: limit}
	ended := make(chan struct{})
	go func() { srv.Serve(l); close(ended) }()
	defer func() { srv.Close(); <-ended }()
	stop := errors.New("seen enough")
	begun := make(chan struct{})
	watched := make(chan error, 1)
	go func() {
		watched <- api.Client{Path: path}.Watch(t.Context(), func(e api.Event) error {
			switch {
			case e.Kind == api.Ready:
				close(begun)
			case e.Kind == api.Added && e.Host.Name == "printer":
				return stop
			}
			return nil
		})
	}()
	<-begun
	late := time.NewTimer(6 * limit) // the limits are of real time
	<-late.C
	if _, err := d.names.AddHost(t.Context(), resolver.Host{Name: "printer", Addrs: as("10.11.0.77")}); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; !errors.Is(err, stop) {
		t.Errorf("the stream ended: %v", err)
	}
}
