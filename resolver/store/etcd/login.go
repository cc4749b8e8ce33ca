// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// login is who we are by user and password. etcd gives a token for them, which goes with every call and which it may
// take back at any time: when it restarts, and when the password is changed. clientv3 has a login of its own, but one
// that keeps the first password for good, and that a store that is away keeps from being opened.
type login struct {
	user  string
	files Files

	token atomic.Pointer[string] // empty where the store wants none; not under mu, for it goes with the login too

	mu    sync.Mutex // held while logging in
	asked bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (l *login) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t := l.current(); t != "" {
		return map[string]string{rpctypes.TokenFieldNameGRPC: t}, nil
	}
	return nil, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. Whoever sets up the store decides.
func (l *login) RequireTransportSecurity() bool { return false }

func (l *login) current() string {
	if t := l.token.Load(); t != nil {
		return *t
	}
	return ""
}

// first logs in unless that has been done.
func (l *login) first(ctx context.Context, c *clientv3.Client) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked {
		return nil
	}
	return l.again(ctx, c)
}

// renew logs in again, unless another call has done so since refused was the token.
func (l *login) renew(ctx context.Context, c *clientv3.Client, refused string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked && l.current() != refused {
		return nil
	}
	return l.again(ctx, c)
}

// again logs in with the password of now. l.mu is held.
func (l *login) again(ctx context.Context, c *clientv3.Client) error {
	password, err := l.files.password()
	if err != nil {
		return err
	}
	l.asked = false
	l.token.Store(new(string))
	r, err := pb.NewAuthClient(c.ActiveConnection()).Authenticate(ctx, &pb.AuthenticateRequest{Name: l.user, Password: password})
	err = rpctypes.Error(err)
	switch {
	case errors.Is(err, rpctypes.ErrAuthNotEnabled): // until it refuses a call without a token
		l.asked = true
		return nil
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Errorf("the store refuses the user %s or the password in %s: %w", l.user, l.files.Password, err)
	case err != nil:
		return err
	}
	l.asked = true
	l.token.Store(&r.Token)
	return nil
}

// tokenRefused reports whether a call failed for its token alone, so that it can be made again with another.
func tokenRefused(err error) bool {
	return errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrAuthOldRevision)
}

// canceled is why a watch was canceled. Where that is a user's or a permission's fault etcd says it as text alone.
func canceled(err error) error {
	for _, known := range []error{rpctypes.ErrGRPCInvalidAuthToken, rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCAuthOldRevision, rpctypes.ErrGRPCPermissionDenied} {
		if err.Error() == known.Error() {
			return rpctypes.Error(known)
		}
	}
	return err
}
