package overlay

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"
)

// ledger is what an issuing key must never forget: which numbers it gave away
// and which identity redeemed which ticket. It is on disk before anything that
// depends on it leaves the machine.
type ledger struct {
	Epoch     string                    `json:"epoch"`     // 16 random bytes in hex; tickets of another one are void
	NextGrant uint64                    `json:"nextGrant"` // the next grant number
	Grants    map[string][]ledgerGrant  `json:"grants"`    // by site
	Gateways  map[string]*ledgerGateway `json:"gateways"`  // by gateway name
	Tickets   map[string]*ledgerTicket  `json:"tickets"`   // by ticket ID in hex
}

type ledgerGrant struct {
	Prefix netip.Prefix `json:"prefix"`
	Number uint64       `json:"number"`
}

type ledgerGateway struct {
	Site       string         `json:"site"`
	Identity   []byte         `json:"identity"`
	Generation uint64         `json:"generation"`
	Prefixes   []netip.Prefix `json:"prefixes"`
	Relay      bool           `json:"relay,omitempty"`
}

type ledgerTicket struct {
	Gateway     string         `json:"gateway"`
	Site        string         `json:"site"`
	Prefixes    []netip.Prefix `json:"prefixes"`
	Relay       bool           `json:"relay,omitempty"`
	Key         []byte         `json:"key"` // the ticket's public key
	Expiry      time.Time      `json:"expiry"`
	Bound       []byte         `json:"bound,omitempty"`    // the only identity it is for
	Identity    []byte         `json:"identity,omitempty"` // who redeemed it
	Redeemed    time.Time      `json:"redeemed,omitzero"`
	Certificate []byte         `json:"certificate,omitempty"` // what the redeemer was given
}

const ledgerFile = "issuer.ledger"

// loadLedger reads the ledger. A missing or damaged one becomes a new one with
// an epoch of its own, which voids all tickets of the old. A damaged one is kept
// under another name as far as it can be read.
func loadLedger(store Store) (*ledger, error) {
	b, err := store.Load(ledgerFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, ErrStateCorrupt):
	case err != nil:
		return nil, err
	default:
		l := new(ledger)
		if err := json.Unmarshal(b, l); err == nil && len(l.Epoch) == 32 {
			return l, nil
		}
		if err := store.Save(ledgerFile+".damaged", b); err != nil {
			return nil, err
		}
	}
	var epoch [16]byte
	if _, err := rand.Read(epoch[:]); err != nil {
		return nil, err
	}
	l := &ledger{
		Epoch:     hex.EncodeToString(epoch[:]),
		NextGrant: 1,
		Grants:    make(map[string][]ledgerGrant),
		Gateways:  make(map[string]*ledgerGateway),
		Tickets:   make(map[string]*ledgerTicket),
	}
	return l, l.save(store)
}

func (l *ledger) save(store Store) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return store.Save(ledgerFile, b)
}

// grantNumbers returns the number of each prefix for site, giving new ones to
// those that have none. Numbers are never reused.
func (l *ledger) grantNumbers(site string, prefixes []netip.Prefix) []ledgerGrant {
	var out []ledgerGrant
	for _, p := range prefixes {
		i := slices.IndexFunc(l.Grants[site], func(g ledgerGrant) bool { return g.Prefix == p })
		if i < 0 {
			i = len(l.Grants[site])
			l.Grants[site] = append(l.Grants[site], ledgerGrant{Prefix: p, Number: l.NextGrant})
			l.NextGrant++
		}
		out = append(out, l.Grants[site][i])
	}
	return out
}

// overlap returns the first prefix that another site holds and that one of
// prefixes overlaps with: what a certified gateway has or a live ticket promises.
func (l *ledger) overlap(site string, prefixes []netip.Prefix, now time.Time) *OverlapError {
	check := func(otherSite string, others []netip.Prefix) *OverlapError {
		if otherSite == site {
			return nil
		}
		return overlapOf(otherSite, others, prefixes)
	}
	for _, g := range l.Gateways {
		if e := check(g.Site, g.Prefixes); e != nil {
			return e
		}
	}
	for _, t := range l.Tickets {
		if t.Identity == nil && now.Before(t.Expiry) {
			if e := check(t.Site, t.Prefixes); e != nil {
				return e
			}
		}
	}
	return nil
}

// overlapOf returns the first pair that overlaps, or nil.
func overlapOf(site string, held, asked []netip.Prefix) *OverlapError {
	for _, h := range held {
		for _, a := range asked {
			if h.Overlaps(a) {
				return &OverlapError{Prefix: a, Other: h, Site: site}
			}
		}
	}
	return nil
}

// freeName returns a gateway name for site that is not in use: gw-SITE, then
// gw-SITE-2 and so on.
func (l *ledger) freeName(site string, taken func(string) bool) string {
	name := "gw-" + site
	for n := 2; ; n++ {
		if !l.named(name) && !taken(name) {
			return name
		}
		name = fmt.Sprintf("gw-%s-%d", site, n)
	}
}

func (l *ledger) named(name string) bool {
	if _, ok := l.Gateways[name]; ok {
		return true
	}
	for _, t := range l.Tickets {
		if t.Gateway == name {
			return true
		}
	}
	return false
}

// prune forgets unredeemed tickets a week after they expired: by then nobody
// asks why any more.
func (l *ledger) prune(now time.Time) {
	for id, t := range l.Tickets {
		if t.Identity == nil && now.After(t.Expiry.Add(7*24*time.Hour)) {
			delete(l.Tickets, id)
		}
	}
}
