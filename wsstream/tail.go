package wsstream

import (
	"context"
	"errors"
	"math"
	"sync"
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

	cancel context.CancelFunc // of reading on its own, if it ever did

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
// entries begin.
type own struct {
	entries []*entry
	bytes   int
	more    chan struct{} // holds a token when entries were taken
	caught  bool          // the hub has what comes after entries
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
		var sub transport.Subscription // from which to read on its own
		switch {
		case made:
			t.at = b.floor // as the hub began where this one wants to
		case start.From == transport.AfterPosition && b.covers(start.Position):
			t.at = start.Position
		default:
			if sub, err = c.h.t.Subscribe(ctx, f.Topic, transport.Options{Start: start}); err != nil {
				return err
			}
			at, ok := transport.As[transport.Positioner](sub)
			if !ok {
				sub.Close()
				return errors.ErrUnsupported
			}
			t.at = at.Position()
			if start.From != transport.AfterPosition && b.covers(t.at) || start.From == transport.Newest {
				sub.Close()
				sub = nil
			}
		}
		if !b.join(t) {
			if sub != nil {
				sub.Close()
			}
			continue
		}
		if sub == nil {
			b.mu.Lock()
			t.next = b.after(t.at)
			b.mu.Unlock()
		} else {
			t.own = &own{more: make(chan struct{}, 1)}
		}
		at := t.at
		if !c.started(f.Sid, func() {
			if c.tails == nil {
				c.tails = make(map[uint64]*tail)
			}
			c.tails[t.sid] = t
		}) {
			b.leave(t)
			if sub != nil {
				sub.Close()
			}
			return nil
		}
		c.out.send(frame{Type: frameSubOK, Sid: t.sid, Pos: at})
		t.mu.Lock()
		t.open = true
		t.mu.Unlock()
		if sub != nil {
			t.readOwn(sub, start.From != transport.AfterPosition || at == start.Position)
		}
		c.out.wake(t)
		return nil
	}
}

// covers reports whether the hub has everything after p.
func (b *hub) covers(p transport.Position) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return p.Compare(b.floor) >= 0 && p.Compare(b.head) <= 0
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
				t.own = &own{more: make(chan struct{}, 1)}
				t.c.spawn(t.readAfter)
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

// readAfter opens a subscription after what was sent, and reads from it.
func (t *tail) readAfter() {
	t.mu.Lock()
	at := t.at
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.c.h.ctx, t.c.h.cfg.sendFor)
	defer cancel()
	sub, err := t.c.h.t.Subscribe(ctx, t.hub.topic, transport.Options{Start: transport.Start{From: transport.AfterPosition, Position: at}})
	if err != nil {
		t.fail(err)
		return
	}
	t.readOwn(sub, false)
}

// readOwn reads from sub until the hub has what follows. whole tells that sub
// begins where it was asked to, and has no loss to tell first.
func (t *tail) readOwn(sub transport.Subscription, whole bool) {
	ctx, cancel := context.WithCancel(t.c.h.ctx)
	t.mu.Lock()
	over := t.over
	t.cancel = cancel
	o := t.own
	t.mu.Unlock()
	if over || !t.c.spawn(func() {
		defer cancel()
		defer sub.Close()
		if err := t.catchUp(ctx, sub, o, whole); err != nil && ctx.Err() == nil {
			t.fail(err)
		}
	}) {
		cancel()
		sub.Close()
	}
}

func (t *tail) catchUp(ctx context.Context, sub transport.Subscription, o *own, whole bool) error {
	at, ok := transport.As[transport.Positioner](sub)
	if !ok {
		return errors.ErrUnsupported
	}
	acker, _ := transport.As[transport.Acker](sub)
	dst := make([]transport.Message, 64)
	prev := at.Position()
	for {
		t.mu.Lock()
		full := len(o.entries) >= 256 || o.bytes >= 256<<10
		t.mu.Unlock()
		if full {
			select {
			case <-o.more:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if whole && t.hub.covers(prev) {
			t.mu.Lock()
			o.caught = true
			t.mu.Unlock()
			t.c.out.wake(t)
			return nil
		}
		n, err := t.receive(ctx, sub, dst)
		whole = true
		var es []*entry
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			prev = at.Position()
			es = append(es, &entry{gap: true, lost: lost.Count, msg: transport.Message{Position: prev}})
		} else if err != nil {
			return err
		}
		for i := range dst[:n] {
			if dst[i].Attempt > 1 {
				continue
			}
			es = append(es, &entry{msg: dst[i], size: dst[i].Size(), prev: prev})
			prev = dst[i].Position
			if acker != nil {
				acker.Ack(ctx, []transport.Receipt{dst[i].Receipt()})
			}
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

// receive receives, but looks from time to time whether the hub has caught up
// with where this subscription is: then nothing may come.
func (t *tail) receive(ctx context.Context, sub transport.Subscription, dst []transport.Message) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	n, err := sub.Receive(ctx, dst)
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, nil
	}
	return n, err
}

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
	t.own, t.sent = nil, nil
	cancel := t.cancel
	t.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	t.hub.leave(t)
}

// lookEvery is how often a subscription that reads on its own looks whether
// the hub has caught up.
const lookEvery = 100 * time.Millisecond
