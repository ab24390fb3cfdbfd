package preflight

import (
	"context"
	_ "embed" // the script
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Facts are what a host says about itself.
type Facts struct {
	Hostname  string `json:"hostname"`
	OS        string `json:"os"` // as the distribution names it
	Kernel    string `json:"kernel"`
	Arch      string `json:"arch"` // as uname -m says it
	PID1      string `json:"pid1"` // name of the first process
	MachineID string `json:"machineID,omitempty"`
	UUID      string `json:"uuid,omitempty"` // of the hardware; empty if it has none

	CgroupVersion int      `json:"cgroupVersion"` // 1 or 2
	Controllers   []string `json:"controllers,omitempty"`
	Swap          []string `json:"swap,omitempty"` // devices and files
	// Memory, MemoryAvailable, Disk and DiskFree are bytes; the disk is that of /var/lib.
	Memory          int64 `json:"memory"`
	MemoryAvailable int64 `json:"memoryAvailable"`
	Disk            int64 `json:"disk"`
	DiskFree        int64 `json:"diskFree"`
	CPUs            int   `json:"cpus"`

	Addresses []Address `json:"addresses,omitempty"`
	// MACs are the hardware addresses by interface.
	MACs        map[string]string `json:"macs,omitempty"`
	Routes      []HostRoute       `json:"routes,omitempty"`
	Forwarding  bool              `json:"forwarding"`
	Nameservers []string          `json:"nameservers,omitempty"`
	// Upstreams are the name servers behind systemd-resolved.
	Upstreams []string `json:"upstreams,omitempty"`

	// Listening is what has TCP ports open.
	Listening []Listener `json:"listening,omitempty"`
	// ForwardDrops are chains that drop what they do not know on its way through the host.
	ForwardDrops []Chain `json:"forwardDrops,omitempty"`
	// Firewalls are firewalld and ufw, where active.
	Firewalls []string `json:"firewalls,omitempty"`

	// Versions are what programs say of themselves; a program that is missing is
	// not there.
	Versions map[string]string `json:"versions,omitempty"`
	Modules  map[string]string `json:"modules,omitempty"` // present, loadable, missing
	Units    map[string]Unit   `json:"units,omitempty"`

	// Leftovers are files of a cluster; Ours says that kubeinit has worked here.
	Leftovers []string `json:"leftovers,omitempty"`
	Ours      bool     `json:"ours,omitempty"`
	// Mesh is the state of meshd, nil where it does not run.
	Mesh *Mesh `json:"mesh,omitempty"`
}

// Address is an address of an interface.
type Address struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix"`
	// Refused says that the kernel found another machine with it (IPv6).
	Refused bool `json:"refused,omitempty"`
}

// HostRoute is a route of a host's main table.
type HostRoute struct {
	Prefix netip.Prefix `json:"prefix"` // of length 0 for a default route
	Via    netip.Addr   `json:"via,omitzero"`
	Device string       `json:"device,omitempty"`
	// Protocol is who made it: kernel, static, bird or a number.
	Protocol string `json:"protocol,omitempty"`
}

// Listener is an open TCP port.
type Listener struct {
	Addr    netip.Addr `json:"addr"` // unspecified for all
	Port    uint16     `json:"port"`
	Process string     `json:"process,omitempty"` // empty if not known
}

// Chain is a base chain of nftables, or of the old iptables.
type Chain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Chain  string `json:"chain"`
}

// Unit is a unit of systemd.
type Unit struct {
	Active  string `json:"active"`
	Enabled string `json:"enabled"`
}

//go:embed facts.sh
var factsScript string

// FactsError lists what could not be understood of what a host said.
type FactsError struct {
	Host   string
	Faults []string
}

// Error names the first faults.
func (e *FactsError) Error() string {
	const shown = 5
	text := strings.Join(e.Faults[:min(len(e.Faults), shown)], "; ")
	if more := len(e.Faults) - shown; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return fmt.Sprintf("facts of %s: %s", e.Host, text)
}

// Gather reads the facts of a host with one shell script, which changes nothing. The
// error is *FactsError if parts were not understood; the rest of the facts is returned
// with it. With any other error there are no facts.
func Gather(ctx context.Context, h host.Host) (*Facts, error) {
	out, err := h.Run(ctx, host.Command{Args: []string{"sh", "-s"}, Stdin: strings.NewReader(factsScript), Limit: maxFacts})
	if err != nil {
		return nil, fmt.Errorf("read facts of %s: %w", h.Name(), err)
	}
	f, faults := parseFacts(out.Stdout)
	if len(faults) > 0 {
		return f, &FactsError{Host: h.Name(), Faults: faults}
	}
	return f, nil
}

// Bounds of what a host may say.
const (
	maxFacts  = 4 << 20 // bytes
	maxEntry  = 4096    // of a list
	maxValue  = 4096    // bytes of one value, but for that of meshd
	maxFaults = 100
)

// factsParser reads the output of the script.
type factsParser struct {
	f      *Facts
	faults []string
	table  Chain // of nftables, at the current line
	entry  int
	old    bool // an old forward chain drops
}

