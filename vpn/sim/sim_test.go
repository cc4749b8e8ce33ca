// SPDX-License-Identifier: MIT

package sim

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

// What the nodes cannot do yet, and the judge does not demand.
const (
	hops    = 4                // a way through at most three relays
	reflect = 200              // who replays a ping from elsewhere is pinged for three minutes
	lenient = 11 * time.Second // handshake messages that are lost are sent again after five seconds; two in a row
)

// The environment that TestSeeds and the processes it starts read.
const (
	seedsVar   = "SEEDS"       // how many new ones to run
	seedVar    = "SEED"        // run only this one, and print all that happens
	packetsVar = "PACKETS"     // every datagram too
	childVar   = "SIM_SEED"    // in the processes: the seed
	dirVar     = "SIM_DIR"     // where they may write
	verboseVar = "SIM_VERBOSE" // print all that happens
)

const childLimit = 10 * time.Minute

// fixed are the seeds that always run: some, and some of those that found something.
var fixed = []uint64{1, 2, 3, 4, 5, 6, 1795649326572, 1796056318953, 1796056864127, 1796058311723}

const some = 6 // new ones, where SEEDS does not say how many

// TestSeeds runs scenarios, each in a process of its own: some that are always the same, and new ones.
func TestSeeds(t *testing.T) {
	if os.Getenv(childVar) != "" {
		t.Skip("this process runs one seed")
	}
	verbose := false
	seeds := slices.Clone(fixed)
	fresh := uint64(time.Now().UnixMilli())
	n := some
	if v := os.Getenv(seedsVar); v != "" {
		n, _ = strconv.Atoi(v)
	}
	switch {
	case os.Getenv(seedVar) != "":
		seed, err := strconv.ParseUint(os.Getenv(seedVar), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds, verbose = []uint64{seed}, true
	case testing.Short():
		seeds = seeds[:2]
	default:
		for i := range n {
			seeds = append(seeds, fresh+uint64(i))
		}
	}
	t.Logf("%d seeds, the last is %d", len(seeds), seeds[len(seeds)-1])
	var (
		mu   sync.Mutex
		gaps = map[string][]time.Duration{}
		bad  []uint64
		wg   sync.WaitGroup
		todo = make(chan uint64)
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range todo {
				out, err := runSeed(t, seed, verbose)
				mu.Lock()
				if err != nil {
					bad = append(bad, seed)
					t.Errorf("seed %d: %v\n%s\nmake sim SEED=%d runs it again", seed, err, out, seed)
				}
				for line := range strings.Lines(out) {
					var kind string
					var took time.Duration
					if n, _ := fmt.Sscanf(strings.TrimSpace(line), "gap %d %q", &took, &kind); n == 2 {
						gaps[kind] = append(gaps[kind], took)
					}
				}
				mu.Unlock()
			}
		})
	}
	for _, s := range seeds {
		todo <- s
	}
	close(todo)
	wg.Wait()
	if len(bad) > 0 {
		t.Errorf("%d of %d seeds fail: %v", len(bad), len(seeds), bad)
	}
	t.Logf("from an event until the next packet of a pair that talks arrives, in milliseconds:\n%s", table(gaps))
}

// table is of gaps, as Markdown.
func table(gaps map[string][]time.Duration) string {
	var b strings.Builder
	b.WriteString("| event | times | median | 90 % | 99 % | longest |\n|---|--:|--:|--:|--:|--:|\n")
	var kinds []string
	for k := range gaps {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		g := gaps[k]
		slices.Sort(g)
		at := func(p float64) int64 { return g[min(len(g)-1, int(p*float64(len(g))))].Milliseconds() }
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n", k, len(g), at(0.5), at(0.9), at(0.99), at(1))
	}
	return b.String()
}

// runSeed runs one seed in a process of its own.
func runSeed(t *testing.T, seed uint64, verbose bool) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), childLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestSeed$", "-test.timeout="+childLimit.String())
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", fmt.Sprintf("%s=%d", childVar, seed), dirVar+"="+fastDir(t))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if verbose {
		cmd.Env = append(cmd.Env, verboseVar+"=1")
		cmd.Stdout = io.MultiWriter(&out, os.Stdout)
	}
	err := cmd.Run()
	return out.String(), err
}

// fastDir is a folder for files that are synced often: in memory where there is such a place.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "mesh-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestSeed runs the seed that TestSeeds asks for.
func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv(childVar), 10, 64)
	if err != nil {
		t.Skip("is for processes that TestSeeds starts")
	}
	cfg := Config{Seed: seed, Dir: fmt.Sprintf("%s/%d", os.Getenv(dirVar), seed), Packets: os.Getenv(packetsVar) != ""}
	if os.Getenv(verboseVar) != "" {
		cfg.Verbose = os.Stdout
	}
	w, err := run(t, cfg, Scenario)
	if err != nil {
		t.Errorf("%v\nwhat happened last:\n%s", err, w.Trace())
	}
	for kind, g := range w.Gaps() {
		for _, d := range g {
			fmt.Printf("gap %d %q\n", d, kind)
		}
	}
}

// run plays a scenario in a bubble, and returns what was wrong.
func run(t *testing.T, cfg Config, play func(*World) error) (w *World, err error) {
	cfg.Hops, cfg.Lenient, cfg.Reflect = cmp.Or(cfg.Hops, hops), lenient, reflect
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, cfg.Seed)
		if w, err = NewWorld(cfg); err != nil {
			t.Fatal(err)
		}
		err = play(w)
		if e := w.End(); err == nil {
			err = e
		}
	})
	return w, err
}
