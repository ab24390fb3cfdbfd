package cli

// IsTerminal reports whether stream (a reader or writer) is a terminal, so that colours and redrawn lines make sense.
// What is not an open file is not a terminal, and neither is /dev/null.
func IsTerminal(stream any) bool {
	f, ok := stream.(interface{ Fd() uintptr })
	return ok && isTerminal(f.Fd())
}
