package wsstream

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/echobus/echo/transport"
)

// tail is a broadcast subscription of a link: a place in a hub.
type tail struct {
	c      *conn
	hub    *hub
	sid    uint64
	queued bool   // in the link's queue; that has a lock for it
	index  int    // in the hub's tails; that has a lock for it
	anew   uint64 // the number of an entry after which positions start anew; the hub's lock guards it

	run []byte // the frame that comes before its messages

	// Of fill.
	next uint64             // the number of the entry to look at next, 0 for the first after at
	at   transport.Position // everything up to it was sent, or is not wanted

	mu     sync.Mutex // guards the rest
	manual bool       // only flow gives credit
	credit int        // messages that may be sent
	bytes  int        // and their size: the last one may be larger than what is left
	sent   []sent     // unless manual, what is under way, in order
	own    *own       // reads for this subscription alone, as the hub has not what is next
	open   bool       // the client knows of it
	over   bool
}

// sent is a message under way.
type sent struct {
	pos  transport.Position
	size int
}

// own is what a subscription reads by itself until it is where the hub's
// entries begin. The tail's lock guards what it read.
type own struct {
	entries []*entry
	bytes   int
	more    chan struct{} // holds a token when entries were taken
	caught  bool          // the hub has what comes after entries

	ctx    context.Context // until the tail is closed
	cancel context.CancelFunc

	// Of the goroutine that reads.
	reading
}

// reading is a place in a topic, and a subscription that goes on from it.
type reading struct {
	sub   transport.Subscription // nil while it makes room for others
	at    transport.Positioner
	prev  transport.Position // the last that was read
	upto  transport.Position // where it is: what is no message may have been passed by
	whole bool               // sub has no loss to tell first
	began bool               // upto is a place to go on from with another
}

func (h *Handler) newOwn(r reading) *own {
	o := &own{more: make(chan struct{}, 1), reading: r}
	o.ctx, o.cancel = context.WithCancel(h.ctx)
	return o
}

// close ends o, which may be nil.
func (o *own) close() {
	if o != nil {
		o.cancel()
		o.rest()
	}
}

// rest closes the subscription until it is its turn again.
func (r *reading) rest() {
	if r.sub != nil {
		r.sub.Close()
		r.sub = nil
	}
}

const (
	creditMost = 1 << 20
	bytesMost  = 1 << 30
)

// openTail opens a broadcast subscription.
func (c *conn) openTail(ctx context.Context, p *pending, f *frame) error {
	start := transport.Start{From: transport.From(f.From), ID: f.ID, Time: f.Time, Position: f.Pos}
	if start.From == transport.Default {
		start.From = transport.Newest
	}
	t := &tail{c: c, sid: f.Sid, manual: f.Manual}
	t.run = c.codec.append(nil, &frame{Type: frameRun, Sid: t.sid})
	if c.stream { // which takes more as it is written
		t.manual, p.credit, p.bytes = true, math.MaxInt, math.MaxInt
	}
	for {
		b, made, err := c.h.hub(ctx, f.Topic, start)
		if err != nil {
			return err
		}
		t.hub, t.next = b, 0
		var o *own
		switch {
		case made && (start.From != transport.AfterPosition || b.start == start.Position):
			t.at, t.next = b.start, firstEntry // as the hub began where this one wants to
		case start.From == transport.Newest:
			if t.at, err = b.newest(ctx); err != nil {
				return err
			}
		default:
			if o, err = t.begin(ctx, start); err != nil {
				return err
			}
		}
		if !b.join(t) {
			o.close()
			continue
		}
		t.own = o
		at := t.at
		if err := c.started(p, f, func() bool {
			t.credit, t.bytes = p.credit, p.bytes
			if c.tails == nil {
				c.tails = make(map[uint64]*tail)
			}
			c.tails[t.sid] = t
			return true
		}); err != nil {
			b.leave(t)
			o.close()
			return err
		}
		c.out.send(frame{Type: frameSubOK, Sid: t.sid, Pos: at})
		t.mu.Lock()
		t.open = true
		over := t.over
		t.mu.Unlock()
		if over { // the hub ended before the link knew of it
			t.fail(&Error{Code: CodeUnavailable})
		}
		if o != nil {
			t.readOwn(o)
		}
		c.out.wake(t)
		return nil
	}
}

// begin finds where a subscription begins, and whether it has to read on its
// own until it is where the hub's entries begin.
func (t *tail) begin(ctx context.Context, start transport.Start) (*own, error) {
	if start.From == transport.AfterPosition {
		ok, err := t.hub.covers(ctx, start.Position)
		if t.at = start.Position; ok || err != nil {
			return nil, err
		}
	}
	sub, at, err := t.c.h.subscribe(ctx, t.hub.topic, start)
	if err != nil {
		return nil, err
	}
	place := at.Position()
	whole := start.From != transport.AfterPosition || place == start.Position
	if t.at = place; !whole { // there is a loss to tell, which counts from where the client is
		t.at = start.Position
	}
	if whole && t.hub.has(place) {
		sub.Close()
		return nil, nil
	}
	return t.c.h.newOwn(reading{sub: sub, at: at, prev: t.at, upto: t.at, whole: whole}), nil
}

