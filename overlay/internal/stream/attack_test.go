package stream

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// attacker speaks QUIC as it likes.
type attacker struct {
	tr  *quic.Transport
	tls *tls.Config
}

func newAttacker(tb testing.TB, n *memnet, addr string) *attacker {
	tb.Helper()
	wrapper, err := wrap(newKey(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tr := &quic.Transport{Conn: newGuard(n.listen(addr), 1e6, new(counters)), ConnectionIDLength: 8}
	tb.Cleanup(func() { tr.Close() })
	return &attacker{tr: tr, tls: &tls.Config{
		Certificates:       []tls.Certificate{wrapper},
		NextProtos:         []string{"planetmesh/1"},
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519}, // the first flight is one packet
		InsecureSkipVerify: true,
	}}
}

func (a *attacker) dial(ctx context.Context, to *member) (*quic.Conn, error) {
	return a.tr.Dial(ctx, net.UDPAddrFromAddrPort(to.addr), a.tls, quicConfig())
}

// mustDial finishes a handshake with a member.
func (a *attacker) mustDial(tb testing.TB, ctx context.Context, to *member) *quic.Conn {
	tb.Helper()
	q, err := a.dial(ctx, to)
	if err != nil {
		tb.Fatal(err)
	}
	return q
}

// write opens a stream and writes b to it.
func mustWrite(tb testing.TB, ctx context.Context, q *quic.Conn, b []byte) *quic.Stream {
	tb.Helper()
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Write(b); err != nil {
		tb.Fatal(err)
	}
	return s
}

// mustEnd waits until a connection is closed by the other end and returns how long it took.
func mustEnd(tb testing.TB, q *quic.Conn) time.Duration {
	tb.Helper()
	begin := time.Now()
	select {
	case <-q.Context().Done():
	case <-time.After(time.Hour):
		tb.Fatal("connection is not closed")
	}
	var app *quic.ApplicationError
	var transport *quic.TransportError
	if err := context.Cause(q.Context()); !errors.As(err, &app) && !errors.As(err, &transport) {
		tb.Errorf("connection ended by %v, want by the other end", err)
	}
	return time.Since(begin)
}

// foreignCertificate is one with a key of another kind.
func foreignCertificate(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), crypto.Signer(key))
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestHandshakeRefusesWhoShowsNoIdentity(t *testing.T) {
	two := func(c *tls.Config) { // the identity, and another certificate after it
		c.Certificates[0].Certificate = append(c.Certificates[0].Certificate, foreignCertificate(t).Certificate...)
	}
	for name, change := range map[string]func(*tls.Config){
		"other protocol":      func(c *tls.Config) { c.NextProtos = []string{"h3"} },
		"no certificate":      func(c *tls.Config) { c.Certificates = nil },
		"other kind of key":   func(c *tls.Config) { c.Certificates = []tls.Certificate{foreignCertificate(t)} },
		"second certificate":  two,
		"key of another kind": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemnet(10 * time.Millisecond)
				b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
				a := newAttacker(t, n, "192.0.2.1:7000")
				change(a.tls)
				// A client without certificate is done before the server finds that out.
				if q, err := a.dial(t.Context(), b); err == nil {
					mustEnd(t, q)
				}
				time.Sleep(time.Second)
				mustCount(t, b, "handshakes", 1)
				mustCount(t, b, "accepted", 0)
				if got := taken(b.admit.strangers); got != 0 {
					t.Errorf("got %d places taken, want none", got)
				}
			})
		})
	}
}

func TestDiallerRefusesWhoShowsNoIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		fake := newAttacker(t, n, "192.0.2.2:7000")
		server := serverTLS(foreignCertificate(t))
		if _, err := fake.tr.Listen(server, quicConfig()); err != nil {
			t.Fatal(err)
		}
		_, err := a.Introduce(t.Context(), netip.MustParseAddrPort("192.0.2.2:7000"))
		if err == nil || !strings.Contains(err.Error(), errCertificate.Error()) {
			t.Errorf("got %v, want %v", err, errCertificate)
		}
		if got := openConns(a); got != 0 {
			t.Errorf("got %d connections, want none", got)
		}
	})
}

