package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// KeyError is a machine that does not prove who it is.
type KeyError struct {
	Address     string // as known_hosts has it: with a port if that is not 22
	Fingerprint string // of the key that it showed, with its type
	// Known is where another key of the same address stands, as FILE:LINE. It is
	// empty if none is known.
	Known string
	// Revoked says that exactly this key is marked as one not to be trusted.
	Revoked bool
	Cure    string // what to type, after comparing fingerprints
}

// Changed says that another key than before was shown.
func (e *KeyError) Changed() bool { return e.Known != "" }

// Error says what is wrong and what to type.
func (e *KeyError) Error() string {
	switch {
	case e.Revoked:
		return fmt.Sprintf("host key of %s is revoked (%s)", e.Address, e.Fingerprint)
	case e.Changed():
		return fmt.Sprintf("host key of %s has changed: it shows %s, and %s has another one; somebody may be in between. If the machine was installed anew: %s",
			e.Address, e.Fingerprint, e.Known, e.Cure)
	}
	return fmt.Sprintf("host key of %s is not known: it shows %s. Compare this on the machine, then: %s", e.Address, e.Fingerprint, e.Cure)
}

// hostKeys are the known keys of hosts.
type hostKeys struct {
	known       ssh.HostKeyCallback
	file        string // where new keys belong
	authorities bool   // some lines are those of certificate authorities
	config      Config
}

const globalKnownHosts = "/etc/ssh/ssh_known_hosts"

// knownHosts reads the files of known keys. One that is not there is empty.
func (h *SSH) knownHosts() (*hostKeys, error) {
	k := &hostKeys{config: h.config, file: h.path(h.config.KnownHosts)}
	files := []string{k.file}
	if k.file == "" {
		k.file = h.path("~/.ssh/known_hosts")
		files = []string{k.file, globalKnownHosts}
	}
	var present []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("known host keys: %w", err)
		}
		k.authorities = k.authorities || bytes.Contains(b, []byte("@cert-authority"))
		present = append(present, f)
	}
	known, err := knownhosts.New(present...)
	if err != nil {
		return nil, fmt.Errorf("known host keys: %w", err)
	}
	k.known = known
	return k, nil
}

// check is the callback of the handshake.
func (k *hostKeys) check(address string, remote net.Addr, key ssh.PublicKey) error {
	err := k.known(address, remote, key)
	if err == nil {
		return nil
	}
	e := &KeyError{Address: knownhosts.Normalize(address), Fingerprint: key.Type() + " " + ssh.FingerprintSHA256(key)}
	if _, ok := errors.AsType[*knownhosts.RevokedError](err); ok {
		e.Revoked = true
		return e
	}
	other, ok := errors.AsType[*knownhosts.KeyError](err)
	if !ok {
		return fmt.Errorf("host key of %s: %w", e.Address, err)
	}
	e.Cure = k.add()
	if len(other.Want) > 0 {
		e.Known = fmt.Sprintf("%s:%d", other.Want[0].Filename, other.Want[0].Line)
		e.Cure = Quote("ssh-keygen", "-f", other.Want[0].Filename, "-R", e.Address) + " && " + e.Cure
	}
	return e
}

// add is the command that adds the key of the machine to the file. ssh-keyscan
// cannot go through another machine, but ssh can.
func (k *hostKeys) add() string {
	c := k.config
	port := fmt.Sprint(c.Port)
	if c.Via == nil {
		return Quote("ssh-keyscan", "-p", port, c.Address) + " >> " + Quote(k.file)
	}
	jump := c.Via.config
	return Quote("ssh", "-o", "UserKnownHostsFile="+k.file, "-J", jump.User+"@"+jump.viaAddress(), "-p", port, c.User+"@"+c.Address, "true")
}

func (c Config) viaAddress() string { return net.JoinHostPort(c.Address, fmt.Sprint(c.Port)) }

// algorithms are those that a known key of the address can answer. Without them
// a server would choose, and could show a key that is not the one we know. It is
// empty, which means all, if no key is known.
func (k *hostKeys) algorithms(address string) []string {
	probe, ok := errors.AsType[*knownhosts.KeyError](k.known(address, &net.TCPAddr{IP: net.IPv4zero}, noKey{}))
	if !ok {
		return nil
	}
	var plain, certified []string
	for _, w := range probe.Want {
		for _, a := range signatures(w.Key.Type()) {
			if !slices.Contains(plain, a) {
				plain = append(plain, a)
			}
		}
	}
	if k.authorities && len(plain) > 0 {
		certified = []string{
			ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
			ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
		}
	}
	return append(certified, plain...)
}

// signatures are the ways in which a key of some type signs. SHA-1 is not among
// them.
func signatures(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

// noKey is a key that nobody has, to ask which ones are known.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }
