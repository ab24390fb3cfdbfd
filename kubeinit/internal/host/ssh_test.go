package host

import "testing"

func TestSSHKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) (Host, string) { return open(t, newSite(t).config()), t.TempDir() + "/own" })
}
