// SPDX-License-Identifier: MIT

package daemon

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace lets names change a thousand times a second for ten minutes, with a snapshot that takes 400 ms to write.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const cost, length = 400 * time.Millisecond, 10 * time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		at := time.Now() // of the last change that a write has seen
		next := func() <-chan struct{} {
			c := make(chan struct{})
			time.AfterFunc(time.Millisecond, func() { close(c) })
			return c
		}
		first := make(chan struct{})
		close(first)
		writes, keeps := 0, 0
		Pace(ctx, first, next, func() {
			if writes == 0 && time.Since(at) != 0 {
				t.Errorf("the first change waited for %s", time.Since(at))
			}
			writes++
			<-time.After(cost)
		}, func() { keeps++ })
		if busy := time.Duration(writes) * cost; busy > length/10+2*cost || busy < length/11 {
			t.Errorf("%d writes take %s of %s", writes, busy, length)
		}
		if most := int(length/keepEvery) + 1; keeps > most || keeps < most/2 {
			t.Errorf("kept %d times", keeps)
		}
	})
}
