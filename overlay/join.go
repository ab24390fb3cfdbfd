package overlay

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// JoinOptions say how Join reaches the mesh; the zero value will do.
type JoinOptions struct {
	// Port is the UDP port to ask from; zero means a free one.
	Port uint16
	// ListenPacket opens the port; nil means a real one, as in Config.
	ListenPacket func(ctx context.Context, port uint16) (net.PacketConn, error)
	// Logger receives what happens; nil means nothing is logged.
	Logger *slog.Logger
	// Now reads the wall clock; nil means time.Now.
	Now func() time.Time
}

// JoinResult is what Join got.
type JoinResult struct {
	Mesh      string
	MeshID    MeshID
	Gateway   string
	Site      string
	GatewayID GatewayID
	Prefixes  []netip.Prefix
	NotAfter  time.Time
}

// Join makes keys, has them certified with a ticket, and stores a gateway that
// Open starts. Private keys never leave the store. It asks every seed of the
// ticket until one of them leads to the redeemer or ctx ends.
//
// Errors: ErrStateExists, ErrTicketUsed, ErrTicketExpired, ErrTicketRefused,
// ErrNoPath if nobody answered, or what the store reports. A call after an
// answer got lost uses the same keys again and gets the same certificate.
func Join(ctx context.Context, store Store, ticket Ticket, opts JoinOptions) (_ JoinResult, err error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if ticket.t == nil {
		return JoinResult{}, errors.New("join: empty ticket")
	}
	unlock, err := lockEmpty(store)
	if err != nil {
		return JoinResult{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	k, err := keysForJoin(store)
	if err != nil {
		return JoinResult{}, err
	}
	reply, err := redeemTicket(ctx, ticket.t, k, opts)
	if err != nil {
		return JoinResult{}, err
	}
	if err := refusal(reply); err != nil {
		return JoinResult{}, err
	}
	identity := trust.IdentityKey(k.identity.Public().(ed25519.PublicKey))
	chain, err := trust.VerifyReply(ticket.t, identity, reply)
	if err != nil {
		return JoinResult{}, fmt.Errorf("answer of the redeemer: %w", err)
	}
	if err := storeJoin(store, ticket.t, chain, reply); err != nil {
		return JoinResult{}, err
	}
	return JoinResult{
		Mesh:      ticket.Mesh(),
		MeshID:    ticket.MeshID(),
		Gateway:   chain.Certificate.Gateway,
		Site:      chain.Certificate.Site,
		GatewayID: trust.IDOf(ticket.MeshID(), identity),
		Prefixes:  ticket.Prefixes(),
		NotAfter:  chain.Certificate.NotAfter,
	}, nil
}

// keysForJoin returns the keys of an attempt whose answer got lost, or new
// ones, which are on disk before anybody hears of them.
func keysForJoin(store Store) (keys, error) {
	k, err := loadKeys(store)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return k, err // keys that cannot be read are not written over
	}
	k, err = newKeys()
	if err != nil {
		return keys{}, err
	}
	return k, saveFiles(store, k.files()...)
}

// refusal is the error of an answer that grants nothing.
func refusal(reply *trust.EnrolReply) error {
	switch reply.Status {
	case trust.EnrolGranted:
		return nil
	case trust.EnrolUsed:
		return fmt.Errorf("%w: %s", ErrTicketUsed, reply.Reason)
	case trust.EnrolExpired:
		return fmt.Errorf("%w: %s", ErrTicketExpired, reply.Reason)
	}
	return fmt.Errorf("%w: %s", ErrTicketRefused, reply.Reason)
}

// storeJoin writes the certificate last: with it the state is a gateway.
func storeJoin(store Store, t *trust.Ticket, chain trust.Chain, reply *trust.EnrolReply) error {
	seeds, err := json.Marshal(t.Seeds)
	if err != nil {
		return err
	}
	return saveFiles(store,
		stateFile{fileGenesis, t.Root.Genesis.Raw()},
		stateFile{fileEpochs, encodeList(t.Epochs)},
		stateFile{fileSeeds, seeds},
		stateFile{fileRedeemer, t.RedeemerIdentity[:]},
		stateFile{fileRecords, encodeList(reply.Records)},
		stateFile{fileDelegation, chain.Delegation.Raw()},
		stateFile{fileCertificate, chain.Certificate.Raw()},
	)
}

// redeemTicket sends the sealed request to one seed after the other.
func redeemTicket(ctx context.Context, t *trust.Ticket, k keys, opts JoinOptions) (*trust.EnrolReply, error) {
	port, err := link.Open(ctx, link.Config{
		Mesh: t.Root.ID(), Own: link.OwnKeys{}, Port: opts.Port, ListenPacket: opts.ListenPacket, Logger: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	streams, err := stream.New(stream.Config{Conn: port.StreamConn(), Identity: k.identity, Logger: opts.Logger})
	if err != nil {
		return nil, errors.Join(err, port.Close())
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = port.Run(running) })
	wg.Go(func() { _ = streams.Run(running) })
	defer func() {
		stop()
		wg.Wait()
		_ = port.Close()
	}()
	return askSeeds(ctx, streams, t, k)
}

// Pauses between rounds over all seeds, and the time for one of them.
const (
	seedPause   = 500 * time.Millisecond
	seedTimeout = 5 * time.Second
)

func askSeeds(ctx context.Context, streams *stream.Transport, t *trust.Ticket, k keys) (*trust.EnrolReply, error) {
	replyKey, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	sealed, err := trust.SealRequest(t, k.identity, replyKey)
	if err != nil {
		return nil, err
	}
	var last error
	for {
		for _, seed := range slices.Concat(t.Seeds) {
			answer, err := askSeed(ctx, streams, seed, sealed)
			if err == nil {
				reply, err := trust.OpenReply(t.Root.ID(), replyKey, sealed, answer)
				if err == nil {
					return reply, nil
				}
				last = fmt.Errorf("%v answered what the redeemer did not write: %w", seed, err)
				continue
			}
			last = fmt.Errorf("%v: %w", seed, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no answer from %v: %w: %w", t.Seeds, ErrNoPath, last)
		case <-time.After(seedPause):
		}
	}
}

func askSeed(ctx context.Context, streams *stream.Transport, seed netip.AddrPort, sealed []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	return streams.Enrol(ctx, seed, sealed)
}
