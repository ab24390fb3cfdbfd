package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/steps"
)

func newStatus() *cobra.Command {
	var (
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status -f FILE",
		Short: "Show nodes, members of etcd, the endpoint and certificates",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			inv, err := readInventory(file)
			if err != nil {
				return err
			}
			hosts, closeAll, err := connect(cmd.Context(), inv, cli.StdOf(cmd).Env)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeAll()) }()
			s := steps.ReadStatus(cmd.Context(), inv, hosts)
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				if err := e.Encode(s); err != nil {
					return err
				}
			} else {
				printStatus(cmd, s)
			}
			var faults []error
			for _, f := range s.Faults() {
				faults = append(faults, errors.New(f))
			}
			return cli.Faults(errors.Join(faults...))
		},
	}
	addInventory(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(cmd *cobra.Command, s steps.Status) {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tADDRESS\tKUBELET\tAPI\tCERTIFICATES")
	for _, n := range s.Nodes {
		state := "ready"
		switch {
		case !n.Joined:
			state = "absent"
		case !n.Ready:
			state = "not ready"
		}
		api, end := "–", "–"
		if n.Endpoint > 0 {
			api = n.Endpoint.Round(time.Millisecond).String()
		}
		if !n.Certificate.IsZero() {
			end = fmt.Sprintf("until %s (%d days)", n.Certificate.Format(time.DateOnly), int(time.Until(n.Certificate).Hours()/24))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, state, orDash(n.Address), orDash(n.Kubelet), api, end)
	}
	fmt.Fprintln(w, "\nETCD MEMBER\tID\tROLE")
	for _, m := range s.Members {
		role := "voter"
		if m.Learner {
			role = "learner"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", m.Name, m.ID, role)
	}
	_ = w.Flush() // cli remembers what goes wrong
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}
