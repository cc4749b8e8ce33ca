// SPDX-License-Identifier: MIT

package etcd

import (
	"context"
	"crypto/tls"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Member is a member of a cluster, as the others know it.
type Member struct {
	ID      uint64
	Name    string // empty: it has never started
	Peers   []string
	Learner bool // it follows and has no vote yet
}

// Health is what one member says of itself.
type Health struct {
	ID, Leader uint64 // Leader 0: it knows none
	Version    string
	Learner    bool
	Size, Used int64         // bytes of its file, and of those in use
	Quota      int64         // bytes that the file may have
	Index      uint64        // of the last change it knows
	Problems   []string      // alarms too
	Answered   time.Duration // after which it answered
}

// Admin talks to one member. Its calls need the permissions of etcd's role root, but for Members and Health.
type Admin struct {
	s        *Store
	endpoint string
}

// Dial prepares an Admin for the member at an endpoint; nothing is sent before its first call.
func Dial(endpoint string, t *tls.Config) (*Admin, error) {
	s, err := Open(Config{Endpoints: []string{endpoint}, TLS: t})
	if err != nil {
		return nil, err
	}
	return &Admin{s, endpoint}, nil
}

// Close ends the client.
func (a *Admin) Close() error { return a.s.Close() }

// Members lists all. It does not need a majority of them, and may then be behind.
func (a *Admin) Members(ctx context.Context) ([]Member, error) {
	r, err := a.s.c.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, a.s.explain(err)
	}
	var out []Member
	for _, m := range r.Members {
		out = append(out, Member{ID: m.ID, Name: m.Name, Peers: m.PeerURLs, Learner: m.IsLearner})
	}
	return out, nil
}

// AddLearner makes a place for a member without a vote.
func (a *Admin) AddLearner(ctx context.Context, peer string) (id uint64, err error) {
	r, err := a.s.c.MemberAddAsLearner(ctx, []string{peer})
	if err != nil {
		return 0, a.s.explain(err)
	}
	return r.Member.ID, nil
}

// Promote gives a learner its vote. It fails as long as that is not up to date.
func (a *Admin) Promote(ctx context.Context, id uint64) error {
	_, err := a.s.c.MemberPromote(ctx, id)
	return a.s.explain(err)
}

// Remove takes a member away for good: it cannot come back under this ID.
func (a *Admin) Remove(ctx context.Context, id uint64) error {
	_, err := a.s.c.MemberRemove(ctx, id)
	return a.s.explain(err)
}

// Health asks the member how it is.
func (a *Admin) Health(ctx context.Context) (Health, error) {
	begin := time.Now()
	r, err := a.s.c.Status(ctx, a.endpoint)
	if err != nil {
		return Health{}, a.s.explain(err)
	}
	return Health{ID: r.Header.MemberId, Leader: r.Leader, Version: r.Version, Learner: r.IsLearner, Size: r.DbSize, Used: r.DbSizeInUse,
		Quota: r.DbSizeQuota, Index: r.RaftIndex, Problems: r.Errors, Answered: time.Since(begin)}, nil
}

// Compact forgets all states of the store but the last, and returns its revision.
func (a *Admin) Compact(ctx context.Context) (int64, error) {
	r, err := a.s.c.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err == nil {
		_, err = a.s.c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		return 0, a.s.explain(err)
	}
	return r.Header.Revision, nil
}

// PrefixEnd is the end of the range of keys with a prefix, as etcd's permissions want it.
func PrefixEnd(prefix string) string { return clientv3.GetPrefixRangeEnd(prefix) }
