package vyos

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

var update = flag.Bool("update", false, "write golden files")

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// meshPrefixes are what a router sends to the mesh in these tests.
func meshPrefixes() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24"), netip.MustParsePrefix("192.168.20.0/24"), netip.MustParsePrefix("2001:db8:10::/64")}
}

// testKey is a key that nobody uses.
func testKey(t testing.TB, first byte) openvpn.StaticKey {
	t.Helper()
	hex := fmt.Sprintf("%02x", first)
	for i := 1; i < 256; i++ {
		hex += fmt.Sprintf("%02x", byte(i))
	}
	key, err := openvpn.ParseStaticKey([]byte("-----BEGIN OpenVPN Static key V1-----\n" + hex + "\n-----END OpenVPN Static key V1-----\n"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newTunnel is an attachment over UDP and its router, as a configuration file
// would give it.
func newTunnel(mode conf.Mode) Tunnel {
	t := Tunnel{
		OpenVPN: conf.OpenVPN{
			Name: "r30a", Mode: mode, Device: "ov-r30a",
			Listen: netip.MustParseAddrPort("0.0.0.0:1195"), Remote: "203.0.113.11:1196",
			Tunnel: conf.Tunnel{Local: netip.MustParseAddr("10.90.0.1"), Peer: netip.MustParseAddr("10.90.0.2"), MTU: 1500},
			Cipher: openvpn.CipherAES256CBC, Auth: openvpn.DigestSHA256,
			Ping: 10 * time.Second, PingRestart: time.Minute, Renegotiate: time.Hour,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.30.0/24")},
		},
		Gateway:   "198.51.100.10",
		Interface: "vtun1",
	}
	if mode == conf.ModeStatic {
		t.Key = "/etc/meshd/r30a.key"
		return t
	}
	t.TLS = &conf.TLS{Cert: "/etc/meshd/gw.crt", Key: "/etc/meshd/gw.pem", PeerFingerprints: []openvpn.Fingerprint{{1, 2, 3}}, MinVersion: 0x0303}
	t.Fingerprint = openvpn.Fingerprint{0xAA, 0xBB}.String()
	return t
}

// overTCP makes the tunnel one of TCP, in the only direction that VyOS takes
// with its role.
func (t Tunnel) overTCP() Tunnel {
	t.Transport = openvpn.TCPListen
	if t.Mode == conf.ModeTLSClient {
		t.Transport, t.Listen = openvpn.TCPConnect, netip.AddrPort{}
	}
	return t
}

func (t Tunnel) with(change func(*Tunnel)) Tunnel {
	if t.TLS != nil {
		copied := *t.TLS
		t.TLS = &copied
	}
	change(&t)
	return t
}

// standby is a second tunnel beside newTunnel, on another gateway.
func (t Tunnel) standby() Tunnel {
	t.Name, t.Device, t.Interface, t.Gateway, t.Priority = "r30b", "ov-r30b", "vtun2", "198.51.100.20", 20
	t.Key, t.Remote = "/etc/meshd/r30b.key", "203.0.113.11:1197"
	t.Tunnel.Local, t.Tunnel.Peer = netip.MustParseAddr("10.91.0.1"), netip.MustParseAddr("10.91.0.2")
	if t.Tunnel.Local6.IsValid() {
		t.Tunnel.Local6, t.Tunnel.Peer6 = netip.MustParseAddr("fd91::1"), netip.MustParseAddr("fd91::2")
	}
	return t
}

func addIPv6(t *Tunnel) {
	t.Tunnel.Local6, t.Tunnel.Peer6 = netip.MustParseAddr("fd90::1"), netip.MustParseAddr("fd90::2")
}

func commands(t *testing.T, r Router) string {
	t.Helper()
	out, err := r.Commands()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCommandsOfEveryVersionModeAndTransport(t *testing.T) {
	for v := V12; v <= V15; v++ {
		for _, mode := range []conf.Mode{conf.ModeStatic, conf.ModeTLSServer, conf.ModeTLSClient} {
			for _, transport := range []string{"udp", "tcp"} {
				name := fmt.Sprintf("%v-%s-%s.txt", v, mode, transport)
				t.Run(name, func(t *testing.T) {
					tunnel := newTunnel(mode)
					if transport == "tcp" {
						tunnel = tunnel.overTCP()
					}
					if v != V12 {
						addIPv6(&tunnel)
					}
					golden(t, name, commands(t, Router{Version: v, Tunnels: []Tunnel{tunnel}, Prefixes: meshPrefixes()}))
				})
			}
		}
	}
}

func TestCommandsOfTwoTunnels(t *testing.T) {
	for v := V12; v <= V15; v++ {
		first := newTunnel(conf.ModeStatic)
		first.Priority = 10
		r := Router{Version: v, Tunnels: []Tunnel{first, first.standby()}, Prefixes: meshPrefixes()}
		golden(t, fmt.Sprintf("%v-two.txt", v), commands(t, r))
		if v < V14 {
			continue
		}
		r.BFD = true
		golden(t, fmt.Sprintf("%v-two-bfd.txt", v), commands(t, r))
	}
}

// lines are the commands without comments.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

func TestSettingsBecomeTheWordsOfTheVersion(t *testing.T) {
	static, server := newTunnel(conf.ModeStatic), newTunnel(conf.ModeTLSServer)
	tests := []struct {
		name     string
		versions []Version
		tunnel   Tunnel
		want     []string
		not      []string // no line has it
	}{
		{"failure count multiplies", []Version{V12}, static, []string{"set interfaces openvpn vtun1 keep-alive interval '10'", "set interfaces openvpn vtun1 keep-alive failure-count '6'"}, nil},
		{"failure count is seconds", []Version{V13, V14, V15}, static, []string{"set interfaces openvpn vtun1 keep-alive failure-count '60'"}, nil},
		{"an odd failure count is rounded up", []Version{V12}, static.with(func(t *Tunnel) { t.Ping, t.PingRestart = 7*time.Second, 30*time.Second }), []string{"set interfaces openvpn vtun1 keep-alive failure-count '5'"}, nil},
		{"blowfish has a word", []Version{V12}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), []string{"set interfaces openvpn vtun1 encryption 'bf128'"}, nil},
		{"blowfish has a word in another place", []Version{V13}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), []string{"set interfaces openvpn vtun1 encryption cipher 'bf128'"}, nil},
		{"blowfish is what 1.4 does without a word", []Version{V14}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), nil, []string{"encryption"}},
		{"triple des", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherTripleDESCBC }), []string{"set interfaces openvpn vtun1 encryption cipher '3des'"}, nil},
		{"no cipher", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherNone }), []string{"set interfaces openvpn vtun1 encryption cipher 'none'"}, nil},
		{"sha384", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.Auth = openvpn.DigestSHA384 }), []string{"set interfaces openvpn vtun1 hash 'sha384'"}, nil},
		{"lzo", []Version{V12, V13, V14, V15}, static.with(func(t *Tunnel) { t.Compression = openvpn.FramingLZO }), []string{"set interfaces openvpn vtun1 use-lzo-compression"}, nil},
		{"stub", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.Compression = openvpn.FramingStub }), []string{"set interfaces openvpn vtun1 openvpn-option '--compress stub'"}, nil},
		{"stub-v2", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.Compression = openvpn.FramingStubV2 }), []string{"set interfaces openvpn vtun1 openvpn-option '--compress stub-v2'"}, nil},
		{"fragment and mtu", []Version{V12, V13, V14, V15}, static.with(func(t *Tunnel) { t.Fragment, t.Tunnel.MTU = 1300, 1400 }), []string{"set interfaces openvpn vtun1 openvpn-option '--fragment 1300'", "set interfaces openvpn vtun1 openvpn-option '--tun-mtu 1400'"}, nil},
		{"without remote the router takes the gateway's port", []Version{V12, V13, V14, V15}, static.with(func(t *Tunnel) { t.Remote = "" }), []string{"set interfaces openvpn vtun1 local-port '1195'", "set interfaces openvpn vtun1 remote-port '1195'"}, nil},
		{"remote without port is 1194", []Version{V14}, static.with(func(t *Tunnel) { t.Remote, t.Float = "2001:db8::11", true }), []string{"set interfaces openvpn vtun1 local-port '1194'"}, nil},
		{"a connecting router has no port", []Version{V12, V13, V14, V15}, static.overTCP(), []string{"set interfaces openvpn vtun1 protocol 'tcp-active'"}, []string{"local-port"}},
		{"a listening router has no remote", []Version{V12, V13, V14, V15}, newTunnel(conf.ModeTLSClient).overTCP(), []string{"set interfaces openvpn vtun1 protocol 'tcp-passive'", "set interfaces openvpn vtun1 local-port '1196'"}, []string{"remote-port", "remote-host"}},
		{"a named gateway", []Version{V13}, static.with(func(t *Tunnel) { t.Gateway = "gw30a.example.org" }), []string{"set interfaces openvpn vtun1 remote-host 'gw30a.example.org'"}, nil},
		{"tls on 1.4 needs no cipher", []Version{V14}, server.with(func(t *Tunnel) { t.Cipher = "" }), nil, []string{"encryption"}},
		{"tls on 1.5 must have a fallback", []Version{V15}, server.with(func(t *Tunnel) { t.Cipher = "" }), []string{"set interfaces openvpn vtun1 encryption data-ciphers-fallback 'aes256gcm'"}, nil},
		{"gcm with tls", []Version{V13}, server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherAES256GCM }), []string{"set interfaces openvpn vtun1 encryption cipher 'aes256gcm'"}, nil},
		{"tls-crypt as a file", []Version{V13}, server.with(func(t *Tunnel) { t.TLS.Wrap, t.TLS.WrapKey = openvpn.WrapCrypt, "/etc/meshd/tc.key" }), []string{"set interfaces openvpn vtun1 tls crypt-file '/config/auth/meshd-vtun1-crypt.key'"}, nil},
		{"tls-crypt as an object", []Version{V14, V15}, server.with(func(t *Tunnel) { t.TLS.Wrap, t.TLS.WrapKey = openvpn.WrapCrypt, "/etc/meshd/tc.key" }), []string{"set interfaces openvpn vtun1 tls crypt-key 'meshd-vtun1-crypt'"}, nil},
		{"least tls version", []Version{V14, V15}, server.with(func(t *Tunnel) { t.TLS.MinVersion = 0x0304 }), []string{"set interfaces openvpn vtun1 tls tls-version-min '1.3'"}, nil},
		{"an authority that is not at hand", []Version{V14}, server.with(func(t *Tunnel) { t.TLS.CA = "/etc/meshd/ca.crt" }), []string{"set interfaces openvpn vtun1 tls ca-certificate 'meshd-vtun1-ca'"}, []string{"set pki ca", "peer-fingerprint"}},
		{"an authority in pem form", []Version{V14}, server.with(func(t *Tunnel) {
			t.TLS.CA, t.CA = "/etc/meshd/ca.crt", []byte("-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n")
		}), []string{"set pki ca meshd-vtun1-ca certificate 'MAMCAQE='"}, nil},
		{"a fingerprint that is not at hand", []Version{V14}, server.with(func(t *Tunnel) { t.Fingerprint = "" }), nil, []string{"peer-fingerprint"}},
	}
	for _, test := range tests {
		for _, v := range test.versions {
			t.Run(fmt.Sprintf("%s/%v", test.name, v), func(t *testing.T) {
				got := lines(commands(t, Router{Version: v, Tunnels: []Tunnel{test.tunnel}, Prefixes: meshPrefixes()}))
				for _, want := range test.want {
					if !slices.Contains(got, want) {
						t.Errorf("no line %q in\n%s", want, strings.Join(got, "\n"))
					}
				}
				for _, not := range test.not {
					if slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, not) }) {
						t.Errorf("%q in\n%s", not, strings.Join(got, "\n"))
					}
				}
			})
		}
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	static, server := newTunnel(conf.ModeStatic), newTunnel(conf.ModeTLSServer)
	all := []Version{V12, V13, V14, V15}
	tests := []struct {
		name     string
		versions []Version
		tunnel   Tunnel
		want     string
	}{
		{"key direction", all, static.with(func(t *Tunnel) { t.KeyDirection = openvpn.Direction1 }), "static keys without direction"},
		{"blowfish", []Version{V15}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), "vyos 1.5 has no cipher BF-CBC"},
		{"blowfish with tls", []Version{V14, V15}, server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), "r30a: "},
		{"no cipher", []Version{V12}, static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherNone }), "cannot do without a cipher"},
		{"gcm", []Version{V12}, server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherAES128GCM }), "vyos 1.2 has no cipher AES-128-GCM"},
		{"chacha", all, server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherChaCha20Poly1305 }), "no setting for cipher CHACHA20-POLY1305"},
		{"tls without fallback", []Version{V12, V13}, server.with(func(t *Tunnel) { t.Cipher = "" }), "does not negotiate"},
		{"nothing in common", []Version{V14, V15}, server.with(func(t *Tunnel) { t.Cipher, t.DataCiphers = "", []openvpn.Cipher{openvpn.CipherAES256CBC} }), "dataCiphers has none of them"},
		{"sha384", []Version{V12}, static.with(func(t *Tunnel) { t.Auth = openvpn.DigestSHA384 }), "vyos 1.2 has no digest SHA384"},
		{"no digest", all, static.with(func(t *Tunnel) { t.Auth = openvpn.DigestNone }), "no setting for digest none"},
		{"ipv6 inside", []Version{V12}, static.with(addIPv6), "no ipv6 addresses in a tunnel"},
		{"ipv6 outside", []Version{V12}, static.with(func(t *Tunnel) { t.Gateway = "2001:db8::1" }), "no tunnel over ipv6"},
		{"stub", []Version{V12}, static.with(func(t *Tunnel) { t.Compression = openvpn.FramingStub }), "older than compression stub"},
		{"tls-auth", all, server.with(func(t *Tunnel) { t.TLS.Wrap = openvpn.WrapAuth }), "does not use it"},
		{"tls-crypt", []Version{V12}, server.with(func(t *Tunnel) { t.TLS.Wrap = openvpn.WrapCrypt }), "vyos 1.2 has no tls-crypt"},
		{"tls 1.3", []Version{V12}, server.with(func(t *Tunnel) { t.TLS.MinVersion = 0x0304 }), "no tls 1.3"},
		{"active and listening", all, server.with(func(t *Tunnel) { t.Transport = openvpn.TCPConnect }), "only if the router connects"},
		{"passive and connecting", all, newTunnel(conf.ModeTLSClient).with(func(t *Tunnel) { t.Transport = openvpn.TCPListen }), "only if the router listens"},
		{"no room for a lost ping", all, static.with(func(t *Tunnel) { t.Ping, t.PingRestart = 10*time.Second, 15*time.Second }), "restart again and again"},
		{"long pause", all, static.with(func(t *Tunnel) { t.Ping, t.PingRestart = 15*time.Minute, time.Hour }), "longer than vyos can have it"},
		{"long restart", []Version{V13, V14, V15}, static.with(func(t *Tunnel) { t.PingRestart = time.Hour }), "longer than vyos"},
		{"gateway unknown", all, static.with(func(t *Tunnel) { t.Gateway = "" }), "under which address"},
		{"gateway inside the tunnel", all, static.with(func(t *Tunnel) { t.Gateway = "10.90.0.1" }), "inside the tunnel"},
		{"tunnel in itself", all, static.with(func(t *Tunnel) { t.Gateway = "192.168.10.1" }), "a tunnel in itself"},
		{"own prefix", all, static.with(func(t *Tunnel) { t.Prefixes = meshPrefixes()[1:2] }), "192.168.20.0/24 is behind the router itself"},
		{"interface", all, static.with(func(t *Tunnel) { t.Interface = "tun0; reboot" }), "no name of an openvpn interface"},
	}
	for _, test := range tests {
		for _, v := range test.versions {
			t.Run(fmt.Sprintf("%s/%v", test.name, v), func(t *testing.T) {
				r := Router{Version: v, Tunnels: []Tunnel{test.tunnel}, Prefixes: meshPrefixes()}
				out, err := r.Commands()
				expectRefusal(t, out, err, test.want)
			})
		}
	}
}

