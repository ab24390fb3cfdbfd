package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// siteBits is how much longer than the supernet the block of a site is, if
// nobody says otherwise: 16 sites have room.
const siteBits = 4

// blocks gives every site that has nodes a block, and every node a range.
func (d *decider) blocks() {
	d.out.PodBlocks, d.out.NodeRanges = map[string]netip.Prefix{}, map[string]netip.Prefix{}
	if d.earlier != nil {
		maps.Copy(d.out.PodBlocks, d.earlier.PodBlocks)
		maps.Copy(d.out.NodeRanges, d.earlier.NodeRanges)
	}
	nodes := map[string][]*inventory.Host{}
	for _, h := range d.inv.Nodes() {
		nodes[h.Site] = append(nodes[h.Site], h)
	}
	for _, s := range d.inv.Sites {
		d.explicitBlock(s)
	}
	for _, s := range d.inv.Sites {
		if len(nodes[s.Name]) > 0 {
			d.chooseBlock(s.Name, len(nodes[s.Name]))
		}
	}
	for _, h := range d.inv.Nodes() {
		d.chooseRange(h)
	}
}

// explicitBlock takes the block that the inventory gives a site, unless its nodes
// have ranges in another one already.
func (d *decider) explicitBlock(s inventory.Site) {
	if !s.PodBlock.IsValid() {
		return
	}
	old, decided := d.out.PodBlocks[s.Name]
	switch {
	case decided && old != s.PodBlock && !d.holdsRangesOf(old, s.PodBlock):
		d.refuse(fmt.Sprintf("the pod block of site %s is %s, its nodes have addresses in it, and the inventory wants %s", s.Name, old, s.PodBlock),
			fmt.Sprintf("podBlock: %s, or reset the nodes of the site first", old))
		return
	case !within(s.PodBlock, d.out.PodSupernet):
		d.refuse(fmt.Sprintf("the pod block %s of site %s is no part of %s, which was decided before", s.PodBlock, s.Name, d.out.PodSupernet), "a block in it, or none")
		return
	}
	for _, site := range slices.Sorted(maps.Keys(d.out.PodBlocks)) {
		if p := d.out.PodBlocks[site]; site != s.Name && p.Overlaps(s.PodBlock) {
			d.refuse(fmt.Sprintf("the pod block %s of site %s overlaps %s, which was chosen for site %s before", s.PodBlock, s.Name, p, site), "another podBlock")
			return
		}
	}
	d.out.PodBlocks[s.Name] = s.PodBlock
}

// holdsRangesOf says whether every range in the old block lies in the wanted one
// as well, so that it can take its place: one that only grows, or an empty one.
func (d *decider) holdsRangesOf(old, wanted netip.Prefix) bool {
	for _, r := range d.out.NodeRanges {
		if old.Overlaps(r) && !within(r, wanted) {
			return false
		}
	}
	return true
}

// chooseBlock gives a site the first block that is free. It is a sixteenth of
// the supernet, more if its nodes would fill more than half of that, and less if
// there are many sites or little is left.
func (d *decider) chooseBlock(site string, nodes int) {
	if _, ok := d.out.PodBlocks[site]; ok {
		return
	}
	super, node := d.out.PodSupernet, inventory.NodeBits(d.out.PodSupernet)
	used := slices.Collect(maps.Values(d.out.PodBlocks))
	wanted := siteBits
	for 1<<wanted < len(d.inv.Sites) {
		wanted++
	}
	bits := min(super.Bits()+wanted, node)
	for bits > super.Bits() && parts(netip.PrefixFrom(super.Addr(), bits), node) < 2*nodes {
		bits--
	}
	for ; bits <= node && parts(netip.PrefixFrom(super.Addr(), bits), node) >= nodes; bits++ {
		if p, ok := free(super, bits, used); ok {
			d.out.PodBlocks[site] = p
			return
		}
	}
	d.refuse(fmt.Sprintf("pod supernet %s has no room for the %d nodes of site %s beside %d other blocks", super, nodes, site, len(used)),
		"a wider podSupernet before the cluster is built, or smaller podBlocks")
}

// chooseRange gives a node the first range that is free in its site's block.
func (d *decider) chooseRange(h *inventory.Host) {
	block, ok := d.out.PodBlocks[h.Site]
	if !ok {
		return // refused already
	}
	if old, ok := d.out.NodeRanges[h.Name]; ok {
		if !within(old, block) {
			d.refuse(fmt.Sprintf("%s has the pod range %s, which is no part of %s of site %s", h.Name, old, block, h.Site),
				"reset the host before it moves to another site: kubeinit reset "+h.Name)
		}
		return
	}
	used := slices.Collect(maps.Values(d.out.NodeRanges))
	p, ok := free(block, inventory.NodeBits(block), used)
	if !ok {
		d.refuse(fmt.Sprintf("pod block %s of site %s has no range left for %s", block, h.Site, h.Name), "a wider podBlock that holds this one, or another site")
		return
	}
	d.out.NodeRanges[h.Name] = p
}
