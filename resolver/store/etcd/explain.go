// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// explain puts etcd's errors into words that say what to do.
func (s *Store) explain(err error) error {
	who := "this node"
	if s.login != nil {
		who = "the user " + s.login.user
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("the store is full (NOSPACE alarm): it can be read but not changed until it is compacted and defragmented, and the alarm is disarmed (etcdctl alarm disarm): %w", err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("the store does not let %s do that below %s: ask whoever runs it for the permission (docs/store.md): %w", who, s.prefix, err)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("the store wants to know who asks: set store_user and store_password_file, or a client certificate whose common name is a user there: %w", err)
	case errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthOldRevision):
		return fmt.Errorf("the store takes back every login at once: %w", err)
	case errors.Is(err, rpctypes.ErrNoLeader):
		return fmt.Errorf("the store has no leader: most of its members are down or cut off: %w", err)
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded:
		if why := s.links.trouble(); why != "" {
			return &unavailable{why, err}
		}
		return fmt.Errorf("the store does not answer: %w", err)
	}
	return err
}

// unavailable says why better than the error that gRPC made of it.
type unavailable struct {
	why string
	err error
}

func (u *unavailable) Error() string { return "the store does not answer: " + u.why }
func (u *unavailable) Unwrap() error { return u.err }

// whyNot says why there is no connection to addr.
func (c Config) whyNot(addr string, err error, now time.Time) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	var path *os.PathError
	var op *net.OpError
	trusted := "this mesh"
	if c.Files.CA != "" {
		trusted = "the CA in " + c.Files.CA
	}
	switch {
	case errors.As(err, &path):
		return err.Error()
	case errors.As(err, &unknown):
		return fmt.Sprintf("%s shows a certificate that is not of %s: set store_ca to the CA of the store", addr, trusted)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("%s shows a certificate that is not valid now (%s): have it renewed, or set this machine's clock", addr, invalid.Detail)
	case errors.As(err, &host):
		return fmt.Sprintf("%s shows a certificate that is not for that address: have the address put into it, or name the store as its certificate does", addr)
	case errors.As(err, &record), errors.Is(err, io.EOF) && c.secure():
		return fmt.Sprintf("%s does not speak TLS: is it http:// instead of https://? (%v)", addr, err)
	case errors.As(err, &op) && op.Op == "remote error": // an alert of TLS
		return fmt.Sprintf("%s refuses %s (%v)", addr, c.certificate(now), op.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nobody listens at %s", addr)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Sprintf("%s hangs up at once: does it want https://, or a client certificate?", addr)
	}
	return fmt.Sprintf("%s: %v", addr, err)
}

// certificate is what this client shows, in words that say what may be wrong with it.
func (c Config) certificate(now time.Time) string {
	if c.Files.Cert == "" {
		return "this node, which has no certificate but the mesh's own: set store_cert and store_key"
	}
	if end, gone := c.Files.expired(now); gone {
		return fmt.Sprintf("the certificate in %s, which ended on %s: renew it", c.Files.Cert, end.UTC().Format("2006-01-02 15:04 MST"))
	}
	return fmt.Sprintf("the certificate in %s: is it of a CA that the store trusts for clients?", c.Files.Cert)
}
