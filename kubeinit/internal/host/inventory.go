package host

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// User is whose keys are used.
type User struct {
	Home        string // home directory
	AgentSocket string // empty: no agent
}

// UserOf reads HOME and SSH_AUTH_SOCK of an environment.
func UserOf(env []string) User {
	var u User
	for _, e := range env {
		switch key, value, _ := strings.Cut(e, "="); key {
		case "HOME":
			u.Home = value
		case "SSH_AUTH_SOCK":
			u.AgentSocket = value
		}
	}
	return u
}

// FromInventory returns all hosts of a valid inventory, by name. Nothing is
// connected yet. Hosts that are reached through the same machine share one
// connection to it. closeAll closes everything.
func FromInventory(inv *inventory.Inventory, u User) (hosts map[string]Host, closeAll func() error, err error) {
	f := &fleet{inv: inv, user: u, made: map[string]*SSH{}}
	hosts = map[string]Host{}
	for i := range inv.Hosts {
		h, err := f.host(&inv.Hosts[i], 0)
		if err != nil {
			return nil, nil, err
		}
		hosts[h.Name()] = h
	}
	return hosts, f.close, nil
}

// fleet makes each machine once. Machines that the inventory does not have are
// kept under user@address:port, which no host's name can be.
type fleet struct {
	inv   *inventory.Inventory
	user  User
	made  map[string]*SSH
	order []*SSH
}

func (f *fleet) host(h *inventory.Host, depth int) (*SSH, error) {
	if depth > len(f.inv.Hosts) {
		return nil, fmt.Errorf("%s: the jump hosts go round in a circle", h.Name)
	}
	return f.machine(h.Name, h.SSH, cmp.Or(h.SSH.Address, h.NodeIP.String()), depth)
}

func (f *fleet) machine(name string, s inventory.SSH, address string, depth int) (*SSH, error) {
	if m, ok := f.made[name]; ok {
		return m, nil
	}
	c := Config{
		Name: name, Address: address, Port: cmp.Or(s.Port, inventory.DefaultSSHPort), User: cmp.Or(s.User, inventory.DefaultUser), Sudo: s.Sudo,
		Key: s.Key, KnownHosts: s.KnownHosts, Home: f.user.Home, AgentSocket: f.user.AgentSocket,
	}
	if s.Jump != "" {
		via, err := f.jump(name, s, depth)
		if err != nil {
			return nil, err
		}
		c.Via = via
	}
	m := NewSSH(c)
	f.made[name] = m
	f.order = append(f.order, m)
	return m, nil
}

// jump returns the machine before another one. One that is not a host of the
// inventory uses the key and the known hosts of the host behind it.
func (f *fleet) jump(name string, s inventory.SSH, depth int) (*SSH, error) {
	if h := f.inv.Host(s.Jump); h != nil {
		return f.host(h, depth+1)
	}
	j, ok := inventory.ParseJump(s.Jump)
	if !ok {
		return nil, fmt.Errorf("%s: jump host %q is neither a host nor user@address:port", name, s.Jump)
	}
	j.Key, j.KnownHosts = s.Key, s.KnownHosts
	return f.machine(fmt.Sprintf("%s@%s:%d", j.User, j.Address, j.Port), j, j.Address, depth+1)
}

// close closes what was made last first: it may be reached through the others.
func (f *fleet) close() error {
	var errs []error
	for _, m := range slices.Backward(f.order) {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
