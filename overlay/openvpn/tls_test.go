package openvpn

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tlsPair is a client and a server that know each other by fingerprint.
func tlsPair(t testing.TB, m *memNet) (client, server Config) {
	t.Helper()
	cc, sc := mustCert(t, certSpec{name: "client"}), mustCert(t, certSpec{name: "server"})
	client, server = staticPair(m)
	client.Static, server.Static = nil, nil
	client.TLS = &TLS{Role: TLSClient, Certificate: cc.chain(), Fingerprints: []Fingerprint{sc.fingerprint()}}
	server.TLS = &TLS{Role: TLSServer, Certificate: sc.chain(), Fingerprints: []Fingerprint{cc.fingerprint()}}
	return client, server
}

// mustPassBoth sends packets of several sizes both ways.
func mustPassBoth(t testing.TB, a, b Config) {
	t.Helper()
	for _, size := range []int{20, 700, 1500} {
		mustPass(t, deviceOf(a), deviceOf(b), size)
		mustPass(t, deviceOf(b), deviceOf(a), size)
	}
}

func TestTLSEndpointsCarryPackets(t *testing.T) {
	key := GenerateStaticKey()
	wrap := func(w Wrap, cd, sd Direction) func(c, s *Config) {
		return func(c, s *Config) {
			c.TLS.Wrap, c.TLS.WrapKey, c.TLS.WrapDirection = w, key, cd
			s.TLS.Wrap, s.TLS.WrapKey, s.TLS.WrapDirection = w, key, sd
		}
	}
	ciphers := func(list ...Cipher) func(c, s *Config) {
		return func(c, s *Config) { c.TLS.Ciphers, s.TLS.Ciphers = list, list }
	}
	for _, row := range []struct {
		name   string
		change func(c, s *Config)
		cipher Cipher
		v2     bool
	}{
		{"defaults", nil, CipherAES256GCM, true},
		{"chacha", ciphers(CipherChaCha20Poly1305), CipherChaCha20Poly1305, true},
		{"aes-192-gcm", ciphers(CipherAES192GCM), CipherAES192GCM, true},
		{"cbc", ciphers(CipherAES256CBC), CipherAES256CBC, true},
		{"3des", ciphers(CipherTripleDESCBC), CipherTripleDESCBC, true},
		{"server's order decides", func(c, s *Config) {
			c.TLS.Ciphers = []Cipher{CipherAES256GCM, CipherAES128GCM}
			s.TLS.Ciphers = []Cipher{CipherChaCha20Poly1305, CipherAES128GCM, CipherAES256GCM}
		}, CipherAES128GCM, true},
		{"tls-auth", wrap(WrapAuth, Direction1, Direction0), CipherAES256GCM, true},
		{"tls-auth without direction", wrap(WrapAuth, DirectionNone, DirectionNone), CipherAES256GCM, true},
		{"tls-crypt", wrap(WrapCrypt, DirectionNone, DirectionNone), CipherAES256GCM, true},
		{"legacy cbc", func(c, s *Config) {
			c.TLS.silent = true
			c.TLS.Fallback, s.TLS.Fallback = CipherAES256CBC, CipherAES256CBC
		}, CipherAES256CBC, false},
		{"legacy gcm", func(c, s *Config) {
			s.TLS.silent = true
			c.TLS.Fallback, s.TLS.Fallback = CipherAES256GCM, CipherAES256GCM
		}, CipherAES256GCM, false},
		{"disjoint lists fall back", func(c, s *Config) {
			c.TLS.Ciphers, s.TLS.Ciphers = []Cipher{CipherAES128GCM}, []Cipher{CipherAES256GCM}
			c.TLS.Fallback, s.TLS.Fallback = CipherAES128CBC, CipherAES128CBC
		}, CipherAES128CBC, true},
		{"without exporter", func(c, _ *Config) { c.TLS.protoMask = protoExporter }, CipherAES256GCM, true},
		{"without data v2", func(c, _ *Config) { c.TLS.protoMask = protoDataV2 }, CipherAES256GCM, false},
		{"without p2p", func(c, _ *Config) { c.TLS.protoMask = protoP2P }, CipherAES256GCM, false},
		{"tls 1.2", func(c, _ *Config) { c.TLS.MaxVersion = tls.VersionTLS12 }, CipherAES256GCM, true},
		{"fragments and framing", func(c, s *Config) {
			c.Fragment, s.Fragment, c.Framing, s.Framing = 600, 700, FramingLZO, FramingLZO
		}, CipherAES256GCM, true},
		{"server learns the client", func(_, s *Config) { s.Remote = "" }, CipherAES256GCM, true},
		{"client learns the server", func(c, _ *Config) { c.Remote = "" }, CipherAES256GCM, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := tlsPair(t, newMemNet())
				if row.change != nil {
					row.change(&c, &s)
				}
				ec, es := mustOpen(t, c), mustOpen(t, s)
				mustPassBoth(t, c, s)
				for _, e := range []*Endpoint{ec, es} {
					st := e.Status()
					if st.State != StateUp || st.Cipher != row.cipher || st.DataV2 != row.v2 || st.Keys != 1 || st.Restarts != 0 {
						t.Errorf("status %+v", st)
					}
					if !strings.Contains(st.PeerOptions, "key-method 2") {
						t.Errorf("peer options %q", st.PeerOptions)
					}
				}
				if a, b := ec.Status(), es.Status(); a.PeerID != b.PeerID || a.DataV2 && a.PeerID == 0 {
					t.Errorf("peer ids %d and %d", a.PeerID, b.PeerID)
				}
			})
		})
	}
}

