package overlaytest

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Lie is what a gateway does that has a valid certificate and bad intentions.
type Lie string

// The lies. Each goes on until World.Honest.
const (
	LieDeath      Lie = "death"      // tells everybody that others are dead or suspect, with high incarnations
	LieReplay     Lie = "replay"     // sends what it heard and old records again, to others and later
	LieGarbage    Lie = "garbage"    // sends malformed packets and streams
	LieOversize   Lie = "oversize"   // sends messages that promise or have too many bytes
	LieDrip       Lie = "drip"       // opens streams and sends a byte a second
	LieFlood      Lie = "flood"      // signs a new record ten times a second and sends each to everybody
	LieSteal      Lie = "steal"      // announces prefixes of others
	LieEquivocate Lie = "equivocate" // tells each half of the mesh another record of the same order
)

// Lies are all of them.
var Lies = []Lie{LieDeath, LieReplay, LieGarbage, LieOversize, LieDrip, LieFlood, LieSteal, LieEquivocate}

// Hostility is what all members of memberlist do at once. Records that
// memberlist's packets carry are lost with them.
type Hostility string

// The kinds of hostility.
const (
	Peaceful      Hostility = ""
	HostileSilent Hostility = "silent" // every packet is lost
	HostileDeaths Hostility = "deaths" // every packet becomes the news that somebody is dead
	HostileNoise  Hostility = "noise"  // every packet becomes noise
)

// SetHostility replaces what every gateway hears through memberlist.
func (w *World) SetHostility(h Hostility) {
	w.gossip.mu.Lock()
	defer w.gossip.mu.Unlock()
	w.gossip.hostility = h
}

// Lie makes gateway i lie until Honest. Nothing is asked of its own view until
// it is started again.
func (w *World) Lie(i int, kind Lie) {
	g := w.gateways[i]
	if g.mesh == nil || g.liar != nil {
		return
	}
	w.law.corrupted(g)
	g.lied = true
	ctx, stop := context.WithCancel(context.Background())
	l := &liar{
		g: g, inside: g.inside, stop: stop,
		random: rand.New(rand.NewPCG(w.random.Uint64(), uint64(i))), //nolint:gosec // repeatable on purpose
	}
	g.liar = l
	l.wg.Go(func() { l.run(ctx, kind) })
}

// Honest ends the lies of gateway i.
func (w *World) Honest(i int) { w.gateways[i].shutUp() }

func (g *Gateway) shutUp() {
	if g.liar != nil {
		g.liar.stop()
		g.liar.wg.Wait()
		g.liar = nil
	}
}

// rumours is what memberlist's packets meet on their way into a gateway.
type rumours struct {
	mu        sync.Mutex // guards all below
	hostility Hostility
	random    *rand.Rand
	heard     [][]byte // a sample of what was said, for LieReplay
}

// maxHeard bounds what is kept for replays.
const maxHeard = 64

// hear returns what memberlist of a gateway hears in place of b.
func (r *rumours) hear(w *World, peer trust.GatewayID, b []byte) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.hostility {
	case HostileSilent:
		return nil
	case HostileNoise:
		return [][]byte{noise(r.random, 1+r.random.IntN(200))}
	case HostileDeaths:
		victim, ok := w.law.someone(r.random)
		if !ok {
			return nil
		}
		return [][]byte{accusation(messageDead, victim, peer, r.random.Uint32N(1<<30))}
	}
	if len(r.heard) < maxHeard {
		r.heard = append(r.heard, slices.Clone(b))
	} else if r.random.IntN(100) == 0 {
		r.heard[r.random.IntN(maxHeard)] = slices.Clone(b)
	}
	return [][]byte{b}
}

func (r *rumours) sample(random *rand.Rand) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.heard) == 0 {
		return nil
	}
	return r.heard[random.IntN(len(r.heard))]
}

// liar is a gateway at work.
type liar struct {
	g      *Gateway
	inside interface {
		ID() trust.GatewayID
		Records() []*record.Record
		SendGossip(peer trust.GatewayID, b []byte) error
		OpenStream(ctx context.Context, peer trust.GatewayID, kind byte) (net.Conn, error)
		Sign(change func(*record.Record)) ([]byte, error)
	}
	random *rand.Rand
	stop   context.CancelFunc
	wg     sync.WaitGroup
	past   [][]byte // records of others as they once were
	steps  uint64
}

