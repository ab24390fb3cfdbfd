package conf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

func TestEverySettingOfAnAttachmentIsRead(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "openvpn.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("/etc/meshd/meshd.yaml", b)
	if err != nil {
		t.Fatal(err)
	}
	var fingerprint openvpn.Fingerprint
	for i := range fingerprint {
		fingerprint[i] = byte(i + 1)
	}
	want := []OpenVPN{{
		Name: "r30a", Mode: ModeStatic, Listen: netip.MustParseAddrPort("0.0.0.0:1195"), Remote: "10.4.0.92:1195", Float: true,
		Device: "ovpn-r30a",
		Tunnel: Tunnel{
			Local: netip.MustParseAddr("10.90.0.1"), Peer: netip.MustParseAddr("10.90.0.2"),
			Local6: netip.MustParseAddr("fd90::1"), Peer6: netip.MustParseAddr("fd90::2"), MTU: 1400,
		},
		Key: "/etc/meshd/keys/r30a.key", KeyDirection: openvpn.Direction1, Cipher: openvpn.CipherAES256CBC, Auth: openvpn.DigestSHA256,
		Compression: openvpn.FramingLZO, Fragment: 1300,
		Ping: 5 * time.Second, PingRestart: 30 * time.Second, Renegotiate: time.Hour, ExitNotify: true,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.30.0/24"), netip.MustParsePrefix("2001:db8:30::/64")}, Priority: 10,
	}, {
		Name: "r40", Mode: ModeTLSServer, Transport: openvpn.TCPConnect, Remote: "router40.example.org:443", Device: "ov-r40",
		Tunnel: Tunnel{Local6: netip.MustParseAddr("fd90::5"), Peer6: netip.MustParseAddr("fd90::6"), MTU: 1500},
		Cipher: openvpn.CipherAES128CBC, DataCiphers: []openvpn.Cipher{openvpn.CipherAES256GCM, openvpn.CipherChaCha20Poly1305},
		Auth: openvpn.DigestSHA1, Compression: openvpn.FramingStubV2,
		TLS: &TLS{
			Cert: "/etc/meshd/gw.crt", Key: "/etc/meshd/gw.pem", CA: "/etc/meshd/ca.crt", PeerFingerprints: []openvpn.Fingerprint{fingerprint},
			Subject: "CN=router40", Wrap: openvpn.WrapAuth, WrapKey: "/etc/meshd/ta.key", WrapDirection: openvpn.Direction0, MinVersion: tls.VersionTLS13,
		},
		Ping: 10 * time.Second, PingRestart: time.Minute, Renegotiate: 10 * time.Second,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.40.0/24")},
	}, {
		Name: "a-very.long_one", Mode: ModeStatic, Listen: netip.AddrPortFrom(netip.Addr{}, 1197), Device: "ov-a-very.long_",
		Tunnel: Tunnel{Local: netip.MustParseAddr("10.90.0.9"), Peer: netip.MustParseAddr("10.90.0.10"), MTU: 1500},
		Key:    "/etc/meshd/c.key", Cipher: openvpn.CipherBlowfishCBC, Auth: openvpn.DigestSHA1,
		Ping: 10 * time.Second, PingRestart: time.Minute, Renegotiate: time.Hour,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24")},
	}}
	if diff := cmp.Diff(want, got.OpenVPN, equal); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
}

