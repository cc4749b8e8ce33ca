// SPDX-License-Identifier: MIT

package resolver

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// TestBackup loses a store, and puts back what it had: neither what is newer in the new one, nor what is forged, nor what its
// owner has given up, comes from the backup.
func TestBackup(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		var old storetest.Memory
		a, stopA := start(t, dir("a"), "nibz", &old)
		b, stopB := start(t, dir("b"), "bkero", &old)
		for r, h := range map[*Resolver][]Host{a: {host("printer", "10.11.0.77"), host("camera", "10.11.0.78")}, b: {host("nas", "10.11.0.79")}} {
			for _, x := range h {
				if landed, err := r.AddHost(t.Context(), x); !landed || err != nil {
					t.Fatal(landed, err)
				}
			}
		}
		settle()
		var file bytes.Buffer
		n, err := a.Backup(t.Context(), &file)
		if err != nil || n != 9 { // three hosts, each with a claim on its name and one on its address
			t.Fatalf("%d values, %v:\n%s", n, err, file.String())
		}
		stopA()
		stopB()

		// In the new store nibz has moved the printer since, and bkero is not there.
		var fresh storetest.Memory
		a, stopA = start(t, dir("a"), "nibz", &fresh)
		defer stopA()
		if _, err := a.AddHost(t.Context(), host("printer", "10.11.0.70")); err != nil {
			t.Fatal(err)
		}
		settle()
		forged := strings.Replace(file.String(), "10.11.0.79", "10.11.0.66", 2)
		done, err := a.Restore(t.Context(), strings.NewReader(forged))
		if err != nil || len(done.Refused) == 0 || done.Put == 0 {
			t.Errorf("restoring a forged one: %+v, %v", done, err)
		}
		if kv, _ := fresh.Get(t.Context(), store.HostKey("bkero", "nas")); kv.Modified != 0 {
			t.Errorf("the forged value is in the store: %s", kv.Value)
		}
		wantAddr(t, a, "nas", "10.11.0.79") // as last seen
		done, err = a.Restore(t.Context(), bytes.NewReader(file.Bytes()))
		if err != nil || len(done.Refused) != 0 || done.Newer == 0 {
			t.Errorf("restoring: %+v, %v", done, err)
		}
		settle()
		wantAddr(t, a, "nas", "10.11.0.79")
		wantAddr(t, a, "printer", "10.11.0.70")
		wantAddr(t, a, "camera", "10.11.0.78")
		if again, err := a.Restore(t.Context(), bytes.NewReader(file.Bytes())); err != nil || again.Put != 0 {
			t.Errorf("restoring again: %+v, %v", again, err)
		}
		for what, in := range map[string]string{"nothing": "", "another file": "127.0.0.1 localhost\n", "another mesh": `{"kind":"mesh store backup v1","zone":"other.internal"}` + "\n",
			"a damaged line": file.String()[:200]} {
			if _, err := a.Restore(t.Context(), strings.NewReader(in)); err == nil {
				t.Errorf("%s: restored", what)
			}
		}
	})
}

// counting counts what is asked of a store.
type counting struct {
	*storetest.Memory
	gets, commits int
}

func (c *counting) Get(ctx context.Context, key string) (store.KV, error) {
	c.gets++
	return c.Memory.Get(ctx, key)
}

func (c *counting) Commit(ctx context.Context, conds []store.Cond, ops []store.Op) (int64, error) {
	c.commits++
	return c.Memory.Commit(ctx, conds, ops)
}

// TestRequests demands that a change costs as many requests with many names as with few.
func TestRequests(t *testing.T) {
	run(t, func(t *testing.T, dir func(string) string) {
		st := &counting{Memory: new(storetest.Memory)}
		r, stop := start(t, dir("a"), "nibz", st)
		defer stop()
		cost := func(name, addr string) int {
			st.gets, st.commits = 0, 0
			if landed, err := r.AddHost(t.Context(), host(name, addr)); !landed || err != nil {
				t.Fatal(landed, err)
			}
			settle()
			if st.commits != 1 {
				t.Errorf("%s: %d commits", name, st.commits)
			}
			return st.gets
		}
		first := cost("first", "10.11.1.1")
		for i := range 50 {
			cost("more-"+strings.Repeat("x", i+1), "10.11.2."+string(rune('1'+i%9))+string(rune('0'+i/9)))
		}
		if last := cost("last", "10.11.1.2"); last > first {
			t.Errorf("with 51 names a change asks %d times, with none %d times", last, first)
		}
		// Another address: the old one is free for others.
		cost("last", "10.11.1.3")
		if kv, err := st.Get(t.Context(), store.AddrClaimKey("10.11.1.2")); err != nil || kv.Modified != 0 {
			t.Errorf("the old address is still claimed: %+v, %v", kv, err)
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"kind":"mesh store backup v1","zone":"mesh.internal"}` + "\n" + `{"key":"nibz/hosts/printer","value":"{}\nAAAA\n"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var st storetest.Memory
		r := New(Config{Zone: "mesh.internal", Prefixes: prefixes, Signer: member("nibz"), Verifier: everybody, Store: &st})
		if done, err := r.Restore(t.Context(), bytes.NewReader(b)); done.Put > 0 {
			t.Errorf("%q was put back: %v", b, err)
		}
	})
}
