package openvpnbin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArchiveIsThatOfTheRunningRelease(t *testing.T) {
	const lines = "two-updates http://mirror.example/security/\ntwo http://mirror.example/main/\n\none http://old.example/\n"
	for release, want := range map[string]string{
		"two": "http://mirror.example/main/", "one": "http://old.example/", "three": "http://mirror.example/security/",
	} {
		if got := releaseURI(lines, release); got != want {
			t.Errorf("release %s: %q, want %q", release, got, want)
		}
	}
	if got := releaseURI("\n", "two"); got != "" {
		t.Errorf("no source: %q", got)
	}
}

func TestOSReleaseValues(t *testing.T) {
	const text = "NAME=\"Some Linux\"\nID=some\nVERSION_CODENAME='two'\n"
	for key, want := range map[string]string{"NAME": "Some Linux", "ID": "some", "VERSION_CODENAME": "two", "NONE": ""} {
		if got := osRelease(text, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestCandidate(t *testing.T) {
	const policy = "openvpn:\n  Installed: (none)\n  Candidate: 2.5.1-3\n  Version table:\n"
	if got := candidateOf(policy); got != "2.5.1-3" {
		t.Errorf("%q", got)
	}
	if got := candidateOf("N: Unable to locate package openvpn\n"); got != "" {
		t.Errorf("%q", got)
	}
}

func TestProgramIsRunInPlace(t *testing.T) {
	tree := t.TempDir()
	for _, f := range []string{"usr/sbin/openvpn", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so"} {
		path := filepath.Join(tree, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p, err := inPlace(tree)
	if err != nil {
		t.Fatal(err)
	}
	at := func(f string) string { return filepath.Join(tree, f) }
	want := Program{
		Command: []string{
			at("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), "--library-path",
			at("usr/lib/x86_64-linux-gnu") + ":" + at("lib/x86_64-linux-gnu"), at("usr/sbin/openvpn"),
		},
		Env: []string{"OPENSSL_CONF=/dev/null", "OPENSSL_MODULES=" + at("usr/lib/x86_64-linux-gnu/ossl-modules")},
	}
	if d := cmp.Diff(want, p); d != "" {
		t.Error(d)
	}
	if err := os.Remove(at("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")); err != nil {
		t.Fatal(err)
	}
	if _, err := inPlace(tree); err == nil || !strings.Contains(err.Error(), "dynamic linker") {
		t.Errorf("without linker: %v", err)
	}
}
