// SPDX-License-Identifier: MIT

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	gapLimit    = 75 * time.Second
	looking     = 500 * time.Millisecond
	directLimit = 30 * time.Second
	tincAsks    = time.Minute // how often tinc asks whether a node is there (PingInterval)
)

// measureGaps cuts the cables of the contestants whose setting it is, all at once.
func (r *results) measureGaps(ctx context.Context, all []contestant) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var wg, opening sync.WaitGroup
	all = slices.DeleteFunc(slices.Clone(all), func(c contestant) bool { return c.setting != cut })
	opening.Add(len(all) * r.options.gaps)
	for _, c := range all {
		for i := range r.options.gaps {
			// Cut at different times since the last timer began, as the world does.
			settled := r.options.settling + tincAsks*time.Duration(i)/time.Duration(r.options.gaps)
			wg.Go(func() {
				a := &arena{}
				gap, err := a.gap(ctx, c, &opening, settled)
				if err = errors.Join(err, a.close()); err != nil {
					cancel(fmt.Errorf("%s: %w", c, err))
					return
				}
				mu.Lock()
				defer mu.Unlock()
				r.gaps[c] = append(r.gaps[c], gap)
			})
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

// gap measures how long it takes until packets find their way round a cut, some time after all others are ready too. It
// returns gapLimit if they do not.
func (a *arena) gap(ctx context.Context, c contestant, opening *sync.WaitGroup, settled time.Duration) (time.Duration, error) {
	beat, err := a.openDirect(ctx, c)
	opening.Done()
	if err != nil {
		return 0, err
	}
	opening.Wait()
	if err := pause(ctx, settled); err != nil {
		return 0, err
	}
	if err := a.cut(); err != nil {
		return 0, err
	}
	var gap int64
	if err := json.NewEncoder(beat.stdin).Encode(time.Now().UnixNano()); err != nil {
		return 0, err
	}
	if err := beat.out.Decode(&gap); err != nil {
		return 0, errors.Join(context.Cause(ctx), fmt.Errorf("waiting for packets round the cut: %w", err))
	}
	if gap == notAgain {
		return gapLimit, nil
	}
	n, err := a.carried(ctx)
	if err == nil && n < int(looking/beatGap)/2 {
		err = fmt.Errorf("packets came in spite of the cut, but only %d of them through the node between", n)
	}
	return time.Duration(gap), err
}

// openDirect starts the tunnels and returns when packets go straight.
func (a *arena) openDirect(ctx context.Context, c contestant) (beat *process, err error) {
	if err := a.open(ctx, c, 0, ""); err != nil {
		return nil, err
	}
	if beat, err = a.beat(ctx, gapLimit); err != nil {
		return nil, err
	}
	for limit := time.Now().Add(directLimit); time.Now().Before(limit); {
		n, err := a.carried(ctx)
		if err != nil {
			return nil, err
		}
		if n < int(looking/beatGap)/2 {
			return beat, nil
		}
	}
	return nil, fmt.Errorf("after %v packets did not yet go straight", directLimit)
}

// carried is how many packets the host between got in a while.
func (a *arena) carried(ctx context.Context) (int, error) {
	before, err := a.counters()
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, looking); err != nil {
		return 0, err
	}
	after, err := a.counters()
	if err != nil {
		return 0, err
	}
	return int(after[between][cable].rxPackets - before[between][cable].rxPackets), nil
}
