// SPDX-License-Identifier: MIT

package health

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func TestValidate(t *testing.T) {
	const s = Duration(time.Second)
	for _, c := range []struct {
		check Check
		want  string // part of the error; empty for none
	}{
		{Check{HTTP: "http://127.0.0.1:8080/"}, ""},
		{Check{HTTP: "https://[::1]/x", Method: "HEAD", Header: map[string]string{"Host": "www"}, Expect: "^ok", Insecure: true}, ""},
		{Check{TCP: "127.0.0.1:22", Interval: 5 * s, Timeout: s, Rise: 2, Fall: 3}, ""},
		{Check{TCP: "[::1]:ssh"}, ""},
		{Check{DNS: "example.com@127.0.0.1"}, ""},
		{Check{Ping: "bkero"}, ""},
		{Check{TTL: 30 * s}, ""},
		{Check{Script: []string{"/bin/true"}, User: "root", Env: map[string]string{"A": "b"}, Dir: "/tmp", Name: "it"}, ""},
		{Check{TCP: "h:1", OnChange: []string{"/bin/true"}, User: "mail"}, ""},
		{Check{}, "exactly one"},
		{Check{HTTP: "http://h/", TCP: "h:1"}, "this one has 2"},
		{Check{TCP: "h:1", Name: "a b"}, "letters"},
		{Check{HTTP: "ftp://h/"}, "not a URL"},
		{Check{HTTP: "http://"}, "not a URL"},
		{Check{HTTP: "http://h/", Method: "A B"}, "method"},
		{Check{HTTP: "http://h/", Expect: "("}, "expect"},
		{Check{TCP: "h"}, "host:port"},
		{Check{TCP: ":22"}, "host:port"},
		{Check{TCP: "h:70000"}, "host:port"},
		{Check{TCP: "h:0"}, "host:port"},
		{Check{DNS: "@127.0.0.1"}, "name@server"},
		{Check{DNS: "x@"}, "name@server"},
		{Check{Ping: "a b"}, "not a host"},
		{Check{Script: []string{"check_http"}}, "whole path"},
		{Check{Script: []string{"/bin/sh", "a\x00"}}, "zero byte"},
		{Check{TCP: "h:1", OnChange: []string{"x"}}, "on_change"},
		{Check{TCP: "h:1", Interval: s / 2}, "interval 500ms is not from 1s to 24h0m0s"},
		{Check{TCP: "h:1", Interval: 10 * s, Timeout: 11 * s}, "timeout 11s is not from 10ms to 10s"},
		{Check{TCP: "h:1", Timeout: -s}, "timeout"},
		{Check{TCP: "h:1", Rise: -1}, "rise"},
		{Check{TCP: "h:1", Fall: 101}, "fall"},
		{Check{TTL: s / 2}, "ttl 500ms"},
		{Check{TTL: -s}, "ttl"},
		{Check{TTL: 30 * s, Interval: s}, "no interval"},
		{Check{TCP: "h:1", Method: "GET"}, "method is of http"},
		{Check{TCP: "h:1", User: "mail"}, "of script checks"},
		{Check{Script: []string{"/bin/true"}, Env: map[string]string{"A=B": ""}}, "env"},
		{Check{Script: []string{"/bin/true"}, Dir: "tmp"}, "whole path"},
	} {
		err := c.check.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.check, err, c.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	const s = Duration(time.Second)
	for _, c := range []struct {
		check             Check
		interval, timeout Duration
		rise, fall        int
	}{
		{Check{TCP: "h:1"}, 10 * s, 5 * s, 1, 2},
		{Check{TCP: "h:1", Interval: 2 * s}, 2 * s, 2 * s, 1, 2},
		{Check{Script: []string{"/x"}}, 10 * s, 10 * s, 1, 2},
		{Check{Script: []string{"/x"}, Interval: 60 * s, Rise: 3, Fall: 1}, 60 * s, 30 * s, 3, 1},
	} {
		got := c.check.withDefaults()
		if got.Interval != c.interval || got.Timeout != c.timeout || got.Rise != c.rise || got.Fall != c.fall {
			t.Errorf("%+v became %+v", c.check, got)
		}
	}
}

// A check is written alike in TOML, which people write, and in JSON, which the API speaks.
func TestForms(t *testing.T) {
	want := Check{Script: []string{"/usr/lib/nagios/plugins/check_http", "-H", "127.0.0.1"}, Interval: Duration(time.Minute), Timeout: Duration(1500 * time.Millisecond),
		User: "nagios", Env: map[string]string{"A": "b"}, OnChange: []string{"/bin/true"}}
	var fromTOML, fromJSON Check
	if err := toml.Unmarshal([]byte("script = [\"/usr/lib/nagios/plugins/check_http\", \"-H\", \"127.0.0.1\"]\ninterval = \"60s\"\ntimeout = \"1.5s\"\nuser = \"nagios\"\nenv = {A = \"b\"}\non_change = [\"/bin/true\"]\n"), &fromTOML); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(fromTOML, want) || !reflect.DeepEqual(fromJSON, want) {
		t.Errorf("TOML %+v\nJSON %+v\nwant %+v", fromTOML, fromJSON, want)
	}
	if err := toml.Unmarshal([]byte(`ttl = "soon"`), &fromTOML); err == nil || !strings.Contains(err.Error(), `"soon" is not a time`) {
		t.Error(err)
	}
}
