// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// do makes a call, of which it knows by its error that nothing was done where it makes it again: with a new token, or
// where the member asked has no leader and another may have one. Calls go round the members by themselves.
func (s *Store) do(ctx context.Context, call func(context.Context) error) error {
	// Without WithRequireLeader a member cut off from the others would keep us waiting, or stale, silently.
	led := clientv3.WithRequireLeader(ctx)
	var err error
	for range 2 + len(s.c.Endpoints()) {
		var token string
		token, err = s.once(ctx, led, call)
		switch {
		case s.login != nil && tokenRefused(err):
			if err = s.login.renew(led, s.c, token); err != nil && !errors.Is(err, rpctypes.ErrNoLeader) {
				return s.explain(err)
			}
		case errors.Is(err, rpctypes.ErrAuthOldRevision), errors.Is(err, rpctypes.ErrNoLeader):
		default:
			return s.explain(err)
		}
	}
	return s.explain(err)
}

// once makes a call once, with what must come before it. token is the one that goes with it.
func (s *Store) once(ctx, led context.Context, call func(context.Context) error) (token string, err error) {
	if s.login != nil {
		if err := s.login.first(led, s.c); err != nil {
			return "", err
		}
		token = s.login.current()
	}
	if err := s.meet(ctx); err != nil {
		return token, err
	}
	return token, call(led)
}

// oldError is a server's version that is too old.
type oldError string

func (e oldError) Error() string {
	return fmt.Sprintf("the store is etcd %s, and this program needs 3.5 or newer: have its members updated", string(e))
}

// meet asks the servers' versions after every new connection. A member without a leader knows its own too.
func (s *Store) meet(ctx context.Context) error {
	made := s.links.made.Load()
	if s.links.met.Load() == made {
		return nil
	}
	for range s.c.Endpoints() {
		st, err := pb.NewMaintenanceClient(s.c.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return rpctypes.Error(err)
		}
		if tooOld(st.Version) {
			return oldError(st.Version)
		}
	}
	s.links.met.Store(made)
	return nil
}

// tooOld reports whether a version is below 3.5, or none.
func tooOld(version string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor); n != 2 {
		return true
	}
	return major < 3 || major == 3 && minor < 5
}
