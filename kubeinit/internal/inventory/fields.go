package inventory

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Bounds of lists. They bound the work of the checks, and are far above what
// one control plane can bear.
const (
	maxHosts    = 1000
	maxSites    = 64
	maxPrefixes = 64  // per site; the limit of a mesh record (docs/protocol.md, section 2)
	maxNames    = 100 // in one certificate
	maxPerHost  = 64  // labels, taints, roles
)

const (
	wantName    = "a DNS label: lower-case letters, digits and \"-\", at most 63, such as master01"
	wantPrefix  = "a prefix, such as 192.168.10.0/24 or 2001:db8:10::/64"
	wantAddress = "an address, such as 192.168.10.101"
	wantVersion = "1.34, 1.35, 1.36 or 1.37, with or without a patch, such as 1.37 or 1.37.2"
	wantJump    = "the name of a host, or user@address:port"
	wantTaint   = "key=value:Effect or key:Effect, where Effect is NoSchedule, PreferNoSchedule or NoExecute"
)

func (p *parser) inventory(inv *Inventory, root *yaml.Node) {
	p.mapping(root, "", "", []key{
		{"cluster", "\"cluster:\" with at least a name", func(n *yaml.Node, f string) { p.cluster(n, f, &inv.Cluster) }},
		{"sites", "a list of sites", func(n *yaml.Node, f string) {
			p.list(n, f, "a list of sites", maxSites, func(n *yaml.Node, f string) {
				inv.Sites = append(inv.Sites, p.site(n, f))
			})
		}},
		{"hosts", "a list of hosts", func(n *yaml.Node, f string) {
			p.list(n, f, "a list of hosts", maxHosts, func(n *yaml.Node, f string) {
				inv.Hosts = append(inv.Hosts, p.host(n, f))
			})
		}},
	})
}

func (p *parser) cluster(n *yaml.Node, field string, c *Cluster) {
	p.mapping(n, field, "\"name:\" and more below it", []key{
		{"name", "a DNS label, which also names the endpoint api.NAME", p.name(&c.Name)},
		{"version", "", p.version(&c.Version)},
		{"endpoint", "", word(p, &c.Endpoint, EndpointProxy, EndpointHAProxy)},
		{"externalNames", "", func(n *yaml.Node, f string) { c.ExternalNames = p.externalNames(n, f) }},
		{"podSupernet", "", p.prefix(&c.PodSupernet)},
		{"serviceSubnet", "", p.prefix(&c.ServiceSubnet)},
		{"dnsDomain", "", p.domain(&c.DNSDomain)},
		{"source", "", word(p, &c.Source, SourcePreinstalled, SourceBundle, SourceAPT)},
		{"bundle", "", p.path(&c.Bundle)},
		{"imageRepository", "", p.repository(&c.ImageRepository)},
		{"containerd", "", func(n *yaml.Node, f string) {
			p.mapping(n, f, "\"mode:\" or \"extraToml:\" below it", []key{
				{"mode", "", word(p, &c.Containerd.Mode, ContainerdManaged, ContainerdExisting)},
				{"extraToml", "", p.text(&c.Containerd.ExtraTOML, "lines of TOML")},
			})
		}},
		{"cni", "", func(n *yaml.Node, f string) { p.cni(n, f, &c.CNI) }},
		{"etcd", "", func(n *yaml.Node, f string) {
			p.mapping(n, f, "\"heartbeat:\", \"election:\" or \"acceptSlow:\" below it", []key{
				{"heartbeat", "", p.duration(&c.Etcd.Heartbeat, "120ms")},
				{"election", "", p.duration(&c.Etcd.Election, "1200ms")},
				{"acceptSlow", "", p.boolean(&c.Etcd.AcceptSlow)},
			})
		}},
		{"allowCgroupV1", "", p.boolean(&c.AllowCgroupV1)},
		{"kubeProxy", "", func(n *yaml.Node, f string) {
			p.mapping(n, f, "\"mode:\" or settings of conntrack below it", []key{
				{"mode", "", word(p, &c.KubeProxy.Mode, KubeProxyNFTables, KubeProxyIPTables)},
				{"conntrackMaxPerCore", "", p.count(&c.KubeProxy.ConntrackMaxPerCore)},
				{"conntrackMin", "", p.count(&c.KubeProxy.ConntrackMin)},
			})
		}},
		{"workerLatency", "", word(p, &c.WorkerLatency, "medium", "low")},
	})
}

