package vyos

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// report is what an import gave, for golden files.
func report(im *Imported) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version %v, tunnels %v\n\n%s\n", im.Version, im.Tunnels, im.Config)
	for _, f := range im.Files {
		fmt.Fprintf(&b, "file %v: %d bytes\n", f, len(f.Data))
	}
	for _, m := range im.Missing {
		fmt.Fprintf(&b, "missing %s: %s\n", m.Name, m.From)
	}
	for _, w := range im.Warnings {
		fmt.Fprintf(&b, "%d: %s", w.Line, w.Text)
		if w.Cure != "" {
			fmt.Fprintf(&b, " [%s]", w.Cure)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestRoutersAreImported(t *testing.T) {
	for _, name := range []string{"router-1.2", "router-1.3"} {
		text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		im, err := Import(string(text), ImportOptions{})
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, report(im))
			continue
		}
		if _, err := conf.Parse("meshd.yaml", im.Config); err != nil {
			t.Errorf("%s: meshd would not read it: %v", name, err)
		}
		golden(t, name+".golden", report(im))
	}
}

// newCertificate is a self-signed certificate in DER form.
func newCertificate(t testing.TB, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "r30"}, NotBefore: end.AddDate(-1, 0, 0), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// attachment compares what both ends must agree about.
var attachment = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreFields(conf.OpenVPN{}, "Device", "Key", "Keys", "DataCiphers", "Priority", "Float"),
	cmpopts.IgnoreFields(conf.TLS{}, "Cert", "Key", "CA", "WrapKey"),
}

// importOne imports a text and returns its attachment in force.
func importOne(t *testing.T, text string, o ImportOptions) (conf.OpenVPN, *Imported) {
	t.Helper()
	im, err := Import(text, o)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, text, report(im))
	}
	c, err := conf.Parse("meshd.yaml", im.Config)
	if err != nil {
		t.Fatalf("%v\n%s", err, im.Config)
	}
	if len(c.OpenVPN) != 1 {
		t.Fatalf("%d attachments", len(c.OpenVPN))
	}
	return c.OpenVPN[0], im
}

func TestRenderedCommandsImportAsTheSameAttachment(t *testing.T) {
	der := newCertificate(t, time.Now().AddDate(1, 0, 0))
	static, server, client := newTunnel(conf.ModeStatic), newTunnel(conf.ModeTLSServer), newTunnel(conf.ModeTLSClient)
	tests := []struct {
		name   string
		tunnel Tunnel
		from   Version
	}{
		{"static", static, V12},
		{"static over tcp", static.overTCP(), V12},
		{"other settings", static.with(func(t *Tunnel) {
			t.Cipher, t.Auth, t.Compression = openvpn.CipherTripleDESCBC, openvpn.DigestMD5, openvpn.FramingLZO
			t.Fragment, t.Tunnel.MTU, t.Ping, t.PingRestart, t.Listen = 1300, 1400, 5*time.Second, 20*time.Second, netip.MustParseAddrPort("0.0.0.0:443")
		}), V12},
		{"blowfish", static.with(func(t *Tunnel) { t.Cipher = openvpn.CipherBlowfishCBC }), V12},
		{"learnt peer", static.with(func(t *Tunnel) { t.Remote = "" }), V12},
		{"ipv6", static.with(addIPv6), V13},
		{"ipv6 alone", static.with(func(t *Tunnel) {
			addIPv6(t)
			t.Tunnel.Local, t.Tunnel.Peer, t.Gateway = netip.Addr{}, netip.Addr{}, "2001:db8::1"
		}), V13},
		{"stub", static.with(func(t *Tunnel) { t.Compression = openvpn.FramingStub }), V13},
		{"stub-v2", static.with(func(t *Tunnel) { t.Compression = openvpn.FramingStubV2 }), V13},
		{"tls-server", server, V12},
		{"tls-server over tcp", server.overTCP(), V12},
		{"tls-client", client, V12},
		{"tls-client over tcp", client.overTCP(), V12},
		{"gcm", server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherAES128GCM }), V13},
		{"tls-crypt", server.with(func(t *Tunnel) { t.TLS.Wrap, t.TLS.WrapKey = openvpn.WrapCrypt, "tc.key" }), V13},
		{"negotiated", server.with(func(t *Tunnel) { t.Cipher = openvpn.CipherAES256GCM; t.TLS.MinVersion = 0x0304 }), V14},
	}
	for _, test := range tests {
		for v := test.from; v <= V15; v++ {
			if v == V15 && test.tunnel.Cipher == openvpn.CipherBlowfishCBC {
				continue
			}
			t.Run(fmt.Sprintf("%s/%v", test.name, v), func(t *testing.T) {
				tunnel := test.tunnel.with(func(tunnel *Tunnel) {
					tunnel.Secrets = &Secrets{Static: testKey(t, 1), Wrap: testKey(t, 2)}
				})
				text := commands(t, Router{Version: v, Tunnels: []Tunnel{tunnel}, Prefixes: meshPrefixes()})
				text += fmt.Sprintf("set pki certificate meshd-vtun1 certificate '%s'\n", base64.StdEncoding.EncodeToString(der))
				o := ImportOptions{Version: v, Prefixes: tunnel.Prefixes}
				if tunnel.Remote != "" {
					o.Router = "203.0.113.11"
				}
				got, im := importOne(t, text, o)
				expectSame(t, tunnel, got, v, der)
				if v.hasPKI() && tunnel.Mode == conf.ModeStatic {
					expectFile(t, im, "r30a.key", string(testKey(t, 1).Encode()))
				}
				if v.hasPKI() && tunnel.TLS != nil && tunnel.TLS.Wrap != openvpn.WrapNone {
					expectFile(t, im, "r30a-crypt.key", string(testKey(t, 2).Encode()))
				}
			})
		}
	}
}

