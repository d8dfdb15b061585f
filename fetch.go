package echo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// fetch is what one Receive brought, and what became of each message. Fetches
// are used again, so each slot's state carries a generation.
//
//	buffered ─► running ─► handled ─► gone       Run: finished, then acknowledged
//	    │          ├────────────────► gone       settled by hand, given back, or split off
//	    │          └─► losing ──────► lost       the lease ended in the handler
//	    ├─────────────────────► gone, lost       released, split off, or the lease ended
//
// What a lane keeps to try it again is split off: it goes on as a fetch of its
// own, of a new generation for each attempt.
//
//	buffered ─► running ◄──► waiting ─► gone, lost
//
// Settling by hand goes through settling, during which nobody else touches the
// message or uses the fetch again.
type fetch struct {
	c     *consumer
	msgs  []transport.Message // what was received, in buf
	buf   []transport.Message // never replaced, nor is slots: handles point there
	slots []slot
	gen   uint32 // stateBits zero

	lane   *lane         // who runs all of it, if one lane does
	left   atomic.Int32  // messages that are not concluded, nor in lines, by several lanes
	byHand bool          // its messages are settled by a loop, not by Run
	later  int           // messages that handlers left to be settled; the consumer's mu guards it
	parked bool          // nothing else keeps it active; the same
	since  time.Duration // when it was received
	kept   time.Duration // when leases were last extended
}

type slot struct {
	state atomic.Uint32 // generation and state
	back  bool          // it was settled by hand, and not as done; written before state is gone
	acked bool          // it was acknowledged by hand; written before state is gone
	later bool          // its handler left it to be settled; written while it is settling
	lane  *lane         // who runs it, if the fetch has several; written before it runs
}

const (
	buffered uint32 = iota
	running         // in the hands of a handler or the caller
	handled         // to be acknowledged
	settling        // being settled or extended by hand
	losing          // its lane's context is being cancelled
	lost            // its lease ended before it was settled
	gone            // settled or given back
	waiting         // to be tried again by the lane that has it

	stateBits = 3
	stateMask = 1<<stateBits - 1
)

func newFetch(c *consumer, size int) *fetch {
	return &fetch{c: c, buf: make([]transport.Message, size), slots: make([]slot, size)}
}

// begin takes over the first n messages of buf. They are all buffered, as no
// slot's state is of this generation.
func (f *fetch) begin(n int, now time.Duration, byHand bool) {
	f.msgs = f.buf[:n]
	f.gen += 1 << stateBits
	f.left.Store(int32(n))
	f.since, f.kept = now, now
	f.lane, f.byHand = nil, byHand
	f.later, f.parked = 0, false
}

