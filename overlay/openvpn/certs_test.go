package openvpn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// testCert is a certificate with its key and that of its issuer.
type testCert struct {
	cert *x509.Certificate
	key  crypto.Signer
	up   *testCert // nil: self-signed
}

type certSpec struct {
	name    string
	issuer  *testCert
	ca      bool
	usages  []x509.ExtKeyUsage
	expired bool
	rsaBits int // 0: ECDSA
}

var (
	usageServer = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	usageClient = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
)

func mustCert(t testing.TB, spec certSpec) *testCert {
	t.Helper()
	var key crypto.Signer
	var err error
	if spec.rsaBits > 0 {
		key, err = rsa.GenerateKey(rand.Reader, spec.rsaBits)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	// Real time and the time of synctest bubbles, which begins in 2000.
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: spec.name, Organization: []string{"test"}},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: spec.usages, BasicConstraintsValid: true, IsCA: spec.ca,
	}
	if spec.ca {
		tmpl.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if spec.expired {
		tmpl.NotAfter = time.Date(1999, 6, 1, 0, 0, 0, 0, time.UTC)
	}
	parent, signer := tmpl, key
	if spec.issuer != nil {
		parent, signer = spec.issuer.cert, spec.issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCert{cert: cert, key: key, up: spec.issuer}
}

// chain is the certificate with its intermediates, as a Config has it.
func (c *testCert) chain() tls.Certificate {
	out := tls.Certificate{PrivateKey: c.key}
	for at := c; at != nil && (at == c || at.up != nil); at = at.up {
		out.Certificate = append(out.Certificate, at.cert.Raw)
	}
	return out
}

func (c *testCert) fingerprint() Fingerprint { return sha256.Sum256(c.cert.Raw) }

func (c *testCert) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// pem returns the chain without the root, and the key, as files.
func (c *testCert) pem(t testing.TB) (certs, key []byte) {
	t.Helper()
	for _, der := range c.chain().Certificate {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return certs, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// rootPEM returns the certificate alone as a file.
func (c *testCert) rootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}
