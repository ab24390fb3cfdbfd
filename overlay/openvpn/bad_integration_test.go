//go:build openvpn

package openvpn

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// badStep is one input of section "bad input" of the matrix.
type badStep struct {
	what   string
	packet []byte
	from   netip.AddrPort // zero: the peer
	want   Reason         // 0: it is not counted
	passes bool           // it goes to the device
}

// quiet makes both sides silent, so that whatever we send is an answer.
func (s *staticLab) quiet() []string {
	s.cfg.Ping, s.cfg.PingRestart = time.Hour, time.Hour
	s.device = s.newTUN()
	s.cfg.Device = s.device
	// The kernels would look for IPv6 routers now and then.
	silence := func(device string) {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0); err != nil {
			s.t.Error(err)
		}
	}
	silence(fmt.Sprintf("tu%d", s.n))
	s.inside(func() { silence("default") })
	return []string{"--ping", "3600", "--ping-restart", "7200"}
}

// endure sends each input into the connection with the real peer. It must be
// counted by its reason and by no other, and not be answered.
func (s *staticLab) endure(steps []badStep) {
	s.t.Helper()
	in := s.injection()
	for _, step := range steps {
		before := s.e.Status().Counters
		if step.from.IsValid() {
			in.send(step.from, step.packet)
		} else {
			in.fromPeer(step.packet)
		}
		var after Counters
		arrived := func() bool {
			after = s.e.Status().Counters
			switch {
			case step.want != 0:
				return after.Dropped[step.want] > before.Dropped[step.want]
			case step.passes:
				return after.InPackets > before.InPackets
			}
			return len(step.packet) == 0 || after.ReceivedPackets > before.ReceivedPackets
		}
		eventuallyLab(s.t, step.what, arrived)
		for reason := range reasonCount {
			want := before.Dropped[reason]
			if reason == step.want && reason != 0 {
				want++
			}
			if after.Dropped[reason] != want {
				s.t.Errorf("%s: %s counted %d times, want %d", step.what, reason, after.Dropped[reason]-before.Dropped[reason], want-before.Dropped[reason])
			}
		}
		if n := s.e.Status().Counters.SentPackets - before.SentPackets; n != 0 {
			s.t.Errorf("%s: %d packets in reply", step.what, n)
		}
	}
	s.note("%d inputs, none answered", len(steps))
}

// alive shows that the connection is the same as before.
func (s *staticLab) alive() {
	s.t.Helper()
	s.pingUntil(labPatience)
	for range 3 { // the peer's next ids may be among those that were used up
		s.pings()
	}
	s.checkTraffic()
	if st := s.e.Status(); st.State != StateUp || st.Restarts != 0 {
		s.t.Errorf("status %+v", st)
	}
}

// forger makes packets as the peer of static key mode does.
type forger struct {
	box *cbcBox
	now replayWindow // what our side has seen last
}

func (s *staticLab) forger() *forger {
	s.t.Helper()
	box, _, err := newStaticBoxes(s.cfg.Static, s.cfg.Digest)
	if err != nil {
		s.t.Fatal(err)
	}
	ch := s.e.link.Load().ch.(*staticChannel)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return &forger{box, s.e.guard.replayWindow}
}

// seal makes a packet whose id is that much after the last.
func (f *forger) seal(ahead int, payload []byte) []byte {
	return f.box.sealAs(nil, &plaintext{body: payload}, stamp{uint32(int(f.now.max) + ahead), f.now.time})
}

// authentic puts the right HMAC before anything.
func (f *forger) authentic(body []byte) []byte {
	f.box.mac.Reset()
	f.box.mac.Write(body)
	return append(f.box.mac.Sum(nil), body...)
}

// unpadded is a block of which the last byte is no padding.
func (f *forger) unpadded() []byte {
	iv, text := make([]byte, f.box.block), make([]byte, f.box.block)
	f.box.crypt(iv, text)
	return f.authentic(append(iv, text...))
}