func expectRefusal(t *testing.T, out string, err error, want string) {
	t.Helper()
	refusals, ok := errors.AsType[Refusals](err)
	if !ok || !strings.Contains(err.Error(), want) {
		t.Fatalf("error %v, want a refusal with %q", err, want)
	}
	if out != "" {
		t.Errorf("commands all the same:\n%s", out)
	}
	for _, r := range refusals {
		if r.Cure == "" {
			t.Errorf("no cure for: %v", r)
		}
	}
}

func TestTwoTunnelsThatCannotBothBeAreRefused(t *testing.T) {
	first := newTunnel(conf.ModeStatic)
	secrets := &Secrets{Static: testKey(t, 7)}
	tests := []struct {
		want   string
		change func(a, b *Tunnel)
	}{
		{"both tunnels are vtun1", func(a, b *Tunnel) { b.Interface = a.Interface }},
		{"both tunnels use port 1196", func(a, b *Tunnel) { b.Remote = a.Remote }},
		{"same address on the router", func(a, b *Tunnel) { b.Tunnel.Peer = a.Tunnel.Peer }},
		{"same far address", func(a, b *Tunnel) { b.Tunnel.Local = a.Tunnel.Local }},
		{"same static key", func(a, b *Tunnel) { a.Secrets, b.Secrets = secrets, secrets }},
	}
	for _, test := range tests {
		a, b := first, first.standby()
		test.change(&a, &b)
		r := Router{Version: V14, Tunnels: []Tunnel{a, b}, Prefixes: meshPrefixes()}
		out, err := r.Commands()
		expectRefusal(t, out, err, test.want)
		out, err = r.CheckScript()
		expectRefusal(t, out, err, test.want)
	}
	r := Router{Version: V13, Tunnels: []Tunnel{first, first.standby()}, Prefixes: meshPrefixes(), BFD: true}
	out, err := r.Commands()
	expectRefusal(t, out, err, "no static routes with bfd")
}

