//go:build openvpn

package openvpn

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tlsLab is one row of the TLS matrix: both sides with their certificates.
type tlsLab struct {
	*staticLab
	role Role
	root *testCert
	ours *testCert
	peer *testCert
}

// newTLSLab prepares our side in that role; the peer has the other. Both know
// each other by fingerprint.
func newTLSLab(t testing.TB, role Role) *tlsLab {
	l := &tlsLab{staticLab: newStaticLab(t), role: role}
	usage := map[Role]certSpec{TLSClient: {name: "client", usages: usageClient}, TLSServer: {name: "server", usages: usageServer}}
	l.root = mustCert(t, certSpec{name: "root", ca: true})
	for _, side := range []struct {
		r  Role
		to **testCert
	}{{role, &l.ours}, {1 - role, &l.peer}} {
		spec := usage[side.r]
		spec.issuer = l.root
		*side.to = mustCert(t, spec)
	}
	l.cfg.Static = nil
	l.cfg.TLS = &TLS{Role: role, Certificate: l.ours.chain(), Fingerprints: []Fingerprint{l.peer.fingerprint()}}
	return l
}

// identity is the part of the peer's options with role, certificate and key.
func (l *tlsLab) identity() []string {
	certs, key := l.peer.pem(l.t)
	args := []string{"--cert", l.file("peer.crt", certs), "--key", l.file("peer.key", key)}
	if l.role == TLSServer {
		return append(args, "--tls-client")
	}
	return append(args, "--tls-server", "--dh", "none")
}

// byFingerprint makes the peer know us by fingerprint.
func (l *tlsLab) byFingerprint() []string {
	return append(l.identity(), "--peer-fingerprint", l.ours.fingerprint().String())
}

// byCA makes both sides know each other by authority.
func (l *tlsLab) byCA() []string {
	l.cfg.TLS.CAs, l.cfg.TLS.Fingerprints = l.root.pool(), nil
	return append(l.identity(), "--ca", l.file("ca.crt", l.root.rootPEM()))
}

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
		{name: "framing", args: "--compress stub-v2", setup: func(l *tlsLab) []string {
			l.cfg.Framing = FramingStubV2
			return nil
		}, cipher: CipherAES256GCM},
		{name: "fragment", args: "--fragment 600 --mssfix 600", setup: func(l *tlsLab) []string {
			l.cfg.Fragment = 600
			return nil
		}, cipher: CipherAES256GCM},
		{name: "T17 large chain", ca: true, cipher: CipherAES256GCM, setup: func(l *tlsLab) []string { return nil }},
	} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("%s as %s", r.name, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				if strings.HasPrefix(r.name, "T17") {
					l.largeChain()
				}
				args := append(l.udp(), strings.Fields(r.args)...)
				if r.setup != nil {
					args = append(args, r.setup(l)...)
				}
				if r.ca {
					args = append(args, l.byCA()...)
				} else {
					args = append(args, l.byFingerprint()...)
				}
				e := l.open()
				p := l.openvpn(args...)
				l.checkTraffic()
				st := e.Status()
				if st.Cipher != r.cipher || st.DataV2 == r.v1 || st.Keys != 1 || st.Restarts != 0 {
					t.Errorf("status %+v", st)
				}
				if strings.HasPrefix(r.name, "T10") && st.TLSVersion != tls.VersionName(tls.VersionTLS12) {
					t.Errorf("%s", st.TLSVersion)
				}
				for _, bad := range []string{"Bad ", "decrypt error", "TLS Error", "inconsistent"} {
					if strings.Contains(p.log.String(), bad) {
						t.Errorf("the peer complains: %q\n%s", bad, &p.log)
					}
				}
			})
		}
	}
}

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
		name  string
		args  string
		setup func(l *tlsLab)
		want  Reason
		peer  string // in the log of the peer
	}{
		{"T6 we send no peer info, the peer has no cipher", "", func(l *tlsLab) { l.cfg.TLS.silent, l.cfg.TLS.Fallback = true, CipherAES256CBC }, 0, "No usable data channel cipher"},
		{"T7 disjoint", "--data-ciphers AES-128-GCM", func(l *tlsLab) { l.cfg.TLS.Ciphers = []Cipher{CipherAES256GCM} }, ReasonCipher, ""},
		{"T14 same role", "", func(l *tlsLab) { l.cfg.TLS.Role = 1 - l.role }, ReasonRole, "client->client or server->server"},
		{"wrong fingerprint", "", func(l *tlsLab) { l.cfg.TLS.Fingerprints = []Fingerprint{{9}} }, ReasonCertificate, ""},
		{"foreign certificate of ours", "", func(l *tlsLab) { l.cfg.TLS.Certificate = mustCert(l.t, certSpec{name: "x"}).chain() }, ReasonTLS, "certificate hash verification failed"},
	} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("%s as %s", row.name, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				args := append(append(l.udp(), l.byFingerprint()...), strings.Fields(row.args)...)
				row.setup(l)
				e := l.open()
				p := l.openvpn(args...)
				eventuallyLab(t, "the refusal", func() bool {
					return (row.want == 0 || e.Status().Counters.Dropped[row.want] > 0) && strings.Contains(p.log.String(), row.peer)
				})
				if exec.Command("ping", "-c", "1", "-W", "1", l.inner(2).String()).Run() == nil {
					t.Error("a ping came through")
				}
			})
		}
	}
}

func TestTLSRenegotiationWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		wrap  Wrap
		mask  uint32
		whose string
	}{
		{"T11 the peer begins", WrapNone, 0, "peer"},
		{"T11 we begin", WrapNone, 0, "ours"},
		{"T11 both begin", WrapNone, 0, "both"},
		{"T11 tls-crypt", WrapCrypt, 0, "ours"},
		{"T11 tls-auth", WrapAuth, 0, "peer"},
		{"T11 tls-crypt without dynamic", WrapCrypt, protoDynWrap, "peer"},
		{"T11 prf and v1", WrapNone, protoP2P, "ours"},
	} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("%s as %s", row.name, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.cfg.TLS.protoMask, l.cfg.TLS.RenegInterval = row.mask, -1
				args := append(l.udp(), l.byFingerprint()...)
				if row.wrap != WrapNone {
					l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey = row.wrap, l.key
					args = append(args, "--auth", "SHA256", "--"+row.wrap.String(), l.keyFile())
				}
				if row.whose != "peer" {
					l.cfg.TLS.RenegInterval = 3 * time.Second
				}
				if row.whose != "ours" {
					args = append(args, "--reneg-sec", "3", "0")
				}
				e := l.open()
				l.openvpn(args...)
				l.pingUntil(15 * time.Second)
				l.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "-q", l.inner(2).String())
				out := l.pingWhile(t.Context(), func() bool { return e.Status().Keys >= 10 })
				// The last ping may be under way when ping is stopped. How many there were
				// depends on the machine, but none means that nothing was tested.
				answered, last := 0, 0
				for _, m := range regexp.MustCompile(`icmp_seq=(\d+)`).FindAllStringSubmatch(out, -1) {
					n, _ := strconv.Atoi(m[1])
					answered, last = answered+1, max(last, n)
				}
				if answered != last || last == 0 {
					t.Errorf("%d of %d pings came back:\n%s", answered, last, out)
				}
				if st := e.Status(); st.Restarts != 0 || st.Keys < 10 {
					t.Errorf("status %+v", st)
				}
				l.checkTCP(200 << 10)
			})
		}
	}
}

// pingWhile pings until done and returns what ping says.
func (l *lab) pingWhile(ctx context.Context, done func() bool) string {
	l.t.Helper()
	ping := exec.CommandContext(ctx, "ping", "-i", "0.1", l.inner(2).String())
	var out bytes.Buffer
	ping.Stdout = &out
	if err := ping.Start(); err != nil {
		l.t.Fatal(err)
	}
	deadline := time.Now().Add(3 * time.Minute) // not reached, unless something is wrong
	for !done() && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	_ = ping.Process.Signal(syscall.SIGINT)
	_ = ping.Wait()
	return out.String()
}

func TestTLSTCPWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{TLSClient, TLSServer} {
		for _, tr := range []Transport{TCPListen, TCPConnect} {
			t.Run(fmt.Sprintf("T12 %s as %s", tr, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.cfg.Transport, l.cfg.TLS.RenegInterval = tr, 4*time.Second
				args := append(l.byFingerprint(), "--connect-retry", "1")
				if tr == TCPListen {
					l.cfg.Remote = ""
					args = append(args, "--proto", "tcp-client", "--remote", l.outer(1).String(), "1195")
				} else {
					l.cfg.Local = netip.AddrPort{}
					args = append(args, "--proto", "tcp-server", "--local", l.outer(2).String(), "--lport", "1195")
				}
				e := l.open()
				p := l.openvpn(args...)
				l.checkTraffic()
				eventuallyLab(t, "a renegotiation", func() bool { return e.Status().Keys >= 3 })
				l.checkTraffic()
				p.stop(syscall.SIGKILL)
				l.openvpn(args...)
				l.checkTraffic()
			})
		}
	}
}

func TestTLSRecoveryWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{TLSClient, TLSServer} {
		t.Run(fmt.Sprintf("T13 as %s", role), func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t, role)
			args := append(append(l.udp(), l.byFingerprint()...), "--ping", "2", "--ping-restart", "6")
			l.cfg.Ping, l.cfg.PingRestart = 2*time.Second, 6*time.Second
			tun := l.newTUN()
			l.cfg.Device = keepOpen{tun}
			e, err := Open(t.Context(), l.cfg)
			if err != nil {
				t.Fatal(err)
			}
			p := l.openvpn(args...)
			l.checkTraffic()
			p.stop(syscall.SIGKILL)
			l.openvpn(args...)
			l.pingUntil(10 * time.Second)
			_ = e.Close() // says nothing, like a crash
			_ = tun.f.SetReadDeadline(time.Time{})
			e = mustReopen(t, l.cfg)
			defer func() { _ = e.Close() }()
			l.pingUntil(10 * time.Second)
			va := fmt.Sprintf("va%d", l.n)
			for _, hook := range []string{"input iifname", "output oifname"} {
				hook, match, _ := strings.Cut(hook, " ")
				l.run("nft", fmt.Sprintf("add table ip cut%d; add chain ip cut%d %s { type filter hook %s priority 0; }; add rule ip cut%d %s %s %s drop",
					l.n, l.n, hook, hook, l.n, hook, match, va))
			}
			eventuallyLab(t, "we notice", func() bool { return e.Status().Restarts > 0 })
			time.Sleep(4 * time.Second) // the line stays cut for a while
			l.run("nft", fmt.Sprintf("delete table ip cut%d", l.n))
			l.pingUntil(20 * time.Second)
		})
	}
}

func TestTLSExitWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		mask uint32
	}{{"T15 control channel", 0}, {"T15 occ", protoExit}} {
		for _, role := range []Role{TLSClient, TLSServer} {
			t.Run(fmt.Sprintf("%s as %s", row.name, role), func(t *testing.T) {
				t.Parallel()
				l := newTLSLab(t, role)
				l.cfg.TLS.protoMask, l.cfg.ExitNotify = row.mask, true
				l.cfg.Device = l.newTUN()
				e, err := Open(t.Context(), l.cfg)
				if err != nil {
					t.Fatal(err)
				}
				args := append(append(l.udp(), l.byFingerprint()...), "--explicit-exit-notify", "1")
				p := l.openvpn(args...)
				l.checkTraffic()
				p.stop(syscall.SIGTERM)
				eventuallyLab(t, "we restart at once", func() bool { return strings.Contains(e.Status().LastError, "leaves") })
				p = l.openvpn(args...)
				l.pingUntil(15 * time.Second)
				_ = e.Close()
				eventuallyLab(t, "the peer restarts at once", func() bool { return strings.Contains(p.log.String(), "remote-exit") })
			})
		}
	}
}

func TestTLSBadLineWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{TLSClient, TLSServer} {
		t.Run(fmt.Sprintf("T16 as %s", role), func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t, role)
			l.cfg.Ping = time.Second
			l.cfg.TLS.RenegInterval = 5 * time.Second
			// A line that loses, doubles and turns round: in our transport, since not
			// every kernel has netem.
			bad := badLine(7, 0.1)
			l.cfg.transport = func(ctx context.Context, c *Config) (transport, error) {
				remote, err := resolveRemote(ctx, c, 0)
				if err != nil {
					return nil, err
				}
				tr, err := listenUDP(ctx, c, remote)
				return &badTransport{tr, bad}, err
			}
			e := l.open()
			l.openvpn(append(l.udp(), l.byFingerprint()...)...)
			eventuallyLab(t, "handshake", func() bool { return e.Status().Keys >= 1 })
			eventuallyLab(t, "renegotiations", func() bool { return e.Status().Keys >= 4 })
			l.pingUntil(10 * time.Second)
			if st := e.Status(); st.Restarts != 0 {
				t.Errorf("status %+v", st)
			}
		})
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
