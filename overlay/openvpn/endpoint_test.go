package openvpn

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:1194")
	addrB = netip.MustParseAddrPort("192.0.2.2:1194")
)

// staticPair is two configurations that fit, over a memNet.
func staticPair(m *memNet) (a, b Config) {
	key := GenerateStaticKey()
	a = Config{
		Local: addrA, Remote: addrB.String(), Device: newChanDevice(), Digest: DigestSHA256,
		Static: &Static{Key: key, Cipher: CipherAES256CBC}, transport: m.open,
	}
	b = a
	b.Local, b.Remote, b.Device = addrB, addrA.String(), newChanDevice()
	return a, b
}

func deviceOf(c Config) *chanDevice { return c.Device.(*chanDevice) }

func TestStaticEndpointsCarryPackets(t *testing.T) {
	key := GenerateStaticKey()
	for _, row := range []struct {
		name   string
		static Static
		change func(*Config)
	}{
		{"aes-256-cbc sha256", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Digest = DigestSHA256 }},
		{"aes-128-cbc sha1", Static{Cipher: CipherAES128CBC}, nil},
		{"aes-192-cbc sha384", Static{Cipher: CipherAES192CBC}, func(c *Config) { c.Digest = DigestSHA384 }},
		{"aes-256-cbc sha512", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Digest = DigestSHA512 }},
		{"default bf-cbc md5", Static{}, func(c *Config) { c.Digest = DigestMD5 }},
		{"bf-cbc 256", Static{BlowfishBits: 256}, nil},
		{"3des", Static{Cipher: CipherTripleDESCBC}, nil},
		{"none none", Static{Cipher: CipherNone}, func(c *Config) { c.Digest, c.Insecure = DigestNone, true }},
		{"lzo framing", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Framing = FramingLZO }},
		{"stub framing", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Framing = FramingStub }},
		{"stub-v2 framing", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Framing = FramingStubV2 }},
		{"fragments", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Fragment = 400 }},
		{"fragments with framing", Static{Cipher: CipherAES256CBC}, func(c *Config) { c.Fragment, c.Framing = 500, FramingStub }},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemNet()
				if row.static.Cipher != CipherNone {
					m.setDeliver(func(_, _ netip.AddrPort, p []byte) [][]byte { return [][]byte{p, p} }) // all twice
				}
				a, b := staticPair(m)
				for _, c := range []*Config{&a, &b} {
					s := row.static
					s.Key, c.Static, c.Digest = key, &s, ""
					if row.change != nil {
						row.change(c)
					}
				}
				ea, eb := mustOpen(t, a), mustOpen(t, b)
				synctest.Wait()
				for _, size := range []int{20, 100, 999, 1000, 1001, 1500} {
					mustPass(t, deviceOf(a), deviceOf(b), size)
					mustPass(t, deviceOf(b), deviceOf(a), size)
				}
				synctest.Wait() // for the counters
				if s := ea.Status(); s.State != StateUp || s.Peer != addrB || s.Counters.InPackets != 6 || s.Counters.OutPackets != 6 {
					t.Errorf("status %+v", s)
				}
				if limit := a.Fragment; limit != 0 {
					c := eb.Status().Counters
					if c.SentPackets < 10 || c.SentBytes > c.SentPackets*uint64(limit) {
						t.Errorf("%d packets of %d bytes in all with a limit of %d", c.SentPackets, c.SentBytes, limit)
					}
				}
			})
		})
	}
}

