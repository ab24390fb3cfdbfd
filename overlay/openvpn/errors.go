package openvpn

import (
	"errors"
	"fmt"
	"net"
)

// ErrClosed is returned by uses of an Endpoint after Close. It also is
// net.ErrClosed.
var ErrClosed = fmt.Errorf("openvpn endpoint: %w", net.ErrClosed)

// What ends a connection and makes the endpoint start the next one.
var (
	errSilent     = errors.New("nothing authentic from the peer within the restart timeout")
	errPeerExit   = errors.New("the peer said that it leaves")
	errSuperseded = errors.New("the session was replaced")
	// A real peer that refuses our certificate tells nobody but its own log.
	errStartedOver = errors.New("the peer started over again and again (does it accept our certificate?)")
	errHangup      = errors.New("the peer's connection ended")
)
