// SPDX-License-Identifier: MIT

package project

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// coreDNS answers from the keys of a store as CoreDNS 1.11's plugin etcd does, with its peculiarities: whole subtrees
// are answers, one value that is no JSON fails them, groups, defaults, the places of apex and name servers.
type coreDNS struct {
	keys map[string]string
	path string
	zone string // or a reverse zone
}

// service is a value as CoreDNS reads it.
type service struct {
	Host        string `json:"host,omitempty"`
	Port        int    `json:"port,omitempty"`
	Priority    int    `json:"priority,omitempty"`
	Weight      int    `json:"weight,omitempty"`
	Text        string `json:"text,omitempty"`
	Mail        bool   `json:"mail,omitempty"`
	TTL         uint32 `json:"ttl,omitempty"`
	TargetStrip int    `json:"targetstrip,omitempty"`
	Group       string `json:"group,omitempty"`
	key         string
}

var errNoName = errors.New("NXDOMAIN")

func (c coreDNS) key(name string) string {
	return c.path + "/" + reversed(strings.ToLower(strings.TrimSuffix(name, ".")))
}

// domain is the name that a key is for.
func (c coreDNS) domain(key string) string {
	return strings.ReplaceAll(reversed(strings.ReplaceAll(strings.TrimPrefix(key, c.path+"/"), "/", ".")), "/", ".")
}

// services are the values for a name: the subtree below its key or, without one, the key; only the key if exact.
func (c coreDNS) services(name string, exact, text bool) ([]service, error) {
	key := c.key(name)
	var found []string
	if !exact {
		for k := range c.keys {
			if strings.HasPrefix(k, key+"/") {
				found = append(found, k)
			}
		}
	}
	if _, ok := c.keys[key]; ok && found == nil {
		found = []string{key}
	}
	if found == nil {
		return nil, errNoName
	}
	slices.Sort(found)
	var out []service
	for _, k := range found {
		s := service{}
		if err := json.Unmarshal([]byte(c.keys[k]), &s); err != nil {
			return nil, fmt.Errorf("SERVFAIL: %s: %w", k, err)
		}
		s.key = k
		if s.TTL == 0 {
			s.TTL = 300
		}
		if s.Priority == 0 {
			s.Priority = 10
		}
		if text && s.Text != "" || s.Host != "" {
			out = append(out, s)
		}
	}
	return group(out), nil
}

// group keeps the services of the group that those with the shortest keys are in, if they agree.
func group(all []service) []service {
	if len(all) == 0 {
		return all
	}
	name, least := all[0].Group, strings.Count(all[0].key, "/")
	for _, s := range all {
		if n := strings.Count(s.key, "/"); n < least {
			if s.Group == "" {
				break
			}
			name, least = s.Group, n
		}
	}
	if name == "" {
		return all
	}
	var out []service
	for _, s := range all {
		switch {
		case s.Group == "" || s.Group == name:
			out = append(out, s)
		case strings.Count(s.key, "/") == least:
			return all
		}
	}
	return out
}

// host is what a service's host is: an address, a name, or neither where there is text.
func (s service) host() (a netip.Addr, name bool) {
	a, err := netip.ParseAddr(s.Host)
	return a, err != nil && s.Text == ""
}

func (c coreDNS) target(s service) string {
	d := c.domain(s.key)
	for range s.TargetStrip {
		_, d, _ = strings.Cut(d, ".")
	}
	return d
}

// lookup answers a question as "TYPE TTL DATA" lines.
func (c coreDNS) lookup(name, kind string) (out []string, err error) {
	switch kind {
	case "A", "AAAA":
		all, err := c.services(name, false, false)
		if name == c.zone {
			if apex, err2 := c.services("apex.dns."+c.zone, false, false); err2 == nil {
				all, err = apex, nil
			}
		}
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			switch a, isName := s.host(); {
			case isName:
				out = append(out, "CNAME "+s.Host)
			case a.Is4() == (kind == "A"):
				out = append(out, fmt.Sprintf("%s %d %s", kind, s.TTL, a))
			}
		}
	case "PTR":
		all, err := c.services(name, true, false)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if _, isName := s.host(); isName {
				out = append(out, fmt.Sprintf("PTR %d %s", s.TTL, s.Host))
			}
		}
	case "NS":
		all, err := c.services("ns.dns."+c.zone, false, false)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			a, isName := s.host()
			if isName {
				return nil, errors.New("SERVFAIL: a name server that is a name")
			}
			out = append(out, fmt.Sprintf("NS %d %s %s", s.TTL, c.target(s), a))
		}
	case "SRV":
		all, err := c.services(name, false, false)
		if err != nil {
			return nil, err
		}
		sum := map[int]int{}
		for _, s := range all {
			sum[s.Priority] += weightOf(s)
		}
		for _, s := range all {
			weight := max(1, int(math.Floor(100/float64(sum[s.Priority])*float64(weightOf(s)))))
			if line := fmt.Sprintf("SRV %d %d %d %d %s", s.TTL, s.Priority, weight, s.Port, c.target(s)); !slices.Contains(out, line) {
				out = append(out, line)
			}
		}
	case "TXT":
		all, err := c.services(name, false, true)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if s.Text != "" && s.Host == "" {
				out = append(out, fmt.Sprintf("TXT %d %q", s.TTL, s.Text))
			}
		}
	}
	return out, nil
}

func weightOf(s service) int {
	if s.Weight == 0 {
		return 100
	}
	return s.Weight
}