func expectSame(t *testing.T, tunnel Tunnel, got conf.OpenVPN, v Version, der []byte) {
	t.Helper()
	want := tunnel.with(func(*Tunnel) {}).OpenVPN
	if want.Transport != openvpn.TCPConnect {
		want.Listen = netip.AddrPortFrom(netip.Addr{}, want.Listen.Port()) // a router does not know the gateway's own addresses
	}
	if want.Transport == openvpn.TCPListen {
		want.Remote = "" // the port of a router that connects is a free one
	}
	if want.TLS != nil {
		want.TLS.PeerFingerprints = nil
		if v.hasPKI() {
			want.TLS.PeerFingerprints = []openvpn.Fingerprint{sha256.Sum256(der)}
		} else {
			want.TLS.MinVersion = 0x0303
		}
	}
	if diff := cmp.Diff(want, got, attachment); diff != "" {
		t.Errorf("attachment (-was +imported):\n%s", diff)
	}
}

func expectFile(t *testing.T, im *Imported, name, data string) {
	t.Helper()
	for _, f := range im.Files {
		if f.Name == name {
			if string(f.Data) != data {
				t.Errorf("%s has other data", name)
			}
			return
		}
	}
	t.Errorf("no file %s in %v", name, im.Files)
}

func TestVersionIsToldFromTheCommands(t *testing.T) {
	for v := V12; v <= V15; v++ {
		text := commands(t, Router{Version: v, Tunnels: []Tunnel{newTunnel(conf.ModeTLSServer)}, Prefixes: meshPrefixes()})
		im, _ := Import(text, ImportOptions{Prefixes: newTunnel(conf.ModeStatic).Prefixes})
		if im.Version != v {
			t.Errorf("commands of %v are taken for %v", v, im.Version)
		}
	}
}

// base is a tunnel of 1.4 without flaws, by setting.
func base() map[string]string {
	return map[string]string{
		"mode": "site-to-site", "protocol": "udp", "persistent-tunnel": "", "local-address": "10.0.0.2", "remote-address": "10.0.0.1",
		"local-port": "1195", "remote-port": "1195", "remote-host": "198.51.100.10", "shared-secret-key": "k", "encryption cipher": "aes256",
	}
}

func text(settings map[string]string, more ...string) string {
	var b strings.Builder
	for key, value := range settings {
		fmt.Fprintf(&b, "set interfaces openvpn vtun1 %s %s\n", key, value)
	}
	for _, line := range more {
		b.WriteString(line + "\n")
	}
	return b.String()
}

