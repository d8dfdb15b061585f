package memstream

import (
	"context"
	"time"

	"github.com/echobus/echo/transport"
)

// subscription is a member of a group. The topic's lock guards its fields
// after opts and lease, but for spans, which belong to the one caller of Receive.
type subscription struct {
	group *group
	opts  transport.Options
	lease time.Duration
	woken chan struct{} // holds a token when Receive should look again

	spans []span

	held      int // messages not settled
	heldBytes int
	idle      bool // in group.waiting
	full      bool // Receive waits for a settlement
	closed    bool
}

// span is a run of new messages to copy out of the log.
type span struct {
	first uint64
	msgs  []transport.Message
}

var (
	_ transport.Subscription = (*subscription)(nil)
	_ transport.Acker        = (*subscription)(nil)
	_ transport.Nacker       = (*subscription)(nil)
	_ transport.Releaser     = (*subscription)(nil)
	_ transport.Extender     = (*subscription)(nil)
)

func (s *subscription) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	g, t := s.group, s.group.topic
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		t.mu.Lock()
		n, err := s.take(dst)
		if n > 0 || err != nil {
			g.pass()
			if t.senders > 0 && n > 0 {
				t.offerRoom()
			}
			t.mu.Unlock()
			s.copy(dst[:n])
			return n, err
		}
		s.wait()
		t.mu.Unlock()

		select {
		case <-s.woken:
		case <-ctx.Done():
			t.mu.Lock()
			s.full = false
			if !g.unwait(s) {
				g.pass() // the wake-up we did not use
			}
			t.mu.Unlock()
			return 0, ctx.Err()
		}
	}
}

// wait notes that Receive is about to wait, and for what.
func (s *subscription) wait() {
	select {
	case <-s.woken: // an old token
	default:
	}
	if s.room() == 0 || s.group.available() { // no room at all, or not for what is there
		s.full = true
		return
	}
	s.idle = true
	s.group.topic.idle++
	s.group.waiting = append(s.group.waiting, s)
}

func (s *subscription) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// room is how many messages the subscription may be given now, the bound in
// bytes apart.
func (s *subscription) room() int {
	switch {
	case s.opts.MaxPendingBytes > 0 && s.held > 0 && s.heldBytes >= s.opts.MaxPendingBytes:
		return 0
	case s.opts.MaxPending > 0:
		return s.opts.MaxPending - s.held
	}
	return int(^uint(0) >> 1)
}

// take gives the subscription what is there: first what must be delivered
// again, which it copies to dst, then new messages, whose place it notes in
// spans for copy to fill in without the lock.
func (s *subscription) take(dst []transport.Message) (int, error) {
	g := s.group
	s.spans = s.spans[:0]
	switch {
	case s.closed, g.topic.closed:
		return 0, transport.ErrClosed
	case g.lost > 0:
		e := &transport.LostError{Topic: g.topic.name, Group: g.name, Count: g.lost, Next: transport.Position{Lo: g.flight.next}}
		g.lost = 0
		return 0, e
	}
	room := min(len(dst), s.room())
	if room <= 0 || !g.available() {
		return 0, nil
	}
	now := clock()
	n := s.takeReady(dst[:room], now)
	if len(g.ready) == 0 && !g.overfull() {
		n += s.takeNew(room-n, now)
	}
	if n > 0 {
		g.arm(now+s.lease, now)
	}
	return n, nil
}

func (s *subscription) takeReady(dst []transport.Message, now time.Duration) (n int) {
	g := s.group
	for n < len(dst) && len(g.ready) > 0 {
		i := g.ready[0].i
		d := g.find(i)
		if !s.fits(d.size) {
			break
		}
		g.ready.pop()
		d.attempt++
		d.serial++
		s.hold(d, now)
		dst[n] = *g.message(i)
		dst[n].Attempt, dst[n].Position, dst[n].Token = int(d.attempt), transport.Position{Lo: i}, uint64(d.serial)
		n++
	}
	return n
}

