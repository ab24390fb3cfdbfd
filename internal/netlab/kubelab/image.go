//go:build linux

package kubelab

import (
	"archive/tar"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// image is a container image of one layer, made from files of the machine. Nothing is ever pulled.
type image struct {
	// ref is the name that Kubernetes asks for.
	ref string
	// entry is the program that runs where a pod names none; empty means that pods always do.
	entry string
	// files are the files' paths in the image and on the machine; links are symbolic links and what they say.
	files, links map[string]string
}

// imageTime is the time of everything in an image, so that the same files make the same image: 2026-01-01.
var imageTime = time.Unix(1767225600, 0)

// write writes the image as an archive in the form that "docker save" writes and "ctr images import" reads. It reads the files
// twice: the archive begins with the layer's length and names it by its digest.
func (i image) write(w io.Writer) error {
	digest := sha256.New()
	length := new(counter)
	if err := i.writeLayer(io.MultiWriter(digest, length)); err != nil {
		return fmt.Errorf("image %s: %w", i.ref, err)
	}
	config, err := i.config("sha256:" + hex.EncodeToString(digest.Sum(nil)))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	name := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{i.ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{{name, config}, {"manifest.json", manifest}} {
		if err := t.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: imageTime}); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Name: "layer.tar", Mode: 0o644, Size: int64(*length), ModTime: imageTime}); err != nil {
		return err
	}
	if err := i.writeLayer(t); err != nil {
		return fmt.Errorf("image %s: %w", i.ref, err)
	}
	return t.Close()
}

func (i image) config(layer string) ([]byte, error) {
	run := map[string]any{"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	if i.entry != "" {
		run["Entrypoint"] = []string{i.entry}
	}
	return json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": imageTime.UTC().Format(time.RFC3339), "config": run,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer}},
	})
}

// writeLayer writes the tar archive of the image's files, the folders above them, and the empty folders that programs expect.
func (i image) writeLayer(w io.Writer) error {
	t := tar.NewWriter(w)
	names := []string{"/etc/.", "/tmp/."}
	for name := range i.files {
		names = append(names, name)
	}
	for name := range i.links {
		names = append(names, name)
	}
	slices.Sort(names)
	made := map[string]bool{".": true}
	for _, name := range names {
		inside := strings.TrimPrefix(name, "/")
		if err := writeFolders(t, path.Dir(inside), made); err != nil {
			return err
		}
		var err error
		switch {
		case path.Base(name) == ".":
		case i.links[name] != "":
			err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: inside, Linkname: i.links[name], Mode: 0o777, ModTime: imageTime})
		default:
			err = writeOne(t, inside, i.files[name])
		}
		if err != nil {
			return err
		}
	}
	return t.Close()
}

func writeFolders(t *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := writeFolders(t, path.Dir(dir), made); err != nil {
		return err
	}
	mode := int64(0o755)
	if dir == "tmp" {
		mode = 0o1777
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode, ModTime: imageTime})
}

func writeOne(t *tar.Writer, name, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: imageTime}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// images are what the pods of a cluster are made from. Their names are those that kubeadm asks for, so that no tool has to
// be told of another repository; the laboratory's own workload is added.
func (a *Assets) images() ([]image, error) {
	images := []image{{ref: WebImage, entry: "/web", files: map[string]string{"/web": filepath.Join(a.own, "web")}}}
	for _, ref := range a.refs {
		name := ref[strings.LastIndexByte(ref, '/')+1:]
		name = name[:strings.IndexByte(name, ':')]
		i := image{ref: ref, files: map[string]string{"/usr/local/bin/" + name: filepath.Join(a.bin, name)}}
		switch name {
		case "pause":
			i.entry, i.files = "/pause", map[string]string{"/pause": filepath.Join(a.own, "pause")}
		case "coredns":
			i.entry = "/usr/local/bin/coredns"
		case "etcd":
			i.files["/usr/local/bin/etcdctl"] = filepath.Join(a.bin, "etcdctl")
		case "kube-proxy":
			if err := i.addRules(a.root); err != nil {
				return nil, err
			}
		}
		images = append(images, i)
	}
	return images, nil
}

// addRules adds the programs with which kube-proxy writes its rules, from the machines' root with the libraries that they need.
func (i *image) addRules(root string) error {
	programs := []string{"/usr/sbin/xtables-nft-multi", "/usr/sbin/nft", "/usr/sbin/conntrack", "/usr/bin/ip", "/usr/bin/dash"}
	extensions, err := filepath.Glob(filepath.Join(root, "usr/lib/*/xtables/*.so"))
	if err != nil {
		return err
	}
	for _, e := range extensions {
		programs = append(programs, strings.TrimPrefix(e, root))
	}
	for _, p := range programs {
		if err := i.addWithLibraries(root, p); err != nil {
			return err
		}
	}
	i.links = map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/usr/bin/sh": "dash"}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			i.links["/usr/sbin/"+name+suffix] = "xtables-nft-multi"
		}
	}
	return nil
}

// addWithLibraries adds a file of the root and, if it is a program or a library, everything that the dynamic linker would load.
func (i *image) addWithLibraries(root, name string) error {
	if _, ok := i.files[name]; ok {
		return nil
	}
	i.files[name] = filepath.Join(root, name)
	f, err := elf.Open(i.files[name])
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", name, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			loader, err := io.ReadAll(p.Open())
			if err != nil {
				return err
			}
			if err := i.addLoader(root, strings.TrimRight(string(loader), "\x00")); err != nil {
				return err
			}
		}
	}
	for _, l := range libraries {
		found, err := findLibrary(root, l)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := i.addWithLibraries(root, found); err != nil {
			return err
		}
	}
	return nil
}

// addLoader adds the dynamic linker under the name that programs have for it, which is a link on Debian.
func (i *image) addLoader(root, name string) error {
	target, err := os.Readlink(filepath.Join(root, "usr", name))
	if errors.Is(err, unix.EINVAL) { // a file, not a link
		target, err = name, nil
	}
	if err != nil {
		return err
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	i.files["/usr"+name] = filepath.Join(root, "usr", target)
	return nil
}

// findLibrary finds a library of the root by its name. os.Open follows its link within the root, because it is a relative one.
func findLibrary(root, name string) (string, error) {
	matches, err := filepath.Glob(filepath.Join(root, "usr/lib/*", name))
	if err != nil || len(matches) == 0 {
		return "", errors.Join(fmt.Errorf("no library %s in %s", name, root), err)
	}
	return strings.TrimPrefix(matches[0], root), nil
}
