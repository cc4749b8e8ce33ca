// SPDX-License-Identifier: MIT

package portmap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// loopback is a gateway on this machine; each test that runs has its own.
func loopback(n byte) Gateway {
	return Gateway{netip.AddrFrom4([4]byte{127, 76, 56, n}), netip.AddrFrom4([4]byte{127, 76, 57, n})}
}

// serveUDP answers every datagram at a port of the gateway with what reply returns.
func serveUDP(t *testing.T, gw Gateway, port uint16, reply func(req []byte) [][]byte) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw.Addr, port)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			for _, r := range reply(bytes.Clone(b[:n])) {
				conn.WriteToUDPAddrPort(r, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
}

// granted is a good answer to a MAP request.
func granted(req []byte) []byte {
	b := make([]byte, pcpMap)
	b[0], b[1] = pcpVersion, req[1]|opAnswer
	binary.BigEndian.PutUint32(b[4:], 1200)
	copy(b[24:], req[24:42])
	binary.BigEndian.PutUint16(b[42:], 40000)
	a := netip.MustParseAddr("203.0.113.5").As16()
	copy(b[44:], a[:])
	return b
}

func with(b []byte, at int, v byte) []byte {
	b[at] = v
	return b
}

func TestPCP(t *testing.T) {
	for i, c := range []struct {
		name  string
		reply func(req []byte) [][]byte
		err   string
	}{
		{"granted", func(r []byte) [][]byte { return [][]byte{granted(r)} }, ""},
		{"after rubbish", func(r []byte) [][]byte {
			return [][]byte{nil, {2}, r, granted(r)[:56], with(granted(r), 24, r[24]^1), with(granted(r), 36, 6), with(granted(r), 41, r[41]^1),
				with(granted(r), 1, 0x82), make([]byte, 2000), granted(r)}
		}, ""},
		{"at the second try", func() func(r []byte) [][]byte {
			tries := 0
			return func(r []byte) [][]byte {
				if tries++; tries == 2 {
					return [][]byte{granted(r)}
				}
				return nil
			}
		}(), ""},
		{"refused", func(r []byte) [][]byte { return [][]byte{with(granted(r), 3, 2)} }, "not authorized"},
		{"refused for an unknown reason", func(r []byte) [][]byte { return [][]byte{with(granted(r), 3, 200)} }, "result 200"},
		{"NAT-PMP only", func(r []byte) [][]byte { return [][]byte{{0, 0x81, 0, 1, 0, 0, 0, 9}} }, errNotPCP.Error()},
		{"silent", func(r []byte) [][]byte { return nil }, "does not answer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			gw := loopback(byte(10 + i))
			serveUDP(t, gw, pcpPort, c.reply)
			p := newPCP(gw, nil)
			g, err := p.open(t.Context(), want{port: 7655, external: netip.AddrPortFrom(netip.Addr{}, 7655)})
			if c.err == "" && (err != nil || g.external != netip.MustParseAddrPort("203.0.113.5:40000") || g.lifetime != 20*time.Minute) {
				t.Errorf("granted %+v, %v", g, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("granted %+v, %v, want %q", g, err, c.err)
			}
		})
	}
}

// TestPCPRequest compares requests with RFC 6887, figures 2 and 9, and holds the nonce to what renewing needs.
func TestPCPRequest(t *testing.T) {
	p := newPCP(home, []byte("x"))
	open := p.mapping(want{tcp: true, port: 7655, external: netip.MustParseAddrPort("203.0.113.5:40000")}, time.Hour)
	wantOpen := "0201000000000e1000000000000000000000ffffc0a80107" + fmt.Sprintf("%x", open[24:36]) + "06000000" + "1de79c40" + "00000000000000000000ffffcb007105"
	if got := fmt.Sprintf("%x", open); got != wantOpen {
		t.Errorf("opening: %s, want %s", got, wantOpen)
	}
	again := newPCP(home, []byte("x")).mapping(want{tcp: true, port: 7655}, 0)
	if !bytes.Equal(again[24:42], open[24:42]) {
		t.Error("after a restart a node cannot renew or delete its mapping")
	}
	if got := fmt.Sprintf("%x", again[42:]); got != "0000"+"00000000000000000000ffff00000000" {
		t.Errorf("deleting suggests %s", got)
	}
	for _, other := range [][]byte{newPCP(home, []byte("y")).mapping(want{tcp: true, port: 7655}, 0), p.mapping(want{port: 7655}, 0),
		newPCP(cafe, []byte("x")).mapping(want{tcp: true, port: 7655}, 0)} {
		if bytes.Equal(other[24:36], open[24:36]) {
			t.Error("two mappings have one nonce")
		}
	}
}

func TestNATPMP(t *testing.T) {
	address := []byte{0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 5}
	for i, c := range []struct {
		name            string
		address, answer []byte
		err             string
	}{
		{"granted", address, []byte{0, 129, 0, 0, 0, 0, 0, 9, 0x1d, 0xe7, 0x9c, 0x40, 0, 0, 4, 0xb0}, ""},
		{"another port", address, []byte{0, 129, 0, 0, 0, 0, 0, 9, 0x1d, 0xe8, 0x9c, 0x40, 0, 0, 4, 0xb0}, "not asked"},
		{"refused", address, []byte{0, 129, 0, 2, 0, 0, 0, 9, 0x1d, 0xe7, 0, 0, 0, 0, 0, 0}, "Refused"},
		{"PCP only", []byte{2, 128, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, nil, "version 2"},
		{"short", address[:9], nil, "size"},
		{"too long", append(bytes.Clone(address), address...), nil, "size"},
		{"silent", nil, nil, "Timed out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			gw := loopback(byte(30 + i))
			serveUDP(t, gw, pcpPort, func(req []byte) [][]byte {
				if r := map[bool][]byte{true: c.address, false: c.answer}[req[1] == 0]; r != nil {
					return [][]byte{r}
				}
				return nil
			})
			g, err := newNATPMP(gw).open(t.Context(), want{port: 7655, external: netip.AddrPortFrom(netip.Addr{}, 7655)})
			if c.err == "" && (err != nil || g.external != netip.MustParseAddrPort("203.0.113.5:40000") || g.lifetime != 20*time.Minute) {
				t.Errorf("granted %+v, %v", g, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("granted %+v, %v, want %q", g, err, c.err)
			}
		})
	}
}

// igd is a UPnP gateway: answers to SOAP actions, in order, the last one again and again. A number is an error code.
type igd struct {
	service string
	actions map[string][]string
	before  func(http.ResponseWriter, *http.Request) bool // true if it has answered

	mu    sync.Mutex
	asked []string // actions with the ports asked for
}

const ipConnection = "urn:schemas-upnp-org:service:WANIPConnection:"

var portField = regexp.MustCompile(`<NewExternalPort>(\d+)</NewExternalPort>.*<NewLeaseDuration>(\d+)<`)

func (g *igd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.before != nil && g.before(w, r) {
		return
	}
	if r.URL.Path == "/desc.xml" {
		fmt.Fprintf(w, `<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
			<serviceList><service><serviceType>%s</serviceType><controlURL>/ctl</controlURL></service></serviceList></device></root>`, g.service)
		return
	}
	body := new(bytes.Buffer)
	body.ReadFrom(r.Body)
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("Soapaction"), `"`), "#")
	asked := action
	if m := portField.FindStringSubmatch(body.String()); m != nil {
		asked += " " + m[1] + " for " + m[2]
	}
	g.mu.Lock()
	g.asked = append(g.asked, asked)
	answers := g.actions[action]
	if len(answers) > 1 {
		g.actions[action] = answers[1:]
	}
	g.mu.Unlock()
	answer := "401"
	if len(answers) > 0 {
		answer = answers[0]
	}
	const envelope = `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>%s</s:Body></s:Envelope>`
	if regexp.MustCompile(`^\d+$`).MatchString(answer) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, envelope, `<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>`+
			answer+`</errorCode></UPnPError></detail></s:Fault>`)
		return
	}
	fmt.Fprintf(w, envelope, fmt.Sprintf(`<u:%sResponse xmlns:u="%s">%s</u:%sResponse>`, action, g.service, answer, action))
}

