package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
)

// access is what steps of one host need of the control planes: the API, and
// what a host needs to join. Its methods are safe for concurrent use.
type access struct {
	cluster kubeadm.Cluster
	planes  []host.Host // the first host first
	node    kubeadm.Node
	random  io.Reader

	mu    sync.Mutex // guards all below
	token kubeadm.Token
	key   kubeadm.CertificateKey
	ready *kubeadm.Discovery // nil until this run has made its secrets known to the cluster
}

func newAccess(in Input, c kubeadm.Cluster) *access {
	a := &access{cluster: c, random: in.Random}
	for _, h := range in.Inventory.With(inventory.ControlPlane) {
		if machine := in.Hosts[h.Name]; machine != nil {
			a.planes = append(a.planes, machine)
		}
	}
	first := slices.IndexFunc(a.planes, func(h host.Host) bool { return h.Name() == in.Decisions.First })
	if first > 0 {
		h := a.planes[first]
		a.planes = append([]host.Host{h}, slices.Delete(a.planes, first, first+1)...)
	}
	return a
}

// errNoCluster is the error of a cluster that does not exist yet.
var errNoCluster = errors.New("no control plane has been initialised")

// An API that does not answer is asked again for a while: it may have been
// restarted just now.
const (
	planeTries = 5
	planePause = 2 * time.Second
)

// plane returns a control plane with an administrator's access to an API that
// answers. The error is errNoCluster if none has been initialised, which is also
// so while kubeadm is at it.
func (a *access) plane(ctx context.Context) (host.Host, error) {
	for try := 1; ; try++ {
		h, err := a.findPlane(ctx)
		if err == nil || errors.Is(err, errNoCluster) || try == planeTries {
			return h, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(planePause):
		}
	}
}

func (a *access) findPlane(ctx context.Context) (host.Host, error) {
	var errs []error
	for _, h := range a.planes {
		_, err := h.Stat(ctx, adminConf)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = h.Run(ctx, kubectl("get", "--raw", "/readyz"))
		}
		if err == nil {
			return h, nil
		}
		if running, unitErr := beginning(ctx, h); unitErr == nil && running {
			continue
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errNoCluster
	}
	return nil, errors.Join(errs...)
}

// beginning reports whether kubeadm is at work on a host.
func beginning(ctx context.Context, h host.Host) (bool, error) {
	for _, unit := range []string{"kubeadm-init", "kubeadm-join"} {
		if running, err := unitRuns(ctx, h, unit); err != nil || running {
			return running, err
		}
	}
	return false, nil
}

// kubectl is a command of a control plane.
func kubectl(args ...string) host.Command {
	return host.Command{Args: append([]string{"kubectl", "--kubeconfig", adminConf, "--request-timeout", "15s"}, args...)}
}

// ask runs kubectl on some control plane.
func (a *access) ask(ctx context.Context, args ...string) (string, error) {
	h, err := a.plane(ctx)
	if err != nil {
		return "", err
	}
	out, err := h.Run(ctx, kubectl(args...))
	return out.Stdout, err
}

// put creates or changes objects of the API.
func (a *access) put(ctx context.Context, objects []byte) error {
	h, err := a.plane(ctx)
	if err != nil {
		return err
	}
	c := kubectl("apply", "--server-side", "--field-manager", "kubeinit", "--force-conflicts", "-f", "-")
	c.Stdin = bytes.NewReader(objects)
	_, err = h.Run(ctx, c)
	return err
}

// secrets are those of this run, made when they are wanted first. The caller
// holds mu.
func (a *access) secrets() error {
	if a.token.Secret() != "" {
		return nil
	}
	var err error
	if a.token, err = kubeadm.NewToken(a.random); err != nil {
		return err
	}
	a.key, err = kubeadm.NewCertificateKey(a.random)
	return err
}

// config is the configuration with which a cluster is initialised.
func (a *access) config(n kubeadm.Node) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.secrets(); err != nil {
		return nil, err
	}
	return kubeadm.Init(a.cluster, n, a.token, a.key)
}

// discovery makes a token and the certificates known to the cluster, once in
// this run, and returns what hosts need to join.
func (a *access) discovery(ctx context.Context) (kubeadm.Discovery, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready != nil {
		return *a.ready, nil
	}
	if err := a.secrets(); err != nil {
		return kubeadm.Discovery{}, err
	}
	h, err := a.plane(ctx)
	if err != nil {
		return kubeadm.Discovery{}, err
	}
	text, err := kubeadm.Init(a.cluster, a.node, a.token, a.key)
	if err != nil {
		return kubeadm.Discovery{}, err
	}
	if err := a.put(ctx, tokenObject(a.token, time.Now().Add(tokenLife))); err != nil {
		return kubeadm.Discovery{}, fmt.Errorf("make a token: %w", err)
	}
	if err := withConfig(ctx, h, "access", text, func(file string) error {
		_, err := h.Run(ctx, host.Command{Args: []string{"kubeadm", "init", "phase", "upload-certs", "--upload-certs", "--config", file}, Secret: true})
		return err
	}); err != nil {
		return kubeadm.Discovery{}, fmt.Errorf("upload certificates: %w", err)
	}
	ca, err := h.ReadFile(ctx, "/etc/kubernetes/pki/ca.crt")
	if err != nil {
		return kubeadm.Discovery{}, err
	}
	hash, err := kubeadm.CAHash(ca)
	if err != nil {
		return kubeadm.Discovery{}, err
	}
	a.ready = &kubeadm.Discovery{Token: a.token, CAHash: hash, Key: a.key}
	return *a.ready, nil
}

// tokenLife is how long hosts may join with a token: as long as kubeadm keeps
// the certificates that it uploads.
const tokenLife = 2 * time.Hour

// tokenObject is the Secret that a bootstrap token is. It can be put again and
// again, also after init has made it.
func tokenObject(t kubeadm.Token, until time.Time) []byte {
	_, secret, _ := strings.Cut(t.Secret(), ".")
	return object(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
		"metadata": map[string]any{"name": "bootstrap-token-" + t.ID(), "namespace": "kube-system"},
		"stringData": map[string]any{
			"token-id": t.ID(), "token-secret": secret, "expiration": until.UTC().Format(time.RFC3339),
			"usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
			"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
			"description":       "of kubeinit",
		},
	})
}

// withConfig has a file with secrets on a host as long as use runs.
func withConfig(ctx context.Context, h host.Host, name string, text []byte, use func(file string) error) error {
	file := host.UnitDir + "/kubeadm-" + name + ".yaml"
	if err := h.WriteFile(ctx, file, text, 0o600); err != nil {
		return err
	}
	err := use(file)
	// Also when ctx has ended: no secret stays.
	return errors.Join(err, h.Remove(context.WithoutCancel(ctx), file))
}
