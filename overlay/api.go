package overlay

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Limits of the peer API (docs/protocol.md, section 4).
const (
	apiMaxRequest  = 64 << 10
	apiMaxResponse = 1 << 20
	apiVersion     = 1
	apiTimeout     = 2 * time.Second // an answer that takes longer shows as unknown
	apiHostsWait   = time.Second     // how long a gateway waits for hosts to answer
	apiMaxHosts    = 256
)

type apiRequest struct {
	Op    string       `json:"op"`
	Hosts []netip.Addr `json:"hosts,omitempty"`
}

type apiResponse struct {
	V           int       `json:"v"`
	Error       string    `json:"error,omitempty"`
	Cells       []apiCell `json:"cells,omitempty"`
	Delegation  string    `json:"delegation,omitempty"`  // base64
	Certificate string    `json:"certificate,omitempty"` // base64
}

// apiCell is one measurement towards a gateway or a host.
type apiCell struct {
	Gateway string     `json:"gateway,omitempty"`
	Host    netip.Addr `json:"host,omitzero"`
	MatrixCell
}

// ask sends one request to a peer and returns its answer.
func (m *Mesh) ask(ctx context.Context, id GatewayID, req apiRequest) (apiResponse, error) {
	conn, err := m.streams.OpenStream(ctx, id, stream.TypeAPI)
	if err != nil {
		return apiResponse{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	b, err := json.Marshal(req)
	if err != nil {
		return apiResponse{}, err
	}
	if err := wire.WriteFrame(conn, b); err != nil {
		return apiResponse{}, err
	}
	if b, err = wire.ReadFrame(conn, apiMaxResponse); err != nil {
		return apiResponse{}, err
	}
	var resp apiResponse
	if err := json.Unmarshal(b, &resp); err != nil {
		return apiResponse{}, fmt.Errorf("peer api: %w", err)
	}
	if resp.Error != "" {
		return apiResponse{}, fmt.Errorf("peer api: %s", resp.Error)
	}
	return resp, nil
}

// serveAPI answers one request of an authenticated peer.
func (m *Mesh) serveAPI(ctx context.Context, id GatewayID, conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(2 * apiTimeout))
	b, err := wire.ReadFrame(conn, apiMaxRequest)
	if err != nil {
		m.count("api.refused")
		return
	}
	var req apiRequest
	resp := apiResponse{V: apiVersion}
	if err := json.Unmarshal(b, &req); err != nil {
		m.count("api.refused")
		resp.Error = "not a request"
	} else if err := m.answerAPI(ctx, id, req, &resp); err != nil {
		resp = apiResponse{V: apiVersion, Error: err.Error()}
	}
	if b, err = json.Marshal(resp); err == nil {
		err = wire.WriteFrame(conn, b)
	}
	if err != nil {
		m.count("api.lost")
	}
}

func (m *Mesh) answerAPI(ctx context.Context, id GatewayID, req apiRequest, resp *apiResponse) error {
	switch req.Op {
	case "row":
		resp.Cells = m.row()
		return nil
	case "hosts":
		var err error
		resp.Cells, err = m.measureHosts(ctx, req.Hosts)
		return err
	case "renew":
		return m.answerRenewal(id, resp)
	case opWidened:
		return m.answerWidened(ctx, id)
	}
	m.count("api.refused")
	return fmt.Errorf("unknown operation %q", req.Op)
}

// row is what this gateway's probes say of every other one.
func (m *Mesh) row() []apiCell {
	var out []apiCell
	for _, r := range m.book.All() {
		if r.ID == m.self.id {
			continue
		}
		cell := apiCell{Gateway: r.ID.String(), MatrixCell: MatrixCell{State: CellDown}}
		if path, ok := m.prover.Path(r.ID); ok && path.Alive {
			cell.State, cell.RTT = CellUp, path.RTT
		}
		out = append(out, cell)
	}
	return out
}

var errTooManyHosts = fmt.Errorf("more than %d hosts", apiMaxHosts)

// measureHosts pings hosts behind any gateway of the mesh, and only those:
// this gateway is nobody's scanner.
func (m *Mesh) measureHosts(ctx context.Context, hosts []netip.Addr) ([]apiCell, error) {
	if len(hosts) > apiMaxHosts {
		return nil, errTooManyHosts
	}
	ctx, cancel := context.WithTimeout(ctx, apiHostsWait)
	defer cancel()
	out := make([]apiCell, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		out[i] = apiCell{Host: h, MatrixCell: MatrixCell{State: CellUnknown}}
		if !m.inMesh(h) {
			continue
		}
		wg.Go(func() {
			rtt, err := m.echo(ctx, h)
			switch {
			case err == nil:
				out[i].MatrixCell = MatrixCell{State: CellUp, RTT: rtt}
			case !errors.Is(err, errors.ErrUnsupported):
				out[i].State = CellDown
			}
		})
	}
	wg.Wait()
	return out, nil
}

// inMesh reports whether addr lies behind a gateway of the mesh.
func (m *Mesh) inMesh(addr netip.Addr) bool {
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	if slices.ContainsFunc(m.self.granted(), contains) {
		return true
	}
	last := m.applied.Load()
	return last != nil && slices.ContainsFunc(routePrefixes(last.desired.Routes), contains)
}

// Matrix asks every gateway for its own measurements and puts them together. A
// gateway that does not answer within 2 s has a row of unknown cells.
func (m *Mesh) Matrix(ctx context.Context) Matrix {
	records := m.sortedRecords()
	out := Matrix{Version: StatusVersion, Gateways: heads(records), Cells: make([][]MatrixCell, len(records))}
	column := make(map[string]int)
	for i, r := range records {
		column[r.ID.String()] = i
	}
	m.askAll(ctx, records, apiRequest{Op: "row"}, func(i int, cells []apiCell, err error) {
		row := unknown(len(records))
		row[i] = MatrixCell{State: CellSelf}
		for _, c := range cells {
			if j, ok := column[c.Gateway]; ok && j != i && err == nil {
				row[j] = c.MatrixCell
			}
		}
		out.Cells[i] = row
	})
	return out
}

// MatrixHosts asks every gateway what it measures towards hosts behind the
// gateways of the mesh; at most 256.
func (m *Mesh) MatrixHosts(ctx context.Context, hosts []netip.Addr) (HostMatrix, error) {
	if len(hosts) > apiMaxHosts {
		return HostMatrix{}, errTooManyHosts
	}
	records := m.sortedRecords()
	out := HostMatrix{Version: StatusVersion, Gateways: heads(records), Hosts: hosts, Cells: make([][]MatrixCell, len(records))}
	m.askAll(ctx, records, apiRequest{Op: "hosts", Hosts: hosts}, func(i int, cells []apiCell, err error) {
		row := unknown(len(hosts))
		for _, c := range cells {
			if j := slices.Index(hosts, c.Host); j >= 0 && err == nil {
				row[j] = c.MatrixCell
			}
		}
		out.Cells[i] = row
	})
	return out, nil
}

// askAll sends req to the gateways of all records at the same time; this one
// answers itself. each is called once per record, not concurrently.
func (m *Mesh) askAll(ctx context.Context, records []*record.Record, req apiRequest, each func(i int, cells []apiCell, err error)) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	type answer struct {
		cells []apiCell
		err   error
	}
	answers := make([]answer, len(records))
	var wg sync.WaitGroup
	for i, r := range records {
		wg.Go(func() {
			var resp apiResponse
			var err error
			if r.ID == m.self.id {
				err = m.answerAPI(ctx, r.ID, req, &resp)
			} else {
				resp, err = m.ask(ctx, r.ID, req)
			}
			answers[i] = answer{resp.Cells, err}
		})
	}
	wg.Wait()
	for i, a := range answers {
		each(i, a.cells, a.err)
	}
}