func TestRenegotiationLosesNoPacketAndKeyIDsComeRound(t *testing.T) {
	key := GenerateStaticKey()
	for name, change := range map[string]func(c, s *Config){
		"client begins": func(c, s *Config) { c.TLS.RenegInterval, s.TLS.RenegInterval = 10*time.Second, -1 },
		"server begins": func(c, s *Config) { c.TLS.RenegInterval, s.TLS.RenegInterval = -1, 10*time.Second },
		"both begin":    func(c, s *Config) { c.TLS.RenegInterval, s.TLS.RenegInterval = 10*time.Second, 10*time.Second },
		"tls-crypt": func(c, s *Config) {
			c.TLS.RenegInterval, c.TLS.Wrap, s.TLS.Wrap, c.TLS.WrapKey, s.TLS.WrapKey = 10*time.Second, WrapCrypt, WrapCrypt, key, key
		},
		"tls-auth without dynamic wrapping": func(c, s *Config) {
			c.TLS.protoMask = protoDynWrap
			c.TLS.RenegInterval, c.TLS.Wrap, s.TLS.Wrap, c.TLS.WrapKey, s.TLS.WrapKey = 10*time.Second, WrapAuth, WrapAuth, key, key
		},
		"prf": func(c, s *Config) { c.TLS.RenegInterval, c.TLS.protoMask = 10*time.Second, protoExporter },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemNet()
				m.delay = 20 * time.Millisecond
				c, s := tlsPair(t, m)
				change(&c, &s)
				ec, es := mustOpen(t, c), mustOpen(t, s)
				mustPassBoth(t, c, s)
				time.Sleep(time.Second)
				for _, d := range []*chanDevice{deviceOf(c), deviceOf(s)} {
					for len(d.out) > 0 {
						<-d.out
					}
				}
				var ids []uint8
				for n := range uint32(1100) {
					deviceOf(c).in <- innerPacket(n, 60)
					deviceOf(s).in <- innerPacket(n, 60)
					time.Sleep(100 * time.Millisecond)
					for _, side := range []Config{s, c} {
						select {
						case p := <-deviceOf(side).out:
							if got := binary.BigEndian.Uint32(p[16:]); got != n {
								t.Fatalf("packet %d came instead of %d", got, n)
							}
						default:
							t.Fatalf("packet %d to the %s was lost; client %+v, server %+v", n, side.TLS.Role, ec.Status(), es.Status())
						}
					}
					if id := ec.Status().KeyID; len(ids) == 0 || ids[len(ids)-1] != id {
						ids = append(ids, id)
					}
				}
				if len(ids) < 9 || fmt.Sprint(ids[:9]) != "[0 1 2 3 4 5 6 7 1]" {
					t.Errorf("key ids %v", ids)
				}
				if st := es.Status(); st.Restarts != 0 || len(st.Counters.Dropped) > 1 {
					t.Errorf("server %+v", st)
				}
				if l := ec.link.Load().ch.(*tlsChannel); len(l.sessions) != 1 {
					t.Errorf("%d sessions", len(l.sessions))
				}
			})
		})
	}
}