func (t *tail) queue() *bool { return &t.queued }

// fill implements source.
func (t *tail) fill(batch []byte) ([]byte, bool) {
	var some [64]*entry
	began := false
	for {
		n := t.take(some[:])
		if n == 0 {
			return batch, false
		}
		if !began {
			began = true
			batch = append(batch, t.run...)
		}
		for _, e := range some[:n] {
			batch = append(batch, e.form(t.c.codec)...)
			if e.gap {
				t.c.h.count.lost.Add(e.lost)
			}
		}
		t.c.h.count.delivered.Add(uint64(n))
		if len(batch) >= batchBytes {
			return batch, true
		}
	}
}

// take moves on over what may be sent now. When that was dropped from the hub,
// the subscription is behind, and begins to read on its own.
func (t *tail) take(dst []*entry) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || !t.open || t.c.leaving() {
		return 0
	}
	size := 0
	if o := t.own; o != nil {
		k := 0
		for k < len(o.entries) && n < len(dst) && size < batchBytes {
			e := o.entries[k]
			if !t.spend(e) {
				break
			}
			dst[n] = e
			n, k = n+1, k+1
			size += e.size
			o.bytes -= e.size
		}
		clear(o.entries[:k])
		o.entries = o.entries[k:]
		if k > 0 {
			select {
			case o.more <- struct{}{}:
			default:
			}
		}
		if len(o.entries) > 0 || !o.caught {
			return n
		}
		t.own = nil
		t.next = 0
	}
	b := t.hub
	b.mu.Lock()
	defer b.mu.Unlock()
	behind := false
	if t.next == 0 {
		t.anew = 0
		if behind = t.at.Compare(b.floor) < 0; !behind {
			t.next = b.after(t.at)
		}
	} else {
		t.next = max(t.next, t.anew)
		behind = t.next < b.first
	}
	if behind {
		if n > 0 {
			return n
		}
		t.own = t.c.h.newOwn(reading{prev: t.at, upto: t.at})
		t.readOwn(t.own)
		return 0
	}
	for ; n < len(dst) && size < batchBytes && t.next < b.first+uint64(len(b.entries)); t.next++ {
		e := b.entries[t.next-b.first]
		if t.had(e) {
			continue
		}
		if !t.spend(e) {
			break
		}
		dst[n] = e
		n++
		size += e.size
	}
	return n
}

// had reports whether an entry is none for the subscription, as it is farther.
func (t *tail) had(e *entry) bool {
	switch e.msg.Position.Compare(t.at) {
	case -1:
		return !e.reset
	case 0:
		return !e.reset && !e.here
	}
	return false
}

// spend takes credit for an entry, if there is enough, and moves on over it.
// The caller holds mu.
func (t *tail) spend(e *entry) bool {
	if !e.gap {
		if t.credit <= 0 || t.bytes <= 0 {
			return false
		}
		t.credit--
		t.bytes -= e.size
		if !t.manual {
			t.sent = append(t.sent, sent{e.msg.Position, e.size})
		}
	}
	t.at = e.msg.Position
	return true
}

// flow gives credit.
func (t *tail) flow(f *frame) {
	t.mu.Lock()
	n := int(min(f.Credit, creditMost))
	t.credit = min(t.credit+n, creditMost)
	t.bytes = min(t.bytes+int(min(f.Bytes, bytesMost)), bytesMost)
	t.mu.Unlock()
	t.c.out.wake(t)
}

// ack gives the credit back of everything up to a position.
func (t *tail) ack(p transport.Position) {
	t.mu.Lock()
	k := 0
	for ; k < len(t.sent) && t.sent[k].pos.Compare(p) <= 0; k++ {
		t.credit++
		t.bytes += t.sent[k].size
	}
	if t.sent = t.sent[k:]; len(t.sent) == 0 {
		t.sent = nil
	}
	t.mu.Unlock()
	if k > 0 {
		t.c.out.wake(t)
	}
}

// readOwn reads until the hub has what follows.
func (t *tail) readOwn(o *own) {
	if !t.c.spawn(func() {
		defer o.close()
		for {
			done, err := t.readTurn(o)
			if err != nil && o.ctx.Err() == nil {
				t.fail(err)
			}
			if done || err != nil {
				return
			}
		}
	}) {
		o.close()
	}
}