func (s *subscription) takeNew(room int, now time.Duration) (n int) {
	g, log := s.group, &s.group.topic.log
	avail := int(log.next - g.flight.next)
	if avail == 0 {
		return 0
	}
	room = min(room, avail)
	for k := log.find(g.flight.next); n < room; k++ {
		seg := log.segs[k]
		from := int(g.flight.next - seg.base)
		to := min(from+room-n, len(seg.msgs))
		for i := from; i < to; i++ {
			if !s.fits(seg.sizes[i]) {
				to, room = i, 0
				break
			}
			d := g.flight.push()
			*d = delivery{size: seg.sizes[i], attempt: 1, serial: 1}
			s.hold(d, now)
			n++
		}
		if to > from {
			s.spans = append(s.spans, span{seg.base + uint64(from), seg.msgs[from:to]})
		}
	}
	g.pending += n
	return n
}

func (s *subscription) fits(size uint32) bool {
	return s.opts.MaxPendingBytes == 0 || s.held == 0 || s.heldBytes+int(size) <= s.opts.MaxPendingBytes
}

// hold leases a delivery to s.
func (s *subscription) hold(d *delivery, now time.Duration) {
	d.state, d.holder, d.deadline = flying, s, now+s.lease
	s.held++
	s.heldBytes += int(d.size)
}

// drop undoes hold.
func (s *subscription) drop(d *delivery) {
	s.held--
	s.heldBytes -= int(d.size)
	if s.full {
		s.full = false
		s.wake()
	}
}

// copy fills the end of dst with the messages that take noted.
func (s *subscription) copy(dst []transport.Message) {
	n := len(dst)
	for _, sp := range s.spans {
		n -= len(sp.msgs)
	}
	for _, sp := range s.spans {
		copy(dst[n:], sp.msgs)
		for k := range sp.msgs {
			m := &dst[n+k]
			m.Attempt, m.Position.Lo, m.Token = 1, sp.first+uint64(k), 1
		}
		n += len(sp.msgs)
	}
	clear(s.spans) // the log decides how long messages live
}

func (s *subscription) Lease() time.Duration { return s.lease }

func (s *subscription) Ack(ctx context.Context, rs []transport.Receipt) error {
	return s.each(ctx, rs, func(i uint64, d *delivery, _ time.Duration) {
		s.drop(d)
		s.group.settle(i, d)
	})
}

func (s *subscription) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return s.each(ctx, rs, func(i uint64, d *delivery, now time.Duration) {
		s.group.giveBack(i, d, delay, now)
	})
}

func (s *subscription) Release(ctx context.Context, rs []transport.Receipt) error {
	return s.each(ctx, rs, func(i uint64, d *delivery, now time.Duration) {
		d.attempt--
		s.group.giveBack(i, d, 0, now)
	})
}

func (s *subscription) Extend(ctx context.Context, rs []transport.Receipt, lease time.Duration) error {
	if lease == 0 {
		lease = s.lease
	}
	return s.each(ctx, rs, func(_ uint64, d *delivery, now time.Duration) {
		d.deadline = now + lease
		s.group.arm(d.deadline, now)
	})
}

// each applies do to the deliveries of rs that s holds and names the others.
func (s *subscription) each(ctx context.Context, rs []transport.Receipt, do func(uint64, *delivery, time.Duration)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g, t := s.group, s.group.topic
	now := clock()
	var lost []transport.Receipt
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed || t.closed {
		return transport.ErrClosed
	}
	for _, r := range rs {
		i := r.Position.Lo
		d := g.find(i)
		if d == nil || d.holder != s || uint64(d.serial) != r.Token || d.deadline <= now {
			lost = append(lost, r)
			continue
		}
		do(i, d, now)
	}
	g.tidy()
	g.pass()
	if lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return nil
}

// Close ends the subscription. A group gets back what it held; a broadcast
// subscription's place in the topic goes with it.
func (s *subscription) Close() error {
	g, t := s.group, s.group.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed || t.closed {
		return nil
	}
	s.closed = true
	g.unwait(s)
	s.wake()
	if g.name == "" {
		t.remove(g)
		return nil
	}
	now := clock()
	g.eachFlying(func(i uint64, d *delivery) {
		if d.holder == s {
			g.giveBack(i, d, 0, now)
		}
	})
	g.wake(len(g.ready))
	return nil
}
