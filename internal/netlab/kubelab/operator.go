//go:build linux

package kubelab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// Operator is the machine from which people work on the others: 192.168.10.250, in the network of site 10 and with the files
// of this machine, so that programs under test can be run in place. It has no program of a cluster in its PATH, and in its
// home directory an SSH key that every other host lets in as root, and their host keys.
type Operator struct {
	host *netlab.Host
	keys *keys
}

func newOperator(ctx context.Context, h *netlab.Host, k *keys) (*Operator, error) {
	o := &Operator{host: h, keys: k}
	return o, errors.Join(
		o.hideClusterPrograms(ctx),
		h.WriteFile(o.KeyFile(), []byte(k.operator.private), 0o600),
		h.WriteFile(o.KeyFile()+".pub", []byte(k.operator.public), 0o644),
		h.WriteFile(o.KnownHostsFile(), []byte(k.known), 0o644),
	)
}

// hidden are programs of a cluster that this machine may have for its own purposes.
var hidden = []string{"kubeadm", "kubectl", "kubelet", "containerd", "ctr", "crictl", "runc", "etcd", "etcdctl", "meshd", "haproxy"}

// hideClusterPrograms makes those of the machine's programs that the operator shall not have unusable there. The mounts are the
// operator's alone.
func (o *Operator) hideClusterPrograms(ctx context.Context) error {
	var errs []error
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		for _, name := range hidden {
			path, err := filepath.EvalSymlinks(filepath.Join(dir, name))
			if err != nil {
				continue // there is none
			}
			_, err = o.host.Run(ctx, "mount", "--bind", "/dev/null", path)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Net is the operator's place in the network, for files and connections.
func (o *Operator) Net() *netlab.Host { return o.host }

// Home is the operator's home directory, which no other machine has.
func (o *Operator) Home() string { return filepath.Join(o.host.Dir(), "home") }

// KeyFile is the private key, under the name that ssh programs look for, and KnownHostsFile the host keys of all other
// hosts, by name and by every address.
func (o *Operator) KeyFile() string { return filepath.Join(o.Home(), ".ssh/id_ed25519") }

// KnownHostsFile is described at [Operator.KeyFile].
func (o *Operator) KnownHostsFile() string { return filepath.Join(o.Home(), ".ssh/known_hosts") }

// Command prepares a program as the operator would run it: in the home directory, with an environment that has HOME, PATH,
// USER, TERM and nothing else. Its fields may be changed before it is started.
func (o *Operator) Command(ctx context.Context, name string, args ...string) *netlab.Cmd {
	c := o.host.Command(ctx, name, args...)
	c.Dir = o.Home()
	c.Env = []string{"HOME=" + o.Home(), "USER=root", "TERM=dumb", "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH")}
	return c
}

// ErrSession is in the errors of [Operator.SSH] when the command was not what went wrong.
var ErrSession = errors.New("ssh session")

// SSH runs a shell command as root on another host and returns its standard output. Nothing is resolved: the connection goes
// to the host's address, whose host key must be the host's. A command that ends with another status than 0 is an
// [*ssh.ExitError] in the error, with the end of what it wrote to its standard error; all else is [ErrSession].
func (o *Operator) SSH(ctx context.Context, h *Host, command string, stdin io.Reader) (string, error) {
	client, err := o.dial(ctx, h)
	if err != nil {
		return "", fmt.Errorf("host %s: %w: %w", h.Name(), ErrSession, err)
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() }) //nolint:errcheck // then it was closed
	defer stop()
	session, err := client.NewSession()
	if err != nil {
		return "", fmt.Errorf("host %s: %w: %w", h.Name(), ErrSession, err)
	}
	var stdout, stderr bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = stdin, &stdout, &stderr
	err = session.Run(command)
	if exit := (*ssh.ExitError)(nil); errors.As(err, &exit) {
		return stdout.String(), fmt.Errorf("host %s: %s: %w: %s", h.Name(), firstLine(command), err, tail(stderr.String()))
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("host %s: %w: %w", h.Name(), ErrSession, errors.Join(err, ctx.Err()))
	}
	return stdout.String(), nil
}

func (o *Operator) dial(ctx context.Context, h *Host) (*ssh.Client, error) {
	address := net.JoinHostPort(h.Addr().String(), "22")
	conn, err := o.host.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // then it was closed
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User:              "root",
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(o.keys.operator.signer)},
		HostKeyCallback:   ssh.FixedHostKey(o.keys.hosts[h.Name()].signer.PublicKey()),
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return ssh.NewClient(c, channels, requests), nil
}

func firstLine(s string) string {
	line, _, more := strings.Cut(s, "\n")
	if more {
		line += " …"
	}
	return line
}