// parseFacts understands what it can and says what it could not.
func parseFacts(text string) (*Facts, []string) {
	p := &factsParser{
		f: &Facts{Versions: map[string]string{}, Modules: map[string]string{}, Units: map[string]Unit{}, MACs: map[string]string{}},
	}
	var last string
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		key, value, ok := strings.Cut(line, "\t")
		if n == 0 && line != "facts\t1" {
			p.fault(n, "want facts 1")
		}
		if last = line; n == 0 {
			continue
		}
		if !ok || len(value) > maxValue && key != "mesh" {
			p.fault(n, "no key, or a value of more than 4096 bytes: %.80q", line)
			continue
		}
		if p.entry++; p.entry > 20*maxEntry {
			p.fault(n, "too many lines")
			break
		}
		if err := p.line(key, value); err != nil {
			p.fault(n, "%s: %w", key, err)
		}
	}
	if last != "end\t1" {
		p.faults = append(p.faults, "the end is missing")
	}
	p.finish()
	return p.f, p.faults
}

func (p *factsParser) fault(line int, format string, args ...any) {
	if len(p.faults) < maxFaults {
		p.faults = append(p.faults, fmt.Errorf("line %d: "+format, append([]any{line + 1}, args...)...).Error())
	}
}

// finish makes what needs all lines.
func (p *factsParser) finish() {
	if p.f.Units["firewalld"].Active == "active" {
		p.f.Firewalls = append(p.f.Firewalls, "firewalld")
	}
	if p.old {
		p.f.ForwardDrops = append(p.f.ForwardDrops, Chain{"ip", "filter", "FORWARD"})
	}
}

// line takes one fact.
func (p *factsParser) line(key, value string) (err error) {
	f := p.f
	switch key {
	case "hostname":
		f.Hostname = value
	case "kernel":
		f.Kernel = value
	case "arch":
		f.Arch = value
	case "os":
		if name, ok := strings.CutPrefix(value, "PRETTY_NAME="); ok {
			f.OS = strings.Trim(name, `"'`)
		}
	case "pid1":
		f.PID1 = value
	case "machineid":
		f.MachineID = value
	case "uuid":
		f.UUID = strings.ToLower(value)
	case "cgroup":
		f.CgroupVersion = 1
		if value == "cgroup2fs" {
			f.CgroupVersion = 2
		}
	case "cgroupv2":
		f.Controllers = append(f.Controllers, strings.Fields(value)...)
	case "cgroupv1":
		err = add(&f.Controllers, value)
	case "swap":
		err = add(&f.Swap, value)
	case "memory", "cpus", "disk":
		err = p.amount(key, value)
	case "address", "link", "route", "route6", "listen", "nft", "legacy":
		err = p.network(key, value)
	case "forward":
		f.Forwarding = value == "1"
	case "resolv", "upstream":
		err = p.nameserver(key, value)
	case "version", "module", "unit":
		err = p.software(key, value)
	case "ufw":
		err = add(&f.Firewalls, "ufw")
	case "leftover":
		err = add(&f.Leftovers, value)
	case "ours":
		f.Ours = true
	case "mesh":
		f.Mesh, err = parseMesh([]byte(value))
	case "nftrun", "end":
	case "missing":
		err = fmt.Errorf("%.40q is not installed", value)
	default:
		err = fmt.Errorf("unknown key")
	}
	return err
}

func add(list *[]string, value string) error {
	if len(*list) >= maxEntry {
		return fmt.Errorf("more than %d entries", maxEntry)
	}
	*list = append(*list, value)
	return nil
}

func (p *factsParser) amount(key, value string) error {
	fields := strings.Fields(value)
	numbers := make([]int64, 0, 2)
	for _, field := range fields {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && n >= 0 && n < 1<<50 {
			numbers = append(numbers, n)
		}
	}
	f := p.f
	switch {
	case key == "cpus" && len(numbers) == 1 && numbers[0] < 1<<20:
		f.CPUs = int(numbers[0])
	case key == "disk" && len(numbers) == 2:
		f.Disk, f.DiskFree = numbers[0]<<10, numbers[1]<<10
	case key == "memory" && len(numbers) == 1 && fields[0] == "MemTotal:":
		f.Memory = numbers[0] << 10
	case key == "memory" && len(numbers) == 1 && fields[0] == "MemAvailable:":
		f.MemoryAvailable = numbers[0] << 10
	default:
		return fmt.Errorf("%.80q has no such form", value)
	}
	return nil
}

func (p *factsParser) nameserver(key, value string) error {
	fields := strings.Fields(value)
	if len(fields) < 2 {
		return fmt.Errorf("%.80q names no server", value)
	}
	if key == "resolv" {
		return add(&p.f.Nameservers, fields[1])
	}
	return add(&p.f.Upstreams, fields[1])
}

func (p *factsParser) software(key, value string) error {
	name, rest, _ := strings.Cut(value, " ")
	f := p.f
	if len(f.Versions)+len(f.Modules)+len(f.Units) > maxEntry {
		return fmt.Errorf("more than %d entries", maxEntry)
	}
	switch key {
	case "version":
		f.Versions[name] = findVersion(rest)
	case "module":
		f.Modules[name] = rest
	case "unit":
		active, enabled, _ := strings.Cut(rest, " ")
		f.Units[name] = Unit{active, enabled}
	}
	return nil
}

// findVersion returns the first word that looks like a version, without its "v".
func findVersion(text string) string {
	for word := range strings.FieldsSeq(text) {
		word = strings.TrimPrefix(word, "v")
		if strings.Contains(word, ".") && word[0] >= '0' && word[0] <= '9' {
			return strings.TrimRight(word, ",")
		}
	}
	return ""
}
