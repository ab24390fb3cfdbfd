//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	ovpn "github.com/planetmesh/planetmesh/overlay/openvpn"
)

// Names of the variants of the endpoint suite: who stands at site 1 and at site 2.
const (
	staticPair  = "static-openvpn"
	staticMixed = "static-mixed"
	staticOurs  = "static-ours"
	tlsPair     = "tls-openvpn"
	tlsMixed    = "tls-mixed"
	tlsOurs     = "tls-ours"
)

// endpoints compares package overlay/openvpn with OpenVPN.
var endpoints = suite{
	name: "endpoint", target: "make bench-openvpn",
	groups: []group{
		{
			title: "### Static key, AES-256-CBC with SHA256, UDP", order: []string{staticPair, staticMixed, staticOurs},
			baseline: staticPair, goals: map[string]float64{staticMixed: 1, staticOurs: 2}, split: true,
		},
		{
			title: "### TLS, AES-256-GCM, UDP", order: []string{tlsPair, tlsMixed, tlsOurs},
			baseline: tlsPair, goals: map[string]float64{tlsMixed: 1, tlsOurs: 2}, split: true,
		},
	},
	variants: map[string]variant{
		staticPair:  connection{}.variant(),
		staticMixed: connection{ours: 1}.variant(),
		staticOurs:  connection{ours: 2}.variant(),
		tlsPair:     connection{tls: true}.variant(),
		tlsMixed:    connection{tls: true, ours: 1}.variant(),
		tlsOurs:     connection{tls: true, ours: 2}.variant(),
	},
}

// connection is a way to connect the sites in the OpenVPN protocol: the first so
// many sides are ours, the others the distribution's program.
type connection struct {
	tls  bool
	ours int
}

func (c connection) variant() variant { return variant{open: plain(c.up), processes: 2} }

// Files of the two sides, and what the endpoint says when it is there.
const (
	keyFileName     = "key"
	certFileName    = "cert.pem"
	certKeyFileName = "cert.key"
	endpointDevice  = "tun0"
	endpointPort    = 1194
	endpointReady   = "endpoint is ready"
)

func (c connection) up(ctx context.Context, w *netlab.World, p programs) ([]*netlab.Process, error) {
	prints, err := writeSecrets(w)
	if err != nil {
		return nil, err
	}
	var processes []*netlab.Process
	for i, s := range sides() {
		start := c.startReal
		if i < c.ours {
			start = c.startOurs
		}
		daemon, err := start(ctx, w, p, i, s, prints)
		if daemon != nil {
			processes = append(processes, daemon)
		}
		if err != nil {
			return processes, err
		}
	}
	for i, s := range sides() {
		// OpenVPN says this when the device has its addresses.
		ready := "UDPv4 link remote"
		if i < c.ours {
			ready = endpointReady
		}
		if err := processes[i].WaitLog(ctx, ready); err != nil {
			return processes, err
		}
		if i < c.ours {
			address := fmt.Sprintf("ip addr add 10.99.0.%d peer 10.99.0.%d dev %s", i+1, 2-i, endpointDevice)
			if err := runAll(ctx, w, s.host, address, "ip link set "+endpointDevice+" up"); err != nil {
				return processes, err
			}
		}
		if err := through(ctx, w, s, endpointDevice); err != nil {
			return processes, err
		}
	}
	return processes, await(ctx, w, sides()[0].host, processes[0], "ping -c 1 -W 1 10.99.0.2")
}

// startReal runs OpenVPN with its defaults, as far as the mode lets it. It is the
// TLS server at site 2.
func (c connection) startReal(ctx context.Context, w *netlab.World, _ programs, i int, s *side, prints []ovpn.Fingerprint) (*netlab.Process, error) {
	args := []string{"--dev", endpointDevice, "--dev-type", "tun", "--disable-dco", "--proto", "udp", "--port", strconv.Itoa(endpointPort),
		"--remote", s.far.underlay, "--ifconfig", fmt.Sprintf("10.99.0.%d", i+1), fmt.Sprintf("10.99.0.%d", 2-i),
		"--tun-mtu", fmt.Sprint(openvpnMTU), "--mssfix", "0", "--ping", "10", "--ping-restart", "60", "--verb", "3"}
	switch {
	case !c.tls:
		args = slices.Concat(staticKeyConsent(ctx, w.Host(s.host)), args, []string{"--secret", keyFileName, "--cipher", "AES-256-CBC", "--auth", "SHA256"})
	case i == 0:
		args = append(args, "--tls-client")
	default:
		args = append(args, "--tls-server", "--dh", "none")
	}
	if c.tls {
		args = append(args, "--cert", certFileName, "--key", certKeyFileName, "--peer-fingerprint", prints[1-i].String(), "--data-ciphers", "AES-256-GCM")
	}
	return w.Host(s.host).Start(context.WithoutCancel(ctx), "openvpn", args...)
}

