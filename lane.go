package echo

import (
	"container/heap"
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/echobus/echo/transport"
)

// lane calls the handler for one message after another: those of a fetch after
// the other if it receives for itself, or those that a dispatcher gives it.
//
// A message that is to be tried again here waits in a line, and what comes
// after it under its key stands in the line behind it. The lane goes on with
// others meanwhile.
type lane struct {
	r      *run
	ctx    context.Context // the handler's
	cancel context.CancelCauseFunc

	cur *fetch // a lane that receives for itself: what it works through
	pos int    // its last message begun

	queue, shared chan item // else: messages with key, and those for any lane; nil when closed

	lines  map[string]*line // by key
	due    lineQueue        // all lines, of messages without key too
	inLine int              // messages in lines
	alarm  *time.Timer

	item           // the message under way
	from     *line // at whose head it is, if it is
	again    bool  // it waits, once more
	line     *line // where it waits then
	rs       []transport.Receipt
	err      error // what its handler returned
	returned bool  // it returned at all
	called   bool  // err is to be dealt with
	ok       bool  // its handler returned nil
	named    bool  // the memory of the consumer knows that it is being handled
	name     hash  // by which it does
	afresh   bool  // it waits, and this was no attempt
}

// line is a message that waits to be tried again, and those behind it.
type line struct {
	key    string
	items  []item
	at     time.Duration // when the first one is due
	index  int           // in the lane's due
	dead   error         // why the first one is a dead letter, though nobody took it yet
	afresh bool          // the first one waits without an attempt
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

func (r *run) newLane(queue chan item) *lane {
	l := &lane{r: r, queue: queue, shared: r.shared}
	l.renew()
	return l
}

// renew gives the lane a context that is not cancelled.
func (l *lane) renew() { l.ctx, l.cancel = context.WithCancelCause(l.r.handler) }

// receives reports whether the lane receives for itself.
func (l *lane) receives() bool { return l.r.shared == nil }

// work is the goroutine of a lane. A handler that calls Goexit ends it; another
// one then goes on where it was.
func (l *lane) work() {
	if l.called {
		l.conclude()
		l.passed()
	}
	for l.next() {
		l.do()
		l.passed()
	}
	l.abandon()
}

// next takes up the next message, and reports whether there is one.
func (l *lane) next() bool {
	for {
		if len(l.due) > 0 && l.due[0].at <= clock() {
			l.from = l.due[0]
			l.item = l.from.items[0]
			return true
		}
		ok, end := false, false
		if l.receives() {
			ok, end = l.receive()
		} else {
			ok, end = l.dequeue()
		}
		if end {
			return false
		}
		if ok && !l.stands() {
			return true
		}
	}
}

// receive takes the next message of the fetch, or fetches more. It returns
// without either when a line is due.
func (l *lane) receive() (ok, end bool) {
	r := l.r
	if l.cur != nil {
		if l.pos++; l.pos < len(l.cur.msgs) {
			l.item = item{l.cur, l.pos}
			return true, false
		}
		r.ended()
		r.c.adapt(l.cur)
		if f := l.cur; f.inLine == 0 {
			l.rs = r.c.retire(f, l.rs)
		}
		l.cur = nil
	}
	ctx := r.receive
	if len(l.due) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.due[0].at-clock())
		defer cancel()
	}
	f, err := r.next(ctx)
	switch {
	case err == nil:
		l.begin(f)
	case ctx == r.receive || r.receive.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
		r.err = err
		return false, true
	}
	return false, false
}

// begin makes a fetch what the lane works through.
func (l *lane) begin(f *fetch) {
	l.cur, l.pos = f, -1
	f.lane = l
	l.r.begun(f)
}

// dequeue takes the next message that the dispatcher gave. It returns without
// one when a line is due.
func (l *lane) dequeue() (ok, end bool) {
	if l.queue == nil && l.shared == nil {
		return false, true
	}
	var alarm <-chan time.Time
	if len(l.due) > 0 {
		wait := l.due[0].at - clock()
		if l.alarm == nil {
			l.alarm = time.NewTimer(wait)
		} else {
			l.alarm.Reset(wait)
		}
		alarm = l.alarm.C
	}
	select {
	case l.item, ok = <-l.queue:
		if !ok {
			l.queue = nil
		}
	case l.item, ok = <-l.shared:
		if !ok {
			l.shared = nil
		}
	case <-alarm:
		return false, false
	}
	if ok {
		l.f.slots[l.i].lane = l
	}
	return ok, false
}

// stands puts the message under way into the line of its key, if there is one.
func (l *lane) stands() bool {
	if len(l.lines) == 0 {
		return false
	}
	line := l.lines[l.f.msgs[l.i].Key]
	if line == nil {
		return false
	}
	line.items = append(line.items, l.item)
	l.lineUp()
	return true
}

// lineUp notes that one more message is in line.
func (l *lane) lineUp() {
	l.inLine++
	if l.receives() {
		l.f.inLine++
	} else {
		l.r.unload()
	}
}

