// SPDX-License-Identifier: MIT

package config

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"crypto/x509"

	"mesh.internal/mesh/vpn/identity"
)

func TestRoundTrip(t *testing.T) {
	for _, st := range []Store{{Embedded: true}, {Endpoints: []string{"https://10.11.0.1:2379", "https://10.11.0.2:2379"}}, everything().Store} {
		c := Default()
		if st.Access != (Access{}) {
			c.Project = everything().Project
		}
		c.Name, c.Prefix, c.Store = "spencer", "10.11.0.0/16", st
		c.Public, c.Connect, c.Subnet = []string{"198.18.1.2"}, []string{"bkero"}, []string{"10.99.0.0/24#5"}
		b, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil || !reflect.DeepEqual(*got, c) {
			t.Fatalf("%+v, %v from\n%s", got, err, b)
		}
	}
}

// everything is a configuration in which no key has been left out.
func everything() Config {
	c := Default()
	c.Name, c.Prefix = "spencer", "10.11.0.0/16"
	c.Store = Store{Endpoints: []string{"https://192.0.2.1:2379"}, Access: Access{CA: "/etc/mesh/store/ca.crt", Cert: "/etc/mesh/store/me.crt", Key: "/etc/mesh/store/me.key",
		User: "spencer", PasswordFile: "/etc/mesh/store/password", Prefix: "/ours/mesh/"}}
	c.Project = Project{Layouts: []string{"skydns", "hosts"}, SkyDNS: "/dns", Hosts: "/names", TTL: 30}
	return c
}

func TestParseErrors(t *testing.T) {
	good := "name = \"bkero\"\nprefix = \"10.11.0.0/16\"\n"
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		good + "colour = 1":                              `3: unknown key "colour"`,
		good + "port = 70000":                            "3: port: 70000",
		good + "port = \"x\"":                            "3:",
		good + "mtu = 9000":                              "3: mtu: 9000",
		good + "store = 7":                               "3: store: want",
		good + "store = \"etcd\"":                        "3: store: \"etcd\" is neither",
		good + "store = [\"10.0.0.1\"]":                  "3: store: \"10.0.0.1\" is not an endpoint",
		good + "public = [\"a:b:c\"]":                    "3: public:",
		good + "store_user = \"x\"":                      "3: store_user: it is for a store elsewhere",
		good + "store = \"embedded\"\nstore_ca = \"/a\"": "4: store_ca: it is for a store elsewhere",
		good + "store = [\"https://10.0.0.1:2379\"]\nstore_ca = \"a\"":                             "4: store_ca: \"a\" is not a whole path",
		good + "store = [\"https://10.0.0.1:2379\"]\nstore_key = \"/a\"":                           "4: store_key: a certificate and its key",
		good + "store = [\"https://10.0.0.1:2379\"]\nstore_user = \"a\"":                           "4: store_user: a user and a password",
		good + "store = [\"https://10.0.0.1:2379\"]\nstore_password = \"a\"":                       "4: unknown key \"store_password\"",
		good + "store = [\"https://10.0.0.1:2379\"]\nstore_prefix = \"/a\"":                        "4: store_prefix:",
		good + "store = [\"https://10.0.0.1:1\",\"http://10.0.0.1:2\"]":                            "3: store: the endpoints must all be",
		good + "store = [\"https://nas.mesh.internal:1\"]":                                         "3: store: nas.mesh.internal is a name of this mesh",
		good + "store = [\"http://10.0.0.1:1\"]\nstore_ca = \"/a\"":                                "4: store_ca: certificates are for https",
		good + "store = [\"http://10.0.0.1:1\"]\nstore_user = \"a\"\nstore_password_file = \"/p\"": "4: store_user: the password would cross the network",
		good + "project = [\"bind\"]":                                                              "3: project: \"bind\" is not",
		good + "project_skydns = \"/mesh/v1\"":                                                     "3: project_skydns: \"/mesh/v1\" and the mesh's own keys",
		good + "project = [\"skydns\", \"hosts\"]\nproject_hosts = \"/skydns/x\"":                  "4: project_hosts:",
		good + "project_ttl = 100000":                                                              "3: project_ttl: 100000",
		good + "connect = [\"A\"]":                                                                 "3: connect:",
		good + "domain = \"mesh\"":                                                                 "3: domain:",
		good + "log_level = \"loud\"":                                                              "3: log_level:",
		good + "interface = \"a b\"":                                                               "3: interface:",
		"name = \"bkero\"\nprefix = \"8.8.0.0/16\"":                                                "2: prefix: 8.8.0.0/16 is not a private",
		"prefix = \"10.11.0.0/16\"":                                                                " name: node name is empty",
		"name = ":                                                                                  "1:",
	} {
		if _, err := Parse([]byte(in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1:7655", "192.0.2.1:1": "192.0.2.1:1", "2001:db8::1": "[2001:db8::1]:7655",
		"[2001:db8::1]:5": "[2001:db8::1]:5", "a.example": "a.example:7655", "a.example:9": "a.example:9", "": "", "a:0": "", "a:x": "", "a b": ""} {
		if got, _ := HostPort(in, 7655); got != want {
			t.Errorf("HostPort(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestState(t *testing.T) {
	p := Paths{State: filepath.Join(t.TempDir(), "mesh")}
	if _, err := p.LoadIdentity(); err == nil || !strings.Contains(err.Error(), "mesh join") {
		t.Fatal(err)
	}
	k, wg, err := p.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if k2, wg2, err := p.Keys(); err != nil || !k.Equal(k2) || !wg.Equal(wg2) {
		t.Fatal("the second call made other keys", err)
	}
	ca, err := identity.NewCA("mesh")
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Issue("spencer", "mesh.internal", []netip.Addr{netip.MustParseAddr("10.11.0.1")}, &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(ca, []*x509.Certificate{c}, k, wg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SaveIdentity(id); err != nil {
		t.Fatal(err)
	}
	got, err := p.LoadIdentity()
	if err != nil || got.Node.Name != "spencer" || !got.CA.Key.Equal(ca.Key) {
		t.Fatal(got, err)
	}
	filepath.WalkDir(p.State, func(path string, d fs.DirEntry, err error) error {
		i, _ := d.Info()
		if i.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, i.Mode())
		}
		return err
	})
	if err := os.WriteFile(p.KeyFile(), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.LoadIdentity(); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("name = \"bkero\"\nprefix = \"10.11.0.0/16\"\nstore = [\"https://a:1\"]\n"))
	c := everything()
	all, err := c.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		out, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(out); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
	})
}

// TestManual demands that mesh.toml(5) has every key.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../../packaging/man/mesh.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	c := everything()
	b, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if key, _, ok := strings.Cut(line, " = "); ok && !strings.HasPrefix(line, "#") && !strings.Contains(string(page), ".TP\n.B "+key+"\n") {
			t.Errorf("%s is missing", key)
		}
	}
	_, example, ok := strings.Cut(string(page), ".EX\n")
	example, _, ok2 := strings.Cut(example, ".EE\n")
	if _, err := Parse([]byte(example)); err != nil || !ok || !ok2 {
		t.Errorf("the example: %v", err)
	}
	if _, err := Load("../../../packaging/examples/mesh.toml"); err != nil {
		t.Error(err)
	}
}
