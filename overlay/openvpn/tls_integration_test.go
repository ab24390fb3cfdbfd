//go:build openvpn

package openvpn

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTLSWithRealPeer(t *testing.T) {
	t.Parallel()
	type row struct {
		name   string
		args   string
		setup  func(l *tlsLab) []string // more options, after changing ours
		ca     bool
		cipher Cipher
		v1     bool
	}
	legacy := func(c Cipher) func(l *tlsLab) []string {
		return func(l *tlsLab) []string {
			l.cfg.TLS.silent, l.cfg.TLS.Fallback = true, c
			return nil
		}
	}
	mask := func(bits uint32) func(l *tlsLab) []string {
		return func(l *tlsLab) []string {
			l.cfg.TLS.protoMask = bits
			return nil
		}
	}
	offer := func(c ...Cipher) func(l *tlsLab) []string {
		return func(l *tlsLab) []string {
			l.cfg.TLS.Ciphers = c
			return nil
		}
	}
	wrap := func(w Wrap, ours Direction, peer string) func(l *tlsLab) []string {
		return func(l *tlsLab) []string {
			l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey, l.cfg.TLS.WrapDirection = w, l.key, ours
			args := []string{"--" + w.String(), l.keyFile()}
			if peer != "" {
				args = append(args, peer)
			}
			return args
		}
	}
	for _, r := range []row{
		{name: "T1 fingerprint", cipher: CipherAES256GCM},
		{name: "T2 authority", ca: true, cipher: CipherAES256GCM},
		{name: "T2 authority and usage", ca: true, cipher: CipherAES256GCM, setup: func(l *tlsLab) []string {
			l.cfg.TLS.PeerUsage = true
			return []string{"--remote-cert-tls", l.role.String()}
		}},
		{name: "T3 chacha", args: "--data-ciphers CHACHA20-POLY1305", cipher: CipherChaCha20Poly1305},
		{name: "T3 aes-128-gcm", args: "--data-ciphers AES-128-GCM", cipher: CipherAES128GCM},
		{name: "T3 cbc", args: "--data-ciphers AES-256-CBC --auth SHA256", setup: offer(CipherAES256CBC), cipher: CipherAES256CBC},
		{name: "T4 legacy cbc", args: "--cipher AES-256-CBC --auth SHA256", setup: legacy(CipherAES256CBC), cipher: CipherAES256CBC, v1: true},
		{name: "T5 legacy gcm", args: "--cipher AES-256-GCM --data-ciphers-fallback AES-256-GCM", setup: legacy(CipherAES256GCM), cipher: CipherAES256GCM, v1: true},
		{name: "T7 disjoint with fallback", args: "--data-ciphers AES-128-GCM --data-ciphers-fallback AES-256-CBC --auth SHA256", setup: func(l *tlsLab) []string {
			l.cfg.TLS.Ciphers, l.cfg.TLS.Fallback = []Cipher{CipherAES256GCM}, CipherAES256CBC
			return nil
		}, cipher: CipherAES256CBC},
		{name: "T8 no exporter", setup: mask(protoExporter), cipher: CipherAES256GCM},
		{name: "T8 no data v2", setup: mask(protoDataV2), cipher: CipherAES256GCM, v1: true},
		{name: "T8 no p2p", setup: mask(protoP2P), cipher: CipherAES256GCM, v1: true},
		{name: "T9 tls-crypt", setup: wrap(WrapCrypt, DirectionNone, ""), cipher: CipherAES256GCM},
		{name: "T9 tls-auth 0 1", args: "--auth SHA1", setup: func(l *tlsLab) []string {
			l.cfg.Digest = DigestSHA1
			return wrap(WrapAuth, Direction0, "1")(l)
		}, cipher: CipherAES256GCM},
		{name: "T9 tls-auth sha256", args: "--auth SHA256", setup: wrap(WrapAuth, DirectionNone, ""), cipher: CipherAES256GCM},
		{name: "T10 tls 1.2", args: "--tls-version-max 1.2", cipher: CipherAES256GCM},
		{name: "T1 framing", args: "--compress stub-v2", setup: func(l *tlsLab) []string {
			l.cfg.Framing = FramingStubV2
			return nil
		}, cipher: CipherAES256GCM},
		{name: "T1 fragment", args: "--fragment 600 --mssfix 600", setup: func(l *tlsLab) []string {
			l.cfg.Fragment = 600
			return nil
		}, cipher: CipherAES256GCM},
		{name: "T17 three RSA-4096 certificates", ca: true, cipher: CipherAES256GCM},
	} {
		for _, way := range tlsWays {
			t.Run(fmt.Sprintf("%s as %s over %s", r.name, way.role, way.tr), func(t *testing.T) {
				t.Parallel()
				if strings.Contains(r.args, "--fragment") && way.tr != UDP {
					return // fragment is for UDP
				}
				l := newTLSLab(t, way.role)
				id, what, _ := strings.Cut(r.name, " ")
				if r.args != "" {
					what += " `" + r.args + "`"
				}
				l.enter(id, what)
				if id == "T17" {
					l.largeChain()
				}
				args := append(l.carry(way.tr), strings.Fields(r.args)...)
				if r.setup != nil {
					args = append(args, r.setup(l)...)
				}
				if r.ca {
					args = append(args, l.byCA()...)
				} else {
					args = append(args, l.byFingerprint()...)
				}
				l.open()
				l.prove(func() *realPeer { return l.openvpn(args...) }, func() {
					st := l.e.Status()
					if st.Cipher != r.cipher || st.DataV2 == r.v1 || st.Keys != 1 {
						t.Errorf("status %+v", st)
					}
					if id == "T10" && st.TLSVersion != tls.VersionName(tls.VersionTLS12) {
						t.Errorf("%s", st.TLSVersion)
					}
					format := "V2"
					if r.v1 {
						format = "V1"
					}
					l.note("%s, P_DATA_%s, %s", st.Cipher, format, st.TLSVersion)
				})
			})
		}
	}
}