// split makes message i of f a fetch of its own, for a lane to keep, and changes
// its state, if it is the one expected; else it returns nil.
func (c *consumer) split(f *fetch, i int, from, to uint32, l *lane) *fetch {
	own := newFetch(c, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.move(i, from, gone) {
		return nil
	}
	own.buf[0] = f.msgs[i]
	own.begin(1, f.since, f.byHand)
	own.kept, own.lane = f.kept, l
	own.slots[0].state.Store(own.gen | to)
	c.active = append(c.active, own)
	return own
}

// renew makes a claimed message that was split off wait for another attempt,
// whose handle will be another one.
func (c *consumer) renew(f *fetch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := f.gen + 1<<stateBits
	if !f.slots[0].state.CompareAndSwap(f.gen|settling, next|waiting) {
		return false
	}
	f.gen = next
	return true
}

// state returns the state of message i.
func (f *fetch) state(i int) uint32 { return f.stateOf(f.slots[i].state.Load()) }

func (f *fetch) stateOf(word uint32) uint32 {
	if word&^stateMask != f.gen {
		return buffered
	}
	return word & stateMask
}

// move changes the state of message i, if it is the one expected.
func (f *fetch) move(i int, from, to uint32) bool {
	word := f.slots[i].state.Load()
	return f.stateOf(word) == from && f.slots[i].state.CompareAndSwap(word, f.gen|to)
}

// receipts moves every message in state from to gone and returns their receipts.
func (f *fetch) receipts(rs []transport.Receipt, from uint32) []transport.Receipt {
	for i := range f.msgs {
		if f.state(i) == from && f.move(i, from, gone) {
			rs = append(rs, f.msgs[i].Receipt())
		}
	}
	return rs
}

// laneOf returns who runs message i.
func (f *fetch) laneOf(i int) *lane {
	if f.lane != nil {
		return f.lane
	}
	return f.slots[i].lane
}

// running counts the messages in the hands of handlers.
func (f *fetch) running() (n int) {
	for i := range f.msgs {
		if f.state(i) == running {
			n++
		}
	}
	return n
}

// finished returns the receipts of what is handled and not acknowledged, and
// whether the fetch may be used again: whether nobody will ask for its messages.
// The keeper must not look after it any more.
func (f *fetch) finished(rs []transport.Receipt) (_ []transport.Receipt, reusable bool) {
	reusable = true
	for i := range f.msgs {
		switch f.state(i) {
		case handled:
			rs = append(rs, f.msgs[i].Receipt())
		case gone:
		default:
			reusable = false
		}
	}
	return rs, reusable
}

// delivery is a message's handle to its fetch. The zero delivery belongs to a
// message that never arrived.
type delivery struct {
	f   *fetch
	i   uint32
	gen uint32
}

// delivery returns the handle of message i.
func (f *fetch) delivery(i int) delivery { return delivery{f, uint32(i), f.gen} }

var errNotReceived = errors.New("message was not received from a consumer")

// claim moves the delivery from running to settling, once nobody else is at it.
// ok is false when that is not this caller's to do; err says then whether it matters.
func (d delivery) claim(ctx context.Context) (r transport.Receipt, ok bool, err error) {
	for n := 0; ; n++ {
		var busy bool
		if r, ok, busy, err = d.tryClaim(); !busy {
			return r, ok, err
		}
		if err := ctx.Err(); err != nil {
			return r, false, err
		}
		waitABit(n)
	}
}

// tryClaim is claim without waiting for who is at the message, busy: that may
// fail, or be an extension.
func (d delivery) tryClaim() (r transport.Receipt, ok, busy bool, err error) {
	if d.f == nil {
		return r, false, false, errNotReceived
	}
	slot := &d.f.slots[d.i]
	if slot.state.CompareAndSwap(d.gen|running, d.gen|settling) {
		return d.f.buf[d.i].Receipt(), true, false, nil
	}
	switch slot.state.Load() {
	case d.gen | losing, d.gen | lost:
		return r, false, false, ErrLeaseLost
	case d.gen | running, d.gen | settling:
		return r, false, true, nil
	}
	return r, false, false, nil
}

// waitABit is what to do for the n-th time while somebody else is at a message.
func waitABit(n int) {
	if n < 100 {
		runtime.Gosched()
	} else {
		time.Sleep(min(time.Duration(n)*time.Microsecond, 5*time.Millisecond))
	}
}

// settled ends what claim began: err is the outcome. When the transport could
// not be asked the message is still to be settled.
func (d delivery) settled(err error) error {
	state := running
	switch {
	case err == nil:
		state = gone
	case errors.Is(err, ErrLeaseLost):
		state = lost
	}
	if state != running {
		d.leave(state)
		return err
	}
	d.f.slots[d.i].back = false
	d.f.slots[d.i].state.Store(d.gen | running)
	return err
}

// done notes that message i, which a loop yielded or a handler left, is done. It
// is still being settled, so that the fetch is not used again meanwhile.
func (f *fetch) done(i int) {
	if !f.byHand && !f.slots[i].later {
		f.slots[i].acked = true
		return
	}
	f.c.count.handled.Add(1)
	switch {
	case f.c.memory == nil:
	case !f.byHand:
		f.c.settledLater(&f.slots[i], true)
	default:
		f.c.memory.end(f.c.nameOf(&f.buf[i]), clock(), true)
	}
}

func (d delivery) ack(ctx context.Context) error {
	r, ok, err := d.claim(ctx)
	if !ok {
		return err
	}
	if err = d.f.c.acker.Ack(ctx, []transport.Receipt{r}); err == nil {
		d.f.done(int(d.i))
	}
	return d.settled(err)
}

// drop acknowledges a message that nobody handles.
func (d delivery) drop(ctx context.Context) error {
	r, ok, err := d.claim(ctx)
	if !ok {
		return err
	}
	return d.settled(d.f.c.acker.Ack(ctx, []transport.Receipt{r}))
}

// reject makes the message a dead letter. One that nobody takes is still to be settled.
func (d delivery) reject(ctx context.Context, reason string, why error) error {
	if d.f != nil && d.f.c.letters {
		return fmt.Errorf("dead letters have no dead letters: %w", errors.ErrUnsupported)
	}
	_, ok, err := d.claim(ctx)
	if !ok {
		return err
	}
	m := &d.f.buf[d.i]
	d.f.slots[d.i].back = true
	err = d.f.c.bury(ctx, m, reason, why)
	if err != nil && !errors.Is(err, ErrLeaseLost) {
		d.f.c.logRefusal(m, reason, err)
	}
	return d.settled(err)
}

func (d delivery) nack(ctx context.Context, delay time.Duration) error {
	r, ok, err := d.claim(ctx)
	if !ok {
		return err
	}
	d.f.slots[d.i].back = true
	return d.settled(d.f.c.nacker.Nack(ctx, []transport.Receipt{r}, delay))
}

func (d delivery) extend(ctx context.Context, by time.Duration) error {
	r, ok, err := d.claim(ctx)
	if !ok {
		return err
	}
	err = errors.ErrUnsupported
	if d.f.c.extender != nil {
		err = d.f.c.extender.Extend(ctx, []transport.Receipt{r}, by)
	}
	if errors.Is(err, ErrLeaseLost) {
		return d.settled(err)
	}
	d.f.slots[d.i].state.Store(d.gen | running)
	return err
}

var errNotSettled = errors.New("message was not settled")

// settleAll settles by hand the deliveries that are not settled yet, all of one
// consumer. done is called for each that was, before that is known.
func settleAll(ctx context.Context, ds []delivery, settle func(*consumer, []transport.Receipt) error, done func(delivery)) error {
	var rs []transport.Receipt
	var mine, others []delivery
	var late error
	for _, d := range ds {
		r, ok, busy, err := d.tryClaim()
		switch {
		case ok:
			rs, mine = append(rs, r), append(mine, d)
		case busy:
			others = append(others, d)
		case err != nil:
			late = err
		}
	}
	err := settleClaimed(rs, mine, settle, done)
	for _, d := range others { // one by one: whoever is at them may be waiting for ours
		r, ok, e := d.claim(ctx)
		if ok {
			e = settleClaimed([]transport.Receipt{r}, []delivery{d}, settle, done)
		}
		err = errors.Join(err, e)
	}
	return errors.Join(err, late)
}

// settleClaimed settles what settleAll has claimed.
func settleClaimed(rs []transport.Receipt, mine []delivery, settle func(*consumer, []transport.Receipt) error, done func(delivery)) error {
	if len(rs) == 0 {
		return nil
	}
	err := settle(mine[0].f.c, rs)
	lost, alone := lostBy(err)
	others := err // the outcome of those that were not lost
	switch {
	case alone:
		others = nil
	case lost != nil:
		others = errNotSettled
	}
	for i, d := range mine {
		if lost != nil && lost.Has(rs[i]) {
			d.settled(ErrLeaseLost)
			continue
		}
		if others == nil {
			done(d)
		}
		d.settled(others)
	}
	return err
}
