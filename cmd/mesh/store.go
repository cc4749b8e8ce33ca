// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mesh.internal/mesh/cmd/internal/api"
)

func (a *app) storeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "see and change who keeps the mesh's book of names",
		Long: "The names that people add are kept by one node at first. Three nodes that are always on keep it through the loss of any one of them, five through the loss of two. Names resolve without it; only changes wait."}
	cmd.AddCommand(a.storeStatusCommand(), a.storeAddCommand(), a.storeRemoveCommand(), a.storeMoveCommand(), a.storeBackupCommand(), a.storeRestoreCommand(), a.storeRecoverCommand())
	return cmd
}

func (a *app) book(ctx context.Context) (b api.Book, err error) {
	return b, a.client().Do(ctx, "GET", "/v1/store", nil, &b)
}

func (a *app) storeStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show who keeps the store, how they are, and who else could", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.book(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), b)
			}
			return showBook(cmd.OutOrStdout(), b, time.Now())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showBook(w io.Writer, b api.Book, now time.Time) error {
	p := paint(w)
	switch {
	case !b.Own:
		fmt.Fprintln(w, "names are kept in an etcd elsewhere (store in mesh.toml)")
	case len(b.Voters) == 0:
		fmt.Fprintln(w, "it is not known here yet who keeps the store")
		return nil
	case b.Quorum:
		fmt.Fprintf(w, "%s  %s\n", p(green, "can be changed"), p(dim, survives(b)))
	default:
		fmt.Fprintf(w, "%s  %s\n", p(red, "cannot be changed"), "most members are away: names stay as they were last seen, and changes wait")
	}
	if err := columns(w, p, []string{"MEMBER", "STATE", "ANSWERS IN", "NAMES' FILE", "CHANGES", "VERSION"}, func(row func(colour string, cells ...string)) {
		for _, v := range b.Voters {
			colour := green
			if v.State == "away" || v.State == "alone" {
				row(red, v.Name, v.State, "-", "-", "-", "-")
				continue
			}
			if v.State == "learning" {
				colour = yellow
			}
			row(colour, v.Name, v.State, fmt.Sprintf("%.1f ms", v.Answered), fmt.Sprintf("%s of %s", bytes(uint64(v.Used)), bytes(uint64(v.Quota))), fmt.Sprint(v.Index), v.Version)
		}
	}); err != nil {
		return err
	}
	for _, v := range b.Voters {
		if v.Error != "" {
			fmt.Fprintf(w, "%s %s: %s\n", p(yellow, "warning"), v.Name, v.Error)
		}
		for _, x := range v.Problems {
			fmt.Fprintf(w, "%s %s: %s\n", p(yellow, "warning"), v.Name, problem(x))
		}
	}
	for _, name := range b.Leaving {
		fmt.Fprintf(w, "%s is still leaving\n", name)
	}
	if b.Backup != nil {
		fmt.Fprintf(w, "last backup on this node %s ago\n", short(now.Sub(*b.Backup)))
	}
	if len(b.Candidates) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return columns(w, p, []string{"OTHER NODE", "", "REACHED", "UP", "DISK", "AWAY", "WHY NOT"}, func(row func(colour string, cells ...string)) {
		for _, c := range b.Candidates {
			fit, colour := "fit", green
			if !c.Fit {
				fit, colour = "unfit", dim
			}
			reached := "by some"
			if c.Public {
				reached = "by all"
			}
			row(colour, c.Name, fit, reached, upFor(c.Up), milliseconds(c.Fsync), milliseconds(c.RTT), c.Why)
		}
	})
}

func survives(b api.Book) string {
	switch n := (len(b.Voters) - 1) / 2; n {
	case 0:
		return "with one member: if it is lost, changes wait until it is back"
	case 1:
		return "survives the loss of any one member"
	default:
		return fmt.Sprintf("survives the loss of any %d members", n)
	}
}

func problem(s string) string {
	if strings.Contains(s, "NOSPACE") {
		return "it is full: names can be read and not changed; it makes room by itself where it can, else remove some"
	}
	return s
}

