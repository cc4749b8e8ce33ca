// SPDX-License-Identifier: MIT

package lab

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	cloneFlags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

	// holderScript is process 1 of a host: it ends when the pipe on its standard input does. /proc must be mounted by a
	// process of the pid namespace it shows. A process 1 that ignores SIGCHLD has its orphans reaped by the kernel; env(1)
	// does that, since some shells cannot.
	holderScript = `exec 2>&1; mount -t proc proc /proc && exec env --ignore-signal=CHLD cat`

	// closeLimit bounds the wait for a host's last process; the kernel needs milliseconds.
	closeLimit = 10 * time.Second
)

// overlays are the folders of which a host has a copy of its own.
var overlays = [...]string{"/etc", "/var", "/usr"}

// hostFiles are what a host knows of names: only itself. A lookup that reaches dns must fail at once and not wait for a
// server that is not there: nothing listens on the loopback address, which says so (ECONNREFUSED) to the first packet.
var hostFiles = [...]struct{ path, text string }{
	{"/etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"},
	{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files mesh dns\nnetworks: files\n" +
		"protocols: files\nservices: files\nethers: files\nrpc: files\nnetgroup: files mesh\n"},
	{"/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"},
}

// Host is one test host.
type Host struct {
	Name string
	PID  int // of the holder, as this machine sees it

	log    *slog.Logger
	holder *exec.Cmd
	pipe   *os.File // closing it ends the host
	pidfd  int      // of the holder: names the namespaces

	ports   atomic.Int32   // interfaces made on it as a router
	running sync.WaitGroup // processes given to Start
}

func startHost(name string, log *slog.Logger) (_ *Host, err error) {
	stdin, pipe, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	h := &Host{Name: name, log: log, pipe: pipe, holder: exec.Command("/bin/sh", "-c", holderScript)}
	h.holder.Stdin = stdin
	h.holder.Env = environment
	h.holder.Dir = "/"
	h.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   cloneFlags,
		Unshareflags: unix.CLONE_NEWNS, // also makes every mount private
		Setsid:       true,             // a terminal's SIGINT is for this program, which then closes the lab
		PidFD:        &h.pidfd,
	}
	stdout, err := h.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.holder.Start(); err != nil {
		pipe.Close()
		return nil, fmt.Errorf("starting the holder: %w", err)
	}
	h.PID = h.holder.Process.Pid
	defer func() {
		if err != nil {
			h.hangUp()
			err = errors.Join(err, h.wait())
		}
	}()
	pipe.WriteString("up\n") // what cat(1) echoes, once it is there
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "up\n" {
		return nil, fmt.Errorf("starting the holder: it said %q", line)
	}
	if err := h.Do(h.furnish); err != nil {
		return nil, err
	}
	log.Debug("host is up", "pid", h.PID)
	return h, nil
}

// furnish gives the host its own files, host name and loopback interface. It runs inside.
func (h *Host) furnish() error {
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	// The overlays' upper folders are in a tmpfs that is unmounted again, out of reach once they are in place.
	if err := mount("tmpfs", "/run", "tmpfs", "mode=755"); err != nil {
		return err
	}
	for _, dir := range h.overlays() {
		upper, work := "/run/upper"+dir, "/run/work"+dir
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if err := mount("overlay", dir, "overlay", "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
			return err
		}
	}
	if err := unix.Unmount("/run", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting /run: %w", err)
	}
	if err := mount("tmpfs", "/run", "tmpfs", "mode=755"); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", ""); err != nil { // shows the interfaces of this host only
		return err
	}
	for _, f := range hostFiles {
		os.Remove(f.path) // it may be a symbolic link into /run
		if err := os.WriteFile(f.path, []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/etc/hostname", []byte(h.Name+"\n"), 0o644); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing the loopback interface up: %w", err)
	}
	return nil
}

// overlays returns the folders to overlay: the folder of the C library too, where /usr does not contain it.
func (h *Host) overlays() []string {
	dirs := overlays[:]
	if lib, err := LibDir(); err == nil && !strings.HasPrefix(lib, "/usr/") {
		dirs = append(dirs[:len(dirs):len(dirs)], lib)
	}
	return dirs
}

// LibDir returns the folder from which this machine's programs load NSS modules: the one its dynamic linker is in.
func LibDir() (string, error) {
	sh, err := elf.Open("/bin/sh")
	if err != nil {
		return "", fmt.Errorf("finding the library folder: %w", err)
	}
	defer sh.Close()
	for _, p := range sh.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(p.Open(), unix.PathMax))
		if err != nil {
			return "", fmt.Errorf("finding the library folder: %w", err)
		}
		linker, err := filepath.EvalSymlinks(strings.TrimRight(string(name), "\x00"))
		if err != nil {
			return "", fmt.Errorf("finding the library folder: %w", err)
		}
		return filepath.Dir(linker), nil
	}
	return "", errors.New("finding the library folder: /bin/sh names no dynamic linker")
}

// Do calls f on a thread that is in all namespaces of the host: files, sockets, netlink and processes that f opens or
// starts itself are the host's. What f gives to other goroutines runs outside.
func (h *Host) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is what /proc/self shows of this program: leave it alone, and keep it busy, so that
			// the next goroutine gets another one.
			done <- h.Do(f)
			runtime.UnlockOSThread()
			return
		}
		done <- h.enter(f) // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

func (h *Host) enter(f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2): not for a thread that shares its root folder
		return fmt.Errorf("entering %s: %w", h.Name, err)
	}
	if err := unix.Setns(h.pidfd, cloneFlags|unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering %s: %w", h.Name, err)
	}
	return f()
}

// WriteFile writes a file inside the host, making its folder.
func (h *Host) WriteFile(path string, data []byte, mode os.FileMode) error {
	return h.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, data, mode)
	})
}

// ReadFile reads a file inside the host.
func (h *Host) ReadFile(path string) (data []byte, err error) {
	err = h.Do(func() (err error) {
		data, err = os.ReadFile(path)
		return err
	})
	return data, err
}

// Install copies a file of the machine into the host.
func (h *Host) Install(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("installing on %s: %w", h.Name, err)
	}
	if err := h.WriteFile(to, data, mode); err != nil {
		return fmt.Errorf("installing on %s: %w", h.Name, err)
	}
	return nil
}

// hangUp makes the holder end, and with it every process of the host.
func (h *Host) hangUp() { h.pipe.Close() }

// wait returns when every process of the host is gone.
func (h *Host) wait() error {
	defer unix.Close(h.pidfd)
	limit := time.AfterFunc(closeLimit, func() { h.holder.Process.Kill() })
	h.holder.Wait() // the holder's exit status says nothing: read(1) has met the end of the pipe
	h.running.Wait()
	if !limit.Stop() {
		return fmt.Errorf("closing host %s: it took longer than %v", h.Name, closeLimit)
	}
	h.log.Debug("host is gone", "pid", h.PID)
	return nil
}

// detach lets a process of the host keep its pipe open.
func (h *Host) detach() error {
	keeper := h.Command(context.Background(), "sleep", "infinity")
	keeper.ExtraFiles = []*os.File{h.pipe}
	if err := keeper.Start(); err != nil {
		return fmt.Errorf("detaching host %s: %w", h.Name, err)
	}
	h.running.Go(func() { keeper.Wait() })
	h.hangUp()
	return nil
}

func mount(source, target, fstype, data string) error {
	if err := unix.Mount(source, target, fstype, unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", fstype, target, err)
	}
	return nil
}
