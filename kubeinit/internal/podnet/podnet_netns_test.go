//go:build integration

package podnet

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newNode writes the files of a node into a folder and returns a function that
// runs a shell script in a network namespace of its own, where lan0 has the
// node's address, $podnet is the script, and "fails" wants a command to fail.
func newNode(t *testing.T, n Network, name string) func(script string) string {
	t.Helper()
	files, err := Files(n, name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.Path)), f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	me, _ := n.node(name)
	bits := map[bool]string{true: "/24", false: "/64 nodad"}[me.Address.Is4()]
	prepare := "set -eu\nip link set lo up\nip link add lan0 type veth peer name lan1\nip link set lan0 up\nip link set lan1 up\nip addr add " + me.Address.String() + bits + " dev lan0\n" +
		"export CNI_STATE=" + dir + "/cni dir=" + dir + " podnet=" + dir + "/podnet\nfails() { if \"$@\" 2>/dev/null; then echo \"$* succeeds\"; exit 1; fi; }\n"
	return func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-c", prepare+script)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
		}
		return out.String()
	}
}

func TestScriptBringsUpRepairsAndLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		n         Network
		node      string
		remove    string // a route of ours
		operators string // a route of the operator to a prefix of ours
		routes    int
	}{
		{network(), "node01", "10.128.17.0/24", "192.168.30.0/24 via 192.168.20.99", 7},
		{six(), "a1", "fd00:128:a:2::/64", "fd00:128:a:2::/64 via 2001:db8:a::99 metric 5", 4},
	} {
		run := newNode(t, tt.n, tt.node)
		out := run(`
nft add table ip theirs
state() { ip -4 route show table all; ip -6 route show table all | grep -v fe80 | grep -v multicast; nft -s list ruleset; ip -o link show | grep -c .; ls $CNI_STATE 2>/dev/null || :; }
ip route add ` + tt.operators + `
state >$dir/before
nft -c -f $dir/podnet.nft
fails $podnet check
$podnet up
$podnet check
ip -4 route show proto 110; ip -6 route show proto 110
nft list table inet kubeinit-podnet | grep -c masquerade

# A second time changes nothing, which the handle of the table shows.
nft -a list table inet kubeinit-podnet >$dir/one
$podnet up
nft -a list table inet kubeinit-podnet | cmp - $dir/one

# What is taken away comes back.
ip route del ` + tt.remove + ` proto 110 metric 2050
fails $podnet check
$podnet up
$podnet check
nft delete table inet kubeinit-podnet
fails $podnet check
$podnet up
$podnet check

# An old route of ours goes when the files are new.
ip route add unreachable 203.0.113.0/24 proto 110 metric 2050
sed -i 's/comment "kubeinit [0-9a-f]*"/comment "kubeinit 0000000000000000"/' $dir/podnet.nft $podnet
$podnet up
if ip route show proto 110 | grep 203.0.113.0; then exit 1; fi

mkdir -p $CNI_STATE/networks/planetmesh $CNI_STATE/results
touch $CNI_STATE/networks/planetmesh/lock $CNI_STATE/results/planetmesh-x-eth0
ip link add pmpods0 type bridge
nft add table inet cni_hostport
$podnet down
$podnet down
state >$dir/after
diff $dir/before $dir/after || { echo "something is left"; exit 1; }
`)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != tt.routes+1 || lines[tt.routes] != "1" {
			t.Errorf("%s: want %d routes and one rule:\n%s", tt.node, tt.routes, out)
		}
		for _, l := range lines[:tt.routes] {
			if strings.Contains(l, "192.168.30.") != strings.Contains(l, "192.168.30.0/24") || strings.Contains(l, "via 192.168.20.1 ") != strings.Contains(l, "mtu 1380") {
				t.Errorf("mtu belongs to routes through the gateway: %s", l)
			}
		}
	}
}

func TestScriptSaysWhatIsMissing(t *testing.T) {
	run := newNode(t, network(), "node01")
	out := run(`
ip addr del 192.168.20.101/24 dev lan0
if $podnet up 2>&1; then echo "up without a LAN"; exit 1; fi
nft list table inet kubeinit-podnet >/dev/null || { echo "SNAT waits for routes"; exit 1; }
$podnet down`)
	if !strings.Contains(out, "podnet: 1 of 7 routes are there") {
		t.Errorf("got %s", out)
	}
}

// A pod and everybody else in a namespace each; what arrives there is counted
// by its source:
//
//	pod 10.128.16.7 ── node 192.168.20.101 ── 192.168.20.1 and all addresses of the world
func TestOnlyWhatLeavesTheMeshIsTranslated(t *testing.T) {
	run := newNode(t, network(), "node01")
	out := run(`
sysctl -qw net.ipv4.ip_forward=1
unshare --net sleep 120 & pod=$!
unshare --net sleep 120 & world=$!
trap 'kill $pod $world' EXIT
me=$(readlink /proc/self/ns/net)
for pid in $pod $world; do
	n=0
	while [ "$(readlink /proc/$pid/ns/net)" = "$me" ] && [ $n -lt 500 ]; do n=$((n+1)); sleep 0.02; done
done
ip link set lan1 netns $world
ip link add pmpods0 type veth peer name eth0 netns $pod
ip addr add 10.128.16.1/24 dev pmpods0
ip link set pmpods0 up
nsenter -t $pod -n sh -ec 'ip addr add 10.128.16.7/24 dev eth0; ip link set eth0 up; ip route add default via 10.128.16.1'
nsenter -t $world -n sh -ec '
ip link set lo up; ip link set lan1 up; ip addr add 192.168.20.1/24 dev lan1
for a in 198.51.100.8 192.168.10.5 10.128.0.9 172.20.3.4 192.168.20.50; do ip addr add $a/32 dev lan1; done
ip route add 10.128.16.0/24 via 192.168.20.101'
ip route add 198.51.100.0/24 via 192.168.20.1
$podnet up
nsenter -t $world -n nft -f - <<X
table ip watch {
	set seen { type ipv4_addr . ipv4_addr; flags dynamic; }
	chain in {
		type filter hook input priority 0; policy accept;
		icmp type echo-request add @seen { ip saddr . ip daddr }
	}
}
X
for a in 198.51.100.8 192.168.10.5 10.128.0.9 172.20.3.4 192.168.20.50; do
	nsenter -t $pod -n ping -c 1 -W 10 $a >/dev/null
done
nsenter -t $world -n nft list set ip watch seen | tr -s ' \t\n' ' ' | tr ',' '\n'
`)
	for _, want := range []string{
		"192.168.20.101 . 198.51.100.8", "10.128.16.7 . 192.168.10.5", "10.128.16.7 . 10.128.0.9", "10.128.16.7 . 172.20.3.4", "10.128.16.7 . 192.168.20.50",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %s in %s", want, out)
		}
	}
	if n := strings.Count(out, " . ") - 1; n != 5 { // one is in the type
		t.Errorf("%d pairs, want 5: %s", n, out)
	}
}

func TestUnitsAreWhatSystemdUnderstands(t *testing.T) {
	files, err := Files(network(), "node01")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range files {
		// The script is where the unit wants it on a node only.
		data := bytes.ReplaceAll(f.Data, []byte(ScriptFile+" up"), []byte("/bin/true"))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.Path)), data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", filepath.Join(dir, Service), filepath.Join(dir, Timer)).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("kubeinit-podnet")) {
		t.Errorf("%v\n%s", err, out)
	}
}
