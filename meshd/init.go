package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/overlay"
)

func newInit() *cobra.Command {
	var (
		p        places
		req      overlay.InitRequest
		prefixes []string
	)
	cmd := &cobra.Command{
		Use:   "init --mesh NAME --site SITE --prefix CIDR...",
		Short: "Found a mesh and make this machine its first gateway",
		Long: `Init founds a mesh and makes this machine its first gateway: it writes the keys of the
authority and those of the gateway into the state directory. It prints the recovery secret, this once.

Prefixes are those of the LANs behind this gateway.`,
		Example: "  meshd init --mesh planet --site 10 --prefix 192.168.10.0/24",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Prefixes, err = parsePrefixes(prefixes); err != nil {
				return cli.Hint(err, "meshd init --help")
			}
			c, err := p.load()
			if err != nil {
				return err
			}
			result, err := overlay.Init(overlay.OpenDir(c.State), req)
			if err != nil {
				return explain(err, &p)
			}
			printInit(cmd.OutOrStdout(), &p, c.State, req, result)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Mesh, "mesh", "", "`NAME` of the mesh")
	flags.StringVar(&req.Site, "site", "", "name of this `SITE`")
	flags.StringArrayVar(&prefixes, "prefix", nil, "`CIDR` of a LAN of this site; may be repeated")
	flags.StringVar(&req.Gateway, "gateway", "", "`NAME` of this gateway (default gw-SITE)")
	p.addState(cmd)
	require(cmd, "mesh", "site", "prefix")
	return cmd
}

// require makes flags of cmd necessary. They exist: that is a matter of the
// source alone.
func require(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

func printInit(w io.Writer, p *places, dir string, req overlay.InitRequest, result overlay.InitResult) {
	fmt.Fprintf(w, "mesh %s is founded, and this is its gateway %s of site %s\n\n", req.Mesh, result.Gateway, req.Site)
	fmt.Fprintf(w, "  mesh ID   %s\n", result.MeshID)
	fmt.Fprintf(w, "  prefixes  %s\n", joinPrefixes(req.Prefixes))
	fmt.Fprintf(w, "  state     %s\n\n", dir)
	fmt.Fprintf(w, `RECOVERY SECRET, shown this once and stored nowhere:

  %s

Write it down now and keep it away from this machine. It alone can replace the
keys of the authority if they are lost or stolen.

`, result.Recovery.Reveal())
	fmt.Fprintf(w, "next: meshd run%s\n", p.flags())
	fmt.Fprintf(w, "      meshd ticket%s --site SITE --prefix CIDR   for every further site\n", p.flags())
}

func joinPrefixes(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		words[i] = prefix.String()
	}
	return strings.Join(words, ", ")
}
