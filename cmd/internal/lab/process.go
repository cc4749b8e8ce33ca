// SPDX-License-Identifier: MIT

//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is what programs in a host get: nothing of ours, so no proxy, locale or debugging variable changes them.
var environment = []string{"PATH=" + searchPath, "HOME=/root", "USER=root", "LOGNAME=root", "LC_ALL=C.UTF-8", "TERM=dumb"}

// Cmd is an exec.Cmd whose process is started inside a host. It is a child of this program: signals and exit status are
// its own. Whoever calls Start calls Wait.
type Cmd struct {
	*exec.Cmd
	host *Host
}

// Command prepares a program of the host, found as a shell of the host would. When ctx ends, the program and its
// children are killed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	path, err := h.look(name)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	if err != nil {
		cmd.Err = err
	}
	cmd.Env = environment
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for output held open by a child that left the process group
	return &Cmd{cmd, h}
}

// look finds a program inside the host. It always returns an absolute path, or the name and why there is none.
func (h *Host) look(name string) (path string, err error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	err = h.Do(func() error {
		for _, dir := range filepath.SplitList(searchPath) {
			path = filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return nil
			}
		}
		return &exec.Error{Name: name, Err: exec.ErrNotFound}
	})
	if err != nil {
		return name, err
	}
	return path, nil
}

// Start is exec.Cmd's, inside the host.
func (c *Cmd) Start() error { return c.host.Do(c.Cmd.Start) }

// Run is exec.Cmd's, inside the host.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd's, inside the host, except that the error has what the program said on standard error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if said := bytes.TrimSpace(stderr.Bytes()); err != nil && len(said) > 0 {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return stdout.Bytes(), err
}

// CombinedOutput is exec.Cmd's, inside the host.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Run runs a program of the host and returns its standard output.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := h.Command(ctx, name, args...).Output()
	if err != nil {
		err = fmt.Errorf("%s$ %s %s: %w", h.Name, name, strings.Join(args, " "), err)
	}
	return string(out), err
}

// Process is a program that runs in the background of a host. Its output goes to a file of the host.
type Process struct {
	Log string // the file, inside the host

	host *Host
	cmd  *Cmd
	done chan struct{} // closed by the waiting goroutine once err is set
	err  error
}

// Start starts a program in the background, its output appended to /var/log/<program>.log. It ends with the host if
// nothing ends it before.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	// No context: one that ends must not take the processes of a detached lab with it.
	p := &Process{
		Log:  "/var/log/" + filepath.Base(name) + ".log",
		host: h,
		cmd:  h.Command(context.Background(), name, args...),
		done: make(chan struct{}),
	}
	err := h.Do(func() error {
		log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer log.Close()
		p.cmd.Stdout, p.cmd.Stderr = log, log
		return p.cmd.Cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("starting %s on %s: %w", name, h.Name, err)
	}
	h.running.Go(func() {
		p.err = p.cmd.Wait()
		close(p.done)
		h.log.Debug("process ended", "program", name, "err", p.err)
	})
	return p, nil
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, as exec.Cmd's does, or the context's error if that ends first.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Output returns what the program, and earlier ones of the same name on this host, have written.
func (p *Process) Output() string {
	data, err := p.host.ReadFile(p.Log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err.Error()
	}
	return string(data)
}

// MachinePID returns the process's number as this machine sees it.
func (p *Process) MachinePID() int { return p.cmd.Process.Pid }

// PID returns the process's number inside the host.
func (p *Process) PID() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok { // one for each nested pid namespace, the host's last
			fields := strings.Fields(pids)
			return strconv.Atoi(fields[len(fields)-1])
		}
	}
	return 0, errors.New("the kernel does not say which number the process has in the host")
}