// passed notes that the message under way is done with, or waits.
func (l *lane) passed() {
	from, again := l.from, l.again
	if again {
		if l.line.afresh, l.line.named = l.afresh, l.named; l.named {
			l.r.c.memory.hold(l.name)
		}
	} else if l.named {
		l.r.c.memory.end(l.name, l.received(), l.ok && !l.f.slots[l.i].back)
	}
	l.from, l.line, l.again, l.afresh, l.named, l.ok = nil, nil, false, false, false, false
	switch {
	case from != nil && again:
		heap.Fix(&l.due, from.index)
	case from != nil:
		l.advance(from)
	case again:
		l.lineUp()
	case !l.receives():
		l.settled()
		l.r.unload()
	}
}

// advance takes the first one out of a line.
func (l *lane) advance(from *line) {
	from.items[0] = item{}
	if from.items = from.items[1:]; len(from.items) > 0 {
		from.at, from.dead, from.afresh, from.named = clock(), nil, false, false
		heap.Fix(&l.due, from.index)
	} else {
		heap.Remove(&l.due, from.index)
		if from.key != "" {
			delete(l.lines, from.key)
		}
	}
	l.inLine--
	if !l.receives() {
		l.settled()
	} else if l.f.inLine--; l.f.inLine == 0 && l.f != l.cur {
		l.rs = l.r.c.retire(l.f, l.rs)
	}
}

// settled notes that a message that a dispatcher gave is done with.
func (l *lane) settled() {
	if l.f.left.Add(-1) == 0 {
		l.rs = l.r.c.retire(l.f, l.rs)
	}
}

// abandon gives back what waits to be tried again; what stands behind it was
// not begun, and goes back with all else that was not.
func (l *lane) abandon() {
	if l.alarm != nil {
		l.alarm.Stop()
	}
	for _, from := range l.due {
		l.item = from.items[0]
		switch {
		case from.afresh && l.f.move(l.i, waiting, gone):
			l.r.c.untake(l.f.msgs[l.i : l.i+1])
		case !l.f.move(l.i, waiting, running):
		case from.key != "": // whoever goes on begins with it
			l.giveBack(0)
		default:
			l.giveBack(max(0, from.at-clock()))
		}
		if from.named {
			l.r.c.memory.end(l.r.c.memory.hash(nameOf(&l.f.msgs[l.i])), 0, false)
		}
	}
	l.due, l.lines = nil, nil
}

// do takes the message under way to its outcome.
func (l *lane) do() {
	if l.named = l.from != nil && l.from.named; l.named {
		l.name = l.r.c.memory.hash(nameOf(&l.f.msgs[l.i]))
	}
	switch {
	case l.f.move(l.i, buffered, running):
	case l.from != nil && l.f.move(l.i, waiting, running):
		if !l.from.afresh && l.from.dead == nil {
			l.f.msgs[l.i].Attempt++
		}
	default:
		return // released, or its lease is lost
	}
	l.f.slots[l.i].back = false
	if l.r.c.paused.Load() != nil && l.yield() {
		return
	}
	switch l.err = l.barred(); l.err {
	case nil:
		l.call()
		l.ok = l.err == nil
	case errNotForUs:
		l.err = nil
	case errBusy:
		l.wait(busyFor, nil)
		l.afresh = l.again
	}
	if l.err != nil || l.r.c.draining.Load() || !l.f.move(l.i, running, handled) {
		l.conclude()
	}
	l.called = false
}

// yield gives back the message under way, if the consumer is still paused.
func (l *lane) yield() bool {
	c := l.r.c
	c.returning.RLock()
	defer c.returning.RUnlock()
	if c.paused.Load() == nil {
		return false
	}
	if l.from != nil && !l.from.afresh {
		l.giveBack(0)
	} else if l.f.move(l.i, running, gone) {
		c.untake(l.f.msgs[l.i : l.i+1])
	}
	return true
}

// barred returns why the handler is not to be called.
func (l *lane) barred() error {
	if l.from != nil && l.from.dead != nil {
		return l.from.dead
	}
	c, m := l.r.c, &l.f.msgs[l.i]
	if err := c.bars(m); err != nil || c.memory == nil || l.named {
		return err
	}
	l.name = c.memory.hash(nameOf(m))
	switch handled, busy := c.memory.begin(l.name, l.received(), c.cfg.concurrency > 1); {
	case handled:
		c.count.duplicates.Add(1)
		return errNotForUs
	case busy:
		return errBusy
	}
	l.named = true
	return nil
}

// received is when the message under way was received, or now if it waited since:
// a fetch is as large as what the handler gets through in some milliseconds.
func (l *lane) received() time.Duration {
	if l.from != nil {
		return clock()
	}
	return l.f.since
}

// busyFor is when to look again whether a message was handled that is being so.
const busyFor = 50 * time.Millisecond

// call calls the handler. If that panics or ends the goroutine, err says so;
// in the latter case another goroutine takes over the lane.
func (l *lane) call() {
	l.returned = false
	defer func() {
		l.called = true
		if l.returned {
			return
		}
		value := recover()
		l.err = &PanicError{Value: value, Stack: debug.Stack()}
		if value == nil { // Goexit: this goroutine is ending
			l.r.lanes.Go(l.work)
		}
	}()
	ctx := l.ctx
	if limit := l.r.c.cfg.retry.Timeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	l.err = l.r.handle(ctx, l.f, l.i)
	l.returned = true
	if l.err == nil {
		l.r.c.count.handled.Add(1)
	}
}

