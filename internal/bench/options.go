//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
)

// options are what the command line says.
type options struct {
	suite    suite
	rounds   int
	duration time.Duration // of one throughput measurement
	variants []string      // in the order of the table
	out      string        // file whose generated part is replaced; empty means none
	bind     bool          // compare our Bind with the library's
	quick    bool          // shortest run that touches everything
	profiles string        // folder for CPU profiles of our endpoints; empty means none
	args     []string      // as given, for the report
}

// defaultOut is what a complete run changes.
const defaultOut = "docs/performance.md"

// parse reads the command line. Only a complete run writes a file without
// being told to.
func parse(args []string) (options, error) {
	o := options{args: args}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "rounds over all variants")
	flags.DurationVar(&o.duration, "duration", 2*time.Second, "length of one throughput measurement")
	flags.BoolVar(&o.bind, "bind", true, "compare our Bind with the library's as well")
	flags.BoolVar(&o.quick, "quick", false, "smoke test: one round of 300 ms each; the figures mean nothing")
	flags.StringVar(&o.out, "out", defaultOut, "file whose generated part is replaced; empty: none; quick and partial runs need it to be given")
	flags.StringVar(&o.profiles, "profiles", "", "folder for CPU profiles of our OpenVPN endpoints; the last round's stay")
	name := flags.String("suite", gateways.name, "what is measured: "+gateways.name+" or "+endpoints.name)
	chosen := flags.String("variants", "", "what is compared, comma-separated; empty: all of the suite")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, cli.Usage(err)
	}
	if flags.NArg() > 0 {
		return o, cli.Usage(fmt.Errorf("argument %q is not understood", flags.Arg(0)))
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if o.quick && !given["rounds"] {
		o.rounds = 1
	}
	if o.quick && !given["duration"] {
		o.duration = 300 * time.Millisecond
	}
	if o.rounds < 1 || o.duration <= 0 {
		return o, cli.Usage(fmt.Errorf("%d rounds of %v: both must be positive", o.rounds, o.duration))
	}
	var known bool
	if o.suite, known = suites[*name]; !known {
		return o, cli.Usage(fmt.Errorf("suite %q is not known", *name))
	}
	if err := o.choose(*chosen, given["variants"]); err != nil {
		return o, cli.Usage(err)
	}
	withBind := o.bind
	o.bind = o.bind && o.suite.bind
	if !given["out"] && (o.quick || !withBind || len(o.variants) < len(o.suite.order())) {
		o.out = ""
	}
	return o, nil
}

// choose takes a comma-separated list of variants, or all if none is given.
func (o *options) choose(list string, given bool) error {
	order := o.suite.order()
	if !given {
		o.variants = order
		return nil
	}
	names := strings.Split(list, ",")
	for _, name := range names {
		if _, ok := o.suite.variants[name]; !ok {
			return fmt.Errorf("variant %q is not one of %s", name, strings.Join(order, ", "))
		}
	}
	for _, name := range order {
		if slices.Contains(names, name) {
			o.variants = append(o.variants, name)
		}
	}
	return nil
}

// limit is how long a whole run may take: everything in it has a limit of its
// own, this is for what nobody thought of.
func (o options) limit() time.Duration {
	one := upTimeout + pingTimeout + time.Duration(len(flows))*(o.duration+5*time.Second)
	return 5*time.Minute + time.Duration(o.rounds*len(o.variants))*one
}

// command is what has to be typed for the same run.
func (o options) command() string {
	if len(o.args) == 0 || slices.Equal(o.args, []string{"-suite", o.suite.name}) {
		return o.suite.target
	}
	return "go run ./internal/bench " + strings.Join(o.args, " ")
}
