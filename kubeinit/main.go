// Kubeinit builds a real, highly available kubeadm cluster across the sites of
// a mesh, over SSH, from one inventory file.
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
		Use:   "kubeinit",
		Short: "Build one Kubernetes cluster over the sites of a mesh",
		Long: `Kubeinit builds a real, highly available Kubernetes cluster with kubeadm, over SSH, from one inventory
file. It may be run again at any time: it changes what differs, and nothing else.

  kubeinit check -f cluster.yaml     what would keep the cluster from working, with causes and cures
  kubeinit plan -f cluster.yaml      what apply would change
  kubeinit apply -f cluster.yaml     build it, or bring it to what the inventory says
  kubeinit status -f cluster.yaml    nodes, etcd, endpoint and certificates
  kubeinit reset -f cluster.yaml     take it back, on some hosts or all

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 faults found.`,
		Version:           version.String(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(newCheck(), newPlan(), newApply(), newStatus(), newReset(), newAgent())
	return root
}