// readTurn reads until the hub has what follows, or the client does not take
// what was read, or others wait for their turn: each that reads costs the
// transport a reader, so there are not more than so many of a handler.
func (t *tail) readTurn(o *own) (done bool, err error) {
	if !t.room(o, never) {
		return true, nil
	}
	end, ok := t.c.h.turns.begin(o.ctx)
	if !ok {
		return true, nil
	}
	defer end()
	defer o.rest()
	if o.sub == nil {
		ctx, cancel := context.WithTimeout(o.ctx, t.c.h.cfg.sendFor)
		defer cancel()
		o.sub, o.at, err = t.c.h.subscribe(ctx, t.hub.topic, transport.Start{From: transport.AfterPosition, Position: o.upto})
		if err != nil {
			return false, err
		}
		o.whole = o.at.Position() == o.upto
	}
	dst := make([]transport.Message, 64)
	for until := time.Now().Add(turn); ; {
		if o.whole && t.hub.reached(o.prev, o.upto) {
			t.mu.Lock()
			o.caught = true
			t.mu.Unlock()
			t.c.out.wake(t)
			return true, nil
		}
		if o.began && time.Now().After(until) && t.c.h.turns.wanted() || !t.room(o, turn/4) {
			return false, nil
		}
		es, err := o.read(o.ctx, dst)
		if err != nil {
			return false, err
		}
		t.mu.Lock()
		o.entries = append(o.entries, es...)
		for _, e := range es {
			o.bytes += e.size
		}
		t.mu.Unlock()
		t.c.out.wake(t)
	}
}

// read reads what comes next. From time to time it returns nothing, as the hub
// may have caught up with where the subscription is: then nothing may come.
func (r *reading) read(ctx context.Context, dst []transport.Message) ([]*entry, error) {
	n, err := receiveSome(ctx, r.sub, dst)
	r.whole = true
	if lost, ok := errors.AsType[*transport.LostError](err); ok {
		e := lossEntry(lost)
		e.prev, r.prev, r.began = r.prev, e.msg.Position, true
		r.upto = r.prev
		return []*entry{e}, nil
	}
	if err != nil {
		return nil, err
	}
	if n == 0 { // what is no message may have been passed by
		r.upto = r.at.Position()
		return nil, nil
	}
	acknowledge(ctx, r.sub, dst[:n]) // or they come again, and are passed by
	es := newEntries(dst[:n])
	clear(dst[:n])
	for _, e := range es {
		e.prev, r.prev, r.began = r.prev, e.msg.Position, true
	}
	r.upto = r.prev
	return es, nil
}

// room waits, for so long, until the client took some of what was read if that
// is much. It reports whether there is room.
func (t *tail) room(o *own, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		t.mu.Lock()
		full := len(o.entries) >= 256 || o.bytes >= 256<<10
		t.mu.Unlock()
		if !full {
			return o.ctx.Err() == nil
		}
		select {
		case <-o.more:
		case <-timer.C:
			return false
		case <-o.ctx.Done():
			return false
		}
	}
}

// receiveSome receives, but returns nothing when nothing comes for lookEvery.
func receiveSome(ctx context.Context, sub transport.Subscription, dst []transport.Message) (int, error) {
	short, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	n, err := sub.Receive(short, dst)
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, ctx.Err()
	}
	return n, err
}

// turns lets so many at a time do something.
type turns struct {
	free    chan struct{}
	waiting atomic.Int64
}

// begin waits for a turn, and returns what ends it.
func (t *turns) begin(ctx context.Context) (end func(), ok bool) {
	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	select {
	case t.free <- struct{}{}:
		return func() { <-t.free }, true
	case <-ctx.Done():
		return nil, false
	}
}

// wanted reports whether somebody waits.
func (t *turns) wanted() bool { return t.waiting.Load() > 0 }

// fail ends the subscription because of the transport.
func (t *tail) fail(err error) {
	t.c.mu.Lock()
	there := t.c.tails[t.sid] == t
	if there {
		delete(t.c.tails, t.sid)
	}
	t.c.mu.Unlock()
	t.close()
	if there {
		t.c.out.send(frame{Type: frameSubEnd, Sid: t.sid, Code: subCode(err), Text: subText(err)})
		if t.c.stream {
			t.c.close(websocket.StatusNormalClosure, "")
		}
	}
}

// close ends the subscription.
func (t *tail) close() {
	t.mu.Lock()
	t.over = true
	if t.own != nil {
		t.own.cancel()
	}
	t.own, t.sent = nil, nil
	t.mu.Unlock()
	t.hub.leave(t)
}

// lookEvery is how often a subscription that reads on its own looks whether
// the hub has caught up.
const lookEvery = 100 * time.Millisecond

// turn is how long a subscription reads on its own when others wait to.
const turn = time.Second

const never = math.MaxInt64
