// SPDX-License-Identifier: MIT

// Package store is the shared, mutable book of names as its readers and writers see it: the Store seam, behind which
// etcd stands, and the signed values that are kept there.
//
// Keys are relative to a prefix that belongs to one mesh (see DefaultPrefix):
//
//	OWNER/node                  the node's addresses and its node record    (signed by OWNER)
//	OWNER/hosts/NAME            a host that OWNER has added                 (signed by OWNER)
//	OWNER/groups/NAME           a group of hosts that OWNER has added       (signed by OWNER)
//	OWNER/names/NAME            a shared short name that OWNER keeps        (signed by OWNER)
//	OWNER/services/NAME         a service that OWNER offers                 (signed by OWNER)
//	OWNER/health                how OWNER's services are; goes when OWNER is not heard of any more (signed by OWNER)
//	_claims/names/NAME          who holds a shared short name               (signed by the holder)
//	_claims/groups/NAME         who holds a shared name of a group          (signed by the holder)
//	_claims/addrs/ADDRESS       who holds an address of the mesh's prefix   (signed by the holder)
//	_claims/locks/NAME/…        who does what only one node does at a time  (not signed)
//
// The store is a bulletin board, not a trust anchor: whoever can write to it can delete or withhold, but a value that
// its owner did not sign for exactly this key is refused by every reader.
//
// The package starts no goroutine. Stores are safe for concurrent use.
package store

import (
	"context"
	"errors"
)

// KV is a key with its value. Revisions count all changes of the store: later is larger.
type KV struct {
	Key      string
	Value    []byte
	Created  int64 // revision at which the key came to be
	Modified int64 // revision of its last change
}

// Change is a key that has been put (Deleted false) or deleted, in the order of the store.
type Change struct {
	KV
	Deleted bool
}

// Cond is a condition of Commit: the key's Modified is Rev; 0 means that there is no such key.
type Cond struct {
	Key string
	Rev int64
}

// Op is a change that Commit makes: a put, or a deletion where Value is nil.
type Op struct {
	Key   string
	Value []byte
}

var (
	// ErrGap ends Follow when changes after its revision are no longer to be had (compaction): load again.
	ErrGap = errors.New("the store no longer has all changes since the last one seen")
	// ErrConflict is Commit's when a condition does not hold; nothing was changed.
	ErrConflict = errors.New("somebody else changed it first")
)

// Store is the seam behind which etcd stands. Every method ends when ctx does.
type Store interface {
	// Load returns every key below the mesh's prefix as of the revision it returns. It ends soon where nobody answers.
	Load(ctx context.Context) ([]KV, int64, error)
	// Get returns one key; Modified is 0 if there is none.
	Get(ctx context.Context, key string) (KV, error)
	// Follow calls f with every change after rev, in order, never from two goroutines, one call a revision or several
	// at once with the last one's revision. It returns when ctx ends, when the store is lost (also silently: a member
	// without a leader counts as lost), or with ErrGap.
	Follow(ctx context.Context, rev int64, f func(rev int64, changes []Change)) error
	// Commit makes all changes if all conditions hold, else none (ErrConflict), and returns the revision.
	Commit(ctx context.Context, conds []Cond, ops []Op) (int64, error)
}

// Locker is a Store that can let one of several nodes do something.
type Locker interface {
	// Lock waits until nobody else holds the lock and calls f. The lock is given back when f returns, and lost, which
	// ends f's context, when the store has not heard of this node for a while.
	Lock(ctx context.Context, key string, f func(context.Context) error) error
}

// Leaser is a Store that can keep values for only as long as who put them is heard of.
type Leaser interface {
	// Lease calls f with what puts values of that kind. They go when f returns, or when the store has not heard of this
	// node for a while, which ends f's context. They are put whatever is there.
	Lease(ctx context.Context, f func(ctx context.Context, put func(ctx context.Context, key string, value []byte) error) error) error
}

// LockPrefix begins the keys of locks, which are nobody's values.
const LockPrefix = "_claims/locks/"

// DefaultPrefix is where a mesh's keys are by default.
func DefaultPrefix(mesh string) string { return "/mesh/v1/" + mesh + "/" }

// NodeKey is the key of a node's own value.
func NodeKey(owner string) string { return owner + "/node" }

// HostKey is the key of a host that owner has added.
func HostKey(owner, name string) string { return owner + "/hosts/" + name }

// GroupKey is the key of a group that owner has added.
func GroupKey(owner, name string) string { return owner + "/groups/" + name }

// KeptKey is the key of a shared short name that owner keeps, whether or not it has a host of that name.
func KeptKey(owner, name string) string { return owner + "/names/" + name }

// ServiceKey is the key of a service that owner offers.
func ServiceKey(owner, name string) string { return owner + "/services/" + name }

// HealthKey is the key of how owner's services are.
func HealthKey(owner string) string { return owner + "/health" }

// NameClaimKey is the key of the claim on a shared short name.
func NameClaimKey(name string) string { return "_claims/names/" + name }

// GroupClaimKey is the key of the claim on a shared name of a group.
func GroupClaimKey(name string) string { return "_claims/groups/" + name }

// AddrClaimKey is the key of the claim on an address.
func AddrClaimKey(addr string) string { return "_claims/addrs/" + addr }
