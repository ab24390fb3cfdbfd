package overlay

import (
	"net/netip"
	"time"
)

// CellState is the answer of one gateway about one destination; the values
// are stable.
type CellState string

// The states of a cell.
const (
	CellUp      CellState = "up"
	CellDown    CellState = "down"
	CellUnknown CellState = "unknown" // the row's gateway did not answer in time
	CellSelf    CellState = "self"
)

// MatrixGateway heads a row or a column.
type MatrixGateway struct {
	Gateway string `json:"gateway"`
	Site    string `json:"site"`
}

// MatrixCell is what one gateway measured towards one destination.
type MatrixCell struct {
	State   CellState     `json:"state"`
	RTT     time.Duration `json:"rttNanos,omitempty"`
	Relayed bool          `json:"relayed,omitempty"`
}

// Matrix is the all-pairs reachability of gateways: Cells[from][to], as the
// gateways measured it themselves. JSON-stable.
type Matrix struct {
	Version  int             `json:"version"`
	Gateways []MatrixGateway `json:"gateways"`
	Cells    [][]MatrixCell  `json:"cells"`
}

// HostMatrix is what every gateway measures towards hosts:
// Cells[gateway][host]. JSON-stable.
type HostMatrix struct {
	Version  int             `json:"version"`
	Gateways []MatrixGateway `json:"gateways"`
	Hosts    []netip.Addr    `json:"hosts"`
	Cells    [][]MatrixCell  `json:"cells"`
}

// PingResult is the answer to one Ping.
type PingResult struct {
	Gateway string         `json:"gateway"`
	Site    string         `json:"site"`
	Path    netip.AddrPort `json:"path"`              // underlay address in use
	Relayed bool           `json:"relayed,omitempty"` // through another gateway
	PathRTT time.Duration  `json:"pathRttNanos"`      // of a probe on that path
	RTT     time.Duration  `json:"rttNanos,omitempty"`
	// Via says what RTT measured: "data" is an echo through the device and
	// WireGuard, "probe" means that this host cannot send one and RTT is PathRTT.
	Via string `json:"via"`
}
