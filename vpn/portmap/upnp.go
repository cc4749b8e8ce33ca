// SPDX-License-Identifier: MIT

package portmap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

const (
	ssdpPort    = 1900
	maxServices = 4        // of a device that are tried
	maxBody     = 64 << 10 // bytes, of a description or an answer
	callTime    = 5 * time.Second
)

// Error codes of WANIPConnection 2, section 2.5.
const (
	conflict      = 718
	permanentOnly = 725
)

// wan is what WANIPConnection 1 and 2 and WANPPPConnection 1 have in common.
type wan interface {
	GetServiceClient() *goupnp.ServiceClient
	GetExternalIPAddressCtx(context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, on bool,
		description string, seconds uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
}

// upnp speaks UPnP-IGD: ports of the library's descriptions and calls (SOAP), on connections of our own to the gateway
// alone. The search (SSDP) is our own too: the library's believes everybody on the LAN and keeps all they send.
type upnp struct {
	gw   Gateway
	http http.Client

	wan      wan                                       // IPv4
	firewall *internetgateway2.WANIPv6FirewallControl1 // IPv6
	pinholes map[bool]uint16                           // IPv6: numbers of what is open, by TCP
}

func newUPnP(gw Gateway) *upnp {
	c := &upnp{gw: gw, pinholes: map[bool]uint16{}}
	c.http = http.Client{
		Transport: bounded{&http.Transport{DialContext: c.dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10}},
		Timeout:   callTime,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the gateway refers to somebody else")
		},
	}
	return c
}

// bounded cuts off what is too long.
type bounded struct{ http.RoundTripper }

func (t bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxBody), resp.Body}
	}
	return resp, err
}

// dial connects to the gateway's own address, whatever host a URL names: only the port is the URL's.
func (c *upnp) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.gw.Local, 0))}
	return d.DialContext(ctx, network, net.JoinHostPort(c.gw.Addr.String(), port))
}

func (*upnp) name() Protocol { return UPnP }

func (c *upnp) probe(ctx context.Context) error {
	c.wan, c.firewall = nil, nil
	loc, err := c.search(ctx)
	if err != nil {
		return err
	}
	root, err := c.describe(ctx, loc)
	if err != nil {
		return err
	}
	if c.gw.Addr.Is6() {
		found, err := internetgateway2.NewWANIPv6FirewallControl1ClientsFromRootDevice(root, loc)
		if err != nil {
			return err
		}
		found[0].SOAPClient.HTTPClient = c.http
		enabled, allowed, err := found[0].GetFirewallStatusCtx(ctx)
		if err == nil && enabled && !allowed {
			err = errors.New("the gateway's firewall opens for nobody")
		}
		if err == nil {
			c.firewall = found[0]
		}
		return err
	}
	services := wans(internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, loc))
	services = append(services, wans(internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, loc))...)
	services = append(services, wans(internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, loc))...)
	err = errors.New("the gateway offers no port mappings")
	for _, s := range services[:min(len(services), maxServices)] { // of several the first that has an address is connected
		s.GetServiceClient().SOAPClient.HTTPClient = c.http
		if _, err = c.external(ctx, s); err == nil {
			c.wan = s
			return nil
		}
	}
	return err
}

func wans[T wan](found []T, err error) []wan {
	var out []wan
	if err == nil {
		for _, s := range found {
			out = append(out, s)
		}
	}
	return out
}

// search finds the gateway's description (UPnP Device Architecture 1.1, section 1.3): it is asked itself and, since some
// hear only that, by multicast. Only its own answers count.
func (c *upnp) search(ctx context.Context) (*url.URL, error) {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(c.gw.Local, 0).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	group := netip.MustParseAddr("239.255.255.250")
	if c.gw.Addr.Is6() {
		group = netip.MustParseAddr("ff02::c").WithZone(c.gw.Addr.Zone())
	}
	b := make([]byte, 2048)
	end := time.Now()
	for _, wait := range []time.Duration{answerTime / 3, 2 * answerTime / 3} {
		for _, to := range []netip.Addr{c.gw.Addr, group} {
			for version := 1; version <= 2; version++ {
				to := netip.AddrPortFrom(to, ssdpPort)
				conn.WriteTo(fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n"+
					"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:%d\r\n\r\n", netip.AddrPortFrom(to.Addr().WithZone(""), ssdpPort), version),
					net.UDPAddrFromAddrPort(to)) // one of the two gets through, or none answers
			}
		}
		end = end.Add(wait)
		conn.SetReadDeadline(end)
		for {
			n, from, err := conn.(*net.UDPConn).ReadFromUDPAddrPort(b)
			if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
				break
			} else if err != nil {
				return nil, err
			}
			if loc, err := location(b[:n]); err == nil && c.isGateway(from.Addr().Unmap()) {
				return loc, nil
			}
		}
	}
	return nil, errors.New("the gateway does not answer")
}

