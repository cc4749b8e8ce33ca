// SPDX-License-Identifier: MIT

// Package health checks the services of this node: programs with the interface of Nagios plugins, HTTP, TCP, DNS, ping,
// and reports that must come in time. It says how each is and was; it does not know who asks, what is published, or where
// checks are configured, and it never runs what has come over the network.
//
// A check begins as critical, "not checked yet", as Consul's do, and its first result counts at once, within a second of
// Set. Later ones change the state when Rise or Fall of them in a row are better or worse than it; while one waits for
// others to confirm it, the next comes after a fifth of the interval. At most eight run at a time, and each at another
// moment of its interval.
//
// Programs get a process group, which is killed as a whole when the program has ended or is out of time; a small
// environment (PATH, LC_ALL=C, MESH_SERVICE, MESH_CHECK, and Config.Env); no capability, and no way to get one or to
// become another user (no_new_privs); and another user than root unless "root" is said. A meshd that is not root hands
// them to another process of the user that they are for (ServePrograms, meshd-check@.service): so they cannot read what
// meshd can, the node's key above all, nor signal meshd. They run as meshd's own user only where a check names it, and are
// in meshd's sandbox (meshd.service) then. On Windows there are none.
//
// New starts nothing. Run owns every goroutine and program, and all are gone when it returns. All methods may be called
// from any goroutine.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is what a Runner needs.
type Config struct {
	Log     *slog.Logger
	Changed func(Change)                   // is called for each change of state, in order, from Run's goroutine; may be nil
	Env     []string                       // "NAME=value" for every program
	User    string                         // of programs whose check names nobody; default nobody where meshd is root, else mesh-check
	Lookup  func(host string) []netip.Addr // names that are asked for before the system's; may be nil

	// Where meshd is not root: the folder of sockets, one a user and named as that, at which ServePrograms runs programs
	// of other users than meshd's own. Empty: meshd's own user runs all.
	Programs string
}

// Status is how a check is.
type Status struct {
	State  State     `json:"state"`
	Result State     `json:"result,omitempty"` // the last result, which may not have changed the state yet; empty: not checked yet
	Output string    `json:"output"`           // of the last result: at most 4 KiB, valid UTF-8, no control characters
	Perf   string    `json:"perf,omitempty"`   // a plugin's performance data, likewise
	Since  time.Time `json:"since"`            // when the state began
	Last   time.Time `json:"last,omitzero"`    // when the last result came
	Took   Duration  `json:"took"`             // to get it
}

// CheckStatus is a check and how it is.
type CheckStatus struct {
	Service string `json:"service"`
	Check   Check  `json:"check"` // with all defaults filled in
	Status
}

// Change is a change of state.
type Change struct {
	Service string    `json:"service"`
	Check   string    `json:"check"`
	From    State     `json:"from,omitempty"` // empty: it was the first result
	To      State     `json:"to"`
	Output  string    `json:"output"`
	At      time.Time `json:"at"`
}

const (
	parallel    = 8 // checks that run at a time
	maxHistory  = 100
	maxHooks    = 256 // runs of on_change that wait
	maxChecks   = 1000
	notYet      = "not checked yet"
	firstWithin = time.Second // from Set to the first run, where no more than so many wait
)

// check is a check that is being run. Its status is guarded by Runner.mu.
type check struct {
	service string
	Check
	status  Status
	streak  int           // results in a row on one side of the state
	better  bool          // which side
	reports chan struct{} // TTL: a report has come
	cancel  func()        // nil: not started
	gone    bool          // removed: what is still found counts no more
}

// Runner runs checks.
type Runner struct {
	cfg   Config
	slots chan struct{}
	wake  chan struct{}                               // something for Run to do
	run   func(context.Context, string, Check) result // probe, but in tests of time

	mu       sync.Mutex
	services map[string][]*check
	removed  []*check // still to be stopped
	pending  []hook   // changes that Changed has not been told
	history  []Change
	changed  chan struct{}
}

// hook is a change and the check it is of.
type hook struct {
	Change
	c Check
}

// New prepares a runner.
func New(cfg Config) *Runner {
	r := &Runner{cfg: cfg, slots: make(chan struct{}, parallel), wake: make(chan struct{}, 1), changed: make(chan struct{})}
	r.run = r.probe
	return r
}

