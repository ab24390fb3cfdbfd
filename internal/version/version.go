// Package version says which build of Planetmesh is running.
//
// A release build (make build) sets the three variables below with -ldflags -X; anything else, such as go install or a
// program that embeds package overlay, is answered from the build information that the Go linker leaves in every binary.
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
	"strings"
)

// module is the path under which this module appears in build information.
const module = "github.com/planetmesh/planetmesh"

// unknown stands in String for what the build did not record.
const unknown = "unknown"

// Set at link time, see the Makefile; empty means "ask the build information".
var (
	linkedVersion string // git describe --tags --always --dirty
	linkedCommit  string // full hash
	linkedDate    string // of the commit, RFC 3339
)

// Build describes one build. Its zero value is a build about which nothing is known.
type Build struct {
	Version string // v1.2.3, v1.2.3-4-gabcdef0, a pseudo-version, or "" if unknown
	Commit  string // full revision, with "-dirty" appended if the tree had changes; "" if unknown
	Date    string // of the commit, RFC 3339; "" if unknown
}

// Current describes the running program. It never fails; what is not known stays empty.
// It is safe for concurrent use.
func Current() Build {
	linked := Build{Version: linkedVersion, Commit: linkedCommit, Date: linkedDate}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return linked
	}
	return linked.or(fromInfo(info))
}

// String is Current in one line without a line feed, for --version:
//
//	v1.2.3 (commit 0123456789ab, 2026-05-01T10:00:00Z, go1.26.0 linux/amd64)
func String() string {
	return Current().line(runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
}

func (b Build) line(goVersion, platform string) string {
	commit := b.Commit
	if hash, suffix, _ := strings.Cut(commit, "-"); len(hash) > 12 {
		commit = hash[:12]
		if suffix != "" {
			commit += "-" + suffix
		}
	}
	return cmp.Or(b.Version, unknown) + " (commit " + cmp.Or(commit, unknown) + ", " + cmp.Or(b.Date, unknown) +
		", " + goVersion + " " + platform + ")"
}

// or fills the empty fields of b from other.
func (b Build) or(other Build) Build {
	return Build{
		Version: cmp.Or(b.Version, other.Version),
		Commit:  cmp.Or(b.Commit, other.Commit),
		Date:    cmp.Or(b.Date, other.Date),
	}
}

// fromInfo finds this module in the build information: as the main module, with revision and date of its working
// tree, or as a dependency of an embedding program, whose revision and date are not ours.
func fromInfo(info *debug.BuildInfo) Build {
	if info.Main.Path != module {
		return Build{Version: dependencyVersion(info.Deps)}
	}
	b := Build{Version: realVersion(info.Main.Version)}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && b.Commit != "" {
		b.Commit += "-dirty"
	}
	return b
}

func dependencyVersion(deps []*debug.Module) string {
	for _, d := range deps {
		if d.Path != module {
			continue
		}
		if d.Replace != nil {
			d = d.Replace
		}
		return realVersion(d.Version)
	}
	return ""
}

// realVersion drops the placeholder that the go command writes for a build without a version.
func realVersion(v string) string {
	if v == "(devel)" {
		return ""
	}
	return v
}
