//go:build soak && linux && !openvpn

package openvpn

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// The soak: our endpoint and the distribution's OpenVPN, each in a process of its
// own, join two sites over an underlay that loses and reorders packets. One TCP
// connection between hosts of the sites carries known bytes both ways, in TLS mode
// through renegotiations, with a static key through a restart of each side.
//
//	host1 ── gw1: ours ══ loss, reordering ══ gw2: openvpn ── host2
var (
	soakBytes = flag.Int64("soak.bytes", 1<<30, "bytes for each mode, half of them each way")
	soakModes = flag.String("soak.modes", "", "part of the names of the modes to run; empty: all")
)

const (
	soakEnv      = "OPENVPN_SOAK_ENDPOINT" // settings of a process that is our endpoint
	soakLoss     = 0.01                    // of the packets in each direction
	soakReorder  = 0.01
	soakReneg    = 10 * time.Second
	soakStall    = 3 * time.Second // longest time without progress, restarts aside
	soakRecovery = 30 * time.Second
	// The transfer is slowed down to no less than this, so that enough happens meanwhile.
	soakTLSTime    = 50 * time.Second
	soakStaticTime = 20 * time.Second
	soakSlowest    = 2 << 20 // bytes per second below which the soak gives up
	soakMTU        = 1500
)

func TestMain(m *testing.M) {
	if text := os.Getenv(soakEnv); text != "" {
		if err := runSoakEndpoint(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// soakMode is one row: what our configuration is, and what the peer is told.
type soakMode struct {
	name  string
	tls   bool
	ours  func(c *Config)
	peer  string
	proto Transport
}

var allSoakModes = []soakMode{
	{
		name: "static-aes-256-cbc-udp", peer: "--proto udp --cipher AES-256-CBC --auth SHA256",
		ours: func(c *Config) { c.Static.Cipher, c.Digest = CipherAES256CBC, DigestSHA256 },
	},
	{
		name: "static-aes-256-cbc-tcp", peer: "--proto tcp-client --connect-retry 1 2 --cipher AES-256-CBC --auth SHA256",
		ours: func(c *Config) {
			c.Static.Cipher, c.Digest, c.Transport = CipherAES256CBC, DigestSHA256, TCPListen
		},
	},
	{
		name: "static-bf-cbc-udp", peer: "--proto udp --providers legacy default --cipher BF-CBC --auth SHA1",
		ours: func(c *Config) { c.Static.Cipher, c.Digest = CipherBlowfishCBC, DigestSHA1 },
	},
	{
		name: "tls-aes-256-gcm-v2", tls: true, peer: "--proto udp --tls-client --data-ciphers AES-256-GCM",
		ours: func(c *Config) { c.TLS.Role = TLSServer },
	},
	{
		// We say nothing about ourselves, so that the peer falls back to the cipher
		// that it is given and to P_DATA_V1, as between 2.4 and 2.5.
		name: "tls-aes-256-cbc-v1", tls: true, peer: "--proto udp --tls-server --dh none --cipher AES-256-CBC --auth SHA256",
		ours: func(c *Config) {
			c.TLS.Role, c.TLS.silent, c.TLS.Fallback, c.Digest = TLSClient, true, CipherAES256CBC, DigestSHA256
		},
	},
}

// Addresses of the soak. Site n has 192.168.n.0/24.
var (
	soakOurs = netip.MustParseAddr("10.4.0.90")
	soakPeer = netip.MustParseAddr("10.4.0.91")
)

func soakTopology() netlab.Topology {
	fault := netlab.Link{Loss: soakLoss, Reorder: soakReorder}
	t := netlab.Topology{Nets: []netlab.Net{{Name: "underlay", Prefixes: []netip.Prefix{netlab.Underlay4}}}}
	for i, addr := range []netip.Addr{soakOurs, soakPeer} {
		n := byte(i + 1)
		lan := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, n, 0}), 24)
		router, host := netip.AddrFrom4([4]byte{192, 168, n, 1}), netip.AddrFrom4([4]byte{192, 168, n, 10})
		net := fmt.Sprintf("lan%d", n)
		outside := netlab.Iface{Net: "underlay", Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr, netlab.Underlay4.Bits())}}
		if i == 0 {
			outside.Out, outside.In = fault, fault
		}
		t.Nets = append(t.Nets, netlab.Net{Name: net, Prefixes: []netip.Prefix{lan}})
		t.Hosts = append(t.Hosts,
			netlab.HostSpec{Name: fmt.Sprintf("gw%d", n), Forward: true, Interfaces: []netlab.Iface{
				outside, {Net: net, Name: "eth1", Addrs: []netip.Prefix{netip.PrefixFrom(router, 24)}},
			}},
			netlab.HostSpec{Name: fmt.Sprintf("host%d", n), Gateways: []netip.Addr{router}, Interfaces: []netlab.Iface{
				{Net: net, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(host, 24)}},
			}})
	}
	return t
}

