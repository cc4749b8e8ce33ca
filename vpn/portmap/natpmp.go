// SPDX-License-Identifier: MIT

package portmap

import (
	"context"
	"errors"
	"net/netip"
	"time"

	gonatpmp "github.com/jackpal/go-nat-pmp"
)

// pmp speaks NAT-PMP. The library reads at most 16 bytes, from the gateway's address, each time on a socket of its own. It
// knows no contexts: a call ends by the deadline, but not when its context is cancelled.
type pmp struct {
	gw Gateway
}

func newNATPMP(gw Gateway) *pmp { return &pmp{gw} }

func (*pmp) name() Protocol { return NATPMP }

// client returns a client for one call.
func (c *pmp) client(ctx context.Context) (*gonatpmp.Client, error) {
	limit := answerTime
	if end, ok := ctx.Deadline(); ok {
		limit = max(min(limit, time.Until(end)), time.Millisecond)
	}
	return gonatpmp.NewClientWithLocalAndTimeout(c.gw.Addr.AsSlice(), c.gw.Local.AsSlice(), limit), ctx.Err()
}

func (c *pmp) probe(ctx context.Context) error {
	_, err := c.external(ctx)
	return err
}

func (c *pmp) external(ctx context.Context) (netip.Addr, error) {
	client, err := c.client(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	r, err := client.GetExternalAddress()
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom4(r.ExternalIPAddress), nil
}

// add makes, renews or, with lifetime 0, deletes a mapping (RFC 6886 sections 3.3 and 3.4).
func (c *pmp) add(ctx context.Context, tcp bool, port, external uint16, lifetime time.Duration) (*gonatpmp.AddPortMappingResult, error) {
	client, err := c.client(ctx)
	if err != nil {
		return nil, err
	}
	return client.AddPortMapping(network(tcp), int(port), int(external), int(lifetime/time.Second))
}

func (c *pmp) open(ctx context.Context, w want) (grant, error) {
	addr, err := c.external(ctx)
	if err != nil {
		return grant{}, err
	}
	r, err := c.add(ctx, w.tcp, w.port, w.external.Port(), lifetime)
	if err != nil {
		return grant{}, err
	}
	if r.InternalPort != w.port {
		return grant{}, errors.New("the gateway answers what was not asked")
	}
	granted := time.Duration(r.PortMappingLifetimeInSeconds) * time.Second
	return grant{netip.AddrPortFrom(addr, r.MappedExternalPort), max(granted, time.Second)}, nil // 0 is no life, not eternal life
}

func (c *pmp) close(ctx context.Context, w want) error {
	_, err := c.add(ctx, w.tcp, w.port, 0, 0)
	return err
}
