// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/storetest"
)

// fails demands that a call ends soon with an error that says want.
func fails(t *testing.T, s *Store, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := s.Load(ctx)
	says(t, err, want...)
}

func says(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %q", want)
	}
	t.Log(err)
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// works demands that a call succeeds within a while: gRPC has its own time to connect again.
func works(t *testing.T, s *Store) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, _, err := s.Load(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// secret writes a file that only its owner may read.
func secret(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A store with certificates of its own keeps the contract.
func TestContractWithFiles(t *testing.T) {
	ca := newAuthority(t, "others")
	dir := t.TempDir()
	sc, sk := ca.issue(t, dir, "server", time.Hour)
	cc, ck := ca.issue(t, dir, "client", time.Hour)
	endpoint, _ := serve(t, server{cert: sc, key: sk, ca: ca.file})
	s := openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: ca.file, Cert: cc, Key: ck}})
	storetest.Test(t, s, func(rev int64) {
		if _, err := s.c.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWrongCA(t *testing.T) {
	ca, other := newAuthority(t, "theirs"), newAuthority(t, "another")
	dir := t.TempDir()
	sc, sk := ca.issue(t, dir, "server", time.Hour)
	endpoint, _ := serve(t, server{cert: sc, key: sk})
	file := filepath.Join(dir, "ca.crt")
	renew := func(a authority) {
		b, err := os.ReadFile(a.file)
		if err != nil {
			t.Fatal(err)
		}
		secret(t, file, string(b))
	}
	renew(other)
	s := openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: file}})
	fails(t, s, "shows a certificate that is not of the CA in "+file, "store_ca")
	renew(ca) // the same store, without a restart
	works(t, s)

	fails(t, openWith(t, Config{Endpoints: []string{endpoint}}), "is not of this mesh", "store_ca")
	fails(t, openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: filepath.Join(dir, "none")}}), "store_ca", "no such file")
	fails(t, openWith(t, Config{Endpoints: []string{strings.Replace(endpoint, "https", "http", 1)}}), "hangs up")
	fails(t, openWith(t, Config{Endpoints: []string{strings.Replace(endpoint, "127.0.0.1", "localhost", 1)}, Files: Files{CA: file}}), "not for that address")
}

func TestServerExpired(t *testing.T) {
	ca := newAuthority(t, "theirs")
	sc, sk := ca.issue(t, t.TempDir(), "server", -time.Minute)
	endpoint, _ := serve(t, server{cert: sc, key: sk})
	fails(t, openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: ca.file}}), "not valid now")
}

func TestClientCertificate(t *testing.T) {
	ca := newAuthority(t, "theirs")
	dir := t.TempDir()
	sc, sk := ca.issue(t, dir, "server", time.Hour)
	endpoint, _ := serve(t, server{cert: sc, key: sk, ca: ca.file})
	fails(t, openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: ca.file}}), "refuses this node", "set store_cert and store_key")

	sc, sk = newAuthority(t, "others").issue(t, t.TempDir(), "client", time.Hour)
	fails(t, openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: ca.file, Cert: sc, Key: sk}}), "refuses", "of a CA that the store trusts")

	cc, ck := ca.issue(t, dir, "client", -time.Minute)
	s := openWith(t, Config{Endpoints: []string{endpoint}, Files: Files{CA: ca.file, Cert: cc, Key: ck}})
	fails(t, s, "refuses the certificate in "+cc, "which ended on", "renew it")
	ca.issue(t, dir, "client", time.Hour)
	works(t, s)

	if err := os.Chmod(ck, 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, Files{Cert: cc, Key: ck}.Check(), "may be read or changed by others", "chmod 0600")
}

