package wsstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// hub reads one topic for all links of the handler, and keeps the end of it. A
// subscriber is a place in there: one that is slow costs a number, one that
// reconnects finds what it missed.
type hub struct {
	h     *Handler
	topic string

	opened chan struct{} // closed when the following are known
	err    error
	sub    transport.Subscription
	at     transport.Positioner
	start  transport.Position // where it began

	ends  gathering // of newest
	fills gathering // of backfill

	mu      sync.Mutex // guards the rest
	entries []*entry
	first   uint64             // the number of entries[0]
	bytes   int                // of entries
	floor   transport.Position // what comes after it, up to head, is in entries
	head    transport.Position
	far     transport.Position // what comes after it is too much for entries, or not kept any more
	known   transport.Position // the topic is known to go up to here, though entries may not yet
	tails   []*tail
	emptied time.Time // when the last tail left
	over    bool
}

// entry is a message, or a loss, at its place in a topic.
type entry struct {
	msg   transport.Message
	prev  transport.Position // of the entry before
	size  int
	gap   bool   // messages were lost before msg.Position, which is no message's
	lost  uint64 // how many, 0 if nobody knows
	reset bool   // positions start anew after it
	here  bool   // a loss right after its position: who is there has yet to be told
	forms [3]atomic.Pointer[[]byte]
}

// form returns an entry as a frame, which is made once for all subscribers.
func (e *entry) form(c codec) []byte {
	i := c.number()
	if b := e.forms[i].Load(); b != nil {
		return *b
	}
	f := frame{Type: frameGap, Count: e.lost, Pos: e.msg.Position}
	if !e.gap {
		f = frameOf(frameMsg, &e.msg)
		f.Attempt, f.Prev = 0, e.prev
	}
	b := c.append(nil, &f)
	e.forms[i].Store(&b)
	return b
}

// hub returns the hub of a topic, and opens it if there is none: then it
// begins at start, and made is true.
func (h *Handler) hub(ctx context.Context, topic string, start transport.Start) (b *hub, made bool, err error) {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return nil, false, transport.ErrClosed
		}
		b = h.hubs[topic]
		made = b == nil
		inbox := transport.IsInbox(topic) // which do not keep others from other topics
		if made && (!inbox && len(h.hubs)-h.inboxes >= h.cfg.maxTopics || inbox && h.inboxes >= h.cfg.maxTopics) {
			h.mu.Unlock()
			return nil, false, &Error{Code: CodeOverloaded}
		}
		if made {
			b = &hub{h: h, topic: topic, opened: make(chan struct{}), first: firstEntry, emptied: time.Now()}
			h.hubs[topic] = b
			if inbox {
				h.inboxes++
			}
		}
		h.mu.Unlock()
		if made {
			b.open(ctx, start)
			return b, true, b.err
		}
		select {
		case <-b.opened:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		if b.err == nil {
			return b, false, nil
		}
	}
}

// subscribe opens a broadcast subscription, whose place is known.
func (h *Handler) subscribe(ctx context.Context, topic string, start transport.Start) (transport.Subscription, transport.Positioner, error) {
	sub, err := h.t.Subscribe(ctx, topic, transport.Options{Start: start, MaxPendingBytes: h.cfg.ringBytes})
	if err != nil {
		return nil, nil, err
	}
	at, ok := transport.As[transport.Positioner](sub)
	if !ok {
		sub.Close()
		return nil, nil, fmt.Errorf("broadcast: %w by a transport whose subscriptions are no transport.Positioner", errors.ErrUnsupported)
	}
	return sub, at, nil
}

// firstEntry is the number of the first entry that a hub reads; what it reads
// back has lower ones.
const firstEntry = 1 << 40

// open subscribes and begins to read.
func (b *hub) open(ctx context.Context, start transport.Start) {
	b.sub, b.at, b.err = b.h.subscribe(ctx, b.topic, start)
	if b.err == nil {
		b.start = b.at.Position()
		b.floor, b.head = b.start, b.start
	}
	if b.err == nil && !b.h.spawn(b.read) {
		b.sub.Close()
		b.err = transport.ErrClosed
	}
	if b.err != nil {
		b.h.forgetHub(b)
	}
	close(b.opened)
}

