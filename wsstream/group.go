package wsstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// session is what outlives a link: the group subscriptions of a client, with
// what it holds, for as long as the handler holds them.
type session struct {
	h       *Handler
	id, key string
	subject string

	mu     sync.Mutex // guards the rest
	c      *conn      // nil while there is no link
	groups map[uint64]*groupSub
	until  time.Time // when it ends unless a link comes
	over   bool
}

// attach gives a session to a link, and takes it from its former one. It
// reports false if the session has ended.
func (s *session) attach(c *conn) bool {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return false
	}
	old := s.c
	s.c = c
	groups := make([]*groupSub, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	s.mu.Unlock()
	for _, g := range groups {
		g.pause()
	}
	if old != nil && old != c {
		old.close(closeReplaced, "resumed by another link")
	}
	return true
}

// detach takes a session from a link that ended, and reports whether it is of
// no more use.
func (s *session) detach(c *conn, bye bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != c {
		return false
	}
	s.c = nil
	s.until = time.Now().Add(s.h.cfg.hold)
	if bye || len(s.groups) == 0 {
		s.over = true
		return true
	}
	for _, g := range s.groups {
		g.pause()
	}
	return false
}

// expired ends a session that no link came for in time, and reports whether it did.
func (s *session) expired(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil && !s.until.IsZero() && now.After(s.until) {
		s.over = true
		return true
	}
	return false
}

// prune ends subscriptions that the link which took the session over did not
// take up.
func (s *session) prune(now time.Time) {
	for _, g := range s.all() {
		g.mu.Lock()
		forgotten := g.c == nil && now.Sub(g.paused) > s.h.cfg.hold
		g.mu.Unlock()
		s.mu.Lock()
		linked := s.c != nil
		s.mu.Unlock()
		if forgotten && linked {
			s.drop(g.sid)
		}
	}
}

// end gives back what the session holds.
func (s *session) end() {
	s.mu.Lock()
	s.over = true
	groups := s.groups
	s.groups = map[uint64]*groupSub{}
	s.mu.Unlock()
	for _, g := range groups {
		g.close()
	}
}

func (s *session) group(sid uint64) *groupSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[sid]
}

func (s *session) all() []*groupSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*groupSub, 0, len(s.groups))
	for _, g := range s.groups {
		all = append(all, g)
	}
	return all
}

// take takes a subscription out of the session.
func (s *session) take(sid uint64) *groupSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[sid]
	delete(s.groups, sid)
	return g
}

func (s *session) drop(sid uint64) {
	if g := s.take(sid); g != nil {
		s.h.spawn(g.close)
	}
}

// groupSub is a member of a group, for a client.
type groupSub struct {
	s      *session
	sid    uint64
	topic  string
	name   string
	sub    transport.Subscription
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{} // closed when nothing is received any more

	mu     sync.Mutex // guards the rest
	c      *conn      // where deliveries go, nil while there is none
	out    *groupOut  // the same
	manual bool
	once   bool // credit ends with what comes first
	credit int
	bytes  int
	n      uint64 // the last delivery
	waits  []delivery
	held   map[uint64]delivery // sent and not settled
	past   [256]uint64         // settled of late
	more   chan struct{}       // holds a token when credit came
	stop   context.CancelFunc  // of the receive under way
	paused time.Time           // since when there is no link
	ops    []settlement
	busy   bool
}

// groupOut is a group subscription in the queue of one link.
type groupOut struct {
	*groupSub
	c      *conn
	queued bool // the link's outlet has a lock for it
}

func (o *groupOut) queue() *bool { return &o.queued }

// to sends deliveries to a link, or nowhere. The caller holds mu.
func (g *groupSub) to(c *conn) {
	g.c, g.out = c, nil
	if c != nil {
		g.out = &groupOut{groupSub: g, c: c}
	}
}

// wake makes the link send what waits. The caller does not hold mu.
func (g *groupSub) wake() {
	g.mu.Lock()
	o := g.out
	g.mu.Unlock()
	if o != nil {
		o.c.out.wake(o)
	}
}

