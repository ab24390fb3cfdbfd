// Package cli is what meshd and kubeinit have in common on a command line: exit codes, how an error and the next thing
// to type are printed, what signals do, and whether somebody is watching.
//
// A program's main function is then:
//
//	func main() {
//		ctx, stop := cli.Signals(context.Background())
//		defer stop()
//		os.Exit(cli.Main(ctx, newRoot(), os.Args[1:], cli.OS()))
//	}
//
// Commands return errors and print none. An error that has a cure says so:
//
//	return cli.Hint(err, "meshd init --state "+dir)
//
// and what a checking command found is returned through Faults, a wrong argument through Usage.
package cli
