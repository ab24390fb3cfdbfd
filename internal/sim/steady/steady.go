// Package steady makes Go programs that do the same each time they run.
//
// A program in a testing/synctest bubble has no time and no input of its own,
// but the Go runtime still draws lots: which case of a select is taken, the
// order of a map, the seeds of hash functions and of package math/rand, and
// when a goroutine is interrupted. Overlay describes copies of a few files
// of the runtime in which those lots come from a fixed seed and goroutines run
// until they block, for `go build -overlay`. With Env a program built so
// repeats every run exactly, as long as it uses one processor and does no
// input or output that others influence.
//
// For the tests of one machine only: such a program must never see the world,
// its keys are known to everybody.
package steady

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// edit replaces the only place where old stands in a file of package runtime.
type edit struct {
	file     string
	old, new string
	why      string
}

var edits = []edit{
	{
		"rand.go", "seed[i%len(seed)] ^= c", "_ = c; seed[i%len(seed)] ^= byte(i + 1)",
		"the kernel's random bytes seed everything",
	},
	{
		"rand.go", "c := &mp.chacha8\n\tfor", "c := &m0.chacha8\n\tfor",
		"each thread has a state of its own, and which thread runs is chance",
	},
	{
		"rand.go", "mp.cheaprand = rand()", "mp.cheaprand = seed[0]",
		"as above: how many threads there are is chance too",
	},
	{
		"rand.go", "func cheaprand() uint32 {\n\tmp := getg().m\n", "func cheaprand() uint32 {\n\tmp := &m0\n",
		"as above",
	},
	{
		"proc.go", "const haveSysmon = GOARCH != \"wasm\"", "const haveSysmon = false",
		"the monitor interrupts goroutines by the wall clock",
	},
	{
		"proc.go", "if pp.schedtick%61 == 0 && !sched.runq.empty() {", "if false {",
		"the collector's turns count too",
	},
	{
		"mgc.go", "func GC() {\n", "func GC() {\n\tchacha, cheap := m0.chacha8, m0.cheaprand\n\tdefer func() { m0.chacha8, m0.cheaprand = chacha, cheap }()\n",
		"how many lots the collector draws depends on the wall clock",
	},
}

// Env are the variables that a program needs besides its Overlay: one
// processor, no interruptions, and garbage collections only where it calls
// runtime.GC, all at once.
func Env() []string {
	return []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1,gcstoptheworld=2"}
}

// Overlay writes the copies and their list into dir and returns the file for
// the flag -overlay of go build. It fails if the runtime of the go command is
// not one that it knows.
func Overlay(dir string) (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(out)), "src", "runtime")
	texts := make(map[string]string)
	for _, e := range edits {
		text, read := texts[e.file]
		if !read {
			b, err := os.ReadFile(filepath.Join(src, e.file))
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return "", fmt.Errorf("%s of this go command has %d places like %q, want one: its runs cannot be made to repeat", e.file, n, e.old)
		}
		texts[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	replace := make(map[string]string)
	for file, text := range texts {
		to := filepath.Join(dir, file)
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(src, file)] = to
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}
