package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Config says how a machine is reached over SSH.
type Config struct {
	Name    string // in the inventory
	Address string // a name or an address, without a port
	Port    uint16
	User    string
	// Sudo runs every command through sudo -n.
	Sudo bool
	// Key is the file of a private key. Empty: the keys of the agent, then
	// id_ed25519, id_ecdsa and id_rsa in Home/.ssh.
	Key string
	// KnownHosts is the file with the keys of hosts. Empty: Home/.ssh/known_hosts
	// and /etc/ssh/ssh_known_hosts.
	KnownHosts string
	// Home is the home directory of the user; paths may begin with ~/.
	Home string
	// AgentSocket is where an SSH agent listens; empty: there is none.
	AgentSocket string
	// Via is the machine through which this one is reached; nil: directly. It
	// is not closed with this one.
	Via *SSH
	// KeepAlive is how often a sign of life is asked for; three without an answer
	// end the connection. 0 means 15 seconds.
	KeepAlive time.Duration
}

const (
	connectTimeout = 15 * time.Second
	keepAlive      = 15 * time.Second
	missedAlive    = 3

	// maxSessions leaves two of the ten sessions that sshd allows on a connection
	// (MaxSessions in sshd_config(5)): one to end commands, and one to spare.
	maxSessions = 8

	// killGrace is how long a command has after SIGTERM, and killTimeout how
	// long the end of one is waited for.
	killGrace   = 3 * time.Second
	killTimeout = 10 * time.Second
)

// SSH is a Host that is reached over SSH. It connects when it is first used,
// and again when it is used after the connection broke.
type SSH struct {
	config   Config
	sessions chan struct{} // holds one value for each session in use
	killing  chan struct{} // holds one while a command is being ended

	dialing sync.Mutex // held while a connection is made, so that there is one

	mu     sync.Mutex // guards what follows
	client *ssh.Client
	gone   chan struct{} // closed when client is
	closed bool
}

var _ Host = (*SSH)(nil)

// NewSSH returns a machine and does not connect to it.
func NewSSH(c Config) *SSH {
	if c.KeepAlive <= 0 {
		c.KeepAlive = keepAlive
	}
	return &SSH{config: c, sessions: make(chan struct{}, maxSessions), killing: make(chan struct{}, 1)}
}

// Name returns the name in the inventory.
func (h *SSH) Name() string { return h.config.Name }

func (h *SSH) address() string {
	return net.JoinHostPort(h.config.Address, strconv.Itoa(int(h.config.Port)))
}

func (h *SSH) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", h.config.Name, fmt.Errorf(format, args...))
}

// Connect connects, if there is no connection. Other methods do so themselves;
// Connect tells whether the machine can be reached. The error can be a
// *KeyError.
func (h *SSH) Connect(ctx context.Context) error {
	_, _, err := h.connected(ctx)
	return err
}

// connected returns a connection and a channel that is closed with it.
func (h *SSH) connected(ctx context.Context) (*ssh.Client, <-chan struct{}, error) {
	h.dialing.Lock()
	defer h.dialing.Unlock()
	h.mu.Lock()
	client, gone, closed := h.client, h.gone, h.closed
	h.mu.Unlock()
	if closed {
		return nil, nil, h.errorf("%w", net.ErrClosed)
	}
	if client != nil {
		select {
		case <-gone:
		default:
			return client, gone, nil
		}
	}
	client, err := h.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	fresh := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		_ = client.Close() // nobody has used it
		return nil, nil, h.errorf("%w", net.ErrClosed)
	}
	h.client, h.gone = client, fresh
	go func() { // ends with the connection
		_ = client.Wait() // why it ended is what its users report
		close(fresh)
	}()
	go h.keepAlive(client, fresh) // ends with the connection
	return client, fresh, nil
}

// dial makes a connection.
func (h *SSH) dial(ctx context.Context) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer in %s", connectTimeout))
	defer cancel()
	config, release, err := h.clientConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.config.Name, err)
	}
	defer release()
	conn, err := h.dialTCP(ctx)
	if err != nil {
		return nil, h.errorf("connect to %s: %w", h.address(), because(ctx, err))
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // the handshake knows no context
	c, chans, requests, err := ssh.NewClientConn(conn, h.address(), config)
	if !stop() && err == nil {
		_ = c.Close() // nobody has used it
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // it may be closed already
		return nil, fmt.Errorf("%s: %w", h.config.Name, h.handshakeError(because(ctx, err)))
	}
	return ssh.NewClient(c, chans, requests), nil
}

func (h *SSH) dialTCP(ctx context.Context) (net.Conn, error) {
	if h.config.Via == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", h.address())
	}
	client, _, err := h.config.Via.connected(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := client.DialContext(ctx, "tcp", h.address())
	if err != nil {
		return nil, fmt.Errorf("through %s: %w", h.config.Via.Name(), err)
	}
	return conn, nil
}

// because puts the reason why ctx ended in the place of what followed from it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// keepAlive asks for signs of life, and closes a connection without them.
func (h *SSH) keepAlive(client *ssh.Client, gone <-chan struct{}) {
	tick := time.NewTicker(h.config.KeepAlive)
	defer tick.Stop()
	answers := make(chan struct{}, 1)
	waiting, missed := false, 0
	for {
		select {
		case <-gone:
			return
		case <-answers:
			waiting, missed = false, 0
		case <-tick.C:
			if waiting {
				if missed++; missed >= missedAlive {
					_ = client.Close() // whoever uses it hears of it
					return
				}
				continue
			}
			waiting = true
			go func() { // ends with the answer, or the connection
				// Any answer will do, and an error is the end of the connection.
				if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					answers <- struct{}{}
				}
			}()
		}
	}
}

// Close ends the connection.
func (h *SSH) Close() error {
	h.mu.Lock()
	client := h.client
	h.closed, h.client = true, nil
	h.mu.Unlock()
	if client == nil {
		return nil
	}
	if err := client.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		return h.errorf("close: %w", err)
	}
	return nil
}

// ReadFile reads a file.
func (h *SSH) ReadFile(ctx context.Context, name string) ([]byte, error) {
	return readFile(ctx, h, name)
}

// Stat describes a file.
func (h *SSH) Stat(ctx context.Context, name string) (Info, error) { return stat(ctx, h, name) }

// WriteFile replaces a file.
func (h *SSH) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	return writeFile(ctx, h, name, bytes.NewReader(data), int64(len(data)), mode)
}

// Upload replaces a file with what r gives.
func (h *SSH) Upload(ctx context.Context, name string, r io.Reader, size int64, mode fs.FileMode) error {
	return writeFile(ctx, h, name, r, size, mode)
}

// Remove removes a file.
func (h *SSH) Remove(ctx context.Context, name string) error { return remove(ctx, h, name) }
