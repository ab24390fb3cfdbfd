package openvpn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Config describes one endpoint. It is passed by value and cannot change
// afterwards. Exactly one of Static and TLS is set. What both sides must have
// alike: transport, key material, cipher, Digest, Framing, Fragment on or off.
type Config struct {
	// Name stands in the log. It may be empty.
	Name string

	// Transport is UDP (zero), TCPListen or TCPConnect.
	Transport Transport
	// Local is the address and port to use. An invalid address means every
	// address; port 0 means 1194, but any free one for TCPConnect.
	Local netip.AddrPort
	// Remote is the peer as "host" or "host:port", 1194 without port. A name is
	// looked up at every restart. Empty means to learn the peer from its first
	// authentic packet; TCPConnect needs it. With TCPListen its port does not matter.
	Remote string
	// Float lets the peer change its address (--float). Without Remote it may
	// anyway. The address changes on authentic packets only.
	Float bool

	// Static selects static key mode.
	Static *Static
	// TLS selects TLS mode.
	TLS *TLS

	// Digest is the HMAC hash (--auth) of CBC packets and of tls-auth. Zero
	// means SHA1, the default of OpenVPN.
	Digest Digest
	// Insecure permits CipherNone and DigestNone.
	Insecure bool
	// Framing is the compression framing; zero is none.
	Framing Framing
	// Fragment is the largest UDP payload to send (--fragment), in bytes. Zero
	// means no fragmentation; both sides must have it or not have it. UDP only.
	Fragment int

	// MTU is the largest inner packet to send, in bytes; larger ones of the
	// Device are dropped and counted. Zero means 1500. Inner packets of the peer
	// may be 100 bytes larger.
	MTU int
	// Address and PeerAddress are the inner IPv4 addresses (--ifconfig). They are
	// only told to the peer, which warns when they differ from its own.
	Address, PeerAddress netip.Addr
	// IPv6 tells the peer that the connection has inner IPv6 addresses
	// (--ifconfig-ipv6). IPv6 packets pass in any case.
	IPv6 bool

	// Ping is the idle time after which a keepalive is sent. Zero means 10 s,
	// negative means never.
	Ping time.Duration
	// PingRestart is how long the peer may be silent before the connection starts
	// again. Zero means 60 s, negative means for ever.
	PingRestart time.Duration
	// ExitNotify tells the peer about Close (--explicit-exit-notify).
	ExitNotify bool

	// Device is where inner packets come from and go to. Required.
	Device Device
	// Times remembers the last start time across endpoints with the same key. nil
	// means that each endpoint starts from the wall clock: the peer then drops what
	// comes after our clock was set back, and the first packets of an endpoint that
	// is opened within the same second as the one before.
	Times TimeStore
	// Now is the wall clock for start times and certificates. nil means time.Now.
	// Timers do not use it.
	Now func() time.Time
	// Logger gets state changes; nil means none.
	Logger *slog.Logger

	// transport replaces the sockets in tests.
	transport func(context.Context, *Config) (transport, error)
}

// Static is the configuration of static key mode.
type Static struct {
	// Key is the shared key. Required.
	Key StaticKey
	// Direction must be the opposite of the peer's, or none on both sides.
	Direction Direction
	// Cipher is a CBC cipher. Zero means BF-CBC, which is what a router without
	// cipher setting uses; Warnings complains about it.
	Cipher Cipher
	// BlowfishBits is the key size of BF-CBC: 128 (zero) or 256 (keysize 256).
	BlowfishBits int
}

// Role is the TLS role of this side. The peer must have the other.
type Role uint8

const (
	// TLSClient is --tls-client ("active" on VyOS). It is the zero value.
	TLSClient Role = iota
	// TLSServer is --tls-server ("passive" on VyOS).
	TLSServer
)

// String returns "client" or "server".
func (r Role) String() string {
	switch r {
	case TLSClient:
		return "client"
	case TLSServer:
		return "server"
	}
	return "Role(" + strconv.Itoa(int(r)) + ")"
}

func (r Role) option() string { return "tls-" + r.String() }

// Wrap is the protection of the control channel.
type Wrap uint8

const (
	// WrapNone sends control packets bare. It is the zero value.
	WrapNone Wrap = iota
	// WrapAuth is tls-auth.
	WrapAuth
	// WrapCrypt is tls-crypt.
	WrapCrypt
)

// String returns "none", "tls-auth" or "tls-crypt".
func (w Wrap) String() string {
	switch w {
	case WrapNone:
		return "none"
	case WrapAuth:
		return "tls-auth"
	case WrapCrypt:
		return "tls-crypt"
	}
	return "Wrap(" + strconv.Itoa(int(w)) + ")"
}

// Fingerprint is the SHA-256 of a certificate in DER form.
type Fingerprint [32]byte

// ParseFingerprint reads 64 hexadecimal digits, with or without colons.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("fingerprint %q: want %d bytes in hexadecimal", s, len(f))
	}
	copy(f[:], b)
	return f, nil
}

