//go:build openvpnversions && !openvpn

package openvpn

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/openvpnbin"
)

// tableSection is the part of the table that these tests fill.
const tableSection = "versions"

// wantedVersions are the other OpenVPNs and the suites of the distribution that have
// them.
var wantedVersions = []struct {
	version string
	suites  []string
}{
	{"2.5.", []string{"bullseye"}},
	{"2.7.", []string{"forky", "sid"}},
}

const (
	// programsEnv tells the program in its namespace, which has no network, what the
	// one outside has fetched, as JSON by version.
	programsEnv  = "OPENVPN_PROGRAMS"
	fetchTimeout = 5 * time.Minute
)

// beforeLab fetches the programs.
func beforeLab() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	folder, err := openvpnbin.CacheFolder()
	if err != nil {
		return nil, err
	}
	programs := map[string]openvpnbin.Program{}
	for _, w := range wantedVersions {
		p, err := openvpnbin.Fetch(ctx, folder, w.version, w.suites...)
		if err != nil {
			return nil, err
		}
		fmt.Printf("openvpn %s of suite %s\n", p.Package, p.Suite)
		programs[w.version] = p
	}
	text, err := json.Marshal(programs)
	return []string{programsEnv + "=" + string(text)}, err
}

var fetched = sync.OnceValues(func() (map[string]program, error) {
	var all map[string]openvpnbin.Program
	if err := json.Unmarshal([]byte(os.Getenv(programsEnv)), &all); err != nil {
		return nil, err
	}
	programs := map[string]program{}
	for v, p := range all {
		q, err := newProgram(p.Command, p.Env)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(q.version, v) {
			return nil, fmt.Errorf("openvpn of suite %s is %s, want %s", p.Suite, q.version, v)
		}
		programs[v] = q
	}
	return programs, nil
})

func mustProgram(t testing.TB, version string) program {
	t.Helper()
	all, err := fetched()
	if err != nil {
		t.Fatal(err)
	}
	return all[version]
}

// What VyOS 1.3 writes, on the OpenVPN that it has, and what 1.2 passes, on the
// nearest one.
func TestVyOSConfigurationsOnOpenVPN25(t *testing.T) {
	t.Parallel()
	bin := mustProgram(t, "2.5.")
	for _, protocol := range []string{"udp", "tcp-passive", "tcp-active"} {
		for _, v := range []vyosTunnel{
			{release: "1.2", cipher: "aes256", hash: "sha256"},
			{release: "1.2"},
			{release: "1.2", cipher: "bf128", hash: "sha512"},
			{release: "1.2", cipher: "3des"},
			{release: "1.2", cipher: "aes128", lzo: true, extra: "allow-compression yes"}, // 2.3 and 2.4 compress without it
			{release: "1.2", role: "active", cipher: "aes256", hash: "sha256"},
			{release: "1.2", role: "passive", cipher: "aes256"},
			{release: "1.3", cipher: "aes256", hash: "sha256"},
			{release: "1.3"},
			{release: "1.3", cipher: "bf128"},
			{release: "1.3", cipher: "aes192", hash: "sha512", lzo: true},
			{release: "1.3", role: "active", cipher: "aes256gcm"},
			{release: "1.3", role: "passive", cipher: "aes128gcm", crypt: true},
			{release: "1.3", role: "active", cipher: "aes256", hash: "sha256", crypt: true},
		} {
			v.protocol = protocol
			proveVyOS(t, bin, v)
		}
	}
	refuseVyOS(t, bin, vyosTunnel{release: "1.4", protocol: "udp", cipher: "aes256"}, ": disable-dco (")
	for _, option := range []string{allowStatic, "disable-dco", "providers legacy default", "peer-fingerprint 00"} {
		name, _, _ := strings.Cut(option, " ")
		refuseOption(t, bin, "S15", "--"+option, ": "+name+" (")
	}
}

// allowStatic is what static key mode needs since 2.7.
const allowStatic = "allow-deprecated-insecure-static-crypto"

