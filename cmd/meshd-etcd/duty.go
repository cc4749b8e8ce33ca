// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/store"
	"mesh.internal/mesh/resolver/store/etcd"
)

// duty is what a member does for the cluster besides keeping it: each has itself promoted; the one that leads takes those
// away that are to go, and keeps the permissions; each keeps its own file small.
type duty struct {
	k      *keeper
	server *etcdserver.EtcdServer
	said   string
	rights string // what they were last made for

	away map[types.ID]time.Time // members that are to go and do not answer, since when

	defragged time.Time
}

const dutyLimit = 5 * time.Second

// do does what is to be done now. What fails is said once, and tried again the next time.
func (d *duty) do(ctx context.Context, v *config.Voter) {
	ctx, cancel := context.WithTimeout(ctx, dutyLimit)
	defer cancel()
	var err error
	switch {
	case d.server.IsLearner():
		err = d.promoted(ctx)
	case d.server.Leader() == d.server.MemberID():
		root := d.server.AuthStore().WithRoot(ctx)
		err = errors.Join(d.members(root, v), d.permit(ctx, v), d.space(root))
	}
	d.defragment()
	said := ""
	if err != nil && ctx.Err() == nil {
		said = err.Error()
	}
	if said != d.said && said != "" {
		d.k.say("%s", said)
	}
	d.said = said
}

// promoted asks the member that leads for a vote. No other may be asked: it passes the question on without who asks.
func (d *duty) promoted(ctx context.Context) error {
	for _, m := range d.server.Cluster().Members() {
		if m.ID == d.server.Leader() && len(m.ClientURLs) > 0 {
			return d.ask(ctx, m, func(ctx context.Context, a *etcd.Admin) error {
				return a.Promote(ctx, uint64(d.server.MemberID()))
			})
		}
	}
	return nil // it is not known yet who leads
}

// ask calls f with a member.
func (d *duty) ask(ctx context.Context, m *membership.Member, f func(context.Context, *etcd.Admin) error) error {
	t, err := d.k.tls()
	if err != nil {
		return err
	}
	a, err := etcd.Dial(m.ClientURLs[0], t)
	if err != nil {
		return err
	}
	defer a.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return f(ctx, a)
}

// members takes away who is to go, one at a time: when everybody who is to stay has a vote, and who is away at once, since
// etcd takes nobody in while somebody is.
func (d *duty) members(ctx context.Context, v *config.Voter) error {
	var out []*membership.Member
	votes := 0
	for _, m := range d.server.Cluster().Members() {
		stays := slices.ContainsFunc(v.Voters, func(x config.Keeper) bool {
			u := d.k.at(x.Addr, peerPort)
			return x.Addr.IsValid() && slices.Contains(m.PeerURLs, u.String())
		})
		if !stays {
			out = append(out, m)
		} else if !m.IsLearner && m.Name != "" {
			votes++
		}
	}
	if votes < len(v.Voters) {
		out = slices.DeleteFunc(out, func(m *membership.Member) bool { return m.ID == d.server.MemberID() || d.there(ctx, m) })
	}
	if len(out) == 0 {
		return nil
	}
	// Oneself last, by handing the lead over: the next leader does it.
	slices.SortFunc(out, func(a, b *membership.Member) int {
		if a.ID == d.server.MemberID() {
			return 1
		}
		return 0
	})
	m := out[0]
	if m.ID == d.server.MemberID() {
		return d.server.TryTransferLeadershipOnShutdown()
	}
	if _, err := d.server.RemoveMember(ctx, uint64(m.ID)); err != nil {
		return fmt.Errorf("letting %s go: %w", m.Name, err)
	}
	d.k.say("%s was let go", m.Name)
	return nil
}

// awayFor is how long a member has to be away until it counts as that.
const awayFor = 10 * time.Second

// there reports whether a member has answered lately.
func (d *duty) there(ctx context.Context, m *membership.Member) bool {
	if d.answers(ctx, m) {
		delete(d.away, m.ID)
		return true
	}
	if d.away[m.ID].IsZero() {
		d.away[m.ID] = time.Now()
	}
	return time.Since(d.away[m.ID]) < awayFor
}

func (d *duty) answers(ctx context.Context, m *membership.Member) bool {
	return len(m.ClientURLs) > 0 && d.ask(ctx, m, func(ctx context.Context, a *etcd.Admin) error {
		_, err := a.Health(ctx)
		return err
	}) == nil
}

const (
	rootRole   = "root" // etcd's own
	rolePrefix = "node-"
)

