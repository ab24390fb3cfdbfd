package openvpn

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// certificateError marks an attempt that ended because of the peer's certificate.
type certificateError struct{ err error }

func (e *certificateError) Error() string { return "peer certificate: " + e.err.Error() }
func (e *certificateError) Unwrap() error { return e.err }

// tlsConfig builds the configuration of the TLS library. Verification is ours,
// because OpenVPN peers have no names that a library could check.
func tlsConfig(t *TLS, now func() time.Time) *tls.Config {
	c := &tls.Config{
		Certificates:           []tls.Certificate{t.Certificate},
		MinVersion:             t.MinVersion,
		MaxVersion:             t.MaxVersion,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // verifyPeer does it
		SessionTicketsDisabled: true,
		Time:                   now,
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := verifyPeer(t, s.PeerCertificates, now()); err != nil {
				return &certificateError{err}
			}
			return nil
		},
	}
	if t.RSAKeyExchange {
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if s.ID != tls.TLS_RSA_WITH_RC4_128_SHA && s.ID != tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA && s.ID != tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA {
				c.CipherSuites = append(c.CipherSuites, s.ID)
			}
		}
	}
	return c
}

// verifyPeer applies every configured check to the chain that the peer sent.
func verifyPeer(t *TLS, chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("none was sent")
	}
	leaf := chain[0]
	if len(t.Fingerprints) > 0 {
		if got := Fingerprint(sha256.Sum256(leaf.Raw)); !slices.Contains(t.Fingerprints, got) {
			return fmt.Errorf("fingerprint %s is not accepted", got)
		}
	}
	if t.CAs != nil {
		if err := verifyChain(t, chain, now); err != nil {
			return err
		}
	}
	if t.PeerUsage {
		if err := verifyUsage(t.Role, leaf); err != nil {
			return err
		}
	}
	if t.PeerName != "" && leaf.Subject.CommonName != t.PeerName {
		return fmt.Errorf("common name is %q, want %q", leaf.Subject.CommonName, t.PeerName)
	}
	if t.PeerSubject != "" && leaf.Subject.String() != t.PeerSubject {
		return fmt.Errorf("subject is %q, want %q", leaf.Subject, t.PeerSubject)
	}
	return nil
}

// peerUsage is the extended key usage of the role that the peer has.
func peerUsage(ours Role) x509.ExtKeyUsage {
	if ours == TLSServer {
		return x509.ExtKeyUsageClientAuth
	}
	return x509.ExtKeyUsageServerAuth
}

func verifyChain(t *TLS, chain []*x509.Certificate, now time.Time) error {
	opts := x509.VerifyOptions{
		Roots: t.CAs, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{peerUsage(t.Role)},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(opts)
	if err != nil {
		return err
	}
	for _, verified := range chains {
		if err = revoked(t.CRLs, verified); err == nil {
			return nil
		}
	}
	return err
}

// revoked looks every certificate of a chain up in the lists of its issuer.
func revoked(lists []*x509.RevocationList, chain []*x509.Certificate) error {
	for _, c := range chain {
		for _, list := range lists {
			if !bytes.Equal(list.RawIssuer, c.RawIssuer) {
				continue
			}
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return fmt.Errorf("%q is revoked", c.Subject)
				}
			}
		}
	}
	return nil
}

// verifyUsage demands the usages that remote-cert-tls demands.
func verifyUsage(ours Role, leaf *x509.Certificate) error {
	const signs = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement | x509.KeyUsageKeyEncipherment
	if leaf.KeyUsage&signs == 0 {
		return errors.New("key usage is missing or does not fit")
	}
	if !slices.Contains(leaf.ExtKeyUsage, peerUsage(ours)) {
		return errors.New("extended key usage is missing or does not fit")
	}
	return nil
}