// soakSettings are what a process needs to be our endpoint. Its files are in its folder.
type soakSettings struct {
	Mode string
	Peer string // fingerprint, in TLS mode
}

// runSoakEndpoint serves until a signal, and says what it counted at the end.
func runSoakEndpoint(text string) error {
	var s soakSettings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	cfg, err := s.config()
	if err != nil {
		return err
	}
	tun, err := OpenTUN("tun0", soakMTU)
	if err != nil {
		return err
	}
	for _, line := range []string{"addr add 10.99.0.1 peer 10.99.0.2 dev tun0", "link set tun0 up", "route add 192.168.2.0/24 dev tun0"} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg.Device = tun
	e, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println("endpoint is ready")
	<-ctx.Done()
	st := e.Status()
	fmt.Printf("keys %d, restarts %d, refused by the kernel %d, dropped %v, last error %q\n", st.Keys, st.Restarts, tun.Refused(), st.Counters.Dropped, st.LastError)
	return e.Close()
}

func (s soakSettings) config() (Config, error) {
	cfg := Config{
		Local: netip.AddrPortFrom(soakOurs, 1195), Remote: soakPeer.String() + ":1195", MTU: soakMTU,
		Ping: 2 * time.Second, PingRestart: 10 * time.Second, Times: TimeFile("time"), Logger: slog.Default(),
	}
	text, err := os.ReadFile("static.key")
	if err != nil {
		return cfg, err
	}
	key, err := ParseStaticKey(text)
	if err != nil {
		return cfg, err
	}
	for _, m := range allSoakModes {
		if m.name != s.Mode {
			continue
		}
		if m.tls {
			cert, err := tls.LoadX509KeyPair("cert.pem", "cert.key")
			if err != nil {
				return cfg, err
			}
			peer, err := ParseFingerprint(s.Peer)
			if err != nil {
				return cfg, err
			}
			cfg.TLS = &TLS{Certificate: cert, Fingerprints: []Fingerprint{peer}, RenegInterval: soakReneg}
		} else {
			cfg.Static = &Static{Key: key}
		}
		m.ours(&cfg)
		return cfg, nil
	}
	return cfg, fmt.Errorf("mode %q is not known", s.Mode)
}

// soak is one mode while it runs.
type soak struct {
	t     *testing.T
	mode  soakMode
	world *netlab.World
	certs [2]*testCert

	ours, peer *netlab.Process
	logs       []string // of processes that were killed

	mu      sync.Mutex
	outages []outage // guarded by mu
}

// outage is one restart: the kill, and when a ping passed again.
type outage struct{ from, to time.Time }

func TestSoak(t *testing.T) {
	for _, m := range allSoakModes {
		if !strings.Contains(m.name, *soakModes) {
			continue
		}
		t.Run(m.name, func(t *testing.T) { soakOne(t, m) })
	}
}

