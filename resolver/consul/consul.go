// SPDX-License-Identifier: MIT

// Package consul answers the part of Consul's HTTP API that people's programs read (consul-template, Prometheus's
// consul_sd_configs, scripts with curl): nodes, services and their health, from the View. It is read-only but for reports of
// checks, where they are taken.
//
// It must never answer anybody who is neither on this machine nor on the mesh, nor a browser that a foreign name has led
// here, and knows nothing of where names come from. Run owns the sockets and all goroutines.
package consul

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"mesh.internal/mesh/resolver"
)

// Config is what a Server needs. All but Near, Report and Problem are required.
type Config struct {
	Addrs   []netip.AddrPort
	Self    string // this node
	View    func() *resolver.View
	Changed func() <-chan struct{}                  // closed when View has changed after the call
	Near    func(node string) time.Duration         // round trip, negative if there is none measured; nil: none is
	Report  func(check, state, output string) error // of a check of this node, for /v1/agent/check; nil: none are taken
	Problem func(addr netip.AddrPort, err error)    // an address that cannot be had, while others can; nil: it is logged
	Log     *slog.Logger
}

// Server answers Consul's API.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

const (
	maxConns = 256              // to one address; each blocking query has one
	maxBody  = 64 << 10         // bytes of a report
	waitMost = 10 * time.Minute // of a blocking query
	wait     = 5 * time.Minute  // of one that says nothing else
	ending   = time.Second      // for answers to those who wait when Run ends
)

// New returns a Server that does nothing yet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	for pattern, f := range map[string]func(*resolver.View, *http.Request) (any, error){
		"/v1/catalog/datacenters":       func(v *resolver.View, _ *http.Request) (any, error) { return []string{datacenter(v)}, nil },
		"/v1/catalog/nodes":             s.nodes,
		"/v1/catalog/node/{node}":       s.node,
		"/v1/catalog/services":          s.services,
		"/v1/catalog/service/{service}": s.catalog,
		"/v1/health/service/{service}":  s.health,
		"/v1/health/checks/{service}":   s.checks,
		"/v1/health/node/{node}":        s.nodeChecks,
		"/v1/health/state/{state}":      s.state,
		"/v1/agent/self":                s.self,
		"/v1/agent/services":            s.ownServices,
		"/v1/status/leader":             func(v *resolver.View, _ *http.Request) (any, error) { return s.address(v), nil },
		"/v1/status/peers":              func(v *resolver.View, _ *http.Request) (any, error) { return []string{s.address(v)}, nil },
	} {
		s.mux.HandleFunc("GET "+pattern, s.blocking(f))
	}
	for verb, state := range map[string]string{"pass": "passing", "warn": "warning", "fail": "critical"} {
		s.mux.HandleFunc("PUT /v1/agent/check/"+verb+"/{check...}", func(w http.ResponseWriter, r *http.Request) {
			s.report(w, r.PathValue("check"), state, r.FormValue("note"))
		})
	}
	s.mux.HandleFunc("PUT /v1/agent/check/update/{check...}", func(w http.ResponseWriter, r *http.Request) {
		var u struct{ Status, Output string }
		if err := json.NewDecoder(r.Body).Decode(&u); err != nil {
			http.Error(w, "Request decode failed: "+err.Error(), http.StatusBadRequest)
			return
		}
		s.report(w, r.PathValue("check"), u.Status, u.Output)
	})
	return s
}