// A real peer sends under a new key as soon as its last control message is
// acknowledged, so that acknowledgement must not leave before we can receive.
func TestLastMessageIsAcknowledgedWhenTheKeyIsInstalled(t *testing.T) {
	for _, role := range []Role{TLSClient, TLSServer} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemNet()
			c, s := tlsPair(t, m)
			c.TLS.protoMask, c.TLS.RenegInterval = protoDynWrap, 10*time.Second
			ours := map[Role]Config{TLSClient: c, TLSServer: s}[role]
			ec, es := mustOpen(t, c), mustOpen(t, s)
			e := map[Role]*Endpoint{TLSClient: ec, TLSServer: es}[role]
			mustPassBoth(t, c, s)
			var mu sync.Mutex
			first := map[uint8]map[uint32]bool{} // by key and message: could we receive when it was first acknowledged
			m.setDeliver(func(from, _ netip.AddrPort, p []byte) [][]byte {
				mu.Lock()
				defer mu.Unlock()
				op, id := p[0]>>3, p[0]&maxKeyID
				if from != ours.Local || op == opDataV1 || op == opDataV2 || id == 0 {
					return [][]byte{p}
				}
				packet, err := parseControl(p[0], sessionID(p[1:controlHeader]), p[controlHeader:])
				if err != nil {
					t.Errorf("our packet %x: %v", p, err)
				}
				if first[id] == nil {
					first[id] = map[uint32]bool{}
				}
				for _, n := range packet.acks {
					if _, again := first[id][n]; !again {
						first[id][n] = e.link.Load().ch.(*tlsChannel).data.get(id) != nil
					}
				}
				return [][]byte{p}
			})
			time.Sleep(65 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			if len(first) < 5 {
				t.Errorf("%d renegotiations", len(first))
			}
			for id, messages := range first {
				if last := slices.Max(slices.Collect(maps.Keys(messages))); last < 2 || !messages[last] {
					t.Errorf("%s: message %d of key %d was acknowledged without a key to receive with", role, last, id)
				}
			}
		})
	}
}

func TestKeyInUseIsNotForgottenByQuickRenegotiations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		c.TLS.RenegInterval, c.Ping = 1500*time.Millisecond, -1 // quick and silent
		mustOpen(t, c)
		mustOpen(t, s) // would send with an old key for 2 s
		mustPass(t, deviceOf(s), deviceOf(c), 100)
		for len(deviceOf(c).out) > 0 {
			<-deviceOf(c).out
		}
		for n := range uint32(200) {
			deviceOf(s).in <- innerPacket(n, 60)
			time.Sleep(100 * time.Millisecond)
			if len(deviceOf(c).out) != 1 {
				t.Fatalf("packet %d was lost", n)
			}
			<-deviceOf(c).out
		}
	})
}

// badLine loses a share of the datagrams, and repeats and delays another each.
func badLine(seed uint64, loss, other float64) func(from, to netip.AddrPort, p []byte) [][]byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	var held []byte
	var heldTo netip.AddrPort
	return func(_, to netip.AddrPort, p []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		switch x := rnd.Float64(); {
		case x < loss:
			return nil
		case x < loss+other:
			return [][]byte{p, p}
		case x < loss+2*other && held == nil:
			held, heldTo = p, to
			return nil
		case held != nil && heldTo == to:
			late := held
			held = nil
			return [][]byte{p, late}
		}
		return [][]byte{p}
	}
}

func TestHandshakeAndRenegotiationSurviveABadLine(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemNet()
			m.setDeliver(badLine(seed, 0.1, 0.1))
			c, s := tlsPair(t, m)
			c.TLS.RenegInterval = 20 * time.Second
			ec := mustOpen(t, c)
			mustOpen(t, s)
			mustPassBoth(t, c, s)
			time.Sleep(5 * time.Minute)
			mustPassBoth(t, c, s)
			if st := ec.Status(); st.Keys < 5 || st.Restarts != 0 {
				t.Errorf("seed %d: %+v", seed, st)
			}
		})
	}
}

