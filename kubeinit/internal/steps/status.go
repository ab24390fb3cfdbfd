package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
)

// StatusVersion is the version of the JSON form of Status.
const StatusVersion = 1

// Status is how a cluster does, as its hosts say.
type Status struct {
	Version int `json:"version"`
	// Problem says why nothing can be said; empty if something can.
	Problem string         `json:"problem,omitempty"`
	Nodes   []NodeStatus   `json:"nodes"`   // in the order of the inventory, then others by name
	Members []MemberStatus `json:"members"` // of etcd, by name
}

// NodeStatus is a host that is a node, or should be, or is one without being in
// the inventory.
type NodeStatus struct {
	Name    string `json:"name"`
	Listed  bool   `json:"listed"` // in the inventory
	Joined  bool   `json:"joined"`
	Ready   bool   `json:"ready"`
	Address string `json:"address,omitempty"` // InternalIP
	Kubelet string `json:"kubelet,omitempty"` // version
	// Endpoint is how long the API takes to answer there, in nanoseconds; 0 if it
	// does not, and EndpointError says why.
	Endpoint      time.Duration `json:"endpointNanos,omitempty"`
	EndpointError string        `json:"endpointError,omitempty"`
	// Certificate is when the first of the host's certificates ends; zero if that
	// is not known.
	Certificate time.Time `json:"certificate,omitzero"`
}

// MemberStatus is a member of etcd.
type MemberStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Learner bool   `json:"learner,omitempty"`
}

// ReadStatus asks the hosts of an inventory.
func ReadStatus(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host) Status {
	a := newAccess(Input{Inventory: inv, Hosts: hosts}, kubeadm.Cluster{})
	s := Status{Version: StatusVersion, Nodes: []NodeStatus{}, Members: []MemberStatus{}}
	for _, h := range inv.Nodes() {
		s.Nodes = append(s.Nodes, NodeStatus{Name: h.Name, Listed: true})
	}
	var wg sync.WaitGroup
	for i := range s.Nodes {
		wg.Go(func() { s.Nodes[i].look(ctx, hosts[s.Nodes[i].Name]) })
	}
	wg.Wait()
	plane, err := a.plane(ctx)
	if err == nil {
		err = errors.Join(s.readNodes(ctx, plane), s.readMembers(ctx, plane))
	}
	if err != nil {
		s.Problem = err.Error()
	}
	return s
}

// look asks the host itself.
func (n *NodeStatus) look(ctx context.Context, h host.Host) {
	began := time.Now()
	_, err := h.Run(ctx, host.Command{Args: []string{"kubectl", "--kubeconfig", "/etc/kubernetes/kubelet.conf", "--request-timeout", "5s", "get", "--raw", "/readyz"}})
	if err != nil {
		n.EndpointError = err.Error()
	} else {
		n.Endpoint = time.Since(began)
	}
	const script = `for c in /etc/kubernetes/pki/*.crt /etc/kubernetes/pki/etcd/*.crt /var/lib/kubelet/pki/kubelet-client-current.pem; do
	[ -e "$c" ] && openssl x509 -noout -enddate -dateopt iso_8601 -in "$c"; done; true`
	out, err := h.Run(ctx, host.Command{Args: []string{"sh", "-c", script}})
	if err != nil {
		return
	}
	for line := range strings.Lines(out.Stdout) {
		end, err := time.Parse("notAfter=2006-01-02 15:04:05Z", strings.TrimSpace(line))
		if err == nil && (n.Certificate.IsZero() || end.Before(n.Certificate)) {
			n.Certificate = end
		}
	}
}

func (s *Status) readNodes(ctx context.Context, plane host.Host) error {
	c := kubectl("get", "nodes", "-o", "json")
	c.Limit = 16 << 20
	out, err := plane.Run(ctx, c)
	if err != nil {
		return err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Addresses  []struct{ Type, Address string }
				Conditions []struct{ Type, Status string }
				NodeInfo   struct{ KubeletVersion string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out.Stdout), &list); err != nil {
		return fmt.Errorf("%s: kubectl get nodes: %w", plane.Name(), err)
	}
	for _, item := range list.Items {
		at := slices.IndexFunc(s.Nodes, func(n NodeStatus) bool { return n.Name == item.Metadata.Name })
		if at < 0 {
			s.Nodes = append(s.Nodes, NodeStatus{Name: item.Metadata.Name})
			at = len(s.Nodes) - 1
		}
		n := &s.Nodes[at]
		n.Joined, n.Kubelet = true, item.Status.NodeInfo.KubeletVersion
		for _, c := range item.Status.Conditions {
			n.Ready = n.Ready || c.Type == "Ready" && c.Status == "True"
		}
		for _, address := range item.Status.Addresses {
			if address.Type == "InternalIP" {
				n.Address = address.Address
			}
		}
	}
	return nil
}

func (s *Status) readMembers(ctx context.Context, plane host.Host) error {
	out, err := plane.Run(ctx, etcdctl(plane, "member", "list"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(out.Stdout) {
		if f := strings.Split(strings.TrimSpace(line), ", "); len(f) > 5 {
			s.Members = append(s.Members, MemberStatus{ID: f[0], Name: f[2], Learner: f[5] == "true"})
		}
	}
	slices.SortFunc(s.Members, func(a, b MemberStatus) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// Faults are what is not as it should be.
func (s *Status) Faults() []string {
	var out []string
	if s.Problem != "" {
		out = append(out, s.Problem)
	}
	for _, n := range s.Nodes {
		switch {
		case !n.Listed:
			out = append(out, fmt.Sprintf("node %s is not in the inventory", n.Name))
		case s.Problem == "" && !n.Joined:
			out = append(out, fmt.Sprintf("%s is not a node", n.Name))
		case n.Joined && !n.Ready:
			out = append(out, fmt.Sprintf("node %s is not ready", n.Name))
		}
		if n.EndpointError != "" && n.Joined {
			out = append(out, "the API does not answer on "+n.Name+": "+n.EndpointError)
		}
	}
	return out
}
