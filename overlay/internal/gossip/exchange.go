package gossip

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"time"
)

// exchange is a stream as memberlist sees it: it reads the state of the other
// end after the filter has read and judged all of it, and writes its own.
type exchange struct {
	net.Conn
	filter *filter
	end    time.Time
	forget func()        // undoes the wait for the transport's end
	closed chan struct{} // closed by Close

	once sync.Once     // around filling state
	done sync.Once     // around Close
	in   *bytes.Reader // filtered state of the other end
	err  error         // why there is none
}

// wrap puts the filter before a stream that lives until end, or until the transport is closed. memberlist sets a
// deadline before it reads or writes.
func (t *transport) wrap(c net.Conn, end time.Time) *exchange {
	e := &exchange{Conn: c, filter: t.filter, end: end, closed: make(chan struct{})}
	e.forget = t.atEnd(func() { _ = c.Close() })
	return e
}

// Read reads filtered state.
func (e *exchange) Read(p []byte) (int, error) {
	e.once.Do(func() {
		var state []byte
		if state, e.err = e.filter.state(bufio.NewReader(e.Conn)); e.err != nil {
			e.filter.count.add(dropState)
		}
		e.in = bytes.NewReader(state)
	})
	if e.err != nil {
		return 0, e.err
	}
	return e.in.Read(p)
}

// Close closes the stream. It may be called more than once.
func (e *exchange) Close() error {
	var err error
	e.done.Do(func() {
		e.forget()
		err = e.Conn.Close()
		close(e.closed)
	})
	return err
}

// SetDeadline sets both deadlines, at latest the end of the exchange.
func (e *exchange) SetDeadline(t time.Time) error { return e.Conn.SetDeadline(e.clamp(t)) }

// SetReadDeadline sets the read deadline, at latest the end of the exchange.
func (e *exchange) SetReadDeadline(t time.Time) error { return e.Conn.SetReadDeadline(e.clamp(t)) }

// SetWriteDeadline sets the write deadline, at latest the end of the exchange.
func (e *exchange) SetWriteDeadline(t time.Time) error { return e.Conn.SetWriteDeadline(e.clamp(t)) }

func (e *exchange) clamp(t time.Time) time.Time {
	if t.IsZero() || t.After(e.end) {
		return e.end
	}
	return t
}
