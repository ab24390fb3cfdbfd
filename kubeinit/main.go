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
	return &cobra.Command{
		Use:               "kubeinit",
		Short:             "Build one Kubernetes cluster over the sites of a mesh",
		Version:           version.String(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
}