// tlsWays are the combinations of role and transport that every row is tried in;
// TestTLSTCPWithRealPeer has the others.
var tlsWays = []struct {
	role Role
	tr   Transport
}{{TLSClient, UDP}, {TLSServer, UDP}, {TLSClient, TCPConnect}, {TLSServer, TCPListen}}

// largeChain puts both certificates under a chain of large RSA keys.
func (l *tlsLab) largeChain() {
	l.root = mustCert(l.t, certSpec{name: "root", ca: true, rsaBits: 4096})
	a := mustCert(l.t, certSpec{name: "a", ca: true, rsaBits: 4096, issuer: l.root})
	b := mustCert(l.t, certSpec{name: "b", ca: true, rsaBits: 4096, issuer: a})
	usage := map[Role]certSpec{TLSClient: {name: "client", usages: usageClient, issuer: b}, TLSServer: {name: "server", usages: usageServer, issuer: b}}
	l.ours, l.peer = mustCert(l.t, usage[l.role]), mustCert(l.t, usage[1-l.role])
	l.cfg.TLS.Certificate = l.ours.chain()
}

func TestTLSRefusals(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		id, what string
		args     string
		setup    func(l *tlsLab)
		want     Reason
		peer     string // in the log of the peer
	}{
		{"T6", "we send no peer info, no `--cipher` at the peer", "", func(l *tlsLab) { l.cfg.TLS.silent, l.cfg.TLS.Fallback = true, CipherAES256CBC }, 0, "No usable data channel cipher"},
		{"T7", "disjoint lists, no fallback", "--data-ciphers AES-128-GCM", func(l *tlsLab) { l.cfg.TLS.Ciphers = []Cipher{CipherAES256GCM} }, ReasonCipher, ""},
		{"T14", "both have the same role", "", func(l *tlsLab) { l.cfg.TLS.Role = 1 - l.role }, ReasonRole, "client->client or server->server"},
		{"7.3 cert", "the peer's fingerprint is another", "", func(l *tlsLab) { l.cfg.TLS.Fingerprints = []Fingerprint{{9}} }, ReasonCertificate, ""},
		{"7.3 cert", "our certificate is unknown to the peer", "", func(l *tlsLab) { l.cfg.TLS.Certificate = mustCert(l.t, certSpec{name: "x"}).chain() }, ReasonTLS, "certificate hash verification failed"},
		{"7.3 cert", "the peer's certificate is for our role", "", func(l *tlsLab) {
			l.cfg.TLS.CAs, l.cfg.TLS.Fingerprints = l.root.pool(), nil
			usage := map[Role][]x509.ExtKeyUsage{TLSClient: usageClient, TLSServer: usageServer}[l.role]
			l.peer = mustCert(l.t, certSpec{name: "wrong", usages: usage, issuer: l.root})
		}, ReasonCertificate, ""},
	} {
		for _, way := range tlsWays {
			t.Run(fmt.Sprintf("%s %s as %s over %s", row.id, row.what, way.role, way.tr), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, way.role)
				l.enter(row.id, row.what)
				row.setup(l)
				args := append(append(l.carry(way.tr), l.byFingerprint()...), strings.Fields(row.args)...)
				var log logLines
				l.cfg.Logger = log.logger()
				e := l.open()
				p := l.openvpn(args...)
				counted := func() bool { return row.want != 0 && e.Status().Counters.Dropped[row.want] > 0 }
				said := func() bool { return row.peer != "" && strings.Contains(p.log.String(), row.peer) }
				eventuallyLab(t, "the refusal", func() bool {
					if way.tr != UDP && (counted() || said()) {
						return true // whoever finds it first closes the connection
					}
					return (row.want == 0 || counted()) && (row.peer == "" || said())
				})
				if l.pings() {
					t.Error("a ping came through")
				}
				before, lines := e.Status().Counters.SentPackets, strings.Count(log.String(), "packet dropped")
				<-time.After(5 * time.Second)
				if n := e.Status().Counters.SentPackets - before; n > 100 {
					t.Errorf("we sent %d packets in 5 s", n)
				}
				if n := strings.Count(log.String(), "packet dropped"); n > lines+2 {
					t.Errorf("%d log lines in 5 s:\n%s", n-lines, &log)
				}
				l.result("refused, as it must be")
				if counted() {
					l.note("we count %s", strings.TrimPrefix(row.want.Error(), "dropped: "))
				}
				if said() {
					l.note("openvpn says: %s", row.peer)
				}
			})
		}
	}
}

