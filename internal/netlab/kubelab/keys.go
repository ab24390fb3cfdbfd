//go:build linux

package kubelab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// keys are the SSH keys of a world: one of the operator, and one of every other host.
type keys struct {
	operator keyPair
	hosts    map[string]keyPair
	known    string // the operator's known_hosts file
}

type keyPair struct {
	signer          ssh.Signer
	private, public string // as OpenSSH has them in files
}

func newKeys(t netlab.Topology) (*keys, error) {
	k := &keys{hosts: make(map[string]keyPair)}
	var err error
	if k.operator, err = newKeyPair(operatorName); err != nil {
		return nil, err
	}
	var known strings.Builder
	for _, h := range t.Hosts {
		if h.Name == operatorName {
			continue
		}
		pair, err := newKeyPair(h.Name)
		if err != nil {
			return nil, err
		}
		k.hosts[h.Name] = pair
		names := []string{h.Name}
		for _, i := range h.Interfaces {
			for _, a := range i.Addrs {
				names = append(names, a.Addr().String())
			}
		}
		fmt.Fprintf(&known, "%s %s", strings.Join(names, ","), ssh.MarshalAuthorizedKey(pair.signer.PublicKey()))
	}
	k.known = known.String()
	return k, nil
}

func newKeyPair(name string) (keyPair, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return keyPair{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return keyPair{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		return keyPair{}, fmt.Errorf("make the key of %s: %w", name, err)
	}
	public := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(signer.PublicKey())), "\n") + " " + name + "\n"
	return keyPair{signer: signer, private: string(pem.EncodeToMemory(block)), public: public}, nil
}

// install puts a host's key, and the operator's as the one that may come in, below the host's root.
func (k *keys) install(root, host string) error {
	ssh := filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")
	return errors.Join(
		writeFile(ssh, k.hosts[host].private, 0o600),
		writeFile(ssh+".pub", k.hosts[host].public, 0o644),
		writeFile(filepath.Join(root, "root/.ssh/authorized_keys"), k.operator.public, 0o600),
	)
}
