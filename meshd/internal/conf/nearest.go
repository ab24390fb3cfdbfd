package conf

import (
	"slices"
	"strings"
)

// otherWords are keys that people expect from other programs or from other
// words of this one, and the key that they mean.
var otherWords = map[string]string{
	"routes":      "announce",
	"prefixes":    "announce",
	"prefix":      "announce",
	"advertise":   "announce",
	"listen":      "port",
	"listenport":  "port",
	"statedir":    "state",
	"dev":         "device",
	"iface":       "interface",
	"ifname":      "interface",
	"endpoint":    "endpoints",
	"peers":       "seeds",
	"loglevel":    "log",
	"logging":     "log",
	"metric":      "priority",
	"attachments": "openvpn",
	"proto":       "transport",
	"protocol":    "transport",
	"secret":      "key",
	"ifconfig":    "tunnel",
	"compress":    "compression",
	"complzo":     "compression",
	"keepalive":   "ping",
	"renegsec":    "renegotiate",
	"digest":      "auth",
	"hash":        "auth",
}

// nearest returns the name that was probably meant by word, or "".
func nearest(word string, names []string) string {
	plain := fold(word)
	if other := otherWords[plain]; slices.Contains(names, other) {
		return other
	}
	best, least := "", 3 // edits; two of them are still a slip of the fingers
	for _, name := range names {
		if d := distance(plain, fold(name)); d < least && d < len(name)/2+1 {
			best, least = name, d
		}
	}
	return best
}

// fold makes keep_host, keep-host and KeepHost the same.
func fold(word string) string {
	word = strings.ToLower(short(word))
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(word)
}

// distance is the number of single letters that must be added, dropped or
// changed, or neighbours swapped, to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			change := rows[i-1][j-1]
			if x[i-1] != y[j-1] {
				change++
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(x)][len(y)]
}
