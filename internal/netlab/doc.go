// Package netlab builds small worlds out of Linux network namespaces and runs real programs in them: hosts on LANs,
// routers between LANs and an underlay, NATs, firewalls. Integration tests, the demonstration and the examples use it.
//
// # Declaring a world
//
// A world is declared as data, a [Topology]: networks (each one Ethernet segment) and hosts with interfaces on
// them. [Topology.Validate] names everything that is wrong with it at once, [Topology.String] draws it.
// [Reference] is the deployment that the whole project is measured against; [Topology.AddSite] adds one more site to it.
//
//	world, err := netlab.Start(ctx, netlab.Reference())
//	if err != nil {
//		return err
//	}
//	defer world.Close()
//	table, err := world.PingAll(ctx, netlab.PingOptions{Hosts: world.Topology().Leaves()})
//	fmt.Print(table)
//
// # What a host is
//
// A [Host] has a network namespace, a mount namespace and a host name of its own. Its /run (with /var/run) and its
// private directory [Host.Dir] are a tmpfs that nobody else sees, /sys shows its own devices, and /proc shows the
// processes of the world. The rest of the file system, and /dev with /dev/net/tun, is the machine's. Programs
// are started with [Host.Command], [Host.Run] or [Host.Start]; Go code looks into a host with [Host.Do].
//
// Settings that the kernel copies from the machine into new namespaces are put back to the kernel's defaults, so
// that a world is the same everywhere: nothing is forwarded unless the host says so, rp_filter is off. Duplicate address
// detection is off on the interfaces of the laboratory, so that IPv6 addresses work at once.
//
// # Links with faults
//
// The link between a host and its network may delay packets, vary the delay, lose, reorder and limit them, and drop what is
// too long, in each direction by itself ([Link]). [Iface] declares how a link begins, [Host.SetLink] changes it
// while the world runs, and [Cut] is a link that nothing passes:
//
//	slow := netlab.Link{Delay: 40 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01}
//	err := world.Host("gw10").SetLink(ctx, "eth0", slow, slow) // 80 ms and twice the loss between gw10 and the others
//
// The kernel's netem is not needed. Loss and length are nftables rules in the world's own namespace; delay, jitter, order
// and rate are made by a forwarder on packet sockets between two veth ends, in this program. It reckons from the kernel's
// receive timestamps, and was measured to be 0.1 ms late in the median, and to carry 1.3 Gbit/s of TCP, on a machine with two
// processors. Packets are cut into what travels on a real wire before anything happens to them, although the
// interfaces of the hosts keep their offloads: nothing of a fault shows on a host but its effect. A link without faults is
// a plain veth pair, as if there had never been one.
//
// # Nothing stays behind
//
// All processes of a world live in one PID namespace. Its first process reads from a pipe that only the program
// that called [Start] holds open, so when that program ends, in whatever way (return, panic, kill -9), the
// kernel kills every process of the world, and with the last process go the namespaces, their devices and their
// mounts. No namespace has a name in the file system and no file of a world is on a disk. [World.Close] does the same in
// order, waits for it, and says what is left; [World.Leftovers] can be asked again later.
//
// # Rights
//
// A world needs CAP_SYS_ADMIN and CAP_NET_ADMIN: root, or an ordinary user inside a user namespace. A program
// that calls [Elevate] first thing in main (or in TestMain) runs as either. Inside a user namespace, programs that
// make a TUN device need a /dev/net/tun that everyone may open.
//
// The commands sh, mount, cat, ip and nft (packages util-linux, coreutils, iproute2, nftables) must be installed.
package netlab