// sortedRecords are the records of all gateways that have not left, by name.
func (m *Mesh) sortedRecords() []*record.Record {
	records := slices.DeleteFunc(m.book.All(), func(r *record.Record) bool { return r.Left })
	slices.SortFunc(records, byName)
	return records
}

func heads(records []*record.Record) []MatrixGateway {
	var out []MatrixGateway
	for _, r := range records {
		out = append(out, MatrixGateway{Gateway: r.Chain.Certificate.Gateway, Site: r.Chain.Certificate.Site})
	}
	return out
}

func unknown(n int) []MatrixCell {
	row := make([]MatrixCell, n)
	for i := range row {
		row[i].State = CellUnknown
	}
	return row
}

// Resolve returns the gateways that a name means: a gateway name, the ID of a
// gateway, or a site, which may have several. ErrUnknownGateway if none.
func (m *Mesh) Resolve(name string) ([]GatewayID, error) {
	var out []GatewayID
	for _, r := range m.sortedRecords() {
		c := r.Chain.Certificate
		if c.Gateway == name || r.ID.String() == name {
			return []GatewayID{r.ID}, nil
		}
		if c.Site == name {
			out = append(out, r.ID)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%q: %w", name, ErrUnknownGateway)
	}
	return out, nil
}

// Ping measures the round trip to a gateway: through the device and WireGuard
// where this host can send an echo, else by a probe on the path. ErrNoPath if
// no path is proven, ErrUnknownGateway, or the error of ctx.
func (m *Mesh) Ping(ctx context.Context, id GatewayID) (PingResult, error) {
	r, ok := m.book.Get(id)
	if !ok {
		return PingResult{}, ErrUnknownGateway
	}
	c := r.Chain.Certificate
	out := PingResult{Gateway: c.Gateway, Site: c.Site}
	if id == m.self.id {
		return out, fmt.Errorf("%s is this gateway", c.Gateway)
	}
	rtt, err := m.probe(ctx, id)
	if err != nil {
		return out, fmt.Errorf("ping %s: %w: %w", c.Gateway, ErrNoPath, err)
	}
	path, ok := m.prover.Path(id)
	if !ok {
		return out, fmt.Errorf("ping %s: %w", c.Gateway, ErrNoPath)
	}
	out.Path, out.PathRTT, out.RTT, out.Via = path.Addr, rtt, rtt, "probe"
	data, err := m.echo(ctx, r.Overlay)
	switch {
	case err == nil:
		out.RTT, out.Via = data, "data"
	case errors.Is(err, errors.ErrUnsupported):
	default:
		return out, fmt.Errorf("ping %s: the path answers, the data path does not: %w", c.Gateway, err)
	}
	return out, nil
}

// renewIfDue replaces the own certificate when half of its life is over, or no
// sequence number is left under it: from the own issuing key, or from the
// gateway that issued it.
func (m *Mesh) renewIfDue(ctx context.Context) {
	c := m.self.certificate()
	m.mu.Lock()
	exhausted := m.seq.exhausted(c.Generation)
	m.mu.Unlock()
	if !exhausted && m.now().Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore)/2)) {
		m.warn("renew", "") // it may have been renewed for another reason
		return
	}
	if err := m.renew(ctx); err != nil {
		m.warn("renew", fmt.Sprintf("certificate ends %s and could not be renewed yet: %v", c.NotAfter.Format(time.DateTime), err))
		return
	}
	m.warn("renew", "")
}

