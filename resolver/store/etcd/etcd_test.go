// SPDX-License-Identifier: MIT

package etcd

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

func open(t *testing.T, endpoint string) *Store {
	return openWith(t, Config{Endpoints: []string{endpoint}})
}

func openWith(t *testing.T, cfg Config) *Store {
	cfg.Prefix = store.DefaultPrefix("test")
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	endpoint, _ := serve(t, server{})
	s := open(t, endpoint)
	if _, err := s.c.Put(t.Context(), "/mesh/v1/other/a", "of another mesh"); err != nil {
		t.Fatal(err)
	}
	storetest.Test(t, s, func(rev int64) {
		if _, err := s.c.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
	})
}

// A mesh with more keys than one answer holds loads as of one revision.
func TestManyKeys(t *testing.T) {
	endpoint, _ := serve(t, server{})
	s := open(t, endpoint)
	const n = 2*pageSize + 10
	for i := 0; i < n; i += 100 {
		var ops []store.Op
		for j := i; j < min(i+100, n); j++ {
			ops = append(ops, store.Op{Key: fmt.Sprintf("k%06d", j), Value: []byte("x")})
		}
		if _, err := s.Commit(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
	}
	kvs, _, err := s.Load(t.Context())
	if err != nil || len(kvs) != n || kvs[0].Key != "k000000" || kvs[n-1].Key != fmt.Sprintf("k%06d", n-1) {
		t.Errorf("loaded %d keys, %v", len(kvs), err)
	}
}

// A store that dies is lost at once, not a watch on which nothing ever comes.
func TestLost(t *testing.T) {
	endpoint, kill := serve(t, server{})
	s := open(t, endpoint)
	if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err := s.Follow(t.Context(), 1, func(int64, []store.Change) {
		begin = time.Now()
		kill()
	})
	t.Logf("lost after %s: %v", time.Since(begin), err)
	if err == nil {
		t.Error("no error")
	}
}