func TestStaticBadInputBesideRealPeer(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.enter("7.3", "static key, bad datagrams")
	args := append(append(s.udp(), s.quiet()...), s.secret(aesOptions)...)
	s.open()
	s.openvpn(args...)
	s.checkTraffic()
	<-time.After(12 * time.Second) // its options request is answered by then
	f := s.forger()
	good := f.seal(1, pingMagic[:])
	wrong := bytes.Clone(good)
	wrong[3] ^= 1
	other, _, err := newStaticBoxes(&Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := other.seal(nil, &plaintext{body: pingMagic[:]})
	past := *f
	past.now.time--
	inner := func(size int, src netip.Addr) []byte {
		p := innerPacket(1, size)
		from, to := src.As4(), s.inner(1).As4()
		copy(p[12:], from[:])
		copy(p[16:], to[:])
		return p
	}
	s.endure([]badStep{
		{what: "one byte", packet: []byte{1}, want: ReasonShort},
		{what: "shorter than the HMAC", packet: good[:31], want: ReasonShort},
		{what: "HMAC only", packet: f.authentic(nil), want: ReasonShort},
		{what: "HMAC and IV only", packet: f.authentic(make([]byte, 16)), want: ReasonShort},
		{what: "empty datagram", packet: nil},
		{what: "wrong HMAC", packet: wrong, want: ReasonAuth},
		{what: "another key", packet: foreign, want: ReasonAuth},
		{what: "no multiple of the block", packet: f.authentic(make([]byte, 16+17)), want: ReasonDecrypt},
		{what: "bad padding", packet: f.unpadded(), want: ReasonDecrypt},
		{what: "id 0", packet: f.seal(-int(f.now.max), pingMagic[:]), want: ReasonReplay},
		{what: "older time", packet: past.seal(9, pingMagic[:]), want: ReasonReplay},
		{what: "a replayed id", packet: f.seal(0, pingMagic[:]), want: ReasonReplay},
		{what: "new", packet: good},
		{what: "the same again", packet: good, want: ReasonReplay},
		{what: "64 behind", packet: f.seal(1-64, pingMagic[:]), want: ReasonReplay},
		{what: "neither IP nor a message", packet: f.seal(2, []byte("neither")), want: ReasonPayload},
		{what: "empty payload", packet: f.seal(3, nil)},
		{what: "unknown OCC opcode", packet: f.seal(4, occMessage(99, ""))},
		{what: "inner source outside", packet: f.seal(5, inner(100, netip.MustParseAddr("203.0.113.9"))), passes: true},
		{what: "inner packet of 1600", packet: f.seal(6, inner(1600, s.inner(2))), passes: true},
		{what: "inner packet of 1700", packet: f.seal(7, inner(1700, s.inner(2))), want: ReasonOversize},
		{what: "larger than the buffer", packet: make([]byte, 9000), want: ReasonOversize},
		{what: "another port", packet: good, from: netip.AddrPortFrom(s.outer(2), 1196), want: ReasonAddress},
		{what: "another address", packet: good, from: netip.AddrPortFrom(s.outer(77), 1195), want: ReasonAddress},
	})
	s.alive()
}

func TestStaticBadFramingBesideRealPeer(t *testing.T) {
	t.Parallel()
	lzoBomb := append(append([]byte{0x66, 18, 'A', 0x20}, make([]byte, 8)...), 1, 0, 0, 0x11, 0, 0)
	lz4Bomb := append([]byte{'A', 1, 0}, bytes.Repeat([]byte{255}, 8)...)
	lz4Bomb = append(append([]byte{0x69}, lz4Bomb...), 0, 0x10, 'b', 0x1f) // the first byte of the block comes last
	fragment := func(h fragmentHeader, body string) []byte {
		b := h.encode()
		return append(b[:], body...)
	}
	type payload struct {
		what string
		b    []byte
		want Reason
	}
	for _, row := range []struct {
		what, args string
		change     func(*Config)
		payloads   []payload
	}{
		{"`--compress lzo`, bad framing", "--compress lzo", func(c *Config) { c.Framing = FramingLZO }, []payload{
			{"unknown byte", []byte{0x11, 1, 2, 3}, ReasonCompress},
			{"garbage as LZO", []byte{0x66, 1, 2, 3, 4, 5, 6, 7}, ReasonCompress},
			{"LZO beyond the limit", lzoBomb, ReasonCompress},
		}},
		{"`--compress lz4`, bad framing", "--compress lz4", func(c *Config) { c.Framing = FramingLZ4 }, []payload{
			{"unknown byte", []byte{0x11, 1, 2, 3}, ReasonCompress},
			{"garbage as LZ4", []byte{0x69, 1, 2, 3, 4, 5, 6, 0xff}, ReasonCompress},
			{"LZ4 beyond the limit", lz4Bomb, ReasonCompress},
		}},
		{"`--fragment 500 --mssfix 500`, bad fragments", "--fragment 500 --mssfix 500", func(c *Config) { c.Fragment = 500 }, []payload{
			{"shorter than the header", []byte{1, 2}, ReasonFragment},
			{"reserved type", fragment(fragmentHeader{kind: 3, seq: 200}, "abcd"), ReasonFragment},
			{"whole with a sequence number", fragment(fragmentHeader{seq: 200}, "abcd"), ReasonFragment},
			{"last without size", fragment(fragmentHeader{kind: fragmentLast, seq: 200}, "abcd"), ReasonFragment},
			{"not a multiple of 4", fragment(fragmentHeader{kind: fragmentMore, seq: 200}, "abcde"), ReasonFragment},
			{"beyond every packet", fragment(fragmentHeader{kind: fragmentMore, seq: 200, index: 31}, strings.Repeat("abcd", 100)), ReasonFragment},
			{"a first one", fragment(fragmentHeader{kind: fragmentMore, seq: 200}, "abcdefgh"), 0},
			{"one that overlaps it", fragment(fragmentHeader{kind: fragmentMore, seq: 200}, "abcdabcd"), ReasonFragment},
			{"again", fragment(fragmentHeader{kind: fragmentMore, seq: 200, index: 1}, "abcdabcd"), 0},
		}},
	} {
		t.Run(row.what, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("7.3", row.what)
			row.change(&s.cfg)
			args := append(append(s.udp(), s.quiet()...), s.secret(aesOptions+" "+row.args)...)
			s.open()
			s.openvpn(args...)
			s.checkTraffic()
			<-time.After(12 * time.Second) // its options request is answered by then
			f := s.forger()
			var steps []badStep
			for i, p := range row.payloads {
				steps = append(steps, badStep{what: p.what, packet: f.seal(1+i, p.b), want: p.want})
			}
			s.endure(steps)
			if s.cfg.Fragment != 0 {
				<-time.After(partialLife + time.Second)
				next := f.seal(1+len(row.payloads), fragment(fragmentHeader{kind: fragmentMore, seq: 201}, "abcd"))
				s.endure([]badStep{{what: "never completed", packet: next, want: ReasonFragment}})
			}
			s.alive()
		})
	}
}

