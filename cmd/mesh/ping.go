// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
)

// completeNodes completes names of other nodes.
func (a *app) completeNodes() cobra.CompletionFunc {
	return a.completeHosts(func(h api.Host) bool { return h.Node })
}

func (a *app) pingCommand() *cobra.Command {
	p := pings{wait: 2 * time.Second, every: time.Second, limit: 30 * time.Second}
	cmd := &cobra.Command{
		Use: "ping NODE", Short: "send echoes through the tunnel to a node, and tell which way they take", Args: cobra.ExactArgs(1),
		Long: "Sends echoes through the tunnel to a node, given by its name, full name or address in the mesh, until it is interrupted, and says of each how long it took and " +
			"by which way: direct and to which address, via which other nodes, or over TLS. Firewalls on the nodes do not see these echoes. The exit status is 0 when there was an answer; with " +
			"--until-direct, when the way has become direct.",
		Example:           "  mesh ping bkero\n  mesh ping -c 3 10.11.0.2\n  mesh ping --until-direct bkero && rsync -a photos bkero:",
		ValidArgsFunction: a.completeNodes(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.every < 100*time.Millisecond || p.count < 0 || p.limit <= 0 || p.wait <= 0 {
				return errors.New("-c is 0 or more, -i at least 100ms, --limit and -W more than 0")
			}
			p.out, p.node = cmd.OutOrStdout(), args[0]
			p.ask = func(ctx context.Context) (pong api.Pong, err error) {
				err = a.client().Do(ctx, "POST", "/v1/ping", api.Ping{Node: p.node, Wait: p.wait}, &pong)
				return pong, err
			}
			return p.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVarP(&p.count, "count", "c", 0, "stop after `n` echoes (0: when interrupted)")
	f.DurationVarP(&p.every, "interval", "i", p.every, "send one each `time`, at least 100ms")
	f.DurationVarP(&p.wait, "wait", "W", p.wait, "wait for each answer for this `time`, at most 8s")
	f.BoolVar(&p.untilDirect, "until-direct", false, "stop when the way is direct over UDP")
	f.DurationVar(&p.limit, "limit", p.limit, "with --until-direct: give up after this `time`")
	f.BoolVar(&p.json, "json", false, "print JSON: one object a line, the last one with what all came to")
	return cmd
}

// pings are the echoes of one command.
type pings struct {
	node              string
	count             int
	every, wait       time.Duration
	untilDirect, json bool
	limit             time.Duration
	out               io.Writer
	ask               func(context.Context) (api.Pong, error)

	Name     string  `json:"name"`
	Sent     int     `json:"sent"`
	Answered int     `json:"answered"`
	Min      float64 `json:"min_ms"`
	Avg      float64 `json:"avg_ms"`
	Max      float64 `json:"max_ms"`
	Direct   bool    `json:"direct"` // the last one was
	sum      float64
}

func (p *pings) run(ctx context.Context) error {
	paint := paint(p.out)
	var limit <-chan time.Time
	if p.untilDirect {
		limit = time.After(p.limit)
	}
	over := false
	for next := time.Now(); (p.count == 0 || p.Sent < p.count) && !over; {
		pong, err := p.ask(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		p.note(pong)
		if p.json {
			err = json.NewEncoder(p.out).Encode(pong)
		} else {
			err = p.line(paint, pong)
		}
		if err != nil {
			return err
		}
		if p.untilDirect && pong.Direct && pong.Error == "" || p.Sent == p.count {
			break
		}
		next = next.Add(p.every)
		wait := time.NewTimer(time.Until(next))
		select {
		case <-wait.C:
		case <-ctx.Done():
			over = true
		case <-limit:
			over = true
		}
		wait.Stop()
	}
	if p.json {
		if err := json.NewEncoder(p.out).Encode(p); err != nil {
			return err
		}
	} else if p.Sent > 0 {
		fmt.Fprintf(p.out, "\n%d sent, %d answered, %.0f%% lost", p.Sent, p.Answered, 100*float64(p.Sent-p.Answered)/float64(p.Sent))
		if p.Answered > 0 {
			fmt.Fprintf(p.out, "; round trip min %s, avg %s, max %s", took(p.Min), took(p.Avg), took(p.Max))
		}
		fmt.Fprintln(p.out)
	}
	switch {
	case p.untilDirect && !p.Direct:
		return hinted{fmt.Errorf("the way to %s has not become direct", p.node), fmt.Sprintf("`mesh path %s` says which ways there are and why, `mesh netcheck` what stands between this node and others", p.node)}
	case p.Sent > 0 && p.Answered == 0:
		return hinted{fmt.Errorf("%s did not answer", p.node), fmt.Sprintf("`mesh path %s` says which ways to it were tried", p.node)}
	}
	return nil
}

func (p *pings) note(pong api.Pong) {
	p.Name, p.Direct = pong.Name, pong.Direct && pong.Error == ""
	p.Sent++
	if pong.Error != "" {
		return
	}
	if p.Answered++; p.Answered == 1 {
		p.Min = math.Inf(1)
	}
	p.sum += pong.RTT
	p.Min, p.Max, p.Avg = min(p.Min, pong.RTT), max(p.Max, pong.RTT), p.sum/float64(p.Answered)
}

func (p *pings) line(paint func(colour, s string) string, pong api.Pong) error {
	if p.Sent == 1 {
		fmt.Fprintf(p.out, "%s %s through the tunnel\n", paint(bold, pong.Name), pong.Addr)
	}
	if pong.Error != "" {
		_, err := fmt.Fprintf(p.out, "%4d  %s\n", p.Sent, paint(yellow, pong.Error))
		return err
	}
	_, err := fmt.Fprintf(p.out, "%4d  %9s  %s\n", p.Sent, took(pong.RTT), paint(wayColour(pong.Way), pong.Way.String()))
	return err
}

// wayColour is green for what is wanted.
func wayColour(w api.Way) string {
	switch {
	case w.Direct():
		return green
	case len(w.Via) > 0 || w.Stream:
		return cyan
	}
	return yellow
}

// took is a round trip in milliseconds for people.
func took(ms float64) string {
	switch {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}
