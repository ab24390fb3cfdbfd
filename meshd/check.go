package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Find all faults of a configuration file",
		Long: `Check reads a configuration file as meshd run would, and prints every fault with its line.
It looks at the file alone: no daemon is asked and nothing is changed. Exit code 3 means faults.`,
		Example: "  meshd check " + conf.DefaultFile,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := conf.Load(args[0])
			if faults, ok := errors.AsType[conf.Faults](err); ok {
				return cli.Faults(faults)
			}
			if err != nil {
				return explain(err, &places{config: args[0]})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: no faults\n", args[0])
			return nil
		},
	}
}