// tlsForger makes data packets as the peer of TLS mode does.
func (l *tlsLab) tlsForger() func(ahead int, payload string) []byte {
	k := l.e.link.Load().ch.(*tlsChannel).data.get(0)
	k.mu.Lock()
	defer k.mu.Unlock()
	from := k.recv.(*aeadBox)
	id := l.e.Status().PeerID
	box := &aeadBox{header: []byte{opDataV2 << 3, byte(id >> 16), byte(id >> 8), byte(id)}, aead: from.aead, nonce: from.nonce}
	last := k.seen.max
	return func(ahead int, payload string) []byte {
		return box.sealAs(nil, &plaintext{body: []byte(payload)}, stamp{id: uint32(int(last) + ahead)})
	}
}

func TestTLSBadInputBesideRealPeer(t *testing.T) {
	t.Parallel()
	for _, wrap := range []Wrap{WrapNone, WrapCrypt, WrapAuth} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("%s as %s", wrap, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.enter("7.3", "wrap "+wrap.String()+", bad datagrams")
				args := append(append(l.udp(), l.quiet()...), l.byFingerprint()...)
				if wrap != WrapNone {
					l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey = wrap, l.key
					args = append(args, "--auth", "SHA256", "--"+wrap.String(), l.keyFile())
				}
				l.open()
				l.openvpn(args...)
				l.checkTraffic()
				<-time.After(5 * time.Second) // the last acknowledgements are through
				l.endure(l.tlsBadInput(wrap))
				if wrap == WrapNone {
					l.endureGarbageInTLS()
				}
				l.alive()
				// Bare resets that somebody forges end in a new session of the honest sides
				// at most, because our answer goes to the peer.
				if n := l.e.Status().Keys; n != 1 && wrap != WrapNone {
					t.Errorf("%d keys", n)
				}
			})
		}
	}
}

