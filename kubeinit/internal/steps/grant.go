package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// grant is the right of a gateway to announce the pods of its site. It is not
// taken back: it changes no host, and a gateway without pods does not use it.
type grant struct {
	block    netip.Prefix
	gateways []host.Host // all with meshd, one of which may be the issuer
}

// String names the prefix.
func (g *grant) String() string { return "grant of " + g.block.String() }

// meshSelf is what kubeinit reads of meshd status --json.
type meshSelf struct {
	Self struct {
		Gateway string         `json:"gateway"`
		Granted []netip.Prefix `json:"granted"`
		Issuer  bool           `json:"issuer"`
	} `json:"self"`
}

func askMesh(ctx context.Context, h host.Host) (meshSelf, error) {
	var s meshSelf
	out, err := h.Run(ctx, host.Command{Args: []string{"meshd", "status", "--json"}, Limit: 8 << 20})
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out.Stdout), &s); err != nil {
		return s, fmt.Errorf("%s: meshd status: %w", h.Name(), err)
	}
	return s, nil
}

// has reports whether the gateway may announce the block.
func (g *grant) has(s meshSelf) bool {
	for _, p := range s.Self.Granted {
		if p.Bits() <= g.block.Bits() && p.Contains(g.block.Addr()) {
			return true
		}
	}
	return false
}

// Observe asks meshd.
func (g *grant) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	s, err := askMesh(ctx, h)
	if err != nil || g.has(s) {
		return nil, err
	}
	return []phase.Change{{What: g.String(), To: s.Self.Gateway}}, nil
}

// Apply asks the issuer, if it is one of the hosts.
func (g *grant) Apply(ctx context.Context, h host.Host, log func(string)) error {
	s, err := askMesh(ctx, h)
	if err != nil {
		return err
	}
	args := []string{"meshd", "ticket", "--gateway", s.Self.Gateway, "--prefix", g.block.String()}
	for _, other := range g.gateways {
		if issuer, err := askMesh(ctx, other); err != nil || !issuer.Self.Issuer {
			continue
		}
		_, err := other.Run(ctx, host.Command{Args: args, Output: log})
		return err
	}
	return cli.Hint(fmt.Errorf("%s: gateway %s may not announce %s, and no host of the inventory issues grants", h.Name(), s.Self.Gateway, g.block),
		"on the gateway that does: "+host.Quote(args...))
}

// grantWait is how long a new certificate may take to arrive.
const grantWait = 30 * time.Second

// Prove waits for the certificate.
func (g *grant) Prove(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, grantWait)
	defer cancel()
	for {
		s, err := askMesh(ctx, h)
		if err == nil && g.has(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the new certificate did not arrive in %v", grantWait), err)
		case <-time.After(time.Second):
		}
	}
}

// Undo has nothing to do.
func (*grant) Undo(context.Context, host.Host) error { return nil }
