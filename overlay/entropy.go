package overlay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Anti-entropy compares two sets of records and brings both up to date
// (docs/protocol.md, section 4). It is what makes views equal in the end;
// gossip only makes it faster.

// Kinds of anti-entropy messages and their limits (docs/protocol.md, section 4).
const (
	entropySummary     = 1
	entropyDigest      = 2
	entropyRecords     = 3
	entropyWant        = 4
	entropyRevocations = 5

	entropyMaxMessage  = 256 << 10
	entropyMaxExchange = 16 << 20
	entropyTimeout     = 30 * time.Second
)

var errEntropyOrder = errors.New("anti-entropy: message out of order")

// exchange is one anti-entropy exchange over a stream.
type exchange struct {
	m    *Mesh
	peer GatewayID
	conn net.Conn
	in   io.Reader // conn, bounded
}

func (m *Mesh) newExchange(peer GatewayID, conn net.Conn) *exchange {
	_ = conn.SetDeadline(time.Now().Add(entropyTimeout))
	return &exchange{m: m, peer: peer, conn: conn, in: io.LimitReader(conn, entropyMaxExchange)}
}

// reconcile opens an exchange with peer and runs it to its end.
func (m *Mesh) reconcile(ctx context.Context, peer GatewayID) error {
	conn, err := m.streams.OpenStream(ctx, peer, stream.TypeAntiEntropy)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := m.newExchange(peer, conn).open(); err != nil {
		return fmt.Errorf("anti-entropy with %s: %w", peer.Short(), err)
	}
	m.count("entropy.exchanges")
	return nil
}

// serveEntropy answers an exchange that peer opened.
func (m *Mesh) serveEntropy(peer GatewayID, conn net.Conn) {
	if err := m.newExchange(peer, conn).answer(); err != nil {
		m.count("entropy.failed")
		m.log.Debug("anti-entropy ended early", "peer", peer.Short(), "err", err)
	}
}

// open is the opener's side.
func (x *exchange) open() error {
	mine := x.summary()
	if err := x.send(entropySummary, mine); err != nil {
		return err
	}
	theirs, err := x.receive(entropySummary)
	if err != nil {
		return err
	}
	if bytes.Equal(mine, theirs) {
		return nil
	}
	if err := x.sendRevocations(); err != nil {
		return err
	}
	if err := x.send(entropyDigest, encodeDigest(x.m.book.Digest())); err != nil {
		return err
	}
	if err := x.receiveRevocations(); err != nil {
		return err
	}
	if err := x.receiveRecords(); err != nil {
		return err
	}
	want, err := x.receive(entropyWant)
	if err != nil {
		return err
	}
	ids, err := decodeWant(want)
	if err != nil {
		return err
	}
	var records []*record.Record
	for _, id := range ids {
		if r, ok := x.m.book.Get(id); ok {
			records = append(records, r)
		}
	}
	return x.sendRecords(records)
}

// answer is the other side.
func (x *exchange) answer() error {
	theirs, err := x.receive(entropySummary)
	if err != nil {
		return err
	}
	mine := x.summary()
	if err := x.send(entropySummary, mine); err != nil {
		return err
	}
	if bytes.Equal(mine, theirs) {
		return nil
	}
	if err := x.receiveRevocations(); err != nil {
		return err
	}
	b, err := x.receive(entropyDigest)
	if err != nil {
		return err
	}
	digest, err := decodeDigest(b)
	if err != nil {
		return err
	}
	records, want := x.m.book.Newer(digest)
	if err := x.sendRevocations(); err != nil {
		return err
	}
	if err := x.sendRecords(records); err != nil {
		return err
	}
	if err := x.send(entropyWant, encodeWant(want)); err != nil {
		return err
	}
	return x.receiveRecords()
}

// summary is what both sides compare first.
func (x *exchange) summary() []byte {
	records, revocations := x.m.book.Summary(), x.m.revocations.Digest()
	return append(records[:], revocations[:]...)
}

func (x *exchange) send(kind byte, body []byte) error {
	return wire.WriteFrame(x.conn, append([]byte{kind}, body...))
}

// receive reads one message, which must be of the given kind.
func (x *exchange) receive(kind byte) ([]byte, error) {
	b, err := wire.ReadFrame(x.in, entropyMaxMessage)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || b[0] != kind {
		return nil, errEntropyOrder
	}
	return b[1:], nil
}

