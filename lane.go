package echo

import (
	"container/heap"
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/echobus/echo/transport"
)

// lane calls the handler for one message after another: those of a fetch after
// the other if it receives for itself, or those that a dispatcher gives it.
//
// A message that is to be tried again here waits in a line, and what comes
// after it under its key stands in the line behind it. From then on it is a
// fetch of its own. The lane goes on with others meanwhile, and takes turns
// between lines that are due and what is new.
type lane struct {
	r      *run
	ctx    context.Context // the handler's
	cancel context.CancelCauseFunc

	cur *fetch // a lane that receives for itself: what it works through
	pos int    // its last message begun

	queue *queue // else: messages with keys that are this lane's
	taken []item // out of it
	begun int    // of these
	open  bool   // there may be messages for any lane

	lines  map[string]*line // by key
	due    lineQueue        // all lines, of messages without key too
	inLine int              // messages in lines
	alarm  *time.Timer
	turn   bool          // a line had its turn
	looked time.Duration // when it was last received while a line was due

	item           // the message under way
	from     *line // at whose head it is, if it is
	rs       []transport.Receipt
	err      error // what its handler returned, or why it was not called
	returned bool  // it returned at all
	called   bool  // err is to be dealt with
	named    bool  // the memory of the consumer knows that it is being handled
	name     hash  // by which it does
}

// While a line is due, a lane looks for what is new so often, and so long.
const (
	lookEvery = 5 * time.Millisecond
	lookTime  = time.Millisecond
)

func (r *run) newLane(q *queue) *lane {
	l := &lane{r: r, queue: q, open: q != nil, looked: clock() - lookEvery}
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
	ended := false
	defer func() {
		if !ended {
			l.r.lanes.Go(l.work)
		}
	}()
	if l.called {
		l.conclude()
	}
	for l.next() {
		l.do()
	}
	l.abandon()
	ended = true
}

// next takes up the next message, and reports whether there is one.
func (l *lane) next() bool {
	for {
		due := l.lineIsDue()
		if due && !l.turn {
			l.turn = true
			l.from = l.due[0]
			l.item = item{l.from.items[0], 0}
			return true
		}
		l.turn = false
		ok, end := false, false
		if l.receives() {
			ok, end = l.receive(due)
		} else {
			ok, end = l.dequeue(due)
		}
		if end {
			return false
		}
		if ok && !l.stands() {
			return true
		}
	}
}

// lineIsDue reports whether a message is to be tried again now. After a stop
// none is: they go back.
func (l *lane) lineIsDue() bool {
	return len(l.due) > 0 && l.due[0].at <= clock() && l.r.receive.Err() == nil
}