// Run answers until ctx ends. It fails at once if no address can be had.
func (s *Server) Run(ctx context.Context) error {
	var all []net.Listener
	var errs []error
	for _, a := range s.cfg.Addrs {
		l, err := net.Listen("tcp", a.String())
		if err != nil {
			err = fmt.Errorf("answering Consul's HTTP API: %w", err)
			errs = append(errs, err)
			if s.cfg.Problem != nil {
				s.cfg.Problem(a, err)
			} else {
				s.cfg.Log.Warn("an address to answer Consul's HTTP API at cannot be had", "endpoint", a.String(), "err", err)
			}
			continue
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return errors.Join(errs...)
	}
	return s.serve(ctx, all)
}

// serve answers at listeners, which it closes, until ctx ends. Those who wait then are answered.
func (s *Server) serve(ctx context.Context, all []net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx }}
	var wg sync.WaitGroup
	failed := make(chan error, len(all))
	for _, l := range all {
		wg.Go(func() { failed <- srv.Serve(netutil.LimitListener(l, maxConns)) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("answering Consul's HTTP API: %w", err)
		cancel()
	}
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), ending)
	defer done()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	wg.Wait()
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := s.cfg.View()
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if a := from.Addr().Unmap().WithZone(""); err != nil || !a.IsLoopback() && !v.InPrefixes(a) {
		http.Error(w, "only this machine and the mesh may ask", http.StatusForbidden)
		return
	}
	if !ours(v, r.Host) {
		http.Error(w, fmt.Sprintf("%q is none of this node's names: ask for its address, localhost, or a name of %s", r.Host, v.Zone), http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.mux.ServeHTTP(w, r)
}

// ours reports whether a Host header is one that those who mean this server send. A page of a foreign site whose name leads
// here sends that name.
func ours(v *resolver.View, host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	h, _ := v.Lookup(host)
	return host == "localhost" || h != nil || strings.HasSuffix(host, "."+v.Zone)
}

// blocking answers with what f makes of the View: with the "index" of the present one when that is another, or "wait" is over
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
func (s *Server) blocking(f func(*resolver.View, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		after, err := strconv.ParseUint(orZero(q.Get("index")), 10, 64)
		if err != nil {
			http.Error(w, "Invalid index", http.StatusBadRequest)
			return
		}
		limit := wait
		if t := q.Get("wait"); t != "" {
			if limit, err = time.ParseDuration(t); err != nil {
				http.Error(w, "Invalid wait time", http.StatusBadRequest)
				return
			}
			if limit <= 0 { // as Consul has it
				limit = wait
			}
		}
		if dc := q.Get("dc"); dc != "" && dc != datacenter(s.cfg.View()) {
			http.Error(w, "No path to datacenter", http.StatusInternalServerError)
			return
		}
		if q.Get("filter") != "" {
			http.Error(w, "filter is not understood here: use tag, node-meta and passing", http.StatusBadRequest)
			return
		}
		limit = min(limit, waitMost)
		limit += rand.N(limit/16 + 1)
		end := time.NewTimer(limit)
		defer end.Stop()
		var before []byte
		for {
			changed := s.cfg.Changed()
			v := s.cfg.View()
			answer, err := f(v, r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			b, err := json.Marshal(answer)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			index := indexOf(v)
			if before == nil && index != after || before != nil && !bytes.Equal(before, b) {
				s.send(w, index, b)
				return
			}
			before = b
			select {
			case <-r.Context().Done(): // Run ends, or nobody is there to hear it
				s.send(w, index, b)
				return
			case <-end.C:
				s.send(w, index, b)
				return
			case <-changed:
			}
		}
	}
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// indexOf is a View's index: later is larger, also after a restart.
func indexOf(v *resolver.View) uint64 { return uint64(max(v.Built.UnixMilli(), 1)) }

func (s *Server) send(w http.ResponseWriter, index uint64, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
	h.Set("X-Consul-KnownLeader", "true")
	h.Set("X-Consul-LastContact", "0")
	w.Write(append(b, '\n'))
}

// report takes a report of a check of this node.
func (s *Server) report(w http.ResponseWriter, check, state, output string) {
	if s.cfg.Report == nil {
		http.Error(w, "reports are not taken here: set consul_reports = true in mesh.toml, or use mesh service pass, warn and fail", http.StatusForbidden)
		return
	}
	check = strings.TrimPrefix(check, "service:") // as Consul calls the check of a service
	if err := s.cfg.Report(check, state, output); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	io.WriteString(w, "")
}

// datacenter is the name that answers give: all of a mesh is one.
func datacenter(v *resolver.View) string {
	first, _, _ := strings.Cut(v.Zone, ".")
	return first
}

var errNear = errors.New("near is a node's name or _agent, and only _agent is known here")

// near sorts by the round trip to a service's owner, where the query asks for that; those to whom it is not known come last.
func near[T any](s *Server, r *http.Request, list []T, owner func(T) string) error {
	switch n := r.URL.Query().Get("near"); {
	case n == "":
		return nil
	case n != "_agent" && n != s.cfg.Self || s.cfg.Near == nil:
		return errNear
	}
	far := func(node string) time.Duration {
		if d := s.cfg.Near(node); d >= 0 {
			return d
		}
		return time.Hour
	}
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(far(owner(a)), far(owner(b))) })
	return nil
}