// tlsBadInput is what a stranger or a broken peer could send.
func (l *tlsLab) tlsBadInput(wrap Wrap) []badStep {
	ch := l.e.link.Load().ch.(*tlsChannel)
	ch.mu.Lock()
	peer, local := ch.active.remote, ch.active.local
	ch.mu.Unlock()
	seal := l.tlsForger()
	good := seal(1, string(pingMagic[:]))
	wrong := bytes.Clone(good)
	wrong[len(wrong)-1] ^= 1
	theirs, ours := byte(opResetServer), byte(opResetClient)
	if l.role == TLSServer {
		theirs, ours = ours, theirs
	}
	stranger := sessionID{1, 2, 3, 4, 5, 6, 7, 8}
	bare := func(op, keyID byte, sid sessionID, body ...byte) []byte {
		return append(append([]byte{op<<3 | keyID}, sid[:]...), body...)
	}
	noAcks := []byte{0, 0, 0, 0, 0}
	steps := []badStep{
		{what: "one byte", packet: []byte{opControl << 3}, want: ReasonShort},
		{what: "opcode 0", packet: bare(0, 0, peer), want: ReasonOpcode},
		{what: "V1 reset of a client", packet: bare(1, 0, peer, noAcks...), want: ReasonOpcode},
		{what: "V1 reset of a server", packet: bare(2, 0, peer, noAcks...), want: ReasonOpcode},
		{what: "tls-crypt-v2 reset", packet: bare(10, 0, peer, noAcks...), want: ReasonOpcode},
		{what: "opcode 31", packet: bare(31, 0, peer), want: ReasonOpcode},
		{what: "reset of our role", packet: bare(ours, 0, stranger, noAcks...), want: ReasonRole},
		{what: "reset with key id 3", packet: bare(theirs, 3, stranger, noAcks...), want: ReasonMalformed},
		{what: "reset with session id 0", packet: bare(theirs, 0, sessionID{}, noAcks...), want: ReasonMalformed},
		{what: "control packet of a stranger", packet: bare(opControl, 0, stranger, noAcks...), want: ReasonSession},
		{what: "acknowledgement of a stranger", packet: bare(opAck, 0, stranger, 1, 0, 0, 0, 0), want: ReasonSession},
		{what: "data under another key", packet: append([]byte{opDataV2<<3 | 5}, good[1:]...), want: ReasonNoKey},
		{what: "data without tag", packet: good[:10], want: ReasonShort},
		{what: "data with a wrong tag", packet: wrong, want: ReasonAuth},
		{what: "data with id 0", packet: func() []byte { p := bytes.Clone(good); clear(p[4:8]); return p }(), want: ReasonAuth},
		{what: "new data", packet: bytes.Clone(good)},
		{what: "the same again", packet: bytes.Clone(good), want: ReasonReplay},
		{what: "64 behind", packet: seal(1-64, string(pingMagic[:])), want: ReasonReplay},
		{what: "neither IP nor a message", packet: seal(2, "neither"), want: ReasonPayload},
		{what: "empty payload", packet: seal(3, "")},
		{what: "another port", packet: good, from: netip.AddrPortFrom(l.outer(2), 1196), want: ReasonAddress},
		{what: "larger than the buffer", packet: make([]byte, 9000), want: ReasonOversize},
	}
	if wrap != WrapNone {
		long := append(bytes.Clone(noAcks), make([]byte, 60)...)
		return append(steps,
			badStep{what: "bare reset", packet: bare(theirs, 0, stranger, long...), want: ReasonAuth},
			badStep{what: "bare control packet", packet: bare(opControl, 0, peer, long...), want: ReasonAuth},
			badStep{what: "shorter than the wrapping", packet: bare(opControl, 0, peer, noAcks...), want: ReasonShort},
		)
	}
	truncated := binary.BigEndian.AppendUint32([]byte{2}, 0)
	foreign := append(binary.BigEndian.AppendUint32([]byte{1}, 0), stranger[:]...)
	nine := append(append([]byte{9}, make([]byte, 36)...), local[:]...)
	return append(steps,
		badStep{what: "nine acknowledgements", packet: bare(opAck, 0, peer, nine...), want: ReasonMalformed},
		badStep{what: "a list that ends early", packet: bare(opAck, 0, peer, truncated...), want: ReasonMalformed},
		badStep{what: "no message id", packet: bare(opControl, 0, peer, 0, 1, 2), want: ReasonMalformed},
		badStep{what: "acknowledgement of another session", packet: bare(opAck, 0, peer, foreign...), want: ReasonSession},
		badStep{what: "wrapped though we do not wrap", packet: bare(opControl, 0, peer, bytes.Repeat([]byte{0xff}, 60)...), want: ReasonMalformed},
	)
}

