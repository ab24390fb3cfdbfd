package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
)

// watchInterval is how often --watch looks.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	var (
		p             places
		asJSON, watch bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who is in the mesh and how to reach them",
		Long: `Status shows this gateway, every other gateway with its path, attached routers, and what is degraded.
With --watch it does so every second; then RX and TX are rates.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return watchStatus(cmd, &p, asJSON)
			}
			s, err := p.client().Status(cmd.Context())
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			printStatus(cmd.OutOrStdout(), s, nil, coloured(cmd))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with --watch one object a line")
	cmd.Flags().BoolVar(&watch, "watch", false, "print it again every second, until interrupted")
	p.addRun(cmd)
	return cmd
}

// printJSON prints v for programs and for people who look.
func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n", b)
	return nil
}

// watchStatus prints the status every second. Being interrupted is its proper end.
func watchStatus(cmd *cobra.Command, p *places, asJSON bool) error {
	out := cmd.OutOrStdout()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var before *ctl.Status
	for {
		s, err := p.client().Status(cmd.Context())
		switch {
		case cmd.Context().Err() != nil:
			return nil
		case err != nil:
			return explain(err, p)
		case asJSON:
			b, err := json.Marshal(s)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "%s\n", b)
		default:
			if cli.IsTerminal(out) {
				fmt.Fprint(out, "\x1b[H\x1b[2J") // ECMA-48: to the upper left corner, erase all
			} else if before != nil {
				fmt.Fprintln(out)
			}
			printStatus(out, s, before, coloured(cmd))
		}
		before = &s
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

// printStatus prints s for people. With an earlier status, traffic is shown as
// rates between the two.
func printStatus(w io.Writer, s ctl.Status, before *ctl.Status, colour bool) {
	label := func(name string) string { return paint(fmt.Sprintf("%-11s", name), dim, colour) }
	self := s.Self
	up := 0
	for _, peer := range s.Peers {
		if peer.State == overlay.PeerUp {
			up++
		}
	}
	fmt.Fprintf(w, "%s%s (%.16s)  %d of %d other gateways up\n", label("mesh"), paint(s.Mesh.Name, bold, colour), s.Mesh.ID, up, len(s.Peers))
	fmt.Fprintf(w, "%s%s of site %s  up %s%s\n", label("gateway"), paint(self.Gateway, bold, colour), self.Site, age(s.Time, self.Started), role(self))
	fmt.Fprintf(w, "%s%s  %s\n", label("overlay"), self.Overlay, device(self))
	fmt.Fprintf(w, "%s%s\n", label("announces"), routeList(self.Routes))
	if len(s.RouteSets) > 0 {
		words := make([]string, len(s.RouteSets))
		for i, set := range s.RouteSets {
			words[i] = set.Name + " (" + contents(set.Set) + ")"
		}
		fmt.Fprintf(w, "%s%s\n", label("route sets"), strings.Join(words, ", "))
	}
	fmt.Fprintf(w, "%sudp port %d at %s\n", label("reached"), self.Port, endpointList(self.Endpoints))
	fmt.Fprintf(w, "%suntil %s (%s)\n", label("certified"), self.NotAfter.Local().Format(timeLayout), remaining(s.Time, self.NotAfter))
	if len(s.Peers) > 0 {
		fmt.Fprintln(w)
		t := peerTable(s, before)
		t.print(w, colour)
	}
	if len(s.Attachments) > 0 {
		fmt.Fprintln(w)
		t := attachmentTable(s, before)
		t.print(w, colour)
	}
	printProblems(w, s.Status, append(attachmentProblems(s), setProblems(s.RouteSets)...), colour)
}

func role(self overlay.SelfStatus) string {
	if self.Issuer {
		return "  makes tickets"
	}
	return ""
}

func device(self overlay.SelfStatus) string {
	if self.Interface == "" {
		return fmt.Sprintf("mtu %d", self.MTU)
	}
	return fmt.Sprintf("on %s  mtu %d", self.Interface, self.MTU)
}

func routeList(routes []overlay.Route) string {
	if len(routes) == 0 {
		return "nothing"
	}
	words := make([]string, len(routes))
	for i, r := range routes {
		words[i] = r.Prefix.String()
		if r.Priority != 0 {
			words[i] += fmt.Sprintf(" (priority %d)", r.Priority)
		}
	}
	return strings.Join(words, ", ")
}

func endpointList(endpoints []netip.AddrPort) string {
	if len(endpoints) == 0 {
		return "no known address"
	}
	words := make([]string, len(endpoints))
	for i, e := range endpoints {
		words[i] = e.String()
	}
	return strings.Join(words, ", ")
}

// remaining says how long until t.
func remaining(now, t time.Time) string {
	if !t.After(now) {
		return "over"
	}
	return age(t, now) + " left"
}

// peerTable has a line for every other gateway.
func peerTable(s ctl.Status, before *ctl.Status) *table {
	t := new(table)
	rx, tx := ">RX", ">TX"
	if before != nil {
		rx, tx = ">RX/s", ">TX/s"
	}
	t.head("SITE", "GATEWAY", "STATE", "PATH", ">RTT", ">LOSS", ">MTU", rx, tx, ">AGE")
	for _, p := range s.Peers {
		row := []cell{text(p.Site), text(p.Gateway), stateCell(p), text(pathOf(p))}
		if p.State == overlay.PeerUp {
			row = append(row, text(milliseconds(p.RTT)+" ms"), lossCell(p.Loss))
		} else {
			row = append(row, text(""), text(""))
		}
		mtu := ""
		if p.MTU > 0 {
			mtu = strconv.Itoa(p.MTU)
		}
		received, sent := traffic(p, s, before)
		t.add(append(row, text(mtu), text(received), text(sent), text(age(s.Time, p.Since)))...)
	}
	return t
}

func stateCell(p overlay.PeerStatus) cell {
	switch p.State {
	case overlay.PeerUp:
		return styled(string(p.State), good)
	case overlay.PeerKnown, overlay.PeerLeft:
		return styled(string(p.State), poor)
	default:
		return styled(string(p.State), bad)
	}
}

func pathOf(p overlay.PeerStatus) string {
	switch {
	case !p.Path.IsValid():
		return ""
	case p.Relayed:
		return p.Path.String() + " relayed"
	default:
		return p.Path.String() + " direct"
	}
}

func lossCell(loss float64) cell {
	shown := strconv.FormatFloat(100*loss, 'f', 0, 64) + "%"
	switch {
	case loss >= 0.1:
		return styled(shown, bad)
	case loss > 0:
		return styled(shown, poor)
	}
	return text(shown)
}

// traffic is what p sent and received since its start, or a second since before.
func traffic(p overlay.PeerStatus, s ctl.Status, before *ctl.Status) (received, sent string) {
	if before == nil {
		return size(p.RxBytes), size(p.TxBytes)
	}
	i := slices.IndexFunc(before.Peers, func(old overlay.PeerStatus) bool { return old.ID == p.ID })
	seconds := s.Time.Sub(before.Time).Seconds()
	if i < 0 || seconds <= 0 {
		return "", ""
	}
	old := before.Peers[i]
	return rate(old.RxBytes, p.RxBytes, seconds), rate(old.TxBytes, p.TxBytes, seconds)
}

func rate(before, now uint64, seconds float64) string {
	if now < before { // the session began anew
		before = 0
	}
	return size(uint64(float64(now-before) / seconds))
}

// printProblems prints what is degraded, each with its cure as far as one is known.
func printProblems(w io.Writer, s overlay.Status, more []string, colour bool) {
	var lines []string
	lines = append(lines, s.Warnings...)
	for _, c := range s.Conflicts {
		lines = append(lines, fmt.Sprintf("%v is claimed by %s and by %s: %s has it (%s); one of the two must give it up", c.Prefix, c.Winner, c.Loser, c.Winner, c.Reason))
	}
	for _, r := range s.Refused {
		lines = append(lines, fmt.Sprintf("%v of %s is not installed here: %s", r.Prefix, r.Gateway, r.Reason))
	}
	printLines(w, append(lines, more...), colour)
}

// printLines prints warnings, if there are any.
func printLines(w io.Writer, lines []string, colour bool) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(w)
	for _, line := range lines {
		fmt.Fprintf(w, "%s %s\n", paint("warning:", poor, colour), styled(line, plain).text)
	}
}