// removeHub takes a hub out. The caller holds mu.
func (h *Handler) removeHub(topic string) {
	delete(h.hubs, topic)
	if transport.IsInbox(topic) {
		h.inboxes--
	}
}

func (h *Handler) forgetHub(b *hub) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hubs[b.topic] == b {
		h.removeHub(b.topic)
	}
}

// read reads until the hub is closed or the transport fails for good.
func (b *hub) read() {
	defer b.sub.Close()
	dst := make([]transport.Message, 256)
	for {
		n, err := b.sub.Receive(b.h.ctx, dst)
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			b.add([]*entry{lossEntry(lost)})
			continue
		}
		if err == nil {
			err = acknowledge(b.h.ctx, b.sub, dst[:n])
		}
		if err != nil {
			b.end(err)
			return
		}
		b.add(newEntries(dst[:n]))
		clear(dst[:n])
	}
}

// acknowledge settles what was received. Those that were held for too long come
// again, as later attempts.
func acknowledge(ctx context.Context, sub transport.Subscription, msgs []transport.Message) error {
	a, ok := transport.As[transport.Acker](sub)
	if !ok || len(msgs) == 0 {
		return nil
	}
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	if err := a.Ack(ctx, rs); !errors.Is(err, transport.ErrLeaseLost) {
		return err
	}
	return nil
}

// newEntries makes entries of messages.
func newEntries(msgs []transport.Message) []*entry {
	const small = 1 << 10 // those are made together; each keeps the others in memory
	es := make([]*entry, 0, len(msgs))
	var block []entry
	for i := range msgs {
		m := &msgs[i]
		if m.Attempt > 1 {
			continue // it was too late to be acknowledged, and is there already
		}
		size := m.Size()
		if size > small {
			es = append(es, &entry{msg: *m, size: size})
			continue
		}
		if len(block) == 0 {
			block = make([]entry, min(len(msgs)-i, 64))
		}
		block[0].msg, block[0].size = *m, size
		es, block = append(es, &block[0]), block[1:]
	}
	return es
}

// lossEntry is the entry for a loss that the transport told.
func lossEntry(lost *transport.LostError) *entry {
	return &entry{gap: true, lost: lost.Count, msg: transport.Message{Position: lost.Next}}
}

// add appends entries, and wakes who waits for them.
func (b *hub) add(es []*entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range es {
		e.prev = b.head
		e.here = e.gap && e.msg.Position == b.head
		if e.gap && e.msg.Position.Compare(b.head) < 0 { // a log that began anew
			e.reset = true
			b.forget(len(b.entries))
			b.floor, b.far, b.known = e.msg.Position, transport.Position{}, transport.Position{}
			for _, t := range b.tails {
				t.anew = b.first
			}
		}
		b.head = e.msg.Position
		b.entries = append(b.entries, e)
		b.bytes += e.size
	}
	cfg := &b.h.cfg
	k := 0
	for size := b.bytes; k < len(b.entries)-1 && (len(b.entries)-k > cfg.ringMessages || size > cfg.ringBytes); k++ {
		size -= b.entries[k].size
	}
	b.forget(k)
	var idle []*outlet
	for i, t := range b.tails {
		if o := t.c.out; o.note(t) {
			if idle == nil {
				idle = make([]*outlet, 0, len(b.tails)-i)
			}
			idle = append(idle, o)
		}
	}
	flushAll(idle)
}

// forget drops the first k entries. The caller holds mu.
func (b *hub) forget(k int) {
	for _, e := range b.entries[:k] {
		b.bytes -= e.size
		b.floor = e.msg.Position
	}
	clear(b.entries[:k])
	b.entries = b.entries[k:]
	b.first += uint64(k)
}

// after returns the number of the first entry after a position. The caller
// holds mu, and knows that the position is not before the floor.
func (b *hub) after(p transport.Position) uint64 {
	i, _ := slices.BinarySearchFunc(b.entries, p, func(e *entry, p transport.Position) int {
		if e.msg.Position.Compare(p) <= 0 {
			return -1
		}
		return 1
	})
	for i > 0 && b.entries[i-1].msg.Position == p && b.entries[i-1].here {
		i--
	}
	return b.first + uint64(i)
}