func TestFirstStreamMustBeIntroductionOrEnrolment(t *testing.T) {
	huge := []byte{TypeIntroduction, 0, 0, 0x40, 1} // 16 KiB and a byte
	for name, tc := range map[string]struct {
		stream  []byte // what the first stream carries, if there is one
		within  time.Duration
		counter string
	}{
		"no stream":              {nil, introduceTimeout, "refused_first_stream"},
		"API":                    {[]byte{TypeAPI, '{', '}'}, time.Second, "refused_first_stream"},
		"anti-entropy":           {[]byte{TypeAntiEntropy}, time.Second, "refused_first_stream"},
		"gossip":                 {[]byte{TypeGossip}, time.Second, "refused_first_stream"},
		"unknown type":           {[]byte{99}, time.Second, "refused_first_stream"},
		"oversized introduction": {huge, time.Second, "refused_introduction"},
		"empty introduction":     {[]byte{TypeIntroduction, 0, 0, 0, 0}, time.Second, "refused_introduction"},
		"foreign introduction":   {appendMessage([]byte{TypeIntroduction}, make([]byte, 32)), time.Second, "refused_introduction"},
		"unfinished":             {[]byte{TypeIntroduction, 0, 0, 0, 9, 1}, introduceTimeout, "refused_introduction"},
		"oversized enrolment":    {[]byte{TypeEnrolment, 0, 0, 0x10, 1}, enrolTimeout, "refused_enrolment"},
		"enrolment, none here":   {appendMessage([]byte{TypeEnrolment}, []byte("x")), enrolTimeout, "refused_enrolment"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemnet(10 * time.Millisecond)
				b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
				q := newAttacker(t, n, "192.0.2.1:7000").mustDial(t, t.Context(), b)
				if tc.stream != nil {
					mustWrite(t, t.Context(), q, tc.stream)
				}
				if took := mustEnd(t, q); took > tc.within+time.Second {
					t.Errorf("closed after %v, want %v", took, tc.within)
				}
				mustCount(t, b, tc.counter, 1)
				mustCount(t, b, "streams_served", 0)
				if got := len(b.Connected()); got != 0 {
					t.Errorf("got %d peers, want none", got)
				}
				if got := taken(b.admit.strangers); got != 0 {
					t.Errorf("got %d places taken, want none", got)
				}
			})
		})
	}
}

func TestRefusedIntroductionIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		none := make([]byte, 32)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), func(c *Config) { c.Introduce = func() []byte { return none } })
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		if _, err := a.Introduce(t.Context(), b.addr); !errors.Is(err, ErrRefused) {
			t.Errorf("they refuse us: got %v, want ErrRefused", err)
		}
		if _, err := b.Introduce(t.Context(), a.addr); !errors.Is(err, ErrRefused) || !errors.Is(err, errForeign) {
			t.Errorf("we refuse them: got %v, want ErrRefused", err)
		}
		time.Sleep(time.Second)
		if a, b := len(a.Connected()), len(b.Connected()); b != 0 || a != 0 {
			t.Errorf("got %d and %d peers, want none", a, b)
		}
	})
}

func TestIntroductionOfAnotherIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		victim := identityKey(newKey(t))
		m := start(t, newKey(t), n.listen("192.0.2.1:7000"), func(c *Config) { c.Introduce = func() []byte { return victim[:] } })
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		if _, err := m.Introduce(t.Context(), b.addr); !errors.Is(err, ErrRefused) {
			t.Errorf("got %v, want ErrRefused", err)
		}
	})
}

func TestDiallerWaitsNotLongForAnIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		fake := newAttacker(t, n, "192.0.2.2:7000")
		server := fake.tls.Clone()
		server.ClientAuth = tls.RequestClientCert
		if _, err := fake.tr.Listen(server, quicConfig()); err != nil { // shakes hands, and nothing more
			t.Fatal(err)
		}
		for _, limit := range []time.Duration{2 * time.Second, dialTimeout} {
			ctx, cancel := context.WithTimeout(t.Context(), limit+time.Duration(limit/dialTimeout)*time.Hour)
			begin := time.Now()
			_, err := a.Introduce(ctx, netip.MustParseAddrPort("192.0.2.2:7000"))
			if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > limit+time.Second {
				t.Errorf("got %v after %v, want the context's error after %v", err, took, limit)
			}
			cancel()
		}
	})
}

func TestDiallerThatHangsUpIsNoPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Verify = func(k trust.IdentityKey, _ []byte, _ netip.AddrPort) (trust.GatewayID, error) {
				time.Sleep(time.Second)
				return idOf(k), nil
			}
		})
		q := newAttacker(t, n, "192.0.2.1:7000").mustDial(t, t.Context(), b)
		mustWrite(t, t.Context(), q, appendMessage([]byte{TypeIntroduction}, []byte("x")))
		time.Sleep(500 * time.Millisecond)
		_ = q.CloseWithError(0, "")
		time.Sleep(2 * time.Second)
		if got := b.Connected(); len(got) != 0 {
			t.Errorf("got peers %v, want none", got)
		}
	})
}

func TestSlowIntroductionIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		q := newAttacker(t, n, "192.0.2.1:7000").mustDial(t, t.Context(), b)
		s := mustWrite(t, t.Context(), q, []byte{TypeIntroduction, 0, 0, 1, 0})
		begin := time.Now()
		for q.Context().Err() == nil && time.Since(begin) < time.Hour {
			_, _ = s.Write([]byte{1})
			time.Sleep(time.Second)
		}
		if took := time.Since(begin); took > introduceTimeout+2*time.Second {
			t.Errorf("closed after %v", took)
		}
		mustCount(t, b, "refused_introduction", 1)
	})
}

func TestEnrolmentConnectionHasOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Enrol = func(ctx context.Context, _ []byte, _ netip.AddrPort) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		q := newAttacker(t, n, "192.0.2.1:7000").mustDial(t, t.Context(), b)
		mustWrite(t, t.Context(), q, appendMessage([]byte{TypeEnrolment}, []byte("x")))
		mustWrite(t, t.Context(), q, []byte{TypeAPI})
		if took := mustEnd(t, q); took > time.Second {
			t.Errorf("closed after %v", took)
		}
		mustCount(t, b, "streams_served", 0)
		mustCount(t, b, "refused_stream", 1)
	})
}

func TestPeerMayNotOpenWhatNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		for _, typ := range []byte{0, TypeIntroduction, TypeGossip, 99} {
			s, err := a.OpenStream(t.Context(), b.id, typ)
			if err != nil {
				t.Fatal(err)
			}
			var refused *quic.StreamError
			if _, err := s.Read(make([]byte, 1)); !errors.As(err, &refused) {
				t.Errorf("type %d: got %v, want a refused stream", typ, err)
			}
			s.Close()
		}
		mustCount(t, b, "refused_stream", 4)
		a.mustAsk(t, t.Context(), b.id, []byte("still a peer"))
	})
}

func TestPeerHasEightStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		var open []Stream
		for range maxStreams {
			s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, s)
		}
		begin := time.Now()
		if _, err := a.OpenStream(t.Context(), b.id, TypeAPI); err == nil || time.Since(begin) > openTimeout {
			t.Errorf("ninth stream: got %v after %v, want an error", err, time.Since(begin))
		}
		open[3].Close()
		a.mustAsk(t, t.Context(), b.id, []byte("a place is free"))
		for _, s := range open {
			s.Close()
		}
		time.Sleep(time.Second)
		mustCount(t, b, "streams_served", maxStreams+1)
	})
}

func TestPeerHasNoOtherKindsOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		q := newAttacker(t, n, "192.0.2.1:7000").mustDial(t, t.Context(), b)
		var limit *quic.StreamLimitReachedError
		if _, err := q.OpenUniStream(); !errors.As(err, &limit) {
			t.Errorf("unidirectional stream: got %v, want none allowed", err)
		}
		if q.ConnectionState().SupportsDatagrams.Remote {
			t.Error("datagrams are allowed")
		}
	})
}

