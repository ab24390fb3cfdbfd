package kubeadm

import (
	"time"
)

// Latency is how patient the cluster is with nodes behind slow or flapping
// links.
type Latency string

// The profiles. Kubernetes' own values suit links that are slow but steady; the
// others are for links that are away for tens of seconds now and then. Their
// figures are those of OpenShift's worker latency profiles.
const (
	LatencyDefault Latency = ""       // Kubernetes' own: 10 s, 50 s, 300 s
	LatencyMedium  Latency = "medium" // 20 s, 2 m, 60 s
	LatencyLow     Latency = "low"    // 1 m, 5 m, 60 s
)

// profile has how often kubelets report, after which silence a node is
// unreachable, and how long pods stay bound to it then. 0 leaves the default.
type profile struct{ report, grace, tolerate time.Duration }

var profiles = map[Latency]profile{
	LatencyDefault: {},
	LatencyMedium:  {20 * time.Second, 2 * time.Minute, time.Minute},
	LatencyLow:     {time.Minute, 5 * time.Minute, time.Minute},
}

type kubeletConfiguration struct {
	head                      `yaml:",inline"`
	CgroupDriver              string `yaml:"cgroupDriver"`
	FailCgroupV1              *bool  `yaml:"failCgroupV1,omitempty"`
	ResolvConf                string `yaml:"resolvConf,omitempty"`
	NodeStatusUpdateFrequency string `yaml:"nodeStatusUpdateFrequency,omitempty"`
}

func (c Cluster) kubelet() kubeletConfiguration {
	out := kubeletConfiguration{
		head:         head{"kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"},
		CgroupDriver: "systemd",
		ResolvConf:   c.ResolvConf,
	}
	if c.AllowCgroupV1 {
		out.FailCgroupV1 = new(bool)
	}
	if d := profiles[c.WorkerLatency].report; d > 0 {
		out.NodeStatusUpdateFrequency = d.String()
	}
	return out
}

type kubeProxyConfiguration struct {
	head            `yaml:",inline"`
	Mode            string    `yaml:"mode"`
	DetectLocalMode string    `yaml:"detectLocalMode"`
	ClusterCIDR     string    `yaml:"clusterCIDR"`
	Conntrack       conntrack `yaml:"conntrack,omitempty"`
}

type conntrack struct {
	MaxPerCore *int `yaml:"maxPerCore,omitempty"`
	Min        *int `yaml:"min,omitempty"`
}

// kubeProxy tells local from foreign traffic by the range of all pods: pods of
// other sites are none to be masqueraded either.
func (c Cluster) kubeProxy() kubeProxyConfiguration {
	mode := c.KubeProxy.Mode
	if mode == "" {
		mode = "nftables"
	}
	return kubeProxyConfiguration{
		head:            head{"kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"},
		Mode:            mode,
		DetectLocalMode: "ClusterCIDR",
		ClusterCIDR:     c.PodSubnet.String(),
		Conntrack:       conntrack{c.KubeProxy.ConntrackMaxPerCore, c.KubeProxy.ConntrackMin},
	}
}

// Bases of the time-outs: kubeadm's own, but for etcd calls, where the
// promotion of a learner was seen to take 135 s over a WAN while kubeadm waits
// two minutes.
const (
	healthBase    = 4 * time.Minute
	apiCallBase   = time.Minute
	etcdCallBase  = 4 * time.Minute
	bootstrapBase = 5 * time.Minute

	// rttUnit is the round trip that doubles the time-outs, maxScale what they
	// grow to at most: beyond it a longer wait only hides a fault.
	rttUnit  = 100 * time.Millisecond
	maxScale = 4
)

func scaledTimeouts(rtt time.Duration) timeouts {
	rtt = min(max(rtt, 0), (maxScale-1)*rttUnit)
	scaled := func(base time.Duration) string {
		d := base + base/time.Second*rtt*(time.Second/rttUnit)
		return ((d + 10*time.Second - 1) / (10 * time.Second) * (10 * time.Second)).String()
	}
	return timeouts{
		ControlPlaneComponentHealthCheck: scaled(healthBase),
		KubeletHealthCheck:               scaled(healthBase),
		KubernetesAPICall:                scaled(apiCallBase),
		EtcdAPICall:                      scaled(etcdCallBase),
		TLSBootstrap:                     scaled(bootstrapBase),
		Discovery:                        scaled(bootstrapBase),
	}
}
