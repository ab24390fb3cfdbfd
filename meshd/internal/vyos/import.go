package vyos

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

// ImportOptions is what a router's configuration does not say.
type ImportOptions struct {
	Version   Version        // 0 means to tell it from the commands
	Interface string         // vtunN of the tunnel to take; empty means the first
	Router    string         // address or name of the router, as the gateway reaches it; empty means what the router says, or to learn it
	Prefixes  []netip.Prefix // behind the router; empty means to guess them from its interfaces
	Now       time.Time      // when certificates are judged; zero means not to
}

// Imported is a router's site-to-site tunnels as attachments.
type Imported struct {
	Version Version
	// Config is a meshd.yaml with the list openvpn. One tunnel is in force;
	// others of the same router are comments, because each belongs to another
	// gateway.
	Config []byte
	// Files are the key files that Config names and that the router's
	// configuration had.
	Files []File
	// Missing are the files that Config names and that must come from elsewhere.
	Missing []Missing
	// Warnings are about lines of the router.
	Warnings []Warning
	// Tunnels are the interfaces that were understood, in their order.
	Tunnels []string
}

// File is a file beside meshd.yaml, for its owner's eyes.
type File struct {
	Name string
	Data []byte
}

// Format writes the name only.
func (f File) Format(s fmt.State, _ rune) { fmt.Fprint(s, f.Name) }

// Missing is a file that somebody has to bring.
type Missing struct {
	Name string
	From string // where it is or how to make it
}

// Warning is something about a line of the router's configuration.
type Warning struct {
	Line int // 0 means the whole file
	Text string
	Cure string // what to do; may be empty
}

// ErrNoTunnels says that a configuration has no site-to-site tunnel that could
// be taken over. The warnings say why.
var ErrNoTunnels = errors.New("no site-to-site tunnel to take over")

// ErrNoCommands says that a text has no commands at all.
var ErrNoCommands = errors.New("no commands in it")

// Import reads the output of "show configuration commands" of a router. The
// error is ErrNoCommands or ErrNoTunnels; the result has the warnings all the
// same. Secrets are in Files alone.
func Import(text string, o ImportOptions) (*Imported, error) {
	im := &importer{out: new(Imported), options: o}
	var commands int
	im.root, commands = parse(text, func(line int, problem string) { im.warn(line, "", "%s", problem) })
	if commands == 0 {
		return im.out, ErrNoCommands
	}
	im.version()
	im.findPrefixes()
	im.tunnels()
	im.write()
	slices.SortStableFunc(im.out.Warnings, func(a, b Warning) int { return a.Line - b.Line })
	if len(im.out.Tunnels) == 0 {
		return im.out, ErrNoTunnels
	}
	return im.out, nil
}

// importer is the state of one import.
type importer struct {
	root     *node
	options  ImportOptions
	out      *Imported
	prefixes []netip.Prefix
	guessed  string // where prefixes are from; empty if they were given
	entries  []*entry
}

func (im *importer) warn(line int, cure, format string, args ...any) {
	im.out.Warnings = append(im.out.Warnings, Warning{line, fmt.Sprintf(format, args...), cure})
}

// version tells the release line from commands that only some have.
func (im *importer) version() {
	im.out.Version = im.options.Version
	if im.out.Version != 0 {
		return
	}
	lowest, highest, line := V12, V15, 0
	found := func(n *node, low, high Version) {
		if n != nil {
			lowest, highest, line = max(lowest, low), min(highest, high), n.line
		}
	}
	all := im.root.get("interfaces", "openvpn")
	for _, name := range all.values() {
		t := all.get(name)
		for _, word := range t.get("encryption").values() {
			if _, is := cipherNamed(word); is || word == "des" || word == "bf256" {
				found(t.get("encryption"), V12, V12)
			}
		}
		found(t.get("encryption", "cipher"), V13, V15)
		found(t.get("encryption", "data-ciphers-fallback"), V15, V15)
		found(t.get("shared-secret-key-file"), V12, V13)
		found(t.get("shared-secret-key"), V14, V15)
		found(t.get("tls", "cert-file"), V12, V13)
		found(t.get("tls", "crypt-file"), V13, V13)
		found(t.get("tls", "certificate"), V14, V15)
		found(t.get("tls", "peer-fingerprint"), V14, V15)
		found(t.get("ip-version"), V15, V15)
	}
	found(im.root.get("pki"), V14, V15)
	found(im.root.get("protocols", "static", "interface-route"), V12, V13)
	found(im.root.get("protocols", "static", "interface-route6"), V12, V13)
	found(im.root.get("firewall", "ipv4"), V14, V15)
	switch {
	case lowest > highest:
		im.warn(line, "--vyos-version", "this line and others are of different vyos versions; taken for %v", lowest)
		im.out.Version = lowest
	case lowest == highest:
		im.out.Version = lowest
	case highest == V13:
		// Of the two, 1.3 is the one whose keepalive counts are misread.
		im.warn(0, "--vyos-version 1.2 or 1.3", "vyos 1.2 and 1.3 look the same here; taken for 1.3, whose failure-count is in seconds")
		im.out.Version = V13
	case lowest == V14:
		im.out.Version = V14
	default:
		im.warn(0, "--vyos-version 1.2, 1.3, 1.4 or 1.5", "nothing here tells the version of vyos; taken for 1.4")
		im.out.Version = V14
	}
}

