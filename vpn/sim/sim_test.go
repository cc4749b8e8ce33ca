// SPDX-License-Identifier: MIT

package sim

import (
	"io"
	"os"
	"strconv"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

const hops = 1

func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("MESH_SIM_SEED"), 10, 64)
	if err != nil {
		t.Skip("is for processes that TestSeeds starts")
	}
	var verbose io.Writer
	if os.Getenv("MESH_SIM_VERBOSE") != "" {
		verbose = os.Stdout
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, seed)
		w, err := NewWorld(Config{Seed: seed, Dir: dir, Hops: hops, Verbose: verbose, Packets: os.Getenv("MESH_SIM_PACKETS") != ""})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := Scenario(w); err != nil {
			t.Error(err)
		}
		if err := w.End(); err != nil {
			t.Errorf("seed %d:\n%v", seed, err)
		}
		t.Logf("%s virtual", time.Since(start))
	})
}
