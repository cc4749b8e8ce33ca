// SPDX-License-Identifier: MIT

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver"
	"mesh.internal/mesh/resolver/health"
)

// offers are the services of this node: files and commands say which, checks say how they are, and the resolver tells the
// others.
type offers struct {
	checks *health.Runner

	changing sync.Mutex // held while list is changed
	list     atomic.Pointer[[]config.Service]
}

// now is the list.
func (o *offers) now() []config.Service {
	if l := o.list.Load(); l != nil {
		return *l
	}
	return nil
}

// Services of this node and all others.
func (d *daemon) handleServices(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/services", answer(func(*http.Request) (any, error) { return d.services(), nil }))
	mux.HandleFunc("PUT /v1/services", answer(d.addService))
	mux.HandleFunc("DELETE /v1/services/{name}", answer(d.removeService))
	mux.HandleFunc("POST /v1/services/{name}/report", answer(d.reportService))
	mux.HandleFunc("GET /v1/checks", answer(func(*http.Request) (any, error) {
		return api.Checks{Checks: d.offers.checks.Checks(), History: d.offers.checks.History()}, nil
	}))
}

// newChecks prepares what checks this node's services.
func (d *daemon) newChecks() *health.Runner {
	return health.New(health.Config{Log: d.log, Programs: d.opts.Paths.Programs(), Env: []string{"MESH_NODE=" + d.id.Node.Name, "MESH_DOMAIN=" + d.cfg.Load().Domain}, Lookup: func(host string) []netip.Addr {
		if h, _ := d.names.View().Lookup(host); h != nil {
			return h.Addrs
		}
		return nil
	}})
}

// serveServices keeps what the others know of this node's services what it should be, until ctx ends.
func (d *daemon) serveServices(ctx context.Context) error {
	changes, err := fsnotify.NewWatcher()
	if err != nil {
		d.log.Warn("files of services are read anew on SIGHUP only", "err", err)
		changes = &fsnotify.Watcher{}
	} else {
		defer changes.Close()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { d.offers.checks.Run(ctx) })
	wg.Go(func() { // sets need the disk and the store, and health must not wait for them
		for again := d.offers.checks.Changed(); ; again = d.offers.checks.Changed() {
			d.tellHealth()
			select {
			case <-ctx.Done():
				return
			case <-again:
			}
		}
	})
	for {
		d.readServices(ctx)
		for _, dir := range []string{filepath.Dir(d.opts.Paths.Config), d.opts.Paths.ServiceDir()} {
			if _, err := os.Stat(dir); err == nil && changes.Events != nil && !slices.Contains(changes.WatchList(), dir) {
				changes.Add(dir) // what is not watched is read on SIGHUP
			}
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return nil
			case <-d.reread:
				again = true
			case e := <-changes.Events:
				again = e.Name == d.opts.Paths.ServiceDir() || filepath.Dir(e.Name) == d.opts.Paths.ServiceDir() && strings.HasSuffix(e.Name, ".toml")
			case err := <-changes.Errors:
				d.log.Warn("files of services may have changed unseen", "err", err)
				again = true
			}
		}
		quiet := time.NewTimer(200 * time.Millisecond) // an editor writes more than once
		select {
		case <-ctx.Done():
		case <-quiet.C:
		}
		quiet.Stop()
	}
}

// readServices makes the files, and what was added by command, the services of this node.
func (d *daemon) readServices(ctx context.Context) {
	d.offers.changing.Lock()
	defer d.offers.changing.Unlock()
	before := d.offers.now()
	list, errs := d.opts.Paths.LoadServices(before)
	good := list[:0:0]
	for _, s := range list {
		if _, err := d.offered(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cmp.Or(s.File, d.opts.Paths.ServiceFile()), err))
			at := slices.IndexFunc(before, func(b config.Service) bool { return b.Name == s.Name && b.File == s.File })
			if at < 0 {
				continue
			}
			s = before[at]
		}
		good = append(good, s)
	}
	if _, err := d.offer(ctx, good); err != nil && ctx.Err() == nil {
		errs = append(errs, err)
	}
	text := ""
	if err := errors.Join(errs...); err != nil {
		text = "services: " + err.Error()
	}
	d.warn("services", text)
}

// offer makes list the services of this node. offers.changing is held.
func (d *daemon) offer(ctx context.Context, list []config.Service) (landed bool, err error) {
	checks := map[string][]health.Check{}
	var services []resolver.Service
	for _, s := range list {
		x, err := d.offered(s)
		if err != nil {
			return false, err
		}
		checks[s.Name] = s.Checks
		services = append(services, x)
	}
	if err := d.offers.checks.Set(checks); err != nil {
		return false, err
	}
	d.offers.list.Store(&list)
	d.tellHealth()
	return d.names.SetServices(ctx, services)
}

// tellHealth tells the resolver how this node's services are.
func (d *daemon) tellHealth() {
	now := map[string]resolver.Health{}
	for _, s := range d.offers.now() {
		state, output, since := d.offers.checks.Service(s.Name)
		now[s.Name] = resolver.Health{State: resolver.State(state), Output: output, Since: since}
	}
	d.names.SetHealth(now)
}

