package link

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// OwnKeys are the keys of this gateway. Private keys may be nil on a gateway
// that only carries streams, as one that has not enrolled yet; it can have no
// peers.
type OwnKeys struct {
	ID       trust.GatewayID
	Identity trust.IdentityKey
	Boot     trust.BootID // of this start, random

	Link, WireGuard *ecdh.PrivateKey // X25519

	// PreviousLink and PreviousWireGuard are still honoured during a key
	// change; nil otherwise.
	PreviousLink, PreviousWireGuard *ecdh.PrivateKey
}

// PeerKeys are the public keys of another gateway, from its verified record.
type PeerKeys struct {
	ID       trust.GatewayID
	Identity trust.IdentityKey

	Link, WireGuard trust.ExchangeKey

	// PreviousLink and PreviousWireGuard are still honoured during a key
	// change of the peer; zero otherwise.
	PreviousLink, PreviousWireGuard trust.ExchangeKey
}

// keyID names the key of one direction on the wire.
type keyID [keyIDLen]byte

// pairKeys is one key K of a pair of gateways with what is derived from it for
// probes. A pair has more than one while a gateway changes its keys. Immutable.
type pairKeys struct {
	k                 [32]byte
	own, peer         trust.IdentityKey
	peerWireGuard     trust.ExchangeKey // that the peer has proven with every datagram under k
	mesh              trust.MeshID
	sendID, receiveID keyID
	send, receive     cipher.AEAD // XChaCha20-Poly1305
}

// gossipKeys are the keys for gossip between one start of ours and one of the
// peer.
type gossipKeys struct {
	sendID, receiveID keyID
	send, receive     cipher.AEAD // ChaCha20-Poly1305
}

// agree derives every pair key of own and peer, the one of the newest keys
// first. This is the only public-key work of the package.
func agree(mesh trust.MeshID, own *OwnKeys, peer *PeerKeys) ([]*pairKeys, error) {
	if own.Link == nil || own.WireGuard == nil {
		return nil, errors.New("no private keys")
	}
	links, err := products(own.Link, own.PreviousLink, peer.Link, peer.PreviousLink)
	if err != nil {
		return nil, fmt.Errorf("link key: %w", err)
	}
	wgs, err := products(own.WireGuard, own.PreviousWireGuard, peer.WireGuard, peer.PreviousWireGuard)
	if err != nil {
		return nil, fmt.Errorf("wireguard key: %w", err)
	}
	var all []*pairKeys
	for _, l := range links {
		for _, w := range wgs {
			k, err := newPairKeys(mesh, own.Identity, peer.Identity, l, w)
			if err != nil {
				return nil, err
			}
			all = append(all, k)
		}
	}
	return all, nil
}

// product is one X25519 agreement.
type product struct {
	own, peer []byte // public keys
	secret    []byte
}

// products computes the agreements between the present and previous keys of
// both sides, the present ones first. ECDH refuses all-zero results.
func products(own, ownBefore *ecdh.PrivateKey, peer, peerBefore trust.ExchangeKey) ([]product, error) {
	var all []product
	for _, private := range []*ecdh.PrivateKey{own, ownBefore} {
		if private == nil {
			continue
		}
		for i, key := range []trust.ExchangeKey{peer, peerBefore} {
			if i > 0 && (key == trust.ExchangeKey{} || key == peer) {
				continue
			}
			public, err := ecdh.X25519().NewPublicKey(key[:])
			if err != nil {
				return nil, err
			}
			secret, err := private.ECDH(public)
			if err != nil {
				return nil, err
			}
			all = append(all, product{own: private.PublicKey().Bytes(), peer: key[:], secret: secret})
		}
	}
	return all, nil
}

// newPairKeys derives K and the probe keys of both directions.
func newPairKeys(mesh trust.MeshID, own, peer trust.IdentityKey, l, w product) (*pairKeys, error) {
	info := []byte("planetmesh/1/pair\x00")
	if bytes.Compare(own[:], peer[:]) < 0 {
		info = concat(info, own[:], peer[:], l.own, l.peer, w.own, w.peer)
	} else {
		info = concat(info, peer[:], own[:], l.peer, l.own, w.peer, w.own)
	}
	k, err := hkdf.Key(sha256.New, concat(nil, l.secret, w.secret), mesh[:], string(info), 32)
	if err != nil {
		return nil, err
	}
	p := &pairKeys{own: own, peer: peer, peerWireGuard: trust.ExchangeKey(w.peer), mesh: mesh}
	copy(p.k[:], k)
	p.sendID, p.send, err = p.direction("planetmesh/1/probe\x00", chacha20poly1305.NewX, own[:], peer[:])
	if err != nil {
		return nil, err
	}
	p.receiveID, p.receive, err = p.direction("planetmesh/1/probe\x00", chacha20poly1305.NewX, peer[:], own[:])
	if err != nil {
		return nil, err
	}
	return p, nil
}

// gossip derives the gossip keys for a pair of starts.
func (p *pairKeys) gossip(own, peer trust.BootID) (*gossipKeys, error) {
	const label = "planetmesh/1/gossip\x00"
	var g gossipKeys
	var err error
	g.sendID, g.send, err = p.direction(label, chacha20poly1305.New, p.own[:], p.peer[:], own[:], peer[:])
	if err != nil {
		return nil, err
	}
	g.receiveID, g.receive, err = p.direction(label, chacha20poly1305.New, p.peer[:], p.own[:], peer[:], own[:])
	if err != nil {
		return nil, err
	}
	return &g, nil
}

// direction derives the 32-byte key and the key ID of one direction.
func (p *pairKeys) direction(label string, newAEAD func([]byte) (cipher.AEAD, error), context ...[]byte) (keyID, cipher.AEAD, error) {
	out, err := hkdf.Key(sha256.New, p.k[:], p.mesh[:], label+string(concat(nil, context...)), chacha20poly1305.KeySize+keyIDLen)
	if err != nil {
		return keyID{}, nil, err
	}
	aead, err := newAEAD(out[:chacha20poly1305.KeySize])
	return keyID(out[chacha20poly1305.KeySize:]), aead, err
}

func concat(to []byte, parts ...[]byte) []byte {
	for _, p := range parts {
		to = append(to, p...)
	}
	return to
}
