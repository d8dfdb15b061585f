package echo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// ErrLater is returned by a handler that keeps its message beyond its return, to
// handle it together with others, say. Its lease is extended until
// [Message.Settle] or one of its kin settles it. Meanwhile it counts against
// [WithPrefetch], and messages with the same key go on.
//
// When the consumer stops, Run waits for such messages as it does for handlers;
// [Consumer.Done] says that it is time to settle them. What is not settled when
// the drain timeout is over goes back as if it had never been handled.
var ErrLater = errors.New("echo: message will be settled later")

// Settle settles the message as if its handler had returned err: nil means
// done, otherwise [WithRetry] says what becomes of it. It is for messages whose
// handler returned, or will return, [ErrLater], and for those of a loop. What
// fails is logged, as for a handler.
func (m Message[M]) Settle(err error) { m.d.conclude(err) }

// Release gives the message back as if it had never been delivered: this was no
// attempt, and it keeps its place, unless others are being received meanwhile,
// which [Consumer.Pause] prevents. Errors are as for Ack.
func (m Message[M]) Release(ctx context.Context) error {
	return m.settled("release", releaseAll(ctx, []delivery{m.d}))
}

// Release gives back the messages of the batch that are not settled yet, as if
// they had never been delivered. Errors are as for Ack.
func (b Batch[M]) Release(ctx context.Context) error {
	if err := releaseAll(ctx, b.deliveries()); err != nil {
		return fmt.Errorf("echo: release %d messages of %s: %w", len(b), b[0].Topic, err)
	}
	return nil
}

func releaseAll(ctx context.Context, ds []delivery) error {
	return settleAll(ctx, ds, func(c *consumer, rs []transport.Receipt) error {
		c.beginReturns()
		defer c.endReturns()
		return release(ctx, c.sub, rs)
	}, func(d delivery) { d.f.slots[d.i].back = true })
}

// Done returns a channel that is closed when the consumer stops for good: it,
// or its bus, was closed, or its Run is about to end.
func (c *Consumer[M]) Done() <-chan struct{} { return c.core.doneChan() }

func (c *consumer) doneChan() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.stopping.Load() {
			close(c.done)
		}
	}
	return c.done
}

// tellDone closes what Done returned. The caller has just set stopping.
func (c *consumer) tellDone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done != nil {
		select {
		case <-c.done: // it was made a moment ago
		default:
			close(c.done)
		}
	}
}

// part leaves the message under way to whoever will settle it, unless somebody
// did already, and reports whether that is known yet.
func (l *lane) part() bool {
	if !l.claim() {
		return false
	}
	c, s := l.r.c, &l.f.slots[l.i]
	if l.named { // it is being handled until it is settled
		c.memory.hold(l.name)
	}
	c.mu.Lock()
	l.f.later++
	c.later++
	if l.named {
		if c.laterNames == nil {
			c.laterNames = make(map[*slot]hash)
		}
		c.laterNames[s] = l.name
	}
	c.mu.Unlock()
	l.named = false
	s.later = true
	s.state.Store(l.f.gen | running)
	return true
}

// isLater reports whether an error is ErrLater. One that cannot be asked is not.
func isLater(err error) (later bool) {
	if err == nil || err == ErrLater {
		return err == ErrLater
	}
	defer func() { recover() }()
	return errors.Is(err, ErrLater)
}

// settledLater tells the memory of the consumer what became of a message that was
// left to be settled.
func (c *consumer) settledLater(s *slot, handled bool) {
	c.mu.Lock()
	name, ok := c.laterNames[s]
	delete(c.laterNames, s)
	c.mu.Unlock()
	if ok {
		c.memory.end(name, clock(), handled)
	}
}