func TestTLSRenegotiationWithRealPeer(t *testing.T) {
	t.Parallel()
	type row struct {
		what  string
		wrap  Wrap
		mask  uint32
		whose string
	}
	rows := []row{{"PRF and P_DATA_V1", WrapNone, protoP2P, "ours"}}
	for _, wrap := range []Wrap{WrapNone, WrapCrypt, WrapAuth} {
		for _, mask := range []uint32{0, protoDynWrap} {
			what := "wrap " + wrap.String() + ", dynamic tls-crypt"
			if mask != 0 {
				what = "wrap " + wrap.String() + ", not dynamic"
			}
			for _, whose := range []string{"ours", "peer", "both"} {
				rows = append(rows, row{what, wrap, mask, whose})
			}
		}
	}
	for _, r := range rows {
		for _, way := range tlsWays {
			if way.tr != UDP && (r.wrap != WrapCrypt || r.mask != 0) {
				continue // over TCP, one kind will do
			}
			t.Run(fmt.Sprintf("T11 %s %s as %s over %s", r.what, r.whose, way.role, way.tr), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, way.role)
				who := map[string]string{"ours": "we begin", "peer": "the peer begins", "both": "both begin"}[r.whose]
				l.enter("T11", r.what+", "+who)
				l.cfg.TLS.protoMask, l.cfg.TLS.RenegInterval = r.mask, -1
				args := append(l.carry(way.tr), l.byFingerprint()...)
				if r.wrap != WrapNone {
					l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey = r.wrap, l.key
					args = append(args, "--auth", "SHA256", "--"+r.wrap.String(), l.keyFile())
				}
				if r.whose != "peer" {
					l.cfg.TLS.RenegInterval = 6 * time.Second
				}
				if r.whose != "ours" {
					args = append(args, "--reneg-sec", "6", "6")
				}
				e := l.open()
				l.openvpn(args...)
				l.pingUntil(labPatience)
				l.ping(false, l.inner(2), 56)
				restarts := e.Status().Restarts
				l.pingWhile(func() bool { return e.Status().Keys >= 10 })
				st := e.Status()
				if st.Restarts != restarts || st.Keys < 10 {
					t.Errorf("status %+v", st)
				}
				l.note("%d keys", st.Keys)
				l.checkTCP(200 << 10)
			})
		}
	}
}

func TestTLSTCPWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{TLSClient, TLSServer} {
		for _, tr := range []Transport{TCPListen, TCPConnect} {
			t.Run(fmt.Sprintf("T12 %s as %s", tr, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.cfg.TLS.RenegInterval = 4 * time.Second
				args := append(l.carry(tr), l.byFingerprint()...)
				l.enter("T12", "`"+strings.Join(args[:2], " ")+"`, we renegotiate every 4 s")
				l.open()
				l.prove(func() *realPeer { return l.openvpn(args...) }, func() {
					st := l.e.Status()
					if st.Keys < 3 {
						t.Errorf("status %+v", st)
					}
				})
			})
			t.Run(fmt.Sprintf("T12 half-open %s as %s", tr, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.cfg.Ping, l.cfg.PingRestart = 2*time.Second, 10*time.Second
				args := append(append(l.carry(tr), l.byFingerprint()...), "--ping", "2", "--ping-restart", "10")
				l.enter("T12", "`"+strings.Join(args[:2], " ")+"`, half-open: the peer dies behind a cut line")
				l.open()
				p := l.openvpn(args...)
				l.checkTraffic()
				l.cut()
				p.stop(syscall.SIGKILL) // what it says to our kernel is lost
				<-time.After(time.Second)
				l.mend()
				l.openvpn(args...)
				l.note("back after %s", seconds(l.pingUntil(l.keepalive())))
				l.checkTraffic()
			})
		}
	}
}

func TestTLSRecoveryWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, way := range tlsWays {
		t.Run(fmt.Sprintf("T13 as %s over %s", way.role, way.tr), func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t, way.role)
			l.enter("T13", "`--ping 2 --ping-restart 6`: kill of either side, line cut for 12 s")
			args := append(append(l.carry(way.tr), l.byFingerprint()...), "--ping", "2", "--ping-restart", "6")
			l.cfg.Ping, l.cfg.PingRestart = 2*time.Second, 6*time.Second
			l.open()
			p := l.openvpn(args...)
			l.checkTraffic()
			p.stop(syscall.SIGKILL)
			l.openvpn(args...)
			peer := l.pingUntil(l.keepalive())
			l.reopen()
			ours := l.pingUntil(l.keepalive())
			l.cut()
			<-time.After(12 * time.Second)
			if l.e.Status().Restarts == 0 {
				t.Error("we did not notice")
			}
			l.mend()
			line := l.pingUntil(2 * l.keepalive()) // both sides wait, one after the other at worst
			l.note("back %s after a kill of openvpn, %s after ours, %s after the cut", seconds(peer), seconds(ours), seconds(line))
			l.checkTraffic()
		})
	}
}

