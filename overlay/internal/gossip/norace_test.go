//go:build !race

package gossip

// settingsMembers is the size of the mesh that the settings are tested with.
const settingsMembers = 64