// pace is the time between two lies.
var pace = map[Lie]time.Duration{
	LieDeath: 200 * time.Millisecond, LieReplay: 200 * time.Millisecond, LieGarbage: 100 * time.Millisecond,
	LieOversize: time.Second, LieDrip: time.Second, LieFlood: 100 * time.Millisecond, LieSteal: time.Second, LieEquivocate: 5 * time.Second,
}

func (l *liar) run(ctx context.Context, kind Lie) {
	ticker := time.NewTicker(pace[kind])
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l.steps++
		peers := l.peers()
		if len(peers) == 0 {
			continue
		}
		switch kind {
		case LieDeath:
			l.accuse(peers)
		case LieReplay:
			l.replay(ctx, peers)
		case LieGarbage:
			l.garbage(ctx, peers)
		case LieOversize:
			l.oversize(ctx, peers)
		case LieDrip:
			l.drip(ctx, peers)
		case LieFlood:
			l.flood(ctx, peers)
		case LieSteal:
			l.steal(ctx, peers)
		case LieEquivocate:
			l.equivocate(ctx, peers)
		}
	}
}

// peers are the other gateways that it knows.
func (l *liar) peers() []*record.Record {
	return slices.DeleteFunc(l.inside.Records(), func(r *record.Record) bool { return r.ID == l.inside.ID() })
}

func (l *liar) any(peers []*record.Record) trust.GatewayID {
	return peers[l.random.IntN(len(peers))].ID
}

// Types of memberlist's messages (memberlist 0.7, net.go).
const (
	messageSuspect  = 3
	messageDead     = 5
	messagePushPull = 6
	messageCompound = 7
	messageUser     = 8
)

// accusation is memberlist's message that a member is suspect or dead: a
// map of three entries in msgpack.
func accusation(kind byte, node, from trust.GatewayID, incarnation uint32) []byte {
	text := func(b []byte, s string) []byte {
		if len(s) < 32 {
			return append(append(b, 0xa0|byte(len(s))), s...)
		}
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...) //nolint:gosec // an ID in hex
	}
	b := []byte{kind, 0x83}
	b = text(text(b, "From"), from.String())
	b = binary.BigEndian.AppendUint32(append(text(b, "Incarnation"), 0xce), incarnation)
	return text(text(b, "Node"), node.String())
}

func (l *liar) accuse(peers []*record.Record) {
	kind := byte(messageDead)
	if l.random.IntN(2) == 0 {
		kind = messageSuspect
	}
	news := accusation(kind, l.any(peers), l.inside.ID(), l.random.Uint32N(1<<31))
	for _, p := range peers {
		_ = l.inside.SendGossip(p.ID, news)
	}
}

func (l *liar) replay(ctx context.Context, peers []*record.Record) {
	if len(l.past) < maxHeard {
		l.past = append(l.past, peers[l.random.IntN(len(peers))].Raw)
	}
	if b := l.g.world.gossip.sample(l.random); b != nil {
		_ = l.inside.SendGossip(l.any(peers), b)
	}
	l.push(ctx, l.any(peers), l.past[l.random.IntN(len(l.past))])
}