func TestLargeChainsTakeManyPackets(t *testing.T) {
	root := mustCert(t, certSpec{name: "root", ca: true, rsaBits: 4096})
	mid := mustCert(t, certSpec{name: "mid", ca: true, rsaBits: 4096, issuer: root})
	cc := mustCert(t, certSpec{name: "c", issuer: mid, usages: usageClient})
	sc := mustCert(t, certSpec{name: "s", issuer: mid, usages: usageServer})
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		for range 6 { // the chain is padded with more of the same
			mid := cc.chain().Certificate[1]
			c.TLS.Certificate, s.TLS.Certificate = cc.chain(), sc.chain()
			c.TLS.Certificate.Certificate = append(c.TLS.Certificate.Certificate, mid, mid, mid)
			s.TLS.Certificate.Certificate = append(s.TLS.Certificate.Certificate, mid, mid, mid)
		}
		c.TLS.CAs, s.TLS.CAs, c.TLS.Fingerprints, s.TLS.Fingerprints = root.pool(), root.pool(), nil, nil
		mustOpen(t, c)
		mustOpen(t, s)
		mustPassBoth(t, c, s)
	})
}

func TestPeerCertificatesAreVerified(t *testing.T) {
	root := mustCert(t, certSpec{name: "root", ca: true})
	foreign := mustCert(t, certSpec{name: "root", ca: true})
	list := &x509.RevocationList{RawIssuer: root.cert.RawSubject}
	good := mustCert(t, certSpec{name: "good", issuer: root, usages: usageClient})
	bad := mustCert(t, certSpec{name: "bad", issuer: root, usages: usageClient})
	list.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(7)}, {SerialNumber: bad.cert.SerialNumber}}
	for _, row := range []struct {
		name   string
		cert   *testCert
		change func(*TLS)
		ok     bool
	}{
		{"good", good, nil, true},
		{"no extended usage", mustCert(t, certSpec{name: "x", issuer: root}), nil, true},
		{"no extended usage, demanded", mustCert(t, certSpec{name: "x", issuer: root}), func(c *TLS) { c.PeerUsage = true }, false},
		{"demanded usage", good, func(c *TLS) { c.PeerUsage = true }, true},
		{"usage of a server", mustCert(t, certSpec{name: "x", issuer: root, usages: usageServer}), nil, false},
		{"foreign root of the same name", mustCert(t, certSpec{name: "x", issuer: foreign, usages: usageClient}), nil, false},
		{"expired", mustCert(t, certSpec{name: "x", issuer: root, usages: usageClient, expired: true}), nil, false},
		{"revoked", bad, func(c *TLS) { c.CRLs = []*x509.RevocationList{list} }, false},
		{"not revoked", good, func(c *TLS) { c.CRLs = []*x509.RevocationList{list} }, true},
		{"name", good, func(c *TLS) { c.PeerName = "good" }, true},
		{"other name", good, func(c *TLS) { c.PeerName = "goo" }, false},
		{"subject", good, func(c *TLS) { c.PeerSubject = "CN=good,O=test" }, true},
		{"other subject", good, func(c *TLS) { c.PeerSubject = "CN=good" }, false},
		{"fingerprint only, expired and of another usage", mustCert(t, certSpec{name: "x", usages: usageServer, expired: true}), func(c *TLS) { c.CAs = nil }, true},
		{"authority and wrong fingerprint", good, func(c *TLS) { c.Fingerprints = []Fingerprint{bad.fingerprint()} }, false},
		{"authority and one of two fingerprints", good, func(c *TLS) { c.Fingerprints = []Fingerprint{bad.fingerprint(), good.fingerprint()} }, true},
		{"self-signed", mustCert(t, certSpec{name: "x"}), nil, false},
	} {
		cfg := &TLS{Role: TLSServer, CAs: root.pool()}
		if row.change != nil {
			row.change(cfg)
		}
		if cfg.CAs == nil {
			cfg.Fingerprints = []Fingerprint{row.cert.fingerprint()}
		}
		err := verifyPeer(cfg, []*x509.Certificate{row.cert.cert}, time.Now())
		if (err == nil) != row.ok {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	if verifyPeer(&TLS{CAs: root.pool()}, nil, time.Now()) == nil {
		t.Error("no certificate was accepted")
	}
}

func TestWrongCertificateFailsTheAttemptAndIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		s.TLS.Fingerprints = []Fingerprint{{1}}
		ec, es := mustOpen(t, c), mustOpen(t, s)
		time.Sleep(30 * time.Second)
		for _, e := range []*Endpoint{ec, es} {
			st := e.Status()
			if st.State != StateConnecting || st.Counters.Dropped[ReasonCertificate] == 0 || st.Counters.Dropped[ReasonCertificate] > 20 {
				t.Errorf("status %+v", st)
			}
		}
		if st := es.Status(); !strings.Contains(st.LastError, "fingerprint") {
			t.Errorf("last error %q", st.LastError)
		}
	})
}