func TestAllFaultsOfAttachmentsAreReported(t *testing.T) {
	path := filepath.Join("testdata", "openvpn-faults.yaml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("meshd.yaml", b)
	if err == nil {
		t.Fatal("a file full of faults has none")
	}
	golden := filepath.Join("testdata", "openvpn-faults.golden")
	got := err.Error() + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestAttachmentsNeedATunDevice(t *testing.T) {
	_, err := Parse("f", []byte("device: none\nopenvpn:\n- {name: a, mode: static, listen: ':1', tunnel: {local: 10.0.0.1, peer: 10.0.0.2}, key: k, cipher: BF-CBC, prefixes: [10.1.0.0/16]}\n"))
	if want := "f:3: openvpn: does not work with device: none; want device: tun, or no attachments"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// newKeyDir makes a directory with key files of every kind.
func newKeyDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("static.key", 0o600, openvpn.GenerateStaticKey().Encode())
	write("open.key", 0o644, openvpn.GenerateStaticKey().Encode())
	write("garbage.key", 0o600, []byte("garbage\n"))
	write("large.key", 0o600, make([]byte, maxKeyFile+1))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	write("gw.crt", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write("broken.crt", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der[:len(der)-9]}))
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write("gw.pem", 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	write("open.pem", 0o640, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return dir
}

func loadText(t *testing.T, dir, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(dir, "meshd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

const (
	staticEntry = "openvpn:\n- {name: a, mode: static, listen: ':1195', tunnel: {local: 10.0.0.1, peer: 10.0.0.2}, key: %s, cipher: %s, prefixes: [10.1.0.0/16]}\n"
	tlsEntry    = "openvpn:\n- {name: a, mode: tls-server, listen: ':1195', tunnel: {local: 10.0.0.1, peer: 10.0.0.2}, prefixes: [10.1.0.0/16], renegotiate: 0s,\n" +
		"   tls: {cert: %s, key: %s, ca: %s, wrap: tls-crypt, wrapKey: %s, subject: '%s'}}\n"
)

func TestKeyFilesBecomeAnEndpoint(t *testing.T) {
	dir := newKeyDir(t)
	for _, text := range []string{
		fmt.Sprintf(staticEntry, "static.key", "AES-256-CBC"),
		fmt.Sprintf(staticEntry, "static.key", "none"),
		fmt.Sprintf(tlsEntry, "gw.crt", "gw.pem", "gw.crt", "static.key", "CN=router30"),
		fmt.Sprintf(tlsEntry, "gw.crt", "gw.pem", "gw.crt", "static.key", "CN=router30,O=Example"),
	} {
		c, err := loadText(t, dir, text)
		if err != nil {
			t.Fatal(err)
		}
		endpoint := c.OpenVPN[0].Endpoint()
		endpoint.Device = nullDevice{}
		if err := endpoint.Validate(); err != nil {
			t.Errorf("%s: what passed the check is refused later: %v", text, err)
		}
		if tls := endpoint.TLS; tls != nil {
			if tls.Role != openvpn.TLSServer || !tls.PeerUsage || tls.RenegInterval >= 0 || (tls.PeerName == "router30") == strings.Contains(text, "O=") {
				t.Errorf("%s: became %+v", text, tls)
			}
		}
		if shown := fmt.Sprintf("%v %+v", c.OpenVPN[0].Keys, c.OpenVPN[0].Keys); shown != "[redacted] [redacted]" {
			t.Errorf("keys print as %q", shown)
		}
	}
}

type nullDevice struct{ openvpn.Device }

func TestKeysDifferWithTheContentOfTheirFile(t *testing.T) {
	dir := newKeyDir(t)
	text := fmt.Sprintf(staticEntry, "static.key", "AES-256-CBC")
	load := func() Keys {
		c, err := loadText(t, dir, text)
		if err != nil {
			t.Fatal(err)
		}
		return c.OpenVPN[0].Keys
	}
	a, again := load(), load()
	if err := os.WriteFile(filepath.Join(dir, "static.key"), openvpn.GenerateStaticKey().Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if b := load(); !a.Equal(again) || a.Equal(b) {
		t.Errorf("same file equal: %v, want true; other key equal: %v, want false", a.Equal(again), a.Equal(b))
	}
}

func TestUnusableKeyFilesAreFaults(t *testing.T) {
	dir := newKeyDir(t)
	const wantPath = "; want the path of a file, absolute or from the directory of this configuration"
	for _, tt := range []struct{ name, text, want string }{
		{"missing", fmt.Sprintf(staticEntry, "none.key", "BF-CBC"), "meshd.yaml:2: openvpn[0].key: none.key: no such file or directory" + wantPath},
		{"readable by others", fmt.Sprintf(staticEntry, "open.key", "BF-CBC"), "meshd.yaml:2: openvpn[0].key: open.key: mode 0644 lets others at the key; want mode 0600: chmod 600 open.key"},
		{"directory", fmt.Sprintf(staticEntry, ".", "BF-CBC"), "meshd.yaml:2: openvpn[0].key: .: is no regular file" + wantPath},
		{"huge", fmt.Sprintf(staticEntry, "large.key", "BF-CBC"), "meshd.yaml:2: openvpn[0].key: large.key: is larger than 65536 bytes; want a key file"},
		{
			"garbage", fmt.Sprintf(staticEntry, "garbage.key", "BF-CBC"),
			`meshd.yaml:2: openvpn[0].key: garbage.key: parse static key: no line "-----BEGIN OpenVPN Static key V1-----"; want the file that openvpn --genkey makes`,
		},
		{
			"all of the tls files", fmt.Sprintf(tlsEntry, "broken.crt", "gw.pem", "gw.pem", "open.key", "CN=x"),
			"meshd.yaml:3: openvpn[0].tls.cert: broken.crt with gw.pem: x509: malformed certificate; want a certificate in PEM form and its private key\n" +
				"meshd.yaml:3: openvpn[0].tls.ca: gw.pem: no certificate in it; want certificates in PEM form\n" +
				"meshd.yaml:3: openvpn[0].tls.wrapKey: open.key: mode 0644 lets others at the key; want mode 0600: chmod 600 open.key",
		},
		{
			"private key readable by its group", fmt.Sprintf(tlsEntry, "gw.crt", "open.pem", "broken.crt", "static.key", "CN=x"),
			"meshd.yaml:3: openvpn[0].tls.key: open.pem: mode 0640 lets others at the key; want mode 0600: chmod 600 open.pem\n" +
				"meshd.yaml:3: openvpn[0].tls.ca: broken.crt: certificate 1: x509: malformed certificate; want certificates in PEM form",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loadText(t, dir, tt.text)
			if err == nil {
				t.Fatal("no fault")
			}
			got := strings.ReplaceAll(strings.ReplaceAll(err.Error(), dir+"/", ""), dir, ".")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}
