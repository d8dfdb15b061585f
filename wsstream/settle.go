package wsstream

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// settlement is what a client wants done with deliveries.
type settlement struct {
	kind  kind
	rid   uint64
	c     *conn      // who is answered, if rid is not 0
	ns    []uint64   // the deliveries, as the client says
	ds    []delivery // or as the server does, and no client holds them
	again bool       // the client may have said so before
	seen  uint64     // what came after this delivery goes back, too; 0: nothing else does
	delay time.Duration
	topic string            // where msg goes in place of the one delivery
	msg   transport.Message // which is not moved otherwise
}

type kind uint8

const (
	ack kind = iota
	nack
	release
	extend
	move
)

// returns reports whether deliveries come again at once.
func (op *settlement) returns() bool {
	return op.kind == release || op.kind == nack && op.delay == 0
}

// settle sees to what a client wants done with deliveries.
func (c *conn) settle(f *frame, k kind) bool {
	g := c.session.groupOf(c, f.Sid)
	if g == nil { // ended, or lost with its session: nothing of it is held
		if f.Rid != 0 {
			c.out.send(frame{Type: frameOK, Rid: f.Rid, Ns: f.Ns})
		}
		return true
	}
	op := settlement{kind: k, rid: f.Rid, c: c, ns: slices.Clone(f.Ns), again: f.Again}
	switch k {
	case nack:
		op.delay = duration(f.Delay)
	case extend:
		op.delay = min(duration(f.Lease), leaseMost)
	}
	if f.Seen > 0 {
		if !op.returns() || !g.isManual() {
			return c.refuse(f, CodeBadFrame, "seen is for what goes back at once, and with manual")
		}
		op.seen = f.Seen
	}
	if !g.do(op) {
		c.reject(CodeTooMany, "too many settlements at a time", closeFlood)
		return false
	}
	return true
}

func (g *groupSub) isManual() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.manual
}

// move puts a message into another topic in place of a delivery. Who may take a
// topic's messages may put them among its dead letters; elsewhere is a publish.
func (c *conn) move(f *frame) bool {
	p := c.publish(f)
	g := c.session.groupOf(c, f.Sid)
	gone := g == nil && (p.code == 0 || p.code == CodeForbidden) // whatever the topic
	dead := g != nil && f.Topic == transport.DeadTopic(g.topic) && f.Topic != c.h.cfg.kicks
	switch {
	case len(f.Ns) != 1:
		return c.refuse(f, CodeBadFrame, "ns is not one delivery")
	case transport.IsInbox(f.Topic):
		return c.refuse(f, CodeUnsupported, "no message is moved to a topic for replies")
	case gone:
		c.out.send(frame{Type: frameOK, Rid: f.Rid, Ns: f.Ns})
		return true
	case p.code == CodeForbidden && dead:
	case p.code != 0:
		return c.refuse(f, p.code, p.text)
	}
	size := p.msg.Size()
	if !c.pubs.lock(1, size) {
		return false
	}
	c.pubs.begin(size)
	c.mu.Unlock()
	op := settlement{kind: move, rid: f.Rid, c: c, ns: slices.Clone(f.Ns), again: f.Again, topic: f.Topic, msg: p.msg}
	if !g.admit(size) { // moves of former links are still under way
		c.pubs.free(1, size)
		c.out.send(frame{Type: frameErr, Rid: f.Rid, Code: CodeFull, Text: "too many messages to move"})
		c.pubs.answered(1)
		return true
	}
	if !g.do(op) {
		g.moved(&op)
		c.pubs.answered(1)
		c.reject(CodeTooMany, "too many settlements at a time", closeFlood)
		return false
	}
	return true
}

// admit reports whether a message to be moved may wait, too.
func (g *groupSub) admit(size int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.moves > 0 && g.moves+size > 2*publishBytes {
		return false
	}
	g.moves += size
	return true
}

