package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
)

func newTicket() *cobra.Command {
	var (
		p                   places
		req                 ctl.TicketRequest
		prefixes, endpoints []string
	)
	cmd := &cobra.Command{
		Use:   "ticket --site SITE --prefix CIDR... | ticket --gateway NAME --prefix CIDR...",
		Short: "Print a ticket with which another gateway joins, or grant a member more",
		Long: `Ticket prints a ticket: text with which one other gateway joins the mesh, with exactly this
site and these prefixes. It is a secret until it was used. It works on the gateway that ran init.

The running daemon makes it. If none runs, it is made from the state directory, and needs to know
under which addresses this gateway will be reached: "endpoints" of the configuration, or --endpoint.

Without --site, --gateway names a member, this gateway or another one, and no ticket is needed: the
member may announce the given prefixes besides what it may already. Nothing that it was granted is
taken away; a prefix that covers others takes their place. It gets its new certificate at once and
without an interruption, or when it is back. (With --site, a name that a member has makes a ticket
whose use replaces that member.)`,
		Example: `  meshd ticket --site 20 --prefix 192.168.20.0/24 --ttl 2h
  meshd ticket --gateway gw-20 --prefix 10.128.64.0/18`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Prefixes, err = parsePrefixes(prefixes); err != nil {
				return cli.Hint(err, "meshd ticket --help")
			}
			if req.Site == "" {
				return widen(cmd, &p, ctl.GrantRequest{Gateway: req.Gateway, Prefixes: req.Prefixes})
			}
			if req.TTL <= 0 {
				return cli.Usage(fmt.Errorf("--ttl %v: want a time to live above zero, such as 24h", req.TTL))
			}
			seeds, err := parseEndpoints(endpoints)
			if err != nil {
				return cli.Hint(err, "meshd ticket --help")
			}
			t, err := makeTicket(cmd.Context(), &p, req, seeds)
			if err != nil {
				return explain(err, &p)
			}
			printTicket(cmd, t)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Site, "site", "", "name of the other `SITE`")
	flags.StringArrayVar(&prefixes, "prefix", nil, "`CIDR` of a LAN of that site; may be repeated")
	flags.StringVar(&req.Gateway, "gateway", "", "`NAME` of the other gateway (default gw-SITE, gw-SITE-2, …), or of a member")
	flags.DurationVar(&req.TTL, "ttl", 24*time.Hour, "how long the ticket may be used")
	flags.BoolVar(&req.Relay, "relay", false, "let the other gateway relay for others")
	flags.StringVar(&req.For, "for", "", "identity `KEY` (base64) that alone may use the ticket")
	flags.StringArrayVar(&endpoints, "endpoint", nil, "`ADDRESS:PORT` of this gateway, if no daemon runs; may be repeated")
	p.addState(cmd)
	p.addRun(cmd)
	require(cmd, "prefix")
	cmd.MarkFlagsOneRequired("site", "gateway")
	return cmd
}

// makeTicket asks the daemon, or works on the state itself if no daemon has it.
func makeTicket(ctx context.Context, p *places, req ctl.TicketRequest, seeds []netip.AddrPort) (ctl.Ticket, error) {
	client, err := p.daemon(ctx)
	if err != nil {
		return ctl.Ticket{}, err
	}
	if client != nil {
		if len(seeds) > 0 {
			return ctl.Ticket{}, cli.Hint(
				errors.New("--endpoint is for tickets made while no daemon runs; this one knows its addresses"),
				"\"endpoints:\" in the configuration adds an address that the daemon cannot know",
			)
		}
		return client.Ticket(ctx, req)
	}
	c, err := p.load()
	if err != nil {
		return ctl.Ticket{}, err
	}
	return offlineTicket(c, req, seeds)
}

// daemon is the client of the daemon that has the state, nil if none runs.
func (p *places) daemon(ctx context.Context) (*ctl.Client, error) {
	client := p.client()
	about, err := client.About(ctx)
	switch {
	case errors.Is(err, ctl.ErrNotRunning):
		return nil, nil //nolint:nilnil // there is none
	case err != nil:
		return nil, err
	case p.state != "" && !sameDir(p.state, about.State):
		return nil, nil //nolint:nilnil // it has another state
	}
	return client, nil
}

