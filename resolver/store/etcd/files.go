// SPDX-License-Identifier: MIT

package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"
)

// Files are what a cluster that is not the mesh's own is spoken to with. They are read again for every connection and
// every login, so that what is renewed needs no restart. Empty ones stand for what Config.TLS has.
type Files struct {
	CA        string // certificates, one of which has signed the servers'
	Cert, Key string // of this client
	Password  string // of Config.User
}

// Check reads all files once.
func (f Files) Check() error {
	_, err := f.tls(nil)
	if f.Password != "" {
		_, err2 := f.password()
		err = errors.Join(err, err2)
	}
	return err
}

// tls lays the files over base, which may be nil.
func (f Files) tls(base *tls.Config) (*tls.Config, error) {
	cfg := &tls.Config{}
	if base != nil {
		cfg = base.Clone()
	}
	if f.CA != "" {
		b, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("store_ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("store_ca: %s has no certificate in PEM form", f.CA)
		}
		cfg.MinVersion = tls.VersionTLS12 // what others run need not know more
	}
	if f.Cert != "" {
		cert, err := os.ReadFile(f.Cert)
		if err != nil {
			return nil, fmt.Errorf("store_cert: %w", err)
		}
		key, err := readSecret(f.Key)
		if err != nil {
			return nil, fmt.Errorf("store_key: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil { // perhaps one of two has been renewed and the other not yet: the next connection tries again
			return nil, fmt.Errorf("store_cert and store_key: %s and %s do not go together: %w", f.Cert, f.Key, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// expired returns when the client's own certificate has ended, if it has.
func (f Files) expired(now time.Time) (time.Time, bool) {
	cfg, err := f.tls(nil)
	if err != nil || len(cfg.Certificates) == 0 || cfg.Certificates[0].Leaf == nil {
		return time.Time{}, false
	}
	end := cfg.Certificates[0].Leaf.NotAfter
	return end, now.After(end)
}

// password is the first line of its file.
func (f Files) password() (string, error) {
	b, err := readSecret(f.Password)
	if err != nil {
		return "", fmt.Errorf("store_password_file: %w", err)
	}
	line, rest, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" || strings.TrimSpace(rest) != "" {
		return "", fmt.Errorf("store_password_file: %s must hold the password in one line and nothing else", f.Password)
	}
	return line, nil
}

// readSecret reads a file that is nobody else's business.
func readSecret(path string) ([]byte, error) {
	i, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w: give it to the user that meshd runs as", err)
		}
		return nil, err
	}
	if open := i.Mode().Perm() & 0o027; open != 0 && runtime.GOOS != "windows" { // there, modes say nothing
		return nil, fmt.Errorf("%s may be read or changed by others (mode %04o): chmod 0600 %s", path, i.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: give it to the user that meshd runs as", err)
	}
	return b, err
}
