//go:build integration && linux

package fw

import (
	"os"
	"strings"
	"testing"
)

// firewall is a ruleset, what Diagnose must say about it, and what really
// passes. The cure is carried out and must help.
type firewall struct {
	name    string
	rules   string // shell commands
	want    []string
	passes4 string // as from reachable
	passes6 string
	cannot  string // the program for the cure is not there; it ends with this
}

var firewalls = []firewall{
	{name: "none", passes4: "to from", passes6: "to from"},
	{
		name:    "accepts everything",
		rules:   "nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy accept; }'",
		passes4: "to from", passes6: "to from",
	},
	{
		name:    "input drops, forward does not",
		rules:   "nft add table inet f; nft 'add chain inet f c { type filter hook input priority 0; policy drop; }'",
		passes4: "to from", passes6: "to from",
	},
	{
		name:    "iptables policy",
		rules:   "iptables-nft -P FORWARD DROP",
		want:    []string{"certain ip filter FORWARD: its policy drops packets forwarded from and to pm0; cure: iptables -I FORWARD -i pm0 -j ACCEPT && iptables -I FORWARD -o pm0 -j ACCEPT"},
		passes6: "to from",
	},
	{
		name:    "ip6tables policy",
		rules:   "ip6tables-nft -P FORWARD DROP",
		want:    []string{"certain ip6 filter FORWARD: its policy drops packets forwarded from and to pm0; cure: ip6tables -I FORWARD -i pm0 -j ACCEPT && ip6tables -I FORWARD -o pm0 -j ACCEPT"},
		passes4: "to from",
	},
	{
		name: "native policy, established connections only",
		rules: `nft add table inet filter; nft 'add chain inet filter forward { type filter hook forward priority 0; policy drop; }'
			nft add rule inet filter forward ct state established,related accept
			nft add rule inet filter forward ct status dnat accept
			nft 'add rule inet filter forward ct state vmap { invalid : drop, established : accept }'
			nft add rule inet filter forward meta l4proto icmp accept`,
		want: []string{`certain inet filter forward: its policy drops packets forwarded from and to pm0; cure: nft 'insert rule inet filter forward iifname "pm0" accept' && nft 'insert rule inet filter forward oifname "pm0" accept'`},
	},
	{
		name: "last rule rejects in a chain of its own",
		rules: `nft add table ip f; nft 'add chain ip f through { type filter hook forward priority 10; policy accept; }'; nft add chain ip f last
			nft add rule ip f through iifname lo accept; nft add rule ip f through counter jump last; nft add rule ip f last counter reject`,
		want:    []string{`certain ip f through: rule 1 of chain last drops packets forwarded from and to pm0; cure: nft 'insert rule ip f through iifname "pm0" accept' && nft 'insert rule ip f through oifname "pm0" accept'`},
		passes6: "to from",
	},
	{
		name: "iptables reject, other interface accepted, conntrack",
		rules: `iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables-nft -A FORWARD -i eth7 -o eth8 -j ACCEPT
			iptables-nft -A FORWARD -m comment --comment why -j REJECT`,
		want:    []string{"certain ip filter FORWARD: rule 3 of chain FORWARD drops packets forwarded from and to pm0; cure: iptables"},
		passes6: "to from",
	},
	{
		name: "drops what comes from the overlay only",
		rules: `nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy accept; }'
			nft add rule inet f c iifname '"pm*"' ct state new drop`,
		want:    []string{`certain inet f c: rule 1 of chain c drops packets forwarded from pm0; cure: nft 'insert rule inet f c iifname "pm0" accept'`},
		passes4: "to", passes6: "to",
	},
	{
		name: "drops what goes to the overlay, by index",
		rules: `nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy accept; }'
			nft add rule inet f c oif pm0 meta nfproto ipv6 ct state '!=' established drop`,
		want:    []string{`certain inet f c: rule 1 of chain c drops packets forwarded to pm0; cure: nft 'insert rule inet f c oifname "pm0" accept'`},
		passes4: "to from", passes6: "from",
	},
	{
		name: "names our link already",
		rules: `iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i pm+ -j ACCEPT; iptables-nft -A FORWARD -o pm0 -j ACCEPT
			nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy drop; }'
			nft 'add rule inet f c iifname { "lan0", "pm0" } accept'; nft 'add rule inet f c oifname vmap { "lan0" : drop, "pm0" : accept }'`,
		passes4: "to from", passes6: "to from",
	},
	{
		name: "set of other interfaces",
		rules: `nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy accept; }'
			nft 'add rule inet f c iifname != { "lan0", "lan1" } ct state new drop'`,
		want:    []string{`certain inet f c: rule 1 of chain c drops packets forwarded from pm0; cure: nft 'insert rule inet f c iifname "pm0" accept'`},
		passes4: "to", passes6: "to",
	},
	{
		name: "addresses decide",
		rules: `nft add table ip f; nft 'add chain ip f c { type filter hook forward priority 0; policy drop; }'
			nft add rule ip f c ip saddr 192.168.0.0/16 ip daddr 192.168.0.0/16 accept`,
		want:    []string{`ip f c: its policy drops packets forwarded from and to pm0, unless one of its rules about particular packets accepts them; cure: nft`},
		passes4: "to from", passes6: "to from",
	},
	{
		name: "map with a jump",
		rules: `nft add table inet f; nft 'add chain inet f c { type filter hook forward priority 0; policy drop; }'; nft add chain inet f mesh
			nft 'add rule inet f c iifname vmap { "lan0" : accept, "pm0" : jump mesh }'; nft add rule inet f mesh ct state new accept; nft add rule inet f c ct state established accept`,
		want:    []string{`inet f c: its policy drops packets forwarded to pm0, unless`},
		passes4: "to from", passes6: "to from",
	},
	{
		name: "Docker",
		rules: `iptables-nft -P FORWARD DROP
			for c in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1; do iptables-nft -N $c; done
			iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
			iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables-nft -A FORWARD -o docker0 -j DOCKER
			iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
			iptables-nft -A DOCKER-USER -j RETURN; iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN`,
		want:    []string{"certain ip filter FORWARD: its policy drops packets forwarded from and to pm0; cure: iptables -I DOCKER-USER -i pm0 -j ACCEPT && iptables -I DOCKER-USER -o pm0 -j ACCEPT"},
		passes6: "to from",
	},
	{
		name: "ufw",
		rules: `iptables-nft -P FORWARD DROP; for c in ufw-before-forward ufw-user-forward; do iptables-nft -N $c; iptables-nft -A FORWARD -j $c; done
			iptables-nft -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables-nft -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT`,
		want:    []string{"certain ip filter FORWARD: its policy drops packets forwarded from and to pm0; cure: ufw route allow in on pm0 && ufw route allow out on pm0"},
		passes6: "to from",
		cannot:  "ufw route allow out on pm0",
	},
	{
		name: "firewalld",
		rules: `nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }'
			nft add rule inet firewalld filter_FORWARD ct state established,related accept
			nft add rule inet firewalld filter_FORWARD iifname lo accept
			nft add rule inet firewalld filter_FORWARD ct state invalid drop
			nft add rule inet firewalld filter_FORWARD reject with icmpx type admin-prohibited`,
		want:   []string{"certain inet firewalld filter_FORWARD: rule 4 of chain filter_FORWARD drops packets forwarded from and to pm0; cure: firewall-cmd --permanent --zone=trusted --add-interface=pm0 && "},
		cannot: "firewall-cmd --reload",
	},
	{
		name: "two chains, one of them ours to begin with",
		rules: `nft add table inet planetmesh-pm0; nft 'add chain inet planetmesh-pm0 c { type filter hook forward priority 0; policy drop; }'
			nft add table inet planetmesh-pm1; nft 'add chain inet planetmesh-pm1 c { type filter hook forward priority 0; policy drop; }'`,
		want:   []string{`certain inet planetmesh-pm1 c: its policy drops`},
		cannot: `nft 'insert rule inet planetmesh-pm1 c oifname "pm0" accept'`,
	},
}

