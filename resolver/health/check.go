// SPDX-License-Identifier: MIT

package health

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// State is what a check has found.
type State string

// The states, from the best to the worst. Answers take Unknown for Critical; people see them apart.
const (
	Passing  State = "passing"
	Warning  State = "warning"
	Unknown  State = "unknown" // a plugin's own word (exit 3), or no result in time
	Critical State = "critical"
)

// rank orders states; what is not a state has rank -1.
func (s State) rank() int { return slices.Index([]State{Passing, Warning, Unknown, Critical}, s) }

// Serves reports whether a service in this state belongs into answers.
func (s State) Serves() bool { return s == Passing || s == Warning }

// Duration is a time.Duration that is written as text, "10s", in TOML and JSON.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a time like \"10s\" or \"1m30s\"", b)
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// Check is one check of one service, as configured. Exactly one of Script, HTTP, TCP, DNS, Ping and TTL is set.
type Check struct {
	Name string `toml:"name,omitempty" json:"name,omitempty"` // among the service's checks; default: its kind, as "http", "http-2"

	Script []string `toml:"script,omitempty" json:"script,omitempty"` // a program, by its whole path, and arguments: a Nagios plugin; no shell
	HTTP   string   `toml:"http,omitempty" json:"http,omitempty"`     // URL: 2xx passes, 429 warns, all else is critical (Consul's rule)
	TCP    string   `toml:"tcp,omitempty" json:"tcp,omitempty"`       // host:port that accepts a connection
	DNS    string   `toml:"dns,omitempty" json:"dns,omitempty"`       // name that has an address, "name@server" or "name@server:port"
	Ping   string   `toml:"ping,omitempty" json:"ping,omitempty"`     // host that answers an echo request
	TTL    Duration `toml:"ttl,omitempty" json:"ttl,omitempty"`       // a report (Runner.Report) holds for so long; 1 s to 7 days

	Interval Duration `toml:"interval,omitempty" json:"interval,omitempty"` // 1 s to 24 h; default 10 s
	Timeout  Duration `toml:"timeout,omitempty" json:"timeout,omitempty"`   // 10 ms to Interval; default 5 s, of scripts 30 s, at most Interval
	Rise     int      `toml:"rise,omitempty" json:"rise,omitempty"`         // better results in a row that change the state, 1 to 100; default 1
	Fall     int      `toml:"fall,omitempty" json:"fall,omitempty"`         // worse results in a row that change the state, 1 to 100; default 2

	Method   string            `toml:"method,omitempty" json:"method,omitempty"`     // of HTTP; default GET
	Header   map[string]string `toml:"header,omitempty" json:"header,omitempty"`     // of HTTP
	Expect   string            `toml:"expect,omitempty" json:"expect,omitempty"`     // of HTTP: a regular expression (RE2) that the first 64 KiB of the body match
	Insecure bool              `toml:"insecure,omitempty" json:"insecure,omitempty"` // of HTTP: take any certificate

	User     string            `toml:"user,omitempty" json:"user,omitempty"`           // of Script and OnChange; default Config.User
	Env      map[string]string `toml:"env,omitempty" json:"env,omitempty"`             // of Script, beside what all get
	Dir      string            `toml:"dir,omitempty" json:"dir,omitempty"`             // of Script; default /
	OnChange []string          `toml:"on_change,omitempty" json:"on_change,omitempty"` // a program that is run after a change of state, with MESH_FROM, MESH_TO and MESH_OUTPUT
}

const (
	defaultInterval = 10 * time.Second
	defaultTimeout  = 5 * time.Second
	scriptTimeout   = 30 * time.Second
)

// Kind is what sort of check it is: script, http, tcp, dns, ping or ttl, or empty.
func (c Check) Kind() string { k, _ := c.kind(); return k }

// kind also says what is checked.
func (c Check) kind() (kind, what string) {
	for _, k := range [][2]string{{"script", strings.Join(c.Script, " ")}, {"http", c.HTTP}, {"tcp", c.TCP}, {"dns", c.DNS}, {"ping", c.Ping}} {
		if k[1] != "" {
			return k[0], k[1]
		}
	}
	if c.TTL != 0 {
		return "ttl", c.TTL.String()
	}
	return "", ""
}

// String is the check in one line, without what may be secret: "http http://127.0.0.1/".
func (c Check) String() string { k, what := c.kind(); return k + " " + what }

