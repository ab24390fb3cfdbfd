package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/preflight"
)

func newCheck() *cobra.Command {
	var (
		file, firewall string
		asJSON         bool
	)
	cmd := &cobra.Command{
		Use:   "check -f FILE",
		Short: "Look at the hosts and at the ways between them, and name what is wrong",
		Long: `Check changes nothing. It reads the facts of every host and has the hosts measure every way between
them: ports, round trips, loss, MTU and clocks. It prints a grid by site, and for each fault the cause and the cure.
Exit code 3 means that there are faults.

With --firewall it asks no host and prints the rules that open what the cluster needs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			inv, err := readInventory(file)
			if err != nil {
				return err
			}
			std := cli.StdOf(cmd)
			if firewall != "" {
				kind := preflight.FirewallKind(firewall)
				if kind != preflight.FirewallNFT && kind != preflight.FirewallVyOS {
					return cli.Usage(fmt.Errorf("--firewall %s: want %s or %s", firewall, preflight.FirewallNFT, preflight.FirewallVyOS))
				}
				rules, err := preflight.Firewall(inv, kind)
				fmt.Fprint(std.Out, rules)
				return err
			}
			hosts, closeAll, err := connect(ctx, inv, std.Env)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeAll()) }()
			program, err := ownProgram()
			if err != nil {
				return err
			}
			takeBack, err := lend(ctx, hosts, program)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, takeBack(context.WithoutCancel(ctx))) }()
			r, err := observe(ctx, inv, hosts, program, nil)
			if err != nil {
				return err
			}
			faults := preflight.Faults(&r, inv)
			if asJSON {
				err = preflight.RenderJSON(std.Out, &r, faults)
			} else {
				err = preflight.Render(std.Out, &r, inv, faults, cli.IsTerminal(std.Out))
			}
			if err != nil {
				return err
			}
			count := 0
			for _, f := range faults {
				if f.Severity == preflight.SeverityFault {
					count++
				}
			}
			if count > 0 {
				return cli.Faults(fmt.Errorf("faults that keep a cluster from working: %d", count))
			}
			return nil
		},
	}
	addInventory(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&firewall, "firewall", "", "print rules for `KIND`: nft or vyos")
	return cmd
}