// parted notes that a message of f that was left to be settled is.
func (c *consumer) parted(f *fetch) {
	c.mu.Lock()
	f.later--
	last := f.later == 0 && f.parked
	c.mu.Unlock()
	if last {
		c.retire(f, nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later-- // after what is left of the fetch was acknowledged
	if c.later == 0 && c.allParted != nil {
		close(c.allParted)
		c.allParted = nil
	}
}

// awaitLater waits until nothing is left to be settled, or nobody is to wait for
// it any more.
func (u *use) awaitLater() {
	c := u.c
	c.mu.Lock()
	var settled chan struct{}
	if c.later > 0 {
		settled = make(chan struct{})
		c.allParted = settled
	}
	c.mu.Unlock()
	if settled == nil {
		return
	}
	c.stop()
	select {
	case <-settled:
	case <-u.handler.Done():
		c.releaseLater()
	}
}

// releaseLater gives back what was left to be settled, and was not.
func (c *consumer) releaseLater() {
	c.beginReturns()
	defer c.endReturns()
	c.settles.Lock()
	defer c.settles.Unlock()
	var rs []transport.Receipt
	c.mu.Lock()
	for _, f := range c.active {
		rs = f.receipts(rs, running)
	}
	c.mu.Unlock()
	c.giveBack(rs)
}

// conclude settles the delivery by what its handler would have returned.
func (d delivery) conclude(err error) {
	if err == ErrLater {
		return
	}
	r, ok, _ := d.claim(d.settling())
	if !ok {
		return
	}
	c, slot := d.f.c, &d.f.slots[d.i]
	if slot.later && c.draining.Load() {
		c.completed.Add(1)
	}
	switch {
	case err != nil:
		c.count.failed.Add(1)
		d.fail(err)
	case slot.later: // the keeper acknowledges it together with others
		d.f.done(int(d.i))
		d.leave(handled)
		if c.asleep.Load() {
			c.rouse()
		}
	default:
		c.settles.Lock()
		c.ack([]transport.Receipt{r})
		c.settles.Unlock()
		d.f.done(int(d.i))
		d.leave(gone)
	}
}

// settling is the context of what nobody waits for.
func (d delivery) settling() context.Context {
	if d.f == nil {
		return context.Background()
	}
	return d.f.c.bus.settling
}

// leave ends settling: the message is in a state for good. After that, but for
// one that was left to be settled, the fetch may be used again.
func (d delivery) leave(state uint32) {
	f := d.f
	byHand, later := f.byHand, f.slots[d.i].later
	if later && f.c.memory != nil {
		f.c.settledLater(&f.slots[d.i], false) // unless that was known to be done
	}
	f.slots[d.i].state.Store(d.gen | state)
	if byHand {
		f.c.inHand.Add(-1)
	}
	if later {
		f.c.parted(f)
	}
}

// fail gives back the claimed message, or makes it a dead letter.
func (d delivery) fail(err error) {
	c, m := d.f.c, &d.f.buf[d.i]
	d.f.slots[d.i].back = true
	reason, wait := c.judge(m, err)
	if reason != "" {
		if d.bury(reason, err) {
			return
		}
		wait = c.cfg.retry.wait(m.Attempt)
	}
	c.logFailure(m, wait, err)
	d.giveBack(wait)
}

// judge decides what becomes of a message whose handler failed: it is dead for a
// reason, or due again after a wait.
func (c *consumer) judge(m *transport.Message, err error) (reason string, wait time.Duration) {
	reason, wait = c.cfg.retry.judge(m.Attempt, err)
	if c.letters && reason != "" { // nobody rejects a dead letter
		return "", c.cfg.retry.wait(m.Attempt)
	}
	return reason, wait
}

func (c *consumer) logFailure(m *transport.Message, wait time.Duration, err error) {
	c.bus.cfg.logger.Warn("echo: handler failed, message will come again", "topic", c.topic, "group", c.cfg.Group,
		"id", m.ID, "attempt", m.Attempt, "after", wait, "error", err)
}

// bury makes the claimed message a dead letter, and reports whether it needs to
// be tried again no more.
func (d delivery) bury(reason string, why error) bool {
	c, m := d.f.c, &d.f.buf[d.i]
	err := c.bury(c.bus.settling, m, reason, why)
	switch {
	case err == nil:
		d.leave(gone)
		return true
	case errors.Is(err, ErrLeaseLost):
		d.leave(lost)
		return true
	}
	c.logRefusal(m, reason, err)
	return false
}

func (c *consumer) logRefusal(m *transport.Message, reason string, err error) {
	c.bus.cfg.logger.Error("echo: dead letter refused, message stays", "topic", c.topic, "group", c.cfg.Group,
		"id", m.ID, "reason", reason, "error", err)
}

// giveBack gives the claimed message to its group again.
func (d delivery) giveBack(delay time.Duration) {
	c, m := d.f.c, &d.f.buf[d.i]
	defer d.leave(gone) // whether or not that works
	err := c.nacker.Nack(c.bus.settling, []transport.Receipt{m.Receipt()}, min(delay, forever))
	if err != nil {
		c.bus.cfg.logger.Warn("echo: giving back failed, message will come again when its lease ends", "topic", c.topic, "group", c.cfg.Group,
			"id", m.ID, "error", err)
	} else if c.draining.Load() {
		c.givenBack.Add(1)
	}
}
