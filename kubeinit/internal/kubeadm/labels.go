package kubeadm

import (
	"maps"
	"slices"
	"strings"
)

// Labels that a node gets from its site.
const (
	RegionLabel = "topology.kubernetes.io/region"
	ZoneLabel   = "topology.kubernetes.io/zone"
)

// kubeletMay are the labels under kubernetes.io and k8s.io that a kubelet
// accepts in --node-labels, beside all of the two namespaces below.
var kubeletMay = []string{
	"kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os",
	"beta.kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type",
	"node.kubernetes.io/instance-type", RegionLabel, ZoneLabel,
	"failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
}

var kubeletNamespaces = []string{"kubelet.kubernetes.io", "node.kubernetes.io"}

// KubeletLabels divides labels into those that a kubelet may give its own node
// when it registers, and those that an administrator has to set afterwards,
// such as node-role.kubernetes.io/worker. Neither map is nil.
func KubeletLabels(labels map[string]string) (kubelet, administrator map[string]string) {
	kubelet, administrator = map[string]string{}, map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if mayKubelet(k) {
			kubelet[k] = labels[k]
		} else {
			administrator[k] = labels[k]
		}
	}
	return kubelet, administrator
}

func mayKubelet(label string) bool {
	space, _, ok := strings.Cut(label, "/")
	if !ok || !within(space, "kubernetes.io") && !within(space, "k8s.io") {
		return true
	}
	if slices.Contains(kubeletMay, label) {
		return true
	}
	return slices.ContainsFunc(kubeletNamespaces, func(n string) bool { return within(space, n) })
}

// within says whether a DNS name is another or lies below it.
func within(name, of string) bool {
	return name == of || strings.HasSuffix(name, "."+of)
}