// String returns the digits in pairs with colons.
func (f Fingerprint) String() string {
	pairs := make([]string, len(f))
	for i, b := range f {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}

// TLS is the configuration of TLS mode. The peer is verified against CAs, or
// Fingerprints, or both if both are given.
type TLS struct {
	// Role must be the opposite of the peer's.
	Role Role
	// Certificate is shown to the peer. Required. If it names extended key usages,
	// the one of Role must be among them, or peers with a CA refuse it.
	Certificate tls.Certificate
	// CAs are the roots that the peer's certificate must lead to.
	CAs *x509.CertPool
	// CRLs are revocation lists; each applies to the certificates of its issuer.
	// Their signatures and dates are the caller's to check.
	CRLs []*x509.RevocationList
	// Fingerprints are the accepted peer certificates (--peer-fingerprint).
	// Without CAs neither chain nor usage nor dates are looked at.
	Fingerprints []Fingerprint
	// PeerUsage demands the key usages of a peer of the other role
	// (--remote-cert-tls). Without it they are checked only if present.
	PeerUsage bool
	// PeerName, if not empty, is the common name that the peer's certificate
	// must have (--verify-x509-name ... name).
	PeerName string
	// PeerSubject, if not empty, is the whole subject that it must have, in the
	// order and form of x509's Name.String.
	PeerSubject string

	// MinVersion and MaxVersion bound the TLS version; zero means 1.2 and 1.3.
	MinVersion, MaxVersion uint16
	// RSAKeyExchange offers suites without forward secrecy, for OpenVPN 2.3 as
	// server. It needs MinVersion set to what that peer has.
	RSAKeyExchange bool

	// Wrap protects control packets with WrapKey. VyOS renders tls-crypt only.
	Wrap Wrap
	// WrapKey is the key of tls-auth or tls-crypt.
	WrapKey StaticKey
	// WrapDirection is the direction of tls-auth; tls-crypt has none.
	WrapDirection Direction

	// Ciphers is what this side offers, best first. nil means AES-256-GCM,
	// AES-128-GCM and CHACHA20-POLY1305. The server's order decides.
	Ciphers []Cipher
	// Fallback is the cipher for peers that do not negotiate (--cipher of 2.5 and
	// before, --data-ciphers-fallback). Zero means to refuse such peers.
	Fallback Cipher

	// RenegInterval is the life of a key. Zero means an hour, negative for ever.
	RenegInterval time.Duration
	// HandshakeTimeout bounds one negotiation. Zero means 60 s.
	HandshakeTimeout time.Duration

	// silent sends no peer info, protoMask clears bits of IV_PROTO: tests stand
	// in for older peers with them.
	silent    bool
	protoMask uint32
}

const (
	defaultPort        = 1194
	defaultMTU         = 1500
	defaultPing        = 10 * time.Second
	defaultPingRestart = 60 * time.Second
	defaultReneg       = time.Hour        // reneg-sec of OpenVPN
	defaultHandshake   = 60 * time.Second // hand-window of OpenVPN
	// mtuSlack is how much larger than MTU an inner packet of the peer may be.
	// Real peers accept about as much.
	mtuSlack = 100
	// minMTU and maxMTU are the limits of IPv4.
	minMTU = 68
	maxMTU = 65000
)

// withDefaults returns a copy in which every zero value is replaced.
func (c Config) withDefaults() Config {
	def(&c.MTU, defaultMTU)
	def(&c.Ping, defaultPing)
	def(&c.PingRestart, defaultPingRestart)
	def(&c.Digest, DigestSHA1)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	port := c.Local.Port()
	if port == 0 && c.Transport != TCPConnect {
		port = defaultPort
	}
	c.Local = netip.AddrPortFrom(c.Local.Addr(), port)
	if c.Static != nil {
		s := *c.Static
		def(&s.Cipher, CipherBlowfishCBC)
		def(&s.BlowfishBits, 128)
		c.Static = &s
	}
	if c.TLS != nil {
		t := *c.TLS
		def(&t.RenegInterval, defaultReneg)
		def(&t.HandshakeTimeout, defaultHandshake)
		def(&t.MinVersion, tls.VersionTLS12)
		if t.Ciphers == nil {
			t.Ciphers = []Cipher{CipherAES256GCM, CipherAES128GCM, CipherChaCha20Poly1305}
		}
		c.TLS = &t
	}
	return c
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports everything that is wrong with the configuration, joined.
func (c Config) Validate() error {
	c = c.withDefaults()
	errs := []error{c.validateTransport()}
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add((c.Static == nil) == (c.TLS == nil), "exactly one of static and tls must be set")
	add(c.Device == nil, "device is missing")
	add(!c.Digest.known(), "digest %q is unknown", c.Digest)
	add(c.Digest == DigestNone && !c.Insecure, "digest none needs insecure")
	add(c.Framing >= framingCount, "framing %d is unknown", c.Framing)
	add(c.MTU < minMTU || c.MTU > maxMTU, "mtu %d is not between %d and %d", c.MTU, minMTU, maxMTU)
	if c.Static != nil {
		errs = append(errs, c.validateStatic())
	}
	if c.TLS != nil {
		errs = append(errs, c.validateTLS())
	}
	return errors.Join(errs...)
}

func (c Config) validateTransport() error {
	var errs []error
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add(c.Transport > TCPConnect, "transport %d is unknown", c.Transport)
	add(c.Transport == TCPConnect && c.Remote == "", "tcp-connect needs remote")
	if c.Remote != "" {
		_, _, err := splitRemote(c.Remote)
		add(err != nil, "remote %q: %w", c.Remote, err)
	}
	add(c.Fragment != 0 && c.Transport != UDP, "fragment needs udp")
	add(c.Fragment != 0 && (c.Fragment < minFragment || c.Fragment > maxMTU), "fragment %d is not between %d and %d", c.Fragment, minFragment, maxMTU)
	return errors.Join(errs...)
}

// minFragment is the smallest limit that real peers take.
const minFragment = 68 + 132

func (c Config) validateStatic() error {
	var errs []error
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	s := c.Static
	spec, known := cipherSpecOf(s.Cipher)
	add(!known, "static cipher %q is unknown", s.Cipher)
	add(spec.aead, "static cipher %s: static key mode has CBC ciphers only", s.Cipher)
	add(s.Cipher == CipherNone && !c.Insecure, "static cipher none needs insecure")
	add(s.Key.IsZero(), "static key is missing")
	add(s.Direction > Direction1, "static key direction %d is unknown", s.Direction)
	add(s.BlowfishBits != 128 && s.BlowfishBits != 256, "blowfish key of %d bits: want 128 or 256", s.BlowfishBits)
	return errors.Join(errs...)
}

func (c Config) validateTLS() error {
	var errs []error
	add := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	t := c.TLS
	add(t.Role > TLSServer, "tls role %d is unknown", t.Role)
	add(len(t.Certificate.Certificate) == 0, "tls certificate is missing")
	add(t.CAs == nil && len(t.Fingerprints) == 0, "tls needs authorities or fingerprints to know the peer by")
	add(t.Wrap > WrapCrypt, "tls wrap %d is unknown", t.Wrap)
	add(t.Wrap != WrapNone && t.WrapKey.IsZero(), "%s key is missing", t.Wrap)
	add(t.Wrap == WrapAuth && c.Digest == DigestNone, "tls-auth needs a digest")
	add(t.WrapDirection > Direction1, "tls-auth key direction %d is unknown", t.WrapDirection)
	add(t.HandshakeTimeout < 0, "tls handshake timeout is negative")
	for _, cipher := range t.Ciphers {
		_, known := cipherSpecOf(cipher)
		add(!known, "tls cipher %q is unknown", cipher)
		add(cipher == CipherNone && !c.Insecure, "tls cipher none needs insecure")
	}
	_, known := cipherSpecOf(t.Fallback)
	add(t.Fallback != "" && !known, "tls fallback cipher %q is unknown", t.Fallback)
	add(t.Fallback == CipherNone && !c.Insecure, "tls fallback cipher none needs insecure")
	return errors.Join(errs...)
}

// Warnings lists what works but should not stay: weak ciphers and digests, and
// static keys. Open logs them.
func (c Config) Warnings() []string {
	c = c.withDefaults()
	var w []string
	ciphers := []Cipher{}
	if c.Static != nil {
		w = append(w, "static key mode has no forward secrecy and ends with openvpn 2.8")
		ciphers = append(ciphers, c.Static.Cipher)
	}
	if c.TLS != nil {
		ciphers = append(append(ciphers, c.TLS.Ciphers...), c.TLS.Fallback)
		if c.TLS.MinVersion < tls.VersionTLS12 {
			w = append(w, "tls versions before 1.2 are permitted")
		}
		if c.TLS.RSAKeyExchange {
			w = append(w, "tls key exchange without forward secrecy is permitted")
		}
	}
	for _, cipher := range ciphers {
		spec, _ := cipherSpecOf(cipher)
		if spec.smallBlock() {
			w = append(w, string(cipher)+" has blocks of 64 bits and is breakable after some gigabytes")
		}
		if cipher == CipherNone {
			w = append(w, "cipher none sends everything in clear")
		}
	}
	switch c.Digest {
	case DigestNone:
		w = append(w, "digest none lets everybody inject packets")
	case DigestMD5:
		w = append(w, "digest MD5 is obsolete")
	}
	return w
}

// splitRemote cuts "host:port", "[v6]:port", "host" or a bare address.
func splitRemote(s string) (host string, port uint16, err error) {
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return addr.String(), defaultPort, nil
	}
	if !strings.Contains(s, ":") {
		return s, defaultPort, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, errors.New("want host:port")
	}
	return host, uint16(n), nil
}
