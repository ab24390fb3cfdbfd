//go:build linux

package kubelab

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// snapshotScript describes what a cluster may change on a machine, except its network. What changes by itself is left out:
// journals and login records, what systemd and mount(8) note for themselves, containerd's images and the state of its
// containers, the count of connections. The cgroup of a service is there while the service is, which the units show.
const snapshotScript = `export LC_ALL=C
found() {
	find /etc /opt /usr/local /var/lib /run \( -path /var/lib/containerd -o -path '/run/containerd/io.containerd.*' -o -path /run/log \
		-o -path /run/utmp -o -path /run/motd.dynamic -o -path /run/mount -o -path /run/systemd/units -o -path /run/systemd/journal \
		-o -path /run/systemd/inaccessible -o -path /run/systemd/incoming -o -path /run/systemd/propagate \
		-o -path /run/systemd/unit-root -o -path /run/systemd/show-status \) -prune -o "$@"
}
echo '# files'
found -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %l\n' | sort
echo '# contents'
found -type f -print0 | sort -z | xargs -0 -r sha256sum
echo '# units'
systemctl list-unit-files --no-legend --no-pager --plain --full | awk '{ print $1, $2 }'
echo '# running units'
systemctl list-units --all --no-legend --no-pager --plain --full |
	awk '$1 !~ /\.(device|mount|automount)$/ { print $1, $2, $3, $4 }'
echo '# cgroups'
find /sys/fs/cgroup -mindepth 1 -type d | grep -v '/system.slice/[^/]*[.]service$' | sort
echo '# mounts'
cut -d ' ' -f 4- /proc/self/mountinfo | sed 's/ \(shared\|master\|propagate_from\):[0-9]*//g' | sort
echo '# named namespaces'
ls -1 /run/netns /var/run/netns 2>/dev/null | grep -v : | sort -u
echo '# settings'
grep -rs '' /proc/sys/net | grep -v nf_conntrack_count | sort
`

// restarting are units between two tries of a program that ends at once, as a kubelet does before it has a configuration:
// whether a look finds it waiting or trying is chance.
var restarting = regexp.MustCompile(`(?m)^(\S+ loaded) (activating auto-restart|activating start|active running)$`)

// Snapshot describes as text what there is on a host with power that a cluster might change: files and their contents below
// /etc, /opt, /usr/local, /var/lib and /run, units and which of them are enabled and run, cgroups, mounts, named network
// namespaces, links, addresses, routes, rules, nftables without counters, and all settings of the network. Left out are
// times, journals, login records, and containerd's store. Two snapshots of an unchanged host are equal; [Diff] compares
// them.
func (h *Host) Snapshot(ctx context.Context) (string, error) {
	files, err := h.Exec(ctx, "sh", "-c", snapshotScript)
	if err != nil {
		return "", fmt.Errorf("snapshot: %w", err)
	}
	network, err := h.box.net.Snapshot(ctx)
	if err != nil {
		return "", fmt.Errorf("snapshot: %w", err)
	}
	network, _, _ = strings.Cut(network, "# settings\n") // they are in the script's
	return restarting.ReplaceAllString(files, "$1 active") + network, nil
}

// Snapshots are snapshots of all machines that have power, by name; routers are none of them.
func (w *World) Snapshots(ctx context.Context) (map[string]string, error) {
	snapshots := make(map[string]string)
	for _, h := range w.Hosts() {
		if !h.On() {
			continue
		}
		s, err := h.Snapshot(ctx)
		if err != nil {
			return nil, err
		}
		snapshots[h.Name()] = s
	}
	return snapshots, nil
}

// Diff lists what differs between two snapshots, one line each: "- files: /etc/x f 644 0:0" was there before alone, "+ ..."
// is there after alone. nil means equal.
func Diff(before, after string) []string { return netlab.DiffSnapshots(before, after) }

// DiffAll is [Diff] for the machines of two results of [World.Snapshots], each line behind the machine's name: "node01: +
// routes: ...". A machine that is in one of them alone is a difference.
func DiffAll(before, after map[string]string) []string {
	var diff []string
	for name := range before {
		if _, ok := after[name]; !ok {
			diff = append(diff, name+": no snapshot after")
		}
	}
	for name, s := range after {
		b, ok := before[name]
		if !ok {
			diff = append(diff, name+": no snapshot before")
			continue
		}
		for _, line := range Diff(b, s) {
			diff = append(diff, name+": "+line)
		}
	}
	slices.Sort(diff)
	return diff
}
