// SPDX-License-Identifier: MIT

// Storelab is the program behind make test-store: it runs the real programs on five hosts made of namespaces (package
// lab), has the mesh's store grow from one member to three, and does to it what happens to stores: members are killed,
// lose their disk, are cut off, fill their disk, are lost for good. Meanwhile each node adds and changes names, and every
// node is watched: what it was promised must be there in the end on all of them, a name it has seen must not go away, and
// none may ever lead to an address that it never had, or back to an older one.
//
// It takes the programs from the folder it is in; in skewed/ there, meshd and meshd-etcd whose clock is an hour ahead: Linux
// has no namespaces of that clock, so they are built with another time.Now (Makefile). It shows each fault as a row of a table, and the exit status is 1 if
// anything is not as it must be. Nothing of the machine is changed and nothing is left.
//
// It starts one goroutine that writes and one that watches for each node; all end with the program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mesh.internal/mesh/cmd/internal/lab"
)

// limit is of the whole; on an idle machine it needs a fifth.
const limit = 20 * time.Minute

func main() {
	out := flag.String("o", "", "write the table to `FILE`")
	member := flag.String("compact", "", "compact the store of the member at `ENDPOINT`, on this host, and do nothing else")
	logs := flag.String("logs", "", "keep what the daemons said in `FOLDER`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	ctx, cancel := context.WithTimeout(ctx, limit)
	var err error
	if *member != "" {
		err = compact(ctx, *member)
	} else {
		err = run(ctx, *out, *logs)
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "storelab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, logs string) (err error) {
	if err := lab.Problem(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w := &world{ctx: ctx, built: filepath.Dir(self), lab: lab.New(slog.New(slog.DiscardHandler)), history: newHistory()}
	defer func() { err = errors.Join(err, w.lab.Close()) }()
	defer w.keepLogs(logs)
	defer func() { // what ends a story early
		if r := recover(); r != nil {
			s, ok := r.(stop)
			if !ok {
				panic(r)
			}
			err = s.err
		}
	}()
	w.story()
	if out != "" {
		if err := os.WriteFile(out, w.document(), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%d changes promised, %d answers of nodes looked at, %d problems\n", w.history.promised(), w.history.looked.Load(), len(w.history.problems()))
	if p := w.history.problems(); len(p) > 0 {
		return errors.New(strings.Join(p, "\n\t"))
	}
	return nil
}

// stop is the panic by which the story ends early.
type stop struct{ err error }

func must(err error) {
	if err != nil {
		panic(stop{err})
	}
}

func must1[T any](x T, err error) T {
	must(err)
	return x
}

// row is a line of the table.
func (w *world) row(what string, cells ...string) {
	w.rows = append(w.rows, append([]string{what}, cells...))
	fmt.Printf("| %s | %s |\n", what, strings.Join(cells, " | "))
}

func (w *world) document() []byte {
	var b strings.Builder
	b.WriteString("# What happens to the store\n\nMade by `sudo make test-store` (docs/store.md says how to read it): five real nodes, each of which changes a name four times a second.\n\n| what happens to the store | then | changes wait at most | all nodes show the same after |\n|---|---|--:|--:|\n")
	for _, r := range w.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
	}
	return []byte(b.String())
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
