package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/overlay"
)

// maxTicket bounds what is read from standard input: a ticket object of 8 KiB
// (docs/protocol.md, section 2) and a seed in base64, doubled.
const maxTicket = 32 << 10

func newJoin() *cobra.Command {
	var (
		p       places
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "join TICKET|-",
		Short: "Make this machine a gateway of the mesh that a ticket is from",
		Long: `Join makes the keys of this gateway, has them certified with a ticket, and stores everything in
the state directory. Then meshd run starts the gateway.

"-" reads the ticket from standard input, where it stands in no list of processes and no history.`,
		Example: "  meshd join - < ticket.txt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := args[0]
			if text == "-" {
				var err error
				if text, err = readTicket(cmd.InOrStdin()); err != nil {
					return err
				}
			}
			return join(cmd, &p, text, timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to try")
	p.addState(cmd)
	return cmd
}

func readTicket(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxTicket+1))
	if err != nil {
		return "", fmt.Errorf("read ticket: %w", err)
	}
	if len(b) > maxTicket {
		return "", fmt.Errorf("standard input has more than %d bytes; want a ticket alone", maxTicket)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", errors.New("standard input is empty; want a ticket")
	}
	return text, nil
}

func join(cmd *cobra.Command, p *places, text string, timeout time.Duration) error {
	if timeout <= 0 {
		return cli.Usage(fmt.Errorf("--timeout %v: want a time above zero, such as 30s", timeout))
	}
	// Mail and chat programs break long lines.
	ticket, err := overlay.ParseTicket(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return cli.Hint(err, "copy the ticket again, or ask for a new one (meshd ticket on the gateway that made this one)")
	}
	c, err := p.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	result, err := overlay.Join(ctx, overlay.OpenDir(c.State), ticket, overlay.JoinOptions{Port: c.Port})
	if err != nil {
		return explainJoin(err, p)
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "joined mesh %s as gateway %s of site %s with %s\n\n", result.Mesh, result.Gateway, result.Site, joinPrefixes(result.Prefixes))
	fmt.Fprintf(w, "  mesh ID      %s\n", result.MeshID)
	fmt.Fprintf(w, "  certificate  until %s\n", result.NotAfter.Local().Format(timeLayout))
	fmt.Fprintf(w, "  state        %s\n\n", c.State)
	fmt.Fprintf(w, "next: meshd run%s\n", p.flags())
	return nil
}

// explainJoin knows what a join was about: somebody who should answer.
func explainJoin(err error, p *places) error {
	if errors.Is(err, overlay.ErrNoPath) || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		return cli.Hint(err, "see whether meshd runs there (meshd status) and whether UDP gets through to one of these addresses")
	}
	return explain(err, p)
}