// administer opens a cluster as root, with authentication on from then on.
func administer(t *testing.T, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err1 := c.UserAdd(t.Context(), "root", "rootword")
	_, err2 := c.RoleAdd(t.Context(), "root")
	_, err3 := c.UserGrantRole(t.Context(), "root", "root")
	_, err4 := c.AuthEnable(t.Context())
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: "root", Password: "rootword"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestPassword(t *testing.T) {
	endpoint, _ := serve(t, server{})
	file := filepath.Join(t.TempDir(), "password")
	secret(t, file, "first\n")
	cfg := Config{Endpoints: []string{endpoint}, User: "spencer", Files: Files{Password: file}}
	s := openWith(t, cfg)
	works(t, s) // as long as the store wants no user, one does no harm

	root := administer(t, endpoint)
	fails(t, open(t, endpoint), "wants to know who asks", "store_user")
	fails(t, s, "refuses the user spencer or the password in "+file)
	if _, err := root.UserAdd(t.Context(), "spencer", "first"); err != nil {
		t.Fatal(err)
	}
	fails(t, s, "does not let the user spencer", store.DefaultPrefix("test"))
	if _, err := root.UserGrantRole(t.Context(), "spencer", "root"); err != nil {
		t.Fatal(err)
	}
	works(t, s)

	// The password changes while the store is open.
	if _, err := root.UserChangePassword(t.Context(), "spencer", "second"); err != nil {
		t.Fatal(err)
	}
	fails(t, s, "refuses the user spencer or the password in "+file)
	secret(t, file, "second")
	works(t, s)

	for text, want := range map[string]string{"": "in one line", "a\nb\n": "in one line"} {
		secret(t, file, text)
		says(t, cfg.Files.Check(), want)
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	says(t, cfg.Files.Check(), "may be read or changed by others")
	if strings.Contains(fmt.Sprintf("%+v", cfg), "second") {
		t.Error("the configuration holds the password")
	}
}

// A follower goes on when its token is no longer good.
func TestFollowWithNewToken(t *testing.T) {
	endpoint, _ := serve(t, server{})
	root := administer(t, endpoint)
	file := filepath.Join(t.TempDir(), "password")
	secret(t, file, "rootword")
	s := openWith(t, Config{Endpoints: []string{endpoint}, User: "root", Files: Files{Password: file}})
	works(t, s)
	if _, err := root.RoleAdd(t.Context(), "any"); err != nil { // a new revision of users and roles
		t.Fatal(err)
	}
	old := "nonsense.1"
	s.login.token.Store(&old)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	rev, err := s.Commit(ctx, nil, []store.Op{{Key: "a", Value: []byte("1")}})
	if err != nil {
		t.Fatal(err)
	}
	s.login.token.Store(&old)
	err = s.Follow(ctx, rev-1, func(int64, []store.Change) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Nobody there is an error within the caller's time, not a wait.
func TestNobodyThere(t *testing.T) {
	u := free(t)
	fails(t, open(t, u.String()), "nobody listens at "+u.Host)
	u.Scheme = "https"
	fails(t, open(t, u.String()), "nobody listens at "+u.Host)
	plain, _ := serve(t, server{})
	fails(t, open(t, strings.Replace(plain, "http", "https", 1)), "does not speak TLS")
}

func TestNoSpace(t *testing.T) {
	endpoint, _ := serve(t, server{quota: 64 << 10})
	s := open(t, endpoint)
	big := make([]byte, store.MaxValue)
	var err error
	for i := 0; i < 2000 && err == nil; i++ {
		_, err = s.Commit(t.Context(), nil, []store.Op{{Key: fmt.Sprint(i % 100), Value: big}})
	}
	says(t, err, "the store is full (NOSPACE alarm)", "can be read but not changed", "alarm disarm")
	works(t, s)
}

// One of three dies: calls go on, and a follower misses nothing.
func TestFailover(t *testing.T) {
	endpoints, end := serveThree(t)
	s := openWith(t, Config{Endpoints: endpoints})
	works(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	put := func(key string) (rev int64) {
		for {
			rev, err := s.Commit(ctx, nil, []store.Op{{Key: key, Value: []byte("x")}})
			if err == nil {
				return rev
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	begin := put("first")
	next := make(chan string, 10)
	followed := make(chan error, 1)
	go func() {
		followed <- s.Follow(ctx, begin-1, func(_ int64, changes []store.Change) {
			for _, c := range changes {
				next <- c.Key
			}
		})
	}()
	want := func(key string) {
		t.Helper()
		for {
			select {
			case got := <-next:
				if got == key {
					return
				}
			case err := <-followed:
				t.Fatalf("followed no more: %v", err)
			case <-ctx.Done():
				t.Fatalf("%s was not followed", key)
			}
		}
	}
	want("first")
	end[0]()
	put("second")
	want("second")
	works(t, s)

	end[1]()
	ctx2, cancel2 := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel2()
	var err error
	for ctx2.Err() == nil {
		if _, _, err = s.Load(ctx2); err != nil && strings.Contains(err.Error(), "no leader") {
			break
		}
	}
	says(t, err, "the store has no leader: most of its members are down")
}

// A member without a leader is passed over where another one answers.
func TestLeaderless(t *testing.T) {
	endpoint, _ := serve(t, server{})
	three, end := serveThree(t)
	works(t, openWith(t, Config{Endpoints: three}))
	end[0]()
	end[1]()
	s := openWith(t, Config{Endpoints: []string{three[2], endpoint}})
	works(t, s)
	for range 10 {
		works(t, s)
		if _, err := s.Commit(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
	}
}

// oldServer answers as etcd 3.4 does to the question for its version.
type oldServer struct {
	pb.UnimplementedMaintenanceServer
}

func (oldServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Version: "3.4.23"}, nil
}

func TestTooOld(t *testing.T) {
	endpoint := ""
	if program := os.Getenv(oldEnv); program != "" {
		endpoint, _ = serve(t, server{program: program})
	} else {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer()
		pb.RegisterMaintenanceServer(g, oldServer{})
		go g.Serve(l)
		t.Cleanup(g.Stop)
		endpoint = "http://" + l.Addr().String()
	}
	s := open(t, endpoint)
	fails(t, s, "the store is etcd 3.4.", "needs 3.5 or newer")
	_, err := s.Commit(t.Context(), nil, []store.Op{{Key: "a", Value: []byte("x")}})
	says(t, err, "3.5 or newer")
	for version, want := range map[string]bool{"3.4.37": true, "3.5.0": false, "3.5.16": false, "3.10.1": false, "4.0": false, "2.3.8": true, "": true, "x": true} {
		if tooOld(version) != want {
			t.Errorf("tooOld(%q) is %v", version, !want)
		}
	}
}

// A wrong greeting is no reason to hang.
func TestNoEtcd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "220 mail.example ESMTP\r\n")
			c.Close()
		}
	}()
	fails(t, open(t, "http://"+l.Addr().String()), "the store does not answer")
	fails(t, open(t, "https://"+l.Addr().String()), "does not speak TLS")
}
