//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// BinariesVariable is the environment variable that names a folder with the programs of Kubernetes, so that none are built.
// They must be statically linked, because they also become images, and of the version that the laboratory runs.
const BinariesVariable = "KUBE_BIN_DIR"

// goFlags make builds static and repeatable. Two packages at a time are what a small machine can bear.
var goFlags = []string{"CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOWORK=off", "GOFLAGS=-p=2 -buildvcs=false -trimpath -mod=readonly"}

// modulePath is that of the module that this package is part of.
const modulePath = "github.com/planetmesh/planetmesh"

// sourceFolder is where this package's files are, which are needed for building. It is found from the working directory.
func sourceFolder(ctx context.Context, c cache) (string, error) {
	out, err := c.run(ctx, "", nil, "go", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return "", fmt.Errorf("find the sources of the laboratory, which needs them: %w", err)
	}
	return filepath.Join(strings.TrimSpace(out), "internal", "netlab", "kubelab"), nil
}

// programs is the folder with the programs of a release, KUBE_BIN_DIR or one of the cache, and what identifies them.
func (c cache) programs(ctx context.Context, source string, r release) (dir, identity string, err error) {
	if dir := os.Getenv(BinariesVariable); dir != "" {
		return c.foreignPrograms(ctx, dir, r)
	}
	recipe := []string{runtime.Version(), runtime.GOARCH, r.stamp(), strings.Join(goFlags, " ")}
	modules := slices.Sorted(maps.Keys(r.programs))
	for _, module := range modules {
		content, err := moduleContent(filepath.Join(source, "mod", module))
		if err != nil {
			return "", "", err
		}
		recipe = append(recipe, content, fmt.Sprint(r.programs[module]))
	}
	dir, err = c.entry("bin", "the programs of Kubernetes "+r.version+" (10 to 20 minutes with an empty build cache)", recipe, func(dir string) error {
		for _, module := range modules {
			for _, p := range r.programs[module] {
				c.logf("building %s", p.name)
				if err := c.build(ctx, filepath.Join(source, "mod", module), p, r.stamp(), dir); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return dir, dir, err
}

// foreignPrograms checks that a folder has the programs of the release. Their sizes and times identify them.
func (c cache) foreignPrograms(ctx context.Context, dir string, r release) (string, string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	identity, missing := dir, []string(nil)
	for _, name := range r.names() {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() {
			missing = append(missing, name)
			continue
		}
		identity += fmt.Sprint(" ", info.Size(), " ", info.ModTime().UnixNano())
	}
	if len(missing) > 0 {
		return "", "", fmt.Errorf("%s=%s lacks %s", BinariesVariable, dir, strings.Join(missing, ", "))
	}
	version, err := c.run(ctx, "", nil, filepath.Join(dir, "kubeadm"), "version", "-o", "short")
	if err != nil {
		return "", "", err
	}
	if version = strings.TrimSpace(version); version != r.version {
		return "", "", fmt.Errorf("%s=%s has Kubernetes %s, the laboratory runs %s", BinariesVariable, dir, version, r.version)
	}
	return dir, identity, nil
}

func (c cache) build(ctx context.Context, module string, p program, ldflags, dir string) error {
	_, err := c.run(ctx, module, goFlags, "go", "build", "-ldflags", ldflags, "-o", filepath.Join(dir, p.name), p.pkg)
	return err
}

// own builds the laboratory's own programs: those that run in pods, and labinit. The go command knows when there is nothing
// to do.
func (c cache) own(ctx context.Context, source string) (dir string, err error) {
	dir = filepath.Join(c.dir, "own")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, p := range guests {
		if err := c.build(ctx, filepath.Join(source, "mod", "guest"), p, "-s -w", dir); err != nil {
			return "", err
		}
	}
	return dir, c.build(ctx, source, program{"labinit", "./labinit"}, "-s -w", dir)
}

// moduleContent is the text of all files of a small module, with their names.
func moduleContent(dir string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %d\n%s", strings.TrimPrefix(path, dir), len(data), data)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("module of the laboratory: %w", err)
	}
	return b.String(), err
}
