// Package plan decides what follows from an inventory and what was measured,
// and knows the file in which a plan is kept.
//
// Decisions are made once. They are an input of the next Decide, which keeps
// them, adds what new hosts need, and warns where a new measurement has left
// them behind. All of it is a pure function of its input: no clock, no files, no
// network.
package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// Format is the version of the JSON forms of Decisions and File. It changes when
// an older kubeinit would understand something wrong.
const Format = 1

// Decisions are what a cluster is built with.
type Decisions struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"` // its name
	// InventoryHash is Hash of the inventory that was decided on last.
	InventoryHash string   `json:"inventoryHash"`
	Versions      Versions `json:"versions"`

	// First is the host where the cluster is initialised, and Leader the etcd
	// member that should lead: both are the control plane with the least sum of
	// round trips to the others. First stays even where Leader is decided anew.
	First  string `json:"first"`
	Leader string `json:"leader"`
	// ControlPlanes are the hosts that the timers were decided for, in the order
	// of the inventory.
	ControlPlanes []string `json:"controlPlanes"`
	// EtcdHeartbeat and EtcdElection are whole milliseconds, the same on every
	// member.
	EtcdHeartbeat time.Duration `json:"etcdHeartbeatNanos"`
	EtcdElection  time.Duration `json:"etcdElectionNanos"`
	// RTT is the largest median round trip between two nodes, 0 if there is only
	// one. Time-outs grow with it.
	RTT time.Duration `json:"rttNanos"`
	// MTU is the length in bytes of the largest IP packet that reaches every node
	// from every other one.
	MTU int `json:"mtu"`

	Endpoint Endpoint `json:"endpoint"`
	// CertSANs are names and addresses in the certificates of the API servers.
	CertSANs []string `json:"certSANs"`

	PodSupernet netip.Prefix `json:"podSupernet"`
	// PodBlocks has the pods of each site, and NodeRanges those of each node:
	// also of sites and hosts that the inventory does not have any more, because
	// they may still be there. Forget ends that.
	PodBlocks     map[string]netip.Prefix `json:"podBlocks"`
	NodeRanges    map[string]netip.Prefix `json:"nodeRanges"`
	ServiceSubnet netip.Prefix            `json:"serviceSubnet"`
	// DNSService is the address of the cluster's DNS: the tenth of ServiceSubnet,
	// as kubeadm has it.
	DNSService netip.Addr `json:"dnsService"`
	DNSDomain  string     `json:"dnsDomain"`

	// Labels are those of each node: region and zone of its site, and its own.
	Labels map[string]map[string]string `json:"labels"`
}

// Versions are versions of programs.
type Versions struct {
	// Kubernetes is "1.37.2", or "1.37" if the patch is not known before the
	// packages are there.
	Kubernetes string `json:"kubernetes"`
}

// Endpoint is where clients reach the API, inside of the cluster and out.
type Endpoint struct {
	Name string `json:"name"`
	Port uint16 `json:"port"`
}

// String is NAME:PORT.
func (e Endpoint) String() string { return fmt.Sprintf("%s:%d", e.Name, e.Port) }

// Ports of the endpoint. HAProxy has the usual one of the API; the proxy has
// another, because on control planes it runs beside an API server.
const (
	ProxyPort   = 7443
	HAProxyPort = 6443
)

// MaxSize is the size of the largest file of decisions or of a plan that is
// read, in bytes.
const MaxSize = 16 << 20

// Hash is a fingerprint of what an inventory says. Comments, the order of keys
// and line numbers do not count; the order of hosts does.
func Hash(inv *inventory.Inventory) string {
	b, err := json.Marshal(inv)
	if err != nil {
		panic("plan: an inventory has a type without a JSON form: " + err.Error()) // a mistake in this module, whatever the input
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Encode gives the JSON form, which is the same for equal decisions.
func (d *Decisions) Encode() ([]byte, error) { return encode(d) }

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b.Bytes(), nil
}

// DecodeDecisions reads what Encode wrote, and refuses what could not have been
// decided.
func DecodeDecisions(b []byte) (*Decisions, error) {
	d := new(Decisions)
	if err := decode(b, d); err != nil {
		return nil, fmt.Errorf("decisions: %w", err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("decisions: %w", err)
	}
	return d, nil
}

// decode reads one JSON value. The format comes first, so that a file of a later
// version is called that, and not a faulty one.
func decode(b []byte, v any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("larger than %d bytes", MaxSize)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return err
	}
	if head.Format != Format {
		return fmt.Errorf("format %d; this kubeinit knows format %d", head.Format, Format)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// check refuses decisions that later ones could not be built on.
func (d *Decisions) check() error {
	switch {
	case d.Cluster == "" || d.First == "" || d.Endpoint.Name == "" || d.Endpoint.Port == 0:
		return errors.New("cluster, first host or endpoint is missing")
	case d.EtcdHeartbeat <= 0 || d.EtcdElection < d.EtcdHeartbeat || d.RTT < 0:
		return fmt.Errorf("heartbeat %s, election %s and round trip %s do not fit", d.EtcdHeartbeat, d.EtcdElection, d.RTT)
	case d.MTU < MinMTU || d.MTU > maxMTU:
		return fmt.Errorf("MTU %d", d.MTU)
	case !masked(d.PodSupernet) || !masked(d.ServiceSubnet) || !d.ServiceSubnet.Contains(d.DNSService):
		return errors.New("pod supernet, service subnet or the address of DNS is missing or wrong")
	}
	for site, p := range d.PodBlocks {
		if !masked(p) || !within(p, d.PodSupernet) || p.Bits() > inventory.NodeBits(d.PodSupernet) {
			return fmt.Errorf("pod block %s of site %s is no part of %s", p, site, d.PodSupernet)
		}
	}
	for host, p := range d.NodeRanges {
		if !masked(p) || !within(p, d.PodSupernet) || p.Bits() != inventory.NodeBits(d.PodSupernet) {
			return fmt.Errorf("pod range %s of %s is no range in %s", p, host, d.PodSupernet)
		}
	}
	if err := distinct(d.PodBlocks); err != nil {
		return err
	}
	return distinct(d.NodeRanges)
}

// Forget gives up the range of a host that is gone for good, and the blocks of
// sites that no range lies in and keep does not have.
func (d *Decisions) Forget(host string, keep *inventory.Inventory) {
	delete(d.NodeRanges, host)
	delete(d.Labels, host)
	for site, block := range d.PodBlocks {
		used := keep.Site(site) != nil
		for _, r := range d.NodeRanges {
			used = used || block.Overlaps(r)
		}
		if !used {
			delete(d.PodBlocks, site)
		}
	}
}
