package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
)

// places are the flags that say where a command finds things. A command has
// those that it registered.
type places struct {
	config string // empty means conf.DefaultFile, if it exists
	state  string // empty means what the configuration says
	run    string

	dir string // the state directory that load decided on
}

func (p *places) addState(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.config, "config", "", "configuration `FILE` (default "+conf.DefaultFile+" if it exists)")
	cmd.Flags().StringVar(&p.state, "state", "", "state `DIR` with keys and certificate (default "+conf.DefaultState+")")
}

func (p *places) addRun(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.run, "run", ctl.DefaultDir, "run `DIR` with the control socket")
}

// load reads the configuration and lets the flags win over it.
func (p *places) load() (*conf.Config, error) {
	var c *conf.Config
	var err error
	if p.config == "" {
		c, err = conf.LoadDefault()
	} else {
		c, err = conf.Load(p.config)
	}
	if err != nil {
		return nil, explain(err, p)
	}
	if p.state != "" {
		if c.State, err = filepath.Abs(p.state); err != nil {
			return nil, err
		}
	}
	p.dir = c.State
	return c, nil
}

// client is a client of the daemon of this host.
func (p *places) client() *ctl.Client { return ctl.NewClient(p.run) }

// flags are those of p that the next command needs too, with a space before
// each: places that are not where everybody looks.
func (p *places) flags() string {
	var b strings.Builder
	if p.config != "" {
		b.WriteString(" --config " + shellWord(p.config))
	}
	if p.state != "" {
		b.WriteString(" --state " + shellWord(p.state))
	}
	return b.String()
}

// shellWord quotes word for a shell where that is needed.
func shellWord(word string) string {
	plain := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("/._-+:,=@%", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// parsePrefixes reads the arguments of --prefix. Anything wrong with them is a
// mistake on the command line, and all of it is reported.
func parsePrefixes(words []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var faults faultList
	for _, word := range words {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(word))
		switch {
		case err != nil:
			faults.add("--prefix %q: want a prefix, such as 192.168.10.0/24", word)
			continue
		case prefix.Addr().Is4In6():
			faults.add("--prefix %v: want the IPv4 prefix, not its IPv6 form", prefix)
			continue
		case prefix != prefix.Masked():
			faults.add("--prefix %v has host bits; want %v", prefix, prefix.Masked())
			continue
		}
		for _, other := range out {
			if other.Overlaps(prefix) {
				faults.add("--prefix %v overlaps --prefix %v; want prefixes that do not overlap", prefix, other)
			}
		}
		out = append(out, prefix)
	}
	return out, faults.usage()
}

// parseEndpoints reads the arguments of --endpoint.
func parseEndpoints(words []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	var faults faultList
	for _, word := range words {
		addr, err := netip.ParseAddrPort(strings.TrimSpace(word))
		switch ip := addr.Addr(); {
		case err != nil || addr.Port() == 0:
			faults.add("--endpoint %q: want ADDRESS:PORT, such as 203.0.113.7:%d", word, overlay.DefaultPort)
		case ip.IsUnspecified(), ip.IsMulticast():
			faults.add("--endpoint %v: want the address of one host", addr)
		default:
			out = append(out, netip.AddrPortFrom(ip.Unmap(), addr.Port()))
		}
	}
	return out, faults.usage()
}

// faultList collects mistakes on a command line.
type faultList []string

func (f *faultList) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// usage is nil without faults, else an error with a line for each.
func (f faultList) usage() error {
	if len(f) == 0 {
		return nil
	}
	return cli.Usage(fmt.Errorf("%s", strings.Join(f, "\n")))
}
