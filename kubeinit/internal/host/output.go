package host

import (
	"bytes"
	"strconv"
	"strings"
	"sync"
)

const (
	defaultLimit = 1 << 20 // bytes of output kept
	maxLine      = 64 << 10
	tailLines    = 20
)

// collector gets both outputs of a command.
type collector struct {
	mu     sync.Mutex // guards all below, and the calls of output
	output func(string)
	tail   []string
	group  int           // process group; 0 until the preamble came
	began  chan struct{} // closed when group is known
}

func newCollector(output func(string)) *collector {
	return &collector{output: output, began: make(chan struct{})}
}

// stream is one of the two outputs. It is an io.Writer.
type stream struct {
	c       *collector
	mark    string // empty: the preamble has passed, or there is none
	limit   int
	kept    bytes.Buffer
	cut     bool
	partial []byte // a line without its end
	ended   bool   // what comes now comes too late
}

func (c *collector) stream(mark string, limit int) *stream {
	if limit <= 0 {
		limit = defaultLimit
	}
	return &stream{c: c, mark: mark, limit: limit}
}

// Write never fails.
func (s *stream) Write(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n := len(p)
	if s.ended {
		return n, nil
	}
	if s.mark != "" {
		p = s.skip(p)
	}
	s.keep(p)
	return n, nil
}

// skip drops what stands before and on the line of the preamble, and returns
// the rest.
func (s *stream) skip(p []byte) []byte {
	s.partial = append(s.partial, p...)
	_, rest, ok := bytes.Cut(s.partial, []byte(s.mark+" "))
	if !ok {
		if most := maxLine; len(s.partial) > most {
			s.partial = append(s.partial[:0], s.partial[len(s.partial)-most:]...)
		}
		return nil
	}
	number, rest, ok := bytes.Cut(rest, []byte("\n"))
	if !ok {
		return nil
	}
	if s.c.group == 0 {
		s.c.group, _ = strconv.Atoi(string(number))
		close(s.c.began)
	}
	s.mark, s.partial = "", nil
	return rest
}

func (s *stream) keep(p []byte) {
	if room := s.limit - s.kept.Len(); len(p) > room {
		s.kept.Write(p[:room])
		s.cut = true
	} else {
		s.kept.Write(p)
	}
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		s.partial = append(s.partial, line...)
		if ended || len(s.partial) >= maxLine {
			s.flush()
		}
		p = rest
	}
}

// flush hands on the line that is complete.
func (s *stream) flush() {
	line := strings.ToValidUTF8(strings.TrimSuffix(string(s.partial), "\r"), "\ufffd")
	s.partial = s.partial[:0]
	s.c.tail = append(s.c.tail, line)
	if n := len(s.c.tail); n > tailLines {
		s.c.tail = append(s.c.tail[:0], s.c.tail[n-tailLines:]...)
	}
	if s.c.output != nil {
		s.c.output(line)
	}
}

// end hands on a last line without its end, and gives what was kept. began is
// false if the preamble never came; then what came instead is kept.
func (s *stream) end() (text string, began bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	began = s.mark == ""
	if !began {
		p := s.partial
		s.mark, s.partial = "", nil
		s.keep(p)
	}
	if len(s.partial) > 0 {
		s.flush()
	}
	s.ended = true
	return s.kept.String(), began
}
