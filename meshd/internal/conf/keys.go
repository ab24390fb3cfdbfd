package conf

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// Keys is what stands in the key files of an attachment, as Load found it. It
// prints as [redacted].
type Keys struct {
	Static      openvpn.StaticKey
	Certificate tls.Certificate
	CAs         *x509.CertPool
	Wrap        openvpn.StaticKey

	// sum changes with the content of any of the files.
	sum [sha256.Size]byte
}

// Format writes [redacted] for every verb.
func (k Keys) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacted]") }

// Equal reports whether both came from files of the same content.
func (k Keys) Equal(other Keys) bool { return k.sum == other.sum }

// maxKeyFile is the size of the largest key file in bytes: that of package
// openvpn, and room for a chain of certificates.
const maxKeyFile = 64 << 10

// readKeys reads the key files of an entry and notes what is wrong with them.
func (p *parser) readKeys(a *attachment) {
	var all bytes.Buffer
	if a.Mode == ModeStatic {
		a.Keys.Static = p.staticKey(a, "key", a.Key, &all)
	}
	if t := a.TLS; t != nil && a.Mode != ModeStatic {
		p.certificate(a, &all)
		if t.CA != "" {
			a.Keys.CAs = p.authorities(a, &all)
		}
		if t.WrapKey != "" {
			a.Keys.Wrap = p.staticKey(a, "tls.wrapKey", t.WrapKey, &all)
		}
	}
	a.Keys.sum = sha256.Sum256(all.Bytes())
}

func (p *parser) staticKey(a *attachment, key, path string, all *bytes.Buffer) openvpn.StaticKey {
	text, ok := p.keyFile(a, key, path, true, all)
	if !ok {
		return openvpn.StaticKey{}
	}
	k, err := openvpn.ParseStaticKey(text)
	if err != nil {
		p.fault(a.at(key), a.path+"."+key, fmt.Sprintf("%s: %v", path, err), "the file that openvpn --genkey makes")
	}
	return k
}

func (p *parser) certificate(a *attachment, all *bytes.Buffer) {
	cert, certRead := p.keyFile(a, "tls.cert", a.TLS.Cert, false, all)
	key, keyRead := p.keyFile(a, "tls.key", a.TLS.Key, true, all)
	if !certRead || !keyRead {
		return
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		p.fault(a.at("tls.cert"), a.path+".tls.cert", fmt.Sprintf("%s with %s: %s", a.TLS.Cert, a.TLS.Key, strings.TrimPrefix(err.Error(), "tls: ")),
			"a certificate in PEM form and its private key")
		return
	}
	a.Keys.Certificate = pair
}

func (p *parser) authorities(a *attachment, all *bytes.Buffer) *x509.CertPool {
	text, ok := p.keyFile(a, "tls.ca", a.TLS.CA, false, all)
	if !ok {
		return nil
	}
	pool, err := parseAuthorities(text)
	if err != nil {
		p.fault(a.at("tls.ca"), a.path+".tls.ca", fmt.Sprintf("%s: %v", a.TLS.CA, err), "certificates in PEM form")
	}
	return pool
}

// parseAuthorities takes every certificate of the text or none.
func parseAuthorities(text []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", found+1, err)
		}
		pool.AddCert(cert)
		found++
	}
	if found == 0 {
		return nil, errors.New("no certificate in it")
	}
	return pool, nil
}

// keyFile reads one file. Nobody but its owner may read a secret one.
func (p *parser) keyFile(a *attachment, key, path string, secret bool, all *bytes.Buffer) ([]byte, bool) {
	if path == "" {
		return nil, false // is a fault already
	}
	text, problem, want := readFile(path, secret)
	if problem != "" {
		p.fault(a.at(key), a.path+"."+key, path+": "+problem, want)
		return nil, false
	}
	fmt.Fprintf(all, "%s %d\n", key, len(text))
	all.Write(text)
	return text, true
}

func readFile(path string, secret bool) (text []byte, problem, want string) {
	want = "the path of a file, absolute or from the directory of this configuration"
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err), want
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, reason(err), want
	case !info.Mode().IsRegular():
		return nil, "is no regular file", want
	case secret && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Sprintf("mode %04o lets others at the key", info.Mode().Perm()), "mode 0600: chmod 600 " + filepath.Base(path)
	}
	text, err = io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	switch {
	case err != nil:
		return nil, reason(err), want
	case len(text) > maxKeyFile:
		return nil, fmt.Sprintf("is larger than %d bytes", maxKeyFile), "a key file"
	}
	return text, "", ""
}

// reason is err without the path, which the fault names already.
func reason(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}

// Endpoint is the part of o that package openvpn knows: without Device, Times
// and Logger. It needs the Keys that Load read.
func (o *OpenVPN) Endpoint() openvpn.Config {
	c := openvpn.Config{
		Name:        o.Name,
		Transport:   o.Transport,
		Local:       o.Listen,
		Remote:      o.Remote,
		Float:       o.Float,
		Digest:      o.Auth,
		Insecure:    o.Cipher == openvpn.CipherNone || o.Auth == openvpn.DigestNone,
		Framing:     o.Compression,
		Fragment:    o.Fragment,
		MTU:         o.Tunnel.MTU,
		Address:     o.Tunnel.Local,
		PeerAddress: o.Tunnel.Peer,
		IPv6:        o.Tunnel.Local6.IsValid(),
		Ping:        o.Ping,
		PingRestart: o.PingRestart,
		ExitNotify:  o.ExitNotify,
	}
	if o.Mode == ModeStatic {
		c.Static = &openvpn.Static{Key: o.Keys.Static, Direction: o.KeyDirection, Cipher: o.Cipher}
		return c
	}
	c.TLS = o.endpointTLS()
	for _, cipher := range o.DataCiphers {
		c.Insecure = c.Insecure || cipher == openvpn.CipherNone
	}
	return c
}

func (o *OpenVPN) endpointTLS() *openvpn.TLS {
	t := &openvpn.TLS{
		Certificate:   o.Keys.Certificate,
		CAs:           o.Keys.CAs,
		Fingerprints:  o.TLS.PeerFingerprints,
		PeerUsage:     o.TLS.CA != "",
		MinVersion:    o.TLS.MinVersion,
		Wrap:          o.TLS.Wrap,
		WrapKey:       o.Keys.Wrap,
		WrapDirection: o.TLS.WrapDirection,
		Ciphers:       o.DataCiphers,
		Fallback:      o.Cipher,
		RenegInterval: o.Renegotiate,
	}
	if o.Mode == ModeTLSServer {
		t.Role = openvpn.TLSServer
	}
	if o.Renegotiate == 0 {
		t.RenegInterval = -time.Second // never
	}
	if name, ok := strings.CutPrefix(o.TLS.Subject, "CN="); ok && !strings.ContainsAny(name, ",+=\\") {
		t.PeerName = name
	} else {
		t.PeerSubject = o.TLS.Subject
	}
	return t
}
