// SPDX-License-Identifier: MIT

package vpn

import (
	"bufio"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"mesh.internal/mesh/vpn/link"
)

// engine seals and opens packets: wireguard-go's device between the seam and the link. Nothing else knows the device.
type engine struct {
	dev    *device.Device
	retain func(peer any) // nil except in tests
}

// traffic is what the engine knows of a peer.
type traffic struct {
	handshake time.Time // the last one completed; zero: none yet
	rx, tx    uint64    // bytes, as they are on the link
}

func newEngine(s *seam, l *link.Link, key *ecdh.PrivateKey, port int, log *slog.Logger) (*engine, error) {
	dev := device.NewDevice(s, counted{l, s}, &device.Logger{
		Verbosef: func(f string, a ...any) { log.Debug("wireguard: " + fmt.Sprintf(f, a...)) },
		Errorf:   func(f string, a ...any) { log.Warn("wireguard: " + fmt.Sprintf(f, a...)) },
	})
	// An endpoint is the node and stays: the device must not put a packet's source in its place.
	dev.DisableSomeRoamingForBrokenMobileSemantics()
	e := &engine{dev: dev}
	l.Handshake = e.handshake
	err := dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(key.Bytes()), port))
	if err == nil {
		err = dev.Up()
	}
	if err != nil {
		dev.Close()
		if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "address already in use") {
			return nil, fmt.Errorf("UDP port %d is in use: end the program that has it, or choose another (port = … in mesh.toml): %w", port, err)
		}
		return nil, fmt.Errorf("starting the tunnels: %w", err)
	}
	return e, nil
}

// set makes a peer's tunnel what it should be: p may use these addresses and no others.
func (e *engine) set(key *ecdh.PublicKey, addrs []netip.Prefix) error {
	k := hex.EncodeToString(key.Bytes())
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\nendpoint=%s\nreplace_allowed_ips=true\n", k, k)
	for _, a := range addrs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", a)
	}
	if err := e.dev.IpcSet(b.String()); err != nil {
		return err
	}
	if e.retain != nil {
		e.retain(e.dev.LookupPeer(device.NoisePublicKey(key.Bytes())))
	}
	return nil
}

func (e *engine) remove(key *ecdh.PublicKey) error {
	return e.dev.IpcSet("public_key=" + hex.EncodeToString(key.Bytes()) + "\nremove=true\n")
}

// handshake is link.Link.Handshake.
func (e *engine) handshake(key string, void bool) {
	var k device.NoisePublicKey
	if k.FromHex(key) != nil {
		return
	}
	if p := e.dev.LookupPeer(k); p != nil {
		if void {
			p.ExpireCurrentKeypairs()
		}
		p.SendHandshakeInitiation(false)
	}
}

// traffic returns what is known of every peer, by key in hexadecimal. It is not cheap: for status only.
func (e *engine) traffic() (map[string]traffic, error) {
	text, err := e.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	out := map[string]traffic{}
	var key string
	var sec int64
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		k, v, _ := strings.Cut(sc.Text(), "=")
		t := out[key]
		switch k {
		case "public_key":
			key = v
			continue
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(v, 10, 64)
		case "last_handshake_time_nsec":
			if ns, _ := strconv.ParseInt(v, 10, 64); sec > 0 {
				t.handshake = time.Unix(sec, ns)
			}
		case "rx_bytes":
			t.rx, _ = strconv.ParseUint(v, 10, 64)
		case "tx_bytes":
			t.tx, _ = strconv.ParseUint(v, 10, 64)
		}
		if key != "" {
			out[key] = t
		}
	}
	return out, sc.Err()
}

func (e *engine) close() { e.dev.Close() }