// receive takes the next message of the fetch, or fetches more. It returns
// without either when a line is due, which it may be already.
func (l *lane) receive(due bool) (ok, end bool) {
	r := l.r
	if l.cur != nil {
		if l.pos++; l.pos < len(l.cur.msgs) {
			l.item = item{l.cur, l.pos}
			return true, false
		}
		r.ended()
		r.c.adapt(l.cur)
		l.rs = r.c.retire(l.cur, l.rs)
		l.cur = nil
	}
	ctx := r.receive
	if len(l.due) > 0 {
		now := clock()
		if due && now-l.looked < lookEvery {
			return false, false
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(l.due[0].at-now, lookTime))
		defer cancel()
	}
	f, err := r.next(ctx)
	if due {
		l.looked = clock()
	}
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
// one when a line is due, which it may be already.
func (l *lane) dequeue(due bool) (ok, end bool) {
	if l.queue != nil && l.begun == len(l.taken) {
		clear(l.taken)
		var closed bool
		l.begun = 0
		if l.taken, closed = l.queue.take(l.taken); closed {
			l.queue = nil
		}
	}
	switch {
	case l.begun < len(l.taken):
		l.item, ok = l.taken[l.begun], true
		l.begun++
	case l.queue == nil && !l.open:
		return false, true
	default:
		ok = l.await(due)
	}
	if ok {
		l.f.slots[l.i].lane = l
	}
	return ok, false
}

// await takes the next message for any lane. Unless a line is due, it waits for
// it, or for something else to do.
func (l *lane) await(due bool) (ok bool) {
	var came chan struct{}
	if l.queue != nil {
		came = l.queue.came
	}
	var shared chan item
	if l.open {
		shared = l.r.shared
	}
	if due {
		select {
		case l.item, ok = <-shared:
			l.open = ok
		default:
		}
		return ok
	}
	var alarm <-chan time.Time
	if len(l.due) > 0 && l.r.receive.Err() == nil {
		wait := l.due[0].at - clock()
		if l.alarm == nil {
			l.alarm = time.NewTimer(wait)
		} else {
			l.alarm.Reset(wait)
		}
		alarm = l.alarm.C
	}
	select {
	case <-came:
	case l.item, ok = <-shared:
		l.open = ok
	case <-alarm:
	}
	return ok
}

// left notes that a message that the dispatcher gave is done with, or in a line.
func (l *lane) left() {
	if l.receives() {
		return
	}
	if l.f.left.Add(-1) == 0 {
		l.rs = l.r.c.retire(l.f, l.rs)
	}
	l.r.unload()
}

// passed notes that the message under way is done with, ok if it was handled, or
// that it waits in a line.
func (l *lane) passed(ok bool, again *line) {
	from := l.from
	switch s := &l.f.slots[l.i]; {
	case !l.named:
	case again != nil:
		again.named = true
		l.r.c.memory.hold(l.name)
	default:
		l.r.c.memory.end(l.name, l.received(), s.acked || ok && !s.back)
	}
	l.from, l.named = nil, false
	switch {
	case from == nil:
		l.left()
	case again != nil:
		heap.Fix(&l.due, from.index)
	default:
		l.advance(from)
	}
}

// do takes the message under way to its outcome.
func (l *lane) do() {
	c, s := l.r.c, &l.f.slots[l.i]
	if l.named = l.from != nil && l.from.named; l.named {
		l.name = c.nameOf(&l.f.msgs[l.i])
	}
	s.back, s.acked, s.later = false, false, false
	if l.f.state(l.i) == buffered {
		switch {
		case l.r.receive.Err() != nil:
			c.release() // of whoever stopped it that will be a moment later
		case c.releasing.Load() > 0:
			c.awaitReturns() // or this one might be begun, and those before it go back
		}
	}
	switch begun, yielded := l.begins(); {
	case yielded:
		return
	case !begun: // released, or its lease is lost
		l.passed(false, nil)
		return
	}
	switch l.err = l.barred(); l.err {
	case nil:
		l.call()
	case errNotForUs:
		l.err = nil
	case errBusy:
		var again *line
		if l.claim() {
			again = l.wait(busyFor, nil, true)
		}
		l.passed(false, again)
		return
	}
	l.conclude()
}

// begins makes the message under way one that runs. If it is at the head of a
// line and the consumer is paused, that goes back.
func (l *lane) begins() (begun, yielded bool) {
	c, from := l.r.c, l.from
	if from == nil {
		return l.f.move(l.i, buffered, running), false
	}
	c.returning.RLock() // a pause that this does not see waits for it
	defer c.returning.RUnlock()
	if c.paused.Load() != nil && from.dead == nil {
		l.yield()
		return false, true
	}
	if l.f.move(l.i, buffered, running) {
		return true, false
	}
	if !l.f.move(l.i, waiting, running) {
		return false, false
	}
	if !from.afresh && from.dead == nil {
		l.f.msgs[l.i].Attempt++
	}
	return true, false
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
	l.name = c.nameOf(m)
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

// call calls the handler. If that panics or ends the goroutine, err says so.
func (l *lane) call() {
	if l.ctx.Err() != nil && l.r.handler.Err() == nil {
		l.renew()
	}
	l.returned = false
	defer func() {
		l.called = true
		if l.returned {
			return
		}
		l.err = &PanicError{Value: recover(), Stack: debug.Stack()} // nil of Goexit: this goroutine is ending
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
	c, called := l.r.c, l.called
	l.called = false
	later := called && isLater(l.err)
	if later {
		l.err = ErrLater
	}
	if called && !later && c.draining.Load() {
		c.completed.Add(1)
	}
	if called && !later && l.err != nil {
		c.count.failed.Add(1)
	}
	var again *line
	for !l.settle(&again) && l.waitOut() { // the keeper cancels our context, or a goroutine that the handler left settles
	}
	if later && l.f.slots[l.i].acked { // before it was left to be
		c.count.handled.Add(1)
	}
	l.passed(called && l.err == nil, again)
}

// settle does what follows from how the handler returned, unless the message is
// not the lane's at the moment. If it waits in a line, that is again.
func (l *lane) settle(again **line) bool {
	if l.err == nil {
		done := l.f.move(l.i, running, handled)
		if done && l.r.c.asleep.Load() {
			l.r.c.rouse()
		}
		return done
	}
	if l.err == ErrLater {
		return l.part()
	}
	if !l.claim() {
		return false
	}
	*again = l.fail()
	return true
}

// claim keeps others from the message under way, until it waits or is gone.
func (l *lane) claim() bool { return l.f.move(l.i, running, settling) }

// waitOut waits while somebody else is at the message, and reports whether it is
// the lane's then.
func (l *lane) waitOut() bool {
	for n := 0; ; n++ {
		if s := l.f.state(l.i); s != losing && s != settling {
			return s == running
		}
		waitABit(n)
	}
}

// fail sees to a claimed message whose handler failed. If it waits to be tried again
// here, it is at the head of the line that fail returns.
func (l *lane) fail() *line {
	c, m := l.r.c, &l.f.msgs[l.i]
	var dead error
	reason, wait := c.judge(m, l.err)
	if reason != "" {
		if l.f.delivery(l.i).bury(reason, l.err) {
			return nil
		}
		if dead = l.err; l.from == nil || l.from.dead == nil {
			dead = &rejection{reason, l.err}
		}
		wait = c.cfg.retry.wait(m.Attempt)
	}
	stopped := l.r.receive.Err() != nil
	if stopped && m.Key != "" { // whoever goes on begins with it
		wait = 0
	}
	c.logFailure(m, wait, l.err)
	// What was tried again here stays, as the group knows nothing of that.
	if !stopped && (m.Key != "" || l.from != nil || wait < inPlace && l.staysHere(m)) {
		return l.wait(wait, dead, false)
	}
	l.f.delivery(l.i).giveBack(wait)
	return nil
}

// staysHere reports whether a message without key is tried again here.
func (l *lane) staysHere(m *transport.Message) bool {
	return l.r.c.cfg.retry.brief(m.Attempt) && l.inLine < l.r.c.cfg.MaxPending/(2*l.r.c.cfg.concurrency)
}

// forever is longer than anything waits.
const forever = 100 * 365 * 24 * time.Hour
