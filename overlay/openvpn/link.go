package openvpn

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// link is one connection: from opening the sockets to the next restart.
type link struct {
	e     *Endpoint
	tr    transport
	ch    channel
	fixed netip.AddrPort // the only address to hear over UDP, invalid: any

	ended chan error    // capacity 1: the first reason to end
	wake  chan struct{} // capacity 1: the timers changed
	heard atomic.Int64  // nanoseconds since began, of the last authentic packet
	sent  atomic.Int64  // likewise, of the last packet sent to the peer
	began time.Time
	up    atomic.Bool // the peer has proved who it is

	fragMu sync.Mutex
	frags  reassembler // guarded by fragMu
	seq    uint8       // guarded by fragMu: sequence number of sent fragments

	// Packets reach the transport in the order of their ids, because a peer drops
	// what comes too late: whoever seals holds sendMu until they are handed over.
	sendMu sync.Mutex
	crew   *crew      // guarded by sendMu; nil: there is one processor
	reply  sendBuffer // guarded by sendMu: for what is in said

	saidMu sync.Mutex
	said   [][]byte    // guarded by saidMu: pings and answers that wait for sendMu
	saying atomic.Bool // said is not empty
}

// channel is what differs between static key mode and TLS mode.
type channel interface {
	// receive checks one packet. It returns the payload of a data packet, which
	// lies within p, whether the packet is proof of the peer, and a Reason.
	receive(from path, p []byte) (payload []byte, heard bool, err error)
	// outlet returns where to send payloads, false while there is no way.
	outlet() (*outlet, bool)
	// tick does what is due and returns when it wants to be called next, zero for never.
	tick(now time.Time) time.Time
	// leave says goodbye in the way of the mode, within a second.
	leave()
	// stop ends the goroutines of the channel and waits for them.
	stop()
}

// outlet is a way to send payloads. It does not change.
type outlet struct {
	to    path
	key   *sendKey
	keyID uint8 // in TLS mode
}

// sendKey is a sealer that several goroutines share.
type sendKey struct {
	mu  sync.Mutex
	box sealer // guarded by mu
}

// newLink opens the sockets of a connection.
func (e *Endpoint) newLink(ctx context.Context, attempt int) (*link, error) {
	tr, err := openTransport(ctx, &e.cfg, attempt)
	if err != nil {
		return nil, err
	}
	l := &link{
		e: e, tr: tr, began: time.Now(),
		ended: make(chan error, 1), wake: make(chan struct{}, 1),
		frags: reassembler{max: e.cfg.MTU + mtuSlack + 8},
	}
	if e.cfg.Fragment == 0 {
		l.crew = newCrew(e.cfg.Framing, runtime.GOMAXPROCS(0))
	}
	if e.cfg.Transport == UDP && !e.cfg.Float {
		l.fixed = tr.peer().addr
	}
	l.sent.Store(-int64(time.Hour)) // the first ping is due at once
	if e.cfg.TLS != nil {
		l.ch, err = newTLSChannel(l)
	} else {
		l.ch, err = newStaticChannel(l)
	}
	if err != nil {
		tr.close()
		return nil, err
	}
	return l, nil
}

// run serves the connection until it ends and returns why.
func (l *link) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.e.link.Store(l)
	l.e.update(func(s *Status) { s.Peer = l.tr.peer().addr })
	var wg sync.WaitGroup
	wg.Go(func() { l.end(l.tr.serve(ctx, l.newReceiver)) }) // ends with tr.close
	wg.Go(func() { l.timers(ctx) })                         // ends with ctx
	if l.crew != nil {
		wg.Go(func() { l.crew.run(ctx) }) // ends with ctx
	}
	var err error
	select {
	case err = <-l.ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.e.link.CompareAndSwap(l, nil)
	cancel()
	l.ch.stop()
	l.tr.close()
	wg.Wait()
	return err
}

// end makes run return; the first reason wins.
func (l *link) end(err error) {
	select {
	case l.ended <- err:
	default:
	}
}

func (l *link) now() int64 { return int64(time.Since(l.began)) }

func (l *link) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// timers runs keepalive and the timers of the channel.
func (l *link) timers(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		now := time.Now()
		next := earlier(l.ch.tick(now), l.keepalive(now))
		if next.IsZero() {
			timer.Stop()
			continue
		}
		timer.Reset(max(0, time.Until(next)))
	}
}

// earlier returns the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// keepalive sends a ping if nothing was sent for long, ends the link if nothing
// was heard for long, and returns when to look again.
func (l *link) keepalive(now time.Time) time.Time {
	var next time.Time
	if wait := l.e.cfg.PingRestart; wait > 0 {
		deadline := l.began.Add(time.Duration(l.heard.Load()) + wait)
		if !now.Before(deadline) {
			l.e.guardRelax(l)
			l.end(errSilent)
			return time.Time{}
		}
		next = deadline
	}
	if wait := l.e.cfg.Ping; wait > 0 {
		if _, ok := l.ch.outlet(); !ok {
			return next
		}
		due := l.began.Add(time.Duration(l.sent.Load()) + wait)
		if !now.Before(due) {
			l.say(pingMagic[:])
			// Also if the socket did not take it: the next try is a period later.
			due = now.Add(wait)
		}
		next = earlier(next, due)
	}
	return next
}

