// Embed joins three programs into one network without any privilege: three
// meshes in one process, an HTTP server on the first, a client on the third.
// On three machines the same code works with one mesh in each.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		cancel()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	// The first program founds the mesh. OpenDir in place of MemStore would
	// keep it over restarts.
	first := new(overlay.MemStore)
	if _, err := overlay.Init(first, overlay.InitRequest{
		Mesh: "example", Site: "zurich", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/16")},
	}); err != nil {
		return err
	}
	zurich, err := overlay.Open(ctx, overlay.Config{Store: first})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, zurich.Close()) }()

	// The others need a ticket each, and nothing else.
	lagos, err := join(ctx, zurich, "lagos")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lagos.Close()) }()
	lima, err := join(ctx, zurich, "lima")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lima.Close()) }()
	if err := waitFor(ctx, lima, 2); err != nil {
		return err
	}

	listener, err := zurich.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "hello from zurich")
		}),
	}
	go func() { _ = server.Serve(listener) }() // ends with server.Close
	defer func() { err = errors.Join(err, server.Close()) }()

	transport := &http.Transport{DialContext: lima.DialContext}
	defer transport.CloseIdleConnections()
	url := "http://" + net.JoinHostPort(zurich.Status().Self.Overlay.String(), "80")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	fmt.Fprint(out, "lima hears: ")
	_, err = io.Copy(out, response.Body)
	return err
}

// join makes a gateway with a ticket and starts it.
func join(ctx context.Context, issuer *overlay.Mesh, site string) (*overlay.Mesh, error) {
	ticket, err := issuer.Ticket(overlay.TicketRequest{Site: site})
	if err != nil {
		return nil, err
	}
	// ticket.Text() is what would travel to the other machine.
	ticket, err = overlay.ParseTicket(ticket.Text())
	if err != nil {
		return nil, err
	}
	store := new(overlay.MemStore)
	if _, err := overlay.Join(ctx, store, ticket, overlay.JoinOptions{}); err != nil {
		return nil, err
	}
	return overlay.Open(ctx, overlay.Config{Store: store})
}

// waitFor returns when n other gateways are up.
func waitFor(ctx context.Context, m *overlay.Mesh, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := m.Watch(ctx)
	for {
		up := 0
		for _, p := range m.Status().Peers {
			if p.State == overlay.PeerUp {
				up++
			}
		}
		if up >= n {
			return nil
		}
		if _, ok := <-events; !ok {
			return fmt.Errorf("%d of %d gateways up: %w", up, n, ctx.Err())
		}
	}
}