func TestDirectionsMustBeOpposite(t *testing.T) {
	for _, row := range []struct {
		a, b           Direction
		aHears, bHears bool
	}{
		{DirectionNone, DirectionNone, true, true},
		{Direction0, Direction1, true, true},
		{Direction1, Direction0, true, true},
		{Direction0, Direction0, false, false},
		{DirectionNone, Direction0, true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := staticPair(newMemNet())
			sa, sb := *a.Static, *b.Static
			sa.Direction, sb.Direction = row.a, row.b
			a.Static, b.Static = &sa, &sb
			ea, eb := mustOpen(t, a), mustOpen(t, b)
			time.Sleep(15 * time.Second) // virtual
			if got := ea.Status().State == StateUp; got != row.aHears {
				t.Errorf("%s/%s: first side up: %v", row.a, row.b, got)
			}
			if got := eb.Status().State == StateUp; got != row.bHears {
				t.Errorf("%s/%s: second side up: %v", row.a, row.b, got)
			}
			if n := eb.Status().Counters.Dropped[ReasonAuth]; (n > 0) == row.bHears {
				t.Errorf("%s/%s: %d packets failed authentication", row.a, row.b, n)
			}
		})
	}
}

func TestSilentPeerRestartsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		a, b := staticPair(m)
		a.PingRestart = 30 * time.Second
		ea, eb := mustOpen(t, a), mustOpen(t, b)
		time.Sleep(100 * time.Second)
		if s := ea.Status(); s.State != StateUp || s.Restarts != 0 {
			t.Fatalf("pings did not keep it up: %+v", s)
		}
		m.setDeliver(func(_, _ netip.AddrPort, _ []byte) [][]byte { return nil })
		time.Sleep(32 * time.Second)
		if s := ea.Status(); s.State != StateConnecting || s.Restarts == 0 || !strings.Contains(s.LastError, "restart timeout") {
			t.Fatalf("status after silence: %+v", s)
		}
		m.setDeliver(nil)
		time.Sleep(12 * time.Second)
		if s := ea.Status(); s.State != StateUp {
			t.Fatalf("status after the line came back: %+v", s)
		}
		mustPass(t, deviceOf(a), deviceOf(b), 100)
		mustPass(t, deviceOf(b), deviceOf(a), 100)
		if eb.Status().Restarts != 0 {
			t.Error("the other side restarted as well")
		}
	})
}

func TestExitNotificationRestartsThePeerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := staticPair(newMemNet())
		a.ExitNotify = true
		ea, err := Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		eb := mustOpen(t, b)
		time.Sleep(3 * time.Second)
		_ = ea.Close()
		synctest.Wait()
		if s := eb.Status(); s.State != StateConnecting || !strings.Contains(s.LastError, "leaves") {
			t.Errorf("status after the peer left: %+v", s)
		}
		if err := ea.Wait(); !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Wait = %v", err)
		}
		if s := ea.Status(); s.State != StateClosed {
			t.Errorf("closed endpoint is %s", s.State)
		}
		if err := ea.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
	})
}

func TestOptionsRequestIsAnsweredOnlyWhenAuthentic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet()
		a, _ := staticPair(m)
		a.Address, a.PeerAddress = netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.1")
		a.Ping = -1
		e := mustOpen(t, a)
		raw, _ := m.open(t.Context(), &Config{Local: addrB})
		node := raw.(*memTransport)
		send, recv := mustStaticBoxes(t, *a.Static, a.Digest)
		send.time = 5
		ask, _ := send.seal(nil, &plaintext{body: occMessage(occRequest, "")})
		forged := append([]byte(nil), ask...)
		forged[0] ^= 1
		m.send(addrB, addrA, forged)
		m.send(addrB, addrA, ask)
		m.send(addrB, addrA, ask)
		synctest.Wait()
		if len(node.queue) != 1 {
			t.Fatalf("%d answers to one genuine request", len(node.queue))
		}
		o, err := recv.open((<-node.queue).p)
		if err != nil {
			t.Fatal(err)
		}
		want := "V4,dev-type tun,link-mtu 1572,tun-mtu 1500,proto UDPv4,ifconfig 10.9.0.1 10.9.0.2,cipher AES-256-CBC,auth SHA256,keysize 256,secret"
		if got, err := parseOCCReply(o.payload); err != nil || got != want {
			t.Errorf("reply %q, %v", got, err)
		}
		if d := e.Status().Counters.Dropped; d[ReasonAuth] != 1 || d[ReasonReplay] != 1 {
			t.Errorf("dropped %v", d)
		}
	})
}

