// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"mesh.internal/mesh/cmd/internal/lab"
)

// shell is a login that goes on: what is typed goes to a shell on another host. One goroutine reads what it says.
type shell struct {
	in    io.WriteCloser
	lines chan string // closed at its end, once err is set
	err   error

	counted int
	pid     string // of the shell, on the other host
}

// newShell logs in with a command of a host that starts a shell. The login ends with the demo.
func (d *demo) newShell(n *node, args ...string) (*shell, error) {
	d.show.command(n.Name, args...)
	cmd := n.Command(d.ctx, args[0], args[1:]...)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	s := &shell{in: in, lines: make(chan string)}
	go s.read(d.ctx, cmd, out, &complaints)
	return s, nil
}

func (s *shell) read(ctx context.Context, cmd *lab.Cmd, out io.Reader, complaints *strings.Builder) {
	defer close(s.lines)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		select {
		case s.lines <- lines.Text():
		case <-ctx.Done():
		}
	}
	if s.err = cmd.Wait(); s.err != nil {
		s.err = fmt.Errorf("%w: %s", s.err, strings.TrimSpace(complaints.String()))
	}
}

// countCommand counts how often it was typed.
const countCommand = `echo $((n+=1)) $(hostname) $$`

// count types countCommand and checks that it is this shell that answers.
func (s *shell) count(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := io.WriteString(s.in, countCommand+"\n"); err != nil {
		return "", fmt.Errorf("the login has ended: %w", err)
	}
	s.counted++
	for {
		select {
		case line, ok := <-s.lines:
			f := strings.Fields(line)
			var n int
			if len(f) == 3 {
				n, _ = strconv.Atoi(f[0])
			}
			switch {
			case !ok:
				return "", errors.Join(errors.New("the login has ended"), s.err)
			case 0 < n && n < s.counted && f[2] == s.pid:
				continue // it was waited for long enough
			case n != s.counted || s.pid != "" && f[2] != s.pid:
				return line, fmt.Errorf("this is not line %d of the same shell", s.counted)
			}
			s.pid = f[2]
			return line, nil
		case <-ctx.Done():
			return "", errors.New("no answer")
		}
	}
}

// end logs out.
func (s *shell) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if _, err := io.WriteString(s.in, "exit\n"); err != nil {
		return err
	}
	for {
		select {
		case _, ok := <-s.lines: // an answer that came too late is passed over
			if !ok {
				return s.err
			}
		case <-ctx.Done():
			return fmt.Errorf("it goes on after %v", commandLimit)
		}
	}
}
