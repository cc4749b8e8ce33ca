// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mesh.internal/mesh/cmd/internal/api"
	"mesh.internal/mesh/cmd/internal/config"
	"mesh.internal/mesh/resolver/health"
)

func (a *app) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "service", Short: "offer services, with checks of their health, and see those of all",
		Long: "Offers services on this node to the mesh, and shows those of all nodes. A service is found by its type: as http.service.ZONE, and as http.ZONE where no host has that name, which lead to the hosts where it is well; " +
			"with its port as SRV _http._tcp.ZONE; and by what browses for services (DNS-SD). Services may also be written into files of /etc/mesh/services.d (mesh.toml(5)), which take effect at once.",
	}
	cmd.AddCommand(a.serviceAddCommand(), a.serviceRemoveCommand(), a.serviceListCommand())
	for _, r := range []struct {
		name, short string
		state       health.State
	}{{"pass", "report that a service is well", health.Passing}, {"warn", "report that a service is not quite well", health.Warning}, {"fail", "report that a service is not well", health.Critical}} {
		cmd.AddCommand(a.serviceReportCommand(r.name, r.short, r.state))
	}
	return cmd
}

func (a *app) serviceAddCommand() *cobra.Command {
	var s config.Service
	var meta, checks []string
	var interval, timeout, ttl time.Duration
	var rise, fall int
	cmd := &cobra.Command{
		Use: "add TYPE PORT[/tcp|/udp]", Short: "offer a service on this node", Args: cobra.ExactArgs(2),
		Long: "Offers a service on this node, or changes the one of that name. TYPE is what clients look for: http, ssh, ipp (as in /etc/services).\n\n" +
			"--check says how its health is found out, each in one of these forms:\n\n" +
			"  tcp, http                    the service's own port, on its host\n" +
			"  tcp:HOST:PORT, http://…      another one; of HTTP 2xx is well, 429 a warning\n" +
			"  dns:NAME[@SERVER], ping:HOST an answer\n" +
			"  ttl:30s                      a report by `mesh service pass` at least so often\n" +
			"  /PROGRAM ARGUMENTS…          a Nagios plugin; root only\n\n" +
			"More about a check (its user, environment, headers) can be said in a file of /etc/mesh/services.d. A service without checks is well as long as its node is there.",
		Example: "  mesh service add http 80/tcp --check http --tag blog --meta path=/\n  mesh service add ipp 631 --host printer --check tcp\n  mesh service add http 8080/tcp --name admin --check '/usr/lib/nagios/plugins/check_http -H localhost -p 8080'\n  mesh service add backup 22 --check ttl:25h",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			s.Type, s.Port, s.TTL = args[0], args[1], health.Duration(ttl)
			s.Name = cmp.Or(s.Name, s.Type)
			port, _, err := config.SplitPort(s.Port)
			if err != nil {
				return err
			}
			if s.Meta, err = parseMeta(meta); err != nil {
				return err
			}
			host := s.Host
			if host == "" {
				var st api.Status
				if err := a.client().Do(cmd.Context(), "GET", "/v1/status", nil, &st); err != nil {
					return err
				}
				host = st.Self.Name
			}
			for _, text := range checks {
				c, err := parseCheck(text, host, port)
				if err != nil {
					return err
				}
				if c.TTL == 0 {
					c.Interval, c.Timeout = health.Duration(interval), health.Duration(timeout)
				}
				c.Rise, c.Fall = rise, fall
				s.Checks = append(s.Checks, c)
			}
			var c api.Change
			if err := a.client().Do(cmd.Context(), "PUT", "/v1/services", s, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.Name, "name", "", "what people call it, `text` of up to 40 bytes; needed for a second service of a type")
	f.StringVar(&s.Host, "host", "", "the `host` it is on, one that was added on this node; otherwise this node")
	f.StringSliceVar(&s.Tags, "tag", nil, "a `label` that it can be asked for by, as TAG.TYPE.service.ZONE; may be given more than once")
	f.StringArrayVar(&meta, "meta", nil, metaUsage)
	f.Uint16Var(&s.Priority, "priority", 0, "of SRV: lower is tried first")
	f.Uint16Var(&s.Weight, "weight", 0, "of SRV: a higher one is tried more often among those of one priority")
	f.DurationVar(&ttl, "ttl", 0, "how long DNS answers may be kept, in whole seconds")
	f.StringArrayVar(&checks, "check", nil, "how its health is found out, see above; may be given more than once")
	f.DurationVar(&interval, "interval", 0, "of checks: 1s to 24h (default 10s)")
	f.DurationVar(&timeout, "timeout", 0, "of checks: up to the interval (default 5s, of programs up to 30s)")
	f.IntVar(&rise, "rise", 0, "so many better results in a row change the state (default 1)")
	f.IntVar(&fall, "fall", 0, "so many worse results in a row change the state (default 2)")
	cmd.RegisterFlagCompletionFunc("check", cobra.FixedCompletions([]string{"tcp", "http", "ping:", "dns:", "ttl:"}, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
	return cmd
}

// parseCheck reads one check as the command line has it. host and port are the service's own.
func parseCheck(text, host string, port uint16) (c health.Check, err error) {
	own := fmt.Sprintf("%s:%d", host, port)
	kind, arg, _ := strings.Cut(text, ":")
	switch {
	case text == "tcp":
		c.TCP = own
	case text == "http":
		c.HTTP = "http://" + own + "/"
	case kind == "http" || kind == "https":
		c.HTTP = text
	case kind == "tcp":
		c.TCP = arg
	case kind == "dns":
		c.DNS = arg
	case kind == "ping":
		c.Ping = arg
	case kind == "ttl":
		err = c.TTL.UnmarshalText([]byte(arg))
	case strings.HasPrefix(text, "/"):
		c.Script, err = splitCommand(text)
	default:
		err = fmt.Errorf("--check %q: want tcp, http, tcp:HOST:PORT, a URL, dns:NAME, ping:HOST, ttl:TIME or a program by its whole path", text)
	}
	return c, err
}

// splitCommand returns the words of a command, of which some may be in single or double quotes; nothing else is special.
func splitCommand(s string) (out []string, err error) {
	var word strings.Builder
	in, quote := false, rune(0)
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, in = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if in {
				out = append(out, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%q: a %c is not closed", s, quote)
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

func (a *app) serviceRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "offer a service no more", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeServices(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Change
			if err := a.client().Do(cmd.Context(), "DELETE", "/v1/services/"+url.PathEscape(args[0]), nil, &c); err != nil {
				return err
			}
			tell(cmd, c)
			return nil
		},
	}
}

func (a *app) serviceReportCommand(name, short string, state health.State) *cobra.Command {
	return &cobra.Command{
		Use: name + " NAME [TEXT…]", Short: short + ", to its ttl checks", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeServices(true),
		Long:    strings.ToUpper(short[:1]) + short[1:] + " of this node, to its ttl checks; NAME/CHECK is one of several. TEXT is what others see of it.",
		Example: "  mesh service " + name + " backup",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.client().Do(cmd.Context(), "POST", "/v1/services/"+url.PathEscape(args[0])+"/report", api.Report{State: string(state), Output: strings.Join(args[1:], " ")}, nil)
		},
	}
}

// completeServices completes the names of services: of this node's, or the types of all.
func (a *app) completeServices(own bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a person waits at the keyboard
		defer cancel()
		var s api.Services
		var st api.Status
		if a.client().Do(ctx, "GET", "/v1/services", nil, &s) != nil || a.client().Do(ctx, "GET", "/v1/status", nil, &st) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, x := range s.Services {
			switch {
			case own && x.Owner == st.Self.Name:
				out = append(out, cobra.CompletionWithDesc(x.Name, fmt.Sprintf("%s %d/%s on %s", x.Type, x.Port, x.Proto, x.Host)))
			case !own && !slices.Contains(out, x.Type):
				out = append(out, x.Type)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) serviceListCommand() *cobra.Command {
	var asJSON, near bool
	cmd := &cobra.Command{
		Use: "ls [TYPE]", Aliases: []string{"list"}, Short: "list services of all nodes, or those of a type", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeServices(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s api.Services
			if err := a.client().Do(cmd.Context(), "GET", "/v1/services", nil, &s); err != nil {
				return err
			}
			if len(args) == 1 {
				s.Services = slices.DeleteFunc(s.Services, func(x api.Service) bool { return x.Type != strings.ToLower(args[0]) })
			}
			if near {
				slices.SortStableFunc(s.Services, func(x, y api.Service) int {
					switch {
					case x.RTT == nil || y.RTT == nil:
						return cmp.Compare(b2i(x.RTT == nil), b2i(y.RTT == nil))
					}
					return cmp.Compare(*x.RTT, *y.RTT)
				})
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), s)
			}
			showServices(cmd.OutOrStdout(), s, time.Now())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&near, "near", false, "the nearest first, by the measured round trip")
	return cmd
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// stateColours are the colours of states.
var stateColours = map[string]string{"passing": green, "warning": yellow, "unknown": yellow, "critical": red, "offline": dim}

// column is a column of a table: its cells, the first one the heading, and their colours.
type column struct{ cells, colours []string }

// showColumns writes columns, each as wide as it must be, the last one as it is.
func showColumns(w io.Writer, columns ...*column) {
	p := paint(w)
	for i := range columns[0].cells {
		for n, c := range columns {
			cell := c.cells[i]
			if n < len(columns)-1 {
				width := 0
				for _, x := range c.cells {
					width = max(width, len([]rune(x)))
				}
				cell = fmt.Sprintf("%-*s  ", width, cell)
			}
			fmt.Fprint(w, p(c.colours[i], cell))
		}
		fmt.Fprintln(w)
	}
}

func head(title string) *column { return &column{[]string{title}, []string{dim}} }

func (c *column) add(colour, cell string) {
	c.cells, c.colours = append(c.cells, cell), append(c.colours, colour)
}

func showServices(w io.Writer, s api.Services, now time.Time) {
	if len(s.Services) == 0 {
		fmt.Fprintln(w, "no services yet: `mesh service add TYPE PORT` offers one")
		return
	}
	service, host, port, state, since, rtt, says := head("SERVICE"), head("HOST"), head("PORT"), head("STATE"), head("FOR"), head("RTT"), head("TAGS AND OUTPUT")
	for _, x := range s.Services {
		name := x.Type
		if x.Name != x.Type {
			name += " (" + x.Name + ")"
		}
		service.add(bold, name)
		host.add("", x.Host)
		port.add("", fmt.Sprintf("%d/%s", x.Port, x.Proto))
		if x.Waiting != "" {
			x.State, x.Output = "waiting", x.Waiting
		}
		state.add(cmp.Or(stateColours[x.State], yellow), x.State)
		age := ""
		if x.Since != nil {
			age = short(now.Sub(*x.Since))
		}
		since.add("", age)
		trip := ""
		if x.RTT != nil {
			trip = strconv.FormatFloat(*x.RTT, 'f', 1, 64) + " ms"
		}
		rtt.add("", trip)
		text := strings.Join(x.Tags, ",")
		if text != "" && x.Output != "" {
			text += "  "
		}
		says.add("", text+x.Output)
	}
	showColumns(w, service, host, port, state, since, rtt, says)
}

func (a *app) checksCommand() *cobra.Command {
	var asJSON, history bool
	cmd := &cobra.Command{
		Use: "checks [SERVICE]", Short: "show how this node's services are checked, and what was found", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeServices(true),
		Long: "Shows the checks of this node's services with their last results. A check's state changes when several results in a row say so (rise and fall); where the last result differs from the state, that is shown. The exit status is 1 where a check is critical or unknown.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var c api.Checks
			if err := a.client().Do(cmd.Context(), "GET", "/v1/checks", nil, &c); err != nil {
				return err
			}
			if len(args) == 1 {
				c.Checks = slices.DeleteFunc(c.Checks, func(x health.CheckStatus) bool { return x.Service != args[0] })
				c.History = slices.DeleteFunc(c.History, func(x health.Change) bool { return x.Service != args[0] })
				if len(c.Checks) == 0 {
					return hinted{fmt.Errorf("no service %q of this node is checked", args[0]), "mesh service ls lists services; mesh service add --check … has one checked"}
				}
			}
			w := cmd.OutOrStdout()
			switch {
			case asJSON:
				if err := writeJSON(w, c); err != nil {
					return err
				}
			case history:
				showHistory(w, c.History)
				return nil
			default:
				showChecks(w, c.Checks, time.Now())
			}
			if slices.ContainsFunc(c.Checks, func(x health.CheckStatus) bool { return !x.State.Serves() }) {
				return errFound
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&history, "history", false, "what has changed, the latest last")
	return cmd
}

func showChecks(w io.Writer, checks []health.CheckStatus, now time.Time) {
	if len(checks) == 0 {
		fmt.Fprintln(w, "nothing is checked on this node: `mesh service add TYPE PORT --check tcp` offers a service with a check")
		return
	}
	service, check, state, since, last, took, says := head("SERVICE"), head("CHECK"), head("STATE"), head("FOR"), head("LAST"), head("TOOK"), head("OUTPUT")
	for _, x := range checks {
		service.add(bold, x.Service)
		check.add("", x.Check.Name)
		text := string(x.State)
		if x.Result != "" && x.Result != x.State {
			text += " → " + string(x.Result)
		}
		state.add(stateColours[string(x.State)], text)
		since.add("", short(now.Sub(x.Since)))
		if x.Last.IsZero() {
			last.add(dim, "never")
			took.add("", "")
		} else {
			last.add("", short(now.Sub(x.Last))+" ago")
			took.add("", time.Duration(x.Took).Round(time.Millisecond).String())
		}
		output, _, more := strings.Cut(x.Output, "\n")
		if more {
			output += " …"
		}
		says.add("", output)
	}
	showColumns(w, service, check, state, since, last, took, says)
}

func showHistory(w io.Writer, changes []health.Change) {
	if len(changes) == 0 {
		fmt.Fprintln(w, "nothing has changed since meshd was started")
		return
	}
	when, service, change, says := head("WHEN"), head("CHECK"), head("CHANGE"), head("OUTPUT")
	for _, x := range changes {
		when.add(dim, x.At.Local().Format("2006-01-02 15:04:05"))
		service.add(bold, x.Service+"/"+x.Check)
		change.add(stateColours[string(x.To)], cmp.Or(string(x.From), "(new)")+" → "+string(x.To))
		output, _, _ := strings.Cut(x.Output, "\n")
		says.add("", output)
	}
	showColumns(w, when, service, change, says)
}