// permit gives every node of the mesh the permissions it needs and no others: it writes below its own name and to claims,
// and reads everything of the mesh. Members of the cluster, who have its files anyway, may do everything.
func (d *duty) permit(ctx context.Context, v *config.Voter) error {
	want := strings.Join(v.Members, " ") + "\n" + strings.Join(addrs(v), " ")
	if d.rights == want {
		return nil
	}
	root := func() context.Context { return d.server.AuthStore().WithRoot(ctx) } // the token is of one revision of the permissions
	users, err := d.server.UserList(root(), &pb.AuthUserListRequest{})
	if err != nil {
		return fmt.Errorf("reading the permissions: %w", err)
	}
	have := map[string]bool{}
	for _, u := range users.Users {
		have[u] = true
	}
	if !have[rootRole] {
		if _, err := d.server.RoleAdd(root(), &pb.AuthRoleAddRequest{Name: rootRole}); ignore(err, "already exists") != nil {
			return err
		}
		if err := d.user(root, rootRole, rootRole); err != nil {
			return err
		}
	}
	for _, name := range v.Members {
		if !have[name] {
			if err := d.admit(root, v.Mesh, name); err != nil {
				return fmt.Errorf("permissions of %s: %w", name, err)
			}
		}
		delete(have, name)
		if err := d.trust(root, name, v); err != nil {
			return fmt.Errorf("permissions of %s: %w", name, err)
		}
	}
	delete(have, rootRole)
	for name := range have { // evicted, or forgotten
		_, err := d.server.UserDelete(root(), &pb.AuthUserDeleteRequest{Name: name})
		_, err2 := d.server.RoleDelete(root(), &pb.AuthRoleDeleteRequest{Role: rolePrefix + name})
		if err := errors.Join(ignore(err, "not found"), ignore(err2, "not found")); err != nil {
			return fmt.Errorf("taking the permissions of %s away: %w", name, err)
		}
	}
	if !d.server.AuthStore().IsAuthEnabled() {
		if _, err := d.server.AuthEnable(ctx, &pb.AuthEnableRequest{}); err != nil {
			return fmt.Errorf("putting the permissions in force: %w", err)
		}
	}
	d.rights = want
	return nil
}

// admit makes the user and the role of a node.
func (d *duty) admit(root func() context.Context, mesh, name string) error {
	role := rolePrefix + name
	if _, err := d.server.RoleAdd(root(), &pb.AuthRoleAddRequest{Name: role}); ignore(err, "already exists") != nil {
		return err
	}
	prefix := store.DefaultPrefix(mesh)
	for _, p := range []struct {
		kind authpb.Permission_Type
		key  string
	}{{authpb.Permission_READ, prefix}, {authpb.Permission_READWRITE, prefix + name + "/"}, {authpb.Permission_READWRITE, prefix + "_claims/"}} {
		perm := &authpb.Permission{PermType: p.kind, Key: []byte(p.key), RangeEnd: []byte(etcd.PrefixEnd(p.key))}
		if _, err := d.server.RoleGrantPermission(root(), &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: perm}); err != nil {
			return err
		}
	}
	return d.user(root, name, role)
}

// user makes a user without a password, who is who has the certificate, with a role.
func (d *duty) user(root func() context.Context, name, role string) error {
	if _, err := d.server.UserAdd(root(), &pb.AuthUserAddRequest{Name: name, Options: &authpb.UserAddOptions{NoPassword: true}}); ignore(err, "already exists") != nil {
		return err
	}
	_, err := d.server.UserGrantRole(root(), &pb.AuthUserGrantRoleRequest{User: name, Role: role})
	return err
}

// trust gives a node the role root if it keeps the store, and takes it away if it does not.
func (d *duty) trust(root func() context.Context, name string, v *config.Voter) error {
	u, err := d.server.UserGet(root(), &pb.AuthUserGetRequest{Name: name})
	if err != nil {
		return err
	}
	_, keeps := v.Keeper(name)
	has := slices.Contains(u.Roles, rootRole)
	switch {
	case keeps && !has:
		_, err = d.server.UserGrantRole(root(), &pb.AuthUserGrantRoleRequest{User: name, Role: rootRole})
	case !keeps && has:
		_, err = d.server.UserRevokeRole(root(), &pb.AuthUserRevokeRoleRequest{Name: name, Role: rootRole})
	}
	return err
}

// ignore is err, unless it says what.
func ignore(err error, what string) error {
	if err != nil && strings.Contains(err.Error(), what) {
		return nil
	}
	return err
}

// The file of names is made smaller when more than half of it is unused, at most once an hour.
const (
	defragAbove = 16 << 20
	defragEvery = time.Hour
)

func (d *duty) defragment() {
	b := d.server.Backend()
	if size := b.Size(); size < defragAbove || b.SizeInUse() > size/2 || time.Since(d.defragged) < defragEvery {
		return
	}
	d.defragged = time.Now()
	before := b.Size()
	if err := b.Defrag(); err != nil {
		d.k.say("making the file of names smaller: %v", err)
		return
	}
	d.k.say("the file of names had %d MiB and has %d now", before>>20, b.Size()>>20)
}

// space makes room in a store that is full, and lets it be written again when there is some.
func (d *duty) space(ctx context.Context) error {
	full := slices.ContainsFunc(d.server.Alarms(), func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_NOSPACE })
	if !full {
		return nil
	}
	rev := d.server.KV().Rev()
	if _, err := d.server.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil && !strings.Contains(err.Error(), "compacted") {
		return fmt.Errorf("the store is full; making room: %w", err)
	}
	if b := d.server.Backend(); b.SizeInUse() < quota*3/4 {
		if err := b.Defrag(); err != nil {
			return fmt.Errorf("the store is full; making room: %w", err)
		}
		for _, a := range d.server.Alarms() {
			if _, err := d.server.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm}); err != nil {
				return fmt.Errorf("the store is full; lifting the alarm: %w", err)
			}
		}
		d.k.say("the store was full; there is room again")
		return nil
	}
	return fmt.Errorf("the store is full: %d MiB of names, at most %d are allowed; remove some", d.server.Backend().SizeInUse()>>20, quota>>20)
}
