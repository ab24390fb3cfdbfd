package gossip

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// What one peer may send in a second, and twice as much at once. A member of a
// mesh of 200 gets a few packets a second from all others together; indirect
// pings cost memberlist a goroutine each for as long as a probe waits.
const (
	ratePackets   = 50
	rateUsers     = 50
	rateIndirects = 5
)

// inbox filters packets and queues what is left of them.
type inbox struct {
	filter  *filter
	packets chan<- *memberlist.Packet
	users   chan<- userMessage

	mu    sync.Mutex // guards peers
	peers map[trust.GatewayID]*rates
}

// rates are the limits of one peer.
type rates struct{ packets, users, indirects *rate.Limiter }

func newInbox(f *filter, packets chan<- *memberlist.Packet, users chan<- userMessage) *inbox {
	return &inbox{filter: f, packets: packets, users: users, peers: make(map[trust.GatewayID]*rates)}
}

// packet takes a packet of an authenticated peer. It neither blocks nor keeps b.
func (i *inbox) packet(peer trust.GatewayID, b []byte) {
	count := i.filter.count
	count.add(packetsIn)
	addr, ok := i.filter.addr(peer)
	if !ok || peer == i.filter.self {
		count.add(dropPeer)
		return
	}
	now := time.Now()
	limits := i.of(peer)
	if !limits.packets.AllowN(now, 1) {
		count.add(dropRate)
		return
	}
	v, err := i.filter.packet(peer, b)
	if err != nil {
		count.add(reason(err))
		return
	}
	if len(v.users) > 0 {
		i.passUsers(peer, v.users, limits, now)
	}
	if len(v.messages) == 0 {
		return
	}
	if v.indirects > 0 && !limits.indirects.AllowN(now, v.indirects) {
		count.add(dropRate)
		return
	}
	from := &net.UDPAddr{IP: addr.AsSlice(), Port: Port}
	select {
	case i.packets <- &memberlist.Packet{Buf: join(v.messages), From: from, Timestamp: now}:
	default:
		count.add(dropQueue)
	}
}

func (i *inbox) passUsers(peer trust.GatewayID, users [][]byte, limits *rates, now time.Time) {
	count := i.filter.count
	for _, b := range users {
		if !limits.users.AllowN(now, 1) {
			count.add(dropRate)
			continue
		}
		select {
		case i.users <- userMessage{peer, bytes.Clone(b)}:
			count.add(usersIn)
		default:
			count.add(dropUserQueue)
		}
	}
}

// of returns the limits of a peer. Peers are stored gateways, so there are few; should there ever be very many,
// forgetting all limits costs less than keeping them.
func (i *inbox) of(peer trust.GatewayID) *rates {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.peers[peer]
	if r == nil {
		if len(i.peers) >= maxStateNodes {
			clear(i.peers)
		}
		r = &rates{
			packets:   rate.NewLimiter(ratePackets, 2*ratePackets),
			users:     rate.NewLimiter(rateUsers, 2*rateUsers),
			indirects: rate.NewLimiter(rateIndirects, 2*rateIndirects),
		}
		i.peers[peer] = r
	}
	return r
}

// reason names why a whole packet was dropped.
func reason(err error) event {
	switch {
	case errors.Is(err, errType):
		return dropType
	case errors.Is(err, errNesting):
		return dropNesting
	case errors.Is(err, errChecksum):
		return dropChecksum
	}
	return dropMalformed
}