// guardRelax lets a peer back in whose clock went back while it was silent.
func (e *Endpoint) guardRelax(l *link) {
	if s, ok := l.ch.(*staticChannel); ok {
		s.relax()
	}
}

// maxSaid bounds the payloads that wait while a peer takes nothing.
const maxSaid = 8

// say sends one payload that is no inner packet, without waiting for room. If
// others are being sent, it goes out after them.
func (l *link) say(payload []byte) {
	l.saidMu.Lock()
	if len(l.said) < maxSaid {
		l.said = append(l.said, payload)
		l.saying.Store(true)
	}
	l.saidMu.Unlock()
	l.speak()
}

// speak sends what was said, unless another goroutine holds sendMu: that one does
// it afterwards.
func (l *link) speak() {
	for l.saying.Load() && l.sendMu.TryLock() {
		l.saidMu.Lock()
		said := l.said
		l.said = nil
		l.saying.Store(false)
		l.saidMu.Unlock()
		l.transmitLocked(&l.reply, said, false)
		l.sendMu.Unlock()
	}
}

// leave says goodbye. What others are sending goes out before, if the peer takes
// it within leaveTries.
func (l *link) leave() {
	l.ch.leave()
	for range leaveTries {
		if !l.saying.Load() && l.sendMu.TryLock() {
			l.sendMu.Unlock()
			return
		}
		time.Sleep(leavePause)
	}
}

const (
	leaveTries = 20
	leavePause = 5 * time.Millisecond
)

// sendBuffer is the scratch memory of one sending goroutine.
type sendBuffer struct {
	packets [][]byte
	framed  []byte
	plain   plaintext // here, because seal is behind an interface and would move it to the heap
}

// slot returns the memory for the n-th packet of a batch.
func (b *sendBuffer) slot(n int) []byte {
	for len(b.packets) <= n {
		b.packets = append(b.packets, nil)
	}
	return b.packets[n][:0]
}

// transmit sends payloads, waiting for room, and returns how many of them, and
// of their bytes, were taken.
func (l *link) transmit(b *sendBuffer, payloads [][]byte) (count, bytes int) {
	l.sendMu.Lock()
	count, bytes = l.transmitLocked(b, payloads, true)
	l.sendMu.Unlock()
	l.speak()
	return count, bytes
}

func (l *link) transmitLocked(b *sendBuffer, payloads [][]byte, wait bool) (count, bytes int) {
	out, ok := l.ch.outlet()
	if !ok {
		l.e.count.dropped[ReasonNoPeer].Add(uint64(len(payloads)))
		return 0, 0
	}
	n, count, bytes := l.sealAll(b, out.key, payloads)
	if n == 0 {
		return 0, 0
	}
	taken, err := l.tr.send(out.to, b.packets[:n], wait)
	size := 0
	for _, p := range b.packets[:taken] {
		size += len(p)
	}
	l.e.count.sentPackets.Add(uint64(taken))
	l.e.count.sentBytes.Add(uint64(size))
	if taken > 0 {
		l.sent.Store(l.now())
	}
	if err != nil {
		l.e.count.dropped[ReasonSend].Add(uint64(n - taken))
		count, bytes = count*taken/n, bytes*taken/n
	}
	return count, bytes
}

// sealAll makes packets out of payloads, in order. It returns how many packets,
// and of how many payloads and bytes.
func (l *link) sealAll(b *sendBuffer, key *sendKey, payloads [][]byte) (n, count, bytes int) {
	key.mu.Lock()
	defer key.mu.Unlock()
	if l.crew.seal(b, key, payloads) {
		for _, payload := range payloads {
			bytes += len(payload)
		}
		return len(payloads), len(payloads), bytes
	}
	for _, payload := range payloads {
		made, err := l.pack(b, n, key.box, payload)
		if err != nil {
			l.e.count.dropped[reasonOf(err)].Add(1)
			continue
		}
		n += made
		count++
		bytes += len(payload)
	}
	return n, count, bytes
}

// reasonOf returns the reason in an error, ReasonSend if there is none.
func reasonOf(err error) Reason {
	if r, ok := errors.AsType[Reason](err); ok {
		return r
	}
	return ReasonSend
}

// pack frames, fragments and seals one payload into the slots from n on, and
// returns how many packets that made.
func (l *link) pack(b *sendBuffer, n int, box sealer, payload []byte) (int, error) {
	p := &b.plain
	*p = plaintext{body: payload}
	l.e.cfg.Framing.frame(p)
	if l.e.cfg.Fragment == 0 {
		sealed, err := box.seal(b.slot(n), p)
		b.packets[n] = sealed
		return 1, err
	}
	most := l.e.cfg.Fragment - box.sealedSize(0)
	for most > 0 && box.sealedSize(most+fragmentHeaderSize) > l.e.cfg.Fragment {
		most--
	}
	if p.size() <= most {
		p.pushHead(0, 0, 0, 0)
		sealed, err := box.seal(b.slot(n), p)
		b.packets[n] = sealed
		return 1, err
	}
	b.framed = p.appendTo(b.framed[:0])
	return l.packFragments(b, n, box, fragmentSize(len(b.framed), most))
}

