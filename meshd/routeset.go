package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
)

func newRouteSet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "routeset",
		Short: "Announce and route more while the gateway runs",
		Long: `Routeset keeps named sets of prefixes in the running gateway, besides what its configuration says:
prefixes to announce, and routes to those of them that lie behind hosts of a LAN, such as the pods
of Kubernetes nodes.

  {
    "announce": ["10.128.0.0/18"],
    "lan": [
      {"prefix": "10.128.1.0/24", "via": "192.168.10.101"},
      {"prefix": "10.128.2.0/24", "via": "192.168.10.102"}
    ]
  }

What is announced must be granted; "meshd ticket --gateway NAME --prefix CIDR" on the gateway that
makes the tickets grants more. Every prefix of "lan" must lie within something that is announced,
and every host in a network that this gateway is plugged into.

A set is in effect wholly or not at all. It outlives restarts, and goes when it is deleted.`,
	}
	cmd.AddCommand(newRouteSetPut(), newRouteSetList(), newRouteSetShow(), newRouteSetDelete())
	return cmd
}

func newRouteSetPut() *cobra.Command {
	var (
		p      places
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "put NAME [--file FILE]",
		Short:   "Store a route set, in place of the one of that name",
		Example: `  echo '{"announce": ["10.128.0.0/18"]}' | meshd routeset put pods`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := readSet(cmd.InOrStdin(), args[0], file)
			if err != nil {
				return explain(err, &p)
			}
			out, err := p.client().PutRouteSet(cmd.Context(), set)
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			act := "unchanged"
			if out.Changed != nil && *out.Changed {
				act = "in effect"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "route set %s is %s: %s\n", out.Name, act, contents(out.Set))
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "-", "`FILE` with the set as JSON, - for standard input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	p.addRun(cmd)
	return cmd
}

// maxSetFile bounds what is read of a set; a full one has about 20 KiB.
const maxSetFile = 64 << 10

// readSet reads a set from a file, or from stdin if that is "-".
func readSet(stdin io.Reader, name, file string) (routeset.Set, error) {
	if err := routeset.CheckName(name); err != nil {
		return routeset.Set{}, cli.Usage(err)
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return routeset.Set{}, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxSetFile+1))
	if err != nil {
		return routeset.Set{}, err
	}
	if len(b) > maxSetFile {
		return routeset.Set{}, fmt.Errorf("route set %s: more than %d bytes", name, maxSetFile)
	}
	return routeset.Parse(name, b)
}

func newRouteSetList() *cobra.Command {
	var (
		p      places
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show all route sets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := p.client().RouteSets(cmd.Context())
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			printRouteSets(cmd.OutOrStdout(), out.RouteSets, coloured(cmd))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	p.addRun(cmd)
	return cmd
}

func newRouteSetShow() *cobra.Command {
	var (
		p      places
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show what is in a route set",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := p.client().RouteSet(cmd.Context(), args[0])
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			printRouteSet(cmd.OutOrStdout(), out, coloured(cmd))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	p.addRun(cmd)
	return cmd
}

func newRouteSetDelete() *cobra.Command {
	var p places
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Take a route set away",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := p.client().DeleteRouteSet(cmd.Context(), args[0])
			if err != nil {
				return explain(err, &p)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "route set %s is gone: %s\n", out.Name, contents(out.Set))
			return nil
		},
	}
	p.addRun(cmd)
	return cmd
}

// contents says in one line what is in a set.
func contents(s routeset.Set) string {
	var words []string
	if len(s.Announce) > 0 {
		words = append(words, "announces "+joinPrefixes(s.Announce))
	}
	switch n := len(s.LAN); n {
	case 0:
	case 1:
		words = append(words, fmt.Sprintf("routes %v via %v", s.LAN[0].Prefix, s.LAN[0].Via))
	default:
		words = append(words, fmt.Sprintf("routes %d prefixes via hosts of the LAN", n))
	}
	return strings.Join(words, ", ")
}

func printRouteSets(w io.Writer, sets []routeset.Status, colour bool) {
	if len(sets) == 0 {
		fmt.Fprintln(w, "no route sets")
		return
	}
	t := new(table)
	t.head("NAME", "STATE", "ANNOUNCES", ">LAN")
	for _, s := range sets {
		t.add(text(s.Name), setState(s), text(joinPrefixes(s.Announce)), text(fmt.Sprint(len(s.LAN))))
	}
	t.print(w, colour)
	printLines(w, setProblems(sets), colour)
}

func setState(s routeset.Status) cell {
	if s.Problem != "" {
		return styled("refused", bad)
	}
	return styled("in effect", good)
}

// setProblems says which sets are not in effect.
func setProblems(sets []routeset.Status) []string {
	var lines []string
	for _, s := range sets {
		if s.Problem != "" {
			lines = append(lines, s.Problem+"; the set is not in effect")
		}
	}
	return lines
}

func printRouteSet(w io.Writer, s ctl.RouteSet, colour bool) {
	t := new(table)
	t.head("PREFIX", "VIA")
	for _, p := range s.Announce {
		t.add(text(p.String()), text("announced"))
	}
	for _, r := range s.LAN {
		t.add(text(r.Prefix.String()), text(r.Via.String()))
	}
	t.print(w, colour)
	printLines(w, setProblems([]routeset.Status{s.Status}), colour)
}
