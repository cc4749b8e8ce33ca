// SPDX-License-Identifier: MIT

package etcd

import "errors"

// errMoved ends Follow when the store has begun anew elsewhere.
var errMoved = errors.New("the store has begun anew")

// Move says where the cluster is now. anew says that it is another one than before, whose revisions are none of the old
// one's: whoever follows has to load again.
func (s *Store) Move(endpoints []string, anew bool) {
	s.c.SetEndpoints(endpoints...)
	if !anew {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.moved)
	s.moved = make(chan struct{})
}