func TestPeerAddressRules(t *testing.T) {
	other := netip.MustParseAddrPort("192.0.2.9:4000")
	for _, row := range []struct {
		name    string
		change  func(*Config)
		follows bool
	}{
		{"remote", func(*Config) {}, false},
		{"float", func(c *Config) { c.Float = true }, true},
		{"no remote", func(c *Config) { c.Remote = "" }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemNet()
				a, _ := staticPair(m)
				row.change(&a)
				e := mustOpen(t, a)
				send, _ := mustStaticBoxes(t, *a.Static, a.Digest)
				send.time = 5
				seal := func() []byte {
					p, _ := send.seal(nil, &plaintext{body: innerPacket(1, 50)})
					return p
				}
				m.send(addrB, addrA, seal())
				synctest.Wait()
				if got := e.Status().Peer; got != addrB {
					t.Fatalf("peer is %s", got)
				}
				forged := seal()
				forged[3] ^= 1
				m.send(other, addrA, forged)
				synctest.Wait()
				if got := e.Status().Peer; got != addrB {
					t.Errorf("a forged packet moved the peer to %s", got)
				}
				m.send(other, addrA, seal())
				synctest.Wait()
				if got := e.Status().Peer == other; got != row.follows {
					t.Errorf("followed an authentic packet: %v", got)
				}
				if n := e.Status().Counters.Dropped[ReasonAddress]; (n == 0) != row.follows {
					t.Errorf("%d dropped by address", n)
				}
			})
		})
	}
}

func TestBadInputIsCountedByReasonAndNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v badInputVectors
		mustVectors(t, "static-key-bad-input.json", &v)
		_, key := mustStaticVectors(t)
		m := newMemNet()
		a, _ := staticPair(m)
		a.Static, a.Digest, a.Ping = &Static{Key: key, Cipher: mustCipher(t, v.Cipher)}, mustDigest(t, v.Auth), -1
		var log logLines
		a.Logger = log.logger()
		e := mustOpen(t, a)
		raw, _ := m.open(t.Context(), &Config{Local: addrB})
		want := map[Reason]uint64{}
		for _, step := range v.Steps {
			if step.Packet == nil || strings.HasPrefix(step.Input, "occ") {
				continue
			}
			if reason, _ := badInputWant(step.Expected).(Reason); reason != 0 {
				want[reason]++
			}
			if strings.Contains(step.Input, "not IP") {
				want[ReasonPayload]++
			}
			m.send(addrB, addrA, step.Packet)
			synctest.Wait()
		}
		if n := len(raw.(*memTransport).queue); n != 0 {
			t.Errorf("%d packets in reply", n)
		}
		got := e.Status().Counters.Dropped
		for r := range reasonCount {
			if got[r] != want[r] {
				t.Errorf("%s: %d, want %d", r, got[r], want[r])
			}
		}
		if n := strings.Count(log.String(), "reason=auth"); n != 1 {
			t.Errorf("%d log lines about authentication, want 1:\n%s", n, &log)
		}
		if n := len(deviceOf(a).out); n != 7 {
			t.Errorf("%d inner packets, want 7", n)
		}
	})
}

func TestStartTimeGrowsAcrossRunsAndClockSteps(t *testing.T) {
	file := TimeFile(filepath.Join(t.TempDir(), "time"))
	wall := time.Unix(1_800_000_000, 0)
	now := func() time.Time { return wall }
	var last uint32
	for i, step := range []time.Duration{0, 0, -time.Hour, time.Second, 2 * time.Hour} {
		wall = wall.Add(step)
		clock, err := newStartClock(now, file)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := clock.next()
			if err != nil || got <= last {
				t.Fatalf("run %d: time %d after %d, %v", i, got, last, err)
			}
			last = got
		}
	}
	if got, _ := file.Load(); got != last || last != uint32(wall.Unix())+1 {
		t.Errorf("stored %d, used %d, wall %d", got, last, wall.Unix())
	}
	if err := file.Save(1<<32 - 1); err != nil {
		t.Fatal(err)
	}
	clock, _ := newStartClock(now, file)
	if got, err := clock.next(); err == nil {
		t.Errorf("time %d after the end of time", got)
	}
}

func TestPeerAcceptsUsAfterOurClockWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := staticPair(newMemNet())
		a.Times = TimeFile(filepath.Join(t.TempDir(), "time"))
		ea, err := Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		eb := mustOpen(t, b)
		mustPass(t, deviceOf(a), deviceOf(b), 100)
		_ = ea.Close()
		a.Device = newChanDevice()
		a.Now = func() time.Time { return time.Now().Add(-time.Hour) }
		mustOpen(t, a)
		mustPass(t, deviceOf(a), deviceOf(b), 101)
		if n := eb.Status().Counters.Dropped[ReasonReplay]; n != 0 {
			t.Errorf("%d packets looked like replays", n)
		}
	})
}

func TestPeerWhoseClockWentBackIsHeardAfterTheRestartTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := staticPair(newMemNet())
		ea, err := Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		eb := mustOpen(t, b)
		mustPass(t, deviceOf(a), deviceOf(b), 100)
		_ = ea.Close()
		a.Device = newChanDevice()
		a.Now = func() time.Time { return time.Now().Add(-time.Hour) } // and no store
		mustOpen(t, a)
		time.Sleep(50 * time.Second)
		if eb.Status().State == StateUp && eb.Status().Counters.Dropped[ReasonReplay] == 0 {
			t.Error("packets of an older time were accepted at once")
		}
		time.Sleep(30 * time.Second)
		mustPass(t, deviceOf(a), deviceOf(b), 101)
	})
}

func TestUsedUpIDsTakeANewTime(t *testing.T) {
	s := Static{Key: GenerateStaticKey(), Cipher: CipherAES128CBC}
	send, recv := mustStaticBoxes(t, s, DigestSHA1)
	send.time, send.id = 7, maxPacketID-1
	send.renew = func() (uint32, error) { return 9, nil }
	var g replayGuard
	for _, want := range [][2]uint32{{7, maxPacketID}, {9, 1}} {
		p, err := send.seal(nil, &plaintext{body: innerPacket(0, 20)})
		if err != nil {
			t.Fatal(err)
		}
		o, err := recv.open(p)
		if err != nil || o.time != want[0] || o.id != want[1] || !g.accept(o.time, o.id) {
			t.Errorf("time %d id %d, %v; want %v", o.time, o.id, err, want)
		}
	}
	send.renew, send.id = nil, maxPacketID
	if _, err := send.seal(nil, &plaintext{}); !errors.Is(err, errIDsUsed) {
		t.Errorf("an id was used twice: %v", err)
	}
}

func TestValidateReportsEverything(t *testing.T) {
	err := Config{
		Transport: TCPConnect, Fragment: 10, MTU: 5, Digest: "MD4", Framing: 99,
		Static: &Static{Cipher: CipherAES256GCM, Direction: 9, BlowfishBits: 25},
		TLS:    &TLS{Role: 7, Wrap: WrapCrypt, Ciphers: []Cipher{"X", CipherNone}, Fallback: "Y"},
	}.Validate()
	for _, text := range []string{
		"tcp-connect needs remote", "fragment needs udp", "mtu 5", `digest "MD4"`, "framing 99", "device is missing", "exactly one of",
		"CBC ciphers only", "static key is missing", "direction 9", "25 bits", "tls role 7", "certificate is missing",
		"authorities or fingerprints", "tls-crypt key is missing", `cipher "X"`, "none needs insecure", `fallback cipher "Y"`,
	} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
	if _, err := Open(t.Context(), Config{}); err == nil {
		t.Error("an empty configuration opened")
	}
}

