// SPDX-License-Identifier: MIT

package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// result is what one run of a check has found.
type result struct {
	state  State
	output string
	perf   string
}

func critical(err error) result {
	return result{state: Critical, output: head(clean(err.Error()), maxOutput)}
}

// probe runs a check once. It returns soon after ctx ends.
func (r *Runner) probe(ctx context.Context, service string, c Check) result {
	var res result
	switch c.Kind() {
	case "script":
		return script(ctx, r.command(service, c, c.Script))
	case "http":
		res = r.http(ctx, c)
	case "tcp":
		res = r.tcp(ctx, c)
	case "dns":
		res = r.dns(ctx, c)
	case "ping":
		res = r.ping(ctx, c)
	}
	if res.state == Critical && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// Not answering is what such a check is there to find: no doubt is left as with a script that hangs.
		res.output = fmt.Sprintf("no answer within %s: %s", c.Timeout, res.output)
	}
	return res
}

// dial connects by the names of Config.Lookup and then by the system's.
func (r *Runner) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	var errs []error
	for _, a := range r.lookup(host) {
		conn, err := d.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return d.DialContext(ctx, network, addr)
}

func (r *Runner) lookup(host string) []netip.Addr {
	if r.cfg.Lookup == nil {
		return nil
	}
	return r.cfg.Lookup(strings.TrimSuffix(host, "."))
}

func (r *Runner) tcp(ctx context.Context, c Check) result {
	conn, err := r.dial(ctx, "tcp", c.TCP)
	if err != nil {
		return critical(err)
	}
	conn.Close()
	return result{state: Passing, output: "connected to " + conn.RemoteAddr().String()}
}

func (r *Runner) http(ctx context.Context, c Check) result {
	t := &http.Transport{DialContext: r.dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: c.Insecure}} // no proxy: the service itself is meant
	req, err := http.NewRequestWithContext(ctx, c.Method, c.HTTP, nil)
	if err != nil {
		return critical(err)
	}
	req.Header.Set("User-Agent", "mesh-health")
	for k, v := range c.Header {
		if req.Header.Set(k, v); http.CanonicalHeaderKey(k) == "Host" {
			req.Host = v
		}
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return critical(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return critical(fmt.Errorf("HTTP %s, reading the body: %w", resp.Status, err))
	}
	res := result{state: Critical, output: head("HTTP "+clean(resp.Status), maxOutput)}
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests:
		res.state = Warning
	case code < 200 || code > 299:
		if text := clean(head(string(body), 200)); text != "" {
			res.output += ": " + text
		}
	case c.Expect != "" && !regexp.MustCompile(c.Expect).Match(body): // Validate has compiled it
		res.output += fmt.Sprintf(", but nothing in the first %d bytes matches %s", len(body), clean(c.Expect))
	default:
		res.state = Passing
	}
	return res
}

func (r *Runner) dns(ctx context.Context, c Check) result {
	name, server, has := strings.Cut(c.DNS, "@")
	resolver := net.DefaultResolver
	if has {
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(strings.Trim(server, "[]"), "53")
		}
		resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) { return r.dial(ctx, network, server) }}
	}
	addrs, err := resolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(name, ".")+".")
	if err != nil {
		return critical(err)
	}
	return result{state: Passing, output: head(fmt.Sprintf("%s has address %s", name, strings.Join(texts(addrs), ", ")), maxOutput)}
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.Unmap().String())
	}
	return out
}

// ping sends an ICMP echo request each second over a datagram socket, which needs no privilege (icmp(7),
// net.ipv4.ping_group_range).
func (r *Runner) ping(ctx context.Context, c Check) result {
	addrs := r.lookup(c.Ping)
	if len(addrs) == 0 {
		var err error
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", c.Ping); err != nil {
			return critical(err)
		}
	}
	to := addrs[0].Unmap()
	network, listen, proto, kind := "udp4", "0.0.0.0", 1, icmp.Type(ipv4.ICMPTypeEcho)
	if to.Is6() {
		network, listen, proto, kind = "udp6", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	conn, err := icmp.ListenPacket(network, listen)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: meshd may not ping: sysctl net.ipv4.ping_group_range=\"0 2147483647\"", err)
		}
		return result{state: Unknown, output: clean(err.Error())}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	begun, token := time.Now(), []byte(rand.Text())
	b := make([]byte, 1500)
	for seq := 1; ; seq++ {
		msg, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{Seq: seq, Data: token}}).Marshal(nil)
		if err == nil {
			_, err = conn.WriteTo(msg, &net.UDPAddr{IP: to.AsSlice(), Zone: to.Zone()})
		}
		if err != nil {
			return critical(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if ctx.Err() != nil {
			return critical(ctx.Err())
		}
		for {
			n, _, err := conn.ReadFrom(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return critical(err)
			}
			m, err := icmp.ParseMessage(proto, b[:n])
			if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
				continue
			}
			if echo, ok := m.Body.(*icmp.Echo); ok && bytes.Equal(echo.Data, token) {
				return result{state: Passing, output: fmt.Sprintf("%s answers after %s", to, time.Since(begun).Round(10*time.Microsecond))}
			}
		}
		if ctx.Err() != nil {
			return critical(fmt.Errorf("%s does not answer", to))
		}
	}
}
