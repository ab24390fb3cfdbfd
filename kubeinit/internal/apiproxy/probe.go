package apiproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// State is what is known of an API server. Smaller is better.
type State int

// The states.
const (
	Ready   State = iota // says that it is ready
	Live                 // answers something else
	Unknown              // not asked yet
	Silent               // can be connected to, but does not answer as an API server of this cluster
	Down                 // cannot be connected to
)

// String returns one lower-case word.
func (s State) String() string {
	return [...]string{"ready", "live", "unknown", "silent", "down"}[min(max(s, Ready), Down)]
}

// MarshalText returns the same as String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText returned.
func (s *State) UnmarshalText(text []byte) error {
	for v := Ready; v <= Down; v++ {
		if v.String() == string(text) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("state %.20q: want ready, live, unknown, silent or down", text)
}

// keep is how many questions one connection carries. A new one measures the
// round trip again and looks at the certificate again.
const keep = 30

// probe asks one API server how it is. It is used by one goroutine.
type probe struct {
	address netip.AddrPort
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	timing  timing

	conn  *tls.Conn // nil: none is kept
	in    *bufio.Reader
	left  int            // bytes that the answer may still have
	roots *x509.CertPool // with which conn was made
	asked int
}

// result is an answer. rtt is 0 if no connection was made for it.
type result struct {
	state State
	rtt   time.Duration
	err   error
}

// maxError is the length in bytes of the errors that are kept. They may quote
// what a server says, and are logged.
const maxError = 200

func brief(err error) error {
	if err == nil || len(err.Error()) <= maxError {
		return err
	}
	return errors.New(strings.ToValidUTF8(err.Error()[:maxError], "") + "...")
}

// ask asks over the connection that is kept, and over a new one if there is
// none or no answer. roots is nil as long as the authority is not known.
func (p *probe) ask(ctx context.Context, roots *x509.CertPool) result {
	if p.conn != nil && p.roots == roots && p.asked < keep {
		if state, err := p.question(ctx, time.Now().Add(p.timing.kept)); err == nil {
			return result{state: state}
		}
	}
	p.close()
	return p.fresh(ctx, roots)
}

func (p *probe) fresh(ctx context.Context, roots *x509.CertPool) result {
	limit := time.Now().Add(p.timing.fresh)
	dialing, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	start := time.Now()
	conn, err := p.dial(dialing, "tcp", p.address.String())
	if err != nil {
		return result{state: Down, err: brief(err)}
	}
	rtt := max(time.Since(start), 1)
	// What is connected to is there. It gets time to answer, a loaded machine
	// too, because nothing hangs on Silent but the order.
	limit = limit.Add(p.timing.fresh)
	p.conn, p.roots, p.asked = tls.Client(conn, verifying(roots)), roots, 0
	p.in = bufio.NewReader(p)
	state, err := p.question(ctx, limit)
	if err != nil {
		p.close()
	}
	return result{state, rtt, brief(err)}
}

// question is one request and its answer, after the handshake if there was
// none.
func (p *probe) question(ctx context.Context, limit time.Time) (State, error) {
	raw := p.conn.NetConn()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	p.asked++
	p.left = maxFile
	if err := p.conn.SetDeadline(limit); err != nil {
		return Silent, err
	}
	req := "GET /readyz HTTP/1.1\r\nHost: " + p.address.String() + "\r\nUser-Agent: kubeinit-apiproxy\r\nAccept: */*\r\n\r\n"
	if _, err := io.WriteString(p.conn, req); err != nil {
		return Silent, err
	}
	res, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return Silent, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.Close {
		p.asked = keep // the connection is in the middle of something
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
		return Ready, nil
	}
	return Live, nil
}

// Read reads from the connection as much as an answer may have.
func (p *probe) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, errors.New("the answer has no end")
	}
	n, err := p.conn.Read(b[:min(len(b), p.left)])
	p.left -= n
	return n, err
}

func (p *probe) close() {
	if p.conn != nil {
		_ = p.conn.NetConn().Close() // without a farewell: it could block
		p.conn = nil
	}
}

// verifying accepts certificates of the cluster's authority, whatever their
// names, and any certificate while the authority is not known.
func verifying(roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it, without names
		VerifyConnection: func(cs tls.ConnectionState) error {
			if roots == nil {
				return nil
			}
			if len(cs.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			between := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				between.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
			return err
		},
	}
}