func TestDiagnoseSaysWhatReallyHappens(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	for _, tt := range firewalls {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			defer sh(t, "nft flush ruleset")
			sh(t, tt.rules)
			found := diagnose(t)
			if len(found) != len(tt.want) {
				t.Errorf("%d findings, want %d: %v", len(found), len(tt.want), found)
			}
			for i := range min(len(found), len(tt.want)) {
				got := found[i].String()
				if found[i].Certain {
					got = "certain " + got
				}
				if !strings.HasPrefix(got, tt.want[i]) {
					t.Errorf("finding %d:\n got %s\nwant %s", i+1, got, tt.want[i])
				}
			}
			if p4, p6 := reachable(t, lan, far, 4), reachable(t, lan, far, 6); p4 != tt.passes4 || p6 != tt.passes6 {
				t.Errorf("really passes: IPv4 %q, IPv6 %q, want %q and %q", p4, p6, tt.passes4, tt.passes6)
			}
			for _, f := range found {
				if tt.cannot != "" {
					if !strings.HasSuffix(f.Cure, tt.cannot) {
						t.Errorf("cure is %q", f.Cure)
					}
					return
				}
				sh(t, f.Cure)
			}
			if found := diagnose(t); len(found) != 0 {
				t.Errorf("after the cure: %v", found)
			}
			if p4, p6 := reachable(t, lan, far, 4), reachable(t, lan, far, 6); p4 != "to from" || p6 != "to from" {
				t.Errorf("after the cure passes: IPv4 %q, IPv6 %q", p4, p6)
			}
		})
	}
}

