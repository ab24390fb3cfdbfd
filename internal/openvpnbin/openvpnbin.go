// Package openvpnbin brings OpenVPN as other suites of the distribution have it,
// for tests against older and newer versions than the installed one.
//
// apt fetches the packages, from the same archive as the system's own and checked
// by the distribution's keys, into a root of its own: nothing is installed. They
// are unpacked into a folder and run from there with the libraries and the dynamic
// linker that came with them.
package openvpnbin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program is an OpenVPN that can be run in place.
type Program struct {
	// Suite is where it comes from, Package the version of its package.
	Suite, Package string
	// Command starts it; options go after it.
	Command []string
	// Env is what its environment needs besides that of the caller.
	Env []string
}

// CacheFolder is where programs are kept between runs: planetmesh/openvpn in the
// user's cache folder. It need not exist.
func CacheFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache for openvpn packages: %w", err)
	}
	return filepath.Join(cache, "planetmesh", "openvpn"), nil
}

// Fetch brings the OpenVPN of the first of these suites whose package begins with
// that version, for example "2.5.". It always asks the archive; packages that are
// in folder already are not loaded again. The error says for each suite why it
// would not do. Only one call may use a folder at a time.
func Fetch(ctx context.Context, folder, version string, suites ...string) (Program, error) {
	a, err := systemArchive(ctx)
	if err != nil {
		return Program{}, err
	}
	var errs []error
	for _, suite := range suites {
		p, err := a.fetch(ctx, filepath.Join(folder, suite), version, suite)
		if err == nil {
			return p, nil
		}
		errs = append(errs, fmt.Errorf("openvpn %s of suite %s: %w", version, suite, err))
	}
	return Program{}, errors.Join(errs...)
}

// archive is where the distribution's packages come from.
type archive struct {
	uri     string
	keyring string // file with the keys of all suites, "": apt's own trusted keys
}

// systemArchive asks apt where the packages of the running release come from.
func systemArchive(ctx context.Context) (archive, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return archive{}, fmt.Errorf("find the distribution: %w", err)
	}
	targets, err := output(exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"))
	if err != nil {
		return archive{}, fmt.Errorf("find the archive of the distribution: %w", err)
	}
	a := archive{uri: releaseURI(string(targets), osRelease(string(text), "VERSION_CODENAME"))}
	if a.uri == "" {
		return archive{}, errors.New("find the archive of the distribution: apt has no source of packages")
	}
	keyring := "/usr/share/keyrings/" + osRelease(string(text), "ID") + "-archive-keyring.gpg"
	if _, err := os.Stat(keyring); err == nil {
		a.keyring = keyring
	}
	return a, nil
}

// osRelease returns a value of an os-release file, "" if it is not there.
func osRelease(text, key string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// releaseURI finds the archive of a release in lines of release and address, else
// the first one.
func releaseURI(lines, release string) string {
	first := ""
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		if f[0] == release {
			return f[1]
		}
		if first == "" {
			first = f[1]
		}
	}
	return first
}

// aptRoot is a root of apt in a folder: it knows one suite, and of no package that
// would be installed.
type aptRoot string

func (a archive) newRoot(folder, suite string) (aptRoot, error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(folder, d), 0o755); err != nil {
			return "", err
		}
	}
	source := fmt.Sprintf("deb %s %s main\n", a.uri, suite)
	if a.keyring != "" {
		source = fmt.Sprintf("deb [signed-by=%s] %s %s main\n", a.keyring, a.uri, suite)
	}
	err := os.WriteFile(filepath.Join(folder, "etc/sources.list"), []byte(source), 0o644)
	return aptRoot(folder), errors.Join(err, os.WriteFile(filepath.Join(folder, "state/status"), nil, 0o644))
}

