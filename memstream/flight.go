package memstream

import (
	"slices"
	"sort"
	"time"
)

// flight holds the first deliveries that are under way, as runs of messages
// that one subscription was given at once, in the order of the log. Whatever
// else happens to a message, its group parks it.
type flight []run

// run is the delivery of messages first to end-1.
type run struct {
	first, end uint64
	holder     *subscription
	deadline   time.Duration // when the lease ends, on the clock
}

// A flight of more runs than this parks the oldest one.
const maxRuns = 512

// find returns the index of the run that holds message i, or of the first one
// after it.
func (f flight) find(i uint64) int {
	if len(f) > 0 && i < f[0].end {
		return 0
	}
	return sort.Search(len(f), func(k int) bool { return f[k].end > i })
}

// cut takes messages a to b-1 out of run k, which holds them.
func (f *flight) cut(k int, a, b uint64) {
	r := &(*f)[k]
	switch {
	case a == r.first && b == r.end:
		*f = slices.Delete(*f, k, k+1)
	case a == r.first:
		r.first = b
	case b == r.end:
		r.end = a
	default:
		rest := *r
		r.end, rest.first = a, b
		*f = slices.Insert(*f, k+1, rest)
	}
}

// extend sets the deadline of messages a to b-1 of run k.
func (f *flight) extend(k int, a, b uint64, deadline time.Duration) {
	whole := (*f)[k]
	part := run{a, b, whole.holder, deadline}
	if whole.deadline == deadline {
		return
	}
	if a == whole.first && b == whole.end {
		(*f)[k] = part
		return
	}
	f.cut(k, a, b)
	if a > whole.first {
		k++
	}
	*f = slices.Insert(*f, k, part)
}