// cni reads "routes", "none" or a mapping with the file of a manifest.
func (p *parser) cni(n *yaml.Node, field string, c *CNI) {
	if n.Kind != yaml.MappingNode {
		if n.Kind == yaml.ScalarNode && n.Value == CNIManifest {
			p.fault(field, `"manifest" without its file`, "cni: {manifest: FILE}")
			return
		}
		word(p, &c.Mode, CNIRoutes, CNINone)(n, field)
		return
	}
	c.Mode = CNIManifest
	p.mapping(n, field, "", []key{{"manifest", "the file of a manifest", p.path(&c.Manifest)}})
}

func (p *parser) site(n *yaml.Node, field string) (s Site) {
	s.Line = n.Line
	p.mapping(n, field, "a mapping with \"name:\" and \"prefixes:\"", []key{
		{"name", wantName, p.name(&s.Name)},
		{"region", "", p.labelValue(&s.Region)},
		{"zone", "", p.labelValue(&s.Zone)},
		{"prefixes", "the prefixes of its LANs, such as [192.168.10.0/24]", func(n *yaml.Node, f string) {
			p.list(n, f, "a list of prefixes", maxPrefixes, func(n *yaml.Node, f string) {
				var prefix netip.Prefix
				p.prefix(&prefix)(n, f)
				s.Prefixes = append(s.Prefixes, prefix)
			})
		}},
		{"podBlock", "", p.prefix(&s.PodBlock)},
		{"gateways", "", func(n *yaml.Node, f string) {
			p.list(n, f, "a list of hosts", maxHosts, func(n *yaml.Node, f string) {
				var name string
				p.name(&name)(n, f)
				s.Gateways = append(s.Gateways, name)
			})
		}},
		{"mesh", "", word(p, &s.Mesh, MeshMeshd, MeshOpenVPN, MeshNone)},
	})
	return s
}

func (p *parser) host(n *yaml.Node, field string) (h Host) {
	h.Line = n.Line
	p.mapping(n, field, "a mapping with \"name:\", \"site:\", \"nodeIP:\" and \"roles:\"", []key{
		{"name", wantName, p.name(&h.Name)},
		{"site", "the name of a site", p.name(&h.Site)},
		{"nodeIP", "the address that the other hosts reach it by", p.address(&h.NodeIP)},
		{"roles", "control-plane, worker, loadbalancer or gateway", func(n *yaml.Node, f string) {
			p.list(n, f, "a list, such as [worker]", maxPerHost, func(n *yaml.Node, f string) {
				var role Role
				word(p, &role, ControlPlane, Worker, LoadBalancer, Gateway)(n, f)
				h.Roles = append(h.Roles, role)
			})
		}},
		{"ssh", "", func(n *yaml.Node, f string) { p.ssh(n, f, &h.SSH) }},
		{"labels", "", func(n *yaml.Node, f string) { h.Labels = p.labels(n, f) }},
		{"taints", "", func(n *yaml.Node, f string) {
			p.list(n, f, "a list of "+wantTaint, maxPerHost, func(n *yaml.Node, f string) {
				h.Taints = append(h.Taints, p.taint(n, f))
			})
		}},
	})
	return h
}

func (p *parser) ssh(n *yaml.Node, field string, s *SSH) {
	p.mapping(n, field, "\"address:\", \"user:\" and the like below it", []key{
		{"address", "", p.sshAddress(&s.Address)},
		{"port", "", func(n *yaml.Node, f string) { s.Port = uint16(p.number(n, f, 1, 65535)) }},
		{"user", "", p.user(&s.User)},
		{"key", "", p.path(&s.Key)},
		{"jump", "", p.jump(&s.Jump)},
		{"sudo", "", p.boolean(&s.Sudo)},
		{"knownHosts", "", p.path(&s.KnownHosts)},
	})
}

