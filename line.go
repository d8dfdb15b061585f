package echo

import (
	"container/heap"
	"time"

	"github.com/echobus/echo/transport"
)

// line is a message that waits to be tried again, and those behind it, each a
// fetch of its own.
type line struct {
	key    string
	items  []*fetch
	at     time.Duration // when the first one is due
	index  int           // in the lane's due
	dead   error         // why the first one is a dead letter, though nobody took it yet
	afresh bool          // the first one waits, and that was no attempt
	named  bool          // the memory of the consumer knows that the first one is being handled
}

// lineQueue orders lines by time.
type lineQueue []*line

func (q lineQueue) Len() int           { return len(q) }
func (q lineQueue) Less(a, b int) bool { return q[a].at < q[b].at }
func (q lineQueue) Swap(a, b int) {
	q[a], q[b] = q[b], q[a]
	q[a].index, q[b].index = a, b
}
func (q *lineQueue) Push(x any) {
	l := x.(*line)
	l.index = len(*q)
	*q = append(*q, l)
}
func (q *lineQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return x
}

// lineOf names the line that a message stands in, or waits at the head of: its
// key, of a pattern with its topic. Without a key it is a line of its own, "".
func (c *consumer) lineOf(m *transport.Message) string {
	if c.family == nil || m.Key == "" {
		return m.Key
	}
	return c.topicOf(m) + "\x00" + m.Key
}

// stands puts the message under way into the line of its key, if there is one.
func (l *lane) stands() bool {
	if len(l.lines) == 0 {
		return false
	}
	line := l.lines[l.r.c.lineOf(&l.f.msgs[l.i])]
	if line == nil {
		return false
	}
	own := l.r.c.split(l.f, l.i, buffered, buffered, l)
	if own == nil {
		return false
	}
	l.prune(line)
	line.items = append(line.items, own)
	l.inLine++
	l.left()
	return true
}

// prune takes out the last ones of a line that went back, or are lost.
func (l *lane) prune(from *line) {
	for k := len(from.items) - 1; k > 0; k-- {
		if s := from.items[k].state(0); s != gone && s != lost {
			return
		}
		l.rs = l.r.c.retire(from.items[k], l.rs)
		from.items[k] = nil
		from.items = from.items[:k]
		l.inLine--
	}
}

// advance takes the first one out of a line.
func (l *lane) advance(from *line) {
	l.rs = l.r.c.retire(from.items[0], l.rs)
	l.inLine--
	from.items[0] = nil
	if from.items = from.items[1:]; len(from.items) > 0 {
		from.at, from.dead, from.afresh, from.named = clock(), nil, false, false
		heap.Fix(&l.due, from.index)
		return
	}
	l.remove(from)
}

// yield gives back the line whose turn it is: all of it, as what stands behind
// must not be begun before its head.
func (l *lane) yield() {
	c, from := l.r.c, l.from
	c.giveBack(l.dissolve(from))
	l.remove(from)
	l.inLine -= len(from.items)
	for _, f := range from.items {
		l.rs = c.retire(f, l.rs)
	}
	l.from, l.named = nil, false
}

// remove takes a line out of the lane's.
func (l *lane) remove(from *line) {
	heap.Remove(&l.due, from.index)
	if from.key != "" {
		delete(l.lines, from.key)
	}
}

// abandon gives back what is in lines.
func (l *lane) abandon() {
	if l.alarm != nil {
		l.alarm.Stop()
	}
	var fresh []transport.Receipt
	for _, from := range l.due {
		fresh = append(fresh, l.dissolve(from)...)
	}
	l.due, l.lines = nil, nil
	l.r.c.giveBack(fresh)
}

// dissolve gives back the head of a line, and returns what of it was not begun,
// to be given back as it is.
func (l *lane) dissolve(from *line) (fresh []transport.Receipt) {
	c := l.r.c
	for k, f := range from.items {
		switch {
		case f.move(0, buffered, gone), k == 0 && from.afresh && f.move(0, waiting, gone):
			fresh = append(fresh, f.msgs[0].Receipt())
		case !f.move(0, waiting, settling):
		case from.key != "": // whoever goes on begins with it
			f.delivery(0).giveBack(0)
		default:
			f.delivery(0).giveBack(max(0, from.at-clock()))
		}
	}
	if from.named {
		c.memory.end(c.nameOf(&from.items[0].msgs[0]), 0, false)
	}
	return fresh
}

// wait lets the claimed message be tried again here after d, and returns the
// line at whose head it is, nil if it is the lane's no more. dead is why it is a
// dead letter; afresh says that this was no attempt.
func (l *lane) wait(d time.Duration, dead error, afresh bool) *line {
	at := clock() + min(max(d, time.Millisecond), forever) // others get a turn
	if w := l.from; w != nil {
		if !l.r.c.renew(l.f) {
			return nil
		}
		w.at, w.dead, w.afresh = at, dead, afresh
		return w
	}
	own := l.r.c.split(l.f, l.i, settling, waiting, l)
	if own == nil {
		return nil
	}
	w := &line{key: l.r.c.lineOf(&own.msgs[0]), items: []*fetch{own}, at: at, dead: dead, afresh: afresh}
	l.inLine++
	heap.Push(&l.due, w)
	if w.key != "" {
		if l.lines == nil {
			l.lines = make(map[string]*line)
		}
		l.lines[w.key] = w
	}
	return w
}