// delivery is a message that was received for the client, or a loss.
type delivery struct {
	n       uint64
	msg     transport.Message
	size    int
	receipt transport.Receipt
	lost    *transport.LostError
}

// settlement is what a client wants done with deliveries.
type settlement struct {
	kind  kind
	rid   uint64
	c     *conn
	ds    []delivery
	gone  []uint64 // asked for and not held
	delay time.Duration
}

type kind uint8

const (
	ack kind = iota
	nack
	release
	extend
)

// openGroup opens a group subscription.
func (c *conn) openGroup(ctx context.Context, f *frame) error {
	start := transport.Start{From: transport.From(f.From), ID: f.ID, Time: f.Time, Position: f.Pos}
	sub, err := c.h.t.Subscribe(ctx, f.Topic, transport.Options{
		Group: f.Group, Start: start, Lease: duration(f.Lease), MaxPending: int(min(f.Most, creditMost)), MaxPendingBytes: int(min(f.MostB, bytesMost)),
	})
	if err != nil {
		return err
	}
	if _, ok := transport.As[transport.Acker](sub); !ok {
		sub.Close()
		return errors.ErrUnsupported
	}
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	g := &groupSub{
		s: session, sid: f.Sid, topic: f.Topic, name: f.Group, sub: sub, manual: f.Manual,
		credit: int(min(f.Credit, creditMost)), bytes: int(min(f.Bytes, bytesMost)),
		held: make(map[uint64]delivery), more: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	g.to(c)
	g.ctx, g.cancel = context.WithCancel(c.h.ctx)
	wanted := c.started(f.Sid, func() {
		session.mu.Lock()
		defer session.mu.Unlock()
		if !session.over && session.c == c {
			session.groups[f.Sid] = g
		} else {
			g = nil
		}
	})
	if !wanted || g == nil {
		sub.Close()
		return nil
	}
	c.out.send(frame{Type: frameSubOK, Sid: f.Sid, Lease: milliseconds(g.lease())})
	if !c.h.spawn(g.receive) { // the handler is closing, and ends the session
		close(g.ended)
	}
	return nil
}

func (g *groupSub) lease() time.Duration {
	if e, ok := transport.As[transport.Extender](g.sub); ok {
		return e.Lease()
	}
	return 0
}

// resume gives a subscription to a link that took the session over, and
// reports whether it is what f asks for. What the client has not seen goes back.
func (g *groupSub) resume(c *conn, f *frame) bool {
	if g.topic != f.Topic || g.name != f.Group {
		return false
	}
	g.mu.Lock()
	if g.stop != nil { // a receive with credit of before
		g.stop()
	}
	g.to(c)
	g.manual, g.once = f.Manual, false
	g.credit, g.bytes = int(min(f.Credit, creditMost)), int(min(f.Bytes, bytesMost))
	var back []delivery
	for n, d := range g.held {
		if n > f.Seen {
			back = append(back, d)
			delete(g.held, n)
		}
	}
	for _, d := range g.waits {
		if d.lost == nil {
			back = append(back, d)
		}
	}
	g.waits = nil
	c.out.send(frame{Type: frameSubOK, Sid: g.sid, Lease: milliseconds(g.lease()), Resumed: true})
	g.mu.Unlock()
	if len(back) > 0 {
		g.do(settlement{kind: release, ds: back})
	}
	g.poke()
	return true
}

// pause stops deliveries until a link takes the subscription up.
func (g *groupSub) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to(nil)
	g.paused = time.Now()
	g.credit = 0
	if g.stop != nil {
		g.stop()
	}
}

func (g *groupSub) poke() {
	select {
	case g.more <- struct{}{}:
	default:
	}
}

