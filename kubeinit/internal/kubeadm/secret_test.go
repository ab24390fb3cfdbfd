package kubeadm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestNewSecretsHaveKubeadmsForm(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		tok, err := NewToken(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		k, err := NewCertificateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseToken(tok.Secret()); err != nil {
			t.Errorf("%s: %v", tok.Secret(), err)
		}
		if _, err := ParseCertificateKey(k.Secret()); err != nil {
			t.Errorf("%s: %v", k.Secret(), err)
		}
		if tok.ID() != tok.Secret()[:6] || seen[tok.Secret()] || seen[k.Secret()] {
			t.Errorf("token %s, key %s", tok.Secret(), k.Secret())
		}
		seen[tok.Secret()], seen[k.Secret()] = true, true
	}
}

func TestTokenUsesNoByteThatWouldFavourACharacter(t *testing.T) {
	tok, err := NewToken(bytes.NewReader(append(bytes.Repeat([]byte{255, 252, 35}, 21), 36, 251)))
	if err != nil || tok.Secret() != "zzzzzz.zzzzzzzzzzzzzzz0" {
		t.Errorf("%s, %v", tok.Secret(), err)
	}
}

func TestSecretsNeedRandomness(t *testing.T) {
	broken := iotest.ErrReader(fmt.Errorf("no entropy"))
	if _, err := NewToken(broken); err == nil {
		t.Error("token without randomness")
	}
	if _, err := NewCertificateKey(broken); err == nil {
		t.Error("key without randomness")
	}
}

func TestSecretsOfAnotherFormAreRefusedUnseen(t *testing.T) {
	for _, text := range []string{"", "abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde", "abcdef.0123456789abcdef\n", "abcdef-0123456789abcdef"} {
		if _, err := ParseToken(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("token %q: %v", text, err)
		}
	}
	for _, text := range []string{"", strings.Repeat("0", 63), strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if _, err := ParseCertificateKey(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("key %q: %v", text, err)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	var b strings.Builder
	d := Discovery{Token: token, CAHash: caHash, Key: key}
	fmt.Fprintf(&b, "%v %+v %#v %s %q %x %+v %v", token, token, token, key, key, key, d, &d)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("joined", "token", token, "key", key)
	text := b.String()
	for _, secret := range []string{token.Secret()[7:], key.Secret(), hex.EncodeToString([]byte(key.Secret()))} {
		if strings.Contains(text, secret) {
			t.Errorf("shows a secret: %s", text)
		}
	}
}

func newCA(t testing.TB, ca bool) ([]byte, *x509.Certificate) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(4e9, 0), IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert
}

func TestCAHashIsOfTheFirstCertificatesKey(t *testing.T) {
	crt, cert := newCA(t, true)
	other, _ := newCA(t, true)
	spki, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("sha256:%x", sha256.Sum256(spki))
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{1}})
	for _, file := range [][]byte{crt, append(params, crt...), append(bytes.Clone(crt), other...)} {
		if got, err := CAHash(file); err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
	if err := checkCAHash(want); err != nil {
		t.Error(err)
	}
}

func TestCAHashRefusesWhatIsNoAuthority(t *testing.T) {
	leaf, _ := newCA(t, false)
	for _, file := range [][]byte{nil, []byte("x"), leaf, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})} {
		if got, err := CAHash(file); err == nil {
			t.Errorf("%q has hash %s", file, got)
		}
	}
}

func FuzzCAHash(f *testing.F) {
	crt, _ := newCA(f, true)
	f.Add(crt)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if got, err := CAHash(file); err == nil && checkCAHash(got) != nil {
			t.Errorf("hash %q", got)
		}
	})
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"v1.34.4\n":            {34, 4, ""},
		"Kubernetes v1.37.2\n": {37, 2, ""},
		"v1.38.0-rc.1":         {38, 0, "rc.1"},
		"v1.36.1+k3s1":         {36, 1, ""},
	} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1.34.4", "v1.34", "v2.0.0", "v1.034.1", "v1.34.4 x", "v1.99999.0", "v1.34.4\nv1.35.0"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("v1.34.4")
	f.Add("Kubernetes v1.38.0-rc.1+x")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVersion(text)
		if err != nil {
			return
		}
		if again, err := ParseVersion(v.String()); err != nil || again != v {
			t.Errorf("%q: %v, then %v, %v", text, v, again, err)
		}
	})
}

func TestPauseImageFollowsKubeadm(t *testing.T) {
	for minor, want := range map[int]string{34: "3.10.1", 35: "3.10.1", 36: "3.10.2", 37: "3.10.2"} {
		if got := PauseImage(Version{Minor: minor}, ""); got != "registry.k8s.io/pause:"+want {
			t.Errorf("1.%d: %s", minor, got)
		}
		if got := PauseImage(Version{Minor: minor}, "kl.local/k8s"); got != "kl.local/k8s/pause:"+want {
			t.Errorf("1.%d: %s", minor, got)
		}
	}
}
