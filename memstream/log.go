package memstream

import (
	"sort"
	"sync/atomic"

	"github.com/echobus/echo/transport"
)

// log is a sequence of messages numbered from first to next-1. It grows at the
// end and shrinks at the front.
//
// Messages live in segments. A slot of a segment is written once while anybody
// reads the segment, so a reader that counts itself among its readers may copy
// messages out of it without the topic's lock.
type log struct {
	segs  []*segment
	spare *segment // dropped and unread, to be used again
	first uint64
	next  uint64
	start uint64 // size of all messages before first
	end   uint64 // size of all messages before next
}

type segment struct {
	base    uint64 // number of msgs[0]
	msgs    []transport.Message
	offsets []uint64 // size of all messages before each
	end     uint64   // size of all messages up to the last
	readers atomic.Int32
}

const (
	minSegment      = 8
	maxSegment      = 256
	maxSegmentBytes = 1 << 20 // a dropped message may linger until its segment goes
)

func (l *log) len() int { return int(l.next - l.first) }

// bytes is the size of the messages the log holds.
func (l *log) bytes() int { return int(l.end - l.start) }

// append adds a copy of m as it is to be delivered first.
func (l *log) append(m *transport.Message, size int) {
	var seg *segment
	if n := len(l.segs); n > 0 {
		seg = l.segs[n-1]
	}
	if seg == nil || seg.full() {
		seg = l.grow(seg)
	}
	seg.msgs = append(seg.msgs, *m)
	last := &seg.msgs[len(seg.msgs)-1]
	last.Attempt, last.Token = 1, firstToken
	seg.offsets = append(seg.offsets, l.end)
	l.end += uint64(size)
	seg.end = l.end
	l.next++
}

func (s *segment) full() bool {
	return len(s.msgs) == cap(s.msgs) || s.end-s.offsets[0] >= maxSegmentBytes
}

// grow adds a segment twice as large as the last one, so that a quiet topic is small.
func (l *log) grow(last *segment) *segment {
	seg := l.spare
	if l.spare = nil; seg == nil {
		size := minSegment
		if last != nil {
			size = min(2*cap(last.msgs), maxSegment)
		}
		seg = &segment{msgs: make([]transport.Message, 0, size), offsets: make([]uint64, 0, size)}
	}
	seg.base = l.next
	l.segs = append(l.segs, seg)
	return seg
}

// drop forgets the first message.
func (l *log) drop() {
	l.first++
	seg := l.segs[0]
	if n := l.first - seg.base; n < uint64(len(seg.msgs)) {
		l.start = seg.offsets[n]
		return
	}
	if l.start = seg.end; l.first == l.next && !seg.full() {
		return
	}
	l.segs[0] = nil
	l.segs = l.segs[1:]
	if cap(seg.msgs) == maxSegment && seg.readers.Load() == 0 {
		clear(seg.msgs)
		seg.msgs, seg.offsets = seg.msgs[:0], seg.offsets[:0]
		l.spare = seg
	}
}

// at returns message i, which the log must hold.
func (l *log) at(i uint64) *transport.Message {
	seg := l.segs[l.find(i)]
	return &seg.msgs[i-seg.base]
}

// size returns the size of messages i to j-1, which the log must hold.
func (l *log) size(i, j uint64) int { return int(l.offset(j) - l.offset(i)) }

func (l *log) offset(i uint64) uint64 {
	if i == l.next {
		return l.end
	}
	seg := l.segs[l.find(i)]
	return seg.offsets[i-seg.base]
}

// find returns the index of the segment that holds message i.
func (l *log) find(i uint64) int {
	if last := len(l.segs) - 1; i >= l.segs[last].base {
		return last
	}
	return sort.Search(len(l.segs), func(k int) bool { return l.segs[k].base > i }) - 1
}
