// Package kubelab runs real Kubernetes clusters in the worlds of package netlab: the reference deployment with a load
// balancer, three control planes and four workers on three LANs, each a machine with a root file system of its own and
// systemd as process 1, so that kubeadm, the kubelet, containerd, sshd and every tool that manages them find what they find
// anywhere else. The three routers run sshd and, when asked, meshd; [World.Operator] is an ordinary machine with an SSH key.
//
//	world, err := kubelab.Start(ctx, kubelab.Options{Meshd: "bin/meshd"})
//	if err != nil {
//		return err
//	}
//	defer world.Close()
//	err = world.Operator().Command(ctx, "bin/kubeinit", "apply", "cluster.yaml").Run()
//
// # What machines are made from
//
// The programs of Kubernetes are built from the Go modules below mod, each with its go.mod and go.sum, so that this module
// does not depend on them; or they are taken from the folder that KUBE_BIN_DIR names. The Debian below them comes from the
// archive that the machine's apt uses. Both are kept in the cache folder (PLANETMESH_CACHE, or planetmesh in the user's
// cache folder) in folders that are named by a hash of what they were made from, and so are the images, which are made from
// the same programs and imported once: every machine gets links to them. No machine has a way out of the world, and nothing
// is ever pulled.
//
// # What differs from a real machine
//
// All machines have one kernel, one clock and one disk. Settings below /proc/sys other than the network's are read-only.
// D-Bus is masked, because the kernel allows root only 128 inotify instances; commands that talk to it (hostnamectl,
// systemd-run --wait) do not work. Cgroups are those of version 1: kubelets want failCgroupV1 to be false, and kubeadm 1.35
// and later the check SystemVerification ignored. /var is a file system of its own. The size of the connection tracking
// table belongs to the machine: kube-proxy wants conntrack maxPerCore and min to be 0.
//
// # Nothing stays behind
//
// All processes of the machines are in the world's PID namespace, and die with it however the program ends. Cgroups and
// folders of a program that was killed are removed by the next. One laboratory runs at a time on a machine.
package kubelab
