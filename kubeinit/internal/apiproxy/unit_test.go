package apiproxy

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnitText(t *testing.T) {
	got, err := Unit("/var/lib/kubeinit/bin/kubeinit-0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", UnitName)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if diff := cmp.Diff(string(want), got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestUnitRefusesPathsThatAreMore(t *testing.T) {
	for _, path := range []string{"", "kubeinit", "/a b", "/a\nExecStartPre=/bin/rm", "/a%i", "/a;", "/a$X"} {
		if _, err := Unit(path); err == nil {
			t.Errorf("%q is accepted", path)
		}
	}
}

func TestSystemdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	notify(socket)
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	notify("")
	notify(socket + "x") // nobody is there, and that is no matter
}

func TestMainRunsAndShowsStatus(t *testing.T) {
	_, _, list := three(t)
	var socket string
	r := start(t, list, func(_ *proxy, c *Config) { socket = c.Status })
	var out, errs bytes.Buffer
	if err := Main(t.Context(), []string{"status", socket}, &out, &errs); err != nil {
		t.Fatal(err)
	}
	var s Status
	if err := json.Unmarshal(out.Bytes(), &s); err != nil || len(s.Upstreams) != 3 {
		t.Errorf("%v: %s", err, out.String())
	}
	for _, args := range [][]string{nil, {"status"}, {"stop", socket}, {"a", "b", "c"}} {
		if err := Main(t.Context(), args, &out, &errs); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	if err := Main(t.Context(), []string{filepath.Join(t.TempDir(), "none")}, &out, &errs); err == nil {
		t.Error("runs without a configuration")
	}
	// As the program does it, until it is told to end.
	r.stop()
	ctx, cancel := testContext(t)
	ended := make(chan error, 1)
	go func() { ended <- Main(ctx, []string{r.path}, &out, &errs) }()
	eventually(t, "it answers", func() (string, bool) { _, err := ReadStatus(t.Context(), socket); return "", err == nil })
	cancel()
	if err := <-ended; err != nil || !strings.Contains(errs.String(), "listening") || strings.Contains(errs.String(), "time=") {
		t.Errorf("%v: %s", err, errs.String())
	}
}
