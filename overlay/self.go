package overlay

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// self is who this gateway is: what the store says, verified.
type self struct {
	keys    keys
	mesh    trust.MeshID
	id      trust.GatewayID
	root    *trust.Root
	epochs  [][]byte
	current atomic.Pointer[trust.Chain] // renewals replace it
	renewal sync.Mutex                  // held while one does
	overlay netip.Addr
	block   netip.Prefix
	seeds   []netip.AddrPort
	floor   time.Time
}

// certificate returns the certificate in force.
func (s *self) certificate() *trust.Certificate { return s.current.Load().Certificate }

// granted returns the prefixes that the certificate grants.
func (s *self) granted() []netip.Prefix {
	var out []netip.Prefix
	for _, g := range s.certificate().Grants {
		out = append(out, g.Prefix)
	}
	return out
}

// loadSelf reads and verifies the gateway in the store.
func loadSelf(store Store, now time.Time) (*self, error) {
	certificate, err := store.Load(fileCertificate)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoState
	}
	if err != nil {
		return nil, err
	}
	s := new(self)
	if s.keys, err = loadKeys(store); err != nil {
		return nil, err
	}
	if s.root, s.epochs, err = loadRoot(store); err != nil {
		return nil, err
	}
	s.mesh = s.root.ID()
	delegation, err := store.Load(fileDelegation)
	if err != nil {
		return nil, err
	}
	chain, err := trust.DecodeChain(delegation, certificate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", fileCertificate, err, ErrStateCorrupt)
	}
	if s.floor, err = timeFloor(store, now, chain.Certificate.NotBefore); err != nil {
		return nil, err
	}
	if err := s.check(chain, s.floor); err != nil {
		return nil, err
	}
	s.current.Store(&chain)
	s.id = trust.IDOf(s.mesh, chain.Certificate.Identity)
	s.overlay = trust.OverlayAddr(s.mesh, chain.Delegation.Organisation, chain.Certificate.Identity)
	s.block = trust.OverlayBlock(s.mesh)
	return s, loadJSON(store, fileSeeds, &s.seeds)
}

// check verifies a chain as that of this gateway.
func (s *self) check(chain trust.Chain, now time.Time) error {
	if err := s.root.VerifyChain(chain, now); err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if !slices.Equal(chain.Certificate.Identity[:], s.keys.identity.Public().(ed25519.PublicKey)) {
		return fmt.Errorf("%s: is for another identity than %s: %w", fileCertificate, fileIdentity, ErrStateCorrupt)
	}
	return nil
}

// adopt verifies and stores a renewed certificate and takes it into force.
func (s *self) adopt(store Store, delegation, certificate []byte, now time.Time) error {
	chain, err := trust.DecodeChain(delegation, certificate)
	if err != nil {
		return err
	}
	if err := s.check(chain, now); err != nil {
		return err
	}
	s.renewal.Lock()
	defer s.renewal.Unlock()
	old := s.certificate()
	if chain.Certificate.Gateway != old.Gateway || chain.Certificate.Generation <= old.Generation {
		return fmt.Errorf("renewed certificate is for %s generation %d, want %s above %d",
			chain.Certificate.Gateway, chain.Certificate.Generation, old.Gateway, old.Generation)
	}
	if err := store.Save(fileDelegation, delegation); err != nil {
		return err
	}
	if err := store.Save(fileCertificate, certificate); err != nil {
		return err
	}
	s.current.Store(&chain)
	return nil
}

// loadRoot reads the genesis and the epochs that followed it.
func loadRoot(store Store) (*trust.Root, [][]byte, error) {
	genesis, err := store.Load(fileGenesis)
	if err != nil {
		return nil, nil, err
	}
	epochs, err := loadList(store, fileEpochs)
	if err != nil {
		return nil, nil, err
	}
	root, err := trust.NewRoot(genesis, epochs)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w: %w", fileGenesis, err, ErrStateCorrupt)
	}
	return root, epochs, nil
}
