//go:build openvpn || openvpnversions

package openvpn

import (
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// vyosTunnel is what an operator sets on a router. What its VyOS makes of it for
// OpenVPN differs by release.
type vyosTunnel struct {
	release  string // "1.2" to "1.5"
	cipher   string // as in "encryption cipher", "" for none
	hash     string // "" for none
	protocol string // "udp", "tcp-passive" or "tcp-active"
	lzo      bool
	role     string // "": shared secret, else "active" or "passive"
	crypt    bool   // crypt-key
	extra    string // openvpn-option
}

// vyosCiphers are the names that 1.3 and later render, in lower case before 1.4.
var vyosCiphers = map[string]string{
	"3des": "DES-EDE3-CBC", "bf128": "BF-CBC", "aes128": "AES-128-CBC", "aes192": "AES-192-CBC", "aes256": "AES-256-CBC",
	"aes128gcm": "AES-128-GCM", "aes256gcm": "AES-256-GCM", "": "",
}

// lines are the options that the release renders, in its order and nothing else.
func (v vyosTunnel) lines(s *staticLab, keys []string) []string {
	var out []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	old := v.release == "1.2" || v.release == "1.3"
	cipher := vyosCiphers[v.cipher]
	if old {
		cipher = strings.ToLower(cipher)
	}
	proto := map[string]string{"udp": "udp", "tcp-passive": "tcp-server", "tcp-active": "tcp-client"}[v.protocol]
	if v.release == "1.5" {
		proto = map[string]string{"udp": "udp4", "tcp-passive": "tcp4-server", "tcp-active": "tcp4-client"}[v.protocol]
	}
	add(true, "verb 3")
	add(true, "dev-type tun")
	add(true, "dev vtun1")
	add(v.release != "1.2", "persist-key")
	add(v.release != "1.2" || v.protocol != "udp", "proto %s", proto)
	add(v.protocol != "tcp-active", "lport 1195")
	add(true, "rport 1195")
	add(v.protocol != "tcp-passive", "remote %s", s.outer(1))
	add(v.role == "", "secret static.key")
	add(true, "persist-tun")
	add(v.lzo && v.release == "1.2", "comp-lzo")
	add(v.lzo && v.release != "1.2", "compress lzo")
	add(!old, "disable-dco")
	add(true, "ping 10")
	add(true, "ping-restart 60")
	add(true, "ifconfig %s %s", s.inner(2), s.inner(1))
	out = append(out, keys...)
	add(v.crypt, "tls-crypt static.key")
	add(cipher != "" && v.release == "1.5" && v.role != "", "data-ciphers-fallback %s", cipher)
	add(cipher != "" && (v.release != "1.5" || v.role == ""), "cipher %s", cipher)
	add(v.cipher == "bf128", "keysize 128")
	add(v.release == "1.4", "providers legacy default")
	add(v.release == "1.5", "providers default")
	add(v.hash != "", "auth %s", v.hash)
	add(v.extra != "", "%s", v.extra)
	return out
}

// keyLines are the options of TLS, with their files.
func (v vyosTunnel) keyLines(l *tlsLab) []string {
	certs, key := l.peer.pem(l.t)
	l.file("peer.crt", certs)
	l.file("peer.key", key)
	var out []string
	if v.role == "active" {
		out = append(out, "tls-client")
	} else {
		out = append(out, "tls-server")
	}
	switch v.release {
	case "1.2", "1.3":
		l.cfg.TLS.CAs, l.cfg.TLS.Fingerprints = l.root.pool(), nil
		l.file("ca.crt", l.root.rootPEM())
		out = append(out, "ca ca.crt")
		if v.role == "passive" {
			l.file("dh.pem", ffdhe2048())
			out = append(out, "dh dh.pem")
		}
	default:
		if v.role == "passive" {
			out = append(out, "dh none")
		}
		out = append(out, "<peer-fingerprint>", l.ours.fingerprint().String(), "</peer-fingerprint>")
	}
	return append(out, "cert peer.crt", "key peer.key")
}

// ffdhe2048 is the group of RFC 7919, appendix A.1, as a file:
// p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1.
func ffdhe2048() []byte {
	const guard = 64
	e, term := new(big.Int), new(big.Int).Lsh(big.NewInt(1), 1918+guard)
	for k := int64(1); term.Sign() > 0; k++ {
		e.Add(e, term)
		term.Div(term, big.NewInt(k))
	}
	e.Rsh(e, guard)
	p := new(big.Int).Lsh(big.NewInt(1), 2048)
	p.Sub(p, new(big.Int).Lsh(big.NewInt(1), 1984))
	p.Add(p, e.Add(e, big.NewInt(560316)).Lsh(e, 64))
	p.Sub(p, big.NewInt(1))
	der, err := asn1.Marshal(struct{ P, G *big.Int }{p, big.NewInt(2)})
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "DH PARAMETERS", Bytes: der})
}

