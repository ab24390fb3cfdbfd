//go:build openvpn || openvpnversions

package openvpn

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// staticLab is one row of the matrix: our configuration and the peer's options.
type staticLab struct {
	*lab
	key    StaticKey
	cfg    Config
	device *labDevice
	e      *Endpoint // our side, after open
}

// newStaticLab prepares AES-256-CBC with SHA256 over UDP between fixed addresses.
func newStaticLab(t testing.TB) *staticLab {
	l := newLab(t)
	s := &staticLab{lab: l, key: GenerateStaticKey()}
	s.cfg = Config{
		Local: netip.AddrPortFrom(l.outer(1), 1195), Remote: l.outer(2).String() + ":1195",
		Digest: DigestSHA256, Static: &Static{Key: s.key, Cipher: CipherAES256CBC},
		Address: l.inner(1), PeerAddress: l.inner(2), Times: TimeFile(filepath.Join(l.dir, "time")),
	}
	return s
}

// enter gives this test a line in the table.
func (s *staticLab) enter(id, what string) {
	s.record(id, what, func() (role, transport string) {
		role = "static"
		if s.cfg.TLS != nil {
			role = s.cfg.TLS.Role.option()
		}
		return role, s.cfg.Transport.String()
	})
}

func (s *staticLab) keyFile() string { return s.file("static.key", s.key.Encode()) }

// carry chooses the transport of our side and returns the peer's options for it.
func (s *staticLab) carry(tr Transport) []string {
	s.cfg.Transport = tr
	switch tr {
	case TCPListen:
		s.cfg.Remote = ""
		return []string{"--proto", "tcp-client", "--remote", s.outer(1).String(), "1195", "--connect-retry", "1"}
	case TCPConnect:
		s.cfg.Local = netip.AddrPort{}
		return []string{"--proto", "tcp-server", "--local", s.outer(2).String(), "--lport", "1195"}
	}
	return s.udp()
}

// udp is the address part of the peer's options.
func (s *staticLab) udp() []string {
	return []string{"--local", s.outer(2).String(), "--remote", s.outer(1).String(), "--port", "1195"}
}

// secret is the rest of the peer's options in static key mode.
func (s *staticLab) secret(args string) []string {
	return append([]string{"--secret", s.keyFile()}, strings.Fields(args)...)
}

// aesOptions is what the peer is told of the cipher that newStaticLab prepares.
const aesOptions = "--cipher AES-256-CBC --auth SHA256"

// open starts our side on a TUN.
func (s *staticLab) open() *Endpoint {
	s.t.Helper()
	if s.device == nil {
		s.device = s.newTUN()
		s.cfg.Device = s.device
	}
	s.e = mustOpen(s.t, s.cfg)
	return s.e
}

// tlsLab is one row of the TLS matrix: both sides with their certificates.
type tlsLab struct {
	*staticLab
	role Role
	root *testCert
	ours *testCert
	peer *testCert
}

// newTLSLab prepares our side in that role; the peer has the other. Both know
// each other by fingerprint.
func newTLSLab(t testing.TB, role Role) *tlsLab {
	l := &tlsLab{staticLab: newStaticLab(t), role: role}
	usage := map[Role]certSpec{TLSClient: {name: "client", usages: usageClient}, TLSServer: {name: "server", usages: usageServer}}
	l.root = mustCert(t, certSpec{name: "root", ca: true})
	for _, side := range []struct {
		r  Role
		to **testCert
	}{{role, &l.ours}, {1 - role, &l.peer}} {
		spec := usage[side.r]
		spec.issuer = l.root
		*side.to = mustCert(t, spec)
	}
	l.cfg.Static = nil
	l.cfg.TLS = &TLS{Role: role, Certificate: l.ours.chain(), Fingerprints: []Fingerprint{l.peer.fingerprint()}}
	return l
}

// identity is the part of the peer's options with role, certificate and key.
func (l *tlsLab) identity() []string {
	certs, key := l.peer.pem(l.t)
	args := []string{"--cert", l.file("peer.crt", certs), "--key", l.file("peer.key", key)}
	if l.role == TLSServer {
		return append(args, "--tls-client")
	}
	return append(args, "--tls-server", "--dh", "none")
}

// byFingerprint makes the peer know us by fingerprint.
func (l *tlsLab) byFingerprint() []string {
	return append(l.identity(), "--peer-fingerprint", l.ours.fingerprint().String())
}

// byCA makes both sides know each other by authority.
func (l *tlsLab) byCA() []string {
	l.cfg.TLS.CAs, l.cfg.TLS.Fingerprints = l.root.pool(), nil
	return append(l.identity(), "--ca", l.file("ca.crt", l.root.rootPEM()))
}
