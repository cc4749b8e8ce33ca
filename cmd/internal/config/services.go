// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"mesh.internal/mesh/resolver/health"
)

// Service is a service of this node as a file of services.d says it, and as meshd keeps those that were added by command.
// What its fields may be, resolver.CheckService and health.Check say.
type Service struct {
	Type     string            `toml:"type" json:"type"`
	Port     string            `toml:"port" json:"port"`                     // "80/tcp"
	Name     string            `toml:"name,omitempty" json:"name,omitempty"` // the type, if empty
	Host     string            `toml:"host,omitempty" json:"host,omitempty"` // this node, if empty
	Tags     []string          `toml:"tags,omitempty" json:"tags,omitempty"`
	Meta     map[string]string `toml:"meta,omitempty" json:"meta,omitempty"`
	Priority uint16            `toml:"priority,omitempty" json:"priority,omitempty"`
	Weight   uint16            `toml:"weight,omitempty" json:"weight,omitempty"`
	TTL      health.Duration   `toml:"ttl,omitempty" json:"ttl,omitempty"` // of DNS answers
	Checks   []health.Check    `toml:"check,omitempty" json:"checks,omitempty"`

	File string `toml:"-" json:"file,omitempty"` // that says so; empty: it was added by command
}

// serviceFile is a file of services.
type serviceFile struct {
	Service []Service `toml:"service"`
}

// maxServiceFile bounds a file of services in bytes.
const maxServiceFile = 1 << 20

// ServiceDir is the folder of files of services, *.toml, beside mesh.toml.
func (p Paths) ServiceDir() string { return filepath.Join(filepath.Dir(p.Config), "services.d") }

// ServiceFile is where services are kept that were added by command.
func (p Paths) ServiceFile() string { return filepath.Join(p.State, "services.toml") }

// SplitPort reads "80/tcp"; the protocol is tcp where there is none.
func SplitPort(s string) (port uint16, proto string, err error) {
	number, proto, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if proto = cmp.Or(proto, "tcp"); err != nil || n == 0 || proto != "tcp" && proto != "udp" {
		return 0, "", fmt.Errorf("port %q is not a number from 1 to 65535 with a protocol, as 80/tcp or 53/udp", s)
	}
	return uint16(n), proto, nil
}

// ParseServices reads a file of services. Its errors begin with the line, where there is one.
func ParseServices(b []byte) ([]Service, error) {
	if len(b) > maxServiceFile {
		return nil, fmt.Errorf(" %d bytes, at most %d are allowed", len(b), maxServiceFile)
	}
	var f serviceFile
	if err := decode(b, &f, "mesh.toml(5), under SERVICES"); err != nil {
		return nil, err
	}
	for i := range f.Service {
		s := &f.Service[i]
		s.Name = cmp.Or(s.Name, s.Type)
		if err := s.check(); err != nil {
			return nil, fmt.Errorf(" service %q: %w", s.Name, err)
		}
	}
	return f.Service, nil
}

func (s *Service) check() error {
	if _, _, err := SplitPort(s.Port); err != nil {
		return err
	}
	for i, c := range s.Checks {
		if err := c.Validate(); err != nil {
			return fmt.Errorf("check %d: %w", i+1, err)
		}
	}
	return nil
}

// LoadServices reads all files of services.d in the order of their names, and then what was added by command. Of two services
// of one name the first holds. What is wrong is in errs, file by file; the other files count.
func (p Paths) LoadServices() (services []Service, errs []error) {
	files, _ := filepath.Glob(filepath.Join(p.ServiceDir(), "*.toml"))
	slices.Sort(files)
	from := map[string]string{}
	add := func(path string, name func(string) string) {
		b, err := os.ReadFile(path)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("reading services: %w", err))
			}
			return
		}
		list, err := ParseServices(b)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:%w", path, err))
			return
		}
		for _, s := range list {
			if other, dup := from[s.Name]; dup {
				errs = append(errs, fmt.Errorf("service %q of %s is left out: %s has one of that name", s.Name, path, other))
				continue
			}
			from[s.Name] = path
			s.File = name(path)
			services = append(services, s)
		}
	}
	for _, f := range files {
		add(f, func(path string) string { return path })
	}
	add(p.ServiceFile(), func(string) string { return "" })
	return services, errs
}

// SaveServices keeps services that were added by command.
func (p Paths) SaveServices(services []Service) error {
	var b bytes.Buffer
	b.WriteString("# written by meshd: services that were added with mesh service add\n\n")
	if err := toml.NewEncoder(&b).Encode(serviceFile{services}); err != nil {
		return fmt.Errorf("keeping services: %w", err)
	}
	if err := WriteFile(p.ServiceFile(), b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("keeping services: %w", err)
	}
	return nil
}
