// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestDNS(t *testing.T) {
	const good = "name = \"bkero\"\nprefix = \"10.11.0.0/16\"\n[dns]\n"
	c, err := Parse([]byte(good + `listen = ["127.0.0.1", "192.168.1.5:5353", "::1"]
allow = ["192.168.1.0/24"]
single_labels = true
ttl = 30
near = true
rate = 0
secondaries = ["192.168.1.53"]
[dns.forward]
"." = ["9.9.9.9", "1.1.1.1:5353"]
"corp.example" = ["10.0.0.53"]
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.DNSServer()
	const want = "{[127.0.0.1:53 192.168.1.5:5353 [::1]:53] [192.168.1.0/24] true 30 true 0 [192.168.1.53:53] map[:[9.9.9.9:53 1.1.1.1:5353] corp.example:[10.0.0.53:53]]}"
	if got := fmt.Sprint(s); got != want || err != nil {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	b, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again.DNS, c.DNS) {
		t.Errorf("%v from\n%s", err, b)
	}
	d := Default()
	d.Name, d.Prefix = "bkero", "10.11.0.0/16"
	if b, err := d.Bytes(); err != nil || strings.Contains(string(b), "[dns]") {
		t.Errorf("%v: what is not set is written:\n%s", err, b)
	}
	if s, _ := d.DNSServer(); runtime.GOOS == "linux" && fmt.Sprint(s.Listen) != "[127.0.0.153:53]" || s.Rate != DefaultDNSRate {
		t.Errorf("%v", s)
	}
	for in, want := range map[string]string{
		`listen = ["0.0.0.0"]`:                          "4: listen: [dns]: 0.0.0.0 is no address",
		`listen = ["home"]`:                             "4: listen: [dns]: \"home\" is not an address",
		`allow = ["192.168.1.1/24"]`:                    "4: allow: [dns]: \"192.168.1.1/24\" is not a network",
		`setup = "on"`:                                  "4: setup: [dns]: \"on\" is neither auto nor off",
		`ttl = -1`:                                      "4: ttl: [dns]: -1",
		`rate = 2000000`:                                "4: rate: [dns]: 2000000",
		`secondaries = ["ns2.example"]`:                 "4: secondaries: [dns]: \"ns2.example\" is not an address",
		`forward = { "." = [] }`:                        "4: forward: [dns]: .: name a server",
		`forward = { "Example.org" = ["192.0.2.1"] }`:   "4: forward: [dns]: \"Example.org\" is not a zone",
		`forward = { "example.org" = ["example.com"] }`: "4: forward: [dns]: example.org: \"example.com\" is not an address",
		`colour = 1`:                                    `4: unknown key "dns.colour"`,
	} {
		if _, err := Parse([]byte(good + in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

// TestSetupDNS has setup in [dns], and where it was before.
func TestSetupDNS(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "[dns]\nsetup = \"auto\"\n": true, "[dns]\nsetup = \"off\"\n": false, "dns_setup = \"off\"\n": false, "dns_setup = \"auto\"\n": true,
		"dns_setup = \"off\"\n[dns]\nsetup = \"auto\"\n": true, "dns_setup = \"auto\"\n[dns]\nsetup = \"off\"\n": false,
	} {
		c, err := Parse([]byte("name = \"bkero\"\nprefix = \"10.11.0.0/16\"\n" + text))
		if err != nil || c.SetupDNS() != want {
			t.Errorf("%q: %v, want %t", text, err, want)
		}
	}
	if _, err := Parse([]byte("name = \"bkero\"\nprefix = \"10.11.0.0/16\"\ndns_setup = \"on\"\n")); err == nil || !strings.Contains(err.Error(), "neither auto nor off") {
		t.Error(err)
	}
}