func TestResetStreamsCountUntilTheirHandlersReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Handlers = map[byte]Handler{TypeAPI: func(ctx context.Context, _ trust.GatewayID, s Stream) {
				_, _ = s.Read(make([]byte, 1)) // hears of the reset, in both directions
				time.Sleep(20 * time.Millisecond)
				_, _ = s.Write([]byte{1})
				<-ctx.Done() // and is busy all the same
			}}
		})
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		c := a.current(b.id)
		for range 3 * maxStreams {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			if s, err := c.q.OpenStreamSync(ctx); err == nil {
				_, _ = s.Write([]byte{TypeAPI})
				time.Sleep(50 * time.Millisecond)
				s.CancelWrite(0)
				s.CancelRead(0)
			}
			cancel()
		}
		mustCount(t, b, "streams_served", maxStreams)
	})
}

func TestTokensOfEarlierConnectionsDoNotSpareTheRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a := newAttacker(t, n, "192.0.2.1:7000")
		conf := quicConfig()
		conf.TokenStore = quic.NewLRUTokenStore(1, 1)
		var retries atomic.Int64
		n.setTap(func(from, _ netip.AddrPort, p []byte) bool {
			if from == b.addr && p[0]&0xf0 == 0xf0 {
				retries.Add(1)
			}
			return true
		})
		for range 2 {
			q, err := a.tr.Dial(t.Context(), net.UDPAddrFromAddrPort(b.addr), a.tls, conf)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // the token comes after the handshake
			_ = q.CloseWithError(0, "")
			time.Sleep(time.Minute)
		}
		if got := retries.Load(); got != 2 {
			t.Errorf("got %d retries for two connections, want 2", got)
		}
	})
}

func TestClientsWithoutIntroductionAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) { c.Pending = 8 })
		sit := func(addr string) error { // a handshake, and no introduction
			_, err := newAttacker(t, n, addr).dial(t.Context(), b)
			return err
		}
		for i, addr := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"} {
			if err := sit(addr); (err == nil) != (i < 2) {
				t.Errorf("client %d of one source: got %v, want room for 2", i, err)
			}
		}
		for i, addr := range []string{"192.0.2.3:1", "192.0.2.3:2", "192.0.2.4:1", "192.0.2.4:2", "192.0.2.5:1", "192.0.2.5:2", "192.0.2.6:1"} {
			if err := sit(addr); (err == nil) != (i < 6) {
				t.Errorf("client %d in all: got %v, want room for 8", i+2, err)
			}
		}
		// A proven address has its own places.
		a := start(t, newKey(t), n.listen("192.0.2.9:7000"), nil)
		b.knows(a)
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Errorf("proven address while strangers take all places: %v", err)
		}
		time.Sleep(introduceTimeout + time.Second)
		if err := sit("192.0.2.7:1"); err != nil {
			t.Errorf("client after the others were cut off: %v", err)
		}
		mustCount(t, b, "refused_pending", 2)
	})
}

func TestHandshakesOfOneSourceAreRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) { c.PerSource = 2 })
		// A dial is three packets that count, so 4 at once and 2 a second are 2 dials in the first three seconds.
		a := newAttacker(t, n, "192.0.2.1:7000")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 20 {
			if q, err := a.dial(ctx, b); err == nil {
				_ = q.CloseWithError(0, "")
			}
		}
		if got := b.Counters(); got["handshakes"] > 2 || got["refused_source"] == 0 {
			t.Errorf("got %d handshakes, %d packets dropped", got["handshakes"], got["refused_source"])
		}
		// Others do not suffer.
		if _, err := newAttacker(t, n, "192.0.2.3:7000").dial(t.Context(), b); err != nil {
			t.Error(err)
		}
	})
}

// recording keeps what one address sends to another.
type recording struct {
	mu      sync.Mutex
	packets [][]byte
}

