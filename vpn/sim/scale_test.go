// SPDX-License-Identifier: MIT

//go:build unix

package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
)

// The environment of TestScale.
const (
	scaleVar    = "SCALE"     // sizes, separated by commas; empty: a small one
	scaleOfVar  = "SCALE_OF"  // in the processes it starts: the size
	scaleOutVar = "SCALE_OUT" // where the result is written

	scaleProfileVar = "SCALE_PROFILE" // a folder for profiles of processor and heap, until each line that is printed; empty: none
)

const scaleBack = 500 // so many are a mesh that comes back

// TestScale measures meshes of some sizes, each in a process of its own, and prints a table.
func TestScale(t *testing.T) {
	if os.Getenv(childVar) != "" || os.Getenv(scaleOfVar) != "" {
		t.Skip("this process does something else")
	}
	var sizes []Size
	list := os.Getenv(scaleVar)
	if list == "" {
		list = "10"
	}
	for part := range strings.SplitSeq(list, ",") {
		out := t.TempDir() + "/size"
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestScaleOf$", "-test.timeout=0", "-test.v")
		cmd.Env = append(os.Environ(), scaleOfVar+"="+part, scaleOutVar+"="+out, dirVar+"="+t.TempDir())
		if os.Getenv(scaleVar) != "" {
			cmd.Stdout = os.Stdout
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("%s nodes: %v", part, err)
			continue
		}
		var s Size
		b, err := os.ReadFile(out)
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.Idle.Mean > 2000 {
			t.Errorf("%d nodes send %.0f B/s each while nobody talks", s.Nodes, s.Idle.Mean)
		}
		sizes = append(sizes, s)
	}
	fmt.Print(Table(sizes))
}

// TestScaleOf measures one size for TestScale.
func TestScaleOf(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv(scaleOfVar))
	if err != nil {
		t.Skip("is for processes that TestScale starts")
	}
	say := teller(os.Getenv(scaleProfileVar), count)
	_, err = run(t, Config{Seed: 1, Dir: os.Getenv(dirVar), Unjudged: true}, func(w *World) error {
		s, err := Scale(w, count, count >= scaleBack, say)
		if err != nil {
			return err
		}
		b, err := json.Marshal(s)
		if err != nil {
			return err
		}
		return os.WriteFile(os.Getenv(scaleOutVar), b, 0o600)
	})
	if err != nil {
		t.Error(err)
	}
}

// teller returns what tells the progress of a run, with what it has cost since the last time. It is called outside the bubble, in which
// nothing could write a profile while time stands still.
func teller(dir string, count int) func(format string, args ...any) {
	ask, done := make(chan struct{}), make(chan error)
	if dir != "" {
		go func() {
			for i := 0; ; i++ {
				done <- profile(fmt.Sprintf("%s/%d-%02d", dir, count, i), ask)
			}
		}()
	}
	was := used()
	return func(format string, args ...any) {
		if dir != "" {
			ask <- struct{}{}
			if err := <-done; err != nil {
				fmt.Println(err)
			}
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Printf("%4d nodes, %6.1f s of processor, %5d MiB of the system's: ", count, (used() - was).Seconds(), m.Sys>>20)
		was = used()
		fmt.Printf(format+"\n", args...)
	}
}

// profile writes a profile of the processor until it is asked to end, and then one of the heap.
func profile(path string, end <-chan struct{}) error {
	cpu, err := os.Create(path + ".cpu")
	if err != nil {
		return err
	}
	defer cpu.Close()
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return err
	}
	<-end
	pprof.StopCPUProfile()
	heap, err := os.Create(path + ".heap")
	if err != nil {
		return err
	}
	defer heap.Close()
	return pprof.Lookup("heap").WriteTo(heap, 0)
}
