# Says what the host is, one fact per line: a key, a tab, a value. Changes nothing.
# The braces have the shell read all of it before a command can read its rest.
{
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
tab=$(printf '\t')
say() { printf '%s\t%s\n' "$1" "$2"; }
each() { key=$1; shift; "$@" 2>/dev/null | head -c 200000 | sed "s/^/$key$tab/"; }
first() { key=$1; shift; "$@" 2>/dev/null | head -n 1 | head -c 400 | sed "s/^/$key$tab/"; }
have() { command -v "$1" >/dev/null 2>&1; }

say facts 1
first hostname cat /proc/sys/kernel/hostname
first kernel uname -r
first arch uname -m
each os grep -E '^(ID|VERSION_ID|PRETTY_NAME)=' /etc/os-release
first pid1 cat /proc/1/comm
first cgroup stat -fc %T /sys/fs/cgroup
first cgroupv2 cat /sys/fs/cgroup/cgroup.controllers
each cgroupv1 awk '!/^#/ && $2 != 0 && $4 == 1 { print $1 }' /proc/cgroups
each swap awk 'NR > 1 { print $1, $3 }' /proc/swaps
each memory grep -E '^Mem(Total|Available):' /proc/meminfo
first cpus nproc
dir=/var/lib
first disk sh -c "df -Pk $dir | awk 'NR == 2 { print \$2, \$4 }'"
each address ip -o address show
each link ip -o link show
each route ip -4 route show table main
each route6 ip -6 route show table main
first forward cat /proc/sys/net/ipv4/ip_forward
first machineid cat /etc/machine-id
first uuid cat /sys/class/dmi/id/product_uuid
each resolv grep -E '^[[:space:]]*nameserver[[:space:]]' /etc/resolv.conf
each upstream grep -E '^[[:space:]]*nameserver[[:space:]]' /run/systemd/resolve/resolv.conf
if have ss; then each listen ss -Htlnp; else say missing ss; fi
if have nft; then
	each nft nft list chains
	say nftrun "$(nft list tables >/dev/null 2>&1 && echo yes || echo no)"
fi
[ -s /proc/net/ip_tables_names ] && have iptables-legacy && first legacy sh -c 'iptables-legacy -S FORWARD | grep "^-P FORWARD DROP"'
for p in containerd runc kubelet kubeadm kubectl conntrack ethtool; do
	have $p || continue
	case $p in
	kubeadm) v=$(kubeadm version -o short 2>/dev/null | head -n 1) ;;
	kubectl) v=$(kubectl version --client 2>/dev/null | head -n 1) ;;
	*) v=$($p --version 2>/dev/null | head -n 1) ;;
	esac
	say version "$p $v"
done
for m in overlay br_netfilter nf_tables nf_conntrack; do
	state=missing
	if [ -d /sys/module/$m ]; then
		state=present
	elif [ $m = overlay ] && grep -qw overlay /proc/filesystems; then
		state=present
	elif [ $m = br_netfilter ] && [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
		state=present
	elif [ $m = nf_conntrack ] && [ -e /proc/sys/net/netfilter/nf_conntrack_max ]; then
		state=present
	elif [ $m = nf_tables ] && have nft && nft list tables >/dev/null 2>&1; then
		state=present
	elif have modprobe && modprobe -nq $m 2>/dev/null; then
		state=loadable
	fi
	say module "$m $state"
done
if have systemctl; then
	for u in containerd kubelet meshd firewalld ufw systemd-timesyncd chrony chronyd ntp ntpd ntpsec openntpd; do
		a=$(systemctl is-active $u.service 2>/dev/null | head -n 1)
		e=$(systemctl is-enabled $u.service 2>/dev/null | head -n 1)
		say unit "$u ${a:-unknown} ${e:-unknown}"
	done
fi
grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf && say ufw enabled
for f in /etc/kubernetes/*.conf /etc/kubernetes/manifests/* /etc/kubernetes/pki /var/lib/etcd/member /var/lib/kubelet/config.yaml /var/lib/kubelet/kubeadm-flags.env /etc/cni/net.d/*; do
	[ -e "$f" ] && say leftover "$f"
done
[ -e /var/lib/kubeinit/journal.jsonl ] && say ours journal
if have meshd; then
	j=$(timeout 5 meshd status --json 2>/dev/null | tr -d '\n\t' | head -c 1000000)
	[ -n "$j" ] && say mesh "$j"
fi
say end 1
} </dev/null
