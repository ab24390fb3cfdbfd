package version

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuildInfoIsReadForMainModuleAndDependency(t *testing.T) {
	vcs := func(modified string) []debug.BuildSetting {
		return []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef"},
			{Key: "vcs.time", Value: "2026-05-01T10:00:00Z"},
			{Key: "vcs.modified", Value: modified},
		}
	}
	tests := []struct {
		name string
		info debug.BuildInfo
		want Build
	}{
		{
			"main module, clean",
			debug.BuildInfo{Main: debug.Module{Path: module, Version: "v1.2.3"}, Settings: vcs("false")},
			Build{Version: "v1.2.3", Commit: "0123456789abcdef", Date: "2026-05-01T10:00:00Z"},
		},
		{
			"main module, changed tree, no version",
			debug.BuildInfo{Main: debug.Module{Path: module, Version: "(devel)"}, Settings: vcs("true")},
			Build{Commit: "0123456789abcdef-dirty", Date: "2026-05-01T10:00:00Z"},
		},
		{
			"changed tree without revision",
			debug.BuildInfo{
				Main:     debug.Module{Path: module},
				Settings: []debug.BuildSetting{{Key: "vcs.modified", Value: "true"}},
			},
			Build{},
		},
		{
			"embedded: the host program's revision is not ours",
			debug.BuildInfo{
				Main:     debug.Module{Path: "example.org/host", Version: "v9.0.0"},
				Deps:     []*debug.Module{{Path: "example.org/x", Version: "v8.0.0"}, {Path: module, Version: "v1.2.3"}},
				Settings: vcs("false"),
			},
			Build{Version: "v1.2.3"},
		},
		{
			"embedded through a replace directive",
			debug.BuildInfo{
				Main: debug.Module{Path: "example.org/host"},
				Deps: []*debug.Module{{Path: module, Version: "v1.2.3", Replace: &debug.Module{Path: "../fork", Version: "(devel)"}}},
			},
			Build{},
		},
		{"absent", debug.BuildInfo{Main: debug.Module{Path: "example.org/host"}}, Build{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, fromInfo(&tt.info)); diff != "" {
				t.Errorf("fromInfo (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLinkedValuesWinOverBuildInfo(t *testing.T) {
	got := Build{Version: "v2.0.0"}.or(Build{Version: "v1.0.0", Commit: "abc", Date: "today"})
	want := Build{Version: "v2.0.0", Commit: "abc", Date: "today"}
	if got != want {
		t.Errorf("or = %+v, want %+v", got, want)
	}
}

func TestLineShortensCommitAndNamesWhatIsUnknown(t *testing.T) {
	tests := []struct {
		name  string
		build Build
		want  string
	}{
		{"empty", Build{}, "unknown (commit unknown, unknown, go1.26 linux/amd64)"},
		{
			"full", Build{Version: "v1.2.3", Commit: "0123456789abcdef", Date: "2026-05-01T10:00:00Z"},
			"v1.2.3 (commit 0123456789ab, 2026-05-01T10:00:00Z, go1.26 linux/amd64)",
		},
		{
			"changed tree keeps its mark", Build{Commit: "0123456789abcdef-dirty"},
			"unknown (commit 0123456789ab-dirty, unknown, go1.26 linux/amd64)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.build.line("go1.26", "linux/amd64"); got != tt.want {
				t.Errorf("line(%+v) = %q, want %q", tt.build, got, tt.want)
			}
		})
	}
}

func TestStringIsOneLine(t *testing.T) {
	if s := String(); s == "" || strings.ContainsAny(s, "\r\n") {
		t.Errorf("String() = %q, want one line", s)
	}
}
