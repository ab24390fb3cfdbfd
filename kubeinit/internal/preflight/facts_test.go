package preflight

const cleanFactsText = "facts\t1\n" + `hostname	HOST
kernel	6.12.0
arch	x86_64
os	PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
os	VERSION_ID="13"
os	ID=debian
pid1	systemd
cgroup	cgroup2fs
cgroupv2	cpuset cpu io memory hugetlb pids
memory	MemTotal:        8100000 kB
memory	MemAvailable:    7000000 kB
cpus	4
disk	100000000 80000000
address	1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever preferred_lft forever
address	2: eth0    inet ADDR/24 brd 10.0.0.255 scope global eth0\       valid_lft forever preferred_lft forever
address	2: eth0    inet6 fe80::1/64 scope link \       valid_lft forever preferred_lft forever
link	1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN mode DEFAULT group default qlen 1000\    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
link	2: eth0@if7: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP mode DEFAULT group default qlen 1000\    link/ether 02:00:HOST brd ff:ff:ff:ff:ff:ff
route	default via 198.51.100.1 dev eth0 proto static
route	198.51.100.0/24 dev eth0 proto kernel scope link src ADDR
forward	1
machineid	0000HOST
uuid	UUID-HOST
resolv	nameserver 198.51.100.53
listen	LISTEN 0      128          0.0.0.0:22        0.0.0.0:*    users:(("sshd",pid=600,fd=3))
nftrun	yes
version	containerd containerd github.com/containerd/containerd v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376
version	runc runc version 1.3.0
version	kubelet Kubernetes v1.37.2
version	kubeadm v1.37.2
version	kubectl Client Version: v1.37.2
version	conntrack conntrack v1.4.7 (conntrack-tools)
version	ethtool ethtool version 6.1
module	overlay present
module	br_netfilter loadable
module	nf_tables present
module	nf_conntrack present
unit	containerd active enabled
unit	kubelet inactive enabled
unit	systemd-timesyncd active enabled
end	1
`
