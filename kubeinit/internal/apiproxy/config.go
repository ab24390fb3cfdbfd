package apiproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
)

// Limits of files and lists.
const (
	maxFile      = 64 << 10
	maxUpstreams = 64
	maxListen    = 16

	defaultMaxConnections = 4096
	defaultMaxPerSource   = 512
)

// Config is the configuration file, JSON with exactly these keys.
type Config struct {
	// Listen is where clients connect. At least one.
	Listen []netip.AddrPort `json:"listen"`
	// Upstreams are the API servers of the inventory. At least one.
	Upstreams []Upstream `json:"upstreams"`
	// Learned is a file with further API servers, see Learned; empty or missing:
	// none.
	Learned string `json:"learned,omitempty"`
	// CA is the file of the cluster's authority. It may come later.
	CA string `json:"ca,omitempty"`
	// Status is the path of a Unix socket that writes a Status to whoever
	// connects, and closes; empty: none.
	Status string `json:"status,omitempty"`
	// MaxConnections are at once; 0: 4096. MaxPerSource are those of one address
	// other than loopback; 0: 512.
	MaxConnections int `json:"maxConnections,omitempty"`
	MaxPerSource   int `json:"maxPerSource,omitempty"`
}

// Upstream is an API server.
type Upstream struct {
	Address netip.AddrPort `json:"address"`
	// Name is for people.
	Name string `json:"name,omitempty"`
	// OwnHost and OwnSite say how near it is. OwnHost implies OwnSite.
	OwnHost bool `json:"ownHost,omitempty"`
	OwnSite bool `json:"ownSite,omitempty"`
}

// Learned is the second file: the API servers that the cluster itself names in
// the EndpointSlice of the Service kubernetes. They are used beside those of the
// inventory, whose entry counts where both name one.
type Learned struct {
	Upstreams []Upstream `json:"upstreams"`
}

// ParseConfig reads a configuration file. The error names every fault.
func ParseConfig(data []byte) (Config, error) {
	var c Config
	if err := decode(data, &c); err != nil {
		return Config{}, err
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = defaultMaxConnections
	}
	if c.MaxPerSource == 0 {
		c.MaxPerSource = defaultMaxPerSource
	}
	if err := c.check(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// ParseLearned reads the file of learned servers.
func ParseLearned(data []byte) (Learned, error) {
	var l Learned
	if err := decode(data, &l); err != nil {
		return Learned{}, err
	}
	if err := checkUpstreams(l.Upstreams); err != nil {
		return Learned{}, err
	}
	return l, nil
}

// JSON is the file that ParseConfig reads.
func (c Config) JSON() []byte { return indented(c) }

// JSON is the file that ParseLearned reads.
func (l Learned) JSON() []byte { return indented(l) }

// indented writes values of this package, all of which can be written.
func indented(v any) []byte {
	b, _ := json.MarshalIndent(v, "", "  ")
	return append(b, '\n')
}

func decode(data []byte, into any) error {
	if len(data) > maxFile {
		return fmt.Errorf("%d bytes: want at most %d", len(data), maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("want one JSON object and nothing after it")
	}
	return nil
}

func (c Config) check() error {
	var errs []error
	if n := len(c.Listen); n < 1 || n > maxListen {
		errs = append(errs, fmt.Errorf("listen: %d addresses: want 1 to %d", n, maxListen))
	}
	for i, a := range c.Listen {
		if !a.IsValid() || a.Port() == 0 || slices.Contains(c.Listen[:i], a) {
			errs = append(errs, fmt.Errorf("listen: %s: want an address and a port, once", a))
		}
	}
	if len(c.Upstreams) == 0 {
		errs = append(errs, errors.New("upstreams: want at least one"))
	}
	errs = append(errs, checkUpstreams(c.Upstreams))
	for _, u := range c.Upstreams {
		if slices.Contains(c.Listen, u.Address) {
			errs = append(errs, fmt.Errorf("upstreams: %s is where the proxy itself listens", u.Address))
		}
	}
	for _, p := range []string{c.Learned, c.CA, c.Status} {
		if p != "" && !filepath.IsAbs(p) {
			errs = append(errs, fmt.Errorf("file %q: want an absolute path", p))
		}
	}
	if c.MaxConnections < 0 || c.MaxPerSource < 0 {
		errs = append(errs, errors.New("maxConnections and maxPerSource: want no negative number"))
	}
	return errors.Join(errs...)
}

func checkUpstreams(list []Upstream) error {
	var errs []error
	if len(list) > maxUpstreams {
		errs = append(errs, fmt.Errorf("upstreams: %d: want at most %d", len(list), maxUpstreams))
	}
	seen := map[netip.AddrPort]bool{}
	for _, u := range list {
		a := u.Address
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || seen[a] {
			errs = append(errs, fmt.Errorf("upstreams: %s: want an address and a port to connect to, once", a))
		}
		seen[a] = true
	}
	return errors.Join(errs...)
}

// merged are the servers of both lists, at most maxUpstreams.
func (c Config) merged(l Learned) []Upstream {
	out := slices.Clone(c.Upstreams)
	for _, u := range l.Upstreams {
		same := func(v Upstream) bool { return v.Address == u.Address }
		if len(out) < maxUpstreams && !slices.ContainsFunc(out, same) && !slices.Contains(c.Listen, u.Address) {
			out = append(out, u)
		}
	}
	return out
}
