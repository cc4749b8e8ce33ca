// SPDX-License-Identifier: MIT

package health

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const second = Duration(time.Second)

// told is what Config.Changed has been called with.
type told struct {
	mu   sync.Mutex
	list []string
}

func (t *told) changed(c Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, fmt.Sprintf("%s/%s %s>%s", c.Service, c.Check, c.From, c.To))
}

func (t *told) take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer func() { t.list = nil }()
	return strings.Join(t.list, " ")
}

// inTime has f see a Runner in a time of its own, whose checks find what find says.
func inTime(t *testing.T, find func(service string, c Check) State, f func(t *testing.T, r *Runner, heard *told)) {
	synctest.Test(t, func(t *testing.T) {
		heard := &told{}
		r := New(Config{Log: slog.New(slog.DiscardHandler), Changed: heard.changed})
		r.run = func(_ context.Context, service string, c Check) result {
			s := find(service, c)
			return result{state: s, output: "it is " + string(s)}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		f(t, r, heard)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func after(d time.Duration) { <-time.After(d); synctest.Wait() }

func set(t *testing.T, r *Runner, services map[string][]Check) {
	t.Helper()
	if err := r.Set(services); err != nil {
		t.Fatal(err)
	}
}

func (r *Runner) state(service string) string {
	s, output, _ := r.Service(service)
	return string(s) + " " + output
}

// The first result counts at once; later ones when there are so many in a row.
func TestRiseAndFall(t *testing.T) {
	var now atomic.Value
	now.Store(Passing)
	inTime(t, func(string, Check) State { return now.Load().(State) }, func(t *testing.T, r *Runner, heard *told) {
		set(t, r, map[string][]Check{"web": {{TCP: "h:1", Rise: 2, Fall: 3}}, "bare": nil})
		if got := r.state("web"); got != "critical not checked yet" {
			t.Error(got)
		}
		if got := r.state("bare") + r.state("unknown"); got != "passing passing " {
			t.Error(got)
		}
		changed := r.Changed()
		after(time.Second)
		<-changed
		if got := r.state("web") + ", " + heard.take(); got != "passing it is passing, web/tcp >passing" {
			t.Error(got)
		}
		next := func(s State) time.Duration { // finds s once, and says after how long
			t.Helper()
			now.Store(s)
			before := r.Checks()[0].Last
			for r.Checks()[0].Last.Equal(before) {
				after(10 * time.Millisecond)
			}
			return r.Checks()[0].Last.Sub(before)
		}
		if d := next(Critical); d > 10*time.Second || d < 9*time.Second {
			t.Errorf("the next check came after %s", d)
		}
		if s, out, _ := r.Service("web"); s != Passing || out != "it is critical" || r.Checks()[0].Result != Critical {
			t.Error(s, out, r.Checks())
		}
		if d := next(Critical); d > 2*time.Second || heard.take() != "" {
			t.Errorf("the second came after %s, or was enough", d)
		}
		next(Critical)
		if got := heard.take(); got != "web/tcp passing>critical" {
			t.Error(got)
		}
		next(Warning) // better, and passing is better still: together they are two
		next(Passing)
		if got := heard.take(); got != "web/tcp critical>passing" {
			t.Error(got)
		}
		since := r.Checks()[0].Since
		for range 20 { // every second one fails: never three in a row
			next(Unknown)
			next(Passing)
		}
		if got := heard.take(); got != "" || !r.Checks()[0].Since.Equal(since) {
			t.Errorf("it flaps: %s", got)
		}
	})
}

// What is the same in a new Set keeps its state and its time; all else begins anew or is gone.
func TestSetAgain(t *testing.T) {
	var runs atomic.Int64
	inTime(t, func(string, Check) State { runs.Add(1); return Passing }, func(t *testing.T, r *Runner, heard *told) {
		set(t, r, map[string][]Check{"a": {{TCP: "h:1"}, {TCP: "h:2"}}, "b": {{TCP: "h:3"}}, "c": {{TCP: "h:4"}}})
		after(time.Second)
		if n := runs.Load(); n != 4 {
			t.Fatalf("%d runs", n)
		}
		heard.take()
		set(t, r, map[string][]Check{"a": {{TCP: "h:1"}, {TCP: "h:5", Name: "tcp-2"}}, "b": {{TCP: "h:3"}}})
		var states []string
		for _, c := range r.Checks() {
			states = append(states, c.Service+"/"+c.Check.Name+" "+c.Check.TCP+" "+c.Output)
		}
		if want := []string{"a/tcp h:1 it is passing", "a/tcp-2 h:5 not checked yet", "b/tcp h:3 it is passing"}; !slices.Equal(states, want) {
			t.Errorf("%q", states)
		}
		after(time.Second)
		if got := heard.take(); runs.Load() != 5 || got != "a/tcp-2 >passing" {
			t.Error(runs.Load(), got)
		}
		for _, bad := range []map[string][]Check{
			{"a": {{}}}, {"a": {{TCP: "h:1", Name: "x"}, {TCP: "h:2", Name: "x"}}}, {"a": make([]Check, maxChecks+1)},
		} {
			if r.Set(bad) == nil {
				t.Error("taken")
			}
		}
		if len(r.Checks()) != 3 {
			t.Error("an error has changed something")
		}
		set(t, r, nil)
		after(time.Minute)
		if runs.Load() != 5 || len(r.Checks()) != 0 {
			t.Error("checks that are gone run")
		}
	})
}

// The n runs of a minute are those that were asked for, spread over the time, and never more than eight at once.
func TestSpread(t *testing.T) {
	var at, most atomic.Int64
	runs := map[string][]time.Time{}
	var mu sync.Mutex
	inTime(t, func(_ string, c Check) State {
		n := at.Add(1)
		mu.Lock()
		runs[c.TCP] = append(runs[c.TCP], time.Now())
		most.Store(max(most.Load(), n))
		mu.Unlock()
		<-time.After(20 * time.Millisecond)
		at.Add(-1)
		return Passing
	}, func(t *testing.T, r *Runner, _ *told) {
		var list []Check
		for i := range 100 {
			list = append(list, Check{TCP: fmt.Sprintf("h:%d", i+1)})
		}
		set(t, r, map[string][]Check{"a": list})
		after(10 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if most.Load() > parallel {
			t.Errorf("%d at once", most.Load())
		}
		seconds := map[int]bool{}
		for of, list := range runs {
			if len(list) < 60 || len(list) > 68 {
				t.Errorf("%s ran %d times in 10 minutes", of, len(list))
			}
			for i := range list[1:] {
				if d := list[i+1].Sub(list[i]); d > 10*time.Second+500*time.Millisecond || d < 8900*time.Millisecond {
					t.Errorf("%s ran after %s", of, d)
				}
			}
			seconds[list[len(list)-1].Second()%10] = true
		}
		if len(seconds) < 8 {
			t.Errorf("after ten minutes all run in %d seconds of ten", len(seconds))
		}
	})
}

func TestTTL(t *testing.T) {
	run := func(_ string, c Check) State {
		if c.TTL != 0 {
			panic("a ttl check was run")
		}
		return Passing
	}
	inTime(t, run, func(t *testing.T, r *Runner, heard *told) {
		set(t, r, map[string][]Check{"job": {{TTL: 30 * second}, {TTL: 60 * second, Name: "slow"}}, "web": {{TCP: "h:1", Name: "x"}}})
		report := func(service string, s State, want string) {
			t.Helper()
			err := r.Report(service, s, "done | n=1")
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("reporting %s for %s: %v, want %q", s, service, err, want)
			}
			synctest.Wait()
		}
		report("job", Passing, "")
		if got := r.state("job") + ", " + heard.take(); got != "passing done, job/ttl >passing job/slow >passing" || r.Checks()[0].Perf != "n=1" {
			t.Error(got)
		}
		after(29 * time.Second)
		report("job/ttl", Warning, "")
		after(29 * time.Second)
		report("job/ttl", Passing, "")
		heard.take()
		after(29 * time.Second)
		if got := heard.take(); got != "job/slow passing>critical" {
			t.Error(got)
		}
		after(time.Second)
		if got := r.state("job") + ", " + heard.take(); got != "critical no report for 30s, job/ttl passing>critical" {
			t.Error(got)
		}
		report("job", Passing, "")
		if got := r.state("job"); got != "passing done" {
			t.Error(got)
		}
		report("job/none", Passing, "no such ttl check")
		report("web", Passing, "no such ttl check")
		report("nobody", Passing, "no service")
		report("job", "fine", `"fine" is not`)
		for i := range 2 * maxHistory {
			report("job/ttl", []State{Critical, Passing}[i%2], "")
		}
		if h := r.History(); len(h) != maxHistory || h[maxHistory-1].To != Passing {
			t.Error(len(h))
		}
	})
}

// A service is as its worst check.
func TestWorst(t *testing.T) {
	inTime(t, func(_ string, c Check) State { return State(c.Ping) }, func(t *testing.T, r *Runner, _ *told) {
		for _, c := range []struct {
			checks []State
			want   State
		}{{[]State{Passing, Passing}, Passing}, {[]State{Passing, Warning}, Warning}, {[]State{Unknown, Warning}, Unknown}, {[]State{Unknown, Critical, Passing}, Critical}} {
			var list []Check
			for i, s := range c.checks {
				list = append(list, Check{Ping: string(s), Name: fmt.Sprint("n", i)})
			}
			set(t, r, map[string][]Check{"s": list})
			after(time.Second)
			if got, _, _ := r.Service("s"); got != c.want || got.Serves() != (c.want == Passing || c.want == Warning) {
				t.Errorf("%s: %s", c.checks, got)
			}
		}
	})
}
