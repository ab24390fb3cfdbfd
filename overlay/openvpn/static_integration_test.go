//go:build openvpn

package openvpn

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tableSection is the part of the table that these tests fill.
const tableSection = "distribution"

// beforeLab has nothing to fetch.
func beforeLab() ([]string, error) { return nil, nil }

var allTransports = []Transport{UDP, TCPListen, TCPConnect}

func TestStaticKeyWithRealPeer(t *testing.T) {
	t.Parallel()
	type row struct {
		id     string
		cipher Cipher
		digest Digest
		args   string
		change func(*Config)
	}
	insecure := func(c *Config) { c.Insecure = true }
	framing := func(f Framing) func(*Config) { return func(c *Config) { c.Framing = f } }
	rows := []row{
		{"S1", CipherAES256CBC, DigestSHA256, aesOptions, nil},
		{"S2", CipherAES128CBC, DigestSHA1, "--cipher AES-128-CBC --auth SHA1", nil},
		{"S2", CipherAES192CBC, DigestSHA384, "--cipher AES-192-CBC --auth SHA384", nil},
		{"S2", CipherAES256CBC, DigestSHA512, "--cipher AES-256-CBC --auth SHA512", nil},
		{"S2", CipherAES256CBC, DigestMD5, "--cipher AES-256-CBC --auth MD5", nil},
		{"S3", "", "", "--providers legacy default", nil},
		{"S3", CipherBlowfishCBC, DigestSHA512, "--providers legacy default --cipher BF-CBC --auth SHA512", nil},
		{"S4", CipherTripleDESCBC, DigestSHA1, "--cipher DES-EDE3-CBC --auth SHA1", nil},
		{"S6", CipherNone, DigestSHA256, "--cipher none --auth SHA256", insecure},
		{"S6", CipherNone, DigestNone, "--cipher none --auth none", insecure},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress", framing(FramingStub)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress stub-v2", framing(FramingStubV2)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --comp-lzo no", framing(FramingLZO)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress lzo", framing(FramingLZO)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress lzo --allow-compression yes", framing(FramingLZO)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress lz4 --allow-compression yes", framing(FramingLZ4)},
		{"S8", CipherAES256CBC, DigestSHA256, aesOptions + " --compress lz4-v2 --allow-compression yes", framing(FramingLZ4V2)},
		{"S9", CipherAES256CBC, DigestSHA256, aesOptions + " --fragment 500 --mssfix 500", func(c *Config) { c.Fragment = 500 }},
		{"S9", CipherAES256CBC, DigestSHA256, aesOptions + " --fragment 500 --mssfix 500 --compress", func(c *Config) { c.Fragment, c.Framing = 500, FramingStub }},
	}
	for _, r := range rows {
		for _, tr := range allTransports {
			if r.id == "S9" && tr != UDP {
				continue // fragment is for UDP
			}
			t.Run(fmt.Sprintf("%s %s over %s", r.id, r.args, tr), func(t *testing.T) {
				t.Parallel()
				s := newStaticLab(t)
				s.enter(r.id, "`--secret k "+r.args+"`")
				s.cfg.Static.Cipher, s.cfg.Digest = r.cipher, r.digest
				if r.change != nil {
					r.change(&s.cfg)
				}
				args := append(s.carry(tr), s.secret(r.args)...)
				s.open()
				s.prove(func() *realPeer { return s.openvpn(args...) }, nil)
				if strings.Contains(r.args, "allow-compression yes") {
					s.checkCompressed()
				}
				for reason, n := range s.e.Status().Counters.Dropped {
					if reason != ReasonNoPeer && reason != ReasonSend {
						t.Errorf("dropped %s: %d", reason, n)
					}
				}
			})
		}
	}
}

// checkCompressed fails if the peer does not really compress.
func (s *staticLab) checkCompressed() {
	s.t.Helper()
	before := s.e.Status().Counters
	s.ping(false, s.inner(2), compressible)
	var after Counters
	eventuallyLab(s.t, "all replies are counted", func() bool {
		after = s.e.Status().Counters
		return after.InBytes-before.InBytes >= 5000
	})
	outside, inside := after.ReceivedBytes-before.ReceivedBytes, after.InBytes-before.InBytes
	if outside > inside/2 {
		s.t.Errorf("the peer did not compress: %d bytes outside, %d inside", outside, inside)
	}
	s.note("%d bytes of pings came in %d", inside, outside)
}

func TestStaticDefaultCipherNeedsTheLegacyProvider(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.enter("S3", "`--secret k`, no cipher, no `--providers`")
	s.cfg.Static.Cipher, s.cfg.Digest = "", ""
	s.open()
	p := s.openvpn(append(s.udp(), s.secret("")...)...)
	p.says("Cipher BF-CBC not supported")
	<-p.done
	s.result("openvpn exits")
	s.note("openvpn says: Cipher BF-CBC not supported")
}

func TestStaticDirectionsWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		ours  Direction
		peer  string
		works bool
	}{{Direction0, "1", true}, {Direction1, "0", true}, {DirectionNone, "0", false}, {DirectionNone, "1", false}} {
		for _, tr := range allTransports {
			t.Run(fmt.Sprintf("S5 %s and %s over %s", row.ours, row.peer, tr), func(t *testing.T) {
				t.Parallel()
				s := newStaticLab(t)
				s.enter("S5", fmt.Sprintf("`--secret k %s`, ours %s", row.peer, row.ours))
				s.cfg.Static.Direction = row.ours
				args := append(append(s.carry(tr), "--secret", s.keyFile(), row.peer), strings.Fields(aesOptions)...)
				s.open()
				if row.works {
					s.prove(func() *realPeer { return s.openvpn(args...) }, nil)
					return
				}
				// With none and 0 they hear us or we hear them, never both.
				p := s.openvpn(append(args, "--ping", "1", "--ping-restart", "60")...)
				refused := func() bool {
					return strings.Contains(p.log.String(), "packet HMAC authentication failed") || s.e.Status().Counters.Dropped[ReasonAuth] > 0
				}
				eventuallyLab(t, "one side refuses the other", refused)
				if s.pings() {
					t.Error("a ping came through")
				}
				s.result("no traffic, as it must be")
				if n := s.e.Status().Counters.Dropped[ReasonAuth]; n > 0 {
					s.note("we count auth")
				} else {
					s.note("openvpn says: packet HMAC authentication failed")
				}
			})
		}
	}
}

func TestStaticTCPWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, tr := range []Transport{TCPListen, TCPConnect} {
		t.Run("S7 "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			args := append(s.carry(tr), s.secret(aesOptions)...)
			s.enter("S7", "`"+strings.Join(args[:2], " ")+"`, connection closed by the peer")
			e := s.open()
			p := s.openvpn(args...)
			s.checkTraffic()
			p.stop(syscall.SIGKILL)
			eventuallyLab(t, "we notice", func() bool { return e.Status().State == StateConnecting })
			s.openvpn(args...)
			s.note("back after %s", seconds(s.pingUntil(s.keepalive())))
			s.checkTraffic()
		})
		t.Run("S7 half-open "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.cfg.Ping, s.cfg.PingRestart = 2*time.Second, 10*time.Second
			args := append(s.carry(tr), s.secret(aesOptions+" --ping 2 --ping-restart 10")...)
			s.enter("S7", "`"+strings.Join(args[:2], " ")+"`, half-open: the peer dies behind a cut line")
			s.open()
			p := s.openvpn(args...)
			s.checkTraffic()
			s.cut()
			p.stop(syscall.SIGKILL) // what it says to our kernel is lost
			<-time.After(time.Second)
			s.mend()
			s.openvpn(args...)
			s.note("back after %s", seconds(s.pingUntil(s.keepalive())))
			s.checkTraffic()
		})
	}
}

// cut drops everything on the line between both sides until mend.
func (l *lab) cut() {
	l.t.Helper()
	for _, hook := range []string{"input iifname", "output oifname"} {
		hook, match, _ := strings.Cut(hook, " ")
		l.run("nft", fmt.Sprintf("add table ip cut%d; add chain ip cut%d %s { type filter hook %s priority 0; }; add rule ip cut%d %s %s va%d drop",
			l.n, l.n, hook, hook, l.n, hook, match, l.n))
	}
}

func (l *lab) mend() {
	l.t.Helper()
	l.run("nft", fmt.Sprintf("delete table ip cut%d", l.n))
}

func TestStaticIPv6WithRealPeer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		tr    Transport
		outer string
	}{{UDP, "4"}, {UDP, "6"}, {TCPListen, "4"}, {TCPListen, "6"}, {TCPConnect, "4"}, {TCPConnect, "6"}} {
		t.Run(fmt.Sprintf("S13 %s over IPv%s", row.tr, row.outer), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("S13", "`--ifconfig-ipv6`, outside IPv"+row.outer)
			s.cfg.IPv6 = true
			args := s.carry(row.tr)
			if row.outer == "6" {
				args = s.outside6(args)
			}
			args = append(args, "--ifconfig-ipv6", s.inner6(2).String()+"/64", s.inner6(1).String())
			args = append(args, s.secret(aesOptions)...)
			s.open()
			s.prove(func() *realPeer { return s.openvpn(args...) }, nil)
			s.ping(false, s.inner6(2), 56)
			s.ping(true, s.inner6(1), 1400)
		})
	}
}

