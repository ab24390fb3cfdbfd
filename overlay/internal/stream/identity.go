package stream

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// alpn is the application protocol of docs/protocol.md, section 4.
const alpn = "planetmesh/1"

// serverName keeps the address of the other end out of the first packet. Nobody reads it.
const serverName = "planetmesh"

var errCertificate = errors.New("peer shows no single Ed25519 certificate")

// wrap makes the X.509 certificate around an identity key. Nobody checks its
// dates, so they depend on no clock; the end is the one that RFC 5280,
// section 4.1.2.5 gives to certificates without end.
func wrap(identity ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, identity.Public(), identity)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("wrap identity in a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: identity}, nil
}

func serverTLS(wrapper tls.Certificate) *tls.Config {
	cfg := baseTLS(wrapper)
	cfg.ClientAuth = tls.RequireAnyClientCert
	return cfg
}

func clientTLS(wrapper tls.Certificate) *tls.Config {
	cfg := baseTLS(wrapper)
	cfg.ServerName = serverName
	cfg.InsecureSkipVerify = true // identityOf and the introduction verify
	return cfg
}

// baseTLS holds what both ends share. X25519 alone keeps the first flight in
// one packet; everything else between gateways rests on X25519 too. Session
// tickets are off: nothing is ever resumed, so there is no 0-RTT either.
func baseTLS(wrapper tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{wrapper},
		NextProtos:             []string{alpn},
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519},
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := identityOf(state)
			return err
		},
	}
}

// identityOf returns the key that the other end of a connection has proven.
// While the handshake runs it says what the other end claims.
func identityOf(state tls.ConnectionState) (trust.IdentityKey, error) {
	if len(state.PeerCertificates) != 1 {
		return trust.IdentityKey{}, errCertificate
	}
	key, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return trust.IdentityKey{}, errCertificate
	}
	return trust.IdentityKey(key), nil
}
