// SPDX-License-Identifier: MIT

//go:build hazard

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"mesh.internal/mesh/nss"
)

// cross is what builds for an architecture and runs it here. Of the last the look-up is C, for want of a trampoline.
var cross = []struct{ arch, gcc, strip, qemu, root string }{
	{"arm64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-strip", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"},
	{"riscv64", "riscv64-linux-gnu-gcc", "riscv64-linux-gnu-strip", "qemu-riscv64-static", "/usr/riscv64-linux-gnu"},
}

// TestOtherArchitectures builds the module for others and looks names up in emulation.
func TestOtherArchitectures(t *testing.T) {
	for _, c := range cross {
		t.Run(c.arch, func(t *testing.T) {
			t.Parallel()
			for _, tool := range []string{c.gcc, c.strip, c.qemu} {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("%s is not installed", tool)
				}
			}
			d := t.TempDir()
			if err := nss.WriteFile(d+"/hosts.db", content()); err != nil {
				t.Fatal(err)
			}
			build := exec.Command("./build.sh", d+"/libnss_mesh.so.2", d+"/hosts.db")
			build.Env = append(os.Environ(), "GOARCH="+c.arch, "CC="+c.gcc, "STRIP="+c.strip)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("building: %v\n%s", err, out)
			}
			run(t, c.gcc, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", d+"/harness", "testdata/harness.c", "-lpthread", "-ldl")
			run(t, c.qemu, "-L", c.root, d+"/harness", d+"/libnss_mesh.so.2", "contract")
			if err := os.Remove(d + "/hosts.db"); err != nil {
				t.Fatal(err)
			}
			run(t, c.qemu, "-L", c.root, d+"/harness", d+"/libnss_mesh.so.2", "absent")
		})
	}
}

// TestGateBites takes a minute, so make test-nss runs it and not make test. It spoils the module's sources, one thing at a time, and wants each build refused for what was spoilt.
func TestGateBites(t *testing.T) {
	files(t)
	const (
		leaf  = "../nss/leaf/leaf.go"
		calls = "../nss/leaf/system_linux.go"
		entry = "../nss/leaf/entry_%.s"
		find  = "func Find(path, key ptr, n, kind uintptr, r *Result) int32 {\n"
	)
	gate := filepath.Join(t.TempDir(), "gate") // is there until the parallel ones have ended
	run(t, "go", "build", "-o", gate, "../nss/gate")
	here, _ := os.Getwd()
	for _, c := range []struct{ name, file, old, new, add, want string }{
		{"nothing", leaf, "", "", "", ""},
		{"a bounds check", leaf, find, find + "\tif spoilt[n&63] != 0 {\n\t\treturn 7\n\t}\n", "\nvar spoilt [10]byte\n", "calls runtime.panic"},
		{"an allocation", leaf, find, find + "\tspoilt = new(int)\n", "\nvar spoilt *int\n", "calls runtime."},
		{"a stored pointer", leaf, find, find + "\tspoilt = key\n", "\nvar spoilt ptr\n", "calls runtime.gcWriteBarrier"},
		{"a function that may grow the stack", leaf, find, find + "\tif n == 77 {\n\t\treturn grows(n)\n\t}\n",
			"\n//go:noinline\nfunc grows(n uintptr) int32 { var b [64]byte; return int32(b[n&63]) + int32(n) + more(n) }\n\n//go:noinline\nfunc more(n uintptr) int32 { return int32(n) }\n", "runtime.morestack"},
		{"an indirect call", leaf, find, find + "\tif spoilt != nil {\n\t\treturn spoilt()\n\t}\n", "\nvar spoilt func() int32\n", "goes where the gate cannot follow"},
		{"another package", calls, "func shut(fd file) {", "func shut(fd file) {\n\tif fd == 77 {\n\t\tsyscall.Getpid()\n\t}\n\t", "", "calls syscall."},
		{"a variable", leaf, find, find + "\tif n == 77 {\n\t\treturn spoilt[n&3]\n\t}\n", "\nvar spoilt = [4]int32{1, 2, 3, 4}\n", "refers to the runtime's data"},
		{"a use of g", entry, "meshnss_find(SB),NOSPLIT", "meshnss_find(SB),NOSPLIT", "", "uses g"},
		{"a constructor in C", "nss.c", "", "", "\n__attribute__((constructor)) static void spoilt(void) { mesh_leaf_find = 0; }\n", "when it is loaded"},
		{"the runtime's start", "", "", "", "", "runtime start code"},
	} {
		for _, arch := range []string{"amd64", "arm64"} {
			t.Run(c.name+"/"+arch, func(t *testing.T) {
				t.Parallel()
				cc := map[string]string{"amd64": "gcc", "arm64": "aarch64-linux-gnu-gcc"}[arch]
				if runtime.GOARCH == "arm64" {
					cc = map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "gcc"}[arch]
				}
				if _, err := exec.LookPath(cc); err != nil {
					t.Skipf("%s is not installed", cc)
				}
				d := t.TempDir()
				args := []string{"build", "-buildmode=c-shared", "-o", d + "/x.so"}
				start := "-E=meshnss_init "
				if c.file == "" {
					start = ""
				} else {
					file := strings.Replace(c.file, "%", arch, 1)
					text, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					spoilt := strings.Replace(string(text), c.old, c.new, 1) + c.add
					if c.want == "uses g" { // before the call of Find
						load := map[string]string{"amd64": "\tMOVQ\t16(R14), AX\n", "arm64": "\tMOVD\t16(g), R0\n"}[arch]
						spoilt = strings.Replace(string(text), "\tCALL\t·Find(SB)\n", load+"\tCALL\t·Find(SB)\n", 1)
					}
					if spoilt == string(text) && c.want != "" {
						t.Fatalf("%s is not what this test spoils", file)
					}
					path, _ := filepath.Abs(file)
					overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{path: d + "/spoilt"}})
					if err := os.WriteFile(d+"/spoilt", []byte(spoilt), 0o644); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(d+"/overlay", overlay, 0o644); err != nil {
						t.Fatal(err)
					}
					args = append(args, "-overlay", d+"/overlay")
				}
				args = append(args, "-ldflags", start+"-extldflags '-Wl,-soname,libnss_mesh.so.2 -Wl,-z,now -Wl,--version-script="+here+"/exports.map'", ".")
				build := exec.Command("go", args...)
				build.Env = append(os.Environ(), "CGO_ENABLED=1", "GOARCH="+arch, "CC="+cc)
				if out, err := build.CombinedOutput(); err != nil {
					t.Fatalf("building: %v\n%s", err, out)
				}
				got, err := exec.Command(gate, d+"/x.so").CombinedOutput()
				if refused := err != nil; refused != (c.want != "") || !strings.Contains(string(got), c.want) {
					t.Errorf("the gate said %q, %v; want %q", got, err, c.want)
				}
			})
		}
	}
}