func upFor(hours float64) string {
	if hours == 0 {
		return "-"
	}
	return short(time.Duration(hours * float64(time.Hour)))
}

func milliseconds(x float64) string {
	if x == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", x)
}

// columns prints rows in columns; the colour is of the second one.
func columns(w io.Writer, p func(colour, s string) string, head []string, rows func(row func(colour string, cells ...string))) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	var colours []string
	var seconds []string
	rows(func(colour string, cells ...string) {
		colours, seconds = append(colours, colour), append(seconds, cells[1])
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	})
	if err := t.Flush(); err != nil {
		return err
	}
	for i, line := range strings.Split(strings.TrimRight(b.String(), "\n"), "\n") {
		line = strings.TrimRight(line, " ")
		if i == 0 {
			line = p(dim, line)
		} else if s := seconds[i-1]; s != "" {
			line = strings.Replace(line, "  "+s, "  "+p(colours[i-1], s), 1)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

const forceUsage = "also with an even number of members, laptops, and nodes without meshd-etcd"

func (a *app) storeAddCommand() *cobra.Command {
	var v api.Voters
	cmd := &cobra.Command{
		Use: "add NODE…", Short: "have more nodes keep the store, best two at a time", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeCandidates,
		Example: "  mesh store add bkero nibz",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.Add = args
			return a.change(cmd, v)
		},
	}
	cmd.Flags().BoolVar(&v.Force, "force", false, forceUsage)
	return cmd
}

func (a *app) storeRemoveCommand() *cobra.Command {
	var v api.Voters
	cmd := &cobra.Command{
		Use: "remove NODE…", Short: "have fewer nodes keep the store", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeVoters,
		RunE: func(cmd *cobra.Command, args []string) error {
			v.Remove = args
			return a.change(cmd, v)
		},
	}
	cmd.Flags().BoolVar(&v.Force, "force", false, forceUsage)
	return cmd
}

func (a *app) storeMoveCommand() *cobra.Command {
	var v api.Voters
	cmd := &cobra.Command{
		Use: "move FROM TO", Short: "have another node keep the store instead of one", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeMove,
		Long: "Has TO keep the store instead of FROM. TO has all of it before FROM leaves; where FROM is away for good, it leaves first.",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.Remove, v.Add = args[:1], args[1:]
			return a.change(cmd, v)
		},
	}
	cmd.Flags().BoolVar(&v.Force, "force", false, forceUsage)
	return cmd
}

// change says who keeps the store, and waits until they do.
func (a *app) change(cmd *cobra.Command, v api.Voters) error {
	var b api.Book
	if err := a.client().Do(cmd.Context(), "POST", "/v1/store/voters", v, &b); err != nil {
		return err
	}
	return a.settle(cmd, b)
}

// settleIn is how long a change of who keeps the store may take before the command gives up waiting; the nodes do not.
const settleIn = 2 * time.Minute

// settle waits until those who are to keep the store do, and nobody else does, and says what it sees meanwhile.
func (a *app) settle(cmd *cobra.Command, b api.Book) error {
	w := cmd.ErrOrStderr()
	said := map[string]string{}
	for end := time.Now().Add(settleIn); ; {
		done := b.Quorum && len(b.Leaving) == 0
		for _, x := range b.Voters {
			if said[x.Name] != x.State {
				fmt.Fprintf(w, "%s: %s\n", x.Name, x.State)
				said[x.Name] = x.State
			}
			done = done && (x.State == "leader" || x.State == "follower")
		}
		for _, name := range b.Leaving {
			if said[name] != "leaving" {
				fmt.Fprintf(w, "%s: leaving\n", name)
				said[name] = "leaving"
			}
		}
		if done {
			var names []string
			for _, x := range b.Voters {
				names = append(names, x.Name)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The store is kept by %s.\n", strings.Join(names, ", "))
			return nil
		}
		if time.Now().After(end) {
			return hinted{errors.New("it is said who keeps the store, and has not come about yet"),
				"see mesh store status; on a node that does not take part, meshd-etcd has to run: journalctl -u meshd-etcd"}
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(time.Second):
		}
		var err error
		if b, err = a.book(cmd.Context()); err != nil {
			return err
		}
	}
}

func (a *app) storeBackupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "write all that the store holds into a file", Args: cobra.ExactArgs(1),
		Long: "Writes all that the store holds into a file, lines of JSON; - is standard output. Nodes that keep the store make one a day by themselves, in backups below the state directory.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" {
				return a.client().Download(cmd.Context(), "/v1/store/backup", cmd.OutOrStdout())
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			err = a.client().Download(cmd.Context(), "/v1/store/backup", f)
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				os.Remove(args[0])
			}
			return err
		},
	}
}

