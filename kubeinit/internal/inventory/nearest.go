package inventory

import (
	"slices"
	"strings"
)

// otherWords are keys that people know from other programs, and the key that
// they mean here.
var otherWords = map[string]string{
	"podsubnet": "podSupernet", "podcidr": "podSupernet", "clustercidr": "podSupernet",
	"servicecidr": "serviceSubnet", "services": "serviceSubnet", "domain": "dnsDomain",
	"certsans": "externalNames", "sans": "externalNames", "kubernetesversion": "version",
	"registry": "imageRepository", "address": "nodeIP", "ip": "nodeIP", "internalip": "nodeIP",
	"role": "roles", "subnets": "prefixes", "prefix": "prefixes", "networks": "prefixes", "cidrs": "prefixes",
	"gateway": "gateways", "bastion": "jump", "proxyjump": "jump", "username": "user", "identityfile": "key", "privatekey": "key",
	"addr": "address", "host": "address", "become": "sudo", "nodes": "hosts", "machines": "hosts", "site": "sites",
	"electiontimeout": "election", "heartbeatinterval": "heartbeat", "loadbalancer": "endpoint",
	"lb": "loadbalancer", "master": "control-plane", "controlplane": "control-plane", "node": "worker", "router": "gateway",
}

// nearest returns the word that was probably meant, or "".
func nearest(word string, among []string) string {
	plain := fold(word)
	if i := slices.IndexFunc(among, func(a string) bool { return fold(a) == plain }); i >= 0 {
		return among[i]
	}
	if other := otherWords[plain]; slices.Contains(among, other) {
		return other
	}
	best, least := "", 3 // edits; two of them are still a slip of the fingers
	for _, a := range among {
		if d := distance(plain, fold(a)); d < least && d < len(a)/2 {
			best, least = a, d
		}
	}
	return best
}

// fold makes node_ip, node-ip and nodeIP the same.
func fold(word string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(strings.ToLower(short(word)))
}

// distance is how many letters must be added, dropped or changed to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i, r := range x {
		diagonal := row[0]
		row[0] = i + 1
		for j, s := range y {
			change := diagonal
			if r != s {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j+1]+1, row[j]+1, change)
		}
	}
	return row[len(y)]
}
