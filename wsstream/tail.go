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
	queued bool // in the link's queue; that has a lock for it

	run []byte // the frame that comes before its messages

	// Of fill.
	next uint64             // the number of the entry to look at next
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
	sub   transport.Subscription // nil while it makes room for others
	at    transport.Positioner
	prev  transport.Position // the last that was read
	whole bool               // sub has no loss to tell first
	began bool               // prev is a place to go on from with another
}

func (h *Handler) newOwn(sub transport.Subscription, at transport.Positioner, prev transport.Position, whole bool) *own {
	o := &own{more: make(chan struct{}, 1), sub: sub, at: at, prev: prev, whole: whole}
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

// rest closes the subscription until it is o's turn again.
func (o *own) rest() {
	if o.sub != nil {
		o.sub.Close()
		o.sub = nil
	}
}

const (
	creditMost = 1 << 20
	bytesMost  = 1 << 30
)

// openTail opens a broadcast subscription.
func (c *conn) openTail(ctx context.Context, f *frame) error {
	start := transport.Start{From: transport.From(f.From), ID: f.ID, Time: f.Time, Position: f.Pos}
	if start.From == transport.Default {
		start.From = transport.Newest
	}
	t := &tail{c: c, sid: f.Sid, manual: f.Manual, credit: int(min(f.Credit, creditMost)), bytes: int(min(f.Bytes, bytesMost))}
	t.run = c.codec.append(nil, &frame{Type: frameRun, Sid: t.sid})
	if c.stream { // which takes more as it is written
		t.manual, t.credit, t.bytes = true, math.MaxInt, math.MaxInt
	}
	for {
		b, made, err := c.h.hub(ctx, f.Topic, start)
		if err != nil {
			return err
		}
		t.hub = b
		var o *own
		switch {
		case made:
			t.at = b.floor // as the hub began where this one wants to
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
		if t.own = o; o == nil {
			b.mu.Lock()
			t.next = b.after(t.at)
			b.mu.Unlock()
		}
		at := t.at
		if !c.started(f.Sid, func() {
			if c.tails == nil {
				c.tails = make(map[uint64]*tail)
			}
			c.tails[t.sid] = t
		}) {
			b.leave(t)
			o.close()
			return nil
		}
		c.out.send(frame{Type: frameSubOK, Sid: t.sid, Pos: at})
		t.mu.Lock()
		t.open = true
		t.mu.Unlock()
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
	t.at = at.Position()
	whole := start.From != transport.AfterPosition || t.at == start.Position
	if whole && t.hub.has(t.at) {
		sub.Close()
		return nil, nil
	}
	return t.c.h.newOwn(sub, at, t.at, whole), nil
}

func (t *tail) queue() *bool { return &t.queued }

// fill implements source.
func (t *tail) fill(batch []byte) ([]byte, bool) {
	var some [64]*entry
	began := false
	for {
		n, behind := t.take(some[:])
		if behind {
			return batch, false
		}
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
func (t *tail) take(dst []*entry) (n int, behind bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || !t.open {
		return 0, false
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
			return n, false
		}
		t.own = nil
		t.hub.mu.Lock()
		t.next = t.hub.after(t.at)
		t.hub.mu.Unlock()
	}
	b := t.hub
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.next < b.first {
		// What was dropped it may have had, or not wanted.
		if t.at.Compare(b.floor) < 0 {
			if n == 0 {
				t.own = t.c.h.newOwn(nil, nil, t.at, false)
				t.readOwn(t.own)
			}
			return n, n == 0
		}
		t.next = b.after(t.at)
	}
	for ; n < len(dst) && size < batchBytes && t.next < b.first+uint64(len(b.entries)); t.next++ {
		e := b.entries[t.next-b.first]
		if !e.reset && e.msg.Position.Compare(t.at) <= 0 {
			continue
		}
		if !t.spend(e) {
			break
		}
		dst[n] = e
		n++
		size += e.size
	}
	return n, false
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
		o.sub, o.at, err = t.c.h.subscribe(ctx, t.hub.topic, transport.Start{From: transport.AfterPosition, Position: o.prev})
		if err != nil {
			return false, err
		}
		o.whole = o.at.Position() == o.prev
	}
	dst := make([]transport.Message, 64)
	for until := time.Now().Add(turn); ; {
		if o.whole && t.hub.has(o.prev) {
			t.mu.Lock()
			o.caught = true
			t.mu.Unlock()
			t.c.out.wake(t)
			return true, nil
		}
		if o.began && time.Now().After(until) && t.c.h.turns.wanted() || !t.room(o, turn/4) {
			return false, nil
		}
		es, err := o.read(dst)
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
// may have caught up with where this subscription is: then nothing may come.
func (o *own) read(dst []transport.Message) ([]*entry, error) {
	n, err := receiveSome(o.ctx, o.sub, dst)
	o.whole = true
	if lost, ok := errors.AsType[*transport.LostError](err); ok {
		o.prev, o.began = o.at.Position(), true
		return []*entry{{gap: true, lost: lost.Count, msg: transport.Message{Position: o.prev}}}, nil
	}
	if err != nil {
		return nil, err
	}
	if n == 0 { // what is no message may have been passed by
		o.prev = o.at.Position()
		return nil, nil
	}
	o.began = true
	es := make([]*entry, 0, n)
	var rs []transport.Receipt
	for i := range dst[:n] {
		if dst[i].Attempt > 1 {
			continue // it was too late to be acknowledged
		}
		es = append(es, &entry{msg: dst[i], size: dst[i].Size(), prev: o.prev})
		o.prev = dst[i].Position
		rs = append(rs, dst[i].Receipt())
	}
	clear(dst[:n])
	if a, ok := transport.As[transport.Acker](o.sub); ok {
		a.Ack(o.ctx, rs) // or they come again, and are passed by
	}
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
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	n, err := sub.Receive(ctx, dst)
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, nil
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
