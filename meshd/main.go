// Meshd is the daemon of a site's gateway: it makes the LANs of many sites one
// network. It also founds meshes, hands out tickets and shows what the running
// daemon knows.
//
// docs/operations.md says which command answers which question, and
// docs/configuration.md describes meshd.yaml.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/internal/version"
)

func main() {
	ctx, stop := cli.Signals(context.Background())
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program without its process. It returns the exit code.
func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return cli.Main(ctx, newRoot(), args, cli.Std{In: stdin, Out: stdout, Err: stderr, Env: env})
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "meshd",
		Short: "Join the LANs of many sites into one network",
		Long: `Meshd joins the LANs of many sites into one network, without a centre.

One site founds the mesh, every other one joins it with a ticket:

  site 10$ meshd init --mesh planet --site 10 --prefix 192.168.10.0/24
  site 10$ meshd run &
  site 10$ meshd ticket --site 20 --prefix 192.168.20.0/24
  site 20$ meshd join TICKET
  site 20$ meshd run &

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 faults found.`,
		Version:           version.String(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(
		newInit(), newTicket(), newJoin(), newRun(),
		newStatus(), newRoutes(), newMatrix(), newPing(), newCheck(), newRouteSet(), newVyOS(),
	)
	return root
}
