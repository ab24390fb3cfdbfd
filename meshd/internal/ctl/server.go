package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// Bounds of one request. The slowest answer is that of the matrix, which
// waits 2 s for gateways, and that of a ping.
const (
	maxBody        = 64 << 10
	maxHeader      = 16 << 10
	readTimeout    = 10 * time.Second
	requestTimeout = 15 * time.Second
	probeTimeout   = 2 * time.Second // as long as a gateway has for its row of the matrix
	idleTimeout    = time.Minute
	shutdownGrace  = time.Second
)

// Server answers requests about one mesh.
type Server struct {
	Mesh   Mesh
	About  About                  // Version is filled in
	Hint   func(err error) string // what to do about an error; nil means no hints
	Logger *slog.Logger           // nil means nothing is logged

	// Attachments is what the attached routers do; nil means that there are none.
	Attachments func() []attach.Status
	// RouteSets keeps the route sets; nil means that there are none and can be
	// none.
	RouteSets SetKeeper
	// Origin says what makes this gateway announce a prefix; nil or an empty
	// answer means that it is not known.
	Origin func(netip.Prefix) string
}

// Serve answers requests on l until ctx ends, closes l, and returns nil then.
// Event streams end at once, other requests have a second to finish.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	logger := s.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	server := &http.Server{
		Handler:           s.handler(ctx),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }() // ends with Shutdown or Close, or when l fails
	select {
	case err := <-ended:
		return fmt.Errorf("control socket: %w", err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(requests, shutdownGrace)
	defer stop()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close() // what did not finish in time is cut off
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// handler routes requests. Event streams end with ctx.
func (s *Server) handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			bounded, cancel := context.WithTimeout(r.Context(), requestTimeout)
			defer cancel()
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			v, err := f(r.WithContext(bounded))
			if err != nil {
				s.fail(w, err)
				return
			}
			s.write(w, http.StatusOK, v)
		})
	}
	answer("GET /v1/about", func(*http.Request) (any, error) {
		about := s.About
		about.Version = Version
		return about, nil
	})
	answer("GET /v1/status", func(*http.Request) (any, error) { return s.status(), nil })
	answer("GET /v1/routes", func(*http.Request) (any, error) { return s.routes(), nil })
	answer("GET /v1/matrix", func(r *http.Request) (any, error) { return s.Mesh.Matrix(r.Context()), nil })
	answer("POST /v1/matrix/hosts", s.hosts)
	answer("POST /v1/ping", s.ping)
	answer("POST /v1/tickets", s.ticket)
	answer("POST /v1/grants", s.grant)
	if s.RouteSets != nil {
		answer("GET /v1/routesets", s.listSets)
		answer("GET /v1/routesets/{name}", s.getSet)
		answer("PUT /v1/routesets/{name}", s.putSet)
		answer("DELETE /v1/routesets/{name}", s.deleteSet)
	}
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { s.events(ctx, w, r) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, &requestError{http.StatusNotFound, fmt.Sprintf("no such request: %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

func (s *Server) status() Status {
	out := Status{Status: s.Mesh.Status()}
	out.Routes = s.explained(out.Routes)
	if s.RouteSets != nil {
		out.RouteSets = s.RouteSets.List()
	}
	if s.Attachments != nil {
		out.Attachments = s.Attachments()
	}
	return out
}

func (s *Server) routes() Routes {
	status := s.Mesh.Status()
	routes := s.explained(status.Routes)
	if routes == nil {
		routes = []overlay.RouteStatus{}
	}
	return Routes{Version: Version, Routes: routes, Conflicts: status.Conflicts, Refused: status.Refused}
}

// explained says of routes that are announced here what they come from.
func (s *Server) explained(routes []overlay.RouteStatus) []overlay.RouteStatus {
	if s.Origin == nil {
		return routes
	}
	out := slices.Clone(routes) // a snapshot is nobody's to change
	for i, r := range out {
		if !r.Local {
			continue
		}
		if origin := s.Origin(r.Prefix); origin != "" {
			out[i].Why += " (" + origin + ")"
		}
	}
	return out
}

func (s *Server) hosts(r *http.Request) (any, error) {
	var req HostsRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	if n := len(req.Hosts); n == 0 || n > MaxHosts {
		return nil, &requestError{http.StatusBadRequest, fmt.Sprintf("%d hosts: want 1 to %d", n, MaxHosts)}
	}
	for _, h := range req.Hosts {
		if !h.IsValid() {
			return nil, &requestError{http.StatusBadRequest, "an empty host: want an address"}
		}
	}
	return s.Mesh.MatrixHosts(r.Context(), req.Hosts)
}

// ping probes every gateway that is meant, at once: one that does not answer
// takes no time from the others.
func (s *Server) ping(r *http.Request) (any, error) {
	var req PingRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	ids, err := s.Mesh.Resolve(req.To)
	if err != nil {
		return nil, err
	}
	out := Ping{Version: Version, Probes: make([]Probe, len(ids))}
	type indexed struct {
		i int
		p Probe
	}
	probes := make(chan indexed, len(ids))
	for i, id := range ids {
		go func() { probes <- indexed{i, s.probe(r.Context(), id)} }() // ends with its request
	}
	for range ids {
		p := <-probes
		out.Probes[p.i] = p.p
	}
	return out, nil
}

// probe sends one probe and names the gateway even if it does not answer.
func (s *Server) probe(ctx context.Context, id overlay.GatewayID) Probe {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	result, err := s.Mesh.Ping(ctx, id)
	if err == nil {
		return Probe{PingResult: result}
	}
	p := Probe{PingResult: overlay.PingResult{Gateway: id.String()}, Error: err.Error()}
	if errors.Is(err, context.DeadlineExceeded) {
		p.Error = fmt.Sprintf("no answer within %v", probeTimeout)
	}
	for _, peer := range s.Mesh.Status().Peers {
		if peer.ID == id.String() {
			p.Gateway, p.Site = peer.Gateway, peer.Site
		}
	}
	return p
}

func (s *Server) ticket(r *http.Request) (any, error) {
	var req TicketRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	t, err := s.Mesh.Ticket(overlay.TicketRequest{
		Site:     req.Site,
		Gateway:  req.Gateway,
		Prefixes: req.Prefixes,
		TTL:      req.TTL,
		Relay:    req.Relay,
		For:      req.For,
	})
	if err != nil {
		return nil, err
	}
	return TicketOf(t), nil
}

func (s *Server) grant(r *http.Request) (any, error) {
	var req GrantRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	w, err := s.Mesh.WidenGrant(r.Context(), overlay.WidenRequest{Gateway: req.Gateway, Site: req.Site, Prefixes: req.Prefixes})
	if err != nil {
		return nil, err
	}
	return GrantOf(w), nil
}

func (s *Server) listSets(*http.Request) (any, error) {
	return RouteSets{Version: Version, RouteSets: s.RouteSets.List()}, nil
}

func (s *Server) getSet(r *http.Request) (any, error) {
	return s.set(r.PathValue("name"))
}

func (s *Server) set(name string) (RouteSet, error) {
	sets := s.RouteSets.List()
	i := slices.IndexFunc(sets, func(s routeset.Status) bool { return s.Name == name })
	if i < 0 {
		return RouteSet{}, fmt.Errorf("%q: %w", name, routeset.ErrUnknown)
	}
	return RouteSet{Version: Version, Status: sets[i]}, nil
}

func (s *Server) putSet(r *http.Request) (any, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, bodyError(err)
	}
	set, err := routeset.Parse(r.PathValue("name"), body)
	if err != nil {
		return nil, err
	}
	changed, err := s.RouteSets.Put(r.Context(), set)
	if err != nil {
		return nil, err
	}
	return RouteSet{Version: Version, Status: routeset.Status{Set: set}, Changed: &changed}, nil
}

func (s *Server) deleteSet(r *http.Request) (any, error) {
	name := r.PathValue("name")
	was, err := s.set(name)
	if err != nil {
		return nil, err
	}
	return was, s.RouteSets.Delete(r.Context(), name)
}

// events streams until the client, the mesh or ctx ends.
func (s *Server) events(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	watched, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the bound of a request is not that of a stream
	events := s.Mesh.Watch(watched)
	w.Header().Set("Content-Type", "application/jsonl")
	w.WriteHeader(http.StatusOK)
	if control.Flush() != nil {
		return
	}
	encoder := json.NewEncoder(w)
	for e := range events {
		// A reader that stopped reading must not hold its events for ever.
		_ = control.SetWriteDeadline(time.Now().Add(requestTimeout))
		if encoder.Encode(e) != nil || control.Flush() != nil {
			return
		}
	}
}

// requestError is a request that is wrong in itself.
type requestError struct {
	code int
	text string
}

func (e *requestError) Error() string { return e.text }

// readBody decodes the one JSON value of a request.
func readBody(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("something after the JSON value")
		}
	}
	return bodyError(err)
}

