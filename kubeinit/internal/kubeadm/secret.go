package kubeadm

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"time"
)

// tokenTTL is how long a bootstrap token works. It covers one run; later runs
// make new ones. The certificates that init uploads live as long (kubeadm's
// constant), so one does not outlast the other.
const tokenTTL = 2 * time.Hour

const redacted = "[redacted]"

// Token is a bootstrap token, with which a host may ask to become a node.
// Printing or logging one shows nothing of it. The zero Token is none.
type Token struct{ text string }

var tokenForm = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

const tokenAlphabet = "0123456789abcdefghijklmnopqrstuvwxyz"

// NewToken makes a token from a source of randomness such as crypto/rand.Reader.
func NewToken(random io.Reader) (Token, error) {
	out := make([]byte, 0, 23)
	one := make([]byte, 1)
	for len(out) < cap(out) {
		if len(out) == 6 {
			out = append(out, '.')
			continue
		}
		if _, err := io.ReadFull(random, one); err != nil {
			return Token{}, fmt.Errorf("make a bootstrap token: %w", err)
		}
		// 252 is the largest multiple of 36: no character is likelier than another.
		if one[0] < 252 {
			out = append(out, tokenAlphabet[one[0]%36])
		}
	}
	return Token{string(out)}, nil
}

// ParseToken reads what Secret returned. The error does not repeat the text.
func ParseToken(text string) (Token, error) {
	t := Token{text}
	return t, t.check()
}

func (t Token) check() error {
	if !tokenForm.MatchString(t.text) {
		return errors.New("a bootstrap token is six and sixteen of a-z0-9 with a dot between")
	}
	return nil
}

// Secret is the token itself. The six characters before the dot are no secret:
// see ID.
func (t Token) Secret() string { return t.text }

// ID is the public part, which names the token's Secret in kube-system; empty
// for the zero Token.
func (t Token) ID() string {
	if len(t.text) < 6 {
		return ""
	}
	return t.text[:6]
}

// Format prints [redacted].
func (Token) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// LogValue logs [redacted].
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// CertificateKey encrypts the certificates that init uploads for the other
// control planes. Printing or logging one shows nothing of it. The zero value
// is none.
type CertificateKey struct{ text string }

// NewCertificateKey makes a key from a source of randomness such as
// crypto/rand.Reader.
func NewCertificateKey(random io.Reader) (CertificateKey, error) {
	b := make([]byte, 32) // AES-256, as kubeadm wants it
	if _, err := io.ReadFull(random, b); err != nil {
		return CertificateKey{}, fmt.Errorf("make a certificate key: %w", err)
	}
	return CertificateKey{hex.EncodeToString(b)}, nil
}

// ParseCertificateKey reads what Secret returned. The error does not repeat the
// text.
func ParseCertificateKey(text string) (CertificateKey, error) {
	k := CertificateKey{text}
	return k, k.check()
}

func (k CertificateKey) check() error {
	if b, err := hex.DecodeString(k.text); err != nil || len(b) != 32 {
		return errors.New("a certificate key is 64 hexadecimal digits")
	}
	return nil
}

// Secret is the key itself.
func (k CertificateKey) Secret() string { return k.text }

// Format prints [redacted].
func (CertificateKey) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// LogValue logs [redacted].
func (CertificateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// CAHash returns how a joining host recognises the cluster's authority:
// "sha256:" and the hash of the public key in the first certificate of the file
// ca.crt.
func CAHash(caCrt []byte) (string, error) {
	for {
		block, rest := pem.Decode(caCrt)
		if block == nil {
			return "", errors.New("ca.crt holds no certificate")
		}
		caCrt = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fmt.Errorf("ca.crt: %w", err)
		}
		if !cert.IsCA {
			return "", errors.New("ca.crt: the certificate is not one of an authority")
		}
		return fmt.Sprintf("sha256:%x", sha256.Sum256(cert.RawSubjectPublicKeyInfo)), nil
	}
}

var caHashForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func checkCAHash(text string) error {
	if !caHashForm.MatchString(text) {
		return fmt.Errorf("hash of the authority %q: want sha256: and 64 hexadecimal digits", text)
	}
	return nil
}
