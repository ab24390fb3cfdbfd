package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// NoSwap checks that the host does not swap, which the kubelet refuses by default.
func NoSwap() Check {
	return Check{Name: "no swap", Look: func(ctx context.Context, h host.Host) error {
		data, err := h.ReadFile(ctx, "/proc/swaps")
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a kernel without swap
		}
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		if len(lines) < 2 {
			return nil
		}
		var where []string
		for _, line := range lines[1:] {
			if f := strings.Fields(line); len(f) > 0 {
				where = append(where, f[0])
			}
		}
		return cli.Hint(fmt.Errorf("%s: swap is on: %s", h.Name(), strings.Join(where, ", ")),
			"swapoff -a on "+h.Name()+", and remove the swap lines from its /etc/fstab")
	}}
}

// Program is an installed program of which the version matters.
type Program struct {
	// Args print the version: kubelet --version.
	Args []string
	// Want is what the first line of the output must contain: "v1.37.".
	Want string
}

// Preinstalled checks that programs are there, in the right versions, on a host
// where others install them.
func Preinstalled(programs ...Program) Check {
	var names []string
	for _, p := range programs {
		names = append(names, p.Args[0])
	}
	return Check{Name: "installed " + strings.Join(names, ", "), Look: func(ctx context.Context, h host.Host) error {
		var errs []error
		for _, p := range programs {
			errs = append(errs, p.look(ctx, h))
		}
		return errors.Join(errs...)
	}}
}

func (p Program) look(ctx context.Context, h host.Host) error {
	out, err := h.Run(ctx, host.Command{Args: p.Args})
	if exit, ran := errors.AsType[*host.ExitError](err); ran && exit.Code == 127 {
		return cli.Hint(fmt.Errorf("%s: %s is not installed", h.Name(), p.Args[0]),
			fmt.Sprintf("install %s %s on %s, or set source to apt or bundle in the inventory", p.Args[0], p.Want, h.Name()))
	}
	if err != nil {
		return err
	}
	if line := firstLine(out.Stdout + out.Stderr); !strings.Contains(line, p.Want) {
		return cli.Hint(fmt.Errorf("%s: %s is %q and must be %s", h.Name(), p.Args[0], line, p.Want),
			fmt.Sprintf("install another version of %s on %s, or another one of the cluster in the inventory", p.Args[0], h.Name()))
	}
	return nil
}
