package main

import (
	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/apiproxy"
	"github.com/planetmesh/planetmesh/kubeinit/internal/preflight"
)

// newAgent is what kubeinit runs on hosts.
func newAgent() *cobra.Command {
	agent := &cobra.Command{Use: "agent", Short: "What kubeinit runs on hosts", Hidden: true}
	agent.AddCommand(
		&cobra.Command{
			Use: "probe", Short: "Measure the ways to other hosts, as standard input says", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return preflight.Serve(cmd.Context(), cmd.InOrStdin(), cli.StdOf(cmd).Out)
			},
		},
		&cobra.Command{
			Use: "apiproxy FILE | apiproxy status SOCKET", Short: "Lead connections to an API server", Args: cobra.RangeArgs(1, 2),
			RunE: func(cmd *cobra.Command, args []string) error {
				return apiproxy.Main(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
			},
		},
	)
	return agent
}