func diagnose(t *testing.T) []Finding {
	t.Helper()
	found, err := Diagnose("pm0")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDiagnoseChangesNothingAndNeedsNoLink(t *testing.T) {
	if !isolated(t) {
		return
	}
	sh(t, "iptables-nft -P FORWARD DROP")
	before := sh(t, "nft list ruleset")
	if found := diagnose(t); len(found) != 1 || !found[0].Certain {
		t.Errorf("findings: %v", found)
	}
	if after := sh(t, "nft list ruleset"); after != before {
		t.Errorf("ruleset changed:\n%s", after)
	}
}

func TestRulesThatJumpForEverEndTheDiagnosis(t *testing.T) {
	if !isolated(t) {
		return
	}
	// 8 chains, each of which jumps 32 times to the next, are a million
	// million rules; the kernel accepts them.
	var b strings.Builder
	b.WriteString("table inet f {\n chain c8 { counter; }\n")
	for n := 7; n >= 0; n-- {
		b.WriteString(" chain c" + string(rune('0'+n)) + " {\n")
		if n == 0 {
			b.WriteString("  type filter hook forward priority 0; policy drop;\n")
		}
		b.WriteString(strings.Repeat("  jump c"+string(rune('1'+n))+"\n", 32) + " }\n")
	}
	b.WriteString("}\n")
	file := t.TempDir() + "/rules"
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, "nft -f "+file)
	if found := diagnose(t); len(found) != 0 {
		t.Errorf("findings: %v", found) // it gave up, and does not claim anything
	}
}

func TestLegacyRulesAreReported(t *testing.T) {
	if !isolated(t) {
		return
	}
	// Reading the rules loads the old filter table, if the kernel has one.
	sh(t, "iptables-legacy -P FORWARD DROP")
	found := diagnose(t)
	if len(found) != 1 || found[0].Family != "iptables-legacy" || found[0].Certain ||
		found[0].Cure != "iptables-legacy -I FORWARD -i pm0 -j ACCEPT && iptables-legacy -I FORWARD -o pm0 -j ACCEPT" {
		t.Errorf("findings: %v", found)
	}
}
