package wgdev

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// controlDir is where wg(8) looks for devices that are not the kernel's.
const controlDir = "/var/run/wireguard"

// Bounds of the control socket. Only root talks to it, so they guard against
// programs that hang, not against enemies.
const (
	controlClients = 16               // at the same time; more wait in the kernel's queue
	controlIdle    = 10 * time.Second // for a request to be complete, and for its answer to be read
	controlRequest = 1 << 20          // bytes that one connection may send: a "set" of wg(8) for thousands of peers
	controlLine    = 4096             // bytes of one line; the longest in the protocol is below 200
)

// errnoEPERM is EPERM as wg(8) wants it, negative like wireguard-go's others
// (ipc.IpcErrorInvalid …).
const errnoEPERM = -1

// control offers the state of a device to wg(8) and lets nobody change it: what
// the records say and what the device does would part company.
type control struct {
	listener net.Listener
	get      func(io.Writer) error
	remove   func() error // takes the socket away
	clients  sync.WaitGroup
	slots    chan struct{}

	mu     sync.Mutex // guards the two below
	conns  map[net.Conn]bool
	closed bool
}

func newControl(l net.Listener, get func(io.Writer) error, remove func() error) *control {
	return &control{
		listener: l,
		get:      get,
		remove:   remove,
		slots:    make(chan struct{}, controlClients),
		conns:    make(map[net.Conn]bool),
	}
}

// run accepts programs until close, and returns when the last has gone.
func (c *control) run() {
	defer c.clients.Wait()
	for {
		c.slots <- struct{}{} // given back by every client
		conn, err := c.listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && c.pause() {
				<-c.slots
				continue
			}
			return
		}
		if !c.register(conn) {
			_ = conn.Close() // we are closing
			return
		}
		// Ends when the program goes, is too slow, or at close.
		c.clients.Go(func() {
			defer func() { <-c.slots }()
			defer c.forget(conn)
			c.serve(conn)
		})
	}
}

// pause lets a shortage of file descriptors pass. It reports whether to go on.
func (c *control) pause() bool {
	time.Sleep(100 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.closed
}

func (c *control) register(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.conns[conn] = true
	return true
}

func (c *control) forget(conn net.Conn) {
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	_ = conn.Close() // the program has its answer or never will
}

// serve answers one program until it has no more requests.
func (c *control) serve(conn net.Conn) {
	in := bufio.NewReaderSize(io.LimitReader(conn, controlRequest), controlLine)
	for {
		if err := conn.SetDeadline(time.Now().Add(controlIdle)); err != nil {
			return
		}
		op, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		change := string(op) == "set=1\n"
		if !change && string(op) != "get=1\n" {
			return
		}
		if err := skipRequest(in); err != nil {
			return
		}
		if err := c.answer(conn, change); err != nil {
			return
		}
	}
}

// answer refuses a change and grants a look.
func (c *control) answer(conn net.Conn, change bool) error {
	out := bufio.NewWriter(conn)
	errno := 0
	if change {
		errno = errnoEPERM
	} else if err := c.get(out); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "errno=%d\n\n", errno); err != nil {
		return err
	}
	return out.Flush()
}

// skipRequest reads up to the empty line that ends a request. Nothing in it is
// looked at.
func skipRequest(in *bufio.Reader) error {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err // a line that is too long included
		}
		if len(line) == 1 {
			return nil
		}
	}
}

// close ends run and all clients, and takes the socket away. A client that
// waits for the device is let go when that is closed.
func (c *control) close() error {
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		_ = conn.Close() // whoever asks right now gets no answer
	}
	c.mu.Unlock()
	// A run that waits for a free slot gets one from the clients that end now.
	return errors.Join(c.remove(), c.listener.Close())
}