func TestEveryPitfallIsNamed(t *testing.T) {
	old, good := newCertificate(t, time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)), newCertificate(t, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC))
	tls := func(s map[string]string) {
		delete(s, "shared-secret-key")
		delete(s, "encryption cipher")
		s["tls role"], s["tls certificate"] = "active", "r"
	}
	certificate := func(der []byte) string {
		return "set pki certificate r certificate '" + base64.StdEncoding.EncodeToString(der) + "'"
	}
	key := "set pki openvpn shared-secret k key '" + digits(testKey(t, 1)) + "'"
	tests := []struct {
		name    string
		version Version
		change  func(map[string]string)
		more    []string
		want    string // a warning; empty means none at all
		taken   bool
	}{
		{"nothing", V14, func(map[string]string) {}, []string{key}, "", true},
		{"failure count in seconds", V14, func(s map[string]string) { s["keep-alive failure-count"] = "6" }, []string{key}, "restarts after 6 s", true},
		{"failure count on 1.2", V12, func(s map[string]string) { s["keep-alive failure-count"] = "6" }, []string{key}, "", true},
		{"keepalive off", V14, func(s map[string]string) { s["keep-alive interval"] = "0" }, []string{key}, "keepalive is off", true},
		{"bf256 of 24 bits", V13, func(s map[string]string) { s["encryption cipher"] = "bf256" }, []string{key}, "key of 24 bits", false},
		{"bf256 on 1.2", V12, func(s map[string]string) { s["encryption cipher"] = "bf256" }, []string{key}, "128 bits only", false},
		{"bf128 on 1.4", V14, func(s map[string]string) { s["encryption cipher"] = "bf128" }, []string{key}, "does not start with cipher bf128", false},
		{"bf128 on 1.5", V15, func(s map[string]string) { s["encryption cipher"] = "bf128" }, []string{key}, "has no cipher bf128", false},
		{"bf128 on 1.3", V13, func(s map[string]string) { s["encryption cipher"] = "bf128" }, []string{key}, "breakable", true},
		{"no cipher on 1.5", V15, func(s map[string]string) { delete(s, "encryption cipher") }, []string{key}, "does not start a static key without a cipher", false},
		{"no cipher on 1.4", V14, func(s map[string]string) { delete(s, "encryption cipher") }, []string{key}, "BF-CBC", true},
		{"des", V13, func(s map[string]string) { s["encryption cipher"] = "des" }, []string{key}, "des is broken", false},
		{"gcm with a static key", V14, func(s map[string]string) { s["encryption cipher"] = "aes256gcm" }, []string{key}, "does not work with a static key", false},
		{"no encryption", V14, func(s map[string]string) { s["encryption cipher"] = "none" }, []string{key}, "in clear", true},
		{"auth-key", V14, func(s map[string]string) { tls(s); s["tls auth-key"] = "k" }, []string{key, certificate(good)}, "not used in site-to-site", true},
		{"cbc with tls", V14, func(s map[string]string) { tls(s); s["encryption cipher"] = "aes256" }, []string{certificate(good)}, "negotiates", true},
		{"no cipher with tls on 1.3", V13, tls, []string{certificate(good)}, "BF-CBC", true},
		{"no role", V14, func(s map[string]string) { tls(s); delete(s, "tls role") }, []string{certificate(good)}, "tls without a role", false},
		{"tls without flaw", V14, tls, []string{certificate(good)}, "", true},
		{"expired with fingerprint", V14, tls, []string{certificate(old)}, "ended on 2020-01-01; with fingerprints that does not matter", true},
		{"expired with authority", V14, func(s map[string]string) { tls(s); s["tls ca-certificate"] = "c" }, []string{certificate(old), strings.Replace(certificate(good), "certificate r", "ca c", 1)}, "the gateway refuses it", true},
		{"no certificate", V14, tls, nil, "could not know the router", false},
		{"garbled certificate", V14, tls, []string{"set pki certificate r certificate AAAA"}, "is not one", false},
		{"tls 1.0", V14, func(s map[string]string) { tls(s); s["tls tls-version-min"] = "1.0" }, []string{certificate(good)}, "tls 1.0 is permitted", true},
		{"static on 1.5", V15, func(map[string]string) {}, []string{key}, "openvpn 2.7", true},
		{"lzo", V14, func(s map[string]string) { s["use-lzo-compression"] = "" }, []string{key}, "compression lzo", true},
		{"lz4", V14, func(s map[string]string) { s["openvpn-option"] = "'--compress lz4'" }, []string{key}, "compression lz4 is not supported", false},
		{"own mtu", V14, func(s map[string]string) { s["openvpn-option"] = `"tun-mtu 1400"` }, []string{key}, "tun-mtu 1400", true},
		{"option by hand", V13, func(s map[string]string) { s["openvpn-option"] = "--float" }, []string{key}, "restart by hand", true},
		{"unknown option", V14, func(s map[string]string) { s["openvpn-option"] = "'--replay-window 128'" }, []string{key}, "replay-window is not known", true},
		{"name of a host", V14, func(s map[string]string) { s["remote-host"] = "hq.example.org" }, []string{key}, "looked up at a restart only", true},
		{"nobody speaks", V14, func(s map[string]string) { delete(s, "remote-host") }, []string{key}, "neither would speak", false},
		{"nowhere to connect to", V14, func(s map[string]string) { s["protocol"] = "tcp-passive"; delete(s, "remote-host") }, []string{key}, "--router", false},
		{"private address", V14, func(s map[string]string) { s["local-host"] = "192.168.1.2" }, []string{key}, "is private", true},
		{"no persistent tunnel", V14, func(s map[string]string) { delete(s, "persistent-tunnel") }, []string{key}, "disappears at every restart", true},
		{"firewall", V13, func(s map[string]string) { s["firewall in name"] = "MESH" }, []string{key}, "a firewall is bound", true},
		{"tap", V14, func(s map[string]string) { s["device-type"] = "tap" }, []string{key}, "carries Ethernet", false},
		{"no key", V14, func(map[string]string) {}, nil, "shared-secret k key is not in the file", true},
		{"garbled key", V14, func(map[string]string) {}, []string{"set pki openvpn shared-secret k key 5ec4e7"}, "is no static key", false},
		{"same key and port", V14, func(map[string]string) {}, []string{key, "set interfaces openvpn vtun2 shared-secret-key k", "set interfaces openvpn vtun2 local-port 1195", "set interfaces openvpn vtun2 protocol udp"}, "vtun2 has the key of vtun1", true},
		{"open quote", V14, func(map[string]string) {}, []string{key, "set interfaces openvpn vtun1 description 'oops"}, "a quote is not closed", true},
		{"wrong addresses", V14, func(s map[string]string) { s["remote-address"] = "10.0.0.2" }, []string{key}, "is local too", false},
		{"no addresses", V14, func(s map[string]string) { delete(s, "remote-address") }, []string{key}, "tunnel", false},
		{"wrong port", V14, func(s map[string]string) { s["local-port"] = "70000" }, []string{key}, "is no port", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			settings := base()
			test.change(settings)
			im, err := Import(text(settings, test.more...), ImportOptions{
				Version: test.version, Prefixes: newTunnel(conf.ModeStatic).Prefixes, Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
			})
			if taken := err == nil; taken != test.taken || err != nil && !errors.Is(err, ErrNoTunnels) {
				t.Errorf("taken over: %v (%v), want %v", taken, err, test.taken)
			}
			all := report(im)
			if test.want == "" && len(im.Warnings) > 0 {
				t.Errorf("warnings about nothing:\n%s", all)
			}
			found := test.want == ""
			for _, w := range im.Warnings {
				if strings.Contains(w.Text+" "+w.Cure, test.want) && w.Line > 0 {
					found = true
				}
			}
			if !found {
				t.Errorf("no warning with %q and a line in\n%s", test.want, all)
			}
		})
	}
}