// Set says which services there are and how they are checked: all of them. What is as before keeps its state and its
// time; all else begins anew. With an error nothing has changed.
func (r *Runner) Set(services map[string][]Check) error {
	next := map[string][]*check{}
	n := 0
	for service, list := range services {
		taken := map[string]bool{}
		for _, c := range list {
			taken[c.Name] = true
		}
		next[service] = nil
		named := map[string]bool{}
		for i, c := range list {
			if err := c.Validate(); err != nil {
				return fmt.Errorf("check %d of service %s: %w", i+1, service, err)
			}
			if c.Name == "" {
				c.Name = c.Kind()
				for k := 2; taken[c.Name]; k++ {
					c.Name = fmt.Sprintf("%s-%d", c.Kind(), k)
				}
				taken[c.Name] = true
			}
			if named[c.Name] {
				return fmt.Errorf("service %s has two checks %q: name one differently", service, c.Name)
			}
			named[c.Name] = true
			next[service] = append(next[service], &check{service: service, Check: c.withDefaults(), reports: make(chan struct{}, 1)})
			n++
		}
	}
	if n > maxChecks {
		return fmt.Errorf("%d checks are more than the %d that a node may have", n, maxChecks)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := map[*check]bool{}
	for service, list := range next {
		for i, c := range list {
			at := slices.IndexFunc(r.services[service], func(old *check) bool { return reflect.DeepEqual(old.Check, c.Check) })
			if at >= 0 {
				list[i] = r.services[service][at]
				kept[list[i]] = true
			} else {
				c.status = Status{State: Critical, Output: notYet, Since: time.Now()}
			}
		}
	}
	for _, list := range r.services {
		for _, c := range list {
			if !kept[c] {
				c.gone = true
				r.removed = append(r.removed, c)
			}
		}
	}
	r.services = next
	r.notify()
	r.wakeUp()
	return nil
}

// notify tells those who wait in Changed. Runner.mu is held.
func (r *Runner) notify() { close(r.changed); r.changed = make(chan struct{}) }

func (r *Runner) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Report is the result of a service's TTL checks, or with "service/check" of one of them.
func (r *Runner) Report(service string, s State, output string) error {
	if s.rank() < 0 {
		return fmt.Errorf("%q is not passing, warning, unknown or critical", s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	list, ok := r.services[service]
	name, one := "", false
	if i := strings.LastIndexByte(service, '/'); !ok && i >= 0 { // a service's name may have one, a check's has none
		service, name, one = service[:i], service[i+1:], true
		list, ok = r.services[service]
	}
	if !ok {
		return fmt.Errorf("this node has no service %q", service)
	}
	found := false
	text, perf := parseOutput([]byte(output))
	for _, c := range list {
		if c.TTL != 0 && (!one || c.Name == name) {
			found = true
			r.record(c, result{s, text, perf}, 0)
			select {
			case c.reports <- struct{}{}:
			default:
			}
		}
	}
	if !found {
		return fmt.Errorf("service %s has no such ttl check: give it one with ttl = \"30s\"", service)
	}
	return nil
}

// record takes a result. Runner.mu is held.
func (r *Runner) record(c *check, res result, took time.Duration) {
	if c.gone {
		return
	}
	now := time.Now()
	first := c.status.Last.IsZero()
	c.status.Result, c.status.Output, c.status.Perf, c.status.Last, c.status.Took = res.state, res.output, res.perf, now, Duration(took)
	by := res.state.rank() - c.status.State.rank()
	switch {
	case by == 0:
		c.streak = 0
	case c.streak == 0 || c.better != (by < 0):
		c.streak, c.better = 1, by < 0
	default:
		c.streak++
	}
	if !first && (by == 0 || c.better && c.streak < c.Rise || !c.better && c.streak < c.Fall) {
		return
	}
	change := Change{Service: c.service, Check: c.Name, From: c.status.State, To: res.state, Output: res.output, At: now}
	if first {
		change.From = ""
	}
	if by != 0 {
		c.status.Since = now
	}
	c.status.State, c.streak = res.state, 0
	r.history = append(r.history, change)
	r.history = r.history[max(0, len(r.history)-maxHistory):]
	r.pending = append(r.pending, hook{change, c.Check})
	r.notify()
	r.wakeUp()
}

// Service is how a service is: its worst check's state, output and beginning. One without checks, and one that is not
// known here, is passing.
func (r *Runner) Service(name string) (s State, output string, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s = Passing
	for i, c := range r.services[name] {
		if i == 0 || c.status.State.rank() > s.rank() {
			s, output, since = c.status.State, c.status.Output, c.status.Since
		}
	}
	return s, output, since
}

// Checks are all checks, by service and in the order of their configuration.
func (r *Runner) Checks() (out []CheckStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for service, list := range r.services {
		for _, c := range list {
			out = append(out, CheckStatus{service, c.Check, c.status})
		}
	}
	slices.SortStableFunc(out, func(a, b CheckStatus) int { return strings.Compare(a.Service, b.Service) })
	return out
}

// History is the last hundred changes, the latest last.
func (r *Runner) History() []Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.history)
}

// Changed is closed when a check's state changes, or which checks there are.
func (r *Runner) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Run checks until ctx ends. It returns nil.
func (r *Runner) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	hooks := make(chan hook, maxHooks)
	wg.Go(func() { r.runHooks(ctx, hooks) })
	for {
		r.mu.Lock()
		for _, c := range r.removed {
			if c.cancel != nil {
				c.cancel()
			}
		}
		r.removed = nil
		for _, list := range r.services {
			for _, c := range list {
				if c.cancel == nil {
					var cctx context.Context
					cctx, c.cancel = context.WithCancel(ctx)
					wg.Go(func() { r.follow(cctx, c) })
				}
			}
		}
		pending := r.pending
		r.pending = nil
		r.mu.Unlock()
		for _, h := range pending {
			r.tell(h, hooks)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
	}
}

// tell hands a change on.
func (r *Runner) tell(h hook, hooks chan<- hook) {
	log := r.cfg.Log.Info
	if h.To != Passing {
		log = r.cfg.Log.Warn
	}
	log("a check's state has changed", "service", h.Service, "check", h.Check, "from", h.From, "to", h.To, "output", head(h.Output, 200))
	if r.cfg.Changed != nil {
		r.cfg.Changed(h.Change)
	}
	if len(h.c.OnChange) == 0 {
		return
	}
	select {
	case hooks <- h:
	default:
		r.cfg.Log.Warn("programs of on_change are too slow for what happens: one is left out", "service", h.Service, "check", h.Check)
	}
}

// follow runs one check, again and again.
func (r *Runner) follow(ctx context.Context, c *check) {
	if c.TTL != 0 {
		r.followTTL(ctx, c)
		return
	}
	wait := time.NewTimer(rand.N(min(time.Duration(c.Interval), firstWithin)))
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		select {
		case <-ctx.Done():
			return
		case r.slots <- struct{}{}:
		}
		begun := time.Now()
		tctx, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
		res := r.run(tctx, c.service, c.Check)
		cancel()
		<-r.slots
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		r.record(c, res, time.Since(begun))
		next := time.Duration(c.Interval)
		if c.streak > 0 {
			next = max(next/5, time.Second)
		}
		r.mu.Unlock()
		wait.Reset(next - rand.N(next/10) - min(time.Since(begun), next/2)) // never later than said, and out of step
	}
}

