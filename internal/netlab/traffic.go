//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// ThroughputOptions describe a TCP measurement between two hosts.
type ThroughputOptions struct {
	// From and To are host names. From opens the connections.
	From, To string
	// Addr is the address of To that is used; the zero Addr means its first IPv4 address, or else its first IPv6 one.
	Addr netip.Addr
	// Streams is the number of connections at the same time; 0 means 1.
	Streams int
	// Duration is how long data is sent; 0 means one second.
	Duration time.Duration
	// Reverse lets To send and From receive.
	Reverse bool
}

// Throughput is what arrived.
type Throughput struct {
	// Bytes is the number of bytes that the receiver read from its connections in that time.
	Bytes int64
	// Duration is how long data was sent and counted.
	Duration time.Duration
	// Streams is the number of connections.
	Streams int
}

// BitsPerSecond is 0 if nothing arrived.
func (t Throughput) BitsPerSecond() float64 {
	if t.Duration <= 0 {
		return 0
	}
	return float64(t.Bytes) * 8 / t.Duration.Seconds()
}

// String is "1.52 Gbit/s (4 streams, 381 MB in 2.0 s)".
func (t Throughput) String() string {
	rate, unit := t.BitsPerSecond()/1e6, "Mbit/s"
	if rate >= 1000 {
		rate, unit = rate/1000, "Gbit/s"
	}
	streams := "1 stream"
	if t.Streams != 1 {
		streams = fmt.Sprintf("%d streams", t.Streams)
	}
	return fmt.Sprintf("%.2f %s (%s, %.0f MB in %.1f s)", rate, unit, streams, float64(t.Bytes)/1e6, t.Duration.Seconds())
}

// trafficGrace is how long the connections may take to open.
const trafficGrace = 5 * time.Second

// Throughput measures TCP between two hosts. Both ends run in this program, which takes part of the machine's processors.
func (w *World) Throughput(ctx context.Context, o ThroughputOptions) (Throughput, error) {
	o.Streams = max(o.Streams, 1)
	if o.Duration == 0 {
		o.Duration = time.Second
	}
	fail := func(err error) (Throughput, error) {
		return Throughput{}, fmt.Errorf("throughput from %s to %s: %w", o.From, o.To, err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.Duration+trafficGrace)
	defer cancel()
	clients, servers, err := w.connections(ctx, o.From, o.To, o.Addr, o.Streams)
	defer closeAll(append(clients, servers...))
	if err != nil {
		return fail(err)
	}
	if o.Reverse {
		clients, servers = servers, clients
	}
	stop := context.AfterFunc(ctx, func() { closeAll(append(clients, servers...)) })
	defer stop()
	result, err := transfer(clients, servers, o.Duration)
	if err != nil {
		return fail(err)
	}
	return result, nil
}

// connections opens n TCP connections from one host to another and returns both ends of each, in no particular order.
func (w *World) connections(ctx context.Context, from, to string, addr netip.Addr, n int) (clients, servers []net.Conn, err error) {
	if !addr.IsValid() {
		if addr = w.Host(to).Addr(); !addr.IsValid() {
			addr = w.Host(to).Addr6()
		}
	}
	l, err := w.Host(to).Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // ends Accept
	defer stop()
	for range n {
		c, err := w.Host(from).Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			return clients, servers, err
		}
		clients = append(clients, c)
		s, err := l.Accept()
		if err != nil {
			return clients, servers, err
		}
		servers = append(servers, s)
	}
	return clients, servers, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close() //nolint:errcheck // whoever uses it sees the error
	}
}

// trafficBuffer is the size of one write; larger ones were not faster over veth.
const trafficBuffer = 128 << 10

// transfer lets all senders write for the duration and counts what arrives in it. What is still under way then is
// dropped with the connections: it would disturb what is measured next, and a flow that waits for a lost packet when the
// time ends may need many seconds for it.
func transfer(senders, receivers []net.Conn, d time.Duration) (Throughput, error) {
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(senders)+len(receivers))
		read = make([]int64, len(receivers))
		end  = time.Now().Add(d)
	)
	for i, c := range senders {
		wg.Go(func() { errs[i] = until(c, end, c.Write, nil) })
	}
	for i, c := range receivers {
		wg.Go(func() { errs[len(senders)+i] = until(c, end, c.Read, &read[i]) })
	}
	wg.Wait()
	t := Throughput{Duration: d, Streams: len(senders)}
	for _, n := range read {
		t.Bytes += n
	}
	return t, errors.Join(errs...)
}

// until reads from a connection, or writes to it, with a buffer in user space: splicing into nothing would not be what a
// program does. At the end the connection is aborted once it is closed.
func until(c net.Conn, end time.Time, transfer func([]byte) (int, error), total *int64) error {
	if err := c.SetDeadline(end); err != nil {
		return err
	}
	buf := make([]byte, trafficBuffer)
	for {
		n, err := transfer(buf)
		if total != nil {
			*total += int64(n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return abort(c)
		}
		if err != nil {
			return err
		}
	}
}

func abort(c net.Conn) error {
	if t, ok := c.(*net.TCPConn); ok {
		return t.SetLinger(0)
	}
	return nil
}

func closeWrite(c net.Conn) error {
	if t, ok := c.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return c.Close()
}

// CheckTCP opens a TCP connection from one host to an address of another (the zero Addr means its first one), sends size
// random bytes and compares what comes back. It finds MTU black holes that ping does not.
func (w *World) CheckTCP(ctx context.Context, from, to string, addr netip.Addr, size int) error {
	if err := w.echo(ctx, from, to, addr, size); err != nil {
		return fmt.Errorf("check TCP from %s to %s: %w", from, to, err)
	}
	return nil
}

func (w *World) echo(ctx context.Context, from, to string, addr netip.Addr, size int) error {
	clients, servers, err := w.connections(ctx, from, to, addr, 1)
	defer closeAll(append(clients, servers...))
	if err != nil {
		return err
	}
	client, server := clients[0], servers[0]
	stop := context.AfterFunc(ctx, func() { closeAll([]net.Conn{client, server}) })
	defer stop()
	var seed [32]byte
	sent := make([]byte, size)
	rand.NewChaCha8(seed).Read(sent) //nolint:errcheck // never fails
	var wg sync.WaitGroup
	var sendErr, echoErr error
	wg.Go(func() {
		if _, sendErr = client.Write(sent); sendErr == nil {
			sendErr = closeWrite(client)
		}
	})
	wg.Go(func() {
		if _, echoErr = io.Copy(server, server); echoErr == nil {
			echoErr = closeWrite(server)
		}
	})
	got, err := io.ReadAll(client)
	wg.Wait()
	if err := errors.Join(sendErr, echoErr, err); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("sent %d bytes, got %d others back", len(sent), len(got))
	}
	return nil
}