// endureGarbageInTLS begins a session as the peer and sends no TLS in it.
func (l *tlsLab) endureGarbageInTLS() {
	l.t.Helper()
	in := l.injection()
	before := l.e.Status().Counters.Dropped[ReasonTLS]
	theirs := byte(opResetServer)
	if l.role == TLSServer {
		theirs = opResetClient
	}
	p := controlPacket{op: theirs, sid: sessionID{8, 7, 6, 5, 4, 3, 2, 1}}
	in.fromPeer(bareWrapping{}.seal(p.first(), p.sid, 0, 0, p.body()))
	ch := l.e.link.Load().ch.(*tlsChannel)
	var ours sessionID
	eventuallyLab(l.t, "our session", func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		s := ch.find(p.sid)
		if s != nil {
			ours = s.local
		}
		return s != nil
	})
	p = controlPacket{op: opControl, sid: p.sid, acks: []uint32{0}, ackSID: ours, id: 1, payload: []byte("this is no TLS record, and never will be one")}
	in.fromPeer(bareWrapping{}.seal(p.first(), p.sid, 0, 0, p.body()))
	eventuallyLab(l.t, "the attempt fails", func() bool { return l.e.Status().Counters.Dropped[ReasonTLS] > before })
	l.note("garbage instead of TLS records: we count tls")
}

func TestTCPBadInputBesideRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		what  string
		bytes []byte
		want  Reason
	}{
		{"length 0", []byte{0, 0}, ReasonFraming},
		{"length 65535", []byte{0xff, 0xff, 1, 2, 3}, ReasonFraming},
		{"wrong HMAC", append([]byte{0, 100}, make([]byte, 100)...), ReasonAuth},
		{"shorter than the HMAC", append([]byte{0, 10}, make([]byte, 10)...), ReasonShort},
	} {
		t.Run(row.what, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("7.3", "a stranger's TCP connection: "+row.what)
			args := append(s.carry(TCPListen), s.secret(aesOptions)...)
			e := s.open()
			s.openvpn(args...)
			s.checkTraffic()
			var conn net.Conn
			s.inside(func() {
				d := net.Dialer{Timeout: labPatience}
				var err error
				if conn, err = d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(s.outer(1), 1195).String()); err != nil {
					t.Error(err)
				}
			})
			if conn == nil {
				return
			}
			defer func() { _ = conn.Close() }()
			if _, err := conn.Write(row.bytes); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(labPatience))
			if n, err := conn.Read(make([]byte, 10)); n > 0 || err == nil || !isClosed(err) {
				t.Errorf("read %d bytes, %v; want the end", n, err)
			}
			if n := e.Status().Counters.Dropped[row.want]; n != 1 {
				t.Errorf("%s counted %d times", row.want, n)
			}
			s.note("closed, we count %s", strings.TrimPrefix(row.want.Error(), "dropped: "))
			s.alive()
		})
	}
	for _, tr := range []Transport{TCPListen, TCPConnect} {
		t.Run("wrong key "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("7.3", "the peer has another key over TCP, then the right one")
			args := append(s.carry(tr), strings.Fields(aesOptions)...)
			e := s.open()
			p := s.openvpn(append(args, "--secret", s.file("other.key", GenerateStaticKey().Encode()), "--ping", "1", "--ping-restart", "60")...)
			eventuallyLab(t, "it is refused", func() bool {
				return e.Status().Counters.Dropped[ReasonAuth] > 0 || strings.Contains(p.log.String(), "packet HMAC authentication failed")
			})
			p.stop(syscall.SIGKILL)
			s.openvpn(append(args, "--secret", s.keyFile())...)
			s.note("up %s after the right one", seconds(s.pingUntil(labPatience)))
			s.checkTraffic()
		})
	}
}

