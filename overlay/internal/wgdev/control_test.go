package wgdev

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// pipeListener accepts one end of pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

// dial connects a program.
func (l *pipeListener) dial(t testing.TB) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody accepts")
	}
	t.Cleanup(func() { _ = ours.Close() })
	if err := ours.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return ours
}

// startControl runs a control socket over pipes until the end of the test.
func startControl(t testing.TB, get func(io.Writer) error) *pipeListener {
	t.Helper()
	l := newPipeListener()
	c := newControl(l, get, func() error { return nil })
	var running sync.WaitGroup
	running.Go(c.run)
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
		within(t, "the end of the control socket", running.Wait)
	})
	return l
}

func someState(w io.Writer) error {
	_, err := io.WriteString(w, "listen_port=51820\n")
	return err
}

// ask sends a request and returns what comes back, up to the empty line.
func ask(conn net.Conn, in *bufio.Reader, request string) (string, error) {
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	var answer strings.Builder
	for {
		line, err := in.ReadString('\n')
		answer.WriteString(line)
		if err != nil || line == "\n" {
			return answer.String(), err
		}
	}
}

func TestControlShowsAndRefusesToChange(t *testing.T) {
	noGoroutinesLeft(t)
	conn := startControl(t, someState).dial(t)
	in := bufio.NewReader(conn)
	for _, step := range []struct{ request, want string }{
		{"get=1\n\n", "listen_port=51820\nerrno=0\n\n"},
		{"set=1\nprivate_key=" + strings.Repeat("11", 32) + "\nreplace_peers=true\n\n", "errno=-1\n\n"},
		{"set=1\n\n", "errno=-1\n\n"},
		{"get=1\n\n", "listen_port=51820\nerrno=0\n\n"},
	} {
		got, err := ask(conn, in, step.request)
		if err != nil || got != step.want {
			t.Errorf("%q: got %q, %v, want %q", step.request, got, err, step.want)
		}
	}
}

func TestControlHangsUpOnNonsense(t *testing.T) {
	l := startControl(t, someState)
	for _, request := range []string{
		"\n", "get=2\n\n", "set=2\n\n", "GET / HTTP/1.1\r\n\r\n", "get=1 \n\n",
		strings.Repeat("x", controlLine+1),
		"set=1\n" + strings.Repeat("y", controlLine+1) + "\n\n",
		"set=1\n" + strings.Repeat("allowed_ip=10.0.0.0/8\n", controlRequest/22+1) + "\n",
	} {
		conn := l.dial(t)
		var wrote sync.WaitGroup
		wrote.Go(func() { _, _ = io.WriteString(conn, request) }) // fails when it hangs up
		got, err := io.ReadAll(conn)
		if err != nil || len(got) != 0 {
			t.Errorf("%.40q: got %q, %v, want nothing", request, got, err)
		}
		wrote.Wait()
	}
	conn := l.dial(t)
	if got, err := ask(conn, bufio.NewReader(conn), "get=1\n\n"); err != nil || !strings.HasSuffix(got, "errno=0\n\n") {
		t.Errorf("afterwards: got %q, %v", got, err)
	}
}

func TestControlServesManyAtOnce(t *testing.T) {
	noGoroutinesLeft(t)
	l := startControl(t, someState)
	var idle []net.Conn
	for range controlClients - 1 {
		idle = append(idle, l.dial(t)) // connected, and silent
	}
	for range 5 { // the last place serves one after the other
		conn := l.dial(t)
		if got, err := ask(conn, bufio.NewReader(conn), "get=1\n\n"); err != nil || !strings.HasSuffix(got, "errno=0\n\n") {
			t.Fatalf("got %q, %v", got, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	full := l.dial(t)
	var later sync.WaitGroup
	later.Go(func() {
		conn := l.dial(t)
		if got, err := ask(conn, bufio.NewReader(conn), "get=1\n\n"); err != nil || !strings.HasSuffix(got, "errno=0\n\n") {
			t.Errorf("when a place is free: got %q, %v", got, err)
		}
	})
	for _, conn := range append(idle, full) {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	later.Wait()
}

func TestControlClosesWithClientsInside(t *testing.T) {
	noGoroutinesLeft(t)
	l := newPipeListener()
	asked, release := make(chan struct{}), make(chan struct{})
	c := newControl(l, func(w io.Writer) error {
		asked <- struct{}{}
		<-release // as the device does while it is being closed
		return someState(w)
	}, func() error { return errors.New("cannot remove") })
	var running sync.WaitGroup
	running.Go(c.run)
	var clients []net.Conn
	for range controlClients {
		clients = append(clients, l.dial(t))
	}
	if _, err := io.WriteString(clients[0], "get=1\n\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := c.close(); err == nil || err.Error() != "cannot remove" {
		t.Errorf("got %v, want the error of remove", err)
	}
	close(release)
	within(t, "the end of the control socket", running.Wait)
	for _, conn := range clients {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a client is still connected")
		}
	}
}

// answerConn is a connection whose other side has said everything already.
type answerConn struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *answerConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *answerConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *answerConn) SetDeadline(time.Time) error { return nil }

func FuzzControl(f *testing.F) {
	f.Add([]byte("get=1\n\n"))
	f.Add([]byte("set=1\nprivate_key=00\n\nget=1\n\n"))
	f.Add([]byte("set=1\n"))
	f.Add([]byte("get=1\nx\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		gets := 0
		c := newControl(nil, func(io.Writer) error { gets++; return nil }, nil)
		conn := &answerConn{in: bytes.NewReader(b)}
		c.serve(conn)
		granted := strings.Count(conn.out.String(), "errno=0\n\n")
		refused := strings.Count(conn.out.String(), "errno=-1\n\n")
		if granted != gets || granted+refused > bytes.Count(b, []byte("\n\n")) || granted > bytes.Count(b, []byte("get=1\n")) ||
			conn.out.Len() != granted*len("errno=0\n\n")+refused*len("errno=-1\n\n") {
			t.Errorf("%q: got %q after %d gets", b, conn.out.String(), gets)
		}
	})
}
