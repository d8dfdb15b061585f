package memstream

import "time"

// delivery is what a group knows of a message it was given.
type delivery struct {
	holder   *subscription // who holds it; nil unless flying
	deadline time.Duration // when its lease ends, on the clock
	size     uint32
	attempt  uint32
	serial   uint32 // counts deliveries, to tell receipts of one message apart
	state    state
}

type state uint8

const (
	settled state = iota // done, or moved to parked
	flying               // held by a subscription under a lease
	ready                // to be delivered again, now
	delayed              // to be delivered again, later
)

// window holds the deliveries of messages low to next-1 in a ring.
type window struct {
	ring []delivery // as long as a power of two
	low  uint64
	next uint64 // the first message not yet given to the group
}

func (w *window) at(i uint64) *delivery { return &w.ring[i&uint64(len(w.ring)-1)] }

func (w *window) len() int { return int(w.next - w.low) }

// push adds the delivery of message next and returns it for the caller to fill.
func (w *window) push() *delivery {
	if w.len() == len(w.ring) {
		w.grow()
	}
	w.next++
	return w.at(w.next - 1)
}

func (w *window) grow() {
	old := *w
	w.ring = make([]delivery, max(8, 2*len(old.ring)))
	for i := old.low; i < old.next; i++ {
		*w.at(i) = *old.at(i)
	}
}

// compact forgets what is settled at the low end.
func (w *window) compact() {
	for w.low < w.next && w.at(w.low).state == settled {
		w.low++
	}
}