// isGateway reports whether an answer may be the gateway's. A router has several IPv6 addresses, and answers from another
// one than was asked: there anybody on the link is heard, who can but send us to another port of the gateway.
func (c *upnp) isGateway(a netip.Addr) bool {
	link, err := c.gw.Local.Prefix(64)
	return a == c.gw.Addr || a.Is6() && err == nil && (a.IsLinkLocalUnicast() || link.Contains(a))
}

// location reads an answer to search, which may come from anybody.
func location(b []byte) (*url.URL, error) {
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the gateway answers %s", resp.Status)
	}
	loc, err := url.Parse(resp.Header.Get("Location"))
	if err == nil && (loc.Scheme != "http" || loc.Host == "" || loc.User != nil) {
		err = fmt.Errorf("the gateway is described at %q", loc)
	}
	return loc, err
}

// describe fetches the description of the gateway.
func (c *upnp) describe(ctx context.Context, loc *url.URL) (*goupnp.RootDevice, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, loc.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the gateway answers %s", resp.Status)
	}
	root := &goupnp.RootDevice{}
	d := xml.NewDecoder(resp.Body)
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	if err := d.Decode(root); err != nil {
		return nil, fmt.Errorf("reading the gateway's description: %w", err)
	}
	base := loc
	if u, err := url.Parse(root.URLBaseStr); err == nil && root.URLBaseStr != "" {
		base = u
	}
	root.SetURLBase(base)
	return root, nil
}

func (c *upnp) external(ctx context.Context, s wan) (netip.Addr, error) {
	text, err := s.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(text)
	if err == nil && a.IsUnspecified() {
		err = errors.New("the gateway is not connected")
	}
	return a, err
}

const description = "mesh" // what a gateway's page shows

func (c *upnp) open(ctx context.Context, w want) (grant, error) {
	if c.gw.Addr.Is6() {
		return c.openPinhole(ctx, w)
	}
	if c.wan == nil {
		return grant{}, errors.New("the gateway has not been found")
	}
	addr, err := c.external(ctx, c.wan)
	if err != nil {
		return grant{}, err
	}
	port, granted := w.external.Port(), lifetime
	add := func() error {
		return c.wan.AddPortMappingCtx(ctx, "", port, protocol(w), w.port, c.gw.Local.String(), true, description, uint32(granted/time.Second))
	}
	err = add()
	if code(err) == permanentOnly {
		granted = 0
		err = add()
	}
	if ip2, ok := c.wan.(*internetgateway2.WANIPConnection2); ok && code(err) == conflict {
		port, err = ip2.AddAnyPortMappingCtx(ctx, "", port, protocol(w), w.port, c.gw.Local.String(), true, description,
			uint32(granted/time.Second))
	}
	for range 3 { // another machine has the port
		if code(err) != conflict {
			break
		}
		port = 1024 + rand.N[uint16](64000)
		err = add()
	}
	return grant{netip.AddrPortFrom(addr, port), granted}, err
}

func protocol(w want) string {
	if w.tcp {
		return "TCP"
	}
	return "UDP"
}

// openPinhole lets IPv6 packets in. Adding a pinhole that is there renews it, and unlike updating it by its number cannot
// mean another one after the gateway has restarted.
func (c *upnp) openPinhole(ctx context.Context, w want) (grant, error) {
	if c.firewall == nil {
		return grant{}, errors.New("the gateway has not been found")
	}
	number := uint16(17)
	if w.tcp {
		number = 6
	}
	id, err := c.firewall.AddPinholeCtx(ctx, "", 0, c.gw.Local.String(), w.port, number, uint32(lifetime/time.Second))
	if err == nil {
		c.pinholes[w.tcp] = id
	}
	return grant{netip.AddrPortFrom(c.gw.Local, w.port), lifetime}, err
}

func (c *upnp) close(ctx context.Context, w want) error {
	switch id, ok := c.pinholes[w.tcp]; {
	case ok && c.firewall != nil:
		delete(c.pinholes, w.tcp)
		return c.firewall.DeletePinholeCtx(ctx, id)
	case c.wan != nil:
		return c.wan.DeletePortMappingCtx(ctx, "", w.external.Port(), protocol(w))
	}
	return nil
}

// code returns the number of the error with which a gateway has answered, or 0.
func code(err error) int {
	var fault *soap.SOAPFaultError
	if errors.As(err, &fault) {
		return fault.Detail.UPnPError.Errorcode
	}
	return 0
}