func (m *Mesh) renew(ctx context.Context) error {
	var delegation, certificate []byte
	if m.authority != nil {
		chain, err := m.authority.renew(*m.self.current.Load(), m.now())
		if err != nil {
			return err
		}
		delegation, certificate = chain.Delegation.Raw(), chain.Certificate.Raw()
	} else {
		issuer, err := m.issuer()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		resp, err := m.ask(ctx, issuer, apiRequest{Op: "renew"})
		if err != nil {
			return err
		}
		if delegation, err = base64.StdEncoding.DecodeString(resp.Delegation); err != nil {
			return err
		}
		if certificate, err = base64.StdEncoding.DecodeString(resp.Certificate); err != nil {
			return err
		}
	}
	before := m.self.granted()
	if err := m.self.adopt(m.cfg.Store, delegation, certificate, m.now()); err != nil {
		return err
	}
	m.log.Info("certificate renewed", "generation", m.self.certificate().Generation)
	m.regranted(before)
	return m.publish()
}

// answerRenewal gives a gateway that was certified here its next certificate.
func (m *Mesh) answerRenewal(id GatewayID, resp *apiResponse) error {
	if m.authority == nil {
		return ErrNotIssuer
	}
	r, ok := m.book.Get(id)
	if !ok || m.revocations.Revoked(r.Chain) {
		return ErrUnknownGateway
	}
	chain, err := m.authority.renew(r.Chain, m.now())
	if err != nil {
		return err
	}
	resp.Delegation = base64.StdEncoding.EncodeToString(chain.Delegation.Raw())
	resp.Certificate = base64.StdEncoding.EncodeToString(chain.Certificate.Raw())
	return nil
}