// covers reports whether the hub has everything after p, or will have.
func (b *hub) covers(ctx context.Context, p transport.Position) (bool, error) {
	b.mu.Lock()
	floor, head, known := b.floor, b.head, b.known
	b.mu.Unlock()
	if p.Compare(head) > 0 && p.Compare(known) <= 0 {
		return true, nil
	}
	if p.Compare(head) > 0 { // another node was faster, or the log began anew
		end, err := b.newest(ctx)
		return err == nil && p.Compare(end) <= 0, err
	}
	if p.Compare(floor) >= 0 {
		return true, nil
	}
	for range 3 {
		b.mu.Lock()
		far := p.Compare(b.far) <= 0
		b.mu.Unlock()
		if far {
			break
		}
		_, err := b.fills.join(ctx, b.h, p, b.backfill)
		if err == nil || !errors.Is(err, errTooFar) {
			break
		}
	}
	return b.has(p), ctx.Err()
}

// has reports whether the hub has everything after p now.
func (b *hub) has(p transport.Position) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return p.Compare(b.floor) >= 0 && p.Compare(b.head) <= 0
}

// newest asks the transport for the end of the topic, once for all who ask at
// about the same time.
func (b *hub) newest(ctx context.Context) (transport.Position, error) {
	return b.ends.join(ctx, b.h, transport.Position{}, func(ctx context.Context, _ transport.Position) (transport.Position, error) {
		sub, at, err := b.h.subscribe(ctx, b.topic, transport.Start{From: transport.Newest})
		if err != nil {
			return transport.Position{}, err
		}
		defer sub.Close()
		end := at.Position()
		b.mu.Lock()
		defer b.mu.Unlock()
		if end.Compare(b.known) > 0 {
			b.known = end
		}
		return end, nil
	})
}

// backfill reads what is between p and the floor, if there is room for that,
// so that clients which come after another node went need not read it one by one.
func (b *hub) backfill(ctx context.Context, p transport.Position) (transport.Position, error) {
	select {
	case <-time.After(gatherFor): // and who else comes meanwhile may want less
	case <-ctx.Done():
		return p, ctx.Err()
	}
	if b.has(p) {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.h.cfg.sendFor/2)
	defer cancel()
	sub, at, err := b.h.subscribe(ctx, b.topic, transport.Start{From: transport.AfterPosition, Position: p})
	if err != nil {
		return p, err
	}
	defer sub.Close()
	if at.Position() != p { // a loss, which is told to each as far as it concerns it
		return p, b.tooFar(p)
	}
	b.mu.Lock()
	room := load{b.h.cfg.ringMessages - len(b.entries), b.h.cfg.ringBytes - b.bytes}
	b.mu.Unlock()
	r := reading{sub: sub, at: at, prev: p, upto: p}
	dst := make([]transport.Message, 256)
	var es []*entry
	for {
		if b.prepend(p, r.upto, es) {
			return p, nil
		}
		more, err := r.read(ctx, dst)
		if err != nil {
			return p, err
		}
		for _, e := range more {
			if e.gap {
				return p, b.tooFar(e.msg.Position)
			}
			room.add(-1, -e.size)
		}
		if es = append(es, more...); room.messages < 0 || room.bytes < 0 {
			return p, b.tooFar(p)
		}
	}
}

// prepend puts what was read from p up to upto before the entries, if it
// reaches them.
func (b *hub) prepend(p, upto transport.Position, es []*entry) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if upto.Compare(b.floor) < 0 {
		return false
	}
	k := len(es)
	for k > 0 && es[k-1].msg.Position.Compare(b.floor) > 0 {
		k--
	}
	for _, e := range es[:k] {
		b.bytes += e.size
	}
	// What comes next follows what was read: between the two is no message.
	last := p
	if k > 0 {
		last = es[k-1].msg.Position
	}
	if len(b.entries) == 0 {
		b.head = last
	} else if e := b.entries[0]; e.prev.Compare(last) > 0 {
		b.entries[0] = &entry{msg: e.msg, prev: last, size: e.size, gap: e.gap, lost: e.lost, reset: e.reset, here: e.here}
	}
	b.entries = append(es[:k:k], b.entries...)
	b.first -= uint64(k)
	b.floor = p
	return true
}

