package attach

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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// authority signs certificates for both ends.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// issue returns a certificate and its key as PEM.
func (a *authority) issue(t *testing.T, name string, usage x509.ExtKeyUsage) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})
}

// The whole way: files, configuration, endpoint, router.
func TestRouterWithACertificateIsAttached(t *testing.T) {
	w := newWorld(t)
	ca, dir := newAuthority(t), t.TempDir()
	wrap := openvpn.GenerateStaticKey()
	cert, key := ca.issue(t, "gw", x509.ExtKeyUsageServerAuth)
	listen := freePort(t)
	for name, text := range map[string][]byte{
		"gw.crt": cert, "gw.pem": key, "ca.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), "tc.key": wrap.Encode(),
		"meshd.yaml": fmt.Appendf(nil, `announce: []
openvpn:
  - name: r40
    mode: tls-server
    listen: %v
    tunnel: {local: 10.90.4.1, peer: 10.90.4.2}
    tls: {cert: gw.crt, key: gw.pem, ca: ca.crt, subject: CN=router40, wrap: tls-crypt, wrapKey: tc.key}
    prefixes: [192.168.40.0/24]
`, listen),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := conf.Load(filepath.Join(dir, "meshd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.mustApply(t, Desired{Announce: c.Announce, OpenVPN: c.OpenVPN})

	dial := func(name string) *openvpn.Endpoint {
		cert, key := ca.issue(t, name, x509.ExtKeyUsageClientAuth)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca.cert)
		e, err := openvpn.Open(t.Context(), openvpn.Config{
			Local: freePort(t), Remote: listen.String(), Device: newFakeDevice("router"),
			TLS: &openvpn.TLS{Role: openvpn.TLSClient, Certificate: pair, CAs: pool, PeerUsage: true, Wrap: openvpn.WrapCrypt, WrapKey: wrap},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	// Somebody else's router, with a certificate of the same authority.
	stranger := dial("router50")
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for w.status("r40").Dropped["cert"] == 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("the stranger is not counted: %+v", w.status("r40"))
		}
	}
	if s := w.status("r40"); s.State != StateConnecting || w.mesh.announced() != "" {
		t.Errorf("with a stranger alone: %+v, announced %q", s, w.mesh.announced())
	}
	stranger.Close()

	dial("router40")
	w.mesh.await(t, "router", func() bool { return w.mesh.announced() == "192.168.40.0/24" })
	s := w.status("r40")
	if s.State != StateUp || s.Mode != "tls-server" || s.Cipher != "AES-256-GCM" || s.TLSVersion == "" || s.Keys == 0 {
		t.Errorf("status %+v", s)
	}
	if got := w.mesh.attachments; len(got) != 1 || got[0].ClampMTU != 1492-48-24 {
		t.Errorf("attachments %+v, want segments clamped for an AEAD cipher", got)
	}
	if text := fmt.Sprintf("%+v %v", c.OpenVPN[0], c.OpenVPN); strings.Contains(text, "PRIVATE") || !strings.Contains(text, "[redacted]") {
		t.Errorf("configuration prints as %s", text)
	}
}
