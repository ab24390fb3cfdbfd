// Package ui shows people and machines what kubeinit does: on a terminal a line
// for each host that changes in place, elsewhere a log of one line per event, and
// for programs JSON lines. All are made from the same events.
//
// What comes from hosts is made harmless: control characters are replaced, and
// secrets that are known or look like secrets of kubeadm are masked.
package ui

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Mode is how events are shown.
type Mode int

// The modes.
const (
	Plain Mode = iota // one line per event
	TTY               // one line per host, redrawn
	JSON              // one JSON object per line
)

// Version is the field "v" of JSON lines. It changes when a reader of the old form
// would misunderstand the new one; further fields may come at any time.
const Version = 1

// Options say how a View looks.
type Options struct {
	Mode  Mode
	Color bool // on a terminal
	// Hosts are shown in this order; others follow as they appear.
	Hosts []string
	// Steps is how many there are in all; 0 if that is not known.
	Steps int
	// Size returns the terminal's width and height; nil or zeros mean 80 by 24.
	Size func() (width, height int)
	// Secrets are masked wherever they occur. Those of less than 6 bytes are not,
	// because they would be found everywhere.
	Secrets []string
}

// View shows events, a plan and a result. Its methods are safe for concurrent use.
type View struct {
	w io.Writer
	o Options

	mu     sync.Mutex // guards mask and screen, and is held while something is written
	mask   *mask
	screen *screen
	stop   chan struct{}
	done   chan struct{}
}

// For returns options that fit a stream and an environment: a terminal gets TTY,
// colours unless NO_COLOR is set, and its size; json wins over all.
func For(stream any, env []string, json bool) Options {
	o := Options{}
	switch {
	case json:
		o.Mode = JSON
	case cli.IsTerminal(stream) && value(env, "TERM") != "dumb":
		o.Mode = TTY
		o.Color = value(env, "NO_COLOR") == ""
		o.Size = size(stream)
	}
	return o
}

// value returns what the last setting of a variable says.
func value(env []string, key string) string {
	for _, e := range slices.Backward(env) {
		if k, v, _ := strings.Cut(e, "="); k == key {
			return v
		}
	}
	return ""
}

// size asks a terminal for its size each time, so that resizing is seen.
func size(stream any) func() (int, int) {
	f, ok := stream.(interface{ Fd() uintptr })
	if !ok {
		return nil
	}
	return func() (int, int) {
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 0, 0
		}
		return width, height
	}
}

// redraw is how often a terminal is drawn anew: the elapsed times are shown in
// seconds.
const redraw = time.Second

// New returns a view that writes to w. Close must be called.
func New(w io.Writer, o Options) *View {
	v := &View{w: w, o: o, mask: newMask(o.Secrets), stop: make(chan struct{}), done: make(chan struct{})}
	if o.Mode != TTY {
		close(v.done)
		return v
	}
	v.screen = newScreen(w, o)
	go v.tick() // ends with Close
	return v
}

func (v *View) tick() {
	defer close(v.done)
	t := time.NewTicker(redraw)
	defer t.Stop()
	for {
		select {
		case <-v.stop:
			return
		case now := <-t.C:
			v.mu.Lock()
			v.screen.draw(now)
			v.mu.Unlock()
		}
	}
}

// Event shows one event.
func (v *View) Event(e phase.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e = v.mask.event(e)
	switch v.o.Mode {
	case TTY:
		v.screen.event(e)
	case JSON:
		v.line(struct {
			V int `json:"v"`
			phase.Event
		}{Version, e})
	default:
		v.print(logLine(e) + "\n")
	}
}

// Warn shows a line that belongs to no step.
func (v *View) Warn(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text = v.mask.text(text)
	switch v.o.Mode {
	case TTY:
		v.screen.above(paint(v.o.Color, yellow, "warning: "+harmless(text)))
		v.screen.draw(time.Now())
	case JSON:
		v.line(struct {
			V    int       `json:"v"`
			Time time.Time `json:"time"`
			Kind string    `json:"kind"`
			Text string    `json:"text"`
		}{Version, time.Now().UTC(), "warning", text})
	default:
		v.print(time.Now().Format(time.TimeOnly) + " warning: " + harmless(text) + "\n")
	}
}

// Plan shows what would be done.
func (v *View) Plan(p phase.Plan) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p = v.mask.plan(p)
	if v.o.Mode == JSON {
		v.line(struct {
			V    int        `json:"v"`
			Kind string     `json:"kind"`
			Plan phase.Plan `json:"plan"`
		}{Version, "plan", p})
		return
	}
	v.clear()
	v.print(planText(p, v.o.Color))
}

// Result shows what was done, and what went wrong.
func (v *View) Result(r phase.Result) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r = v.mask.result(r)
	if v.o.Mode == JSON {
		v.line(struct {
			V      int          `json:"v"`
			Kind   string       `json:"kind"`
			Result phase.Result `json:"result"`
		}{Version, "result", r})
		return
	}
	v.clear()
	v.print(resultText(r, v.o.Color))
}

// Close ends the view. On a terminal what was shown last stays, and the cursor is
// at the beginning of a line below it; nothing else was changed. A second call
// does nothing.
func (v *View) Close() {
	v.mu.Lock()
	select {
	case <-v.stop:
	default:
		close(v.stop)
	}
	v.mu.Unlock()
	<-v.done
}

// clear removes the lines of the hosts from a terminal. The caller holds mu.
func (v *View) clear() {
	if v.screen != nil {
		v.screen.clear()
	}
}

// line writes a JSON line. Output that cannot be written is the writer's matter:
// what is done on the hosts goes on. The caller holds mu.
func (v *View) line(x any) {
	data, err := json.Marshal(x)
	if err == nil {
		v.print(string(data) + "\n")
	}
}

func (v *View) print(text string) { _, _ = io.WriteString(v.w, text) }