// reached reports whether the hub has everything after upto, for somebody who
// has everything up to it, of which prev is the last message.
func (b *hub) reached(prev, upto transport.Position) bool {
	if prev == upto || b.has(prev) {
		return b.has(prev)
	}
	return b.has(upto) && b.prepend(prev, upto, nil)
}

var errTooFar = errors.New("too far back")

// tooFar notes that what comes after p is not to be had for all together.
func (b *hub) tooFar(p transport.Position) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.Compare(b.far) > 0 {
		b.far = p
	}
	return errTooFar
}

// gatherFor is how long a hub waits for others before it reads what was before it.
const gatherFor = 20 * time.Millisecond

// askEvery is the least time from an answer to the next question.
const askEvery = 5 * time.Millisecond

// gathering answers a question once for all who ask it at about the same time.
type gathering struct {
	mu   sync.Mutex // guards the rest
	next *question  // for which nobody was asked yet
	busy bool
}

type question struct {
	low  transport.Position // the lowest that somebody came with
	done chan struct{}      // closed when the following are known
	at   transport.Position
	err  error
}

// join asks, or joins those who wait for it to be asked. No answer is from
// before the call.
func (g *gathering) join(ctx context.Context, h *Handler, p transport.Position, ask func(context.Context, transport.Position) (transport.Position, error)) (transport.Position, error) {
	g.mu.Lock()
	q := g.next
	if q == nil {
		q = &question{low: p, done: make(chan struct{})}
		g.next = q
	} else if p.Compare(q.low) < 0 {
		q.low = p
	}
	if !g.busy {
		g.busy = h.spawn(func() { g.run(h, ask) })
	}
	if !g.busy {
		g.next = nil
		g.mu.Unlock()
		return p, transport.ErrClosed
	}
	g.mu.Unlock()
	select {
	case <-q.done:
		return q.at, q.err
	case <-ctx.Done():
		return p, ctx.Err()
	}
}

func (g *gathering) run(h *Handler, ask func(context.Context, transport.Position) (transport.Position, error)) {
	for {
		g.mu.Lock()
		q := g.next
		if g.next = nil; q == nil {
			g.busy = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.sendFor)
		q.at, q.err = ask(ctx, q.low)
		cancel()
		close(q.done)
		select {
		case <-time.After(askEvery): // while those who come gather
		case <-h.ctx.Done():
		}
	}
}

// end tells every subscriber that the transport failed for good.
func (b *hub) end(err error) {
	b.h.forgetHub(b)
	b.mu.Lock()
	b.over = true
	tails := b.tails
	b.tails = nil
	b.mu.Unlock()
	switch {
	case b.h.closing():
		return // and their links tell them so, and to go on elsewhere
	case errors.Is(err, transport.ErrClosed):
		err = &Error{Code: CodeShuttingDown}
	default:
		b.h.cfg.logger.Error("wsstream: reading a topic failed", "topic", b.topic, "error", err)
	}
	for _, t := range tails {
		t.fail(err)
	}
}

// idle reports whether nobody has been there for some time, and ends the hub then.
func (b *hub) idle(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	linger := b.h.cfg.linger
	if len(b.entries) == 0 { // and nobody would find anything
		linger = min(linger, time.Second)
	}
	select {
	case <-b.opened:
	default:
		return false
	}
	if len(b.tails) > 0 || b.over || now.Sub(b.emptied) < linger {
		return false
	}
	b.over = true
	return true
}

func (b *hub) close() {
	<-b.opened
	if b.sub != nil {
		b.sub.Close()
	}
}

// join adds a subscriber. It reports false if the hub ended meanwhile.
func (b *hub) join(t *tail) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return false
	}
	t.index = len(b.tails)
	b.tails = append(b.tails, t)
	return true
}

func (b *hub) leave(t *tail) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.tails) - 1
	if i := t.index; i <= last && b.tails[i] == t {
		b.tails[i] = b.tails[last]
		b.tails[i].index = i
		b.tails[last] = nil
		b.tails = b.tails[:last]
		b.emptied = time.Now()
	}
}
