// Demo-kube builds the reference deployment out of machines of a laboratory,
// three isolated LANs with a load balancer, three control planes and four
// workers, makes one network of them with meshd and one Kubernetes cluster with
// kubeinit, shows that it works, and takes everything down again. All programs
// of the cluster are the real ones.
//
// It needs root, 4 GiB of memory and, the first time, half an hour.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

//go:embed inventory.yaml
var inventory []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo-kube:", err)
		stop()
		os.Exit(1)
	}
}

// limit is how long all of it may take once the machines' programs are built.
const limit = 20 * time.Minute

// demo is one showing.
type demo struct {
	out       io.Writer
	kubeinit  string
	inventory []byte
	world     *kubelab.World
	before    map[string]string
	leftovers []string

	ready, nodes, pods, sites, pairs, reached int
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("demo-kube", flag.ContinueOnError)
	meshd := flags.String("meshd", "bin/meshd", "meshd program for the routers")
	kubeinit := flags.String("kubeinit", "bin/kubeinit", "kubeinit program for the operator")
	endpoint := flags.String("endpoint", "proxy", "who serves the API's endpoint: proxy or haproxy")
	collect := flags.String("collect", "", "folder for the logs of all machines if something does not work")
	if err := flags.Parse(args); err != nil {
		return err
	}
	d := &demo{out: out, inventory: bytes.Replace(inventory, []byte("endpoint: proxy"), []byte("endpoint: "+*endpoint), 1)}
	var err error
	if d.kubeinit, err = filepath.Abs(*kubeinit); err != nil {
		return err
	}
	d.world, err = kubelab.Start(ctx, kubelab.Options{Meshd: *meshd, Containerd: kubelab.ContainerdStock, Logf: func(format string, args ...any) {
		fmt.Fprintf(out, format+"\n", args...)
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = d.show(ctx)
	if err != nil && *collect != "" {
		err = errors.Join(err, d.world.Collect(context.WithoutCancel(ctx), *collect))
	}
	err = errors.Join(err, d.world.Close())
	d.leftovers = append(d.leftovers, d.world.Leftovers()...)
	for _, l := range d.leftovers {
		fmt.Fprintln(out, "left over:", l)
	}
	if err != nil {
		return err
	}
	last := fmt.Sprintf("demo-kube: nodes %d/%d ready, pods %d/4 across %d sites, pairs %d/%d, leftovers %d",
		d.ready, d.nodes, d.pods, d.sites, d.reached, d.pairs, len(d.leftovers))
	fmt.Fprintln(out, last)
	if last != "demo-kube: nodes 7/7 ready, pods 4/4 across 2 sites, pairs 12/12, leftovers 0" {
		return errors.New("not everything works")
	}
	return nil
}

func (d *demo) show(ctx context.Context) error {
	if err := d.world.StartMesh(ctx, "planet"); err != nil {
		return err
	}
	var err error
	if d.before, err = d.world.Snapshots(ctx); err != nil {
		return err
	}
	file := filepath.Join(d.world.Operator().Home(), "cluster.yaml")
	if err := d.world.Operator().Net().WriteFile(file, d.inventory, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nThe inventory, at the operator's desk:\n\n%s\n", d.inventory)
	for _, args := range [][]string{
		{"plan", "-f", "cluster.yaml"},
		{"apply", "-f", "cluster.yaml", "--yes"},
		{"apply", "-f", "cluster.yaml", "--yes"},
	} {
		if err := d.say(ctx, args...); err != nil {
			return err
		}
	}
	if err := d.workload(ctx); err != nil {
		return err
	}
	if err := d.say(ctx, "reset", "-f", "cluster.yaml", "--yes"); err != nil {
		return err
	}
	after, err := d.world.Snapshots(ctx)
	if err != nil {
		return err
	}
	d.leftovers = kubelab.DiffAll(d.before, after)
	return nil
}

// say shows a command of the operator and runs it.
func (d *demo) say(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.out, "\noperator$ kubeinit %s\n", strings.Join(args, " "))
	c := d.world.Operator().Command(ctx, d.kubeinit, args...)
	c.Stdout, c.Stderr = d.out, d.out
	began := time.Now()
	err := c.Run()
	fmt.Fprintf(d.out, "(%.1f s)\n", time.Since(began).Seconds())
	return err
}

// kubectl runs on a control plane.
func (d *demo) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	c := d.world.Host("master01").Command(ctx, append([]string{"kubectl"}, args...)...)
	var out, problem bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &problem
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, problem.Bytes())
	}
	return out.String(), nil
}

// web is a Deployment with a replica on every worker.
const web = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":4,
"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{
"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}],
"containers":[{"name":"web","image":"` + kubelab.WebImage + `","imagePullPolicy":"IfNotPresent","ports":[{"containerPort":8080}],
"env":[{"name":"NODE_NAME","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}]}]}}}}`

func (d *demo) workload(ctx context.Context) error {
	if _, err := d.kubectl(ctx, "", "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"); err != nil {
		return err
	}
	text, err := d.kubectl(ctx, "", "get", "nodes", "-o", "wide")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nmaster01$ kubectl get nodes -o wide\n%s", text)
	for _, line := range strings.Split(strings.TrimSpace(text), "\n")[1:] {
		d.nodes++
		if f := strings.Fields(line); len(f) > 1 && f[1] == "Ready" {
			d.ready++
		}
	}
	if _, err := d.kubectl(ctx, web, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := d.kubectl(ctx, "", "rollout", "status", "deployment/web", "--timeout=120s"); err != nil {
		return err
	}
	if text, err = d.kubectl(ctx, "", "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nmaster01$ kubectl get pods -o wide\n%s\n", text)
	return d.pairsOf(ctx)
}

// pairsOf has every pod ask every other one.
func (d *demo) pairsOf(ctx context.Context) error {
	text, err := d.kubectl(ctx, "", "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}`)
	if err != nil {
		return err
	}
	sites := map[string]bool{}
	var pods [][]string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 {
			pods = append(pods, f)
			sites[d.world.Host(f[2]).Addr().String()[:len("192.168.20")]] = true
		}
	}
	d.pods, d.sites = len(pods), len(sites)
	for _, from := range pods {
		for _, to := range pods {
			if from[0] == to[0] {
				continue
			}
			d.pairs++
			answer, err := d.kubectl(ctx, "", "exec", from[0], "--", "/web", "-get", "http://"+to[1]+":8080/")
			if err != nil {
				fmt.Fprintf(d.out, "%s (%s) to %s (%s): %v\n", from[0], from[2], to[0], to[2], err)
				continue
			}
			fmt.Fprintf(d.out, "%s (%s) asks %s: %s\n", from[0], from[2], to[1], strings.TrimSpace(answer))
			d.reached++
		}
	}
	return nil
}