func TestRefusedAttemptsBecomeRarer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		right := c.TLS.Fingerprints
		c.TLS.Fingerprints = []Fingerprint{{9}}
		seen := map[string]bool{} // session ids of the client
		var mu sync.Mutex
		m.setDeliver(func(from, _ netip.AddrPort, p []byte) [][]byte {
			mu.Lock()
			defer mu.Unlock()
			if from == c.Local && p[0]>>3 == opResetClient {
				seen[string(p[1:controlHeader])] = true
			}
			return [][]byte{p}
		})
		ec := mustOpen(t, c)
		mustOpen(t, s)
		time.Sleep(2 * time.Minute)
		mu.Lock()
		n := len(seen)
		mu.Unlock()
		if n < 5 || n > 30 {
			t.Errorf("%d attempts in two minutes", n)
		}
		_ = ec.Close()
		c.Device, c.TLS.Fingerprints = newChanDevice(), right
		mustOpen(t, c)
		mustPassBoth(t, c, s)
	})
}

func TestPeerWithoutCipherInCommonIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		s.TLS.silent, s.TLS.Fallback = true, CipherAES256CBC
		ec := mustOpen(t, c)
		mustOpen(t, s)
		time.Sleep(20 * time.Second)
		if st := ec.Status(); st.State != StateConnecting || st.Counters.Dropped[ReasonCipher] == 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestTwoClientsNeverConnectAndAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		s.TLS.Role = TLSClient
		ec := mustOpen(t, c)
		mustOpen(t, s)
		time.Sleep(30 * time.Second)
		if st := ec.Status(); st.State != StateConnecting || st.Counters.Dropped[ReasonRole] == 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestPeerRestartIsTakenUpWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := tlsPair(t, newMemNet())
		ec, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		es := mustOpen(t, s)
		mustPassBoth(t, c, s)
		_ = ec.Close() // without a word, as a crash
		c.Device = newChanDevice()
		mustOpen(t, c)
		began := time.Now()
		mustPassBoth(t, c, s)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if st := es.Status(); st.Restarts != 0 || st.Keys != 2 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestExitOverTheControlChannel(t *testing.T) {
	for name, mask := range map[string]uint32{"control channel": 0, "occ": protoExit} {
		synctest.Test(t, func(t *testing.T) {
			c, s := tlsPair(t, newMemNet())
			c.ExitNotify, c.TLS.protoMask = true, mask
			ec, err := Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			es := mustOpen(t, s)
			mustPassBoth(t, c, s)
			_ = ec.Close()
			synctest.Wait()
			if st := es.Status(); !strings.Contains(st.LastError, "leaves") {
				t.Errorf("%s: %+v", name, st)
			}
		})
	}
}

func TestLineThatWasCutComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		for _, cfg := range []*Config{&c, &s} {
			cfg.Ping, cfg.PingRestart = 2*time.Second, 6*time.Second
		}
		mustOpen(t, c)
		mustOpen(t, s)
		mustPassBoth(t, c, s)
		m.setDeliver(func(_, _ netip.AddrPort, _ []byte) [][]byte { return nil })
		time.Sleep(12 * time.Second)
		m.setDeliver(nil)
		began := time.Now()
		mustPassBoth(t, c, s)
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestForgedResetsDisturbNothingAndStayFew(t *testing.T) {
	for _, wrap := range []Wrap{WrapNone, WrapAuth, WrapCrypt} {
		t.Run(wrap.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemNet()
				c, s := tlsPair(t, m)
				key := GenerateStaticKey()
				for _, cfg := range []*Config{&c, &s} {
					cfg.TLS.Wrap, cfg.TLS.WrapKey = wrap, key
				}
				mustOpen(t, c)
				es := mustOpen(t, s)
				mustPassBoth(t, c, s)
				sent := es.Status().Counters.SentPackets
				forged := newWrapping(&TLS{Wrap: wrap, WrapKey: GenerateStaticKey()}, s.Digest)
				for i := range uint32(1000) {
					p := controlPacket{op: opResetClient, sid: newSessionID()}
					m.send(addrA, addrB, forged.seal(p.first(), p.sid, i+1, 77, p.body()))
					if i%100 == 0 {
						synctest.Wait()
					}
				}
				synctest.Wait()
				ch := es.link.Load().ch.(*tlsChannel)
				ch.mu.Lock()
				sessions := len(ch.sessions)
				ch.mu.Unlock()
				if sessions > maxSessions {
					t.Errorf("%d sessions", sessions)
				}
				answers := es.Status().Counters.SentPackets - sent
				if wrap == WrapNone && answers > 3*attemptBurst || wrap != WrapNone && (answers != 0 || sessions != 1) {
					t.Errorf("%d answers, %d sessions", answers, sessions)
				}
				mustPassBoth(t, c, s)
				time.Sleep(5 * time.Minute)
				mustPassBoth(t, c, s)
				if st := es.Status(); st.Keys != 1 || st.Restarts != 0 {
					t.Errorf("status %+v", st)
				}
			})
		})
	}
}

func TestGarbageOnTheControlChannelIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		s.Remote = "" // hears everybody
		mustOpen(t, c)
		es := mustOpen(t, s)
		mustPassBoth(t, c, s)
		other := netip.MustParseAddrPort("192.0.2.66:666")
		raw, _ := m.open(t.Context(), &Config{Local: other})
		before := es.Status().Counters.Dropped
		sid := newSessionID()
		packet := func(first byte, sid sessionID, rest ...byte) []byte {
			return append(append([]byte{first}, sid[:]...), rest...)
		}
		for _, row := range []struct {
			p    []byte
			want Reason
		}{
			{[]byte{0}, ReasonOpcode},
			{packet(1<<3, sid), ReasonOpcode},
			{packet(10<<3, sid), ReasonOpcode},
			{packet(opResetServer<<3, sid, 0, 0, 0, 0, 0), ReasonRole},
			{packet(opControl<<3, sid, 0, 0, 0, 0, 0), ReasonSession},
			{packet(opAck<<3, sid, 1, 0, 0, 0, 0), ReasonSession},
			{packet(opResetClient<<3|1, sid, 0, 0, 0, 0, 0), ReasonMalformed},
			{packet(opResetClient<<3, sessionID{}, 0, 0, 0, 0, 0), ReasonMalformed},
			{packet(opResetClient<<3, sid, 9), ReasonMalformed},
			{packet(opResetClient<<3, sid, 2, 0, 0, 0, 0), ReasonMalformed},
			{packet(opResetClient<<3, sid, 0, 0), ReasonMalformed},
			{packet(opResetClient<<3, sid)[:5], ReasonShort},
			{packet(opResetClient<<3, sid, append([]byte{1, 0, 0, 0, 0}, make([]byte, 12)...)...), ReasonSession},
			{packet(opDataV2<<3|5, sid), ReasonNoKey},
			{packet(opDataV2<<3, sid), ReasonShort},
			{packet(opDataV1<<3, sid, make([]byte, 60)...), ReasonAuth},
		} {
			m.send(other, addrB, row.p)
			synctest.Wait()
			after := es.Status().Counters.Dropped
			if after[row.want] != before[row.want]+1 {
				t.Errorf("%x: counted %v, before %v, want one more %s", row.p, after, before, row.want)
			}
			before = after
		}
		if n := len(raw.(*memTransport).queue); n != 0 {
			t.Errorf("%d answers", n)
		}
		if es.Status().Peer != addrA {
			t.Errorf("peer is %s", es.Status().Peer)
		}
		mustPassBoth(t, c, s)
	})
}

func TestTLSGarbageFailsOnlyTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		mustOpen(t, c)
		es := mustOpen(t, s)
		mustPassBoth(t, c, s)
		// A stranger at the client's address finishes the resets, then sends no TLS.
		var theirs sessionID
		m.setDeliver(func(from, _ netip.AddrPort, p []byte) [][]byte {
			if from == addrB && p[0] == opResetServer<<3 {
				copy(theirs[:], p[1:])
				return nil
			}
			return [][]byte{p}
		})
		sid := newSessionID()
		say := func(p controlPacket) {
			p.sid = sid
			m.send(addrA, addrB, bareWrapping{}.seal(p.first(), sid, 0, 0, p.body()))
			synctest.Wait()
		}
		say(controlPacket{op: opResetClient})
		say(controlPacket{op: opControl, id: 1, payload: bytes.Repeat([]byte{0xff}, 600), acks: []uint32{0}, ackSID: theirs})
		m.setDeliver(nil)
		time.Sleep(2 * time.Second)
		if st := es.Status(); st.Counters.Dropped[ReasonTLS] != 1 || st.State != StateUp || st.Keys != 1 {
			t.Errorf("status %+v", st)
		}
		mustPassBoth(t, c, s)
	})
}

func TestTLSFloatFollowsAuthenticPacketsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		s.Remote = ""
		mustOpen(t, c)
		es := mustOpen(t, s)
		mustPassBoth(t, c, s)
		moved := netip.MustParseAddrPort("198.51.100.1:99")
		var last []byte
		m.setDeliver(func(from, to netip.AddrPort, p []byte) [][]byte {
			if from == addrA && p[0]>>3 == opDataV2 {
				last = bytes.Clone(p)
				m.mu.Lock()
				node := m.nodes[addrB]
				m.mu.Unlock()
				node.queue <- datagram{path{addr: moved}, bytes.Clone(p)}
				return nil
			}
			return [][]byte{p}
		})
		mustPass(t, deviceOf(c), deviceOf(s), 77)
		if got := es.Status().Peer; got != moved {
			t.Errorf("peer is %s", got)
		}
		m.send(addrA, addrB, last) // diverted too; a replay from elsewhere must not move it back
		m.setDeliver(nil)
		m.send(netip.MustParseAddrPort("203.0.113.5:5"), addrB, last)
		synctest.Wait()
		if got := es.Status().Peer; got != moved {
			t.Errorf("a replay moved the peer to %s", got)
		}
	})
}

func TestResetWithANumberDoesNotSwallowTheFirstTLSBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		c, s := tlsPair(t, m)
		m.setDeliver(func(from, _ netip.AddrPort, p []byte) [][]byte {
			if from == addrA && p[0] == opResetClient<<3 {
				again := bytes.Clone(p)
				again[len(again)-1] = 1 // the message id
				return [][]byte{p, again}
			}
			return [][]byte{p}
		})
		mustOpen(t, c)
		es := mustOpen(t, s)
		mustPassBoth(t, c, s)
		if st := es.Status(); st.Keys != 1 || st.Restarts != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestTLSOverTCP(t *testing.T) {
	a, b := socketPair(t, TCPConnect)
	c, s := tlsPair(t, nil)
	a.Static, b.Static = nil, nil
	a.TLS, b.TLS = s.TLS, c.TLS
	a.TLS.RenegInterval = 2 * time.Second
	ea := mustOpen(t, a)
	eb, err := Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	mustPassBoth(t, a, b)
	eventually(t, "three keys", ea, func() bool { return ea.Status().Keys >= 3 })
	mustPassBoth(t, a, b)
	_ = eb.Close()
	b.Device = newChanDevice()
	mustOpen(t, b)
	mustPassBoth(t, a, b)
}
