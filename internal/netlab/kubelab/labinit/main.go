//go:build linux

// Command labinit makes the machines of package kubelab and runs programs in them. It is built and started by that package.
//
//	labinit boot BOX      stays, and keeps the machine alive: when it ends, in whatever way, the machine loses its power
//	labinit first BOX     is what boot runs as process 1 of the new machine, until it becomes the machine's init
//	labinit enter ENTRY   runs a program in a machine
//
// BOX and ENTRY are JSON, see package boxspec.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "labinit:", err)
		os.Exit(125) // as in env(1): the program was not reached
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("want boot BOX, first BOX or enter ENTRY")
	}
	var box boxspec.Box
	var entry boxspec.Entry
	var into any = &box
	if args[0] == "enter" {
		into = &entry
	}
	if err := json.Unmarshal([]byte(args[1]), into); err != nil {
		return fmt.Errorf("read the argument of %s: %w", args[0], err)
	}
	switch args[0] {
	case "boot":
		return boot(box, args[1])
	case "first":
		return first(box)
	case "enter":
		return enter(entry)
	}
	return fmt.Errorf("no command %q", args[0])
}