func soakOne(t *testing.T, m soakMode) {
	limit := 2*time.Minute + time.Duration(*soakBytes/soakSlowest)*time.Second
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	s := newSoak(ctx, t, m)
	s.measureUnderlay(ctx)
	client, server := s.connect(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer stop()
	least := soakStaticTime
	if m.tls {
		least = soakTLSTime
	}
	there, back := newStream(1, *soakBytes/2), newStream(2, *soakBytes-*soakBytes/2)
	began := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { there.send(client, least) })
	wg.Go(func() { there.receive(server) })
	wg.Go(func() { back.send(server, least) })
	wg.Go(func() { back.receive(client) })
	if !m.tls {
		wg.Go(func() { s.restarts(ctx, there, back) })
	}
	wg.Wait()
	s.report(ctx, time.Since(began), there, back)
}

// newSoak builds the world and brings the connection up.
func newSoak(ctx context.Context, t *testing.T, m soakMode) *soak {
	t.Helper()
	w, err := netlab.Start(ctx, soakTopology())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &soak{t: t, mode: m, world: w}
	key := GenerateStaticKey()
	for i, name := range []string{"gw1", "gw2"} {
		s.certs[i] = mustCert(t, certSpec{name: name})
		certPEM, keyPEM := s.certs[i].pem(t)
		h := w.Host(name)
		if err := errors.Join(h.WriteFile("static.key", key.Encode(), 0o600), h.WriteFile("cert.pem", certPEM, 0o600), h.WriteFile("cert.key", keyPEM, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.startOurs(ctx), s.startPeer(ctx), s.awaitPing(ctx)); err != nil {
		t.Fatalf("%v%s", err, s.allLogs())
	}
	return s
}

func (s *soak) startOurs(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	text, err := json.Marshal(soakSettings{Mode: s.mode.name, Peer: s.certs[1].fingerprint().String()})
	if err != nil {
		return err
	}
	cmd := s.world.Host("gw1").Command(context.WithoutCancel(ctx), self)
	cmd.Env = append(os.Environ(), soakEnv+"="+string(text))
	if s.ours, err = s.world.Host("gw1").StartCommand(cmd); err != nil {
		return err
	}
	return s.ours.WaitLog(ctx, "endpoint is ready")
}

func (s *soak) startPeer(ctx context.Context) (err error) {
	args := []string{
		"--dev", "tun0", "--dev-type", "tun", "--disable-dco", "--persist-tun", "--persist-key", "--verb", "3",
		"--local", soakPeer.String(), "--remote", soakOurs.String(), "1195", "--tun-mtu", fmt.Sprint(soakMTU),
		"--ifconfig", "10.99.0.2", "10.99.0.1", "--route", "192.168.1.0", "255.255.255.0", "--ping", "2", "--ping-restart", "10",
	}
	if s.mode.name != "static-aes-256-cbc-tcp" {
		args = append(args, "--port", "1195")
	}
	args = append(args, strings.Fields(s.mode.peer)...)
	if s.mode.tls {
		args = append(args, "--cert", "cert.pem", "--key", "cert.key", "--peer-fingerprint", s.certs[0].fingerprint().String(), "--reneg-sec", fmt.Sprint(int(soakReneg.Seconds())))
	} else {
		args = append(args, "--secret", "static.key")
	}
	s.peer, err = s.world.Host("gw2").Start(context.WithoutCancel(ctx), "openvpn", args...)
	return err
}

// awaitPing pings from site to site until it is answered.
func (s *soak) awaitPing(ctx context.Context) error {
	for {
		_, err := s.world.Host("host1").Run(ctx, "ping", "-c", "1", "-W", "1", "192.168.2.10")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-s.ours.Done():
			return errors.New("our endpoint has ended")
		case <-s.peer.Done():
			return errors.New("openvpn has ended")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// measureUnderlay says what the faults of the underlay are worth, and fails if
// there are none.
func (s *soak) measureUnderlay(ctx context.Context) {
	s.t.Helper()
	const sent = 4000
	to := netip.AddrPortFrom(soakPeer, 4711)
	out, err := s.world.Host("gw1").ListenPacket(ctx, "udp4", netip.AddrPortFrom(soakOurs, 4711).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer out.Close()
	in, err := s.world.Host("gw2").ListenPacket(ctx, "udp4", to.String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer in.Close()
	go func() { // ends by itself
		for i := range sent {
			_, _ = out.WriteTo(binary.BigEndian.AppendUint32(nil, uint32(i)), net.UDPAddrFromAddrPort(to))
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	came, late, newest := 0, 0, uint32(0)
	for buf := make([]byte, 100); ; {
		_ = in.SetReadDeadline(time.Now().Add(time.Second))
		n, _, err := in.ReadFrom(buf)
		if err != nil {
			break // the deadline: no more come
		}
		if n != 4 {
			continue
		}
		seq := binary.BigEndian.Uint32(buf)
		came++
		if seq < newest {
			late++
		}
		newest = max(newest, seq)
	}
	s.t.Logf("underlay: of %d datagrams one way, %.2f %% were lost and %.2f %% came late", sent, 100*float64(sent-came)/sent, 100*float64(late)/sent)
	if came == 0 || came == sent || late == 0 {
		s.t.Error("the underlay loses all or nothing, or keeps the order")
	}
}

// connect opens the connection from host1 to host2.
func (s *soak) connect(ctx context.Context) (client, server net.Conn) {
	s.t.Helper()
	l, err := s.world.Host("host2").Listen(ctx, "tcp", "192.168.2.10:7007")
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	if client, err = s.world.Host("host1").Dial(ctx, "tcp", "192.168.2.10:7007"); err == nil {
		server, err = l.Accept()
	}
	if err != nil {
		s.t.Fatalf("%v%s", err, s.allLogs())
	}
	return client, server
}

// restarts kills each side once, after a third and after two thirds of the bytes.
func (s *soak) restarts(ctx context.Context, streams ...*stream) {
	restart := func(p **netlab.Process, start func(context.Context) error) {
		from := time.Now()
		if err := (*p).Kill(); err != nil {
			s.t.Error(err)
		}
		s.logs = append(s.logs, (*p).Log())
		if err := errors.Join(start(ctx), s.awaitPing(ctx)); err != nil {
			s.t.Errorf("after a restart: %v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.outages = append(s.outages, outage{from, time.Now()})
	}
	progress := func(part float64) bool {
		for ctx.Err() == nil {
			var got int64
			for _, st := range streams {
				got += st.got.Load()
			}
			if float64(got) >= part*float64(*soakBytes) {
				return true
			}
			if streams[0].ended() || streams[1].ended() {
				return false
			}
			time.Sleep(20 * time.Millisecond)
		}
		return false
	}
	if progress(1.0 / 3) {
		restart(&s.ours, s.startOurs)
	}
	if progress(2.0 / 3) {
		restart(&s.peer, s.startPeer)
	}
}

// stream is one direction: bytes of a generator that both ends know.
type stream struct {
	seed  [32]byte
	total int64

	got   atomic.Int64
	wrong int64
	done  atomic.Bool
	errs  [2]error // of sender and receiver
	began time.Time
	gaps  []outage // times without a byte, longer than gapLeast
	last  time.Time
}

// gapLeast is the shortest gap that is remembered.
const gapLeast = 10 * time.Millisecond

func newStream(seed byte, total int64) *stream {
	now := time.Now()
	return &stream{seed: [32]byte{seed}, total: total, began: now, last: now}
}

func (st *stream) ended() bool { return st.done.Load() }

// soakChunk is the size of one write.
const soakChunk = 32 << 10

// send writes everything, no faster than in the time of least.
func (st *stream) send(c net.Conn, least time.Duration) {
	source := rand.NewChaCha8(st.seed)
	buf := make([]byte, soakChunk)
	for sent := int64(0); sent < st.total; {
		part := buf[:min(soakChunk, st.total-sent)]
		_, _ = source.Read(part) // never fails
		if _, err := c.Write(part); err != nil {
			st.errs[0] = err
			return
		}
		sent += int64(len(part))
		due := time.Duration(float64(least) * float64(sent) / float64(st.total))
		if ahead := due - time.Since(st.began); ahead > 5*time.Millisecond {
			time.Sleep(ahead)
		}
	}
}

// receive reads everything and compares.
func (st *stream) receive(c net.Conn) {
	defer st.done.Store(true)
	source := rand.NewChaCha8(st.seed)
	buf, want := make([]byte, 256<<10), make([]byte, 256<<10)
	for st.got.Load() < st.total {
		n, err := c.Read(buf)
		now := time.Now()
		if now.Sub(st.last) >= gapLeast {
			st.gaps = append(st.gaps, outage{st.last, now})
		}
		st.last = now
		_, _ = source.Read(want[:n])
		for i := range n {
			if buf[i] != want[i] {
				st.wrong++
			}
		}
		st.got.Add(int64(n))
		if err != nil && (st.got.Load() < st.total || !errors.Is(err, io.EOF)) {
			st.errs[1] = err
			return
		}
	}
}

// judge returns the longest gap that no restart explains, and the longest of the others.
func (s *soak) judge(streams ...*stream) (stall, recovery time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range streams {
		for _, g := range st.gaps {
			explained := false
			for _, o := range s.outages {
				// The gap begins at the latest when pings pass again.
				explained = explained || g.from.Before(o.to) && g.to.After(o.from)
			}
			if long := g.to.Sub(g.from); explained {
				recovery = max(recovery, long)
			} else {
				stall = max(stall, long)
			}
		}
	}
	return stall, recovery
}

// report prints the line of the mode and fails where a demand is not met.
func (s *soak) report(ctx context.Context, took time.Duration, there, back *stream) {
	t := s.t
	stall, recovery := s.judge(there, back)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.ours.Stop(stop); err != nil {
		t.Errorf("our endpoint: %v", err)
	}
	renegotiations := 0
	if s.mode.tls {
		// The peer's own words; the first is the start.
		renegotiations = strings.Count(s.peer.Log(), "Control Channel: TLS") - 1
	}
	got, wrong := there.got.Load()+back.got.Load(), there.wrong+back.wrong
	fmt.Printf("soak: %-23s bytes %d  seconds %.1f  renegotiations %d  restarts %d  longest stall %v  longest recovery %v  wrong bytes %d\n",
		s.mode.name, got, took.Seconds(), renegotiations, len(s.outages), stall.Round(time.Millisecond), recovery.Round(time.Millisecond), wrong)
	for line := range strings.Lines(s.ours.Log()) {
		if strings.HasPrefix(line, "keys ") {
			t.Log("ours:", strings.TrimSpace(line))
		}
	}
	check := func(bad bool, format string, args ...any) {
		if bad {
			t.Errorf(format, args...)
		}
	}
	err := errors.Join(there.errs[0], there.errs[1], back.errs[0], back.errs[1])
	check(err != nil, "transfer: %v", err)
	check(got != *soakBytes, "%d of %d bytes arrived", got, *soakBytes)
	check(wrong != 0, "%d wrong bytes", wrong)
	check(stall > soakStall, "a stall of %v", stall)
	check(recovery > soakRecovery, "a restart took %v", recovery)
	check(s.mode.tls && renegotiations < 3, "%d renegotiations", renegotiations)
	check(!s.mode.tls && len(s.outages) != 2, "%d restarts", len(s.outages))
	if t.Failed() {
		t.Log(s.allLogs())
	}
}

// allLogs is the end of what the processes wrote.
func (s *soak) allLogs() string {
	var b strings.Builder
	logs := s.logs
	for _, p := range []*netlab.Process{s.ours, s.peer} {
		if p != nil {
			logs = append(logs, p.Log())
		}
	}
	for _, l := range logs {
		fmt.Fprintf(&b, "\n--\n%s", l[max(0, len(l)-6000):])
	}
	return b.String()
}