var (
	checkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	userName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Validate says what is wrong with a check, and what to do about it.
func (c Check) Validate() error {
	n := 0
	for _, is := range []bool{len(c.Script) > 0, c.HTTP != "", c.TCP != "", c.DNS != "", c.Ping != "", c.TTL != 0} {
		if is {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("a check has exactly one of script, http, tcp, dns, ping and ttl; this one has %d", n)
	}
	if c.Name != "" && !checkName.MatchString(c.Name) {
		return fmt.Errorf("name %q is not up to 63 letters, digits, dots and hyphens", c.Name)
	}
	kind := c.Kind()
	if err := c.validateKind(); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if err := c.validateTimes(kind); err != nil {
		return err
	}
	for key, of := range map[string]struct {
		kind string
		set  bool
	}{
		"method": {"http", c.Method != ""}, "header": {"http", len(c.Header) > 0}, "expect": {"http", c.Expect != ""}, "insecure": {"http", c.Insecure},
	} {
		if of.set && of.kind != kind {
			return fmt.Errorf("%s is of %s checks only", key, of.kind)
		}
	}
	if kind != "script" && len(c.OnChange) == 0 && (c.User != "" || len(c.Env) > 0 || c.Dir != "") {
		return errors.New("user, env and dir are of script checks and of on_change only")
	}
	if len(c.OnChange) > 0 {
		if err := validateCommand(c.OnChange); err != nil {
			return fmt.Errorf("on_change: %w", err)
		}
	}
	if c.User != "" && !userName.MatchString(c.User) {
		return fmt.Errorf("user %q is not a user's name", c.User)
	}
	for name, value := range c.Env {
		if !envName.MatchString(name) || strings.ContainsRune(value, 0) {
			return fmt.Errorf("env: %q is not a variable's name, or its value has a zero byte", name)
		}
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("dir %q is not a whole path", c.Dir)
	}
	return nil
}

func (c Check) validateKind() error {
	switch c.Kind() {
	case "script":
		return validateCommand(c.Script)
	case "http":
		if u, err := url.Parse(c.HTTP); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			return fmt.Errorf("%q is not a URL like http://127.0.0.1:8080/health", c.HTTP)
		}
		if _, err := http.NewRequest(c.Method, c.HTTP, nil); err != nil {
			return fmt.Errorf("method %q: %w", c.Method, err)
		}
		if _, err := regexp.Compile(c.Expect); err != nil {
			return fmt.Errorf("expect: %w", err)
		}
	case "tcp":
		return validateHostPort(c.TCP)
	case "dns":
		name, server, has := strings.Cut(c.DNS, "@")
		if name == "" || has && server == "" || strings.ContainsAny(c.DNS, " /") {
			return fmt.Errorf("%q is not a name or name@server", c.DNS)
		}
	case "ping":
		if strings.ContainsAny(c.Ping, " /") {
			return fmt.Errorf("%q is not a host", c.Ping)
		}
	}
	return nil
}

func validateHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil && host != "" {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || host == "" || port == "" || port == "0" {
		return fmt.Errorf("%q is not host:port like 127.0.0.1:22", s)
	}
	return nil
}

func validateCommand(argv []string) error {
	if !filepath.IsAbs(argv[0]) {
		return fmt.Errorf("%q is not a program's whole path like /usr/lib/nagios/plugins/check_http; for a shell write [\"/bin/sh\", \"-c\", …]", argv[0])
	}
	if strings.ContainsRune(strings.Join(argv, ""), 0) {
		return errors.New("an argument has a zero byte")
	}
	return scriptsPossible()
}

func (c Check) validateTimes(kind string) error {
	within := func(key string, d Duration, lo, hi time.Duration) error {
		if d != 0 && (time.Duration(d) < lo || time.Duration(d) > hi) {
			return fmt.Errorf("%s %s is not from %s to %s", key, d, lo, hi)
		}
		return nil
	}
	if kind == "ttl" && (c.Interval != 0 || c.Timeout != 0 || c.Rise != 0 || c.Fall != 0) {
		return errors.New("a ttl check has no interval, timeout, rise and fall: each report counts, and holds for the ttl")
	}
	for _, n := range []int{c.Rise, c.Fall} {
		if n < 0 || n > 100 {
			return fmt.Errorf("rise or fall %d is not from 1 to 100", n)
		}
	}
	full := c.withDefaults()
	return errors.Join(within("ttl", c.TTL, time.Second, 7*24*time.Hour), within("interval", c.Interval, time.Second, 24*time.Hour),
		within("timeout", c.Timeout, 10*time.Millisecond, time.Duration(full.Interval)))
}

// withDefaults fills in what is not said.
func (c Check) withDefaults() Check {
	set := func(d *Duration, v time.Duration) {
		if *d == 0 {
			*d = Duration(v)
		}
	}
	set(&c.Interval, defaultInterval)
	timeout := defaultTimeout
	if len(c.Script) > 0 {
		timeout = scriptTimeout
	}
	set(&c.Timeout, min(timeout, time.Duration(c.Interval)))
	c.Rise, c.Fall = max(c.Rise, 1), c.fall()
	c.Header, c.Env = maps.Clone(c.Header), maps.Clone(c.Env)
	return c
}

func (c Check) fall() int {
	switch {
	case c.TTL != 0:
		return 1
	case c.Fall == 0:
		return 2
	}
	return c.Fall
}
