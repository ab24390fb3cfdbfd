//go:build e2ekube

package kubelab_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// initConfig is what kubeadm needs to be told here, and no more: the address that others use, and what a machine with
// version 1 cgroups and without a connection tracking table of its own wants.
const initConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 192.168.10.101}
nodeRegistration:
  kubeletExtraArgs: [{name: node-ip, value: 192.168.10.101}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %s
networking: {podSubnet: 10.128.0.0/16}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
conntrack: {maxPerCore: 0, min: 0}
`

// conflist is a pod network of one node: the gateways route between them.
const conflist = `{"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
"ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

// webManifest puts the laboratory's workload on every node, behind one name.
const webManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      tolerations: [{operator: Exists}]
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: %s
        env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

const kubectl = "KUBECONFIG=/etc/kubernetes/admin.conf kubectl "

// kubeadmFlags are what preflight has to overlook: from 1.35 on, version 1 cgroups.
func kubeadmFlags(version string) string {
	if strings.HasPrefix(version, "v1.34.") {
		return ""
	}
	return "--ignore-preflight-errors=SystemVerification"
}

func TestTwoHostsBecomeAClusterByHand(t *testing.T) {
	w := newWorld(t, kubelab.Options{Hosts: []string{"master01", "node01"}, Routed: true})
	start := time.Now()
	version := w.Assets().Version()
	for _, h := range w.Hosts() {
		mustSSH(t, w, h.Name(), "sysctl -w net.ipv4.ip_forward=1", "")
	}
	out := mustSSH(t, w, "master01", "cat > /root/kubeadm.yaml && kubeadm init --config /root/kubeadm.yaml "+kubeadmFlags(version),
		fmt.Sprintf(initConfig, version))
	t.Logf("kubeadm init: %.1f s", time.Since(start).Seconds())
	mustSSH(t, w, "node01", joinCommand(t, out)+" "+kubeadmFlags(version), "")
	t.Logf("kubeadm join: %.1f s", time.Since(start).Seconds())
	connectPods(t, w, map[string]string{"master01": "gw10", "node01": "gw20"})
	mustSSH(t, w, "master01", kubectl+"wait --for=condition=Ready node --all --timeout=120s", "")
	t.Logf("two nodes ready after %.1f s\n%s", time.Since(start).Seconds(), mustSSH(t, w, "master01", kubectl+"get nodes -o wide", ""))

	mustSSH(t, w, "master01", kubectl+"apply -f -", fmt.Sprintf(webManifest, kubelab.WebImage))
	mustSSH(t, w, "master01", kubectl+"rollout status ds/web --timeout=120s && "+
		kubectl+"-n kube-system rollout status ds/kube-proxy --timeout=120s && "+
		kubectl+"-n kube-system rollout status deploy/coredns --timeout=120s", "")
	checkPods(t, w)
	t.Logf("pods reach each other after %.1f s", time.Since(start).Seconds())
}

// joinCommand is the command that kubeadm init prints for workers.
func joinCommand(t *testing.T, out string) string {
	t.Helper()
	found := regexp.MustCompile(`kubeadm join \S+ --token \S+ \\\s+--discovery-token-ca-cert-hash \S+`).FindAllString(out, -1)
	if len(found) == 0 {
		t.Fatalf("kubeadm init printed no join command:\n%s", out)
	}
	return found[len(found)-1]
}

// connectPods configures the pod network of the nodes, given the router of each, and the routes between them.
func connectPods(t *testing.T, w *kubelab.World, routers map[string]string) {
	t.Helper()
	for node, router := range routers {
		mustSSH(t, w, "master01", kubectl+"wait --for=jsonpath={.spec.podCIDR} --timeout=60s node/"+node, "")
		cidr := strings.TrimSpace(mustSSH(t, w, "master01", kubectl+"get node "+node+" -o jsonpath={.spec.podCIDR}", ""))
		mustSSH(t, w, node, "mkdir -p /etc/cni/net.d && cat > /etc/cni/net.d/10-lab.conflist", fmt.Sprintf(conflist, cidr))
		for _, r := range w.Routers() {
			via := w.Host(node).Addr()
			if r.Name() != router {
				via = w.Host(router).Net().Addr()
			}
			if _, err := r.Exec(t.Context(), "ip", "route", "replace", cidr, "via", via.String()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// checkPods asks every pod of the workload from every node and from every pod, which finds the others by name.
func checkPods(t *testing.T, w *kubelab.World) {
	t.Helper()
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIP string }
		}
	}
	if err := json.Unmarshal([]byte(mustSSH(t, w, "master01", kubectl+"get pods -l app=web -o json", "")), &pods); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != len(w.Hosts()) {
		t.Errorf("%d pods of the workload, want %d", len(pods.Items), len(w.Hosts()))
	}
	for _, p := range pods.Items {
		for _, h := range w.Hosts() {
			want := "node=" + p.Spec.NodeName
			if got := mustSSH(t, w, h.Name(), "curl -sS -m 5 http://"+p.Status.PodIP+":8080/", ""); !strings.Contains(got, want) {
				t.Errorf("%s asked %s on %s: got %q, want %s", h.Name(), p.Status.PodIP, p.Spec.NodeName, got, want)
			}
		}
		got := mustSSH(t, w, "master01", kubectl+"exec "+p.Metadata.Name+" -- /web -get http://web.default.svc.cluster.local/", "")
		if !strings.HasPrefix(got, "pod=web-") {
			t.Errorf("%s asked for the service by name: got %q", p.Metadata.Name, got)
		}
	}
}