// moved notes that a message to be moved waits no more.
func (g *groupSub) moved(op *settlement) {
	size := op.msg.Size()
	g.mu.Lock()
	g.moves -= size
	g.mu.Unlock()
	op.c.pubs.free(1, size)
}

// do queues a settlement, and sees to it that it is done. It reports false if
// too many are queued.
func (g *groupSub) do(op settlement) bool {
	g.mu.Lock()
	if g.queued+len(op.ns) > 4*g.s.h.cfg.maxHeld || len(g.ops) > 4*g.s.h.cfg.maxHeld {
		g.mu.Unlock()
		return false
	}
	g.doNext(op)
	g.mu.Unlock()
	return true
}

// doNext is do, however many are queued. The caller holds mu.
func (g *groupSub) doNext(op settlement) {
	g.queued += len(op.ns)
	g.ops = append(g.ops, op)
	if op.returns() {
		g.returns++
	}
	if !g.busy {
		if g.busy = g.s.h.spawn(g.settleAll); !g.busy { // the handler is closed, and so is what it holds
			g.rest()
		}
	}
}

// rest notes that nobody sees to what is queued. The caller holds mu.
func (g *groupSub) rest() {
	g.busy = false
	g.quiet.Broadcast()
}

// settleAll does what is queued, settlements of a kind in a row together.
func (g *groupSub) settleAll() {
	for {
		g.mu.Lock()
		ops := g.ops
		g.ops, g.queued = nil, 0
		if len(ops) == 0 {
			g.rest()
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		for len(ops) > 0 {
			if ops[0].kind == move && ops[0].c.leaving() { // it is sent again on the next link
				g.moved(&ops[0])
				ops[0].c.pubs.answered(1)
				ops = ops[1:]
				continue
			}
			k := 1
			for k < len(ops) && ops[k].kind == ops[0].kind && ops[k].kind != move && ops[k].delay == ops[0].delay {
				k++
			}
			g.settleSome(ops[:k])
			ops = ops[k:]
		}
	}
}

// settling is a settlement that is being done.
type settling struct {
	*settlement
	ds   []delivery
	gone []uint64 // named and not held
}

// settleSome does settlements of one kind.
func (g *groupSub) settleSome(ops []settlement) {
	k := ops[0].kind
	all := make([]settling, len(ops))
	var rs []transport.Receipt
	g.mu.Lock()
	for i := range ops {
		all[i] = g.find(&ops[i])
		for j := range all[i].ds {
			rs = append(rs, all[i].ds[j].receipt)
		}
	}
	g.mu.Unlock()
	var err error
	if len(rs) > 0 {
		ctx, cancel := context.WithTimeout(g.s.h.ctx, g.s.h.cfg.sendFor)
		if k == move {
			err = g.move(ctx, &ops[0], rs[0])
		} else {
			err = g.apply(ctx, k, rs, ops[0].delay)
		}
		cancel()
	}
	var lost map[transport.Receipt]bool
	if e, ok := errors.AsType[*transport.LeaseError](err); ok {
		err, lost = nil, make(map[transport.Receipt]bool, len(e.Lost))
		for _, r := range e.Lost {
			lost[r] = true
		}
	}
	g.mu.Lock()
	for i := range all {
		if err == nil {
			g.settled(&all[i], lost)
		} else if k != extend && all[i].settlement.ds == nil { // the client may try again
			for _, d := range all[i].ds {
				g.held[d.n] = d
			}
		}
	}
	g.mu.Unlock()
	for i := range all {
		if k == move {
			g.moved(all[i].settlement)
		}
		all[i].answer(err)
		if k == move {
			all[i].c.pubs.answered(1)
		}
	}
	if ops[0].returns() { // what follows comes after the answers
		g.mu.Lock()
		g.returns -= len(ops)
		g.mu.Unlock()
	}
	g.poke()
	g.wake()
}

// find looks up what a settlement names, and takes it out of what is held. The
// caller holds mu.
func (g *groupSub) find(op *settlement) settling {
	s := settling{settlement: op, ds: op.ds}
	for _, n := range op.ns {
		d, ok := g.held[n]
		switch {
		case ok:
			s.ds = append(s.ds, d)
			if op.kind != extend {
				delete(g.held, n)
			}
		case !op.again || !g.was(n):
			s.gone = append(s.gone, n)
		}
	}
	if op.seen > 0 && op.c == g.c { // else the client has told another link what it saw
		if back := g.unseen(op.seen); len(back) > 0 {
			g.doNext(settlement{kind: release, ds: back})
		}
	}
	return s
}

// settled notes what was done, and what could not be as others hold it now. The
// caller holds mu.
func (g *groupSub) settled(s *settling, lost map[transport.Receipt]bool) {
	due := time.Now().Add(cmp.Or(s.delay, g.lease()))
	// What a client asks for again it has counted as settled when it subscribed again.
	gives := !g.manual && !s.again && s.c == g.c
	if s.kind != extend {
		g.remember(len(s.ds))
	}
	for i := range s.ds {
		it := &s.ds[i]
		late := lost[it.receipt]
		if late {
			s.gone = append(s.gone, it.n)
		}
		held, ok := g.held[it.n]
		switch {
		case it.n == 0: // it was for no client
			continue
		case s.kind == extend && !ok: // named twice
			continue
		case s.kind == extend && !late:
			held.due = due
			g.held[it.n] = held
			continue
		case s.kind == extend:
			delete(g.held, it.n)
		case !late:
			g.past[it.n%uint64(len(g.past))] = it.n
		}
		if gives {
			g.give(1, it.size)
		}
	}
}

// remember makes room to remember n settled deliveries, besides some of before.
// The caller holds mu.
func (g *groupSub) remember(n int) {
	if 2*n <= len(g.past) {
		return
	}
	size := 256
	for size < 2*n {
		size *= 2
	}
	past := make([]uint64, size)
	for _, n := range g.past {
		past[n%uint64(size)] = n
	}
	g.past = past
}

// was reports whether a delivery was settled of late. The caller holds mu.
func (g *groupSub) was(n uint64) bool {
	return n != 0 && len(g.past) > 0 && g.past[n%uint64(len(g.past))] == n
}

// answer tells the client what was done.
func (s *settling) answer(err error) {
	switch {
	case s.c == nil || s.rid == 0:
	case errors.Is(err, errors.ErrUnsupported):
		s.c.out.send(frame{Type: frameErr, Rid: s.rid, Code: CodeUnsupported, Text: err.Error()})
	case err != nil && s.kind == move:
		s.c.out.send(frame{Type: frameErr, Rid: s.rid, Code: sendCode(err), Text: sendText(err)})
	case err != nil:
		s.c.out.send(frame{Type: frameErr, Rid: s.rid, Code: CodeUnavailable})
	default:
		s.c.out.send(frame{Type: frameOK, Rid: s.rid, Ns: s.gone})
	}
}

func (g *groupSub) move(ctx context.Context, op *settlement, r transport.Receipt) error {
	m, ok := transport.As[transport.Mover](g.sub)
	if !ok {
		return errors.ErrUnsupported
	}
	return m.Move(ctx, op.topic, op.msg, r)
}

func (g *groupSub) apply(ctx context.Context, k kind, rs []transport.Receipt, d time.Duration) error {
	switch k {
	case ack:
		a, _ := transport.As[transport.Acker](g.sub)
		return a.Ack(ctx, rs)
	case release:
		if r, ok := transport.As[transport.Releaser](g.sub); ok {
			return r.Release(ctx, rs)
		}
		d = 0
		fallthrough
	case nack:
		if n, ok := transport.As[transport.Nacker](g.sub); ok {
			return n.Nack(ctx, rs, d)
		}
	case extend:
		if e, ok := transport.As[transport.Extender](g.sub); ok {
			return e.Extend(ctx, rs, d)
		}
	}
	return errors.ErrUnsupported
}
