// SPDX-License-Identifier: MIT

//go:build unix

package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// The environment of TestScale.
const (
	scaleVar    = "SCALE"     // sizes, separated by commas; empty: a small one
	scaleOfVar  = "SCALE_OF"  // in the processes it starts: the size
	scaleOutVar = "SCALE_OUT" // where the result is written
)

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
	_, err = run(t, Config{Seed: 1, Dir: os.Getenv(dirVar), Unjudged: true}, func(w *World) error {
		s, err := Scale(w, count, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
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
