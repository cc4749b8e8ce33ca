// SPDX-License-Identifier: MIT

package tcp

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// Dial opens a connection to "host:port"; (*net.Dialer).DialContext is one.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// FromEnvironment, as a proxy, stands for the one that HTTPS_PROXY, NO_PROXY and their lower-case forms name.
const FromEnvironment = "env"

// maxAnswer bounds an HTTP proxy's answer, in bytes.
const maxAnswer = 16 << 10

// Direct dials without a proxy.
func Direct(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Resolver: &net.Resolver{PreferGo: true}, Control: tune}
	return d.DialContext(ctx, network, addr)
}

// Through returns what dials through a proxy: "http://HOST:PORT" (CONNECT, RFC 9110 section 9.3.6), "socks5://HOST:PORT"
// (RFC 1928), either with USER:PASSWORD@ before the host, FromEnvironment, or "" for none. The proxy finds the names. No
// error holds the password.
func Through(at string) (Dial, error) {
	switch at {
	case "":
		return Direct, nil
	case FromEnvironment:
		choose := httpproxy.FromEnvironment().ProxyFunc()
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
			u, err := choose(&url.URL{Scheme: "https", Host: addr})
			if err != nil {
				return nil, errors.New("the proxy that HTTPS_PROXY names is not a URL like http://HOST:PORT")
			}
			if u == nil {
				return Direct(ctx, network, addr)
			}
			d, err := through(u)
			if err != nil {
				return nil, fmt.Errorf("HTTPS_PROXY: %w", err)
			}
			return d(ctx, network, addr)
		}, nil
	}
	u, err := url.Parse(at)
	if err != nil { // whose text has the whole URL
		return nil, errors.New("the proxy is not a URL like http://HOST:PORT or socks5://HOST:PORT")
	}
	return through(u)
}

func through(u *url.URL) (Dial, error) {
	if u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("the proxy %q is not a URL like http://HOST:PORT or socks5://HOST:PORT", u.Redacted())
	}
	host := func(port string) string {
		if p := u.Port(); p != "" {
			port = p
		}
		return net.JoinHostPort(u.Hostname(), port)
	}
	password, _ := u.User.Password()
	switch u.Scheme {
	case "http":
		auth := ""
		if u.User != nil { // RFC 7617
			auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
		}
		return httpConnect(host("80"), auth), nil
	case "socks5", "socks5h":
		var auth *proxy.Auth
		if u.User != nil {
			auth = &proxy.Auth{User: u.User.Username(), Password: password}
		}
		d, err := proxy.SOCKS5("tcp", host("1080"), auth, forward{})
		if err != nil {
			return nil, err
		}
		return d.(proxy.ContextDialer).DialContext, nil
	}
	return nil, fmt.Errorf("the proxy %q has another scheme than http and socks5", u.Redacted())
}

// forward is how a SOCKS proxy is reached.
type forward struct{}

func (forward) Dial(network, addr string) (net.Conn, error) {
	return Direct(context.Background(), network, addr)
}

func (forward) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return Direct(ctx, network, addr)
}

func httpConnect(at, auth string) Dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := Direct(ctx, network, at)
		if err != nil {
			return nil, fmt.Errorf("the proxy cannot be reached: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		err = tunnel(c, at, addr, auth)
		if !stop() {
			err = errors.Join(ctx.Err(), err)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
}

// tunnel asks the HTTP proxy at the other end of c for a connection to addr.
func tunnel(c net.Conn, at, addr, auth string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{"User-Agent": nil}}
	if auth != "" {
		req.Header.Set("Proxy-Authorization", auth)
	}
	if err := req.Write(c); err != nil {
		return fmt.Errorf("asking the proxy %s: %w", at, err)
	}
	br := bufio.NewReader(io.LimitReader(c, maxAnswer))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return fmt.Errorf("the answer of the proxy %s: %w", at, err)
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired && auth == "":
		return fmt.Errorf("the proxy %s wants a user and a password (HTTP status 407): put USER:PASSWORD@ before its host", at)
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("the proxy %s does not accept this user and password (HTTP status 407)", at)
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("the proxy %s does not connect to %s: HTTP status %d", at, addr, resp.StatusCode)
	case br.Buffered() > 0:
		return fmt.Errorf("the proxy %s sent more than its answer", at) // with TLS the client speaks first
	}
	return nil
}
