// SPDX-License-Identifier: MIT

package health

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"time"
)

// path is where scripts find programs; Debian's plugins are not in it and are named by their whole path.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is a program that is about to be run.
type command struct {
	argv []string
	env  []string
	dir  string
	user string
	at   string // the socket of who runs it; empty: we do
}

func (r *Runner) command(service string, c Check, argv []string, more ...string) command {
	env := []string{"PATH=" + path, "LC_ALL=C", "MESH_SERVICE=" + service, "MESH_CHECK=" + c.Name}
	env = append(append(env, r.cfg.Env...), more...)
	for k, v := range c.Env {
		env = append(env, k+"="+v)
	}
	cmd := command{argv: argv, env: env, dir: c.Dir, user: c.User}
	if cmd.dir == "" {
		cmd.dir = "/"
	}
	if cmd.user == "" {
		cmd.user = r.cfg.User
	}
	if cmd.user == "" && r.cfg.Programs != "" && os.Geteuid() > 0 {
		cmd.user = defaultUser
	}
	cmd.at = r.cfg.handed(cmd.user)
	return cmd
}

// script runs a Nagios plugin.
func script(ctx context.Context, cmd command) result {
	out, code, err := cmd.do(ctx)
	text, perf := parseOutput(out)
	res := result{state: Critical, output: text, perf: perf}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return result{state: Unknown, output: joined("it did not end in time and was killed", text), perf: perf}
	case errors.Is(err, errNobody):
		res.state, res.output = Unknown, clean(err.Error())
	case err != nil:
		res.output = joined(clean(err.Error()), text)
	case code >= 0 && code <= 3:
		res.state = []State{Passing, Warning, Critical, Unknown}[code]
		if text == "" {
			res.output = fmt.Sprintf("no output, exit status %d", code)
		}
	default:
		res.output = joined(fmt.Sprintf("exit status %d is not a plugin's (0 to 3)", code), text)
	}
	return res
}

func joined(what, text string) string {
	if text != "" {
		what += ": " + text
	}
	return head(what, maxOutput)
}

// do runs a program, or has it run.
func (c command) do(ctx context.Context) (out []byte, code int, err error) {
	if c.at != "" {
		return c.hand(ctx)
	}
	return c.run(ctx)
}

// run runs a program to its end or ctx's, and everything of its process group has ended with it. What has left the
// group (setsid) is not waited for longer than a second, even if it holds the pipe. It returns what came on the standard
// output or, if that was nothing, on standard error.
func (c command) run(ctx context.Context) (out []byte, code int, err error) {
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Dir = c.env, c.dir
	var stdout, stderr sink
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	switch err := start(cmd, c.user); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, fmt.Errorf("%s does not exist, or the interpreter in its first line does not", c.argv[0])
	case errors.Is(err, fs.ErrPermission):
		return nil, 0, fmt.Errorf("%w: it must be executable for the user that runs it (chmod 755), its folders too", err)
	case err != nil:
		return nil, 0, err
	}
	ended := make(chan func() error, 1)
	go func() { ended <- await(cmd) }()
	var reap func() error
	select {
	case reap = <-ended:
		killGroup(cmd) // what it has left behind
	case <-ctx.Done():
		err = ctx.Err()
		killGroup(cmd)
		reap = <-ended
	}
	werr := reap()
	out = stdout.b
	if len(out) == 0 {
		out = stderr.b
	}
	var exit *exec.ExitError
	switch {
	case err != nil:
	case errors.As(werr, &exit) && exit.ExitCode() < 0:
		err = fmt.Errorf("ended by %s", exit.ProcessState)
	case werr != nil && exit == nil && !errors.Is(werr, exec.ErrWaitDelay):
		err = werr
	}
	return slices.Clip(out), cmd.ProcessState.ExitCode(), err
}
