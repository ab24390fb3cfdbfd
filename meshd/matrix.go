package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
)

func newMatrix() *cobra.Command {
	var (
		p         places
		asJSON    bool
		hostsFile string
	)
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Show which gateway reaches which, with round trip times",
		Long: `Matrix asks every gateway what it measures to every other one and prints round trip times in
milliseconds: a row is who measured, a column to whom. ✗ means no path, ? that the row's gateway did not
answer within 2 s, – is the gateway itself, and ~ after a number that the path is relayed.

With --hosts every gateway also measures to the hosts in FILE ("-" is standard input), one address a line.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if hostsFile != "" {
				return hostMatrix(cmd, &p, hostsFile, asJSON)
			}
			m, err := p.client().Matrix(cmd.Context())
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			printMatrix(cmd.OutOrStdout(), m, coloured(cmd))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&hostsFile, "hosts", "", "`FILE` with addresses of hosts to measure to, one a line")
	p.addRun(cmd)
	return cmd
}

// hostMatrix prints the matrix of gateways and that of the hosts in a file.
func hostMatrix(cmd *cobra.Command, p *places, path string, asJSON bool) error {
	hosts, err := readHosts(cmd.InOrStdin(), path)
	if err != nil {
		return err
	}
	m, err := p.client().MatrixHosts(cmd.Context(), hosts)
	if err != nil {
		return explain(err, p)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), m)
	}
	gateways, err := p.client().Matrix(cmd.Context())
	if err != nil {
		return explain(err, p)
	}
	printMatrix(cmd.OutOrStdout(), gateways, coloured(cmd))
	fmt.Fprintln(cmd.OutOrStdout())
	printHostMatrix(cmd.OutOrStdout(), m, coloured(cmd))
	return nil
}

// readHosts reads addresses, one a line. What follows "#" is a comment.
func readHosts(stdin io.Reader, path string) ([]netip.Addr, error) {
	in, name := stdin, "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read hosts: %w", err)
		}
		defer f.Close()
		in, name = f, path
	}
	var hosts []netip.Addr
	var faults []error
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		word, _, _ := strings.Cut(lines.Text(), "#")
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		addr, err := netip.ParseAddr(word)
		switch addr = addr.Unmap(); {
		case err != nil || addr.Zone() != "":
			faults = append(faults, fmt.Errorf("%s:%d: %q; want an address, such as 192.168.20.101", name, n, word))
		case !slices.Contains(hosts, addr):
			hosts = append(hosts, addr)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(faults) == 0 && len(hosts) == 0 {
		faults = append(faults, fmt.Errorf("%s: no addresses; want one a line", name))
	}
	if len(hosts) > ctl.MaxHosts {
		faults = append(faults, fmt.Errorf("%s: %d hosts; want at most %d", name, len(hosts), ctl.MaxHosts))
	}
	return hosts, errors.Join(faults...)
}

func printMatrix(w io.Writer, m overlay.Matrix, colour bool) {
	t := new(table)
	head := []string{"FROM \\ TO"}
	for _, g := range m.Gateways {
		head = append(head, ">"+g.Gateway)
	}
	t.head(head...)
	for i, g := range m.Gateways {
		t.add(append([]cell{text(g.Gateway)}, cells(m.Cells, i, len(m.Gateways))...)...)
	}
	t.print(w, colour)
}

// printHostMatrix has a row for every host, because there are more hosts than
// gateways.
func printHostMatrix(w io.Writer, m overlay.HostMatrix, colour bool) {
	t := new(table)
	head := []string{"HOST \\ FROM"}
	for _, g := range m.Gateways {
		head = append(head, ">"+g.Gateway)
	}
	t.head(head...)
	for j, host := range m.Hosts {
		row := []cell{text(host.String())}
		for i := range m.Gateways {
			row = append(row, cells(m.Cells, i, len(m.Hosts))[j])
		}
		t.add(row...)
	}
	t.print(w, colour)
}

// cells are the n cells of row i. What another version of meshd left out is
// unknown.
func cells(rows [][]overlay.MatrixCell, i, n int) []cell {
	out := make([]cell, n)
	for j := range out {
		out[j] = styled("?", poor)
		if i < len(rows) && j < len(rows[i]) {
			out[j] = matrixCell(rows[i][j])
		}
	}
	return out
}

func matrixCell(c overlay.MatrixCell) cell {
	switch c.State {
	case overlay.CellSelf:
		return styled("–", dim)
	case overlay.CellDown:
		return styled("✗", bad)
	case overlay.CellUp:
		shown := milliseconds(c.RTT)
		if c.Relayed {
			shown += "~"
		}
		return styled(shown, good)
	default:
		return styled("?", poor)
	}
}
