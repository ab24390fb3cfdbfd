//go:build openvpn

package openvpn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// staticLab is one row of the matrix: our configuration and the peer's options.
type staticLab struct {
	*lab
	key  StaticKey
	cfg  Config
	args []string
}

// newStaticLab prepares AES-256-CBC with SHA256 over UDP between fixed addresses.
func newStaticLab(t testing.TB) *staticLab {
	l := newLab(t)
	s := &staticLab{lab: l, key: GenerateStaticKey()}
	s.cfg = Config{
		Local: netip.AddrPortFrom(l.outer(1), 1195), Remote: l.outer(2).String() + ":1195",
		Digest: DigestSHA256, Static: &Static{Key: s.key, Cipher: CipherAES256CBC},
		Address: l.inner(1), PeerAddress: l.inner(2), Times: TimeFile(filepath.Join(l.dir, "time")),
	}
	return s
}

func (s *staticLab) keyFile() string { return s.file("static.key", s.key.Encode()) }

// udp is the address part of the peer's options.
func (s *staticLab) udp() []string {
	return []string{"--local", s.outer(2).String(), "--remote", s.outer(1).String(), "--port", "1195"}
}

// open starts our side on a TUN.
func (s *staticLab) open() *Endpoint {
	s.t.Helper()
	s.cfg.Device = s.newTUN()
	return mustOpen(s.t, s.cfg)
}

