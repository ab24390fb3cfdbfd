package steps

import (
	"fmt"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// observeScript prints what cleanScript must not remove or has to restore:
// tables of nftables, network links, directories, and kernel parameters that
// kubelet and kube-proxy set. A line is a kind and a value.
const observeScript = `
nft list tables 2>/dev/null | sed 's/^/nft /'
ls /sys/class/net | sed 's/^/link /'
for d in /etc/kubernetes /var/lib/kubelet /var/lib/etcd /etc/cni/net.d /etc/cni /var/lib/cni /opt/cni /run/flannel; do [ -e $d ] && echo "dir $d"; done
for f in net/netfilter/nf_conntrack_max net/netfilter/nf_conntrack_tcp_timeout_established net/netfilter/nf_conntrack_tcp_timeout_close_wait net/ipv4/conf/all/route_localnet net/netfilter/nf_conntrack_tcp_be_liberal vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	[ -r /proc/sys/$f ] && echo "sys $f=$(cat /proc/sys/$f)"
done
systemctl is-active --quiet kubelet && echo "active kubelet"
true
`

// cleanScript undoes kubeadm's work on a host of which observeScript printed
// seen before that. It may run after half of that work, and twice.
func cleanScript(seen string) string {
	kept := map[string][]string{}
	for line := range strings.Lines(seen) {
		kind, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok {
			kept[kind] = append(kept[kind], value)
		}
	}
	var b strings.Builder
	b.WriteString(`if command -v kubeadm >/dev/null && { [ -e /etc/kubernetes/kubelet.conf ] || [ -e /etc/kubernetes/manifests ] || [ -e /var/lib/etcd/member ]; }; then
	kubeadm reset --force --cleanup-tmp-dir >/dev/null 2>&1
fi
`)
	if len(kept["active"]) == 0 {
		b.WriteString("systemctl stop kubelet 2>/dev/null; systemctl reset-failed kubelet 2>/dev/null\n")
	}
	b.WriteString(`for m in $(awk '$2 ~ "^/var/lib/kubelet/|^/run/netns/cni-|^/var/run/netns/cni-" {print $2}' /proc/mounts | sort -r); do umount "$m" 2>/dev/null || umount -l "$m"; done
for n in /run/netns/cni-*; do [ -e "$n" ] && ip netns delete "${n##*/}" 2>/dev/null; done
`)
	fmt.Fprintf(&b, "for l in cni0 pmpods0 kube-bridge kube-ipvs0 nodelocaldns flannel.1 $(cd /sys/class/net && ls -d veth* 2>/dev/null); do case ' %s ' in *\" $l \"*) ;; *) ip link delete \"$l\" 2>/dev/null;; esac; done\n",
		strings.Join(kept["link"], " "))
	b.WriteString("nft list tables 2>/dev/null | while read -r t; do case \"$t\" in\n")
	for _, t := range kept["nft"] {
		fmt.Fprintf(&b, "%s) ;;\n", host.Quote(t))
	}
	b.WriteString("'table inet kubeinit-podnet') ;;\n*) nft delete $t;;\nesac; done\n")
	b.WriteString("rm -rf /etc/kubernetes/manifests /etc/kubernetes/pki /etc/kubernetes/tmp /etc/kubernetes/*.conf /var/lib/kubelet/* /var/lib/kubelet/.[!.]* /var/lib/etcd/* /var/lib/cni/* /run/kubernetes /run/kubeinit/kubeadm-*.yaml\n")
	for _, d := range []string{"/etc/kubernetes", "/var/lib/kubelet", "/var/lib/etcd", "/var/lib/cni", "/etc/cni/net.d", "/etc/cni", "/opt/cni"} {
		if !contains(kept["dir"], d) {
			fmt.Fprintf(&b, "[ ! -e %s ] || rmdir %s 2>/dev/null\n", d, d)
		}
	}
	for _, s := range kept["sys"] {
		file, value, ok := strings.Cut(s, "=")
		if ok {
			fmt.Fprintf(&b, "[ \"$(cat /proc/sys/%s)\" = %s ] || echo %s > /proc/sys/%s\n", file, host.Quote(value), host.Quote(value), file)
		}
	}
	b.WriteString("[ ! -e /etc/kubernetes/kubelet.conf ]\n")
	return b.String()
}

func contains(all []string, s string) bool {
	for _, x := range all {
		if x == s {
			return true
		}
	}
	return false
}
