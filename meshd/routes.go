package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
)

func newRoutes() *cobra.Command {
	var (
		p      places
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Show which prefix is reached through which gateway, and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			routes, err := p.client().Routes(cmd.Context())
			if err != nil {
				return explain(err, &p)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), routes)
			}
			printRoutes(cmd.OutOrStdout(), routes, coloured(cmd))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	p.addRun(cmd)
	return cmd
}

func printRoutes(w io.Writer, r ctl.Routes, colour bool) {
	t := new(table)
	t.head("PREFIX", "SITE", "VIA", "STANDBY", "WHY")
	for _, route := range r.Routes {
		via := route.Gateway
		if route.Local {
			via += " (here)"
		}
		t.add(text(route.Prefix.String()), text(route.Site), text(via), text(strings.Join(route.Standby, ", ")), text(route.Why))
	}
	if len(r.Routes) == 0 {
		fmt.Fprintln(w, "no routes: no gateway announces a prefix")
	} else {
		t.print(w, colour)
	}
	printProblems(w, overlay.Status{Conflicts: r.Conflicts, Refused: r.Refused}, nil, colour)
}