// isClosed reports whether the other side ended a connection.
func isClosed(err error) bool {
	return err == io.EOF || strings.Contains(err.Error(), "reset by peer")
}

// Not parallel, so that the memory it looks at is that of one endpoint.
func TestGarbageFromAThousandSourcesBesideRealPeer(t *testing.T) {
	for _, mode := range []string{"static", "tls-client", "tls-server"} {
		t.Run(mode, func(t *testing.T) {
			l := newTLSLab(t, map[string]Role{"tls-client": TLSClient, "tls-server": TLSServer}[mode])
			args := l.udp()
			if mode == "static" {
				l.cfg.TLS, l.cfg.Static = nil, &Static{Key: l.key, Cipher: CipherAES256CBC}
				args = append(args, l.secret(aesOptions)...)
			} else {
				args = append(args, l.byFingerprint()...)
			}
			l.enter("7.3", "garbage and forged resets from 1,000 sources, 5 datagrams each")
			l.cfg.Remote = "" // hears everybody
			l.open()
			l.openvpn(args...)
			l.checkTraffic()
			// Answers to strangers must have a way, or they would not be counted.
			l.run("ip", "route", "add", "10.60.0.0/16", "via", l.outer(2).String())
			t.Cleanup(func() { l.run("ip", "route", "del", "10.60.0.0/16") })
			in := l.injection()
			rnd := rand.New(rand.NewPCG(4, 2))
			flood := func(sources int) {
				for i := range sources {
					from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 60, byte(i >> 8), byte(i)}), uint16(1024+i))
					for n := range 5 {
						p := make([]byte, 1+rnd.IntN(1400))
						for j := range p {
							p[j] = byte(rnd.Uint32())
						}
						if n == 0 && len(p) > 14 { // a reset that would be answered
							p[0] = opResetServer << 3
							if mode == "tls-server" {
								p[0] = opResetClient << 3
							}
							p = append(p[:9], 0, 0, 0, 0, 0)
						}
						in.send(from, p)
					}
				}
			}
			began, start := l.e.Status().Counters, time.Now()
			flood(10) // what is made once, and the attempts that are let in at first
			before, goroutines := heap(), runtime.NumGoroutine()
			flood(1000)
			eventuallyLab(t, "everything is dropped", func() bool {
				return dropped(l.e.Status().Counters)-dropped(began) >= 4500 // the rest is what the socket could not hold
			})
			took := time.Since(start)
			after := heap()
			if grown := after - before; grown > 2<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}
			// Every attempt that is let in has a goroutine at most.
			if n := runtime.NumGoroutine(); n > goroutines+maxSessions {
				t.Errorf("%d goroutines, before %d", n, goroutines)
			}
			if ch, ok := l.e.link.Load().ch.(*tlsChannel); ok {
				ch.mu.Lock()
				n := len(ch.sessions)
				ch.mu.Unlock()
				if n > maxSessions {
					t.Errorf("%d sessions", n)
				}
			}
			// A reset costs a few packets until its attempt is over.
			answers := l.e.Status().Counters.SentPackets - began.SentPackets
			if limit := uint64(10 * (attemptBurst + attemptRate*(took.Seconds()+1))); answers > limit {
				t.Errorf("%d packets in reply to 5,050, want at most %d", answers, limit)
			}
			if mode != "static" && answers == 0 {
				t.Error("no reset was answered, so that nothing was tested")
			}
			l.note("%d of 5050 counted, %d packets in reply, heap %+d KiB", dropped(l.e.Status().Counters)-dropped(began), answers, (after-before)>>10)
			l.alive()
		})
	}
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func dropped(c Counters) (n uint64) {
	for _, d := range c.Dropped {
		n += d
	}
	return n
}