// outside6 moves both sides to IPv6.
func (s *staticLab) outside6(args []string) []string {
	if s.cfg.Local.IsValid() && s.cfg.Local.Addr().IsValid() {
		s.cfg.Local = netip.AddrPortFrom(s.outer6(1), 1195)
	}
	if s.cfg.Remote != "" {
		s.cfg.Remote = netip.AddrPortFrom(s.outer6(2), 1195).String()
	}
	six := map[string]string{
		"tcp-client": "tcp6-client", "tcp-server": "tcp6-server",
		s.outer(1).String(): s.outer6(1).String(), s.outer(2).String(): s.outer6(2).String(),
	}
	args = slices.Clone(args)
	for i, a := range args {
		if b, ok := six[a]; ok {
			args[i] = b
		}
	}
	if s.cfg.Transport == UDP {
		args = append(args, "--proto", "udp6")
	}
	return args
}

func TestStaticPeerFollowsUs(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"", "--float --remote"} {
		t.Run("S10 "+args, func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			what := "no `--remote`, our source port changes"
			rest := s.secret(aesOptions + " --lport 1195 --local " + s.outer(2).String())
			if args != "" {
				what = "`--remote --float`, our source port changes"
				rest = append(rest, "--float", "--remote", s.outer(1).String(), "1195")
			}
			s.enter("S10", what)
			s.open()
			s.openvpn(rest...)
			s.checkTraffic()
			// The same instant, another source port: our start time must still grow.
			s.cfg.Local = netip.AddrPortFrom(s.outer(1), 2222)
			s.reopen()
			s.note("back after %s", seconds(s.pingUntil(s.keepalive())))
			s.checkTraffic()
		})
	}
}

func TestStaticWeFollowThePeer(t *testing.T) {
	t.Parallel()
	for _, float := range []bool{false, true} {
		t.Run(fmt.Sprintf("S10 float %v", float), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			what := "we have no remote, the peer's address and port change"
			s.cfg.Remote = ""
			if float {
				what = "we float, the peer's address and port change"
				s.cfg.Remote, s.cfg.Float = s.outer(2).String()+":1195", true
			}
			s.enter("S10", what)
			e := s.open()
			args := append(s.secret(aesOptions), "--remote", s.outer(1).String(), "1195")
			p := s.openvpn(append(args, "--lport", "1195")...)
			s.checkTraffic()
			p.stop(syscall.SIGKILL)
			s.openvpn(append(args, "--lport", "3333")...)
			s.checkTraffic()
			if got := e.Status(); got.Peer.Port() != 3333 || got.Restarts != 0 {
				t.Errorf("status %+v", got)
			}
			// Now its address, in the middle of the connection, as behind a NAT.
			s.movePeer(3333)
			s.ping(true, s.inner(1), 56)
			s.checkTraffic()
			if got := e.Status(); got.Peer != netip.AddrPortFrom(s.outer(3), 4444) || got.Restarts != 0 {
				t.Errorf("status %+v", got)
			}
		})
	}
}

// movePeer gives the peer, which is bound to a port, another source address and
// port, as a NAT does that has forgotten it.
func (l *lab) movePeer(port int) {
	l.t.Helper()
	l.run("ip", "link", "set", fmt.Sprintf("va%d", l.n), "mtu", "2000") // for these rules know no fragments
	l.runThere("ip", "link", "set", "vb", "mtu", "2000")
	l.runThere("ip", "addr", "add", l.outer(3).String()+"/24", "dev", "vb")
	l.runThere("nft", fmt.Sprintf("add table ip moved; add chain ip moved out { type filter hook output priority 0; };"+
		"add chain ip moved in { type filter hook prerouting priority -300; };"+
		"add rule ip moved out ip daddr %s udp dport 1195 ip saddr set %s udp sport set 4444;"+
		"add rule ip moved in ip daddr %s udp dport 4444 ip daddr set %s udp dport set %d",
		l.outer(1), l.outer(3), l.outer(3), l.outer(2), port))
}

func TestStaticExitNotificationsWithRealPeer(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.enter("S11", "`--explicit-exit-notify 1`")
	s.cfg.ExitNotify = true
	e := s.open()
	args := append(s.udp(), s.secret(aesOptions+" --explicit-exit-notify 1")...)
	p := s.openvpn(args...)
	s.checkTraffic()
	began := time.Now()
	p.stop(syscall.SIGTERM)
	eventuallyLab(t, "we restart at once", func() bool { return e.Status().Restarts == 1 })
	s.note("we restart within %s of its end", seconds(time.Since(began)+time.Second))
	p = s.openvpn(args...)
	s.checkTraffic()
	_ = e.Close()
	p.says("remote-exit")
	s.note("it restarts at our end")
}

