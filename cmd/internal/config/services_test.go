// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"mesh.internal/mesh/resolver/health"
)

func TestSplitPort(t *testing.T) {
	for text, want := range map[string]string{"80": "80/tcp", "80/tcp": "80/tcp", "53/udp": "53/udp", "65535": "65535/tcp"} {
		port, proto, err := SplitPort(text)
		if got := strings.Join([]string{strings.Split(want, "/")[0], proto}, "/"); err != nil || got != want || port == 0 {
			t.Errorf("%q: %d %q %v", text, port, proto, err)
		}
	}
	for _, text := range []string{"", "0", "65536", "-1", "http", "80/sctp", "80/tcp/udp", "/tcp", "0x50"} {
		if port, proto, err := SplitPort(text); err == nil {
			t.Errorf("%q: %d %q", text, port, proto)
		}
	}
}

// FuzzParseServices: what is read can be written, and means the same.
func FuzzParseServices(f *testing.F) {
	f.Add([]byte("[[service]]\ntype = \"http\"\nport = \"80/tcp\"\ntags = [\"a\"]\nmeta = { path = \"/\" }\nttl = \"5s\"\n[[service.check]]\nhttp = \"http://bkero/\"\ninterval = \"2s\"\nfall = 3\n"))
	f.Add([]byte("[[service]]\ntype = \"backup\"\nport = \"22\"\n[[service.check]]\nttl = \"25h\"\n"))
	f.Add([]byte("[[service]]\ntype = \"x\"\nport = \"0\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseServices(b)
		if err != nil || len(list) == 0 {
			return
		}
		var out bytes.Buffer
		if err := toml.NewEncoder(&out).Encode(serviceFile{list}); err != nil {
			t.Fatal(err)
		}
		again, err := ParseServices(out.Bytes())
		if err != nil {
			t.Fatalf("%v in\n%s", err, out.Bytes())
		}
		for i := range list { // what is empty may be left out
			if a, b := list[i], again[i]; a.Name != b.Name || a.Type != b.Type || a.Port != b.Port || a.TTL != b.TTL || len(a.Checks) != len(b.Checks) {
				t.Fatalf("%+v\nwritten and read is\n%+v", a, b)
			}
		}
	})
}

// TestServicesKept writes services as meshd does, and reads them.
func TestServicesKept(t *testing.T) {
	dir := t.TempDir()
	p := Paths{Config: filepath.Join(dir, "mesh.toml"), State: dir}
	list, err := ParseServices([]byte("[[service]]\ntype = \"http\"\nport = \"80/tcp\"\n[[service.check]]\ntcp = \"bkero:80\"\nrise = 2\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SaveServices(list); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(p.ServiceFile()); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", i, err)
	}
	if got, errs := p.LoadServices(nil); len(errs) != 0 || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v %v, want %+v", got, errs, list)
	}
}

// TestServicesManual demands that mesh.toml(5) has every key of services and checks, and that the examples are right.
func TestServicesManual(t *testing.T) {
	page, err := os.ReadFile("../../../packaging/man/mesh.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), ".SH SERVICES\n")
	if !ok {
		t.Fatal("there is no section SERVICES")
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Service](), reflect.TypeFor[health.Check]()} {
		for i := range typ.NumField() {
			key, _, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ",")
			said := regexp.MustCompile(`(?m)^\.TP\n\.BR? (?:\w+ ", " )*` + key + `\b`)
			if key != "-" && key != "check" && !said.MatchString(section) {
				t.Errorf("%s of %s is missing", key, typ)
			}
		}
	}
	_, example, _ := strings.Cut(section, ".EX\n")
	example, _, _ = strings.Cut(example, ".EE\n")
	file, err := os.ReadFile("../../../packaging/examples/http.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{example, string(file)} {
		if list, err := ParseServices([]byte(text)); err != nil || len(list) == 0 {
			t.Errorf("%d services, %v in\n%s", len(list), err, text)
		}
	}
}
