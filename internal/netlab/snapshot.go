//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// snapshotScript prints the network state of a host with numbers instead of names.
const snapshotScript = `
echo '# links';     ip -N -d -o link show
echo '# addresses'; ip -N -o addr show
echo '# routes';    ip -N -4 route show table all && ip -N -6 route show table all
echo '# nexthops';  ip -N nexthop show
echo '# rules';     ip -N -4 rule show && ip -N -6 rule show
echo '# nftables';  nft -n -s list ruleset
`

// What changes by itself, or by making a thing again in the same way, is left out of snapshots: interface indexes,
// remaining lifetimes, counters.
var (
	linkIndex = regexp.MustCompile(`(?m)^\d+: `)
	peerIndex = regexp.MustCompile(`@if\d+|@NONE`)
	lifetimes = regexp.MustCompile(`\\\s+valid_lft \S+ preferred_lft \S+| expires \d+sec`)
	counters  = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	trailing  = regexp.MustCompile(`(?m)[ \t]+$`)
)

// Snapshot describes the kernel state of the host as text, to be compared before and after: links, addresses, the routes of
// all tables, next hops, rules, the nftables rule set without counters, and all settings below net/ipv4/conf and
// net/ipv6/conf with the global forwarding switch. Two snapshots of an unchanged host are equal.
func (h *Host) Snapshot(ctx context.Context) (string, error) {
	c := h.Command(ctx, "sh", "-ec", snapshotScript)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("host %s: snapshot: %w: %s", h.spec.Name, err, strings.TrimSpace(stderr.String()))
	}
	var settings string
	err = h.Do(func() (err error) {
		settings, err = readSettings()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("host %s: snapshot: %w", h.spec.Name, err)
	}
	return normalize(string(out)) + "# settings\n" + settings, nil
}

func normalize(s string) string {
	for _, r := range []*regexp.Regexp{linkIndex, peerIndex, lifetimes, trailing} {
		s = r.ReplaceAllString(s, "")
	}
	return counters.ReplaceAllString(s, "counter")
}

func readSettings() (string, error) {
	names := []string{"/proc/sys/net/ipv4/ip_forward"}
	for _, pattern := range []string{"/proc/sys/net/ipv4/conf/*/*", "/proc/sys/net/ipv6/conf/*/*"} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		names = append(names, matches...)
	}
	var b strings.Builder
	for _, name := range names {
		value, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EIO) {
			continue // gone with its interface, write-only, or a secret that is not set
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s=%s\n", strings.TrimPrefix(name, "/proc/sys/"), strings.TrimSpace(string(value)))
	}
	return b.String(), nil
}

// DiffSnapshots lists what differs between two snapshots: lines that are only in before, with "- " in front of them, and
// lines that are only in after, with "+ ", each behind its section: "+ routes: 10.0.0.0/8 dev tun0 ...". nil means equal.
func DiffSnapshots(before, after string) []string {
	count := make(map[string]int)
	for _, line := range sectioned(before) {
		count[line]--
	}
	for _, line := range sectioned(after) {
		count[line]++
	}
	var diff []string
	for line, n := range count {
		for range n {
			diff = append(diff, "+ "+line)
		}
		for range -n {
			diff = append(diff, "- "+line)
		}
	}
	slices.SortFunc(diff, func(a, b string) int { return strings.Compare(a[2:]+a[:1], b[2:]+b[:1]) })
	return diff
}

// sectioned is the lines of a snapshot with the name of their section in front.
func sectioned(s string) []string {
	var lines []string
	section := ""
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "# "); ok {
			section = name
		} else if line != "" {
			lines = append(lines, section+": "+line)
		}
	}
	return lines
}
