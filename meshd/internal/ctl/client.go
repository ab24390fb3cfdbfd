package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning = errors.New("meshd is not running here")

// clientTimeout is longer than any answer takes.
const clientTimeout = requestTimeout + 5*time.Second

// maxAnswer bounds what is read of an answer: the status of 4,096 gateways
// with full records, about 4 KiB each, doubled.
const maxAnswer = 32 << 20

// Error is what the daemon answered instead of a result.
type Error struct {
	Status  int    // of HTTP
	Message string // the error line
	Hint    string // what to type or do next; empty means none
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Client asks the daemon that has a run directory. Methods return
// ErrNotRunning, fs.ErrPermission, *Error, or what went wrong on the way. It
// is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient is a client of the daemon whose run directory is dir. It does not
// connect yet.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, socketName)
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// About says which daemon answers.
func (c *Client) About(ctx context.Context) (out About, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/about", nil, &out)
}

// Status is that of the daemon's mesh and of its attachments.
func (c *Client) Status(ctx context.Context) (out Status, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/status", nil, &out)
}

// Routes says where packets go.
func (c *Client) Routes(ctx context.Context) (out Routes, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/routes", nil, &out)
}

// Matrix is the daemon's overlay.Mesh.Matrix.
func (c *Client) Matrix(ctx context.Context) (out overlay.Matrix, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/matrix", nil, &out)
}

// MatrixHosts is the daemon's overlay.Mesh.MatrixHosts.
func (c *Client) MatrixHosts(ctx context.Context, hosts []netip.Addr) (out overlay.HostMatrix, err error) {
	return out, c.do(ctx, http.MethodPost, "/v1/matrix/hosts", HostsRequest{Hosts: hosts}, &out)
}

// Ping sends one probe to every gateway that to means.
func (c *Client) Ping(ctx context.Context, to string) (out Ping, err error) {
	return out, c.do(ctx, http.MethodPost, "/v1/ping", PingRequest{To: to}, &out)
}

// Ticket asks for a ticket.
func (c *Client) Ticket(ctx context.Context, req TicketRequest) (out Ticket, err error) {
	return out, c.do(ctx, http.MethodPost, "/v1/tickets", req, &out)
}

// Grant lets a member announce more.
func (c *Client) Grant(ctx context.Context, req GrantRequest) (out Grant, err error) {
	return out, c.do(ctx, http.MethodPost, "/v1/grants", req, &out)
}

// RouteSets are all route sets of the daemon.
func (c *Client) RouteSets(ctx context.Context) (out RouteSets, err error) {
	return out, c.do(ctx, http.MethodGet, "/v1/routesets", nil, &out)
}

// RouteSet is the one of that name.
func (c *Client) RouteSet(ctx context.Context, name string) (out RouteSet, err error) {
	return out, c.do(ctx, http.MethodGet, setPath(name), nil, &out)
}

// PutRouteSet stores a set, which routeset.Parse has let pass, under its name.
func (c *Client) PutRouteSet(ctx context.Context, set routeset.Set) (out RouteSet, err error) {
	return out, c.do(ctx, http.MethodPut, setPath(set.Name), map[string]any{"announce": set.Announce, "lan": set.LAN}, &out)
}

// DeleteRouteSet takes the set of that name away and returns it.
func (c *Client) DeleteRouteSet(ctx context.Context, name string) (out RouteSet, err error) {
	return out, c.do(ctx, http.MethodDelete, setPath(name), nil, &out)
}

func setPath(name string) string { return "/v1/routesets/" + url.PathEscape(name) }

// Events calls f with every event from now on, until ctx ends, f returns an
// error, or the daemon stops, which is nil.
func (c *Client) Events(ctx context.Context, f func(overlay.Event) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var e overlay.Event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return c.explain(err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// do sends a request and decodes its answer into out.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return c.explain(err)
	}
	return nil
}

// send returns a successful response, or the error that the daemon gave.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://meshd"+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&f); err != nil || f.Error == "" {
		f.Error = "meshd answered " + resp.Status
	}
	return nil, &Error{Status: resp.StatusCode, Message: f.Error, Hint: f.Hint}
}

// explain says in the words of a person what keeps the daemon from answering.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nobody answers on %s)", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control socket %s: %w", c.path, fs.ErrPermission)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("meshd does not answer on %s", c.path)
	case errors.Is(err, context.Canceled):
		return err
	}
	return fmt.Errorf("control socket %s: %w", c.path, err)
}