func noise(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// garbage has the right type more often than chance would give it.
func (l *liar) garbage(ctx context.Context, peers []*record.Record) {
	b := noise(l.random, 1+l.random.IntN(1190))
	b[0] = byte(l.random.IntN(14))
	_ = l.inside.SendGossip(l.any(peers), b)
	if l.steps%20 == 0 {
		l.say(ctx, l.any(peers), l.kind(), noise(l.random, 1+l.random.IntN(5000)))
	}
}

func (l *liar) kind() byte {
	return []byte{stream.TypeAntiEntropy, stream.TypeGossip, stream.TypeAPI}[l.random.IntN(3)]
}

// oversize promises four gigabytes, sends a whole megabyte, or a state exchange
// of a million members.
func (l *liar) oversize(ctx context.Context, peers []*record.Record) {
	switch l.random.IntN(3) {
	case 0:
		l.say(ctx, l.any(peers), l.kind(), []byte{0xff, 0xff, 0xff, 0xff, 1})
	case 1:
		b := binary.BigEndian.AppendUint32(nil, 1<<20)
		l.say(ctx, l.any(peers), l.kind(), append(b, make([]byte, 1<<20)...))
	default:
		header := append([]byte{messagePushPull, 0x83, 0xa5}, "Nodes"...)
		header = binary.BigEndian.AppendUint32(append(header, 0xce), 1<<20)
		l.say(ctx, l.any(peers), stream.TypeGossip, header)
	}
	nested := []byte{messageUser}
	for range 200 {
		nested = append([]byte{messageCompound, 1, 0, byte(len(nested))}, nested...)
	}
	_ = l.inside.SendGossip(l.any(peers), nested[:min(len(nested), 1190)])
}

// sayTimeout bounds a stream of a liar but those that drip.
const sayTimeout = 5 * time.Second

// say sends bytes on a stream of their own.
func (l *liar) say(ctx context.Context, peer trust.GatewayID, kind byte, b []byte) {
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, sayTimeout)
		defer cancel()
		conn, err := l.inside.OpenStream(ctx, peer, kind)
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(sayTimeout))
		_, _ = conn.Write(b)
		_, _ = conn.Read(make([]byte, 4096))
	})
}

// drip keeps a stream busy for as long as the other side lets it.
func (l *liar) drip(ctx context.Context, peers []*record.Record) {
	peer, kind := l.any(peers), l.kind()
	l.wg.Go(func() {
		conn, err := l.inside.OpenStream(ctx, peer, kind)
		if err != nil {
			return
		}
		defer conn.Close()
		for range 60 {
			_ = conn.SetWriteDeadline(time.Now().Add(sayTimeout))
			if _, err := conn.Write([]byte{0}); err != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
}

// push opens an exchange of records as a gateway does that has something new.
func (l *liar) push(ctx context.Context, peer trust.GatewayID, raw []byte) {
	if user := append([]byte{messageUser}, raw...); len(user) <= 1190 {
		_ = l.inside.SendGossip(peer, user)
	}
	if l.random.IntN(10) > 0 {
		return
	}
	// Summary that differs from every other, no revocations, an empty digest;
	// then, as the answer to whatever is wanted, the record.
	const summary, digest, records, revocations = 1, 2, 3, 5
	var b frames
	b.add(summary, make([]byte, 64))
	b.add(revocations, nil)
	b.add(digest, nil)
	b.add(records, raw)
	b.add(records, nil)
	l.say(ctx, peer, stream.TypeAntiEntropy, b)
}

// frames are messages of a stream, one after the other.
type frames []byte

func (f *frames) add(kind byte, body []byte) { _ = wire.WriteFrame(f, append([]byte{kind}, body...)) }

// Write implements io.Writer.
func (f *frames) Write(b []byte) (int, error) {
	*f = append(*f, b...)
	return len(b), nil
}

// flood sends ever newer records, with and without routes.
func (l *liar) flood(ctx context.Context, peers []*record.Record) {
	raw, err := l.inside.Sign(func(r *record.Record) {
		r.Sequence += l.steps
		if l.steps%2 == 0 {
			r.Routes = nil
		}
	})
	if err != nil {
		return
	}
	for _, p := range peers {
		l.push(ctx, p.ID, raw)
	}
}

// steal announces a prefix of another site.
func (l *liar) steal(ctx context.Context, peers []*record.Record) {
	victim := peers[l.random.IntN(len(peers))]
	raw, err := l.inside.Sign(func(r *record.Record) {
		r.Sequence += l.steps
		r.Routes = victim.Routes
	})
	if err != nil {
		return
	}
	for _, p := range peers {
		l.push(ctx, p.ID, raw)
	}
}

// equivocate tells the ones this and the others that.
func (l *liar) equivocate(ctx context.Context, peers []*record.Record) {
	for i, p := range peers {
		raw, err := l.inside.Sign(func(r *record.Record) {
			r.Sequence += l.steps
			r.Software = []string{"this", "that"}[i%2]
		})
		if err == nil {
			l.push(ctx, p.ID, raw)
		}
	}
}