// bodyError is a body that is not as it should be.
func bodyError(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &requestError{http.StatusRequestEntityTooLarge, fmt.Sprintf("request larger than %d bytes", tooLarge.Limit)}
	}
	return &requestError{http.StatusBadRequest, fmt.Sprintf("request: %v", err)}
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, err error) {
	body := failure{Error: err.Error()}
	if s.Hint != nil {
		body.Hint = s.Hint(err)
	}
	s.write(w, statusOf(err), body)
}

// statusOf is the HTTP status that says most about err.
func statusOf(err error) int {
	if e, ok := errors.AsType[*requestError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*overlay.OverlapError](err); ok {
		return http.StatusConflict
	}
	if _, ok := errors.AsType[*overlay.GrantError](err); ok {
		return http.StatusForbidden
	}
	if _, ok := errors.AsType[*routeset.Fault](err); ok {
		return http.StatusBadRequest
	}
	if _, ok := errors.AsType[*routeset.Error](err); ok {
		return http.StatusConflict
	}
	switch {
	case errors.Is(err, overlay.ErrUnknownGateway), errors.Is(err, routeset.ErrUnknown):
		return http.StatusNotFound
	case errors.Is(err, overlay.ErrNotIssuer):
		return http.StatusForbidden
	case errors.Is(err, overlay.ErrNoPath), errors.Is(err, overlay.ErrClosed):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *Server) write(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"answer cannot be encoded"}`)
		if s.Logger != nil {
			s.Logger.Error("control answer cannot be encoded", "err", err)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // a client that is gone needs no answer
}