// startOurs runs this program as an endpoint.
func (c connection) startOurs(ctx context.Context, w *netlab.World, p programs, i int, s *side, prints []ovpn.Fingerprint) (*netlab.Process, error) {
	settings := endpointSettings{Local: netip.MustParseAddr(s.underlay), Remote: s.far.underlay}
	if c.tls {
		role := ovpn.TLSClient
		if i == 1 {
			role = ovpn.TLSServer
		}
		settings.Role, settings.Fingerprint = &role, prints[1-i].String()
	}
	if p.profiles != "" {
		dir, err := filepath.Abs(p.profiles)
		if err != nil {
			return nil, err
		}
		settings.Profile = filepath.Join(dir, fmt.Sprintf("tls=%t-ours=%d-%s.pprof", c.tls, c.ours, s.host))
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	return w.Host(s.host).Start(context.WithoutCancel(ctx), p.self, endpointCommand, string(text))
}

// writeSecrets gives both sides a static key, and each a certificate. It returns
// the fingerprints.
func writeSecrets(w *netlab.World) ([]ovpn.Fingerprint, error) {
	key := ovpn.GenerateStaticKey()
	var prints []ovpn.Fingerprint
	for _, s := range sides() {
		cert, certKey, sum, err := newCertificate(s.host)
		if err != nil {
			return nil, err
		}
		prints = append(prints, sum)
		h := w.Host(s.host)
		if err := errors.Join(h.WriteFile(keyFileName, key.Encode(), 0o600), h.WriteFile(certFileName, cert, 0o600), h.WriteFile(certKeyFileName, certKey, 0o600)); err != nil {
			return nil, err
		}
	}
	return prints, nil
}

// newCertificate makes a self-signed one, as PEM.
func newCertificate(name string) (cert, key []byte, sum ovpn.Fingerprint, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, sum, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, sum, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, sum, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), sha256.Sum256(der), nil
}

// endpointCommand makes this program an endpoint of package overlay/openvpn.
const endpointCommand = "endpoint"

// endpointSettings are its only argument, as JSON. The files are in its folder.
type endpointSettings struct {
	Local       netip.Addr
	Remote      string
	Role        *ovpn.Role `json:",omitempty"` // nil means static key mode
	Fingerprint string     `json:",omitempty"`
	Profile     string     `json:",omitempty"` // file for a CPU profile
}

// runEndpoint opens a TUN and an endpoint and serves until a signal.
func runEndpoint(text string) (err error) {
	var s endpointSettings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	cfg, err := s.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.Profile != "" {
		f, err := os.Create(s.Profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer func() {
			pprof.StopCPUProfile()
			_ = f.Close()
		}()
	}
	tun, err := ovpn.OpenTUN(endpointDevice, openvpnMTU)
	if err != nil {
		return err
	}
	cfg.Device = tun
	e, err := ovpn.Open(ctx, cfg)
	if err != nil {
		return errors.Join(err, tun.Close())
	}
	fmt.Println(endpointReady)
	<-ctx.Done()
	status := e.Status()
	fmt.Printf("%+v, %d refused by the kernel\n", status.Counters, tun.Refused())
	return e.Close()
}

func (s endpointSettings) config() (ovpn.Config, error) {
	cfg := ovpn.Config{
		Local: netip.AddrPortFrom(s.Local, endpointPort), Remote: fmt.Sprintf("%s:%d", s.Remote, endpointPort),
		Digest: ovpn.DigestSHA256, MTU: openvpnMTU, Logger: slog.Default(),
	}
	if s.Role == nil {
		text, err := os.ReadFile(keyFileName)
		if err != nil {
			return cfg, err
		}
		key, err := ovpn.ParseStaticKey(text)
		cfg.Static = &ovpn.Static{Key: key, Cipher: ovpn.CipherAES256CBC}
		return cfg, err
	}
	cert, err := tls.LoadX509KeyPair(certFileName, certKeyFileName)
	if err != nil {
		return cfg, err
	}
	peer, err := ovpn.ParseFingerprint(strings.TrimSpace(s.Fingerprint))
	cfg.TLS = &ovpn.TLS{Role: *s.Role, Certificate: cert, Fingerprints: []ovpn.Fingerprint{peer}, Ciphers: []ovpn.Cipher{ovpn.CipherAES256GCM}}
	return cfg, err
}
