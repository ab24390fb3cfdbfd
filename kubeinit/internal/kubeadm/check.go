package kubeadm

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	labelForm  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	domainForm = regexp.MustCompile(`^(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
)

func (c Cluster) check() error {
	errs := []error{c.Version.check()}
	add := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add(labelForm.MatchString(c.Name), "cluster name %q: want a DNS label", c.Name)
	errs = append(errs, checkEndpoint(c.Endpoint))
	for _, san := range append(append([]string{}, c.CertSANs...), c.EtcdSANs...) {
		_, err := netip.ParseAddr(san)
		add(err == nil || domainForm.MatchString(san), "name in certificates %q: want a DNS name or an address", san)
	}
	add(c.PodSubnet.IsValid() && c.PodSubnet == c.PodSubnet.Masked(), "pod subnet %s: want a prefix without host bits", c.PodSubnet)
	add(c.ServiceSubnet.IsValid() && c.ServiceSubnet == c.ServiceSubnet.Masked(), "service subnet %s: want a prefix without host bits", c.ServiceSubnet)
	add(!c.PodSubnet.Overlaps(c.ServiceSubnet), "pod subnet %s and service subnet %s overlap", c.PodSubnet, c.ServiceSubnet)
	add(c.DNSDomain == "" || domainForm.MatchString(c.DNSDomain) && c.DNSDomain[0] != '*', "dns domain %q: want a DNS name", c.DNSDomain)
	add(c.Heartbeat >= 0 && c.Heartbeat%time.Millisecond == 0, "etcd heartbeat %s: want whole milliseconds", c.Heartbeat)
	add(c.Election >= 0 && c.Election%time.Millisecond == 0, "etcd election timeout %s: want whole milliseconds", c.Election)
	_, known := profiles[c.WorkerLatency]
	add(known, "worker latency %q: want medium, low or nothing", c.WorkerLatency)
	add(c.ResolvConf == "" || path.IsAbs(c.ResolvConf), "resolver file %q: want an absolute path", c.ResolvConf)
	switch c.KubeProxy.Mode {
	case "", "nftables", "iptables":
	default:
		add(false, "kube-proxy mode %q: want nftables or iptables", c.KubeProxy.Mode)
	}
	return errors.Join(errs...)
}

func checkEndpoint(endpoint string) error {
	name, port, ok := strings.Cut(endpoint, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if _, addr := netip.ParseAddr(name); addr == nil || !ok || err != nil || n == 0 || !domainForm.MatchString(name) || name[0] == '*' {
		return fmt.Errorf("endpoint %q: want name:port, and a name because an address could never change", endpoint)
	}
	return nil
}

func (n Node) check(c Cluster) error {
	var errs []error
	if !domainForm.MatchString(n.Name) || n.Name[0] == '*' {
		errs = append(errs, fmt.Errorf("node name %q: want a DNS name in lower case", n.Name))
	}
	if a := n.Address; !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
		errs = append(errs, fmt.Errorf("node %s: address %s: want one that others can reach", n.Name, n.Address))
	}
	for _, p := range []netip.Prefix{c.PodSubnet, c.ServiceSubnet} {
		if p.Contains(n.Address) {
			errs = append(errs, fmt.Errorf("node %s: address %s lies in %s of the cluster", n.Name, n.Address, p))
		}
	}
	for _, t := range n.Taints {
		switch t.Effect {
		case "NoSchedule", "PreferNoSchedule", "NoExecute":
		default:
			errs = append(errs, fmt.Errorf("node %s: effect %q of taint %s: want NoSchedule, PreferNoSchedule or NoExecute", n.Name, t.Effect, t.Key))
		}
	}
	if _, rest := KubeletLabels(n.Labels); len(rest) > 0 {
		errs = append(errs, fmt.Errorf("node %s: a kubelet may not set %s itself", n.Name, joinLabels(rest)))
	}
	for k, v := range n.Labels {
		if strings.ContainsAny(k+v, ",=\" \t\n") {
			errs = append(errs, fmt.Errorf("node %s: label %q=%q has a character that labels cannot have", n.Name, k, v))
		}
	}
	return errors.Join(errs...)
}
