// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"mesh.internal/mesh/resolver/store"
)

// TestAnew loses all that the only member has while somebody follows it: who comes back at the same place is another store,
// at a lower revision or with other keys, and a watch on it would wait for ever.
func TestAnew(t *testing.T) {
	for what, writes := range map[string]int{"it has not come as far": 1, "it has come farther": 20} {
		t.Run(what, func(t *testing.T) {
			one, _ := serve(t, server{})
			two, _ := serve(t, server{})
			at := newDoor(t, one)
			st := open(t, at.endpoint)
			put := func(key string) {
				t.Helper()
				if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: []byte("x")}}); err != nil {
					t.Fatal(err)
				}
			}
			for range 5 {
				put("a")
			}
			put("b")
			_, rev, err := st.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			followed := make(chan error, 1)
			here := make(chan struct{}, 100)
			go func() { followed <- st.Follow(t.Context(), rev, func(int64, []store.Change) { here <- struct{}{} }) }()
			put("c")
			<-here
			other := open(t, two)
			for range writes {
				if _, err := other.Commit(t.Context(), nil, []store.Op{{Key: "d", Value: []byte("x")}}); err != nil {
					t.Fatal(err)
				}
			}
			at.lead(two)
			if err := <-followed; !errors.Is(err, errMoved) {
				t.Errorf("following ended with %v", err)
			}
			if kvs, _, err := st.Load(t.Context()); err != nil || len(kvs) != 1 {
				t.Errorf("loaded %d keys, %v", len(kvs), err)
			}
		})
	}
}

// TestSame loses the connection and nothing else: who follows goes on where it was.
func TestSame(t *testing.T) {
	one, _ := serve(t, server{})
	at := newDoor(t, one)
	st := open(t, at.endpoint)
	put := func(key string) {
		t.Helper()
		var err error
		for range 10 { // a change that was under way when the connection ended is not made again by itself
			if _, err = st.Commit(t.Context(), nil, []store.Op{{Key: key, Value: []byte("x")}}); err == nil {
				return
			}
		}
		t.Fatal(err)
	}
	put("a")
	_, rev, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	here := make(chan string, 100)
	go func() {
		followed <- st.Follow(ctx, rev, func(_ int64, all []store.Change) {
			for _, c := range all {
				here <- c.Key
			}
		})
	}()
	put("b")
	if got := <-here; got != "b" {
		t.Errorf("followed %s", got)
	}
	at.lead(one)
	put("c")
	select {
	case got := <-here:
		if got != "c" {
			t.Errorf("followed %s", got)
		}
	case err := <-followed:
		t.Fatalf("following ended with %v", err)
	}
	cancel()
	<-followed
}

// door is an endpoint behind which another may come to stand at once.
type door struct {
	endpoint string
	mu       sync.Mutex
	to       string
	through  []net.Conn
}

func newDoor(t *testing.T, to string) *door {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{endpoint: "http://" + l.Addr().String()}
	d.lead(to)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		d.lead(to)
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			out, err := net.Dial("tcp", d.to)
			if err != nil {
				in.Close()
			} else {
				d.through = append(d.through, in, out)
				wg.Go(func() { io.Copy(in, out); in.Close() })
				wg.Go(func() { io.Copy(out, in); out.Close() })
			}
			d.mu.Unlock()
		}
	})
	return d
}

// lead ends what goes through the door and has it lead elsewhere.
func (d *door) lead(to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = strings.TrimPrefix(to, "http://")
	for _, c := range d.through {
		c.Close()
	}
	d.through = nil
}

// TestMove has those who follow load again when the store is said to have begun anew, and not when only its members have
// changed.
func TestMove(t *testing.T) {
	one, _ := serve(t, server{})
	two, _ := serve(t, server{})
	st := open(t, one)
	_, rev, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	followed := make(chan error, 1)
	here := make(chan struct{}, 100)
	go func() { followed <- st.Follow(t.Context(), rev, func(int64, []store.Change) { here <- struct{}{} }) }()
	st.Move([]string{one}, false)
	if _, err := st.Commit(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	<-here
	st.Move([]string{two}, true)
	if err := <-followed; !errors.Is(err, errMoved) {
		t.Errorf("following ended with %v", err)
	}
	if kvs, _, err := st.Load(t.Context()); err != nil || len(kvs) != 0 {
		t.Errorf("the other store has %d keys, %v", len(kvs), err)
	}
}
