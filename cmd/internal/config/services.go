// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
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
// of one name the first holds. What is wrong is in errs, file by file. The other files count, and so does what a file said
// in before, when it was right. A file or folder is wrong, too, that others than root and this process's user may write.
func (p Paths) LoadServices(before []Service) (services []Service, errs []error) {
	from := map[string]string{}
	add := func(list []Service, path string) {
		for _, s := range list {
			if other, dup := from[s.Name]; dup {
				errs = append(errs, fmt.Errorf("service %q of %s is left out: %s has one of that name", s.Name, path, other))
				continue
			}
			from[s.Name] = path
			services = append(services, s)
		}
	}
	files, err := p.serviceFiles()
	if err != nil {
		errs = append(errs, fmt.Errorf("files of services are not read, what they said before holds: %w", err))
		for _, s := range before {
			if s.File != "" {
				add([]Service{s}, s.File)
			}
		}
	}
	for _, path := range files {
		list, err := readServices(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			list = nil
			for _, s := range before {
				if s.File == path {
					list = append(list, s)
				}
			}
			if len(list) > 0 {
				err = fmt.Errorf("%w; what it said before holds", err)
			}
			errs = append(errs, err)
		}
		add(list, path)
	}
	b, err := os.ReadFile(p.ServiceFile())
	if errors.Is(err, fs.ErrNotExist) {
		return services, errs
	}
	var list []Service
	if err == nil {
		list, err = parseFile(p.ServiceFile(), b)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("services that were added by command: %w", err))
	}
	add(list, p.ServiceFile())
	return services, errs
}

// serviceFiles are the files of services.d, or why none is to be read.
func (p Paths) serviceFiles() ([]string, error) {
	dir, err := os.Open(p.ServiceDir())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	defer dir.Close()
	if _, err := trusted(p.ServiceDir(), dir); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(p.ServiceDir(), "*.toml"))
	slices.Sort(files)
	return files, err
}

// readServices reads a file of services.d.
func readServices(path string) ([]Service, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading services: %w", err)
	}
	defer f.Close()
	byRoot, err := trusted(path, f)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxServiceFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading services: %w", err)
	}
	list, err := parseFile(path, b)
	if err != nil {
		return nil, err
	}
	for i := range list {
		s := &list[i]
		s.File = path
		for _, c := range s.Checks {
			if c.User != "" && !byRoot && !isSelf(c.User) {
				return nil, fmt.Errorf("%s: a check of %s has the user %s, which is taken from files of root's alone: `chown root %[1]s`", path, s.Name, c.User)
			}
		}
	}
	return list, nil
}

// isSelf reports whether this process's user has that name.
func isSelf(name string) bool {
	u, err := user.Lookup(name)
	return err == nil && u.Uid == strconv.Itoa(os.Geteuid())
}

func parseFile(path string, b []byte) ([]Service, error) {
	list, err := ParseServices(b)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return list, nil
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