// apt is one of apt's commands in this root.
func (r aptRoot) apt(ctx context.Context, name string, args ...string) *exec.Cmd {
	dir := string(r)
	all := []string{
		"-o", "Dir::State=" + dir + "/state", "-o", "Dir::State::status=" + dir + "/state/status",
		"-o", "Dir::Cache=" + dir + "/cache", "-o", "Dir::Etc::sourcelist=" + dir + "/etc/sources.list",
		"-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3",
		"-o", "APT::Update::Error-Mode=any",
	}
	cmd := exec.CommandContext(ctx, name, append(all, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	return cmd
}

// fetch loads the package of one suite and all that it depends on, and unpacks them.
func (a archive) fetch(ctx context.Context, folder, version, suite string) (Program, error) {
	root, err := a.newRoot(folder, suite)
	if err != nil {
		return Program{}, err
	}
	if _, err := output(root.apt(ctx, "apt-get", "-q", "update")); err != nil {
		return Program{}, err
	}
	policy, err := output(root.apt(ctx, "apt-cache", "policy", "openvpn"))
	if err != nil {
		return Program{}, err
	}
	candidate := candidateOf(string(policy))
	if !strings.HasPrefix(candidate, version) {
		return Program{}, fmt.Errorf("the suite has %q", candidate)
	}
	// What the suite has no more would be unpacked with the rest.
	if _, err := output(root.apt(ctx, "apt-get", "-y", "-q", "autoclean")); err != nil {
		return Program{}, err
	}
	if _, err := output(root.apt(ctx, "apt-get", "-y", "-q", "--no-install-recommends", "--download-only", "install", "openvpn")); err != nil {
		return Program{}, err
	}
	tree, err := root.unpack(ctx, candidate)
	if err != nil {
		return Program{}, err
	}
	p, err := inPlace(tree)
	p.Suite, p.Package = suite, candidate
	return p, err
}

// candidateOf reads the version that apt would install.
func candidateOf(policy string) string {
	for line := range strings.Lines(policy) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok {
			return v
		}
	}
	return ""
}

// unpack puts the files of the packages that were loaded for that version into a
// tree, if that was not done before.
func (r aptRoot) unpack(ctx context.Context, version string) (string, error) {
	tree := filepath.Join(string(r), "tree-"+strings.ReplaceAll(version, "/", "_"))
	if _, err := os.Stat(tree); err == nil {
		return tree, nil
	}
	half := tree + ".new"
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	packages, err := filepath.Glob(filepath.Join(string(r), "cache/archives/*.deb"))
	if err != nil || len(packages) == 0 {
		return "", fmt.Errorf("no packages were loaded: %w", err)
	}
	for _, p := range packages {
		if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "--extract", p, half)); err != nil {
			return "", err
		}
	}
	return tree, os.Rename(half, tree)
}

// inPlace finds what starts the OpenVPN of a tree. The library paths go through
// the dynamic linker's own option, so that programs which OpenVPN starts get the
// system's libraries.
func inPlace(tree string) (Program, error) {
	openvpn := filepath.Join(tree, "usr/sbin/openvpn")
	if _, err := os.Stat(openvpn); err != nil {
		return Program{}, err
	}
	var libraries, modules []string
	linker := ""
	for _, lib := range []string{"usr/lib", "lib"} {
		dirs, err := filepath.Glob(filepath.Join(tree, lib, "*-linux-gnu*"))
		if err != nil {
			return Program{}, err
		}
		for _, d := range dirs {
			libraries = append(libraries, d)
			found, err := filepath.Glob(filepath.Join(d, "ld-linux*.so.*"))
			if err != nil {
				return Program{}, err
			}
			if len(found) > 0 {
				linker = found[0]
			}
			if m := filepath.Join(d, "ossl-modules"); exists(m) {
				modules = append(modules, m)
			}
		}
	}
	if linker == "" || !exists(linker) {
		return Program{}, fmt.Errorf("%s has no dynamic linker", tree)
	}
	p := Program{Command: []string{linker, "--library-path", strings.Join(libraries, ":"), openvpn}, Env: []string{"OPENSSL_CONF=/dev/null"}}
	if len(modules) > 0 {
		p.Env = append(p.Env, "OPENSSL_MODULES="+modules[0])
	}
	return p, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// output runs a command; the error has what it complained about.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
