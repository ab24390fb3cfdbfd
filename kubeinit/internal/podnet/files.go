package podnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const header = "# written by kubeinit; changes are overwritten\n"

// conflist is the CNI configuration: the reference plugins bridge, host-local
// and portmap, without any NAT of theirs for what pods send.
func conflist(pods netip.Prefix, mtu int) []byte {
	return indented(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "planetmesh",
		"plugins": []any{
			map[string]any{
				"type":             "bridge",
				"bridge":           Bridge,
				"isGateway":        true,
				"isDefaultGateway": true,
				"ipMasq":           false,
				"hairpinMode":      true,
				"mtu":              mtu,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": pods.String()}}},
				},
			},
			map[string]any{
				"type":         "portmap",
				"capabilities": map[string]any{"portMappings": true},
				"snat":         true,
			},
		},
	})
}

// indented is JSON with its keys in order. The values are ours and can always
// be written.
func indented(v any) []byte {
	b, _ := json.MarshalIndent(v, "", "  ")
	return append(b, '\n')
}

// table is the node's own table in nftables, in the form that "nft -f" takes
// again and again. Its comment is mark, by which the script sees whether this
// very table and these very routes are loaded.
func (n Network) table(me Node, routes []byte) (file []byte, mark string) {
	family, kind := "ip", "ipv4_addr"
	if me.Range.Addr().Is6() {
		family, kind = "ip6", "ipv6_addr"
	}
	var inside []string
	for _, p := range n.inside() {
		if p.Addr().Is4() == me.Range.Addr().Is4() {
			inside = append(inside, p.String())
		}
	}
	body := fmt.Sprintf(`	set inside {
		type %s
		flags interval
		auto-merge
		comment "pods, services and every network of the mesh"
		elements = { %s }
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		%s saddr %s %s daddr != @inside masquerade fully-random comment "pods to the outside"
	}
}
`, kind, strings.Join(inside, ", "), family, me.Range, family)
	sum := sha256.Sum256(append([]byte(body), routes...))
	mark = fmt.Sprintf("kubeinit %x", sum[:8])
	b := bytes.NewBufferString("#!/usr/sbin/nft -f\n" + header)
	fmt.Fprintf(b, "table inet %s\ndelete table inet %s\ntable inet %s {\n\tcomment \"%s\"\n%s", Table, Table, Table, mark, body)
	return b.Bytes(), mark
}

// inside is everything that pods talk to with their own addresses.
func (n Network) inside() []netip.Prefix {
	out := []netip.Prefix{n.Supernet, n.Services}
	for _, s := range n.Sites {
		out = append(out, s.LANs...)
		out = append(out, s.Foreign...)
	}
	slices.SortFunc(out, byPrefix)
	return slices.Compact(out)
}

// script brings the routes and the table up, as often as one likes, checks them
// or takes everything away that the pod network left in the kernel and under
// /var/lib/cni. It changes nothing where nothing has to change: replacing a
// route would forget what path MTU discovery has learnt for it.
func script(mark string) []byte {
	r := strings.NewReplacer("MARK", mark, "TABLE", Table, "BRIDGE", Bridge, "PROTOCOL", fmt.Sprint(RouteProtocol))
	return []byte(r.Replace(`#!/bin/sh
` + header + `# podnet up|check|down: routes to the pods of other nodes, SNAT for what leaves the mesh
set -u
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
dir=$(cd "$(dirname "$0")" && pwd) || exit 1
cni=${CNI_STATE:-/var/lib/cni}

loaded() { nft list table inet TABLE 2>/dev/null | grep -qF 'comment "MARK"'; }
routes() { ip -4 route show table main proto PROTOCOL; ip -6 route show table main proto PROTOCOL; }
found() { routes | wc -l; }
wanted() { grep -c '^route add ' "$dir/podnet.routes"; }
complete() { [ "$(found)" -eq "$(wanted)" ]; }
flush() {
	ip -4 route flush table main proto PROTOCOL 2>/dev/null
	ip -6 route flush table main proto PROTOCOL 2>/dev/null
}

case ${1:-up} in
up)
	loaded && complete && exit 0
	loaded || flush
	ip -force -batch "$dir/podnet.routes" >/dev/null 2>&1
	if ! complete; then
		flush
		ip -force -batch "$dir/podnet.routes" || true
	fi
	loaded || nft -f "$dir/podnet.nft" || exit 1
	if ! complete; then
		echo "podnet: $(found) of $(wanted) routes are there" >&2
		exit 1
	fi
	;;
check)
	loaded || { echo "podnet: table TABLE is missing or an old one" >&2; exit 1; }
	complete || { echo "podnet: $(found) of $(wanted) routes are there" >&2; exit 1; }
	;;
down)
	nft delete table inet TABLE 2>/dev/null
	nft delete table inet cni_hostport 2>/dev/null
	flush
	ip link delete BRIDGE 2>/dev/null
	rm -rf "$cni/networks/planetmesh"
	rm -f "$cni"/results/planetmesh-* "$cni"/cache/results/planetmesh-*
	rmdir "$cni/networks" "$cni/results" "$cni/cache/results" "$cni/cache" "$cni" 2>/dev/null
	if [ "$(found)" -ne 0 ] || nft list table inet TABLE >/dev/null 2>&1 || ip link show BRIDGE >/dev/null 2>&1; then
		echo "podnet: something is left" >&2
		exit 1
	fi
	;;
*)
	echo "usage: podnet up|check|down" >&2
	exit 2
	;;
esac
`))
}

// service runs the script before the kubelet starts, and again when timer says
// so: a restart of the host's network or of its firewall takes our routes or our
// table away, and then pods are cut off while the node looks Ready. What starts
// twice a minute stays out of the log.
const service = header + `[Unit]
Description=Routes to the pods of other nodes, SNAT for what leaves the mesh
Wants=network-online.target
After=network-online.target nftables.service
Before=kubelet.service

[Service]
Type=oneshot
ExecStart=` + ScriptFile + ` up
TimeoutStartSec=30s
SyslogLevel=warning
LogLevelMax=notice

[Install]
WantedBy=multi-user.target
`

const timer = header + `[Unit]
Description=Look after the routes to the pods of other nodes

[Timer]
OnActiveSec=30s
OnUnitInactiveSec=30s
AccuracySec=5s

[Install]
WantedBy=timers.target
`
