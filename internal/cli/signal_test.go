//go:build unix

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childVariable makes the test binary play a command that does not stop when it is asked to.
const childVariable = "PLANETMESH_CLI_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		stubborn()
	}
	os.Exit(m.Run())
}

// stubborn reports the first signal and then waits until its standard input ends.
func stubborn() {
	ctx, stop := Signals(context.Background())
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(ExitDone)
}

func TestFirstSignalCancelsSecondKills(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childVariable+"=1")
			lines, in := startChild(t, cmd)
			expectLine(t, lines, "ready")
			mustSignal(t, cmd, sig)
			expectLine(t, lines, sig.String())
			// The watch ends a moment after the cancellation, and a signal in between is still swallowed.
			// So signals are sent until the process is gone.
			gone := make(chan error, 1)
			go func() { gone <- cmd.Wait() }() // ends with the child, which the test's context kills at the latest
			err := signalUntil(t, cmd, sig, gone)
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != sig {
				t.Errorf("child ended with %v, want killed by %v", err, sig)
			}
			_ = in.Close()
		})
	}
}

func TestIgnoredSignalStaysIgnored(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `trap "" INT; exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	lines, in := startChild(t, cmd)
	expectLine(t, lines, "ready")
	mustSignal(t, cmd, syscall.SIGINT)
	mustSignal(t, cmd, syscall.SIGTERM)
	expectLine(t, lines, syscall.SIGTERM.String())
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("child ended with %v, want exit 0 after its input ended", err)
	}
}

func TestSignalsEndsWithItsParent(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	ctx, stop := Signals(parent)
	defer stop()
	if ctx.Err() != nil {
		t.Fatalf("context ended early: %v", ctx.Err())
	}
	cancel()
	<-ctx.Done()
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("ctx.Err() = %v, want context.Canceled", ctx.Err())
	}
}

func startChild(t *testing.T, cmd *exec.Cmd) (*bufio.Scanner, io.WriteCloser) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(out), in
}

func expectLine(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("child's output ended (%v), want a line with %q", lines.Err(), want)
	}
	if !strings.Contains(lines.Text(), want) {
		t.Fatalf("child said %q, want %q", lines.Text(), want)
	}
}

func mustSignal(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatalf("send %v: %v", sig, err)
	}
}

// signalUntil sends sig at short intervals until gone delivers, and returns what it delivered.
func signalUntil(t *testing.T, cmd *exec.Cmd, sig syscall.Signal, gone <-chan error) error {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case err := <-gone:
			return err
		case <-tick.C:
			if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatalf("send %v: %v", sig, err)
			}
		case <-deadline:
			t.Fatalf("child still runs 10 s after its second %v", sig)
		}
	}
}