func TestUnknownRouterPortsDoNotClash(t *testing.T) {
	a := newTunnel(conf.ModeStatic)
	a.Remote = ""
	b := a.standby()
	b.Remote = ""
	out := commands(t, Router{Version: V14, Tunnels: []Tunnel{a, b}, Prefixes: meshPrefixes()})
	for _, want := range []string{"vtun1 local-port '1195'", "vtun2 local-port '1196'", "vtun2 remote-port '1195'"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSecretsAreShownOnlyOnDemand(t *testing.T) {
	for v := V12; v <= V15; v++ {
		tunnel := newTunnel(conf.ModeStatic)
		r := Router{Version: v, Tunnels: []Tunnel{tunnel}, Prefixes: meshPrefixes()}
		key := testKey(t, 9)
		secret := digits(key)
		if len(secret) != 512 {
			t.Fatalf("%d digits", len(secret))
		}
		plain := commands(t, r)
		if strings.Contains(strings.ReplaceAll(plain, "\n", ""), secret[:32]) {
			t.Errorf("%v: the key is shown unasked", v)
		}
		r.Tunnels[0].Secrets = &Secrets{Static: key}
		if shown := commands(t, r); !strings.Contains(strings.ReplaceAll(shown, "\n", ""), secret) {
			t.Errorf("%v: no key in\n%s", v, shown)
		}
		if text := fmt.Sprintf("%v %+v %x", *r.Tunnels[0].Secrets, r.Tunnels[0].Secrets, r.Tunnels[0].Secrets); text != "[redacted] [redacted] [redacted]" {
			t.Errorf("secrets print as %q", text)
		}
	}
}

func TestWarningsNameWhatShouldNotStay(t *testing.T) {
	a := newTunnel(conf.ModeStatic)
	a.Cipher, a.Auth = openvpn.CipherBlowfishCBC, openvpn.DigestMD5
	b := a.standby()
	b.Priority, b.Prefixes = 0, nil
	r := Router{Version: V13, Tunnels: []Tunnel{a, b}}
	got := strings.Join(r.Warnings(), "\n")
	for _, want := range []string{"r30a: static keys have no forward secrecy", "r30b: cipher BF-CBC", "digest MD5", "the same priority 0", "do not announce the same prefixes"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	r.Tunnels[0].Priority = 30
	if got := strings.Join(r.Warnings(), "\n"); !strings.Contains(got, "the mesh prefers r30b (priority 0)") {
		t.Errorf("nothing about the order in\n%s", got)
	}
	good := newTunnel(conf.ModeTLSServer)
	good.Cipher = ""
	if got := (&Router{Version: V14, Tunnels: []Tunnel{good}}).Warnings(); len(got) > 0 {
		t.Errorf("warnings about a good tunnel: %q", got)
	}
}

func TestVersionsAreRead(t *testing.T) {
	for text, want := range map[string]Version{"1.2": V12, "1.3.4": V13, "1.4": V14, "1.5": V15} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "1.1", "1.6", "1.40", "2.4", "latest"} {
		if v, err := ParseVersion(text); err == nil {
			t.Errorf("%q is %v", text, v)
		}
	}
}
