// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// free is a loopback URL at which nobody listens.
func free(t *testing.T) url.URL {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

// serve runs a real member and returns its endpoint and what ends it.
func serve(t *testing.T) (endpoint string, end func()) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.UnsafeNoFsync = t.TempDir(), "fatal", true
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{free(t)}, []url.URL{free(t)}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = cfg.ListenClientUrls, cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(e.Close)
	t.Cleanup(end)
	<-e.Server.ReadyNotify()
	return cfg.ListenClientUrls[0].String(), end
}

func open(t *testing.T, endpoint string) *Store {
	s, err := Open(Config{Endpoints: []string{endpoint}, Prefix: store.DefaultPrefix("test")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	endpoint, _ := serve(t)
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
	endpoint, _ := serve(t)
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
	endpoint, kill := serve(t)
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

// A store that nobody answers for is an error within the caller's time, not a wait.
func TestNobodyThere(t *testing.T) {
	u := free(t)
	s := open(t, u.String())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := s.Load(ctx); err == nil {
		t.Error("loaded from nobody")
	}
}
