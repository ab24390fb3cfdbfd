// Package journal keeps on each host what was done to it, so that a run that
// was interrupted can go on and everything can be taken back, by whoever comes
// next and without the machine from which it was done.
//
// The journal is a file of JSON lines that only grows. A deed is one step that
// changed something. Its lines are, in this order:
//
//	intent   the step is about to change something
//	before   how one thing was until now, once for each thing, before it changes
//	done     it is so now
//	undone   it was taken back
//
// Each line is on the disk before what it speaks of is done. So a deed without
// done was interrupted, perhaps half-way, and the records of before are enough to
// take it back: nothing of the step itself is needed.
//
// Former contents of files lie in a directory of their own, which only root may
// enter, as files that only root may read.
package journal
