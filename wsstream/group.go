package wsstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

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

	mu      sync.Mutex // guards the rest
	c       *conn      // where deliveries go, nil while there is none
	out     *groupOut  // the same
	manual  bool
	once    bool // credit ends with what comes first
	credit  int
	bytes   int
	n       uint64 // the last delivery
	waits   []delivery
	wait    load                // of the messages in waits
	usual   int                 // size of a message, 0 if none came
	held    map[uint64]delivery // sent and not settled
	past    []uint64            // settled of late, by number
	more    chan struct{}       // holds a token when credit came
	stop    context.CancelFunc  // of the receive under way
	round   int                 // of receiving: what was received in a former one goes back
	paused  time.Time           // since when there is no link
	ops     []settlement
	queued  int  // deliveries that ops name
	returns int  // settlements under way whose deliveries come again, before others are received
	moves   int  // bytes of messages that wait to be moved
	busy    bool // somebody sees to ops
	quiet   *sync.Cond
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
	due     time.Time // when the lease ends unless it was extended elsewhere
}

// leaseMost bounds what a client may ask for: nobody takes over what a dead
// client holds before.
const leaseMost = time.Hour

// openGroup opens a group subscription.
func (c *conn) openGroup(ctx context.Context, p *pending, f *frame) error {
	start := transport.Start{From: transport.From(f.From), ID: f.ID, Time: f.Time, Position: f.Pos}
	sub, err := c.h.t.Subscribe(ctx, f.Topic, transport.Options{
		Group: f.Group, Start: start, Lease: min(duration(f.Lease), leaseMost), MaxPending: int(min(f.Most, creditMost)), MaxPendingBytes: int(min(f.MostB, bytesMost)),
	})
	if err != nil {
		return err
	}
	if _, ok := transport.As[transport.Acker](sub); !ok {
		sub.Close()
		return errors.ErrUnsupported
	}
	session := c.session
	g := &groupSub{
		s: session, sid: f.Sid, topic: f.Topic, name: f.Group, sub: sub, manual: f.Manual,
		held: make(map[uint64]delivery), more: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	g.quiet = sync.NewCond(&g.mu)
	g.to(c)
	g.ctx, g.cancel = context.WithCancel(c.h.ctx)
	err = c.started(p, f, func() bool {
		g.credit, g.bytes, g.once = p.credit, p.bytes, p.once
		return session.put(c, g)
	})
	if err != nil {
		g.cancel()
		sub.Close()
		return err
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

// resume gives a subscription to a link that took the session over, as f asks
// for. What the client has not seen goes back. The caller holds the session's lock.
func (g *groupSub) resume(c *conn, f *frame) {
	g.mu.Lock()
	if back := g.unseen(f.Seen); len(back) > 0 {
		g.doNext(settlement{kind: release, ds: back})
	}
	g.to(c)
	g.manual = f.Manual
	g.credit, g.bytes = int(min(f.Credit, creditMost)), int(min(f.Bytes, bytesMost))
	c.out.send(frame{Type: frameSubOK, Sid: g.sid, Lease: milliseconds(g.lease()), Resumed: true})
	g.mu.Unlock()
	g.poke()
	g.wake()
}

// unseen takes out what the client did not see, with the credit for it: what came
// after the delivery seen, and what waits but losses. What is being received
// goes back. The caller holds mu.
func (g *groupSub) unseen(seen uint64) (back []delivery) {
	if g.stop != nil {
		g.stop()
	}
	g.round++
	g.credit, g.bytes, g.once = 0, 0, false
	for n, d := range g.held {
		if n > seen {
			back = append(back, d)
			delete(g.held, n)
		}
	}
	var losses []delivery
	for _, d := range g.waits {
		if d.lost == nil {
			d.msg = transport.Message{}
			back = append(back, d)
		} else {
			losses = append(losses, d)
		}
	}
	g.waits, g.wait = losses, load{}
	return back
}

// pause stops deliveries to a link until another takes the subscription up.
func (g *groupSub) pause(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.c != c {
		return
	}
	g.to(nil)
	g.paused = time.Now()
	g.credit = 0
	if g.stop != nil {
		g.stop()
	}
}

// forgotten reports whether no link has taken the subscription up for long.
func (g *groupSub) forgotten(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.c == nil && now.Sub(g.paused) > g.s.h.cfg.hold
}

// prune forgets deliveries that were never settled, where there are many.
func (g *groupSub) prune(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.held) < g.s.h.cfg.maxHeld/2 {
		return
	}
	for n, d := range g.held {
		if !d.due.IsZero() && now.After(d.due) {
			delete(g.held, n)
		}
	}
	g.poke()
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
		if n < g.credit && g.stop != nil {
			g.stop()
		}
		g.credit, g.bytes = max(n, g.wait.messages), bytesMost // what waits was asked for
	} else {
		g.give(n, int(min(f.Bytes, bytesMost)))
	}
	g.mu.Unlock()
	g.poke()
	g.wake()
}

// give adds to the credit. The caller holds mu.
func (g *groupSub) give(n, bytes int) {
	g.credit = min(g.credit+n, creditMost)
	g.bytes = min(g.bytes+bytes, bytesMost)
}

// room is how many messages may be received now. The caller holds mu.
func (g *groupSub) room() int {
	const most, first = 256, 16
	left := g.bytes - g.wait.bytes
	if g.c == nil || left <= 0 || g.returns > 0 {
		return 0
	}
	room := min(g.credit-g.wait.messages, g.s.h.cfg.maxHeld-len(g.held)-g.wait.messages, most)
	if g.usual == 0 {
		return min(room, first)
	}
	return min(room, max(1, left/g.usual))
}

// receive receives for the client as its credit allows.
func (g *groupSub) receive() {
	defer close(g.ended)
	var dst []transport.Message
	for {
		g.mu.Lock()
		room, round := g.room(), g.round
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
		if room > len(dst) {
			dst = make([]transport.Message, max(room, 16))
		}
		n, err := g.sub.Receive(ctx, dst[:room])
		stop()
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			g.deliver(round, delivery{lost: lost})
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
		lease := g.lease()
		ds := make([]delivery, n)
		for i := range dst[:n] {
			ds[i] = delivery{msg: dst[i], size: dst[i].Size(), receipt: dst[i].Receipt()}
			if lease > 0 {
				ds[i].due = time.Now().Add(lease)
			}
		}
		clear(dst[:n])
		g.deliver(round, ds...)
	}
}

// deliver queues deliveries for the link. If it went meanwhile, or what came
// before them goes back, so do they.
func (g *groupSub) deliver(round int, ds ...delivery) {
	g.mu.Lock()
	if (g.c == nil || g.round != round) && ds[0].lost == nil {
		g.doNext(settlement{kind: release, ds: ds})
		g.mu.Unlock()
		return
	}
	if g.once && ds[0].lost == nil {
		g.once, g.credit = false, len(ds)
	}
	for i := range ds {
		if d := &ds[i]; d.lost == nil {
			g.n++
			d.n = g.n
			g.wait.add(1, d.size)
			if g.usual == 0 {
				g.usual = d.size + 1
			}
			g.usual += (d.size + 1 - g.usual) / 4
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
	if g.out != o || g.c.leaving() { // another link has it now, or is to
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
			g.wait.add(-1, -d.size)
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

// fail ends the subscription because of the transport.
func (g *groupSub) fail(err error) {
	there := g.s.remove(g) // no link takes it up any more
	g.mu.Lock()
	c := g.c
	g.mu.Unlock()
	g.cancel()
	g.sub.Close()
	if c != nil && there {
		c.out.send(frame{Type: frameSubEnd, Sid: g.sid, Code: subCode(err), Text: subText(err)})
	}
}

// close ends the subscription, when what its client settled is: the rest goes back.
func (g *groupSub) close() {
	g.cancel()
	<-g.ended
	g.mu.Lock()
	for g.busy {
		g.quiet.Wait()
	}
	g.mu.Unlock()
	g.sub.Close()
}
