// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// result is what a command did.
type result struct {
	out  string // standard output
	err  string // standard error
	code int    // exit status, -1 where there is none
}

// An expectation returns why a result is not what it should be.
type expectation func(result) error

// succeeds expects exit status 0.
func succeeds(r result) error {
	if r.code != 0 {
		return fmt.Errorf("exit status %d instead of 0", r.code)
	}
	return nil
}

// says expects exit status 0 and all of the words in the output, as words.
func says(words ...string) expectation {
	return func(r result) error {
		if err := succeeds(r); err != nil {
			return err
		}
		have := strings.Fields(r.out)
		for _, w := range words {
			if !slices.Contains(have, w) {
				return fmt.Errorf("%q is not in the output", w)
			}
		}
		return nil
	}
}

// resolves expects lines of getent that give a host these addresses, all of them, and the host's name.
func resolves(name string, addrs ...netip.Addr) expectation {
	return func(r result) error {
		if err := succeeds(r); err != nil {
			return err
		}
		words := strings.Fields(r.out)
		for _, a := range addrs {
			if !slices.Contains(words, a.String()) {
				return fmt.Errorf("the address %v of %s is not in the output", a, name)
			}
		}
		for _, w := range words {
			if label, _, _ := strings.Cut(w, "."); strings.EqualFold(label, name) {
				return nil
			}
		}
		return fmt.Errorf("the name %s is not in the output", name)
	}
}

// resolvesOne is resolves where one of several addresses will do: getent hosts shows one family.
func resolvesOne(name string, addrs []netip.Addr) expectation {
	return func(r result) (err error) {
		for _, a := range addrs {
			if err = resolves(name, a)(r); err == nil {
				return nil
			}
		}
		return err
	}
}

// unknown expects getent not to know the name: exit status 2 (getent(1)) and no output.
func unknown(r result) error {
	if r.code != 2 || r.out != "" {
		return fmt.Errorf("exit status %d instead of 2", r.code)
	}
	return nil
}

// answers expects one reply from one of the addresses.
func answers(addrs []netip.Addr) expectation {
	return func(r result) error {
		if err := succeeds(r); err != nil {
			return err
		}
		if !strings.Contains(r.out, " 1 received") {
			return fmt.Errorf("no reply")
		}
		for _, a := range addrs {
			if strings.Contains(r.out, "("+a.String()+")") {
				return nil
			}
		}
		return fmt.Errorf("the reply is not from an address of the mesh")
	}
}

// silent expects ping to get no reply: exit status 1 (ping(8)); 2 would be an unknown name.
func silent(r result) error {
	if r.code != 1 {
		return fmt.Errorf("exit status %d instead of 1", r.code)
	}
	return nil
}

var (
	digStatus = regexp.MustCompile(`status: (\w+),`)
	digFlags  = regexp.MustCompile(`flags: ([a-z ]*); QUERY: 1, ANSWER: (\d+), AUTHORITY: (\d+)`)
)

// dns expects an authoritative reply with this status and, exactly, these answers. One without answers has the zone's SOA
// (RFC 2308 §2), so that the asker knows how long it holds.
func dns(status string, addrs ...netip.Addr) expectation {
	return func(r result) error {
		if err := succeeds(r); err != nil {
			return err
		}
		s, f := digStatus.FindStringSubmatch(r.out), digFlags.FindStringSubmatch(r.out)
		switch {
		case s == nil || f == nil:
			return fmt.Errorf("no reply in the output")
		case s[1] != status:
			return fmt.Errorf("status %s instead of %s", s[1], status)
		case !slices.Contains(strings.Fields(f[1]), "aa"):
			return fmt.Errorf("not authoritative: flags %s", f[1])
		case f[2] != fmt.Sprint(len(addrs)):
			return fmt.Errorf("%s answers instead of %d", f[2], len(addrs))
		case len(addrs) == 0 && !slices.Contains(strings.Fields(r.out), "SOA"):
			return fmt.Errorf("no SOA in a negative reply")
		}
		return says(strs(addrs)...)(r)
	}
}

func strs(addrs []netip.Addr) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// status is the part of mesh status --json that the demo reads.
type status struct {
	Self struct {
		Name  string
		Addrs []netip.Addr
	}
	Peers []struct {
		Name   string
		Direct bool
		Via    []string
	}
	Store struct {
		State string
	}
	Warnings []json.RawMessage
}

func parseStatus(r result) (s status, err error) {
	if err := succeeds(r); err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		return s, fmt.Errorf("reading the status: %w", err)
	}
	return s, nil
}

// well expects a node of this name with addresses, a store that answers, and direct tunnels to the peers named.
func well(name string, direct ...string) expectation {
	return func(r result) error {
		s, err := parseStatus(r)
		switch {
		case err != nil:
			return err
		case s.Self.Name != name || !slices.ContainsFunc(s.Self.Addrs, netip.Addr.Is4):
			return fmt.Errorf("it is %q with the addresses %v", s.Self.Name, s.Self.Addrs)
		case s.Store.State != "ok":
			return fmt.Errorf("the store is %s", s.Store.State)
		}
		for _, d := range direct {
			found := false
			for _, p := range s.Peers {
				found = found || p.Name == d && p.Direct
			}
			if !found {
				return fmt.Errorf("no direct tunnel to %s", d)
			}
		}
		return nil
	}
}

// token expects exactly one line, an invitation.
func token(r result) error {
	if err := succeeds(r); err != nil {
		return err
	}
	if line, rest, _ := strings.Cut(r.out, "\n"); !strings.HasPrefix(line, "mesh://") || strings.ContainsAny(line, " \t") || rest != "" {
		return fmt.Errorf("the output is not exactly one line that begins with mesh://")
	}
	return nil
}

// lacks expects success and none of the words.
func lacks(words ...string) expectation {
	return func(r result) error {
		for _, w := range words {
			if says(w)(r) == nil {
				return fmt.Errorf("%s is there", w)
			}
		}
		return succeeds(r)
	}
}
