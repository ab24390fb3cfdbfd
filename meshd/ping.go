package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
)

// leastInterval keeps a loop of pings from being a load.
const leastInterval = 100 * time.Millisecond

func newPing() *cobra.Command {
	var (
		p        places
		count    int
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "ping SITE|GATEWAY",
		Short: "Send probes to a gateway through the mesh",
		Long: `Ping sends probes to a gateway, or to every gateway of a site, and prints for each the path that was
taken and two round trip times: that through the mesh, and that of the path below it.

Exit code 1 means that a probe stayed without an answer.`,
		Example: "  meshd ping 20 -c 5",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case count < 0:
				return cli.Usage(fmt.Errorf("--count %d: want a number of probes, 0 for no end", count))
			case interval < leastInterval:
				return cli.Usage(fmt.Errorf("--interval %v: want at least %v", interval, leastInterval))
			}
			return ping(cmd, &p, args[0], count, interval)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 4, "how many probes; 0 sends until interrupted")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time between two probes")
	p.addRun(cmd)
	return cmd
}

// ping sends count probes; 0 means until it is interrupted, which is then its
// proper end.
func ping(cmd *cobra.Command, p *places, to string, count int, interval time.Duration) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var total tally
	for n := 1; ; n++ {
		answer, err := p.client().Ping(ctx, to)
		if err != nil {
			if n > 1 && errors.Is(err, context.Canceled) {
				break
			}
			return explain(err, p)
		}
		for _, probe := range answer.Probes {
			printProbe(out, n, probe)
			total.add(probe)
		}
		if n == count {
			break
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			continue
		}
		break
	}
	total.print(out)
	if total.answered < total.sent {
		return cli.Hint(fmt.Errorf("%d of %d probes were not answered", total.sent-total.answered, total.sent), "meshd status shows the state of every path")
	}
	return nil
}

func printProbe(w io.Writer, n int, p ctl.Probe) {
	where := p.Gateway
	if p.Site != "" {
		where += " (site " + p.Site + ")"
	}
	if p.Error != "" {
		fmt.Fprintf(w, "%s: seq=%d %s\n", where, n, styled(p.Error, plain).text)
		return
	}
	kind := "direct"
	if p.Relayed {
		kind = "relayed"
	}
	through := "through the mesh"
	if p.Via != "data" {
		through = "by probe"
	}
	fmt.Fprintf(w, "%s: seq=%d time=%s ms %s, path %v %s %s ms\n",
		where, n, milliseconds(p.RTT), through, p.Path, kind, milliseconds(p.PathRTT))
}

// tally counts probes. The zero value is ready.
type tally struct {
	sent, answered  int
	least, most, of time.Duration // of answered probes; of is their sum
}

func (t *tally) add(p ctl.Probe) {
	t.sent++
	if p.Error != "" {
		return
	}
	if t.answered == 0 {
		t.least = p.RTT
	}
	t.answered++
	t.least, t.most, t.of = min(t.least, p.RTT), max(t.most, p.RTT), t.of+p.RTT
}

func (t *tally) print(w io.Writer) {
	fmt.Fprintf(w, "%d probes, %d answered", t.sent, t.answered)
	if t.answered > 0 {
		fmt.Fprintf(w, ", min/avg/max %s/%s/%s ms", milliseconds(t.least), milliseconds(t.of/time.Duration(t.answered)), milliseconds(t.most))
	}
	fmt.Fprintln(w)
}