func TestWarningsNameWhatIsWeak(t *testing.T) {
	got := strings.Join(Config{Static: &Static{}, Digest: DigestMD5}.Warnings(), "; ")
	for _, text := range []string{"forward secrecy", "BF-CBC", "MD5"} {
		if !strings.Contains(got, text) {
			t.Errorf("%q is not in %q", text, got)
		}
	}
	if w := (Config{TLS: &TLS{}}).Warnings(); len(w) != 0 {
		t.Errorf("the default of TLS mode warns: %q", w)
	}
}

func TestSplitRemote(t *testing.T) {
	for in, want := range map[string]string{
		"host": "host 1194", "host:5": "host 5", "192.0.2.1": "192.0.2.1 1194", "192.0.2.1:7": "192.0.2.1 7",
		"2001:db8::1": "2001:db8::1 1194", "[2001:db8::1]": "2001:db8::1 1194", "[2001:db8::1]:9": "2001:db8::1 9",
		"host:0": "", "host:x": "", ":5": "", "host:70000": "",
	} {
		host, port, err := splitRemote(in)
		got := ""
		if err == nil {
			got = host + " " + netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()[len("0.0.0.0:"):]
		}
		if got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestStatusIsStableJSON(t *testing.T) {
	s := Status{State: StateUp, Counters: Counters{Dropped: map[Reason]uint64{ReasonReplay: 3}}}
	text, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(text), `"state":"up"`) || !strings.Contains(string(text), `"dropped":{"replay":3}`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestDeviceErrorEndsTheEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := staticPair(newMemNet())
		a.Device = brokenDevice{}
		e, err := Open(context.Background(), a)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Wait(); !errors.Is(err, errBroken) {
			t.Errorf("Wait = %v", err)
		}
		_ = e.Close()
	})
}

var errBroken = errors.New("broken")

type brokenDevice struct{}

func (brokenDevice) ReadPackets([][]byte, []int) (int, error) { return 0, errBroken }
func (brokenDevice) WritePackets([][]byte) error              { return errBroken }
func (brokenDevice) Close() error                             { return nil }

func TestGarbageFromAThousandSourcesLeavesNothingBehind(t *testing.T) {
	for _, mode := range []string{"static", "tls"} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemNet()
			a, b := staticPair(m)
			if mode == "tls" {
				a, b = tlsPair(t, m)
			}
			a.Remote = "" // hears everybody
			var log logLines
			a.Logger = log.logger()
			ea := mustOpen(t, a)
			mustOpen(t, b)
			mustPass(t, deviceOf(b), deviceOf(a), 100)
			synctest.Wait()
			sent := ea.Status().Counters.SentPackets
			rnd := rand.New(rand.NewPCG(4, 2))
			for i := range 1000 {
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), uint16(1024+i))
				p := make([]byte, rnd.IntN(1500))
				for j := range p {
					p[j] = byte(rnd.Uint32())
				}
				if len(p) > 0 && p[0]>>3 == opResetClient || len(p) == 0 {
					p = []byte{0} // a genuine reset is answered without tls-auth; see the test of forged resets
				}
				m.send(from, addrA, p)
				if i%50 == 0 {
					synctest.Wait()
				}
			}
			synctest.Wait()
			st := ea.Status()
			if st.Counters.SentPackets != sent || st.Peer != addrB || st.State != StateUp || st.Restarts != 0 {
				t.Errorf("%s: %+v", mode, st)
			}
			var dropped uint64
			for _, n := range st.Counters.Dropped {
				dropped += n
			}
			if dropped < 1000 {
				t.Errorf("%s: only %d counted", mode, dropped)
			}
			if n := strings.Count(log.String(), "\n"); n > 15 {
				t.Errorf("%s: %d log lines", mode, n)
			}
			mustPass(t, deviceOf(b), deviceOf(a), 101)
		})
	}
}