// start makes the gateway reachable; found is what LOCATION says instead of the truth.
func (g *igd) start(t *testing.T, gw Gateway, found string) {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(gw.Addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(g)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	if found == "" {
		found = s.URL + "/desc.xml"
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	found = strings.ReplaceAll(found, "PORT", port)
	serveUDP(t, gw, ssdpPort, func(req []byte) [][]byte {
		return [][]byte{[]byte("rubbish"), fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: %s\r\n\r\n", found)}
	})
}

const (
	connected = `<NewExternalIPAddress>203.0.113.5</NewExternalIPAddress>`
	ok        = `<x/>`
)

func TestUPnP(t *testing.T) {
	// Elsewhere: whatever a gateway says, nobody else is asked.
	touched := make(chan string, 10)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { touched <- r.URL.String() }))
	t.Cleanup(func() {
		elsewhere.Close()
		select {
		case u := <-touched:
			t.Errorf("the gateway had us ask another host for %s", u)
		default:
		}
	})
	addr := map[string][]string{"GetExternalIPAddress": {connected}}
	add := func(m map[string][]string, action string, answers ...string) map[string][]string {
		out := map[string][]string{action: answers}
		for k, v := range m {
			out[k] = v
		}
		return out
	}
	for i, c := range []struct {
		name  string
		gw    *igd
		found string
		asked string // of AddPortMapping and AddAnyPortMapping
		port  uint16 // 0: any
		err   string
	}{
		{"granted", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", ok)}, "", "AddPortMapping 7655 for 3600", 7655, ""},
		{"PPP", &igd{service: "urn:schemas-upnp-org:service:WANPPPConnection:1", actions: add(addr, "AddPortMapping", ok)}, "", "AddPortMapping 7655 for 3600", 7655, ""},
		{"taken, IGD 1", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", "718", "718", ok)}, "", "", 0, ""},
		{"taken, IGD 2", &igd{service: ipConnection + "2", actions: add(add(addr, "AddPortMapping", "718"), "AddAnyPortMapping", "<NewReservedPort>40000</NewReservedPort>")}, "",
			"AddPortMapping 7655 for 3600,AddAnyPortMapping 7655 for 3600", 40000, ""},
		{"permanent only", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", "725", ok)}, "", "AddPortMapping 7655 for 3600,AddPortMapping 7655 for 0", 7655, ""},
		{"refused", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", "606")}, "", "AddPortMapping 7655 for 3600", 0, "606"},
		{"all taken", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", "718")}, "", "", 0, "718"},
		{"not connected", &igd{service: ipConnection + "1", actions: map[string][]string{"GetExternalIPAddress": {`<NewExternalIPAddress>0.0.0.0</NewExternalIPAddress>`}}}, "", "", 0, "not connected"},
		{"no address", &igd{service: ipConnection + "1", actions: map[string][]string{"GetExternalIPAddress": {`<NewExternalIPAddress>evil.example</NewExternalIPAddress>`}}}, "", "", 0, "evil.example"},
		{"no port mappings", &igd{service: "urn:schemas-upnp-org:service:Printer:1"}, "", "", 0, "no port mappings"},
		{"described elsewhere", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", ok)}, elsewhere.URL + "/desc.xml", "", 0, "refused"},
		{"described under another name", &igd{service: ipConnection + "1", actions: add(addr, "AddPortMapping", ok)}, "http://metadata.example:PORT/desc.xml", "AddPortMapping 7655 for 3600", 7655, ""},
		{"described in a file", &igd{}, "file:///etc/passwd", "", 0, "does not answer"},
		{"referring elsewhere", &igd{before: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
			return true
		}}, "", "", 0, "refers to somebody else"},
		{"endless", &igd{before: func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, "<root>")
			for _, err := fmt.Fprint(w, strings.Repeat("<a/>", 1000)); err == nil && r.Context().Err() == nil; {
				_, err = fmt.Fprint(w, strings.Repeat("<a/>", 1000))
			}
			return true
		}}, "", "", 0, "unexpected EOF"},
		{"rubbish", &igd{before: func(w http.ResponseWriter, r *http.Request) bool { fmt.Fprint(w, "<<<"); return true }}, "", "", 0, "description"},
		{"broken", &igd{before: func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}}, "", "", 0, "500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			gw := loopback(byte(60 + i))
			c.gw.start(t, gw, c.found)
			u := newUPnP(gw)
			err := u.probe(t.Context())
			var g grant
			w := want{port: 7655, external: netip.AddrPortFrom(netip.Addr{}, 7655)}
			if err == nil {
				g, err = u.open(t.Context(), w)
			}
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("granted %+v, %v, want %q", g, err, c.err)
			case c.err == "" && (err != nil || g.external.Addr() != netip.MustParseAddr("203.0.113.5") || g.external.Port() < 1024 || c.port != 0 && g.external.Port() != c.port):
				t.Errorf("granted %+v, %v", g, err)
			}
			var asked []string
			for _, a := range c.gw.asked {
				if strings.HasPrefix(a, "Add") {
					asked = append(asked, a)
				}
			}
			if got := strings.Join(asked, ","); c.asked != "" && got != c.asked {
				t.Errorf("asked %s, want %s", got, c.asked)
			}
		})
	}
}

// FuzzParsePCP holds answers to what was asked.
func FuzzParsePCP(f *testing.F) {
	p := newPCP(home, []byte("x"))
	open := p.mapping(want{port: 7655}, lifetime)
	f.Add(granted(open))
	f.Add(with(granted(open), 3, 8))
	f.Add([]byte{0, 0x81, 0, 1, 0, 0, 0, 9})
	announce := appendPCP(nil, opAnnounce, 0, home.Local)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok, err := parsePCP(b, open); ok && err == nil && (!bytes.Equal(b[24:36], open[24:36]) || a.external.Addr().Is4In6()) {
			t.Errorf("%x was taken as an answer: %+v", b, a)
		}
		if a, ok, err := parsePCP(b, announce); ok && err == nil && a.external.IsValid() {
			t.Errorf("%x was taken as an answer with an address: %+v", b, a)
		}
	})
}

// FuzzLocation holds what a search finds to HTTP.
func FuzzLocation(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/desc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: file:///etc/passwd\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := location(b); err == nil && (u.Scheme != "http" || u.Host == "") {
			t.Errorf("%q leads to %v", b, u)
		}
	})
}