func (r *recording) tap(from, to netip.AddrPort) func(f, t netip.AddrPort, b []byte) bool {
	return func(f, t netip.AddrPort, b []byte) bool {
		if f == from && t == to {
			r.mu.Lock()
			r.packets = append(r.packets, bytes.Clone(b))
			r.mu.Unlock()
		}
		return true
	}
}

// record lets an honest member introduce itself and returns all that it sent.
func record(t *testing.T, n *memnet, to *member) [][]byte {
	t.Helper()
	a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
	var r recording
	n.setTap(r.tap(a.addr, to.addr))
	if _, err := a.Introduce(t.Context(), to.addr); err != nil {
		t.Fatal(err)
	}
	a.halt(t)
	n.setTap(nil)
	time.Sleep(time.Minute) // until nothing of the connection is left
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.packets
}

func TestRecordedFirstFlightIsWorthless(t *testing.T) {
	other := netip.MustParseAddrPort("192.0.2.66:7000")
	for name, tc := range map[string]struct {
		restart bool
		from    netip.AddrPort
	}{
		"from another address":          {false, other},
		"after a restart":               {true, netip.MustParseAddrPort("192.0.2.1:7000")},
		"from another, after a restart": {true, other},
		"late, from the same address":   {false, netip.MustParseAddrPort("192.0.2.1:7000")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemnet(10 * time.Millisecond)
				key := newKey(t)
				b := start(t, key, n.listen("192.0.2.2:7000"), nil)
				packets := record(t, n, b)
				if len(packets) < 3 {
					t.Fatalf("recorded %d packets", len(packets))
				}
				if tc.restart {
					b.halt(t)
					b = start(t, key, n.listen("192.0.2.2:7000"), nil)
				}
				before := b.Counters()["handshakes"]
				for range 3 {
					for _, p := range packets {
						n.send(tc.from, b.addr, p)
						time.Sleep(50 * time.Millisecond)
					}
				}
				if got := b.Counters()["handshakes"]; got != before {
					t.Errorf("replay caused %d handshakes", got-before)
				}
			})
		})
	}
}

func TestFirstFlightReplayedToAnotherIsWorthless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		c := start(t, newKey(t), n.listen("192.0.2.3:7000"), nil)
		for _, p := range record(t, n, b) {
			n.send(netip.MustParseAddrPort("192.0.2.1:7000"), c.addr, p)
			time.Sleep(50 * time.Millisecond)
		}
		mustCount(t, c, "handshakes", 0)
	})
}

// forged returns a first packet with its own connection ID, as many as one likes.
func forged(first []byte, i int) []byte {
	b := bytes.Clone(first)
	for j := range 4 { // 1 type, 4 version, 1 length, then the connection ID
		b[6+j] ^= byte(i >> (8 * j))
	}
	return b
}