// flow gives credit, or takes it: credit that ends with what comes first
// replaces what there was.
func (g *groupSub) flow(f *frame) {
	g.mu.Lock()
	n := int(min(f.Credit, creditMost))
	if g.once = f.Once; f.Once {
		g.credit, g.bytes = n, bytesMost
		if n == 0 && g.stop != nil {
			g.stop()
		}
	} else {
		g.credit = min(g.credit+n, creditMost)
		g.bytes = min(g.bytes+int(min(f.Bytes, bytesMost)), bytesMost)
	}
	g.mu.Unlock()
	g.poke()
	g.wake()
}

// receive receives for the client as its credit allows.
func (g *groupSub) receive() {
	defer close(g.ended)
	const most = 256
	dst := make([]transport.Message, most)
	for {
		g.mu.Lock()
		room := g.credit
		for i := range g.waits {
			if g.waits[i].lost == nil { // a loss needs no credit
				room--
			}
		}
		room = min(room, most)
		if len(g.held) >= g.s.h.cfg.maxHeld || g.c == nil {
			room = 0
		}
		ctx, stop := context.WithCancel(g.ctx)
		g.stop = stop
		g.mu.Unlock()
		if room <= 0 {
			stop()
			select {
			case <-g.more:
				continue
			case <-g.ctx.Done():
				return
			}
		}
		n, err := g.sub.Receive(ctx, dst[:room])
		stop()
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			g.deliver(delivery{lost: lost})
			continue
		}
		switch {
		case err == nil:
		case g.ctx.Err() != nil:
			return
		case errors.Is(err, context.Canceled):
			continue
		default:
			g.fail(err)
			return
		}
		ds := make([]delivery, n)
		for i := range dst[:n] {
			ds[i] = delivery{msg: dst[i], size: dst[i].Size(), receipt: dst[i].Receipt()}
		}
		clear(dst[:n])
		g.deliver(ds...)
	}
}

// deliver queues deliveries for the link. If it went meanwhile, they go back.
func (g *groupSub) deliver(ds ...delivery) {
	g.mu.Lock()
	if g.c == nil && ds[0].lost == nil {
		g.mu.Unlock()
		g.do(settlement{kind: release, ds: ds})
		return
	}
	if g.once && ds[0].lost == nil {
		g.once, g.credit = false, len(ds)
	}
	for i := range ds {
		if ds[i].lost == nil {
			g.n++
			ds[i].n = g.n
		}
	}
	g.waits = append(g.waits, ds...)
	g.mu.Unlock()
	g.wake()
}

// fill implements source.
func (o *groupOut) fill(batch []byte) ([]byte, bool) {
	g := o.groupSub
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out != o { // another link has it now
		return batch, false
	}
	began := false
	k := 0
	for ; k < len(g.waits) && len(batch) < batchBytes; k++ {
		d := &g.waits[k]
		f := frame{Type: frameGap}
		if d.lost != nil {
			f.Count, f.Pos = d.lost.Count, d.lost.Next
			g.s.h.count.lost.Add(d.lost.Count)
		} else {
			if g.credit <= 0 || g.bytes <= 0 {
				break
			}
			g.credit--
			g.bytes -= d.size
			f = frameOf(frameDlv, &d.msg)
			f.N = d.n
			d.msg = transport.Message{}
			g.held[d.n] = *d
			g.s.h.count.delivered.Add(1)
		}
		if !began {
			began = true
			batch = g.c.codec.append(batch, &frame{Type: frameRun, Sid: g.sid})
		}
		batch = g.c.codec.append(batch, &f)
	}
	clear(g.waits[:k])
	if g.waits = g.waits[k:]; len(g.waits) == 0 {
		g.waits = nil
	}
	return batch, len(g.waits) > 0 && len(batch) >= batchBytes
}

