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

	ends  gathering // of newest
	fills gathering // of backfill

	mu      sync.Mutex // guards the rest
	entries []*entry
	first   uint64             // the number of entries[0]
	bytes   int                // of entries
	floor   transport.Position // what comes after it, up to head, is in entries
	head    transport.Position
	far     transport.Position // what comes after it is too much for entries, or not kept any more
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

// open returns the hub of a topic, and opens it if there is none: then it
// begins at start, and made is true.
func (h *Handler) hub(ctx context.Context, topic string, start transport.Start) (b *hub, made bool, err error) {
	for {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return nil, false, transport.ErrClosed
		}
		b = h.hubs[topic]
		if made = b == nil; made {
			b = &hub{h: h, topic: topic, opened: make(chan struct{}), first: 1 << 40, emptied: time.Now()}
			h.hubs[topic] = b
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
	sub, err := h.t.Subscribe(ctx, topic, transport.Options{Start: start})
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

// open subscribes and begins to read.
func (b *hub) open(ctx context.Context, start transport.Start) {
	b.sub, b.at, b.err = b.h.subscribe(ctx, b.topic, start)
	if b.err == nil {
		b.floor = b.at.Position()
		b.head = b.floor
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

func (h *Handler) forgetHub(b *hub) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hubs[b.topic] == b {
		delete(h.hubs, b.topic)
	}
}

// read reads until the hub is closed or the transport fails for good.
func (b *hub) read() {
	defer b.sub.Close()
	acker, _ := transport.As[transport.Acker](b.sub)
	dst := make([]transport.Message, 256)
	rs := make([]transport.Receipt, 0, len(dst))
	for {
		n, err := b.sub.Receive(b.h.ctx, dst)
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			b.add([]*entry{b.loss(lost)})
			continue
		}
		if err != nil {
			b.end(err)
			return
		}
		if acker != nil {
			rs = rs[:0]
			for i := range dst[:n] {
				rs = append(rs, dst[i].Receipt())
			}
			if err := acker.Ack(b.h.ctx, rs); err != nil && !errors.Is(err, transport.ErrLeaseLost) {
				b.end(err)
				return
			}
		}
		es := make([]*entry, 0, n)
		block := make([]entry, n)
		for i := range dst[:n] {
			if dst[i].Attempt > 1 {
				continue // it was too late to be acknowledged, and is there already
			}
			e := &block[i]
			e.msg, e.size = dst[i], dst[i].Size()
			es = append(es, e)
		}
		clear(dst[:n])
		b.add(es)
	}
}

// loss is the entry for a loss that the transport told.
func (b *hub) loss(lost *transport.LostError) *entry {
	at := b.at.Position()
	return &entry{gap: true, lost: lost.Count, msg: transport.Message{Position: at}}
}

// add appends entries, and wakes who waits for them.
func (b *hub) add(es []*entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range es {
		e.prev = b.head
		if e.gap && e.msg.Position.Compare(b.head) < 0 { // a log that began anew
			e.reset = true
			b.forget(len(b.entries))
			b.floor, b.far = e.msg.Position, transport.Position{}
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
	for _, t := range b.tails {
		t.c.out.wake(t)
	}
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
	return b.first + uint64(i)
}

// covers reports whether the hub has everything after p, or will have.
func (b *hub) covers(ctx context.Context, p transport.Position) (bool, error) {
	b.mu.Lock()
	floor, head := b.floor, b.head
	b.mu.Unlock()
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
		return at.Position(), nil
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
	room, bytes := b.h.cfg.ringMessages-len(b.entries), b.h.cfg.ringBytes-b.bytes
	b.mu.Unlock()
	var es []*entry
	prev := p
	dst := make([]transport.Message, 256)
	for {
		b.mu.Lock()
		if prev.Compare(b.floor) >= 0 {
			defer b.mu.Unlock()
			k := len(es)
			for k > 0 && es[k-1].msg.Position.Compare(b.floor) > 0 {
				k--
				bytes += es[k].size
			}
			b.entries = append(es[:k:k], b.entries...)
			b.first -= uint64(k)
			b.bytes += b.h.cfg.ringBytes - b.bytes - bytes
			b.floor = p
			return p, nil
		}
		b.mu.Unlock()
		n, err := receiveSome(ctx, sub, dst)
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			return p, b.tooFar(lost.Next)
		}
		if err != nil {
			return p, err
		}
		if n == 0 { // what is no message may come before the floor
			prev = at.Position()
		}
		for i := range dst[:n] {
			e := &entry{msg: dst[i], size: dst[i].Size(), prev: prev}
			es = append(es, e)
			prev = e.msg.Position
			bytes -= e.size
			room--
		}
		if room < 0 || bytes < 0 {
			return p, b.tooFar(p)
		}
	}
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

// idle reports whether nobody has been there for linger.
func (b *hub) idle(now time.Time, linger time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
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
	b.tails = append(b.tails, t)
	return true
}

func (b *hub) leave(t *tail) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.tails, t); i >= 0 {
		b.tails = slices.Delete(b.tails, i, i+1)
		b.emptied = time.Now()
	}
}