// what describes the tunnel in the words of the router.
func (v vyosTunnel) what() string {
	var parts []string
	if v.role == "" {
		parts = append(parts, "shared secret")
	} else {
		parts = append(parts, "tls role "+v.role)
	}
	for _, p := range []struct {
		ok   bool
		text string
	}{
		{v.cipher == "", "no cipher"}, {v.cipher != "", "cipher " + v.cipher}, {v.hash != "", "hash " + v.hash},
		{v.lzo, "use-lzo-compression"}, {v.crypt, "crypt-key"}, {v.extra != "", "openvpn-option `" + v.extra + "`"},
	} {
		if p.ok {
			parts = append(parts, p.text)
		}
	}
	return fmt.Sprintf("VyOS %s: %s", v.release, strings.Join(parts, ", "))
}

// transport is ours for the protocol of the router.
func (v vyosTunnel) transport() Transport {
	return map[string]Transport{"udp": UDP, "tcp-passive": TCPConnect, "tcp-active": TCPListen}[v.protocol]
}

// prepare sets our side up for the router and returns its options.
func (v vyosTunnel) prepare(t testing.TB, bin program) (s *staticLab, lines []string) {
	t.Helper()
	var keys []string
	if v.role == "" {
		s = newStaticLab(t)
	} else {
		l := newTLSLab(t, map[string]Role{"active": TLSServer, "passive": TLSClient}[v.role])
		keys = v.keyLines(l)
		if v.crypt {
			l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey = WrapCrypt, l.key
		}
		l.cfg.TLS.Fallback = Cipher(vyosCiphers[v.cipher])
		s = l.staticLab
	}
	s.bin = bin
	s.enter(v.release, v.what())
	s.carry(v.transport())
	s.cfg.Digest = map[string]Digest{"": DigestSHA1, "sha1": DigestSHA1, "sha256": DigestSHA256, "sha512": DigestSHA512}[v.hash]
	if s.cfg.Static != nil {
		s.cfg.Static.Cipher = Cipher(vyosCiphers[v.cipher])
	}
	if v.lzo {
		s.cfg.Framing = FramingLZO
	}
	s.keyFile()
	return s, v.lines(s, keys)
}

// start runs what the router would: a command line until 1.2, then a file.
func (v vyosTunnel) start(s *staticLab, lines []string) *realPeer {
	if v.release != "1.2" {
		return s.exec("--config", s.file("vtun1.conf", []byte(strings.Join(lines, "\n")+"\n")))
	}
	var args []string
	for _, line := range lines {
		f := strings.Fields(line)
		args = append(append(args, "--"+f[0]), f[1:]...)
	}
	return s.exec(args...)
}

// proveVyOS runs the router's configuration through everything.
func proveVyOS(t *testing.T, bin program, v vyosTunnel) {
	t.Helper()
	t.Run(fmt.Sprintf("%s %s", v.what(), v.protocol), func(t *testing.T) {
		t.Parallel()
		s, lines := v.prepare(t, bin)
		s.open()
		s.prove(func() *realPeer { return v.start(s, lines) }, func() {
			if s.cfg.TLS != nil {
				st := s.e.Status()
				s.note("%s, P_DATA_V%d", st.Cipher, map[bool]int{false: 1, true: 2}[st.DataV2])
			}
		})
	})
}

// refuseVyOS shows that this OpenVPN does not take what VyOS renders.
func refuseVyOS(t *testing.T, bin program, v vyosTunnel, says string) {
	t.Helper()
	t.Run(v.what(), func(t *testing.T) {
		t.Parallel()
		s, lines := v.prepare(t, bin)
		p := v.start(s, lines)
		p.says(says)
		<-p.done
		s.result("openvpn exits")
		s.note("openvpn says: %s", s.complaint(p, says))
	})
}

// complaint is the line of the log that has the text, without what differs from
// run to run.
func (l *lab) complaint(p *realPeer, text string) string {
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, text) {
			line = strings.ReplaceAll(line, l.dir+"/", "")
			if len(line) > len(time.DateTime) && line[4] == '-' { // not before the options are read
				line = line[len(time.DateTime):]
			}
			return strings.TrimSpace(line)
		}
	}
	return text
}

// refuseOption shows that this OpenVPN does not take an option.
func refuseOption(t *testing.T, bin program, id, option, says string) {
	t.Helper()
	t.Run(id+" "+option, func(t *testing.T) {
		t.Parallel()
		s := newStaticLab(t)
		s.bin = bin
		s.enter(id, "`--secret k "+option+"`")
		p := s.openvpn(append(s.udp(), s.secret(option)...)...)
		p.says(says)
		<-p.done
		s.result("openvpn exits")
		s.note("openvpn says: %s", s.complaint(p, says))
	})
}