// settle sees to what a client wants done with deliveries.
func (c *conn) settle(f *frame, k kind) bool {
	g := c.group(f.Sid)
	if g == nil { // ended, or lost with its session: nothing of it is held
		if f.Rid != 0 {
			c.out.send(frame{Type: frameOK, Rid: f.Rid, Ns: f.Ns})
		}
		return true
	}
	op := settlement{kind: k, rid: f.Rid, c: c, delay: duration(f.Delay)}
	if k == extend {
		op.delay = duration(f.Lease)
	}
	g.mu.Lock()
	for _, n := range f.Ns {
		d, ok := g.held[n]
		if !ok {
			if !f.Again || n == 0 || g.past[n%uint64(len(g.past))] != n {
				op.gone = append(op.gone, n)
			}
			continue
		}
		op.ds = append(op.ds, d)
		if k != extend {
			delete(g.held, n)
			g.past[n%uint64(len(g.past))] = n
			if !g.manual {
				g.credit++
				g.bytes += d.size
			}
		}
	}
	g.mu.Unlock()
	g.do(op)
	if k != extend {
		g.poke()
	}
	return true
}

// do queues a settlement, and sees to it that it is done.
func (g *groupSub) do(op settlement) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ops = append(g.ops, op)
	if !g.busy && g.s.h.spawn(g.settleAll) {
		g.busy = true
	}
}

// settleAll does what is queued, acknowledgements in a row together.
func (g *groupSub) settleAll() {
	for {
		g.mu.Lock()
		ops := g.ops
		if g.ops = nil; len(ops) == 0 {
			g.busy = false
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		for len(ops) > 0 {
			k := 1
			for k < len(ops) && ops[k].kind == ops[0].kind && ops[k].delay == ops[0].delay {
				k++
			}
			g.settleSome(ops[:k])
			ops = ops[k:]
		}
	}
}

func (g *groupSub) settleSome(ops []settlement) {
	var rs []transport.Receipt
	for i := range ops {
		for j := range ops[i].ds {
			rs = append(rs, ops[i].ds[j].receipt)
		}
	}
	var err error
	if len(rs) > 0 {
		ctx, cancel := context.WithTimeout(g.s.h.ctx, g.s.h.cfg.sendFor)
		err = g.apply(ctx, ops[0].kind, rs, ops[0].delay)
		cancel()
	}
	var lost *transport.LeaseError
	if e, ok := errors.AsType[*transport.LeaseError](err); ok {
		lost, err = e, nil
	}
	for i := range ops {
		op := &ops[i]
		gone := op.gone
		var keep []delivery
		for _, d := range op.ds {
			switch {
			case err != nil:
				keep = append(keep, d)
			case lost != nil && lost.Has(d.receipt):
				gone = append(gone, d.n)
			}
		}
		if len(keep) > 0 && op.kind != extend { // the client may try again
			g.mu.Lock()
			for _, d := range keep {
				g.held[d.n] = d
			}
			g.mu.Unlock()
		}
		if lost != nil && op.kind == extend {
			g.mu.Lock()
			for _, n := range gone {
				if d, ok := g.held[n]; ok && !g.manual {
					g.credit++
					g.bytes += d.size
				}
				delete(g.held, n)
			}
			g.mu.Unlock()
			g.poke()
			g.wake()
		}
		if op.c == nil || op.rid == 0 {
			continue
		}
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			op.c.out.send(frame{Type: frameErr, Rid: op.rid, Code: CodeUnsupported, Text: err.Error()})
		case err != nil:
			op.c.out.send(frame{Type: frameErr, Rid: op.rid, Code: CodeUnavailable})
		default:
			op.c.out.send(frame{Type: frameOK, Rid: op.rid, Ns: gone})
		}
	}
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

// fail ends the subscription because of the transport.
func (g *groupSub) fail(err error) {
	g.mu.Lock()
	c := g.c
	g.mu.Unlock()
	g.s.mu.Lock()
	if g.s.groups[g.sid] == g {
		delete(g.s.groups, g.sid)
	}
	g.s.mu.Unlock()
	g.cancel()
	g.sub.Close()
	if c != nil {
		c.out.send(frame{Type: frameSubEnd, Sid: g.sid, Code: subCode(err), Text: subText(err)})
	}
}

// close ends the subscription: what it holds goes back.
func (g *groupSub) close() {
	g.cancel()
	<-g.ended
	g.sub.Close()
}