func TestStaticKeyWithRealPeer(t *testing.T) {
	t.Parallel()
	type row struct {
		name   string
		cipher Cipher
		digest Digest
		args   string
		change func(*Config)
	}
	rows := []row{
		{"S1 AES-256-CBC SHA256", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256", nil},
		{"S2 AES-128-CBC SHA1", CipherAES128CBC, DigestSHA1, "--cipher AES-128-CBC --auth SHA1", nil},
		{"S2 AES-192-CBC SHA384", CipherAES192CBC, DigestSHA384, "--cipher AES-192-CBC --auth SHA384", nil},
		{"S2 AES-256-CBC SHA512", CipherAES256CBC, DigestSHA512, "--cipher AES-256-CBC --auth SHA512", nil},
		{"S2 AES-256-CBC MD5", CipherAES256CBC, DigestMD5, "--cipher AES-256-CBC --auth MD5", nil},
		{"S3 default BF-CBC SHA1", "", "", "--providers legacy default", nil},
		{"S3 BF-CBC SHA512", CipherBlowfishCBC, DigestSHA512, "--providers legacy default --cipher BF-CBC --auth SHA512", nil},
		{"S4 DES-EDE3-CBC", CipherTripleDESCBC, DigestSHA1, "--cipher DES-EDE3-CBC --auth SHA1", nil},
		{"S6 none SHA256", CipherNone, DigestSHA256, "--cipher none --auth SHA256", func(c *Config) { c.Insecure = true }},
		{"S6 none none", CipherNone, DigestNone, "--cipher none --auth none", func(c *Config) { c.Insecure = true }},
		{"S8 compress", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress", func(c *Config) { c.Framing = FramingStub }},
		{"S8 compress stub-v2", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress stub-v2", func(c *Config) { c.Framing = FramingStubV2 }},
		{"S8 comp-lzo no", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --comp-lzo no", func(c *Config) { c.Framing = FramingLZO }},
		{"S8 compress lzo", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress lzo", func(c *Config) { c.Framing = FramingLZO }},
		{"S8 lzo compressing", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress lzo --allow-compression yes", func(c *Config) { c.Framing = FramingLZO }},
		{"S8 lz4 compressing", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress lz4 --allow-compression yes", func(c *Config) { c.Framing = FramingLZ4 }},
		{"S8 lz4-v2 compressing", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --compress lz4-v2 --allow-compression yes", func(c *Config) { c.Framing = FramingLZ4V2 }},
		{"S9 fragment", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --fragment 500 --mssfix 500", func(c *Config) { c.Fragment = 500 }},
		{"S9 fragment compress", CipherAES256CBC, DigestSHA256, "--cipher AES-256-CBC --auth SHA256 --fragment 500 --mssfix 500 --compress", func(c *Config) { c.Fragment, c.Framing = 500, FramingStub }},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.cfg.Static.Cipher, s.cfg.Digest = r.cipher, r.digest
			if r.change != nil {
				r.change(&s.cfg)
			}
			e := s.open()
			p := s.openvpn(append(append(s.udp(), "--secret", s.keyFile()), strings.Fields(r.args)...)...)
			s.checkTraffic()
			if strings.Contains(r.args, "allow-compression yes") {
				before := e.Status().Counters
				s.run("ping", "-c", "3", "-i", "0.1", "-W", "2", "-s", "1000", "-p", "41", s.inner(2).String())
				var after Counters
				eventuallyLab(t, "all replies are counted", func() bool {
					after = e.Status().Counters
					return after.InBytes-before.InBytes >= 3000
				})
				if outside, inside := after.ReceivedBytes-before.ReceivedBytes, after.InBytes-before.InBytes; outside > inside/2 {
					t.Errorf("the peer did not compress: %d bytes outside, %d inside", outside, inside)
				}
			}
			if d := e.Status().Counters.Dropped; len(d) > 1 || d[ReasonNoPeer] == 0 && len(d) == 1 {
				t.Errorf("dropped %v", d)
			}
			for _, bad := range []string{"Bad ", "Authenticate/Decrypt", "FRAG_IN error"} {
				if strings.Contains(p.log.String(), bad) {
					t.Errorf("the peer complains: %q", bad)
				}
			}
		})
	}
}

func TestStaticDirectionsWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		ours  Direction
		peer  string
		works bool
	}{{Direction0, "1", true}, {Direction1, "0", true}, {DirectionNone, "0", false}} {
		t.Run(fmt.Sprintf("S5 %s and %s", row.ours, row.peer), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.cfg.Static.Direction = row.ours
			e := s.open()
			p := s.openvpn(append(s.udp(), "--secret", s.keyFile(), row.peer, "--cipher", "AES-256-CBC", "--auth", "SHA256", "--ping", "1")...)
			if row.works {
				s.checkTraffic()
				return
			}
			// They send with A, which we hear; we send with A, which they do not.
			eventuallyLab(t, "the peer refuses us", func() bool {
				return strings.Contains(p.log.String(), "packet HMAC authentication failed") && e.Status().State == StateUp
			})
			if strings.Contains(p.log.String(), "Initialization Sequence Completed") && s.pings() {
				t.Error("a ping came through")
			}
		})
	}
}

// pings reports whether a ping to the peer comes back.
func (l *lab) pings() bool {
	return l.there("ping", "-c", "1", "-W", "1", l.inner(1).String()).Run() == nil
}

func TestStaticTCPWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		ours Transport
		args func(l *staticLab) []string
	}{
		{"S7 we listen", TCPListen, func(l *staticLab) []string {
			return []string{"--proto", "tcp-client", "--remote", l.outer(1).String(), "1195"}
		}},
		{"S7 we connect", TCPConnect, func(l *staticLab) []string {
			return []string{"--proto", "tcp-server", "--local", l.outer(2).String(), "--lport", "1195"}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.cfg.Transport = row.ours
			if row.ours == TCPConnect {
				s.cfg.Local = netip.AddrPort{}
			} else {
				s.cfg.Remote = ""
			}
			args := append(row.args(s), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256", "--connect-retry", "1")
			e := s.open()
			p := s.openvpn(args...)
			s.checkTraffic()
			p.stop(syscall.SIGKILL)
			eventuallyLab(t, "we notice", func() bool { return e.Status().State == StateConnecting })
			s.openvpn(args...)
			s.checkTraffic()
		})
	}
}

func TestStaticIPv6WithRealPeer(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.cfg.Local, s.cfg.Remote, s.cfg.IPv6 = netip.AddrPortFrom(s.outer6(1), 1195), netip.AddrPortFrom(s.outer6(2), 1195).String(), true
	s.open()
	s.openvpn("--proto", "udp6", "--local", s.outer6(2).String(), "--remote", s.outer6(1).String(), "--port", "1195",
		"--ifconfig-ipv6", s.inner6(2).String()+"/64", s.inner6(1).String(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")
	s.checkTraffic()
	s.run("ping", "-6", "-c", "3", "-i", "0.1", "-W", "2", s.inner6(2).String())
	s.runThere("ping", "-6", "-c", "3", "-i", "0.1", "-W", "2", "-s", "1400", s.inner6(1).String())
}

func TestStaticPeerFollowsUs(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ name, args string }{{"S10 no remote", ""}, {"S10 float", "--float --remote"}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			args := []string{"--local", s.outer(2).String(), "--lport", "1195", "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256"}
			if row.args != "" {
				args = append(args, "--float", "--remote", s.outer(1).String(), "1195")
			}
			tun := s.newTUN()
			s.cfg.Device = keepOpen{tun}
			e, err := Open(t.Context(), s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			s.openvpn(args...)
			s.checkTraffic()
			_ = e.Close()
			// The same instant, another source port: our start time must still grow.
			s.cfg.Local = netip.AddrPortFrom(s.outer(1), 2222)
			s.cfg.Device = tun
			_ = tun.f.SetReadDeadline(time.Time{})
			mustOpen(t, s.cfg)
			s.checkTraffic()
		})
	}
}

// mustReopen opens where another endpoint was just closed. A process that is being
// forked elsewhere in this program holds the old socket for an instant.
func mustReopen(t testing.TB, cfg Config) *Endpoint {
	t.Helper()
	var e *Endpoint
	eventuallyLab(t, "open", func() (ok bool) {
		var err error
		if e, err = Open(t.Context(), cfg); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
		return err == nil
	})
	return e
}

// keepOpen keeps a TUN for the next endpoint. Its reader ends by the deadline.
type keepOpen struct{ Device }

func (k keepOpen) Close() error {
	return k.Device.(*labDevice).f.SetReadDeadline(time.Unix(1, 0))
}

func TestStaticWeFollowThePeer(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.cfg.Remote = ""
	e := s.open()
	args := []string{"--remote", s.outer(1).String(), "1195", "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256"}
	p := s.openvpn(append(args, "--lport", "1195")...)
	s.checkTraffic()
	p.stop(syscall.SIGKILL)
	s.openvpn(append(args, "--lport", "3333")...)
	s.checkTraffic()
	if got := e.Status(); got.Peer.Port() != 3333 || got.Restarts != 0 {
		t.Errorf("status %+v", got)
	}
}

func TestStaticExitNotificationsWithRealPeer(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.cfg.ExitNotify = true
	s.cfg.Device = s.newTUN()
	e, err := Open(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	args := append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256", "--explicit-exit-notify", "1")
	p := s.openvpn(args...)
	s.checkTraffic()
	p.stop(syscall.SIGTERM)
	eventuallyLab(t, "S11 we restart at once", func() bool { return e.Status().Restarts == 1 })
	p = s.openvpn(args...)
	s.checkTraffic()
	_ = e.Close()
	eventuallyLab(t, "S11 the peer restarts at once", func() bool { return strings.Contains(p.log.String(), "remote-exit") })
}

func TestStaticOptionsExchangeLeavesNoWarning(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.open()
	p := s.openvpn(append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")...)
	s.pingUntil(15 * time.Second)
	// The peer says nothing when it is content, so the proof is that it stops asking:
	// it asks every 10 s until it has an answer.
	deadline := time.After(14 * time.Second)
	<-deadline
	log := p.log.String()
	if strings.Contains(log, "inconsistent") || strings.Contains(log, "mismatch") || strings.Contains(log, "is present in") {
		t.Error("S12 the peer finds our options inconsistent")
	}
}

func TestStaticPeerIsHeardAfterKill(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	e := s.open()
	args := append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")
	p := s.openvpn(args...)
	s.pingUntil(15 * time.Second)
	p.stop(syscall.SIGKILL)
	s.openvpn(args...)
	s.checkTraffic()
	if e.Status().Restarts != 0 {
		t.Error("S14 we restarted")
	}
}

func TestStaticWeAreHeardAfterOurClockWentBack(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	tun := s.newTUN()
	s.cfg.Device = keepOpen{tun}
	s.openvpn(append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")...)
	for _, shift := range []time.Duration{0, 0, -time.Hour} {
		s.cfg.Now = func() time.Time { return time.Now().Add(shift) }
		e := mustReopen(t, s.cfg)
		s.pingUntil(5 * time.Second)
		_ = e.Close()
		_ = tun.f.SetReadDeadline(time.Time{})
	}
	_ = tun.Close()
}

// batchDevice gives a batch of large packets for each signal and takes nothing.
type batchDevice struct {
	*chanDevice
	packet []byte
	size   int
}

func (d *batchDevice) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	select {
	case <-d.in: // the signal
	case <-d.done:
		return 0, net.ErrClosed
	}
	for i := range d.size {
		sizes[i] = copy(bufs[i], d.packet)
	}
	return d.size, nil
}

// Outer packets of 1,568 bytes do not fit the line, so the kernel fragments them;
// segmentation offload cannot. A batch must come through all the same.
func TestStaticLargeBatchesPassASmallerLine(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	inner := innerPacket(0, 1500)
	inner[8], inner[9] = 64, 17
	src, dst := s.inner(1).As4(), s.inner(2).As4()
	copy(inner[12:], src[:])
	copy(inner[16:], dst[:])
	d := &batchDevice{newChanDevice(), inner, 16}
	s.cfg.Device = d
	e := mustOpen(t, s.cfg)
	s.openvpn(append(s.udp(), "--secret", s.keyFile(), "--cipher", "AES-256-CBC", "--auth", "SHA256")...)
	eventuallyLab(t, "up", func() bool { return e.Status().State == StateUp })
	const rounds = 5
	for round := range rounds {
		// Not more at once than the socket buffer of the real peer holds.
		d.in <- nil
		eventuallyLab(t, "all packets at the peer's device", func() bool {
			return s.peerReceived() >= (round+1)*d.size*1500
		})
	}
	if c := e.Status().Counters; c.OutPackets != uint64(rounds*d.size) || c.Dropped[ReasonSend] != 0 {
		t.Errorf("%+v", c)
	}
	if n := e.link.Load().tr.(*udpTransport).batch.segmentMax.Load(); n >= 1568 {
		t.Errorf("segments of %d bytes are still tried", n)
	}
}

// peerReceived returns how many bytes the real peer wrote to its device.
func (l *lab) peerReceived() int {
	out, err := l.there("cat", "/proc/self/net/dev").Output()
	_, line, _ := strings.Cut(string(out), "tun0:")
	fields := strings.Fields(line)
	if err != nil || len(fields) == 0 {
		return 0
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0
	}
	return n
}
