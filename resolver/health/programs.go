// SPDX-License-Identifier: MIT

package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// defaultUser is the user of programs that are handed over, where nothing else is said.
const defaultUser = "mesh-check"

// order is a program that is handed over: one to a connection. What is written to it after that, or its end, ends the
// program, with its group.
type order struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
}

// outcome is the answer.
type outcome struct {
	Out  []byte `json:"out"` // at most maxRead bytes
	Code int    `json:"code"`
	Err  string `json:"err,omitempty"` // why it has no exit status
}

const (
	maxOrder   = 4 << 20         // bytes: Linux takes 2 MiB of arguments and environment (execve(2))
	maxOutcome = 2 * maxRead     // bytes
	handWait   = 3 * time.Second // for the outcome of a program that was ended
)

var errNobody = errors.New("nobody runs programs")

// handed is the socket of who runs programs as user; empty: this process does.
func (cfg *Config) handed(user string) string {
	if cfg.Programs == "" || os.Geteuid() <= 0 {
		return ""
	}
	if u, err := osuser.Lookup(user); err == nil && u.Uid == strconv.Itoa(os.Geteuid()) {
		return ""
	}
	return filepath.Join(cfg.Programs, user)
}

// hand has another process run a program, as run does.
func (c command) hand(ctx context.Context) (out []byte, code int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.at)
	switch {
	case ctx.Err() != nil:
		return nil, 0, ctx.Err()
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, 0, fmt.Errorf("%w as the user %s: `systemctl enable --now meshd-check@%[2]s.socket` (docs/services.md, Who runs programs)", errNobody, c.user)
	case err != nil:
		return nil, 0, fmt.Errorf("having the user %s run it: %w", c.user, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Now().Add(handWait))
		_ = conn.(*net.UnixConn).CloseWrite()
	})()
	var o outcome
	if err = json.NewEncoder(conn).Encode(order{c.argv, c.env, c.dir}); err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxOutcome)).Decode(&o)
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("what runs programs as the user %s gave no answer: %w", c.user, err)
	case o.Err != "":
		err = errors.New(o.Err)
	}
	return o.Out, o.Code, err
}

// ServePrograms runs, as this process's user, the programs that Runners hand over at l: who may connect there may do
// all that this user may. It returns nil when ctx has ended, and with it all programs; or why l does not accept.
func ServePrograms(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("taking programs: %w", err)
		}
		wg.Go(func() { serveProgram(ctx, conn) })
	}
}

func serveProgram(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	var o outcome
	c, err := readOrder(conn)
	if err == nil {
		go func() { // ends with the connection
			_, _ = conn.Read(make([]byte, 1))
			cancel()
		}()
		o.Out, o.Code, err = c.run(ctx)
	}
	if err != nil {
		o.Err = err.Error()
	}
	_ = conn.SetWriteDeadline(time.Now().Add(handWait))
	_ = json.NewEncoder(conn).Encode(o)
}

// readOrder takes any bytes.
func readOrder(r io.Reader) (c command, err error) {
	var o order
	if err := json.NewDecoder(io.LimitReader(r, maxOrder)).Decode(&o); err != nil {
		return c, fmt.Errorf("the program that was handed over is malformed: %w", err)
	}
	if len(o.Argv) == 0 || !filepath.IsAbs(o.Argv[0]) || !filepath.IsAbs(o.Dir) {
		return c, errors.New("the program that was handed over has no whole path")
	}
	c = command{argv: o.Argv, env: o.Env, dir: o.Dir}
	if os.Geteuid() == 0 {
		c.user = "root" // which is this process's, so somebody has said so
	}
	return c, nil
}