// packFragments seals the framed payload in fragments of that size.
func (l *link) packFragments(b *sendBuffer, n int, box sealer, size int) (int, error) {
	if size == 0 {
		return 0, ReasonOversize
	}
	l.fragMu.Lock()
	l.seq++
	seq := l.seq
	l.fragMu.Unlock()
	made := 0
	for rest := b.framed; len(rest) > 0; made++ {
		part := rest[:min(size, len(rest))]
		rest = rest[len(part):]
		h := fragmentHeader{kind: fragmentMore, seq: seq, index: uint8(made)}
		if len(rest) == 0 {
			h.kind, h.size = fragmentLast, size
		}
		header := h.encode()
		b.plain = plaintext{body: part}
		b.plain.pushHead(header[:]...)
		sealed, err := box.seal(b.slot(n+made), &b.plain)
		if err != nil {
			return made, err
		}
		b.packets[n+made] = sealed
	}
	return made, nil
}

// linkReceiver is the receiving end of a link for one goroutine of the transport.
type linkReceiver struct {
	l       *link
	out     [][]byte // inner packets that wait for flush
	scratch []byte   // for decompression
	heard   bool
	packets uint64
	bytes   uint64
}

func (l *link) newReceiver() receiver {
	r := &linkReceiver{l: l}
	if l.e.cfg.Framing != FramingNone {
		r.scratch = make([]byte, 0, l.e.cfg.MTU+mtuSlack)
	}
	return r
}

func (r *linkReceiver) drop(reason Reason) { r.l.e.dropped(reason, path{}) }

func (r *linkReceiver) packet(from path, p []byte) {
	l := r.l
	r.packets++
	r.bytes += uint64(len(p))
	if l.fixed.IsValid() && from.addr != l.fixed {
		l.e.dropped(ReasonAddress, from)
		return
	}
	payload, heard, err := l.ch.receive(from, p)
	r.heard = r.heard || heard
	if err != nil {
		l.e.dropped(reasonOf(err), from)
		if hostile(reasonOf(err)) {
			l.tr.reject(from)
		}
		return
	}
	if payload == nil {
		return
	}
	if err := r.unpack(payload); err != nil {
		l.e.dropped(reasonOf(err), from)
	}
}

// hostile tells reasons that end a TCP connection: over a stream, no honest peer
// gives cause for them. The others come of packets that crossed a restart.
func hostile(r Reason) bool {
	switch r {
	case ReasonShort, ReasonMalformed, ReasonAuth, ReasonDecrypt, ReasonReplay:
		return true
	}
	return false
}

// unpack undoes fragments and framing and acts on the payload.
func (r *linkReceiver) unpack(payload []byte) error {
	l := r.l
	if l.e.cfg.Fragment != 0 {
		l.fragMu.Lock()
		whole, err := l.frags.add(payload, time.Now())
		lost := l.frags.lost
		l.frags.lost = 0
		l.fragMu.Unlock()
		l.e.count.dropped[ReasonFragment].Add(lost)
		if err != nil || whole == nil {
			return err
		}
		payload = whole
	}
	inner, err := l.e.cfg.Framing.unframe(payload, r.scratch)
	if err != nil {
		return err
	}
	switch classify(inner) {
	case payloadOCC:
		l.occ(inner)
	case payloadIP:
		if len(inner) > l.e.cfg.MTU+mtuSlack {
			return ReasonOversize
		}
		r.out = append(r.out, inner)
		if cap(r.scratch) > 0 && cap(inner) > 0 && &inner[:1][0] == &r.scratch[:1][0] {
			r.deliver() // the scratch memory is for one packet
		}
	case payloadUnknown:
		return ReasonPayload
	}
	return nil
}

func (r *linkReceiver) flush() {
	l := r.l
	l.e.count.receivedPackets.Add(r.packets)
	l.e.count.receivedBytes.Add(r.bytes)
	r.packets, r.bytes = 0, 0
	if r.heard {
		r.heard = false
		l.heard.Store(l.now())
		if l.up.Load() {
			l.e.hear()
		}
	}
	r.deliver()
}

// deliver writes the waiting inner packets to the device.
func (r *linkReceiver) deliver() {
	if len(r.out) == 0 {
		return
	}
	e, bytes := r.l.e, 0
	for _, p := range r.out {
		bytes += len(p)
	}
	if err := e.cfg.Device.WritePackets(r.out); err != nil {
		e.deviceFailed(err)
	} else {
		e.count.inPackets.Add(uint64(len(r.out)))
		e.count.inBytes.Add(uint64(bytes))
	}
	clear(r.out)
	r.out = r.out[:0]
}

// occ acts on an authentic options consistency message.
func (l *link) occ(msg []byte) {
	switch msg[len(occMagic)] {
	case occRequest:
		if s, ok := l.ch.(*staticChannel); ok {
			l.say(occMessage(occReply, s.options))
		}
	case occExit:
		l.end(errPeerExit)
	}
}