// findPrefixes finds what is behind the router: the private networks of its
// other interfaces.
func (im *importer) findPrefixes() {
	im.prefixes = im.options.Prefixes
	if len(im.prefixes) > 0 {
		return
	}
	var names []string
	for _, kind := range im.root.get("interfaces").values() {
		switch kind {
		case "openvpn", "tunnel", "wireguard", "vti", "dummy", "loopback", "pppoe", "l2tpv3", "vxlan", "geneve", "sstpc":
			continue
		}
		all := im.root.get("interfaces", kind)
		for _, name := range all.values() {
			for _, found := range lans(all.get(name)) {
				if !im.isUplink(found) && im.addPrefix(found) {
					names = append(names, name)
				}
			}
		}
	}
	im.guessed = strings.Join(slices.Compact(names), ", ")
	if len(im.prefixes) > 0 {
		im.warn(0, "check them in the output, or name them with --prefix", "prefixes behind the router were guessed from %s: %s", im.guessed, joinPrefixes(im.prefixes))
	}
}

// isUplink reports whether p is on the way out: the default gateway is in it,
// or the address that tunnels begin at.
func (im *importer) isUplink(p netip.Prefix) bool {
	var out []string
	for _, route := range []*node{
		im.root.get("protocols", "static", "route", "0.0.0.0/0", "next-hop"),
		im.root.get("protocols", "static", "route6", "::/0", "next-hop"),
		im.root.get("system", "gateway-address"), // of 1.2
	} {
		out = append(out, route.values()...)
	}
	all := im.root.get("interfaces", "openvpn")
	for _, name := range all.values() {
		out = append(out, all.get(name, "local-host").values()...)
	}
	return slices.ContainsFunc(out, func(word string) bool {
		addr, err := netip.ParseAddr(word)
		return err == nil && p.Contains(addr)
	})
}

// addPrefix adds p unless it is in what is there or around it.
func (im *importer) addPrefix(p netip.Prefix) bool {
	for _, other := range im.prefixes {
		if other.Overlaps(p) {
			return false
		}
	}
	im.prefixes = append(im.prefixes, p)
	return true
}

// lans are the private networks of an interface and its VLANs.
func lans(n *node) []netip.Prefix {
	var out []netip.Prefix
	for _, word := range n.get("address").values() {
		p, err := netip.ParsePrefix(word)
		single := err != nil || p.Bits() == p.Addr().BitLen()
		if !single && p.Addr().IsPrivate() && !p.Addr().Is4In6() {
			out = append(out, p.Masked())
		}
	}
	for _, kind := range []string{"vif", "vif-s", "vif-c"} {
		vifs := n.get(kind)
		for _, id := range vifs.values() {
			out = append(out, lans(vifs.get(id))...)
		}
	}
	return out
}

// tunnels reads every interface.
func (im *importer) tunnels() {
	all := im.root.get("interfaces", "openvpn")
	names := all.values()
	if im.options.Interface != "" && !slices.Contains(names, im.options.Interface) {
		im.warn(0, "", "there is no interface %s", im.options.Interface)
	}
	for _, name := range names {
		if im.options.Interface != "" && name != im.options.Interface {
			continue
		}
		e := &entry{im: im, node: all.get(name), iface: name}
		if !e.read() {
			continue
		}
		im.entries = append(im.entries, e)
		im.out.Tunnels = append(im.out.Tunnels, name)
	}
	im.shared(all)
}

// shared warns about tunnels with one key or one port.
func (im *importer) shared(all *node) {
	keys, ports := make(map[string]string), make(map[string]string)
	for _, name := range all.values() {
		t := all.get(name)
		for _, word := range []string{"shared-secret-key", "shared-secret-key-file"} {
			key, line := t.value(word)
			if other := keys[word+key]; key != "" && other != "" {
				im.warn(line, "a key of its own for each", "%s has the key of %s; each decrypts what is for the other", name, other)
			}
			keys[word+key] = name
		}
		port, line := t.value("local-port")
		protocol, _ := t.value("protocol")
		if other := ports[protocol+port]; port != "" && other != "" {
			im.warn(line, "a port of its own for each", "%s has the port of %s", name, other)
		}
		ports[protocol+port] = name
	}
}

// write makes the configuration file.
func (im *importer) write() {
	var b strings.Builder
	fmt.Fprintf(&b, "# From the configuration of a VyOS %v router.\n", im.out.Version)
	if im.guessed != "" {
		fmt.Fprintf(&b, "# The prefixes were guessed from %s. The gateway's certificate must grant them.\n", im.guessed)
	}
	for i, e := range im.entries {
		text := e.yaml()
		if i == 0 {
			b.WriteString("openvpn:\n" + text)
			im.out.Files, im.out.Missing = e.files, e.missing
			continue
		}
		fmt.Fprintf(&b, "\n# Another tunnel of the router, for the gateway at its far end (--interface %s gives its file):\n", e.iface)
		for line := range strings.Lines(text) {
			b.WriteString("# " + line)
		}
	}
	if len(im.entries) > 0 {
		im.out.Config = []byte(b.String())
	}
}

// faults are what conf says about the entry alone.
func (e *entry) faults() conf.Faults {
	_, err := conf.Parse("meshd.yaml", []byte("openvpn:\n"+e.yaml()))
	faults, _ := errors.AsType[conf.Faults](err)
	return faults
}