func TestStaticOptionsExchange(t *testing.T) {
	t.Parallel()
	for _, tr := range allTransports {
		t.Run("S12 alike over "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("S12", "options exchange, configured alike")
			args := append(s.carry(tr), s.secret(aesOptions+" --verb 7")...) // it complains at 7, not at 3
			s.open()
			p := s.openvpn(args...)
			s.pingUntil(labPatience)
			<-time.After(14 * time.Second) // it asks 10 s after the start
			s.checkContent(p)
			s.note("no warning")
			s.ping(false, s.inner(2), 56)
		})
	}
	t.Run("S12 different", func(t *testing.T) { // proves that the peer reads our answer
		t.Parallel()
		s := newStaticLab(t)
		s.enter("S12", "options exchange, our `ifconfig` is another")
		s.cfg.Address = netip.MustParseAddr("10.77.77.77")
		s.open()
		p := s.openvpn(append(s.udp(), s.secret(aesOptions+" --verb 7")...)...)
		s.pingUntil(labPatience)
		p.says("'ifconfig' is used inconsistently")
		s.note("openvpn warns, as it must")
		s.ping(false, s.inner(2), 56)
	})
}

func TestStaticRestartsWithRealPeer(t *testing.T) {
	t.Parallel()
	for _, tr := range allTransports {
		t.Run("S14 kill and restart over "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("S14", "kill -9 of the peer and restart")
			args := append(s.carry(tr), s.secret(aesOptions)...)
			e := s.open()
			p := s.openvpn(args...)
			s.checkTraffic()
			p.stop(syscall.SIGKILL)
			s.openvpn(args...)
			s.note("back after %s", seconds(s.pingUntil(s.keepalive())))
			s.checkTraffic()
			if tr == UDP && e.Status().Restarts != 0 {
				t.Error("we restarted")
			}
		})
		t.Run("S14 our restarts over "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("S14", "our restarts within the same second, then with our clock an hour back")
			args := append(s.carry(tr), s.secret(aesOptions)...)
			s.open()
			s.openvpn(args...)
			s.checkTraffic()
			for _, shift := range []time.Duration{0, 0, -time.Hour} {
				s.cfg.Now = func() time.Time { return time.Now().Add(shift) }
				s.reopen()
				s.note("back after %s", seconds(s.pingUntil(s.keepalive())))
			}
			s.checkTraffic()
		})
		t.Run("S14 our time file over "+tr.String(), func(t *testing.T) {
			t.Parallel()
			s := newStaticLab(t)
			s.enter("S14", "the last time in our file lies an hour ahead")
			future := time.Now().Add(time.Hour).Unix()
			if err := os.WriteFile(filepath.Join(s.dir, "time"), []byte(strconv.FormatInt(future, 10)), 0o600); err != nil {
				t.Fatal(err)
			}
			args := append(s.carry(tr), s.secret(aesOptions)...)
			s.open()
			s.openvpn(args...)
			s.checkTraffic()
			s.reopen()
			s.note("back after our restart in %s", seconds(s.pingUntil(s.keepalive())))
			s.checkTraffic()
			last, err := s.cfg.Times.Load()
			if err != nil || int64(last) < future+2 {
				t.Errorf("time file: %d, %v; want %d or more", last, err, future+2)
			}
		})
	}
}

// A packet of an hour ahead does to us what an honest peer does whose clock is then
// set back: it is not heard until it was silent for the restart timeout.
func TestStaticPeerWhoseClockWentBack(t *testing.T) {
	t.Parallel()
	s := newStaticLab(t)
	s.enter("S14", "the peer's clock is set back an hour")
	s.cfg.Ping, s.cfg.PingRestart = 2*time.Second, 10*time.Second
	e := s.open()
	args := append(s.udp(), s.secret(aesOptions+" --ping 2 --ping-restart 10")...)
	p := s.openvpn(args...)
	s.checkTraffic()
	p.stop(syscall.SIGKILL)
	box, _, err := newStaticBoxes(s.cfg.Static, s.cfg.Digest)
	if err != nil {
		t.Fatal(err)
	}
	box.time = uint32(time.Now().Add(time.Hour).Unix())
	packet, err := box.seal(nil, &plaintext{body: pingMagic[:]})
	if err != nil {
		t.Fatal(err)
	}
	s.injection().fromPeer(packet)
	s.openvpn(args...)
	eventuallyLab(t, "its packets are replays", func() bool { return e.Status().Counters.Dropped[ReasonReplay] > 0 })
	s.note("back after %s", seconds(s.pingUntil(2*s.keepalive())))
	s.checkTraffic()
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
	s.openvpn(append(s.udp(), s.secret(aesOptions)...)...)
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