// followTTL waits for reports.
func (r *Runner) followTTL(ctx context.Context, c *check) {
	ttl := time.Duration(c.TTL)
	expire := time.NewTimer(ttl)
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.reports:
			expire.Reset(ttl)
		case <-expire.C:
			r.mu.Lock()
			if last := c.status.Last; last.IsZero() || time.Since(last) >= ttl {
				r.record(c, result{state: Critical, output: fmt.Sprintf("no report for %s", c.TTL)}, 0)
			}
			r.mu.Unlock()
		}
	}
}

// runHooks runs the programs of on_change, one after the other.
func (r *Runner) runHooks(ctx context.Context, hooks <-chan hook) {
	for {
		var h hook
		select {
		case <-ctx.Done():
			return
		case h = <-hooks:
		}
		cmd := r.command(h.Service, h.c, h.c.OnChange, "MESH_FROM="+string(h.From), "MESH_TO="+string(h.To), "MESH_OUTPUT="+h.Output)
		tctx, cancel := context.WithTimeout(ctx, scriptTimeout)
		out, code, err := cmd.do(tctx)
		cancel()
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d", code)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			text, _ := parseOutput(out)
			r.cfg.Log.Warn("a program of on_change failed", "service", h.Service, "check", h.Check, "err", err, "output", head(text, 200))
		}
	}
}