func TestTLSFollowsAPeerThatMoves(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{TLSClient, TLSServer} {
		t.Run(role.String(), func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t, role)
			l.enter("T13", "we float, the peer's address and port change")
			l.cfg.Float = true
			e := l.open()
			l.openvpn(append(append(l.udp(), l.byFingerprint()...), "--float")...)
			l.checkTraffic()
			l.movePeer(1195)
			l.ping(true, l.inner(1), 56)
			l.checkTraffic()
			if st := e.Status(); st.Peer != netip.AddrPortFrom(l.outer(3), 4444) || st.Restarts != 0 || st.Keys != 1 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestTLSExitWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		what string
		mask uint32
	}{{"over the control channel", 0}, {"in a data packet", protoExit}} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("T15 %s as %s", row.what, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.enter("T15", "`--explicit-exit-notify 1`, "+row.what)
				l.cfg.TLS.protoMask, l.cfg.ExitNotify = row.mask, true
				e := l.open()
				args := append(append(l.udp(), l.byFingerprint()...), "--explicit-exit-notify", "1")
				p := l.openvpn(args...)
				l.checkTraffic()
				p.stop(syscall.SIGTERM)
				eventuallyLab(t, "we restart at once", func() bool { return strings.Contains(e.Status().LastError, "leaves") })
				p = l.openvpn(args...)
				l.checkTraffic()
				_ = e.Close()
				p.says("remote-exit")
				l.note("each side restarts at the other's end")
			})
		}
	}
}

func TestTLSBadLineWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ ours, peer bool }{{true, false}, {false, true}, {true, true}} {
		for _, role := range []Role{TLSClient, TLSServer} {
			what := map[bool]string{true: "both begin", false: "the peer begins"}[row.ours]
			if !row.peer {
				what = "we begin"
			}
			t.Run(fmt.Sprintf("T16 %s as %s", what, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.enter("T16", "10 % lost each way by nftables, 10 % of the rest doubled and 10 % late; renegotiations, "+what)
				l.cfg.Ping, l.cfg.TLS.RenegInterval = time.Second, -1
				args := append(append(l.udp(), l.byFingerprint()...), "--ping", "1", "--ping-restart", "60")
				if row.ours {
					l.cfg.TLS.RenegInterval = 8 * time.Second
				}
				if row.peer {
					args = append(args, "--reneg-sec", "8", "8")
				}
				for _, hook := range []string{"input", "output"} {
					l.runThere("nft", fmt.Sprintf("add table ip loss; add chain ip loss %s { type filter hook %s priority 0; };"+
						"add rule ip loss %s udp sport 1195 numgen random mod 100 < 10 drop", hook, hook, hook))
				}
				bad := badLine(7, 0, 0.1)
				l.cfg.transport = func(ctx context.Context, c *Config) (transport, error) {
					remote, err := resolveRemote(ctx, c, 0)
					if err != nil {
						return nil, err
					}
					tr, err := listenUDP(ctx, c, remote)
					return &badTransport{tr, bad}, err
				}
				e := l.open()
				l.openvpn(args...)
				eventuallyLab(t, "handshake", func() bool { return e.Status().Keys >= 1 })
				began := time.Now()
				keys := func() bool { return e.Status().Keys >= 5 }
				for !keys() && time.Since(began) < 5*time.Minute {
					<-time.After(100 * time.Millisecond)
				}
				if !keys() {
					t.Errorf("no four renegotiations: %+v", e.Status())
				}
				l.pingUntil(labPatience)
				// openvpn repeats a message after 2, 4, 8, 16 and 32 s and gives up after 60;
				// about one negotiation in a hundred loses all of these on such a line.
				l.note("4 renegotiations in %s, %d restarts", seconds(time.Since(began)), e.Status().Restarts)
			})
		}
	}
}

// badTransport is a transport over a bad line, both ways.
type badTransport struct {
	transport
	line func(from, to netip.AddrPort, p []byte) [][]byte
}

func (b *badTransport) send(to path, packets [][]byte, wait bool) (int, error) {
	for _, p := range packets {
		if all := b.line(b.local(), to.addr, bytes.Clone(p)); len(all) > 0 {
			if _, err := b.transport.send(to, all, wait); err != nil {
				return 0, err
			}
		}
	}
	return len(packets), nil
}

func (b *badTransport) serve(ctx context.Context, newReceiver func() receiver) error {
	return b.transport.serve(ctx, func() receiver { return &badReceiver{newReceiver(), b} })
}

type badReceiver struct {
	receiver
	b *badTransport
}

func (r *badReceiver) packet(from path, p []byte) {
	for _, q := range r.b.line(from.addr, r.b.local(), bytes.Clone(p)) {
		r.receiver.packet(from, bytes.Clone(q))
	}
}
