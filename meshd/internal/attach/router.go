package attach

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// router is one attachment that runs.
//
//	openRouter ──▶ connecting ──▶ up ◀──▶ down
//	                  ▲                    ▲
//	                  └── the endpoint ends by itself (its interface was deleted):
//	                      down, and a new one after a pause
type router struct {
	set  *Set
	conf conf.OpenVPN
	stop context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	endpoint *openvpn.Endpoint // guarded by mu; nil while none can be opened
	filter   *filter           // guarded by mu; that of the endpoint
	was      bool              // guarded by mu; up at some time
	since    time.Time         // guarded by mu; when the endpoint was lost
	lost     error             // guarded by mu; why, nil with an endpoint
	before   Counters          // guarded by mu; of the endpoints before
}

const (
	// reopenPause and maxReopenPause bound the pause before an endpoint that
	// ended by itself is opened again.
	reopenPause    = time.Second
	maxReopenPause = 30 * time.Second
)

// openRouter starts an attachment. ctx bounds opening it.
func openRouter(ctx context.Context, s *Set, o conf.OpenVPN) (*router, error) {
	r := &router{set: s, conf: o, done: make(chan struct{})}
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { // ends with close
		defer close(r.done)
		r.run(run)
	}()
	return r, nil
}

// open makes interface and endpoint.
func (r *router) open(ctx context.Context) error {
	device, err := r.set.cfg.Device(r.conf.Device, r.conf.Tunnel.MTU)
	if err != nil {
		return err
	}
	f := newFilter(device, &r.conf, r.set.log)
	cfg := r.conf.Endpoint()
	cfg.Device = f
	cfg.Times = r.set.times(r.conf.Name)
	cfg.Logger = r.set.log
	endpoint, err := openvpn.Open(ctx, cfg)
	if err != nil {
		return errors.Join(err, device.Close())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoint, r.filter, r.lost = endpoint, f, nil
	return nil
}

// run follows the endpoint until ctx ends.
func (r *router) run(ctx context.Context) {
	for {
		r.follow(ctx)
		r.set.wake()
		for pause := reopenPause; ; pause = min(2*pause, maxReopenPause) {
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			err := r.open(ctx)
			if err == nil {
				break
			}
			r.mu.Lock()
			r.lost = err
			r.mu.Unlock()
		}
		r.set.wake()
	}
}

// follow wakes the set when the router comes or goes. It returns when the
// endpoint has ended, at the latest with ctx.
func (r *router) follow(ctx context.Context) {
	endpoint := r.endpoint // only this goroutine changes it
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Wait() }() // ends with the endpoint
	r.look(endpoint)
	for {
		select {
		case <-endpoint.Changes():
			r.look(endpoint)
		case <-ctx.Done():
			if err := endpoint.Close(); err != nil {
				r.set.log.Warn("interface not closed", "attachment", r.conf.Name, "err", err)
			}
			r.lose(<-ended)
			return
		case err := <-ended:
			r.set.log.Error("attachment ended and starts again", "attachment", r.conf.Name, "err", err)
			r.lose(err)
			return
		}
	}
}

// look remembers that the router was there.
func (r *router) look(endpoint *openvpn.Endpoint) {
	if endpoint.Status().State == openvpn.StateUp {
		r.mu.Lock()
		r.was = true
		r.mu.Unlock()
	}
	r.set.wake()
}

// lose notes that there is no endpoint and why, and keeps its counters.
func (r *router) lose(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before = r.countersLocked()
	r.endpoint, r.filter, r.lost, r.since = nil, nil, err, time.Now()
}

// close ends the attachment and waits for it.
func (r *router) close() {
	r.stop()
	<-r.done
}

// up reports whether authentic packets come from the router.
func (r *router) up() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endpoint != nil && r.endpoint.Status().State == openvpn.StateUp
}

// attachment is what the mesh is to know, without prefixes; false if there is
// no interface.
func (r *router) attachment() (overlay.Attachment, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.conf.Tunnel
	return overlay.Attachment{
		Interface: r.conf.Device,
		MTU:       t.MTU,
		ClampMTU:  clamp(&r.conf),
		Local:     valid(t.Local, t.Local6),
		Peers:     valid(t.Peer, t.Peer6),
	}, r.endpoint != nil
}

func valid(addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
}

// What a tunnel over UDP adds to a packet, in bytes.
const (
	// outerMTU is the size of outer packets that real openvpn 2.6 keeps TCP
	// below (its default, mssfix 1492): one PPPoE header less than 1,500.
	outerMTU     = 1492
	outerHeaders = 40 + 8 // IPv6 and UDP, the larger family
	// CBC: initialisation vector, packet number of static key mode (8), padding.
	cbcAES, cbcSmall = 16 + 8 + 16, 8 + 8 + 8
	aead             = 4 + 4 + 16 // opcode with peer id, packet number, tag
	framed           = 1          // compression byte
	fragmented       = 4
)

// clamp is the largest packet that fits into one outer packet of outerMTU, 0
// for that of the interface. Over TCP there are no outer packets to fit into.
func clamp(o *conf.OpenVPN) int {
	if o.Transport != openvpn.UDP {
		return 0
	}
	digests := map[openvpn.Digest]int{
		openvpn.DigestMD5: 16, openvpn.DigestSHA1: 20, openvpn.DigestSHA256: 32, openvpn.DigestSHA384: 48, openvpn.DigestSHA512: 64,
	}
	add := digests[o.Auth]
	switch o.Cipher {
	case openvpn.CipherBlowfishCBC, openvpn.CipherTripleDESCBC:
		add += cbcSmall
	case "": // tls without a fallback; its ciphers are AEAD as a rule
		add = aead
	default:
		add += cbcAES
	}
	if o.Compression != openvpn.FramingNone {
		add += framed
	}
	if o.Fragment > 0 {
		add += fragmented
	}
	if fits := outerMTU - outerHeaders - add; fits < o.Tunnel.MTU {
		return fits
	}
	return 0
}
