//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

// Assets is everything that worlds of one version of Kubernetes are made from.
type Assets struct {
	cache   cache
	release release

	bin      string   // programs of the release
	identity string   // of these: changes when one of them does
	own      string   // labinit, and what runs in pods
	root     string   // the Debian of all machines
	store    string   // of containerd, with all images in it
	refs     []string // the images that kubeadm asks for
	pause    string   // of these, the one of sandboxes
}

// WebImage is the laboratory's workload, which every node has: an HTTP server on port 8080 that answers with the names of its
// pod and, from the variable NODE_NAME, its node, and with the address that asks. "/web -get URL" is a client.
const WebImage = "lab.planetmesh/web:1"

// Version is that of Kubernetes, such as v1.34.4.
func (a *Assets) Version() string { return a.release.version }

// Program is the path of one of the release's programs on this machine, such as kubeadm, whether or not there is one.
func (a *Assets) Program(name string) string { return filepath.Join(a.bin, name) }

// Images are the images that every node has.
func (a *Assets) Images() []string { return append([]string{WebImage}, a.refs...) }

// prepare makes what is missing of the assets. It needs the lock.
func prepare(ctx context.Context, c cache, r release) (*Assets, error) {
	a := &Assets{cache: c, release: r}
	source, err := sourceFolder(ctx, c)
	if err != nil {
		return nil, err
	}
	if a.own, err = c.own(ctx, source); err != nil {
		return nil, err
	}
	if a.root, err = c.root(ctx); err != nil {
		return nil, err
	}
	if a.bin, a.identity, err = c.programs(ctx, source, r); err != nil {
		return nil, err
	}
	out, err := c.run(ctx, "", nil, a.Program("kubeadm"), "config", "images", "list", "--kubernetes-version", r.version)
	if err != nil {
		return nil, err
	}
	a.refs = strings.Fields(out)
	if a.pause, err = pauseImage(a.refs); err != nil {
		return nil, err
	}
	return a, a.fillStore(ctx, source)
}

// storeRevision changes when stores are to be made anew though nothing else in their recipe has changed.
const storeRevision = "1"

// fillStore makes a containerd import all images once, in a machine where nothing else runs. Every node gets links to what it
// wrote: containerd changes only its databases afterwards.
func (a *Assets) fillStore(ctx context.Context, source string) (err error) {
	guest, err := moduleContent(filepath.Join(source, "mod", "guest"))
	if err != nil {
		return err
	}
	recipe := append([]string{storeRevision, a.identity, a.root, guest, containerdConfig[a.release.containerd]}, a.refs...)
	a.store, err = a.cache.entry("store", "a containerd store with the images", recipe, func(dir string) error {
		return a.importImages(ctx, dir)
	})
	return err
}

func (a *Assets) importImages(ctx context.Context, store string) (err error) {
	images, err := a.images()
	if err != nil {
		return err
	}
	layer, err := a.cache.layer(a, true, ContainerdConfigured)
	if err != nil {
		return err
	}
	w, err := netlab.Start(ctx, netlab.Topology{Hosts: []netlab.HostSpec{{Name: "builder"}}})
	if err != nil {
		return err
	}
	run := filepath.Join(a.cache.dir, "run")
	defer func() { err = errors.Join(err, w.Close(), os.RemoveAll(run)) }()
	b := &box{net: w.Host("builder"), labinit: filepath.Join(a.own, "labinit"), dir: filepath.Join(run, "builder")}
	b.spec = boxspec.Box{Lower: []string{layer, a.root}, Init: []string{"/usr/bin/containerd"}, Env: boxEnv}
	if err := b.create(a.root, ""); err != nil {
		return err
	}
	if err := b.boot(ctx); err != nil {
		return err
	}
	if err := b.await(ctx, "ctr", "version"); err != nil {
		return err
	}
	for _, i := range images {
		a.cache.logf("importing %s", i.ref)
		if err := b.importImage(ctx, i); err != nil {
			return err
		}
	}
	if err := b.shutDown(ctx); err != nil { // containerd writes its database to the end
		return err
	}
	return moveStore(filepath.Join(b.dir, "var/lib/containerd"), store)
}

// importImage writes an image into the standard input of ctr.
func (b *box) importImage(ctx context.Context, i image) error {
	cmd := b.command(ctx, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	writeErr := i.write(in)
	closeErr := in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("import %s: %w: %s", i.ref, err, tail(out.String()))
	}
	return errors.Join(writeErr, closeErr)
}

// moveStore moves what containerd wrote to its place, but for what belonged to running containers.
func moveStore(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// linkStore gives a machine the store: links to everything, and databases of its own.
func linkStore(store, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "--archive", "--link", store, to).CombinedOutput(); err != nil {
		return fmt.Errorf("link the store: %w: %s", err, tail(string(out)))
	}
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".db") || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o644)
	})
}
