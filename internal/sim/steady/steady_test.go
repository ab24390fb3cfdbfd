package steady

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// lots draws what the runtime decides: the order of a map, of ready cases and
// of goroutines, and the global source of package math/rand.
const lots = `package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
)

func main() {
	m := make(map[*int]int)
	for i := range 50 {
		m[new(int)] = i
	}
	for round := range 20 {
		for _, i := range m {
			fmt.Print(i, " ")
		}
		a, b := make(chan int, 64), make(chan int, 64)
		for i := range 64 {
			a <- i
			b <- i
		}
		for range 64 {
			select {
			case <-a:
				fmt.Print("a")
			case <-b:
				fmt.Print("b")
			}
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				x := make([]byte, 1<<16)
				mu.Lock()
				defer mu.Unlock()
				if x[0] == 0 {
					fmt.Print(i, ",")
				}
			})
		}
		wg.Wait()
		fmt.Println(rand.Uint64(), round)
		runtime.GC()
	}
}
`

func TestProgramsRepeatTheirRuns(t *testing.T) {
	dir := t.TempDir()
	list, err := Overlay(dir)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(lots), 0o600); err != nil {
		t.Fatal(err)
	}
	first := run(t, build(t, source, "-overlay", list))
	for range 5 {
		if again := run(t, filepath.Join(dir, "lots")); again != first {
			t.Fatalf("two runs differ:\n%.400s\n%.400s", first, again)
		}
	}
	// Without it they differ, so the test can tell.
	free := build(t, source)
	one := run(t, free)
	for range 5 {
		if run(t, free) != one {
			return
		}
	}
	t.Error("six runs of a program that draws lots were equal without the overlay")
}

func build(t *testing.T, source string, flags ...string) string {
	t.Helper()
	out := filepath.Join(filepath.Dir(source), "lots")
	args := append(append([]string{"build", "-o", out}, flags...), source)
	if b, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, b)
	}
	return out
}

func run(t *testing.T, program string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), Env()...)
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