// offered is a configured service as the resolver knows it.
func (d *daemon) offered(s config.Service) (resolver.Service, error) {
	out := resolver.Service{Name: s.Name, Type: s.Type, Owner: d.id.Node.Name, Host: d.id.Node.Name, Tags: s.Tags, Meta: s.Meta, Priority: s.Priority, Weight: s.Weight, TTL: time.Duration(s.TTL)}
	if s.Host != "" {
		out.Host = d.relative(s.Host)
	}
	var err error
	if out.Port, out.Proto, err = config.SplitPort(s.Port); err != nil {
		return out, err
	}
	return out, resolver.CheckService(out)
}

func (d *daemon) addService(r *http.Request) (any, error) {
	var s config.Service
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	s.Name, s.File = cmp.Or(s.Name, s.Type), ""
	for _, c := range s.Checks {
		if err := c.Validate(); err != nil {
			return nil, err
		}
		if (len(c.Script) > 0 || len(c.OnChange) > 0) && !fromRoot(r.Context()) {
			return nil, fmt.Errorf("only root may have meshd run programs: use sudo, or write the service into a file of %s", d.opts.Paths.ServiceDir())
		}
	}
	return d.changeServices(r.Context(), s.Name, func(list []config.Service) ([]config.Service, error) { return append(list, s), nil })
}

func (d *daemon) removeService(r *http.Request) (any, error) {
	name := r.PathValue("name")
	return d.changeServices(r.Context(), name, func(list []config.Service) ([]config.Service, error) {
		if !slices.ContainsFunc(d.offers.now(), func(s config.Service) bool { return s.Name == name }) {
			return nil, fmt.Errorf("this node offers no service %q: `mesh service ls` lists those that there are", name)
		}
		return list, nil
	})
}

// changeServices makes of the list of services that were added by command, without the one of that name, what change returns.
func (d *daemon) changeServices(ctx context.Context, name string, change func([]config.Service) ([]config.Service, error)) (any, error) {
	d.offers.changing.Lock()
	defer d.offers.changing.Unlock()
	var files, added []config.Service
	before := d.offers.now()
	for _, s := range before {
		switch {
		case s.File != "" && s.Name == name:
			return nil, fmt.Errorf("the service %q is in %s: change it there, which takes effect at once", name, s.File)
		case s.File != "":
			files = append(files, s)
		case s.Name != name:
			added = append(added, s)
		}
	}
	added, err := change(added)
	if err != nil {
		return nil, err
	}
	landed, err := d.offer(ctx, append(files, added...))
	if err == nil {
		err = d.opts.Paths.SaveServices(added)
	}
	if err != nil {
		_, err2 := d.offer(ctx, before)
		return nil, errors.Join(err, err2)
	}
	return api.Change{Landed: landed}, nil
}

func (d *daemon) reportService(r *http.Request) (any, error) {
	var q api.Report
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, fmt.Errorf("the request is malformed: %w", err)
	}
	return struct{}{}, d.offers.checks.Report(r.PathValue("name"), health.State(q.State), q.Output)
}

func (d *daemon) services() api.Services {
	v := d.names.View()
	out := api.Services{Revision: v.Revision, Domain: v.Zone, Services: []api.Service{}}
	rtt := d.nearness()
	own := map[string]config.Service{}
	for _, s := range d.offers.now() {
		own[s.Name] = s
	}
	add := func(s *resolver.Service) *api.Service {
		x := serviceOf(s)
		if near := rtt(s.Owner); near >= 0 {
			x.RTT = new(ms(near))
		}
		if s.Owner == d.id.Node.Name {
			x.File = own[s.Name].File
			delete(own, s.Name)
		}
		out.Services = append(out.Services, x)
		return &out.Services[len(out.Services)-1]
	}
	for _, s := range v.Services() {
		add(s)
	}
	waiting := d.names.WaitingServices()
	for _, name := range slices.Sorted(maps.Keys(own)) {
		s, err := d.offered(own[name])
		if err != nil {
			continue
		}
		state, output, since := d.offers.checks.Service(name)
		s.Health = resolver.Health{State: resolver.State(state), Output: output, Since: since}
		x := add(&s)
		x.Usable, x.Waiting = false, cmp.Or(waiting[name], fmt.Sprintf("%s has no host %s", s.Owner, s.Host))
	}
	return out
}

// serviceOf is a service of a View as clients see it.
func serviceOf(s *resolver.Service) api.Service {
	x := api.Service{Name: s.Name, Type: s.Type, Proto: s.Proto, Port: s.Port, Owner: s.Owner, Host: s.Host, Instance: s.Instance(), Addrs: s.Addrs, Tags: s.Tags,
		Meta: s.Meta, Priority: s.Priority, Weight: s.Weight, TTL: int(s.TTL / time.Second), State: string(s.Health.State), Output: s.Health.Output, Usable: s.Usable()}
	if !s.Health.Since.IsZero() {
		x.Since = &s.Health.Since
	}
	return x
}
