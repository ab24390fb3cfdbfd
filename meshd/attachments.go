package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
)

// attachmentTable has a line for every attached router.
func attachmentTable(s ctl.Status, before *ctl.Status) *table {
	t := new(table)
	rx, tx := ">RX", ">TX"
	if before != nil {
		rx, tx = ">RX/s", ">TX/s"
	}
	t.head("ROUTER", "STATE", "PEER", "MODE", "CIPHER", "PREFIXES", rx, tx, ">AGE", "DROPPED")
	for _, a := range s.Attachments {
		peer := ""
		if a.Peer.IsValid() {
			peer = a.Peer.String() + " " + a.Transport
		}
		received, sent := attachmentTraffic(a, s, before)
		t.add(text(a.Name), routerState(a.State), text(peer), text(a.Mode), text(cipherOf(a)), text(behind(a)),
			text(received), text(sent), text(age(s.Time, a.Since)), text(dropped(a)))
	}
	return t
}

func routerState(s attach.State) cell {
	switch s {
	case attach.StateUp:
		return styled(string(s), good)
	case attach.StateConnecting:
		return styled(string(s), poor)
	default:
		return styled(string(s), bad)
	}
}

// cipherOf is what protects the packets; an AEAD cipher needs no digest.
func cipherOf(a attach.Status) string {
	if a.Digest == "" || a.Cipher == "" {
		return a.Cipher
	}
	return a.Cipher + "/" + a.Digest
}

func behind(a attach.Status) string {
	words := make([]string, len(a.Prefixes))
	for i, p := range a.Prefixes {
		words[i] = p.String()
	}
	text := strings.Join(words, ", ")
	if a.Priority != 0 {
		text += fmt.Sprintf(" (priority %d)", a.Priority)
	}
	return text
}

// dropped counts what was dropped, by reason.
func dropped(a attach.Status) string {
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(a.Dropped)) {
		words = append(words, fmt.Sprintf("%s %d", reason, a.Dropped[reason]))
	}
	return strings.Join(words, ", ")
}

// attachmentTraffic is what a router sent and was sent since the start, or a
// second since before.
func attachmentTraffic(a attach.Status, s ctl.Status, before *ctl.Status) (received, sent string) {
	if before == nil {
		return size(a.RxBytes), size(a.TxBytes)
	}
	i := slices.IndexFunc(before.Attachments, func(old attach.Status) bool { return old.Name == a.Name })
	seconds := s.Time.Sub(before.Time).Seconds()
	if i < 0 || seconds <= 0 {
		return "", ""
	}
	old := before.Attachments[i]
	return rate(old.RxBytes, a.RxBytes, seconds), rate(old.TxBytes, a.TxBytes, seconds)
}

// attachmentProblems says which routers are away, and which send what they may not.
func attachmentProblems(s ctl.Status) []string {
	var lines []string
	for _, a := range s.Attachments {
		switch {
		case a.State == attach.StateUp:
		case a.LastError != "":
			lines = append(lines, fmt.Sprintf("router %s is %s, its prefixes are not announced: %s", a.Name, a.State, a.LastError))
		default:
			lines = append(lines, fmt.Sprintf("router %s is %s, its prefixes are not announced", a.Name, a.State))
		}
		if n := a.Dropped[attach.DropSource]; n > 0 {
			lines = append(lines, fmt.Sprintf("router %s sent %d packets from sources that are not among its prefixes; add them to \"prefixes\", or look who sends", a.Name, n))
		}
	}
	return lines
}