func (a *app) storeRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "put back what a backup has and the store lacks", Args: cobra.ExactArgs(1),
		Long: "Puts back what a backup has and the store lacks, or has in an older version. Nothing that is there is lost. What its owner has removed meanwhile, the owner removes again. Run it on a node that keeps the store.",
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			var r api.Restored
			if err := a.client().Upload(cmd.Context(), "POST", "/v1/store/restore", in, &r); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d values put back; %d are there as they are, or newer.\n", r.Put, r.Newer)
			for _, x := range r.Refused {
				fmt.Fprintln(cmd.ErrOrStderr(), "not put back:", x)
			}
			if r.Others > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "not put back: %d more\n", r.Others)
			}
			return nil
		},
	}
}

func (a *app) storeRecoverCommand() *cobra.Command {
	var q api.Recover
	var yes bool
	cmd := &cobra.Command{
		Use: "recover [NODE]", Short: "begin the store anew after most of its members were lost", Args: cobra.MaximumNArgs(1),
		Long: "Has the store begin anew on one node, with what that has of it; without any of it, empty. Every node publishes again what is its own. The other members are fenced off first: wherever it becomes known, they stop, and nobody asks them any more, whenever they come back. Then let others take part again with mesh store add.",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.book(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				q.From = args[0]
			} else {
				var s api.Status
				if err := a.client().Do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
					return err
				}
				q.From = s.Self.Name
			}
			if b.Quorum && !q.Force {
				return errors.New("the store works: nothing is to be recovered")
			}
			if err := showBook(cmd.ErrOrStderr(), b, time.Now()); err != nil {
				return err
			}
			has := slices.ContainsFunc(b.Voters, func(v api.Voter) bool { return v.Name == q.From })
			fmt.Fprintf(cmd.ErrOrStderr(), "\nThe store will begin anew on %s, %s. Changes that only the others have are lost, but for what nodes publish again.\n", q.From,
				map[bool]string{true: "with what it has of it", false: "empty: it is none of the members"}[has])
			if !yes {
				if err := confirm(cmd, q.From); err != nil {
					return err
				}
			}
			if err := a.client().Do(cmd.Context(), "POST", "/v1/store/recover", q, &b); err != nil {
				return err
			}
			return a.settle(cmd, b)
		},
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "although the store works")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirm has a person type a name.
func confirm(cmd *cobra.Command, name string) error {
	if f, ok := cmd.InOrStdin().(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return hinted{errors.New("nobody is there to confirm it"), "say --yes"}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Type %s to go on: ", name)
	var s string
	if fmt.Fscanln(cmd.InOrStdin(), &s); s != name {
		return errors.New("nothing was changed")
	}
	return nil
}

func (a *app) completeCandidates(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	b, _ := a.book(cmd.Context())
	var out []string
	for _, c := range b.Candidates {
		if !slices.Contains(args, c.Name) {
			out = append(out, c.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeVoters(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	b, _ := a.book(cmd.Context())
	var out []string
	for _, v := range b.Voters {
		if !slices.Contains(args, v.Name) {
			out = append(out, v.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeMove(cmd *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeVoters(cmd, args, s)
	}
	return a.completeCandidates(cmd, args, s)
}