func TestFlappingRouterIsPingedMoreOften(t *testing.T) {
	settings := base()
	settings["keep-alive failure-count"] = "6"
	got, _ := importOne(t, text(settings), ImportOptions{Version: V13, Prefixes: newTunnel(conf.ModeStatic).Prefixes})
	if got.Ping != 2*time.Second || got.PingRestart != 6*time.Second {
		t.Errorf("ping %v, restart %v", got.Ping, got.PingRestart)
	}
}

func TestPrefixesAreGuessedFromPrivateNetworksBehind(t *testing.T) {
	lines := []string{
		"set interfaces ethernet eth0 address 192.168.1.2/24", "set protocols static route 0.0.0.0/0 next-hop 192.168.1.1",
		"set interfaces ethernet eth1 address 203.0.113.11/24", "set interfaces ethernet eth2 address dhcp", "set interfaces ethernet eth2 address 10.9.0.1/32",
		"set interfaces bonding bond0 vif 30 address 10.30.0.1/16", "set interfaces bonding bond0 vif 31 address 10.30.5.1/24",
		"set interfaces bridge br0 address fd30::1/64", "set interfaces wireguard wg0 address 10.99.0.1/24",
	}
	got, _ := importOne(t, text(base(), lines...), ImportOptions{Version: V14})
	if want := "10.30.0.0/16 fd30::/64"; joinPrefixes(got.Prefixes) != want {
		t.Errorf("prefixes %s, want %s", joinPrefixes(got.Prefixes), want)
	}
	got, _ = importOne(t, text(base(), lines...), ImportOptions{Version: V14, Prefixes: meshPrefixes()[:1]})
	if want := "192.168.10.0/24"; joinPrefixes(got.Prefixes) != want {
		t.Errorf("prefixes %s, want the given %s", joinPrefixes(got.Prefixes), want)
	}
	if _, err := Import(text(base()), ImportOptions{Version: V14}); !errors.Is(err, ErrNoTunnels) {
		t.Errorf("%v without any prefix", err)
	}
}