// taken returns how many places of a pool are taken.
func taken(p *pool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// answers counts what an address sends to whom.
type answers struct {
	mu    sync.Mutex
	count map[netip.Addr]int
	bytes int
}

func (a *answers) tap(server netip.AddrPort) func(from, to netip.AddrPort, b []byte) bool {
	return func(from, to netip.AddrPort, b []byte) bool {
		if from == server {
			a.mu.Lock()
			a.count[to.Addr()]++
			a.bytes += len(b)
			a.mu.Unlock()
		}
		return true
	}
}

// total returns how many addresses got how many packets of how many bytes.
func (a *answers) total() (addrs, packets, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.count {
		packets += n
	}
	return len(a.count), packets, a.bytes
}

func TestForgedFirstPacketsCostNothing(t *testing.T) {
	const packets = 100_000
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(0)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		first := record(t, n, b)[0]
		a := answers{count: make(map[netip.Addr]int)}
		n.setTap(a.tap(b.addr))
		honest := b.Counters()["handshakes"]
		flood := func(from, to int) {
			for i := from; i < to; i++ {
				source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 7000)
				n.send(source, b.addr, forged(first, i))
				if i%50 == 0 { // 50,000 packets a second
					time.Sleep(time.Millisecond)
				}
			}
			synctest.Wait()
		}
		flood(0, 1000)
		before, goroutines := heap(), runtime.NumGoroutine()
		flood(1000, packets)
		if grown := heap() - before; grown > 8<<20 { // the count of answers by address takes most
			t.Errorf("memory grew by %d bytes", grown)
		}
		if got := runtime.NumGoroutine(); got > goroutines {
			t.Errorf("got %d goroutines, %d before", got, goroutines)
		}
		if got := b.Counters()["handshakes"] - honest; got != 0 {
			t.Errorf("got %d handshakes, want none", got)
		}
		sent := packets * len(first)
		answered, _, got := a.total()
		if got > sent/4 {
			t.Errorf("%d bytes in, %d bytes out", sent, got)
		}
		t.Logf("%d packets of %d bytes, %d sources answered with %d bytes", packets, sent, answered, got)
		n.setTap(nil)
		c := start(t, newKey(t), n.listen("192.0.2.3:7000"), nil)
		if _, err := c.Introduce(t.Context(), b.addr); err != nil {
			t.Errorf("honest gateway after the flood: %v", err)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestOneSourceGetsFewAnswers(t *testing.T) {
	for name, source := range map[string]func(i int) string{
		"IPv4 address": func(int) string { return "198.51.100.1" },
		"IPv6 /64": func(i int) string {
			return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)}).String()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemnet(0)
				b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
				first := record(t, n, b)[0]
				a := answers{count: make(map[netip.Addr]int)}
				n.setTap(a.tap(b.addr))
				for i := range 10_000 { // in 10 s
					n.send(netip.AddrPortFrom(netip.MustParseAddr(source(i)), 7000), b.addr, forged(first, i))
					time.Sleep(time.Millisecond)
				}
				_, got, _ := a.total()
				if got < 100 || got > 40+10*20+1 { // burst and 20 a second
					t.Errorf("got %d answers in 10 s", got)
				}
				mustCount(t, b, "handshakes", 1) // the recorded one
			})
		})
	}
}

func TestForgedProvenAddressesCostLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(time.Millisecond)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Proven = func(netip.AddrPort) bool { return true }
		})
		first := record(t, n, b)[0]
		before := b.Counters()["handshakes"]
		for i := range 2000 {
			source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 7000)
			n.send(source, b.addr, forged(first, i))
		}
		synctest.Wait()
		if got := b.Counters()["handshakes"] - before; got > 32 {
			t.Errorf("got %d handshakes, want at most half of the places", got)
		}
		// The other half is for those that answer a Retry.
		c := start(t, newKey(t), n.listen("192.0.2.3:7000"), nil)
		if _, err := c.Introduce(t.Context(), b.addr); err != nil {
			t.Errorf("honest gateway at a proven address: %v", err)
		}
		time.Sleep(time.Minute)
		if got := taken(b.admit.known); got != 0 {
			t.Errorf("got %d places taken a minute later, want none", got)
		}
	})
}

func TestOnlyVersionOneIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(0)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		first := record(t, n, b)[0]
		a := answers{count: make(map[netip.Addr]int)}
		n.setTap(a.tap(b.addr))
		refused := b.Counters()["refused_packet"]
		version2 := bytes.Clone(first)
		copy(version2[1:5], []byte{0x6b, 0x33, 0x43, 0xcf}) // RFC 9369
		negotiation := bytes.Clone(first)
		copy(negotiation[1:5], []byte{0, 0, 0, 0})
		for _, p := range [][]byte{version2, negotiation, first[:4], bytes.Repeat([]byte{0}, 1200), {}} {
			n.send(netip.MustParseAddrPort("198.51.100.1:7000"), b.addr, p)
		}
		time.Sleep(time.Second)
		if got := b.Counters()["refused_packet"] - refused; got != 5 {
			t.Errorf("got %d packets refused, want 5", got)
		}
		if _, _, got := a.total(); got != 0 {
			t.Errorf("got %d bytes of answers, want silence", got)
		}
	})
}
