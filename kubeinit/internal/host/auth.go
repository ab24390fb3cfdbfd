package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// usualKeys are the files of keys in ~/.ssh that are tried without a setting.
var usualKeys = []string{"id_ed25519", "id_ecdsa", "id_rsa"}

// clientConfig gathers what a handshake needs. release ends the connection to
// the agent, which signs during the handshake.
func (h *SSH) clientConfig(ctx context.Context) (config *ssh.ClientConfig, release func(), err error) {
	keys, err := h.knownHosts()
	if err != nil {
		return nil, nil, err
	}
	signers, release, err := h.signers(ctx)
	if err != nil {
		return nil, nil, err
	}
	return &ssh.ClientConfig{
		User:              h.config.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback:   keys.check,
		HostKeyAlgorithms: keys.algorithms(h.address()),
	}, release, nil
}

// signers returns the keys to offer: that of Config.Key, or those of the agent
// and the usual files. There is at least one.
func (h *SSH) signers(ctx context.Context) (keys []ssh.Signer, release func(), err error) {
	held, release, agentErr := h.agentSigners(ctx)
	defer func() {
		if err != nil {
			release()
		}
	}()
	if h.config.Key != "" {
		key, err := h.keyFile(h.path(h.config.Key), held)
		if err != nil {
			return nil, release, err
		}
		return []ssh.Signer{key}, release, nil
	}
	keys = held
	var encrypted []string
	for _, name := range usualKeys {
		name = h.path(filepath.Join("~/.ssh", name))
		key, err := h.keyFile(name, held)
		switch missing, locked := errors.AsType[*encryptedError](err); {
		case err == nil:
			keys = append(keys, key)
		case locked:
			encrypted = append(encrypted, missing.file)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, release, err
		}
	}
	switch {
	case len(keys) > 0:
		return keys, release, nil
	case agentErr != nil:
		return nil, release, agentErr
	case len(encrypted) > 0:
		return nil, release, &encryptedError{encrypted[0]}
	}
	return nil, release, fmt.Errorf("no SSH key: the agent has none, and there is none of %s in %s; give one as ssh.key, or type: ssh-add",
		strings.Join(usualKeys, ", "), h.path("~/.ssh"))
}

// agentSigners returns the keys of the agent; none if there is no agent.
func (h *SSH) agentSigners(ctx context.Context) ([]ssh.Signer, func(), error) {
	if h.config.AgentSocket == "" {
		return nil, func() {}, nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", h.config.AgentSocket)
	if err != nil {
		return nil, func() {}, fmt.Errorf("the SSH agent does not answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // whoever reads from it hears of it
	release := func() {
		stop()
		_ = conn.Close() // nothing was written that could be lost
	}
	keys, err := agent.NewClient(conn).Signers()
	if err != nil {
		return nil, release, fmt.Errorf("keys of the SSH agent: %w", err)
	}
	return keys, release, nil
}

// encryptedError is a key file with a passphrase, which nobody is asked for.
type encryptedError struct{ file string }

// Error says what to do about it.
func (e *encryptedError) Error() string {
	return fmt.Sprintf("key %s has a passphrase, and the SSH agent does not hold it; type: ssh-add %s", e.file, Quote(e.file))
}

// keyFile reads a private key. One with a passphrase is taken from the agent.
func (h *SSH) keyFile(name string, held []ssh.Signer) (ssh.Signer, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(b)
	missing, encrypted := errors.AsType[*ssh.PassphraseMissingError](err)
	if !encrypted {
		if err != nil {
			return nil, fmt.Errorf("SSH key %s: %w", name, err)
		}
		return key, nil
	}
	public := missing.PublicKey // old formats do not have it in the clear
	if public == nil {
		if b, err := os.ReadFile(name + ".pub"); err == nil {
			public, _, _, _, _ = ssh.ParseAuthorizedKey(b) // without it the key is not found, which is said
		}
	}
	for _, k := range held {
		if public != nil && bytes.Equal(k.PublicKey().Marshal(), public.Marshal()) {
			return k, nil
		}
	}
	return nil, &encryptedError{name}
}

// path expands ~/.
func (h *SSH) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		return filepath.Join(h.config.Home, rest)
	}
	return name
}

// handshakeError explains why no connection came to be.
func (h *SSH) handshakeError(err error) error {
	if key, ok := errors.AsType[*KeyError](err); ok {
		return key
	}
	if strings.Contains(err.Error(), "unable to authenticate") {
		return fmt.Errorf("user %s at %s takes none of our keys; put one into its authorized_keys, or name another as ssh.key: %w", h.config.User, h.address(), err)
	}
	return fmt.Errorf("connect to %s: %w", h.address(), err)
}