// What VyOS 1.5 writes, should it come to have 2.7.
func TestVyOSConfigurationsOnOpenVPN27(t *testing.T) {
	t.Parallel()
	bin := mustProgram(t, "2.7.")
	for _, protocol := range []string{"udp", "tcp-passive", "tcp-active"} {
		for _, v := range []vyosTunnel{
			{release: "1.5", cipher: "aes256", hash: "sha256", extra: allowStatic},
			{release: "1.5", cipher: "3des", extra: allowStatic},
			{release: "1.4", extra: allowStatic},
			{release: "1.4", cipher: "aes128", lzo: true, extra: allowStatic},
			{release: "1.5", role: "active", cipher: "aes256gcm"},
			{release: "1.5", role: "passive", cipher: "aes256gcm", crypt: true},
		} {
			v.protocol = protocol
			proveVyOS(t, bin, v)
		}
	}
	refuseVyOS(t, bin, vyosTunnel{release: "1.5", protocol: "udp", cipher: "aes256", hash: "sha256"}, "--"+allowStatic)
	refuseVyOS(t, bin, vyosTunnel{release: "1.4", protocol: "udp", cipher: "bf128", extra: allowStatic}, ": keysize (")
}

func TestStaticKeyOnOpenVPN27(t *testing.T) {
	t.Parallel()
	bin := mustProgram(t, "2.7.")
	for _, r := range []struct {
		cipher Cipher
		digest Digest
		args   string
	}{
		{CipherAES256CBC, DigestSHA256, aesOptions},
		{CipherAES128CBC, DigestSHA1, "--cipher AES-128-CBC --auth SHA1"},
		{CipherTripleDESCBC, DigestSHA1, "--cipher DES-EDE3-CBC --auth SHA1"},
		{CipherBlowfishCBC, DigestSHA1, "--providers legacy default --cipher BF-CBC --auth SHA1"},
	} {
		for _, tr := range []Transport{UDP, TCPListen, TCPConnect} {
			t.Run(fmt.Sprintf("S15 %s over %s", r.args, tr), func(t *testing.T) {
				t.Parallel()
				s := newStaticLab(t)
				s.bin = bin
				s.enter("S15", "`--secret k --"+allowStatic+" "+r.args+"`")
				s.cfg.Static.Cipher, s.cfg.Digest = r.cipher, r.digest
				args := append(s.carry(tr), s.secret("--"+allowStatic+" "+r.args)...)
				s.open()
				s.prove(func() *realPeer { return s.openvpn(args...) }, nil)
			})
		}
	}
	refuseOption(t, bin, "S15", aesOptions, "--"+allowStatic)
}

func TestRenegotiationOnOtherVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2.5.", "2.7."} {
		bin := mustProgram(t, version)
		for _, wrap := range []Wrap{WrapNone, WrapCrypt, WrapAuth} {
			for _, role := range []Role{TLSClient, TLSServer} {
				for _, ours := range []bool{true, false} {
					t.Run(fmt.Sprintf("T11 %s %s as %s, ours %v", bin.version, wrap, role, ours), func(t *testing.T) {
						t.Parallel()
						l := newTLSLab(t, role)
						l.bin = bin
						l.enter("T11", "wrap "+wrap.String()+map[bool]string{true: ", we begin", false: ", the peer begins"}[ours])
						l.cfg.TLS.RenegInterval, l.cfg.TLS.Fallback = -1, CipherAES256CBC
						args := append(append(l.udp(), l.byCA()...), "--cipher", "AES-256-CBC", "--auth", "SHA256")
						if wrap != WrapNone {
							l.cfg.TLS.Wrap, l.cfg.TLS.WrapKey = wrap, l.key
							args = append(args, "--"+wrap.String(), l.keyFile())
						}
						if ours {
							l.cfg.TLS.RenegInterval = 6 * time.Second
						} else {
							args = append(args, "--reneg-sec", "6", "6")
						}
						e := l.open()
						l.openvpn(args...)
						l.pingUntil(labPatience)
						l.ping(false, l.inner(2), 56)
						l.pingWhile(func() bool { return e.Status().Keys >= 10 })
						st := e.Status()
						if st.Restarts != 0 || st.Keys < 10 {
							t.Errorf("status %+v", st)
						}
						l.note("%d keys, %s, P_DATA_V%d", st.Keys, st.Cipher, map[bool]int{false: 1, true: 2}[st.DataV2])
						l.checkTraffic()
					})
				}
			}
		}
	}
}