// sendRecords sends records in as many messages as they need, and an empty one.
func (x *exchange) sendRecords(records []*record.Record) error {
	var batch []byte
	for _, r := range records {
		if len(batch)+len(r.Raw) >= entropyMaxMessage {
			if err := x.send(entropyRecords, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		batch = append(batch, r.Raw...)
	}
	if len(batch) > 0 {
		if err := x.send(entropyRecords, batch); err != nil {
			return err
		}
	}
	return x.send(entropyRecords, nil)
}

// receiveRecords reads messages up to the empty one and offers what they hold.
func (x *exchange) receiveRecords() error {
	for {
		b, err := x.receive(entropyRecords)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return nil
		}
		raws, err := wire.SplitObjects(b)
		if err != nil {
			return err
		}
		for _, raw := range raws {
			// What is not believed is counted; the rest of the exchange goes on.
			_, _ = x.m.offer(raw, "anti-entropy")
		}
	}
}

func (x *exchange) sendRevocations() error {
	return x.send(entropyRevocations, bytes.Join(x.m.revocations.Raw(), nil))
}

func (x *exchange) receiveRevocations() error {
	b, err := x.receive(entropyRevocations)
	if err != nil {
		return err
	}
	raws, err := wire.SplitObjects(b)
	if err != nil {
		return err
	}
	return x.m.mergeRevocations(raws)
}

// digestEntrySize is gateway ID ‖ generation ‖ sequence ‖ 16 bytes of hash.
const digestEntrySize = 16 + 8 + 8 + 16

func encodeDigest(entries []record.DigestEntry) []byte {
	b := make([]byte, 0, len(entries)*digestEntrySize)
	for _, e := range entries {
		b = append(b, e.ID[:]...)
		b = binary.BigEndian.AppendUint64(b, e.Order.Generation)
		b = binary.BigEndian.AppendUint64(b, e.Order.Sequence)
		b = append(b, e.Hash[:]...)
	}
	return b
}

func decodeDigest(b []byte) ([]record.DigestEntry, error) {
	if len(b)%digestEntrySize != 0 {
		return nil, fmt.Errorf("digest of %d bytes: want a multiple of %d", len(b), digestEntrySize)
	}
	out := make([]record.DigestEntry, 0, len(b)/digestEntrySize)
	for ; len(b) > 0; b = b[digestEntrySize:] {
		var e record.DigestEntry
		copy(e.ID[:], b)
		e.Order.Generation = binary.BigEndian.Uint64(b[16:])
		e.Order.Sequence = binary.BigEndian.Uint64(b[24:])
		copy(e.Hash[:], b[32:])
		out = append(out, e)
	}
	return out, nil
}

func encodeWant(ids []trust.GatewayID) []byte {
	b := make([]byte, 0, len(ids)*16)
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func decodeWant(b []byte) ([]trust.GatewayID, error) {
	if len(b)%16 != 0 {
		return nil, fmt.Errorf("want of %d bytes: want a multiple of 16", len(b))
	}
	out := make([]trust.GatewayID, 0, len(b)/16)
	for ; len(b) > 0; b = b[16:] {
		out = append(out, trust.GatewayID(b[:16]))
	}
	return out, nil
}

// entropyInterval is the mean time between two exchanges that one gateway
// opens. Gossip spreads changes in seconds; this bounds how long one that
// gossip lost stays lost, at about one summary of 100 bytes per interval.
const entropyInterval = 5 * time.Second

// entropyLoop opens exchanges with partners drawn from stored records, for
// ever, whatever memberlist believes.
func (m *Mesh) entropyLoop(ctx context.Context) error {
	for {
		partners := 1
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(entropyInterval/2 + m.jitter(entropyInterval)):
		case <-m.newcomer:
			partners = newcomerPartners
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(newcomerPause):
			}
		}
		for _, peer := range m.entropyPartners(partners) {
			if err := m.reconcile(ctx, peer); err != nil {
				m.count("entropy.failed")
				m.log.Debug("anti-entropy did not succeed", "peer", peer.Short(), "err", err)
			}
		}
	}
}

// newcomerPartners is with how many gateways records are exchanged at once when
// a gateway introduced itself or was reached for the first time: gossip needs
// some rounds, and the newcomer's first probes would find nobody who knows it.
const newcomerPartners = 3

// newcomerPause lets many newcomers share a round.
const newcomerPause = 100 * time.Millisecond

// entropyPartners draws up to n of the stored gateways that answer probes.
func (m *Mesh) entropyPartners(n int) []GatewayID {
	var reachable []GatewayID
	for _, r := range m.book.All() {
		if path, ok := m.prover.Path(r.ID); ok && path.Alive {
			reachable = append(reachable, r.ID)
		}
	}
	rand.Shuffle(len(reachable), func(i, j int) { reachable[i], reachable[j] = reachable[j], reachable[i] })
	return reachable[:min(n, len(reachable))]
}

// byID orders records by gateway ID.
func byID(a, b *record.Record) int { return bytes.Compare(a.ID[:], b.ID[:]) }

// byName orders records by site, then gateway name.
func byName(a, b *record.Record) int {
	return cmp.Or(
		cmp.Compare(a.Chain.Certificate.Site, b.Chain.Certificate.Site),
		cmp.Compare(a.Chain.Certificate.Gateway, b.Chain.Certificate.Gateway),
		byID(a, b),
	)
}
