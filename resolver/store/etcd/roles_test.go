// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"mesh.internal/mesh/resolver/store"
)

// etcdctl does what a command of docs/store.md says, of those that are there: by the real etcdctl, where there is one.
func etcdctl(t *testing.T, c *clientv3.Client, line string) {
	t.Helper()
	if program := os.Getenv(ctlEnv); program != "" {
		cmd := exec.Command(program, append([]string{"--endpoints=" + c.Endpoints()[0], "--user=root:rootword"}, strings.Fields(line)[1:]...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		return
	}
	var words, flags []string
	for _, w := range strings.Fields(line)[1:] {
		if strings.HasPrefix(w, "--") {
			flags = append(flags, w)
		} else {
			words = append(words, w)
		}
	}
	var err error
	switch what := strings.Join(words[:2], " "); {
	case what == "role add" && len(words) == 3:
		_, err = c.RoleAdd(t.Context(), words[2])
	case what == "role grant-permission" && len(words) == 5 && strings.Join(flags, " ") == "--prefix=true":
		kind := map[string]clientv3.PermissionType{"read": clientv3.PermissionType(clientv3.PermRead), "readwrite": clientv3.PermissionType(clientv3.PermReadWrite)}
		k, ok := kind[words[3]]
		if !ok {
			t.Fatalf("%s: what permission is that?", line)
		}
		_, err = c.RoleGrantPermission(t.Context(), words[2], words[4], clientv3.GetPrefixRangeEnd(words[4]), k)
	case what == "user add" && len(words) == 3 && len(flags) == 1 && strings.HasPrefix(flags[0], "--new-user-password="):
		_, err = c.UserAdd(t.Context(), words[2], strings.TrimPrefix(flags[0], "--new-user-password="))
	case what == "user grant-role" && len(words) == 4:
		_, err = c.UserGrantRole(t.Context(), words[2], words[3])
	default:
		t.Fatalf("this test does not know %q", line)
	}
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

// TestRoles types what docs/store.md tells the administrator of a cluster, for two nodes, and sees what they may do.
func TestRoles(t *testing.T) {
	endpoint, _ := serve(t, server{})
	root := administer(t, endpoint)
	doc, err := os.ReadFile("../../../docs/store.md")
	if err != nil {
		t.Fatal(err)
	}
	typed := 0
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "etcdctl ") {
			continue
		}
		typed++
		etcdctl(t, root, line)
		other := strings.ReplaceAll(line, "spencer", "bkero")
		if other != line && !strings.Contains(line, "mesh-project") {
			etcdctl(t, root, other)
		}
	}
	if typed < 8 {
		t.Fatalf("docs/store.md has %d commands", typed)
	}
	file := filepath.Join(t.TempDir(), "password")
	secret(t, file, "SECRET\n")
	as := func(user string) *Store {
		s := openWith(t, Config{Endpoints: []string{endpoint}, User: user, Files: Files{Password: file}})
		s.prefix = store.DefaultPrefix("mesh")
		return s
	}
	put := func(s *Store, key string) error {
		kv, err := s.Get(t.Context(), key)
		if err == nil {
			_, err = s.Commit(t.Context(), []store.Cond{{Key: key, Rev: kv.Modified}}, []store.Op{{Key: key, Value: []byte("{}")}})
		}
		return err
	}
	spencer, bkero := as("spencer"), as("bkero")
	works(t, spencer)
	for _, key := range []string{store.NodeKey("spencer"), store.HostKey("spencer", "printer"), store.NameClaimKey("printer"), store.AddrClaimKey("10.11.0.77")} {
		if err := put(spencer, key); err != nil {
			t.Errorf("spencer, %s: %v", key, err)
		}
	}
	if kvs, _, err := bkero.Load(t.Context()); err != nil || len(kvs) != 4 {
		t.Errorf("bkero reads %d values, %v", len(kvs), err)
	}
	if err := put(bkero, store.NodeKey("bkero")); err != nil {
		t.Error(err)
	}
	says(t, put(bkero, store.NodeKey("spencer")), "does not let the user bkero")
	_, err = bkero.Commit(t.Context(), nil, []store.Op{{Key: store.HostKey("spencer", "printer")}})
	says(t, err, "does not let the user bkero")
	if err := spencer.Lock(t.Context(), store.LockPrefix+"projection", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	for prefix, key := range map[string]string{"/skydns/": "internal/mesh/spencer/v4", "/hosts/": "spencer"} {
		if err := put(spencer.Under(prefix), key); err != nil {
			t.Errorf("spencer, %s%s: %v", prefix, key, err)
		}
		says(t, put(bkero.Under(prefix), key), "does not let the user bkero", fmt.Sprintf("below %s", prefix))
	}
}
