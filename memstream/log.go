package memstream

import (
	"sort"

	"github.com/echobus/echo/transport"
)

// log is a sequence of messages numbered from first to next-1. It grows at the
// end and shrinks at the front.
//
// Messages live in segments. A slot of a segment is written once and never
// changed, and a segment is never reused, so a reader may copy messages out of
// a slice it was handed while the log goes on without it.
type log struct {
	segs  []*segment
	first uint64
	next  uint64
	bytes int
}

type segment struct {
	base  uint64 // number of msgs[0]
	msgs  []transport.Message
	sizes []uint32
	bytes int
}

const (
	minSegment      = 8
	maxSegment      = 256
	maxSegmentBytes = 1 << 20 // a dropped message may linger until its segment goes
)

func (l *log) len() int { return int(l.next - l.first) }

func (l *log) append(m *transport.Message, size int) {
	seg := l.last()
	if seg == nil || len(seg.msgs) == cap(seg.msgs) || seg.bytes >= maxSegmentBytes {
		seg = l.grow(seg)
	}
	seg.msgs = append(seg.msgs, *m)
	seg.sizes = append(seg.sizes, uint32(size))
	seg.bytes += size
	l.bytes += size
	l.next++
}

func (l *log) last() *segment {
	if len(l.segs) == 0 {
		return nil
	}
	return l.segs[len(l.segs)-1]
}

// grow adds a segment twice as large as the last one, so that a quiet topic is small.
func (l *log) grow(last *segment) *segment {
	size := minSegment
	if last != nil {
		size = min(2*cap(last.msgs), maxSegment)
	}
	seg := &segment{base: l.next, msgs: make([]transport.Message, 0, size), sizes: make([]uint32, 0, size)}
	l.segs = append(l.segs, seg)
	return seg
}

// drop forgets the first message.
func (l *log) drop() {
	seg := l.segs[0]
	l.bytes -= int(seg.sizes[l.first-seg.base])
	l.first++
	if l.first == seg.base+uint64(len(seg.msgs)) && len(l.segs) > 1 {
		l.segs[0] = nil
		l.segs = l.segs[1:]
	} else if l.first == l.next {
		l.segs = nil
	}
}

// at returns message i, which the log must hold, and its size.
func (l *log) at(i uint64) (*transport.Message, int) {
	seg := l.segs[l.find(i)]
	return &seg.msgs[i-seg.base], int(seg.sizes[i-seg.base])
}

// find returns the index of the segment that holds message i.
func (l *log) find(i uint64) int {
	if last := len(l.segs) - 1; i >= l.segs[last].base {
		return last
	}
	return sort.Search(len(l.segs), func(k int) bool { return l.segs[k].base > i }) - 1
}
