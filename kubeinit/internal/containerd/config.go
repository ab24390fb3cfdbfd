// Package containerd writes containerd's config.toml in the schema of its
// version, and knows which version of Kubernetes runs on which containerd. It
// runs nothing and opens nothing.
package containerd

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Where things are unless Config says otherwise; containerd's own defaults.
const (
	File       = "/etc/containerd/config.toml"
	CNIPlugins = "/opt/cni/bin"
	CNIConfigs = "/etc/cni/net.d"
)

const header = "# written by kubeinit; changes are overwritten\n"

// Config is what goes into config.toml. Everything else stays as containerd has
// it by default.
type Config struct {
	Version Version
	// Sandbox is the image of the container that holds a pod together, as
	// kubeadm.PauseImage returns it.
	Sandbox string
	// CNIPlugins and CNIConfigs are directories; empty: the constants.
	CNIPlugins, CNIConfigs string
	// ExtraTOML is added: keys under a table that is in the file anyway go into
	// it, other tables to the end. It may not set what kubeinit sets. Its tables
	// have the names of the schema that Version has.
	ExtraTOML string
}

// Render returns the file. The error names every fault, and lines of ExtraTOML.
func Render(c Config) ([]byte, error) {
	if c.CNIPlugins == "" {
		c.CNIPlugins = CNIPlugins
	}
	if c.CNIConfigs == "" {
		c.CNIConfigs = CNIConfigs
	}
	sections := c.sections()
	extra, err := parse(c.ExtraTOML)
	if err := errors.Join(c.check(), err); err != nil {
		return nil, err
	}
	rest, err := merge(sections, extra)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(header)
	for i, s := range sections {
		if i > 0 {
			fmt.Fprintf(&b, "\n[%s]\n", s.name)
		}
		for _, k := range s.keys {
			fmt.Fprintf(&b, "%s = %s\n", k.name, k.value)
		}
		for _, e := range s.extra {
			b.WriteString(e.text + "\n")
		}
	}
	for _, e := range rest {
		if e.kind != assignment {
			b.WriteByte('\n')
		}
		b.WriteString(e.text + "\n")
	}
	return []byte(b.String()), nil
}

func (c Config) check() error {
	var errs []error
	if c.Version.Schema() == 0 {
		errs = append(errs, fmt.Errorf("containerd %s: want 1.6, 1.7 or 2", c.Version))
	}
	if c.Sandbox == "" || strings.ContainsAny(c.Sandbox, " \t\n\"\\") {
		errs = append(errs, fmt.Errorf("sandbox image %q: want a reference to an image", c.Sandbox))
	}
	for _, dir := range []string{c.CNIPlugins, c.CNIConfigs} {
		if !path.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("directory %q: want an absolute path", dir))
		}
	}
	return errors.Join(errs...)
}

// section is a table of the file; the first is the root and has no name.
type section struct {
	name  string
	keys  []keyValue
	extra []statement
}

type keyValue struct{ name, value string }

func (c Config) sections() []*section {
	const runc = `"io.containerd.runc.v2"`
	binaries := keyValue{"bin_dir", quote(c.CNIPlugins)}
	if c.Version.Schema() < 3 {
		const cri = `plugins."io.containerd.grpc.v1.cri"`
		return []*section{
			{keys: []keyValue{{"version", "2"}}},
			{name: cri, keys: []keyValue{{"sandbox_image", quote(c.Sandbox)}}},
			{name: cri + ".cni", keys: []keyValue{binaries, {"conf_dir", quote(c.CNIConfigs)}}},
			{name: cri + ".containerd.runtimes.runc", keys: []keyValue{{"runtime_type", runc}}},
			{name: cri + ".containerd.runtimes.runc.options", keys: []keyValue{{"SystemdCgroup", "true"}}},
		}
	}
	if c.Version != (Version{2, 0, c.Version.Patch}) {
		binaries = keyValue{"bin_dirs", "[" + quote(c.CNIPlugins) + "]"} // since 2.1, where bin_dir is deprecated
	}
	const runtime = `plugins."io.containerd.cri.v1.runtime"`
	return []*section{
		{keys: []keyValue{{"version", "3"}}},
		{name: `plugins."io.containerd.cri.v1.images".pinned_images`, keys: []keyValue{{"sandbox", quote(c.Sandbox)}}},
		{name: runtime + ".cni", keys: []keyValue{binaries, {"conf_dir", quote(c.CNIConfigs)}}},
		{name: runtime + ".containerd.runtimes.runc", keys: []keyValue{{"runtime_type", runc}}},
		{name: runtime + ".containerd.runtimes.runc.options", keys: []keyValue{{"SystemdCgroup", "true"}}},
	}
}

// quote writes a basic string of TOML. What Go escapes TOML escapes alike, but
// for bytes that are no text, which check refuses or a path does not have.
func quote(s string) string { return strconv.QuoteToGraphic(s) }