// conclude settles the message under way by what its handler returned.
func (l *lane) conclude() {
	c := l.r.c
	if l.called && l.err != nil {
		c.count.failed.Add(1)
	}
	if l.err != nil && l.running() {
		l.fail()
	}
	if l.called && c.draining.Load() {
		c.completed.Add(1)
	}
	l.called = false
	if l.err == nil && l.f.move(l.i, running, handled) {
		return
	}
	l.waitOut()
	if l.err == nil {
		l.f.move(l.i, running, handled)
	}
	l.err = nil
	if l.ctx.Err() != nil && l.r.handler.Err() == nil {
		l.renew()
	}
}

// waitOut waits while the keeper cancels our context, or a goroutine that the
// handler left settles.
func (l *lane) waitOut() {
	for n := 0; ; n++ {
		switch s := l.f.state(l.i); {
		case s != losing && s != settling:
			return
		case n < 100:
			runtime.Gosched()
		default:
			time.Sleep(min(time.Duration(n)*time.Microsecond, 5*time.Millisecond))
		}
	}
}

func (l *lane) running() bool { return l.f.state(l.i) == running }

// fail sees to a message whose handler failed.
func (l *lane) fail() {
	c, m := l.r.c, &l.f.msgs[l.i]
	var dead error
	reason, wait := c.cfg.retry.judge(m.Attempt, l.err)
	if c.letters && reason != "" { // nobody rejects a dead letter
		reason, wait = "", c.cfg.retry.wait(m.Attempt)
	}
	if reason != "" {
		if l.bury(reason) {
			return
		}
		if dead = l.err; l.from == nil || l.from.dead == nil {
			dead = &rejection{reason, l.err}
		}
		wait = c.cfg.retry.wait(m.Attempt)
	}
	c.bus.cfg.logger.Warn("echo: handler failed, message will come again", "topic", c.topic, "group", c.cfg.Group,
		"id", m.ID, "attempt", m.Attempt, "after", wait, "error", l.err)
	if l.r.receive.Err() == nil && (m.Key != "" || l.from != nil && wait < inPlace || wait < inPlace && l.staysHere(m)) {
		l.wait(wait, dead)
	} else {
		l.giveBack(wait)
	}
}

// staysHere reports whether a message without key is tried again here.
func (l *lane) staysHere(m *transport.Message) bool {
	return l.r.c.cfg.retry.brief(m.Attempt) && l.inLine < l.r.c.cfg.MaxPending/(2*l.r.c.cfg.concurrency)
}

// bury makes the message under way a dead letter, and reports whether it needs
// to be tried again no more.
func (l *lane) bury(reason string) bool {
	c, m := l.r.c, &l.f.msgs[l.i]
	if !l.f.move(l.i, running, settling) {
		return true
	}
	err := c.bury(c.bus.settling, m, reason, l.err)
	switch {
	case err == nil:
		l.f.slots[l.i].state.Store(l.f.gen | gone)
		return true
	case errors.Is(err, ErrLeaseLost):
		l.f.slots[l.i].state.Store(l.f.gen | lost)
		return true
	}
	l.f.slots[l.i].state.Store(l.f.gen | running)
	c.bus.cfg.logger.Error("echo: dead letter refused, message stays", "topic", c.topic, "group", c.cfg.Group,
		"id", m.ID, "reason", reason, "error", err)
	return false
}

// wait lets the message under way be tried again here after d.
func (l *lane) wait(d time.Duration, dead error) {
	if !l.f.move(l.i, running, waiting) {
		return
	}
	l.again = true
	at := clock() + min(max(d, time.Millisecond), forever) // others get a turn
	if l.from != nil {
		l.line = l.from
		l.line.at, l.line.dead = at, dead
		return
	}
	w := &line{key: l.f.msgs[l.i].Key, items: []item{l.item}, at: at, dead: dead}
	l.line = w
	heap.Push(&l.due, w)
	if w.key != "" {
		if l.lines == nil {
			l.lines = make(map[string]*line)
		}
		l.lines[w.key] = w
	}
}

// forever is longer than anything waits.
const forever = 100 * 365 * 24 * time.Hour

// giveBack gives the message under way to its group again.
func (l *lane) giveBack(delay time.Duration) {
	c := l.r.c
	if !l.f.move(l.i, running, gone) {
		return
	}
	err := c.nacker.Nack(c.bus.settling, []transport.Receipt{l.f.msgs[l.i].Receipt()}, min(delay, forever))
	if err != nil {
		c.bus.cfg.logger.Warn("echo: giving back failed, message will come again when its lease ends", "topic", c.topic, "group", c.cfg.Group,
			"id", l.f.msgs[l.i].ID, "error", err)
	} else if c.draining.Load() {
		c.givenBack.Add(1)
	}
}
