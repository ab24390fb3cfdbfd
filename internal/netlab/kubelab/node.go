//go:build linux

package kubelab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// kubeletUnit and kubeletDropIn are the files that the packages kubelet and kubeadm of the Kubernetes project install; kubeadm
// counts on the names of the variables and files in them.
const (
	kubeletUnit = `[Unit]
Description=kubelet: The Kubernetes Node Agent
Documentation=https://kubernetes.io/docs/
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
`
	kubeletDropIn = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
)

// containerdConfig is a configuration of containerd that kubelets can work with, by its major version. The score that keeps a
// process from being killed for want of memory cannot be set without CAP_SYS_RESOURCE, which a laboratory need not have.
var containerdConfig = map[int]string{
	1: `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[1]q
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
`,
	2: `version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[1]q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = true
`,
}

// containerdPrograms are the programs of containerd 2 that go in the place of the distribution's.
var containerdPrograms = []string{"containerd", "containerd-shim-runc-v2", "ctr"}

// nodeRevision changes when layers are to be made anew though nothing else in their recipe has changed.
const nodeRevision = "1"

// layer makes a folder with what the machines of a cluster have beyond the root: the container runtime, the network plug-ins
// and, unless bare, the programs of Kubernetes; with containerd configured for them or as the distribution has it.
func (c cache) layer(a *Assets, bare bool, state ContainerdState) (string, error) {
	recipe := []string{
		nodeRevision, a.identity, a.root, a.pause, kubeletUnit, kubeletDropIn, containerdConfig[a.release.containerd],
		fmt.Sprint(bare, state),
	}
	return c.entry("node", "the layer of the nodes", recipe, func(dir string) error {
		plugins, err := os.ReadDir(filepath.Join(a.root, "usr/lib/cni"))
		if err != nil {
			return err
		}
		for _, p := range plugins {
			if err := clone(filepath.Join(a.root, "usr/lib/cni", p.Name()), filepath.Join(dir, "opt/cni/bin", p.Name())); err != nil {
				return err
			}
		}
		if err := a.addContainerd(dir, state); err != nil || bare {
			return err
		}
		for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
			if err := clone(filepath.Join(a.bin, name), filepath.Join(dir, "usr/bin", name)); err != nil {
				return err
			}
		}
		return errors.Join(
			writeFile(filepath.Join(dir, "usr/lib/systemd/system/kubelet.service"), kubeletUnit, 0o644),
			writeFile(filepath.Join(dir, "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"), kubeletDropIn, 0o644),
			enable(dir, "kubelet.service"),
		)
	})
}

func (a *Assets) addContainerd(dir string, state ContainerdState) error {
	if a.release.containerd > 1 {
		for _, name := range containerdPrograms {
			if err := clone(filepath.Join(a.bin, name), filepath.Join(dir, "usr/bin", name)); err != nil {
				return err
			}
		}
	}
	if state == ContainerdConfigured {
		config := fmt.Sprintf(containerdConfig[a.release.containerd], a.pause)
		if err := writeFile(filepath.Join(dir, "etc/containerd/config.toml"), config, 0o644); err != nil {
			return err
		}
	}
	return enable(dir, "containerd.service")
}

// enable does what "systemctl enable" does to a service that multi-user.target wants.
func enable(dir, unit string) error {
	return link("/lib/systemd/system/"+unit, filepath.Join(dir, "etc/systemd/system/multi-user.target.wants", unit))
}

// pauseImage is, of the images that kubeadm names, the one that sandboxes are made from.
func pauseImage(images []string) (string, error) {
	for _, ref := range images {
		if strings.Contains(ref, "/pause:") {
			return ref, nil
		}
	}
	return "", fmt.Errorf("kubeadm names no pause image in %q: %w", images, fs.ErrNotExist)
}