// widen lets a member announce more, and says what came of it.
func widen(cmd *cobra.Command, p *places, req ctl.GrantRequest) error {
	for _, name := range []string{"ttl", "relay", "for", "endpoint"} {
		if cmd.Flags().Changed(name) {
			return cli.Hint(cli.Usage(fmt.Errorf("--%s is for tickets, which are for a --site", name)), "meshd ticket --help")
		}
	}
	g, err := makeGrant(cmd.Context(), p, req)
	if errors.Is(err, overlay.ErrUnknownGateway) || isUnknown(err) {
		return cli.Hint(err, "meshd status lists gateways; a ticket for a new one needs --site SITE")
	}
	if err != nil {
		return explain(err, p)
	}
	printGrant(cmd.OutOrStdout(), g)
	return nil
}

// isUnknown reports whether a daemon said that there is no such gateway.
func isUnknown(err error) bool {
	remote, ok := errors.AsType[*ctl.Error](err)
	return ok && remote.Status == http.StatusNotFound
}

// makeGrant asks the daemon, or works on the state itself if no daemon has it.
func makeGrant(ctx context.Context, p *places, req ctl.GrantRequest) (ctl.Grant, error) {
	client, err := p.daemon(ctx)
	if err != nil {
		return ctl.Grant{}, err
	}
	if client != nil {
		return client.Grant(ctx, req)
	}
	c, err := p.load()
	if err != nil {
		return ctl.Grant{}, err
	}
	w, err := overlay.WidenGrant(overlay.OpenDir(c.State), overlay.WidenRequest{Gateway: req.Gateway, Prefixes: req.Prefixes})
	if errors.Is(err, overlay.ErrStateInUse) {
		return ctl.Grant{}, cli.Hint(err, "name the run directory of the daemon that has it: --run DIR")
	}
	return ctl.GrantOf(w), err
}

func printGrant(w io.Writer, g ctl.Grant) {
	if len(g.Added) == 0 {
		fmt.Fprintf(w, "gateway %s of site %s had that already: %s\n", g.Gateway, g.Site, joinPrefixes(g.Prefixes))
	} else {
		fmt.Fprintf(w, "granted %s to gateway %s of site %s, which has now %s\n",
			joinPrefixes(g.Added), g.Gateway, g.Site, joinPrefixes(g.Prefixes))
	}
	if g.Pending == "" {
		fmt.Fprintln(w, "the gateway has its certificate; nothing is left to do")
		return
	}
	fmt.Fprintf(w, "the gateway does not have its certificate yet: %s\n", g.Pending)
	fmt.Fprintln(w, "it gets it within two minutes after it is reached again, at the latest when it renews; nothing is left to do")
}

// offlineTicket makes a ticket from the state directory.
func offlineTicket(c *conf.Config, req ctl.TicketRequest, seeds []netip.AddrPort) (ctl.Ticket, error) {
	if len(seeds) == 0 {
		seeds = c.Endpoints
	}
	if len(seeds) == 0 {
		return ctl.Ticket{}, cli.Hint(
			errors.New("no daemon runs that knows the addresses of this gateway"),
			"start it (meshd run), or name an address under which it will be reached: --endpoint ADDRESS:PORT",
		)
	}
	t, err := overlay.NewTicket(overlay.OpenDir(c.State), overlay.TicketRequest{
		Site:     req.Site,
		Gateway:  req.Gateway,
		Prefixes: req.Prefixes,
		TTL:      req.TTL,
		Relay:    req.Relay,
		For:      req.For,
	}, seeds)
	if errors.Is(err, overlay.ErrStateInUse) {
		return ctl.Ticket{}, cli.Hint(err, "name the run directory of the daemon that has it: --run DIR")
	}
	if err != nil {
		return ctl.Ticket{}, err
	}
	return ctl.TicketOf(t), nil
}

// printTicket prints the secret alone on standard output, and what people
// should know about it beside.
func printTicket(cmd *cobra.Command, t ctl.Ticket) {
	fmt.Fprintln(cmd.OutOrStdout(), t.Text)
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "ticket for gateway %s of site %s with %s, good until %s, for one use\n",
		t.Gateway, t.Site, joinPrefixes(t.Prefixes), t.Expiry.Local().Format(timeLayout))
	fmt.Fprintln(w, "next, on the other gateway: meshd join TICKET && meshd run")
}

// timeLayout is how commands show a point in time.
const timeLayout = "2006-01-02 15:04 MST"

// sameDir reports whether two paths are one directory.
func sameDir(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(infoA, infoB)
	}
	a, errA = filepath.Abs(a)
	return errA == nil && a == filepath.Clean(b)
}
