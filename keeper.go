package echo

import (
	"errors"
	"time"

	"github.com/echobus/echo/transport"
)

// arm sets the keeper's timer. The caller holds mu.
func (c *consumer) arm() {
	if c.armed || c.closed {
		return
	}
	c.armed, c.pace = true, minPace
	if c.keeper == nil {
		c.keeper = time.AfterFunc(c.pace, c.keep)
	} else {
		c.keeper.Reset(c.pace)
	}
}

// keep is the keeper's turn.
func (c *consumer) keep() {
	c.asleep.Store(false)
	done := c.flush()
	next := c.extend()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.active) == 0 || c.closed {
		c.armed = false
		return
	}
	if c.pace *= 2; done > 0 {
		c.pace = minPace
	}
	c.pace = min(c.pace, next)
	if c.pace > minPace {
		c.asleep.Store(true)
		if c.some(handled) { // since the flush, and did not rouse the keeper
			c.asleep.Store(false)
			c.pace = minPace
		}
	}
	c.keeper.Reset(c.pace)
}

// rouse lets the keeper have a turn soon, as there is something to acknowledge.
func (c *consumer) rouse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asleep.Swap(false) && c.armed && !c.closed {
		c.pace = minPace
		c.keeper.Reset(c.pace)
	}
}

// flush acknowledges what was handled and reports how much that was.
func (c *consumer) flush() int {
	c.settles.Lock()
	defer c.settles.Unlock()
	var rs []transport.Receipt
	c.mu.Lock()
	for _, f := range c.active {
		rs = f.receipts(rs, handled)
	}
	c.mu.Unlock()
	if len(rs) > 0 {
		c.ack(rs)
	}
	return len(rs)
}

// ack acknowledges what handlers are done with. What cannot be acknowledged
// comes again.
func (c *consumer) ack(rs []transport.Receipt) {
	err := c.acker.Ack(c.bus.settling, rs)
	late := failed(len(rs), err)
	if err != nil {
		c.bus.cfg.logger.Warn("echo: acknowledging failed, messages will come again", "topic", c.topic, "group", c.cfg.Group, "messages", late, "error", err)
	}
	if c.draining.Load() {
		c.acked.Add(int64(len(rs) - late))
	}
}

// ackSoon acknowledges, beside the next receive where that takes a while, and
// returns rs if it may be used again.
func (c *consumer) ackSoon(rs []transport.Receipt) []transport.Receipt {
	const few = 16 // messages for which a goroutine costs more than it gains
	if c.bus.immediate || len(rs) < few {
		c.ack(rs)
		return rs
	}
	c.acking.Lock() // one at a time; end waits for it
	spare := c.spareAck
	c.spareAck = nil
	go func() {
		defer c.acking.Unlock()
		c.ack(rs)
		c.spareAck = rs
	}()
	return spare
}

// extend extends the leases of what waits and, under Run, of what runs, when
// it is time, and returns when it will be time again.
func (c *consumer) extend() time.Duration {
	lease := c.lease()
	if lease == 0 {
		return time.Minute
	}
	every := lease / 3
	now := clock()
	var rs []transport.Receipt
	c.mu.Lock()
	handles := c.use != nil && c.use.handles
	for _, f := range c.active {
		if now-f.kept < every-minPace/2 {
			continue
		}
		f.kept = now
		for i := range f.msgs {
			if s := f.state(i); s == buffered || s == waiting || s == running && handles {
				rs = append(rs, f.msgs[i].Receipt())
			}
		}
	}
	c.mu.Unlock()
	if len(rs) == 0 {
		return every
	}
	err := c.extender.Extend(c.bus.settling, rs, 0)
	late, alone := lostBy(err)
	if late != nil {
		c.lose(late)
	}
	if err != nil && !alone && !errors.Is(err, ErrClosed) {
		c.bus.cfg.logger.Warn("echo: extending leases failed", "topic", c.topic, "group", c.cfg.Group, "messages", len(rs), "error", err)
	}
	return every
}

// lostBy returns which deliveries were lost, and whether nothing else failed.
func lostBy(err error) (late *transport.LeaseError, alone bool) {
	late, _ = errors.AsType[*transport.LeaseError](err)
	return late, late != nil && err == error(late)
}

// failed is how many of n deliveries were not settled.
func failed(n int, err error) int {
	late, alone := lostBy(err)
	switch {
	case err == nil:
		return 0
	case alone:
		return len(late.Lost)
	}
	return n
}

// lose notes whose leases are lost, and ends the contexts of their handlers.
func (c *consumer) lose(e *transport.LeaseError) {
	n := 0
	var parted []delivery
	c.mu.Lock()
	for _, f := range c.active {
		for i := range f.msgs {
			if s := f.state(i); s != buffered && s != waiting && s != running || !e.Has(f.msgs[i].Receipt()) {
				continue
			}
			switch {
			case f.move(i, buffered, lost), f.move(i, waiting, lost):
				n++
			case f.byHand:
				if f.move(i, running, lost) {
					n++
					c.inHand.Add(-1)
				}
			case f.move(i, running, losing):
				n++
				if f.slots[i].later {
					parted = append(parted, f.delivery(i))
				} else {
					f.laneOf(i).cancel(ErrLeaseLost)
				}
				f.slots[i].state.Store(f.gen | lost)
			}
		}
	}
	c.mu.Unlock()
	for _, d := range parted {
		c.settledLater(&d.f.slots[d.i], false)
		c.parted(d.f)
	}
	if n > 0 {
		c.bus.cfg.logger.Warn("echo: leases lost, messages go to the group again", "topic", c.topic, "group", c.cfg.Group, "messages", n)
	}
}