// Forms of what Kubernetes and DNS accept (RFC 1123, section 2.1; labels:
// "Labels and Selectors" in Kubernetes' documentation).
var (
	nameForm       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	domainForm     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	valueForm      = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
	repositoryForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	userForm       = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,31}$`)
)

type reader = func(n *yaml.Node, field string)

// matched reads text that ok accepts.
func (p *parser) matched(out *string, want string, ok func(string) bool) reader {
	return func(n *yaml.Node, field string) {
		text, scalar := p.scalar(n, field, want)
		switch {
		case !scalar:
		case !ok(text):
			p.fault(field, strconv.Quote(short(text)), want)
		default:
			*out = text
		}
	}
}

func (p *parser) name(out *string) reader { return p.matched(out, wantName, nameForm.MatchString) }

func isDomain(text string) bool { return len(text) <= 253 && domainForm.MatchString(text) }

func (p *parser) domain(out *string) reader {
	return p.matched(out, "a DNS name in lower case, such as cluster.local", isDomain)
}

func (p *parser) labelValue(out *string) reader {
	return p.matched(out, "at most 63 letters, digits, \"-\", \"_\" or \".\", as in the value of a label", valueForm.MatchString)
}

func (p *parser) user(out *string) reader {
	return p.matched(out, "the name of a user, such as root", userForm.MatchString)
}

func (p *parser) repository(out *string) reader {
	return p.matched(out, "a registry with a path and without https://, such as registry.example.org/k8s", repositoryForm.MatchString)
}

func (p *parser) text(out *string, want string) reader {
	return p.matched(out, want, func(string) bool { return true })
}

// path reads the path of a file. A relative one begins in the directory of the inventory.
func (p *parser) path(out *string) reader {
	return func(n *yaml.Node, field string) {
		path, ok := p.scalar(n, field, "the path of a file")
		switch {
		case !ok:
		case strings.ContainsRune(path, 0):
			p.fault(field, strconv.Quote(short(path)), "the path of a file")
		case filepath.IsAbs(path), strings.HasPrefix(path, "~/"):
			*out = filepath.Clean(path)
		default:
			*out = filepath.Join(filepath.Dir(p.file), path)
		}
	}
}

// version reads a version that kubeinit builds.
func (p *parser) version(out *string) reader {
	form := regexp.MustCompile(`^1\.([0-9]{1,3})(\.(0|[1-9][0-9]{0,2}))?$`)
	return func(n *yaml.Node, field string) {
		text, ok := p.scalar(n, field, wantVersion)
		if !ok {
			return
		}
		m := form.FindStringSubmatch(text)
		if m == nil {
			p.fault(field, strconv.Quote(short(text)), wantVersion)
			return
		}
		if minor, _ := strconv.Atoi(m[1]); minor < MinMinor || minor > MaxMinor {
			p.fault(field, "Kubernetes "+text+" is not supported", wantVersion)
			return
		}
		*out = text
	}
}

// word reads one of a few words.
func word[T ~string](p *parser, out *T, words ...T) reader {
	plain := make([]string, len(words))
	for i, w := range words {
		plain[i] = string(w)
	}
	return func(n *yaml.Node, field string) {
		want := strings.Join(plain[:len(plain)-1], ", ") + " or " + plain[len(plain)-1]
		text, ok := p.scalar(n, field, want)
		if !ok {
			return
		}
		if !slices.Contains(plain, text) {
			if near := nearest(text, plain); near != "" {
				want = near
			}
			p.fault(field, strconv.Quote(short(text)), want)
			return
		}
		*out = T(text)
	}
}

func (p *parser) boolean(out *bool) reader {
	return func(n *yaml.Node, field string) {
		text, ok := p.scalar(n, field, "true or false")
		switch {
		case !ok:
		case text != "true" && text != "false":
			p.fault(field, strconv.Quote(short(text)), "true or false")
		default:
			*out = text == "true"
		}
	}
}

func (p *parser) number(n *yaml.Node, field string, low, high int) int {
	want := fmt.Sprintf("a number from %d to %d", low, high)
	text, ok := p.scalar(n, field, want)
	if !ok {
		return low
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < low || v > high {
		p.fault(field, short(text), want)
		return low
	}
	return v
}

// count reads a number of connections. 0 means something to kube-proxy: leave
// the kernel's value alone.
func (p *parser) count(out **int) reader {
	return func(n *yaml.Node, field string) {
		v := p.number(n, field, 0, 1<<30)
		*out = &v
	}
}

// duration reads whole milliseconds with a unit.
func (p *parser) duration(out *time.Duration, such string) reader {
	want := "a duration with its unit, such as " + such
	return func(n *yaml.Node, field string) {
		text, ok := p.scalar(n, field, want)
		if !ok {
			return
		}
		d, err := time.ParseDuration(text)
		_, bare := strconv.Atoi(text)
		switch {
		case bare == nil:
			p.fault(field, short(text)+" has no unit", want)
		case err != nil, d <= 0:
			p.fault(field, strconv.Quote(short(text)), want)
		case d%time.Millisecond != 0:
			p.fault(field, text+" is not a whole number of milliseconds", want)
		default:
			*out = d
		}
	}
}

func (p *parser) address(out *netip.Addr) reader {
	return func(n *yaml.Node, field string) {
		text, ok := p.scalar(n, field, wantAddress)
		if !ok {
			return
		}
		addr, err := netip.ParseAddr(text)
		if prefix, prefixErr := netip.ParsePrefix(text); prefixErr == nil {
			p.fault(field, text+" is a prefix", prefix.Addr().String())
			return
		}
		if err != nil {
			p.fault(field, strconv.Quote(short(text))+" is no address (names are not looked up)", wantAddress)
			return
		}
		if problem := unusable(addr); problem != "" {
			p.fault(field, text+" "+problem, wantAddress)
			return
		}
		*out = addr
	}
}

// unusable says why an address cannot be that of a host in a LAN.
func unusable(a netip.Addr) string {
	switch {
	case a.Is4In6():
		return "is an IPv4 address in IPv6 form"
	case a.Zone() != "", a.IsLinkLocalUnicast():
		return "is not reachable from another LAN"
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is not the address of one host"
	}
	return ""
}

// prefix reads a prefix without host bits.
func (p *parser) prefix(out *netip.Prefix) reader {
	return func(n *yaml.Node, field string) {
		text, ok := p.scalar(n, field, wantPrefix)
		if !ok {
			return
		}
		prefix, err := netip.ParsePrefix(text)
		addr, addrErr := netip.ParseAddr(text)
		switch {
		case err != nil && addrErr == nil:
			p.fault(field, short(text)+" has no length", netip.PrefixFrom(addr.WithZone(""), addr.BitLen()).String()+" for one host, or the prefix of its LAN")
		case err != nil:
			p.fault(field, strconv.Quote(short(text)), wantPrefix)
		case prefix.Addr().Is4In6():
			p.fault(field, text+" is an IPv4 address in IPv6 form", "the IPv4 prefix")
		case prefix != prefix.Masked():
			p.fault(field, text+" has host bits", prefix.Masked().String())
		case prefix.Bits() < 8:
			p.fault(field, text+" is too wide", wantPrefix)
		case prefix.Addr().IsLoopback(), prefix.Addr().IsLinkLocalUnicast(), prefix.Addr().IsMulticast():
			p.fault(field, text+" never leaves its host or link", wantPrefix)
		default:
			*out = prefix
		}
	}
}

func (p *parser) externalNames(n *yaml.Node, field string) []string {
	const want = "DNS names or addresses, such as api.example.org or 203.0.113.7"
	var out []string
	seen := map[string]int{}
	p.list(n, field, "a list of "+want, maxNames, func(n *yaml.Node, f string) {
		var name string
		p.matched(&name, want, func(text string) bool {
			addr, err := netip.ParseAddr(text)
			return err == nil && addr.Zone() == "" || isDomain(strings.TrimPrefix(text, "*."))
		})(n, f)
		if addr, err := netip.ParseAddr(name); err == nil {
			name = addr.String()
		}
		if first, ok := seen[name]; ok && name != "" {
			p.fault(f, fmt.Sprintf("%s stands in line %d already", name, first), "each name once")
			return
		}
		seen[name] = n.Line
		out = append(out, name)
	})
	return out
}

func isHostAddress(text string) bool {
	if addr, err := netip.ParseAddr(text); err == nil {
		return !addr.IsUnspecified() && !addr.IsMulticast()
	}
	return isDomain(text)
}

func (p *parser) sshAddress(out *string) reader {
	return p.matched(out, "a name or an address without port, such as 192.168.10.101 (the port has a key of its own)", isHostAddress)
}

func (p *parser) jump(out *string) reader {
	return p.matched(out, wantJump, func(text string) bool {
		if !strings.Contains(text, "@") {
			return nameForm.MatchString(text)
		}
		_, ok := ParseJump(text)
		return ok
	})
}

// ParseJump reads user@address:port. The port may be left out, and is 22 then;
// an IPv6 address with a port stands in brackets.
func ParseJump(text string) (SSH, bool) {
	user, where, ok := strings.Cut(text, "@")
	if !ok || !userForm.MatchString(user) {
		return SSH{}, false
	}
	if isHostAddress(where) {
		return SSH{Address: where, Port: DefaultSSHPort, User: user}, true
	}
	i := strings.LastIndexByte(where, ':')
	if i < 0 {
		return SSH{}, false
	}
	address, port := where[:i], where[i+1:]
	n, err := strconv.ParseUint(port, 10, 16)
	if inner, found := strings.CutPrefix(address, "["); found {
		inner, closed := strings.CutSuffix(inner, "]")
		if addr, err := netip.ParseAddr(inner); err != nil || !addr.Is6() || !closed {
			return SSH{}, false
		}
		address = inner
	} else if strings.Contains(address, ":") {
		return SSH{}, false
	}
	if err != nil || n == 0 || !isHostAddress(address) {
		return SSH{}, false
	}
	return SSH{Address: address, Port: uint16(n), User: user}, true
}

// labels reads a mapping of labels to their values.
func (p *parser) labels(n *yaml.Node, field string) map[string]string {
	if n.Kind != yaml.MappingNode {
		p.fault(field, describe(n), "lines such as \"disk: ssd\" below it")
		return nil
	}
	out := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := field + "[" + short(k.Value) + "]"
		p.lines[path] = k.Line
		_, twice := out[k.Value]
		switch {
		case k.Kind != yaml.ScalarNode || !isLabelKey(k.Value):
			p.fault(path, "no name of a label", "letters, digits, \"-\", \"_\" or \".\", at most 63, with or without a DNS name and \"/\" before it, such as example.org/disk")
		case twice:
			p.fault(path, "stands there twice", "each label once")
		case v.Kind != yaml.ScalarNode || !isNull(v) && !valueForm.MatchString(v.Value):
			p.fault(path, describe(v), "at most 63 letters, digits, \"-\", \"_\" or \".\"")
		case isNull(v):
			out[k.Value] = ""
		default:
			out[k.Value] = v.Value
		}
	}
	return out
}

func isLabelKey(text string) bool {
	prefix, name, ok := strings.Cut(text, "/")
	if !ok {
		return text != "" && valueForm.MatchString(text)
	}
	return isDomain(prefix) && name != "" && valueForm.MatchString(name)
}

// taint reads key=value:Effect, as kubectl writes it.
func (p *parser) taint(n *yaml.Node, field string) (t Taint) {
	text, ok := p.scalar(n, field, wantTaint)
	if !ok {
		return t
	}
	rest, effect, _ := strings.Cut(text, ":")
	key, value, _ := strings.Cut(rest, "=")
	switch {
	case !isLabelKey(key), !valueForm.MatchString(value), !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect):
		p.fault(field, strconv.Quote(short(text)), wantTaint)
	default:
		t = Taint{Key: key, Value: value, Effect: effect}
	}
	return t
}
