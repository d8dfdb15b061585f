package memstream

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// later is what a topic accepted and what is not due yet, in the order in which
// it will be.
type later struct {
	queue laterQueue
	bytes int
	n     uint64 // messages so far, to keep the order of those due at the same time
	timer *time.Timer
}

type delayed struct {
	at   time.Duration // on the clock
	n    uint64
	size int
	msg  transport.Message
}

type laterQueue []delayed

func (q laterQueue) Len() int { return len(q) }
func (q laterQueue) Less(a, b int) bool {
	return q[a].at < q[b].at || q[a].at == q[b].at && q[a].n < q[b].n
}
func (q laterQueue) Swap(a, b int) { q[a], q[b] = q[b], q[a] }
func (q *laterQueue) Push(x any)   { *q = append(*q, x.(delayed)) }
func (q *laterQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = delayed{}
	*q = (*q)[:last]
	return x
}

// errLaterFull says that no more messages can be kept until they are due.
var errLaterFull = fmt.Errorf("%w of messages that are due later", transport.ErrFull)

// postpone keeps a message until it is due, within the bounds of the topic.
func (t *topic) postpone(m *transport.Message, size int, delay time.Duration) error {
	l := &t.later
	switch {
	case t.cfg.maxAge > 0 && delay > t.cfg.maxAge:
		return fmt.Errorf("message %s is due in %v, and WithMaxAge(%v) keeps none for so long", m.ID, delay, t.cfg.maxAge)
	case len(l.queue) >= t.cfg.maxMessages || l.bytes+size > t.cfg.maxBytes:
		return errLaterFull
	}
	l.n++
	d := delayed{after(clock(), delay), l.n, size, *m}
	d.msg.Terms = nil
	heap.Push(&l.queue, d)
	l.bytes += size
	if l.queue[0].n == d.n {
		t.armLater(min(delay, century))
	}
	return nil
}

func (t *topic) armLater(d time.Duration) {
	if t.later.timer == nil {
		t.later.timer = time.AfterFunc(d, t.fall)
	} else {
		t.later.timer.Reset(d)
	}
}

// fall appends what is due. What has no room waits a little longer.
func (t *topic) fall() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	l := &t.later
	n := 0
	for now := clock(); len(l.queue) > 0; n++ {
		next := &l.queue[0]
		if next.at > now {
			t.armLater(next.at - now)
			break
		}
		if !t.makeRoom(next.size) {
			t.armLater(young)
			break
		}
		t.append(&next.msg, next.size)
		l.bytes -= next.size
		heap.Pop(&l.queue)
	}
	t.tail.Store(t.log.next)
	t.wake(n)
	t.offerRoom()
}
