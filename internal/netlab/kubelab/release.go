//go:build linux

package kubelab

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// release is a version of Kubernetes and what runs with it.
type release struct {
	minor   string // "1.34"
	version string // of the programs: "v1.34.4"
	// programs are what is built for it, by the folder below mod whose module has them.
	programs map[string][]program
	// containerd is the major version of the containerd that runs with it: 1 is the distribution's, 2 one of the programs.
	containerd int
}

// program is one Go program out of a module.
type program struct {
	name string
	pkg  string // import path, or "." and the like for one of the module's own
}

// kubernetes are the seven programs of Kubernetes itself.
var kubernetes = []program{
	{"kubeadm", "k8s.io/kubernetes/cmd/kubeadm"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
}

// guests are the laboratory's own programs that run in pods. They are built in a moment, and never taken from KUBE_BIN_DIR.
var guests = []program{{"pause", "./pause"}, {"web", "./web"}}

// releases are those that the laboratory knows. Their modules pin every version; a new patch release is a change there and
// here.
var releases = []release{
	{
		minor: "1.34", version: "v1.34.4", containerd: 1,
		programs: map[string][]program{
			"kubernetes134": append(slices.Clone(kubernetes), program{"etcd", "go.etcd.io/etcd/server/v3"}),
			"etcdctl36":     {{"etcdctl", "go.etcd.io/etcd/etcdctl/v3"}},
			"coredns112":    {{"coredns", "."}},
		},
	},
	{
		minor: "1.37", version: "v1.37.2", containerd: 2,
		programs: map[string][]program{
			"kubernetes137": kubernetes,
			"etcd37":        {{"etcd", "go.etcd.io/etcd/server/v3"}, {"etcdctl", "go.etcd.io/etcd/etcdctl/v3"}},
			"coredns114":    {{"coredns", "."}},
			"containerd23": {
				{"containerd", "github.com/containerd/containerd/v2/cmd/containerd"},
				{"containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"},
				{"ctr", "github.com/containerd/containerd/v2/cmd/ctr"},
			},
		},
	},
}

// VersionVariable is the environment variable that chooses the version of Kubernetes where [Options.Version] is empty.
const VersionVariable = "KUBE_VERSION"

// defaultVersion is the one that the laboratory was made with.
const defaultVersion = "1.34"

// findRelease is the release of a minor version; empty means that of the environment, or the default.
func findRelease(minor string) (release, error) {
	if minor == "" {
		minor = os.Getenv(VersionVariable)
	}
	if minor == "" {
		minor = defaultVersion
	}
	var known []string
	for _, r := range releases {
		if r.minor == minor {
			return r, nil
		}
		known = append(known, r.minor)
	}
	return release{}, fmt.Errorf("no Kubernetes %q in the laboratory: it has %s (%s)", minor, strings.Join(known, ", "), VersionVariable)
}

// names are those of all programs but the guests, sorted.
func (r release) names() []string {
	var names []string
	for _, programs := range r.programs {
		for _, p := range programs {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// stamp is what the linker writes into the programs of Kubernetes; without it they call themselves v0.0.0. The date and the
// commit are constants, so that a build can be repeated bit by bit.
func (r release) stamp() string {
	major, rest, _ := strings.Cut(r.minor, ".")
	var b strings.Builder
	b.WriteString("-s -w")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		fmt.Fprintf(&b, " -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean"+
			" -X %[1]s.gitCommit=%040[5]d -X %[1]s.buildDate=2026-01-01T00:00:00Z", pkg, r.version, major, rest, 0)
	}
	return b.String()
}