func TestSecretsStandInFilesAlone(t *testing.T) {
	secret := digits(testKey(t, 1))
	for _, key := range []string{secret, secret[:300]} {
		im, _ := Import(text(base(), "set pki openvpn shared-secret k key "+key, "set interfaces openvpn vtun1 openvpn-option '--secret "+key+"'"), ImportOptions{Version: V14, Prefixes: meshPrefixes()[:1]})
		if all := report(im) + fmt.Sprintf("%v %+v", *im, im.Files); strings.Contains(all, secret[:20]) {
			t.Errorf("the key is in\n%s", all)
		}
	}
}

func TestTextWithoutTunnelsIsRefused(t *testing.T) {
	for _, text := range []string{"", "\x00\xff", "interfaces {\n    openvpn vtun1 {\n        mode site-to-site\n    }\n}\n", "settle\nset\nset \n"} {
		if im, err := Import(text, ImportOptions{}); !errors.Is(err, ErrNoCommands) || len(im.Config) > 0 {
			t.Errorf("%q: %v", text, err)
		}
	}
	if im, err := Import("set system host-name r30\n", ImportOptions{}); !errors.Is(err, ErrNoTunnels) || len(im.Config) > 0 {
		t.Errorf("%v", err)
	}
}

func TestHostileNamesStayInTheirPlace(t *testing.T) {
	settings := base()
	settings["description"] = "'meshd ../../etc/x'"
	got, im := importOne(t, text(settings, "set pki openvpn shared-secret k key "+digits(testKey(t, 1)),
		`set interfaces openvpn "vtun2\n- name: evil" mode site-to-site`, "set interfaces openvpn ../../tmp/x mode site-to-site"), ImportOptions{Version: V14, Prefixes: meshPrefixes()[:1]})
	if got.Name != "vtun1" || len(im.Files) != 1 || im.Files[0].Name != "vtun1.key" {
		t.Errorf("name %q, files %v", got.Name, im.Files)
	}
}

func TestLinesAreSplitAsAShellDoes(t *testing.T) {
	tests := map[string]string{
		"a b  c":                 "[a b c]",
		`a 'b c' ''`:             "[a b c ]",
		`a 'it'\''s'`:            "[a it's]",
		`a "b \" 'c'"`:           `[a b " 'c']`,
		`a\ b`:                   "[a b]",
		"a # b":                  "[a]",
		"a#b":                    "[a#b]",
		"'a":                     "a quote is not closed",
		strings.Repeat("a ", 40): "the line has more words than any command",
	}
	for line, want := range tests {
		words, problem := split(line)
		got := fmt.Sprint(words)
		if problem != "" {
			got = problem
		}
		if got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

func FuzzImport(f *testing.F) {
	for _, name := range []string{"router-1.2.txt", "router-1.3.txt"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(text(base(), "set pki openvpn shared-secret k key "+digits(testKey(f, 1))))
	paths, err := filepath.Glob(filepath.Join("testdata", "1.*.txt"))
	if err != nil || len(paths) < 24 {
		f.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		im, err := Import(text, ImportOptions{Router: "203.0.113.11", Prefixes: meshPrefixes()[:1]})
		if err != nil {
			if len(im.Config) > 0 || !errors.Is(err, ErrNoCommands) && !errors.Is(err, ErrNoTunnels) {
				t.Fatalf("error %v with a configuration", err)
			}
			return
		}
		c, err := conf.Parse("meshd.yaml", im.Config)
		if err != nil || len(c.OpenVPN) != 1 {
			t.Fatalf("meshd would not read it: %v\n%s", err, im.Config)
		}
		for _, file := range im.Files {
			if filepath.Base(file.Name) != file.Name {
				t.Fatalf("file %q", file.Name)
			}
		}
	})
}
