// SPDX-License-Identifier: MIT

package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"mesh.internal/mesh/vpn/tcp"
)

func (s *Streams) pursueLocked(p *peer) {
	if ctx := s.ctx; ctx != nil && p.wanted && !p.pursued {
		p.pursued = true
		s.wg.Go(func() { s.pursue(ctx, p) })
	}
}

// pursue keeps a link to p for as long as it is wanted.
func (s *Streams) pursue(ctx context.Context, p *peer) {
	for {
		s.mu.Lock()
		if !p.wanted || ctx.Err() != nil {
			p.pursued = false
			s.tidyLocked(p)
			s.mu.Unlock()
			return
		}
		addrs, enough := p.addrs, p.last != nil || len(p.addrs) == 0
		wait := max(time.Until(p.next), time.Until(p.tried.Add(betweenTries)))
		if enough || wait > 0 {
			s.mu.Unlock()
			var next <-chan time.Time
			if !enough {
				next = time.After(wait)
			}
			select {
			case <-ctx.Done():
			case <-p.poke:
			case <-next:
			}
			continue
		}
		try, abandon := context.WithCancel(ctx)
		p.abandon, p.tried = abandon, time.Now()
		s.mu.Unlock()
		err := s.dial(ctx, try, p, addrs)
		s.mu.Lock()
		if err != nil && try.Err() == nil {
			p.err = err
			p.tries++
			p.next = time.Now().Add(backoff(p.tries))
			s.cfg.Log.Debug("no TLS link", "peer", p.name, "err", err)
		}
		p.abandon = nil
		abandon()
		s.mu.Unlock()
	}
}

// backoff is how long to wait after n tries.
func backoff(n int) time.Duration {
	if n == 0 {
		return 0
	}
	d := min(firstRetry<<min(n-1, 16), lastRetry)
	return d + rand.N(d/2)
}

// dial makes a link, which then runs until ctx ends. It returns when the link is up. It may be abandoned before it has
// chosen a connection.
func (s *Streams) dial(ctx, try context.Context, p *peer, addrs []string) error {
	c, _, err := tcp.Race(try, len(addrs), tryNext, func(ctx context.Context, i int) (*tls.Conn, error) {
		c, err := s.open(ctx, p.name, addrs[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", addrs[i], err)
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	p.abandon = nil
	err = try.Err()
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.NetConn().Close() })
	if err == nil {
		err = introduce(c)
	}
	l := newLink(p.name, c, true)
	if err == nil {
		err = s.attach(l)
	}
	if err != nil {
		stop()
		l.cut(err)
		return err
	}
	s.wg.Go(func() {
		defer stop()
		s.carry(l)
	})
	return nil
}

// introduce chooses a connection and waits until the other side admits it.
func introduce(c *tls.Conn) error {
	c.SetWriteDeadline(time.Now().Add(openLimit))
	_, err := c.Write(appendControl(nil, kindPing))
	if err == nil {
		err = await(c, kindPong)
	}
	if err != nil {
		return fmt.Errorf("this node was not admitted: %w", err)
	}
	return nil
}

// open makes a connection to one address.
func (s *Streams) open(ctx context.Context, name, addr string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	raw, err := s.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	cfg := s.tls.Clone()
	cfg.ServerName = host         // for firewalls that look for one; nothing is said of an IP address
	cfg.InsecureSkipVerify = true // VerifyConnection wants a member's certificate, not that of the host
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		n, err := s.member(cs)
		if err == nil && n.Name != name {
			err = fmt.Errorf("%s answers there", n.Name)
		}
		return err
	}
	c := tls.Client(raw, cfg)
	err = c.HandshakeContext(ctx)
	if err == nil && c.ConnectionState().NegotiatedProtocol != Protocol {
		err = errors.New("it does not take TLS links: its version of mesh may be older")
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}
