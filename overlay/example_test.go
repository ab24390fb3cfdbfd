package overlay_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
)

// Three meshes in one process: an HTTP server on one, a client on another. No
// privilege is needed; on three machines the same calls do the same.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	// The first founds the mesh.
	first := new(overlay.MemStore)
	_, err := overlay.Init(first, overlay.InitRequest{
		Mesh: "example", Site: "zurich", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.10.0.0/16")},
	})
	if err != nil {
		log.Fatal(err)
	}
	zurich, err := overlay.Open(ctx, overlay.Config{Store: first})
	if err != nil {
		log.Fatal(err)
	}
	defer zurich.Close()

	// A ticket's text is all that the others need.
	join := func(site string) *overlay.Mesh {
		ticket, err := zurich.Ticket(overlay.TicketRequest{Site: site})
		if err != nil {
			log.Fatal(err)
		}
		store := new(overlay.MemStore)
		if _, err := overlay.Join(ctx, store, ticket, overlay.JoinOptions{}); err != nil {
			log.Fatal(err)
		}
		m, err := overlay.Open(ctx, overlay.Config{Store: store})
		if err != nil {
			log.Fatal(err)
		}
		return m
	}
	lagos, lima := join("lagos"), join("lima")
	defer lagos.Close()
	defer lima.Close()

	// A server on the first, at its overlay address.
	listener, err := zurich.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "hello from zurich")
		}),
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()

	// Wait until the others are up, then ask from the third.
	events := lima.Watch(ctx)
	for up := 0; up < 2; {
		up = 0
		for _, p := range lima.Status().Peers {
			if p.State == overlay.PeerUp {
				up++
			}
		}
		if up < 2 {
			<-events
		}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: lima.DialContext}}
	response, err := client.Get("http://" + net.JoinHostPort(zurich.Status().Self.Overlay.String(), "80"))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print("lima hears: ", string(body))

	// Output:
	// lima hears: hello from zurich
}
