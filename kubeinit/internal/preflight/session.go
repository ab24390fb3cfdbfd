package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// session is the coordinator's end of one agent. Nothing that the agent does or
// leaves undone keeps a caller longer than its context says.
type session struct {
	lines  chan []byte   // to the agent
	ended  chan struct{} // closed when the agent has ended
	cancel context.CancelFunc

	mu      sync.Mutex // guards the rest
	next    uint64
	waiting map[uint64]chan reply
	err     error // why the session ended, or shall end
	noises  int
	last    string // of the lines that are no replies
}

// startSession runs the agent on a host. It ends with ctx, or by end.
func startSession(ctx context.Context, h host.Host, args []string, work *sync.WaitGroup) *session {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{
		lines: make(chan []byte, maxRunning), ended: make(chan struct{}), cancel: cancel, waiting: make(map[uint64]chan reply),
	}
	in, w := io.Pipe()
	work.Go(func() { s.feed(ctx, w) }) // ends with ctx
	work.Go(func() {                   // ends with the agent, or with ctx
		defer close(s.ended)
		defer cancel()
		// Little is kept of the output: it comes line by line.
		_, err := h.Run(ctx, host.Command{Args: args, Stdin: in, Output: s.take, Limit: 4096})
		in.Close() //nolint:errcheck // ends feed's write
		if err == nil {
			err = errors.New("the agent ended")
		}
		s.fail(err)
	})
	return s
}

// feed writes requests. The agent may be slow to read, or never do.
func (s *session) feed(ctx context.Context, w *io.PipeWriter) {
	defer w.Close() //nolint:errcheck // never fails
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	for {
		select {
		case line := <-s.lines:
			if _, err := w.Write(line); err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// maxNoise is how many lines may come beside the replies, such as the
// warnings of sudo.
const maxNoise = 100

// take gets a line of the agent, or of what runs it. A line that looks like a reply and
// is none ends the session, as does too much else. Replies that nobody waits for are dropped.
func (s *session) take(line string) {
	if !strings.HasPrefix(line, "{") && len(line) <= maxLine && s.noise(line) {
		return
	}
	r, err := parseReply([]byte(line))
	if err != nil {
		s.fail(fmt.Errorf("%w: %.80q", err, line))
		s.cancel()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.waiting[r.ID]; c != nil {
		delete(s.waiting, r.ID)
		c <- r // has room for one
	}
}

// noise keeps the last of the lines that are no replies, and is false for one too many.
func (s *session) noise(line string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noises++
	s.last = fmt.Sprintf("%.200s", line)
	return s.noises <= maxNoise
}

// fail keeps the first reason.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *session) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != "" && s.err != nil {
		return fmt.Errorf("%w, and its host says %q", s.err, s.last)
	}
	return s.err
}

// call asks the agent and waits for its answer.
func (s *session) call(ctx context.Context, r request) (reply, error) {
	answer := make(chan reply, 1)
	s.mu.Lock()
	s.next++
	r.Version, r.ID = protocolVersion, s.next
	s.waiting[r.ID] = answer
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, r.ID)
	}()
	line, err := json.Marshal(r)
	if err != nil {
		return reply{}, err
	}
	select {
	case s.lines <- append(line, '\n'):
	case <-s.ended:
		return reply{}, s.reason()
	case <-ctx.Done():
		return reply{}, s.silent()
	}
	select {
	case got := <-answer:
		if got.Error != "" {
			return reply{}, fmt.Errorf("%.200s", got.Error)
		}
		return got, nil
	case <-s.ended:
		return reply{}, s.reason()
	case <-ctx.Done():
		return reply{}, s.silent()
	}
}

// silent is errSilent with what was said instead.
func (s *session) silent() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == "" {
		return errSilent
	}
	return fmt.Errorf("%w, and its host says %q", errSilent, s.last)
}

var errSilent = errors.New("the agent did not answer in time")

// end closes the agent's standard input and kills it if it stays.
func (s *session) end() { s.cancel() }
