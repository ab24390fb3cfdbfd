// Package boxspec is what package kubelab tells its program labinit, which makes the machines of the laboratory: the
// arguments travel as JSON.
package boxspec

// Box is a machine to be booted. The caller of labinit is already in the network and host name that it shall have.
type Box struct {
	// Lower are the folders of its root file system, the first on top; Upper and Work belong to it alone (overlayfs).
	Lower       []string
	Upper, Work string
	// Root is an empty folder for the root to be mounted on.
	Root string
	// Var is the folder that becomes /var, on a disk because neither containerd's store nor its work can be on
	// overlayfs. Empty leaves /var on the root.
	Var string
	// Console is the file that becomes /dev/console.
	Console string
	// Cgroups are the folders of the box in the version 1 hierarchies, by the name of the hierarchy ("cpu"), which is also
	// that of its folder below /sys/fs/cgroup, and in the version 2 hierarchy as "unified". The box sees them as the
	// roots. Empty leaves it without cgroups.
	Cgroups map[string]string
	// Readable are settings below /proc/sys that read as the given values in the box, whatever they are on the machine. All
	// but those of the network are read-only.
	Readable map[string]string
	// Init is the program that becomes process 1, with its arguments, and Env its environment.
	Init, Env []string
}

// Entry is a program to be run in a box.
type Entry struct {
	// Target is the number of the box's process 1, as labinit sees it.
	Target int
	// Cgroups are as in [Box]. Empty leaves the program where it is.
	Cgroups map[string]string
	// Args are the program, which is searched for in the PATH of Env, and its arguments.
	Args, Env []string
	// Dir is the working directory; empty is "/".
	Dir string
}
